//! The 128 bytes in front: `struct kvm_nested_state` up to `data`, with `struct
//! kvm_vmx_nested_state_hdr` in its union. Bytes without a name are kept.

use super::{FORMAT_VMX, HEADER_SIZE, NO_POINTER};
use crate::addr::L1Phys;
use std::fmt;

bitflags::bitflags! {
    /// `flags`: `KVM_STATE_NESTED_*`. Unknown bits are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Flags: u16 {
        /// L2 runs.
        const GUEST_MODE = 1 << 0;
        /// VMLAUNCH or VMRESUME succeeded and L2 has not run an instruction yet.
        const RUN_PENDING = 1 << 1;
        /// The vmcs12 is an enlightened VMCS (Hyper-V).
        const EVMCS = 1 << 2;
        /// An MTF VM exit waits.
        const MTF_PENDING = 1 << 3;
        /// AMD's global interrupt flag; allowed with VMX and ignored.
        const GIF_SET = 1 << 8;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// `hdr.vmx.smm.flags`: VMX operation as the SMI found it. Unknown bits are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct SmmFlags: u16 {
        /// The SMI interrupted L2.
        const GUEST_MODE = 1 << 0;
        /// The SMI interrupted VMX operation.
        const VMXON = 1 << 1;
        const _ = !0;
    }
}

bitflags::bitflags! {
    /// `hdr.vmx.flags`: `KVM_STATE_VMX_*`. Unknown bits are kept.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct VmxFlags: u32 {
        /// `preemption_timer_deadline` is valid.
        const PREEMPTION_TIMER_DEADLINE = 1 << 0;
        const _ = !0;
    }
}

/// Offsets of the header's fields (`struct kvm_nested_state`, VMX format).
pub(super) mod offset {
    pub(crate) const FLAGS: usize = 0;
    pub(crate) const FORMAT: usize = 2;
    pub(crate) const SIZE: usize = 4;
    pub(crate) const VMXON_PA: usize = 8;
    pub(crate) const VMCS12_PA: usize = 16;
    pub(crate) const SMM_FLAGS: usize = 24;
    pub(crate) const PAD: usize = 26;
    pub(crate) const VMX_FLAGS: usize = 28;
    pub(crate) const PREEMPTION_TIMER_DEADLINE: usize = 32;
    pub(crate) const UNUSED: usize = 40;
}

/// The header's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Header([u8; HEADER_SIZE]);

impl Default for Header {
    /// Outside VMX operation: both pointers all ones, size 128.
    fn default() -> Self {
        let mut header = Self([0; HEADER_SIZE]);
        header.set_format(FORMAT_VMX);
        header.set_size(HEADER_SIZE as u32);
        header.set_vmxon_pa(None);
        header.set_vmcs12_pa(None);
        header
    }
}

fn pointer(value: u64) -> Option<L1Phys> {
    (value != NO_POINTER).then_some(L1Phys(value))
}

impl Header {
    /// From the raw bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; HEADER_SIZE]) -> Self {
        Self(bytes)
    }

    /// The raw bytes.
    #[must_use]
    pub const fn bytes(&self) -> &[u8; HEADER_SIZE] {
        &self.0
    }

    /// The raw bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8; HEADER_SIZE] {
        &mut self.0
    }

    /// `flags`.
    #[must_use]
    pub fn flags(&self) -> Flags {
        Flags::from_bits_retain(u16::from_le_bytes(self.get(offset::FLAGS)))
    }

    /// Writes `flags`.
    pub fn set_flags(&mut self, flags: Flags) {
        self.put(offset::FLAGS, flags.bits().to_le_bytes());
    }

    /// `format`: 0 VMX, 1 SVM. The fields below are VMX's.
    #[must_use]
    pub fn format(&self) -> u16 {
        u16::from_le_bytes(self.get(offset::FORMAT))
    }

    /// Writes `format`.
    pub fn set_format(&mut self, format: u16) {
        self.put(offset::FORMAT, format.to_le_bytes());
    }

    /// `size`: bytes of the whole state, as the header claims.
    #[must_use]
    pub fn size(&self) -> u32 {
        u32::from_le_bytes(self.get(offset::SIZE))
    }

    /// Writes `size`.
    pub fn set_size(&mut self, size: u32) {
        self.put(offset::SIZE, size.to_le_bytes());
    }

    /// `hdr.vmx.vmxon_pa`; `None`: all ones.
    #[must_use]
    pub fn vmxon_pa(&self) -> Option<L1Phys> {
        pointer(u64::from_le_bytes(self.get(offset::VMXON_PA)))
    }

    /// Writes `hdr.vmx.vmxon_pa`.
    pub fn set_vmxon_pa(&mut self, address: Option<L1Phys>) {
        let raw = address.map_or(NO_POINTER, |address| address.0);
        self.put(offset::VMXON_PA, raw.to_le_bytes());
    }

    /// `hdr.vmx.vmcs12_pa`; `None`: all ones.
    #[must_use]
    pub fn vmcs12_pa(&self) -> Option<L1Phys> {
        pointer(u64::from_le_bytes(self.get(offset::VMCS12_PA)))
    }

    /// Writes `hdr.vmx.vmcs12_pa`.
    pub fn set_vmcs12_pa(&mut self, address: Option<L1Phys>) {
        let raw = address.map_or(NO_POINTER, |address| address.0);
        self.put(offset::VMCS12_PA, raw.to_le_bytes());
    }

    /// `hdr.vmx.smm.flags`.
    #[must_use]
    pub fn smm_flags(&self) -> SmmFlags {
        SmmFlags::from_bits_retain(u16::from_le_bytes(self.get(offset::SMM_FLAGS)))
    }

    /// Writes `hdr.vmx.smm.flags`.
    pub fn set_smm_flags(&mut self, flags: SmmFlags) {
        self.put(offset::SMM_FLAGS, flags.bits().to_le_bytes());
    }

    /// `hdr.vmx.flags`.
    #[must_use]
    pub fn vmx_flags(&self) -> VmxFlags {
        VmxFlags::from_bits_retain(u32::from_le_bytes(self.get(offset::VMX_FLAGS)))
    }

    /// Writes `hdr.vmx.flags`.
    pub fn set_vmx_flags(&mut self, flags: VmxFlags) {
        self.put(offset::VMX_FLAGS, flags.bits().to_le_bytes());
    }

    /// `hdr.vmx.preemption_timer_deadline`, if `hdr.vmx.flags` says that it is valid.
    #[must_use]
    pub fn preemption_timer_deadline(&self) -> Option<u64> {
        self.vmx_flags()
            .contains(VmxFlags::PREEMPTION_TIMER_DEADLINE)
            .then(|| self.preemption_timer_deadline_raw())
    }

    /// `hdr.vmx.preemption_timer_deadline`, valid or not.
    #[must_use]
    pub fn preemption_timer_deadline_raw(&self) -> u64 {
        u64::from_le_bytes(self.get(offset::PREEMPTION_TIMER_DEADLINE))
    }

    /// Writes the deadline and its flag.
    pub fn set_preemption_timer_deadline(&mut self, deadline: Option<u64>) {
        let raw = deadline.unwrap_or(0);
        self.put(offset::PREEMPTION_TIMER_DEADLINE, raw.to_le_bytes());
        let mut flags = self.vmx_flags();
        flags.set(VmxFlags::PREEMPTION_TIMER_DEADLINE, deadline.is_some());
        self.set_vmx_flags(flags);
    }

    /// Bytes that have no meaning: the `pad` behind the SMM flags and the end of the union.
    pub fn padding(&self) -> impl Iterator<Item = u8> + '_ {
        let pad = &self.0[offset::PAD..offset::VMX_FLAGS];
        pad.iter().chain(&self.0[offset::UNUSED..]).copied()
    }

    fn get<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }

    fn put<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) {
        self.0[offset..offset + N].copy_from_slice(&bytes);
    }
}

impl fmt::Debug for Header {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Header")
            .field("flags", &self.flags())
            .field("format", &self.format())
            .field("size", &self.size())
            .field("vmxon_pa", &self.vmxon_pa())
            .field("vmcs12_pa", &self.vmcs12_pa())
            .field("smm_flags", &self.smm_flags())
            .field("vmx_flags", &self.vmx_flags())
            .field(
                "preemption_timer_deadline",
                &self.preemption_timer_deadline_raw(),
            )
            .field(
                "nonzero_padding_bytes",
                &self.padding().filter(|byte| *byte != 0).count(),
            )
            .finish()
    }
}
