//! VM exits (SDM Vol. 3C, chapter "VM Exits"): what is recorded, which guest state is saved, which
//! host state is loaded.

mod forced;
mod host_state;
mod information;
mod msr_lists;
pub mod priority;
pub mod qualification;
mod reason;
mod save;
#[cfg(test)]
mod tests;

pub use forced::leave_nested;
pub use information::VmExit;
pub use msr_lists::{MsrEffects, load_msrs, store_msrs};
pub use reason::ExitReason;
pub(crate) use save::{SegmentFields, segment_fields};
pub use save::{note_msr_write, save_guest_state};

use super::Field;
use super::controls::{PinBased, Secondary};
use super::entry::{active_secondary, pin_based};
use super::vmcs12::LaunchState;
use crate::addr::L1Phys;
use crate::cpu::{Cpu, Interruptibility};
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::x86::control::rflags;
use crate::x86::{Event, EventKind, Exception};

/// Valid bit of an interruption-information field.
const VALID: u64 = 1 << 31;
/// No VMCS link pointer.
const NO_LINK: u64 = u64::MAX;
/// DR6.BD in the payload of a debug exception: a general-detect fault is never pending as a trap.
const GENERAL_DETECT: u64 = 1 << 13;

/// Which cached translations end with a transition (SDM Vol. 3C "Operations that Invalidate Cached
/// Mappings").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flush {
    /// None.
    #[default]
    None,
    /// One linear address under one VPID (and its combined mappings).
    Linear {
        /// VPID, not zero.
        vpid: u16,
        /// Linear address.
        address: u64,
    },
    /// Linear and combined mappings of one VPID (zero: root operation and L2 without VPID).
    Vpid(u16),
    /// Linear and combined mappings of every VPID but zero.
    AllVpids,
    /// Guest-physical and combined mappings of one EPT root (bits 51:12 of the EPTP).
    Eptp(u64),
    /// Guest-physical and combined mappings of every EPTP.
    AllEptps,
}

/// VMX-abort indicators (SDM Vol. 3C "VMX Aborts").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum VmxAbort {
    /// Saving guest MSRs failed.
    SaveGuestMsrs = 1,
    /// Host PDPTEs are invalid.
    HostPdptes = 2,
    /// The VMCS was corrupted.
    CorruptedVmcs = 3,
    /// Loading host MSRs failed.
    LoadHostMsrs = 4,
    /// Machine check during the VM exit.
    MachineCheck = 5,
    /// The exit is from 64-bit mode to a host of 32 bits.
    HostAddressSpace = 6,
}

/// What the caller has yet to do after [`leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Left {
    /// Cached translations to drop. The address space changed in any case.
    pub flush: Flush,
    /// A VMX abort: L1 is in shutdown (`cpu.triple_fault_pending` is set).
    pub abort: Option<VmxAbort>,
    /// What the MSR-load list wrote that is not the [`Cpu`]'s alone.
    pub msrs: MsrEffects,
}

/// Leaves L2 for L1: records `exit` in the current vmcs12, saves guest state (not for a failed
/// entry), stores and loads MSR lists, loads host state (SDM Vol. 3C "VM Exits").
///
/// For an exit with "acknowledge interrupt on exit" the caller has acknowledged the interrupt and
/// put it into [`VmExit::interruption`].
pub fn leave(cpu: &mut Cpu, memory: &dyn GuestMemory, exit: &VmExit) -> Left {
    let is_entry_failure = exit.reason.is_entry_failure();
    let l2_blocks_nmis = cpu.interruptibility.contains(Interruptibility::NMI);
    let was_in_l2 = cpu.vmx.guest_mode;
    cpu.vmx.mtf_pending = false;
    if !is_entry_failure {
        if !keeps_pending_debug(cpu, exit) {
            cpu.pending_debug = 0;
        }
        hold_debug_trap(cpu, exit);
        save_guest_state(cpu);
        if sets_resume_flag(cpu, exit) {
            let flags = cpu.vmx.vmcs12.get(Field::GUEST_RFLAGS);
            cpu.vmx.vmcs12.set(Field::GUEST_RFLAGS, flags | rflags::RF);
        }
    }
    cpu.vmx.guest_mode = false;
    cpu.vmx.run_pending = false;
    cpu.vmx.preemption_timer_deadline = None;

    let mut abort = None;
    record(cpu, exit);
    if !is_entry_failure {
        let vmcs12 = &cpu.vmx.vmcs12;
        let address = L1Phys(vmcs12.get(Field::VM_EXIT_MSR_STORE_ADDR));
        let count = vmcs12.get32(Field::VM_EXIT_MSR_STORE_COUNT);
        if store_msrs(cpu, memory, address, count).is_err() {
            abort = Some(VmxAbort::SaveGuestMsrs);
        }
        write_shadow_vmcs12(cpu, memory);
    }
    if exit.reason == ExitReason::TRIPLE_FAULT {
        cpu.triple_fault_pending = false;
    }

    let loaded = host_state::load(cpu, memory);
    if was_in_l2 {
        update_nmi_blocking(cpu, exit, l2_blocks_nmis);
    }
    let abort = abort.or(loaded.abort);
    if let Some(abort) = abort {
        shut_down(cpu, memory, abort);
    }
    Left {
        flush: loaded.flush,
        abort,
        msrs: loaded.msrs,
    }
}

/// Whether the saved RFLAGS have RF set whatever the register holds (SDM Vol. 3C "Saving RIP, RSP,
/// RFLAGS, and SSP"): faults, and the exits of EPT and the APIC-access page outside the delivery of an
/// event.
fn sets_resume_flag(cpu: &Cpu, exit: &VmExit) -> bool {
    match exit.reason {
        ExitReason::EXCEPTION_OR_NMI => exit.interruption.is_some_and(|event| {
            event.kind == EventKind::HardwareException && event.vector != Exception::DB
        }),
        ExitReason::APIC_ACCESS
        | ExitReason::EPT_VIOLATION
        | ExitReason::EPT_MISCONFIGURATION
        | ExitReason::PAGE_MODIFICATION_LOG_FULL => cpu.injected.is_none(),
        _ => false,
    }
}

/// Whether pending debug exceptions outlive the exit (SDM Vol. 3C "Saving Non-Register State": the field
/// is saved as clear for all others). What an entry loaded without enabling it ends here.
fn keeps_pending_debug(cpu: &Cpu, exit: &VmExit) -> bool {
    match exit.reason {
        ExitReason::INIT_SIGNAL
        | ExitReason::IO_SMI
        | ExitReason::OTHER_SMI
        | ExitReason::TPR_BELOW_THRESHOLD
        | ExitReason::VIRTUALIZED_EOI
        | ExitReason::APIC_WRITE
        | ExitReason::MONITOR_TRAP_FLAG => true,
        reason => {
            let debug_exception = reason == ExitReason::EXCEPTION_OR_NMI
                && exit.interruption.is_some_and(|e| {
                    e.kind == EventKind::HardwareException && e.vector == Exception::DB
                });
            cpu.interruptibility.contains(Interruptibility::MOV_SS) && !debug_exception
        }
    }
}

/// A debug trap that was recognised but not delivered stays pending for L2, unless it is what exits.
fn hold_debug_trap(cpu: &mut Cpu, exit: &VmExit) {
    if exit.reason == ExitReason::EXCEPTION_OR_NMI
        && exit.interruption.is_some_and(|e| e.kind != EventKind::Nmi)
    {
        return;
    }
    if let Some(exception) = cpu.pending_exception
        && exception.vector == Exception::DB
        && exception.payload & !GENERAL_DETECT != 0
    {
        cpu.pending_debug = exception.payload & !GENERAL_DETECT;
    }
}

/// "Recording VM-Exit Information and Updating VM-Entry Control Fields". A failed entry updates the
/// reason and the qualification alone.
fn record(cpu: &mut Cpu, exit: &VmExit) {
    let injected = cpu.injected;
    let keeps_int1 = !cpu.model.as_kvm(Difference::VectoringInt1);
    let writes_entry_length = cpu.model.as_kvm(Difference::VectoringLength);
    let unblocks_nmis = cpu.model.as_kvm(Difference::VectoringNmiBlocking);
    let vmcs12 = &mut cpu.vmx.vmcs12;
    vmcs12.set(Field::VM_EXIT_REASON, u64::from(exit.reason.0));
    vmcs12.set(Field::EXIT_QUALIFICATION, exit.qualification);
    if exit.reason.is_entry_failure() {
        return;
    }
    vmcs12.set_launch_state(LaunchState::Launched);
    let entry_information = vmcs12.get(Field::VM_ENTRY_INTR_INFO_FIELD);
    vmcs12.set(Field::VM_ENTRY_INTR_INFO_FIELD, entry_information & !VALID);

    let vectoring = injected.filter(|event| is_vectoring(event, exit, keeps_int1));
    vmcs12.set(
        Field::IDT_VECTORING_INFO_FIELD,
        u64::from(vectoring.map_or(0, |event| event.information())),
    );
    let mut instruction_length = exit.instruction_length;
    if let Some(event) = vectoring {
        if unblocks_nmis && event.kind == EventKind::Nmi {
            let blocking = vmcs12.get32(Field::GUEST_INTERRUPTIBILITY_INFO);
            let others = blocking & !Interruptibility::NMI.bits();
            vmcs12.set(Field::GUEST_INTERRUPTIBILITY_INFO, u64::from(others));
        }
        if let Some(error_code) = event.error_code {
            vmcs12.set(Field::IDT_VECTORING_ERROR_CODE, u64::from(error_code));
        }
        if is_software(&event) {
            let length = u32::from(event.instruction_length);
            instruction_length = instruction_length.or(Some(length));
            if writes_entry_length && event.kind == EventKind::SoftwareInterrupt {
                vmcs12.set(Field::VM_ENTRY_INSTRUCTION_LEN, u64::from(length));
            }
        }
    }

    vmcs12.set(
        Field::VM_EXIT_INTR_INFO,
        u64::from(exit.interruption_information()),
    );
    if let Some(error_code) = exit.interruption.and_then(|event| event.error_code) {
        vmcs12.set(Field::VM_EXIT_INTR_ERROR_CODE, u64::from(error_code));
    }
    let optional = [
        (
            Field::VM_EXIT_INSTRUCTION_LEN,
            instruction_length.map(u64::from),
        ),
        (
            Field::VMX_INSTRUCTION_INFO,
            exit.instruction_information.map(u64::from),
        ),
        (Field::GUEST_LINEAR_ADDRESS, exit.guest_linear),
        (
            Field::GUEST_PHYSICAL_ADDRESS,
            exit.guest_physical.map(|a| a.0),
        ),
    ];
    for (field, value) in optional {
        if let Some(value) = value {
            vmcs12.set(field, value);
        }
    }
}

/// Whether the exit happened during delivery of `event` ("Information for VM Exits During Event
/// Delivery"): never for a double or triple fault.
fn is_vectoring(event: &Event, exit: &VmExit, keeps_int1: bool) -> bool {
    let is_double_fault = exit.reason == ExitReason::EXCEPTION_OR_NMI
        && exit
            .interruption
            .is_some_and(|e| e.kind == EventKind::HardwareException && e.vector == Exception::DF);
    if is_double_fault || exit.reason == ExitReason::TRIPLE_FAULT {
        return false;
    }
    match event.kind {
        // A pending MTF VM exit is not delivered through the IDT.
        EventKind::Other => false,
        EventKind::PrivilegedSoftwareException => keeps_int1,
        _ => true,
    }
}

const fn is_software(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::SoftwareInterrupt
            | EventKind::SoftwareException
            | EventKind::PrivilegedSoftwareException
    )
}

/// With VMCS shadowing L2 wrote to the cached shadow vmcs12: back to memory with it.
fn write_shadow_vmcs12(cpu: &Cpu, memory: &dyn GuestMemory) {
    let vmcs12 = &cpu.vmx.vmcs12;
    let link = vmcs12.get(Field::VMCS_LINK_POINTER);
    if active_secondary(vmcs12).contains(Secondary::VMCS_SHADOWING) && link != NO_LINK {
        // A page that is gone swallows the write.
        let _ = memory.write(L1Phys(link), cpu.vmx.shadow_vmcs12.bytes());
    }
}

/// "Updating Non-Register State": an exit due to an NMI blocks NMIs; any other leaves L1's blocking
/// as it was. KVM kept L1's apart while L2 ran; on a processor it is L2's, which with virtual NMIs
/// means none.
fn update_nmi_blocking(cpu: &mut Cpu, exit: &VmExit, l2_blocks_nmis: bool) {
    let is_nmi = exit.reason == ExitReason::EXCEPTION_OR_NMI
        && exit.interruption.is_some_and(|e| e.kind == EventKind::Nmi);
    if !cpu.model.as_kvm(Difference::ExitNmiBlocking) {
        cpu.vmx.l1_nmi_blocked =
            l2_blocks_nmis && !pin_based(&cpu.vmx.vmcs12).contains(PinBased::VIRTUAL_NMIS);
    }
    cpu.vmx.l1_nmi_blocked |= is_nmi;
    restore_nmi_blocking(cpu);
}

/// L1's blocking by NMI, which was kept apart while L2 ran, is the processor's again.
pub(crate) fn restore_nmi_blocking(cpu: &mut Cpu) {
    cpu.interruptibility = if std::mem::take(&mut cpu.vmx.l1_nmi_blocked) {
        Interruptibility::NMI
    } else {
        Interruptibility::empty()
    };
}

/// "VMX Aborts".
fn shut_down(cpu: &mut Cpu, memory: &dyn GuestMemory, abort: VmxAbort) {
    cpu.triple_fault_pending = true;
    if !cpu.model.as_kvm(Difference::Abort)
        && let Some(current) = cpu.vmx.current
    {
        cpu.vmx.vmcs12.set_abort(abort as u32);
        let _ = memory.write_u32(L1Phys(current.0 + 4), abort as u32);
    }
}
