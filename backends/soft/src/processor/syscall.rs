//! SYSCALL and SYSENTER (SDM Vol. 2B): unicorn runs them as no-operations, so they are ours. SYSRET
//! and SYSEXIT run natively.

use super::{Done, Outcome, Processor};
use iced_x86::Instruction;
use nvmx_core::x86::control::{cr0, efer, rflags};
use nvmx_core::x86::{AccessRights, Exception, Gpr, Segment};

const FLAT_CODE_64: u32 = 0xa09b;
const FLAT_CODE_32: u32 = 0xc09b;
const FLAT_DATA: u32 = 0xc093;

fn flat(selector: u16, ar: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
        ar: AccessRights::from_bits_retain(ar),
    }
}

impl Processor {
    /// SYSCALL: 64-bit mode alone, as on Intel processors.
    pub(super) fn syscall(&mut self, instruction: &Instruction) -> Outcome {
        let cpu = &mut self.cpu;
        if cpu.sregs.efer & efer::SCE == 0 || !cpu.in_64_bit_mode() {
            return Err(Exception::UNDEFINED.into());
        }
        let next = cpu.regs.rip.wrapping_add(instruction.len() as u64);
        cpu.regs.set(Gpr::Rcx, next);
        // RF was cleared when the instruction began.
        cpu.regs.set(Gpr::R11, cpu.regs.rflags & !rflags::RF);
        cpu.regs.rip = cpu.msrs.lstar;
        cpu.regs.rflags &= !(cpu.msrs.fmask | rflags::RF);
        cpu.regs.rflags |= rflags::FIXED;
        let selector = (cpu.msrs.star >> 32) as u16;
        cpu.sregs.cs = flat(selector & !3, FLAT_CODE_64);
        cpu.sregs.ss = flat((selector & !3).wrapping_add(8), FLAT_DATA);
        self.retire(0);
        Ok(Done::Jumped)
    }

    /// SYSENTER.
    pub(super) fn sysenter(&mut self) -> Outcome {
        let cpu = &mut self.cpu;
        let selector = cpu.msrs.sysenter_cs as u16;
        if cpu.sregs.cr0 & cr0::PE == 0 || selector & !3 == 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let long = cpu.sregs.efer & efer::LMA != 0;
        cpu.regs.rflags &= !(rflags::VM | rflags::IF);
        let mask = if long { u64::MAX } else { 0xffff_ffff };
        cpu.regs.set(Gpr::Rsp, cpu.msrs.sysenter_esp & mask);
        cpu.regs.rip = cpu.msrs.sysenter_eip & mask;
        cpu.sregs.cs = flat(
            selector & !3,
            if long { FLAT_CODE_64 } else { FLAT_CODE_32 },
        );
        cpu.sregs.ss = flat((selector & !3).wrapping_add(8), FLAT_DATA);
        self.retire(0);
        Ok(Done::Jumped)
    }
}
