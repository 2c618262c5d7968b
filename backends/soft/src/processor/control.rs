//! MOV to and from control and debug registers, LMSW, SMSW, CLTS (SDM Vol. 2, Vol. 3C "Guest/Host
//! Masks and Read Shadows for CR0 and CR4").

use super::operands::{gpr_or_rax, is_memory};
use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{Instruction, Mnemonic, Register};
use nvmx_core::vmx::controls::Primary;
use nvmx_core::vmx::intercepts::{Clts, Cr8};
use nvmx_core::x86::control::{cr4, dr7};
use nvmx_core::x86::cr_write::{self, CrEffect, CrFault};
use nvmx_core::x86::{Exception, Gpr};

impl Processor {
    /// Any instruction that reads or writes a control register.
    pub(super) fn control_register(&mut self, instruction: &Instruction) -> Outcome {
        match instruction.mnemonic() {
            Mnemonic::Clts => self.clts(instruction),
            Mnemonic::Lmsw => self.lmsw(instruction),
            Mnemonic::Smsw => self.smsw(instruction),
            _ if instruction.op0_register().is_cr() => {
                let number = instruction.op0_register().number() as u8;
                self.mov_to_cr(number, instruction)
            }
            _ => {
                let number = instruction.op1_register().number() as u8;
                self.mov_from_cr(number, instruction)
            }
        }
    }

    /// A general-purpose register and its value, 32 bits of it outside 64-bit mode.
    pub(super) fn operand(&self, register: Register) -> (Gpr, u64) {
        let gpr = gpr_or_rax(register);
        let value = self.cpu.regs.get(gpr);
        (
            gpr,
            if self.cpu.in_64_bit_mode() {
                value
            } else {
                value & 0xffff_ffff
            },
        )
    }

    fn mov_to_cr(&mut self, number: u8, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let length = instruction.len() as u32;
        let (gpr, value) = self.operand(instruction.op1_register());
        if self.in_l2() {
            self.exit_if(self.intercepts.mov_to_cr(number, gpr, value, length))?;
        }
        let ept = self.regime.ept.clone();
        let umip = self.cpu.sregs.cr4 & cr4::UMIP;
        let effect = match number {
            0 => cr_write::write_cr0(&mut self.cpu, &self.ram, ept.as_ref(), value),
            2 => {
                self.cpu.sregs.cr2 = value;
                return Ok(Done::Retired);
            }
            // There is one TLB for all process-context identifiers: what may be kept goes too.
            3 => cr_write::write_cr3(&mut self.cpu, &self.ram, ept.as_ref(), value).map(|effect| {
                CrEffect {
                    flush: true,
                    ..effect
                }
            }),
            4 => cr_write::write_cr4(&mut self.cpu, &self.ram, ept.as_ref(), value),
            8 => return self.write_cr8(value, instruction),
            _ => return Err(Exception::UNDEFINED.into()),
        };
        // What the engine reports depends on it.
        self.effects.controls |= umip != self.cpu.sregs.cr4 & cr4::UMIP;
        self.apply(effect)
    }

    fn apply(&mut self, effect: Result<CrEffect, CrFault>) -> Outcome {
        match effect {
            Ok(effect) => {
                if effect.flush || effect.flush_global || effect.mode_changed {
                    self.address_space_changed();
                } else {
                    self.rebuild_regime();
                }
                Ok(Done::Retired)
            }
            Err(CrFault::Exception(exception)) => Err(exception.into()),
            Err(CrFault::Ept(fault)) => Err(Trap::Ept(fault, false)),
        }
    }

    fn write_cr8(&mut self, value: u64, instruction: &Instruction) -> Outcome {
        if value & !15 != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if self.in_l2() && self.intercepts.cr8() == Cr8::TprShadow {
            let written =
                self.apic_virtualization
                    .write_cr8(&self.cpu.vmx.vmcs12, &self.ram, value);
            return self.virtualized(written, instruction.len());
        }
        cr_write::write_cr8(&mut self.cpu, value)?;
        self.apic.set_cr8(value);
        Ok(Done::Retired)
    }

    fn mov_from_cr(&mut self, number: u8, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let gpr = gpr_or_rax(instruction.op0_register());
        if self.in_l2() {
            self.exit_if(
                self.intercepts
                    .mov_from_cr(number, gpr, instruction.len() as u32),
            )?;
        }
        let sregs = &self.cpu.sregs;
        let value = match number {
            0 if self.in_l2() => self.intercepts.visible_cr0(sregs.cr0),
            0 => sregs.cr0,
            2 => sregs.cr2,
            3 => sregs.cr3,
            4 if self.in_l2() => self.intercepts.visible_cr4(sregs.cr4),
            4 => sregs.cr4,
            8 if self.in_l2() && self.intercepts.cr8() == Cr8::TprShadow => {
                self.apic_virtualization.read_cr8(&self.ram)
            }
            8 => self.apic.cr8(),
            _ => return Err(Exception::UNDEFINED.into()),
        };
        decode::write_register(&mut self.cpu, instruction.op0_register(), value);
        Ok(Done::Retired)
    }

    fn clts(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        if self.in_l2() {
            match self.intercepts.clts(instruction.len() as u32) {
                Clts::Exit(exit) => return Err(exit.into()),
                Clts::Nothing => return Ok(Done::Retired),
                Clts::Clear => {}
            }
        }
        cr_write::clts(&mut self.cpu);
        Ok(Done::Retired)
    }

    fn lmsw(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let (source, address) = if is_memory(instruction, 0) {
            let address = decode::resolve(&self.cpu, instruction, 0, 2, false)?;
            let mut bytes = [0; 2];
            self.read_linear(address.linear, &mut bytes)?;
            (u16::from_le_bytes(bytes), Some(address.linear))
        } else {
            (
                decode::read_register(&self.cpu, instruction.op0_register()).unwrap_or(0) as u16,
                None,
            )
        };
        self.exit_if(
            self.intercepts
                .lmsw(source, address, instruction.len() as u32),
        )?;
        let ept = self.regime.ept.clone();
        let effect = cr_write::lmsw(&mut self.cpu, &self.ram, ept.as_ref(), source);
        self.apply(effect)
    }

    fn smsw(&mut self, instruction: &Instruction) -> Outcome {
        if self.cpu.sregs.cr4 & cr4::UMIP != 0 {
            self.require_cpl0()?;
        }
        let value = if self.in_l2() {
            self.intercepts.visible_cr0(self.cpu.sregs.cr0)
        } else {
            self.cpu.sregs.cr0
        };
        if is_memory(instruction, 0) {
            let address = decode::resolve(&self.cpu, instruction, 0, 2, true)?;
            self.write_linear(address.linear, &(value as u16).to_le_bytes())?;
        } else {
            decode::write_register(&mut self.cpu, instruction.op0_register(), value);
        }
        Ok(Done::Retired)
    }

    /// MOV DR for which the engine found privilege wanting, but whose exit comes first.
    pub(super) fn mov_dr_before_privilege(&mut self, vector: u8, bytes: &[u8]) -> Option<Outcome> {
        if vector != Exception::GP
            || !self.in_l2()
            || !self.primary_controls().contains(Primary::MOV_DR_EXITING)
        {
            return None;
        }
        let bits = decode::code_bits(&self.cpu);
        let instruction = decode::decode(bytes, bits, self.cpu.regs.rip)?;
        let is_mov_dr = instruction.mnemonic() == Mnemonic::Mov
            && (instruction.op0_register().is_dr() || instruction.op1_register().is_dr());
        is_mov_dr.then(|| self.debug_register(&instruction))
    }

    /// MOV to or from DRn (SDM Vol. 3B "Debug Registers").
    pub(super) fn debug_register(&mut self, instruction: &Instruction) -> Outcome {
        const BD: u64 = 1 << 13;
        let from_dr = instruction.op1_register().is_dr();
        let (dr, gpr_register) = if from_dr {
            (instruction.op1_register(), instruction.op0_register())
        } else {
            (instruction.op0_register(), instruction.op1_register())
        };
        let number = dr.number() as u8;
        let length = instruction.len() as u32;
        let (gpr, value) = self.operand(gpr_register);
        // The exit goes before #UD of DR4 and DR5 and before #GP by privilege (SDM Vol. 3C "Instructions
        // That Cause VM Exits Conditionally"), and so before #DB of general detect.
        if self.in_l2() {
            self.exit_if(self.intercepts.mov_dr(number, from_dr, gpr, length))?;
        }
        if matches!(number, 4 | 5) && self.cpu.sregs.cr4 & cr4::DE != 0 {
            return Err(Exception::UNDEFINED.into());
        }
        self.require_cpl0()?;
        if self.debug_registers().dr7 & dr7::GD != 0 {
            return Err(Exception {
                vector: Exception::DB,
                error_code: None,
                payload: BD,
            }
            .into());
        }
        let debug = &mut self.cpu.debug;
        if from_dr {
            let value = match number {
                0..=3 => debug.db[usize::from(number)],
                4 | 6 => debug.dr6,
                _ => debug.dr7,
            };
            decode::write_register(&mut self.cpu, gpr_register, value);
            return Ok(Done::Retired);
        }
        match number {
            0..=3 => debug.db[usize::from(number)] = value,
            _ if value >> 32 != 0 => return Err(Exception::GENERAL_PROTECTION.into()),
            // Reserved bits read as fixed values.
            4 | 6 => debug.dr6 = value & 0xe00f | 0xffff_0ff0,
            _ => {
                debug.dr7 = value & 0xffff_2bff | 0x400;
                // What the engine reports depends on it.
                self.effects.controls = true;
            }
        }
        Ok(Done::Retired)
    }
}
