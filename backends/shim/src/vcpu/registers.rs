//! General, segment, control and debug registers: KVM_{GET,SET}_{REGS,SREGS,SREGS2,DEBUGREGS}
//! (arch/x86/kvm/regs.c).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_regs, kvm_sregs, kvm_sregs2};
use nvmx_abi::{refusal, registers};
use nvmx_core::vcpu::Parts;
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{CpuState, Sregs};

/// Bit 1 of RFLAGS is always set.
const RFLAGS_FIXED: u64 = 2;

/// KVM_GET_REGS.
pub fn get_regs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let regs = regs(context)?;
    user.write(argument, &regs)?;
    Ok(0)
}

/// KVM_SET_REGS.
pub fn set_regs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let regs = user.read(argument)?;
    put_regs(context, &regs)?;
    Ok(0)
}

/// The general registers.
pub fn regs(context: &mut VcpuContext<'_>) -> Result<kvm_regs, Errno> {
    let state = context.state(Parts::Registers)?;
    let regs = state.regs.ok_or(Errno::EIO)?;
    Ok(registers::kernel_regs(&regs))
}

/// Sets them. An exception that waits is gone (`__set_regs`).
pub fn put_regs(context: &mut VcpuContext<'_>, kernel: &kvm_regs) -> Result<(), Errno> {
    let mut regs = registers::regs(kernel);
    regs.rflags |= RFLAGS_FIXED;
    context.set_state(&CpuState {
        regs: Some(regs),
        ..CpuState::default()
    })?;
    context.model().drop_pending_exception();
    Ok(())
}

/// KVM_GET_SREGS.
pub fn get_sregs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let sregs = sregs(context)?;
    user.write(argument, &sregs)?;
    Ok(0)
}

/// KVM_SET_SREGS.
pub fn set_sregs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let sregs = user.read(argument)?;
    put_sregs(context, &sregs)?;
    Ok(0)
}

/// KVM_GET_SREGS2.
pub fn get_sregs2(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let sregs = sregs2(context)?;
    user.write(argument, &sregs)?;
    Ok(0)
}

/// KVM_SET_SREGS2: with PDPTEs only where paging has them.
pub fn set_sregs2(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let kernel: kvm_sregs2 = user.read(argument)?;
    let valid = u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID);
    if kernel.flags & !valid != 0 {
        return Err(Errno::EINVAL);
    }
    let new = registers::sregs(&kernel);
    if new.pdptrs_valid && !has_pdptrs(&new) {
        return Err(Errno::EINVAL);
    }
    put(context, new)?;
    Ok(0)
}

/// The segment and control registers, in the older format.
pub fn sregs(context: &mut VcpuContext<'_>) -> Result<kvm_sregs, Errno> {
    let new = sregs2(context)?;
    let events = context.model().events();
    let injected = events.interrupt_injected && !events.interrupt_soft;
    Ok(registers::older(
        &new,
        injected.then_some(events.interrupt_vector),
    ))
}

fn sregs2(context: &mut VcpuContext<'_>) -> Result<kvm_sregs2, Errno> {
    context.apply_payload()?;
    let state = context.state(Parts::Registers)?;
    let mut sregs = state.sregs.ok_or(Errno::EIO)?;
    sregs.pdptrs_valid &= has_pdptrs(&sregs);
    Ok(registers::kernel_sregs(&sregs))
}

/// Sets them, and the interrupt of the bitmap as under delivery.
pub fn put_sregs(context: &mut VcpuContext<'_>, kernel: &kvm_sregs) -> Result<(), Errno> {
    put(context, registers::sregs(&registers::newer(kernel)))?;
    if let Some(vector) = registers::interrupt_in_bitmap(kernel) {
        let mut events = context.model().events();
        events.interrupt_injected = true;
        events.interrupt_soft = false;
        events.interrupt_vector = vector;
        context.set_state(&CpuState {
            events: Some(events),
            ..CpuState::default()
        })?;
    }
    Ok(())
}

fn put(context: &mut VcpuContext<'_>, new: Sregs) -> Result<(), Errno> {
    let most = context.vm.offered.cr4;
    if !context.model().takes_sregs(&new, most) {
        return Err(Errno::EINVAL);
    }
    context.set_state(&CpuState {
        sregs: Some(new),
        ..CpuState::default()
    })?;
    context.soft().judge_l2();
    Ok(())
}

/// PAE paging, which has PDPTEs.
const fn has_pdptrs(sregs: &Sregs) -> bool {
    sregs.cr0 & cr0::PG != 0 && sregs.cr4 & cr4::PAE != 0 && sregs.efer & efer::LMA == 0
}

/// KVM_GET_DEBUGREGS.
pub fn get_debugregs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    context.apply_payload()?;
    let debug = context.model().debug_registers();
    user.write(argument, &registers::kernel_debug(&debug))?;
    Ok(0)
}

/// KVM_SET_DEBUGREGS.
pub fn set_debugregs(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let kernel: kvm_debugregs = user.read(argument)?;
    refusal::check_debugregs(&kernel)?;
    context.set_state(&CpuState {
        debug: Some(registers::debug(&kernel)),
        ..CpuState::default()
    })?;
    Ok(0)
}
