//! The ioctls of `/dev/kvm` that every program begins with.

use crate::capabilities;
use crate::errno::{Answer, Errno};
use crate::os::{PAGES_SIZE, User};
use crate::shim::{Object, Shim};
use crate::vm::Vm;
use kvm_bindings::KVM_API_VERSION;
use std::sync::Arc;

/// KVM_GET_API_VERSION takes no argument, and says so (kvm_dev_ioctl).
pub fn get_api_version(_: &Shim, _: User, argument: u64) -> Answer {
    no_argument(argument)?;
    Ok(KVM_API_VERSION as i32)
}

/// KVM_CHECK_EXTENSION.
pub fn check_extension(_: &Shim, _: User, argument: u64) -> Answer {
    Ok(capabilities::check(argument))
}

/// KVM_GET_VCPU_MMAP_SIZE.
pub fn get_vcpu_mmap_size(_: &Shim, _: User, argument: u64) -> Answer {
    no_argument(argument)?;
    Ok(PAGES_SIZE as i32)
}

/// KVM_CREATE_VM. The one type is 0: the others are of protected guests (kvm_is_vm_type_supported).
pub fn create_vm(shim: &Shim, _: User, argument: u64) -> Answer {
    if argument != 0 {
        return Err(Errno::EINVAL);
    }
    let vm = Vm::new(shim.settings())?;
    shim.open("kvm-vm", Object::Vm(Arc::new(vm)))
}

fn no_argument(argument: u64) -> Result<(), Errno> {
    if argument == 0 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}
