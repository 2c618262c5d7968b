//! VM entries (SDM Vol. 3C, chapter "VM Entries").

// How an entry ends is returned once per entry, and nothing may be allocated for it.
#![allow(clippy::result_large_err)]

mod active;
pub mod checks;
mod load;
mod missing;
mod pdptes;
#[cfg(test)]
pub(crate) mod test_support;
#[cfg(test)]
mod tests;
mod timing;

pub use active::{
    active_secondary, active_tertiary, entry_controls, exit_controls, pin_based, primary, vpid,
};
pub use missing::unsupported;
pub use pdptes::reload_pdptes;
pub(crate) use timing::preemption_timer_to_save;
pub use timing::{
    l2_tsc, preemption_timer_expired, preemption_timer_expiry, preemption_timer_value,
};

use super::Field;
use super::controls::{Primary, Secondary};
use super::exit::{Flush, Left, MsrEffects, VmExit, leave, load_msrs};
use super::instructions::InstructionError;
use crate::addr::L1Phys;
use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::x86::EventKind;
use crate::x86::control::{efer, rflags};
use checks::{Class, Context, Phase, Rule};

/// No VMCS link pointer.
const NO_LINK: u64 = u64::MAX;

/// Which instruction enters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryKind {
    /// VMLAUNCH: the launch state must be clear.
    Launch,
    /// VMRESUME: the launch state must be launched.
    Resume,
}

/// A VM entry that succeeded: the processor holds L2's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entered {
    /// Cached translations to drop. The address space changed in any case.
    pub flush: Flush,
    /// The event injected is a pending MTF VM exit (type 7, vector 0; `cpu.injected` holds it): exit
    /// with [`MONITOR_TRAP_FLAG`](super::exit::ExitReason::MONITOR_TRAP_FLAG) before the first instruction.
    pub mtf_exit: bool,
    /// What the MSR-load list wrote that is not the [`Cpu`]'s alone.
    pub msrs: MsrEffects,
}

/// How VMLAUNCH or VMRESUME ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryOutcome {
    /// VMfailInvalid.
    FailInvalid,
    /// VMfailValid with this error.
    FailValid(InstructionError),
    /// L2 runs.
    Entered(Entered),
    /// The entry failed after guest state was (in part) loaded: the exit is recorded and L1's host
    /// state is loaded.
    Failed {
        /// Reason 33, 34 or 41 with bit 31.
        exit: VmExit,
        /// What the caller has yet to do.
        left: Left,
    },
    /// KVM cannot carry it out ([`Difference::UnbackedApicPage`]); nothing has changed.
    Unbacked,
}

/// Executes VMLAUNCH or VMRESUME after [`check_execution`](super::instructions::check_execution):
/// checks, loads guest state, processes the MSR-load list, injects (sets `cpu.injected`).
///
/// KVM checks in two rounds: what it checks in software, then (the guest's MSRs are loaded by now)
/// what it leaves to the processor.
pub fn launch_or_resume(cpu: &mut Cpu, memory: &dyn GuestMemory, kind: EntryKind) -> EntryOutcome {
    if let Err(outcome) = check_launch_state(cpu, kind) {
        return outcome;
    }
    let is_kvm = cpu.model.as_kvm(Difference::EntryRounds);
    let early = if is_kvm {
        Phase::KvmSoftware
    } else {
        Phase::All
    };
    let failure = checks::first_failure_in(&context(cpu, memory), early, true);
    let is_guests = |rule: &Rule| matches!(rule.class, Class::InvalidGuestState(_));
    if failure.is_none_or(is_guests)
        && cpu.model.as_kvm(Difference::UnbackedApicPage)
        && has_unbacked_apic_page(cpu, memory)
    {
        return EntryOutcome::Unbacked;
    }
    if let Some(rule) = failure {
        return fail(cpu, memory, rule);
    }
    // A control that only the processor checks fails KVM's entry late, with all that was loaded
    // undone again: the same as failing it here.
    if is_kvm {
        let controls = Phase::KvmProcessorControls;
        if let Some(rule) = checks::first_failure_in(&context(cpu, memory), controls, true) {
            return fail(cpu, memory, rule);
        }
    }
    cpu.vmx.run_pending = true;
    cpu.vmx.preemption_timer_deadline = None;

    if let Err(rule) = load::load_guest_state(cpu, Some(memory), true) {
        return fail(cpu, memory, rule);
    }
    let vmcs12 = &cpu.vmx.vmcs12;
    let address = L1Phys(vmcs12.get(Field::VM_ENTRY_MSR_LOAD_ADDR));
    let count = vmcs12.get32(Field::VM_ENTRY_MSR_LOAD_COUNT);
    let mut msrs = MsrEffects::default();
    if let Err(index) = load_msrs(cpu, memory, address, count, &mut msrs) {
        return fail_with(cpu, memory, VmExit::msr_loading(index));
    }
    if is_kvm {
        let guest = Phase::KvmProcessorGuest;
        if let Some(rule) = checks::first_failure_in(&context(cpu, memory), guest, true) {
            return fail(cpu, memory, rule);
        }
    }
    cache_shadow_vmcs12(cpu, memory);
    timing::start_preemption_timer(cpu);
    enter_activity(cpu);
    EntryOutcome::Entered(entered(cpu, msrs))
}

/// What `KVM_SET_NESTED_STATE` does with `KVM_STATE_NESTED_GUEST_MODE` after its checks
/// (`nested_vmx_enter_non_root_mode(vcpu, false)`): the cached vmcs12 (and `shadow_vmcs12`,
/// `run_pending`, `mtf_pending`, `preemption_timer_deadline`) are set already; guest state is
/// loaded from it without the MSR-load list. PDPTEs that are in memory are read by
/// [`reload_pdptes`] before L2 runs. `Err`: the state cannot be loaded, the processor is in root
/// operation with L2's registers, and KVM's ioctl returns a positive number.
pub fn resume_from_nested_state(cpu: &mut Cpu) -> Result<Entered, &'static Rule> {
    let run_pending = cpu.vmx.run_pending;
    // The activity is KVM_SET_MP_STATE's, and so is what blocks L1's NMIs nobody's.
    let activity = cpu.activity;
    if let Err(rule) = load::load_guest_state(cpu, None, run_pending) {
        cpu.vmx.guest_mode = false;
        cpu.vmx.run_pending = false;
        return Err(rule);
    }
    cpu.activity = activity;
    cpu.vmx.l1_nmi_blocked = false;
    timing::start_preemption_timer(cpu);
    Ok(entered(cpu, MsrEffects::default()))
}

/// What the checks look at, for an entry that this processor is about to make.
fn context<'a>(cpu: &'a Cpu, memory: &'a dyn GuestMemory) -> Context<'a> {
    Context {
        vmcs12: &cpu.vmx.vmcs12,
        model: &cpu.model,
        memory,
        current: cpu.vmx.current,
        // While the guest's state is loaded already, the controls have been checked.
        l1_long_mode: if cpu.vmx.guest_mode {
            exit_controls(&cpu.vmx.vmcs12)
                .contains(super::controls::ExitControls::HOST_ADDRESS_SPACE_SIZE)
        } else {
            cpu.sregs.efer & efer::LMA != 0
        },
        smm: cpu.smm,
    }
}

/// VMLAUNCH's and VMRESUME's own conditions, in KVM's order, which is the SDM's.
fn check_launch_state(cpu: &Cpu, kind: EntryKind) -> Result<(), EntryOutcome> {
    // A shadow VMCS fails without an error number although there is a VMCS to hold one.
    if cpu.vmx.current.is_none() || cpu.vmx.vmcs12.is_shadow() {
        return Err(EntryOutcome::FailInvalid);
    }
    if cpu.interruptibility.contains(Interruptibility::MOV_SS) {
        return Err(EntryOutcome::FailValid(InstructionError::BLOCKED_BY_MOV_SS));
    }
    // KVM compares the whole word with 1 for VMLAUNCH and with 0 for VMRESUME.
    let launch_state = cpu.vmx.vmcs12.launch_state_raw();
    match kind {
        EntryKind::Launch if launch_state == 1 => Err(EntryOutcome::FailValid(
            InstructionError::VMLAUNCH_NOT_CLEAR,
        )),
        EntryKind::Resume if launch_state == 0 => Err(EntryOutcome::FailValid(
            InstructionError::VMRESUME_NOT_LAUNCHED,
        )),
        _ => Ok(()),
    }
}

fn has_unbacked_apic_page(cpu: &Cpu, memory: &dyn GuestMemory) -> bool {
    let vmcs12 = &cpu.vmx.vmcs12;
    let page = L1Phys(vmcs12.get(Field::APIC_ACCESS_ADDR));
    active_secondary(vmcs12).contains(Secondary::VIRTUALIZE_APIC_ACCESSES)
        && memory.read(page, &mut [0]).is_err()
}

fn fail(cpu: &mut Cpu, memory: &dyn GuestMemory, rule: &Rule) -> EntryOutcome {
    match rule.class {
        Class::InvalidControl => EntryOutcome::FailValid(InstructionError::INVALID_CONTROL_FIELD),
        Class::InvalidHostState => {
            EntryOutcome::FailValid(InstructionError::INVALID_HOST_STATE_FIELD)
        }
        Class::InvalidGuestState(failure) => {
            fail_with(cpu, memory, VmExit::invalid_guest_state(failure))
        }
    }
}

fn fail_with(cpu: &mut Cpu, memory: &dyn GuestMemory, exit: VmExit) -> EntryOutcome {
    let left = leave(cpu, memory, &exit);
    EntryOutcome::Failed { exit, left }
}

/// With VMCS shadowing L2 works on a cached copy of the VMCS at the link pointer.
fn cache_shadow_vmcs12(cpu: &mut Cpu, memory: &dyn GuestMemory) {
    let link = cpu.vmx.vmcs12.get(Field::VMCS_LINK_POINTER);
    if active_secondary(&cpu.vmx.vmcs12).contains(Secondary::VMCS_SHADOWING) && link != NO_LINK {
        // The page was read by the checks; if it is gone the cache keeps what it held.
        let _ = memory.read(L1Phys(link), cpu.vmx.shadow_vmcs12.bytes_mut());
    }
}

/// "Activity State": an entry to HLT halts unless an event is injected or a window is open; no
/// instruction of L2 has to run first, so that the entry is over.
fn enter_activity(cpu: &mut Cpu) {
    let vmcs12 = &cpu.vmx.vmcs12;
    match vmcs12.get32(Field::GUEST_ACTIVITY_STATE) {
        1 => {
            let windows = primary(vmcs12);
            let is_woken = cpu.injected.is_some()
                || windows.contains(Primary::NMI_WINDOW_EXITING)
                || windows.contains(Primary::INTERRUPT_WINDOW_EXITING)
                    && cpu.regs.rflags & rflags::IF != 0;
            if !is_woken {
                cpu.vmx.run_pending = false;
                cpu.activity = Activity::Hlt;
            } else if !cpu.model.as_kvm(Difference::WindowInHlt) && cpu.injected.is_none() {
                cpu.activity = Activity::Hlt;
            }
        }
        2 => cpu.activity = Activity::Shutdown,
        3 => {
            cpu.vmx.run_pending = false;
            cpu.activity = Activity::WaitForSipi;
        }
        _ => {}
    }
}

fn entered(cpu: &Cpu, msrs: MsrEffects) -> Entered {
    // "Operations that Invalidate Cached Mappings": without VPID both transitions drop VPID 0's.
    let has_vpid = active_secondary(&cpu.vmx.vmcs12).contains(Secondary::ENABLE_VPID);
    Entered {
        flush: if has_vpid {
            Flush::None
        } else {
            Flush::Vpid(0)
        },
        mtf_exit: cpu.vmx.run_pending && cpu.injected.is_some_and(|e| e.kind == EventKind::Other),
        msrs,
    }
}
