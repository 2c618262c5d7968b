//! Differences that have an explanation, as rows.
//!
//! A row is as narrow as its reason. What the SDM leaves undefined is no difference; what Bochs does
//! otherwise than the SDM is one, but not the model's.

use crate::case::{Hex, Mutation};
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
/// Bits of CR0 without a meaning: 28:19, 17, 15:6.
const CR0_RESERVED: u64 = 0x1ffa_ffc0;
const ENABLED_BREAKPOINT: u64 = 1 << 12;

/// All rows.
pub static ROWS: &[Row] = &[
    Row {
        id: "stale-guest-linear-address",
        against: BOTH,
        reason: "undefined for this exit reason (SDM Vol. 3C \"Basic VM-Exit Information\"): KVM copies what the processor's last exit left, one that L0 handled itself included",
        // EPT violations, MOV CR (LMSW), INS and OUTS define it.
        holds: |p, d| {
            let is_string = p.left.vmcs12.get(Field::EXIT_QUALIFICATION) >> 4 & 1 != 0;
            is(d, Field::GUEST_LINEAR_ADDRESS)
                && match p.reason() {
                    28 | 48 => false,
                    30 => !is_string,
                    _ => true,
                }
        },
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
                && (d.left ^ d.right) & !0xc == 0
                && p.left.vmcs12.get(Field::GUEST_CR0) & 1 == 0
        },
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
        id: "kvm-halts-first",
        against: &[Against::Kvm],
        reason: "KVM halts the vCPU of an entry to HLT before its processor has seen L2's state (nested_vmx_run), so that what is left to the processor shows only once an event wakes L2",
        holds: |p, d| {
            let injects = p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) >> 31 & 1 != 0;
            let pending = is(d, Field::GUEST_PENDING_DBG_EXCEPTIONS) && p.reason() == 52;
            (ended_right(d) == Some(52) || pending)
                && p.before.get(Field::GUEST_ACTIVITY_STATE) == HLT
                && !injects
        },
    },
    Row {
        id: "kvm-stale-link-cache",
        against: &[Against::Kvm],
        reason: "KVM remembers the mapping of the VMCS link pointer by its address; one that leads to no RAM spoils the mapping and keeps the address, and the next entries with the good one fail until yet another is used (nested_vmx_check_vmcs_link_ptr, __kvm_gfn_to_hva_cache_init)",
        holds: |p, d| {
            (ended_right(d) == Some(INVALID_GUEST_STATE) || is(d, Field::EXIT_QUALIFICATION))
                && p.right.vmcs12.get(Field::EXIT_QUALIFICATION) == LINK_POINTER
                && p.before.get(Field::VMCS_LINK_POINTER) == crate::layout::SHADOW_LINK
        },
    },
    Row {
        id: "kvm-segments-before-msrs",
        against: &[Against::Kvm],
        reason: "without \"unrestricted guest\" KVM looks at L2's segments before it loads MSRs (prepare_vmcs02, vmx_guest_state_valid); the model has both orders of the SDM and of the processor below KVM, not this one",
        holds: |p, d| {
            let unrestricted = p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 != 0;
            let loaded =
                d.what.starts_with("L1 MSR") && p.reason() == u64::from(INVALID_GUEST_STATE);
            (ended(d) == Some((INVALID_MSRS, INVALID_GUEST_STATE)) || loaded) && !unrestricted
        },
    },
    Row {
        id: "kvm-timer-zero",
        against: &[Against::Kvm],
        reason: "a VMX-preemption timer that is zero ends L2 before its first instruction (SDM Vol. 3C \"VMX-Preemption Timer\"); KVM emulates it and in Bochs gets there behind that instruction or a window now and then",
        holds: |p, d| {
            ended(d).is_some_and(|(left, _)| left == 52)
                && p.before.get(Field::VMX_PREEMPTION_TIMER_VALUE) == 0
        },
    },
    Row {
        id: "bochs-pending-high",
        against: BOTH,
        reason: "bits 63:32 of the pending debug exceptions are reserved (SDM Vol. 3C \"Checks on Guest Non-Register State\"); Bochs 2.7 reads the field as 32 bits",
        holds: |p, d| {
            p.left_failed_by_guest_state(d)
                && p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS) >> 32 != 0
        },
    },
    Row {
        id: "bochs-code-dpl",
        against: BOTH,
        reason: "DPL of non-conforming code equals that of SS with \"unrestricted guest\", too (SDM Vol. 3C \"Checks on Guest Segment Registers\"); Bochs 2.7 does not check it there",
        holds: |p, d| {
            let dpl = |field| p.before.get(field) >> 5 & 3;
            p.left_failed_by_guest_state(d)
                && p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 != 0
                && dpl(Field::GUEST_CS_AR_BYTES) != dpl(Field::GUEST_SS_AR_BYTES)
        },
    },
    Row {
        id: "bochs-canonical-rip",
        against: BOTH,
        reason: "in 64-bit mode RIP has to be canonical (SDM Vol. 3C \"Checks on Guest RIP, RFLAGS, and SSP\"); Bochs 2.7 enters all the same",
        holds: |p, d| {
            let rip = p.before.get(Field::GUEST_RIP) as i64;
            p.left_failed_by_guest_state(d) && rip << 16 >> 16 != rip
        },
    },
    Row {
        id: "bochs-pending-single-step-delivered",
        against: &[Against::Kvm],
        reason: "the BS that Bochs 2.7 leaves pending at an exit (bochs-pending-single-step) is delivered when L0 enters again after an exit of its own",
        holds: |p, _| {
            p.before.get(Field::GUEST_RFLAGS) & TRAP != 0
                && p.left.status == p.right.status
                && p.right.vmcs12.get(Field::GUEST_RIP) & 0xfff == DEBUG_STUB
                && p.left.vmcs12.get(Field::GUEST_RIP) & 0xfff != DEBUG_STUB
        },
    },
    Row {
        id: "bochs-requested-privilege",
        against: BOTH,
        reason: "with \"unrestricted guest\" RPL of SS need not equal that of CS (SDM Vol. 3C \"Checks on Guest Segment Registers\"); Bochs 2.7 wants it",
        holds: |p, d| {
            let selectors =
                p.before.get(Field::GUEST_CS_SELECTOR) ^ p.before.get(Field::GUEST_SS_SELECTOR);
            d.what == "outcome"
                && d.right as u32 == INVALID_GUEST_STATE
                && selectors & 3 != 0
                && p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 != 0
        },
    },
    Row {
        id: "bochs-system-segment-long",
        against: BOTH,
        reason: "bit 13 of the access rights of TR and LDTR has no meaning and is not checked; Bochs does not keep it",
        holds: |_, d| {
            (is(d, Field::GUEST_TR_AR_BYTES) || is(d, Field::GUEST_LDTR_AR_BYTES))
                && d.left ^ d.right == 1 << 13
        },
    },
    Row {
        id: "upper-half-of-rsp",
        against: BOTH,
        reason: "bits 63:32 of RSP are undefined outside 64-bit mode (SDM Vol. 1 \"General-Purpose Registers in 64-Bit Mode\")",
        holds: |p, d| {
            let is_long = p.left.vmcs12.get(Field::GUEST_CS_AR_BYTES)
                & u64::from(AccessRights::LONG.bits())
                != 0
                && p.before.get(Field::VM_ENTRY_CONTROLS) >> 9 & 1 != 0;
            is(d, Field::GUEST_RSP) && d.left as u32 == d.right as u32 && !is_long
        },
    },
    Row {
        id: "model-paravirtual-msrs",
        against: &[Against::Kvm],
        reason: "KVM lets the MSRs of its paravirtual clock be loaded whatever CPUID says; the model has no such clock (README \"What it does not do\")",
        holds: |p, d| {
            ended(d).is_some_and(|(left, _)| left == INVALID_MSRS)
                && p.case.mutations.iter().any(|mutation| {
                    matches!(*mutation, Mutation::Memory(_, Hex(value)) if value >> 8 == 0x4b_564d)
                })
        },
    },
    Row {
        id: "bochs-window-order",
        against: &[Against::Bochs],
        reason: "with both windows open the NMI window comes first (SDM Vol. 3C \"Other Causes of VM Exits\": an NMI-window exit has priority over interrupts and lower); Bochs 2.7 looks at the interrupt window first",
        holds: |_, d| ended(d) == Some((8, 7)),
    },
    Row {
        id: "bochs-cr0",
        against: &[Against::Bochs],
        reason: "reserved bits of CR0 that the entry does not check are not loaded (SDM Vol. 3C \"Loading Guest Control Registers, Debug Registers, and MSRs\"); the exit saves what is in the register, and what reads there is the processor's own affair",
        holds: |_, d| {
            (is(d, Field::GUEST_CR0) || d.what == "L1 CR0")
                && (d.left ^ d.right) & !CR0_RESERVED == 0
        },
    },
    Row {
        id: "stale-exit-information",
        against: &[Against::Bochs],
        reason: "an entry that fails by VMfail leaves the exit-information fields as they were, and nobody clears them: each processor has what the case before left",
        holds: |p, d| {
            p.left.status != crate::layout::status::EXIT
                && d.what.parse::<Field>().is_ok_and(Field::is_read_only)
                && !is(d, Field::VM_INSTRUCTION_ERROR)
        },
    },
    Row {
        id: "bochs-link-pointer-order",
        against: &[Against::Bochs],
        reason: "the checks of guest state may be made in any order (SDM Vol. 3C \"Checking and Loading Guest State\"); if the link pointer is bad and something else, too, the qualification is 4 or 0",
        holds: |p, d| {
            is(d, Field::EXIT_QUALIFICATION)
                && p.reason() == u64::from(INVALID_GUEST_STATE)
                && (d.left == LINK_POINTER || d.right == LINK_POINTER)
                && p.before.get(Field::VMCS_LINK_POINTER) != u64::MAX
        },
    },
    Row {
        id: "bochs-debugctl",
        against: &[Against::Bochs],
        reason: "reserved bits of IA32_DEBUGCTL have to be 0 (SDM Vol. 3C \"Checks on Guest Control Registers, Debug Registers, and MSRs\"); Bochs 2.7 has no such check",
        holds: |p, d| {
            p.left_failed_by_guest_state(d) && p.before.get(Field::GUEST_IA32_DEBUGCTL) != 0
        },
    },
    Row {
        id: "bochs-sysenter-cs",
        against: &[Against::Bochs],
        reason: "IA32_SYSENTER_CS has 32 bits (SDM Vol. 4); Bochs 2.7 keeps 16 of them from the host-state area",
        holds: |_, d| d.what == "L1 MSR 0x174" && d.left as u16 == d.right as u16,
    },
    Row {
        id: "bochs-msr-0",
        against: &[Against::Bochs],
        reason: "Bochs 2.7 takes a write of IA32_P5_MC_ADDR (MSR 0), which the model, as KVM, does not have",
        holds: |p, d| {
            ended(d).is_some_and(|(left, right)| left == INVALID_MSRS && right != INVALID_MSRS)
                && p.before.get(Field::VM_ENTRY_MSR_LOAD_COUNT) > 2
        },
    },
    Row {
        id: "stale-guest-physical-address",
        against: &[Against::Bochs],
        reason: "defined for EPT violations and misconfigurations alone (SDM Vol. 3C \"Basic VM-Exit Information\")",
        holds: |p, d| is(d, Field::GUEST_PHYSICAL_ADDRESS) && !matches!(p.reason(), 48 | 49),
    },
    Row {
        id: "stale-error-code",
        against: &[Against::Bochs],
        reason: "an error code means something only beside information that says so, bits 31 and 11 (SDM Vol. 3C \"Information for VM Exits During Event Delivery\")",
        holds: |p, d| {
            let says = |field| p.left.vmcs12.get(field) & 0x8000_0800 == 0x8000_0800;
            is(d, Field::IDT_VECTORING_ERROR_CODE) && !says(Field::IDT_VECTORING_INFO_FIELD)
                || is(d, Field::VM_EXIT_INTR_ERROR_CODE) && !says(Field::VM_EXIT_INTR_INFO)
        },
    },
    Row {
        id: "bochs-entry-to-smm",
        against: &[Against::Bochs],
        reason: "\"entry to SMM\" outside SMM is an invalid control (SDM Vol. 3C \"VM-Entry Control Fields\"); Bochs 2.7 looks at the blocking of SMIs that goes with it, and calls guest state invalid",
        holds: |p, d| {
            d.what == "outcome"
                && d.right as u32 == INVALID_GUEST_STATE
                && p.before.get(Field::VM_ENTRY_CONTROLS) >> 10 & 1 != 0
        },
    },
    Row {
        id: "ept-outside-ram",
        against: &[Against::Bochs],
        reason: "what is read where no RAM is, is the chipset's affair: Bochs reads ones, a misconfigured entry; the model an entry that is not present",
        holds: |p, d| {
            ended(d) == Some((48, 49)) && p.before.get(Field::EPT_POINTER) & !0xfff >= RAM
        },
    },
    Row {
        id: "bochs-nmi-leftover",
        against: &[Against::Bochs],
        reason: "Bochs 2.7 keeps NMIs blocked from one guest to the next with \"virtual NMIs\" (examples/README.md), whatever its interruptibility state says",
        holds: |p, d| {
            is(d, Field::GUEST_INTERRUPTIBILITY_INFO)
                && d.left ^ d.right == 8
                && p.before.get(Field::PIN_BASED_VM_EXEC_CONTROL) >> 5 & 1 != 0
        },
    },
    Row {
        id: "bochs-windows-in-hlt",
        against: &[Against::Bochs],
        reason: "a window exits from HLT, too (SDM Vol. 3C \"Other Causes of VM Exits\"); Bochs 2.7 does not look there",
        holds: |p, d| {
            ended(d).is_some_and(|(left, right)| matches!(left, 7 | 8) && right == 52)
                && p.before.get(Field::GUEST_ACTIVITY_STATE) == HLT
        },
    },
    Row {
        id: "bochs-monitor-trap",
        against: BOTH,
        reason: "Bochs 2.7 offers the monitor trap flag but does not carry it out",
        holds: |p, d| {
            ended(d).is_some_and(|(left, _)| left == 37)
                && p.before.get(Field::CPU_BASED_VM_EXEC_CONTROL) >> 27 & 1 != 0
        },
    },
    Row {
        id: "bochs-fmask",
        against: BOTH,
        reason: "bits 63:32 of IA32_FMASK are reserved (SDM Vol. 4), so that loading one ends the entry; KVM leaves the check to the processor, and Bochs has none",
        holds: |p, _| {
            p.left.vmcs12.get(Field::VM_EXIT_REASON) == u64::from(INVALID_MSRS)
                && p.case.mutations.iter().any(|mutation| {
                    matches!(*mutation, Mutation::Memory(Hex(address), Hex(value))
                        if address == crate::layout::ENTRY_LOAD + 8 && value >> 32 != 0)
                })
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
const INVALID_MSRS: u32 = 0x8000_0022;
/// Exit qualification of an entry that fails by the VMCS link pointer.
const LINK_POINTER: u64 = 4;
/// Where a #DB leads, in the page of the stubs.
const DEBUG_STUB: u64 = 0x10;
const HLT: u64 = 1;

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
