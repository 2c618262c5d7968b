//! Selectors that the translator takes and a processor does not: null for SS of another privilege and for TR,
//! descriptors of legacy mode in IA-32e mode.

use super::operands::is_memory;
use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{Instruction, Mnemonic};
use nvmx_core::delivery;
use nvmx_core::vmx::controls::Secondary;
use nvmx_core::x86::Exception;
use nvmx_core::x86::control::{cr0, efer, rflags};

impl Processor {
    /// MOV to SS and LSS in 64-bit mode, LTR, LAR, LSL. What the translator has right it runs.
    pub(super) fn selector(&mut self, instruction: &Instruction) -> Outcome {
        let is_protected =
            self.cpu.sregs.cr0 & cr0::PE != 0 && self.cpu.regs.rflags & rflags::VM == 0;
        match instruction.mnemonic() {
            Mnemonic::Lar | Mnemonic::Lsl if self.cpu.sregs.efer & efer::LMA != 0 => {
                let selector = self.selector_operand(instruction, 1)?;
                let limit = instruction.mnemonic() == Mnemonic::Lsl;
                let is_refused = self.on_a_copy(|cpu, memory| {
                    Ok(delivery::is_of_legacy_mode_alone(
                        cpu, memory, selector, limit,
                    ))
                });
                if is_refused == Ok(true) {
                    self.cpu.regs.rflags &= !rflags::ZF;
                    return Ok(Done::Retired);
                }
            }
            // The engine reports it once more if L1 wants to see it.
            Mnemonic::Ltr if is_protected && self.cpu.cpl() == 0 && !self.exits_by_tables() => {
                let selector = self.selector_operand(instruction, 0)?;
                if selector & 0xfffc == 0 {
                    return Err(Exception::GENERAL_PROTECTION.into());
                }
            }
            // A null selector is one of SS below CPL 3, if its RPL is CPL (SDM Vol. 2B "MOV", Vol. 2A "LDS/LES/LFS/LGS/LSS").
            Mnemonic::Mov | Mnemonic::Lss => {
                let selector = self.selector_operand(instruction, 1)?;
                if selector & 0xfffc == 0 && (selector & 3) as u8 != self.cpu.cpl() {
                    return Err(Exception::GENERAL_PROTECTION.into());
                }
            }
            _ => {}
        }
        self.effects.native_once = true;
        Ok(Done::Jumped)
    }

    fn exits_by_tables(&self) -> bool {
        self.in_l2()
            && self
                .intercepts
                .secondary
                .contains(Secondary::DESCRIPTOR_TABLE_EXITING)
    }

    /// The selector in an operand; that of a far pointer is its last two bytes.
    fn selector_operand(&mut self, instruction: &Instruction, operand: u32) -> Result<u16, Trap> {
        if !is_memory(instruction, operand) {
            let register = instruction.op_register(operand);
            return Ok(decode::read_register(&self.cpu, register).unwrap_or(0) as u16);
        }
        let before = match instruction.mnemonic() {
            Mnemonic::Lss => instruction.memory_size().size() as u64 - 2,
            _ => 0,
        };
        let address = decode::resolve(&self.cpu, instruction, operand, before + 2, false)?;
        let mut selector = [0; 2];
        self.read_linear(address.linear.wrapping_add(before), &mut selector)?;
        Ok(u16::from_le_bytes(selector))
    }
}
