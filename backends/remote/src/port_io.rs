//! Raw x86 port I/O for an agent that talks to its host through an emulated device.
//!
//! The lab's agent drives an ATA disk from user space (no kernel driver, no page cache, no interrupt), which needs
//! the IN and OUT instructions (SDM Vol. 2, "IN", "INS/INSW/INSD", "OUT", "OUTS/OUTSW/OUTSD") and the kernel's leave
//! to execute them: `iopl(2)`. This is the only file of the crate with `unsafe` in it.
#![allow(unsafe_code)]

use std::arch::asm;
use std::io;
use std::thread::{self, ThreadId};

/// Leave to execute IN and OUT, as `iopl(3)` gave it to one thread.
///
/// Linux keeps that right per thread and hands it on only to threads made later. Every method therefore looks which
/// thread it runs on, and asks the kernel again after a move, so that a `PortAccess` may travel between threads.
#[derive(Debug)]
pub struct PortAccess {
    owner: ThreadId,
}

impl PortAccess {
    /// Asks the kernel for access to all I/O ports.
    ///
    /// # Errors
    /// `EPERM` without `CAP_SYS_RAWIO`, `ENOSYS` from a kernel without `CONFIG_X86_IOPL_IOPERM`.
    pub fn acquire() -> io::Result<Self> {
        raise_iopl()?;
        Ok(Self {
            owner: thread::current().id(),
        })
    }

    /// Makes sure that the calling thread may use the ports.
    ///
    /// # Errors
    /// As [`PortAccess::acquire`].
    pub fn ensure(&mut self) -> io::Result<()> {
        let current = thread::current().id();
        if current != self.owner {
            raise_iopl()?;
            self.owner = current;
        }
        Ok(())
    }

    /// Reads one byte from `port`.
    ///
    /// # Errors
    /// As [`PortAccess::acquire`], if the thread changed.
    pub fn read_byte(&mut self, port: u16) -> io::Result<u8> {
        self.ensure()?;
        let value: u8;
        // SAFETY: `ensure` gave this thread the right to execute IN, which writes AL and no memory.
        unsafe {
            asm!("in al, dx", out("al") value, in("dx") port, options(nomem, nostack, preserves_flags))
        };
        Ok(value)
    }

    /// Writes one byte to `port`.
    ///
    /// What a port does with a byte is the device's affair: callers drive only devices that no kernel driver owns and
    /// that cannot write to memory by themselves (no bus mastering).
    ///
    /// # Errors
    /// As [`PortAccess::acquire`], if the thread changed.
    pub fn write_byte(&mut self, port: u16, value: u8) -> io::Result<()> {
        self.ensure()?;
        // SAFETY: `ensure` gave this thread the right to execute OUT, which touches no memory of ours.
        unsafe {
            asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack, preserves_flags))
        };
        Ok(())
    }

    /// Fills `buffer` with 32-bit reads from `port` (REP INSD).
    ///
    /// # Errors
    /// As [`PortAccess::acquire`], if the thread changed.
    pub fn read_words(&mut self, port: u16, buffer: &mut [u32]) -> io::Result<()> {
        self.ensure()?;
        // SAFETY: REP INSD stores exactly `buffer.len()` double words upwards from `buffer`, which we borrow mutably;
        // the ABI keeps DF clear; RDI and RCX are declared as changed.
        unsafe {
            asm!("rep insd", in("dx") port, inout("rdi") buffer.as_mut_ptr() => _, inout("rcx") buffer.len() => _,
                 options(nostack, preserves_flags));
        }
        Ok(())
    }

    /// Writes all of `buffer` to `port` as 32-bit words (REP OUTSD).
    ///
    /// # Errors
    /// As [`PortAccess::acquire`], if the thread changed.
    pub fn write_words(&mut self, port: u16, buffer: &[u32]) -> io::Result<()> {
        self.ensure()?;
        // SAFETY: REP OUTSD loads exactly `buffer.len()` double words upwards from `buffer`; the ABI keeps DF clear;
        // RSI and RCX are declared as changed.
        unsafe {
            asm!("rep outsd", in("dx") port, inout("rsi") buffer.as_ptr() => _, inout("rcx") buffer.len() => _,
                 options(nostack, preserves_flags, readonly));
        }
        Ok(())
    }
}

fn raise_iopl() -> io::Result<()> {
    // SAFETY: iopl only changes this thread's right to use ports; it reads and writes no memory of the process.
    if unsafe { libc::iopl(3) } == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
