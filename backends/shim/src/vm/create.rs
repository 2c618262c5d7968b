//! The ioctls of a VM that make vCPUs, and those that every level has.

use crate::capabilities;
use crate::errno::{Answer, Errno};
use crate::os::{RunPages, User};
use crate::shim::{Object, Shim};
use crate::vcpu::{Vcpu, VcpuState};
use crate::vm::{MAX_VCPU_ID, MAX_VCPUS, Vm, VmContext};
use kvm_bindings::kvm_enable_cap;
use std::sync::Arc;

/// KVM_CHECK_EXTENSION on a VM.
pub fn check_extension(_: &Shim, _: &Arc<Vm>, _: User, argument: u64) -> Answer {
    Ok(capabilities::check(argument))
}

/// KVM_ENABLE_CAP on a VM.
pub fn enable_cap(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_enable_cap = user.read(argument)?;
    capabilities::enable_vm(context, &request)
}

/// KVM_CREATE_VCPU (kvm_vm_ioctl_create_vcpu): a number too high or a vCPU too many is EINVAL, one that is
/// there already EEXIST.
pub fn create_vcpu(shim: &Shim, vm: &Arc<Vm>, _: User, argument: u64) -> Answer {
    let id = u32::try_from(argument).map_err(|_| Errno::EINVAL)?;
    if id >= MAX_VCPU_ID as u32 {
        return Err(Errno::EINVAL);
    }
    let mut state = vm.lock();
    let index = state.vcpus.len();
    let is_beyond = state.options.max_vcpu_id.is_some_and(|most| id >= most);
    if index >= MAX_VCPUS as usize || is_beyond {
        return Err(Errno::EINVAL);
    }
    if state.vcpus.iter().any(|vcpu| vcpu.id == id) {
        return Err(Errno::EEXIST);
    }
    let apic_id = u8::try_from(id).map_err(|_| Errno::EINVAL)?;
    let (pages, fd) = RunPages::new()?;
    if !state.has_local_apic() {
        state.soft.0.leave_out_local_apics();
    }
    let bootstrap = state.options.boot_cpu as u8;
    state.soft.0.set_bootstrap(bootstrap);
    state.soft.0.add_vcpu(apic_id).map_err(|_| Errno::EINVAL)?;
    state.vcpus.push(VcpuState::new(id));
    state.msr_filter_changed();
    state.start_vcpu(index)?;
    let vcpu = Arc::new(Vcpu::new(Arc::clone(vm), index, pages));
    drop(state);
    shim.enter(fd, Object::Vcpu(vcpu));
    Ok(fd)
}
