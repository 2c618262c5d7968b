//! Forgetting translations at the cost of those that there are.
//!
//! Unicorn forgets everything by writing its tables full: 32 KiB of the cache of blocks by address and
//! at least 4 KiB for each MMU index, at each switch between L1 and L2. But between two switches a level
//! touches a handful of pages. So the pages that [`super::hooks`] enters are noted, and a flush clears the
//! places where these can be; with more pages than [`MOST`] it is unicorn's own.

use super::env::Env;
use super::ffi::{self, tlb};
use super::memory::PAGE_SIZE;
use core::ffi::c_int;

/// Pages that are noted; a flush of so many costs less than unicorn's.
const MOST: usize = 48;

/// A translation that was entered.
#[derive(Debug, Clone, Copy)]
struct Entered {
    vaddr: u64,
    mmu_index: u8,
    executable: bool,
}

/// What was entered since the last flush.
#[derive(Debug)]
pub(super) struct EnteredPages {
    pages: [Entered; MOST],
    /// How many there were; beyond [`MOST`] they are not noted.
    count: usize,
}

impl EnteredPages {
    pub(super) const NONE: Self = Self {
        pages: [Entered {
            vaddr: 0,
            mmu_index: 0,
            executable: false,
        }; MOST],
        count: 0,
    };
}

impl Env {
    /// Forgets every translation.
    pub fn flush_tlb(&mut self) {
        self.clear_entered();
        self.entered.count = 0;
    }

    /// As [`Self::flush_tlb`], in a fill: the block that is being translated goes into the cache of blocks
    /// behind it, so that its page stays noted.
    pub(super) fn flush_tlb_in_fill(&mut self) {
        self.clear_entered();
    }

    fn clear_entered(&mut self) {
        let Some(pages) = self.entered.pages.get(..self.entered.count) else {
            // SAFETY: `cpu` is the live CPUState; flushing is allowed at any time on its own thread.
            unsafe { ffi::tlb_flush(self.cpu) };
            return;
        };
        for page in pages {
            // SAFETY: `cpu` is live. The table holds `mask + ENTRY_SIZE` bytes, and `mask` is a multiple of
            // an entry's size; the blocks of a page fill `JMP_PAGE_SIZE` places from its own in the cache.
            unsafe {
                let index = usize::from(page.mmu_index);
                let table = tlb::TABLE.index(index).read(self.cpu) as *mut u8;
                let mask = tlb::MASK.index(index).read(self.cpu);
                let at = ((page.vaddr / PAGE_SIZE) as usize * tlb::ENTRY_SIZE) & mask;
                table.add(at).write_bytes(0xff, tlb::ENTRY_SIZE);
                if page.executable {
                    self.cpu
                        .add(tlb::jmp_cache_of_page(page.vaddr))
                        .write_bytes(0, tlb::JMP_PAGE_SIZE);
                }
            }
        }
        for index in 0..tlb::MMU_INDEXES {
            // SAFETY: `cpu` is live, and its descriptors of the TLB are read by nothing else now.
            unsafe {
                let evicted = tlb::evicted(index);
                if evicted.read(self.cpu) != 0 {
                    evicted.write(self.cpu, 0);
                    self.cpu
                        .add(tlb::victims(index))
                        .write_bytes(0xff, tlb::VICTIMS_SIZE);
                }
                tlb::used(index).write(self.cpu, 0);
            }
        }
        // SAFETY: as above.
        unsafe { tlb::DIRTY.write(self.cpu, 0) };
    }

    /// Forgets the translation of one page.
    pub fn flush_page(&mut self, vaddr: u64) {
        // SAFETY: as in `flush_tlb`.
        unsafe { ffi::tlb_flush_page(self.cpu, vaddr & !(PAGE_SIZE - 1)) }
    }

    /// Enters a translation of one page, both addresses with its low bits clear or not.
    ///
    /// # Safety
    /// In a fill or between accesses, and the physical page is RAM that the engine has mapped.
    pub(super) unsafe fn enter_translation(
        &mut self,
        vaddr: u64,
        gpa: u64,
        protection: c_int,
        mmu_index: c_int,
    ) {
        let (vaddr, gpa) = (vaddr & !(PAGE_SIZE - 1), gpa & !(PAGE_SIZE - 1));
        if let Some(place) = self.entered.pages.get_mut(self.entered.count) {
            *place = Entered {
                vaddr,
                mmu_index: mmu_index as u8,
                executable: protection & ffi::PAGE_EXEC != 0,
            };
        }
        self.entered.count += 1;
        // SAFETY: by contract.
        unsafe { ffi::tlb_set_page(self.cpu, vaddr, gpa, protection, mmu_index, PAGE_SIZE) };
    }

    /// Whether nothing is left in unicorn's tables: what a flush must reach, seen in full.
    pub(super) fn holds_no_translation(&self) -> bool {
        // SAFETY: `cpu` is live; the sizes are those of its tables.
        unsafe {
            let bytes = |start: *const u8, length| core::slice::from_raw_parts(start, length);
            let full = |start, length| bytes(start, length).iter().all(|&byte| byte == 0xff);
            let cpu = self.cpu.cast_const();
            let blocks = bytes(cpu.add(tlb::JMP_CACHE), tlb::JMP_CACHE_SIZE);
            tlb::DIRTY.read(cpu) == 0
                && blocks.iter().all(|&byte| byte == 0)
                && (0..tlb::MMU_INDEXES).all(|index| {
                    let table = tlb::TABLE.index(index).read(cpu) as *const u8;
                    let length = tlb::MASK.index(index).read(cpu) + tlb::ENTRY_SIZE;
                    tlb::used(index).read(cpu) == 0
                        && tlb::evicted(index).read(cpu) == 0
                        && full(table, length)
                        && full(cpu.add(tlb::victims(index)), tlb::VICTIMS_SIZE)
                })
        }
    }
}
