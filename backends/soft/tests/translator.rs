//! What unicorn's translator would do otherwise than the manual, found by random L2 code
//! (`nvmx campaign code`).

mod common;

use common::nest::*;
use nvmx_core::vmx::Field;

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const TF: u64 = 0x100;

/// Runs code whose exceptions all exit; the vector of the one that comes.
fn vector(code: &[u8], flags: u64) -> (u64, u64) {
    let mut nest = Nest::new(&[code, &VMCALL[..]].concat());
    nest.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
    nest.set(Field::GUEST_RFLAGS, 2 | flags);
    let mut regs = nest.regs();
    regs.gpr[3] = PAGE;
    nest.set_state(nvmx_core::x86::CpuState {
        regs: Some(regs),
        ..Default::default()
    });
    assert_eq!(nest.enter(), Entry::Exit(EXCEPTION), "{code:x?}");
    let information = nest.get(Field::VM_EXIT_INTR_INFO);
    (information & 0xff, nest.get(Field::GUEST_RIP))
}

/// AMD's instructions, registers that there are not (SDM Vol. 2 "MOV-Move to/from Control Registers").
#[test]
fn what_intel_lacks_is_undefined() {
    for code in [
        &[0x0f, 0x01, 0xd9][..],
        &[0x0f, 0x01, 0xdf],
        &[0x0f, 0x0f, 0xc0, 0xb4],
        &[0x0f, 0x0e],
        &[0x0f, 0x22, 0xcb],
        &[0x44, 0x0f, 0x20, 0xcb],
        &[0x44, 0x0f, 0x21, 0xc3],
    ] {
        assert_eq!(vector(code, 0), (6, L2), "{code:x?}");
    }
}

/// LIDT and LGDT of a base that is not canonical: #GP(0).
#[test]
fn the_base_of_a_descriptor_table_is_canonical() {
    for digit in [0x13, 0x1b] {
        // MOV RAX, 1 << 62; MOV [RBX + 2], RAX; then LGDT or LIDT [RBX].
        let code = [
            &[0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0x40][..],
            &[0x48, 0x89, 0x43, 0x02],
            &[0x0f, 0x01, digit],
        ]
        .concat();
        assert_eq!(vector(&code, 0), (13, L2 + 14));
    }
}

/// PAUSE is an instruction like others to RFLAGS.TF.
#[test]
fn a_single_step_traps_behind_pause() {
    assert_eq!(vector(&[0xf3, 0x90, 0x90], TF), (1, L2 + 2));
}

/// LOCK NEG sets the flags of a subtraction from zero (SDM Vol. 2B "NEG").
#[test]
fn a_locked_neg_has_the_flags_of_neg() {
    // MOV DWORD [RBX], 1; LOCK NEG DWORD [RBX].
    let code = [&[0xc7, 0x03, 1, 0, 0, 0][..], &[0xf0, 0xf7, 0x1b], &VMCALL].concat();
    let mut nest = Nest::new(&code);
    let mut regs = nest.regs();
    regs.gpr[3] = PAGE;
    nest.set_state(nvmx_core::x86::CpuState {
        regs: Some(regs),
        ..Default::default()
    });
    nest.expect(VMCALL_EXIT, L2 + 9);
    assert_eq!(nest.get(Field::GUEST_RFLAGS), 0x97);
}
