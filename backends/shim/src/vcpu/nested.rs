//! KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::kvm_enable_cap;
use nvmx_core::nested::{HEADER_SIZE, NestedState};
use nvmx_core::vcpu::BackendError;
use nvmx_core::vmx::vmcs12::VMCS12_SIZE;

/// Offset of `size` in the header.
const SIZE: u64 = 4;
/// Bytes of a vmcs12 that SET reads: `sizeof(struct vmcs12)`.
const VMCS12_READ: usize = 998;

/// KVM_GET_NESTED_STATE: where the caller's size is too small, the size that it takes, and E2BIG.
pub fn get(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let size_at = argument.wrapping_add(SIZE);
    let room: u32 = user.read(size_at)?;
    let state = context.cpu().nested_state().map_err(|_| Errno::EINVAL)?;
    let size = state.header().size();
    if size > room {
        user.write(size_at, &size)?;
        return Err(Errno::E2BIG);
    }
    let bytes = state.to_bytes();
    // The shadow vmcs12 may lie behind the size that the header tells: not behind the caller's.
    user.write_bytes(argument, &bytes[..bytes.len().min(room as usize)])?;
    Ok(0)
}

/// KVM_CAP_HYPERV_ENLIGHTENED_VMCS: versions 1 to 1 (`nested_enable_evmcs`). KVM offers it to whoever nests; what
/// comes of it is that states without a VMXON region may have its flag. A state that has one is refused: no guest is
/// shown Hyper-V here.
pub fn enable_enlightened_vmcs(context: &mut VcpuContext<'_>, request: &kvm_enable_cap) -> Answer {
    const VERSIONS: u16 = 0x0101;
    context.cpu();
    context.soft().enable_enlightened_vmcs();
    User.write(request.args[0], &VERSIONS)?;
    Ok(0)
}

/// KVM_SET_NESTED_STATE.
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let bytes = read(user, argument)?;
    let state = NestedState::from_bytes(&bytes).map_err(|_| Errno::EFAULT)?;
    match context.cpu().set_nested_state(&state) {
        Ok(()) => Ok(0),
        // NVMX_VMENTRY_VMEXIT of the kernel's own enumeration gets out.
        Err(BackendError::NestedRefused { errno: 0, .. }) => Ok(2),
        Err(BackendError::NestedRefused { errno, .. }) => Err(Errno(errno)),
        Err(_) => Err(Errno::EINVAL),
    }
}

/// The header, and as much of the regions behind it as can be read; the rules find out what is missed.
fn read(user: User, argument: u64) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; HEADER_SIZE];
    user.read_bytes(argument, &mut bytes)?;
    for _ in 0..2 {
        let address = argument.wrapping_add(bytes.len() as u64);
        let mut region = [0; VMCS12_SIZE];
        if user.read_bytes(address, &mut region).is_ok() {
            bytes.extend_from_slice(&region);
            continue;
        }
        let start = &mut region[..VMCS12_READ];
        if user.read_bytes(address, start).is_ok() {
            bytes.extend_from_slice(start);
        }
        break;
    }
    Ok(bytes)
}
