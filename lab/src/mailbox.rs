//! The byte stream's layout on the shared disk, which host and guest agree on.
//!
//! Each direction has a header sector and a slot for one message's body. The writer fills the slot, then writes the
//! header with the next sequence number; the reader takes the body and acknowledges the number in its own header. A
//! header is written whole by one side only; its checksum tells the other side of a read that came in the midst of a
//! write. Messages up to [`INLINE`] bytes travel in the header itself. Stop and wait is fast enough here: a turn takes
//! some 0.2 ms, most of it the emulated CPU's.

/// Size of a disk sector in bytes.
pub const SECTOR: usize = 512;
/// Sector of the host's header.
pub const HOST_HEADER: u32 = 0;
/// Sector of the guest's header.
pub const GUEST_HEADER: u32 = 1;
/// First sector of the slot that the host writes.
pub const HOST_SLOT: u32 = 64;
/// Largest body of a message in bytes.
pub const SLOT_SIZE: usize = 1 << 20;
/// First sector of the slot that the guest writes.
pub const GUEST_SLOT: u32 = HOST_SLOT + (SLOT_SIZE / SECTOR) as u32;
/// Size of the whole disk in bytes: whole cylinders, as Bochs wants it.
pub const DISK_SIZE: u64 = 16 * crate::boot_disk::CYLINDER;
/// Longest body that travels in the header.
pub const INLINE: usize = SECTOR - BODY - 8;

const MAGIC: [u8; 4] = *b"nvmb";
/// Offset of an inline body.
const BODY: usize = 40;

const _: () = assert!((GUEST_SLOT as usize * SECTOR + SLOT_SIZE) as u64 <= DISK_SIZE);

/// A checksum that costs an emulated CPU little: six instructions for eight bytes. (CRC-32 needs many more there, or
/// PCLMULQDQ, which Bochs emulates bit by bit.) It tells old sectors from new ones and torn ones from whole ones.
pub fn checksum(bytes: &[u8]) -> u64 {
    let mix = |sum: u64, word: u64| {
        (sum ^ word)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15)
            .rotate_left(29)
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let sum = words.iter().fold(bytes.len() as u64 + 1, |sum, word| {
        mix(sum, u64::from_le_bytes(*word))
    });
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    mix(sum, u64::from_le_bytes(last))
}

/// One side's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Number of the last message sent; zero before the first.
    pub sequence: u64,
    /// Number of the last message taken from the other side.
    pub acknowledged: u64,
    /// Length of that last message's body in bytes.
    pub length: u32,
    /// [`checksum`] of the body.
    pub body_checksum: u64,
    /// The body itself, if `length` is at most [`INLINE`].
    pub inline: [u8; INLINE],
}

impl Header {
    /// The header before any message.
    pub const EMPTY: Self = Self {
        sequence: 0,
        acknowledged: 0,
        length: 0,
        body_checksum: 0,
        inline: [0; INLINE],
    };

    /// The header as it stands on the disk.
    pub fn encode(&self) -> [u8; SECTOR] {
        let mut sector = [0; SECTOR];
        sector[..4].copy_from_slice(&MAGIC);
        sector[4..8].copy_from_slice(&self.length.to_le_bytes());
        sector[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        sector[16..24].copy_from_slice(&self.acknowledged.to_le_bytes());
        sector[24..32].copy_from_slice(&self.body_checksum.to_le_bytes());
        sector[BODY..BODY + INLINE].copy_from_slice(&self.inline);
        let sum = checksum(&sector[..SECTOR - 8]);
        sector[SECTOR - 8..].copy_from_slice(&sum.to_le_bytes());
        sector
    }

    /// Reads a header; `None` if there is none yet or it was read while being written.
    pub fn decode(sector: &[u8; SECTOR]) -> Option<Self> {
        let u32_at = |at: usize| {
            u32::from_le_bytes([sector[at], sector[at + 1], sector[at + 2], sector[at + 3]])
        };
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        if sector[..4] != MAGIC || checksum(&sector[..SECTOR - 8]) != u64_at(SECTOR - 8) {
            return None;
        }
        let mut inline = [0; INLINE];
        inline.copy_from_slice(&sector[BODY..BODY + INLINE]);
        let header = Self {
            sequence: u64_at(8),
            acknowledged: u64_at(16),
            length: u32_at(4),
            body_checksum: u64_at(24),
            inline,
        };
        (header.length as usize <= SLOT_SIZE).then_some(header)
    }

    /// Turns this header into that of the next message with `body`, of at most [`SLOT_SIZE`] bytes. A body longer
    /// than [`INLINE`] must stand in the slot before the header is written.
    pub fn announce(&mut self, body: &[u8]) {
        self.sequence += 1;
        self.length = body.len() as u32;
        self.body_checksum = checksum(body);
        if body.len() <= INLINE {
            self.inline[..body.len()].copy_from_slice(body);
        }
    }

    /// The body, if it came in the header.
    pub fn inline_body(&self) -> Option<&[u8]> {
        self.inline.get(..self.length as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_disk() {
        for length in [0, 1, INLINE, INLINE + 1, SLOT_SIZE] {
            let mut header = Header {
                acknowledged: 9,
                ..Header::EMPTY
            };
            header.announce(&vec![0x5a; length]);
            let read = Header::decode(&header.encode()).unwrap();
            assert_eq!(read, header);
            assert_eq!(read.inline_body().is_some(), length <= INLINE);
        }
    }

    #[test]
    fn a_torn_or_foreign_header_is_no_header() {
        let (old, mut new) = (Header::EMPTY.encode(), Header::EMPTY);
        new.announce(b"message");
        let new = new.encode();
        for cut in 1..SECTOR {
            let mut torn = old;
            torn[..cut].copy_from_slice(&new[..cut]);
            assert!(
                torn == old || torn == new || Header::decode(&torn).is_none(),
                "cut at {cut}"
            );
        }
        assert_eq!(Header::decode(&[0; SECTOR]), None);
    }

    #[test]
    fn the_checksum_sees_every_byte_and_the_length() {
        let bytes = [0u8; 41];
        let sum = checksum(&bytes);
        for at in 0..bytes.len() {
            let mut changed = bytes;
            changed[at] = 1;
            assert_ne!(checksum(&changed), sum, "byte {at}");
            assert_ne!(checksum(&bytes[..at]), sum, "length {at}");
        }
    }

    #[test]
    fn a_length_beyond_the_slot_is_refused() {
        let header = Header {
            length: SLOT_SIZE as u32 + 1,
            ..Header::EMPTY
        };
        assert_eq!(Header::decode(&header.encode()), None);
    }
}
