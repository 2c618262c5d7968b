//! IN, OUT, INS, OUTS (SDM Vol. 1 "Input/Output", Vol. 3C "Instructions That Cause VM Exits
//! Conditionally"): permission, L1's wish, then user space.

use super::{Done, Outcome, PendingRead, Processor, Trap, operands};
use crate::decode;
use iced_x86::{Code, Instruction, OpKind, Register};
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::exit::qualification::IoAccess;
use nvmx_core::vmx::intercepts::string_io_information;
use nvmx_core::x86::control::{cr0, iopl, rflags};
use nvmx_core::x86::{Exception, Gpr};

/// What the instruction does.
#[derive(Debug, Clone, Copy)]
struct Port {
    number: u16,
    size: u8,
    input: bool,
    string: bool,
    immediate: bool,
}

fn port_of(instruction: &Instruction, dx: u16) -> Option<Port> {
    use Code::*;
    let (size, input, string) = match instruction.code() {
        In_AL_imm8 | In_AL_DX => (1, true, false),
        In_AX_imm8 | In_AX_DX => (2, true, false),
        In_EAX_imm8 | In_EAX_DX => (4, true, false),
        Out_imm8_AL | Out_DX_AL => (1, false, false),
        Out_imm8_AX | Out_DX_AX => (2, false, false),
        Out_imm8_EAX | Out_DX_EAX => (4, false, false),
        Insb_m8_DX => (1, true, true),
        Insw_m16_DX => (2, true, true),
        Insd_m32_DX => (4, true, true),
        Outsb_DX_m8 => (1, false, true),
        Outsw_DX_m16 => (2, false, true),
        Outsd_DX_m32 => (4, false, true),
        _ => return None,
    };
    let immediate =
        (0..instruction.op_count()).any(|i| instruction.op_kind(i) == OpKind::Immediate8);
    let number = if immediate {
        u16::from(instruction.immediate8())
    } else {
        dx
    };
    Some(Port {
        number,
        size,
        input,
        string,
        immediate,
    })
}

impl Processor {
    /// An I/O instruction, or one iteration of a repeated one.
    pub(super) fn io(&mut self, instruction: &Instruction) -> Outcome {
        let dx = self.cpu.regs.get(Gpr::Rdx) as u16;
        let Some(port) = port_of(instruction, dx) else {
            return Err(Exception::UNDEFINED.into());
        };
        self.check_io_permission(&port)?;
        let repeated =
            port.string && (instruction.has_rep_prefix() || instruction.has_repne_prefix());
        if repeated && self.count(instruction) == 0 {
            return Ok(Done::Retired);
        }
        let operand = u32::from(!port.input);
        if self.in_l2() {
            let access = IoAccess {
                port: port.number,
                size: port.size,
                is_in: port.input,
                is_string: port.string,
                is_rep: repeated,
                is_immediate: port.immediate,
            };
            // The exit goes before every fault of a string instruction's operand (SDM Vol. 3C "Relative
            // Priority of Faults and VM Exits").
            let string = port.string.then(|| {
                let linear = decode::unchecked_linear(&self.cpu, instruction, operand);
                (linear, self.string_information(instruction, &port))
            });
            self.exit_if(
                self.intercepts
                    .io(&self.ram, access, string, instruction.len() as u32),
            )?;
        }
        let address = if port.string {
            let size = u64::from(port.size);
            Some(decode::resolve(
                &self.cpu,
                instruction,
                operand,
                size,
                port.input,
            )?)
        } else {
            None
        };
        if port.input {
            if let Some(address) = address {
                // The port is read only if what it gives can be stored.
                self.check_write(address.linear, u64::from(port.size))?;
            }
            self.pending_read = Some(PendingRead::Io {
                size: port.size,
                instruction: *instruction,
            });
            return Err(Trap::User(Exit::IoIn {
                port: port.number,
                size: port.size,
            }));
        }
        let value = match address {
            None => mask(self.cpu.regs.get(Gpr::Rax), port.size) as u32,
            Some(address) => {
                let mut bytes = [0; 4];
                self.read_linear(address.linear, &mut bytes[..usize::from(port.size)])?;
                u32::from_le_bytes(bytes)
            }
        };
        if port.string {
            self.advance_string(instruction, Register::RSI, port.size, repeated);
        } else {
            self.retire(instruction.len());
        }
        Err(Trap::User(Exit::IoOut {
            port: port.number,
            size: port.size,
            value,
        }))
    }

    fn string_information(&self, instruction: &Instruction, port: &Port) -> u32 {
        let size = operands::address_size(instruction, decode::code_bits(&self.cpu));
        let segment = (!port.input).then(|| operands::segment(instruction.memory_segment()));
        string_io_information(size, segment)
    }

    /// Completes IN or INS with what user space read.
    pub(crate) fn complete_in(
        &mut self,
        instruction: &Instruction,
        size: u8,
        value: u64,
    ) -> Outcome {
        let dx = self.cpu.regs.get(Gpr::Rdx) as u16;
        let string = port_of(instruction, dx).is_some_and(|port| port.string);
        if !string {
            let register = match size {
                1 => Register::AL,
                2 => Register::AX,
                _ => Register::EAX,
            };
            decode::write_register(&mut self.cpu, register, value);
            return Ok(Done::Retired);
        }
        let address = decode::resolve(&self.cpu, instruction, 0, u64::from(size), true)?;
        self.write_linear(address.linear, &value.to_le_bytes()[..usize::from(size)])?;
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        self.advance_string(instruction, Register::RDI, size, repeated);
        Ok(Done::Jumped)
    }

    /// One iteration is done: index and count move, RIP once the count is spent.
    pub(super) fn advance_string(
        &mut self,
        instruction: &Instruction,
        index: Register,
        size: u8,
        repeated: bool,
    ) {
        self.step_index(instruction, index, size);
        let count = match address_size(instruction, decode::code_bits(&self.cpu)) {
            64 => Register::RCX,
            32 => Register::ECX,
            _ => Register::CX,
        };
        if repeated {
            let left = decode::read_register(&self.cpu, count)
                .unwrap_or(0)
                .wrapping_sub(1);
            decode::write_register(&mut self.cpu, count, left);
            if self.count(instruction) != 0 {
                // The next iteration is an instruction of its own for interrupts and for the count.
                self.retire(0);
                return;
            }
        }
        self.retire(instruction.len());
    }

    /// Moves RSI or RDI by one element.
    pub(super) fn step_index(&mut self, instruction: &Instruction, index: Register, size: u8) {
        let index = match address_size(instruction, decode::code_bits(&self.cpu)) {
            64 => index,
            32 => index.full_register32(),
            _ if index == Register::RSI => Register::SI,
            _ => Register::DI,
        };
        let old = decode::read_register(&self.cpu, index).unwrap_or(0);
        let step = if self.cpu.regs.rflags & rflags::DF == 0 {
            i64::from(size)
        } else {
            -i64::from(size)
        };
        decode::write_register(&mut self.cpu, index, old.wrapping_add_signed(step));
    }

    pub(super) fn count(&self, instruction: &Instruction) -> u64 {
        let count = self.cpu.regs.get(Gpr::Rcx);
        match address_size(instruction, decode::code_bits(&self.cpu)) {
            64 => count,
            32 => count & 0xffff_ffff,
            _ => count & 0xffff,
        }
    }

    /// IOPL and the I/O permission bitmap of the TSS (SDM Vol. 1 "I/O Privilege Level",
    /// "I/O Permission Bit Map").
    fn check_io_permission(&mut self, port: &Port) -> Result<(), Trap> {
        let flags = self.cpu.regs.rflags;
        let virtual_8086 = flags & rflags::VM != 0;
        if self.cpu.sregs.cr0 & cr0::PE == 0 || (!virtual_8086 && self.cpu.cpl() <= iopl(flags)) {
            return Ok(());
        }
        let denied = Trap::Fault(Exception::GENERAL_PROTECTION);
        let tr = self.cpu.sregs.tr;
        let map_base_offset = 0x66;
        let is_32_bit = tr.ar.segment_type() & 0xb == 0xb || tr.ar.segment_type() == 9;
        if !tr.is_usable() || !is_32_bit || tr.limit < map_base_offset + 1 {
            return Err(denied);
        }
        let mut bytes = [0; 2];
        self.read_system(tr.base + u64::from(map_base_offset), &mut bytes)?;
        let offset = u32::from(u16::from_le_bytes(bytes)) + u32::from(port.number / 8);
        if offset + 1 > tr.limit {
            return Err(denied);
        }
        self.read_system(tr.base + u64::from(offset), &mut bytes)?;
        let bits = u16::from_le_bytes(bytes) >> (port.number % 8) & ((1 << port.size) - 1);
        if bits == 0 { Ok(()) } else { Err(denied) }
    }
}

fn address_size(instruction: &Instruction, bits: u32) -> u32 {
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemorySegSI => return 16,
            OpKind::MemoryESEDI | OpKind::MemorySegESI => return 32,
            OpKind::MemoryESRDI | OpKind::MemorySegRSI => return 64,
            _ => {}
        }
    }
    bits
}

/// The low `size` bytes of a value.
pub(super) const fn mask(value: u64, size: u8) -> u64 {
    if size >= 8 {
        value
    } else {
        value & ((1 << (size * 8)) - 1)
    }
}
