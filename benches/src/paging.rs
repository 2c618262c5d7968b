//! Page tables of 4-KiB pages that map 2 MiB one to one, with and without EPT below.

use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::{Cpu, Model};
use nvmx_core::memory::{GuestMemory as _, VecMemory};
use nvmx_core::paging::{Access, AccessKind, Mapping, Regime, WalkFault, translate};
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::vmx::ept::Ept;
use nvmx_core::x86::control::{cr0, cr4, efer};
use std::sync::Arc;

/// Pages mapped: one page table.
pub const PAGES: u64 = 512;
const GUEST_TABLES: u64 = 0x1000;
const EPT_TABLES: u64 = 0x8000;
/// Present, writable, user.
const GUEST_RIGHTS: u64 = 7;
/// Read, write, execute; in the leaf also write-back.
const EPT_RIGHTS: u64 = 7;
const EPT_WRITE_BACK: u64 = 6 << 3;
/// Write-back, four levels, accessed and dirty flags.
const EPTP_FLAGS: u64 = 6 | 3 << 3 | 1 << 6;

/// What a walk needs.
pub struct Walks {
    memory: VecMemory,
    regime: Regime,
}

impl Walks {
    /// 4-level paging, with EPT below it or not.
    #[must_use]
    pub fn new(with_ept: bool) -> Self {
        let memory = VecMemory::new((PAGES << 12) as usize);
        tables(&memory, GUEST_TABLES, GUEST_RIGHTS, 0);
        tables(&memory, EPT_TABLES, EPT_RIGHTS, EPT_WRITE_BACK);
        let mut cpu = Cpu {
            model: Arc::new(Model {
                vmx_msrs: KVM_6_1_ICELAKE,
                physical_address_width: 40,
                linear_address_width: 48,
                ..Model::default()
            }),
            ..Cpu::default()
        };
        cpu.sregs.cr0 = cr0::PE | cr0::PG | cr0::WP;
        cpu.sregs.cr3 = GUEST_TABLES;
        cpu.sregs.cr4 = cr4::PAE;
        cpu.sregs.efer = efer::LME | efer::LMA | efer::NXE;
        let capabilities = Capability::new(&KVM_6_1_ICELAKE).ept_vpid().bits();
        let ept = with_ept.then(|| Ept::new(EPT_TABLES | EPTP_FLAGS, capabilities, 40));
        Self {
            memory,
            regime: Regime::new(&cpu, ept),
        }
    }

    /// Translates a write to the page with this number.
    pub fn page(&self, number: u64) -> Result<Mapping, WalkFault> {
        let access = Access::explicit(AccessKind::Write, 0);
        translate(&self.memory, &self.regime, number << 12, access)
    }

    /// Translates a write to every page, in an order that no cache line of a table is met twice in a
    /// row; gives how many succeeded.
    #[must_use]
    pub fn all(&self) -> u64 {
        (0..PAGES)
            .filter(|index| self.page(index * 73 % PAGES).is_ok())
            .count() as u64
    }
}

/// Four levels of tables from `root` on, one page each, the last one filled.
fn tables(memory: &VecMemory, root: u64, rights: u64, leaf: u64) {
    let write = |address, entry| {
        memory
            .write_u64(L1Phys(address), entry)
            .expect("the tables lie in memory");
    };
    for level in 0..3 {
        let table = root + level * 0x1000;
        write(table, (table + 0x1000) | rights);
    }
    for page in 0..PAGES {
        write(root + 0x3000 + page * 8, page << 12 | rights | leaf);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_is_mapped_to_itself() {
        for with_ept in [false, true] {
            let walks = Walks::new(with_ept);
            assert_eq!(walks.all(), PAGES);
            assert_eq!(walks.page(77).unwrap().physical, L1Phys(77 << 12));
            assert!(walks.page(PAGES).is_err());
        }
    }
}
