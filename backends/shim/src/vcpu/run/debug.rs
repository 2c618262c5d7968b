//! KVM_SET_GUEST_DEBUG: breakpoints and single steps of the caller's.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::*;
use nvmx_core::vcpu::Parts;
use nvmx_core::x86::{DebugRegs, Event, Exception};
use nvmx_soft::Debugger;

/// What may be asked for: `KVM_GUESTDBG_VALID_MASK`, which KVM_CAP_SET_GUEST_DEBUG2 answers.
pub const VALID: u32 = KVM_GUESTDBG_ENABLE
    | KVM_GUESTDBG_SINGLESTEP
    | KVM_GUESTDBG_USE_HW_BP
    | KVM_GUESTDBG_USE_SW_BP
    | KVM_GUESTDBG_INJECT_BP
    | KVM_GUESTDBG_INJECT_DB
    | KVM_GUESTDBG_BLOCKIRQ;

/// KVM_SET_GUEST_DEBUG (kvm_arch_vcpu_ioctl_set_guest_debug). Without `KVM_GUESTDBG_ENABLE` the rest says
/// nothing, but for an event to inject, of which one may be under way (EBUSY).
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_guest_debug = user.read(argument)?;
    let asked = request.control;
    inject(context, asked)?;
    let control = if asked & KVM_GUESTDBG_ENABLE == 0 {
        0
    } else {
        asked
    };
    let has = |bit| control & bit != 0;
    let registers = &request.arch.debugreg;
    let hardware = has(KVM_GUESTDBG_USE_HW_BP).then(|| DebugRegs {
        db: [registers[0], registers[1], registers[2], registers[3]],
        dr7: registers[7],
        ..DebugRegs::default()
    });
    let steps = has(KVM_GUESTDBG_SINGLESTEP);
    let debugger = Debugger {
        software: has(KVM_GUESTDBG_USE_SW_BP),
        hardware,
        steps,
        blocks_interrupts: has(KVM_GUESTDBG_BLOCKIRQ),
    };
    let index = context.index;
    context.soft().set_debugger(index, debugger);
    context.record().run.steps = steps;
    Ok(0)
}

fn inject(context: &mut VcpuContext<'_>, asked: u32) -> Result<(), Errno> {
    let vector = if asked & KVM_GUESTDBG_INJECT_DB != 0 {
        Exception::DB
    } else if asked & KVM_GUESTDBG_INJECT_BP != 0 {
        Exception::BP
    } else {
        return Ok(());
    };
    let events = context.cpu().state(Parts::All).ok().and_then(|s| s.events);
    if events.is_some_and(|events| events.exception_pending) {
        return Err(Errno::EBUSY);
    }
    let event = Event::exception(Exception {
        vector,
        error_code: None,
        payload: 0,
    });
    context.cpu().inject(event).map_err(|_| Errno::EINVAL)
}
