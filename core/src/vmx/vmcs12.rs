//! vmcs12: the VMCS that L1 wrote for L2, in KVM's own layout (`arch/x86/kvm/vmx/vmcs12.h`).
//!
//! The bytes are the state: fields are read from and written to them at the offsets of [`layout`], and
//! nothing is lost between KVM's buffer and this type.

pub mod layout;

pub use layout::Layout;

use super::fields::Field;
use std::fmt;

/// KVM's identifier of the layout: bits 30:0 of the first word, and of IA32_VMX_BASIC.
pub const VMCS12_REVISION: u32 = 0x11e5_7ed0;
/// Bytes of a VMCS region.
pub const VMCS12_SIZE: usize = 4096;
/// Bytes that `struct vmcs12` uses. KVM_GET_NESTED_STATE copies 4096, KVM_SET_NESTED_STATE only these.
pub const VMCS12_USED: usize = 998;
/// Bit 31 of the first word: the region is a shadow VMCS.
pub const SHADOW_VMCS: u32 = 1 << 31;

const ABORT_OFFSET: usize = 4;
const LAUNCH_STATE_OFFSET: usize = 8;

/// `launch_state`: KVM keeps it in the region, where an SDM processor hides it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LaunchState {
    /// After VMCLEAR: VMLAUNCH may enter.
    Clear,
    /// After VMLAUNCH: VMRESUME may enter.
    Launched,
}

/// A vmcs12: 4096 bytes in KVM's layout, fields found by the offset table.
#[derive(Clone, PartialEq, Eq)]
pub struct Vmcs12(Box<[u8; VMCS12_SIZE]>);

impl Default for Vmcs12 {
    /// All bytes zero, the revision too: what KVM's cache holds before the first VMPTRLD.
    fn default() -> Self {
        Self(Box::new([0; VMCS12_SIZE]))
    }
}

impl Vmcs12 {
    /// An empty region with KVM's revision, as VMPTRLD wants it.
    #[must_use]
    pub fn new() -> Self {
        let mut vmcs12 = Self::default();
        vmcs12.set_word(0, VMCS12_REVISION);
        vmcs12
    }

    /// Copies the bytes of a region.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; VMCS12_SIZE]) -> Self {
        Self(Box::new(*bytes))
    }

    /// The raw bytes.
    #[inline(always)]
    #[must_use]
    pub fn bytes(&self) -> &[u8; VMCS12_SIZE] {
        &self.0
    }

    /// The raw bytes, to write.
    #[inline(always)]
    pub fn bytes_mut(&mut self) -> &mut [u8; VMCS12_SIZE] {
        &mut self.0
    }

    /// Overwrites this vmcs12 with another, without allocating.
    pub fn copy_from(&mut self, other: &Self) {
        self.0.copy_from_slice(&*other.0);
    }

    /// The field's value, zero-extended. Zero for a field that no layout has: ask
    /// [`Layout::has`] first where the field's number comes from a guest.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        match layout::locate(field) {
            Some(location) => self.read(location.offset, location.bytes),
            None => 0,
        }
    }

    /// Like [`Vmcs12::get`] for fields of 32 bits or fewer.
    #[inline(always)]
    #[must_use]
    pub fn get32(&self, field: Field) -> u32 {
        self.get(field) as u32
    }

    /// The field's value as VMREAD finds it with the given layout; `None`: VMfailValid with error 12.
    #[inline(always)]
    #[must_use]
    pub fn try_get(&self, field: Field, layout: Layout) -> Option<u64> {
        match layout::locate(field) {
            Some(location) if location.since <= layout => {
                Some(self.read(location.offset, location.bytes))
            }
            _ => None,
        }
    }

    /// Writes the field, cut to its width. Nothing happens for a field that no layout has.
    #[inline(always)]
    pub fn set(&mut self, field: Field, value: u64) {
        if let Some(location) = layout::locate(field) {
            self.write(location.offset, location.bytes, value);
        }
    }

    /// Writes the field as VMWRITE does with the given layout; `false`: it is not there (error 12).
    #[inline(always)]
    pub fn try_set(&mut self, field: Field, layout: Layout, value: u64) -> bool {
        match layout::locate(field) {
            Some(location) if location.since <= layout => {
                self.write(location.offset, location.bytes, value);
                true
            }
            _ => false,
        }
    }

    /// VMCS revision identifier: bits 30:0 of the first word.
    #[inline(always)]
    #[must_use]
    pub fn revision(&self) -> u32 {
        self.word(0) & !SHADOW_VMCS
    }

    /// Writes the revision and keeps the shadow-VMCS indicator.
    pub fn set_revision(&mut self, revision: u32) {
        self.set_word(0, (self.word(0) & SHADOW_VMCS) | (revision & !SHADOW_VMCS));
    }

    /// Shadow-VMCS indicator: bit 31 of the first word.
    #[inline(always)]
    #[must_use]
    pub fn is_shadow(&self) -> bool {
        self.word(0) & SHADOW_VMCS != 0
    }

    /// Writes the shadow-VMCS indicator.
    pub fn set_shadow(&mut self, shadow: bool) {
        self.set_word(0, self.revision() | if shadow { SHADOW_VMCS } else { 0 });
    }

    /// VMX-abort indicator.
    #[inline(always)]
    #[must_use]
    pub fn abort(&self) -> u32 {
        self.word(ABORT_OFFSET)
    }

    /// Writes the VMX-abort indicator.
    pub fn set_abort(&mut self, indicator: u32) {
        self.set_word(ABORT_OFFSET, indicator);
    }

    /// Launch state: zero is clear. (KVM compares the raw word with 0 in VMRESUME and with 1 in
    /// VMLAUNCH, so that a region which L1 gave another word enters by both.)
    #[inline(always)]
    #[must_use]
    pub fn launch_state(&self) -> LaunchState {
        if self.word(LAUNCH_STATE_OFFSET) == 0 {
            LaunchState::Clear
        } else {
            LaunchState::Launched
        }
    }

    /// Launch state as the raw word.
    #[must_use]
    pub fn launch_state_raw(&self) -> u32 {
        self.word(LAUNCH_STATE_OFFSET)
    }

    /// Writes the launch state: 0 by VMCLEAR, 1 by VMLAUNCH.
    pub fn set_launch_state(&mut self, state: LaunchState) {
        self.set_word(
            LAUNCH_STATE_OFFSET,
            u32::from(state == LaunchState::Launched),
        );
    }

    /// Every field of every layout with its value, in the order of the offsets, high halves apart.
    pub fn iter(&self) -> impl Iterator<Item = (Field, u64)> + '_ {
        layout::ROWS
            .iter()
            .map(|row| (row.field, self.get(row.field)))
    }

    /// The ranges of bytes that no field, nor the header, covers: padding that must survive too.
    #[must_use]
    pub fn gaps() -> Vec<std::ops::Range<usize>> {
        let mut gaps = Vec::new();
        let mut end = LAUNCH_STATE_OFFSET + 4;
        for row in layout::ROWS {
            let offset = usize::from(row.offset);
            if end < offset {
                gaps.push(end..offset);
            }
            end = offset + row.field.access_bytes();
        }
        gaps.push(end..VMCS12_SIZE);
        gaps
    }

    #[inline(always)]
    fn read(&self, offset: usize, bytes: usize) -> u64 {
        match bytes {
            2 => u64::from(u16::from_le_bytes(self.array(offset))),
            4 => u64::from(u32::from_le_bytes(self.array(offset))),
            _ => u64::from_le_bytes(self.array(offset)),
        }
    }

    #[inline(always)]
    fn write(&mut self, offset: usize, bytes: usize, value: u64) {
        let value = value.to_le_bytes();
        match bytes {
            2 => self.0[offset..offset + 2].copy_from_slice(&value[..2]),
            4 => self.0[offset..offset + 4].copy_from_slice(&value[..4]),
            _ => self.0[offset..offset + 8].copy_from_slice(&value),
        }
    }

    #[inline(always)]
    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.0[offset..offset + N]);
        array
    }

    fn word(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.array(offset))
    }

    fn set_word(&mut self, offset: usize, value: u32) {
        self.0[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    }
}

impl fmt::Debug for Vmcs12 {
    /// The header and every field that is not zero, by name; bytes outside all fields as a count.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        struct Hex(u64);
        impl fmt::Debug for Hex {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#x}", self.0)
            }
        }
        let mut out = f.debug_struct("Vmcs12");
        out.field("revision", &Hex(self.revision().into()));
        for (name, value) in [
            ("shadow", u32::from(self.is_shadow())),
            ("abort", self.abort()),
            ("launch_state", self.launch_state_raw()),
        ] {
            if value != 0 {
                out.field(name, &Hex(value.into()));
            }
        }
        for (field, value) in self.iter().filter(|(_, value)| *value != 0) {
            out.field(field.name().unwrap_or("?"), &Hex(value));
        }
        let padding = Self::gaps().into_iter().flat_map(|gap| &self.0[gap]);
        let set = padding.filter(|byte| **byte != 0).count();
        if set != 0 {
            out.field("nonzero_padding_bytes", &set);
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests;
