//! Guest memory of a snapshot: pages by number, equal contents kept once, zero pages not at all.

use nvmx_core::addr::PAGE_SIZE;
use rayon::prelude::*;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

/// Bytes in a page, as an index.
pub const PAGE: usize = PAGE_SIZE as usize;

static ZERO: [u8; PAGE] = [0; PAGE];

/// Pages of one machine.
#[derive(Clone)]
pub struct PageStore {
    memory_size: u64,
    /// Page number and content number, ascending.
    index: Vec<(u64, u32)>,
    contents: Vec<u8>,
    /// Hash of a content to its number. Keyed, so that a crafted file cannot make all hashes equal.
    known: HashMap<u64, u32>,
    hasher: RandomState,
}

impl std::fmt::Debug for PageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageStore")
            .field("memory_size", &self.memory_size)
            .field("pages", &self.index.len())
            .field("distinct", &self.distinct())
            .finish()
    }
}

impl PartialEq for PageStore {
    fn eq(&self, other: &Self) -> bool {
        self.memory_size == other.memory_size && self.changed_pages(other).is_empty()
    }
}
impl Eq for PageStore {}

impl PageStore {
    /// All zero memory of `memory_size` bytes.
    #[must_use]
    pub fn new(memory_size: u64) -> Self {
        Self {
            memory_size,
            index: Vec::new(),
            contents: Vec::new(),
            known: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Bytes of guest memory.
    #[must_use]
    pub const fn memory_size(&self) -> u64 {
        self.memory_size
    }

    /// Number of pages that guest memory has, zero pages included.
    #[must_use]
    pub const fn page_count(&self) -> u64 {
        self.memory_size / PAGE_SIZE
    }

    /// Number of different contents, the zero page apart.
    #[must_use]
    pub fn distinct(&self) -> usize {
        self.contents.len() / PAGE
    }

    /// Pages that are not zero, with the number of their content, ascending.
    #[must_use]
    pub fn index(&self) -> &[(u64, u32)] {
        &self.index
    }

    /// All contents, one after the other.
    pub(crate) fn contents(&self) -> &[u8] {
        &self.contents
    }

    /// The content with this number.
    fn content(&self, number: u32) -> &[u8; PAGE] {
        self.contents
            .get(number as usize * PAGE..)
            .and_then(|rest| rest.first_chunk())
            .unwrap_or(&ZERO)
    }

    /// The bytes of one page; zeroes where nothing is stored.
    #[must_use]
    pub fn page(&self, page: u64) -> &[u8; PAGE] {
        match self.index.binary_search_by_key(&page, |entry| entry.0) {
            Ok(at) => self.content(self.index[at].1),
            Err(_) => &ZERO,
        }
    }

    /// Reads `buffer.len()` bytes at an address; `None` if they are not all inside guest memory.
    pub fn read(&self, address: u64, buffer: &mut [u8]) -> Option<()> {
        let end = address.checked_add(buffer.len() as u64)?;
        if end > self.memory_size {
            return None;
        }
        let mut at = address;
        let mut rest = buffer;
        while !rest.is_empty() {
            let offset = (at % PAGE_SIZE) as usize;
            let length = rest.len().min(PAGE - offset);
            let (now, later) = rest.split_at_mut(length);
            now.copy_from_slice(&self.page(at / PAGE_SIZE)[offset..offset + length]);
            rest = later;
            at += length as u64;
        }
        Some(())
    }

    /// Sets one page. A page beyond guest memory is ignored.
    pub fn set(&mut self, page: u64, bytes: &[u8; PAGE]) {
        if page >= self.page_count() {
            return;
        }
        let place = self.index.binary_search_by_key(&page, |entry| entry.0);
        if *bytes == ZERO {
            if let Ok(at) = place {
                self.index.remove(at);
            }
            return;
        }
        let number = self.intern(bytes).0;
        match place {
            Ok(at) => self.index[at].1 = number,
            Err(at) => self.index.insert(at, (page, number)),
        }
    }

    /// The number of a content, and whether it is new.
    pub(crate) fn intern(&mut self, bytes: &[u8; PAGE]) -> (u32, bool) {
        let hash = self.hasher.hash_one(bytes);
        if let Some(&number) = self.known.get(&hash)
            && self.content(number) == bytes
        {
            return (number, false);
        }
        let number = self.distinct() as u32;
        self.contents.extend_from_slice(bytes);
        self.known.entry(hash).or_insert(number);
        (number, true)
    }

    /// Replaces the index; the caller has checked that it is ascending and inside its bounds.
    pub(crate) fn set_index(&mut self, index: Vec<(u64, u32)>) {
        self.index = index;
    }

    /// Numbers of the pages whose bytes differ, ascending. Compares in parallel.
    #[must_use]
    pub fn changed_pages(&self, other: &Self) -> Vec<u64> {
        let mut pages: Vec<u64> = self
            .index
            .iter()
            .chain(&other.index)
            .map(|entry| entry.0)
            .collect();
        pages.par_sort_unstable();
        pages.dedup();
        pages.retain_par(|page| self.page(*page) != other.page(*page))
    }
}

trait RetainParallel {
    fn retain_par(self, keep: impl Fn(&u64) -> bool + Sync + Send) -> Vec<u64>;
}

impl RetainParallel for Vec<u64> {
    fn retain_par(self, keep: impl Fn(&u64) -> bool + Sync + Send) -> Vec<u64> {
        self.into_par_iter().with_min_len(64).filter(keep).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_pages_are_kept_once_and_zero_pages_not_at_all() {
        let mut store = PageStore::new(16 * PAGE_SIZE);
        store.set(3, &[7; PAGE]);
        store.set(9, &[7; PAGE]);
        store.set(4, &[0; PAGE]);
        store.set(99, &[1; PAGE]);
        assert_eq!(store.index(), [(3, 0), (9, 0)]);
        assert_eq!(store.distinct(), 1);
        store.set(3, &[0; PAGE]);
        assert_eq!(store.index(), [(9, 0)]);
        assert_eq!(store.page(3), &[0; PAGE]);
    }

    #[test]
    fn reads_cross_pages_and_stop_at_the_end() {
        let mut store = PageStore::new(2 * PAGE_SIZE);
        store.set(1, &[7; PAGE]);
        let mut bytes = [9; 4];
        assert_eq!(store.read(0xffe, &mut bytes), Some(()));
        assert_eq!(bytes, [0, 0, 7, 7]);
        assert_eq!(store.read(0x1ffe, &mut bytes), None);
        assert_eq!(store.read(u64::MAX, &mut bytes), None);
    }

    #[test]
    fn the_order_of_writing_does_not_matter_to_equality() {
        let (mut a, mut b) = (PageStore::new(1 << 20), PageStore::new(1 << 20));
        a.set(1, &[1; PAGE]);
        a.set(2, &[2; PAGE]);
        b.set(2, &[2; PAGE]);
        assert_eq!(a.changed_pages(&b), [1]);
        b.set(1, &[1; PAGE]);
        assert_eq!(a, b);
    }
}
