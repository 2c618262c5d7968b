//! Differences that have an explanation, as rows.
//!
//! A row is as narrow as its reason. What the SDM leaves undefined is no difference; what Bochs does
//! otherwise than the SDM is one, but not the model's.

use crate::judge::{Difference, Pair};
use crate::wire::Outcome;
use nvmx_core::vmx::Field;
use nvmx_core::x86::AccessRights;

/// Whom the model is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Real KVM, in the lab on Bochs.
    Kvm,
    /// Bochs' own VMX.
    Bochs,
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
const VIRTUAL_8086: u64 = 1 << 17;

/// All rows.
pub static ROWS: &[Row] = &[
    Row {
        id: "stale-guest-linear-address",
        against: BOTH,
        reason: "undefined for this exit reason (SDM Vol. 3C \"Basic VM-Exit Information\"): KVM copies what the processor's last exit left, one that L0 handled itself included",
        // EPT violations, MOV CR (LMSW), INS and OUTS define it.
        holds: |p, d| is(d, Field::GUEST_LINEAR_ADDRESS) && !matches!(p.reason(), 28 | 30 | 48),
    },
    Row {
        id: "stale-instruction-length",
        against: BOTH,
        reason: "undefined for exits that no instruction caused (SDM Vol. 3C \"Information for VM Exits Due to Instruction Execution\")",
        holds: |p, d| is(d, Field::VM_EXIT_INSTRUCTION_LEN) && !p.is_by_instruction(),
    },
    Row {
        id: "stale-instruction-information",
        against: BOTH,
        reason: "undefined for this exit (SDM Vol. 3C \"Information for VM Exits Due to Instruction Execution\")",
        holds: |p, d| {
            is(d, Field::VMX_INSTRUCTION_INFO)
                && !matches!(p.reason(), 19..=27 | 30 | 46 | 47 | 50 | 53 | 57 | 58 | 61)
        },
    },
    Row {
        id: "unusable-segment",
        against: BOTH,
        reason: "of an unusable segment only the bit itself is defined, and DPL of SS, L and D/B of CS, the base of FS and GS (SDM Vol. 3C \"Saving Segment Registers and Descriptor-Table Registers\")",
        holds: is_of_unusable_segment,
    },
    Row {
        id: "real-mode-code-type",
        against: BOTH,
        reason: "in real-address mode Bochs holds CS with the type of a data segment; the SDM (Vol. 3A \"Real-Address Mode\") gives it no meaning there",
        holds: |p, d| {
            is(d, Field::GUEST_CS_AR_BYTES)
                && d.left ^ d.right == 8
                && p.left.vmcs12.get(Field::GUEST_CR0) & 1 == 0
        },
    },
    Row {
        id: "bochs-window-order",
        against: BOTH,
        reason: "with both windows open the NMI window comes first (SDM Vol. 3C \"Priority Among Concurrent Events\": NMIs before interrupts); Bochs 2.7 looks at the interrupt window first (cpu/event.cc)",
        holds: |_, d| ended(d) == Some((8, 7)),
    },
    Row {
        id: "bochs-virtual-nmi-injection",
        against: BOTH,
        reason: "with \"virtual NMIs\" an NMI is not injected while NMIs are blocked (SDM Vol. 3C \"Checks on Guest Non-Register State\"); Bochs 2.7 lacks the check",
        holds: |p, d| {
            p.left_failed_by_guest_state(d)
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 8 != 0
                && p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) & 0x8000_0700 == 0x8000_0200
        },
    },
    Row {
        id: "model-segment-limits",
        against: BOTH,
        reason: "the model's native code checks no segment limits (README \"What it does not do\"), so that a RIP beyond that of CS does not fault",
        holds: |p, _| {
            let get = |field| p.before.get(field);
            get(Field::GUEST_RIP) > get(Field::GUEST_CS_LIMIT)
                && (get(Field::GUEST_CS_AR_BYTES) & u64::from(AccessRights::LONG.bits()) == 0
                    || get(Field::GUEST_RFLAGS) & VIRTUAL_8086 != 0)
        },
    },
];

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

impl Pair<'_> {
    /// The exit reason, which is the same on both.
    fn reason(&self) -> u64 {
        self.left.vmcs12.get(Field::VM_EXIT_REASON)
    }

    /// Whether an instruction caused the exit, so that its length is recorded.
    fn is_by_instruction(&self) -> bool {
        let information = self.left.vmcs12.get(Field::VM_EXIT_INTR_INFO);
        let vectoring = self.left.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
        // Software interrupts, privileged software exceptions, software exceptions.
        let is_software =
            |information: u64| information >> 31 & 1 != 0 && matches!(information >> 8 & 7, 4..=6);
        match self.reason() {
            0 => is_software(information) || is_software(vectoring),
            9 | 44 | 48 | 49 => is_software(vectoring),
            10..=28
            | 30
            | 31
            | 32
            | 36
            | 39
            | 40
            | 46
            | 47
            | 50
            | 51
            | 53..=55
            | 57..=61
            | 63
            | 64
            | 67
            | 68 => true,
            _ => false,
        }
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
    ROWS.iter()
        .find(|row| row.against.contains(&against) && (row.holds)(pair, difference))
        .map(|row| row.id)
}

/// The row that explains that a machine stopped.
pub(crate) fn stopped(left: &Outcome, _right: &Outcome) -> Option<&'static str> {
    match left {
        // Said, as the model must: SDM section and all.
        Outcome::Stopped(why) if why.starts_with("unsupported") => Some("model-lacks"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_reasons_name_their_source() {
        for (index, row) in ROWS.iter().enumerate() {
            assert!(row.reason.len() > 40, "{}", row.id);
            assert!(
                ROWS[..index].iter().all(|other| other.id != row.id),
                "{}",
                row.id
            );
        }
    }
}
