//! The virtual-APIC page, the guest interrupt status, and what writes of virtual registers do (SDM
//! Vol. 3C "Virtual APIC State": "TPR Virtualization", "PPR Virtualization", "EOI Virtualization",
//! "Self-IPI Virtualization").

use super::{ApicVirtualization, Virtualized};
use crate::addr::L1Phys;
use crate::memory::GuestMemory;
use crate::vmx::exit::{ExitReason, VmExit};
use crate::vmx::{Field, Vmcs12};

/// Offsets in the virtual-APIC page ("Virtualized APIC Registers").
pub(super) const VTPR: u16 = 0x80;
pub(super) const VPPR: u16 = 0xa0;
pub(super) const VEOI: u16 = 0xb0;
pub(super) const VISR: u16 = 0x100;
pub(super) const VIRR: u16 = 0x200;
pub(super) const VICR_LO: u16 = 0x300;
pub(super) const VICR_HI: u16 = 0x310;
pub(super) const SELF_IPI: u16 = 0x3f0;

/// Guest interrupt status (SDM Vol. 3C "Guest Non-Register State").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct InterruptStatus {
    /// Requesting virtual interrupt.
    pub(super) rvi: u8,
    /// Servicing virtual interrupt.
    pub(super) svi: u8,
}

impl InterruptStatus {
    pub(super) fn of(vmcs12: &Vmcs12) -> Self {
        let [rvi, svi] = (vmcs12.get(Field::GUEST_INTR_STATUS) as u16).to_le_bytes();
        Self { rvi, svi }
    }

    pub(super) fn store(self, vmcs12: &mut Vmcs12) {
        let value = u16::from_le_bytes([self.rvi, self.svi]);
        vmcs12.set(Field::GUEST_INTR_STATUS, u64::from(value));
    }
}

impl ApicVirtualization {
    pub(super) fn at(&self, offset: u16) -> L1Phys {
        L1Phys(self.page.page().0 + u64::from(offset & 0xfff))
    }

    /// A field of the virtual-APIC page; what is no RAM reads as all ones.
    pub(super) fn read<M: GuestMemory + ?Sized>(&self, memory: &M, offset: u16) -> u32 {
        memory.read_u32(self.at(offset)).unwrap_or(u32::MAX)
    }

    /// Writes a field; a page that is no RAM swallows it.
    pub(super) fn write<M: GuestMemory + ?Sized>(&self, memory: &M, offset: u16, value: u32) {
        let _ = memory.write_u32(self.at(offset), value);
    }

    /// VTPR as a byte.
    pub(super) fn task_priority<M: GuestMemory + ?Sized>(&self, memory: &M) -> u8 {
        self.read(memory, VTPR) as u8
    }

    /// Sets or clears a vector's bit in VISR or VIRR.
    pub(super) fn set_vector<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        register: u16,
        vector: u8,
        value: bool,
    ) {
        // "Bit x is at bit position (x & 1FH) at offset (register | ((x & E0H) >> 1))".
        let offset = register | u16::from(vector & 0xe0) >> 1;
        let bit = 1 << (vector & 31);
        let word = self.read(memory, offset);
        let word = if value { word | bit } else { word & !bit };
        self.write(memory, offset, word);
    }

    /// The highest vector in VISR or VIRR; 0 if there is none.
    pub(super) fn highest<M: GuestMemory + ?Sized>(&self, memory: &M, register: u16) -> u8 {
        (0..8u8)
            .rev()
            .find_map(|i| {
                let word = self.read(memory, register + u16::from(i) * 0x10);
                (word != 0).then(|| i * 32 + (31 - word.leading_zeros() as u8))
            })
            .unwrap_or(0)
    }

    /// "TPR Virtualization", after VTPR was written.
    pub(super) fn virtualize_tpr<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &Vmcs12,
        memory: &M,
    ) -> Virtualized {
        if !self.delivery {
            return if self.is_below_threshold(memory) {
                Virtualized::Exit(VmExit::new(ExitReason::TPR_BELOW_THRESHOLD))
            } else {
                Virtualized::Done
            };
        }
        self.virtualize_ppr(vmcs12, memory);
        self.evaluate(vmcs12, memory)
    }

    /// Whether VTPR[7:4] is below the TPR threshold.
    pub(super) fn is_below_threshold<M: GuestMemory + ?Sized>(&self, memory: &M) -> bool {
        self.task_priority(memory) >> 4 < self.tpr_threshold
    }

    /// "PPR Virtualization". Clears bytes 3:1 of VPPR.
    pub(super) fn virtualize_ppr<M: GuestMemory + ?Sized>(&self, vmcs12: &Vmcs12, memory: &M) {
        let task = self.task_priority(memory);
        let service = InterruptStatus::of(vmcs12).svi;
        let priority = if task >> 4 >= service >> 4 {
            task
        } else {
            service & 0xf0
        };
        self.write(memory, VPPR, priority.into());
    }

    /// "EOI Virtualization".
    pub(super) fn virtualize_eoi<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
    ) -> Virtualized {
        let mut status = InterruptStatus::of(vmcs12);
        let vector = status.svi;
        self.set_vector(memory, VISR, vector, false);
        status.svi = self.highest(memory, VISR);
        status.store(vmcs12);
        self.virtualize_ppr(vmcs12, memory);
        if self.eoi_exits[usize::from(vector >> 6)] >> (vector & 63) & 1 != 0 {
            return Virtualized::Exit(VmExit::virtualized_eoi(vector));
        }
        self.evaluate(vmcs12, memory)
    }

    /// "Self-IPI Virtualization".
    pub(super) fn virtualize_self_ipi<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
        vector: u8,
    ) -> Virtualized {
        self.set_vector(memory, VIRR, vector, true);
        self.request(vmcs12, vector);
        self.evaluate(vmcs12, memory)
    }

    /// RVI becomes the higher of RVI and `vector`.
    pub(super) fn request(&self, vmcs12: &mut Vmcs12, vector: u8) {
        let mut status = InterruptStatus::of(vmcs12);
        status.rvi = status.rvi.max(vector);
        status.store(vmcs12);
    }
}
