//! Accesses to what is no RAM: the local APIC's page, and devices that user space answers for. The
//! engine leaves the instruction un-executed; it is interpreted here.

use super::alu;
use super::flags::holds;
use super::io::mask;
use super::mmu::Place;
use super::{Done, Outcome, PendingRead, Processor, Trap, unsupported};
use crate::decode;
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind, Register};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::apic::{ApicEffect, is_lowest_priority};
use nvmx_core::paging::{Access, AccessKind};
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::{Exception, Gpr};

impl Processor {
    /// Interprets the instruction at RIP, which touches a device.
    pub(crate) fn mmio(&mut self, bytes: &[u8]) -> Option<Exit> {
        let bits = decode::code_bits(&self.cpu);
        let (outcome, length) = match decode::decode(bytes, bits, self.cpu.regs.rip) {
            None => (Err(Exception::UNDEFINED.into()), 0),
            Some(instruction) => (self.device_access(&instruction), instruction.len()),
        };
        self.settle(outcome, length).or_else(|| self.boundary())
    }

    fn device_access(&mut self, instruction: &Instruction) -> Outcome {
        if instruction.is_string_instruction() {
            return self.string_access(instruction);
        }
        let Some(operand) =
            (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
        else {
            return Err(self.cannot(instruction));
        };
        let size = instruction.memory_size().size() as u8;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(self.cannot(instruction));
        }
        if operand == 0 && matches!(instruction.mnemonic(), Mnemonic::Mov | Mnemonic::Movnti) {
            let value = self.source(instruction, 1)?;
            return self.device_write(instruction, operand, size, value);
        }
        if !self.completes(instruction) {
            return Err(self.cannot(instruction));
        }
        let value = self.device_read(instruction, operand, size)?;
        self.complete_load(instruction, size, value)
    }

    /// One iteration of MOVS, STOS or LODS.
    fn string_access(&mut self, instruction: &Instruction) -> Outcome {
        let size = instruction.memory_size().size() as u8;
        if self.repeats(instruction) && self.count(instruction) == 0 {
            return Ok(Done::Retired);
        }
        match instruction.mnemonic() {
            Mnemonic::Stosb | Mnemonic::Stosw | Mnemonic::Stosd | Mnemonic::Stosq => {
                let value = mask(self.cpu.regs.get(Gpr::Rax), size);
                let exit = self.store(instruction, 0, size, value)?;
                self.advance(instruction, Register::RDI, size, exit)
            }
            Mnemonic::Lodsb
            | Mnemonic::Lodsw
            | Mnemonic::Lodsd
            | Mnemonic::Lodsq
            | Mnemonic::Movsb
            | Mnemonic::Movsw
            | Mnemonic::Movsd
            | Mnemonic::Movsq => {
                let value = self.device_read(instruction, 1, size)?;
                self.complete_load(instruction, size, value)
            }
            _ => Err(self.cannot(instruction)),
        }
    }

    fn repeats(&self, instruction: &Instruction) -> bool {
        instruction.has_rep_prefix() || instruction.has_repne_prefix()
    }

    /// Ends one iteration of a string instruction, which may have left a write for user space.
    fn advance(
        &mut self,
        instruction: &Instruction,
        index: Register,
        size: u8,
        exit: Option<Exit>,
    ) -> Outcome {
        let repeated = self.repeats(instruction);
        self.advance_string(instruction, index, size, repeated);
        match exit {
            None => Ok(Done::Jumped),
            Some(exit) => Err(Trap::User(exit)),
        }
    }

    /// Whether [`Processor::complete_load`] knows the instruction.
    fn completes(&self, instruction: &Instruction) -> bool {
        let mnemonic = instruction.mnemonic();
        let known = matches!(
            mnemonic,
            Mnemonic::Mov
                | Mnemonic::Movzx
                | Mnemonic::Movsx
                | Mnemonic::Movsxd
                | Mnemonic::Xchg
                | Mnemonic::Xadd
                | Mnemonic::Cmpxchg
        ) || is_cmov(instruction)
            || match instruction.op_count() {
                1 => alu::unary(mnemonic, 0, 1, 0).is_some(),
                2 => alu::binary(mnemonic, 0, 0, 1, 0).is_some(),
                _ => false,
            };
        let gprs = (0..instruction.op_count()).all(|operand| {
            instruction.op_kind(operand) != OpKind::Register
                || instruction.op_register(operand).is_gpr()
        });
        // A bit's number in a register reaches beyond the operand.
        let far_bit = matches!(
            mnemonic,
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc
        ) && instruction.op1_kind() == OpKind::Register;
        known && gprs && !far_bit
    }

    pub(super) fn cannot(&self, instruction: &Instruction) -> Trap {
        unsupported(format!(
            "{:?} on memory-mapped I/O at RIP {:#x}, SDM Vol. 3A \"Memory-Mapped I/O\"",
            instruction.code(),
            self.cpu.regs.rip
        ))
    }

    fn source(&self, instruction: &Instruction, operand: u32) -> Result<u64, Trap> {
        match instruction.op_kind(operand) {
            OpKind::Register => decode::read_register(&self.cpu, instruction.op_register(operand))
                .ok_or_else(|| self.cannot(instruction)),
            _ => instruction
                .try_immediate(operand)
                .map_err(|_| self.cannot(instruction)),
        }
    }

    fn locate(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        size: u8,
        kind: AccessKind,
    ) -> Result<Place, Trap> {
        let write = kind == AccessKind::Write;
        let address = decode::resolve(&self.cpu, instruction, operand, u64::from(size), write)?;
        if address.linear % PAGE_SIZE + u64::from(size) > PAGE_SIZE {
            // One half may be RAM.
            return Err(self.cannot(instruction));
        }
        Ok(self.place(address.linear, Access::explicit(kind, self.cpu.cpl()))?)
    }

    /// Reads the operand; where user space must answer, its exit is the `Err`, and
    /// [`Processor::complete_load`] goes on from there.
    fn device_read(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        size: u8,
    ) -> Result<u64, Trap> {
        let place = self.locate(instruction, operand, size, AccessKind::Read)?;
        if operand == 0 && !is_read_only(instruction.mnemonic()) {
            // What writes afterwards faults before it has read.
            self.locate(instruction, operand, size, AccessKind::Write)?;
        }
        match place {
            Place::Ram(address) => {
                let mut bytes = [0; 8];
                let _ = nvmx_core::memory::GuestMemory::read(
                    &self.ram,
                    L1Phys(address),
                    &mut bytes[..usize::from(size)],
                );
                Ok(u64::from_le_bytes(bytes))
            }
            Place::ApicAccess(offset) => {
                let mut bytes = [0; 8];
                let length = usize::from(size);
                self.read_apic_page(offset, &mut bytes[..length], length)?;
                Ok(u64::from_le_bytes(bytes))
            }
            Place::Device(address) if self.is_apic_page(address) => {
                // Registers are 32 bits at 16-byte steps (SDM Vol. 3A "The Local APIC Block Diagram").
                let offset = (address % PAGE_SIZE) as u16;
                let word = self.apic.read(offset & !3, self.cpu.tsc.l1());
                Ok(mask(u64::from(word) >> (8 * (offset & 3)), size))
            }
            Place::Device(address) => {
                self.pending_read = Some(PendingRead::Mmio {
                    size,
                    instruction: *instruction,
                });
                Err(Trap::User(Exit::MmioRead {
                    address: L1Phys(address),
                    size,
                }))
            }
        }
    }

    pub(super) fn device_write(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        size: u8,
        value: u64,
    ) -> Outcome {
        let exit = self.store(instruction, operand, size, value)?;
        self.stored(instruction, exit)
    }

    /// Writes the operand; `Some` is the write that user space must see.
    fn store(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        size: u8,
        value: u64,
    ) -> Result<Option<Exit>, Trap> {
        match self.locate(instruction, operand, size, AccessKind::Write)? {
            Place::Ram(address) => {
                let bytes = value.to_le_bytes();
                let _ = nvmx_core::memory::GuestMemory::write(
                    &self.ram,
                    L1Phys(address),
                    &bytes[..usize::from(size)],
                );
                Ok(None)
            }
            Place::ApicAccess(offset) => {
                self.write_apic_page(offset, &value.to_le_bytes()[..usize::from(size)])?;
                Ok(None)
            }
            Place::Device(address) if self.is_apic_page(address) => {
                if size == 4 && address % 16 == 0 {
                    let effect = self.apic.write(
                        (address % PAGE_SIZE) as u16,
                        value as u32,
                        self.cpu.tsc.l1(),
                    );
                    self.apic_effect(effect)?;
                }
                Ok(None)
            }
            Place::Device(address) => Ok(Some(Exit::MmioWrite {
                address: L1Phys(address),
                size,
                value: mask(value, size),
            })),
        }
    }

    /// Goes on with the value that was read: into a register, or through the operation and back.
    pub(crate) fn complete_load(
        &mut self,
        instruction: &Instruction,
        size: u8,
        value: u64,
    ) -> Outcome {
        let value = mask(value, size);
        let flags = self.cpu.regs.rflags;
        let destination = instruction.op0_register();
        let memory_first = instruction.op0_kind() == OpKind::Memory;
        if instruction.is_string_instruction() {
            let mut exit = None;
            if instruction.op0_kind() == OpKind::Register {
                decode::write_register(&mut self.cpu, destination, value);
            } else {
                exit = self.store(instruction, 0, size, value)?;
                self.step_index(instruction, Register::RDI, size);
            }
            return self.advance(instruction, Register::RSI, size, exit);
        }
        match instruction.mnemonic() {
            Mnemonic::Mov | Mnemonic::Movzx => {
                decode::write_register(&mut self.cpu, destination, value);
                return Ok(Done::Retired);
            }
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let shift = 64 - 8 * u32::from(size);
                let extended = ((value << shift) as i64 >> shift) as u64;
                decode::write_register(&mut self.cpu, destination, extended);
                return Ok(Done::Retired);
            }
            _ if is_cmov(instruction) => {
                // A 32-bit destination loses its upper half either way.
                let new = if holds(instruction.condition_code(), flags) {
                    value
                } else {
                    self.source(instruction, 0)?
                };
                decode::write_register(&mut self.cpu, destination, new);
                return Ok(Done::Retired);
            }
            Mnemonic::Xchg => {
                let operand = u32::from(!memory_first);
                let register = instruction.op_register(1 - operand);
                let other = self.source(instruction, 1 - operand)?;
                let exit = self.store(instruction, operand, size, other)?;
                decode::write_register(&mut self.cpu, register, value);
                return self.stored(instruction, exit);
            }
            Mnemonic::Cmpxchg => {
                let accumulator = self.cpu.regs.get(Gpr::Rax);
                let register = accumulator_of(size);
                let result = alu::binary(Mnemonic::Cmp, accumulator, value, size, flags);
                let equal = mask(accumulator, size) == value;
                // The destination is written in either case (SDM Vol. 2 "CMPXCHG").
                let new = if equal {
                    self.source(instruction, 1)?
                } else {
                    value
                };
                let exit = self.store(instruction, 0, size, new)?;
                if !equal {
                    decode::write_register(&mut self.cpu, register, value);
                }
                self.cpu.regs.rflags = result.map_or(flags, |result| result.flags);
                return self.stored(instruction, exit);
            }
            _ => {}
        }
        let mnemonic = instruction.mnemonic();
        let result = if instruction.op_count() == 1 {
            alu::unary(mnemonic, value, size, flags)
        } else if memory_first {
            alu::binary(mnemonic, value, self.source(instruction, 1)?, size, flags)
        } else {
            alu::binary(mnemonic, self.source(instruction, 0)?, value, size, flags)
        };
        let Some(result) = result else {
            return Err(self.cannot(instruction));
        };
        let exit = match result.value {
            Some(new) if memory_first => self.store(instruction, 0, size, new)?,
            Some(new) => {
                decode::write_register(&mut self.cpu, destination, new);
                None
            }
            None => None,
        };
        if mnemonic == Mnemonic::Xadd {
            decode::write_register(&mut self.cpu, instruction.op1_register(), value);
        }
        self.cpu.regs.rflags = result.flags;
        self.stored(instruction, exit)
    }

    fn stored(&mut self, instruction: &Instruction, exit: Option<Exit>) -> Outcome {
        match exit {
            None => Ok(Done::Retired),
            Some(exit) => {
                self.retire(instruction.len());
                Err(Trap::User(exit))
            }
        }
    }

    /// What the APIC asks of the machine after a write.
    pub(super) fn apic_effect(&mut self, effect: ApicEffect) -> Result<(), Trap> {
        match effect {
            ApicEffect::None | ApicEffect::Timer => {}
            // Told to user space at the boundary behind the instruction.
            ApicEffect::EndOfInterrupt(vector) => self.outside.eoi = Some(vector),
            ApicEffect::Ipi(command) => {
                if self.outside.peers {
                    self.outside.outbox = Some(command);
                    self.outside.leave = true;
                }
                // Lowest priority is for one of all, whom the machine picks.
                let picked = self.outside.peers && is_lowest_priority(command);
                if !picked {
                    self.receive(command, true);
                }
            }
        }
        Ok(())
    }
}

/// Whether the instruction leaves a first operand in memory as it is.
const fn is_read_only(mnemonic: Mnemonic) -> bool {
    matches!(mnemonic, Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Bt)
}

/// CMOVcc of general-purpose registers.
fn is_cmov(instruction: &Instruction) -> bool {
    instruction.condition_code() != ConditionCode::None
        && instruction.op_count() == 2
        && instruction.op0_register().is_gpr()
}

const fn accumulator_of(size: u8) -> Register {
    match size {
        1 => Register::AL,
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    }
}
