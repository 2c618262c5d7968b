//! LGDT and LIDT.

use super::{Done, Outcome, Processor};
use crate::decode;
use iced_x86::{Code, Instruction, Mnemonic};
use nvmx_core::x86::cr_write::is_canonical;
use nvmx_core::x86::{DescriptorTable, Exception};

impl Processor {
    /// LGDT, LIDT (SDM Vol. 2A "LGDT/LIDT"). The translator has no check of the base.
    pub(super) fn load_table(&mut self, instruction: &Instruction) -> Outcome {
        let wide = self.cpu.in_64_bit_mode();
        let length = if wide { 8 } else { 4 };
        let address = decode::resolve(&self.cpu, instruction, 0, 2 + length, false)?;
        let (mut limit, mut base) = ([0; 2], [0; 8]);
        self.read_linear(address.linear, &mut limit)?;
        self.read_linear(address.linear.wrapping_add(2), &mut base[..length as usize])?;
        let mut base = u64::from_le_bytes(base);
        if wide && !is_canonical(base, self.cpu.model.linear_width()) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if matches!(
            instruction.code(),
            Code::Lgdt_m1632_16 | Code::Lidt_m1632_16
        ) {
            base &= 0xff_ffff;
        }
        let table = DescriptorTable {
            base,
            limit: u16::from_le_bytes(limit),
        };
        match instruction.mnemonic() {
            Mnemonic::Lgdt => self.cpu.sregs.gdtr = table,
            _ => self.cpu.sregs.idtr = table,
        }
        Ok(Done::Retired)
    }
}
