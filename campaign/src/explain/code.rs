//! Differences that L2's code brings along: what the SDM leaves open, and what Bochs and KVM do.

use super::*;
use crate::case::Case;
use crate::code::{arrived, met};
use crate::explain::information::defined;
use iced_x86::{Mnemonic, Register};

pub(super) static ROWS: &[Row] = &[
    Row {
        id: "undefined-instruction-information",
        against: BOTH,
        reason: "bits of the instruction information that mean nothing for this instruction and operand (SDM Vol. 3C, tables \"Format of the VM-Exit Instruction-Information Field\")",
        holds: |p, d| {
            let qualification: u64 = p.left.vmcs12.get(Field::EXIT_QUALIFICATION);
            let mut mask = defined(p.reason(), qualification >> 4 & 1 != 0, d.left as u32);
            // INS has ES, and need not say so.
            if p.reason() == 30 && qualification >> 3 & 1 != 0 {
                mask &= !(7 << 15);
            }
            // Of the descriptor tables in 64-bit mode the operand size.
            if p.reason() == 46 && p.is_64_bit() {
                mask &= !OPERAND_SIZE;
            }
            is(d, Field::VMX_INSTRUCTION_INFO) && (d.left ^ d.right) as u32 & mask == 0
        },
    },
    Row {
        id: "bochs-store-table-size",
        against: BOTH,
        reason: "bit 11 of the instruction information of SGDT and its kin is the operand size (SDM Vol. 3C, table \"... as Used for LIDT, LGDT, SIDT, or SGDT\"); Bochs 2.7 leaves it clear",
        holds: |p, d| {
            is(d, Field::VMX_INSTRUCTION_INFO) && p.reason() == 46 && {
                let mask = defined(46, false, d.left as u32) & !OPERAND_SIZE;
                (d.left ^ d.right) as u32 & mask == 0
            }
        },
    },
    Row {
        id: "linear-address-of-register-operand",
        against: BOTH,
        reason: "of the exits by control-register accesses only LMSW of memory has a guest-linear address (SDM Vol. 3C \"Basic VM-Exit Information\")",
        holds: |p, d| {
            let qualification: u64 = p.left.vmcs12.get(Field::EXIT_QUALIFICATION);
            let is_lmsw_of_memory = qualification >> 4 & 7 == 7;
            is(d, Field::GUEST_LINEAR_ADDRESS) && p.reason() == 28 && !is_lmsw_of_memory
        },
    },
    Row {
        id: "bochs-displacement-of-register",
        against: BOTH,
        reason: "an operand without displacement leaves zero in the exit qualification (SDM Vol. 3C \"Basic VM-Exit Information\"); Bochs 2.7 leaves there what its decoder last had, if the operand is a register",
        holds: |p, d| {
            let information: u64 = p.left.vmcs12.get(Field::VMX_INSTRUCTION_INFO);
            is(d, Field::EXIT_QUALIFICATION)
                && d.left == 0
                && matches!(p.reason(), 23 | 25 | 47)
                && information >> 10 & 1 != 0
        },
    },
    Row {
        id: "bochs-displacement-width",
        against: BOTH,
        reason: "the displacement in the exit qualification is sign-extended to 64 bits (SDM Vol. 3C \"Basic VM-Exit Information\"); Bochs 2.7 keeps it at the address size outside 64-bit mode",
        holds: |p, d| {
            is(d, Field::EXIT_QUALIFICATION)
                && matches!(
                    p.reason(),
                    19 | 21..=23 | 25 | 27 | 46 | 47 | 50 | 53 | 58 | 63 | 64
                )
                && !p.is_64_bit()
                && (d.right == d.left & 0xffff_ffff || d.right == d.left & 0xffff)
        },
    },
    Row {
        id: "nmi-injection-after-sti",
        against: BOTH,
        reason: "whether an NMI may be injected with blocking by STI is left to the processor (SDM Vol. 3C \"Checks on Guest Non-Register State\"); Bochs refuses",
        holds: |p, d| {
            ended_right(d) == Some(INVALID_GUEST_STATE)
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 1 != 0
                && p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) & 0x8000_0700 == 0x8000_0200
        },
    },
    Row {
        id: "bochs-moved-cr0",
        against: BOTH,
        reason: "bit 4 of CR0, ET, is always 1 and reserved bits are ignored (SDM Vol. 3A \"Control Registers\"); Bochs 2.7 lets MOV to CR0 change them",
        holds: |p, d| {
            is(d, Field::GUEST_CR0)
                && (d.left ^ d.right) & !(CR0_RESERVED | 0x10) == 0
                && p.case.has(|mnemonic| mnemonic == Mnemonic::Mov)
        },
    },
    Row {
        id: "order-of-accesses",
        against: BOTH,
        reason: "an instruction or a delivery with several accesses makes them in an order that the SDM does not give; which of them faults first differs",
        holds: |p, d| {
            let is_address =
                is(d, Field::GUEST_PHYSICAL_ADDRESS) || is(d, Field::GUEST_LINEAR_ADDRESS);
            let is_page_fault = p.reason() == 0
                && is(d, Field::EXIT_QUALIFICATION)
                && p.left.vmcs12.get(Field::VM_EXIT_INTR_INFO) & 0xff == 14;
            let wraps = p.case.has(|m| matches!(m, Mnemonic::Lgdt | Mnemonic::Lidt))
                && matches!(met(p.left), Some(12 | 13))
                && met(p.right) == Some(14);
            if wraps && (d.what == "CR2" || is(d, Field::GUEST_RIP)) {
                return true;
            }
            (is_address || is_page_fault || d.what == "CR2")
                && p.case.is_code()
                && (is_near(d) || p.case.has(has_two_operands))
        },
    },
    Row {
        id: "frame-in-part",
        against: BOTH,
        reason: "a delivery that an exit cuts short may have pushed part of its frame (it is begun anew, SDM Vol. 3C \"Information for VM Exits During Event Delivery\"); real-address mode pushes all of it before it reads the vector (SDM Vol. 2A \"INT n\"). The model writes nothing of it",
        holds: |p, d| {
            let vectoring: u64 = p.left.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
            d.what.starts_with("flipped")
                && (vectoring >> 31 & 1 != 0 || p.reason() == 2)
                && matches!(p.reason(), 0 | 2 | 48 | 49)
                && is_part(d.left, d.right)
        },
    },
    Row {
        id: "kvm-emulated-breakpoint",
        against: &[Against::Kvm],
        reason: "INS and OUTS that go to user space are emulated by KVM, which looks at no data breakpoints (x86_emulate_instruction)",
        holds: |p, _| {
            p.before.get(Field::GUEST_DR7) & 0xff != 0
                && met(p.left) == Some(1)
                && met(p.right) != Some(1)
                && p.case.has(is_port)
        },
    },
    Row {
        id: "time-and-chance",
        against: BOTH,
        reason: "values of the time stamp, the performance counters and the random numbers are each machine's own",
        holds: |p, d| {
            let reads = |mnemonic| {
                matches!(
                    mnemonic,
                    Mnemonic::Rdtsc
                        | Mnemonic::Rdtscp
                        | Mnemonic::Rdpmc
                        | Mnemonic::Rdrand
                        | Mnemonic::Rdseed
                )
            };
            d.what.starts_with("L2 ") && p.case.has(reads)
        },
    },
    Row {
        id: "lar-limit",
        against: BOTH,
        reason: "bits 19:16 of a register that LAR writes are undefined (SDM Vol. 2A \"LAR\": 00FxFF00H); the processor has the limit's there",
        holds: |p, d| {
            d.what.starts_with("L2 ")
                && (d.left ^ d.right) & !0xf_0000 == 0
                && p.case.has(|mnemonic| mnemonic == Mnemonic::Lar)
        },
    },
    Row {
        id: "bochs-real-mode-error-code",
        against: BOTH,
        reason: "real-address mode has no error codes (SDM Vol. 3C \"Information for VM Exits Due to Vectored Events\"); Bochs 2.7 says that it has",
        holds: |p, d| {
            (is(d, Field::VM_EXIT_INTR_INFO) || is(d, Field::IDT_VECTORING_INFO_FIELD))
                && d.left | 1 << 11 == d.right
                && p.left.vmcs12.get(Field::GUEST_CR0) & 1 == 0
        },
    },
    Row {
        id: "smsw-upper-half",
        against: BOTH,
        reason: "bits above 15 of a register that SMSW writes are undefined (SDM Vol. 2B \"SMSW\")",
        holds: |p, d| {
            d.what.starts_with("L2 ")
                && d.left as u16 == d.right as u16
                && p.case.has(|mnemonic| mnemonic == Mnemonic::Smsw)
        },
    },
    Row {
        id: "kvm-unblocking-of-any-fault",
        against: &[Against::Kvm],
        reason: "bit 12 of the interruption information tells of a fault of IRET that has unblocked NMIs (SDM Vol. 3C \"Information for VM Exits Due to Vectored Events\"); KVM sets it for any exception that it queues itself while it takes NMIs for blocked (nested_vmx_inject_exception_vmexit)",
        holds: |p, d| {
            is(d, Field::VM_EXIT_INTR_INFO) && p.reason() == 0 && d.left | 1 << 12 == d.right
        },
    },
    Row {
        id: "kvm-lost-int1",
        against: &[Against::Kvm],
        reason: "an injected #DB of INT1 whose delivery makes L0 exit is lost: KVM knows no such event in the IDT-vectoring information (__vmx_complete_interrupts)",
        holds: |p, _| {
            p.before.get(Field::VM_ENTRY_INTR_INFO_FIELD) & 0x8000_0700 == 0x8000_0500
                && arrived(p.right) != Some(1)
        },
    },
    Row {
        id: "bochs-debug-register-privilege",
        against: BOTH,
        reason: "the #GP of MOV DR at CPL 3 comes before its VM exit (SDM Vol. 3C \"Relative Priority of Faults and VM Exits\"); Bochs 2.7 exits",
        holds: |p, d| {
            ended_right(d) == Some(29) && p.before.get(Field::GUEST_SS_AR_BYTES) >> 5 & 3 == 3
        },
    },
    Row {
        id: "bochs-steps-again",
        against: &[Against::Kvm],
        reason: "the BS that Bochs 2.7 leaves pending at an exit of L0's own (bochs-pending-single-step) is delivered before the instruction is run again, or fails in that and shuts down",
        holds: |p, d| {
            let steps = p.before.get(Field::GUEST_RFLAGS) & TRAP != 0
                || p.case
                    .has(|m| matches!(m, Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq))
                || p.case.has_iret();
            let vectoring: u64 = p.right.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
            // A #DB whose delivery failed leaves BS in DR6, or part of its frame.
            let shut_down = p.right.vmcs12.get(Field::VM_EXIT_REASON) == 2
                && (ended_right(d).is_some()
                    || matches!(d.what.as_str(), "DR6" | "digest of changes")
                    || d.what.starts_with("flipped"));
            steps && (met(p.right) == Some(1) || vectoring == 0x8000_0301 || shut_down)
        },
    },
    Row {
        id: "lab-timer",
        against: &[Against::Kvm],
        reason: "a port access that nobody intercepts goes to user space and takes its time in the lab: the VMX-preemption timer ends L2 behind it",
        holds: |p, d| ended_right(d) == Some(52) && p.case.has(is_port),
    },
    Row {
        id: "model-code-accessed",
        against: BOTH,
        reason: "far transfers that the model runs natively do not set the accessed bit of the code and stack segments (README \"What it does not do\")",
        holds: |p, d| {
            let in_table =
                d.what.starts_with("flipped 0x2148") && d.left == 0 && d.right == 1 << 40;
            let is_code_or_stack =
                is(d, Field::GUEST_CS_AR_BYTES) || is(d, Field::GUEST_SS_AR_BYTES);
            let in_register = is_code_or_stack && d.left | 1 == d.right;
            p.case.is_code() && (in_table || in_register)
        },
    },
    Row {
        id: "model-sti-shadow",
        against: BOTH,
        reason: "STI blocks interrupts only if IF was clear, and then behind blocking by MOV SS, too (SDM Vol. 2B \"STI\"); the model's native code has a shadow whatever IF was, and none behind another (README \"What it does not do\")",
        holds: |p, d| {
            let shadow = is(d, Field::GUEST_INTERRUPTIBILITY_INFO) && d.left ^ d.right == 1;
            let rip = |record: &crate::wire::Record| record.vmcs12.get(Field::GUEST_RIP);
            let window = p.reason() == 7 && (rip(p.left) != rip(p.right) || ended(d).is_some());
            // One more instruction, and what it does.
            let behind =
                p.reason() == 7 && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 2 != 0;
            (shadow || window || behind) && p.case.has(|mnemonic| mnemonic == Mnemonic::Sti)
        },
    },
    Row {
        id: "model-virtual-interrupt-flags",
        against: BOTH,
        reason: "IRET at CPL 0 loads VIF and VIP (SDM Vol. 2A \"IRET\"); the model's native code leaves them (README \"What it does not do\")",
        holds: |p, d| {
            // A frame has EFLAGS in either half of eight bytes.
            const FLAGS: u64 = 3 << 19 | 3 << 51;
            (is(d, Field::GUEST_RFLAGS) || d.what.starts_with("flipped"))
                && (d.left ^ d.right) & !FLAGS == 0
                && p.case.has_iret()
        },
    },
    Row {
        id: "model-breakpoints",
        against: BOTH,
        reason: "data breakpoints see accesses of deliveries and descriptor tables, and stop string instructions behind the iteration that matches (SDM Vol. 3B \"Debug Exceptions\"); the model's do neither (README \"What it does not do\")",
        holds: |p, d| {
            let repeats = |case: &Case| {
                let instructions = case.instructions();
                instructions
                    .iter()
                    .any(|i| i.has_rep_prefix() || i.has_repne_prefix())
            };
            p.before.get(Field::GUEST_DR7) & 0xff != 0
                && met(p.right) == Some(1)
                && (met(p.left) != Some(1)
                    || repeats(p.case)
                    || is(d, Field::GUEST_RSP)
                    || d.what.starts_with("flipped"))
        },
    },
    Row {
        id: "bochs-virtual-8086-int",
        against: BOTH,
        reason: "INT n in virtual-8086 mode with IOPL below 3 is a #GP of the instruction, not of a delivery (SDM Vol. 3B \"Software Interrupt Handling Methods While in Virtual-8086 Mode\"); Bochs 2.7 records the interrupt as if it were being delivered",
        holds: |p, d| {
            let before = p.before.get(Field::GUEST_RFLAGS);
            (is(d, Field::IDT_VECTORING_INFO_FIELD) || is(d, Field::VM_ENTRY_INSTRUCTION_LEN))
                && before & VIRTUAL_8086 != 0
                && d.left == 0
        },
    },
    Row {
        id: "breakpoint-conditions",
        against: BOTH,
        reason: "B0 to B3 of DR6 and of the exit qualification may be set for conditions that are met without being enabled, or not (SDM Vol. 3B \"Debug Status Register (DR6)\")",
        holds: |p, d| {
            let exits = p.reason() == 0 && p.left.vmcs12.get(Field::VM_EXIT_INTR_INFO) & 0xff == 1;
            (d.what == "DR6" || is(d, Field::EXIT_QUALIFICATION) && exits)
                && (d.left ^ d.right) & !0xf == 0
                && p.before.get(Field::GUEST_DR7) & 0xff != 0
        },
    },
    Row {
        id: "model-clflush",
        against: BOTH,
        reason: "CLFLUSH needs a translation as a load does (SDM Vol. 2A \"CLFLUSH\"); in the model's native code it does nothing (README \"What it does not do\")",
        holds: |p, _| {
            p.case.has(|mnemonic| mnemonic == Mnemonic::Clflush)
                && (met(p.right) == Some(14)
                    || p.right.vmcs12.get(Field::VM_EXIT_REASON) & !1 == 48)
        },
    },
    Row {
        id: "bochs-short-iret",
        against: BOTH,
        reason: "in 64-bit mode IRET pops SS:RSP whatever its operand size and target (SDM Vol. 3A \"IRET in IA-32e Mode\"); Bochs 2.7 does so for 64-bit operands alone",
        holds: |p, _| {
            let before: u64 = p.before.get(Field::GUEST_CS_AR_BYTES);
            before >> 13 & 1 != 0
                && p.case
                    .has(|m| matches!(m, Mnemonic::Iret | Mnemonic::Iretd))
        },
    },
    Row {
        id: "debug-register-priority",
        against: BOTH,
        reason: "MOV of DR4 or DR5 at CPL 3 with CR4.DE is #UD and #GP at once, and the SDM gives no order (Vol. 2B \"MOV-Move to/from Debug Registers\")",
        holds: |p, _| {
            met(p.right) == Some(6)
                && met(p.left) == Some(13)
                && p.case.instructions().iter().any(|i| {
                    (0..2).any(|operand| {
                        matches!(i.op_register(operand), Register::DR4 | Register::DR5)
                    })
                })
        },
    },
    Row {
        id: "bochs-port-of-nothing",
        against: BOTH,
        reason: "INS and OUTS whose REP count is zero access no port (SDM Vol. 2B \"REP\"); Bochs 2.7 exits before it looks at the count",
        holds: |p, _| {
            const STRING_AND_REPEATED: u64 = 3 << 4;
            let get = |field| p.right.vmcs12.get(field);
            let address_mask = match get(Field::VMX_INSTRUCTION_INFO) >> 7 & 7 {
                0 => 0xffff,
                1 => 0xffff_ffff,
                _ => u64::MAX,
            };
            get(Field::VM_EXIT_REASON) == 30
                && get(Field::EXIT_QUALIFICATION) & STRING_AND_REPEATED == STRING_AND_REPEATED
                && p.right.rcx() & address_mask == 0
        },
    },
    Row {
        id: "model-transfer-limit",
        against: BOTH,
        reason: "a target beyond the new code segment's limit is #GP(0) (SDM Vol. 2A \"CALL\", \"JMP\"); the model's native code has the selector as error code (README \"What it does not do\")",
        holds: |p, d| {
            (d.what.starts_with("flipped") || is(d, Field::VM_EXIT_INTR_ERROR_CODE))
                && d.left != 0
                && d.right == 0
                && d.left < 0x1_0000
                && met(p.left) == Some(13)
                && met(p.right) == Some(13)
        },
    },
    Row {
        id: "shadow-at-fault",
        against: BOTH,
        reason: "whether an instruction that faults has ended blocking by MOV SS and STI when its exception exits (SDM Vol. 3A \"Masking Exceptions and Interrupts When Switching Stacks\" knows only the instruction after); on Bochs it has",
        holds: |p, d| {
            is(d, Field::GUEST_INTERRUPTIBILITY_INFO)
                && p.reason() == 0
                && p.case.is_code()
                && d.right == d.left & !3
        },
    },
    Row {
        id: "misconfiguration-qualification",
        against: BOTH,
        reason: "an EPT misconfiguration has no exit qualification (SDM Vol. 3C \"Basic VM-Exit Information\"); KVM of Linux 6.1 leaves there that of the violation which made it walk",
        holds: |p, d| is(d, Field::EXIT_QUALIFICATION) && p.reason() == 49 && d.left == 0,
    },
    Row {
        id: "bochs-random-size",
        against: BOTH,
        reason: "bits 12:11 of the instruction information of RDRAND and RDSEED are the operand size (SDM Vol. 3C, table \"... as Used for RDRAND, RDSEED, TPAUSE, and UMWAIT\"); short of 64 bits Bochs 2.7 has the address size there",
        holds: |p, d| {
            is(d, Field::VMX_INSTRUCTION_INFO)
                && matches!(p.reason(), 57 | 61)
                && (d.left ^ d.right) as u32 & defined(p.reason(), false, d.left as u32) == 1 << 11
                && d.left >> 12 & 1 == 0
        },
    },
    Row {
        id: "bochs-pending-lost-in-delivery",
        against: BOTH,
        reason: "debug exceptions that blocking by MOV SS holds back are delivered behind the next instruction, in the handler if that one ends in an event (SDM Vol. 3A \"Masking Exceptions and Interrupts When Switching Stacks\", Vol. 3C \"Delivery of Pending Debug Exceptions after VM Entry\"); Bochs 2.7 forgets them where the event is delivered",
        holds: |p, _| {
            const PENDING: u64 = SINGLE_STEP | ENABLED_BREAKPOINT;
            p.before.get(Field::GUEST_PENDING_DBG_EXCEPTIONS) & PENDING != 0
                && p.before.get(Field::GUEST_INTERRUPTIBILITY_INFO) & 2 != 0
                && met(p.left) == Some(1)
                && met(p.right).is_some_and(|vector| vector != 1)
        },
    },
    Row {
        id: "bochs-table-in-parts",
        against: BOTH,
        reason: "SGDT and SIDT store the limit and the base (SDM Vol. 2B \"SIDT\"); to the APIC-access page Bochs 2.7 makes two accesses of it, of which the first may be virtualized, the model one",
        holds: |p, d| {
            p.reason() == 44
                && (is(d, Field::EXIT_QUALIFICATION) && d.left + 2 == d.right
                    || d.what.starts_with("flipped") && d.right <= 0xffff)
                && p.case.has(|m| matches!(m, Mnemonic::Sgdt | Mnemonic::Sidt))
        },
    },
    Row {
        id: "model-virtual-8086-extensions",
        against: BOTH,
        reason: "with CR4.VME or CR4.PVI, STI and CLI work on VIF, and INT n looks at the TSS's redirection bitmap (SDM Vol. 3B \"Class 3 Software Interrupt Handling Methods\", \"Protected-Mode Virtual Interrupts\"); to the model's native code they are #GP (README \"What it does not do\")",
        holds: |p, _| {
            let flags = p.before.get(Field::GUEST_RFLAGS);
            let extended = if flags & VIRTUAL_8086 != 0 { VME } else { PVI };
            p.before.get(Field::GUEST_CR4) & extended != 0
                && flags >> 12 & 3 < 3
                && met(p.left) == Some(13)
                && met(p.right) != Some(13)
                && p.case
                    .has(|m| matches!(m, Mnemonic::Sti | Mnemonic::Cli | Mnemonic::Int))
        },
    },
    Row {
        id: "bochs-invpcid-privilege",
        against: BOTH,
        reason: "the #GP of INVPCID at CPL 3 comes before its VM exit (SDM Vol. 3C \"Relative Priority of Faults and VM Exits\"); Bochs 2.7 exits",
        holds: |p, d| {
            ended_right(d) == Some(58) && p.before.get(Field::GUEST_SS_AR_BYTES) >> 5 & 3 == 3
        },
    },
    Row {
        id: "store-in-part",
        against: BOTH,
        reason: "a store across two pages whose second part is a VM exit may have written its first (it is begun anew); the model writes nothing of it, Bochs 2.7 its part before the APIC-access page",
        holds: |p, d| {
            (d.what.starts_with("flipped") || d.what == "digest of changes") && p.reason() == 44
        },
    },
    Row {
        id: "model-fetches-ahead",
        against: BOTH,
        reason: "the model translates ahead of what runs, and sets the accessed flag of the page behind, as prefetching may (SDM Vol. 3A \"Accessed and Dirty Flags\", \"Details of TLB Use\")",
        holds: |_, d| d.what.starts_with("flipped 0x22") && (d.left, d.right) == (0x20, 0),
    },
    Row {
        id: "bochs-ins-reads",
        against: BOTH,
        reason: "INS writes its operand (SDM Vol. 2A \"INS/INSB/INSW/INSD\"); Bochs 2.7 checks it as one that is read and written, before it reads the port",
        holds: |p, d| {
            let ept = p.reason() == 48 && d.left | 1 == d.right;
            let apic = p.reason() == 44 && d.left == d.right | 1 << 12;
            is(d, Field::EXIT_QUALIFICATION) && (ept || apic) && p.case.has(is_ins)
        },
    },
];

/// Whether the exception came up, and came as far as its stub, an exit, or an exit of its delivery.
pub(super) fn met_on_the_way(record: &crate::wire::Record, vector: u64) -> bool {
    let vectoring: u64 = record.vmcs12.get(Field::IDT_VECTORING_INFO_FIELD);
    met(record) == Some(vector) || vectoring & 0x8000_07ff == 0x8000_0300 | vector
}

fn has_two_operands(mnemonic: Mnemonic) -> bool {
    matches!(
        mnemonic,
        Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq
    )
}

pub(super) fn is_ins(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Insb | Mnemonic::Insw | Mnemonic::Insd)
}

/// INS or OUTS.
pub(super) fn is_string_port(mnemonic: Mnemonic) -> bool {
    is_ins(mnemonic)
        || matches!(
            mnemonic,
            Mnemonic::Outsb | Mnemonic::Outsw | Mnemonic::Outsd
        )
}

fn is_port(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::In | Mnemonic::Out) || is_string_port(mnemonic)
}

/// Whether each word of `part` is zero or as in `whole`.
fn is_part(part: u64, whole: u64) -> bool {
    (0..4).all(|word| {
        let word = |value: u64| (value >> (16 * word)) as u16;
        word(part) == 0 || word(part) == word(whole)
    })
}

/// Whether two addresses are those of parts of one operand, which may wrap.
fn is_near(d: &Difference) -> bool {
    let distance = d.left.wrapping_sub(d.right);
    distance.min(distance.wrapping_neg()) <= MOST_BYTES
}

/// Bit 11 of the instruction information.
const OPERAND_SIZE: u32 = 1 << 11;
/// A frame has ten words at most, an instruction no more.
const MOST_BYTES: u64 = 0x50;

impl Pair<'_> {
    pub(super) fn is_64_bit(&self) -> bool {
        self.left.vmcs12.get(Field::GUEST_CS_AR_BYTES) >> 13 & 1 != 0
    }

    /// Whether L2's first instruction is 64-bit code.
    pub(super) fn begins_in_64_bit(&self) -> bool {
        self.before.get(Field::GUEST_CS_AR_BYTES) >> 13 & 1 != 0
    }
}
