//! What waits at one boundary of L2 happens in the manual's order (SDM Vol. 3A "Priority Among
//! Concurrent Events", Vol. 3C "Other Causes of VM Exits", "Monitor Trap Flag", "VM Exits Induced by the
//! TPR Threshold", "Virtual-Interrupt Delivery"): everything at once, and then less by the first.

mod common;

use common::nest::*;
use common::virtual_apic::*;
use nvmx_core::vcpu::Vcpu;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{PinBased, Primary, Secondary};
use nvmx_core::vmx::exit::priority;
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{CpuState, Event};

const OPEN: u64 = 2 | rflags::IF;
const MOV_SS: u64 = 2;
const STI: u64 = 1;
/// An injected pending MTF VM exit: "other event" with vector 0.
const PENDING_MTF: u64 = 1 << 31 | 7 << 8;
const SINGLE_STEP: u64 = 1 << 14;
/// The vector of the virtual interrupt, and of L1's.
const VIRTUAL: u8 = 0x55;
const EXTERNAL: u8 = 0x99;

/// A cause: what exits for it, and how it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Threshold,
    MonitorTrap,
    Debug,
    Timer,
    NmiWindow,
    Nmi,
    InterruptWindow,
    /// Delivered, not exited for.
    VirtualInterrupt,
    External,
}

impl Cause {
    fn arrange(self, nest: &mut Nest) {
        use Field as F;
        match self {
            Self::Threshold => {
                nest.set(F::TPR_THRESHOLD, 5);
                nest.set_apic(0x80, 0x40);
            }
            Self::MonitorTrap => nest.set(F::VM_ENTRY_INTR_INFO_FIELD, PENDING_MTF),
            Self::Debug => {
                nest.set(F::GUEST_PENDING_DBG_EXCEPTIONS, SINGLE_STEP);
                nest.on(F::EXCEPTION_BITMAP, 1 << 1);
            }
            Self::Timer => {
                nest.on(
                    F::PIN_BASED_VM_EXEC_CONTROL,
                    PinBased::ACTIVATE_PREEMPTION_TIMER.bits(),
                );
                nest.set(F::VMX_PREEMPTION_TIMER_VALUE, 0);
            }
            Self::NmiWindow => nest.on(
                F::CPU_BASED_VM_EXEC_CONTROL,
                Primary::NMI_WINDOW_EXITING.bits(),
            ),
            Self::Nmi => nest.vm.inject(Event::NMI).expect("taken"),
            Self::InterruptWindow => nest.on(
                F::CPU_BASED_VM_EXEC_CONTROL,
                Primary::INTERRUPT_WINDOW_EXITING.bits(),
            ),
            Self::VirtualInterrupt => {
                nest.set_vector(0x200, VIRTUAL);
                nest.set(F::GUEST_INTR_STATUS, VIRTUAL.into());
            }
            Self::External => {
                nest.on(
                    F::PIN_BASED_VM_EXEC_CONTROL,
                    PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
                );
                nest.vm.inject(Event::interrupt(EXTERNAL)).expect("taken");
            }
        }
    }

    fn end(self, nest: &mut Nest) {
        use Field as F;
        match self {
            Self::Threshold => nest.set(F::TPR_THRESHOLD, 0),
            // Injected once, taken once.
            Self::MonitorTrap | Self::Nmi | Self::VirtualInterrupt => {}
            Self::Debug => nest.set(F::GUEST_PENDING_DBG_EXCEPTIONS, 0),
            Self::Timer => nest.off(
                F::PIN_BASED_VM_EXEC_CONTROL,
                PinBased::ACTIVATE_PREEMPTION_TIMER.bits(),
            ),
            Self::NmiWindow => nest.off(
                F::CPU_BASED_VM_EXEC_CONTROL,
                Primary::NMI_WINDOW_EXITING.bits(),
            ),
            Self::InterruptWindow => nest.off(
                F::CPU_BASED_VM_EXEC_CONTROL,
                Primary::INTERRUPT_WINDOW_EXITING.bits(),
            ),
            Self::External => nest.off(
                F::PIN_BASED_VM_EXEC_CONTROL,
                PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
            ),
        }
    }

    /// Its row in the table of priorities.
    fn id(self) -> &'static str {
        match self {
            Self::Threshold => "tpr-threshold",
            Self::MonitorTrap => "monitor-trap",
            Self::Debug => "debug",
            Self::Timer => "preemption-timer",
            Self::NmiWindow => "nmi-window",
            Self::Nmi => "nmi",
            Self::InterruptWindow => "interrupt-window",
            Self::VirtualInterrupt => "virtual-interrupt",
            Self::External => "external-interrupt",
        }
    }

    fn reason(self) -> u32 {
        match self {
            Self::Threshold => reason::TPR_BELOW_THRESHOLD,
            Self::MonitorTrap => reason::MONITOR_TRAP_FLAG,
            Self::Debug | Self::Nmi => reason::EXCEPTION,
            Self::Timer => reason::PREEMPTION_TIMER,
            Self::NmiWindow => reason::NMI_WINDOW,
            Self::InterruptWindow => reason::INTERRUPT_WINDOW,
            Self::External => reason::EXTERNAL_INTERRUPT,
            Self::VirtualInterrupt => unreachable!("it is delivered"),
        }
    }
}

/// L2 of NOP; VMCALL, where all of `causes` wait; L1 has NMIs blocked and interrupts off.
fn waiting(causes: &[Cause], secondary: Secondary) -> Nest {
    let mut code = vec![0x90];
    code.extend(VMCALL);
    let mut nest = nest(&code, secondary);
    nest.enable_apic();
    let mut events = nest.state().events.expect("events");
    events.nmi_masked = true;
    nest.set_state(CpuState {
        events: Some(events),
        ..CpuState::default()
    });
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        (PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS).bits(),
    );
    nest.set(Field::GUEST_RFLAGS, OPEN);
    nest.put(HANDLERS + 64 * u64::from(VIRTUAL), &VMCALL);
    for cause in causes {
        cause.arrange(&mut nest);
    }
    nest
}

/// Enters again and again; each time the first of what is left exits at `rip`.
#[track_caller]
fn in_order(nest: &mut Nest, causes: &[Cause], rip: u64) {
    for cause in causes {
        assert_eq!(nest.enter(), Entry::Exit(cause.reason()), "{cause:?}");
        assert_eq!(nest.get(Field::GUEST_RIP), rip, "{cause:?}");
        let information = nest.get(Field::VM_EXIT_INTR_INFO);
        match cause {
            Cause::Debug => assert_eq!(information, 1 << 31 | 3 << 8 | 1),
            Cause::Nmi => assert_eq!(information, 1 << 31 | 2 << 8 | 2),
            _ => {}
        }
        cause.end(nest);
        // A higher exit takes a pending monitor trap with it: it is injected anew.
        let rest = causes.iter().skip_while(|other| *other != cause).skip(1);
        if rest.clone().any(|other| *other == Cause::MonitorTrap) {
            Cause::MonitorTrap.arrange(nest);
        }
    }
}

const ALL: [Cause; 9] = [
    Cause::Threshold,
    Cause::MonitorTrap,
    Cause::Debug,
    Cause::Timer,
    Cause::NmiWindow,
    Cause::Nmi,
    Cause::InterruptWindow,
    Cause::VirtualInterrupt,
    Cause::External,
];

/// Every row of the table has its cause here, in the table's order; "injected" has a test of its own.
#[test]
fn the_causes_are_the_tables() {
    let rows: Vec<_> = priority::BOUNDARY.iter().map(|row| row.id).collect();
    let causes: Vec<_> = ALL.iter().map(|cause| cause.id()).collect();
    assert_eq!(rows[0], "injected");
    assert_eq!(rows[1..], causes);
    for (row, cause) in priority::BOUNDARY[1..].iter().zip(ALL) {
        if let Some(reason) = row.reason {
            assert_eq!(reason.0, cause.reason(), "{}", row.id);
        }
    }
}

#[test]
fn exits_in_order() {
    // The one that is delivered has a test of its own.
    let all: Vec<_> = ALL
        .into_iter()
        .filter(|cause| *cause != Cause::VirtualInterrupt)
        .collect();
    // Any cause first, all that follow it behind.
    for first in 0..all.len() {
        let causes = &all[first..];
        let mut nest = waiting(causes, Secondary::VIRTUALIZE_APIC_ACCESSES);
        in_order(&mut nest, causes, L2);
        nest.expect(reason::VMCALL, L2 + 1);
    }
}

#[test]
fn a_virtual_interrupt_has_the_place_of_the_interrupt_window() {
    use Cause::*;
    let before = [MonitorTrap, Debug, Timer, NmiWindow, Nmi];
    let mut causes = before.to_vec();
    causes.extend([VirtualInterrupt, External]);
    for first in 0..before.len() {
        let mut nest = waiting(&causes[first..], Secondary::VIRTUAL_INTERRUPT_DELIVERY);
        in_order(&mut nest, &before[first..], L2);
        assert_eq!(nest.status(), (VIRTUAL, 0));
        let handler = HANDLERS + 64 * u64::from(VIRTUAL);
        in_order(&mut nest, &[External], handler);
        assert_eq!(nest.status(), (0, VIRTUAL));
        nest.on(
            Field::PIN_BASED_VM_EXEC_CONTROL,
            PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
        );
    }
}

#[test]
fn what_a_shadow_holds_off() {
    use Cause::*;
    let causes = [
        Threshold,
        MonitorTrap,
        Timer,
        NmiWindow,
        Nmi,
        InterruptWindow,
        External,
    ];
    for (blocking, through, behind) in [
        (MOV_SS, &causes[..3], &causes[3..]),
        (STI, &causes[..4], &causes[4..]),
    ] {
        let mut nest = waiting(&causes, Secondary::VIRTUALIZE_APIC_ACCESSES);
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, blocking);
        in_order(&mut nest, through, L2);
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), blocking);
        // NOP runs and ends it.
        in_order(&mut nest, behind, L2 + 1);
    }
}

#[test]
fn an_injected_event_goes_before_all() {
    use Cause::*;
    let causes = [Threshold, Timer, NmiWindow, Nmi, InterruptWindow, External];
    let mut nest = waiting(&causes, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 0x30);
    // The handler runs with interrupts off: no interrupt window.
    let handler = HANDLERS + 64 * 0x30;
    in_order(
        &mut nest,
        &[Threshold, Timer, NmiWindow, Nmi, External],
        handler,
    );

    // And a monitor trap comes behind its delivery, before the rest.
    let mut nest = waiting(&causes, Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 0x30);
    Threshold.end(&mut nest);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MONITOR_TRAP_FLAG.bits(),
    );
    nest.expect(reason::MONITOR_TRAP_FLAG, handler);
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MONITOR_TRAP_FLAG.bits(),
    );
    in_order(&mut nest, &[Timer, NmiWindow, Nmi, External], handler);
}
