//! Numbers and bytes as people read them: `0x80000031`, and byte blocks as offset and hex digits
//! with the zeroes left out.

use ron::value::RawValue;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number that RON (and JSON, there as a string) shows in hexadecimal.
///
/// RON prints integers in decimal and has no option for it, but takes `0x...` when it reads: so the
/// number is written through RON's raw value and read back as the integer that it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Deserialize)]
#[serde(transparent)]
pub struct Hex(pub u64);

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        raw(&format!("{:#x}", self.0), serializer)
    }
}

impl From<u64> for Hex {
    fn from(value: u64) -> Self {
        Self(value)
    }
}

/// Writes `ron` as it is.
pub(crate) fn raw<S: Serializer>(ron: &str, serializer: S) -> Result<S::Ok, S::Error> {
    RawValue::from_ron(ron)
        .map_err(serde::ser::Error::custom)?
        .serialize(serializer)
}

/// Writes a value on one line, whatever stands around it (`serialize_with`).
pub(crate) fn inline<T: Serialize, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    raw(&one_line(value)?, serializer)
}

/// Writes each element of a list on a line of its own (`serialize_with`).
pub(crate) fn inline_each<T: Serialize, S: Serializer>(
    values: &[T],
    serializer: S,
) -> Result<S::Ok, S::Error> {
    struct Line<'a, T>(&'a T);
    impl<T: Serialize> Serialize for Line<'_, T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            inline(self.0, serializer)
        }
    }
    serializer.collect_seq(values.iter().map(Line))
}

/// As [`inline_each`], for an optional list.
pub(crate) fn inline_each_option<T: Serialize, S: Serializer>(
    values: &Option<Vec<T>>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    struct Lines<'a, T>(&'a [T]);
    impl<T: Serialize> Serialize for Lines<'_, T> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            inline_each(self.0, serializer)
        }
    }
    match values {
        Some(values) => serializer.serialize_some(&Lines(values)),
        None => serializer.serialize_none(),
    }
}

/// As [`inline`], for an optional value: `None` stays `None`.
pub(crate) fn inline_option<T: Serialize, S: Serializer>(
    value: &Option<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => raw(&one_line(value)?, serializer),
        None => serializer.serialize_none(),
    }
}

fn one_line<T: Serialize, E: serde::ser::Error>(value: &T) -> Result<String, E> {
    let config = ron::ser::PrettyConfig::new().depth_limit(0);
    ron::ser::to_string_pretty(value, config).map_err(E::custom)
}

/// Bytes as an even number of hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HexBytes(pub Vec<u8>);

impl Serialize for HexBytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&to_digits(&self.0))
    }
}

impl<'de> Deserialize<'de> for HexBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        from_digits(&text).map(Self).ok_or_else(|| {
            let start: String = text.chars().take(20).collect();
            D::Error::custom(format!(
                "{start:?}: an even number of hexadecimal digits is expected"
            ))
        })
    }
}

/// Lower-case hexadecimal digits of `bytes`.
#[must_use]
pub fn to_digits(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// The bytes that the digits stand for; `None` if they are odd in number or no digits.
#[must_use]
pub fn from_digits(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|d| d as u8);
    if !text.len().is_multiple_of(2) {
        return None;
    }
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

/// A run of bytes at an offset of something larger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Patch {
    /// Offset of the first byte.
    pub at: Hex,
    /// The bytes.
    pub hex: HexBytes,
}

/// The runs in which `bytes` differs from `base`; runs closer than eight bytes are joined.
#[must_use]
pub fn patches(bytes: &[u8], base: &[u8]) -> Vec<Patch> {
    const JOIN: usize = 8;
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, byte) in bytes.iter().enumerate() {
        if base.get(i) == Some(byte) {
            continue;
        }
        match runs.last_mut() {
            Some((_, end)) if i - *end < JOIN => *end = i + 1,
            _ => runs.push((i, i + 1)),
        }
    }
    runs.iter()
        .map(|&(start, end)| Patch {
            at: Hex(start as u64),
            hex: HexBytes(bytes[start..end].to_vec()),
        })
        .collect()
}

/// Applies patches to `bytes`; a patch that reaches beyond is an error that names it.
pub fn apply(bytes: &mut [u8], patches: &[Patch]) -> Result<(), String> {
    for patch in patches {
        let start = usize::try_from(patch.at.0).unwrap_or(usize::MAX);
        let length = bytes.len();
        start
            .checked_add(patch.hex.0.len())
            .and_then(|end| bytes.get_mut(start..end))
            .ok_or_else(|| {
                format!(
                    "{} bytes at offset {start:#x} reach beyond the {length} bytes there are",
                    patch.hex.0.len()
                )
            })?
            .copy_from_slice(&patch.hex.0);
    }
    Ok(())
}

/// A byte block with zeroes left out: length, and the runs that are not zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sparse {
    /// Bytes in all.
    pub length: u64,
    /// What is not zero.
    #[serde(serialize_with = "slice_lines")]
    pub bytes: Vec<Patch>,
}

fn slice_lines<S: Serializer>(patches: &[Patch], serializer: S) -> Result<S::Ok, S::Error> {
    inline_each(patches, serializer)
}

impl Sparse {
    /// Encodes `bytes`.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        Self {
            length: bytes.len() as u64,
            bytes: patches(bytes, &vec![0; bytes.len()]),
        }
    }

    /// Decodes; at most `limit` bytes, since the length is the file's word only.
    pub fn to_bytes(&self, limit: u64) -> Result<Vec<u8>, String> {
        if self.length > limit {
            return Err(format!(
                "length: {} bytes, at most {limit} are possible",
                self.length
            ));
        }
        let mut bytes = vec![0; self.length as usize];
        apply(&mut bytes, &self.bytes)?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_hexadecimal_in_ron_and_strings_in_json() {
        assert_eq!(ron::to_string(&Hex(0x8000_0031)).unwrap(), "0x80000031");
        assert_eq!(
            ron::from_str::<Hex>("0x80000031").unwrap(),
            Hex(0x8000_0031)
        );
        assert_eq!(
            ron::from_str::<Hex>("0xffffffffffffffff").unwrap(),
            Hex(u64::MAX)
        );
        assert!(ron::from_str::<Hex>("0x1ffffffffffffffff").is_err());
        assert!(ron::from_str::<Hex>("-1").is_err());
    }

    #[test]
    fn byte_blocks_round_trip_and_stay_in_their_bounds() {
        let mut bytes = vec![0; 64];
        bytes[3] = 1;
        bytes[8] = 2;
        bytes[63] = 3;
        let sparse = Sparse::from_bytes(&bytes);
        assert_eq!(sparse.bytes.len(), 2);
        assert_eq!(sparse.to_bytes(64).unwrap(), bytes);
        assert!(sparse.to_bytes(63).is_err());
        let beyond = Sparse {
            length: 4,
            bytes: vec![Patch {
                at: Hex(3),
                hex: HexBytes(vec![1, 2]),
            }],
        };
        assert!(beyond.to_bytes(64).unwrap_err().contains("offset 0x3"));
        let wraps = Patch {
            at: Hex(u64::MAX),
            hex: HexBytes(vec![1]),
        };
        assert!(apply(&mut [0; 4], &[wraps]).is_err());
    }

    #[test]
    fn odd_or_foreign_digits_are_refused() {
        assert_eq!(from_digits("0aFf"), Some(vec![0x0a, 0xff]));
        assert_eq!(from_digits("abc"), None);
        assert_eq!(from_digits("+1"), None);
        assert_eq!(from_digits("é"), None);
    }
}
