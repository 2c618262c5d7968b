//! Hardware breakpoints (SDM Vol. 3B "Debug Registers", "Debug Exceptions"). While DR7 enables any, the
//! machine goes one instruction at a time: before each, what it is about to execute and to access is
//! compared with DR0 to DR3. A match of its address is a fault there and then; a match of what it
//! accesses becomes a trap once it has retired.
//!
//! Accesses that no operand shows (descriptor tables, frames of event delivery) match nothing.

use super::Processor;
use crate::decode;
use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register};
use nvmx_core::cpu::{Cpu, Interruptibility};
use nvmx_core::memory::GuestMemory;
use nvmx_core::paging::{Access, AccessKind};
use nvmx_core::x86::control::{cr4, rflags};
use nvmx_core::x86::{DebugRegs, Exception, Gpr};

/// L0 to L3 and G0 to G3 of DR7.
const ENABLED: u64 = 0xff;
/// "Enabled breakpoint" of the pending debug exceptions.
const ENABLED_BREAKPOINT: u64 = 1 << 12;
const LONGEST_INSTRUCTION: usize = 15;

/// What the breakpoints wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Execution,
    Write,
    Port,
    ReadOrWrite,
}

/// What an instruction does at an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Port,
}

impl Wanted {
    const fn is_met_by(self, used: Use) -> bool {
        matches!(
            (self, used),
            (Self::Write | Self::ReadOrWrite, Use::Write)
                | (Self::ReadOrWrite, Use::Read)
                | (Self::Port, Use::Port)
        )
    }
}

/// The enabled breakpoints: number, what it waits for, first address and bytes.
fn enabled(debug: &DebugRegs) -> impl Iterator<Item = (u32, Wanted, u64, u64)> + '_ {
    (0..4).filter(|n| debug.dr7 >> (2 * n) & 3 != 0).map(|n| {
        let field = debug.dr7 >> (16 + 4 * n);
        let wanted = match field & 3 {
            0 => Wanted::Execution,
            1 => Wanted::Write,
            2 => Wanted::Port,
            _ => Wanted::ReadOrWrite,
        };
        let length = [1, 2, 8, 4][(field >> 2 & 3) as usize];
        // The low bits of the address are ignored as the length says.
        let address = debug.db[n as usize] & !(length - 1);
        (n, wanted, address, length)
    })
}

/// Bits B3:B0 for an access of `size` bytes.
fn matches(debug: &DebugRegs, used: Use, address: u64, size: u64) -> u64 {
    enabled(debug)
        .filter(|(_, wanted, start, length)| {
            wanted.is_met_by(used)
                && (address.wrapping_sub(*start) < *length || start.wrapping_sub(address) < size)
        })
        .fold(0, |bits, (n, ..)| bits | 1 << n)
}

impl Processor {
    /// Whether the next instruction must be looked at by itself.
    #[inline]
    pub(crate) fn breakpoints_armed(&self) -> bool {
        self.debug_registers().dr7 & ENABLED != 0
    }

    /// Looks at the instruction that is about to run. `Some` is its #DB: a fault, with RIP at the
    /// instruction and RF as it is.
    pub(super) fn instruction_breakpoint(&mut self) -> Option<Exception> {
        self.data_matches = 0;
        let linear = self.linear_rip();
        let suppressed = self.cpu.regs.rflags & rflags::RF != 0
            || self.cpu.interruptibility.contains(Interruptibility::MOV_SS);
        if !suppressed {
            let debug = self.debug_registers();
            let payload = enabled(debug)
                .filter(|(n, wanted, ..)| {
                    *wanted == Wanted::Execution && debug.db[*n as usize] == linear
                })
                .fold(0, |bits, (n, ..)| bits | 1 << n);
            if payload != 0 {
                return Some(Exception {
                    vector: Exception::DB,
                    error_code: None,
                    payload,
                });
            }
        }
        if enabled(self.debug_registers()).any(|(_, wanted, ..)| wanted != Wanted::Execution) {
            self.data_matches = self.next_accesses(linear);
        }
        None
    }

    /// The instruction has retired: what it accessed makes a trap.
    #[inline]
    pub(super) fn retire_breakpoints(&mut self) {
        if self.data_matches != 0 {
            self.cpu.pending_debug |= std::mem::take(&mut self.data_matches) | ENABLED_BREAKPOINT;
        }
    }

    pub(crate) fn linear_rip(&self) -> u64 {
        if self.cpu.in_64_bit_mode() {
            self.cpu.regs.rip
        } else {
            let base = self.cpu.sregs.cs.base;
            base.wrapping_add(self.cpu.regs.rip) & 0xffff_ffff
        }
    }

    /// Which breakpoints the next instruction's accesses match. An instruction that cannot be fetched or
    /// decoded faults before it accesses anything.
    fn next_accesses(&mut self, linear: u64) -> u64 {
        let mut bytes = [0; LONGEST_INSTRUCTION];
        let length = self.fetch(linear, &mut bytes);
        let bits = decode::code_bits(&self.cpu);
        let Some(instruction) = decode::decode(&bytes[..length], bits, self.cpu.regs.rip) else {
            return 0;
        };
        let debug = &self.debug_registers().clone();
        let mut found = match port(&self.cpu, &instruction) {
            // Without CR4.DE the encoding is undefined: it matches nothing.
            Some((port, size)) if self.cpu.sregs.cr4 & cr4::DE != 0 => {
                matches(debug, Use::Port, port, size)
            }
            _ => 0,
        };
        if repeats_no_more(&self.cpu, &instruction) {
            return 0;
        }
        let factory = self
            .information
            .get_or_insert_with(|| Box::new(InstructionInfoFactory::new()));
        let wide = self.cpu.in_64_bit_mode();
        for memory in factory.info(&instruction).used_memory() {
            let address = memory.virtual_address(0, |register, _, _| {
                Some(if register.is_segment_register() {
                    match register {
                        Register::FS | Register::GS => decode::segment(&self.cpu, register).base,
                        _ if wide => 0,
                        _ => decode::segment(&self.cpu, register).base,
                    }
                } else {
                    decode::read_register(&self.cpu, register).unwrap_or(0)
                })
            });
            let Some(address) = address else { continue };
            let address = if wide { address } else { address & 0xffff_ffff };
            let size = memory.memory_size().size().max(1) as u64;
            let (reads, writes) = match memory.access() {
                OpAccess::Read | OpAccess::CondRead => (true, false),
                OpAccess::Write | OpAccess::CondWrite => (false, true),
                // CMPXCHG always writes.
                OpAccess::ReadWrite | OpAccess::ReadCondWrite => (true, true),
                OpAccess::None | OpAccess::NoMemAccess => (false, false),
            };
            for (on, used) in [(reads, Use::Read), (writes, Use::Write)] {
                if on {
                    found |= matches(debug, used, address, size);
                }
            }
        }
        found
    }

    /// Bytes of code, as many as can be fetched.
    fn fetch(&mut self, linear: u64, bytes: &mut [u8; LONGEST_INSTRUCTION]) -> usize {
        let access = Access::explicit(AccessKind::Fetch, self.cpu.cpl());
        let in_page = (nvmx_core::addr::PAGE_SIZE - linear % nvmx_core::addr::PAGE_SIZE) as usize;
        let first = in_page.min(LONGEST_INSTRUCTION);
        let mut length = 0;
        for (start, end) in [(0, first), (first, LONGEST_INSTRUCTION)] {
            let address = linear.wrapping_add(start as u64);
            let chunk = &mut bytes[start..end];
            let bits = decode::code_bits(&self.cpu);
            // An instruction that ends on this page does not touch the next.
            if chunk.is_empty() {
                continue;
            }
            let Ok(mapping) = self.translate(address, access) else {
                break;
            };
            if self.ram.read(mapping.physical, chunk).is_err() {
                break;
            }
            length = end;
            if decode::decode(&bytes[..length], bits, self.cpu.regs.rip).is_some() {
                break;
            }
        }
        length
    }
}

/// The port that an instruction accesses, and bytes.
fn port(cpu: &Cpu, instruction: &Instruction) -> Option<(u64, u64)> {
    let (operand, data) = match instruction.mnemonic() {
        Mnemonic::In => (1, 0),
        Mnemonic::Out => (0, 1),
        Mnemonic::Insb | Mnemonic::Outsb => return Some((dx(cpu), 1)),
        Mnemonic::Insw | Mnemonic::Outsw => return Some((dx(cpu), 2)),
        Mnemonic::Insd | Mnemonic::Outsd => return Some((dx(cpu), 4)),
        _ => return None,
    };
    let size = instruction.op_register(data).size() as u64;
    let port = match instruction.op_kind(operand) {
        OpKind::Immediate8 => u64::from(instruction.immediate8()),
        _ => dx(cpu),
    };
    Some((port, size))
}

fn dx(cpu: &Cpu) -> u64 {
    cpu.regs.get(Gpr::Rdx) & 0xffff
}

/// Whether a repeated string instruction is at its end: it accesses nothing.
fn repeats_no_more(cpu: &Cpu, instruction: &Instruction) -> bool {
    let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    if !repeated || !instruction.is_string_instruction() {
        return false;
    }
    let count = cpu.regs.get(Gpr::Rcx);
    use nvmx_core::vmx::intercepts::OperandSize;
    match super::operands::address_size(instruction, decode::code_bits(cpu)) {
        OperandSize::Bits16 => count & 0xffff == 0,
        OperandSize::Bits32 => count & 0xffff_ffff == 0,
        OperandSize::Bits64 => count == 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn breakpoints_match_by_kind_length_and_overlap() {
        // DR7: length and R/W of breakpoint 0, all else off; what matches.
        let at = |field: u64, dr0: u64| DebugRegs {
            db: [dr0, 0, 0, 0],
            dr7: 0x402 | field << 16,
            ..DebugRegs::default()
        };
        for (field, dr0, used, address, size, hit) in [
            (0b0001, 0x1000, Use::Write, 0x1000, 1, 1),
            (0b0001, 0x1000, Use::Read, 0x1000, 1, 0),
            (0b0001, 0x1001, Use::Write, 0x1000, 2, 1),
            (0b0001, 0x1002, Use::Write, 0x1000, 2, 0),
            (0b1111, 0x1003, Use::Read, 0x1000, 1, 1),
            (0b1111, 0x1003, Use::Read, 0x0fff, 1, 0),
            (0b1111, 0x1003, Use::Read, 0x0fff, 2, 1),
            (0b1011, 0x1000, Use::Write, 0x1007, 1, 1),
            (0b1011, 0x1000, Use::Write, 0x1008, 1, 0),
            (0b0111, 0x1000, Use::Read, 0x1002, 1, 0),
            (0b0010, 0x80, Use::Port, 0x80, 1, 1),
            (0b0010, 0x80, Use::Write, 0x80, 1, 0),
            (0b0011, 0x80, Use::Port, 0x80, 1, 0),
            (0b0000, 0x80, Use::Read, 0x80, 1, 0),
        ] {
            let debug = at(field, dr0);
            let found = matches(&debug, used, address, size);
            assert_eq!(
                found, hit,
                "{field:#b} {dr0:#x} {used:?} {address:#x} {size}"
            );
        }
        let off = DebugRegs {
            dr7: 0x1_0400,
            ..DebugRegs::default()
        };
        assert_eq!(matches(&off, Use::Write, 0, 8), 0, "not enabled");
    }
}
