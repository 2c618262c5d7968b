//! Registers that go with a run, in the page, instead of ioctls of their own (KVM_CAP_SYNC_REGS).

use crate::errno::Errno;
use crate::os::RunPages;
use crate::vcpu::{VcpuContext, events, registers};
use kvm_bindings::{KVM_SYNC_X86_EVENTS, KVM_SYNC_X86_REGS, KVM_SYNC_X86_SREGS};

/// `KVM_SYNC_X86_VALID_FIELDS`: what KVM_CHECK_EXTENSION answers.
pub const FIELDS: u32 = KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS | KVM_SYNC_X86_EVENTS;

const fn has(bits: u64, part: u32) -> bool {
    bits & part as u64 != 0
}

/// Bits that do not exist are EINVAL, in both.
pub fn check(pages: &RunPages) -> Result<(), Errno> {
    let asked = pages.valid_regs() | pages.dirty_regs();
    if asked & !u64::from(FIELDS) == 0 {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

/// What the caller changed goes to the vCPU (sync_regs).
pub fn load(context: &mut VcpuContext<'_>) -> Result<(), Errno> {
    let dirty = context.pages.dirty_regs();
    if dirty == 0 {
        return Ok(());
    }
    let given = context.pages.sync_regs();
    if has(dirty, KVM_SYNC_X86_REGS) {
        registers::put_regs(context, &given.regs)?;
    }
    if has(dirty, KVM_SYNC_X86_SREGS) {
        registers::put_sregs(context, &given.sregs)?;
    }
    if has(dirty, KVM_SYNC_X86_EVENTS) {
        events::put(context, &given.events)?;
    }
    context.pages.set_dirty_regs(0);
    Ok(())
}

/// What the caller wants to see goes to the page (store_regs).
pub fn store(context: &mut VcpuContext<'_>) -> Result<(), Errno> {
    let valid = context.pages.valid_regs();
    if valid == 0 {
        return Ok(());
    }
    let mut shown = context.pages.sync_regs();
    if has(valid, KVM_SYNC_X86_REGS) {
        shown.regs = registers::regs(context)?;
    }
    if has(valid, KVM_SYNC_X86_SREGS) {
        shown.sregs = registers::sregs(context)?;
    }
    if has(valid, KVM_SYNC_X86_EVENTS) {
        shown.events = events::events(context)?;
    }
    context.pages.set_sync_regs(shown);
    Ok(())
}
