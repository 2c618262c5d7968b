//! The TSC of a vCPU: KVM_{GET,SET}_TSC_KHZ, and its offset as a device attribute.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, kvm_device_attr};
use nvmx_core::x86::CpuState;

/// Frequency of the TSC where nobody set another: one instruction is a nanosecond.
pub const DEFAULT_KHZ: u32 = 1_000_000;
/// `kvm_caps.max_guest_tsc_khz`.
const MOST_KHZ: u32 = 0x7fff_ffff;

/// A frequency that can be had; zero is the default.
pub fn frequency(argument: u64) -> Result<u32, Errno> {
    match argument as u32 {
        0 => Ok(DEFAULT_KHZ),
        khz if khz >= MOST_KHZ => Err(Errno::EINVAL),
        khz => Ok(khz),
    }
}

/// KVM_SET_TSC_KHZ.
pub fn set_khz(context: &mut VcpuContext<'_>, _: User, argument: u64) -> Answer {
    let khz = frequency(argument)?;
    put_khz(context, khz)?;
    Ok(0)
}

/// Sets the frequency.
pub fn put_khz(context: &mut VcpuContext<'_>, khz: u32) -> Result<(), Errno> {
    context.set_state(&CpuState {
        tsc_khz: Some(khz),
        ..CpuState::default()
    })
}

/// KVM_GET_TSC_KHZ.
pub fn get_khz(context: &mut VcpuContext<'_>, _: User, _: u64) -> Answer {
    Ok(context.model().tsc_khz() as i32)
}

/// KVM_HAS_DEVICE_ATTR.
pub fn has_attribute(_: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    attribute(user, argument)?;
    Ok(0)
}

/// KVM_GET_DEVICE_ATTR.
pub fn get_attribute(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let address = attribute(user, argument)?;
    let offset = context.model().tsc_offset();
    user.write(address, &offset)?;
    Ok(0)
}

/// KVM_SET_DEVICE_ATTR.
pub fn set_attribute(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let address = attribute(user, argument)?;
    let offset = user.read(address)?;
    context.model().set_tsc_offset(offset);
    Ok(0)
}

/// Where the value of the one attribute is (kvm_vcpu_ioctl_device_attr).
fn attribute(user: User, argument: u64) -> Result<u64, Errno> {
    let attribute: kvm_device_attr = user.read(argument)?;
    if attribute.group != KVM_VCPU_TSC_CTRL || attribute.attr != u64::from(KVM_VCPU_TSC_OFFSET) {
        return Err(Errno::ENXIO);
    }
    Ok(attribute.addr)
}
