//! A buffer whose end is the end of accessible memory.

use crate::error;
use nvmx_core::vcpu::Result;
use std::ptr::NonNull;

const PAGE: usize = 4096;

/// Bytes that end where an inaccessible page begins: whoever reads further faults.
#[derive(Debug)]
pub(crate) struct GuardedBuffer {
    mapping: NonNull<u8>,
    mapped: usize,
    offset: usize,
}

impl GuardedBuffer {
    /// A copy of `bytes` at the very end.
    pub(crate) fn ending_with(bytes: &[u8]) -> Result<Self> {
        let accessible = bytes.len().next_multiple_of(PAGE).max(PAGE);
        let mapped = accessible + PAGE;
        // SAFETY: a new anonymous mapping where the kernel likes.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(error::last("mmap"));
        }
        let mapping = NonNull::new(address.cast()).ok_or_else(|| error::last("mmap"))?;
        let buffer = Self {
            mapping,
            mapped,
            offset: accessible - bytes.len(),
        };
        // SAFETY: the last page of our own mapping, which nothing refers to yet.
        if unsafe {
            libc::mprotect(
                mapping.as_ptr().add(accessible).cast(),
                PAGE,
                libc::PROT_NONE,
            )
        } != 0
        {
            return Err(error::last("mprotect"));
        }
        // SAFETY: offset + length is `accessible`, all of it writable and ours.
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                mapping.as_ptr().add(buffer.offset),
                bytes.len(),
            );
        }
        Ok(buffer)
    }

    /// The first byte.
    pub(crate) fn as_ptr(&self) -> *const u8 {
        // SAFETY: the offset lies inside the mapping (at its guard page for an empty buffer).
        unsafe { self.mapping.as_ptr().add(self.offset) }
    }
}

impl Drop for GuardedBuffer {
    fn drop(&mut self) {
        // SAFETY: our own mapping, unmapped once.
        unsafe { libc::munmap(self.mapping.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd as _;

    /// write(2) answers EFAULT, like copy_from_user in an ioctl, where memory is not accessible.
    #[test]
    fn a_byte_behind_the_end_faults_in_the_kernel() {
        for length in [0, 1, 128, 4096, 8320] {
            let buffer = GuardedBuffer::ending_with(&vec![0xa5; length]).unwrap();
            let (reader, writer) = std::io::pipe().unwrap();
            // SAFETY: write(2) checks the memory itself.
            let exact = unsafe { libc::write(writer.as_raw_fd(), buffer.as_ptr().cast(), length) };
            assert_eq!(exact, length as isize);
            // SAFETY: as above.
            let behind =
                unsafe { libc::write(writer.as_raw_fd(), buffer.as_ptr().add(length).cast(), 1) };
            assert_eq!(behind, -1, "length {length}");
            assert_eq!(error::last_errno(), libc::EFAULT);
            drop(reader);
        }
    }
}
