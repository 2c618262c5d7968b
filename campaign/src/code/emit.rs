//! Instructions as bytes: opcode, ModRM in every form, prefixes; and the registers that they need.

use crate::case::{Hex, Mutation, Register};
use crate::layout::{self, arena};
use crate::random::Random;

/// Numbers of general-purpose registers in encodings.
pub(super) mod gpr {
    pub(crate) const AX: u8 = 0;
    pub(crate) const CX: u8 = 1;
    pub(crate) const DX: u8 = 2;
    pub(crate) const BX: u8 = 3;
    pub(crate) const SP: u8 = 4;
    pub(crate) const BP: u8 = 5;
    pub(crate) const SI: u8 = 6;
    pub(crate) const DI: u8 = 7;
}

/// L2's code under construction.
pub(super) struct Emit<'a> {
    pub(super) random: &'a mut Random,
    /// 16, 32 or 64.
    pub(super) bits: u32,
    /// Addresses are offsets at [`layout::REAL`].
    pub(super) is_real: bool,
    pub(super) bytes: Vec<u8>,
    /// What the case gives registers.
    registers: [Option<u64>; 20],
    /// Where the code begins, from the first byte of its page.
    pub(super) start: u64,
    /// An immediate follows the ModRM bytes.
    pub(super) has_immediate: bool,
    /// Memory that the case sets.
    pub(super) memory: Vec<(u64, u64)>,
}

/// What goes before an opcode.
#[derive(Clone, Copy, Default)]
pub(super) struct Prefix {
    /// 66, F2 or F3 as part of the opcode.
    pub(super) mandatory: Option<u8>,
    /// Another operand size: 66.
    pub(super) other_size: bool,
    /// REX.W, in 64-bit mode.
    pub(super) wide: bool,
    /// LOCK.
    pub(super) lock: bool,
    /// An implicit memory operand may get a segment.
    pub(super) segment: Option<u8>,
    /// Another address size: 67.
    pub(super) other_address: bool,
}

impl<'a> Emit<'a> {
    pub(super) fn new(random: &'a mut Random, bits: u32, is_real: bool) -> Self {
        Self {
            random,
            bits,
            is_real,
            bytes: Vec::new(),
            registers: [None; 20],
            start: 0,
            has_immediate: false,
            memory: Vec::new(),
        }
    }

    /// What the case has to say about registers and memory.
    pub(super) fn mutations(&self) -> impl Iterator<Item = Mutation> {
        let registers = self
            .registers
            .iter()
            .enumerate()
            .filter_map(|(number, value)| {
                value.map(|value| Mutation::Register(Register(number as u8), Hex(value)))
            });
        let memory = self
            .memory
            .iter()
            .map(|(address, value)| Mutation::Memory(Hex(*address), Hex(*value)));
        registers.chain(memory)
    }

    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    fn mask(&self, value: u64) -> u64 {
        if self.bits == 64 {
            value
        } else {
            value & 0xffff_ffff
        }
    }

    /// A register's value, unless the case has given it one.
    pub(super) fn set(&mut self, register: u8, value: u64) -> u64 {
        let value = self.mask(value);
        *self.registers[usize::from(register)].get_or_insert(value)
    }

    /// A register's value, whatever the case has given it.
    pub(super) fn put(&mut self, register: u8, value: u64) {
        let value = self.mask(value);
        self.registers[usize::from(register)] = Some(value);
    }

    /// A general-purpose register of this mode, but RSP.
    pub(super) fn register(&mut self) -> u8 {
        let limit = if self.bits == 64 { 16 } else { 8 };
        loop {
            let register = self.random.below(limit) as u8;
            if register != gpr::SP {
                return register;
            }
        }
    }

    /// An address of data, at a page's border now and then.
    pub(super) fn data(&mut self) -> u64 {
        let offset = *self.random.pick(&[
            0, 8, 0x10, 0x40, 0x100, 0x7f8, 0x800, 0xff0, 0xff8, 0xffc, 0xffd, 0xfff,
        ]);
        if self.is_real {
            return layout::REAL + 0x2400 + offset % 0x800;
        }
        arena::DATA + (self.random.below(arena::DATA_PAGES) << 12) + offset
    }

    /// Where a memory operand may point to.
    pub(super) fn aim(&mut self) -> u64 {
        if self.is_real {
            return match self.random.below(12) {
                0 => layout::REAL + 0x8000,
                1 => layout::REAL + 0x2ff0,
                _ => self.data(),
            };
        }
        match self.random.below(24) {
            0 => arena::STACK_TOP - 8 * self.random.below(4),
            1 => *self.random.pick(&[0, 0x30_0000, 0x60_0000, 0xffff_fffc]),
            2 if self.bits == 64 => *self.random.pick(&[
                0x8000_0000_0000,
                0xffff_7fff_ffff_ffff,
                0xffff_8000_0000_0000,
                0x7fff_ffff_fff0,
                u64::MAX,
                1 << 63,
            ]),
            3 => arena::GDT + 8 * self.random.below(16),
            4 => arena::APIC_ACCESS + self.random.below(0x40) * 0x10,
            5 => arena::CODE + 0x800,
            _ => self.data(),
        }
    }

    /// An instruction without ModRM.
    pub(super) fn plain(&mut self, prefix: Prefix, opcode: &[u8]) {
        self.prefixes(prefix, 0);
        self.raw(opcode);
    }

    fn prefixes(&mut self, prefix: Prefix, rex: u8) {
        if prefix.lock {
            self.raw(&[0xf0]);
        }
        if let Some(segment) = prefix.segment {
            self.raw(&[segment]);
        }
        if prefix.other_size {
            self.raw(&[0x66]);
        }
        if prefix.other_address {
            self.raw(&[0x67]);
        }
        if let Some(byte) = prefix.mandatory {
            self.raw(&[byte]);
        }
        let rex = rex | if prefix.wide { 8 } else { 0 };
        if self.bits == 64 && rex != 0 {
            self.raw(&[0x40 | rex]);
        }
    }

    /// An instruction between registers: `reg` and `rm` of ModRM.
    pub(super) fn registers(&mut self, prefix: Prefix, opcode: &[u8], reg: u8, rm: u8) {
        self.prefixes(prefix, reg >> 3 << 2 | rm >> 3);
        self.raw(opcode);
        self.raw(&[0xc0 | (reg & 7) << 3 | rm & 7]);
    }

    /// A memory or a register operand beside `reg`.
    pub(super) fn either(&mut self, prefix: Prefix, opcode: &[u8], reg: u8) {
        if self.random.one_in(3) {
            let rm = self.register();
            self.registers(prefix, opcode, reg, rm);
        } else {
            let aim = self.aim();
            self.memory(prefix, opcode, reg, aim);
        }
    }

    /// A memory operand at `aim` beside `reg`, addressed in one of the many ways.
    pub(super) fn memory(&mut self, prefix: Prefix, opcode: &[u8], reg: u8, aim: u64) {
        let mut prefix = prefix;
        if prefix.segment.is_none() && self.random.one_in(12) {
            prefix.segment = Some(*self.random.pick(&[0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65]));
        }
        if self.bits == 16 {
            let offset = (aim - layout::REAL) as u16;
            if self.random.one_in(4) {
                prefix.other_address = true;
                self.long_address(prefix, opcode, reg, offset.into());
            } else {
                self.short_address(prefix, opcode, reg, offset);
            }
            return;
        }
        if self.bits == 64 && aim < 1 << 32 && self.random.one_in(12) {
            prefix.other_address = true;
        }
        self.long_address(prefix, opcode, reg, aim);
    }

    /// 16-bit addressing.
    fn short_address(&mut self, prefix: Prefix, opcode: &[u8], reg: u8, offset: u16) {
        const FORMS: [(u8, Option<u8>); 8] = [
            (gpr::BX, Some(gpr::SI)),
            (gpr::BX, Some(gpr::DI)),
            (gpr::BP, Some(gpr::SI)),
            (gpr::BP, Some(gpr::DI)),
            (gpr::SI, None),
            (gpr::DI, None),
            (gpr::BP, None),
            (gpr::BX, None),
        ];
        self.prefixes(prefix, 0);
        self.raw(opcode);
        let reg = (reg & 7) << 3;
        if self.random.one_in(4) {
            self.raw(&[reg | 6]);
            self.raw(&offset.to_le_bytes());
            return;
        }
        let form = self.random.below(8) as u8;
        let (base, index) = FORMS[usize::from(form)];
        let index = match index {
            Some(index) => self.set(index, 0x10) as u16,
            None => 0,
        };
        let displacement = *self.random.pick(&[0, 4, 0xfff8]);
        let rest = offset.wrapping_sub(index);
        let base = self.set(base, rest.wrapping_sub(displacement).into()) as u16;
        self.raw(&[0x80 | reg | form]);
        self.raw(&rest.wrapping_sub(base).to_le_bytes());
    }

    /// 32-bit and 64-bit addressing.
    fn long_address(&mut self, prefix: Prefix, opcode: &[u8], reg: u8, aim: u64) {
        let is_wide = self.bits == 64 && !prefix.other_address;
        let fits = |value: u64| {
            if is_wide {
                i32::try_from(value as i64).ok()
            } else {
                Some(value as u32 as i32)
            }
        };
        let low = (reg & 7) << 3;
        let rex = reg >> 3 << 2;
        match self.random.below(8) {
            // No registers.
            0 if fits(aim).is_some() => {
                self.prefixes(prefix, rex);
                self.raw(opcode);
                if self.bits == 64 {
                    self.raw(&[low | 4, 0x25]);
                } else {
                    self.raw(&[low | 5]);
                }
                self.raw(&(aim as u32).to_le_bytes());
            }
            // Relative to RIP: needs to know where the instruction ends.
            1 if is_wide
                && fits(aim.wrapping_sub(arena::CODE)).is_some()
                && !self.has_immediate =>
            {
                self.prefixes(prefix, rex);
                self.raw(opcode);
                self.raw(&[low | 5]);
                let end = arena::CODE + self.start + self.bytes.len() as u64 + 4;
                self.raw(&(aim.wrapping_sub(end) as u32).to_le_bytes());
            }
            2 | 3 => {
                // Base and index.
                let base = self.register();
                let mut index = self.register();
                while index == base {
                    index = self.register();
                }
                let scale = self.random.below(4) as u8;
                let step = self.random.below(9) * 8;
                let offset = self.set(index, step) << scale;
                let displacement = self.displacement();
                let wanted = aim
                    .wrapping_sub(offset)
                    .wrapping_sub(displacement as i64 as u64);
                let base_value = self.set(base, wanted);
                let rest = aim.wrapping_sub(offset).wrapping_sub(base_value);
                let displacement = fits(rest).unwrap_or(displacement);
                self.prefixes(prefix, rex | index >> 3 << 1 | base >> 3);
                self.raw(opcode);
                self.raw(&[0x84 | low, scale << 6 | (index & 7) << 3 | base & 7]);
                self.raw(&displacement.to_le_bytes());
            }
            _ => {
                let base = self.register();
                let displacement = self.displacement();
                let wanted = aim.wrapping_sub(displacement as i64 as u64);
                let base_value = self.set(base, wanted);
                let displacement = fits(aim.wrapping_sub(base_value)).unwrap_or(displacement);
                self.prefixes(prefix, rex | base >> 3);
                self.raw(opcode);
                let sib: &[u8] = if base & 7 == 4 { &[0x24] } else { &[] };
                if displacement == 0 && base & 7 != 5 {
                    self.raw(&[low | base & 7]);
                    self.raw(sib);
                } else if let Ok(short) = i8::try_from(displacement) {
                    self.raw(&[0x40 | low | base & 7]);
                    self.raw(sib);
                    self.raw(&short.to_le_bytes());
                } else {
                    self.raw(&[0x80 | low | base & 7]);
                    self.raw(sib);
                    self.raw(&displacement.to_le_bytes());
                }
            }
        }
    }

    fn displacement(&mut self) -> i32 {
        *self
            .random
            .pick(&[0, 0, 8, -8, 0x7f, -0x80, 0x1000, -0x1000])
    }
}
