//! Guest RAM: one anonymous mapping from guest-physical address zero, shared by the engine (which
//! runs on it directly), the model's page walks and user space.

use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::memory::{GuestMemory, NotRam};
use nvmx_core::vcpu::BackendError;
use std::cell::RefCell;
use std::rc::Rc;
use vm_memory::{GuestAddress, GuestMemoryBackend as _, GuestMemoryMmap};

/// RAM of one machine, with a log of what the model itself wrote.
///
/// Writes by guest code never come here; the engine marks them on its own.
pub(crate) struct Ram {
    map: GuestMemoryMmap<()>,
    start: *mut u8,
    size: u64,
    /// Ranges (address, length) that the model wrote and the engine has not been told of: it must
    /// mark the pages and drop code translated from there.
    written: Rc<RefCell<Vec<(u64, u64)>>>,
}

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
            written: Rc::new(RefCell::new(Vec::with_capacity(64))),
        })
    }

    /// The same RAM, with the same log, for another processor.
    pub(crate) fn share(&self) -> Self {
        Self {
            map: self.map.clone(),
            start: self.start,
            size: self.size,
            written: Rc::clone(&self.written),
        }
    }

    /// The mapping, for the engine to run on.
    pub(crate) fn map(&self) -> &GuestMemoryMmap<()> {
        &self.map
    }

    /// Bytes of RAM.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Whether all of the access is RAM.
    #[inline]
    pub(crate) fn contains(&self, address: u64, length: u64) -> bool {
        address <= self.size && length <= self.size - address
    }

    #[inline]
    fn check(&self, address: L1Phys, length: usize) -> Result<usize, NotRam> {
        if self.contains(address.0, length as u64) {
            Ok(address.0 as usize)
        } else {
            Err(NotRam { address, length })
        }
    }

    /// Hands each range that the model wrote since the last call to `each`.
    #[inline]
    pub(crate) fn take_written(&self, mut each: impl FnMut(u64, u64)) {
        for (address, length) in self.written.borrow_mut().drain(..) {
            each(address, length);
        }
    }
}

impl GuestMemory for Ram {
    #[inline]
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let offset = self.check(address, buffer.len())?;
        // SAFETY: `check` holds the range inside the mapping, which lives as long as `self`; the
        // machine is single-threaded, so that nothing writes while we read.
        unsafe {
            self.start
                .add(offset)
                .copy_to_nonoverlapping(buffer.as_mut_ptr(), buffer.len())
        };
        Ok(())
    }

    #[inline]
    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        let offset = self.check(address, bytes.len())?;
        // SAFETY: as in `read`; no reference into the mapping is ever made.
        unsafe {
            self.start
                .add(offset)
                .copy_from_nonoverlapping(bytes.as_ptr(), bytes.len())
        };
        self.written
            .borrow_mut()
            .push((address.0, bytes.len() as u64));
        Ok(())
    }

    #[inline]
    fn read_u64(&self, address: L1Phys) -> Result<u64, NotRam> {
        let offset = self.check(address, 8)?;
        // SAFETY: as in `read`; the read is unaligned-safe.
        Ok(u64::from_le(unsafe {
            self.start.add(offset).cast::<u64>().read_unaligned()
        }))
    }

    #[inline]
    fn read_u32(&self, address: L1Phys) -> Result<u32, NotRam> {
        let offset = self.check(address, 4)?;
        // SAFETY: as in `read`; the read is unaligned-safe.
        Ok(u32::from_le(unsafe {
            self.start.add(offset).cast::<u32>().read_unaligned()
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
