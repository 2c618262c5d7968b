//! SDM Vol. 3C "Virtualizing CR8-Based TPR Accesses". Faults and CR8-load and CR8-store exiting go
//! before.

use super::virtual_apic_state::VTPR;
use super::{ApicVirtualization, Virtualized};
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;

impl ApicVirtualization {
    /// MOV from CR8 with "use TPR shadow".
    #[must_use]
    pub fn read_cr8<M: GuestMemory + ?Sized>(&self, memory: &M) -> u64 {
        u64::from(self.task_priority(memory) >> 4)
    }

    /// MOV to CR8 with "use TPR shadow": bits 3:0 become VTPR\[7:4\], the rest of VTPR is cleared.
    pub fn write_cr8<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &Vmcs12,
        memory: &M,
        value: u64,
    ) -> Virtualized {
        self.write(memory, VTPR, (value as u32 & 15) << 4);
        self.virtualize_tpr(vmcs12, memory)
    }
}
