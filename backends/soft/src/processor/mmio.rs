//! Accesses to what is no RAM: the local APIC's page, and devices that user space answers for. The
//! engine leaves the instruction un-executed; it is interpreted here.

use super::io::mask;
use super::mmu::Place;
use super::{Done, Outcome, PendingRead, Processor, Trap, unsupported};
use crate::decode;
use iced_x86::{Instruction, Mnemonic, OpKind};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::apic::{ApicEffect, is_lowest_priority};
use nvmx_core::paging::{Access, AccessKind};
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::Exception;
use nvmx_core::x86::control::{ARITHMETIC_FLAGS, rflags};

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
        let Some(operand) =
            (0..instruction.op_count()).find(|&i| instruction.op_kind(i) == OpKind::Memory)
        else {
            return Err(self.cannot(instruction));
        };
        let size = instruction.memory_size().size() as u8;
        if !matches!(size, 1 | 2 | 4 | 8) {
            return Err(self.cannot(instruction));
        }
        match (instruction.mnemonic(), operand) {
            (Mnemonic::Mov, 0) => {
                let value = self.source(instruction, 1)?;
                self.device_write(instruction, operand, size, value)
            }
            (Mnemonic::Mov | Mnemonic::Movzx | Mnemonic::Movsx | Mnemonic::Movsxd, 1)
            | (Mnemonic::Test | Mnemonic::Cmp, _) => {
                match self.device_read(instruction, operand, size)? {
                    Some(value) => self.complete_load(instruction, size, value),
                    None => Ok(Done::Jumped),
                }
            }
            (Mnemonic::Xchg, _) => {
                let register = instruction.op_register(1 - operand);
                let other = self.source(instruction, 1 - operand)?;
                let Some(value) = self.device_read(instruction, operand, size)? else {
                    return Err(self.cannot(instruction));
                };
                let done = self.device_write(instruction, operand, size, other)?;
                decode::write_register(&mut self.cpu, register, value);
                Ok(done)
            }
            (Mnemonic::And | Mnemonic::Or | Mnemonic::Xor, _) => {
                let Some(value) = self.device_read(instruction, operand, size)? else {
                    return Err(self.cannot(instruction));
                };
                let other = self.source(instruction, 1 - operand)?;
                let result = mask(logic(instruction.mnemonic(), value, other), size);
                self.logic_flags(result, size);
                if operand == 0 {
                    self.device_write(instruction, operand, size, result)
                } else {
                    decode::write_register(&mut self.cpu, instruction.op0_register(), result);
                    Ok(Done::Retired)
                }
            }
            _ => Err(self.cannot(instruction)),
        }
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

    /// `Ok(None)` is impossible for the APIC and RAM; for a device the exit to user space is an `Err`.
    fn device_read(
        &mut self,
        instruction: &Instruction,
        operand: u32,
        size: u8,
    ) -> Result<Option<u64>, Trap> {
        match self.locate(instruction, operand, size, AccessKind::Read)? {
            Place::Ram(address) => {
                let mut bytes = [0; 8];
                let _ = nvmx_core::memory::GuestMemory::read(
                    &self.ram,
                    L1Phys(address),
                    &mut bytes[..usize::from(size)],
                );
                Ok(Some(u64::from_le_bytes(bytes)))
            }
            Place::ApicAccess(offset) => {
                let mut bytes = [0; 8];
                let length = usize::from(size);
                self.read_apic_page(offset, &mut bytes[..length], length)?;
                Ok(Some(u64::from_le_bytes(bytes)))
            }
            Place::Device(address) if self.is_apic_page(address) => {
                // Registers are 32 bits at 16-byte steps (SDM Vol. 3A "The Local APIC Block Diagram").
                let offset = (address % PAGE_SIZE) as u16;
                let word = self.apic.read(offset & !3, self.cpu.tsc.l1());
                Ok(Some(mask(u64::from(word) >> (8 * (offset & 3)), size)))
            }
            Place::Device(address) => {
                if !matches!(
                    instruction.mnemonic(),
                    Mnemonic::Mov
                        | Mnemonic::Movzx
                        | Mnemonic::Movsx
                        | Mnemonic::Movsxd
                        | Mnemonic::Test
                        | Mnemonic::Cmp
                ) {
                    return Err(self.cannot(instruction));
                }
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
        match self.locate(instruction, operand, size, AccessKind::Write)? {
            Place::Ram(address) => {
                let bytes = value.to_le_bytes();
                let _ = nvmx_core::memory::GuestMemory::write(
                    &self.ram,
                    L1Phys(address),
                    &bytes[..usize::from(size)],
                );
                Ok(Done::Retired)
            }
            Place::ApicAccess(offset) => {
                self.write_apic_page(offset, &value.to_le_bytes()[..usize::from(size)])?;
                Ok(Done::Retired)
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
                Ok(Done::Retired)
            }
            Place::Device(address) => {
                self.retire(instruction.len());
                Err(Trap::User(Exit::MmioWrite {
                    address: L1Phys(address),
                    size,
                    value: mask(value, size),
                }))
            }
        }
    }

    /// Completes a load with the value that was read.
    pub(crate) fn complete_load(
        &mut self,
        instruction: &Instruction,
        size: u8,
        value: u64,
    ) -> Outcome {
        let value = mask(value, size);
        match instruction.mnemonic() {
            Mnemonic::Movsx | Mnemonic::Movsxd => {
                let shift = 64 - 8 * u32::from(size);
                let extended = ((value << shift) as i64 >> shift) as u64;
                decode::write_register(&mut self.cpu, instruction.op0_register(), extended);
            }
            Mnemonic::Test => {
                let other = self.source(instruction, 1)?;
                self.logic_flags(mask(value & other, size), size);
            }
            Mnemonic::Cmp => {
                let memory_first = instruction.op0_kind() == OpKind::Memory;
                let other = mask(self.source(instruction, u32::from(memory_first))?, size);
                let (a, b) = if memory_first {
                    (value, other)
                } else {
                    (other, value)
                };
                self.compare_flags(a, b, size);
            }
            _ => decode::write_register(&mut self.cpu, instruction.op0_register(), value),
        }
        Ok(Done::Retired)
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
                if !picked && let Some(exit) = self.receive(command, true) {
                    return Err(Trap::User(exit));
                }
            }
        }
        Ok(())
    }

    fn logic_flags(&mut self, result: u64, size: u8) {
        self.set_flags(result, size, 0);
    }

    fn compare_flags(&mut self, a: u64, b: u64, size: u8) {
        let result = mask(a.wrapping_sub(b), size);
        let sign = 1 << (u32::from(size) * 8 - 1);
        let mut flags = 0;
        for (on, flag) in [
            (a < b, rflags::CF),
            ((a ^ b ^ result) & 0x10 != 0, rflags::AF),
            ((a ^ b) & (a ^ result) & sign != 0, rflags::OF),
        ] {
            if on {
                flags |= flag;
            }
        }
        self.set_flags(result, size, flags);
    }

    fn set_flags(&mut self, result: u64, size: u8, others: u64) {
        let sign = 1 << (u32::from(size) * 8 - 1);
        let mut flags = others;
        for (on, flag) in [
            (result == 0, rflags::ZF),
            (result & sign != 0, rflags::SF),
            ((result as u8).count_ones().is_multiple_of(2), rflags::PF),
        ] {
            if on {
                flags |= flag;
            }
        }
        self.cpu.regs.rflags = self.cpu.regs.rflags & !ARITHMETIC_FLAGS | flags;
    }
}

const fn logic(mnemonic: Mnemonic, a: u64, b: u64) -> u64 {
    match mnemonic {
        Mnemonic::And => a & b,
        Mnemonic::Or => a | b,
        _ => a ^ b,
    }
}
