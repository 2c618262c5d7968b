//! Time of L2: TSC offset and scaling (SDM Vol. 3C "Changes to Instruction Behavior in VMX Non-Root
//! Operation"), the VMX-preemption timer ("VMX-Preemption Timer").

use super::{active_secondary, exit_controls, pin_based, primary};
use crate::cpu::Cpu;
use crate::vmx::Field;
use crate::vmx::capability::Capability;
use crate::vmx::controls::{ExitControls, PinBased, Primary, Secondary};

/// Fraction bits of the TSC multiplier.
const TSC_MULTIPLIER_FRACTION: u32 = 48;

/// What RDTSC reads at the current level: in L2, L1's TSC times the multiplier (48 fraction bits)
/// plus the offset, as far as L1 uses them.
#[must_use]
pub fn l2_tsc(cpu: &Cpu) -> u64 {
    let tsc = cpu.tsc.l1();
    let vmcs12 = &cpu.vmx.vmcs12;
    if !cpu.vmx.guest_mode || !primary(vmcs12).contains(Primary::USE_TSC_OFFSETTING) {
        return tsc;
    }
    let scaled = if active_secondary(vmcs12).contains(Secondary::USE_TSC_SCALING) {
        let product = u128::from(tsc) * u128::from(vmcs12.get(Field::TSC_MULTIPLIER));
        (product >> TSC_MULTIPLIER_FRACTION) as u64
    } else {
        tsc
    };
    scaled.wrapping_add(vmcs12.get(Field::TSC_OFFSET))
}

/// L1's TSC in units of the VMX-preemption timer.
fn timer_now(cpu: &Cpu) -> u64 {
    cpu.tsc.l1() >> Capability::from(&*cpu.model).preemption_timer_rate()
}

/// Starts the timer at VM entry; a deadline that is set already (it came with a snapshot) stays.
pub(super) fn start_preemption_timer(cpu: &mut Cpu) {
    if !pin_based(&cpu.vmx.vmcs12).contains(PinBased::ACTIVATE_PREEMPTION_TIMER) {
        cpu.vmx.preemption_timer_deadline = None;
        return;
    }
    if cpu.vmx.preemption_timer_deadline.is_none() {
        let value = cpu.vmx.vmcs12.get(Field::VMX_PREEMPTION_TIMER_VALUE);
        cpu.vmx.preemption_timer_deadline = Some(timer_now(cpu).wrapping_add(value));
    }
}

/// What is left of L2's VMX-preemption timer, in its own units; `None` if it does not run.
#[must_use]
pub fn preemption_timer_value(cpu: &Cpu) -> Option<u32> {
    let deadline = cpu.vmx.preemption_timer_deadline?;
    let left = deadline.saturating_sub(timer_now(cpu));
    Some(u32::try_from(left).unwrap_or(u32::MAX))
}

/// Whether L2's VMX-preemption timer has counted down to zero.
#[must_use]
pub fn preemption_timer_expired(cpu: &Cpu) -> bool {
    cpu.vmx.guest_mode && preemption_timer_value(cpu) == Some(0)
}

/// L1's TSC at which the timer expires; `None` if it does not run.
#[must_use]
pub fn preemption_timer_expiry(cpu: &Cpu) -> Option<u64> {
    let rate = Capability::from(&*cpu.model).preemption_timer_rate();
    let deadline = cpu.vmx.preemption_timer_deadline?;
    Some(deadline.saturating_mul(1 << rate))
}

/// The value that an exit saves, if it saves one. KVM saves none before L2 has run.
pub(crate) fn preemption_timer_to_save(cpu: &Cpu) -> Option<u32> {
    let saves = exit_controls(&cpu.vmx.vmcs12).contains(ExitControls::SAVE_PREEMPTION_TIMER_VALUE);
    if saves && !cpu.vmx.run_pending {
        preemption_timer_value(cpu)
    } else {
        None
    }
}
