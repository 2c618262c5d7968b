//! The device with which test suites poke at a PC from inside, as QEMU's `pc-testdev` has it: interrupt
//! lines at ports 0x2000 to 0x2017, scratch at 0xe0 and 0xe8, memory-mapped scratch at 0xff000000.

/// First port of the interrupt lines: a byte sets the line, zero clears it.
pub const LINES: u16 = 0x2000;
/// Number of lines.
pub const LINE_COUNT: u16 = 24;
/// First port of the scratch register, for accesses of any width.
pub const SCRATCH: u16 = 0xe0;
/// Port that takes an address to flush, which means nothing here.
pub const FLUSH: u16 = 0xe4;
/// First port of the same scratch register, for bytes.
pub const SCRATCH_BYTES: u16 = 0xe8;
/// Where its memory is.
pub const MEMORY: u64 = 0xff00_0000;
/// Bytes of its memory.
pub const MEMORY_SIZE: u64 = 0x1_0000;

/// The device.
#[derive(Debug, Clone)]
pub struct TestDevice {
    lines: u32,
    scratch: [u8; 4],
    memory: Vec<u8>,
}

impl Default for TestDevice {
    fn default() -> Self {
        Self::new()
    }
}

impl TestDevice {
    /// All low, all zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            lines: 0,
            scratch: [0; 4],
            memory: vec![0; MEMORY_SIZE as usize],
        }
    }

    /// The interrupt lines that it holds high.
    #[must_use]
    pub const fn lines(&self) -> u32 {
        self.lines
    }

    /// Writes a port of [`LINES`].
    pub fn set_line(&mut self, line: u16, value: u8) {
        if line < LINE_COUNT {
            let bit = 1 << line;
            self.lines = if value == 0 {
                self.lines & !bit
            } else {
                self.lines | bit
            };
        }
    }

    /// Reads a byte of the scratch register.
    #[must_use]
    pub fn read_scratch(&self, port: u16) -> u8 {
        self.scratch[usize::from(port & 3)]
    }

    /// Writes a byte of the scratch register.
    pub fn write_scratch(&mut self, port: u16, value: u8) {
        self.scratch[usize::from(port & 3)] = value;
    }

    /// Reads a byte of the memory; zero beyond its end.
    #[must_use]
    pub fn read_memory(&self, offset: u64) -> u8 {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        self.memory.get(at).copied().unwrap_or(0)
    }

    /// Writes a byte of the memory.
    pub fn write_memory(&mut self, offset: u64, value: u8) {
        let at = usize::try_from(offset).unwrap_or(usize::MAX);
        if let Some(byte) = self.memory.get_mut(at) {
            *byte = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stay_as_set() {
        let mut device = TestDevice::new();
        device.set_line(14, 1);
        device.set_line(0, 0xff);
        device.set_line(24, 1);
        assert_eq!(device.lines(), 1 << 14 | 1);
        device.set_line(0, 0);
        assert_eq!(device.lines(), 1 << 14);
    }

    #[test]
    fn scratch_and_memory_read_back() {
        let mut device = TestDevice::new();
        device.write_scratch(SCRATCH + 1, 0x12);
        assert_eq!(device.read_scratch(SCRATCH_BYTES + 1), 0x12);
        device.write_memory(MEMORY_SIZE - 1, 0x34);
        device.write_memory(MEMORY_SIZE, 0x56);
        assert_eq!(device.read_memory(MEMORY_SIZE - 1), 0x34);
        assert_eq!(device.read_memory(MEMORY_SIZE), 0);
        assert_eq!(device.read_memory(u64::MAX), 0);
    }
}
