//! Nested state of the processor: read as `KVM_GET_NESTED_STATE` gives it, set whole or not at all.

use crate::processor::Processor;
use nvmx_core::nested::NestedState;
use nvmx_core::nested::set_rules::{self, EntryCheck, Refused, SetContext, SetRefusal};
use nvmx_core::vcpu::Result;
use nvmx_core::vmx::Vmcs12;
use nvmx_core::vmx::entry;
use nvmx_core::vmx::entry::checks;
use nvmx_core::vmx::exit;
use nvmx_core::vmx::vmcs12::Layout;
use nvmx_core::x86::control::efer;
use nvmx_core::x86::cpuid;

/// `errno` where the bytes end too early.
const EFAULT: i32 = 14;
/// CPUID.1:ECX.VMX.
const CPUID_VMX: u32 = 1 << 5;

/// Reads the nested state. Writes L2's registers into the cached vmcs12, as KVM does, which no guest
/// can see.
pub(crate) fn get(processor: &mut Processor) -> NestedState {
    if processor.in_l2() {
        exit::save_guest_state(&mut processor.cpu);
    }
    NestedState::capture(&processor.cpu.vmx)
}

/// Sets the nested state if no rule refuses it; else the processor is as it was.
pub(crate) fn set(processor: &mut Processor, state: &NestedState) -> Result<()> {
    let mut plan = check(processor, state)?;
    plan.start_preemption_timer(processor.cpu.tsc.l1());
    let before = (processor.cpu.clone(), processor.apic.clone());
    if plan.leave_guest_first {
        let left = exit::leave_nested(&mut processor.cpu, &processor.ram);
        processor.left(&left);
    }
    let guest_mode = plan.vmx.guest_mode;
    processor.cpu.vmx = plan.vmx;
    if guest_mode && let Err(rule) = entry::resume_from_nested_state(&mut processor.cpu) {
        // Leaving L2 has gone through the APIC and the level: all of it goes back.
        (processor.cpu, processor.apic) = before;
        processor.level_changed();
        return Err(Refused {
            rule: SetRefusal::EntryFailed,
            detail: format!("{}: {}", rule.id, rule.text),
        }
        .into());
    }
    processor.pdptes_stale |= guest_mode;
    processor.level_changed();
    Ok(())
}

/// What the kernel answers to these bytes. Changes nothing.
pub(crate) fn answer(processor: &Processor, bytes: &[u8]) -> i32 {
    let Ok(state) = NestedState::from_bytes(bytes) else {
        // Shorter than the header: copying it faults.
        return -EFAULT;
    };
    check(processor, &state).map_or_else(|refused| refused.rule.answer().returned(), |_| 0)
}

/// What the kernel would answer, and what it would do. Changes nothing.
pub(crate) fn check(
    processor: &Processor,
    state: &NestedState,
) -> Result<set_rules::SetPlan, Refused> {
    let cpu = &processor.cpu;
    let entry_checks = |vmcs12: &Vmcs12, run_pending: bool| {
        let context = checks::Context {
            vmcs12,
            model: &cpu.model,
            memory: &processor.ram,
            current: state.vmcs12_pa(),
            l1_long_mode: cpu.sregs.efer & efer::LMA != 0,
            smm: cpu.smm,
        };
        checks::kvm_restore_checks(&context, run_pending).map_err(EntryCheck::from)
    };
    let context = SetContext {
        guest_has_vmx: cpuid::lookup(&cpu.model.cpuid, 1, 0)[2] & CPUID_VMX != 0,
        in_smm: cpu.smm,
        in_guest_mode: cpu.vmx.guest_mode,
        physical_address_width: cpu.model.physical_address_width,
        enlightened_vmcs_enabled: processor.enlightened_vmcs,
        layout: Layout::Linux6_1,
        entry_checks: &entry_checks,
    };
    set_rules::check(state, &context)
}
