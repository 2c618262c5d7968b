//! Guest RAM at host addresses of the caller's, as KVM's memory slots give it: added and removed at run
//! time, some of it read-only, and not always there.
//!
//! The caller may have unmapped or protected a page, or cut its file. So each page is asked for once
//! before it is first touched: an access of ours that faults would end the caller's process.

use nvmx_core::addr::PAGE_SIZE;
use std::cell::Cell;
use std::sync::OnceLock;

/// One bit a page, set through a shared reference.
struct Marks(Box<[Cell<u64>]>);

impl Marks {
    fn new(pages: u64) -> Self {
        Self(vec![Cell::new(0); pages.div_ceil(64) as usize].into())
    }

    #[inline]
    fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize].get() >> (page % 64) & 1 != 0
    }

    fn set(&self, page: u64) {
        let word = &self.0[(page / 64) as usize];
        word.set(word.get() | 1 << (page % 64));
    }
}

/// One range of guest-physical memory.
pub(crate) struct Slot {
    pub(crate) start: u64,
    pub(crate) length: u64,
    pub(crate) host: *mut u8,
    pub(crate) read_only: bool,
    /// Pages that can be read.
    readable: Marks,
    /// Pages that can be written.
    writable: Marks,
}

/// What an access to guest-physical memory meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// RAM.
    Ram {
        /// Stores need not ask.
        writable: bool,
    },
    /// No RAM, or a write to a read-only slot.
    Device,
    /// RAM whose host memory is not there.
    Absent,
}

impl Slot {
    pub(crate) fn new(start: u64, length: u64, host: *mut u8, read_only: bool) -> Self {
        let pages = length / PAGE_SIZE;
        Self {
            start,
            length,
            host,
            read_only,
            readable: Marks::new(pages),
            writable: Marks::new(if read_only { 0 } else { pages }),
        }
    }

    /// What an access to the page at this offset meets.
    #[inline]
    pub(crate) fn reach(&self, offset: u64, write: bool) -> Reach {
        if write && self.read_only {
            return Reach::Device;
        }
        let page = offset / PAGE_SIZE;
        let writable = !self.read_only && self.writable.get(page);
        if writable || !write && self.readable.get(page) {
            return Reach::Ram { writable };
        }
        self.ask(page, write)
    }

    #[cold]
    fn ask(&self, page: u64, write: bool) -> Reach {
        let address = self.host.wrapping_add((page * PAGE_SIZE) as usize);
        if !is_there(address, write) {
            return Reach::Absent;
        }
        self.readable.set(page);
        if write {
            self.writable.set(page);
        }
        Reach::Ram { writable: write }
    }
}

/// Whether the page can be read, or written. A kernel before 5.14 cannot say; then it is taken to be there.
fn is_there(page: *mut u8, write: bool) -> bool {
    let populate = |page: *mut u8, advice| {
        // SAFETY: populating changes no contents, and touches nothing where there is nothing.
        unsafe { libc::madvise(page.cast(), PAGE_SIZE as usize, advice) == 0 }
    };
    static KNOWN: OnceLock<bool> = OnceLock::new();
    let known = || {
        #[repr(align(4096))]
        struct Page([u8; PAGE_SIZE as usize]);
        let mut probe = Box::new(Page([1; PAGE_SIZE as usize]));
        populate(probe.0.as_mut_ptr(), libc::MADV_POPULATE_WRITE)
    };
    let advice = if write {
        libc::MADV_POPULATE_WRITE
    } else {
        libc::MADV_POPULATE_READ
    };
    populate(page, advice) || !*KNOWN.get_or_init(known)
}

/// All slots of a machine, in the order of their addresses.
#[derive(Default)]
pub(crate) struct Slots {
    slots: Vec<Slot>,
    /// Where the last access was.
    last: Cell<usize>,
}

impl Slots {
    /// Adds a slot. `false`: it overlaps another.
    pub(crate) fn add(&mut self, slot: Slot) -> bool {
        let at = self.slots.partition_point(|s| s.start < slot.start);
        let behind = |s: &Slot| s.start - slot.start < slot.length;
        let before = |s: &Slot| slot.start - s.start < s.length;
        if self.slots.get(at).is_some_and(behind)
            || at > 0 && self.slots.get(at - 1).is_some_and(before)
        {
            return false;
        }
        self.slots.insert(at, slot);
        true
    }

    /// Takes the slot that starts there out.
    pub(crate) fn remove(&mut self, start: u64) -> Option<Slot> {
        let at = self.slots.binary_search_by_key(&start, |s| s.start).ok()?;
        Some(self.slots.remove(at))
    }

    /// The slot with this address, and the offset in it.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<(&Slot, u64)> {
        let has = |slot: &Slot| address.wrapping_sub(slot.start) < slot.length;
        let slot = match self.slots.get(self.last.get()) {
            Some(slot) if has(slot) => slot,
            _ => {
                let at = self.slots.partition_point(|s| s.start <= address);
                let at = at.checked_sub(1)?;
                self.last.set(at);
                self.slots.get(at).filter(|slot| has(slot))?
            }
        };
        Some((slot, address - slot.start))
    }

    /// Calls `part` with the host memory of an access, piece by piece and each within a page; nothing is
    /// called unless all of it can be reached.
    pub(crate) fn access(
        &self,
        address: u64,
        length: usize,
        write: bool,
        mut part: impl FnMut(*mut u8, std::ops::Range<usize>),
    ) -> Result<(), Reach> {
        let pieces = |each: &mut dyn FnMut(&Slot, u64, std::ops::Range<usize>)| {
            let mut done = 0;
            while done < length {
                let at = address.checked_add(done as u64).ok_or(Reach::Device)?;
                let (slot, offset) = self.find(at).ok_or(Reach::Device)?;
                match slot.reach(offset, write) {
                    Reach::Ram { .. } => {}
                    other => return Err(other),
                }
                let in_page = (PAGE_SIZE - at % PAGE_SIZE) as usize;
                let end = (done + in_page).min(length);
                each(slot, offset, done..end);
                done = end;
            }
            Ok(())
        };
        pieces(&mut |_, _, _| {})?;
        pieces(&mut |slot, offset, range| {
            part(slot.host.wrapping_add(offset as usize), range);
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(start: u64, length: u64) -> Slot {
        Slot::new(start, length, std::ptr::null_mut(), false)
    }

    #[test]
    fn slots_that_overlap_are_refused_and_neighbours_are_not() {
        let mut slots = Slots::default();
        assert!(slots.add(slot(0x4000, 0x2000)));
        for (start, length, fits) in [
            (0x4000, 0x1000, false),
            (0x5000, 0x1000, false),
            (0x3000, 0x2000, false),
            (0x2000, 0x8000, false),
            (0x3000, 0x1000, true),
            (0x6000, 0x1000, true),
        ] {
            assert_eq!(slots.add(slot(start, length)), fits, "{start:#x}");
        }
        assert!(slots.remove(0x5000).is_none());
        assert!(slots.remove(0x4000).is_some());
        assert!(slots.find(0x4000).is_none());
        assert_eq!(
            slots.find(0x6fff).map(|(s, at)| (s.start, at)),
            Some((0x6000, 0xfff))
        );
        assert_eq!(
            slots.find(0x3001).map(|(s, at)| (s.start, at)),
            Some((0x3000, 1))
        );
        assert!(slots.find(0x7000).is_none());
    }

    #[test]
    fn host_memory_that_is_not_there_is_absent() {
        // SAFETY: a fresh mapping that nothing else refers to.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                0x3000,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        let page = |number: usize| host.wrapping_byte_add(number * 0x1000);
        // SAFETY: pages of the mapping above.
        unsafe {
            assert_eq!(libc::mprotect(page(1), 0x1000, libc::PROT_READ), 0);
            assert_eq!(libc::munmap(page(2), 0x1000), 0);
        }
        let slot = Slot::new(0, 0x3000, host.cast(), false);
        let (first, asked) = (
            Reach::Ram { writable: false },
            Reach::Ram { writable: true },
        );
        for (offset, write, reach) in [
            (0, false, first),
            (0, true, asked),
            (8, false, asked),
            (0x1000, false, first),
            (0x1000, true, Reach::Absent),
            (0x2000, false, Reach::Absent),
            (0x2000, true, Reach::Absent),
        ] {
            assert_eq!(slot.reach(offset, write), reach, "{offset:#x} {write}");
        }
        let rom = Slot::new(0, 0x1000, host.cast(), true);
        assert_eq!(rom.reach(0, true), Reach::Device);
        assert_eq!(rom.reach(0, false), first);
        // SAFETY: the rest of the mapping.
        unsafe { libc::munmap(host, 0x2000) };
    }
}
