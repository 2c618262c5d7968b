//! [`EventFile`]: an eventfd of the caller's that the VM signals.

use crate::errno::Errno;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::fs::readlink;

/// An eventfd, held open whatever the caller does with its own descriptor.
#[derive(Debug)]
pub struct EventFile(OwnedFd);

impl EventFile {
    /// The file behind a descriptor of the caller's: EBADF if there is none, EINVAL if it is of another kind.
    pub fn new(fd: i32) -> Result<Self, Errno> {
        Self::check(fd)?;
        // SAFETY: open a moment ago; if the caller has closed it since, this is an error.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        Ok(Self(rustix::io::fcntl_dupfd_cloexec(borrowed, 0)?))
    }

    /// Whether a descriptor is an eventfd.
    pub fn check(fd: i32) -> Result<(), Errno> {
        if fd < 0 {
            return Err(Errno::EBADF);
        }
        let name = readlink(format!("/proc/self/fd/{fd}"), Vec::new()).map_err(|_| Errno::EBADF)?;
        if name.to_bytes() == b"anon_inode:[eventfd]" {
            Ok(())
        } else {
            Err(Errno::EINVAL)
        }
    }

    /// Adds one to the counter; one that is full stays so.
    pub fn signal(&self) {
        let mut ready = [PollFd::new(&self.0, PollFlags::OUT)];
        let at_once = Timespec::default();
        if poll(&mut ready, Some(&at_once)) == Ok(1) {
            let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
        }
    }
}
