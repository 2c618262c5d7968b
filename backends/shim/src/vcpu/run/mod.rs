//! KVM_RUN: the guest runs in slices, and between two of them the thread looks at what the kernel would be
//! interrupted by (kvm_arch_vcpu_ioctl_run, vcpu_run).
//!
//! One thread at a time runs guest code of a VM. Between slices the VM's lock goes to whoever waits, in turn.
//! A vCPU that sleeps with a local APIC of ours sleeps here: guest time passes with the host's until something
//! wakes it.

pub mod debug;
pub mod exits;
pub mod inject;
pub mod layout;
pub mod signal_mask;
pub mod sync;

use crate::errno::{Answer, Errno};
use crate::log::{self, Detail};
use crate::os::{HeldSignals, User};
use crate::shim::Shim;
use crate::vcpu::{Vcpu, VcpuContext};
use crate::vm::Locked;
use exits::Pending;
use kvm_bindings::{
    KVM_EXIT_INTR, KVM_EXIT_UNKNOWN, KVM_INTERNAL_ERROR_EMULATION, KVM_RUN_X86_GUEST_MODE,
    KVM_RUN_X86_SMM,
};
use nvmx_core::cpu::Activity;
use nvmx_core::vcpu::{BackendError, Budget, Exit, Vm as _};
use nvmx_core::x86::Exception;
use std::sync::Arc;
use std::time::Duration;

/// Instructions of a slice: some tenths of a millisecond.
const SLICE: u64 = 50_000;
/// Guest time, and the host's, that a sleeping vCPU lets pass before it looks around, in nanoseconds.
const NAP: u64 = 1_000_000;

/// DR6.BS.
const STEPPED: u64 = 1 << 14;

/// What KVM_RUN keeps from one call to the next.
#[derive(Debug, Default)]
pub struct RunState {
    /// KVM_SET_SIGNAL_MASK.
    pub signal_mask: Option<u64>,
    /// The value that the caller owes.
    pub pending: Option<Pending>,
    /// The interrupt line as the model has it.
    line: bool,
    /// KVM_SET_GUEST_DEBUG: the guest goes step by step.
    pub steps: bool,
}

/// How a slice ended.
enum Slice {
    /// The guest goes on.
    Goes,
    /// The guest sleeps.
    Sleeps,
    /// The caller must see it.
    Exit(Exit),
    /// Memory that the guest needs is not there.
    Fault,
}

/// KVM_RUN.
pub fn run(shim: &Shim, vcpu: &Arc<Vcpu>, _: User, argument: u64) -> Answer {
    if argument != 0 {
        return Err(Errno::EINVAL);
    }
    let held = HeldSignals::new();
    let mut state = vcpu.vm().lock();
    let mut context = state.vcpu_context(vcpu);
    let mask = context.record().run.signal_mask;
    begin(&mut context)?;
    let is_interrupted = || vcpu.pages.immediate_exit() || held.wait(mask);
    let (state, answer) = go(vcpu, state, is_interrupted);
    finish(shim, vcpu, state);
    drop(held);
    answer
}

/// What comes before the guest runs: inputs of the page, and the value that a read waits for.
fn begin(context: &mut VcpuContext<'_>) -> Result<(), Errno> {
    context.pages.set_flags(0);
    sync::check(context.pages)?;
    sync::load(context)?;
    if !context.vm.has_local_apic() {
        set_cr8(context, context.pages.cr8())?;
    }
    complete(context)
}

/// Without a local APIC of ours CR8 is the caller's, too: bits beyond four are EINVAL (kvm_set_cr8).
fn set_cr8(context: &mut VcpuContext<'_>, cr8: u64) -> Result<(), Errno> {
    const HIGHEST: u64 = 15;
    if cr8 > HIGHEST {
        return Err(Errno::EINVAL);
    }
    let index = context.index;
    if context.soft().brief(index).cr8 != cr8 {
        context.soft().set_cr8(index, cr8);
    }
    Ok(())
}

/// Gives the instruction that waits its value, unless the caller moved the vCPU away from it.
fn complete(context: &mut VcpuContext<'_>) -> Result<(), Errno> {
    let Some(pending) = context.record().run.pending.take() else {
        return Ok(());
    };
    let index = context.index;
    if context.soft().brief(index).rip != pending.rip {
        context.soft().forget_read(index);
        return Ok(());
    }
    let answered = if pending.is_refused(context.pages) {
        context.soft().vcpu(index);
        context.soft().refuse_msr()
    } else {
        let value = pending.value(context.pages);
        context.cpu().complete_read(value)
    };
    answered.map_err(|error| {
        log::line(format_args!("{error}"));
        Errno::EFAULT
    })
}

/// Runs until there is something to say.
fn go<'a>(
    vcpu: &'a Arc<Vcpu>,
    mut state: Locked<'a>,
    is_interrupted: impl Fn() -> bool,
) -> (Locked<'a>, Answer) {
    loop {
        if is_interrupted() {
            // Of `immediate_exit` the page says nothing: the reason of the exit before stays, and programs read it.
            if !vcpu.pages.immediate_exit() {
                vcpu.pages.set_exit_reason(KVM_EXIT_INTR);
            }
            return (state, Err(Errno::EINTR));
        }
        let slice = slice(&mut state.vcpu_context(vcpu));
        if state.somebody_wakes(vcpu.index()) {
            vcpu.vm().tell();
        }
        match slice {
            Slice::Exit(exit) => {
                show(&mut state.vcpu_context(vcpu), &exit);
                return (state, Ok(0));
            }
            Slice::Fault => {
                vcpu.pages.set_exit_reason(KVM_EXIT_UNKNOWN);
                return (state, Err(Errno::EFAULT));
            }
            Slice::Goes => {
                if vcpu.vm().is_wanted() {
                    drop(state);
                    state = vcpu.vm().lock();
                }
            }
            Slice::Sleeps => {
                let seen = vcpu.vm().changes();
                drop(state);
                vcpu.vm().wait(seen, Duration::from_nanos(NAP));
                state = vcpu.vm().lock();
            }
        }
    }
}

fn slice(context: &mut VcpuContext<'_>) -> Slice {
    let index = context.index;
    let sleeps_here = context.vm.has_local_apic();
    let steps = context.record().run.steps;
    context.record().has_run = true;
    set_line(context);
    let deadline = context.vm.tick_devices();
    context.vm.settle_interrupts();
    let soft = context.soft();
    // The caller may have written to code through a mapping of its own.
    soft.resync_code();
    let before = soft.executed();
    let until = soft
        .now()
        .filter(|_| sleeps_here)
        .map(|now| now.saturating_add(NAP).min(deadline.unwrap_or(u64::MAX)));
    let budget = Budget {
        instructions: Some(if steps { 1 } else { SLICE }),
        until,
        ..Budget::UNLIMITED
    };
    let outcome = context.cpu().run(budget);
    if steps && matches!(outcome, Ok(Exit::Budget)) && context.soft().executed() != before {
        return Slice::Exit(Exit::Debug {
            vector: Exception::DB,
            payload: STEPPED,
        });
    }
    match outcome {
        Ok(Exit::Budget) if sleeps_here => {
            let soft = context.soft();
            let is_asleep = soft.brief(index).activity != Activity::Active;
            if is_asleep && soft.executed() - before < SLICE {
                Slice::Sleeps
            } else {
                Slice::Goes
            }
        }
        Ok(Exit::Budget) => Slice::Goes,
        Ok(exit) if context.vm.io_events.hear(&exit) => Slice::Goes,
        Ok(exit) if context.vm.device_exit(index, &exit) => Slice::Goes,
        Ok(exit) => Slice::Exit(exit),
        Err(BackendError::HostMemory { .. }) => Slice::Fault,
        Err(error) => Slice::Exit(Exit::InternalError {
            suberror: KVM_INTERNAL_ERROR_EMULATION,
            message: error.to_string(),
        }),
    }
}

/// A caller with a PIC of its own hears when its interrupt would be taken.
fn set_line(context: &mut VcpuContext<'_>) {
    if context.vm.has_pic() {
        return;
    }
    let wanted = context.pages.wants_interrupt_window();
    if std::mem::replace(&mut context.record().run.line, wanted) != wanted {
        // It cannot fail on this backend.
        let _ = context.cpu().set_interrupt_line(wanted);
    }
}

/// Puts an exit into the page.
fn show(context: &mut VcpuContext<'_>, exit: &Exit) {
    let index = context.index;
    if matches!(exit, Exit::Hlt) {
        // Whoever has no local APIC of ours decides when the guest goes on: it runs on with the next call
        // (kvm_emulate_halt_noskip).
        let _ = context.wake();
    }
    let brief = context.soft().brief(index);
    context.record().run.pending = exits::write(context.pages, exit, &brief);
}

/// What the page says in the end of every run (post_kvm_run_save).
fn finish(shim: &Shim, vcpu: &Arc<Vcpu>, mut state: Locked<'_>) {
    let mut context = state.vcpu_context(vcpu);
    let index = context.index;
    // What cannot be read was not asked for.
    let _ = sync::store(&mut context);
    let brief = context.soft().brief(index);
    let pages = context.pages;
    pages.set_if_flag(u8::from(brief.interrupt_flag));
    pages.set_cr8(brief.cr8);
    pages.set_apic_base(brief.apic_base);
    pages.set_ready(u8::from(
        context.vm.has_pic() || inject::is_ready(&brief, context.vm.has_local_apic()),
    ));
    let mut flags = 0;
    if brief.smm {
        flags |= KVM_RUN_X86_SMM;
    }
    if brief.in_l2 {
        flags |= KVM_RUN_X86_GUEST_MODE;
    }
    pages.set_flags(flags as u16);
    if shim.settings().detail == Detail::Trace {
        let (reason, rip) = (pages.exit_reason(), brief.rip);
        log::line(format_args!("vCPU {index} exit {reason} at RIP {rip:#x}"));
    }
}
