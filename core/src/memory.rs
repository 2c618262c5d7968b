//! L1's physical memory as the model sees it: reads and writes that may miss.

use crate::addr::L1Phys;
use thiserror::Error;

/// An access that (in part) hit no RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{length} bytes at guest-physical {address} are not RAM")]
pub struct NotRam {
    /// First byte of the access.
    pub address: L1Phys,
    /// Length of the access, in bytes.
    pub length: usize,
}

/// RAM of L1. Shared access: implementations hold mapped guest memory, which any vCPU may write.
///
/// An access that is not wholly RAM changes nothing and fails.
pub trait GuestMemory {
    /// Reads `buffer.len()` bytes at `address`.
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam>;

    /// Writes `bytes` at `address`.
    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam>;

    /// Reads a little-endian 32-bit value.
    fn read_u32(&self, address: L1Phys) -> Result<u32, NotRam> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Reads a little-endian 64-bit value.
    fn read_u64(&self, address: L1Phys) -> Result<u64, NotRam> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a little-endian 32-bit value.
    fn write_u32(&self, address: L1Phys, value: u32) -> Result<(), NotRam> {
        self.write(address, &value.to_le_bytes())
    }

    /// Writes a little-endian 64-bit value.
    fn write_u64(&self, address: L1Phys, value: u64) -> Result<(), NotRam> {
        self.write(address, &value.to_le_bytes())
    }
}

/// RAM from address zero, in a vector: for tests and for offline checks.
#[derive(Debug, Clone)]
pub struct VecMemory(std::cell::RefCell<Vec<u8>>);

impl VecMemory {
    /// Zeroed RAM of `size` bytes.
    #[must_use]
    pub fn new(size: usize) -> Self {
        Self(std::cell::RefCell::new(vec![0; size]))
    }

    fn range(&self, address: L1Phys, length: usize) -> Result<std::ops::Range<usize>, NotRam> {
        let miss = NotRam { address, length };
        let start = usize::try_from(address.0).map_err(|_| miss)?;
        let end = start.checked_add(length).ok_or(miss)?;
        if end > self.0.borrow().len() {
            return Err(miss);
        }
        Ok(start..end)
    }
}

impl GuestMemory for VecMemory {
    fn read(&self, address: L1Phys, buffer: &mut [u8]) -> Result<(), NotRam> {
        let range = self.range(address, buffer.len())?;
        buffer.copy_from_slice(&self.0.borrow()[range]);
        Ok(())
    }

    fn write(&self, address: L1Phys, bytes: &[u8]) -> Result<(), NotRam> {
        let range = self.range(address, bytes.len())?;
        self.0.borrow_mut()[range].copy_from_slice(bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_access_past_the_end_changes_nothing() {
        let memory = VecMemory::new(0x1000);
        assert!(memory.write_u64(L1Phys(0xffc), u64::MAX).is_err());
        assert_eq!(memory.read_u32(L1Phys(0xffc)), Ok(0));
        assert!(memory.read_u32(L1Phys(u64::MAX - 1)).is_err());
    }
}
