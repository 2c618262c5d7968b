//! MSR-store and MSR-load lists (SDM Vol. 3C "Saving MSRs" and "Loading MSRs" of the chapter "VM
//! Exits", "Loading MSRs" of the chapter "VM Entries").

use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::msr::{self, MsrEffect, MsrRead};
use crate::vmx::capability::Capability;
use crate::x86::msr as number;

/// Bytes of an entry: MSR number, reserved word, value.
const ENTRY_SIZE: u64 = 16;
/// IA32_APIC_BASE bit 10: x2APIC mode.
const X2APIC: u64 = 1 << 10;
const IA32_SMM_MONITOR_CTL: u32 = 0x9b;
const IA32_SMBASE: u32 = 0x9e;
const IA32_BIOS_UPDT_TRIG: u32 = 0x79;

/// What loading MSRs asks of the caller beside what it did to the [`Cpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsrEffects {
    /// IA32_APIC_BASE changed: tell the APIC.
    pub apic_base: Option<u64>,
    /// A register of the local APIC (IA32_TSC_DEADLINE) was written: hand the write to the APIC.
    pub apic_write: Option<(u32, u64)>,
    /// L1's TSC moved: deadlines count anew.
    pub tsc_moved: bool,
}

/// One entry of a list.
struct Entry {
    index: u32,
    reserved: u32,
    value: u64,
}

/// Numbers that neither list may hold.
fn common_check(cpu: &Cpu, entry: &Entry) -> bool {
    let is_x2apic = cpu.sregs.apic_base & X2APIC != 0 && entry.index >> 8 == 8;
    !is_x2apic
        && entry.index != IA32_BIOS_UPDT_TRIG
        && entry.index != number::IA32_BIOS_SIGN_ID
        && entry.reserved == 0
}

/// How many entries a list may hold; more are a failure at the first that is too many, as KVM has it.
fn capacity(cpu: &Cpu) -> u32 {
    Capability::from(&*cpu.model).msr_list_limit()
}

fn read_entry(memory: &dyn GuestMemory, address: L1Phys, i: u32) -> Option<Entry> {
    let mut bytes = [0; ENTRY_SIZE as usize];
    memory.read(entry_address(address, i), &mut bytes).ok()?;
    let word =
        |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    Some(Entry {
        index: word(0),
        reserved: word(4),
        value: u64::from(word(8)) | u64::from(word(12)) << 32,
    })
}

const fn entry_address(address: L1Phys, i: u32) -> L1Phys {
    L1Phys(address.0.wrapping_add(i as u64 * ENTRY_SIZE))
}

/// Loads `count` MSRs from the list at `address`. `Err` holds the index (from one) of the entry
/// that could not be loaded; those before it are, and `effects` has theirs.
pub fn load_msrs(
    cpu: &mut Cpu,
    memory: &dyn GuestMemory,
    address: L1Phys,
    count: u32,
    effects: &mut MsrEffects,
) -> Result<(), u32> {
    let capacity = capacity(cpu);
    for i in 0..count {
        let failed = i + 1;
        if i >= capacity {
            return Err(failed);
        }
        let entry = read_entry(memory, address, i).ok_or(failed)?;
        let allowed = common_check(cpu, &entry)
            && entry.index != number::IA32_FS_BASE
            && entry.index != number::IA32_GS_BASE
            && entry.index != IA32_SMM_MONITOR_CTL;
        if !allowed {
            return Err(failed);
        }
        match msr::write(cpu, entry.index, entry.value).map_err(|_| failed)? {
            // x2APIC registers outside x2APIC mode do not exist.
            MsrEffect::Apic if entry.index != number::IA32_TSC_DEADLINE => return Err(failed),
            MsrEffect::Apic => effects.apic_write = Some((entry.index, entry.value)),
            MsrEffect::ApicBase(base) => effects.apic_base = Some(base),
            MsrEffect::Tsc => effects.tsc_moved = true,
            _ => {}
        }
        super::note_msr_write(cpu, entry.index);
    }
    Ok(())
}

/// Stores `count` MSRs into the list at `address`. `Err` holds the index (from one) of the entry
/// that could not be stored.
pub fn store_msrs(
    cpu: &Cpu,
    memory: &dyn GuestMemory,
    address: L1Phys,
    count: u32,
) -> Result<(), u32> {
    let capacity = capacity(cpu);
    for i in 0..count {
        let failed = i + 1;
        if i >= capacity {
            return Err(failed);
        }
        let entry = read_entry(memory, address, i).ok_or(failed)?;
        if !common_check(cpu, &entry) || entry.index == IA32_SMBASE {
            return Err(failed);
        }
        // A register of the APIC cannot be here: x2APIC numbers are refused above, and those of the
        // APIC that are not x2APIC's (IA32_TSC_DEADLINE) are not known to this crate.
        let Ok(MsrRead::Value(value)) = msr::read(cpu, entry.index) else {
            return Err(failed);
        };
        let slot = L1Phys(entry_address(address, i).0.wrapping_add(8));
        memory.write_u64(slot, value).map_err(|_| failed)?;
    }
    Ok(())
}
