//! The smallest L1 there is: it enters L2 and halts where the exit leads it. What it wants of L2 and
//! what it then finds is the test's: the vmcs12 is changed and read between two entries.

use super::bare::*;
use nvmx_core::nested::{NestedState, specimen};
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, VmConfig};
use nvmx_core::vmx::capability::Capability;
use nvmx_core::vmx::vmcs12::{LaunchState, Vmcs12};
use nvmx_core::vmx::{Field, capability::ControlField};
use nvmx_core::x86::{CpuState, MpState, Regs, msr};
use nvmx_soft::SoftVm;

/// Where L2's code is.
pub(crate) const L2: u64 = 0x4_0000;
/// Where the handler of vector `n` is: at `HANDLERS + 64 * n`.
pub(crate) const HANDLERS: u64 = 0x5_0000;
/// A page of L1's own, for lists and bitmaps.
pub(crate) const PAGE: u64 = 0x6_0000;
/// Another one.
pub(crate) const PAGE2: u64 = 0x6_1000;
/// Top of L2's stack.
pub(crate) const L2_STACK: u64 = 0x7_0000;
const ENTER: u64 = 0x3_0000;
/// L1's VMWRITEs.
const WRITES: u64 = 0x3_1000;
const EXITED: u64 = 0x3_0100;

/// VMCALL.
pub(crate) const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

pub(crate) struct Nest {
    pub(crate) vm: SoftVm,
    pub(crate) vmcs12: Vmcs12,
    nested: NestedState,
}

/// How an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// With a VM exit, or a failed entry, of this reason.
    Exit(u32),
    /// VMfailValid with this error.
    FailValid(u64),
    /// VMfailInvalid.
    FailInvalid,
}

impl Nest {
    /// L2 is `code` in 64-bit mode at CPL 0, its handlers only return.
    pub(crate) fn new(code: &[u8]) -> Self {
        Self::of_profile(None, code)
    }

    /// As [`Self::new`], on the processor of a profile.
    pub(crate) fn of_profile(profile: Option<&str>, code: &[u8]) -> Self {
        let mut vm = SoftVm::new(&VmConfig {
            memory_size: MEMORY,
            ..VmConfig::default()
        })
        .expect("a machine");
        if let Some(name) = profile {
            let profile = nvmx_core::profiles::find(name).expect("a profile");
            vm.set_state(&profile.for_soft().state()).expect("taken");
        }
        Self::on_machine(vm, code)
    }

    /// As [`Self::new`], on the first processor of this machine.
    pub(crate) fn on_machine(mut vm: SoftVm, code: &[u8]) -> Self {
        furnish(&mut vm, true);
        let has_error_code = |vector| matches!(vector, 8 | 10..=14 | 17);
        for vector in 0..256_u64 {
            let at = HANDLERS + 64 * vector;
            put(
                &mut vm,
                IDT + 16 * vector,
                &(at & 0xffff | 8 << 16 | 0x8e00 << 32 | (at >> 16) << 48).to_le_bytes(),
            );
            let handler: &[u8] = if has_error_code(vector) {
                // add rsp, 8; iretq
                &[0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf]
            } else {
                &[0x48, 0xcf]
            };
            put(&mut vm, at, handler);
        }
        // The stack of CPL 0 in a 64-bit TSS.
        put(&mut vm, 0xb004, &(STACK - 0x1000).to_le_bytes());
        put(&mut vm, L2, code);
        // VMLAUNCH; HLT and, 16 bytes on, VMRESUME; HLT.
        put(&mut vm, ENTER, &[0x0f, 0x01, 0xc2, 0xf4]);
        put(&mut vm, ENTER + 16, &[0x0f, 0x01, 0xc3, 0xf4]);
        put(&mut vm, EXITED, &[0xf4]);

        let mut start = state(Mode::Long0, &mut Random(0));
        if let Some(sregs) = &mut start.sregs {
            sregs.cr4 = 0x2020;
        }
        start.regs = Some(Regs {
            rip: ENTER,
            rflags: 2,
            ..Regs::default()
        });
        vm.set_state(&start).expect("taken");
        let msrs = vm.state(Parts::All).expect("state").msrs.expect("MSRs");
        let mut capabilities = [0; 20];
        for (number, value) in (msr::IA32_VMX_BASIC..).zip(&mut capabilities) {
            *value = msrs.get(&number).copied().unwrap_or(0);
        }
        let nested = specimen::with_vmcs12(Capability::new(&capabilities));
        let mut vmcs12 = nested.vmcs12().expect("a vmcs12").clone();
        for (field, value) in [
            (Field::HOST_CR3, PAGING),
            (Field::HOST_CR4, 0x2020),
            (Field::HOST_RSP, STACK),
            (Field::HOST_RIP, EXITED),
            (Field::HOST_TR_SELECTOR, 0x28),
            (Field::HOST_GDTR_BASE, GDT),
            (Field::HOST_IDTR_BASE, IDT),
            (Field::GUEST_CR3, PAGING),
            (Field::GUEST_CR4, 0x2020),
            (Field::GUEST_RSP, L2_STACK),
            (Field::GUEST_RIP, L2),
            (Field::GUEST_TR_SELECTOR, 0x28),
            (Field::GUEST_TR_BASE, 0xb000),
            (Field::GUEST_GDTR_BASE, GDT),
            (Field::GUEST_GDTR_LIMIT, 0x7f),
            (Field::GUEST_IDTR_BASE, IDT),
            (Field::GUEST_IDTR_LIMIT, 0xfff),
        ] {
            vmcs12.set(field, value);
        }
        for (field, control) in [
            (Field::PIN_BASED_VM_EXEC_CONTROL, ControlField::PinBased),
            (Field::CPU_BASED_VM_EXEC_CONTROL, ControlField::Primary),
            (Field::VM_EXIT_CONTROLS, ControlField::Exit),
            (Field::VM_ENTRY_CONTROLS, ControlField::Entry),
        ] {
            let allowed = Capability::new(&capabilities).allowed(control);
            vmcs12.set(field, allowed.adjust(vmcs12.get(field)));
        }
        // Without "CR3-load exiting" and "CR3-store exiting", which the default settings have.
        let primary = vmcs12.get(Field::CPU_BASED_VM_EXEC_CONTROL) & !(3 << 15);
        vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, primary);
        Self { vm, vmcs12, nested }
    }

    pub(crate) fn set(&mut self, field: Field, value: u64) {
        self.vmcs12.set(field, value);
    }

    pub(crate) fn get(&self, field: Field) -> u64 {
        self.vmcs12.get(field)
    }

    /// Sets bits of a control field.
    pub(crate) fn on(&mut self, field: Field, bits: u32) {
        let value = self.get(field) | u64::from(bits);
        self.set(field, value);
    }

    /// Clears bits of a control field.
    pub(crate) fn off(&mut self, field: Field, bits: u32) {
        let value = self.get(field) & !u64::from(bits);
        self.set(field, value);
    }

    /// Moves L2 behind the instruction that exited.
    pub(crate) fn skip(&mut self) {
        let next = self.get(Field::GUEST_RIP) + self.get(Field::VM_EXIT_INSTRUCTION_LEN);
        self.set(Field::GUEST_RIP, next);
    }

    /// Enters L2 with the vmcs12 as it is now and runs until L1 halts.
    pub(crate) fn enter(&mut self) -> Entry {
        self.start();
        self.resume()
    }

    /// As [`Self::enter`], behind VMWRITEs of L1's: of fields, by encoding, that nested state has no room for.
    pub(crate) fn enter_with(&mut self, fields: &[(u32, u64)]) -> Entry {
        self.start();
        let mut regs = self.regs();
        let mut code = Vec::new();
        for (encoding, value) in fields {
            // mov eax, encoding; mov rbx, value; vmwrite rax, rbx
            code.push(0xb8);
            code.extend(encoding.to_le_bytes());
            code.extend([0x48, 0xbb]);
            code.extend(value.to_le_bytes());
            code.extend([0x0f, 0x79, 0xc3]);
        }
        // jmp to the entry
        let next = WRITES + code.len() as u64 + 5;
        code.push(0xe9);
        code.extend((regs.rip.wrapping_sub(next) as u32).to_le_bytes());
        put(&mut self.vm, WRITES, &code);
        regs.rip = WRITES;
        self.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        self.resume()
    }

    /// Enters and runs for as many instructions, wherever that leads.
    pub(crate) fn enter_for(&mut self, instructions: u64) -> Exit {
        self.start();
        self.vm
            .run(Budget::instructions(instructions))
            .expect("runs")
    }

    /// Puts L1 before the entry.
    pub(crate) fn start(&mut self) {
        let launched = self.vmcs12.launch_state() == LaunchState::Launched;
        self.nested.set_regions(Some(self.vmcs12.clone()), None);
        self.vm
            .set_nested_state(&self.nested)
            .expect("the nested state is taken");
        let mut regs = self.regs();
        regs.rip = ENTER + if launched { 16 } else { 0 };
        regs.rflags = 2;
        self.vm
            .set_state(&CpuState {
                regs: Some(regs),
                mp_state: Some(MpState::Runnable),
                ..CpuState::default()
            })
            .expect("taken");
    }

    /// Runs on until L1 halts. Nobody listens to L2's OUT.
    pub(crate) fn resume(&mut self) -> Entry {
        let mut run = || self.vm.run(Budget::instructions(10_000_000)).expect("runs");
        let mut exit = run();
        while matches!(exit, Exit::IoOut { .. }) {
            exit = run();
        }
        assert_eq!(exit, Exit::Hlt, "at RIP {:#x}", self.regs().rip);
        let nested = self.vm.nested_state().expect("nested state");
        assert!(!nested.guest_mode(), "L2 halts");
        self.vmcs12 = nested.vmcs12().expect("a vmcs12").clone();
        let regs = self.regs();
        if regs.rip == EXITED + 1 {
            return Entry::Exit(self.get(Field::VM_EXIT_REASON) as u32);
        }
        if regs.rflags & 1 != 0 {
            Entry::FailInvalid
        } else {
            assert_ne!(regs.rflags & 0x40, 0);
            Entry::FailValid(self.get(Field::VM_INSTRUCTION_ERROR))
        }
    }

    /// Enters, and expects an exit for this reason at this address of L2.
    #[track_caller]
    pub(crate) fn expect(&mut self, reason: u32, rip: u64) {
        assert_eq!(self.enter(), Entry::Exit(reason), "exit reason");
        assert_eq!(
            self.get(Field::GUEST_RIP),
            rip,
            "L2's RIP {:#x} instead of {rip:#x}",
            self.get(Field::GUEST_RIP)
        );
    }

    /// As [`Self::expect`], of an instruction that L2 shall pass next time.
    #[track_caller]
    pub(crate) fn expect_vmcall(&mut self, rip: u64) {
        self.expect(18, rip);
        self.skip();
    }

    pub(crate) fn regs(&mut self) -> Regs {
        self.vm
            .state(Parts::Registers)
            .expect("state")
            .regs
            .expect("regs")
    }

    pub(crate) fn state(&mut self) -> CpuState {
        self.vm.state(Parts::All).expect("state")
    }

    pub(crate) fn set_state(&mut self, state: CpuState) {
        self.vm.set_state(&state).expect("taken");
    }
}
