//! The local APIC (SDM Vol. 3A "Advanced Programmable Interrupt Controller (APIC)") as a state machine
//! over virtual time, with the register page of `KVM_GET_LAPIC`.
//!
//! Time is L1's TSC, passed in; the bus clock is 1 GHz as in KVM (`APIC_BUS_CYCLE_NS` is 1). Where KVM
//! is laxer than the SDM, it is KVM that is followed (`arch/x86/kvm/lapic.c`), unless a row of
//! [`crate::personality`] says that there are two answers.

mod access;
mod errors;
mod interrupt;
mod ipi;
mod registers;
mod timer;

#[cfg(test)]
mod tests;

pub use ipi::{Received, is_lowest_priority, message_command};
pub use registers::reserved_bits;

use registers::{
    BASE_BSP, BASE_ENABLE, BASE_X2APIC, CURRENT_COUNT, DFR, ICR, ID, LDR, LVT, LVT_LINT0, MASKED,
    SPURIOUS, TPR, VERSION,
};
use serde::{Deserialize, Serialize};

/// What the outside world has yet to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApicEffect {
    /// Nothing.
    None,
    /// An interrupt command that may concern any processor: hand it to [`Apic::receive`] of every
    /// APIC, the sender's included. The destination is in the high half, in x2APIC format.
    Ipi(u64),
    /// EOI of a level-triggered interrupt: tell the I/O APIC.
    EndOfInterrupt(u8),
    /// The timer was armed, moved or stopped: [`Apic::next_deadline`] changed.
    Timer,
}

/// An access that is #GP (MSR).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicFault;

/// One local APIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Apic {
    /// Registers by offset / 16.
    registers: Vec<u32>,
    /// The id after RESET, which x2APIC mode shows.
    initial_id: u32,
    /// IA32_APIC_BASE.
    base: u64,
    tsc_khz: u32,
    timer: timer::Timer,
    errors: errors::Errors,
    /// User space has the local APIC: here is none but IA32_APIC_BASE and CR8.
    #[serde(default)]
    elsewhere: bool,
}

/// Registers in the page of 1024 bytes.
const REGISTERS: usize = 64;

impl Apic {
    /// After RESET. `id` is the initial APIC id, `tsc_khz` L1's TSC frequency.
    #[must_use]
    pub fn new(id: u8, tsc_khz: u32) -> Self {
        let bootstrap = if id == 0 { BASE_BSP } else { 0 };
        let mut apic = Self {
            registers: vec![0; REGISTERS],
            initial_id: id.into(),
            base: 0xfee0_0000 | BASE_ENABLE | bootstrap,
            tsc_khz: tsc_khz.max(1),
            timer: timer::Timer::default(),
            errors: errors::Errors::default(),
            elsewhere: false,
        };
        apic.set(ID, u32::from(id) << 24);
        apic.init();
        apic
    }

    /// INIT: all registers but the id and IA32_APIC_BASE (SDM Vol. 3A "Local APIC State After It
    /// Receives an INIT-Deassert IPI").
    pub fn init(&mut self) {
        let id = self.get(ID);
        let logical = self.get(LDR);
        self.registers.fill(0);
        self.set(ID, id);
        self.set(VERSION, 0x5_0014);
        for (entry, _) in LVT {
            self.set(entry, MASKED);
        }
        if self.base & BASE_BSP != 0 {
            // KVM's quirk KVM_X86_QUIRK_LINT0_REENABLED: ExtINT passes before anybody enables it.
            self.set(LVT_LINT0, 0x700);
        }
        self.set(DFR, u32::MAX);
        self.set(SPURIOUS, 0xff);
        if self.is_x2apic() {
            self.set(LDR, logical);
        }
        self.timer = timer::Timer::default();
        self.errors = self.errors.reset();
    }

    /// This APIC is of the processor that starts the others, or not (KVM_SET_BOOT_CPU_ID).
    pub fn set_bootstrap(&mut self, bootstrap: bool) {
        self.base = self.base & !BASE_BSP | if bootstrap { BASE_BSP } else { 0 };
        self.init();
    }

    /// Leaves the local APIC to user space, as KVM does without an irqchip of its own: accesses to its page
    /// are a device's, its MSRs fault, and interrupts come from outside alone.
    pub fn leave_to_user_space(&mut self) {
        self.elsewhere = true;
    }

    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }

    /// Follows a write of IA32_APIC_BASE that [`crate::msr::write`] accepted.
    pub fn set_base(&mut self, value: u64) {
        let (was_enabled, was_x2apic) = (self.is_enabled(), self.is_x2apic());
        self.base = value;
        if self.is_enabled() && !was_enabled {
            // The id that software gave it is gone.
            self.set(ID, self.initial_id << 24);
        }
        if self.is_x2apic() && !was_x2apic {
            // SDM Vol. 3A "Deriving Logical x2APIC ID from the Local x2APIC ID".
            let id = self.initial_id;
            self.set(ID, id << 24);
            self.set(LDR, (id >> 4) << 16 | 1 << (id & 15));
        }
    }

    /// [`Apic::set_base`], and what silicon does where it enables the APIC again: the state after power-up
    /// (SDM Vol. 3A "Enabling or Disabling the Local APIC"). Other than KVM, which keeps the registers.
    pub fn set_base_and_reset(&mut self, value: u64) {
        let was_enabled = self.is_enabled();
        self.set_base(value);
        if self.is_enabled() && !was_enabled {
            self.init();
        }
    }

    /// The address of the register page, where memory accesses reach it: enabled, not in x2APIC mode.
    #[must_use]
    pub const fn mmio_base(&self) -> Option<u64> {
        if self.is_enabled() && !self.is_x2apic() {
            Some(self.base & 0x000f_ffff_ffff_f000)
        } else {
            None
        }
    }

    /// Whether IA32_APIC_BASE enables it.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.base & BASE_ENABLE != 0 && !self.elsewhere
    }

    const fn is_x2apic(&self) -> bool {
        self.base & (BASE_X2APIC | BASE_ENABLE) == BASE_X2APIC | BASE_ENABLE
    }

    fn get(&self, offset: u16) -> u32 {
        let register = self.registers.get(usize::from(offset >> 4));
        register.copied().unwrap_or(0)
    }

    fn set(&mut self, offset: u16, value: u32) {
        // A page that was read from a file may be short.
        if let Some(register) = self.registers.get_mut(usize::from(offset >> 4)) {
            *register = value;
        }
    }

    /// Task priority as CR8 shows it (TPR bits 7:4).
    #[must_use]
    pub fn cr8(&self) -> u64 {
        u64::from(self.get(TPR) >> 4 & 15)
    }

    /// MOV to CR8 (SDM Vol. 3A "Interaction of Task Priorities between CR8 and APIC").
    pub fn set_cr8(&mut self, value: u64) {
        self.set(TPR, (value as u32 & 15) << 4);
    }

    /// L1's TSC frequency changed; a running count keeps its deadline.
    pub fn set_tsc_khz(&mut self, tsc_khz: u32) {
        self.tsc_khz = tsc_khz.max(1);
    }

    /// The register page as KVM_GET_LAPIC gives it, current count and processor priority up to date.
    #[must_use]
    pub fn to_kvm_page(&self, now: u64) -> [u8; 1024] {
        let mut page = [0; 1024];
        for (chunk, register) in page.chunks_exact_mut(16).zip(&self.registers) {
            chunk[..4].copy_from_slice(&register.to_le_bytes());
        }
        let mut put = |offset: u16, value: u32| {
            let at = usize::from(offset);
            page[at..at + 4].copy_from_slice(&value.to_le_bytes());
        };
        put(CURRENT_COUNT, self.current_count(now));
        put(registers::PPR, self.processor_priority());
        page
    }

    /// As KVM_SET_LAPIC: takes the registers over and starts the timer from the current count. The TSC
    /// deadline is no part of the page: write IA32_TSC_DEADLINE afterwards.
    ///
    /// Other than KVM, a one-shot count that is at zero stays expired instead of firing again.
    pub fn from_kvm_page(&mut self, page: &[u8; 1024], now: u64) {
        let (words, _) = page.as_chunks::<4>();
        for (register, word) in self.registers.iter_mut().zip(words.iter().step_by(4)) {
            *register = u32::from_le_bytes(*word);
        }
        self.set(ICR, self.get(ICR) & !registers::BUSY);
        self.errors = self.errors.reset();
        self.resume_timer(now);
    }
}
