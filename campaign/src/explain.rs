//! Differences that have an explanation, as rows.
//!
//! A row is as narrow as its reason. What the SDM leaves undefined is no difference; what Bochs does
//! otherwise than the SDM is one, but not the model's.

mod bochs;
mod code;
mod faults;
mod information;
mod instructions;
mod kvm;
mod model;
mod undefined;

use crate::case::{Case, Hex, Mutation};
use crate::judge::{Difference, Pair};
use crate::wire::Outcome;
use nvmx_core::vmx::exit::ExitReason;
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_core::x86::AccessRights;

/// Whom the model is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Real KVM, in the lab on Bochs.
    Kvm,
    /// Bochs' own VMX.
    Bochs,
    /// The model itself, with the SDM's personality.
    Sdm,
}

/// One class of differences.
pub struct Row {
    /// Its name.
    pub id: &'static str,
    /// Against whom.
    pub against: &'static [Against],
    /// What explains it, with the source.
    pub reason: &'static str,
    /// Whether the difference is of this class.
    holds: fn(&Pair<'_>, &Difference) -> bool,
}

const BOTH: &[Against] = &[Against::Kvm, Against::Bochs];
const TRAP: u64 = 1 << 8;
const RESUME: u64 = 1 << 16;
const VIRTUAL_8086: u64 = 1 << 17;
const VME: u64 = 1;
const PVI: u64 = 2;
/// Bits of the pending debug exceptions.
const SINGLE_STEP: u64 = 1 << 14;
/// Bits of CR0 without a meaning: 28:19, 17, 15:6.
const CR0_RESERVED: u64 = 0x1ffa_ffc0;
const ENABLED_BREAKPOINT: u64 = 1 << 12;

/// All rows that explain single differences.
pub fn rows() -> impl Iterator<Item = &'static Row> {
    undefined::ROWS
        .iter()
        .chain(kvm::ROWS)
        .chain(bochs::ROWS)
        .chain(instructions::ROWS)
        .chain(model::ROWS)
        .chain(code::ROWS)
}

fn is(difference: &Difference, field: Field) -> bool {
    field.name() == Some(difference.what.as_str())
}

/// The exit reasons that two entries ended with, if they differ in that; bit 31 is a failed entry.
fn ended(difference: &Difference) -> Option<(u32, u32)> {
    let exit = u64::from(crate::layout::status::EXIT);
    let both_exits = difference.left >> 32 == exit && difference.right >> 32 == exit;
    (difference.what == "outcome" && both_exits)
        .then_some((difference.left as u32, difference.right as u32))
}

const INVALID_GUEST_STATE: u32 = 0x8000_0021;
const INVALID_MSRS: u32 = 0x8000_0022;
/// Exit qualification of an entry that fails by the VMCS link pointer.
const LINK_POINTER: u64 = 4;
/// Where a #DB leads, in the page of the stubs.
const DEBUG_STUB: u64 = 0x10;
const HLT: u64 = 1;
const SHUTDOWN: u64 = 2;

/// The other's exit reason, if they ended differently.
fn ended_right(difference: &Difference) -> Option<u32> {
    let is_exit = difference.right >> 32 == u64::from(crate::layout::status::EXIT);
    (difference.what == "outcome" && is_exit).then_some(difference.right as u32)
}

impl Pair<'_> {
    /// The exit reason, which is the same on both.
    fn reason(&self) -> u64 {
        self.left.vmcs12.get(Field::VM_EXIT_REASON)
    }

    /// Whether the VM-exit instruction length means something.
    fn defines_instruction_length(&self) -> bool {
        let get = |field| self.left.vmcs12.get32(field);
        self.exit_reason().defines_instruction_length(
            self.left.vmcs12.get(Field::EXIT_QUALIFICATION),
            get(Field::VM_EXIT_INTR_INFO),
            get(Field::IDT_VECTORING_INFO_FIELD),
        )
    }

    /// Whether the VM-exit instruction information means something.
    fn defines_instruction_information(&self) -> bool {
        let qualification = self.left.vmcs12.get(Field::EXIT_QUALIFICATION);
        self.exit_reason()
            .defines_instruction_information(qualification)
    }

    fn exit_reason(&self) -> ExitReason {
        ExitReason(self.left.vmcs12.get32(Field::VM_EXIT_REASON))
    }

    /// Whether the model found guest state invalid where the other one entered L2.
    fn left_failed_by_guest_state(&self, difference: &Difference) -> bool {
        ended(difference)
            .is_some_and(|(left, right)| left == INVALID_GUEST_STATE && right >> 31 == 0)
    }
}

fn is_of_unusable_segment(pair: &Pair<'_>, difference: &Difference) -> bool {
    const UNUSABLE: u64 = 1 << 16;
    let Some(rest) = difference.what.strip_prefix("GUEST_") else {
        return false;
    };
    let Some((segment, part)) = rest.split_once('_') else {
        return false;
    };
    let Ok(rights) = format!("GUEST_{segment}_AR_BYTES").parse::<Field>() else {
        return false;
    };
    let both = pair.left.vmcs12.get(rights) & pair.right.vmcs12.get(rights);
    if both & UNUSABLE == 0 {
        return false;
    }
    let changed = difference.left ^ difference.right;
    match (segment, part) {
        ("SS", "AR_BYTES") => changed & 0x60 == 0,
        ("FS" | "GS", "BASE") => false,
        (_, "AR_BYTES" | "BASE" | "LIMIT") => true,
        _ => false,
    }
}

/// The row that explains a difference.
pub(crate) fn field(
    pair: &Pair<'_>,
    difference: &Difference,
    against: Against,
) -> Option<&'static str> {
    rows()
        .find(|row| row.against.contains(&against) && (row.holds)(pair, difference))
        .map(|row| row.id)
}

/// A class of cases in which one of the machines stopped.
pub struct StopRow {
    /// Its name.
    pub id: &'static str,
    /// What explains it, with the source.
    pub reason: &'static str,
    /// Whether a case is of this class: it, its VMCS, why the model stopped, why the other did.
    holds: fn(&Case, &Vmcs12, Option<&str>, Option<&str>) -> bool,
}

/// All rows about machines that stopped.
pub static STOP_ROWS: &[StopRow] = &[
    StopRow {
        id: "model-lacks",
        reason: "what the model lacks ends its run with a message, SDM section and all, and never in a wrong answer",
        holds: |_, _, left, _| left.is_some_and(|why| why.starts_with("unsupported")),
    },
    StopRow {
        id: "kvm-ept-root",
        reason: "an EPTP that leads to no RAM: KVM (6.1 and 6.12) asks for a triple fault while the entry is pending (mmu_check_root), which its own nested_vmx_vmexit takes for a bug of KVM's, and the VM is dead",
        holds: |_, before, _, right| {
            right.is_some_and(|why| why.contains("errno 5"))
                && before.get(Field::EPT_POINTER) & !0xfff >= RAM
        },
    },
    StopRow {
        id: "kvm-delivery-outside-ram",
        reason: "an event whose delivery touches no RAM: KVM has no emulation for that (KVM_INTERNAL_ERROR_DELIVERY_EV)",
        holds: |_, _, _, right| right.is_some_and(|why| why.starts_with("internal error 3")),
    },
    StopRow {
        id: "kvm-apic-access-page",
        reason: "an APIC-access page that is no RAM: KVM cannot map it and gives up on the VM with KVM_INTERNAL_ERROR_EMULATION (nested_get_vmcs12_pages)",
        holds: |_, before, _, right| {
            right.is_some_and(|why| why.starts_with("internal error 1"))
                && before.get(Field::SECONDARY_VM_EXEC_CONTROL) & 1 != 0
                && before.get(Field::APIC_ACCESS_ADDR) >= RAM
        },
    },
    StopRow {
        id: "bochs-ia32e-died",
        reason: "after an entry to IA-32e mode without paging, which Bochs 2.7 lets pass (bochs-ia32e-without-paging), the emulator ends",
        holds: |_, before, left, right| {
            left.is_none()
                && right.is_some_and(|why| why.starts_with("Bochs"))
                && is_ia32e_without_paging(before)
        },
    },
    StopRow {
        id: "bochs-unpaged-died",
        reason: "an L2 that Bochs 2.7 lets out of paging (bochs-unpaged) has L1's memory before it, and one of them ends",
        holds: |case, before, left, right| {
            left.is_none()
                && right.is_some_and(|why| why.starts_with("Bochs"))
                && instructions::leaves_paging(case, before)
        },
    },
    StopRow {
        id: "abort",
        reason: "a VMX abort: the exit cannot store its MSRs where no RAM is, and L1 ends on either side (SDM Vol. 3C \"VMX Aborts\")",
        holds: |_, before, left, right| {
            left.is_some()
                && right.is_some()
                && before.get(Field::VM_EXIT_MSR_STORE_COUNT) > 0
                && before.get(Field::VM_EXIT_MSR_STORE_ADDR) >= RAM
        },
    },
];

/// "IA-32e mode guest" and "unrestricted guest" with CR0.PG clear.
fn is_ia32e_without_paging(before: &Vmcs12) -> bool {
    before.get(Field::VM_ENTRY_CONTROLS) >> 9 & 1 != 0
        && before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 != 0
        && before.get(Field::GUEST_CR0) >> 31 & 1 == 0
}

/// Bytes of RAM that a campaign's machines have.
const RAM: u64 = 16 << 20;

/// The row that explains that a machine stopped.
pub(crate) fn stopped(
    case: &Case,
    before: &Vmcs12,
    left: &Outcome,
    right: &Outcome,
) -> Option<&'static str> {
    let why = |outcome: &Outcome| match outcome {
        Outcome::Stopped(why) => Some(why.clone()),
        Outcome::Record(_) => None,
    };
    let (left, right) = (why(left), why(right));
    STOP_ROWS
        .iter()
        .find(|row| (row.holds)(case, before, left.as_deref(), right.as_deref()))
        .map(|row| row.id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_reasons_name_their_source() {
        let mut ids: Vec<_> = rows().map(|row| (row.id, row.reason)).collect();
        ids.extend(STOP_ROWS.iter().map(|row| (row.id, row.reason)));
        let mut seen = std::collections::HashSet::new();
        for (id, reason) in ids {
            assert!(reason.len() > 40, "{id}");
            assert!(seen.insert(id), "{id} twice");
        }
    }
}
