//! VMXON and VMXOFF (SDM Vol. 3C "VMXON", "VMXOFF").

use super::pointer::page_address_is_valid;
use super::{InstructionError, VmxResult};
use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::vmx::VmxState;
use crate::vmx::capability::Capability;
use crate::x86::Exception;
use crate::x86::control::cr4;

/// IA32_FEATURE_CONTROL: locked, and VMX allowed outside SMX operation.
const FEATURE_CONTROL_NEEDED: u64 = 1 << 0 | 1 << 2;

/// Everything of VMXON before its memory operand, behind the checks of the execution mode.
pub(super) fn check(cpu: &Cpu) -> Result<(), VmxResult> {
    if cpu.cpl() != 0 {
        return Err(VmxResult::Fault(Exception::GENERAL_PROTECTION));
    }
    if cpu.vmx.is_on() {
        return Err(VmxResult::fail(cpu, InstructionError::VMXON_IN_ROOT));
    }
    // "Restrictions on VMX Operation": bits that are fixed to 0 or 1.
    let capability = Capability::from(&*cpu.model);
    let allowed = capability.cr0().permits(cpu.sregs.cr0)
        && capability.cr4().permits(cpu.sregs.cr4)
        && cpu.msrs.feature_control & FEATURE_CONTROL_NEEDED == FEATURE_CONTROL_NEEDED;
    if allowed {
        Ok(())
    } else {
        Err(VmxResult::Fault(Exception::GENERAL_PROTECTION))
    }
}

/// Whether CR4.VMXE lets VMXON be recognised at all.
pub(super) const fn is_enabled(cpu: &Cpu) -> bool {
    cpu.sregs.cr4 & cr4::VMXE != 0
}

/// VMXON with the 64-bit pointer read from its operand.
pub fn vmxon(cpu: &mut Cpu, memory: &dyn GuestMemory, pointer: u64) -> VmxResult {
    let pointer = L1Phys(pointer);
    if !page_address_is_valid(&cpu.model, pointer) {
        return VmxResult::FailInvalid;
    }
    // Bit 31 of the region's first word must be clear, so the whole word is compared.
    if memory.read_u32(pointer) != Ok(Capability::from(&*cpu.model).revision()) {
        return VmxResult::FailInvalid;
    }
    cpu.vmx = VmxState {
        vmxon: Some(pointer),
        ..VmxState::default()
    };
    VmxResult::Succeed
}

/// VMXOFF. As in KVM's `free_nested`, the cached copy of a current VMCS is dropped: what was not
/// written out by VMCLEAR or VMPTRLD never reaches memory.
pub fn vmxoff(cpu: &mut Cpu) -> VmxResult {
    cpu.vmx = VmxState::default();
    VmxResult::Succeed
}
