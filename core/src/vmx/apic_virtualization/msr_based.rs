//! SDM Vol. 3C "Virtualizing MSR-Based APIC Accesses". The MSR bitmaps and the check of CPL go before;
//! what is not virtualized here operates normally, on the local APIC that L2 shares with L1.

use super::memory_mapped::is_plain_ipi;
use super::virtual_apic_state::{SELF_IPI, VEOI, VICR_LO, VTPR};
use super::{ApicVirtualization, Virtualized};
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;
use crate::vmx::exit::VmExit;
use crate::x86::Exception;
use crate::x86::msr::X2APIC_FIRST;

/// MSRs 800H to 8FFH.
const MSRS: u32 = 0x100;

impl ApicVirtualization {
    /// The offset of an APIC register's MSR, if L2's accesses to such MSRs are virtualized at all.
    fn msr_offset(&self, number: u32) -> Option<u16> {
        let index = number.checked_sub(X2APIC_FIRST)?;
        (self.x2apic_mode && index < MSRS).then_some((index << 4) as u16)
    }

    /// RDMSR: the value, whatever mode the local APIC is in; `None` if the instruction operates
    /// normally.
    #[must_use]
    pub fn read_msr<M: GuestMemory + ?Sized>(&self, memory: &M, number: u32) -> Option<u64> {
        let offset = self.msr_offset(number)?;
        (self.registers || offset == VTPR)
            .then(|| memory.read_u64(self.at(offset)).unwrap_or(u64::MAX))
    }

    /// WRMSR: what follows; `None` if the instruction operates normally. Reserved bits fault.
    pub fn write_msr<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
        number: u32,
        value: u64,
    ) -> Result<Option<Virtualized>, Exception> {
        let Some(offset) = self.msr_offset(number) else {
            return Ok(None);
        };
        let allowed = match offset {
            // "Destination", shorthand, trigger and destination mode, delivery mode, vector.
            VICR_LO if self.ipi.is_some() => !0xfff3_3000,
            VTPR => 0xff,
            VEOI if self.delivery => 0,
            SELF_IPI if self.delivery => 0xff,
            _ => return Ok(None),
        };
        if value & !allowed != 0 {
            return Err(Exception::GENERAL_PROTECTION);
        }
        let _ = memory.write_u64(self.at(offset), value);
        Ok(Some(match offset {
            VTPR => self.virtualize_tpr(vmcs12, memory),
            VICR_LO if is_plain_ipi(value as u32) => {
                self.virtualize_ipi(memory, value as u8, (value >> 32) as u32)
            }
            VICR_LO => Virtualized::Exit(VmExit::apic_write(VICR_LO)),
            VEOI => self.virtualize_eoi(vmcs12, memory),
            // Vectors below 16 are illegal: L1 is to see to it.
            _ if value & 0xf0 == 0 => Virtualized::Exit(VmExit::apic_write(SELF_IPI)),
            _ => self.virtualize_self_ipi(vmcs12, memory, value as u8),
        }))
    }
}
