//! RAM of the guest: one memfd mapped at guest-physical address zero.

use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::memory::{GuestMemory, NotRam};
use nvmx_core::vcpu::{BackendError, Result};
use std::fs::File;
use vm_memory::{Bytes as _, FileOffset, GuestAddress, GuestMemoryMmap};

/// The local APIC's page: RAM may not reach it.
pub(crate) const APIC_BASE: u64 = 0xfee0_0000;

/// Where KVM keeps three pages of its own for real mode without unrestricted guest
/// (KVM_SET_TSS_ADDR) and, one page below, its identity map: in the firmware's region, no RAM.
pub(crate) const TSS_ADDRESS: u64 = 0xfffb_d000;
/// See [`TSS_ADDRESS`].
pub(crate) const IDENTITY_MAP_ADDRESS: u64 = 0xfffb_c000;

/// RAM from address zero (clones share it), and which pages we wrote ourselves (KVM's log holds the guest's).
#[derive(Debug, Clone)]
pub struct Ram {
    map: GuestMemoryMmap,
    size: u64,
    written: Vec<u64>,
}

impl Ram {
    /// Zeroed RAM of `size` bytes, a multiple of the page size.
    pub fn new(size: u64) -> Result<Self> {
        let refuse = |reason: String| {
            Err(BackendError::StateRefused {
                part: "memory_size".into(),
                reason,
            })
        };
        if size == 0 || !size.is_multiple_of(PAGE_SIZE) {
            return refuse(format!("{size} is not a positive multiple of {PAGE_SIZE}"));
        }
        if size > APIC_BASE {
            return refuse(format!("{size} reaches the local APIC at {APIC_BASE:#x}"));
        }
        let fd = rustix::fs::memfd_create("nvmx-ram", rustix::fs::MemfdFlags::CLOEXEC)
            .map_err(|errno| crate::error::kernel("memfd_create", errno.raw_os_error()))?;
        let file = File::from(fd);
        file.set_len(size)
            .map_err(|e| BackendError::Other(format!("memory of {size} bytes: {e}")))?;
        let range = (
            GuestAddress(0),
            size as usize,
            Some(FileOffset::new(file, 0)),
        );
        let map = GuestMemoryMmap::from_ranges_with_files([range])
            .map_err(|e| BackendError::Other(format!("memory of {size} bytes: {e}")))?;
        Ok(Self {
            map,
            size,
            written: vec![0; size.div_ceil(PAGE_SIZE * 64) as usize],
        })
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The map, for who wants to share it. Writes through it are not in the dirty log.
    #[must_use]
    pub fn map(&self) -> &GuestMemoryMmap {
        &self.map
    }

    fn check(&self, address: L1Phys, length: usize) -> Result<(), NotRam> {
        match address.0.checked_add(length as u64) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(NotRam { address, length }),
        }
    }

    /// Writes and marks the pages as written.
    pub(crate) fn write_marked(&mut self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        self.write(address, bytes)?;
        if let Some(last) = (bytes.len() as u64).checked_sub(1) {
            for page in address.0 / PAGE_SIZE..=(address.0 + last) / PAGE_SIZE {
                self.written[page as usize / 64] |= 1 << (page % 64);
            }
        }
        Ok(())
    }

    /// The pages in our marks or in the kernel's `log` (one bit a page), ascending; forgets ours.
    pub(crate) fn take_dirty(&mut self, log: &[u64]) -> Vec<u64> {
        let mut pages = Vec::new();
        for (index, ours) in self.written.iter_mut().enumerate() {
            let mut word = std::mem::take(ours) | log.get(index).copied().unwrap_or(0);
            while word != 0 {
                pages.push(index as u64 * 64 + u64::from(word.trailing_zeros()));
                word &= word - 1;
            }
        }
        pages
    }
}

impl GuestMemory for Ram {
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        self.check(address, buffer.len())?;
        self.map
            .read_slice(buffer, GuestAddress(address.0))
            .map_err(|_| NotRam {
                address,
                length: buffer.len(),
            })
    }

    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        self.check(address, bytes.len())?;
        self.map
            .write_slice(bytes, GuestAddress(address.0))
            .map_err(|_| NotRam {
                address,
                length: bytes.len(),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_pages_are_reported_once_with_the_kernels() {
        let mut ram = Ram::new(200 * PAGE_SIZE).unwrap();
        ram.write_marked(L1Phys(70 * PAGE_SIZE - 1), &[1, 2])
            .unwrap();
        ram.write_marked(L1Phys(0), &[]).unwrap();
        assert_eq!(ram.take_dirty(&[1 << 3, 0, 0, 1]), [3, 69, 70, 192]);
        assert_eq!(ram.take_dirty(&[]), [] as [u64; 0]);
    }

    #[test]
    fn an_access_past_the_end_changes_nothing() {
        let mut ram = Ram::new(PAGE_SIZE).unwrap();
        assert!(ram.write_marked(L1Phys(PAGE_SIZE - 1), &[1, 2]).is_err());
        assert!(ram.write_marked(L1Phys(u64::MAX), &[1, 2]).is_err());
        assert!(ram.take_dirty(&[]).is_empty());
        let mut byte = [9];
        ram.read(L1Phys(PAGE_SIZE - 1), &mut byte).unwrap();
        assert_eq!(byte, [0]);
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        for size in [0, 1, PAGE_SIZE + 1, APIC_BASE + PAGE_SIZE] {
            assert!(Ram::new(size).is_err(), "{size:#x}");
        }
    }
}
