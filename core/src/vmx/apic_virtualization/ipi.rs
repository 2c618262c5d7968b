//! SDM Vol. 3C "IPI Virtualization": an interrupt that L2 sends to a virtual APIC id is posted to the
//! descriptor that L1's table has for it.

use super::virtual_apic_state::VICR_LO;
use super::{ApicVirtualization, Virtualized};
use crate::addr::L1Phys;
use crate::memory::GuestMemory;
use crate::vmx::exit::VmExit;

/// Where the descriptors of virtual processors are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IpiVirtualization {
    /// PID-pointer table.
    pub table: L1Phys,
    /// Last PID-pointer index.
    pub last: u16,
}

/// Valid bit and reserved bits of a PID pointer; no physical address is wider than 52 bits.
const POINTER_FLAGS: u64 = 0x3f | 0xfff << 52;
const POINTER_VALID: u64 = 1;
/// Bits of the descriptor's notification information.
const OUTSTANDING: u64 = 1 << 0;
const SUPPRESS: u64 = 1 << 1;
const INFORMATION: u64 = 32;

impl ApicVirtualization {
    /// A virtual IPI with `vector` to the virtual APIC `id`; VICR holds it already. What cannot be
    /// virtualized is an APIC-write VM exit.
    pub(super) fn virtualize_ipi<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        vector: u8,
        id: u32,
    ) -> Virtualized {
        self.post(memory, vector, id)
            .unwrap_or(Virtualized::Exit(VmExit::apic_write(VICR_LO)))
    }

    fn post<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        vector: u8,
        id: u32,
    ) -> Option<Virtualized> {
        let ipi = self.ipi.filter(|ipi| id <= ipi.last.into())?;
        // Vectors below 16 are illegal: L1 is to see to it.
        if vector < 16 {
            return None;
        }
        let entry = L1Phys(ipi.table.0.wrapping_add(8 * u64::from(id)));
        let pointer = memory.read_u64(entry).unwrap_or(u64::MAX);
        if pointer & POINTER_FLAGS != POINTER_VALID {
            return None;
        }
        let descriptor = pointer & !POINTER_FLAGS;
        let word = L1Phys(descriptor + 4 * u64::from(vector / 32));
        let requests = memory.read_u32(word).unwrap_or(0);
        // A descriptor outside RAM swallows it.
        let _ = memory.write_u32(word, requests | 1 << (vector % 32));
        let at = L1Phys(descriptor + INFORMATION);
        let information = memory.read_u64(at).unwrap_or(SUPPRESS);
        if information & (OUTSTANDING | SUPPRESS) != 0 {
            return Some(Virtualized::Done);
        }
        let _ = memory.write_u64(at, information | OUTSTANDING);
        Some(Virtualized::Notify {
            vector: (information >> 16) as u8,
            destination: (information >> 32) as u32,
        })
    }
}
