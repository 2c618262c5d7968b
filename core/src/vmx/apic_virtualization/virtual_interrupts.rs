//! SDM Vol. 3C "Evaluation and Delivery of Virtual Interrupts", and what VM entry does to the virtual
//! APIC ("Updating Non-Register State", "VM Exits Induced by the TPR Threshold").

use super::virtual_apic_state::{InterruptStatus, VIRR, VISR, VPPR};
use super::{ApicVirtualization, Virtualized};
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;
use crate::vmx::exit::{ExitReason, VmExit};

impl ApicVirtualization {
    /// "Evaluation of Pending Virtual Interrupts". Takes place at VM entry and after TPR, EOI and
    /// self-IPI virtualization and posted-interrupt processing; nothing else makes the processor look.
    pub(super) fn evaluate<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &Vmcs12,
        memory: &M,
    ) -> Virtualized {
        let requested = InterruptStatus::of(vmcs12).rvi >> 4;
        let priority = self.read(memory, VPPR) as u8 >> 4;
        Virtualized::Evaluated(!self.interrupt_window && requested > priority)
    }

    /// "Virtual-Interrupt Delivery" up to the IDT: the vector to be delivered. No virtual interrupt is
    /// recognized any more.
    pub fn take_virtual_interrupt<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
    ) -> u8 {
        let vector = InterruptStatus::of(vmcs12).rvi;
        self.set_vector(memory, VISR, vector, true);
        self.write(memory, VPPR, u32::from(vector & 0xf0));
        self.set_vector(memory, VIRR, vector, false);
        let status = InterruptStatus {
            rvi: self.highest(memory, VIRR),
            svi: vector,
        };
        status.store(vmcs12);
        vector
    }

    /// What VM entry does with "virtual-interrupt delivery": PPR virtualization and evaluation.
    pub fn enter<M: GuestMemory + ?Sized>(&self, vmcs12: &Vmcs12, memory: &M) -> Virtualized {
        if !self.delivery {
            return Virtualized::Done;
        }
        self.virtualize_ppr(vmcs12, memory);
        self.evaluate(vmcs12, memory)
    }

    /// "VM Exits Induced by the TPR Threshold": the exit that follows VM entry, and event injection if
    /// there is any. Without "virtualize APIC accesses" a check of the controls took its place.
    #[must_use]
    pub fn exit_after_entry<M: GuestMemory + ?Sized>(&self, memory: &M) -> Option<VmExit> {
        (self.tpr_shadow
            && self.access_page.is_some()
            && !self.delivery
            && self.is_below_threshold(memory))
        .then(|| VmExit::new(ExitReason::TPR_BELOW_THRESHOLD))
    }
}
