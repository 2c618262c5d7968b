//! Segment registers with their hidden parts, access rights in the VMCS's format
//! (SDM Vol. 3C "Guest Register State", table "Format of Access Rights").

use serde::{Deserialize, Serialize};

bitflags::bitflags! {
    /// Access rights of a segment, as the VMCS holds them.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
    pub struct AccessRights: u32 {
        /// Accessed (code and data segments).
        const ACCESSED = 1 << 0;
        /// Writable (data) or readable (code).
        const WRITABLE_READABLE = 1 << 1;
        /// Expand-down (data) or conforming (code).
        const EXPAND_DOWN_CONFORMING = 1 << 2;
        /// Code segment.
        const CODE = 1 << 3;
        /// S: code or data, not system.
        const CODE_OR_DATA = 1 << 4;
        /// Descriptor privilege level, low bit.
        const DPL_LOW = 1 << 5;
        /// Descriptor privilege level, high bit.
        const DPL_HIGH = 1 << 6;
        /// Present.
        const PRESENT = 1 << 7;
        /// Available to system software.
        const AVL = 1 << 12;
        /// 64-bit code (CS only).
        const LONG = 1 << 13;
        /// Default operation size 32 bits.
        const DEFAULT_BIG = 1 << 14;
        /// Limit in 4-KiB units.
        const GRANULARITY = 1 << 15;
        /// Segment unusable.
        const UNUSABLE = 1 << 16;
        /// Reserved bits stay as they are.
        const _ = !0;
    }
}

impl AccessRights {
    /// The four type bits.
    #[must_use]
    pub const fn segment_type(self) -> u8 {
        (self.bits() & 0xf) as u8
    }

    /// The descriptor privilege level.
    #[must_use]
    pub const fn dpl(self) -> u8 {
        ((self.bits() >> 5) & 3) as u8
    }

    /// From the second doubleword of a descriptor (bits 8 to 23); usable if present.
    #[must_use]
    pub const fn from_descriptor_high(high: u32) -> Self {
        Self::from_bits_retain((high >> 8) & 0xf0ff)
    }
}

/// A segment register: selector and hidden part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Segment {
    /// Selector.
    pub selector: u16,
    /// Base address.
    pub base: u64,
    /// Limit in bytes (granularity applied), less one.
    pub limit: u32,
    /// Access rights.
    pub ar: AccessRights,
}

impl Segment {
    /// Whether the segment may be used for accesses at all.
    #[must_use]
    pub const fn is_usable(&self) -> bool {
        !self.ar.contains(AccessRights::UNUSABLE)
    }
}
