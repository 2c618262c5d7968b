//! What does not fit together in a snapshot, or explains why its guest hangs. Each finding names the
//! values that it rests on.

use nvmx_core::nested::{Flags, NestedState, SmmFlags};
use nvmx_core::vmx::controls::{PinBased, Primary};
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_core::x86::control::{cr4, rflags};
use nvmx_core::x86::{CpuState, msr};

/// Everything that we find.
pub(super) fn of(cpu: &CpuState, nested: Option<&NestedState>) -> Vec<String> {
    let mut found = Vec::new();
    let Some(nested) = nested else { return found };
    let vmcs12 = nested.vmcs12();
    if nested.guest_mode() {
        match vmcs12 {
            Some(vmcs12) => level_mix(cpu, vmcs12, &mut found),
            None => found.push("guest mode is set, but there is no vmcs12".into()),
        }
    }
    if nested.flags().contains(Flags::RUN_PENDING) && !nested.guest_mode() {
        found.push("RUN_PENDING without GUEST_MODE: KVM_SET_NESTED_STATE answers EINVAL".into());
    }
    in_smm(cpu, nested, &mut found);
    if nested.vmxon_pa().is_some()
        && !nested.smm().contains(SmmFlags::VMXON)
        && let Some(sregs) = &cpu.sregs
        && !nested.guest_mode()
        && sregs.cr4 & cr4::VMXE == 0
    {
        found.push(format!(
            "VMX operation with CR4.VMXE clear (CR4 {:#x})",
            sregs.cr4
        ));
    }
    time(cpu, nested, &mut found);
    if nested.guest_mode()
        && let Some(vmcs12) = vmcs12
    {
        asleep(cpu, vmcs12, &mut found);
    }
    found
}

/// While L2 runs, KVM's registers are L2's: other values mean that two levels were mixed.
fn level_mix(cpu: &CpuState, vmcs12: &Vmcs12, found: &mut Vec<String>) {
    let mut compare = |name: &str, value: u64, field: Field| {
        if value != vmcs12.get(field) {
            found.push(format!(
                "{name} is {value:#x}, but {field} is {:#x}: the registers may be of another level or instant than the vmcs12",
                vmcs12.get(field)
            ));
        }
    };
    if let Some(regs) = &cpu.regs {
        compare("rip", regs.rip, Field::GUEST_RIP);
        compare("rsp", regs.gpr[4], Field::GUEST_RSP);
    }
    if let Some(sregs) = &cpu.sregs {
        compare("cr3", sregs.cr3, Field::GUEST_CR3);
    }
}

fn in_smm(cpu: &CpuState, nested: &NestedState, found: &mut Vec<String>) {
    let Some(events) = &cpu.events else { return };
    if nested.smm().bits() != 0 && !events.smm {
        found.push("the nested state speaks of SMM, the vCPU is not in SMM: KVM_SET_NESTED_STATE answers EINVAL".into());
    }
}

/// L1's deadlines against L1's TSC: what hangs when the levels' clocks are mixed.
fn time(cpu: &CpuState, nested: &NestedState, found: &mut Vec<String>) {
    let Some(msrs) = &cpu.msrs else { return };
    let Some(&tsc) = msrs.get(&msr::IA32_TIME_STAMP_COUNTER) else {
        return;
    };
    if let Some(deadline) = nested.preemption_timer_deadline() {
        let deadline = deadline.wrapping_shl(5);
        if deadline < tsc {
            found.push(format!(
                "the preemption-timer deadline {deadline:#x} lies {} ticks before L1's TSC {tsc:#x}: kernels that compute the rest unsigned lose the timer",
                tsc - deadline
            ));
        }
    }
    let Some(&deadline) = msrs.get(&msr::IA32_TSC_DEADLINE).filter(|d| **d != 0) else {
        return;
    };
    let offset = nested
        .vmcs12()
        .filter(|vmcs| {
            Primary::from_bits_retain(vmcs.get32(Field::CPU_BASED_VM_EXEC_CONTROL))
                .contains(Primary::USE_TSC_OFFSETTING)
        })
        .map_or(0, |vmcs| vmcs.get(Field::TSC_OFFSET));
    let away = deadline.wrapping_sub(tsc) as i64;
    let l2_view = deadline.wrapping_sub(tsc.wrapping_add(offset)) as i64;
    if nested.guest_mode() && offset != 0 && (away < 0) != (l2_view < 0) {
        found.push(format!(
            "L1's TSC deadline {deadline:#x} is {away:+} ticks from L1's TSC, but {l2_view:+} from L2's (offset {:+}): whoever compares it with L2's TSC loses or forges the timer interrupt",
            offset as i64
        ));
    }
    if let Some(khz) = cpu.tsc_khz.filter(|khz| *khz != 0)
        && away > i64::from(khz) * 1000 * 3600
    {
        found.push(format!(
            "L1's TSC deadline {deadline:#x} is more than an hour away from L1's TSC {tsc:#x}"
        ));
    }
}

/// L2 waits: what can wake it?
fn asleep(cpu: &CpuState, vmcs12: &Vmcs12, found: &mut Vec<String>) {
    use nvmx_core::x86::MpState;
    let halted =
        cpu.mp_state == Some(MpState::Halted) || vmcs12.get(Field::GUEST_ACTIVITY_STATE) == 1;
    if !halted {
        return;
    }
    let pin = PinBased::from_bits_retain(vmcs12.get32(Field::PIN_BASED_VM_EXEC_CONTROL));
    let interrupts = vmcs12.get(Field::GUEST_RFLAGS) & rflags::IF != 0;
    if pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING) {
        found.push("L2 is halted; an external interrupt would exit to L1".into());
    } else if interrupts {
        found.push("L2 is halted; an external interrupt would be delivered to it".into());
    } else {
        found.push("L2 is halted with RFLAGS.IF clear and without external-interrupt exiting: only NMI, SMI, INIT or a timer exit can wake it".into());
    }
}
