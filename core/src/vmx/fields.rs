//! The VMCS field table (SDM Vol. 3, appendix B "Field Encoding in VMCS").
//!
//! A [`Field`] is its encoding; what the encoding says by itself (width, type, index, high half)
//! needs no table. Names and descriptions come from [`GROUPS`], which reads like the appendix.

mod table;

pub use table::GROUPS;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;
use thiserror::Error;

/// A VMCS field by its encoding. An unknown encoding is data, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Field(pub u32);

/// Width of a field: bits 14:13 of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Width {
    /// 16 bits.
    Bits16 = 0,
    /// 64 bits, in two halves outside 64-bit mode.
    Bits64 = 1,
    /// 32 bits.
    Bits32 = 2,
    /// Natural width: 64 bits on processors with Intel 64.
    Natural = 3,
}

impl Width {
    /// Size in bytes, in 64-bit mode.
    #[must_use]
    pub const fn bytes(self) -> usize {
        match self {
            Self::Bits16 => 2,
            Self::Bits32 => 4,
            Self::Bits64 | Self::Natural => 8,
        }
    }
}

/// Type of a field: bits 11:10 of the encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FieldType {
    /// Control.
    Control = 0,
    /// VM-exit information: read-only unless IA32_VMX_MISC bit 29 is set.
    ReadOnlyData = 1,
    /// Guest state.
    GuestState = 2,
    /// Host state.
    HostState = 3,
}

/// One table of the appendix: the fields of one width and type.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// Section of the appendix.
    pub section: &'static str,
    /// Title of the section.
    pub title: &'static str,
    /// Width of every field in it.
    pub width: Width,
    /// Type of every field in it.
    pub type_: FieldType,
    /// The fields.
    pub rows: &'static [Row],
}

/// One field of the appendix.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// The field (full access).
    pub field: Field,
    /// Its constant's name.
    pub name: &'static str,
    /// The name of its high half, where it has one.
    pub high_name: Option<&'static str>,
    /// The SDM's words.
    pub description: &'static str,
}

impl Field {
    /// Number of slots that [`Field::slot`] maps to.
    pub const SLOTS: usize = 16 << Self::SLOT_BITS;
    /// Bits 9:0 of every encoding known are below `1 << SLOT_BITS`.
    const SLOT_BITS: u32 = 7;

    /// Width of the whole field (the high half of a 64-bit field is accessed as 32 bits).
    #[inline]
    #[must_use]
    pub const fn width(self) -> Width {
        match (self.0 >> 13) & 3 {
            0 => Width::Bits16,
            1 => Width::Bits64,
            2 => Width::Bits32,
            _ => Width::Natural,
        }
    }

    /// Type.
    #[inline]
    #[must_use]
    pub const fn type_(self) -> FieldType {
        match (self.0 >> 10) & 3 {
            0 => FieldType::Control,
            1 => FieldType::ReadOnlyData,
            2 => FieldType::GuestState,
            _ => FieldType::HostState,
        }
    }

    /// Index: bits 9:1.
    #[inline]
    #[must_use]
    pub const fn index(self) -> u32 {
        (self.0 >> 1) & 0x1ff
    }

    /// Access type high: bit 0. Only 64-bit fields have a high half.
    #[inline]
    #[must_use]
    pub const fn is_high(self) -> bool {
        self.0 & 1 != 0
    }

    /// VM-exit information field: VMWRITE fails unless IA32_VMX_MISC bit 29 is set.
    #[inline]
    #[must_use]
    pub const fn is_read_only(self) -> bool {
        matches!(self.type_(), FieldType::ReadOnlyData)
    }

    /// The field with access type full.
    #[inline]
    #[must_use]
    pub const fn full(self) -> Self {
        Self(self.0 & !1)
    }

    /// The high half of a 64-bit field; `None` for other widths.
    #[inline]
    #[must_use]
    pub const fn high(self) -> Option<Self> {
        match self.width() {
            Width::Bits64 => Some(Self(self.0 | 1)),
            _ => None,
        }
    }

    /// Bytes that one access covers: the width, or 4 for a high half.
    #[inline]
    #[must_use]
    pub const fn access_bytes(self) -> usize {
        if self.is_high() {
            4
        } else {
            self.width().bytes()
        }
    }

    /// Bits that one access covers, as a mask.
    #[inline]
    #[must_use]
    pub const fn mask(self) -> u64 {
        u64::MAX >> (64 - 8 * self.access_bytes() as u32)
    }

    /// A dense number for tables indexed by field, below [`Field::SLOTS`]. `None` where reserved bits
    /// are set or the index is above all that exist.
    #[inline(always)]
    #[must_use]
    pub const fn slot(self) -> Option<usize> {
        let low = self.0 & 0x3ff;
        if self.0 & 0xffff_9000 != 0 || low >> Self::SLOT_BITS != 0 {
            return None;
        }
        let kind = (self.0 >> 13) << 2 | ((self.0 >> 10) & 3);
        Some(((kind << Self::SLOT_BITS) | low) as usize)
    }

    /// Name of the constant, if the table knows the field.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        let row = table::row(self)?;
        if self.is_high() {
            row.high_name
        } else {
            Some(row.name)
        }
    }

    /// The SDM's words for the field (the high half has those of the whole).
    #[must_use]
    pub fn description(self) -> Option<&'static str> {
        table::row(self).map(|row| row.description)
    }

    /// Every field of the appendix, in its order, without the high halves.
    pub fn all() -> impl Iterator<Item = Self> {
        GROUPS
            .iter()
            .flat_map(|group| group.rows)
            .map(|row| row.field)
    }

    /// Every field of the appendix, each 64-bit field followed by its high half.
    pub fn all_encodings() -> impl Iterator<Item = Self> {
        Self::all().flat_map(|field| std::iter::once(field).chain(field.high()))
    }
}

impl fmt::Display for Field {
    /// The name, or the encoding in hexadecimal.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.pad(name),
            None => f.pad(&format!("{:#010x}", self.0)),
        }
    }
}

impl fmt::Debug for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "Field({:#x} {name})", self.0),
            None => write!(f, "Field({:#x})", self.0),
        }
    }
}

/// A name that is not in the table and no hexadecimal encoding.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0:?} is no VMCS field; write a name like GUEST_CR0 or an encoding like 0x6800")]
pub struct UnknownField(pub String);

impl FromStr for Field {
    type Err = UnknownField;

    /// Reads a name of the table, or an encoding as `0x` and hexadecimal digits.
    fn from_str(text: &str) -> Result<Self, UnknownField> {
        let unknown = || UnknownField(text.into());
        if let Some(digits) = text.strip_prefix("0x") {
            return u32::from_str_radix(digits, 16)
                .map(Self)
                .map_err(|_| unknown());
        }
        let rows = GROUPS.iter().flat_map(|group| group.rows);
        rows.clone()
            .find(|row| row.name == text)
            .map(|row| row.field)
            .or_else(|| {
                let row = rows.clone().find(|row| row.high_name == Some(text))?;
                row.field.high()
            })
            .ok_or_else(unknown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn encodings_and_names_are_unique_and_read_back() {
        let mut seen = HashSet::new();
        for field in Field::all_encodings() {
            let name = field.name().expect("a row has a name");
            assert!(seen.insert(name.to_owned()), "{name} twice");
            assert!(
                seen.insert(format!("{:#x}", field.0)),
                "{:#x} twice",
                field.0
            );
            assert_eq!(name.parse(), Ok(field));
            assert_eq!(field.to_string(), name);
            assert_eq!(format!("{:#x}", field.0).parse(), Ok(field));
        }
        // Rows of the appendix by width: 24 of 16 bits, 78 of 64, 51 of 32, 52 natural.
        assert_eq!(Field::all().count(), 24 + 78 + 51 + 52);
        assert_eq!(Field::all_encodings().count(), 24 + 2 * 78 + 51 + 52);
    }

    #[test]
    fn encodings_say_what_the_appendix_says() {
        // Encoding, width, type, index, high: picked by hand from the appendix.
        let rows = [
            (
                Field::VIRTUAL_PROCESSOR_ID,
                Width::Bits16,
                FieldType::Control,
                0,
                false,
            ),
            (
                Field::HOST_TR_SELECTOR,
                Width::Bits16,
                FieldType::HostState,
                6,
                false,
            ),
            (
                Field::TSC_MULTIPLIER,
                Width::Bits64,
                FieldType::Control,
                0x19,
                false,
            ),
            (
                Field::GUEST_PDPTR3_HIGH,
                Width::Bits64,
                FieldType::GuestState,
                8,
                true,
            ),
            (
                Field::VM_EXIT_REASON,
                Width::Bits32,
                FieldType::ReadOnlyData,
                1,
                false,
            ),
            (
                Field::HOST_RIP,
                Width::Natural,
                FieldType::HostState,
                0xb,
                false,
            ),
        ];
        for (field, width, type_, index, high) in rows {
            assert_eq!((field.width(), field.type_()), (width, type_), "{field}");
            assert_eq!((field.index(), field.is_high()), (index, high), "{field}");
        }
        assert_eq!(Field::GUEST_PDPTR3_HIGH.full(), Field::GUEST_PDPTR3);
        assert_eq!(Field::GUEST_PDPTR3_HIGH.mask(), 0xffff_ffff);
        assert_eq!(Field::GUEST_CS_SELECTOR.mask(), 0xffff);
        assert_eq!(Field::GUEST_CR0.mask(), u64::MAX);
        assert_eq!(Field::GUEST_CR0.high(), None);
    }

    #[test]
    fn unknown_encodings_are_data() {
        for encoding in [0x1000, 0x6801, 0x8000, 0x2fff, u32::MAX, 0x0001_6800] {
            let field = Field(encoding);
            assert_eq!(field.name(), None, "{encoding:#x}");
            assert_eq!(field.to_string().parse(), Ok(field));
        }
        assert!("GUEST_CR1".parse::<Field>().is_err());
    }
}
