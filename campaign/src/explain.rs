//! Differences that have an explanation, as rows.
//!
//! A row is as narrow as its reason. What the SDM leaves undefined is no difference; what Bochs does
//! otherwise than the SDM is one, but not the model's.

use crate::judge::{Difference, Pair};
use crate::wire::Outcome;
use nvmx_core::vmx::{Field, Vmcs12};
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
const TRAP: u64 = 1 << 8;
const RESUME: u64 = 1 << 16;
const VIRTUAL_8086: u64 = 1 << 17;
/// Bits of the pending debug exceptions.
const SINGLE_STEP: u64 = 1 << 14;
const ENABLED_BREAKPOINT: u64 = 1 << 12;

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
        id: "bochs-pending-single-step",
        against: BOTH,
        reason: "an instruction that exits is not executed, so that no single-step trap is pending (SDM Vol. 3C \"Saving Non-Register State\"); with RFLAGS.TF Bochs 2.7 saves BS all the same",
        holds: |p, d| {
            is(d, Field::GUEST_PENDING_DBG_EXCEPTIONS)
                && d.left == 0
                && d.right == SINGLE_STEP
                && p.right.vmcs12.get(Field::GUEST_RFLAGS) & TRAP != 0
        },
    },
    Row {
        id: "bochs-enabled-breakpoint",
        against: BOTH,
        reason: "bit 12 of the pending debug exceptions alone makes a #DB pending (SDM Vol. 3C \"Guest Non-Register State\"); Bochs 2.7 wants one of bits 3:0 or BS beside it",
        holds: |p, _| {
            p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS) & 0x1_500f == ENABLED_BREAKPOINT
        },
    },
    Row {
        id: "resume-flag",
        against: BOTH,
        reason: "RF is saved as it was before the exit, or set for a fault (SDM Vol. 3C \"Saving RIP, RSP, RFLAGS, and SSP\"); Bochs clears it when an instruction begins",
        holds: |_, d| is(d, Field::GUEST_RFLAGS) && d.left ^ d.right == RESUME,
    },
    Row {
        id: "preemption-timer-value",
        against: BOTH,
        reason: "an active VMX-preemption timer counts down with the TSC, and the exit saves what is left",
        holds: |p, d| {
            is(d, Field::VMX_PREEMPTION_TIMER_VALUE)
                && p.before.get(Field::VM_EXIT_CONTROLS) >> 22 & 1 != 0
                && p.before.get(Field::PIN_BASED_VM_EXEC_CONTROL) >> 6 & 1 != 0
        },
    },
    Row {
        id: "kvm-failed-entry-sync",
        against: &[Against::Kvm],
        reason: "where the processor refuses guest state, KVM saves L2's state as at any exit (nested_vmx_vmexit, sync_vmcs02_to_vmcs12), with the activity state that L0 entered and DR7 with its fixed bit",
        holds: |p, d| {
            p.reason() == u64::from(INVALID_GUEST_STATE)
                && (is(d, Field::GUEST_ACTIVITY_STATE) && d.right == 0
                    || is(d, Field::GUEST_DR7) && d.right == (d.left & 0xffff_2bff | 0x400))
        },
    },
    Row {
        id: "access-and-dirty-qualification",
        against: BOTH,
        reason: "with accessed and dirty flags for EPT, a violation on the way through the guest's page tables is read and write (SDM Vol. 3C, table \"Exit Qualification for EPT Violations\", note on bits 0 and 1); KVM and Bochs say write alone",
        holds: |p, d| {
            is(d, Field::EXIT_QUALIFICATION)
                && p.reason() == 48
                && d.left ^ d.right == 1
                && p.before.get(Field::EPT_POINTER) >> 6 & 1 != 0
        },
    },
    Row {
        id: "null-segment-base",
        against: BOTH,
        reason: "the base of a data segment that got a null selector on the way out of virtual-8086 mode means nothing (SDM Vol. 3A \"Virtual-8086 Mode\": the registers are cleared); Bochs keeps it",
        holds: |p, d| {
            (is(d, Field::GUEST_FS_BASE) || is(d, Field::GUEST_GS_BASE))
                && d.left == 0
                && p.before.get(Field::GUEST_RFLAGS) & VIRTUAL_8086 != 0
                && p.left.vmcs12.get(Field::GUEST_RFLAGS) & VIRTUAL_8086 == 0
        },
    },
    Row {
        id: "bochs-unusable-code-segment",
        against: BOTH,
        reason: "bit 16 of the access rights of CS is not among the bits that have to be 0 (SDM Vol. 3C \"Checks on Guest Segment Registers\": bits 31:17 and 11:8); Bochs 2.7 refuses an unusable CS",
        holds: |p, d| {
            p.before.get(Field::GUEST_CS_AR_BYTES) >> 16 & 1 != 0
                && d.what == "outcome"
                && d.right as u32 == INVALID_GUEST_STATE
        },
    },
    Row {
        id: "bochs-sti-blocks-nmi-window",
        against: BOTH,
        reason: "whether blocking by STI blocks the NMI window is left to the processor (SDM Vol. 3C \"Other Causes of VM Exits\"); it does on Bochs",
        holds: |p, d| {
            ended(d).is_some_and(|(left, _)| left == 8)
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 1 != 0
        },
    },
    Row {
        id: "bochs-window-after-delivery",
        against: BOTH,
        reason: "the NMI window is open before the handler's first instruction when VM entry delivered a pending #DB; Bochs 2.7 looks at windows behind it",
        holds: |p, d| {
            ended(d) == Some((8, 10))
                && p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS)
                    & (SINGLE_STEP | ENABLED_BREAKPOINT)
                    != 0
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

/// A class of cases in which one of the machines stopped.
pub struct StopRow {
    /// Its name.
    pub id: &'static str,
    /// What explains it, with the source.
    pub reason: &'static str,
    /// Whether a case is of this class: its VMCS, why the model stopped, why the other did.
    holds: fn(&Vmcs12, Option<&str>, Option<&str>) -> bool,
}

/// All rows about machines that stopped.
pub static STOP_ROWS: &[StopRow] = &[
    StopRow {
        id: "model-lacks",
        reason: "what the model lacks ends its run with a message, SDM section and all, and never in a wrong answer",
        holds: |_, left, _| left.is_some_and(|why| why.starts_with("unsupported")),
    },
    StopRow {
        id: "kvm-ept-root",
        reason: "an EPTP that leads to no RAM: KVM (6.1 and 6.12) asks for a triple fault while the entry is pending (mmu_check_root), which its own nested_vmx_vmexit takes for a bug of KVM's, and the VM is dead",
        holds: |before, _, right| {
            right.is_some_and(|why| why.contains("errno 5"))
                && before.get(Field::EPT_POINTER) & !0xfff >= RAM
        },
    },
    StopRow {
        id: "kvm-delivery-outside-ram",
        reason: "an event whose delivery touches no RAM: KVM has no emulation for that (KVM_INTERNAL_ERROR_DELIVERY_EV)",
        holds: |_, _, right| right.is_some_and(|why| why.starts_with("internal error 3")),
    },
];

/// Bytes of RAM that a campaign's machines have.
const RAM: u64 = 16 << 20;

/// The row that explains that a machine stopped.
pub(crate) fn stopped(before: &Vmcs12, left: &Outcome, right: &Outcome) -> Option<&'static str> {
    let why = |outcome: &Outcome| match outcome {
        Outcome::Stopped(why) => Some(why.clone()),
        Outcome::Record(_) => None,
    };
    let (left, right) = (why(left), why(right));
    STOP_ROWS
        .iter()
        .find(|row| (row.holds)(before, left.as_deref(), right.as_deref()))
        .map(|row| row.id)
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
