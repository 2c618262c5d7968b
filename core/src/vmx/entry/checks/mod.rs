//! The checks of a VM entry as rows (SDM Vol. 3C "Checks on VMX Controls and Host-State Area",
//! "Checking and Loading Guest State").
//!
//! A rule states what must hold. The same rows serve VM entry, `KVM_SET_NESTED_STATE`, the audit of a
//! vmcs12 and the tests. Rules on controls that no capability MSR of KVM's lets L1 set and that
//! no profile has (RTIT, LBR, UINV, FRED, PASID) are not among them: there the rule on reserved bits fails.

mod context;
mod entry_controls;
mod execution_controls;
mod exit_controls;
mod guest_non_register;
mod guest_registers;
mod guest_rip_tables;
mod guest_segments;
mod host_state;
#[cfg(test)]
mod tests;

pub use context::Context;

use super::super::Field;
use super::super::exit::qualification::EntryFailure;

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

/// Who enforces a rule when L1 runs on KVM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// KVM in software, at VMLAUNCH and VMRESUME and at `KVM_SET_NESTED_STATE`.
    Software,
    /// KVM in software, at VMLAUNCH and VMRESUME alone.
    SoftwareAtEntry,
    /// KVM in software; at `KVM_SET_NESTED_STATE` only with `KVM_STATE_NESTED_RUN_PENDING`.
    SoftwareIfPending,
    /// The processor, when KVM enters L2 with the state merged into vmcs02.
    Processor,
    /// Nobody: KVM replaces the field in vmcs02 and does not check L1's.
    Nobody,
}

/// Which rules a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// All, as the SDM has it.
    All,
    /// What KVM checks in software at an entry.
    KvmSoftware,
    /// Rules on controls that KVM leaves to the processor.
    KvmProcessorControls,
    /// Rules on guest state that KVM leaves to the processor.
    KvmProcessorGuest,
    /// What KVM checks at `KVM_SET_NESTED_STATE`.
    KvmRestore,
}

impl Phase {
    const fn includes(self, rule: &Rule, run_pending: bool) -> bool {
        let enforcement = rule.enforcement;
        match self {
            Self::All => true,
            Self::KvmSoftware => matches!(
                enforcement,
                Enforcement::Software
                    | Enforcement::SoftwareAtEntry
                    | Enforcement::SoftwareIfPending
            ),
            Self::KvmProcessorControls => {
                matches!(enforcement, Enforcement::Processor)
                    && matches!(rule.class, Class::InvalidControl)
            }
            Self::KvmProcessorGuest => {
                matches!(enforcement, Enforcement::Processor)
                    && matches!(rule.class, Class::InvalidGuestState(_))
            }
            Self::KvmRestore => match enforcement {
                Enforcement::Software => true,
                Enforcement::SoftwareIfPending => run_pending,
                _ => false,
            },
        }
    }
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
    /// Who enforces it when L1 runs on KVM.
    pub enforcement: Enforcement,
    /// Whether it holds.
    pub holds: fn(&Context<'_>) -> bool,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id)
    }
}

/// A table of rules of one SDM section and one class.
macro_rules! rules {
    ($(#[$doc:meta])* $name:ident, $section:literal => $class:expr; $(
        $enforcement:ident $id:literal $text:literal [$($field:ident)*] $holds:expr;
    )*) => {
        $(#[$doc])*
        pub(super) static $name: &[$crate::vmx::entry::checks::Rule] = &[$(
            $crate::vmx::entry::checks::Rule {
                id: $id,
                section: $section,
                text: $text,
                fields: &[$($crate::vmx::Field::$field),*],
                class: $class,
                enforcement: $crate::vmx::entry::checks::Enforcement::$enforcement,
                holds: $holds,
            },
        )*];
    };
}
use rules;

/// Every rule, in the order that the entry checks them: controls, host state, guest state.
static GROUPS: &[&[Rule]] = &[
    execution_controls::RULES,
    exit_controls::RULES,
    entry_controls::RULES,
    entry_controls::INJECTION,
    host_state::ADDRESS_SPACE,
    host_state::REGISTERS,
    host_state::SEGMENTS,
    guest_registers::RULES,
    guest_non_register::LINK_POINTER,
    guest_registers::MORE_RULES,
    guest_segments::SELECTORS,
    guest_segments::CS,
    guest_segments::SS,
    guest_segments::DS,
    guest_segments::ES,
    guest_segments::FS,
    guest_segments::GS,
    guest_segments::TR,
    guest_segments::LDTR,
    guest_rip_tables::TABLES,
    guest_rip_tables::RIP_AND_RFLAGS,
    guest_non_register::RULES,
    guest_non_register::PDPTES,
];

/// Every rule, in order.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    GROUPS.iter().copied().flatten()
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
    all()
        .filter(|rule| !(rule.holds)(context))
        .map(|rule| FailedRule {
            rule,
            values: rule
                .fields
                .iter()
                .map(|&field| (field, context.vmcs12.get(field)))
                .collect(),
        })
        .collect()
}

/// The first rule that fails: controls before host state before guest state.
#[must_use]
pub fn first_failure(context: &Context<'_>) -> Option<&'static Rule> {
    first_failure_in(context, Phase::All, true)
}

/// The first rule of a phase that fails.
#[must_use]
pub fn first_failure_in(
    context: &Context<'_>,
    phase: Phase,
    run_pending: bool,
) -> Option<&'static Rule> {
    all().find(|rule| phase.includes(rule, run_pending) && !(rule.holds)(context))
}

/// What KVM checks itself on `KVM_SET_NESTED_STATE` with guest mode: `nested_vmx_check_controls`,
/// `nested_vmx_check_host_state`, `nested_vmx_check_guest_state`, in its order. `run_pending` is
/// the flag of the state to be set: KVM checks guest EFER only then.
pub fn kvm_restore_checks(context: &Context<'_>, run_pending: bool) -> Result<(), &'static Rule> {
    match first_failure_in(context, Phase::KvmRestore, run_pending) {
        Some(rule) => Err(rule),
        None => Ok(()),
    }
}

/// A rule that the loading of guest state needs to name.
pub(super) struct Named(&'static [Rule], usize);

impl Named {
    pub(super) const fn rule(&self) -> &'static Rule {
        &self.0[self.1]
    }
}

/// The rule on CR3, which KVM finds broken while it loads guest state.
pub(super) static CR3: Named = Named(guest_registers::MORE_RULES, guest_registers::CR3);
/// The rule on PDPTEs in memory, which KVM finds broken while it loads guest state.
pub(super) static PDPTES_IN_MEMORY: Named = Named(guest_non_register::PDPTES, 0);

/// The rule with this name.
#[must_use]
pub fn find(id: &str) -> Option<&'static Rule> {
    all().find(|rule| rule.id == id)
}
