//! A guest image: bytes at physical addresses, written as a multiboot ELF32 file
//! (System V ABI "Object Files", Multiboot Specification 0.6.96 "OS image format").

/// Bytes to load and where to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Entry point: 32-bit protected mode, paging off.
    pub entry: u32,
    /// Physical address and bytes, ascending, apart from each other. The first holds the multiboot
    /// header.
    pub chunks: Vec<(u32, Vec<u8>)>,
    /// Zeroed memory behind the chunks: first byte and length.
    pub zeroed: Vec<(u32, u32)>,
}

impl Image {
    /// The image as an ELF32 executable with a multiboot header in its first 8 KiB.
    #[must_use]
    pub fn to_elf(&self) -> Vec<u8> {
        const HEADER: u32 = 52;
        const PROGRAM_HEADER: u32 = 32;
        let count = (self.chunks.len() + self.zeroed.len()) as u32;
        // The multiboot header must be aligned to 4 in the file: the chunks are, in memory and here.
        let mut offset = (HEADER + PROGRAM_HEADER * count).next_multiple_of(16);
        let mut elf = Vec::new();
        elf.extend(b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0");
        elf.extend(2_u16.to_le_bytes()); // ET_EXEC
        elf.extend(3_u16.to_le_bytes()); // EM_386
        for word in [1, self.entry, HEADER, 0, 0] {
            elf.extend(word.to_le_bytes());
        }
        for half in [HEADER, PROGRAM_HEADER, count, 0, 0, 0] {
            elf.extend((half as u16).to_le_bytes());
        }
        let mut segment = |offset: u32, address: u32, file_size: u32, memory_size: u32| {
            // PT_LOAD, read, write, execute, alignment 16.
            for word in [1, offset, address, address, file_size, memory_size, 7, 16] {
                elf.extend(word.to_le_bytes());
            }
        };
        for (address, bytes) in &self.chunks {
            let size = bytes.len() as u32;
            segment(offset, *address, size, size);
            offset += size.next_multiple_of(16);
        }
        for (address, size) in &self.zeroed {
            segment(0, *address, 0, *size);
        }
        for (_, bytes) in &self.chunks {
            elf.resize(elf.len().next_multiple_of(16), 0);
            elf.extend(bytes);
        }
        elf
    }
}
