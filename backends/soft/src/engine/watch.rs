//! Regions that others write, too: host memory of the caller's, which may come and go.
//!
//! Code translated from a page that user space then writes through its own mapping must not run again.
//! Nobody tells us of such writes. So a copy is kept of each page that code was fetched from, and after
//! [`Env::doubt_code`] each page is compared with its copy before code from it runs again: the TLB is
//! flushed, and every way into a page of code leads through a TLB fill (translated code jumps directly
//! within a page alone, and never to a block on two).
//!
//! Two regions may be one piece of host memory. Unicorn knows code by region; so code found in one is
//! code in all, and each store to such a page asks again ([`Env::store_to_code`]).

use super::env::Env;
use super::ffi;
use super::memory::{PAGE_SIZE, Page, Region};
use super::{EngineError, MEMORY_PERMISSIONS, check};
use core::ffi::c_void;
use std::collections::HashMap;
use unicorn_engine_sys::{uc_engine, uc_mem_map_ptr, uc_mem_unmap};

const BYTES: usize = PAGE_SIZE as usize;

/// Copies of pages that code was fetched from.
#[derive(Debug, Default)]
pub(super) struct CodeCopies {
    pages: HashMap<usize, CodePage>,
    /// Other regions hold some of the same host memory.
    pub(super) aliased: bool,
}

#[derive(Debug)]
struct CodePage {
    /// The [`Env::code_doubts`] that it was last compared after.
    compared: u64,
    /// The guest may have written it since: code may be translated from other bytes than the copy's.
    written: bool,
    copy: Box<[u8; BYTES]>,
}

impl Region {
    fn host_page(&self, page: usize) -> *mut u8 {
        self.host.wrapping_add(page * BYTES)
    }

    /// The page at this host address.
    fn page_at(&self, host: *mut u8) -> Option<usize> {
        let offset = (host as usize).wrapping_sub(self.host as usize);
        ((offset as u64) < self.length).then_some(offset / BYTES)
    }
}

/// Tells unicorn of a region.
#[cold]
pub(super) fn map(uc: *mut uc_engine, region: &mut Region) -> Result<(), EngineError> {
    let host = region.host.cast::<c_void>();
    // SAFETY: `uc` is open; the memory is the guest's for as long as the region is there. Mapping flushes
    // the TLB, which unicorn expects in a fill.
    unsafe {
        check(
            "map",
            uc_mem_map_ptr(uc, region.start, region.length, MEMORY_PERMISSIONS, host),
        )?;
        // Of two regions with the same host memory, each has its own.
        let unicorns = ffi::find_memory_mapping(uc, region.start);
        region.ram_address = Some(ffi::memory_region_get_ram_addr(unicorns));
    }
    Ok(())
}

/// Drops code translated from part of a region.
pub(super) fn drop_code(uc: *mut uc_engine, region: &Region, offset: u64, length: u64) {
    if let Some(start) = region.ram_address.map(|start| start + offset) {
        // SAFETY: the range lies in RAM that this engine has mapped.
        unsafe { ffi::tb_invalidate_phys_range(uc, start, start + length) };
    }
}

impl Env {
    /// Adds RAM at a host address of the caller's.
    ///
    /// # Safety
    /// Until it is removed, the memory is the guest's, and no page is unmapped after
    /// [`super::Machine::tlb_fill`] first answered with it.
    pub unsafe fn add_ram(
        &mut self,
        start: u64,
        length: u64,
        host: *mut u8,
    ) -> Result<(), EngineError> {
        let first = host as usize as u64;
        let overlaps = |region: &Region| {
            let other = region.host as usize as u64;
            other.wrapping_sub(first) < length || first.wrapping_sub(other) < region.length
        };
        let mut code = Vec::new();
        let mut aliased = false;
        for region in self.ram.regions.iter_mut().filter(|r| overlaps(r)) {
            aliased = true;
            if let Some(watched) = &mut region.watched {
                watched.aliased = true;
            }
            code.extend(region.code.iter().map(|page| region.host_page(page)));
        }
        let region = self.ram.add(start, length, host)?;
        region.watched = Some(Box::new(CodeCopies {
            aliased,
            ..CodeCopies::default()
        }));
        for host in code {
            if let Some(page) = region.page_at(host) {
                region.code.set(page);
            }
        }
        self.flush_tlb();
        Ok(())
    }

    /// Removes the RAM that was added at this address. Answers whether there was any.
    pub fn remove_ram(&mut self, start: u64) -> bool {
        let Some(at) = self.ram.position(start) else {
            return false;
        };
        self.flush_tlb();
        let region = self.ram.regions.remove(at);
        for page in region.code.iter() {
            drop_code(self.uc, &region, page as u64 * PAGE_SIZE, PAGE_SIZE);
        }
        if region.ram_address.is_some() {
            // Unicorn looks for code at the region's address, as if it were a linear one.
            self.no_fill = true;
            // SAFETY: `uc` is open and does not run; the region is mapped as a whole.
            unsafe { uc_mem_unmap(self.uc, region.start, region.length) };
            self.no_fill = false;
        }
        true
    }

    /// The marks of the RAM that was added at this address.
    #[must_use]
    pub fn dirty_words(&self, start: u64) -> Option<&[u64]> {
        let at = self.ram.position(start)?;
        Some(self.ram.regions[at].dirty.words())
    }

    /// Clears the marks of pages whose bit is set in `bits`, of the RAM that was added at `start`. The
    /// first bit is that of `first_page`, a multiple of 64.
    pub fn clear_dirty_pages(&mut self, start: u64, first_page: u64, bits: &[u64]) {
        if let Some(at) = self.ram.position(start) {
            self.ram.regions[at]
                .dirty
                .clear_these(first_page as usize, bits);
            self.flush_tlb();
        }
    }

    /// Marks all pages of the RAM that was added at this address, or none.
    pub fn fill_dirty(&mut self, start: u64, dirty: bool) {
        if let Some(at) = self.ram.position(start) {
            let region = &mut self.ram.regions[at];
            region.dirty.clear();
            if dirty {
                for page in 0..(region.length / PAGE_SIZE) as usize {
                    region.dirty.set(page);
                }
            }
            self.flush_tlb();
        }
    }

    /// Others may have written any RAM that was added: no code runs that was translated from other bytes.
    pub fn doubt_code(&mut self) {
        self.code_doubts += 1;
        self.flush_tlb();
    }

    /// Code is about to be fetched from a page of a watched region. Answers whether code translated from
    /// there was dropped.
    #[cold]
    pub(super) fn fetch_watched(&mut self, place: Page) -> bool {
        let doubts = self.code_doubts;
        let region = &mut self.ram.regions[place.region];
        let host = region.host_page(place.page);
        let Some(watched) = &mut region.watched else {
            return false;
        };
        let aliased = watched.aliased;
        let known = watched.pages.get_mut(&place.page);
        if known.as_ref().is_some_and(|page| page.compared == doubts) {
            return false;
        }
        let mut bytes = [0; BYTES];
        // SAFETY: the machine has just answered that the page is there; others that write it at once do so
        // as devices do, and `doubt_code` follows.
        unsafe { host.copy_to_nonoverlapping(bytes.as_mut_ptr(), BYTES) };
        let Some(known) = known else {
            let page = CodePage {
                compared: doubts,
                written: false,
                copy: Box::new(bytes),
            };
            watched.pages.insert(place.page, page);
            if aliased {
                self.mark_aliases(host);
            }
            return false;
        };
        known.compared = doubts;
        if !known.written && *known.copy == bytes {
            return false;
        }
        known.written = false;
        *known.copy = bytes;
        drop_code(self.uc, region, place.page as u64 * PAGE_SIZE, PAGE_SIZE);
        if aliased {
            self.drop_aliases(host, place.region);
        }
        true
    }

    /// A page of host memory holds code: in every region that has it.
    fn mark_aliases(&mut self, host: *mut u8) {
        for region in &mut self.ram.regions {
            if let Some(page) = region.page_at(host) {
                region.code.set(page);
            }
        }
        // Entries that let stores pass unseen go.
        self.flush_tlb_in_fill();
    }

    /// The guest is about to store to a page that holds code. Answers whether each store must ask.
    pub(super) fn store_to_code(&mut self, place: Page) -> bool {
        let region = &mut self.ram.regions[place.region];
        let host = region.host_page(place.page);
        let Some(watched) = &mut region.watched else {
            return false;
        };
        if let Some(known) = watched.pages.get_mut(&place.page) {
            known.written = true;
        }
        let aliased = watched.aliased;
        if aliased {
            self.drop_aliases(host, place.region);
        }
        aliased
    }

    /// Drops code from a page of host memory in all regions `but` one.
    pub(super) fn drop_aliases(&mut self, host: *mut u8, but: usize) {
        for (index, region) in self.ram.regions.iter_mut().enumerate() {
            let Some(page) = region.page_at(host).filter(|_| but != index) else {
                continue;
            };
            if let Some(known) = region
                .watched
                .as_mut()
                .and_then(|watched| watched.pages.get_mut(&page))
            {
                known.written = true;
            }
            drop_code(self.uc, region, page as u64 * PAGE_SIZE, PAGE_SIZE);
        }
    }
}
