//! SDM Vol. 3C "Posted-Interrupt Processing".

use super::virtual_apic_state::VIRR;
use super::{ApicVirtualization, Virtualized};
use crate::addr::L1Phys;
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;

/// Where the descriptor has the outstanding-notification bit (bit 256).
const NOTIFICATION: u64 = 32;
const OUTSTANDING: u32 = 1 << 0;

impl ApicVirtualization {
    /// Whether an external interrupt with this vector is the notification of posted interrupts, which
    /// is processed instead of exiting. The caller has acknowledged it.
    #[must_use]
    pub fn is_notification(&self, vector: u8) -> bool {
        self.posted.is_some_and(|posted| posted.vector == vector)
    }

    /// Takes the posted interrupts into VIRR and RVI and evaluates. The caller writes EOI to the local
    /// APIC, which dismisses the notification.
    pub fn process_posted_interrupts<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
    ) -> Virtualized {
        let Some(posted) = self.posted else {
            return Virtualized::Done;
        };
        let at = |offset: u64| L1Phys(posted.descriptor.0.wrapping_add(offset));
        // A descriptor outside RAM requests nothing.
        let flags = memory.read_u32(at(NOTIFICATION)).unwrap_or(0);
        let _ = memory.write_u32(at(NOTIFICATION), flags & !OUTSTANDING);
        let mut highest = None;
        for i in 0..8u8 {
            let requests = memory.read_u32(at(4 * u64::from(i))).unwrap_or(0);
            if requests == 0 {
                continue;
            }
            let _ = memory.write_u32(at(4 * u64::from(i)), 0);
            let register = VIRR + u16::from(i) * 0x10;
            self.write(memory, register, self.read(memory, register) | requests);
            highest = Some(i * 32 + (31 - requests.leading_zeros() as u8));
        }
        if let Some(vector) = highest {
            self.request(vmcs12, vector);
        }
        self.evaluate(vmcs12, memory)
    }
}
