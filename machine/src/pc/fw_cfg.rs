//! QEMU's firmware configuration device (QEMU "QEMU Firmware Configuration (fw_cfg) Device"): selector at
//! 0x510, data at 0x511, DMA at 0x514.

use super::Config;
use crate::memory_map;

/// Selector port, 16 bits.
pub const SELECTOR: u16 = 0x510;
/// Data port, bytes.
pub const DATA: u16 = 0x511;
/// DMA address, two big-endian halves: high, low; the low one starts the transfer.
pub const DMA: u16 = 0x514;

const SIGNATURE: u16 = 0x00;
const ID: u16 = 0x01;
const RAM_SIZE: u16 = 0x03;
const NB_CPUS: u16 = 0x05;
const INITRD_SIZE: u16 = 0x0b;
const MAX_CPUS: u16 = 0x0f;
const INITRD_DATA: u16 = 0x12;
const COMMAND_LINE_SIZE: u16 = 0x14;
const COMMAND_LINE: u16 = 0x15;
const FILE_DIRECTORY: u16 = 0x19;
const FIRST_FILE: u16 = 0x20;
const IRQ0_OVERRIDE: u16 = 0x8002;
/// ID: the ports, and DMA.
const FEATURES: u32 = 3;
/// What the DMA register reads.
const DMA_SIGNATURE: &[u8; 8] = b"QEMU CFG";

/// Bits of a DMA command.
mod command {
    pub(super) const ERROR: u32 = 1;
    pub(super) const READ: u32 = 2;
    pub(super) const SKIP: u32 = 4;
    pub(super) const SELECT: u32 = 8;
    pub(super) const WRITE: u32 = 16;
}

/// Bytes of a DMA descriptor.
pub const DESCRIPTOR_SIZE: usize = 16;

/// What to do to guest memory for a DMA command, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transfer {
    /// Where the data goes; `None` if the command moves none.
    pub to: Option<u64>,
    /// Bytes.
    pub length: u32,
    /// What the descriptor's first word becomes: zero, or the error bit. Big-endian.
    pub status: [u8; 4],
}

/// Items by key, and the position in the selected one.
#[derive(Debug, Clone)]
pub struct FwCfg {
    items: Vec<(u16, Vec<u8>)>,
    selected: u16,
    position: usize,
    dma_high: u32,
}

impl FwCfg {
    /// What QEMU would tell of such a machine.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let processors = u16::try_from(config.processors).unwrap_or(u16::MAX);
        let size = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes();
        let mut command_line = config.command_line.clone().into_bytes();
        command_line.push(0);
        let files = [("etc/e820", e820(config.memory_size))];
        let mut items = vec![
            (SIGNATURE, b"QEMU".to_vec()),
            (ID, FEATURES.to_le_bytes().to_vec()),
            (RAM_SIZE, config.memory_size.to_le_bytes().to_vec()),
            (NB_CPUS, processors.to_le_bytes().to_vec()),
            (MAX_CPUS, processors.to_le_bytes().to_vec()),
            (INITRD_SIZE, size(&config.initrd).to_vec()),
            (INITRD_DATA, config.initrd.clone()),
            (COMMAND_LINE_SIZE, size(&command_line).to_vec()),
            (COMMAND_LINE, command_line),
            (IRQ0_OVERRIDE, vec![1]),
            (FILE_DIRECTORY, directory(&files)),
        ];
        items.extend((FIRST_FILE..).zip(files.map(|(_, bytes)| bytes)));
        Self {
            items,
            selected: SIGNATURE,
            position: 0,
            dma_high: 0,
        }
    }

    /// Writes the selector.
    pub fn select(&mut self, key: u16) {
        // Bit 14 asks for the write channel of old, which no longer exists.
        self.selected = key & !0x4000;
        self.position = 0;
    }

    fn rest(&self) -> &[u8] {
        self.items
            .iter()
            .find(|(key, _)| *key == self.selected)
            .and_then(|(_, bytes)| bytes.get(self.position..))
            .unwrap_or_default()
    }

    /// Reads the data port; zero behind an item's end and of an item that does not exist.
    pub fn read(&mut self) -> u8 {
        let byte = self.rest().first().copied().unwrap_or(0);
        self.position = self.position.saturating_add(1);
        byte
    }

    /// Fills `buffer` as so many reads of the data port would.
    pub fn read_into(&mut self, buffer: &mut [u8]) {
        let rest = self.rest();
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        buffer[count..].fill(0);
        self.position = self.position.saturating_add(buffer.len());
    }

    /// Reads a byte of the DMA register.
    #[must_use]
    pub fn read_dma(&self, port: u16) -> u8 {
        DMA_SIGNATURE[usize::from(port.wrapping_sub(DMA) & 7)]
    }

    /// Writes half of the DMA register; the address of a descriptor to carry out.
    #[must_use]
    pub fn write_dma(&mut self, port: u16, value: u32) -> Option<u64> {
        let value = value.swap_bytes();
        if port == DMA {
            self.dma_high = value;
            return None;
        }
        let high = std::mem::take(&mut self.dma_high);
        Some(u64::from(high) << 32 | u64::from(value))
    }

    /// Carries out a descriptor as far as it is ours.
    pub fn execute(&mut self, descriptor: [u8; DESCRIPTOR_SIZE]) -> Transfer {
        let word = |at: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&descriptor[at..at + 4]);
            u32::from_be_bytes(bytes)
        };
        let (control, length) = (word(0), word(4));
        let address = u64::from(word(8)) << 32 | u64::from(word(12));
        if control & command::SELECT != 0 {
            self.select((control >> 16) as u16);
        }
        let mut transfer = Transfer {
            to: None,
            length,
            status: [0; 4],
        };
        if control & command::READ != 0 {
            transfer.to = Some(address);
        } else if control & command::WRITE != 0 {
            // No item can be written.
            transfer.status = command::ERROR.to_be_bytes();
        } else if control & command::SKIP != 0 {
            self.position = self.position.saturating_add(length as usize);
        }
        transfer
    }

    /// What a descriptor's first word becomes if its memory is not RAM.
    #[must_use]
    pub const fn error() -> [u8; 4] {
        command::ERROR.to_be_bytes()
    }
}

/// The memory map as QEMU packs it: address, length, type; RAM and what it reserves itself.
fn e820(memory_size: u64) -> Vec<u8> {
    memory_map::ranges(memory_size)
        .iter()
        .flat_map(|range| {
            let mut entry = [0; 20];
            entry[..8].copy_from_slice(&range.start.to_le_bytes());
            entry[8..16].copy_from_slice(&range.length.to_le_bytes());
            entry[16..].copy_from_slice(&(range.kind as u32).to_le_bytes());
            entry
        })
        .collect()
}

/// The file directory: count, then size, key and name of each, numbers big-endian.
fn directory(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = (files.len() as u32).to_be_bytes().to_vec();
    for (key, (name, data)) in (FIRST_FILE..).zip(files) {
        let mut entry = [0; 64];
        entry[..4].copy_from_slice(&(data.len() as u32).to_be_bytes());
        entry[4..6].copy_from_slice(&key.to_be_bytes());
        entry[8..8 + name.len()].copy_from_slice(name.as_bytes());
        bytes.extend(entry);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> FwCfg {
        FwCfg::new(&Config {
            memory_size: 64 << 20,
            processors: 3,
            command_line: "quiet".into(),
            initrd: b"env".to_vec(),
        })
    }

    fn item(device: &mut FwCfg, key: u16, length: usize) -> Vec<u8> {
        device.select(key);
        (0..length).map(|_| device.read()).collect()
    }

    #[test]
    fn items() {
        let mut device = device();
        for (key, expected) in [
            (SIGNATURE, b"QEMU\0" as &[u8]),
            (ID, &[3, 0, 0, 0, 0]),
            (RAM_SIZE, &[0, 0, 0, 4, 0, 0, 0, 0]),
            (NB_CPUS, &[3, 0]),
            (MAX_CPUS, &[3, 0]),
            (INITRD_SIZE, &[3, 0, 0, 0]),
            (INITRD_DATA, b"env"),
            (COMMAND_LINE_SIZE, &[6, 0, 0, 0]),
            (COMMAND_LINE, b"quiet\0"),
            (0x7777, &[0, 0]),
        ] {
            assert_eq!(item(&mut device, key, expected.len()), expected, "{key:#x}");
        }
    }

    #[test]
    fn a_file_is_found_by_name() {
        let mut device = device();
        let directory = item(&mut device, FILE_DIRECTORY, 68);
        assert_eq!(directory[..4], [0, 0, 0, 1]);
        assert_eq!(&directory[12..20], b"etc/e820");
        let size = directory[7];
        assert_eq!(size % 20, 0);
        let key = u16::from_be_bytes([directory[8], directory[9]]);
        let map = item(&mut device, key, size.into());
        assert_eq!(map[..20], e820(64 << 20)[..20]);
    }

    #[test]
    fn dma() {
        let mut device = device();
        assert_eq!(device.read_dma(DMA + 1), b'E');
        assert_eq!(device.write_dma(DMA, 0x0100_0000), None);
        assert_eq!(device.write_dma(DMA + 4, 0x0010_0000), Some(0x1_0000_1000));
        let descriptor = |control: u32, length: u32| {
            let mut bytes = [0; DESCRIPTOR_SIZE];
            bytes[..4].copy_from_slice(&control.to_be_bytes());
            bytes[4..8].copy_from_slice(&length.to_be_bytes());
            bytes[15] = 0x80;
            bytes
        };
        let read = device.execute(descriptor(u32::from(COMMAND_LINE) << 16 | 0xa, 3));
        assert_eq!((read.to, read.length, read.status), (Some(0x80), 3, [0; 4]));
        let mut buffer = [9; 3];
        device.read_into(&mut buffer);
        assert_eq!(&buffer, b"qui");
        device.execute(descriptor(command::SKIP, 1));
        let mut buffer = [9; 3];
        device.read_into(&mut buffer);
        assert_eq!(buffer, [b't', 0, 0]);
        assert_eq!(
            device.execute(descriptor(command::WRITE, 1)).status,
            FwCfg::error()
        );
        device.execute(descriptor(command::SKIP, u32::MAX));
        device.execute(descriptor(command::SKIP, u32::MAX));
        assert_eq!(device.read(), 0);
    }
}
