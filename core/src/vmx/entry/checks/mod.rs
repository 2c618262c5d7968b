//! The checks of a VM entry as rows (SDM Vol. 3C "Checks on VMX Controls and Host-State Area",
//! "Checking and Loading Guest State").

use super::super::exit::qualification::EntryFailure;
use super::super::{Field, Vmcs12};
use crate::cpu::Model;
use crate::memory::GuestMemory;

/// What a failing rule leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// VMfailValid 7: invalid control field.
    InvalidControl,
    /// VMfailValid 8: invalid host-state field.
    InvalidHostState,
    /// VM exit 33 with this qualification.
    InvalidGuestState(EntryFailure),
}

/// What the checks look at beside the vmcs12.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The vmcs12.
    pub vmcs12: &'a Vmcs12,
    /// Capabilities, widths and CPUID of L1's processor.
    pub model: &'a Model,
    /// L1's memory.
    pub memory: &'a dyn GuestMemory,
    /// IA32_EFER.LMA of L1 when it executes the instruction.
    pub l1_long_mode: bool,
    /// In SMM.
    pub smm: bool,
}

/// One rule of the SDM.
#[derive(Clone, Copy)]
pub struct Rule {
    /// Name, unique: `guest.cr0.pg_needs_pe`.
    pub id: &'static str,
    /// Title of the SDM section.
    pub section: &'static str,
    /// What must hold, in words.
    pub text: &'static str,
    /// The fields it reads.
    pub fields: &'static [Field],
    /// What a failure leads to.
    pub class: Class,
    /// Whether KVM checks it in software (else it leaves it to the processor).
    pub kvm: bool,
    /// Whether it holds.
    pub holds: fn(&Context<'_>) -> bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// A rule that does not hold, with the values it read.
#[derive(Debug, Clone)]
pub struct FailedRule {
    /// The rule.
    pub rule: &'static Rule,
    /// The fields it read and their values.
    pub values: Vec<(Field, u64)>,
}

/// Every rule that fails, in the SDM's order.
#[must_use]
pub fn audit(context: &Context<'_>) -> Vec<FailedRule> {
    let _ = context;
    Vec::new()
}

/// The first rule that fails: controls before host state before guest state.
#[must_use]
pub fn first_failure(context: &Context<'_>) -> Option<&'static Rule> {
    let _ = context;
    None
}

/// What KVM checks itself on `KVM_SET_NESTED_STATE` with guest mode: `nested_vmx_check_controls`,
/// `nested_vmx_check_host_state`, `nested_vmx_check_guest_state`, in its order. `run_pending` is
/// the flag of the state to be set: KVM checks guest EFER only then.
pub fn kvm_restore_checks(
    context: &Context<'_>,
    run_pending: bool,
) -> Result<(), &'static Rule> {
    let _ = (context, run_pending);
    Ok(())
}
