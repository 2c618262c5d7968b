//! Performance counters, and IA32_PERF_GLOBAL_CTRL across VM entry and exit (SDM Vol. 3B "Architectural
//! Performance Monitoring"; Vol. 3C "Loading Guest Control Registers, Debug Registers, and MSRs", "Loading
//! Host Control Registers, Debug Registers, MSRs").

mod common;

use common::bare::put;
use common::nest::*;
use common::user::{make_user, user_gate};
use nvmx_core::cpu::Personality;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{EntryControls, ExitControls, Primary};
use nvmx_core::x86::{CpuState, Gpr};

const GLOBAL_CTRL: u32 = 0x38f;
const FIXED_CTRL: u32 = 0x38d;
const INSTRUCTIONS: u32 = 0x309;
const ALL: u64 = 0xff | 7 << 32;
const EXCEPTION_OR_NMI: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const FAILED_ON_STATE: u32 = 1 << 31 | 33;

fn nest(code: &[u8]) -> Nest {
    Nest::of_profile(Some("max"), code)
}

fn msr(nest: &mut Nest, number: u32) -> u64 {
    nest.state().msrs.expect("MSRs")[&number]
}

fn set_msrs(nest: &mut Nest, values: &[(u32, u64)]) {
    nest.set_state(CpuState {
        msrs: Some(values.iter().copied().collect()),
        ..CpuState::default()
    });
}

/// RDMSR of a number below 2^31.
fn rdmsr(number: u32) -> Vec<u8> {
    let mut code = vec![0xb9];
    code.extend(number.to_le_bytes());
    code.extend([0x0f, 0x32]);
    code
}

fn nops(count: usize) -> Vec<u8> {
    vec![0x90; count]
}

#[test]
fn entry_and_exit_load_the_global_control() {
    // Each bit alone, as guest's and as host's value: it loads if it is a counter's, else nothing enters.
    for bit in 0..64 {
        let value = 1 << bit;
        let is_counter = ALL & value != 0;
        let mut nest = nest(&[rdmsr(GLOBAL_CTRL), VMCALL.to_vec()].concat());
        nest.on(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::USE_MSR_BITMAPS.bits(),
        );
        nest.set(Field::MSR_BITMAP, PAGE);
        // Not loaded: no check.
        nest.set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, value);
        nest.set(Field::HOST_IA32_PERF_GLOBAL_CTRL, value);
        set_msrs(&mut nest, &[(GLOBAL_CTRL, 0xf0)]);
        assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT), "{bit}");
        assert_eq!(nest.regs().get(Gpr::Rax), 0xf0, "{bit}");
        assert_eq!(msr(&mut nest, GLOBAL_CTRL), 0xf0, "{bit}");

        nest.set(Field::GUEST_RIP, L2);
        nest.on(
            Field::VM_ENTRY_CONTROLS,
            EntryControls::LOAD_PERF_GLOBAL_CTRL.bits(),
        );
        let expected = if is_counter {
            VMCALL_EXIT
        } else {
            FAILED_ON_STATE
        };
        assert_eq!(nest.enter(), Entry::Exit(expected), "guest bit {bit}");
        if is_counter {
            let regs = nest.regs();
            let read = regs.get(Gpr::Rax) | regs.get(Gpr::Rdx) << 32;
            assert_eq!(read, value, "guest bit {bit}");
            assert_eq!(msr(&mut nest, GLOBAL_CTRL), value, "the exit loads nothing");
        }

        nest.set(Field::GUEST_RIP, L2);
        nest.off(
            Field::VM_ENTRY_CONTROLS,
            EntryControls::LOAD_PERF_GLOBAL_CTRL.bits(),
        );
        nest.on(
            Field::VM_EXIT_CONTROLS,
            ExitControls::LOAD_PERF_GLOBAL_CTRL.bits(),
        );
        let expected = if is_counter {
            Entry::Exit(VMCALL_EXIT)
        } else {
            Entry::FailValid(8)
        };
        assert_eq!(nest.enter(), expected, "host bit {bit}");
        if is_counter {
            assert_eq!(msr(&mut nest, GLOBAL_CTRL), value, "host bit {bit}");
        }
    }
}

#[test]
fn an_exit_saves_the_global_control() {
    let mut nest = nest(&VMCALL);
    // KVM has no such control.
    nest.vm.set_personality(Personality::Sdm);
    nest.on(
        Field::VM_ENTRY_CONTROLS,
        EntryControls::LOAD_PERF_GLOBAL_CTRL.bits(),
    );
    nest.on(
        Field::VM_EXIT_CONTROLS,
        ExitControls::LOAD_PERF_GLOBAL_CTRL.bits() | ExitControls::SAVE_PERF_GLOBAL_CTRL.bits(),
    );
    nest.set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, 3);
    nest.set(Field::HOST_IA32_PERF_GLOBAL_CTRL, 1 << 33);
    assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT));
    assert_eq!(nest.get(Field::GUEST_IA32_PERF_GLOBAL_CTRL), 3);
    assert_eq!(msr(&mut nest, GLOBAL_CTRL), 1 << 33);
    // It may be told apart from what was there: L2's own write is saved.
    let mut code = vec![0xb9];
    code.extend(GLOBAL_CTRL.to_le_bytes());
    code.extend([0xb8, 0x30, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30]);
    common::bare::put(&mut nest.vm, L2, &[code, VMCALL.to_vec()].concat());
    nest.set(Field::GUEST_RIP, L2);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::USE_MSR_BITMAPS.bits(),
    );
    nest.set(Field::MSR_BITMAP, PAGE);
    assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT));
    assert_eq!(nest.get(Field::GUEST_IA32_PERF_GLOBAL_CTRL), 0x30);
}

/// Enters L2, in which alone the fixed counter of instructions counts, at the levels that `control` names, up to VMCALL.
fn count_in_l2(nest: &mut Nest, control: u64) {
    nest.on(
        Field::VM_ENTRY_CONTROLS,
        EntryControls::LOAD_PERF_GLOBAL_CTRL.bits(),
    );
    nest.on(
        Field::VM_EXIT_CONTROLS,
        ExitControls::LOAD_PERF_GLOBAL_CTRL.bits(),
    );
    nest.set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, 1 << 32);
    nest.set(Field::HOST_IA32_PERF_GLOBAL_CTRL, 0);
    set_msrs(nest, &[(FIXED_CTRL, control), (GLOBAL_CTRL, 0)]);
    assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT));
}

#[test]
fn l2_counts_alone_where_entry_and_exit_say_so() {
    let mut nest = nest(&[nops(20), VMCALL.to_vec()].concat());
    count_in_l2(&mut nest, 3);
    // The 20, and the VM entry itself, which retires in L2. VMCALL did not retire.
    assert_eq!(msr(&mut nest, INSTRUCTIONS), 21);
}

#[test]
fn a_counter_overflows_at_its_instruction() {
    // As NMI, which L1 intercepts; and as fixed interrupt, with IF clear, which waits.
    let mut nest = nest(&[nops(40), VMCALL.to_vec()].concat());
    nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, 1 << 3);
    // NMI through the entry of the performance counters.
    let mut page = nest.state().lapic.expect("an APIC");
    page[0x340..0x344].copy_from_slice(&0x400_u32.to_le_bytes());
    page[0xf0..0xf4].copy_from_slice(&0x1ff_u32.to_le_bytes());
    nest.set_state(CpuState {
        lapic: Some(page),
        ..CpuState::default()
    });
    set_msrs(
        &mut nest,
        &[
            (FIXED_CTRL, 0xb),
            // VMLAUNCH and ten of L2's.
            (INSTRUCTIONS, (1 << 48) - 11),
            (GLOBAL_CTRL, 1 << 32),
        ],
    );
    nest.expect(EXCEPTION_OR_NMI, L2 + 10);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0202);
    assert_eq!(msr(&mut nest, 0x38e), 1 << 32, "the overflow is noted");
    let lapic = nest.state().lapic.expect("an APIC");
    assert_eq!(lapic[0x342] & 1, 1, "the entry is masked");
    nest.expect_vmcall(L2 + 40);
}

#[test]
fn rdpmc_and_privilege() {
    // RDPMC with ECX from L1: a general counter, a fixed one, and none.
    for (selector, exists) in [
        (7, true),
        (8, false),
        (1 << 30 | 2, true),
        (1 << 30 | 3, false),
    ] {
        let mut nest = nest(&[&[0x0f, 0x33][..], &VMCALL].concat());
        nest.off(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::RDPMC_EXITING.bits(),
        );
        nest.set(Field::EXCEPTION_BITMAP, 1 << 13);
        let mut regs = nest.regs();
        regs.set(Gpr::Rcx, selector);
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        let expected = if exists {
            VMCALL_EXIT
        } else {
            EXCEPTION_OR_NMI
        };
        assert_eq!(nest.enter(), Entry::Exit(expected), "{selector:#x}");
    }
}

#[test]
fn one_level_alone_counts_what_it_executes() {
    for (control, expected) in [
        // Three NOPs and INT; two NOPs.
        (2, 6),
        // The handler, and the VM entry, which began at CPL 0.
        (1, 6),
        (3, 12),
    ] {
        let code = [nops(3), vec![0xcd, 0x21], nops(2), VMCALL.to_vec()].concat();
        let mut nest = make_user(nest(&code), &[], true);
        let handler = user_gate(&mut nest);
        put(&mut nest.vm, handler, &[nops(4), vec![0x48, 0xcf]].concat());
        count_in_l2(&mut nest, control);
        assert_eq!(msr(&mut nest, INSTRUCTIONS), expected, "{control}");
    }
}
