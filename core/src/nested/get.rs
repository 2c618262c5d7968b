//! KVM_GET_NESTED_STATE with a caller's buffer: sizing, E2BIG, and what is written where
//! (`kvm_arch_vcpu_ioctl` in `x86.c`, `vmx_get_nested_state`).

use super::convert::needs_shadow;
use super::{HEADER_SIZE, MAX_STATE_SIZE, NestedState, VMCS12_STATE_SIZE};
use crate::vmx::VmxState;
use thiserror::Error;

/// The caller's buffer is too small: errno E2BIG (7). Nothing was copied but the header's `size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("nested state needs {required} bytes, the buffer says {given} (E2BIG)")]
pub struct BufferTooSmall {
    /// `size` as the kernel writes it back.
    pub required: u32,
    /// `size` as the caller gave it.
    pub given: u32,
}

/// What GET did with a buffer that was large enough.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written {
    /// The bytes within the size that the header reports.
    pub state: NestedState,
    /// Bytes behind `state` that the kernel writes all the same. Linux sizes the state without the
    /// shadow vmcs12 while L1 runs, but then copies it without asking whether L2 runs: 4096 bytes
    /// from offset 4224, into a buffer that may end there (seen on 6.1.192 and 6.12.117).
    pub overrun: Option<Vec<u8>>,
}

/// Bytes that KVM_GET_NESTED_STATE reports for `vmx`: 128, 4224 or 8320.
#[must_use]
pub fn required_size(vmx: &VmxState) -> usize {
    if vmx.vmxon.is_none() || vmx.current.is_none() {
        HEADER_SIZE
    } else if vmx.guest_mode && needs_shadow(&vmx.vmcs12) {
        MAX_STATE_SIZE
    } else {
        VMCS12_STATE_SIZE
    }
}

/// KVM_GET_NESTED_STATE into a buffer whose header says `size`.
pub fn get(vmx: &VmxState, size: u32) -> Result<Written, BufferTooSmall> {
    let required = required_size(vmx) as u32;
    if size < required {
        return Err(BufferTooSmall {
            required,
            given: size,
        });
    }
    let overruns = vmx.vmxon.is_some()
        && vmx.current.is_some()
        && !vmx.guest_mode
        && needs_shadow(&vmx.vmcs12);
    Ok(Written {
        state: NestedState::capture(vmx),
        overrun: overruns.then(|| vmx.shadow_vmcs12.bytes().to_vec()),
    })
}
