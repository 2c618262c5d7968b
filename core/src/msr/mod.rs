//! RDMSR and WRMSR (SDM Vol. 4, Vol. 2 "RDMSR", "WRMSR") for the MSRs of [`crate::x86::msr`], as KVM
//! shows them to a guest. Whether L2's access exits to L1 is [`crate::vmx::intercepts`]' matter.

use crate::cpu::Cpu;

/// What a read gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrRead {
    /// The value.
    Value(u64),
    /// A register of the local APIC: ask [`crate::apic::Apic::msr_read`].
    Apic,
}

/// What a write asks of the caller beside what it did to the [`Cpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrEffect {
    /// Nothing.
    None,
    /// A register of the local APIC: hand the write to [`crate::apic::Apic::msr_write`].
    Apic,
    /// IA32_APIC_BASE changed: tell the APIC ([`crate::apic::Apic::set_base`]).
    ApicBase(u64),
    /// EFER changed: translations and the execution mode are stale.
    Efer,
    /// L1's TSC moved: deadlines count anew.
    Tsc,
    /// FS, GS or another base that the execution engine keeps itself changed.
    Engine,
}

/// Why an access failed. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrFault {
    /// #GP(0).
    GeneralProtection,
    /// The model has not been taught this; the text names the SDM section.
    Unsupported(&'static str),
}

/// RDMSR.
pub fn read(cpu: &Cpu, number: u32) -> Result<MsrRead, MsrFault> {
    let _ = (cpu, number);
    Err(MsrFault::GeneralProtection)
}

/// WRMSR.
pub fn write(cpu: &mut Cpu, number: u32, value: u64) -> Result<MsrEffect, MsrFault> {
    let _ = (cpu, number, value);
    Err(MsrFault::GeneralProtection)
}
