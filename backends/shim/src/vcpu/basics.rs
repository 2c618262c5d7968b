//! The ioctls of a vCPU that are about the interface itself.

use crate::capabilities;
use crate::errno::Answer;
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::kvm_enable_cap;

/// KVM_ENABLE_CAP on a vCPU.
pub fn enable_cap(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_enable_cap = user.read(argument)?;
    capabilities::enable_vcpu(context, &request)
}
