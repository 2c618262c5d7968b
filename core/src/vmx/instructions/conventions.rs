//! How a VMX instruction ends (SDM Vol. 3C "Conventions"): VMsucceed, VMfailInvalid, VMfailValid.

use super::InstructionError;
use crate::cpu::{Cpu, Interruptibility};
use crate::vmx::Field;
use crate::vmx::entry::Entered;
use crate::vmx::exit::{Left, VmExit};
use crate::x86::Exception;
use crate::x86::control::{ARITHMETIC_FLAGS, rflags};

/// How an instruction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmxResult {
    /// VMsucceed.
    Succeed,
    /// VMfailInvalid: there is no current VMCS to hold an error.
    FailInvalid,
    /// VMfailValid with this error.
    FailValid(InstructionError),
    /// Done, RFLAGS untouched: VMFUNC, and VMCALL as KVM's hypercall.
    Done,
    /// A fault of the instruction.
    Fault(Exception),
    /// A VM exit from L2 instead of the instruction: give it to [`crate::vmx::exit::leave`].
    Exit(VmExit),
    /// VMLAUNCH, VMRESUME: L2 runs.
    Entered(Entered),
    /// VMLAUNCH, VMRESUME: the entry failed late; the exit is recorded and host state is loaded.
    EntryFailed {
        /// The exit.
        exit: VmExit,
        /// What the caller has yet to do.
        left: Left,
    },
    /// VMLAUNCH, VMRESUME: KVM cannot carry it out, since a page that L1 names is not RAM. Not done.
    Unbacked,
}

impl VmxResult {
    /// VMfail: VMfailValid if there is a current VMCS, else VMfailInvalid.
    #[must_use]
    pub const fn fail(cpu: &Cpu, error: InstructionError) -> Self {
        if cpu.vmx.current.is_some() {
            Self::FailValid(error)
        } else {
            Self::FailInvalid
        }
    }
}

/// Applies what ends with the instruction itself: RFLAGS, the VM-instruction error, RIP behind the
/// instruction of `length` bytes and the end of blocking by STI or MOV SS.
///
/// Faults, exits and entries are left to the caller: nothing is changed for them.
pub fn complete(cpu: &mut Cpu, result: &VmxResult, length: u32) {
    let flag = match result {
        VmxResult::Succeed => 0,
        VmxResult::FailInvalid => rflags::CF,
        VmxResult::FailValid(error) => {
            cpu.vmx
                .vmcs12
                .set(Field::VM_INSTRUCTION_ERROR, u64::from(error.0));
            rflags::ZF
        }
        VmxResult::Done => cpu.regs.rflags & ARITHMETIC_FLAGS,
        VmxResult::Fault(_)
        | VmxResult::Exit(_)
        | VmxResult::Entered(_)
        | VmxResult::EntryFailed { .. }
        | VmxResult::Unbacked => return,
    };
    cpu.regs.rflags = cpu.regs.rflags & !ARITHMETIC_FLAGS | flag;
    cpu.regs.rip = cpu.next_rip(u64::from(length));
    cpu.interruptibility
        .remove(Interruptibility::STI | Interruptibility::MOV_SS);
}
