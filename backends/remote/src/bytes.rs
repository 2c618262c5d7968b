//! Bytes on the wire: in one piece, not number by number; and memory without its zero pages.

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A byte string that serde copies as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visit;
        impl<'de> Visitor<'de> for Visit {
            type Value = Bytes;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }

            fn visit_byte_buf<E: Error>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Visit)
    }
}

/// The unit in which zeros are left out.
const BLOCK: usize = 4096;

/// The most bytes that one request moves.
pub const MAX_TRANSFER: usize = 16 << 20;

/// Memory without its zero blocks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sparse {
    /// Bytes in all.
    length: u32,
    /// Runs of blocks that are there: first block, number of blocks.
    runs: Vec<(u32, u32)>,
    /// Their contents. The last block of all may be short.
    contents: Bytes,
}

impl Sparse {
    /// Leaves the zero blocks of `bytes` out. At most [`MAX_TRANSFER`] bytes.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        debug_assert!(bytes.len() <= MAX_TRANSFER);
        let mut runs: Vec<(u32, u32)> = Vec::new();
        let mut contents = Vec::new();
        for (index, block) in (0..).zip(bytes.chunks(BLOCK)) {
            if block.iter().all(|byte| *byte == 0) {
                continue;
            }
            contents.extend_from_slice(block);
            match runs.last_mut() {
                Some((first, count)) if *first + *count == index => *count += 1,
                _ => runs.push((index, 1)),
            }
        }
        Self {
            length: bytes.len() as u32,
            runs,
            contents: Bytes(contents),
        }
    }

    /// The bytes, zeros included; `None` if the parts do not fit together.
    #[must_use]
    pub fn expand(&self) -> Option<Vec<u8>> {
        let length = self.length as usize;
        if length > MAX_TRANSFER {
            return None;
        }
        let mut bytes = vec![0; length];
        let mut contents = &self.contents.0[..];
        for &(first, count) in &self.runs {
            let start = (first as usize).checked_mul(BLOCK)?;
            let end = (count as usize)
                .checked_mul(BLOCK)?
                .checked_add(start)?
                .min(length);
            let target = bytes.get_mut(start..end)?;
            let (now, later) = contents.split_at_checked(target.len())?;
            target.copy_from_slice(now);
            contents = later;
        }
        contents.is_empty().then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zero_blocks_cost_nothing_and_come_back() {
        for length in [0, 1, BLOCK - 1, BLOCK, 3 * BLOCK + 7] {
            let mut bytes = vec![0; length];
            assert_eq!(Sparse::new(&bytes).contents.0, []);
            assert_eq!(Sparse::new(&bytes).expand().unwrap(), bytes);
            if let Some(last) = bytes.last_mut() {
                *last = 1;
                let sparse = Sparse::new(&bytes);
                assert!(sparse.contents.0.len() <= BLOCK);
                assert_eq!(sparse.expand().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn parts_that_do_not_fit_are_refused() {
        let good = Sparse::new(&[1; BLOCK + 1]);
        let bad: [fn(&mut Sparse); 6] = [
            |s| s.length = u32::MAX,
            |s| s.length = 1,
            |s| s.runs[0].0 = u32::MAX,
            |s| s.runs[0].1 = 1,
            |s| s.contents.0.push(0),
            |s| s.runs.push((0, 1)),
        ];
        for (index, spoil) in bad.iter().enumerate() {
            let mut sparse = good.clone();
            spoil(&mut sparse);
            assert_eq!(sparse.expand(), None, "{index}");
        }
    }
}
