//! Events and activity: KVM_{GET,SET}_{VCPU_EVENTS,MP_STATE}, KVM_X86_SETUP_MCE, KVM_X86_SET_MCE
//! (arch/x86/kvm/x86.c).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{kvm_mp_state, kvm_vcpu_events, kvm_x86_mce};
use nvmx_abi::EventFeatures;
use nvmx_abi::events as abi;
use nvmx_core::machine_check::MachineCheck;
use nvmx_core::x86::{CpuState, Exception, MpState};

fn features(context: &VcpuContext<'_>) -> EventFeatures {
    let options = &context.vm.options;
    EventFeatures {
        payload: options.exception_payload,
        triple_fault: options.triple_fault_event,
        smm: true,
    }
}

/// KVM_GET_VCPU_EVENTS.
pub fn get(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let events = events(context)?;
    user.write(argument, &events)?;
    Ok(0)
}

/// KVM_SET_VCPU_EVENTS.
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let events = user.read(argument)?;
    put(context, &events)?;
    Ok(0)
}

/// The events.
pub fn events(context: &mut VcpuContext<'_>) -> Result<kvm_vcpu_events, Errno> {
    context.apply_payload()?;
    let features = features(context);
    let events = context.model().events();
    Ok(abi::answer(&events, features))
}

/// Sets them.
pub fn put(context: &mut VcpuContext<'_>, kernel: &kvm_vcpu_events) -> Result<(), Errno> {
    let features = features(context);
    let before = context.model().events();
    let waits = context.model().mp_state() == MpState::InitReceived;
    let events = abi::apply(kernel, &before, features, waits)?;
    context.set_state(&CpuState {
        events: Some(events),
        ..CpuState::default()
    })
}

impl VcpuContext<'_> {
    /// Without KVM_CAP_EXCEPTION_PAYLOAD what an exception that waits does to CR2 and DR6 shows before anybody
    /// looks (`kvm_handle_exception_payload_quirk`).
    pub(super) fn apply_payload(&mut self) -> Result<(), Errno> {
        if self.vm.options.exception_payload {
            return Ok(());
        }
        let events = self.model().events();
        let Some(payload) = events
            .exception_payload
            .filter(|_| events.exception_pending)
        else {
            return Ok(());
        };
        match events.exception_vector {
            Exception::PF => {
                let state = self.state(nvmx_core::vcpu::Parts::Registers)?;
                let mut sregs = state.sregs.ok_or(Errno::EIO)?;
                sregs.cr2 = payload;
                self.set_state(&CpuState {
                    sregs: Some(sregs),
                    ..CpuState::default()
                })
            }
            Exception::DB => {
                /// Breakpoints and BD, BS, BT; RTM is active low.
                const TRAPS: u64 = 0xf;
                const RTM: u64 = 1 << 16;
                const ENABLED: u64 = 1 << 12;
                let mut debug = self.model().debug_registers();
                debug.dr6 = debug.dr6 & !TRAPS | RTM;
                debug.dr6 = (debug.dr6 & !(payload & RTM) | payload & !RTM) & !ENABLED;
                self.set_state(&CpuState {
                    debug: Some(debug),
                    ..CpuState::default()
                })
            }
            _ => Ok(()),
        }
    }
}

/// KVM_GET_MP_STATE.
pub fn get_mp_state(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let mut state = context.model().mp_state();
    if state == MpState::InitReceived && !context.record().was_reset_by_init {
        // Never heard of since RESET.
        state = MpState::Uninitialized;
    }
    let kernel = kvm_mp_state {
        mp_state: state as u32,
    };
    user.write(argument, &kernel)?;
    Ok(0)
}

/// KVM_SET_MP_STATE: without a local APIC of ours a vCPU runs, and nothing else.
pub fn set_mp_state(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let kernel: kvm_mp_state = user.read(argument)?;
    let state = MpState::from_kernel(kernel.mp_state).ok_or(Errno::EINVAL)?;
    if state != MpState::Runnable && !context.vm.has_local_apic() {
        return Err(Errno::EINVAL);
    }
    let waits = matches!(state, MpState::InitReceived | MpState::SipiReceived);
    let events = context.model().events();
    if waits && (events.smm || events.smi_pending || context.model().blocks_init()) {
        return Err(Errno::EINVAL);
    }
    context.record().was_reset_by_init = waits;
    context.set_state(&CpuState {
        mp_state: Some(state),
        ..CpuState::default()
    })?;
    Ok(0)
}

/// IA32_MCG_CAP that the model can have: IA32_MCG_CTL, and software recovery.
pub const MCG_CAPABILITIES: u64 = 1 << 8 | 1 << 24;

/// KVM_X86_SETUP_MCE.
pub fn set_up_machine_checks(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let capabilities: u64 = user.read(argument)?;
    // The number of extended registers says nothing (bits 23 to 16).
    let capabilities = capabilities & !0x00ff_0000;
    if context.model().set_up_machine_checks(capabilities) {
        Ok(0)
    } else {
        Err(Errno::EINVAL)
    }
}

/// KVM_X86_SET_MCE.
pub fn set_machine_check(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let kernel: kvm_x86_mce = user.read(argument)?;
    let error = MachineCheck {
        bank: kernel.bank,
        status: kernel.status,
        global_status: kernel.mcg_status,
        address: kernel.addr,
        misc: kernel.misc,
    };
    context
        .cpu()
        .inject_machine_check(&error)
        .map(|()| 0)
        .map_err(|_| Errno::EINVAL)
}
