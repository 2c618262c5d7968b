//! PAT and MTRRs (SDM Vol. 3A "Memory Cache Control"). The model has no caches: the registers hold
//! what was written, under the rules of the SDM and of KVM's `mtrr.c`.

use super::{GP, MsrFault, require};
use crate::cpu::Cpu;
use crate::x86::msr::{IA32_MTRR_DEF_TYPE, IA32_MTRRCAP};

/// Eight variable ranges, fixed ranges, write-combining: KVM's.
const CAPABILITIES: u64 = 0x508;

/// SDM Vol. 3A "IA32_PAT MSR": each byte is UC, WC, WT, WP, WB or UC-.
pub(super) const fn pat_is_valid(value: u64) -> bool {
    let mut i = 0;
    while i < 64 {
        if !matches!(value >> i & 0xff, 0 | 1 | 4 | 5 | 6 | 7) {
            return false;
        }
        i += 8;
    }
    true
}

const fn mtrr_type_is_valid(value: u64) -> bool {
    matches!(value & 0xff, 0 | 1 | 4 | 5 | 6)
}

/// Place of a fixed-range MTRR.
const fn fixed_index(number: u32) -> Option<usize> {
    Some(match number {
        0x250 => 0,
        0x258 => 1,
        0x259 => 2,
        0x268..=0x26f => (number - 0x268) as usize + 3,
        _ => return None,
    })
}

/// The value, if `number` is an MTRR.
pub(super) fn read(cpu: &Cpu, number: u32) -> Option<u64> {
    if let Some(i) = fixed_index(number) {
        return Some(cpu.msrs.mtrr_fixed[i]);
    }
    match number {
        IA32_MTRRCAP => Some(CAPABILITIES),
        IA32_MTRR_DEF_TYPE => Some(cpu.msrs.mtrr_def_type),
        0x200..=0x20f => Some(cpu.msrs.mtrr_variable[(number - 0x200) as usize]),
        _ => None,
    }
}

/// Writes, if `number` is an MTRR.
pub(super) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), MsrFault>> {
    if fixed_index(number).is_none()
        && !matches!(number, IA32_MTRRCAP | IA32_MTRR_DEF_TYPE | 0x200..=0x20f)
    {
        return None;
    }
    Some(checked_write(cpu, number, value))
}

fn checked_write(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), MsrFault> {
    if let Some(i) = fixed_index(number) {
        require((0..8).all(|byte| mtrr_type_is_valid(value >> (byte * 8))))?;
        cpu.msrs.mtrr_fixed[i] = value;
        return Ok(());
    }
    match number {
        IA32_MTRR_DEF_TYPE => {
            require(value & !0xcff == 0 && mtrr_type_is_valid(value))?;
            cpu.msrs.mtrr_def_type = value;
        }
        0x200..=0x20f => {
            let width = match cpu.model.physical_address_width {
                0 => 36,
                width => width.min(52),
            };
            let above = !((1u64 << width) - 1);
            if number & 1 == 0 {
                // Base: type in the low byte.
                require(mtrr_type_is_valid(value) && value & (above | 0xf00) == 0)?;
            } else {
                // Mask: bit 11 is valid.
                require(value & (above | 0x7ff) == 0)?;
            }
            cpu.msrs.mtrr_variable[(number - 0x200) as usize] = value;
        }
        // IA32_MTRRCAP is read-only.
        _ => return Err(GP),
    }
    Ok(())
}
