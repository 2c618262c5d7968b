//! APIC virtualization (SDM Vol. 3C, chapter "APIC Virtualization and Virtual Interrupts"), a file a
//! section.
//!
//! [`ApicVirtualization`] is what the vmcs12's controls say, read once at VM entry. Its methods change
//! the virtual-APIC page and the guest interrupt status (in the vmcs12, where L1 cannot look while L2
//! runs) and answer with [`Virtualized`] what the processor has yet to do.

mod cr8;
mod ipi;
mod memory_mapped;
mod msr_based;
mod posted_interrupts;
mod virtual_apic_state;
mod virtual_interrupts;

#[cfg(test)]
mod tests;

pub use ipi::IpiVirtualization;
pub use memory_mapped::{AccessKind, PageAccess};

use super::controls::{PinBased, Primary, Secondary, Tertiary};
use super::entry::active_tertiary;
use super::exit::VmExit;
use super::{Field, Vmcs12};
use crate::addr::L1Phys;

/// What L1 lets L2 do to its local APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ApicVirtualization {
    /// "Use TPR shadow".
    pub tpr_shadow: bool,
    /// "Virtualize APIC accesses": the APIC-access page.
    pub access_page: Option<L1Phys>,
    /// "Virtualize x2APIC mode".
    pub x2apic_mode: bool,
    /// "APIC-register virtualization".
    pub registers: bool,
    /// "Virtual-interrupt delivery".
    pub delivery: bool,
    /// "Interrupt-window exiting".
    pub interrupt_window: bool,
    /// The virtual-APIC page.
    pub page: L1Phys,
    /// TPR threshold, bits 3:0.
    pub tpr_threshold: u8,
    /// EOI-exit bitmaps.
    pub eoi_exits: [u64; 4],
    /// "Process posted interrupts".
    pub posted: Option<PostedInterrupts>,
    /// "IPI virtualization".
    pub ipi: Option<IpiVirtualization>,
}

/// Where posted interrupts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PostedInterrupts {
    /// Notification vector.
    pub vector: u8,
    /// Posted-interrupt descriptor.
    pub descriptor: L1Phys,
}

/// What follows from an operation on the virtual APIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Virtualized {
    /// Nothing.
    Done,
    /// Pending virtual interrupts were evaluated: whether one is recognized from now on.
    Evaluated(bool),
    /// An interrupt was posted: a notification with this vector goes to the local APIC that NDST of the
    /// descriptor names.
    Notify {
        /// Notification vector.
        vector: u8,
        /// NDST: in x2APIC mode an id, else an id in bits 15:8.
        destination: u32,
    },
    /// A trap-like VM exit, after the instruction or the delivery that did it.
    Exit(VmExit),
}

impl ApicVirtualization {
    /// From the vmcs12.
    #[must_use]
    pub fn new(vmcs12: &Vmcs12) -> Self {
        let word = |field| vmcs12.get(field) as u32;
        let primary = Primary::from_bits_retain(word(Field::CPU_BASED_VM_EXEC_CONTROL));
        let secondary = if primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
            Secondary::from_bits_retain(word(Field::SECONDARY_VM_EXEC_CONTROL))
        } else {
            Secondary::empty()
        };
        let tpr_shadow = primary.contains(Primary::USE_TPR_SHADOW);
        let accesses = secondary.contains(Secondary::VIRTUALIZE_APIC_ACCESSES);
        if !tpr_shadow && !accesses {
            return Self::default();
        }
        let mut new = Self {
            tpr_shadow,
            access_page: accesses.then(|| L1Phys(vmcs12.get(Field::APIC_ACCESS_ADDR))),
            x2apic_mode: secondary.contains(Secondary::VIRTUALIZE_X2APIC_MODE),
            registers: secondary.contains(Secondary::APIC_REGISTER_VIRTUALIZATION),
            delivery: secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY),
            interrupt_window: primary.contains(Primary::INTERRUPT_WINDOW_EXITING),
            page: L1Phys(vmcs12.get(Field::VIRTUAL_APIC_PAGE_ADDR)),
            tpr_threshold: (word(Field::TPR_THRESHOLD) & 15) as u8,
            ..Self::default()
        };
        if primary.contains(Primary::ACTIVATE_TERTIARY_CONTROLS)
            && active_tertiary(vmcs12).contains(Tertiary::IPI_VIRTUALIZATION)
        {
            new.ipi = Some(IpiVirtualization {
                table: L1Phys(vmcs12.get(Field::PID_POINTER_TABLE)),
                last: vmcs12.get(Field::LAST_PID_POINTER_INDEX) as u16,
            });
        }
        if new.delivery {
            new.eoi_exits = [
                vmcs12.get(Field::EOI_EXIT_BITMAP0),
                vmcs12.get(Field::EOI_EXIT_BITMAP1),
                vmcs12.get(Field::EOI_EXIT_BITMAP2),
                vmcs12.get(Field::EOI_EXIT_BITMAP3),
            ];
            let pin = PinBased::from_bits_retain(word(Field::PIN_BASED_VM_EXEC_CONTROL));
            new.posted =
                pin.contains(PinBased::PROCESS_POSTED_INTERRUPTS)
                    .then(|| PostedInterrupts {
                        vector: word(Field::POSTED_INTR_NV) as u8,
                        descriptor: L1Phys(vmcs12.get(Field::POSTED_INTR_DESC_ADDR)),
                    });
        }
        new
    }
}
