//! RDMSR and WRMSR (SDM Vol. 3C "MSR-Bitmap Address").

use super::{Intercepts, io::bit};
use crate::memory::GuestMemory;
use crate::vmx::controls::Primary;
use crate::vmx::exit::VmExit;

/// First bit of the write bitmaps: the read bitmaps are the first half of the page.
const WRITES: u32 = 2048 * 8;
/// First bit of the bitmap for high MSRs, in each half.
const HIGH: u32 = 1024 * 8;

impl Intercepts {
    /// RDMSR.
    #[must_use]
    pub fn rdmsr<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        number: u32,
        length: u32,
    ) -> Option<VmExit> {
        self.wants_msr(memory, number, false)
            .then(|| VmExit::msr(false, length))
    }

    /// WRMSR.
    #[must_use]
    pub fn wrmsr<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        number: u32,
        length: u32,
    ) -> Option<VmExit> {
        self.wants_msr(memory, number, true)
            .then(|| VmExit::msr(true, length))
    }

    /// Whether an access to this MSR exits.
    #[must_use]
    pub fn wants_msr<M: GuestMemory + ?Sized>(
        &self,
        memory: &M,
        number: u32,
        is_write: bool,
    ) -> bool {
        if !self.primary(Primary::USE_MSR_BITMAPS) {
            return true;
        }
        let index = match number {
            0..=0x1fff => number,
            0xc000_0000..=0xc000_1fff => HIGH + (number & 0x1fff),
            // In neither range: exit.
            _ => return true,
        };
        let half = if is_write { WRITES } else { 0 };
        // A bitmap outside RAM: exit, as KVM has it.
        bit(memory, self.msr_bitmap, half + index).unwrap_or(true)
    }
}
