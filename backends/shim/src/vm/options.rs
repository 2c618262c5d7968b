//! What KVM_ENABLE_CAP and its kin change of a VM.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::msrs::only;
use crate::vcpu::time;
use crate::vm::VmContext;
use kvm_bindings::*;

/// The choices of a VM's caller.
#[derive(Debug, Clone)]
pub struct Options {
    /// KVM_CAP_EXCEPTION_PAYLOAD.
    pub exception_payload: bool,
    /// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
    pub triple_fault_event: bool,
    /// KVM_X2APIC_API_USE_32BIT_IDS.
    pub x2apic_ids_are_32_bit: bool,
    /// KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK.
    pub x2apic_broadcast_disabled: bool,
    /// KVM_CAP_DISABLE_QUIRKS.
    pub disabled_quirks: u64,
    /// KVM_SET_TSC_KHZ: of vCPUs to come.
    pub tsc_khz: u32,
    /// KVM_SET_BOOT_CPU_ID.
    pub boot_cpu: u32,
    /// KVM_CAP_MAX_VCPU_ID.
    pub max_vcpu_id: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            exception_payload: false,
            triple_fault_event: false,
            x2apic_ids_are_32_bit: false,
            x2apic_broadcast_disabled: false,
            disabled_quirks: 0,
            tsc_khz: time::DEFAULT_KHZ,
            boot_cpu: 0,
            max_vcpu_id: None,
        }
    }
}

/// Quirks that can be disabled, which is taken note of (`KVM_X86_VALID_QUIRKS` of 6.12).
pub const QUIRKS: u64 = 0xff;
/// `KVM_X2APIC_API_VALID_FLAGS`.
pub const X2APIC_API: u64 = 3;

/// KVM_CAP_EXCEPTION_PAYLOAD.
pub fn exception_payload(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    context.vm.options.exception_payload = request.args[0] != 0;
    Ok(0)
}

/// KVM_CAP_X86_TRIPLE_FAULT_EVENT.
pub fn triple_fault_event(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    context.vm.options.triple_fault_event = request.args[0] != 0;
    Ok(0)
}

/// KVM_CAP_X2APIC_API.
pub fn x2apic_api(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    only(X2APIC_API, request.args[0])?;
    let options = &mut context.vm.options;
    options.x2apic_ids_are_32_bit |= request.args[0] & 1 != 0;
    options.x2apic_broadcast_disabled |= request.args[0] & 2 != 0;
    Ok(0)
}

/// KVM_CAP_DISABLE_QUIRKS2.
pub fn disable_quirks2(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    only(QUIRKS, request.args[0])?;
    disable_quirks(context, request)
}

/// KVM_CAP_DISABLE_QUIRKS, which takes any.
pub fn disable_quirks(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    context.vm.options.disabled_quirks |= request.args[0] & QUIRKS;
    Ok(0)
}

/// KVM_CAP_MAX_VCPU_ID, which is chosen once: numbers of vCPUs are below.
pub fn max_vcpu_id(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    let most = u32::try_from(request.args[0]).map_err(|_| Errno::EINVAL)?;
    let options = &mut context.vm.options;
    let is_possible = most <= super::MAX_VCPU_ID as u32 && options.boot_cpu <= most;
    if !is_possible || options.max_vcpu_id.is_some_and(|chosen| chosen != most) {
        return Err(Errno::EINVAL);
    }
    options.max_vcpu_id = (most != 0).then_some(most);
    Ok(0)
}

/// KVM_CAP_MSR_PLATFORM_INFO.
pub fn platform_info(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    context.vm.soft.0.show_platform_info(request.args[0] != 0);
    Ok(0)
}

/// KVM_SET_TSC_KHZ of a VM.
pub fn set_tsc_khz(context: &mut VmContext<'_>, _: User, argument: u64) -> Answer {
    context.vm.options.tsc_khz = time::frequency(argument)?;
    Ok(0)
}

/// KVM_GET_TSC_KHZ of a VM.
pub fn get_tsc_khz(context: &mut VmContext<'_>, _: User, _: u64) -> Answer {
    Ok(context.vm.options.tsc_khz as i32)
}

/// KVM_SET_BOOT_CPU_ID.
pub fn set_boot_cpu_id(context: &mut VmContext<'_>, _: User, argument: u64) -> Answer {
    if !context.vm.vcpus.is_empty() {
        return Err(Errno::EBUSY);
    }
    let most = context.vm.options.max_vcpu_id;
    let most = most.map_or(super::MAX_VCPU_ID as u64, u64::from);
    if argument > most {
        return Err(Errno::EINVAL);
    }
    context.vm.options.boot_cpu = argument as u32;
    Ok(0)
}
