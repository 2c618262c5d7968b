//! Reads and writes of the registers, by memory in xAPIC mode and by MSR in x2APIC mode (SDM Vol. 3A
//! "Local APIC Register Address Map", "x2APIC Register Address Space").

use super::errors::{FIRST_VECTOR, ILLEGAL_REGISTER_ADDRESS, SEND_ILLEGAL_VECTOR};
use super::registers::{
    BUSY, CURRENT_COUNT, DFR, DIVIDE, EOI, ESR, ICR, ICR_HIGH, ID, INITIAL_COUNT, LDR, LVT,
    LVT_TIMER, MASKED, PPR, SELF_IPI, SPURIOUS, TPR, is_readable, is_reserved,
};
use super::{Apic, ApicEffect, ApicFault};
use crate::x86::msr::{IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST};

impl Apic {
    /// Reads 32 bits of the register page by memory access; `offset` is 0 to 0xfff. What is no
    /// register reads zero, and is an error.
    #[must_use]
    pub fn read(&mut self, offset: u16, now: u64) -> u32 {
        self.look_at_address(offset);
        if offset & 0xf >= 4 {
            return 0;
        }
        self.read_register(offset & 0xff0, now).unwrap_or(0)
    }

    /// An access by memory to a reserved part of the page is an error.
    fn look_at_address(&mut self, offset: u16) {
        if is_reserved(offset & 0xff0) {
            self.found(ILLEGAL_REGISTER_ADDRESS);
        }
    }

    fn read_register(&self, offset: u16, now: u64) -> Result<u32, ApicFault> {
        if !is_readable(offset, self.is_x2apic()) {
            return Err(ApicFault);
        }
        Ok(match offset {
            ID if self.is_x2apic() => self.initial_id,
            PPR => self.processor_priority(),
            CURRENT_COUNT => self.current_count(now),
            _ => self.get(offset),
        })
    }

    /// Writes 32 bits by memory access. What is no register, or read-only, ignores it.
    pub fn write(&mut self, offset: u16, value: u32, now: u64) -> ApicEffect {
        self.look_at_address(offset);
        if offset & 0xf != 0 {
            return ApicEffect::None;
        }
        self.write_register(offset, value, now)
            .unwrap_or(ApicEffect::None)
    }

    fn write_register(
        &mut self,
        offset: u16,
        value: u32,
        now: u64,
    ) -> Result<ApicEffect, ApicFault> {
        let x2apic = self.is_x2apic();
        match offset {
            ID if !x2apic => self.set(ID, value & 0xff00_0000),
            TPR => self.set(TPR, value & 0xff),
            EOI => return Ok(self.end_of_interrupt()),
            LDR if !x2apic => self.set(LDR, value & 0xff00_0000),
            DFR if !x2apic => self.set(DFR, value | 0x0fff_ffff),
            SPURIOUS => {
                self.set(SPURIOUS, value & 0x3ff);
                if !self.is_software_enabled() {
                    // SDM Vol. 3A "Local APIC State After It Has Been Software Disabled".
                    for (entry, _) in LVT {
                        self.set(entry, self.get(entry) | MASKED);
                    }
                }
            }
            ESR if !x2apic || value == 0 => self.write_error_status(),
            ICR => {
                self.set(ICR, value & !BUSY);
                return Ok(self.send());
            }
            ICR_HIGH if !x2apic => self.set(ICR_HIGH, value & 0xff00_0000),
            LVT_TIMER..=0x370 => {
                let Some((_, mask)) = LVT.iter().find(|(entry, _)| *entry == offset) else {
                    return Err(ApicFault);
                };
                let mut value = value & mask;
                if !self.is_software_enabled() {
                    value |= MASKED;
                }
                if offset == LVT_TIMER {
                    self.set_lvt_timer(value, now);
                    return Ok(ApicEffect::Timer);
                }
                self.set(offset, value);
            }
            INITIAL_COUNT => {
                self.set_initial_count(value, now);
                return Ok(ApicEffect::Timer);
            }
            DIVIDE => {
                self.set_divide(value, now);
                return Ok(ApicEffect::Timer);
            }
            // The vector is all there is to write.
            SELF_IPI if x2apic && value <= 0xff => {
                if (value as u8) < FIRST_VECTOR {
                    self.found(SEND_ILLEGAL_VECTOR);
                }
                self.accept(value as u8, false);
            }
            _ => return Err(ApicFault),
        }
        Ok(ApicEffect::None)
    }

    /// RDMSR of 0x800 to 0x8ff, or of IA32_TSC_DEADLINE.
    pub fn msr_read(&self, number: u32, now: u64) -> Result<u64, ApicFault> {
        if number == IA32_TSC_DEADLINE {
            return Ok(if self.elsewhere {
                0
            } else {
                self.tsc_deadline()
            });
        }
        let offset = self.msr_offset(number)?;
        let low = u64::from(self.read_register(offset, now)?);
        Ok(if offset == ICR {
            low | u64::from(self.get(ICR_HIGH)) << 32
        } else {
            low
        })
    }

    /// WRMSR of 0x800 to 0x8ff, or of IA32_TSC_DEADLINE.
    pub fn msr_write(
        &mut self,
        number: u32,
        value: u64,
        now: u64,
    ) -> Result<ApicEffect, ApicFault> {
        if number == IA32_TSC_DEADLINE {
            if self.elsewhere {
                return Ok(ApicEffect::None);
            }
            self.set_tsc_deadline(value, now);
            return Ok(ApicEffect::Timer);
        }
        let offset = self.msr_offset(number)?;
        if offset == ICR {
            self.set(ICR_HIGH, (value >> 32) as u32);
        } else if value >> 32 != 0 {
            return Err(ApicFault);
        }
        self.write_register(offset, value as u32, now)
    }

    /// The register that an MSR of the x2APIC range names; #GP outside x2APIC mode.
    fn msr_offset(&self, number: u32) -> Result<u16, ApicFault> {
        if self.elsewhere || !self.is_x2apic() || !(X2APIC_FIRST..=X2APIC_LAST).contains(&number) {
            return Err(ApicFault);
        }
        let offset = ((number - X2APIC_FIRST) << 4) as u16;
        // The page of 64 registers is all there is.
        if offset > SELF_IPI {
            return Err(ApicFault);
        }
        Ok(offset)
    }
}
