//! VMXON and VMXOFF (SDM Vol. 3C "VMXON", "VMXOFF").

use super::pointer::{page_address_is_valid, revision};
use super::{InstructionError, VmxResult};
use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::vmx::VmxState;
use crate::vmx::entry::capability_msr;
use crate::x86::Exception;
use crate::x86::control::cr4;

/// IA32_FEATURE_CONTROL: locked, and VMX allowed outside SMX operation.
const FEATURE_CONTROL_NEEDED: u64 = 1 << 0 | 1 << 2;

/// Everything of VMXON before its memory operand, behind the checks of the execution mode.
pub(super) fn check(cpu: &Cpu) -> Result<(), VmxResult> {
    if cpu.cpl() != 0 {
        return Err(VmxResult::Fault(Exception::GENERAL_PROTECTION));
    }
    if cpu.vmx.vmxon.is_some() {
        return Err(VmxResult::fail(cpu, InstructionError::VMXON_IN_ROOT));
    }
    // "Restrictions on VMX Operation": bits that are fixed to 0 or 1.
    let fixed = |value, fixed0, fixed1| value & fixed0 == fixed0 && value & !fixed1 == 0;
    let msrs = &cpu.model.vmx_msrs;
    let allowed = fixed(
        cpu.sregs.cr0,
        msrs[capability_msr::CR0_FIXED0],
        msrs[capability_msr::CR0_FIXED1],
    ) && fixed(
        cpu.sregs.cr4,
        msrs[capability_msr::CR4_FIXED0],
        msrs[capability_msr::CR4_FIXED1],
    ) && cpu.msrs.feature_control & FEATURE_CONTROL_NEEDED == FEATURE_CONTROL_NEEDED;
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
    if memory.read_u32(pointer) != Ok(revision(&cpu.model)) {
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
