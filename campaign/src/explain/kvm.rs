//! What KVM does otherwise, and what the model does not do.

use super::*;
use iced_x86::Mnemonic;

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "kvm-failed-entry-sync",
        against: &[Against::Kvm],
        reason: "where the processor refuses guest state, KVM saves L2's state as at any exit (nested_vmx_vmexit, sync_vmcs02_to_vmcs12), with the activity state that L0 entered, DR7 with its fixed bit, the IA32_EFER that L2 would have had where the entry loads none, and what the MSR-load list wrote; of an NMI that it was to inject KVM takes back that NMIs are blocked (__vmx_complete_interrupts)",
        holds: |p, d| {
            p.reason() == u64::from(INVALID_GUEST_STATE)
                && (is(d, Field::GUEST_ACTIVITY_STATE) && d.right == 0
                    || is(d, Field::GUEST_DR7) && d.right == (d.left & 0xffff_2bff | 0x400)
                    || is(d, Field::GUEST_IA32_EFER)
                        && p.before.get(Field::VM_ENTRY_CONTROLS) >> 15 & 1 == 0
                    || d.what.starts_with("GUEST_SYSENTER_")
                        && p.before.get(Field::VM_ENTRY_MSR_LOAD_COUNT) != 0
                    || is(d, Field::GUEST_INTERRUPTIBILITY_INFO)
                        && d.left == d.right | 8
                        && p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) & 0x8000_0700
                            == 0x8000_0200)
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
                && p.before.get(Field::VMCS_LINK_POINTER) < RAM
        },
    },
    Row {
        id: "kvm-segments-first",
        against: &[Against::Kvm],
        reason: "without \"unrestricted guest\" KVM looks at L2's segments before it loads PDPTEs and MSRs, and before its processor sees the TPR threshold or a virtual-APIC page that is no RAM (prepare_vmcs02, vmx_guest_state_valid); the model has both orders of the SDM and of the processor below KVM, not this one",
        holds: |p, d| {
            let unrestricted = p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) >> 7 & 1 != 0;
            let failed = p.reason() == u64::from(INVALID_GUEST_STATE);
            let loaded = d.what.starts_with("L1 MSR") && failed;
            let pdptes = is(d, Field::EXIT_QUALIFICATION) && failed && (d.left, d.right) == (2, 0);
            let threshold = d.left == u64::from(crate::layout::status::FAIL_VALID) << 32
                && ended_right(d) == Some(INVALID_GUEST_STATE)
                && (p.before.get(Field::TPR_THRESHOLD) != 0
                    || p.before.get(Field::VIRTUAL_APIC_PAGE_ADDR) >= RAM);
            let msrs = ended(d) == Some((INVALID_MSRS, INVALID_GUEST_STATE));
            (msrs || loaded || pdptes || threshold) && !unrestricted
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
        id: "model-segment-limits",
        against: BOTH,
        reason: "the model's native code checks no segment limits (README \"What it does not do\"), so that a RIP beyond that of CS does not fault, nor an operand of what stands in low memory, where L2 has no code",
        holds: |p, _| {
            let get = |field| p.before.get(field);
            let first = get(Field::GUEST_CS_BASE).wrapping_add(get(Field::GUEST_RIP));
            (get(Field::GUEST_RIP) > get(Field::GUEST_CS_LIMIT) || first < crate::layout::REAL)
                && (get(Field::GUEST_CS_AR_BYTES) & u64::from(AccessRights::LONG.bits()) == 0
                    || get(Field::GUEST_RFLAGS) & VIRTUAL_8086 != 0)
        },
    },
    Row {
        id: "kvm-hardware-breakpoint-exception",
        against: &[Against::Kvm],
        reason: "#BP and #OF injected as hardware exceptions: if L0 has an exit of its own during the delivery, KVM injects them again as software exceptions, whose gate is checked for privilege and whose frame has RIP behind the instruction (kvm_exception_is_soft)",
        holds: |p, d| {
            let information = p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD);
            information >> 31 & 1 != 0
                && information >> 8 & 7 == 3
                && matches!(information & 0xff, 3 | 4)
                && p.left.status == p.right.status
                && (d.what.starts_with("stack")
                    || is(d, Field::GUEST_RSP)
                    || is(d, Field::GUEST_RIP))
        },
    },
    Row {
        id: "kvm-dummy-root",
        against: &[Against::Kvm],
        reason: "EPT tables whose root is no RAM: KVM of Linux 6.12 runs L2 on an empty table of its own (kvm_mmu, dummy root) and reports the permissions of the walk that it never made, bits 5:3 all set; the SDM has them zero where nothing is present (Vol. 3C, table \"Exit Qualification for EPT Violations\")",
        holds: |p, d| {
            const PERMISSIONS: u64 = 7 << 3;
            const ACCESS: u64 = 7;
            is(d, Field::EXIT_QUALIFICATION)
                && p.reason() == 48
                && d.right & PERMISSIONS == PERMISSIONS
                && d.left & PERMISSIONS == 0
                && (d.left ^ d.right) & ACCESS & !3 == 0
                && p.before.get(Field::EPT_POINTER) & !0xfff >= RAM
        },
    },
    Row {
        id: "kvm-freeze-in-smm",
        against: &[Against::Kvm],
        reason: "FREEZE_WHILE_SMM in the guest's IA32_DEBUGCTL: Linux 6.12 lets it through, to keep old snapshots alive (KVM_X86_QUIRK_VMCS12_ALLOW_FREEZE_IN_SMM), 6.1 and the model refuse it",
        holds: |p, d| {
            const FREEZE_WHILE_SMM: u64 = 1 << 14;
            d.what == "outcome"
                && d.left as u32 == INVALID_GUEST_STATE
                && d.right as u32 != INVALID_GUEST_STATE
                && p.before.get(Field::GUEST_IA32_DEBUGCTL) == FREEZE_WHILE_SMM
        },
    },
    Row {
        id: "kvm-timer-zero-in-hlt",
        against: &[Against::Kvm],
        reason: "a VMX-preemption timer that is zero at an entry to HLT: the state saved is HLT (SDM Vol. 3C \"VMX-Preemption Timer\", \"Saving Non-Register State\"); Linux 6.12 has not halted the vCPU yet when the timer ends L2, and saves the active state",
        holds: |p, d| {
            is(d, Field::GUEST_ACTIVITY_STATE)
                && p.reason() == 52
                && (d.left, d.right) == (HLT, 0)
                && p.before.get(Field::VMX_PREEMPTION_TIMER_VALUE) == 0
        },
    },
    Row {
        id: "kvm-recovers-nmi-blocking",
        against: &[Against::Kvm],
        reason: "where a fault of IRET has unblocked NMIs, KVM blocks them again before it looks whose exit it is (vmx_recover_nmi_blocking, handle_ept_violation), and the saved interruptibility state tells of that",
        holds: |p, d| {
            is(d, Field::GUEST_INTERRUPTIBILITY_INFO)
                // Less what shadow-at-fault is about.
                && (d.left | 8) & !3 == d.right & !3
                && d.right & 3 & !d.left == 0
                && matches!(p.reason(), 0 | 48 | 49)
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 8 != 0
                && p.case.has_iret()
        },
    },
    Row {
        id: "kvm-int1-by-hand",
        against: &[Against::Kvm],
        reason: "KVM intercepts #DB, steps over INT1 itself and injects a hardware exception (handle_exception_nmi, is_icebp): what goes wrong in its delivery goes wrong behind the instruction, and is vectoring of a #DB",
        holds: |p, d| {
            let vectoring: u64 = p.right.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
            let of_debug = vectoring == 0x8000_0301;
            let behind = is(d, Field::GUEST_RIP) && d.right == d.left + 1;
            (behind && (of_debug || p.reason() == 2)
                || is(d, Field::IDT_VECTORING_INFO_FIELD) && of_debug
                || d.what.starts_with("flipped") && d.left == 0 && of_debug)
                && p.case.has(|mnemonic| mnemonic == Mnemonic::Int1)
        },
    },
    Row {
        id: "kvm-walks-write",
        against: &[Against::Kvm],
        reason: "KVM runs L2 on tables of its own with accessed and dirty flags for EPT, under which the processor's walks of the guest's page tables are writes (SDM Vol. 3C \"Accessed and Dirty Flags for EPT\"); where L1 has enabled none and its tables forbid the write, L1 is told of a violation all the same",
        holds: |p, d| {
            const READ_AND_WRITE: u64 = 3;
            // Linux 6.1 takes it for an access to the page itself.
            const WRITABLE: u64 = 1 << 4;
            let qualification: u64 = p.right.vmcs12.get(Field::EXIT_QUALIFICATION);
            ended_right(d) == Some(48)
                && qualification & (READ_AND_WRITE | WRITABLE) == READ_AND_WRITE
                && p.before.get(Field::EPT_POINTER) >> 6 & 1 == 0
        },
    },
    Row {
        id: "kvm-triple-fault-cr2",
        against: &[Against::Kvm],
        reason: "without EPT KVM injects L2's page faults itself; of one whose delivery ends in shutdown CR2 has nothing, since it is written when the exception has been delivered (kvm_deliver_exception_payload)",
        holds: |p, d| {
            d.what == "CR2"
                && p.reason() == 2
                && d.right == 0
                && p.before.get(Field::SECONDARY_VM_EXEC_CONTROL) & 2 == 0
        },
    },
    Row {
        id: "kvm-emulated-fetch",
        against: &[Against::Kvm],
        reason: "INS and OUTS that go to user space are emulated by KVM, which fetches them through L1's EPT as data: from a page that can be executed and not read that is a violation (kvm_fetch_guest_virt, translate_nested_gpa)",
        holds: |p, d| {
            const FETCH: u64 = 4;
            let qualification: u64 = p.right.vmcs12.get(Field::EXIT_QUALIFICATION);
            ended_right(d) == Some(48)
                && qualification & FETCH != 0
                && p.case.has(code::is_string_port)
        },
    },
    Row {
        id: "kvm-emulated-address",
        against: &[Against::Kvm],
        reason: "INS and OUTS that go to user space are emulated by KVM; of an access that meets L1's EPT there it knows the page alone, and its own kind of access (translate_nested_gpa, nested_ept_inject_page_fault)",
        holds: |p, d| {
            const KIND: u64 = 7;
            p.reason() == 48
                && p.case.has(code::is_string_port)
                && (is(d, Field::GUEST_PHYSICAL_ADDRESS) && d.right == d.left & !0xfff
                    || is(d, Field::EXIT_QUALIFICATION) && (d.left ^ d.right) & !KIND == 0)
        },
    },
];
