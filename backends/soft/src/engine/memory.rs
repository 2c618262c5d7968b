//! Guest RAM as the engine sees it: which pages hold code, which were written.

use std::any::Any;
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

    fn clear(&mut self) {
        self.0.fill(0);
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
    /// Unicorn's name for the region's first byte.
    pub(super) ram_address: u64,
    /// Pages that code was ever fetched from.
    pub(super) code: PageBitmap,
    /// Pages that were written since the marks were last cleared.
    pub(super) dirty: PageBitmap,
}

/// All guest RAM, kept mapped as long as this lives.
pub(super) struct Ram {
    pub(super) regions: Vec<Region>,
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
    pub(super) fn new<B>(memory: &GuestMemoryMmap<B>) -> Option<Self>
    where
        B: Bitmap + Clone + Send + Sync + 'static,
    {
        let mut regions = Vec::new();
        for region in memory.iter() {
            let (start, length) = (region.start_addr().raw_value(), region.len());
            if start % PAGE_SIZE != 0 || length % PAGE_SIZE != 0 || length == 0 {
                return None;
            }
            let pages = usize::try_from(length / PAGE_SIZE).ok()?;
            regions.push(Region {
                start,
                length,
                host: region.get_host_address(MemoryRegionAddress(0)).ok()?,
                ram_address: 0,
                code: PageBitmap::new(pages),
                dirty: PageBitmap::new(pages),
            });
        }
        Some(Self {
            regions,
            _keep: Box::new(memory.clone()),
        })
    }

    /// The page of RAM at this guest-physical address.
    #[inline]
    pub(super) fn page(&self, gpa: u64) -> Option<Page> {
        self.regions
            .iter()
            .enumerate()
            .find(|(_, r)| gpa.wrapping_sub(r.start) < r.length)
            .map(|(region, r)| Page {
                region,
                page: ((gpa - r.start) / PAGE_SIZE) as usize,
            })
    }

    pub(super) fn clear_dirty(&mut self) {
        for region in &mut self.regions {
            region.dirty.clear();
        }
    }
}
