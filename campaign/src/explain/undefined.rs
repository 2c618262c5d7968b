//! What the SDM leaves undefined, or to the processor.

use super::*;

pub(super) static ROWS: &[Row] = &[
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
        holds: |p, d| is(d, Field::VM_EXIT_INSTRUCTION_LEN) && !p.defines_instruction_length(),
    },
    Row {
        id: "stale-instruction-information",
        against: BOTH,
        reason: "undefined for this exit (SDM Vol. 3C \"Information for VM Exits Due to Instruction Execution\")",
        holds: |p, d| is(d, Field::VMX_INSTRUCTION_INFO) && !p.defines_instruction_information(),
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
                && (d.left ^ d.right) & !0xe == 0
                && (p.left.vmcs12.get(Field::GUEST_CR0) & 1 == 0
                    || p.before.get(Field::GUEST_CR0) & 1 == 0)
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
            (is(d, Field::GUEST_FS_BASE) && p.left.vmcs12.get(Field::GUEST_FS_SELECTOR) == 0
                || is(d, Field::GUEST_GS_BASE) && p.left.vmcs12.get(Field::GUEST_GS_SELECTOR) == 0)
                && d.left == 0
                && (p.before.get(Field::GUEST_RFLAGS) & VIRTUAL_8086 != 0 || p.case.has_iret())
                && p.left.vmcs12.get(Field::GUEST_RFLAGS) & VIRTUAL_8086 == 0
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
        id: "stale-exit-information",
        against: &[Against::Bochs],
        reason: "an entry that fails leaves the exit-information fields as they were, reason and qualification of a failure by exit apart: each processor has what the case before left",
        holds: |p, d| {
            let is_exit = p.left.status == crate::layout::status::EXIT;
            let failed = is_exit && p.reason() >> 31 != 0;
            (!is_exit || failed)
                && d.what.parse::<Field>().is_ok_and(Field::is_read_only)
                && !is(d, Field::VM_INSTRUCTION_ERROR)
                && !(failed && (is(d, Field::EXIT_QUALIFICATION) || is(d, Field::VM_EXIT_REASON)))
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
        id: "ept-outside-ram",
        against: &[Against::Bochs],
        reason: "what is read where no RAM is, is the chipset's affair: Bochs reads ones, a misconfigured entry; the model an entry that is not present",
        holds: |p, d| {
            ended(d) == Some((48, 49)) && p.before.get(Field::EPT_POINTER) & !0xfff >= RAM
        },
    },
    Row {
        id: "low-memory",
        against: &[Against::Bochs],
        reason: "paging tables at address 0 are what a BIOS left there on Bochs, and zeros on the model",
        holds: |p, d| {
            d.what == "outcome"
                && p.before.get(Field::GUEST_CR3) >> 12 == 0
                && p.before.get(Field::GUEST_CR0) >> 31 & 1 != 0
        },
    },
    Row {
        id: "check-order",
        against: BOTH,
        reason: "the checks of guest state may be made in any order (SDM Vol. 3C \"Checking and Loading Guest State\"); if the link pointer or a PDPTE is bad and something else, too, the qualification is 4, 2 or 0",
        holds: |p, d| {
            is(d, Field::EXIT_QUALIFICATION)
                && p.reason() == u64::from(INVALID_GUEST_STATE)
                && p.case.mutations.len() > 1
                && [d.left, d.right]
                    .iter()
                    .all(|q| matches!(*q, 0 | 2 | LINK_POINTER))
        },
    },
];
