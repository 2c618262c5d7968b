//! KVM's nested-state ABI: `struct kvm_nested_state` (`arch/x86/include/uapi/asm/kvm.h`), what
//! KVM_GET_NESTED_STATE yields and what KVM_SET_NESTED_STATE refuses.
//!
//! [`NestedState`] keeps the kernel's bytes and gives them names: every input that
//! [`NestedState::from_bytes`] accepts comes back from [`NestedState::to_bytes`] unchanged, unknown
//! flags, padding, sizes that lie and trailing bytes included.

mod convert;
pub mod get;
mod header;
pub mod set_rules;
pub mod specimen;
mod wire;

pub use convert::NotRepresentable;
pub use header::{Flags, Header, SmmFlags, VmxFlags};

use crate::addr::L1Phys;
use crate::vcpu::BackendError;
use crate::vmx::Vmcs12;
use crate::vmx::vmcs12::VMCS12_SIZE;
use std::fmt;
use thiserror::Error;

/// Bytes of the header: `sizeof(struct kvm_nested_state)`.
pub const HEADER_SIZE: usize = 128;
/// Bytes of a state with a vmcs12.
pub const VMCS12_STATE_SIZE: usize = HEADER_SIZE + VMCS12_SIZE;
/// Bytes of the largest state: with vmcs12 and shadow vmcs12. What KVM_CAP_NESTED_STATE answers.
pub const MAX_STATE_SIZE: usize = HEADER_SIZE + 2 * VMCS12_SIZE;
/// A pointer that is not there: `vmxon_pa` outside VMX operation, `vmcs12_pa` without current VMCS.
pub const NO_POINTER: u64 = u64::MAX;
/// `format` of Intel VMX.
pub const FORMAT_VMX: u16 = 0;
/// `format` of AMD SVM.
pub const FORMAT_SVM: u16 = 1;

/// Bytes that are no `struct kvm_nested_state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ParseError {
    /// The kernel copies the whole header before it looks at anything: fewer bytes are no state.
    #[error("nested state ends at offset {length}: the header alone is {HEADER_SIZE} bytes")]
    HeaderTruncated {
        /// Bytes that there are, which is the offset where the header breaks off.
        length: usize,
    },
}

impl From<ParseError> for BackendError {
    fn from(error: ParseError) -> Self {
        Self::StateRefused {
            part: "nested state".into(),
            reason: error.to_string(),
        }
    }
}

/// `struct kvm_nested_state`: the header, then one or two VMCS regions, then whatever else was there.
///
/// The default is a vCPU outside VMX operation. Which parts are present follows from how many bytes
/// there are, never from what the header claims: a part that is cut short stays in [`Self::rest`].
#[derive(Clone, PartialEq, Eq, Default)]
pub struct NestedState {
    header: Header,
    vmcs12: Option<Vmcs12>,
    shadow_vmcs12: Option<Vmcs12>,
    rest: Vec<u8>,
}

impl NestedState {
    /// Reads the kernel's bytes. Everything from 128 bytes on is accepted and kept.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let Some((header, data)) = bytes.split_first_chunk::<HEADER_SIZE>() else {
            return Err(ParseError::HeaderTruncated {
                length: bytes.len(),
            });
        };
        let mut state = Self {
            header: Header::from_bytes(*header),
            ..Self::default()
        };
        let mut rest = data;
        for part in [&mut state.vmcs12, &mut state.shadow_vmcs12] {
            let Some((region, after)) = rest.split_first_chunk::<VMCS12_SIZE>() else {
                break;
            };
            *part = Some(Vmcs12::from_bytes(region));
            rest = after;
        }
        state.rest = rest.to_vec();
        Ok(state)
    }

    /// The kernel's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend_from_slice(self.header.bytes());
        for region in [&self.vmcs12, &self.shadow_vmcs12].into_iter().flatten() {
            bytes.extend_from_slice(region.bytes());
        }
        bytes.extend_from_slice(&self.rest);
        bytes
    }

    /// Number of bytes there are. The header's own claim is [`Header::size`].
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        let regions =
            usize::from(self.vmcs12.is_some()) + usize::from(self.shadow_vmcs12.is_some());
        HEADER_SIZE + regions * VMCS12_SIZE + self.rest.len()
    }

    /// The header.
    #[must_use]
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The header, to write.
    pub fn header_mut(&mut self) -> &mut Header {
        &mut self.header
    }

    /// `flags`.
    #[must_use]
    pub fn flags(&self) -> Flags {
        self.header.flags()
    }

    /// Whether L2 runs: the vCPU's registers are then L2's.
    #[must_use]
    pub fn guest_mode(&self) -> bool {
        self.flags().contains(Flags::GUEST_MODE)
    }

    /// VMXON region; `None` outside VMX operation.
    #[must_use]
    pub fn vmxon_pa(&self) -> Option<L1Phys> {
        self.header.vmxon_pa()
    }

    /// Current VMCS; `None` if there is none.
    #[must_use]
    pub fn vmcs12_pa(&self) -> Option<L1Phys> {
        self.header.vmcs12_pa()
    }

    /// Flags of VMX operation that an SMI interrupted.
    #[must_use]
    pub fn smm(&self) -> SmmFlags {
        self.header.smm_flags()
    }

    /// L1's TSC >> 5 at which L2's preemption timer expires, where the header says that it is valid.
    #[must_use]
    pub fn preemption_timer_deadline(&self) -> Option<u64> {
        self.header.preemption_timer_deadline()
    }

    /// The vmcs12, if all its 4096 bytes are there.
    #[must_use]
    pub fn vmcs12(&self) -> Option<&Vmcs12> {
        self.vmcs12.as_ref()
    }

    /// The vmcs12, to write.
    pub fn vmcs12_mut(&mut self) -> Option<&mut Vmcs12> {
        self.vmcs12.as_mut()
    }

    /// The shadow vmcs12, if all its 4096 bytes are there.
    #[must_use]
    pub fn shadow_vmcs12(&self) -> Option<&Vmcs12> {
        self.shadow_vmcs12.as_ref()
    }

    /// The shadow vmcs12, to write.
    pub fn shadow_vmcs12_mut(&mut self) -> Option<&mut Vmcs12> {
        self.shadow_vmcs12.as_mut()
    }

    /// Bytes behind the last whole part: a part cut short, or what follows all parts.
    #[must_use]
    pub fn rest(&self) -> &[u8] {
        &self.rest
    }

    /// Replaces the data behind the header by these parts and makes the header's size fit.
    pub fn set_regions(&mut self, vmcs12: Option<Vmcs12>, shadow_vmcs12: Option<Vmcs12>) {
        // A shadow vmcs12 lies behind a vmcs12, so one alone needs the other's place.
        self.vmcs12 = vmcs12.or_else(|| shadow_vmcs12.as_ref().map(|_| Vmcs12::default()));
        self.shadow_vmcs12 = shadow_vmcs12;
        self.rest.clear();
        let size = self.len();
        self.header.set_size(size as u32);
    }

    /// The first `length` bytes of region 0 (vmcs12) or 1 (shadow vmcs12), whole or cut short;
    /// `None` if not all of them are there.
    #[must_use]
    pub fn region_prefix(&self, region: usize, length: usize) -> Option<&[u8]> {
        let regions = [&self.vmcs12, &self.shadow_vmcs12];
        match regions.get(region)? {
            Some(whole) => whole.bytes().get(..length),
            None if regions[..region].iter().all(|region| region.is_some()) => {
                self.rest.get(..length)
            }
            None => None,
        }
    }
}

impl fmt::Debug for NestedState {
    /// Everything that is set, by name.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("NestedState");
        out.field("header", &self.header);
        if let Some(vmcs12) = &self.vmcs12 {
            out.field("vmcs12", vmcs12);
        }
        if let Some(shadow) = &self.shadow_vmcs12 {
            out.field("shadow_vmcs12", shadow);
        }
        if !self.rest.is_empty() {
            out.field("rest_bytes", &self.rest.len());
        }
        out.finish()
    }
}

#[cfg(test)]
mod tests;
