//! Instructions of the system: control and debug registers, MSRs, ports, descriptor tables, transfers.

use super::emit::gpr::*;
use super::emit::{Emit, Prefix};
use super::memory::size;
use crate::case::REGISTERS;
use crate::layout::{self, arena};
use crate::tables::arena::{GDT_LIMIT, selector};
use nvmx_core::vmx::Field;

/// Where a linear address of the arena is in memory.
pub(super) fn physical(e: &Emit<'_>, address: u64) -> u64 {
    let _ = e;
    address
}

/// Clears registers whose values depend on time or chance.
pub(super) fn forget(e: &mut Emit<'_>, registers: &[u8]) {
    let prefix = Prefix {
        other_size: e.bits == 16,
        wide: true,
        ..Prefix::default()
    };
    for &register in registers {
        e.registers(prefix, &[0x31], register, register);
    }
}

pub(super) fn vmx_pointer(e: &mut Emit<'_>) {
    let aim = e.data();
    let pointer = *e.random.pick(&[
        layout::PLAIN_LINK,
        layout::SHADOW_LINK,
        layout::VMCS,
        1,
        u64::MAX,
    ]);
    e.memory.push((aim & !7, pointer));
    let (mandatory, digit) =
        *e.random
            .pick(&[(Some(0xf3), 6), (Some(0x66), 6), (None, 6), (None, 7)]);
    let prefix = Prefix {
        mandatory,
        ..Prefix::default()
    };
    e.memory(prefix, &[0x0f, 0xc7], digit, aim & !7);
}

/// Fields of L2's shadow VMCS that it may ask for: one of each width and type, and none at all.
const FIELDS: &[u64] = &[
    0x6800,
    0x681e,
    0x4400,
    0x4402,
    0x2800,
    0x2801,
    0x0800,
    0x4002,
    0x6c00,
    0x6402,
    0x4c00,
    0xffff,
    0x1_0000_6800,
    0x7fff,
];

pub(super) fn vmread(e: &mut Emit<'_>) {
    let register = e.register();
    let field = *e.random.pick(FIELDS);
    e.put(register, field);
    e.either(Prefix::default(), &[0x0f, 0x78], register);
}

pub(super) fn vmwrite(e: &mut Emit<'_>) {
    let register = e.register();
    let field = *e.random.pick(FIELDS);
    e.put(register, field);
    e.either(Prefix::default(), &[0x0f, 0x79], register);
}

pub(super) fn invalidate(e: &mut Emit<'_>) {
    let aim = e.data() & !15;
    let register = e.register();
    let kind = *e.random.pick(&[0, 1, 2, 3, 4, 0xffff_ffff]);
    e.set(register, kind);
    let (first, second) = *e
        .random
        .pick(&[(0, arena::DATA), (1, 0), (0x1_0000, 0), (0, 1 << 63)]);
    e.memory.push((aim, first));
    e.memory.push((aim + 8, second));
    let opcode = *e.random.pick(&[0x80, 0x81, 0x82, 0x82]);
    let prefix = Prefix {
        mandatory: Some(0x66),
        ..Prefix::default()
    };
    e.memory(prefix, &[0x0f, 0x38, opcode], register, aim);
}

const CONTROL: &[u8] = &[0, 0, 0, 3, 3, 4, 4, 4, 2, 8, 1, 5];

pub(super) fn to_control(e: &mut Emit<'_>) {
    let number = *e.random.pick(CONTROL);
    let register = e.register();
    let value = match number {
        0 => {
            let base: u64 = if e.is_real { 0x30 } else { 0x8001_0031 };
            base ^ *e.random.pick(&[
                0,
                0,
                1,
                2,
                4,
                8,
                0x20,
                0x1_0000,
                0x4_0000,
                0x2000_0000,
                0x4000_0000,
                0x6000_0000,
                0x8000_0000,
                0x10,
                1 << 32,
                0x100,
                0x8000_0001,
            ])
        }
        3 => {
            let tables =
                *e.random
                    .pick(&[arena::PAGING, arena::USER_PAGING, arena::PAE, arena::LEGACY]);
            tables | *e.random.pick(&[0, 0, 0x18, 0x1000, 1 << 40, 1 << 63])
        }
        4 => 0x2220 ^ 1 << e.random.below(24),
        8 => e.random.below(18),
        _ => e.random.bits(),
    };
    e.put(register, value);
    control(e, 0x22, number, register);
}

pub(super) fn from_control(e: &mut Emit<'_>) {
    let number = *e.random.pick(CONTROL);
    let register = e.register();
    control(e, 0x20, number, register);
}

fn control(e: &mut Emit<'_>, opcode: u8, number: u8, register: u8) {
    // Outside 64-bit mode there is no CR8.
    let number = if e.bits == 64 { number } else { number & 7 };
    e.registers(Prefix::default(), &[0x0f, opcode], number, register);
}

pub(super) fn debug_register(e: &mut Emit<'_>) {
    let number = *e.random.pick(&[0, 1, 2, 3, 4, 5, 6, 7, 7]);
    let register = e.register();
    let value = *e.random.pick(&[
        0,
        0x400,
        arena::DATA,
        0xffff_0ff0,
        0x2400,
        0x4000,
        0x1_0000_0000,
        1 << 63,
        0x600,
        0xffff_2bff & !0xff,
    ]);
    e.put(register, value);
    let opcode = *e.random.pick(&[0x21, 0x23]);
    e.registers(Prefix::default(), &[0x0f, opcode], number, register);
}

/// Ports where no device is, on the border of the bitmaps among them.
const PORTS: &[u64] = &[
    0xe0, 0xe1, 0xe4, 0xe7, 0xe8, 0x2000, 0x2007, 0x7fff, 0x8000, 0x9001, 0xfff8, 0xffff,
];

pub(super) fn port(e: &mut Emit<'_>) {
    let prefix = Prefix {
        other_size: e.random.one_in(3),
        ..Prefix::default()
    };
    let opcode = *e
        .random
        .pick(&[0xe4, 0xe5, 0xe6, 0xe7, 0xec, 0xed, 0xee, 0xef]);
    let port = *e.random.pick(PORTS);
    if opcode < 0xe8 {
        e.plain(prefix, &[opcode, 0xe0 | port as u8 & 7]);
    } else {
        e.set(DX, port);
        e.plain(prefix, &[opcode]);
    }
}

pub(super) fn string_port(e: &mut Emit<'_>) {
    let port = *e.random.pick(PORTS);
    e.put(DX, port);
    let (from, to) = (e.aim(), e.aim());
    let offset = if e.is_real { layout::REAL } else { 0 };
    e.put(SI, from.wrapping_sub(offset));
    e.put(DI, to.wrapping_sub(offset));
    let count = e.random.below(4);
    e.put(CX, count);
    if e.random.one_in(6) {
        e.raw(&[0xfd]);
    }
    let opcode = *e.random.pick(&[0x6c, 0x6d, 0x6e, 0x6f]);
    let mut prefix = size(e);
    prefix.wide = false;
    if e.random.one_in(2) {
        prefix.mandatory = Some(0xf3);
    }
    if e.random.one_in(4) {
        prefix.segment = Some(*e.random.pick(&[0x26, 0x2e, 0x36, 0x64]));
    }
    prefix.other_address = e.random.one_in(4);
    e.plain(prefix, &[opcode]);
}

const MSRS: &[u64] = &[
    0x174,
    0x175,
    0x176,
    0x277,
    0x1d9,
    0x1b,
    0x3a,
    0x480,
    0x48b,
    0xc000_0080,
    0xc000_0081,
    0xc000_0082,
    0xc000_0083,
    0xc000_0084,
    0xc000_0100,
    0xc000_0101,
    0xc000_0102,
    0xc000_0103,
    0x808,
    0x80b,
    0x830,
    0x83f,
    0x8ff,
    0x1fff,
    0x2000,
    0xc000_1fff,
    0xc000_2000,
    0xffff_ffff,
    0xbfff_ffff,
    0x1234,
];

pub(super) fn rdmsr(e: &mut Emit<'_>) {
    let msr = *e.random.pick(MSRS);
    e.put(CX, msr);
    e.raw(&[0x0f, 0x32]);
}

pub(super) fn wrmsr(e: &mut Emit<'_>) {
    let (msr, value) = *e.random.pick(&[
        (0x174, 8),
        (0x175, 0x8000_0000_0000),
        (0x175, arena::STACK_TOP),
        (0x176, u64::MAX),
        (0x277, 0x0007_0406_0007_0406),
        (0x277, 2),
        (0x1d9, 0),
        (0x1d9, 1 << 20),
        (0xc000_0080, 0xd01),
        (0xc000_0080, 0xd00),
        (0xc000_0080, 0x500),
        (0xc000_0080, 0xc01),
        (0xc000_0080, 0x10_0d01),
        (0xc000_0081, 0x1234_5678_9abc_def0),
        (0xc000_0082, arena::STUBS),
        (0xc000_0082, 1 << 63),
        (0xc000_0083, arena::STUBS),
        (0xc000_0084, 0x4_7700),
        (0xc000_0084, 1 << 40),
        (0xc000_0100, arena::DATA),
        (0xc000_0101, arena::DATA),
        (0xc000_0101, 1 << 62),
        (0xc000_0102, arena::DATA),
        (0xc000_0103, 7),
        (0xc000_0103, 1 << 33),
        (0x480, 0),
        (0x808, 0x20),
        (0x80b, 0),
        (0x83f, 0x41),
        (0x8ff, 0),
        (0x1234, 0),
        (0x2000, 0),
        (0xc000_2000, 0),
    ]);
    e.put(CX, msr);
    e.put(AX, value & 0xffff_ffff);
    e.put(DX, value >> 32);
    e.raw(&[0x0f, 0x30]);
}

/// An operand of LGDT and LIDT, or room for one.
pub(super) fn store_table(e: &mut Emit<'_>) {
    let aim = e.aim();
    let digit = *e.random.pick(&[0, 1]);
    let prefix = Prefix {
        other_size: e.random.one_in(4),
        ..Prefix::default()
    };
    e.memory(prefix, &[0x0f, 0x01], digit, aim);
}

pub(super) fn load_table(e: &mut Emit<'_>) {
    let aim = if e.random.one_in(3) {
        e.aim()
    } else {
        e.data() & !15
    };
    let (base, limit) = *e.random.pick(&[
        (arena::GDT, GDT_LIMIT),
        (arena::GDT, 0x1f),
        (arena::IDT_64, 0xfff),
        (arena::IDT_32, 0x7ff),
        (1 << 63, 0xffff),
    ]);
    if aim & 15 == 0 && (layout::REAL..arena::END).contains(&aim) {
        e.memory.push((aim, base << 16 | limit));
        e.memory.push((aim + 8, base >> 48));
    }
    let digit = *e.random.pick(&[2, 3]);
    let prefix = Prefix {
        other_size: e.random.one_in(4),
        ..Prefix::default()
    };
    e.memory(prefix, &[0x0f, 0x01], digit, aim);
}

fn some_selector(e: &mut Emit<'_>) -> u64 {
    u64::from(*e.random.pick(selector::ANY))
}

pub(super) fn local_table(e: &mut Emit<'_>) {
    let digit = *e.random.pick(&[0, 1, 2, 2, 3, 3]);
    let prefix = size(e);
    let value = some_selector(e);
    if e.random.one_in(2) {
        let register = e.register();
        if digit >= 2 {
            e.put(register, value);
        }
        e.registers(prefix, &[0x0f, 0x00], digit, register);
    } else {
        let aim = if e.random.one_in(3) {
            e.aim()
        } else {
            e.data() & !7
        };
        if aim & 7 == 0 && (arena::DATA..arena::END).contains(&aim) {
            e.memory.push((aim, value));
        }
        e.memory(prefix, &[0x0f, 0x00], digit, aim);
    }
}

pub(super) fn about_selector(e: &mut Emit<'_>) {
    let value = some_selector(e);
    let (register, other) = (e.register(), e.register());
    e.put(register, value);
    let prefix = size(e);
    match e.random.below(4) {
        0 => e.registers(prefix, &[0x0f, 0x02], other, register),
        1 => e.registers(prefix, &[0x0f, 0x03], other, register),
        2 => e.registers(prefix, &[0x0f, 0x00], 4, register),
        _ => e.registers(prefix, &[0x0f, 0x00], 5, register),
    }
}

pub(super) fn random_number(e: &mut Emit<'_>, digit: u8) {
    let register = e.register();
    let prefix = size(e);
    e.registers(prefix, &[0x0f, 0xc7], digit, register);
    forget(e, &[register]);
}

pub(super) fn segment(e: &mut Emit<'_>) {
    let value = if e.is_real && e.random.one_in(2) {
        layout::REAL >> 4
    } else {
        some_selector(e)
    };
    match e.random.below(6) {
        0 | 1 => {
            // MOV SS, and what it shadows.
            let register = e.register();
            e.put(register, value);
            e.registers(Prefix::default(), &[0x8e], 2, register);
        }
        2 => {
            let opcode = *e
                .random
                .pick(&[&[0x17][..], &[0x1f], &[0x07], &[0x0f, 0xa1]]);
            let top = stack_top(e);
            e.memory.push((top, value));
            e.raw(opcode);
        }
        3 => {
            let aim = e.data() & !15;
            e.memory.push((aim, value << 32 | 0x11));
            e.memory.push((aim + 8, value));
            let register = e.register();
            let opcode = *e
                .random
                .pick(&[&[0x0f, 0xb2][..], &[0x0f, 0xb4], &[0x0f, 0xb5]]);
            e.memory(Prefix::default(), opcode, register, aim);
        }
        _ => {
            let register = e.register();
            e.put(register, value);
            let segment = *e.random.pick(&[0, 1, 3, 4, 5, 6]);
            e.registers(Prefix::default(), &[0x8e], segment, register);
        }
    }
}

/// Where L2's RSP points to at the entry.
fn stack_top(e: &Emit<'_>) -> u64 {
    if e.is_real {
        layout::REAL + 0x2ff0
    } else {
        arena::STACK_TOP
    }
}

/// Puts slots of the operand size on the stack.
fn frame(e: &mut Emit<'_>, bytes: u64, slots: &[u64]) {
    let top = stack_top(e);
    let all: Vec<u8> = slots
        .iter()
        .flat_map(|slot| slot.to_le_bytes().into_iter().take(bytes as usize))
        .collect();
    for (address, chunk) in (top..).step_by(8).zip(all.chunks(8)) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        e.memory.push((address, u64::from_le_bytes(word)));
    }
}

/// A place to go to, and a selector for it.
fn target(e: &mut Emit<'_>) -> (u64, u64) {
    let offset = *e.random.pick(&[0x1000, 0x1100, 0x10f0]);
    if e.is_real {
        return (offset, layout::REAL >> 4);
    }
    let code = match e.random.below(6) {
        0 => some_selector(e),
        1 => selector::CODE_32.into(),
        2 => selector::USER_32.into(),
        3 => selector::USER_64.into(),
        4 if e.bits == 32 => selector::CODE_32.into(),
        _ => selector::CODE.into(),
    };
    (arena::STUBS + offset - 0x1000, code)
}

pub(super) fn far(e: &mut Emit<'_>) {
    let (offset, code) = target(e);
    let prefix = size(e);
    let bytes: u64 = operand_bytes(e, prefix);
    match e.random.below(4) {
        0 if e.bits != 64 => {
            let opcode = *e.random.pick(&[0x9a, 0xea]);
            let prefix = Prefix::default();
            e.plain(prefix, &[opcode]);
            let size = if e.bits == 16 { 2 } else { 4 };
            e.raw(&offset.to_le_bytes()[..size]);
            e.raw(&code.to_le_bytes()[..2]);
        }
        1 => {
            frame(e, bytes, &[offset, code, 0, 0]);
            let opcode = *e.random.pick(&[&[0xcb][..], &[0xca, 8, 0]]);
            e.plain(prefix, opcode);
        }
        _ => {
            let aim = e.data() & !15;
            let pointer =
                u128::from(code) << (8 * bytes) | u128::from(offset) & ((1 << (8 * bytes)) - 1);
            e.memory.push((aim, pointer as u64));
            e.memory.push((aim + 8, (pointer >> 64) as u64));
            let digit = *e.random.pick(&[3, 5]);
            e.memory(prefix, &[0xff], digit, aim);
        }
    }
}

fn operand_bytes(e: &Emit<'_>, prefix: Prefix) -> u64 {
    match (e.bits, prefix.wide, prefix.other_size) {
        (64, true, _) => 8,
        (16, _, true) | (32 | 64, _, false) => 4,
        _ => 2,
    }
}

const FLAGS: &[u64] = &[
    2, 0x202, 0x102, 0x302, 0x3002, 0x3202, 0x4002, 0x1_0002, 0x1_0102, 0x2_0002, 0x4_0002,
    0x20_0002, 0x18_0002, 0xcd7,
];

pub(super) fn iret(e: &mut Emit<'_>) {
    let (offset, code) = target(e);
    let flags = *e.random.pick(FLAGS);
    let mut prefix = size(e);
    if e.bits == 64 && !e.random.one_in(4) {
        prefix.wide = true;
    }
    let bytes = operand_bytes(e, prefix);
    let stack = if e.random.one_in(4) {
        some_selector(e)
    } else if code & 3 == 3 {
        selector::USER_DATA.into()
    } else {
        selector::DATA.into()
    };
    frame(
        e,
        bytes,
        &[offset, code, flags, stack_top(e) - 0x100, stack],
    );
    e.plain(prefix, &[0xcf]);
}

pub(super) fn popf(e: &mut Emit<'_>) {
    let flags = *e.random.pick(FLAGS);
    let top = stack_top(e);
    e.memory.push((top, flags));
    let prefix = Prefix {
        other_size: e.random.one_in(3),
        ..Prefix::default()
    };
    e.plain(prefix, &[0x9d]);
}

pub(super) fn fast_call(e: &mut Emit<'_>) {
    e.set(CX, arena::STUBS);
    e.set(DX, arena::STUBS);
    let last = *e.random.pick(&[0x05, 0x34, 0x35, 0x07]);
    let prefix = Prefix {
        wide: e.random.one_in(2),
        ..Prefix::default()
    };
    e.plain(prefix, &[0x0f, last]);
}

/// The processor's breakpoints: addresses for DR0 to DR3 and a DR7 that enables some.
pub(super) fn breakpoints(e: &mut Emit<'_>) -> (Field, u64) {
    let mut dr7 = 0x400;
    for number in 0..4_u64 {
        if !e.random.one_in(2) {
            continue;
        }
        let (kind, length) =
            *e.random
                .pick(&[(0, 0), (1, 0), (1, 1), (1, 3), (3, 0), (3, 3), (3, 2)]);
        let address = if kind == 0 {
            arena::CODE + e.random.below(8)
        } else {
            e.data()
        };
        e.put((REGISTERS.len() - 4) as u8 + number as u8, address);
        dr7 |= 1 << (2 * number) | (length << 2 | kind) << (16 + 4 * number);
    }
    if e.random.one_in(6) {
        dr7 |= 1 << 13;
    }
    (Field::GUEST_DR7, dr7)
}
