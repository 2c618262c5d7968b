//! What Bochs does otherwise than the SDM, below KVM as well as by itself.

use super::*;
use crate::wire::Record;

pub(super) static ROWS: &[Row] = &[
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
            let rip = |record: &Record| record.vmcs12.get(Field::GUEST_RIP);
            p.reason() == 8
                && (ended(d).is_some() || rip(p.left) != rip(p.right))
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 1 != 0
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
        holds: |p, d| {
            let at_stub =
                |record: &Record| record.vmcs12.get(Field::GUEST_RIP) & 0xfff == DEBUG_STUB;
            // Where the delivery itself fails, that is what L1 sees.
            let failed = ended(d).is_some_and(|(left, right)| left == 10 && matches!(right, 0 | 2));
            p.before.get(Field::GUEST_RFLAGS) & TRAP != 0
                && p.left.status == p.right.status
                && (at_stub(p.right) && !at_stub(p.left) || failed)
        },
    },
    Row {
        id: "bochs-pending-behind-injection",
        against: BOTH,
        reason: "with blocking by MOV SS debug exceptions stay pending over the injection of a software interrupt (SDM Vol. 3C \"Delivery of Pending Debug Exceptions after VM Entry\"); Bochs 2.7 drops them at any injection",
        holds: |p, d| {
            let injected = p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD);
            let at_stub =
                |record: &Record| record.vmcs12.get(Field::GUEST_RIP) & 0xfff == DEBUG_STUB;
            let failed = ended(d).is_some_and(|(left, right)| matches!(left, 0 | 2) && right == 10);
            p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 2 != 0
                && injected >> 31 & 1 != 0
                && matches!(injected >> 8 & 7, 4 | 5)
                && p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS)
                    & (SINGLE_STEP | ENABLED_BREAKPOINT)
                    != 0
                && (at_stub(p.left) && !at_stub(p.right) || failed)
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
        id: "bochs-cr0",
        against: &[Against::Bochs],
        reason: "reserved bits of CR0 that the entry does not check are not loaded (SDM Vol. 3C \"Loading Guest Control Registers, Debug Registers, and MSRs\"); the exit saves what is in the register, and what reads there is the processor's own affair",
        holds: |_, d| {
            (is(d, Field::GUEST_CR0) || d.what == "L1 CR0")
                && (d.left ^ d.right) & !CR0_RESERVED == 0
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
        id: "bochs-entry-to-smm",
        against: &[Against::Bochs],
        reason: "\"entry to SMM\" outside SMM is an invalid control (SDM Vol. 3C \"VM-Entry Control Fields\"); Bochs 2.7 looks at the blocking of SMIs that goes with it, and calls guest state invalid",
        holds: |p, d| {
            let guest_state = d.what == "outcome" && d.right as u32 == INVALID_GUEST_STATE;
            // Host state that is bad, too, then comes first.
            let host_state = is(d, Field::VM_INSTRUCTION_ERROR) && (d.left, d.right) == (7, 8);
            (guest_state || host_state) && p.before.get(Field::VM_ENTRY_CONTROLS) >> 10 & 1 != 0
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
        id: "bochs-hlt-injection",
        against: &[Against::Bochs],
        reason: "an event that HLT would block is not injected into it (SDM Vol. 3C \"Checks on Guest Non-Register State\"); Bochs 2.7 lacks the check",
        holds: |p, d| {
            p.left_failed_by_guest_state(d)
                && p.before.get(Field::GUEST_ACTIVITY_STATE) == HLT
                && p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) >> 31 & 1 != 0
        },
    },
    Row {
        id: "bochs-single-step-pending",
        against: BOTH,
        reason: "with blocking by STI or MOV SS and in HLT, BS is pending exactly if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0 (SDM Vol. 3C \"Checks on Guest Non-Register State\"); Bochs 2.7 lacks the check",
        holds: |p, d| {
            let steps = p.before.get(Field::GUEST_RFLAGS) & TRAP != 0;
            let pending = p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS) & SINGLE_STEP != 0;
            let halted = p.before.get(Field::GUEST_ACTIVITY_STATE) == HLT;
            let shadow = p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 3 != 0;
            p.left_failed_by_guest_state(d) && (halted || shadow) && (steps || pending)
        },
    },
    Row {
        id: "bochs-tsc-multiplier",
        against: &[Against::Bochs],
        reason: "the SDM lists no check of the TSC multiplier (Vol. 3C \"VM-Execution Control Fields\"); Bochs 2.7 refuses zero",
        holds: |p, d| {
            let outcome = d.what == "outcome"
                && d.right == u64::from(crate::layout::status::FAIL_VALID) << 32;
            // Host state that is bad, too, comes after it.
            let error = is(d, Field::VM_INSTRUCTION_ERROR) && (d.left, d.right) == (8, 7);
            (outcome || error)
                && p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 25 & 1 != 0
                && p.before.get(Field::TSC_MULTIPLIER) == 0
        },
    },
    Row {
        id: "bochs-dr7",
        against: &[Against::Bochs],
        reason: "bit 12 of DR7 is reserved and reads as 0 (SDM Vol. 3B \"Debug Control Register (DR7)\"); Bochs 2.7 keeps it",
        holds: |_, d| is(d, Field::GUEST_DR7) && d.left ^ d.right == 1 << 12,
    },
    Row {
        id: "bochs-log-full",
        against: &[Against::Bochs],
        reason: "a full page-modification log exits when a dirty flag of EPT is to be set (SDM Vol. 3C \"Page-Modification Logging\"); Bochs 2.7 looks at the index although the flag is set",
        holds: |p, d| ended_right(d) == Some(62) && p.before.get(Field::GUEST_PML_INDEX) > 511,
    },
    Row {
        id: "bochs-shutdown",
        against: &[Against::Bochs],
        reason: "in the shutdown state no pending #DB is delivered and RFLAGS stays (SDM Vol. 3C \"Guest Non-Register State\"); Bochs 2.7 delivers it, and clears IF on the way in",
        holds: |p, d| {
            let debug = p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS)
                & (SINGLE_STEP | ENABLED_BREAKPOINT)
                != 0;
            let flags = is(d, Field::GUEST_RFLAGS) && d.left ^ d.right == 0x200;
            p.before.get(Field::GUEST_ACTIVITY_STATE) == SHUTDOWN
                && match p.reason() {
                    52 => debug || flags,
                    8 => flags,
                    _ => false,
                }
        },
    },
    Row {
        id: "bochs-window-wakes",
        against: &[Against::Bochs],
        reason: "an event that exits directly returns the processor to the active state only behind the exit, which saves the state before (SDM Vol. 3C \"Architectural State Before a VM Exit\"); Bochs 2.7 is active before the exit of the NMI window",
        holds: |p, d| {
            is(d, Field::GUEST_ACTIVITY_STATE)
                && p.reason() == 8
                && matches!(d.left, HLT | SHUTDOWN)
                && d.right == 0
        },
    },
    Row {
        id: "bochs-hlt-debug",
        against: &[Against::Bochs],
        reason: "a pending #DB that an entry to HLT delivers wakes the processor (SDM Vol. 3C \"VM Entries and Advanced Debugging Features\"); Bochs 2.7 halts at the handler's first instruction",
        holds: |p, d| {
            ended_right(d) == Some(52)
                && p.before.get(Field::GUEST_ACTIVITY_STATE) == HLT
                && p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS)
                    & (SINGLE_STEP | ENABLED_BREAKPOINT)
                    != 0
        },
    },
    Row {
        id: "bochs-code-in-data-segment",
        against: &[Against::Bochs],
        reason: "DPL of DS, ES, FS and GS is not below RPL for non-conforming code, too (SDM Vol. 3C \"Checks on Guest Segment Registers\": types 0 to 11); Bochs 2.7 checks data alone",
        holds: |p, d| {
            p.left_failed_by_guest_state(d)
                && [0, 3, 4, 5].into_iter().any(|register| {
                    let rights = p
                        .before
                        .get(Field(Field::GUEST_ES_AR_BYTES.0 + 2 * register));
                    let selector = p
                        .before
                        .get(Field(Field::GUEST_ES_SELECTOR.0 + 2 * register));
                    matches!(rights & 0xf, 8..=11) && selector & 3 > rights >> 5 & 3
                })
        },
    },
    Row {
        id: "bochs-ia32e-without-paging",
        against: &[Against::Bochs],
        reason: "with \"IA-32e mode guest\" CR0.PG is 1 (SDM Vol. 3C \"Checks on Guest Control Registers, Debug Registers, and MSRs\"); with \"unrestricted guest\" Bochs 2.7 enters without",
        holds: |p, d| p.left_failed_by_guest_state(d) && is_ia32e_without_paging(p.before),
    },
    Row {
        id: "bochs-pending-under-mov-ss",
        against: BOTH,
        reason: "with blocking by MOV SS an exit keeps the pending debug exceptions (SDM Vol. 3C \"Saving Non-Register State\"); Bochs 2.7 clears those that are not enabled",
        holds: |p, d| {
            is(d, Field::GUEST_PENDING_DBG_EXCEPTIONS)
                && d.right == 0
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 2 != 0
        },
    },
    Row {
        id: "bochs-null-stack-segment",
        against: BOTH,
        reason: "whether SS is checked depends on the bit for unusable, not on its selector (SDM Vol. 3C \"Checks on Guest Segment Registers\"); Bochs 2.7 takes a null selector for unusable",
        holds: |p, d| {
            p.left_failed_by_guest_state(d) && p.before.get(Field::GUEST_SS_SELECTOR) & !3 == 0
        },
    },
    Row {
        id: "read-modify-write-qualification",
        against: BOTH,
        reason: "an EPT violation of a read-modify-write has the read and the write bit (SDM Vol. 3C, table \"Exit Qualification for EPT Violations\"); Bochs 2.7 sets the write bit alone (examples/README.md)",
        holds: |p, d| {
            is(d, Field::EXIT_QUALIFICATION)
                && p.reason() == 48
                && d.left == d.right | 1
                && d.right & 2 != 0
        },
    },
];
