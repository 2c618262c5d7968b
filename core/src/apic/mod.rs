//! The local APIC (SDM Vol. 3A "Advanced Programmable Interrupt Controller (APIC)") as a state machine
//! over virtual time, with the register page of `KVM_GET_LAPIC`.
//!
//! Time is L1's TSC, passed in; the bus clock is 1 GHz as in KVM (`APIC_BUS_CYCLE_NS` is 1).

/// What the outside world has yet to do after a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ApicEffect {
    /// Nothing.
    None,
    /// An IPI that is not for this processor alone: the interrupt-command register as written. Self
    /// is served already where the destination includes it.
    Ipi(u64),
    /// EOI of a level-triggered interrupt: tell the I/O APIC.
    EndOfInterrupt(u8),
    /// The timer was armed, moved or stopped: [`Apic::next_deadline`] changed.
    Timer,
}

/// An access that is #GP (MSR) or ignored (memory).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApicFault;

/// One local APIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Apic {
    page: Box<[u8; 1024]>,
    base: u64,
    tsc_khz: u32,
    deadline: Option<u64>,
}

impl Apic {
    /// After RESET. `id` is the initial APIC id, `tsc_khz` L1's TSC frequency.
    #[must_use]
    pub fn new(id: u8, tsc_khz: u32) -> Self {
        let _ = id;
        Self {
            page: Box::new([0; 1024]),
            base: 0xfee0_0900,
            tsc_khz,
            deadline: None,
        }
    }
    /// IA32_APIC_BASE.
    #[must_use]
    pub const fn base(&self) -> u64 {
        self.base
    }
    /// Follows a write of IA32_APIC_BASE that [`crate::msr::write`] accepted.
    pub fn set_base(&mut self, value: u64) {
        self.base = value;
    }
    /// Reads 32 bits of the register page by memory access; `offset` is 0 to 0xfff.
    #[must_use]
    pub fn read(&self, offset: u16, now: u64) -> u32 {
        let _ = (offset, now);
        0
    }
    /// Writes 32 bits by memory access.
    pub fn write(&mut self, offset: u16, value: u32, now: u64) -> ApicEffect {
        let _ = (offset, value, now);
        ApicEffect::None
    }
    /// RDMSR of 0x800 to 0x8ff, or of IA32_TSC_DEADLINE.
    pub fn msr_read(&self, number: u32, now: u64) -> Result<u64, ApicFault> {
        let _ = (number, now);
        Err(ApicFault)
    }
    /// WRMSR of 0x800 to 0x8ff, or of IA32_TSC_DEADLINE.
    pub fn msr_write(&mut self, number: u32, value: u64, now: u64) -> Result<ApicEffect, ApicFault> {
        let _ = (number, value, now);
        Err(ApicFault)
    }
    /// L1's TSC at which the timer expires next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.deadline
    }
    /// Lets the timer expire as often as `now` says.
    pub fn poll(&mut self, now: u64) {
        let _ = (now, self.tsc_khz);
    }
    /// The vector that would be delivered now: above the processor priority, APIC enabled.
    #[must_use]
    pub fn pending_interrupt(&self) -> Option<u8> {
        None
    }
    /// Takes [`Apic::pending_interrupt`] from IRR to ISR.
    pub fn acknowledge(&mut self) -> Option<u8> {
        None
    }
    /// A message from a device or another processor: fixed or lowest-priority delivery of `vector`.
    pub fn accept(&mut self, vector: u8, level_triggered: bool) {
        let _ = (vector, level_triggered);
    }
    /// Task priority as CR8 shows it (TPR bits 7:4).
    #[must_use]
    pub fn cr8(&self) -> u64 {
        0
    }
    /// MOV to CR8.
    pub fn set_cr8(&mut self, value: u64) {
        let _ = value;
    }
    /// The register page as KVM_GET_LAPIC gives it.
    #[must_use]
    pub fn to_kvm_page(&self, now: u64) -> [u8; 1024] {
        let _ = now;
        *self.page
    }
    /// As KVM_SET_LAPIC: the timer starts anew from the current count.
    pub fn from_kvm_page(&mut self, page: &[u8; 1024], now: u64) {
        let _ = now;
        *self.page = *page;
    }
}
