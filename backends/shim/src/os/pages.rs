//! [`RunPages`]: the pages that a vCPU shares with its caller, `struct kvm_run` first.
//!
//! They are the content of the memfd that the vCPU's file descriptor is, so that the caller's plain
//! mmap(2) of it shows them.

use super::Plain;
use crate::errno::Errno;
use rustix::fd::{BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ptr;

/// Bytes of the shared pages: `kvm_run`, the page of string I/O's data, the ring of coalesced MMIO.
pub const SIZE: usize = 3 * 4096;

/// The shared pages of one vCPU. The caller may write to them at any time.
#[derive(Debug)]
pub struct RunPages {
    start: *mut u8,
}

// SAFETY: the pages belong to this alone until they are dropped; each access copies bytes.
unsafe impl Send for RunPages {}
// SAFETY: as above; that several write at once is in the nature of shared memory, and no reference into it
// is ever made.
unsafe impl Sync for RunPages {}

/// A descriptor that stands for an object, of a file with that many bytes.
pub(crate) fn descriptor(name: &str, size: usize, close_on_exec: bool) -> Result<i32, Errno> {
    let flags = if close_on_exec {
        MemfdFlags::CLOEXEC
    } else {
        MemfdFlags::empty()
    };
    let file = memfd_create(name, flags)?;
    ftruncate(&file, size as u64)?;
    Ok(file.into_raw_fd())
}

/// A descriptor of a file with this text, at its beginning.
pub(crate) fn text(text: &str, close_on_exec: bool) -> Result<i32, Errno> {
    let fd = descriptor("kvm-parameter", 0, close_on_exec)?;
    // SAFETY: just opened.
    let file = unsafe { BorrowedFd::borrow_raw(fd) };
    rustix::io::pwrite(file, text.as_bytes(), 0)?;
    Ok(fd)
}

/// Closes a descriptor that nobody was told of.
fn discard(fd: i32) {
    // SAFETY: the caller made it and gives it up.
    drop(unsafe { OwnedFd::from_raw_fd(fd) });
}

impl RunPages {
    /// Pages of zeroes, and the descriptor that shows them.
    pub fn new() -> Result<(Self, i32), Errno> {
        let fd = descriptor("kvm-vcpu", SIZE, true)?;
        // SAFETY: `fd` is open, and is so until this function ends.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe {
            let access = ProtFlags::READ | ProtFlags::WRITE;
            mmap(ptr::null_mut(), SIZE, access, MapFlags::SHARED, file, 0)
        };
        match start {
            Ok(start) => Ok((
                Self {
                    start: start.cast(),
                },
                fd,
            )),
            Err(error) => {
                discard(fd);
                Err(error.into())
            }
        }
    }

    fn at<T: Plain>(&self, offset: usize) -> *mut T {
        let end = offset.checked_add(size_of::<T>());
        assert!(end.is_some_and(|end| end <= SIZE), "offset {offset:#x}");
        // SAFETY: inside the mapping, as just asserted.
        unsafe { self.start.add(offset).cast() }
    }

    /// The value at an offset.
    #[must_use]
    pub fn load<T: Plain>(&self, offset: usize) -> T {
        // SAFETY: inside the mapping; any bytes are a value.
        unsafe { self.at::<T>(offset).read_unaligned() }
    }

    /// The byte at an offset, which another thread may change: never cached.
    #[must_use]
    pub fn load_byte(&self, offset: usize) -> u8 {
        // SAFETY: inside the mapping, and a byte is aligned.
        unsafe { self.at::<u8>(offset).read_volatile() }
    }

    /// Puts a value at an offset.
    pub fn store<T: Plain>(&self, offset: usize, value: T) {
        // SAFETY: inside the mapping.
        unsafe { self.at::<T>(offset).write_unaligned(value) }
    }
}

impl Drop for RunPages {
    fn drop(&mut self) {
        // SAFETY: the mapping of `new`, to which nothing refers any more.
        let _ = unsafe { munmap(self.start.cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_is_in_the_file() {
        let (pages, fd) = RunPages::new().expect("memory");
        pages.store(8, 0x1234_5678_u32);
        assert_eq!(pages.load::<u32>(8), 0x1234_5678);
        // SAFETY: open until `discard`.
        let file = unsafe { BorrowedFd::borrow_raw(fd) };
        let mut bytes = [0_u8; 4];
        rustix::io::pread(file, &mut bytes, 8).expect("a file");
        assert_eq!(u32::from_le_bytes(bytes), 0x1234_5678);
        discard(fd);
    }

    #[test]
    #[should_panic(expected = "offset")]
    fn past_the_end_there_is_nothing() {
        let (pages, fd) = RunPages::new().expect("memory");
        discard(fd);
        let _ = pages.load::<u32>(SIZE - 3);
    }
}
