//! [`User`]: the caller's memory, as the kernel sees it: an address that does not hold answers EFAULT.
//!
//! The kernel does the copying (process_vm_readv(2) on ourselves), so that a hostile address is an error
//! and no signal.

use super::Plain;
use crate::errno::Errno;
use std::mem::MaybeUninit;

/// The memory of the process that calls.
#[derive(Debug, Clone, Copy, Default)]
pub struct User;

impl User {
    /// Fills `buffer` from the caller's memory.
    pub fn read_bytes(self, address: u64, buffer: &mut [u8]) -> Result<(), Errno> {
        copy(Direction::From, address, buffer.as_mut_ptr(), buffer.len())
    }

    /// Writes to the caller's memory.
    pub fn write_bytes(self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        let source = bytes.as_ptr().cast_mut();
        copy(Direction::To, address, source, bytes.len())
    }

    /// A value out of the caller's memory: `copy_from_user`.
    pub fn read<T: Plain>(self, address: u64) -> Result<T, Errno> {
        let mut value = MaybeUninit::<T>::zeroed();
        let length = size_of::<T>();
        copy(Direction::From, address, value.as_mut_ptr().cast(), length)?;
        // SAFETY: zeroed and then filled, and any bytes are a value of plain data.
        Ok(unsafe { value.assume_init() })
    }

    /// A value into the caller's memory: `copy_to_user`.
    pub fn write<T: Plain>(self, address: u64, value: &T) -> Result<(), Errno> {
        let source = std::ptr::from_ref(value).cast_mut().cast();
        copy(Direction::To, address, source, size_of::<T>())
    }

    /// `count` values that stand one after the other. The caller of this holds `count` small.
    pub fn read_all<T: Plain>(self, address: u64, count: usize) -> Result<Vec<T>, Errno> {
        let mut values = vec![T::zeroed(); count];
        let length = std::mem::size_of_val(values.as_slice());
        copy(Direction::From, address, values.as_mut_ptr().cast(), length)?;
        Ok(values)
    }

    /// Values one after the other.
    pub fn write_all<T: Plain>(self, address: u64, values: &[T]) -> Result<(), Errno> {
        let length = std::mem::size_of_val(values);
        let source = values.as_ptr().cast_mut().cast();
        copy(Direction::To, address, source, length)
    }
}

enum Direction {
    From,
    To,
}

fn copy(direction: Direction, address: u64, ours: *mut u8, length: usize) -> Result<(), Errno> {
    if length == 0 {
        return Ok(());
    }
    let local = libc::iovec {
        iov_base: ours.cast(),
        iov_len: length,
    };
    let remote = libc::iovec {
        iov_base: address as usize as *mut libc::c_void,
        iov_len: length,
    };
    // SAFETY: `local` is memory of the function that called, which is readable for `To` and writable for
    // `From`; what `remote` is, the kernel finds out.
    let copied = unsafe {
        let own = libc::getpid();
        match direction {
            Direction::From => libc::process_vm_readv(own, &local, 1, &remote, 1, 0),
            Direction::To => libc::process_vm_writev(own, &local, 1, &remote, 1, 0),
        }
    };
    if usize::try_from(copied) == Ok(length) {
        Ok(())
    } else {
        Err(Errno::EFAULT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_addresses_are_errors() {
        let value = 7_u32;
        let address = std::ptr::from_ref(&value) as u64;
        assert_eq!(User.read::<u32>(address), Ok(7));
        for hostile in [0, 8, u64::MAX, u64::MAX - 2, 1 << 63, 0xffff_8000_0000_0000] {
            assert_eq!(
                User.read::<u32>(hostile),
                Err(Errno::EFAULT),
                "{hostile:#x}"
            );
            assert_eq!(
                User.write(hostile, &1_u64),
                Err(Errno::EFAULT),
                "{hostile:#x}"
            );
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let mut place = [0_u32; 3];
        let address = place.as_mut_ptr() as u64;
        User.write_all(address, &[1_u32, 2, 3]).expect("ours");
        assert_eq!(User.read_all::<u32>(address, 3), Ok(vec![1, 2, 3]));
        User.write(address + 4, &9_u32).expect("ours");
        assert_eq!(User.read::<[u32; 3]>(address), Ok([1, 9, 3]));
    }
}
