//! Memory of the caller's that becomes a guest's.

use nvmx_core::vcpu::Result;
use nvmx_soft::{MemorySlot, SoftVm};

/// Gives the guest memory at an address of the caller's.
pub(crate) fn add_memory(soft: &mut SoftVm, slot: &MemorySlot) -> Result<()> {
    // SAFETY: the program that calls the API says by KVM_SET_USER_MEMORY_REGION that this memory is its
    // guest's, and has to keep what the guest uses, as under the kernel. References of ours do not point there.
    unsafe { soft.add_memory(slot) }
}
