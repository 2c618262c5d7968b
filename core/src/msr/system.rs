//! MSRs whose writes have rules of their own: EFER, APIC base, feature control, TSC, debug control.

use super::features::X2APIC;
use super::{MsrEffect, MsrFault, require};
use crate::cpu::Cpu;
use crate::personality::Difference;
use crate::x86::control::{cr0, efer};

/// SDM Vol. 3A "Initializing IA-32e Mode": LME cannot change while paging is on; LMA is read-only, and
/// a write of it is ignored.
pub(super) fn write_efer(cpu: &mut Cpu, value: u64) -> Result<MsrEffect, MsrFault> {
    require(super::host::efer_is_valid(cpu, value))?;
    let old = cpu.sregs.efer;
    let paging = cpu.sregs.cr0 & cr0::PG != 0;
    require(!paging || (value ^ old) & efer::LME == 0)?;
    cpu.sregs.efer = value & !efer::LMA | old & efer::LMA;
    Ok(MsrEffect::Efer)
}

/// SDM Vol. 3A "Local APIC Status and Location", "x2APIC State Transitions".
pub(super) fn write_apic_base(cpu: &mut Cpu, value: u64) -> Result<MsrEffect, MsrFault> {
    let mode = |base: u64| base & (X2 | ENABLE);
    let old = cpu.sregs.apic_base;
    // From x2APIC mode the way back leads through disabled, and into it through xAPIC mode.
    require(!(mode(old) == X2 | ENABLE && mode(value) == ENABLE))?;
    require(!(mode(old) == 0 && mode(value) == X2 | ENABLE))?;
    restore_apic_base(cpu, value)
}

/// Bits of IA32_APIC_BASE.
const X2: u64 = 1 << 10;
const ENABLE: u64 = 1 << 11;

/// As user space sets it: from any mode to any other.
pub(super) fn restore_apic_base(cpu: &mut Cpu, value: u64) -> Result<MsrEffect, MsrFault> {
    require(apic_base_is_valid(cpu, value))?;
    cpu.sregs.apic_base = value;
    Ok(MsrEffect::ApicBase(value))
}

/// Whether IA32_APIC_BASE may hold this, whatever it holds now.
pub(super) fn apic_base_is_valid(cpu: &Cpu, value: u64) -> bool {
    let width = match cpu.model.physical_address_width {
        0 => 36,
        width => width.min(52),
    };
    // Bit 8, the bootstrap processor's mark, may be written as it is.
    let mut reserved = !((1u64 << width) - 1) | 0x2ff;
    if !X2APIC.is_present(cpu) {
        reserved |= X2;
    }
    value & reserved == 0 && value & (X2 | ENABLE) != X2
}

/// SDM Vol. 3C "Enabling and Entering VMX Operation": once locked, every write faults.
pub(super) fn write_feature_control(cpu: &mut Cpu, value: u64) -> Result<(), MsrFault> {
    const LOCKED: u64 = 1 << 0;
    const VMX_OUTSIDE_SMX: u64 = 1 << 2;
    require(cpu.msrs.feature_control & LOCKED == 0)?;
    require(value & !(LOCKED | VMX_OUTSIDE_SMX) == 0)?;
    cpu.msrs.feature_control = value;
    Ok(())
}

/// SDM Vol. 3B "IA32_TSC_ADJUST MSR and TSC Update Support": a write of the TSC moves the adjustment by
/// as much. L2's write sets L1's counter too, as KVM has it.
pub(super) fn write_tsc(cpu: &mut Cpu, value: u64) -> MsrEffect {
    let moved = value.wrapping_sub(cpu.tsc.l1());
    cpu.tsc.l1_offset = cpu.tsc.l1_offset.wrapping_add(moved);
    cpu.msrs.tsc_adjust = cpu.msrs.tsc_adjust.wrapping_add(moved);
    MsrEffect::Tsc
}

/// The other way round.
pub(super) fn write_tsc_adjust(cpu: &mut Cpu, value: u64) -> MsrEffect {
    let moved = value.wrapping_sub(cpu.msrs.tsc_adjust);
    cpu.tsc.l1_offset = cpu.tsc.l1_offset.wrapping_add(moved);
    cpu.msrs.tsc_adjust = value;
    MsrEffect::Tsc
}

/// Bits 7, 11 and 12 say what performance monitoring there is, and cannot change.
pub(super) fn write_misc_enable(cpu: &mut Cpu, value: u64) -> Result<(), MsrFault> {
    const READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12;
    require((value ^ cpu.msrs.misc_enable) & READ_ONLY == 0)?;
    cpu.msrs.misc_enable = value;
    Ok(())
}

/// SDM Vol. 3B "IA32_DEBUGCTL MSR".
pub(super) fn write_debugctl(cpu: &mut Cpu, value: u64) -> Result<(), MsrFault> {
    const LBR: u64 = 1 << 0;
    const BTF: u64 = 1 << 1;
    require(value & !(LBR | BTF) == 0)?;
    // There is no stack of branch records that LBR would fill; a single step with BTF is told of when it
    // comes.
    cpu.msrs.debugctl = if cpu.model.as_kvm(Difference::WrittenDebugctl) {
        0
    } else {
        value
    };
    Ok(())
}
