//! Request, service and priority (SDM Vol. 3A "Handling Interrupts", "Interrupt, Task, and Processor
//! Priority").

use super::errors::{FIRST_VECTOR, RECEIVE_ILLEGAL_VECTOR};
use super::registers::{
    IRR, ISR, LVT_LINT0, LVT_LINT1, LVT_PERFORMANCE, MASKED, SOFTWARE_ENABLE, SPURIOUS, TMR, TPR,
};
use super::{Apic, ApicEffect, Received};

impl Apic {
    /// The highest vector whose bit is set in the 256-bit register at `offset`.
    fn highest(&self, offset: u16) -> Option<u8> {
        (0..8u16).rev().find_map(|i| {
            let word = self.get(offset + i * 0x10);
            (word != 0).then(|| (i * 32) as u8 + (31 - word.leading_zeros()) as u8)
        })
    }

    pub(super) fn bit(&self, offset: u16, vector: u8) -> bool {
        self.get(offset + u16::from(vector >> 5) * 0x10) & 1 << (vector & 31) != 0
    }

    fn set_bit(&mut self, offset: u16, vector: u8, value: bool) {
        let offset = offset + u16::from(vector >> 5) * 0x10;
        let bit = 1 << (vector & 31);
        let word = self.get(offset);
        self.set(offset, if value { word | bit } else { word & !bit });
    }

    /// PPR: the higher of task priority and the class of what is in service.
    pub(super) fn processor_priority(&self) -> u32 {
        let task = self.get(TPR) & 0xff;
        let service = self.highest(ISR).map_or(0, u32::from) & 0xf0;
        if task & 0xf0 >= service {
            task
        } else {
            service
        }
    }

    pub(super) fn is_software_enabled(&self) -> bool {
        self.get(SPURIOUS) & SOFTWARE_ENABLE != 0
    }

    /// The vector that would be delivered now: above the processor priority, APIC enabled.
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        if !self.is_enabled() {
            return None;
        }
        let vector = self.highest(IRR)?;
        (u32::from(vector) & 0xf0 > self.processor_priority() & 0xf0).then_some(vector)
    }

    /// Priority for the choice among the destinations of a lowest-priority interrupt; `None` for an APIC
    /// that takes none.
    #[must_use]
    pub fn arbitration_priority(&self) -> Option<u32> {
        (self.is_enabled() && self.is_software_enabled()).then(|| self.processor_priority())
    }

    /// Takes [`Apic::pending_interrupt`] from IRR to ISR.
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending_interrupt()?;
        self.set_bit(IRR, vector, false);
        self.set_bit(ISR, vector, true);
        Some(vector)
    }

    /// A fixed interrupt: from a device, the timer, or another processor. Vectors below 16 are illegal
    /// and go nowhere, as does everything while the APIC is disabled by software or hardware.
    pub fn accept(&mut self, vector: u8, level_triggered: bool) {
        if !self.is_enabled() || !self.is_software_enabled() {
            return;
        }
        if vector < FIRST_VECTOR {
            self.found(RECEIVE_ILLEGAL_VECTOR);
            return;
        }
        self.set_bit(TMR, vector, level_triggered);
        self.set_bit(IRR, vector, true);
    }

    /// A write of EOI.
    pub(super) fn end_of_interrupt(&mut self) -> ApicEffect {
        let Some(vector) = self.highest(ISR) else {
            return ApicEffect::None;
        };
        self.set_bit(ISR, vector, false);
        if self.bit(TMR, vector) {
            ApicEffect::EndOfInterrupt(vector)
        } else {
            ApicEffect::None
        }
    }

    /// A performance counter interrupts, which masks its entry (SDM Vol. 3A "Local Vector Table").
    pub fn counter_interrupt(&mut self) -> Received {
        let entry = self.get(LVT_PERFORMANCE);
        if entry & MASKED != 0 || !self.is_enabled() {
            return Received::Nothing;
        }
        self.set(LVT_PERFORMANCE, entry | MASKED);
        match entry >> 8 & 7 {
            0 => {
                self.accept(entry as u8, false);
                Received::Nothing
            }
            2 => Received::Smi,
            4 => Received::Nmi,
            5 => Received::Init,
            _ => Received::Nothing,
        }
    }

    /// Whether an external PIC's interrupt passes: LINT0 unmasked in ExtINT mode, or no APIC at all.
    #[must_use]
    pub fn accepts_pic_interrupt(&self) -> bool {
        let entry = self.get(LVT_LINT0);
        !self.is_enabled() || entry & MASKED == 0 && entry >> 8 & 7 == 7
    }

    /// Whether an NMI at LINT1 passes.
    #[must_use]
    pub fn accepts_lint1_nmi(&self) -> bool {
        let entry = self.get(LVT_LINT1);
        !self.is_enabled() || entry & MASKED == 0 && entry >> 8 & 7 == 4
    }
}
