//! Guest RAM as the engine sees it: which pages hold code, which were written.

use super::watch::CodeCopies;
use super::{EngineError, SCRATCH};
use std::any::Any;
use std::cell::Cell;
use vm_memory::bitmap::Bitmap;
use vm_memory::{
    Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress,
};

/// Size of a page of guest-physical memory.
pub const PAGE_SIZE: u64 = 4096;

/// One bit a page.
#[derive(Debug, Clone, Default)]
pub struct PageBitmap(Vec<u64>);

impl PageBitmap {
    fn new(pages: usize) -> Self {
        Self(vec![0; pages.div_ceil(64)])
    }

    /// Whether the bit of this page is set.
    #[must_use]
    #[inline]
    pub fn get(&self, page: usize) -> bool {
        self.0
            .get(page / 64)
            .is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    #[inline]
    pub(super) fn set(&mut self, page: usize) {
        if let Some(word) = self.0.get_mut(page / 64) {
            *word |= 1 << (page % 64);
        }
    }

    pub(super) fn clear(&mut self) {
        self.0.fill(0);
    }

    /// Sixty-four pages a word.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.0
    }

    /// Clears the bits that are set in `bits`, whose first bit is that of `first_page`, a multiple of 64.
    pub(super) fn clear_these(&mut self, first_page: usize, bits: &[u64]) {
        let words = self.0.get_mut(first_page / 64..).unwrap_or_default();
        for (word, bits) in words.iter_mut().zip(bits) {
            *word &= !bits;
        }
    }

    /// Numbers of the pages whose bit is set, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(index, &word)| {
            core::iter::successors((word != 0).then_some(word), |w| {
                let rest = w & (w - 1);
                (rest != 0).then_some(rest)
            })
            .map(move |w| index * 64 + w.trailing_zeros() as usize)
        })
    }
}

/// A contiguous range of guest RAM.
#[derive(Debug)]
pub(super) struct Region {
    pub(super) start: u64,
    pub(super) length: u64,
    pub(super) host: *mut u8,
    /// Unicorn's name for the region's first byte; `None`: it has not been told of the region.
    pub(super) ram_address: Option<u64>,
    /// Pages that code was ever fetched from.
    pub(super) code: PageBitmap,
    /// Pages that were written since the marks were last cleared.
    pub(super) dirty: PageBitmap,
    /// Others may write it, and another region may be the same host memory: what code was translated from.
    pub(super) watched: Option<Box<CodeCopies>>,
}

impl Region {
    fn new(start: u64, length: u64, host: *mut u8) -> Option<Self> {
        if !start.is_multiple_of(PAGE_SIZE) || !length.is_multiple_of(PAGE_SIZE) || length == 0 {
            return None;
        }
        let pages = usize::try_from(length / PAGE_SIZE).ok()?;
        Some(Self {
            start,
            length,
            host,
            ram_address: None,
            code: PageBitmap::new(pages),
            dirty: PageBitmap::new(pages),
            watched: None,
        })
    }

    /// The last byte.
    fn last(&self) -> u64 {
        self.start + (self.length - 1)
    }
}

/// All guest RAM; what it was made from is kept mapped as long as this lives.
pub(super) struct Ram {
    /// In the order of their addresses.
    pub(super) regions: Vec<Region>,
    /// Where the last access was.
    last: Cell<usize>,
    _keep: Box<dyn Any>,
}

impl core::fmt::Debug for Ram {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(&self.regions).finish()
    }
}

/// A page of RAM: number of the region, number of the page in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Page {
    pub(super) region: usize,
    pub(super) page: usize,
}

impl Ram {
    pub(super) fn new<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, EngineError>
    where
        B: Bitmap + Clone + Send + Sync + 'static,
    {
        let mut ram = Self {
            regions: Vec::new(),
            last: Cell::new(0),
            _keep: Box::new(memory.clone()),
        };
        for region in memory.iter() {
            let host = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| EngineError::Memory)?;
            ram.add(region.start_addr().raw_value(), region.len(), host)?;
        }
        Ok(ram)
    }

    /// Adds a region that unicorn is to be told of when it is first needed.
    pub(super) fn add(
        &mut self,
        start: u64,
        length: u64,
        host: *mut u8,
    ) -> Result<&mut Region, EngineError> {
        let region = Region::new(start, length, host).ok_or(EngineError::Memory)?;
        if start
            .checked_add(length - 1)
            .is_none_or(|last| last >= SCRATCH)
        {
            return Err(EngineError::MemoryTooHigh);
        }
        let at = self.regions.partition_point(|r| r.start < start);
        if self
            .regions
            .get(at)
            .is_some_and(|r| r.start <= region.last())
            || at > 0 && self.regions[at - 1].last() >= start
        {
            return Err(EngineError::Memory);
        }
        self.regions.insert(at, region);
        Ok(&mut self.regions[at])
    }

    /// The region that starts there.
    pub(super) fn position(&self, start: u64) -> Option<usize> {
        self.regions.binary_search_by_key(&start, |r| r.start).ok()
    }

    /// The page of RAM at this guest-physical address.
    #[inline]
    pub(super) fn page(&self, gpa: u64) -> Option<Page> {
        let has = |region: &Region| gpa.wrapping_sub(region.start) < region.length;
        let mut region = self.last.get();
        if !self.regions.get(region).is_some_and(has) {
            region = self
                .regions
                .partition_point(|r| r.start <= gpa)
                .checked_sub(1)?;
            self.regions.get(region).filter(|r| has(r))?;
            self.last.set(region);
        }
        Some(Page {
            region,
            page: ((gpa - self.regions[region].start) / PAGE_SIZE) as usize,
        })
    }

    pub(super) fn clear_dirty(&mut self) {
        for region in &mut self.regions {
            region.dirty.clear();
        }
    }
}
