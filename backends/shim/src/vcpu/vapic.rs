//! KVM_SET_VAPIC_ADDR and KVM_TPR_ACCESS_REPORTING, which programs turn off at every reset whether or not they
//! ever had them on. On they are not to be had: the TPR of our local APIC is read where it is.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{kvm_tpr_access_ctl, kvm_vapic_addr};

/// KVM_SET_VAPIC_ADDR: zero is none.
pub fn set_address(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_vapic_addr = user.read(argument)?;
    if request.vapic_addr == 0 && context.vm.has_local_apic() {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// KVM_TPR_ACCESS_REPORTING: off alone.
pub fn report_access(_: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_tpr_access_ctl = user.read(argument)?;
    if request.flags != 0 || request.enabled != 0 {
        return Err(Errno::EINVAL);
    }
    user.write(argument, &request)?;
    Ok(0)
}
