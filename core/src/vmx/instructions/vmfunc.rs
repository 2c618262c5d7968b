//! VMFUNC and VMCALL (SDM Vol. 3C "VMFUNC", "VM Functions", "VMCALL").

use super::{InstructionError, Operands, VmxResult};
use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::capability::Capability;
use crate::vmx::controls::Secondary;
use crate::vmx::entry::{active_secondary, vpid};
use crate::vmx::ept::eptp_is_valid;
use crate::vmx::exit::{ExitReason, Flush, VmExit};
use crate::x86::{Exception, Gpr};

/// Number of EPTPs in an EPTP list.
const EPTP_LIST_ENTRIES: u64 = 512;

/// VMFUNC, function in EAX.
pub fn vmfunc(cpu: &mut Cpu, memory: &dyn GuestMemory, operands: &Operands) -> (VmxResult, Flush) {
    let exit = VmxResult::Exit(VmExit::instruction(ExitReason::VMFUNC, operands.length));
    let function = cpu.regs.get(Gpr::Rax) as u32;
    let enabled = cpu.vmx.vmcs12.get(Field::VM_FUNCTION_CONTROL);
    if function > 63 || enabled & 1 << function == 0 {
        return (exit, Flush::None);
    }
    // Function 0, "EPTP switching", is the only one that there is.
    match function {
        0 => match switch_eptp(cpu, memory) {
            Some(flush) => (VmxResult::Done, flush),
            None => (exit, Flush::None),
        },
        _ => (exit, Flush::None),
    }
}

/// EPTP switching: `None` is a VM exit.
fn switch_eptp(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Option<Flush> {
    let index = cpu.regs.get(Gpr::Rcx) & 0xffff_ffff;
    if index >= EPTP_LIST_ENTRIES {
        return None;
    }
    let list = cpu.vmx.vmcs12.get(Field::EPTP_LIST_ADDRESS);
    let eptp = memory.read_u64(L1Phys(list + index * 8)).ok()?;
    let is_same = eptp == cpu.vmx.vmcs12.get(Field::EPT_POINTER);
    let capabilities = Capability::from(&*cpu.model).ept_vpid().bits();
    if !is_same && !eptp_is_valid(eptp, capabilities, cpu.model.physical_address_width) {
        return None;
    }
    if active_secondary(&cpu.vmx.vmcs12).contains(Secondary::EPT_VIOLATION_VE) {
        cpu.vmx.vmcs12.set(Field::EPTP_INDEX, index);
    }
    if is_same {
        return Some(Flush::None);
    }
    cpu.vmx.vmcs12.set(Field::EPT_POINTER, eptp);
    // Combined mappings are tagged with the EPTP, so that architecturally none is stale; a cache of
    // the current address space is.
    Some(Flush::Vpid(vpid(&cpu.vmx.vmcs12)))
}

/// Hypercall numbers and errors of KVM (`Documentation/virt/kvm/x86/hypercalls.rst`).
mod hypercall {
    pub(super) const VAPIC_POLL_IRQ: u64 = 1;
    pub(super) const EPERM: i64 = 1;
    pub(super) const KVM_ENOSYS: i64 = 1000;
}

/// VMCALL outside non-root operation (in L2 [`super::check_execution`] has exited).
///
/// Under KVM it is a hypercall to L0, in and outside VMX operation, RFLAGS untouched: this model has
/// none but the one that does nothing.
pub fn vmcall(cpu: &mut Cpu) -> VmxResult {
    if !cpu.model.as_kvm(Difference::Vmcall) {
        // No SMM monitor is configured: IA32_SMM_MONITOR_CTL is not supported.
        return if !cpu.vmx.is_on() {
            VmxResult::Fault(Exception::UNDEFINED)
        } else if cpu.cpl() != 0 {
            VmxResult::Fault(Exception::GENERAL_PROTECTION)
        } else {
            VmxResult::fail(cpu, InstructionError::VMCALL_IN_ROOT)
        };
    }
    let long = cpu.in_64_bit_mode();
    let number = cpu.regs.get(Gpr::Rax);
    let number = if long { number } else { number & 0xffff_ffff };
    let result = if cpu.cpl() != 0 {
        -hypercall::EPERM
    } else if number == hypercall::VAPIC_POLL_IRQ {
        0
    } else {
        -hypercall::KVM_ENOSYS
    } as u64;
    let result = if long { result } else { result & 0xffff_ffff };
    cpu.regs.set(Gpr::Rax, result);
    VmxResult::Done
}
