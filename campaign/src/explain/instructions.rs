//! What Bochs 2.7 does otherwise with single instructions of L2, and what the SDM leaves open there.

use super::faults::reason;
use super::*;
use crate::code::{arrived, met};
use iced_x86::{Mnemonic, Register};
use nvmx_core::x86::control::{cr0, dr7};

const GP: &[u64] = &[13];
/// RDMSR and WRMSR.
const DEBUGCTL: u64 = 0x1d9;
const FMASK: u64 = 0xc000_0084;
const TSC_AUX: u64 = 0xc000_0103;
/// What VMX operation without "unrestricted guest" wants of CR0.
const FIXED: u64 = cr0::PE | cr0::PG;

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "port-values",
        against: &[Against::Bochs],
        reason: "what an IN or INS reads is its device's affair: Bochs has the PC's, the model nothing but the few that every backend shares",
        holds: |p, d| {
            let stored = d.what.starts_with("flipped")
                || matches!(d.what.as_str(), "words changed" | "digest of changes");
            let is_in = |mnemonic| mnemonic == Mnemonic::In;
            stored && p.case.has(code::is_ins)
                || d.what == "L2 RAX" && d.left >> 32 == d.right >> 32 && p.case.has(is_in)
        },
    },
    Row {
        id: "bochs-log-offset",
        against: &[Against::Bochs],
        reason: "bits 11:0 of an entry of the page-modification log are zero (SDM Vol. 3C \"Page-Modification Logging\"); Bochs 2.7 leaves those of an access to a paging structure",
        holds: |p, d| {
            let (page, offset) = (p.before.get(Field::PML_ADDRESS), 0xfff);
            let address = d.what.strip_prefix("flipped 0x");
            address
                .and_then(|digits| u64::from_str_radix(digits, 16).ok())
                .is_some_and(|address| address & !offset == page)
                && (d.left ^ d.right) & !offset == 0
                && d.left & offset == 0
        },
    },
    Row {
        id: "bochs-int1-detect",
        against: BOTH,
        reason: "DR7.GD is cleared on the way into the debug handler (SDM Vol. 3B \"Debug Control Register (DR7)\"); Bochs 2.7 leaves it for INT1",
        holds: |p, d| {
            is(d, Field::GUEST_DR7)
                && d.left | dr7::GD == d.right
                && (p.case.has(|mnemonic| mnemonic == Mnemonic::Int1)
                    || p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) >> 8 & 7 == 5)
        },
    },
    Row {
        id: "unblocking-without-virtual-nmis",
        against: &[Against::Bochs],
        reason: "with \"NMI exiting\" and without \"virtual NMIs\" the bit for NMI unblocking due to IRET is undefined (SDM Vol. 3C \"Information About NMI Unblocking Due to IRET\")",
        holds: |p, d| {
            let pin: u64 = p.before.get(Field::PIN_BASED_VM_EXEC_CONTROL);
            let place = match p.reason() {
                0 => Field::VM_EXIT_INTR_INFO,
                48 => Field::EXIT_QUALIFICATION,
                _ => return false,
            };
            is(d, place) && d.left ^ d.right == 1 << 12 && pin >> 3 & 1 != 0 && pin >> 5 & 1 == 0
        },
    },
    Row {
        id: "bochs-lacks-msr",
        against: &[Against::Bochs],
        reason: "IA32_DEBUGCTL, IA32_P5_MC_ADDR and IA32_P5_MC_TYPE are MSRs of every processor with VMX (SDM Vol. 4); Bochs 2.7 lacks them and answers #GP",
        holds: |p, _| {
            p.right_alone(GP).is_some_and(|instruction| {
                matches!(instruction.mnemonic(), Mnemonic::Rdmsr | Mnemonic::Wrmsr)
                    && matches!(p.right.rcx() & 0xffff_ffff, 0 | 1 | DEBUGCTL)
            })
        },
    },
    Row {
        id: "bochs-reserved-msr-bits",
        against: BOTH,
        reason: "bits 63:32 of IA32_FMASK and IA32_TSC_AUX are reserved (SDM Vol. 4), so that WRMSR of one is #GP; KVM leaves the check of the former to the processor, and Bochs has none",
        holds: |p, _| {
            p.left_alone(GP).is_some_and(|instruction| {
                instruction.mnemonic() == Mnemonic::Wrmsr
                    && matches!(p.left.rcx() & 0xffff_ffff, FMASK | TSC_AUX)
                    && p.left.rdx() as u32 != 0
            })
        },
    },
    Row {
        id: "bochs-counters",
        against: &[Against::Bochs],
        reason: "which counters RDPMC reads is each model's own (SDM Vol. 2B \"RDPMC\"): Bochs 2.7 has eighteen of older processors and no fixed-function ones",
        holds: |p, _| {
            let either = p.left_alone(GP).or_else(|| p.right_alone(GP));
            either.is_some_and(|instruction| instruction.mnemonic() == Mnemonic::Rdpmc)
        },
    },
    Row {
        id: "bochs-unpaged",
        against: &[Against::Bochs],
        reason: "without \"unrestricted guest\" a MOV to CR0 that clears PE or PG is #GP (SDM Vol. 3C \"Changes to Instruction Behavior in VMX Non-Root Operation\"); Bochs 2.7 does not check it",
        holds: |p, _| {
            let cr0: u64 = p.right.vmcs12.get(Field::GUEST_CR0);
            leaves_paging(p.case, p.before) && cr0 & FIXED != FIXED
        },
    },
    Row {
        id: "order-of-table-operand",
        against: BOTH,
        reason: "the operand of LGDT, LIDT, SGDT or SIDT may be one access or two (SDM Vol. 3A \"Guaranteed Atomic Operations\" names none of them): where it wraps around, #SS or #GP of the whole and #PF of the first part are both right",
        holds: |p, _| {
            let table = |record| {
                p.faulted(record, &[12, 13, 14]).is_some_and(|i| {
                    matches!(
                        i.mnemonic(),
                        Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Sgdt | Mnemonic::Sidt
                    )
                })
            };
            table(p.left) && table(p.right) && met(p.left) != met(p.right)
        },
    },
    Row {
        id: "bochs-repeated-never",
        against: &[Against::Bochs],
        reason: "a string instruction whose REP count is zero does nothing (SDM Vol. 2B \"REP\"); in 64-bit mode with 32-bit addresses Bochs 2.7 clears the upper halves of RSI and RDI",
        holds: |p, d| {
            matches!(d.what.as_str(), "L2 RSI" | "L2 RDI")
                && d.right == d.left & 0xffff_ffff
                && p.right.rcx() & 0xffff_ffff == 0
                && p.case
                    .instructions()
                    .iter()
                    .any(|i| i.has_rep_prefix() || i.has_repne_prefix())
        },
    },
    Row {
        id: "bochs-flags-past-ept",
        against: &[Against::Bochs],
        reason: "setting an accessed or dirty flag of the guest's paging structures is a write, which EPT has to permit (SDM Vol. 3C \"EPT Violations\"); Bochs 2.7 looks at the read alone",
        holds: |p, d| {
            const OF_STRUCTURE: u64 = 1 << 7;
            const WRITE_OR_FINAL: u64 = 1 << 1 | OF_STRUCTURE | 1 << 8;
            let qualification: u64 = p.left.vmcs12.get(Field::EXIT_QUALIFICATION);
            d.what == crate::judge::OUTCOME
                && reason(p.left) == Some(48)
                && qualification & WRITE_OR_FINAL == 1 << 1 | OF_STRUCTURE
                && p.before.get(Field::EPT_POINTER) >> 6 & 1 == 0
        },
    },
    Row {
        id: "detect-before-privilege",
        against: &[Against::Bochs],
        reason: "MOV DR above CPL 0 with DR7.GD set is #GP and #DB at once, and the SDM gives no order (Vol. 2B \"MOV-Move to/from Debug Registers\"); Bochs 2.7 has #DB first",
        holds: |p, d| {
            let is_about =
                matches!(d.what.as_str(), "DR6" | "digest of changes") || is(d, Field::GUEST_DR7);
            p.before.get(Field::GUEST_DR7) & dr7::GD != 0
                && p.before.get(Field::GUEST_SS_AR_BYTES) >> 5 & 3 == 3
                && (is_about || met(p.right) == Some(1))
                && p.case
                    .instructions()
                    .iter()
                    .any(|i| (0..i.op_count().min(2)).any(|operand| i.op_register(operand).is_dr()))
        },
    },
    Row {
        id: "sysret-single-step",
        against: &[Against::Bochs],
        reason: "whether SYSRET that clears RFLAGS.TF is followed by the single-step trap, the SDM does not say (Vol. 2B \"SYSRET\"); it is on Bochs",
        holds: |p, _| {
            p.before.get(Field::GUEST_RFLAGS) & TRAP != 0
                && arrived(p.right) == Some(1)
                && arrived(p.left) != Some(1)
                && p.case
                    .has(|m| matches!(m, Mnemonic::Sysret | Mnemonic::Sysretq))
        },
    },
];

fn is_to_cr0(instruction: &iced_x86::Instruction) -> bool {
    instruction.op0_register() == Register::CR0 || instruction.mnemonic() == Mnemonic::Lmsw
}

/// Whether L2 without "unrestricted guest" moves to CR0.
pub(super) fn leaves_paging(case: &Case, before: &Vmcs12) -> bool {
    before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 == 0
        && case.instructions().iter().any(is_to_cr0)
}
