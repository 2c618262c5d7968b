//! Descriptors and the task-state segment as delivery reads them (SDM Vol. 3A "Segment Descriptors",
//! "Task-State Segment (TSS)", "64-Bit Task State Segment").

use super::{DeliveryFault, LinearMemory, Privilege};
use crate::cpu::Cpu;
use crate::x86::control::efer;
use crate::x86::cr_write::is_canonical;
use crate::x86::{AccessRights, Exception, Segment};

/// A linear address: 32 bits outside IA-32e mode.
pub(super) const fn linear(cpu: &Cpu, base: u64, offset: u32) -> u64 {
    let address = base.wrapping_add(offset as u64);
    if cpu.sregs.efer & efer::LMA != 0 {
        address
    } else {
        address & 0xffff_ffff
    }
}

/// Whether a system structure may be read there: in IA-32e mode its address has to be canonical (SDM
/// Vol. 1 "Canonical Addressing").
pub(super) fn is_addressable(cpu: &Cpu, address: u64) -> bool {
    cpu.sregs.efer & efer::LMA == 0 || is_canonical(address, cpu.linear_width())
}

/// An exception with a selector as error code.
pub(super) const fn fault(vector: u8, selector: u16, external: bool) -> DeliveryFault {
    DeliveryFault::Exception(Exception {
        vector,
        error_code: Some((selector & 0xfffc) as u32 | external as u32),
        payload: 0,
    })
}

/// A segment descriptor and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Descriptor {
    pub(super) address: u64,
    low: u32,
    high: u32,
}

impl Descriptor {
    /// Reads the descriptor that `selector` names; beyond the table is `vector` with the selector.
    pub(super) fn read<L: LinearMemory + ?Sized>(
        cpu: &Cpu,
        memory: &mut L,
        selector: u16,
        vector: u8,
        external: bool,
    ) -> Result<Self, DeliveryFault> {
        let beyond = fault(vector, selector, external);
        let (base, limit) = if selector & 4 == 0 {
            (cpu.sregs.gdtr.base, u32::from(cpu.sregs.gdtr.limit))
        } else if cpu.sregs.ldtr.is_usable() {
            (cpu.sregs.ldtr.base, cpu.sregs.ldtr.limit)
        } else {
            return Err(beyond);
        };
        let offset = u32::from(selector & 0xfff8);
        if offset + 7 > limit {
            return Err(beyond);
        }
        let address = linear(cpu, base, offset);
        if !is_addressable(cpu, address) {
            return Err(fault(Exception::GP, selector, external));
        }
        let mut bytes = [0; 8];
        memory.read(address, &mut bytes, Privilege::ImplicitSupervisor)?;
        let value = u64::from_le_bytes(bytes);
        Ok(Self {
            address,
            low: value as u32,
            high: (value >> 32) as u32,
        })
    }

    pub(super) const fn rights(&self) -> AccessRights {
        AccessRights::from_descriptor_high(self.high)
    }

    pub(super) const fn is(&self, rights: AccessRights) -> bool {
        self.rights().contains(rights)
    }

    /// The selector that a gate holds.
    pub(super) const fn gate_selector(&self) -> u16 {
        (self.low >> 16) as u16
    }

    /// The segment register that a load makes of it, accessed bit set.
    pub(super) const fn segment(&self, selector: u16) -> Segment {
        let raw = self.low & 0xffff | self.high & 0xf_0000;
        let limit = if self.is(AccessRights::GRANULARITY) {
            raw << 12 | 0xfff
        } else {
            raw
        };
        let base = self.low >> 16 | (self.high & 0xff) << 16 | self.high & 0xff00_0000;
        Segment {
            selector,
            base: base as u64,
            limit,
            ar: self.rights().union(AccessRights::ACCESSED),
        }
    }

    /// Sets or clears the busy flag of a TSS descriptor in memory.
    pub(super) fn set_busy<L: LinearMemory + ?Sized>(
        &self,
        memory: &mut L,
        busy: bool,
    ) -> Result<(), DeliveryFault> {
        const BUSY: u8 = 2;
        let byte = (self.high >> 8) as u8;
        let byte = if busy { byte | BUSY } else { byte & !BUSY };
        let address = self.address.wrapping_add(5);
        memory.write(address, &[byte], Privilege::ImplicitSupervisor)?;
        Ok(())
    }

    /// Sets the accessed bit in memory, as a load does.
    pub(super) fn set_accessed<L: LinearMemory + ?Sized>(
        &self,
        memory: &mut L,
    ) -> Result<(), DeliveryFault> {
        if !self.is(AccessRights::ACCESSED) {
            let byte = (self.high >> 8) as u8 | 1;
            memory.write(
                self.address.wrapping_add(5),
                &[byte],
                Privilege::ImplicitSupervisor,
            )?;
        }
        Ok(())
    }
}

/// Reads `length` (at most 8) bytes of the current TSS; beyond its limit is #TS.
pub(super) fn read_tss<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    offset: u32,
    length: usize,
    external: bool,
) -> Result<u64, DeliveryFault> {
    let tr = &cpu.sregs.tr;
    if offset + length as u32 - 1 > tr.limit {
        return Err(fault(Exception::TS, tr.selector, external));
    }
    let mut bytes = [0; 8];
    memory.read(
        linear(cpu, tr.base, offset),
        &mut bytes[..length],
        Privilege::ImplicitSupervisor,
    )?;
    Ok(u64::from_le_bytes(bytes))
}
