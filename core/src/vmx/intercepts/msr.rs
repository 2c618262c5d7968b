//! RDMSR and WRMSR (SDM Vol. 3C "MSR-Bitmap Address").

use super::{Intercepts, io::bit};
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;
use crate::vmx::controls::{Primary, Tertiary};
use crate::vmx::entry::active_tertiary;
use crate::vmx::exit::VmExit;
use crate::x86::Exception;

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

    /// Whether RDMSRLIST and WRMSRLIST are #UD.
    pub fn msr_list(&self, vmcs12: &Vmcs12) -> Result<(), Exception> {
        if active_tertiary(vmcs12).contains(Tertiary::ENABLE_MSR_LIST_INSTRUCTIONS) {
            Ok(())
        } else {
            Err(Exception::UNDEFINED)
        }
    }

    /// RDMSRLIST and WRMSRLIST without MSR bitmaps, whatever they name.
    #[must_use]
    pub fn whole_msr_list(&self, is_write: bool, length: u32) -> Option<VmExit> {
        (!self.primary(Primary::USE_MSR_BITMAPS)).then(|| VmExit::msr_list(is_write, 0, length))
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
