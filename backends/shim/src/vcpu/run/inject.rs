//! What the caller signals to a vCPU: KVM_INTERRUPT, KVM_NMI, KVM_SMI.

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::kvm_interrupt;
use nvmx_core::vcpu::{Parts, Result as Outcome};
use nvmx_core::x86::{CpuState, Event};
use nvmx_soft::Brief;

/// Whether the caller's interrupt would be taken now (kvm_vcpu_ready_for_interrupt_injection).
#[must_use]
pub fn is_ready(brief: &Brief, has_local_apic: bool) -> bool {
    let allowed = if brief.run_pending {
        false
    } else {
        brief.interrupts_exit || brief.interrupt_flag && !brief.shadow
    };
    allowed && !brief.event_waits && (!has_local_apic || brief.accepts_pic)
}

/// KVM_INTERRUPT (kvm_vcpu_ioctl_interrupt): with a PIC of ours ENXIO. With a local APIC of ours the vector waits
/// until it can be taken, and a second one is EEXIST; without, it is under delivery at once.
pub fn interrupt(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_interrupt = user.read(argument)?;
    let vector = u8::try_from(request.irq).map_err(|_| Errno::EINVAL)?;
    if context.vm.has_pic() {
        return Err(Errno::ENXIO);
    }
    if context.vm.has_local_apic() {
        return context
            .cpu()
            .acknowledge_interrupt(vector)
            .map(|()| 0)
            .map_err(|_| Errno::EEXIST);
    }
    deliver(context, vector).map_err(|_| Errno::EINVAL)?;
    Ok(0)
}

fn deliver(context: &mut VcpuContext<'_>, vector: u8) -> Outcome<()> {
    let Some(mut events) = context.cpu().state(Parts::All)?.events else {
        return Ok(());
    };
    events.interrupt_injected = true;
    events.interrupt_soft = false;
    events.interrupt_vector = vector;
    context.cpu().set_state(&CpuState {
        events: Some(events),
        ..CpuState::default()
    })
}

/// KVM_NMI.
pub fn nmi(context: &mut VcpuContext<'_>, _: User, _: u64) -> Answer {
    signalled(context.cpu().inject(Event::NMI))
}

/// KVM_SMI.
pub fn smi(context: &mut VcpuContext<'_>, _: User, _: u64) -> Answer {
    signalled(context.cpu().inject_smi())
}

fn signalled(outcome: Outcome<()>) -> Answer {
    outcome.map(|()| 0).map_err(|_| Errno::EINVAL)
}
