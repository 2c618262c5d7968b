//! User space's debugger (KVM_SET_GUEST_DEBUG): its breakpoints are exits to it instead of exceptions of the
//! guest, at whatever level they come up (arch/x86/kvm/vmx/vmx.c, handle_exception_nmi).

use super::Processor;
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::{DebugRegs, Event, EventKind, Exception};

/// What a debugger waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Debugger {
    /// INT3 is an exit (`KVM_GUESTDBG_USE_SW_BP`).
    pub software: bool,
    /// These debug registers are in force instead of the guest's, and every #DB is an exit
    /// (`KVM_GUESTDBG_USE_HW_BP`).
    pub hardware: Option<DebugRegs>,
    /// The guest goes step by step: every #DB is an exit (`KVM_GUESTDBG_SINGLESTEP`).
    pub steps: bool,
    /// No interrupt, NMI or SMI comes in between (`KVM_GUESTDBG_BLOCKIRQ`).
    pub blocks_interrupts: bool,
}

impl Processor {
    /// The debug registers in force.
    #[inline]
    pub(crate) fn debug_registers(&self) -> &DebugRegs {
        self.debugger.hardware.as_ref().unwrap_or(&self.cpu.debug)
    }

    /// The exit of an event that is the debugger's.
    pub(super) fn taken_by_debugger(&self, event: &Event) -> Option<Exit> {
        let is_ours = match (event.kind, event.vector) {
            (EventKind::SoftwareException, Exception::BP) => self.debugger.software,
            (
                EventKind::HardwareException | EventKind::PrivilegedSoftwareException,
                Exception::DB,
            ) => self.debugger.hardware.is_some() || self.debugger.steps,
            _ => false,
        };
        is_ours.then_some(Exit::Debug {
            vector: event.vector,
            payload: event.payload,
        })
    }
}
