//! Accesses to the APIC-access page (SDM Vol. 3C "Virtualizing Memory-Mapped APIC Accesses"), by
//! instructions, by the delivery of events and by page walks, with EPT and without.

mod common;

use common::bare::*;
use common::nest::*;
use common::virtual_apic::*;
use iced_x86::code_asm::*;
use nvmx_core::vcpu::Vcpu;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::apic_virtualization::{AccessKind, ApicVirtualization};
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::{CpuState, Gpr};

const RESUME_FLAG: u64 = 1 << 16;
const PATTERN: u64 = 0x1122_3344_5566_7788;

/// Access types in the exit qualification.
const READ: u64 = 0;
const WRITE: u64 = 1 << 12;
const FETCH: u64 = 2 << 12;
const DELIVERY: u64 = 3 << 12;
const PHYSICAL_DELIVERY: u64 = 10 << 12;
const PHYSICAL: u64 = 15 << 12;

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// MOV of each size, to and from [RBX]. Each is followed by VMCALL.
const MOVES: [(AccessKind, usize, Build); 8] = [
    (AccessKind::Read, 1, |a| a.mov(al, byte_ptr(rbx))),
    (AccessKind::Read, 2, |a| a.mov(ax, word_ptr(rbx))),
    (AccessKind::Read, 4, |a| a.mov(eax, dword_ptr(rbx))),
    (AccessKind::Read, 8, |a| a.mov(rax, qword_ptr(rbx))),
    (AccessKind::Write, 1, |a| a.mov(byte_ptr(rbx), al)),
    (AccessKind::Write, 2, |a| a.mov(word_ptr(rbx), ax)),
    (AccessKind::Write, 4, |a| a.mov(dword_ptr(rbx), eax)),
    (AccessKind::Write, 8, |a| a.mov(qword_ptr(rbx), rax)),
];

/// The sets of controls, by bits: no TPR shadow, APIC-register virtualization, virtual-interrupt
/// delivery. VM entry takes the last two only with a TPR shadow.
const CONTROLS: [u32; 5] = [0, 1, 3, 5, 7];

fn configure(nest: &mut Nest, controls: u32) {
    let mut secondary = Secondary::VIRTUALIZE_APIC_ACCESSES;
    if controls & 2 != 0 {
        secondary |= Secondary::APIC_REGISTER_VIRTUALIZATION;
    }
    if controls & 4 != 0 {
        secondary |= Secondary::VIRTUAL_INTERRUPT_DELIVERY;
    }
    let ept = nest.get(Field::SECONDARY_VM_EXEC_CONTROL) & u64::from(Secondary::ENABLE_EPT.bits());
    nest.set(
        Field::SECONDARY_VM_EXEC_CONTROL,
        ept | u64::from(secondary.bits()),
    );
    nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, 1);
    if controls & 1 != 0 {
        nest.on(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::USE_TPR_SHADOW.bits(),
        );
    } else {
        nest.off(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::USE_TPR_SHADOW.bits(),
        );
    }
}

/// One access of L2 to `address`, which is on the access page at `offset`.
fn access(nest: &mut Nest, index: usize, address: u64, offset: u64, place: &str) {
    let (kind, size, build) = MOVES[index];
    let rip = L2 + 0x20 * index as u64;
    let length = assemble(rip, build).len() as u64;
    nest.put(VIRTUAL_APIC + (offset & !7), &[0xa5; 16]);
    nest.set(Field::GUEST_RIP, rip);
    nest.set(Field::GUEST_INTR_STATUS, 0);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.set_gpr(Gpr::Rbx, address);
    nest.set_gpr(Gpr::Rax, PATTERN);
    let apic = ApicVirtualization::new(&nest.vmcs12);
    let entry = nest.enter();
    let (value, now) = (nest.gpr(Gpr::Rax), nest.get(Field::GUEST_RIP));
    if !apic.virtualizes(kind, offset as u16, size, None) {
        let access = if kind == AccessKind::Read {
            READ
        } else {
            WRITE
        };
        assert_eq!(entry, Entry::Exit(reason::APIC_ACCESS), "{place}");
        assert_eq!(
            nest.get(Field::EXIT_QUALIFICATION),
            access | offset,
            "{place}"
        );
        assert_eq!((now, value), (rip, PATTERN), "{place}");
        assert_eq!(nest.get(Field::VM_EXIT_INSTRUCTION_LEN), length, "{place}");
        assert_eq!(
            nest.get(Field::GUEST_RFLAGS) & RESUME_FLAG,
            RESUME_FLAG,
            "{place}"
        );
        return;
    }
    let mask = (1_u64 << (8 * size)) - 1;
    if kind == AccessKind::Read {
        assert_eq!(entry, Entry::Exit(reason::VMCALL), "{place}");
        let kept = if size == 4 { 0 } else { PATTERN & !mask };
        assert_eq!(value, kept | 0xa5a5_a5a5 & mask, "{place}");
        return;
    }
    // What an exit tells of a virtualized write is told by core's tests, for each register.
    let exits = match entry {
        Entry::Exit(reason::VMCALL) => false,
        Entry::Exit(reason::APIC_WRITE) => {
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), offset, "{place}");
            true
        }
        other => panic!("{place}: {other:?}"),
    };
    assert_eq!(now, rip + length, "{place}");
    let quiet = offset == 0x80 || offset & !3 == 0x310 || offset == 0xb0 && apic.delivery;
    assert_eq!(exits, !quiet, "{place}");
    let mut merged = 0xa5a5_a5a5_u32.to_le_bytes();
    let at = (offset & 3) as usize;
    merged[at..at + size].copy_from_slice(&PATTERN.to_le_bytes()[..size]);
    let stored = u32::from_le_bytes(merged)
        & match offset & !3 {
            0x80 if offset == 0x80 => 0xff,
            0xb0 if !exits => 0,
            0x310 => 0xff00_0000,
            _ => u32::MAX,
        };
    assert_eq!(nest.apic(offset & !3), stored, "{place}");
}

fn every_access(nest: &mut Nest, address: u64, offsets: &[u64]) {
    for (index, (.., build)) in MOVES.iter().enumerate() {
        let rip = L2 + 0x20 * index as u64;
        let code = assemble(rip, |a| {
            build(a)?;
            a.vmcall()
        });
        nest.put(rip, &code);
    }
    for controls in CONTROLS {
        configure(nest, controls);
        for &offset in offsets {
            for (index, (kind, ..)) in MOVES.iter().enumerate() {
                let place = format!("controls {controls}, {kind:?} at {offset:#x}");
                access(nest, index, address + offset, offset, &place);
            }
        }
    }
}

#[test]
fn every_register_size_and_set_of_controls() {
    let mut nest = nest(&VMCALL, Secondary::empty());
    let registers = (0..0x400).step_by(16);
    let offsets: Vec<u64> = registers
        .flat_map(|register| [0, 1, 2, 3, 4, 8, 12].map(|more| register + more))
        .chain([0x400, 0x480, 0x880, 0xff0, 0xff8])
        .collect();
    every_access(&mut nest, ACCESS, &offsets);
}

/// A few registers, and some that are none.
const SOME: [u64; 8] = [0x20, 0x80, 0x83, 0xa0, 0xb0, 0x300, 0x310, 0x390];

#[test]
fn the_page_counts_behind_ept_in_pages_of_any_size() {
    for leaf in [None, Some(ACCESS | 0x37)] {
        let mut nest = nest(&VMCALL, Secondary::empty());
        nest.enable_ept(leaf);
        every_access(&mut nest, ACCESS, &SOME);
    }
    // An instruction that reads and writes tells EPT of both, and comes before the exit.
    let code = assemble(L2, |a| {
        a.xchg(dword_ptr(rbx), eax)?;
        a.vmcall()
    });
    for (leaf, offset, expected) in [
        (ACCESS | 0x31, 0x90, reason::EPT_VIOLATION),
        (ACCESS | 0x37, 0x90, reason::APIC_ACCESS),
        (ACCESS | 0x37, 0x80, reason::VMCALL),
    ] {
        let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
        nest.enable_ept(Some(leaf));
        nest.set_apic(0x80, 0x1234_5678);
        nest.set_gpr(Gpr::Rbx, ACCESS + offset);
        nest.set_gpr(Gpr::Rax, 0x90);
        assert_eq!(nest.enter(), Entry::Exit(expected));
        match expected {
            reason::EPT_VIOLATION => assert_eq!(nest.get(Field::EXIT_QUALIFICATION) & 7, 3),
            reason::VMCALL => {
                assert_eq!(nest.gpr(Gpr::Rax), 0x1234_5678);
                assert_eq!(nest.apic(0x80), 0x90);
            }
            _ => {}
        }
    }
    // Elsewhere in L2's physical memory; what L2 has at the page's own number is plain memory.
    let mut nest = nest(&VMCALL, Secondary::empty());
    nest.enable_ept(Some(PAGE | 0x37));
    nest.put(
        EPT + 0x3000 + PAGE / 0x1000 * 8,
        &(ACCESS | 0x37).to_le_bytes(),
    );
    every_access(&mut nest, PAGE, &SOME);
    nest.put(PAGE, &[0x77; 4]);
    nest.set(Field::GUEST_RIP, L2 + 0x40);
    nest.set_gpr(Gpr::Rbx, ACCESS);
    assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL));
    assert_eq!(nest.gpr(Gpr::Rax), 0x7777_7777);
    // EPT's rights go first.
    nest.put(
        EPT + 0x3000 + PAGE / 0x1000 * 8,
        &(ACCESS | 0x31).to_le_bytes(),
    );
    for (index, expected) in [(2, reason::VMCALL), (6, reason::EPT_VIOLATION)] {
        nest.set(Field::GUEST_RIP, L2 + 0x20 * index);
        nest.set_gpr(Gpr::Rbx, PAGE + 0x80);
        assert_eq!(nest.enter(), Entry::Exit(expected));
    }
}

/// Instructions beside MOV with RBX at an offset, and the qualification of their exit; `None`: it runs.
const OTHERS: [(&str, u64, Option<u64>, Build); 26] = [
    ("MOVAPS load", 0x80, Some(READ), |a| {
        a.movaps(xmm0, xmmword_ptr(rbx))
    }),
    ("MOVAPS store", 0x80, Some(WRITE), |a| {
        a.movaps(xmmword_ptr(rbx), xmm0)
    }),
    ("FXSAVE", 0x400, Some(WRITE), |a| a.fxsave(ptr(rbx))),
    ("PUSH m", 0x90, Some(READ), |a| a.push(qword_ptr(rbx))),
    ("POP m", 0x90, Some(WRITE), |a| a.pop(qword_ptr(rbx))),
    ("CALL m", 0x90, Some(READ), |a| a.call(qword_ptr(rbx))),
    ("INC", 0x90, Some(READ), |a| a.inc(dword_ptr(rbx))),
    ("LOCK XADD", 0x90, Some(READ), |a| {
        a.lock().xadd(dword_ptr(rbx), eax)
    }),
    ("CMPXCHG16B", 0x80, Some(READ), |a| {
        a.lock().cmpxchg16b(xmmword_ptr(rbx))
    }),
    ("LMSW", 0x90, Some(READ), |a| a.lmsw(word_ptr(rbx))),
    ("SMSW", 0x90, Some(WRITE), |a| a.smsw(word_ptr(rbx))),
    ("SGDT", 0x80, Some(WRITE), |a| a.sgdt(ptr(rbx))),
    ("RCL", 0x90, Some(READ), |a| a.rcl(dword_ptr(rbx), 1)),
    ("SETB", 0x90, Some(WRITE), |a| a.setb(byte_ptr(rbx))),
    ("RCL", 0x80, None, |a| a.rcl(dword_ptr(rbx), 1)),
    ("SETB", 0x80, None, |a| a.setb(byte_ptr(rbx))),
    ("XCHG", 0x90, Some(READ), |a| a.xchg(dword_ptr(rbx), eax)),
    ("XCHG", 0x80, None, |a| a.xchg(dword_ptr(rbx), eax)),
    ("XOR", 0x80, None, |a| a.xor(eax, dword_ptr(rbx))),
    ("straddling load", 0xffe, Some(READ), |a| {
        a.mov(eax, dword_ptr(rbx))
    }),
    ("MOVZX", 0x80, None, |a| a.movzx(eax, byte_ptr(rbx))),
    ("MOVSX", 0x80, None, |a| a.movsx(eax, byte_ptr(rbx))),
    ("TEST", 0x80, None, |a| a.test(dword_ptr(rbx), eax)),
    ("AND", 0x80, None, |a| a.and(dword_ptr(rbx), 0xf0)),
    ("OR", 0x80, None, |a| a.or(dword_ptr(rbx), 1)),
    ("LMSW", 0x80, None, |a| a.lmsw(word_ptr(rbx))),
];

#[test]
fn instructions_of_all_kinds() {
    for (name, offset, expected, build) in OTHERS {
        let code = assemble(L2, |a| {
            build(a)?;
            a.vmcall()
        });
        let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
        nest.on(Field::GUEST_CR4, 1 << 9);
        nest.set_gpr(Gpr::Rbx, ACCESS + offset);
        // Protection is on and stays on.
        nest.set_apic(0x80, 0x31);
        let entry = nest.enter();
        let qualification = nest.get(Field::EXIT_QUALIFICATION);
        match expected {
            Some(access) => {
                assert_eq!(entry, Entry::Exit(reason::APIC_ACCESS), "{name}");
                assert_eq!(qualification, access | offset, "{name}");
                assert_eq!(nest.get(Field::GUEST_RIP), L2, "{name}");
                assert_eq!(nest.get(Field::GUEST_RSP), L2_STACK, "{name}");
            }
            None => assert_eq!(entry, Entry::Exit(reason::VMCALL), "{name}"),
        }
    }
}

#[test]
fn an_access_that_reaches_into_the_page_exits_there() {
    let code = assemble(L2, |a| a.mov(dword_ptr(rbx), eax));
    let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.set_gpr(Gpr::Rbx, ACCESS - 2);
    nest.put(ACCESS - 4, &[0x55; 4]);
    nest.expect(reason::APIC_ACCESS, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), WRITE);
    assert_eq!(nest.word(ACCESS - 4), 0x5555_5555);
}

#[test]
fn a_string_instruction_stops_at_the_iteration_that_exits() {
    let code = assemble(L2, |a| a.rep().stosd());
    let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.set_gpr(Gpr::Rdi, ACCESS - 8);
    nest.set_gpr(Gpr::Rcx, 5);
    nest.set_gpr(Gpr::Rax, 0x1234_5678);
    nest.expect(reason::APIC_ACCESS, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), WRITE);
    assert_eq!((nest.gpr(Gpr::Rdi), nest.gpr(Gpr::Rcx)), (ACCESS, 3));
    assert_eq!(nest.word(ACCESS - 4), 0x1234_5678);
}

#[test]
fn fetches_exit() {
    let code = assemble(L2, |a| a.jmp(rbx));
    for (offset, first, qualification) in
        [(0x80, 0x80, FETCH | 0x80), (0xffe, 0xffe, FETCH | 0xffe)]
    {
        let mut nest = nest(
            &code,
            Secondary::VIRTUALIZE_APIC_ACCESSES | Secondary::APIC_REGISTER_VIRTUALIZATION,
        );
        nest.set_gpr(Gpr::Rbx, ACCESS + offset);
        nest.expect(reason::APIC_ACCESS, ACCESS + first);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), qualification);
    }
    // The instruction begins before the page: MOV RAX, imm64 of 10 bytes.
    let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.put(ACCESS - 3, &[0x48, 0xb8, 0x11]);
    nest.set_gpr(Gpr::Rbx, ACCESS - 3);
    nest.expect(reason::APIC_ACCESS, ACCESS - 3);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), FETCH);
}

/// Valid, software interrupt, vector 21H.
const VECTORING: u64 = 1 << 31 | 4 << 8 | 0x21;

#[test]
fn delivery_of_an_event_exits_as_such() {
    let code = assemble(L2, |a| a.int(0x21));
    for (page, stack, offset) in [
        (IDT, L2_STACK, 0x210),
        (GDT, L2_STACK, 8),
        // SS is pushed first.
        (ACCESS, ACCESS + 0x800, 0x7f8),
    ] {
        let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
        nest.set(Field::APIC_ACCESS_ADDR, page);
        nest.set(Field::GUEST_RSP, stack);
        nest.expect(reason::APIC_ACCESS, L2);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), DELIVERY | offset);
        assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), VECTORING);
        assert_eq!(nest.get(Field::VM_EXIT_INSTRUCTION_LEN), 2);
        assert_eq!(nest.get(Field::GUEST_RFLAGS) & RESUME_FLAG, 0);
        assert_eq!(nest.get(Field::GUEST_RSP), stack);
    }
}

/// Maps the second 2 MiB of linear memory by 4 KiB, with the table on the APIC-access page.
fn with_table_on_the_page(code: &[u8]) -> Nest {
    let mut nest = nest(code, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.put(PAGING + 0x2008, &(ACCESS | 7).to_le_bytes());
    nest.put(ACCESS + 8 * 5, &(PAGE | 0x67).to_le_bytes());
    nest.put(ACCESS + 8 * 6, &(IDT | 0x67).to_le_bytes());
    nest
}

#[test]
fn a_page_walk_is_a_guest_physical_access_under_ept() {
    const LINEAR: u64 = 0x20_0000;
    let load = assemble(L2, |a| {
        a.mov(eax, dword_ptr(rbx))?;
        a.vmcall()
    });
    // Without EPT it is a physical access, which need not exit: the memory is read.
    let mut nest = with_table_on_the_page(&load);
    nest.put(PAGE, &[0x99; 4]);
    nest.set_gpr(Gpr::Rbx, LINEAR + 0x5000);
    assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL));
    assert_eq!(nest.gpr(Gpr::Rax), 0x9999_9999);

    let mut nest = with_table_on_the_page(&load);
    nest.enable_ept(None);
    nest.set_gpr(Gpr::Rbx, LINEAR + 0x5000);
    nest.expect(reason::APIC_ACCESS, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION) & !0xfff, PHYSICAL);

    let mut nest = with_table_on_the_page(&assemble(L2, |a| a.int(0x21)));
    nest.enable_ept(None);
    nest.set(Field::GUEST_IDTR_BASE, LINEAR + 0x6000);
    nest.expect(reason::APIC_ACCESS, L2);
    assert_eq!(
        nest.get(Field::EXIT_QUALIFICATION) & !0xfff,
        PHYSICAL_DELIVERY
    );
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), VECTORING);
}

#[test]
fn a_page_fault_goes_before_the_exit() {
    let code = assemble(L2, |a| a.mov(dword_ptr(rbx), eax));
    let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
    // Read-only for L2.
    nest.put(PAGING + 0x2008, &(EPT | 7).to_le_bytes());
    nest.put(EPT, &(ACCESS | 1).to_le_bytes());
    nest.on(Field::GUEST_CR0, 1 << 16);
    nest.on(Field::EXCEPTION_BITMAP, 1 << 14);
    nest.set_gpr(Gpr::Rbx, 0x20_0080);
    nest.expect(reason::EXCEPTION, L2);
    // Allowed, it sets the dirty flag and then exits.
    nest.put(EPT, &(ACCESS | 3).to_le_bytes());
    nest.set_gpr(Gpr::Rbx, 0x20_0090);
    nest.expect(reason::APIC_ACCESS, L2);
    assert_eq!(nest.word(EPT) as u64, ACCESS | 0x63);
}

/// Any instruction, anywhere around the page, under any controls: it ends in an exit or in a word on
/// what is missing, and in the same way twice.
#[test]
fn whatever_touches_the_page_ends_well() {
    let mut random = Random(44);
    for round in 0..cases(300) {
        let controls = CONTROLS[random.below(5) as usize];
        let code: Vec<u8> = random.bytes(32);
        let pointers: Vec<u64> = (0..16)
            .map(|_| match random.below(4) {
                0 => ACCESS + random.below(0x1000),
                1 => ACCESS + 16 * random.below(0x40),
                2 => ACCESS - 8 + random.below(16),
                _ => random.odd(),
            })
            .collect();
        let threshold = random.below(16);
        let status = random.next() & 0xffff;
        let flags = 2 | random.next() & 0x4_0ed5;
        let run = || {
            let mut nest = nest(&code, Secondary::VIRTUALIZE_APIC_ACCESSES);
            configure(&mut nest, controls);
            nest.set(Field::TPR_THRESHOLD, threshold);
            nest.set(Field::GUEST_INTR_STATUS, status);
            nest.set(Field::GUEST_RFLAGS, flags);
            nest.set(Field::EXCEPTION_BITMAP, u32::MAX.into());
            nest.set(Field::GUEST_RSP, pointers[4]);
            let mut regs = nest.regs();
            regs.gpr.copy_from_slice(&pointers);
            nest.set_state(CpuState {
                regs: Some(regs),
                ..CpuState::default()
            });
            let exit = nest.enter_for(2000);
            let nested = nest.vm.nested_state().expect("nested state");
            (exit, nest.regs(), nested.to_bytes())
        };
        assert!(run() == run(), "round {round}: {code:x?}");
    }
}
