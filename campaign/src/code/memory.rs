//! Instructions that touch memory.

use super::emit::gpr::*;
use super::emit::{Emit, Prefix};

/// A random operand size.
pub(super) fn size(e: &mut Emit<'_>) -> Prefix {
    Prefix {
        other_size: e.random.one_in(4),
        wide: e.random.one_in(3),
        ..Prefix::default()
    }
}

pub(super) fn load(e: &mut Emit<'_>) {
    let aim = e.aim();
    let register = e.register();
    let prefix = size(e);
    let opcode = *e.random.pick(&[
        &[0x8b][..],
        &[0x8a],
        &[0x03],
        &[0x3b],
        &[0x85],
        &[0x0f, 0xb6],
        &[0x0f, 0xb7],
        &[0x0f, 0xaf],
    ]);
    e.memory(prefix, opcode, register, aim);
}

pub(super) fn store(e: &mut Emit<'_>) {
    let aim = e.aim();
    let register = e.register();
    let prefix = size(e);
    match e.random.below(4) {
        0 => {
            e.has_immediate = true;
            e.memory(prefix, &[0xc6], 0, aim);
            e.has_immediate = false;
            e.raw(&[0x77]);
        }
        1 => e.memory(prefix, &[0x88], register & 3, aim),
        // SETC and MOV from a segment register.
        2 => {
            let (opcode, reg): (&[u8], u8) =
                *e.random
                    .pick(&[(&[0x0f, 0x92][..], 0), (&[0x8c], 1), (&[0x8c], 2)]);
            e.memory(prefix, opcode, reg, aim);
        }
        _ => e.memory(prefix, &[0x89], register, aim),
    }
}

pub(super) fn read_modify_write(e: &mut Emit<'_>) {
    let aim = e.aim();
    let register = e.register();
    let mut prefix = size(e);
    prefix.lock = e.random.one_in(4);
    let (opcode, reg): (&[u8], u8) = *e.random.pick(&[
        (&[0x01][..], register),
        (&[0xff], 0),
        (&[0xff], 1),
        (&[0xf7], 2),
        (&[0xf7], 3),
        (&[0x87], register),
        (&[0x86], register & 3),
        (&[0x0f, 0xb1], register),
        (&[0x0f, 0xc1], register),
        (&[0x0f, 0xc7], 1),
        (&[0x0f, 0xab], register),
        (&[0xd1], 4),
    ]);
    // Bit tests reach beyond their operand by the register's value.
    if opcode == [0x0f, 0xab] {
        e.set(register, 5);
    }
    // A shift with LOCK, too, is for #UD.
    e.memory(prefix, opcode, reg, aim);
}

pub(super) fn stack(e: &mut Emit<'_>) {
    let aim = e.aim();
    match e.random.below(12) {
        0 => e.memory(Prefix::default(), &[0xff], 6, aim),
        1 => e.memory(Prefix::default(), &[0x8f], 0, aim),
        2 => {
            // CALL over nothing.
            let (bytes, zeros): (&[u8], usize) = (&[0xe8], if e.bits == 16 { 2 } else { 4 });
            e.raw(bytes);
            e.raw(&vec![0; zeros]);
        }
        3 => e.memory(Prefix::default(), &[0xff], 2, aim),
        4 => {
            let level = *e.random.pick(&[0, 1, 2]);
            e.raw(&[0xc8, 0x10, 0x00, level]);
        }
        5 => e.raw(&[0xc9]),
        6 if e.bits != 64 => {
            let opcode = *e.random.pick(&[0x60, 0x61]);
            e.raw(&[opcode]);
        }
        7 => {
            let prefix = Prefix {
                other_size: true,
                ..Prefix::default()
            };
            let opcode = 0x50 + e.random.below(4) as u8;
            e.plain(prefix, &[opcode]);
        }
        8 => {
            let opcode = *e.random.pick(&[
                &[0x0f, 0xa0][..],
                &[0x0f, 0xa8],
                &[0x0f, 0xa1],
                &[0x0f, 0xa9],
            ]);
            e.raw(opcode);
        }
        9 => e.raw(&[0x6a, 0x11]),
        10 => {
            let opcode = 0x58 + e.random.below(4) as u8;
            e.raw(&[opcode]);
        }
        _ => {
            let opcode = 0x50 + e.random.below(8) as u8;
            e.raw(&[opcode]);
        }
    }
}

pub(super) fn string(e: &mut Emit<'_>) {
    let (from, to) = (e.aim(), e.aim());
    let offset = if e.is_real { crate::layout::REAL } else { 0 };
    e.put(SI, from.wrapping_sub(offset));
    e.put(DI, to.wrapping_sub(offset));
    let count = e.random.below(9);
    e.put(CX, count);
    if e.random.one_in(6) {
        e.raw(&[0xfd]);
    }
    let opcode = *e.random.pick(&[
        0xa4, 0xa5, 0xa5, 0xaa, 0xab, 0xab, 0xac, 0xad, 0xa6, 0xa7, 0xae, 0xaf,
    ]);
    let mut prefix = size(e);
    if e.random.one_in(3) {
        prefix.mandatory = None;
    } else {
        prefix.mandatory = Some(*e.random.pick(&[0xf2, 0xf3]));
    }
    if e.random.one_in(8) {
        prefix.segment = Some(*e.random.pick(&[0x26, 0x2e, 0x36, 0x64]));
    }
    prefix.other_address = e.random.one_in(8);
    e.plain(prefix, &[opcode]);
}

pub(super) fn sse(e: &mut Emit<'_>) {
    let aim = e.aim();
    let register = e.random.below(8) as u8;
    let (mandatory, opcode): (Option<u8>, &[u8]) = *e.random.pick(&[
        (None, &[0x0f, 0x28][..]),
        (None, &[0x0f, 0x10]),
        (None, &[0x0f, 0x29]),
        (None, &[0x0f, 0x11]),
        (Some(0x66), &[0x0f, 0x6f]),
        (Some(0x66), &[0x0f, 0x7f]),
        (Some(0xf3), &[0x0f, 0x6f]),
        (Some(0xf3), &[0x0f, 0x7f]),
        (Some(0xf3), &[0x0f, 0x7e]),
        (Some(0x66), &[0x0f, 0xd6]),
    ]);
    let prefix = Prefix {
        mandatory,
        ..Prefix::default()
    };
    e.memory(prefix, opcode, register, aim);
}
