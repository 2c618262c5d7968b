//! KVM_SET_SIGNAL_MASK: the signals that are blocked while the vCPU runs.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;

/// Bytes of the kernel's signal set.
const SET_SIZE: u32 = 8;
/// SIGKILL and SIGSTOP are never blocked (kvm_vcpu_ioctl_set_sigmask).
const NEVER_BLOCKED: u64 = 1 << (libc::SIGKILL - 1) | 1 << (libc::SIGSTOP - 1);

/// The argument is `struct kvm_signal_mask`, a length and so many bytes, or null for none.
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    if argument == 0 {
        context.record().run.signal_mask = None;
        return Ok(0);
    }
    let length: u32 = user.read(argument)?;
    if length != SET_SIZE {
        return Err(Errno::EINVAL);
    }
    let behind = argument.wrapping_add(size_of::<u32>() as u64);
    let mask: u64 = user.read(behind)?;
    context.record().run.signal_mask = Some(mask & !NEVER_BLOCKED);
    Ok(0)
}
