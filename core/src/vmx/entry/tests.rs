//! Entries: what they load, how they fail, and the way back.

use super::*;
use crate::cpu::Model;
use crate::memory::VecMemory;
use crate::personality::Personality;
use crate::vmx::controls::{PinBased, Primary};
use crate::vmx::vmcs12::LaunchState;
use crate::x86::{Event, Gpr};
use std::sync::Arc;
use test_support as support;

const VALID: u64 = 1 << 31;

fn start() -> (Cpu, VecMemory) {
    (support::cpu_with_vmcs(), support::memory())
}

fn launch(cpu: &mut Cpu, memory: &VecMemory) -> EntryOutcome {
    launch_or_resume(cpu, memory, EntryKind::Launch)
}

fn or(cpu: &mut Cpu, field: Field, bits: u64) {
    let value = cpu.vmx.vmcs12.get(field) | bits;
    cpu.vmx.vmcs12.set(field, value);
}

#[test]
fn l1_to_l2_and_back_is_a_fixed_point() {
    let (mut cpu, memory) = start();
    let before = cpu.vmx.vmcs12.clone();
    let outcome = launch(&mut cpu, &memory);
    assert_eq!(outcome, EntryOutcome::Entered(Entered::default()));
    assert!(cpu.vmx.guest_mode && cpu.vmx.run_pending);
    assert_eq!(cpu.regs.rip, support::L2_RIP);
    assert_eq!(cpu.regs.get(Gpr::Rsp), 0x50_0000);
    assert_eq!(cpu.sregs.efer, efer::LME | efer::LMA);

    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert_eq!(cpu.vmx.vmcs12.launch_state(), LaunchState::Launched);
    let information = [Field::VM_EXIT_REASON, Field::VM_EXIT_INSTRUCTION_LEN];
    for field in Field::all().filter(|f| !information.contains(f)) {
        assert_eq!(cpu.vmx.vmcs12.get(field), before.get(field), "{field}");
    }
    // And again by VMRESUME.
    let outcome = launch_or_resume(&mut cpu, &memory, EntryKind::Resume);
    assert_eq!(outcome, EntryOutcome::Entered(Entered::default()));
}

#[test]
fn kvm_cannot_enter_with_an_apic_access_page_that_is_no_ram() {
    for (personality, page, unbacked) in [
        (Personality::Kvm, 0x7_0000_0000, true),
        (Personality::Sdm, 0x7_0000_0000, false),
        (Personality::Kvm, 0x1000, false),
    ] {
        let (mut cpu, memory) = start();
        Arc::make_mut(&mut cpu.model).personality = personality;
        let secondary = u64::from(Secondary::VIRTUALIZE_APIC_ACCESSES.bits());
        or(
            &mut cpu,
            Field::CPU_BASED_VM_EXEC_CONTROL,
            u64::from(Primary::ACTIVATE_SECONDARY_CONTROLS.bits()),
        );
        or(&mut cpu, Field::SECONDARY_VM_EXEC_CONTROL, secondary);
        cpu.vmx.vmcs12.set(Field::APIC_ACCESS_ADDR, page);
        let rip = cpu.regs.rip;
        let outcome = launch(&mut cpu, &memory);
        assert_eq!(outcome == EntryOutcome::Unbacked, unbacked, "{outcome:?}");
        assert_eq!(cpu.regs.rip == rip && !cpu.vmx.guest_mode, unbacked);
    }
}

#[test]
fn launch_conditions_in_order() {
    use InstructionError as E;
    type Change = fn(&mut Cpu);
    let rows: [(Change, EntryKind, EntryOutcome); 6] = [
        (
            |c| c.vmx.current = None,
            EntryKind::Launch,
            EntryOutcome::FailInvalid,
        ),
        (
            |c| c.vmx.vmcs12.set_shadow(true),
            EntryKind::Launch,
            EntryOutcome::FailInvalid,
        ),
        (
            |c| c.interruptibility = Interruptibility::MOV_SS,
            EntryKind::Resume,
            EntryOutcome::FailValid(E::BLOCKED_BY_MOV_SS),
        ),
        (
            |c| c.vmx.vmcs12.set_launch_state(LaunchState::Launched),
            EntryKind::Launch,
            EntryOutcome::FailValid(E::VMLAUNCH_NOT_CLEAR),
        ),
        (
            |_| (),
            EntryKind::Resume,
            EntryOutcome::FailValid(E::VMRESUME_NOT_LAUNCHED),
        ),
        (
            |c| c.vmx.vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, 0),
            EntryKind::Launch,
            EntryOutcome::FailValid(E::INVALID_CONTROL_FIELD),
        ),
    ];
    for (change, kind, expected) in rows {
        let (mut cpu, memory) = start();
        change(&mut cpu);
        let rip = cpu.regs.rip;
        assert_eq!(launch_or_resume(&mut cpu, &memory, kind), expected);
        assert!(!cpu.vmx.guest_mode && !cpu.vmx.run_pending);
        assert_eq!(cpu.regs.rip, rip);
    }
}

#[test]
fn a_bad_host_state_is_error_8() {
    let (mut cpu, memory) = start();
    cpu.vmx.vmcs12.set(Field::HOST_CS_SELECTOR, 0);
    let expected = EntryOutcome::FailValid(InstructionError::INVALID_HOST_STATE_FIELD);
    assert_eq!(launch(&mut cpu, &memory), expected);
    // L1 in compatibility or 32-bit mode with "host address-space size".
    let (mut cpu, memory) = start();
    cpu.sregs.efer &= !efer::LMA;
    assert_eq!(launch(&mut cpu, &memory), expected);
}

#[test]
fn a_failed_entry_exits_with_host_state_and_two_fields() {
    type Change = fn(&mut Cpu);
    // What KVM finds in software before and while it loads, then what the processor finds.
    let rows: [(Change, u64); 4] = [
        (|c| c.vmx.vmcs12.set(Field::GUEST_CR4, 0), 0),
        (
            |c| {
                c.vmx
                    .vmcs12
                    .set(Field::VMCS_LINK_POINTER, support::FREE_PAGE.0)
            },
            4,
        ),
        (|c| c.vmx.vmcs12.set(Field::GUEST_CR3, 1 << 45), 0),
        (|c| c.vmx.vmcs12.set(Field::GUEST_RFLAGS, 0), 0),
    ];
    for personality in [Personality::Kvm, Personality::Sdm] {
        for (change, qualification) in rows {
            let (mut cpu, memory) = start();
            cpu.model = Arc::new(Model {
                personality,
                ..support::model()
            });
            change(&mut cpu);
            cpu.vmx.vmcs12.set(Field::VM_EXIT_INTR_INFO, 0x1234);
            let before = cpu.vmx.vmcs12.clone();
            let EntryOutcome::Failed { exit, left } = launch(&mut cpu, &memory) else {
                panic!("no failed entry");
            };
            assert_eq!(exit.reason.0, 0x8000_0021);
            assert_eq!(exit.qualification, qualification);
            assert_eq!(left.abort, None);
            assert_eq!(cpu.regs.rip, support::HOST_RIP);
            assert!(!cpu.vmx.guest_mode && !cpu.vmx.run_pending);
            assert_eq!(cpu.vmx.vmcs12.launch_state(), LaunchState::Clear);
            let changed = [Field::VM_EXIT_REASON, Field::EXIT_QUALIFICATION];
            for field in Field::all().filter(|f| !changed.contains(f)) {
                assert_eq!(cpu.vmx.vmcs12.get(field), before.get(field), "{field}");
            }
        }
    }
}

#[test]
fn msr_loading_fails_at_an_entry_counted_from_one() {
    let (mut cpu, memory) = start();
    let list = support::FREE_PAGE;
    memory.write_u32(list, crate::x86::msr::IA32_LSTAR).unwrap();
    memory.write_u64(L1Phys(list.0 + 8), 0x4444).unwrap();
    memory
        .write_u32(L1Phys(list.0 + 16), crate::x86::msr::IA32_GS_BASE)
        .unwrap();
    cpu.vmx.vmcs12.set(Field::VM_ENTRY_MSR_LOAD_ADDR, list.0);
    cpu.vmx.vmcs12.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 2);
    let EntryOutcome::Failed { exit, .. } = launch(&mut cpu, &memory) else {
        panic!("no failed entry");
    };
    assert_eq!((exit.reason.0, exit.qualification), (0x8000_0022, 2));
    assert_eq!(cpu.msrs.lstar, 0x4444);
}

#[test]
fn a_control_that_only_the_processor_checks_is_error_7() {
    let (mut cpu, memory) = start();
    or(
        &mut cpu,
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::USE_TPR_SHADOW.bits().into(),
    );
    cpu.vmx.vmcs12.set(Field::TPR_THRESHOLD, 0x10);
    let expected = EntryOutcome::FailValid(InstructionError::INVALID_CONTROL_FIELD);
    assert_eq!(launch(&mut cpu, &memory), expected);
}

#[test]
fn events_are_injected() {
    let (mut cpu, memory) = start();
    let vmcs12 = &mut cpu.vmx.vmcs12;
    vmcs12.set(
        Field::VM_ENTRY_INTR_INFO_FIELD,
        VALID | 3 << 8 | 1 << 11 | 14,
    );
    vmcs12.set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, 4);
    assert!(matches!(
        launch(&mut cpu, &memory),
        EntryOutcome::Entered(_)
    ));
    let event = cpu.injected.unwrap();
    assert_eq!((event.vector, event.error_code), (14, Some(4)));
    // The valid bit goes with the exit, not with the entry.
    assert_ne!(
        cpu.vmx.vmcs12.get(Field::VM_ENTRY_INTR_INFO_FIELD) & VALID,
        0
    );
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert_eq!(
        cpu.vmx.vmcs12.get(Field::VM_ENTRY_INTR_INFO_FIELD),
        3 << 8 | 1 << 11 | 14
    );

    let (mut cpu, memory) = start();
    cpu.vmx
        .vmcs12
        .set(Field::VM_ENTRY_INTR_INFO_FIELD, VALID | 7 << 8);
    let EntryOutcome::Entered(entered) = launch(&mut cpu, &memory) else {
        panic!("no entry");
    };
    assert!(entered.mtf_exit);
}

#[test]
fn an_entry_to_hlt_halts_unless_something_wakes_it() {
    for (information, primary, rflags, activity, pending) in [
        (0, Primary::empty(), 2, Activity::Hlt, false),
        (
            0,
            Primary::INTERRUPT_WINDOW_EXITING,
            2,
            Activity::Hlt,
            false,
        ),
        (
            0,
            Primary::INTERRUPT_WINDOW_EXITING,
            0x202,
            Activity::Active,
            true,
        ),
        (
            VALID | 2 << 8 | 2,
            Primary::empty(),
            2,
            Activity::Active,
            true,
        ),
    ] {
        let (mut cpu, memory) = start();
        cpu.vmx.vmcs12.set(Field::GUEST_ACTIVITY_STATE, 1);
        cpu.vmx.vmcs12.set(Field::GUEST_RFLAGS, rflags);
        cpu.vmx
            .vmcs12
            .set(Field::VM_ENTRY_INTR_INFO_FIELD, information);
        or(
            &mut cpu,
            Field::CPU_BASED_VM_EXEC_CONTROL,
            primary.bits().into(),
        );
        let outcome = launch(&mut cpu, &memory);
        assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
        assert_eq!((cpu.activity, cpu.vmx.run_pending), (activity, pending));
    }
}

#[test]
fn the_preemption_timer_counts_l1s_tsc() {
    let (mut cpu, memory) = start();
    let pin = u64::from(PinBased::ACTIVATE_PREEMPTION_TIMER.bits());
    or(&mut cpu, Field::PIN_BASED_VM_EXEC_CONTROL, pin);
    or(&mut cpu, Field::VM_EXIT_CONTROLS, 1 << 22);
    cpu.vmx.vmcs12.set(Field::VMX_PREEMPTION_TIMER_VALUE, 100);
    cpu.tsc.l1_offset = 3200;
    launch(&mut cpu, &memory);
    // 3200 / 32 + 100, with a rate of 5.
    assert_eq!(cpu.vmx.preemption_timer_deadline, Some(200));
    assert_eq!(preemption_timer_expiry(&cpu), Some(6400));
    cpu.tsc.ticks = 32 * 40;
    assert_eq!(preemption_timer_value(&cpu), Some(60));
    assert!(!preemption_timer_expired(&cpu));
    cpu.vmx.run_pending = false;
    let mut later = cpu.clone();
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert_eq!(cpu.vmx.vmcs12.get(Field::VMX_PREEMPTION_TIMER_VALUE), 60);
    assert_eq!(cpu.vmx.preemption_timer_deadline, None);
    later.tsc.ticks = 32 * 101;
    assert!(preemption_timer_expired(&later));
    leave(
        &mut later,
        &memory,
        &VmExit::new(super::super::exit::ExitReason::PREEMPTION_TIMER),
    );
    assert_eq!(later.vmx.vmcs12.get(Field::VMX_PREEMPTION_TIMER_VALUE), 0);
}

#[test]
fn l2s_tsc_is_scaled_then_offset() {
    let (mut cpu, memory) = start();
    cpu.tsc.ticks = 1000;
    or(
        &mut cpu,
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::USE_TSC_OFFSETTING.bits().into(),
    );
    cpu.vmx.vmcs12.set(Field::TSC_OFFSET, 5_u64.wrapping_neg());
    assert_eq!(l2_tsc(&cpu), 1000);
    launch(&mut cpu, &memory);
    assert_eq!(l2_tsc(&cpu), 995);
    or(
        &mut cpu,
        Field::SECONDARY_VM_EXEC_CONTROL,
        Secondary::USE_TSC_SCALING.bits().into(),
    );
    cpu.vmx.vmcs12.set(Field::TSC_MULTIPLIER, 3 << 47);
    assert_eq!(l2_tsc(&cpu), 1495);
}

#[test]
fn the_shadow_vmcs12_is_cached_and_written_back() {
    let (mut cpu, memory) = start();
    let shadowing = u64::from(Secondary::VMCS_SHADOWING.bits());
    or(&mut cpu, Field::SECONDARY_VM_EXEC_CONTROL, shadowing);
    cpu.vmx
        .vmcs12
        .set(Field::VMCS_LINK_POINTER, support::SHADOW_VMCS.0);
    let outcome = launch(&mut cpu, &memory);
    assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
    assert!(cpu.vmx.shadow_vmcs12.is_shadow());
    cpu.vmx.shadow_vmcs12.set(Field::GUEST_RIP, 0x1234);
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    // guest_rip is at 544.
    assert_eq!(
        memory.read_u64(L1Phys(support::SHADOW_VMCS.0 + 544)),
        Ok(0x1234)
    );
}

#[test]
fn a_restored_l2_goes_on() {
    let (mut cpu, memory) = start();
    launch(&mut cpu, &memory);
    cpu.vmx.run_pending = false;
    cpu.regs.rip = 0x1234;
    crate::vmx::exit::save_guest_state(&mut cpu);

    for run_pending in [false, true] {
        let mut restored = support::cpu_with_vmcs();
        restored.vmx.vmcs12.copy_from(&cpu.vmx.vmcs12);
        restored
            .vmx
            .vmcs12
            .set(Field::VM_ENTRY_INTR_INFO_FIELD, VALID | 2 << 8 | 2);
        restored.vmx.run_pending = run_pending;
        let waiting = Event::interrupt(0x33);
        restored.injected = Some(waiting);
        resume_from_nested_state(&mut restored).unwrap();
        assert!(restored.vmx.guest_mode);
        assert_eq!(restored.regs.rip, 0x1234);
        // Only an entry that is pending injects; else user space's events stay.
        let expected = if run_pending { Event::NMI } else { waiting };
        assert_eq!(restored.injected, Some(expected));
        crate::vmx::exit::save_guest_state(&mut restored);
        assert_eq!(restored.vmx.vmcs12.get(Field::GUEST_RIP), 0x1234);
    }

    let mut broken = support::cpu_with_vmcs();
    broken.vmx.vmcs12.set(Field::GUEST_CR3, 1 << 45);
    let rule = resume_from_nested_state(&mut broken).unwrap_err();
    assert_eq!(rule.id, "guest.cr3");
    assert!(!broken.vmx.guest_mode);
}
