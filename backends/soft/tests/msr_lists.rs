//! RDMSRLIST and WRMSRLIST in L2 (SDM Vol. 2B and 2C; Vol. 3C "Changes to Instruction Behavior in VMX Non-Root
//! Operation", "Instructions That Cause VM Exits Conditionally"). No peer has them: the tests follow the words.

mod common;

use common::bare::put;
use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Personality;
use nvmx_core::vcpu::{Budget, Exit, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Tertiary};
use nvmx_core::x86::{CpuState, Gpr};

const RDMSRLIST: [u8; 4] = [0xf2, 0x0f, 0x01, 0xc6];
const WRMSRLIST: [u8; 4] = [0xf3, 0x0f, 0x01, 0xc6];
const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const READ_EXIT: u32 = 78;
const WRITE_EXIT: u32 = 79;
const TERTIARY: u32 = 0x2034;
const MSR_DATA: u32 = 0x2402;

const NUMBERS: u64 = PAGE2;
const VALUES: u64 = PAGE2 + 0x200;
const CSTAR: u64 = 0xc000_0083;
const KERNEL_GS_BASE: u64 = 0xc000_0102;
const TSC_AUX: u64 = 0xc000_0103;

struct List {
    nest: Nest,
}

impl List {
    /// Entries 1, 2 and 63 name these MSRs; without "use MSR bitmaps" or with empty ones.
    fn new(code: [u8; 4], numbers: [u64; 3], bitmaps: bool) -> Self {
        let mut nest = Nest::of_profile(Some("max"), &[&code[..], &VMCALL].concat());
        // KVM's vmcs12 has no field for tertiary controls.
        nest.vm.set_personality(Personality::Sdm);
        let primary = Primary::ACTIVATE_TERTIARY_CONTROLS;
        nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, primary.bits());
        if bitmaps {
            let bits = Primary::USE_MSR_BITMAPS.bits();
            nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, bits);
        }
        nest.set(Field::MSR_BITMAP, PAGE);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 6 | 1 << 13);
        for (index, number) in [1, 2, 63].into_iter().zip(numbers) {
            put(&mut nest.vm, NUMBERS + 8 * index, &number.to_le_bytes());
            let value = 0x1000 * index;
            put(&mut nest.vm, VALUES + 8 * index, &value.to_le_bytes());
        }
        let mut list = Self { nest };
        list.registers(NUMBERS, VALUES, 1 << 63 | 6);
        list
    }

    fn registers(&mut self, numbers: u64, values: u64, mask: u64) {
        let mut regs = self.nest.regs();
        regs.set(Gpr::Rsi, numbers);
        regs.set(Gpr::Rdi, values);
        regs.set(Gpr::Rcx, mask);
        self.nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
    }

    /// The accesses to this MSR exit.
    fn intercept(&mut self, number: u64, is_write: bool) {
        let half = if is_write { 2048 } else { 0 };
        let high = if number >= 0xc000_0000 { 1024 } else { 0 };
        let at = PAGE + half + high + (number & 0x1fff) / 8;
        put(&mut self.nest.vm, at, &[1 << (number % 8)]);
    }

    #[track_caller]
    fn expect(&mut self, reason: u32, left: u64) {
        let control = Tertiary::ENABLE_MSR_LIST_INSTRUCTIONS.bits();
        let entry = self.enter(control);
        let info = self.nest.get(Field::VM_EXIT_INTR_INFO);
        assert_eq!(entry, Entry::Exit(reason), "{info:#x}");
        assert_eq!(self.nest.regs().get(Gpr::Rcx), left, "what is left");
        let behind = if reason == VMCALL_EXIT { 4 } else { 0 };
        assert_eq!(self.nest.get(Field::GUEST_RIP), L2 + behind);
    }

    fn enter(&mut self, tertiary: u64) -> Entry {
        let kept = self.nest.regs();
        // L1's VMWRITEs use RAX and RBX alone.
        let entry = self.nest.enter_with(&[(TERTIARY, tertiary)]);
        assert_eq!(self.nest.regs().get(Gpr::Rsi), kept.get(Gpr::Rsi));
        entry
    }

    fn value(&mut self, index: u64) -> u64 {
        let mut bytes = [0; 8];
        self.nest
            .vm
            .read_memory(L1Phys(VALUES + 8 * index), &mut bytes)
            .expect("RAM");
        u64::from_le_bytes(bytes)
    }

    fn msr(&mut self, number: u64) -> u64 {
        self.nest.state().msrs.expect("MSRs")[&(number as u32)]
    }

    /// What L1 reads of a field that nested state has no room for.
    fn vmread(&mut self, encoding: u32) -> u64 {
        const AT: u64 = 0x3_2000;
        // mov eax, encoding; vmread rbx, rax; hlt
        let code = [
            &[0xb8][..],
            &encoding.to_le_bytes(),
            &[0x0f, 0x78, 0xc3, 0xf4],
        ]
        .concat();
        put(&mut self.nest.vm, AT, &code);
        let mut regs = self.nest.regs();
        regs.rip = AT;
        self.nest.set_state(CpuState {
            regs: Some(regs),
            mp_state: Some(nvmx_core::x86::MpState::Runnable),
            ..CpuState::default()
        });
        let exit = self.nest.vm.run(Budget::instructions(10)).expect("runs");
        assert_eq!(exit, Exit::Hlt);
        self.nest.regs().get(Gpr::Rbx)
    }
}

#[test]
fn a_list_is_read_and_written() {
    let numbers = [CSTAR, KERNEL_GS_BASE, TSC_AUX];
    let mut list = List::new(WRMSRLIST, numbers, true);
    list.expect(VMCALL_EXIT, 0);
    assert_eq!(numbers.map(|n| list.msr(n)), [0x1000, 0x2000, 0x3_f000]);

    let mut list = List::new(RDMSRLIST, numbers, true);
    list.nest.set_state(CpuState {
        msrs: Some(
            [
                (CSTAR as u32, 7),
                (KERNEL_GS_BASE as u32, 8),
                (TSC_AUX as u32, 9),
            ]
            .into(),
        ),
        ..CpuState::default()
    });
    list.expect(VMCALL_EXIT, 0);
    assert_eq!([1, 2, 63].map(|index| list.value(index)), [7, 8, 9]);
    assert_eq!(list.value(0), 0, "it was not named");

    // None at all; and the barrier, which is in lists alone.
    let mut list = List::new(RDMSRLIST, [0x2f, 0x2f, 0x2f], true);
    list.expect(VMCALL_EXIT, 0);
    assert_eq!(list.value(1), 0);
    let mut list = List::new(RDMSRLIST, numbers, true);
    list.registers(NUMBERS, VALUES, 0);
    list.expect(VMCALL_EXIT, 0);
    assert_eq!(list.value(1), 0x1000);
}

#[test]
fn exits_name_the_msr_and_leave_the_rest() {
    for (code, is_write, reason) in [(RDMSRLIST, false, READ_EXIT), (WRMSRLIST, true, WRITE_EXIT)] {
        let mut list = List::new(code, [CSTAR, KERNEL_GS_BASE, TSC_AUX], true);
        list.intercept(KERNEL_GS_BASE, !is_write);
        list.intercept(KERNEL_GS_BASE, is_write);
        list.expect(reason, 1 << 63 | 4);
        assert_eq!(list.nest.get(Field::EXIT_QUALIFICATION), KERNEL_GS_BASE);
        assert_eq!(list.nest.get(Field::VM_EXIT_INSTRUCTION_LEN), 4);
        if is_write {
            assert_eq!(list.msr(CSTAR), 0x1000);
            assert_eq!(list.msr(TSC_AUX), 0);
            assert_eq!(list.vmread(MSR_DATA), 0x2000);
        } else {
            assert_eq!([1, 63].map(|index| list.value(index)), [0, 0x3_f000]);
        }
        // In no bitmap.
        let mut list = List::new(code, [CSTAR, 0x2000, TSC_AUX], true);
        list.expect(reason, 1 << 63 | 4);
        assert_eq!(list.nest.get(Field::EXIT_QUALIFICATION), 0x2000);
        // Without bitmaps, before anything is looked at.
        let mut list = List::new(code, [CSTAR, KERNEL_GS_BASE, TSC_AUX], false);
        list.registers(NUMBERS + 1, VALUES, 6);
        list.expect(reason, 6);
        assert_eq!(list.nest.get(Field::EXIT_QUALIFICATION), 0);
    }
}

#[test]
fn faults_are_those_of_the_instruction() {
    type Change = fn(&mut List);
    let rows: [(&str, [u64; 3], Change, u64); 5] = [
        (
            "a number of 33 bits",
            [CSTAR, 1 << 32, TSC_AUX],
            |_| (),
            1 << 63 | 4,
        ),
        ("no such MSR", [CSTAR, 0x1fff, TSC_AUX], |_| (), 1 << 63 | 4),
        (
            "numbers not aligned",
            [CSTAR; 3],
            |list| list.registers(NUMBERS + 4, VALUES, 2),
            2,
        ),
        (
            "values not aligned",
            [CSTAR; 3],
            |list| list.registers(NUMBERS, VALUES + 1, 2),
            2,
        ),
        (
            "not canonical",
            [CSTAR; 3],
            |list| list.registers(1 << 63, VALUES, 2),
            2,
        ),
    ];
    for (what, numbers, change, left) in rows {
        for code in [RDMSRLIST, WRMSRLIST] {
            let mut list = List::new(code, numbers, true);
            change(&mut list);
            list.expect(EXCEPTION, left);
            let vector = list.nest.get(Field::VM_EXIT_INTR_INFO) & 0xff;
            assert_eq!(vector, 13, "{what}");
        }
    }
    // #UD without the control.
    let mut list = List::new(RDMSRLIST, [CSTAR; 3], true);
    assert_eq!(list.enter(0), Entry::Exit(EXCEPTION));
    assert_eq!(list.nest.get(Field::VM_EXIT_INTR_INFO) & 0xff, 6);
}
