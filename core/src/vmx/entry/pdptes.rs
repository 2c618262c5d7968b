//! Page-directory-pointer-table entries of PAE paging (SDM Vol. 3A "PAE Paging", Vol. 3C "Checks on
//! Guest Page-Directory-Pointer-Table Entries").

use crate::addr::L1Phys;
use crate::cpu::{Cpu, Model};
use crate::memory::GuestMemory;
use crate::paging::{PagingMode, mode_of};
use crate::vmx::controls::Secondary;

const PRESENT: u64 = 1 << 0;
/// Bits 2:1 and 8:5.
const RESERVED: u64 = 0x1e6;

/// Whether MOV to CR3 and VM entry accept the entry: not present, or no reserved bit set.
pub(crate) const fn is_valid(model: &Model, entry: u64) -> bool {
    let width = match model.physical_address_width {
        width @ 1..=52 => width,
        _ => 52,
    };
    entry & PRESENT == 0 || entry & RESERVED == 0 && entry >> width == 0
}

/// Reads the four entries that CR3 points at, without EPT. `None`: one is invalid or not in RAM.
pub(crate) fn read(model: &Model, memory: &dyn GuestMemory, cr3: u64) -> Option<[u64; 4]> {
    let table = cr3 & 0xffff_ffe0;
    let mut entries = [0; 4];
    for (i, entry) in entries.iter_mut().enumerate() {
        *entry = memory.read_u64(L1Phys(table + 8 * i as u64)).ok()?;
        if !is_valid(model, *entry) {
            return None;
        }
    }
    Some(entries)
}

/// Loads the entries from memory if the processor uses PAE paging at the current level without EPT.
/// KVM does that before it runs L2 for the first time after `KVM_SET_NESTED_STATE`
/// (`KVM_REQ_GET_NESTED_STATE_PAGES`). `false`: one of them is invalid.
pub fn reload_pdptes(cpu: &mut Cpu, memory: &dyn GuestMemory) -> bool {
    let sregs = &cpu.sregs;
    let is_pae = mode_of(sregs.cr0, sregs.cr4, sregs.efer) == PagingMode::Pae;
    if !is_pae {
        cpu.sregs.pdptrs_valid = false;
        return true;
    }
    let has_ept = cpu.vmx.guest_mode
        && super::active_secondary(&cpu.vmx.vmcs12).contains(Secondary::ENABLE_EPT);
    if has_ept {
        return true;
    }
    match read(&cpu.model, memory, cpu.sregs.cr3) {
        Some(entries) => {
            cpu.sregs.pdptrs = entries;
            cpu.sregs.pdptrs_valid = true;
            true
        }
        None => false,
    }
}
