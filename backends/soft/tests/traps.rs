//! The monitor trap flag, single steps and pending debug exceptions of L2, and which of them comes first
//! (SDM Vol. 3C "Monitor Trap Flag", "Delivery of Pending Debug Exceptions after VM Entry", Vol. 3A
//! "Priority Among Concurrent Events").

mod common;

use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::{CpuState, DebugRegs};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const MTF: u32 = 37;
const VALID: u64 = 1 << 31;
const HARDWARE_EXCEPTION: u64 = 3 << 8;
/// Bits of DR6 and of the pending debug exceptions.
const B0: u64 = 1;
const ENABLED: u64 = 1 << 12;
const BS: u64 = 1 << 14;
const TF: u64 = 0x100;
const DR6_IDLE: u64 = 0xffff_0ff0;
const MOV_SS: u64 = 2;
const STI: u64 = 1;

fn handler(vector: u64) -> u64 {
    HANDLERS + 64 * vector
}

fn mtf(nest: &mut Nest) {
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MONITOR_TRAP_FLAG.bits(),
    );
}

fn inject(nest: &mut Nest, information: u64) {
    nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, VALID | information);
}

fn dr6(nest: &mut Nest) -> u64 {
    nest.state().debug.expect("debug registers").dr6
}

fn set_dr6(nest: &mut Nest, dr6: u64) {
    nest.set_state(CpuState {
        debug: Some(DebugRegs {
            dr6,
            dr7: 0x400,
            ..DebugRegs::default()
        }),
        ..CpuState::default()
    });
}

/// One instruction an entry, whatever kind of instruction it is.
#[test]
fn the_monitor_trap_flag_exits_behind_each_instruction() {
    let rows: [(&str, &[u8]); 10] = [
        ("NOP", &[0x90]),
        ("OUT", &[0xe6, 0x80]),
        ("CLI", &[0xfa]),
        ("MOV SS", &[0x8e, 0xd0]),
        ("RDTSC", &[0x0f, 0x31]),
        ("WBINVD", &[0x0f, 0x09]),
        ("MOV from CR3", &[0x0f, 0x20, 0xd8]),
        ("PUSHF", &[0x9c]),
        ("JMP", &[0xeb, 0x00]),
        ("MOV to CR3", &[0x0f, 0x22, 0xdb]),
    ];
    for (name, bytes) in rows {
        let mut nest = Nest::new(&[bytes, &[0x90], &VMCALL[..]].concat());
        let mut regs = nest.regs();
        regs.gpr[0] = 0x10;
        regs.gpr[3] = common::bare::PAGING;
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        mtf(&mut nest);
        assert_eq!(nest.enter(), Entry::Exit(MTF), "{name}");
        assert_eq!(
            nest.get(Field::GUEST_RIP),
            L2 + bytes.len() as u64,
            "{name}"
        );
        nest.expect(MTF, L2 + bytes.len() as u64 + 1);
        // An instruction that exits is no boundary.
        nest.expect(VMCALL_EXIT, L2 + bytes.len() as u64 + 1);
    }
}

/// A repeated string instruction: behind each iteration.
#[test]
fn the_monitor_trap_flag_exits_between_iterations() {
    let mut nest = Nest::new(&[&[0xf3, 0xaa][..], &VMCALL].concat());
    let mut regs = nest.regs();
    regs.gpr[1] = 3;
    regs.gpr[7] = PAGE;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    mtf(&mut nest);
    nest.expect(MTF, L2);
    assert_eq!(nest.regs().gpr[1], 2);
    nest.expect(MTF, L2);
    assert_eq!(nest.regs().gpr[1], 1);
    // The last one ends the instruction.
    nest.expect(MTF, L2 + 2);
    assert_eq!(nest.regs().gpr[1], 0);
    nest.expect(VMCALL_EXIT, L2 + 2);
}

/// A count of zero is an instruction like another.
#[test]
fn a_repetition_of_nothing_is_one_step() {
    for tf in [false, true] {
        let mut nest = Nest::new(&[&[0xf3, 0xaa, 0x90][..], &VMCALL].concat());
        let mut regs = nest.regs();
        regs.gpr[1] = 0;
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        if tf {
            nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
            nest.set(Field::GUEST_RFLAGS, 2 | TF);
        } else {
            mtf(&mut nest);
        }
        let reason = if tf { EXCEPTION } else { MTF };
        nest.expect(reason, L2 + 2);
        nest.expect(reason, L2 + 3);
    }
}

/// A fault is delivered, an injected event too, and the exit comes before the handler's first
/// instruction.
#[test]
fn the_monitor_trap_flag_exits_behind_a_delivery() {
    // mov cr3, rax with a non-canonical value: #GP(0).
    let mut nest = Nest::new(&[0x0f, 0x22, 0xd8]);
    let mut regs = nest.regs();
    regs.gpr[0] = 0xaaaa_aaaa_aaaa_aaaa;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    mtf(&mut nest);
    nest.expect(MTF, handler(13));

    for (name, code, vector) in [
        ("INT1", &[0xf1][..], 1),
        ("INT3", &[0xcc], 3),
        ("INT", &[0xcd, 0x50], 0x50),
        ("UD2", &[0x0f, 0x0b], 6),
    ] {
        let mut nest = Nest::new(code);
        mtf(&mut nest);
        assert_eq!(nest.enter(), Entry::Exit(MTF), "{name}");
        assert_eq!(nest.get(Field::GUEST_RIP), handler(vector), "{name}");
    }
    for information in [HARDWARE_EXCEPTION | 6, 2 << 8 | 2, HARDWARE_EXCEPTION | 1] {
        let mut nest = Nest::new(&VMCALL);
        mtf(&mut nest);
        inject(&mut nest, information);
        nest.expect(MTF, handler(information & 0xff));
    }
}

/// "Injection of Pending MTF VM Exits": before the first instruction, whatever the control says.
#[test]
fn an_injected_monitor_trap_exits_at_once() {
    let mut nest = Nest::new(&[&[0x90][..], &VMCALL].concat());
    inject(&mut nest, 7 << 8);
    nest.expect(MTF, L2);
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0);
    nest.expect(VMCALL_EXIT, L2 + 1);
}

/// The monitor trap comes before the single-step trap, which stays pending.
#[test]
fn a_single_step_waits_behind_the_monitor_trap() {
    for code in [&[0x90, 0x90][..], &[0x0f, 0x09, 0x90], &[0xe6, 0x80, 0x90]] {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        mtf(&mut nest);
        nest.set(Field::GUEST_RFLAGS, 2 | TF);
        let next = L2 + code.len() as u64 - 1;
        assert_eq!(nest.enter(), Entry::Exit(MTF));
        assert_eq!(nest.get(Field::GUEST_RIP), next);
        assert_eq!(nest.get(Field::GUEST_PENDING_DBG_EXCEPTIONS) & BS, BS);
        nest.off(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::MONITOR_TRAP_FLAG.bits(),
        );
        nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
        nest.expect(EXCEPTION, next);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), BS);
    }
}

/// A #DB that L1 takes tells of its causes in the qualification, leaves DR6 alone and nothing pending
/// (SDM Vol. 3C, table "Exit Qualification for Debug Exceptions").
#[test]
fn an_intercepted_single_step_leaves_dr6_alone() {
    let start = DR6_IDLE | BS | 0xa;
    for instruction in [
        &[0x90][..],
        &[0x0f, 0x09],
        &[0x0f, 0x31],
        &[0x0f, 0x20, 0xd8],
    ] {
        for behind_mov_ss in [false, true] {
            let mut nest = Nest::new(&[instruction, &VMCALL].concat());
            set_dr6(&mut nest, start);
            nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
            nest.set(Field::GUEST_RFLAGS, 2 | TF);
            if behind_mov_ss {
                nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, BS | ENABLED | B0);
                nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, MOV_SS);
            }
            nest.expect(EXCEPTION, L2 + instruction.len() as u64);
            assert_eq!(
                nest.get(Field::VM_EXIT_INTR_INFO),
                VALID | HARDWARE_EXCEPTION | 1
            );
            let expected = if behind_mov_ss { BS | B0 } else { BS };
            assert_eq!(
                nest.get(Field::EXIT_QUALIFICATION),
                expected,
                "{instruction:x?}"
            );
            assert_eq!(nest.get(Field::GUEST_PENDING_DBG_EXCEPTIONS), 0);
            assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), 0);
            assert_eq!(dr6(&mut nest), start);
        }
    }
}

/// A repeated string instruction traps behind each iteration (SDM Vol. 3B "Single-Step Exception
/// Condition").
#[test]
fn a_single_step_stops_between_iterations() {
    let mut nest = Nest::new(&[&[0xf3, 0xaa, 0x90][..], &VMCALL].concat());
    let mut regs = nest.regs();
    regs.gpr[1] = 3;
    regs.gpr[7] = PAGE;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
    nest.set(Field::GUEST_RFLAGS, 2 | TF);
    for left in [2, 1] {
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.regs().gpr[1], left);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), BS);
    }
    nest.expect(EXCEPTION, L2 + 2);
    assert_eq!(nest.regs().gpr[1], 0);
    nest.expect(EXCEPTION, L2 + 3);
}

/// Delivered to L2 it sets DR6, and the handler runs with TF clear.
#[test]
fn a_single_step_of_l2_reaches_its_handler() {
    let mut nest = Nest::new(&[&[0x90][..], &VMCALL].concat());
    put_vmcall(&mut nest, 1);
    nest.set(Field::GUEST_RFLAGS, 2 | TF);
    nest.expect(VMCALL_EXIT, handler(1));
    assert_eq!(dr6(&mut nest) & (BS | 0xf), BS);
    assert_eq!(nest.get(Field::GUEST_RFLAGS) & TF, 0);
}

fn put_vmcall(nest: &mut Nest, vector: u64) {
    common::bare::put(&mut nest.vm, handler(vector), &VMCALL);
}

/// Pending debug exceptions are delivered before L2's first instruction, unless MOV SS blocks.
#[test]
fn pending_debug_exceptions_come_first() {
    // B0 alone is not enabled: nothing happens.
    for (pending, taken) in [(ENABLED | B0, true), (BS, true), (B0, false)] {
        let mut nest = Nest::new(&[&[0x90][..], &VMCALL].concat());
        nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
        nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, pending);
        if taken {
            nest.expect(EXCEPTION, L2);
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), pending & !ENABLED);
        } else {
            nest.expect(VMCALL_EXIT, L2 + 1);
        }
    }
    let mut nest = Nest::new(&[&[0x90][..], &VMCALL].concat());
    nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
    nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, ENABLED | B0);
    nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, MOV_SS);
    nest.expect(EXCEPTION, L2 + 1);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), B0);
}

/// "There are no pending debug exceptions after VM entry" if it injects an exception, an NMI or an
/// interrupt; and none behind a software interrupt unless MOV SS blocked.
#[test]
fn an_injected_event_swallows_pending_debug_exceptions() {
    const SOFTWARE_INTERRUPT: u64 = 4 << 8;
    for (information, interruptibility, kept) in [
        (HARDWARE_EXCEPTION | 6, 0, false),
        (HARDWARE_EXCEPTION | 6, MOV_SS, false),
        (2 << 8 | 2, 0, false),
        (0x55, 0, false),
        (6 << 8 | 3, 0, false),
        (SOFTWARE_INTERRUPT | 0x55, 0, false),
        (SOFTWARE_INTERRUPT | 0x55, MOV_SS, true),
        (5 << 8 | 1, 0, false),
        (5 << 8 | 1, MOV_SS, true),
    ] {
        let mut nest = Nest::new(&VMCALL);
        let vector = information & 0xff;
        put_vmcall(&mut nest, vector);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
        nest.set(Field::GUEST_RFLAGS, 0x202);
        nest.set(Field::VM_ENTRY_INSTRUCTION_LEN, 1);
        nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, ENABLED | B0);
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, interruptibility);
        inject(&mut nest, information);
        let reason = if kept { EXCEPTION } else { VMCALL_EXIT };
        assert_eq!(
            nest.enter(),
            Entry::Exit(reason),
            "{information:#x} {interruptibility}"
        );
        assert_eq!(
            nest.get(Field::GUEST_RIP),
            handler(vector),
            "{information:#x}"
        );
    }
}

/// STI's shadow holds off no debug trap.
#[test]
fn a_single_step_behind_sti_is_taken() {
    let mut nest = Nest::new(&[&[0xfb, 0x90][..], &VMCALL].concat());
    nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
    nest.set(Field::GUEST_RFLAGS, 2 | TF);
    nest.expect(EXCEPTION, L2 + 1);
    assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), STI);
}

/// MOV SS with RFLAGS.IF set holds a single step off, STI does not; an exit in the shadow tells which it was.
#[test]
fn the_two_shadows_are_told_apart() {
    const MOV_SS_AX: [u8; 2] = [0x8e, 0xd0];
    let start = |code: &[u8], flags| {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        let mut regs = nest.regs();
        regs.gpr[0] = 0x10;
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        nest.set(Field::GUEST_RFLAGS, flags);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
        nest
    };
    for flags in [2, 0x202] {
        let mut nest = start(&MOV_SS_AX, flags);
        nest.expect(VMCALL_EXIT, L2 + 2);
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), MOV_SS);
        // The trap of MOV SS itself waits for the end of the next instruction.
        let mut nest = start(&[&MOV_SS_AX[..], &[0x90]].concat(), flags | TF);
        nest.expect(EXCEPTION, L2 + 3);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), BS);
    }
    let mut nest = start(&[0xfb], 2);
    nest.expect(VMCALL_EXIT, L2 + 1);
    assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), STI);
    // What an entry brings stays what it is.
    for shadow in [STI, MOV_SS] {
        let mut nest = start(&[], 0x202);
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, shadow);
        nest.expect(VMCALL_EXIT, L2);
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), shadow);
    }
}

/// MOV CR0 that turns PAE paging on loads the PDPTEs, and an exit saves them (SDM Vol. 3C "Saving
/// Control Registers, Debug Registers, and MSRs").
#[test]
fn pdptes_loaded_by_l2_reach_the_vmcs() {
    use common::bare::{PAGING, put};
    // mov cr0, rax; vmcall: the same bytes in 32-bit code.
    let mut nest = Nest::new(&[&[0x0f, 0x22, 0xc0][..], &VMCALL].concat());
    // EPT: 2 MiB of identity.
    let (pml4, pdpt, pd) = (PAGE, PAGE2, PAGE2 + 0x1000);
    put(&mut nest.vm, pml4, &(pdpt | 7).to_le_bytes());
    put(&mut nest.vm, pdpt, &(pd | 7).to_le_bytes());
    put(&mut nest.vm, pd, &0xb7_u64.to_le_bytes());
    let pdptes = [PAGING + 0x2001, 0, PAGING + 0x2001, 0];
    for (index, entry) in pdptes.iter().enumerate() {
        put(
            &mut nest.vm,
            PAGING + 0x3f00 + 8 * index as u64,
            &entry.to_le_bytes(),
        );
    }
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.on(
        Field::SECONDARY_VM_EXEC_CONTROL,
        (Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST).bits(),
    );
    nest.set(Field::EPT_POINTER, pml4 | 0x1e);
    let cr0 = nest.get(Field::GUEST_CR0);
    nest.set(Field::GUEST_CR0, cr0 & !(1 << 31));
    nest.off(Field::VM_ENTRY_CONTROLS, 1 << 9);
    nest.on(Field::VM_ENTRY_CONTROLS, 1 << 15);
    nest.set(Field::GUEST_IA32_EFER, 0);
    nest.set(Field::GUEST_CS_AR_BYTES, 0xc09b);
    nest.set(Field::GUEST_CR3, PAGING + 0x3f00);
    let mut regs = nest.regs();
    regs.gpr[0] = cr0;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    mtf(&mut nest);
    nest.expect(MTF, L2 + 3);
    for (field, expected) in [
        (Field::GUEST_PDPTR0, pdptes[0]),
        (Field::GUEST_PDPTR1, pdptes[1]),
        (Field::GUEST_PDPTR2, pdptes[2]),
        (Field::GUEST_PDPTR3, pdptes[3]),
    ] {
        assert_eq!(nest.get(field), expected, "{field}");
    }
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MONITOR_TRAP_FLAG.bits(),
    );
    nest.expect(VMCALL_EXIT, L2 + 3);
}

/// BTF is kept where the SDM speaks; a single step under it is what the model has not been taught.
#[test]
fn single_steps_of_branches_are_refused() {
    use nvmx_core::personality::Personality;
    use nvmx_core::vcpu::Exit;
    let mut nest = Nest::new(&[&[0x90][..], &VMCALL].concat());
    nest.vm.set_personality(Personality::Sdm);
    nest.on(Field::VM_ENTRY_CONTROLS, 1 << 2);
    nest.set(Field::GUEST_IA32_DEBUGCTL, 1 << 1);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
    nest.expect(VMCALL_EXIT, L2 + 1);
    assert_eq!(nest.state().msrs.expect("MSRs")[&0x1d9], 0);
    nest.set(Field::GUEST_RFLAGS, 2 | TF);
    nest.set(Field::GUEST_RIP, L2);
    let exit = nest.enter_for(1000);
    assert!(matches!(exit, Exit::Unsupported { .. }), "{exit:?}");
}

/// PUSH and POP of memory: the operand's segment decides, or the stack's (SDM Vol. 1 "Canonical Addressing").
#[test]
fn a_non_canonical_address_of_the_stack_or_of_the_operand() {
    const NON_CANONICAL: u64 = 1 << 63;
    for (code, pointer, stack, vector) in [
        (&[0x8f, 0x03][..], NON_CANONICAL, L2_STACK, 13),
        (&[0xff, 0x33], NON_CANONICAL, L2_STACK, 13),
        (&[0x8f, 0x03], L2_STACK, NON_CANONICAL, 12),
        (&[0xff, 0x33], L2_STACK, NON_CANONICAL, 12),
        (&[0x58], L2_STACK, NON_CANONICAL, 12),
    ] {
        let mut nest = Nest::new(code);
        nest.set(Field::EXCEPTION_BITMAP, 3 << 12);
        nest.set(Field::GUEST_RSP, stack);
        let mut regs = nest.regs();
        regs.gpr[3] = pointer;
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        nest.expect(EXCEPTION, L2);
        let information = nest.get(Field::VM_EXIT_INTR_INFO);
        assert_eq!(information, 0x8000_0b00 | vector, "{code:x?}");
    }
}
