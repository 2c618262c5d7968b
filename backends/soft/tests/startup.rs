//! INIT and SIPI where VMX operation changes what they do (SDM Vol. 3C "Other Causes of VM Exits",
//! "Activity State", "Enabling and Entering VMX Operation").

mod common;

use common::bare::{HANDLER, put};
use common::nest::{Entry, L2, Nest, VMCALL};
use nvmx_core::cpu::Personality;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::x86::{CpuState, Event, Gpr, MpState};

const INIT_SIGNAL: u32 = 3;
const SIPI: u32 = 4;
const VMCALL_EXIT: u32 = 18;
const PREEMPTION_TIMER: u32 = 52;
/// JMP to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];
const WAIT_FOR_SIPI: u64 = 3;
const SHUTDOWN: u64 = 2;

/// A message to APIC 0, with this delivery mode and vector.
fn send(nest: &mut Nest, mode: u32, vector: u32) {
    let taken = nest
        .vm
        .signal_msi(0xfee0_0000, 1 << 14 | mode << 8 | vector);
    assert!(taken.expect("a bus"));
}

fn send_init(nest: &mut Nest) {
    send(nest, 5, 0);
}

fn send_sipi(nest: &mut Nest, vector: u32) {
    send(nest, 6, vector);
}

#[test]
fn init_exits_from_l2() {
    let mut nest = Nest::new(&SPIN);
    assert_eq!(nest.enter_for(100), Exit::Budget);
    send_init(&mut nest);
    assert_eq!(nest.resume(), Entry::Exit(INIT_SIGNAL));
    assert_eq!(nest.get(Field::GUEST_RIP), L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0);
    // It is gone: L2 runs again.
    assert_eq!(nest.enter_for(100), Exit::Budget);
}

#[test]
fn init_waits_in_root_operation_for_the_next_entry() {
    let mut nest = Nest::new(&VMCALL);
    nest.expect(VMCALL_EXIT, L2);
    send_init(&mut nest);
    assert_eq!(
        nest.vm.run(Budget::UNLIMITED).expect("runs"),
        Exit::Hlt,
        "blocked, L1 still halts"
    );
    nest.expect(INIT_SIGNAL, L2);
    nest.expect(VMCALL_EXIT, L2);
}

#[test]
fn init_that_waited_resets_the_processor_behind_vmxoff() {
    let mut nest = Nest::new(&VMCALL);
    nest.expect(VMCALL_EXIT, L2);
    send_init(&mut nest);
    // VMXOFF; an instruction that never runs.
    put(
        &mut nest.vm,
        HANDLER + 0x100,
        &[0x0f, 0x01, 0xc4, 0xff, 0xc3],
    );
    let mut regs = nest.regs();
    regs.rip = HANDLER + 0x100;
    regs.set(Gpr::Rbx, 7);
    nest.vm
        .set_state(&CpuState {
            regs: Some(regs),
            mp_state: Some(MpState::Runnable),
            ..CpuState::default()
        })
        .expect("taken");
    assert_eq!(
        nest.vm.run(Budget::instructions(1)).expect("runs"),
        Exit::Budget
    );
    let state = nest.vm.state(Parts::All).expect("state");
    let (regs, sregs) = (state.regs.expect("regs"), state.sregs.expect("sregs"));
    assert_eq!((regs.rip, regs.rflags, regs.get(Gpr::Rbx)), (0xfff0, 2, 0));
    assert_eq!((sregs.cs.selector, sregs.cs.base), (0xf000, 0xffff_0000));
    assert_eq!((sregs.cr0 & 1, sregs.cr4, sregs.efer), (0, 0, 0));
    assert_eq!(sregs.apic_base, 0xfee0_0900, "the bootstrap processor's");
    assert_eq!(state.mp_state, Some(MpState::Runnable));
}

#[test]
fn an_l2_that_waits_for_sipi_hears_nothing_else() {
    let mut nest = Nest::new(&VMCALL);
    nest.set(Field::GUEST_ACTIVITY_STATE, WAIT_FOR_SIPI);
    assert_eq!(nest.enter_for(100), Exit::Hlt, "asleep");
    nest.vm.inject(Event::NMI).expect("taken");
    send(&mut nest, 0, 0x55);
    assert_eq!(nest.vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
    send_sipi(&mut nest, 0x42);
    assert_eq!(nest.resume(), Entry::Exit(SIPI));
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x42);
    assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), WAIT_FOR_SIPI);
    assert_eq!(nest.get(Field::GUEST_RIP), L2);
}

#[test]
fn init_in_wait_for_sipi_is_lost_on_kvm_and_waits_on_silicon() {
    for (personality, next) in [
        (Personality::Kvm, VMCALL_EXIT),
        (Personality::Sdm, INIT_SIGNAL),
    ] {
        let mut nest = Nest::new(&VMCALL);
        nest.vm.set_personality(personality);
        nest.set(Field::GUEST_ACTIVITY_STATE, WAIT_FOR_SIPI);
        assert_eq!(nest.enter_for(100), Exit::Hlt, "asleep");
        send_init(&mut nest);
        assert_eq!(nest.vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
        send_sipi(&mut nest, 0x10);
        assert_eq!(nest.resume(), Entry::Exit(SIPI), "{personality:?}");
        nest.set(Field::GUEST_ACTIVITY_STATE, 0);
        nest.expect(next, L2);
    }
}

/// As KVM_GET_MP_STATE and KVM_SET_MP_STATE have it.
#[test]
fn a_sipi_that_waits_is_in_a_capture() {
    let waiting = || {
        let mut nest = Nest::new(&SPIN);
        nest.set_state(CpuState {
            mp_state: Some(MpState::InitReceived),
            ..CpuState::default()
        });
        nest
    };
    let mut nest = waiting();
    assert_eq!(nest.state().mp_state, Some(MpState::InitReceived));
    send_sipi(&mut nest, 0x12);
    let capture = nest.state();
    assert_eq!(capture.mp_state, Some(MpState::SipiReceived));
    let mut restored = waiting();
    restored.set_state(capture);
    for nest in [&mut nest, &mut restored] {
        // Nothing is there but zeroes: ADD [BX + SI], AL.
        let exit = nest.vm.run(Budget::instructions(1)).expect("runs");
        assert_eq!(exit, Exit::Budget);
        let sregs = nest.state().sregs.expect("sregs");
        assert_eq!((sregs.cs.selector, nest.regs().rip), (0x1200, 2));
    }
}

#[test]
fn sipi_is_lost_where_nobody_waits_for_it() {
    let mut nest = Nest::new(&VMCALL);
    send_sipi(&mut nest, 0x42);
    nest.expect(VMCALL_EXIT, L2);
    send_sipi(&mut nest, 0x42);
    nest.set(Field::GUEST_ACTIVITY_STATE, WAIT_FOR_SIPI);
    // Sent while L1 halted: nothing is left of it when L2 waits.
    assert_eq!(nest.vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
    assert_eq!(nest.enter_for(100), Exit::Hlt, "asleep");
}

#[test]
fn the_preemption_timer_wakes_from_hlt_and_not_from_wait_for_sipi() {
    const ACTIVATE: u32 = 1 << 6;
    for (activity, wakes) in [(1, true), (WAIT_FOR_SIPI, false)] {
        let mut nest = Nest::new(&VMCALL);
        nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, ACTIVATE);
        nest.set(Field::VMX_PREEMPTION_TIMER_VALUE, 1000);
        nest.set(Field::GUEST_ACTIVITY_STATE, activity);
        if wakes {
            assert_eq!(nest.enter(), Entry::Exit(PREEMPTION_TIMER));
        } else {
            assert_eq!(nest.enter_for(100), Exit::Hlt);
        }
    }
}

/// Shutdown is an activity that silicon offers (KVM does not).
#[test]
fn an_l2_in_shutdown_is_woken_by_nmi_and_init_and_not_by_interrupts() {
    const EXTERNAL: u32 = 1;
    const NMI: u32 = 1 << 3;
    for (signal, reason) in [("NMI", 0), ("INIT", INIT_SIGNAL)] {
        let mut nest = Nest::of_profile(Some("skylake-sp"), &VMCALL);
        nest.vm.set_personality(Personality::Sdm);
        nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, EXTERNAL | NMI);
        nest.set(Field::GUEST_ACTIVITY_STATE, SHUTDOWN);
        assert_eq!(nest.enter_for(100), Exit::Hlt, "asleep");
        nest.vm.set_interrupt_line(true).expect("a line");
        assert_eq!(nest.vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
        nest.vm.set_interrupt_line(false).expect("a line");
        match signal {
            "NMI" => nest.vm.inject(Event::NMI).expect("taken"),
            _ => send_init(&mut nest),
        }
        assert_eq!(nest.resume(), Entry::Exit(reason), "{signal}");
        assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), SHUTDOWN);
    }
}

/// A PIC's interrupt while L2 runs: with and without "acknowledge interrupt on exit", and through L2's
/// own IDT where L1 does not want it.
#[test]
fn a_pic_interrupts_l2() {
    const EXTERNAL: u32 = 1;
    const ACKNOWLEDGE: u32 = 1 << 15;
    for (exits, acknowledges) in [(true, false), (true, true), (false, false)] {
        let mut nest = Nest::new(&SPIN);
        if exits {
            nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, EXTERNAL);
        }
        if acknowledges {
            nest.on(Field::VM_EXIT_CONTROLS, ACKNOWLEDGE);
        }
        // Exits come whatever RFLAGS.IF says.
        let flags = if exits { 2 } else { 0x202 };
        nest.set(Field::GUEST_RFLAGS, flags);
        assert_eq!(nest.enter_for(100), Exit::Budget);
        nest.vm.set_interrupt_line(true).expect("a line");
        if exits && !acknowledges {
            assert_eq!(nest.resume(), Entry::Exit(1));
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO) >> 31, 0);
            continue;
        }
        let run = |nest: &mut Nest| nest.vm.run(Budget::instructions(100)).expect("runs");
        assert_eq!(run(&mut nest), Exit::InterruptWindow);
        nest.vm.acknowledge_interrupt(0x28).expect("taken");
        nest.vm.set_interrupt_line(false).expect("a line");
        if exits {
            assert_eq!(nest.resume(), Entry::Exit(1));
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0028);
        } else {
            // The handler returns to the loop.
            assert_eq!(run(&mut nest), Exit::Budget);
            assert_eq!(nest.regs().rip, L2);
        }
    }
}
