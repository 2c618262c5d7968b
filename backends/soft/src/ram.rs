//! Guest RAM: one anonymous mapping from guest-physical address zero, or slots at addresses of the
//! caller's; shared by the engine (which runs on it directly), the model's page walks and user space.

mod slots;

pub(crate) use slots::{Reach, Slot};

use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::memory::{GuestMemory, NotRam};
use nvmx_core::vcpu::BackendError;
use slots::Slots;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// RAM of one machine, with a log of what the model itself wrote.
///
/// Writes by guest code never come here; the engine marks them on its own.
pub(crate) struct Ram {
    map: GuestMemoryMmap<()>,
    start: *mut u8,
    /// Bytes of the mapping; zero for a machine of slots.
    size: u64,
    /// Added to an address to tell the slots of SMM from the others.
    space: Cell<u64>,
    shared: Rc<Shared>,
}

/// Where the slots are that are seen in SMM alone; guest-physical addresses are below.
pub(crate) const SMM_SPACE: u64 = 1 << 50;

/// What all processors' views of the RAM have in common.
struct Shared {
    /// Ranges (address, length) that the model wrote and the engine has not been told of: it must
    /// mark the pages and drop code translated from there.
    written: RefCell<Vec<(u64, u64)>>,
    slots: RefCell<Slots>,
    /// An access met RAM whose host memory is not there, here.
    absent: Cell<Option<u64>>,
}

// SAFETY: all views of one RAM belong to one machine, which moves to another thread as a whole and is
// used by one at a time; the mappings are the process's.
unsafe impl Send for Ram {}

impl Ram {
    /// Zeroed RAM of `size` bytes.
    pub(crate) fn new(size: u64) -> Result<Self, BackendError> {
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return Err(BackendError::StateRefused {
                part: "memory size".into(),
                reason: format!("{size:#x} bytes is no multiple of {PAGE_SIZE}, or zero"),
            });
        }
        let too_large = |reason: String| BackendError::StateRefused {
            part: "memory size".into(),
            reason: format!("cannot map {size:#x} bytes: {reason}"),
        };
        let length = usize::try_from(size).map_err(|e| too_large(e.to_string()))?;
        let map = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), length)])
            .map_err(|e| too_large(e.to_string()))?;
        let start = map
            .get_host_address(GuestAddress(0))
            .map_err(|e| too_large(e.to_string()))?;
        Ok(Self {
            map,
            start,
            size,
            ..Self::none()
        })
    }

    /// No RAM, until slots are added.
    pub(crate) fn none() -> Self {
        Self {
            map: GuestMemoryMmap::new(),
            start: std::ptr::null_mut(),
            size: 0,
            space: Cell::new(0),
            shared: Rc::new(Shared {
                written: RefCell::new(Vec::with_capacity(64)),
                slots: RefCell::default(),
                absent: Cell::new(None),
            }),
        }
    }

    /// The same RAM, with the same log, for another processor.
    pub(crate) fn share(&self) -> Self {
        Self {
            map: self.map.clone(),
            start: self.start,
            size: self.size,
            space: Cell::new(0),
            shared: Rc::clone(&self.shared),
        }
    }

    /// The mapping, for the engine to run on.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Bytes of RAM from address zero.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Adds a slot. `false`: there is RAM already.
    ///
    /// # Safety
    /// Until the slot is removed, its host memory is the guest's: no reference of Rust's points into it.
    /// Pages of it need not be mapped, but one that was when it was first used stays so.
    pub(crate) unsafe fn add(&self, slot: Slot) -> bool {
        slot.start >= self.size && self.shared.slots.borrow_mut().add(slot)
    }

    /// Removes the slot that starts there.
    pub(crate) fn remove(&self, start: u64) -> Option<Slot> {
        self.shared.slots.borrow_mut().remove(start)
    }

    /// Whether all of the access lies in the mapping.
    #[inline]
    fn contains(&self, address: u64, length: u64) -> bool {
        address <= self.size && length <= self.size - address
    }

    /// What an access to one byte meets.
    #[inline]
    pub(crate) fn reach(&self, address: u64, write: bool) -> Reach {
        if self.contains(address, 1) {
            return Reach::Ram { writable: true };
        }
        match self.shared.slots.borrow().find(self.name(address)) {
            None => Reach::Device,
            Some((slot, offset)) => slot.reach(offset, write),
        }
    }

    /// Which slots this processor sees: those of SMM, or the others.
    pub(crate) fn set_smm(&self, smm: bool) {
        let space = if smm && self.size == 0 { SMM_SPACE } else { 0 };
        self.space.set(space);
    }

    /// What the slots and the engine call an address: no two spaces share one.
    #[inline]
    pub(crate) fn name(&self, address: u64) -> u64 {
        if address < SMM_SPACE {
            address + self.space.get()
        } else {
            u64::MAX
        }
    }

    /// Notes that the guest needs this address, whose host memory is not there.
    pub(crate) fn note_absent(&self, address: u64) {
        self.shared.absent.set(Some(address));
    }

    /// Whether an access met RAM whose host memory is not there.
    #[inline]
    pub(crate) fn is_absent(&self) -> bool {
        self.shared.absent.get().is_some()
    }

    /// Where it met it, once.
    #[inline]
    pub(crate) fn take_absent(&self) -> Option<u64> {
        self.shared.absent.take()
    }

    /// An access beyond the mapping.
    #[cold]
    fn access_slots(
        &self,
        address: L1Phys,
        length: usize,
        write: bool,
        part: impl FnMut(*mut u8, std::ops::Range<usize>),
    ) -> Result<(), NotRam> {
        let slots = self.shared.slots.borrow();
        slots
            .access(self.name(address.0), length, write, part)
            .map_err(|reach| {
                if reach == Reach::Absent {
                    self.note_absent(address.0);
                }
                NotRam { address, length }
            })
    }

    /// Hands each range that the model wrote since the last call to `each`.
    #[inline]
    pub(crate) fn take_written(&self, mut each: impl FnMut(u64, u64)) {
        for (address, length) in self.shared.written.borrow_mut().drain(..) {
            each(address, length);
        }
    }
}

impl GuestMemory for Ram {
    #[inline]
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        if !self.contains(address.0, buffer.len() as u64) {
            return self.access_slots(address, buffer.len(), false, |host, range| {
                let part = &mut buffer[range];
                // SAFETY: `host` is good for as many bytes, which it was found to hold; by the contract
                // of `add` they are nobody's, and others that write them at once do so as devices do.
                unsafe { host.copy_to_nonoverlapping(part.as_mut_ptr(), part.len()) };
            });
        }
        // SAFETY: the range lies in the mapping, which lives as long as `self`; the machine is used by
        // one thread at a time, so that nothing writes while we read.
        unsafe {
            self.start
                .add(address.0 as usize)
                .copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len())
        };
        Ok(())
    }

    #[inline]
    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        if self.contains(address.0, bytes.len() as u64) {
            // SAFETY: as in `read`; no reference into the mapping is ever made.
            unsafe {
                self.start
                    .add(address.0 as usize)
                    .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
            };
        } else {
            self.access_slots(address, bytes.len(), true, |host, range| {
                let part = &bytes[range];
                // SAFETY: as in `read`.
                unsafe { host.copy_from_nonoverlapping(part.as_ptr(), part.len()) };
            })?;
        }
        self.shared
            .written
            .borrow_mut()
            .push((self.name(address.0), bytes.len() as u64));
        Ok(())
    }

    #[inline]
    fn read_u64(&self, address: L1Phys) -> Result<u64, NotRam> {
        if !self.contains(address.0, 8) {
            let mut bytes = [0; 8];
            self.read(address, &mut bytes)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        // SAFETY: as in `read`; the read is unaligned-safe.
        Ok(u64::from_le(unsafe {
            self.start
                .add(address.0 as usize)
                .cast::<u64>()
                .read_unaligned()
        }))
    }

    #[inline]
    fn read_u32(&self, address: L1Phys) -> Result<u32, NotRam> {
        if !self.contains(address.0, 4) {
            let mut bytes = [0; 4];
            self.read(address, &mut bytes)?;
            return Ok(u32::from_le_bytes(bytes));
        }
        // SAFETY: as in `read`; the read is unaligned-safe.
        Ok(u32::from_le(unsafe {
            self.start
                .add(address.0 as usize)
                .cast::<u32>()
                .read_unaligned()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_write_is_told_once() {
        let ram = Ram::new(0x10000).expect("64 KiB");
        ram.write(L1Phys(0x1fff), &[1, 2]).expect("in RAM");
        let mut ranges = Vec::new();
        ram.take_written(|address, length| ranges.push((address, length)));
        assert_eq!(ranges, [(0x1fff, 2)]);
        ram.take_written(|_, _| panic!("told already"));
    }

    #[test]
    fn an_access_past_the_end_is_refused() {
        let ram = Ram::new(0x1000).expect("4 KiB");
        assert!(ram.write(L1Phys(0xfff), &[1, 2]).is_err());
        assert!(ram.read_u64(L1Phys(u64::MAX)).is_err());
        assert!(Ram::new(0).is_err());
        assert!(Ram::new(100).is_err());
    }
}
