//! Linear memory of the processor: the model's own accesses (descriptor tables, stacks, operands of
//! interpreted instructions) through the same page walks that fill the engine's TLB.

use super::Processor;
use crate::engine::Access as EngineAccess;
use crate::ram::Reach;
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::delivery::{LinearMemory, Privilege};
use nvmx_core::memory::GuestMemory;
use nvmx_core::paging::{self, Access, AccessKind, Regime, WalkFault};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::ept::Ept;

/// Where a linear access goes.
pub(crate) enum Place {
    /// RAM at this address of L1.
    Ram(u64),
    /// No RAM there: a device, or nothing.
    Device(u64),
    /// L2's APIC-access page, at this offset.
    ApicAccess(u16),
}

impl Processor {
    /// Builds anew what page walks depend on. Call when a control register, EFER or the level changed.
    pub(crate) fn rebuild_regime(&mut self) {
        self.regime = Regime::new(&self.cpu, Ept::of_l2(&self.cpu));
    }

    /// Puts the index of the page-modification log back where L1 reads it.
    #[inline]
    pub(crate) fn keep_log_index(&mut self) {
        if let Some(log) = self.regime.ept.as_ref().and_then(|ept| ept.log.as_ref()) {
            self.cpu
                .vmx
                .vmcs12
                .set(Field::GUEST_PML_INDEX, u64::from(log.index.get()));
        }
    }

    /// Translates one access, setting accessed and dirty flags.
    #[inline]
    pub(crate) fn translate(
        &mut self,
        linear: u64,
        access: Access,
    ) -> Result<paging::Mapping, WalkFault> {
        self.regime.alignment_check =
            self.cpu.regs.rflags & nvmx_core::x86::control::rflags::AC != 0;
        let mapping = paging::translate(&self.ram, &self.regime, linear, access);
        self.keep_log_index();
        mapping
    }

    /// Where one access goes.
    pub(crate) fn place(&mut self, linear: u64, access: Access) -> Result<Place, WalkFault> {
        let physical = self.translate(linear, access)?.physical.0;
        let write = access.kind == AccessKind::Write;
        Ok(
            if self.apic_virtualization.is_access_page(L1Phys(physical)) {
                Place::ApicAccess((physical % PAGE_SIZE) as u16)
            } else if self.is_apic_page(physical)
                || self.ram.reach(physical, write) == Reach::Device
            {
                Place::Device(physical)
            } else {
                Place::Ram(physical)
            },
        )
    }

    /// Whether the local APIC answers at this address (SDM Vol. 3A "Local APIC Status and Location").
    pub(crate) fn is_apic_page(&self, physical: u64) -> bool {
        self.apic.mmio_base() == Some(physical & !(PAGE_SIZE - 1))
    }

    /// Reads an operand of an interpreted instruction at the current privilege level. What is no RAM
    /// reads as all ones.
    pub(crate) fn read_linear(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), WalkFault> {
        let access = Access::explicit(AccessKind::Read, self.cpu.cpl());
        self.read_with(linear, buffer, access)
    }

    /// Writes an operand of an interpreted instruction: whole or not at all.
    pub(crate) fn write_linear(&mut self, linear: u64, bytes: &[u8]) -> Result<(), WalkFault> {
        let access = Access::explicit(AccessKind::Write, self.cpu.cpl());
        self.write_with(linear, bytes, access)
    }

    /// Whether an operand of the current privilege level may be written, all of it.
    pub(super) fn check_write(&mut self, linear: u64, length: u64) -> Result<(), WalkFault> {
        self.check(linear, length, AccessKind::Write)
    }

    /// Whether an operand of the current privilege level may be read, all of it.
    pub(super) fn check_read(&mut self, linear: u64, length: u64) -> Result<(), WalkFault> {
        self.check(linear, length, AccessKind::Read)
    }

    fn check(&mut self, linear: u64, length: u64, kind: AccessKind) -> Result<(), WalkFault> {
        let access = Access::explicit(kind, self.cpu.cpl());
        let last = linear.wrapping_add(length.max(1) - 1);
        self.translate(self.wrap(linear), access)?;
        if last / PAGE_SIZE != linear / PAGE_SIZE {
            self.translate(self.wrap(last), access)?;
        }
        Ok(())
    }

    /// Reads a descriptor table or the TSS: an implicit supervisor access.
    pub(super) fn read_system(&mut self, linear: u64, buffer: &mut [u8]) -> Result<(), WalkFault> {
        self.read_with(linear, buffer, Access::implicit(AccessKind::Read))
    }

    fn read_with(
        &mut self,
        linear: u64,
        buffer: &mut [u8],
        access: Access,
    ) -> Result<(), WalkFault> {
        let mut done = 0;
        while done < buffer.len() {
            let address = self.wrap(linear.wrapping_add(done as u64));
            let part = (buffer.len() - done).min((PAGE_SIZE - address % PAGE_SIZE) as usize);
            let physical = self.translate(address, access)?.physical;
            let length = buffer.len();
            let chunk = &mut buffer[done..done + part];
            if self.apic_virtualization.is_access_page(physical) {
                self.read_apic_page(physical.page_offset() as u16, chunk, length)?;
            } else if self.ram.read(physical, chunk).is_err() {
                chunk.fill(0xff);
            }
            done += part;
        }
        Ok(())
    }

    fn write_with(&mut self, linear: u64, bytes: &[u8], access: Access) -> Result<(), WalkFault> {
        // Translate all of it first, so that a fault on the second page leaves nothing written.
        let first = self.translate(self.wrap(linear), access)?.physical;
        let in_page = bytes.len().min((PAGE_SIZE - linear % PAGE_SIZE) as usize);
        let (head, tail) = bytes.split_at(in_page);
        let second = if tail.is_empty() {
            None
        } else {
            Some(
                self.translate(self.wrap(linear.wrapping_add(in_page as u64)), access)?
                    .physical,
            )
        };
        for physical in [Some(first), second].into_iter().flatten() {
            if self.apic_virtualization.is_access_page(physical) {
                return self.write_apic_page(physical.page_offset() as u16, bytes);
            }
        }
        // A write to no RAM is lost, as on a bus with nobody there.
        let _ = self.ram.write(first, head);
        if let Some(second) = second {
            let _ = self.ram.write(second, tail);
        }
        Ok(())
    }

    /// Linear addresses are 32 bits wide outside 64-bit mode.
    fn wrap(&self, linear: u64) -> u64 {
        if self.cpu.sregs.efer & nvmx_core::x86::control::efer::LMA != 0 {
            linear
        } else {
            linear & 0xffff_ffff
        }
    }
}

fn access_of(kind: AccessKind, privilege: Privilege) -> Access {
    match privilege {
        Privilege::ImplicitSupervisor => Access::implicit(kind),
        Privilege::Handler(cpl) => Access::explicit(kind, cpl),
    }
}

/// [`LinearMemory`] for event delivery, which holds the processor's `Cpu` itself.
pub(super) struct DeliveryMemory<'a>(pub(super) &'a mut Processor);

impl LinearMemory for DeliveryMemory<'_> {
    fn read(
        &mut self,
        address: u64,
        buffer: &mut [u8],
        privilege: Privilege,
    ) -> Result<(), WalkFault> {
        self.0
            .read_with(address, buffer, access_of(AccessKind::Read, privilege))
    }

    fn write(&mut self, address: u64, bytes: &[u8], privilege: Privilege) -> Result<(), WalkFault> {
        self.0
            .write_with(address, bytes, access_of(AccessKind::Write, privilege))
    }

    fn check_write(
        &mut self,
        address: u64,
        length: usize,
        privilege: Privilege,
    ) -> Result<(), WalkFault> {
        let access = access_of(AccessKind::Write, privilege);
        let last = address.wrapping_add(length.max(1) as u64 - 1);
        self.0.translate(self.0.wrap(address), access)?;
        if last / PAGE_SIZE != address / PAGE_SIZE {
            self.0.translate(self.0.wrap(last), access)?;
        }
        Ok(())
    }
}

/// The kind of an access as the page walks name it.
pub(crate) const fn kind(access: EngineAccess) -> AccessKind {
    match access {
        EngineAccess::Read => AccessKind::Read,
        EngineAccess::Write => AccessKind::Write,
        EngineAccess::Fetch => AccessKind::Fetch,
    }
}
