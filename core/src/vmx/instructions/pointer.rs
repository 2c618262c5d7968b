//! VMCLEAR, VMPTRLD, VMPTRST (SDM Vol. 3C "VMCLEAR", "VMPTRLD", "VMPTRST").
//!
//! As KVM does it, the current vmcs12 lives in a cached copy: VMPTRLD reads all of it, and VMCLEAR
//! of the current one or VMPTRLD of another writes all of it back.

use super::{InstructionError, VmxResult};
use crate::addr::{L1Phys, PAGE_SIZE};
use crate::cpu::{Cpu, Model};
use crate::memory::GuestMemory;
use crate::vmx::capability::{Capability, ControlField};
use crate::vmx::controls::Secondary;

/// Bit 31 of a VMCS's first word: shadow-VMCS indicator.
const SHADOW_INDICATOR: u32 = 1 << 31;
/// Where KVM keeps the launch state in a vmcs12.
const LAUNCH_STATE_OFFSET: u64 = 8;

/// Whether a 4-KiB structure can be there: aligned, no bits beyond the width of addresses of such.
pub(crate) const fn page_address_is_valid(model: &Model, address: L1Phys) -> bool {
    address.is_aligned(PAGE_SIZE) && structure_address_is_valid(model, address)
}

/// Whether a structure of VMX can be there: no bits beyond the physical-address width, and beyond 32 bits
/// where IA32_VMX_BASIC\[48\] says so (SDM appendix A.1 "Basic VMX Information").
pub(crate) const fn structure_address_is_valid(model: &Model, address: L1Phys) -> bool {
    let is_narrow = Capability::new(&model.vmx_msrs).addresses_are_32_bit();
    physical_address_is_valid(model, address) && !(is_narrow && address.0 >> 32 != 0)
}

/// Whether no bits beyond the physical-address width are set.
pub(crate) const fn physical_address_is_valid(model: &Model, address: L1Phys) -> bool {
    // A width of zero is a model without CPUID: nothing is known to be beyond.
    match model.physical_address_width {
        0 | 64.. => true,
        width => address.0 >> width == 0,
    }
}

/// Whether the processor lets VMCS shadowing be enabled.
const fn has_vmcs_shadowing(capability: Capability<'_>) -> bool {
    let allowed = capability.allowed(ControlField::Secondary).may_be_one;
    allowed & Secondary::VMCS_SHADOWING.bits() as u64 != 0
}

/// Writes the cached vmcs12 out and leaves no VMCS current. Where there is no RAM the write is lost.
fn release_current(cpu: &mut Cpu, memory: &dyn GuestMemory) {
    if let Some(current) = cpu.vmx.current.take() {
        let _ = memory.write(current, cpu.vmx.vmcs12.bytes());
    }
}

/// VMCLEAR with the 64-bit pointer read from its operand.
pub fn vmclear(cpu: &mut Cpu, memory: &dyn GuestMemory, pointer: u64) -> VmxResult {
    let pointer = L1Phys(pointer);
    if !page_address_is_valid(&cpu.model, pointer) {
        return VmxResult::fail(cpu, InstructionError::VMCLEAR_INVALID_ADDRESS);
    }
    if cpu.vmx.vmxon == Some(pointer) {
        return VmxResult::fail(cpu, InstructionError::VMCLEAR_VMXON_POINTER);
    }
    if cpu.vmx.current == Some(pointer) {
        release_current(cpu, memory);
    }
    // Launch state "clear"; a region outside RAM swallows the write.
    let _ = memory.write_u32(L1Phys(pointer.0 + LAUNCH_STATE_OFFSET), 0);
    VmxResult::Succeed
}

/// VMPTRLD with the 64-bit pointer read from its operand.
pub fn vmptrld(cpu: &mut Cpu, memory: &dyn GuestMemory, pointer: u64) -> VmxResult {
    let pointer = L1Phys(pointer);
    if !page_address_is_valid(&cpu.model, pointer) {
        return VmxResult::fail(cpu, InstructionError::VMPTRLD_INVALID_ADDRESS);
    }
    if cpu.vmx.vmxon == Some(pointer) {
        return VmxResult::fail(cpu, InstructionError::VMPTRLD_VMXON_POINTER);
    }
    // KVM does not read the region again if it is current already.
    if cpu.vmx.current == Some(pointer) {
        return VmxResult::Succeed;
    }
    // A region outside RAM reads as all ones, which is no revision identifier.
    let header = memory.read_u32(pointer).unwrap_or(u32::MAX);
    let capability = Capability::from(&*cpu.model);
    let is_shadow = header & SHADOW_INDICATOR != 0;
    let mut bytes = [0; 4096];
    if header & !SHADOW_INDICATOR != capability.revision()
        || is_shadow && !has_vmcs_shadowing(capability)
        || memory.read(pointer, &mut bytes).is_err()
    {
        return VmxResult::fail(cpu, InstructionError::VMPTRLD_INCORRECT_REVISION);
    }
    release_current(cpu, memory);
    cpu.vmx.vmcs12.bytes_mut().copy_from_slice(&bytes);
    cpu.vmx.current = Some(pointer);
    VmxResult::Succeed
}

/// VMPTRST: the value to store (all ones without a current VMCS), 8 bytes in every mode. The caller
/// stores it and completes with [`VmxResult::Succeed`].
#[must_use]
pub fn vmptrst(cpu: &Cpu) -> u64 {
    cpu.vmx.current.map_or(u64::MAX, |pointer| pointer.0)
}
