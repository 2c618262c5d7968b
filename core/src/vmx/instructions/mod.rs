//! The VMX instructions (SDM Vol. 3C, chapter "VMX Instruction Reference").
//!
//! An instruction runs in three steps: [`check_execution`] is everything before its memory operand
//! is touched (mode, privilege, VMX operation, exit from L2); the caller then reads the operand; one
//! of the functions here does the work and says how it ended; [`complete`] applies that to RFLAGS,
//! RIP and the VM-instruction error.

// How an instruction ends is returned once per instruction, and nothing may be allocated for it.
#![allow(clippy::result_large_err)]

mod access;
mod conventions;
mod error;
mod execution;
mod invalidation;
mod pointer;
pub mod rules;
#[cfg(test)]
mod rules_tests;
#[cfg(test)]
mod tests;
mod vmfunc;
mod vmxon;

pub use access::{vmread, vmwrite};
pub use conventions::{VmxResult, complete};
pub use error::InstructionError;
pub use execution::{Instruction, Operands, check_execution};
pub use invalidation::{invept, invvpid};
pub(crate) use pointer::{
    page_address_is_valid, physical_address_is_valid, structure_address_is_valid,
};
pub use pointer::{vmclear, vmptrld, vmptrst};
pub use vmfunc::{vmcall, vmfunc};
pub use vmxon::{vmxoff, vmxon};

use super::entry::{EntryKind, EntryOutcome, launch_or_resume};
use crate::cpu::Cpu;
use crate::memory::GuestMemory;

/// VMLAUNCH.
pub fn vmlaunch(cpu: &mut Cpu, memory: &dyn GuestMemory) -> VmxResult {
    entry(launch_or_resume(cpu, memory, EntryKind::Launch))
}

/// VMRESUME.
pub fn vmresume(cpu: &mut Cpu, memory: &dyn GuestMemory) -> VmxResult {
    entry(launch_or_resume(cpu, memory, EntryKind::Resume))
}

fn entry(outcome: EntryOutcome) -> VmxResult {
    match outcome {
        EntryOutcome::FailInvalid => VmxResult::FailInvalid,
        EntryOutcome::FailValid(error) => VmxResult::FailValid(error),
        EntryOutcome::Entered(entered) => VmxResult::Entered(entered),
        EntryOutcome::Failed { exit, left } => VmxResult::EntryFailed { exit, left },
        EntryOutcome::Unbacked => VmxResult::Unbacked,
    }
}
