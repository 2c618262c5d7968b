//! KVM_GET_MSRS and KVM_SET_MSRS of a vCPU: in order, up to the first that fails; the answer is how many were done.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::processor::Offered;
use crate::system::msrs::{self, is_immutable, is_listed};
use crate::vcpu::VcpuContext;
use nvmx_core::msr::host::Refused;
use std::sync::Arc;

/// KVM_GET_MSRS.
pub fn get(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    msrs::get_each(user, argument, |number| read(context, number))
}

/// KVM_SET_MSRS.
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let entries = msrs::entries(user, argument)?;
    let done = entries
        .iter()
        .take_while(|entry| write(context, entry.index, entry.data))
        .count();
    Ok(done as i32)
}

/// A listed MSR that holds nothing reads as zero (`kvm_do_msr_access`).
fn read(context: &mut VcpuContext<'_>, number: u32) -> Option<u64> {
    match context.model().read_msr(number) {
        Ok(value) => Some(value),
        Err(Refused::Unknown) => holds_nothing(&context.vm.offered, number).then_some(0),
        Err(Refused::Value) => None,
    }
}

/// KVM's clock, which is off here: programs write the zero of a reset unasked.
const CLOCK: [u32; 4] = [0x11, 0x12, 0x4b56_4d00, 0x4b56_4d01];

fn holds_nothing(offered: &Offered, number: u32) -> bool {
    is_listed(offered, number) || CLOCK.contains(&number)
}

/// Once the vCPU has run, MSRs that say what it can do stay as they are (`do_set_msr`).
fn write(context: &mut VcpuContext<'_>, number: u32, value: u64) -> bool {
    if context.record().has_run && is_immutable(number) {
        return read(context, number) == Some(value);
    }
    let offered = Arc::clone(&context.vm.offered);
    match context.model().write_msr(&offered.vmx, number, value) {
        Ok(()) => true,
        Err(Refused::Unknown) => value == 0 && holds_nothing(&offered, number),
        Err(Refused::Value) => false,
    }
}

/// What a VM's KVM_CAP_MSR_PLATFORM_INFO and others need: an errno for a value that is none.
pub(crate) fn only(bits: u64, value: u64) -> Result<(), Errno> {
    if value & !bits == 0 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}
