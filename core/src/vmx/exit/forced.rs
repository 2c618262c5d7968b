//! Leaving L2 without a VM exit: what KVM does when user space replaces nested state.

use super::{Left, host_state};
use crate::cpu::Cpu;
use crate::memory::GuestMemory;

/// Loads L1's host state with no exit information written and L2's state dropped (KVM:
/// `vmx_leave_nested`, which calls `nested_vmx_vmexit(vcpu, -1, 0, 0)`).
pub fn leave_nested(cpu: &mut Cpu, memory: &dyn GuestMemory) -> Left {
    cpu.vmx.guest_mode = false;
    cpu.vmx.run_pending = false;
    cpu.vmx.mtf_pending = false;
    cpu.vmx.preemption_timer_deadline = None;
    cpu.injected = None;
    let loaded = host_state::load(cpu, memory);
    Left {
        flush: loaded.flush,
        abort: loaded.abort,
        msrs: loaded.msrs,
    }
}
