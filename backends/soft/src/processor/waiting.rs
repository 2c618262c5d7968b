//! Instructions of code that waits: PAUSE, UMONITOR, UMWAIT, TPAUSE (SDM Vol. 2B).

use super::operands::gpr_or_rax;
use super::{Done, Outcome, Processor};
use crate::decode;
use iced_x86::{Instruction, Mnemonic, Register};
use nvmx_core::x86::control::{ARITHMETIC_FLAGS, cr4};
use nvmx_core::x86::{Exception, cpuid};

impl Processor {
    /// PAUSE.
    pub(super) fn pause(&mut self, instruction: &Instruction) -> Outcome {
        if self.in_l2() {
            let (cpl, now) = (self.cpu.cpl(), self.cpu.tsc.l1());
            let length = instruction.len() as u32;
            let exit = self
                .intercepts
                .pause(cpl, now, &mut self.pause_loop, length);
            self.exit_if(exit)?;
        }
        // Whoever spins waits for another.
        self.outside.leave |= self.outside.together;
        Ok(Done::Retired)
    }

    /// UMONITOR, UMWAIT, TPAUSE. The wait may end for any reason; here it ends at once, before any
    /// deadline, so that time stays the count of instructions.
    pub(super) fn user_wait(&mut self, instruction: &Instruction) -> Outcome {
        const WAITPKG: u32 = 1 << 5;
        if cpuid::lookup(&self.cpu.model.cpuid, 7, 0)[2] & WAITPKG == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        if self.in_l2() {
            self.intercepts.umonitor()?;
        }
        let register = instruction.op0_register();
        let value = decode::read_register(&self.cpu, register).unwrap_or(0);
        if instruction.mnemonic() == Mnemonic::Umonitor {
            // The address is looked at as a load of one byte would be.
            let segment = match instruction.segment_prefix() {
                Register::None => Register::DS,
                segment => segment,
            };
            let address = decode::check(&self.cpu, segment, value, 1, false)?;
            self.read_linear(address.linear, &mut [0])?;
            return Ok(Done::Retired);
        }
        if self.cpu.sregs.cr4 & cr4::TSD != 0 && self.cpu.cpl() > 0 || value & 0xffff_fffe != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if self.in_l2() {
            let (source, length) = (gpr_or_rax(register), instruction.len() as u32);
            let exit = if instruction.mnemonic() == Mnemonic::Umwait {
                self.intercepts.umwait(source, length)?
            } else {
                self.intercepts.tpause(source, length)?
            };
            self.exit_if(exit)?;
        }
        self.outside.leave |= self.outside.together;
        // CF tells that the operating system's limit ended the wait.
        self.cpu.regs.rflags &= !ARITHMETIC_FLAGS;
        Ok(Done::Retired)
    }
}
