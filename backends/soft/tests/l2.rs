//! What L2's instructions do while L1 does not want them, and what it is told when it does: tables over the
//! sections "Instructions That Cause VM Exits" and "Changes to Instruction Behavior in VMX Non-Root
//! Operation" (SDM Vol. 3C).

mod common;

use common::bare::{self, put};
use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::{CpuState, Gpr};

const EXCEPTION: u32 = 0;
const TRIPLE_FAULT: u32 = 2;
const VMCALL_EXIT: u32 = 18;
const CR_ACCESS: u32 = 28;
const IO: u32 = 30;
const MSR_LOAD_FAILURE: u32 = 0x8000_0022;
const VALID: u64 = 1 << 31;

fn with(nest: &mut Nest, registers: &[(Gpr, u64)]) {
    let mut regs = nest.regs();
    for (register, value) in registers {
        regs.set(*register, *value);
    }
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
}

fn secondary(nest: &mut Nest, controls: Secondary) {
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.on(Field::SECONDARY_VM_EXEC_CONTROL, controls.bits());
}

/// Instruction, its control, exit reason and qualification with the control.
type Controlled = (&'static str, &'static [u8], Primary, Secondary, u32, u64);

/// Without the control the instruction just runs.
#[test]
fn an_instruction_exits_exactly_with_its_control() {
    let none = Secondary::empty();
    let rows: [Controlled; 24] = [
        (
            "INVLPG",
            &[0x0f, 0x01, 0x3c, 0x25, 0x78, 0x56, 0x34, 0x12],
            Primary::INVLPG_EXITING,
            none,
            14,
            0x1234_5678,
        ),
        ("RDTSC", &[0x0f, 0x31], Primary::RDTSC_EXITING, none, 16, 0),
        (
            "MOV to CR3",
            &[0x0f, 0x22, 0xd8],
            Primary::CR3_LOAD_EXITING,
            none,
            28,
            3,
        ),
        (
            "MOV from CR3",
            &[0x0f, 0x20, 0xd8],
            Primary::CR3_STORE_EXITING,
            none,
            28,
            0x13,
        ),
        (
            "MOV to CR8",
            &[0x44, 0x0f, 0x22, 0xc1],
            Primary::CR8_LOAD_EXITING,
            none,
            28,
            0x108,
        ),
        (
            "MOV from CR8",
            &[0x44, 0x0f, 0x20, 0xc0],
            Primary::CR8_STORE_EXITING,
            none,
            28,
            0x18,
        ),
        ("PAUSE", &[0xf3, 0x90], Primary::PAUSE_EXITING, none, 40, 0),
        (
            "MOV from DR6",
            &[0x0f, 0x21, 0xf1],
            Primary::MOV_DR_EXITING,
            none,
            29,
            0x116,
        ),
        (
            "MOV to DR0",
            &[0x0f, 0x23, 0xc1],
            Primary::MOV_DR_EXITING,
            none,
            29,
            0x100,
        ),
        (
            "OUT",
            &[0xe6, 0x80],
            Primary::UNCONDITIONAL_IO_EXITING,
            none,
            30,
            0x80_0040,
        ),
        (
            "WBINVD",
            &[0x0f, 0x09],
            Primary::empty(),
            Secondary::WBINVD_EXITING,
            54,
            0,
        ),
        (
            "SGDT",
            &[0x0f, 0x01, 0x03],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            46,
            0,
        ),
        (
            "SIDT",
            &[0x0f, 0x01, 0x0b],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            46,
            0,
        ),
        (
            "LGDT",
            &[0x0f, 0x01, 0x16],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            46,
            0,
        ),
        (
            "LIDT",
            &[0x0f, 0x01, 0x1f],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            46,
            0,
        ),
        (
            "SLDT",
            &[0x66, 0x0f, 0x00, 0xc0],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            47,
            0,
        ),
        (
            "LLDT",
            &[0x0f, 0x00, 0xd1],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            47,
            0,
        ),
        (
            "STR",
            &[0x66, 0x0f, 0x00, 0xc8],
            Primary::empty(),
            Secondary::DESCRIPTOR_TABLE_EXITING,
            47,
            0,
        ),
        (
            "RDRAND",
            &[0x48, 0x0f, 0xc7, 0xf0],
            Primary::empty(),
            Secondary::RDRAND_EXITING,
            57,
            0,
        ),
        ("CLI", &[0xfa], Primary::empty(), none, 0, 0),
        ("VMFUNC", &[0x0f, 0x01, 0xd4], Primary::empty(), none, 0, 0),
        ("CPUID", &[0x0f, 0xa2], Primary::empty(), none, 10, 0),
        ("INVD", &[0x0f, 0x08], Primary::empty(), none, 13, 0),
        ("VMXOFF", &[0x0f, 0x01, 0xc4], Primary::empty(), none, 26, 0),
    ];
    for (name, code, primary, secondary_control, reason, qualification) in rows {
        let always = reason != 0 && primary.is_empty() && secondary_control.is_empty();
        for wanted in [false, true] {
            let mut nest = Nest::new(&[code, &VMCALL].concat());
            // Tables that LGDT and LIDT load again.
            put(&mut nest.vm, PAGE, &[0x7f, 0]);
            put(&mut nest.vm, PAGE + 2, &bare::GDT.to_le_bytes());
            put(&mut nest.vm, PAGE + 0x10, &[0xff, 0xf]);
            put(&mut nest.vm, PAGE + 0x12, &bare::IDT.to_le_bytes());
            with(
                &mut nest,
                &[
                    (Gpr::Rax, bare::PAGING),
                    (Gpr::Rbx, PAGE + 0x100),
                    (Gpr::Rsi, PAGE),
                    (Gpr::Rdi, PAGE + 0x10),
                ],
            );
            nest.set(Field::EXCEPTION_BITMAP, 1 << 6);
            if wanted {
                nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, primary.bits());
                secondary(&mut nest, secondary_control);
            }
            let entry = nest.enter();
            if always || wanted && reason != 0 {
                assert_eq!(entry, Entry::Exit(reason), "{name}");
                assert_eq!(nest.get(Field::GUEST_RIP), L2, "{name}");
                assert_eq!(
                    nest.get(Field::VM_EXIT_INSTRUCTION_LEN),
                    code.len() as u64,
                    "{name}"
                );
                assert_eq!(nest.get(Field::EXIT_QUALIFICATION), qualification, "{name}");
            } else if name == "VMFUNC" {
                assert_eq!(entry, Entry::Exit(EXCEPTION), "{name}");
                assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 3 << 8 | 6);
            } else {
                assert_eq!(entry, Entry::Exit(VMCALL_EXIT), "{name}");
                assert_eq!(nest.get(Field::GUEST_RIP), L2 + code.len() as u64, "{name}");
            }
        }
    }
}

/// #UD where L1 has not enabled the instruction, delivered to L2 like any other.
#[test]
fn instructions_that_l1_has_not_enabled() {
    for (name, code, control) in [
        ("RDTSCP", &[0x0f, 0x01, 0xf9][..], Secondary::ENABLE_RDTSCP),
        (
            "INVPCID",
            &[0x66, 0x0f, 0x38, 0x82, 0x03],
            Secondary::ENABLE_INVPCID,
        ),
        ("VMMCALL", &[0x0f, 0x01, 0xd9], Secondary::empty()),
        ("UD2", &[0x0f, 0x0b], Secondary::empty()),
    ] {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        with(&mut nest, &[(Gpr::Rbx, PAGE)]);
        put(&mut nest.vm, HANDLERS + 64 * 6, &VMCALL);
        nest.expect(VMCALL_EXIT, HANDLERS + 64 * 6);
        if control == Secondary::ENABLE_RDTSCP {
            let mut nest = Nest::new(&[code, &VMCALL].concat());
            secondary(&mut nest, control);
            assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT), "{name}");
            assert_eq!(nest.get(Field::GUEST_RIP), L2 + 3, "{name}");
        }
    }
}

/// Those of AMD's virtualization are undefined, VMMCALL among them.
#[test]
fn instructions_of_another_vendor() {
    for last in 0xd8..=0xdf {
        let mut nest = Nest::new(&[&[0x0f, 0x01, last][..], &VMCALL].concat());
        nest.set(Field::EXCEPTION_BITMAP, 1 << 6);
        nest.expect(EXCEPTION, L2);
        assert_eq!(
            nest.get(Field::VM_EXIT_INTR_INFO),
            VALID | 0x306,
            "{last:#x}"
        );
    }
}

/// INS whose operand cannot be stored to faults before anything is read from the port.
#[test]
fn ins_to_a_page_that_is_not_there_reads_no_port() {
    let mut nest = Nest::new(&[&[0x6d][..], &VMCALL].concat());
    nest.set(Field::EXCEPTION_BITMAP, 1 << 14);
    with(&mut nest, &[(Gpr::Rdi, 0x40_0000), (Gpr::Rdx, 0x80)]);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x40_0000);
}

/// "I/O-Bitmap Addresses": any byte of the access, and whatever wraps around port FFFF.
#[test]
fn port_bitmaps() {
    // in al/ax/eax, dx; out dx, al/ax/eax
    let input = |size| match size {
        1 => vec![0xec],
        2 => vec![0x66, 0xed],
        _ => vec![0xed],
    };
    for (port, size, bit, exits) in [
        (0x5000_u64, 1, None, false),
        (0x5000, 1, Some(0x5000_u64), true),
        (0x4fff, 4, Some(0x5000), true),
        (0x4ffc, 4, Some(0x5000), false),
        (0x7fff, 2, Some(0x8000), true),
        (0x9000, 2, Some(0x9001), true),
        (0xffff, 1, None, false),
        (0xffff, 2, None, true),
        (0xfffd, 4, None, true),
        (0xfffc, 4, None, false),
    ] {
        let code = [input(size), VMCALL.to_vec()].concat();
        let mut nest = Nest::new(&code);
        with(&mut nest, &[(Gpr::Rdx, port)]);
        nest.on(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            (Primary::USE_IO_BITMAPS | Primary::UNCONDITIONAL_IO_EXITING).bits(),
        );
        nest.set(Field::IO_BITMAP_A, PAGE);
        nest.set(Field::IO_BITMAP_B, PAGE2);
        if let Some(bit) = bit {
            let page = if bit < 0x8000 { PAGE } else { PAGE2 };
            put(&mut nest.vm, page + (bit & 0x7fff) / 8, &[1 << (bit % 8)]);
        }
        if !exits {
            // The access is user space's.
            continue;
        }
        nest.expect(IO, L2);
        let expected = port << 16 | 8 | (size as u64 - 1);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), expected, "{port:#x}");
    }
}

/// Guest/host masks: L2 reads the shadow, and writes exit where they differ from it.
#[test]
fn masks_and_shadows_of_cr0() {
    const TS: u64 = 8;
    const MP: u64 = 2;
    // mov rsi, cr0; mov cr0, rbx; clts; lmsw ax
    let read = [0x0f, 0x20, 0xc6];
    let mut nest = Nest::new(&[&read[..], &VMCALL].concat());
    nest.set(Field::CR0_GUEST_HOST_MASK, TS | MP);
    nest.set(Field::CR0_READ_SHADOW, TS);
    nest.expect(VMCALL_EXIT, L2 + 3);
    assert_eq!(nest.regs().get(Gpr::Rsi) & (TS | MP), TS);
    let cr0 = nest.get(Field::GUEST_CR0);
    for (name, code, value, exits) in [
        ("MOV, same", &[0x0f, 0x22, 0xc3][..], cr0 | TS, None),
        ("MOV, TS", &[0x0f, 0x22, 0xc3], cr0, Some(0x300)),
        ("MOV, MP", &[0x0f, 0x22, 0xc3], cr0 | TS | MP, Some(0x300)),
        ("CLTS", &[0x0f, 0x06], 0, Some(0x20)),
        ("LMSW, TS", &[0x0f, 0x01, 0xf3], 9, None),
        ("LMSW, MP", &[0x0f, 0x01, 0xf3], 0xb, Some(0xb_0030)),
    ] {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        nest.set(Field::CR0_GUEST_HOST_MASK, TS | MP);
        nest.set(Field::CR0_READ_SHADOW, TS);
        with(&mut nest, &[(Gpr::Rbx, value)]);
        match exits {
            Some(qualification) => {
                nest.expect(CR_ACCESS, L2);
                assert_eq!(nest.get(Field::EXIT_QUALIFICATION), qualification, "{name}");
            }
            None => {
                nest.expect(VMCALL_EXIT, L2 + code.len() as u64);
                assert_eq!(nest.get(Field::GUEST_CR0) & (TS | MP), 0, "{name}");
            }
        }
    }
}

/// "Exception Bitmap": bit 14 with mask and match of the error code; #DF and triple faults from there.
#[test]
fn page_faults_by_their_error_code() {
    // mov [rbx], eax: a write to a page that is not present, error code 2.
    let code = [0x89, 0x03];
    for (bit, mask, matching, exits) in [
        (true, 0, 0, true),
        (false, 0, 0, false),
        (true, 2, 2, true),
        (true, 2, 0, false),
        (false, 2, 0, true),
        (false, 2, 2, false),
        (true, 1, 1, false),
        (false, 0, 1, true),
    ] {
        let mut nest = Nest::new(&code);
        put(&mut nest.vm, HANDLERS + 64 * 14, &VMCALL);
        with(&mut nest, &[(Gpr::Rbx, 8 << 20)]);
        nest.set(Field::EXCEPTION_BITMAP, u64::from(bit) << 14);
        nest.set(Field::PAGE_FAULT_ERROR_CODE_MASK, mask);
        nest.set(Field::PAGE_FAULT_ERROR_CODE_MATCH, matching);
        if exits {
            nest.expect(EXCEPTION, L2);
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 0xb0e);
            assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 2);
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 8 << 20);
        } else {
            nest.expect(VMCALL_EXIT, HANDLERS + 64 * 14);
        }
    }
}

#[test]
fn double_and_triple_faults() {
    let start = || {
        // ud2, with no handler for #UD: the gate's segment is null, #GP(error code of the selector 0).
        let mut nest = Nest::new(&[0x0f, 0x0b]);
        for vector in [6, 13] {
            put(&mut nest.vm, bare::IDT + 16 * vector + 2, &[0, 0]);
        }
        nest
    };
    let mut nest = start();
    put(&mut nest.vm, HANDLERS + 64 * 8, &VMCALL);
    nest.expect(VMCALL_EXIT, HANDLERS + 64 * 8);

    let mut nest = start();
    nest.set(Field::EXCEPTION_BITMAP, 1 << 8);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 0xb08);
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0);

    let mut nest = start();
    nest.set(Field::EXCEPTION_BITMAP, 1 << 13);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 0xb0d);
    assert_eq!(
        nest.get(Field::IDT_VECTORING_INFO_FIELD),
        VALID | 3 << 8 | 6
    );

    let mut nest = start();
    put(&mut nest.vm, bare::IDT + 16 * 8 + 2, &[0, 0]);
    nest.expect(TRIPLE_FAULT, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0);
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0);
}

/// SDM Vol. 3C "Architectural State Before a VM Exit".
#[test]
fn blocking_by_mov_ss_ends_with_a_delivery_that_exits() {
    // ud2, whose gate is bad.
    for (intercepted, expected) in [(6, 2), (13, 0), (8, 0)] {
        let mut nest = Nest::new(&[0x0f, 0x0b]);
        for vector in [6, 13] {
            put(&mut nest.vm, bare::IDT + 16 * vector + 2, &[0, 0]);
        }
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, 2);
        nest.set(Field::EXCEPTION_BITMAP, 1 << intercepted);
        nest.expect(EXCEPTION, L2);
        let saved = nest.get(Field::GUEST_INTERRUPTIBILITY_INFO);
        assert_eq!(saved, expected, "vector {intercepted}");
    }
}

/// SDM Vol. 3A "Interrupt 14 -- Page-Fault Exception (#PF)": the fault that becomes a #DF has set CR2.
#[test]
fn a_double_fault_of_page_faults_leaves_the_second_address() {
    const NO_PAGE: u64 = 0x4000_0000;
    // mov al, [0x5000_0000] with the stack on a page that is not there.
    let mut nest = Nest::new(&[0xa0, 0, 0, 0, 0x50, 0, 0, 0, 0]);
    nest.set(Field::GUEST_RSP, NO_PAGE + 0x100);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 8);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 0xb08);
    let sregs = nest.state().sregs.expect("sregs");
    assert_eq!(sregs.cr2, NO_PAGE + 0xf8);
}

/// MSR-load list of VM entry: which entry failed, counted from one, and L2 has not run.
#[test]
fn msrs_that_vm_entry_does_not_load() {
    for (index, reserved) in [
        (0_u32, 0_u32),
        (0xc000_0100, 0),
        (0xc000_0101, 0),
        (0x79, 0),
        (0x8b, 0),
        (0x9b, 0),
        (0x480, 0),
        (0xc000_0102, 1),
    ] {
        let mut nest = Nest::new(&VMCALL);
        put(&mut nest.vm, PAGE, &0xc000_0102_u32.to_le_bytes());
        put(&mut nest.vm, PAGE + 8, &0x1234_u64.to_le_bytes());
        put(&mut nest.vm, PAGE + 16, &index.to_le_bytes());
        put(&mut nest.vm, PAGE + 20, &reserved.to_le_bytes());
        nest.set(Field::VM_ENTRY_MSR_LOAD_ADDR, PAGE);
        nest.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 2);
        assert_eq!(nest.enter(), Entry::Exit(MSR_LOAD_FAILURE), "{index:#x}");
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 2, "{index:#x}");
        nest.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 1);
        nest.expect(VMCALL_EXIT, L2);
    }
}

/// IA32_TIME_STAMP_COUNTER in the MSR-store list is L1's, whatever the offset makes L2 read.
#[test]
fn the_stored_tsc_is_l1s() {
    // rdtsc; vmcall
    let mut nest = Nest::new(&[&[0x0f, 0x31][..], &VMCALL].concat());
    put(&mut nest.vm, PAGE, &0x10_u32.to_le_bytes());
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::USE_TSC_OFFSETTING.bits(),
    );
    nest.set(Field::TSC_OFFSET, 1 << 30);
    nest.set(Field::VM_EXIT_MSR_STORE_ADDR, PAGE);
    nest.set(Field::VM_EXIT_MSR_STORE_COUNT, 1);
    nest.expect(VMCALL_EXIT, L2 + 2);
    let regs = nest.regs();
    let read = regs.get(Gpr::Rax) | regs.get(Gpr::Rdx) << 32;
    let mut stored = [0; 8];
    use nvmx_core::vcpu::Vm;
    nest.vm
        .read_memory(nvmx_core::addr::L1Phys(PAGE + 8), &mut stored)
        .expect("RAM");
    let stored = u64::from_le_bytes(stored);
    assert!(
        read - (1 << 30) < stored && stored < 1 << 20,
        "{read:#x} {stored:#x}"
    );
}

/// Control of L1 after an exit: LDTR null, tables' limits FFFF, DR7 400, RFLAGS clear.
#[test]
fn what_an_exit_leaves_of_l2() {
    let mut nest = Nest::new(&VMCALL);
    nest.set(Field::GUEST_LDTR_SELECTOR, 0x28);
    nest.set(Field::GUEST_LDTR_AR_BYTES, 0x82);
    nest.set(Field::GUEST_RFLAGS, 0xcd7);
    nest.expect(VMCALL_EXIT, L2);
    let state = nest.state();
    let sregs = state.sregs.expect("sregs");
    assert_eq!(sregs.ldtr.selector, 0);
    assert!(!sregs.ldtr.is_usable());
    assert_eq!((sregs.gdtr.limit, sregs.idtr.limit), (0xffff, 0xffff));
    assert_eq!(state.debug.expect("debug").dr7, 0x400);
    assert_eq!(nest.get(Field::GUEST_LDTR_SELECTOR), 0x28);
}

/// INTO and INT3 are exceptions of their own kind, INT n never exits.
#[test]
fn software_exceptions_in_compatibility_mode() {
    let start = |code: &[u8]| {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        nest.set(Field::GUEST_CS_SELECTOR, 0x18);
        nest.set(Field::GUEST_CS_AR_BYTES, 0xc09b);
        nest.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
        nest
    };
    // mov eax, 0x7fffffff; add eax, eax; into
    let code = [0xb8, 0xff, 0xff, 0xff, 0x7f, 0x01, 0xc0, 0xce];
    let mut nest = start(&code);
    nest.expect(EXCEPTION, L2 + 7);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 6 << 8 | 4);
    assert_eq!(nest.get(Field::VM_EXIT_INSTRUCTION_LEN), 1);
    let mut nest = start(&[0xcc]);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 6 << 8 | 3);
    let mut nest = start(&[0xcd, 0x03]);
    put(&mut nest.vm, HANDLERS + 64 * 3, &VMCALL);
    nest.expect(VMCALL_EXIT, HANDLERS + 64 * 3);
    // VMCALL in compatibility mode is an exit like any other.
    let mut nest = start(&[]);
    nest.expect(VMCALL_EXIT, L2);
    // A linear address has 32 bits there, whatever base and EIP add up to.
    let mut nest = start(&[]);
    nest.set(Field::GUEST_CS_BASE, 0xffff_f000);
    nest.set(Field::GUEST_RIP, L2 + 0x1000);
    nest.expect(VMCALL_EXIT, L2 + 0x1000);
}
