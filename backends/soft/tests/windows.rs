//! When L2's events and windows come: interrupt and NMI windows, the VMX-preemption timer, interrupts of
//! L1, HLT (SDM Vol. 3C "Interrupt-Window Exiting and Virtual-Interrupt Delivery", "NMI-Window Exiting",
//! "VMX-Preemption Timer", "Other Causes of VM Exits", "Activity State").

mod common;

use common::bare::put;
use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{ExitControls, PinBased, Primary};
use nvmx_core::x86::{CpuState, VcpuEvents};

const EXCEPTION: u32 = 0;
const EXTERNAL_INTERRUPT: u32 = 1;
const INTERRUPT_WINDOW: u32 = 7;
const NMI_WINDOW: u32 = 8;
const HLT: u32 = 12;
const VMCALL_EXIT: u32 = 18;
const PREEMPTION_TIMER: u32 = 52;
const VALID: u64 = 1 << 31;
const DB: u64 = VALID | 3 << 8 | 1;
const IF: u64 = 0x202;
const STI: u64 = 1;
const MOV_SS: u64 = 2;
const NMI: u64 = 8;
const ENABLED_B1: u64 = 1 << 12 | 2;

fn handler(vector: u64) -> u64 {
    HANDLERS + 64 * vector
}

fn nop_then_vmcall() -> Nest {
    Nest::new(&[&[0x90, 0x90][..], &VMCALL].concat())
}

fn nmi_window(nest: &mut Nest) {
    let pin = PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS;
    nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, pin.bits());
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::NMI_WINDOW_EXITING.bits(),
    );
}

fn interrupt_window(nest: &mut Nest) {
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::INTERRUPT_WINDOW_EXITING.bits(),
    );
}

fn timer(nest: &mut Nest, value: u64) {
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::ACTIVATE_PREEMPTION_TIMER.bits(),
    );
    nest.set(Field::VMX_PREEMPTION_TIMER_VALUE, value);
}

/// What L2 is entered with, and where the window finds it. `None`: at the handler of #DB.
struct Row {
    rflags: u64,
    interruptibility: u64,
    activity: u64,
    injected: u64,
    at: Option<u64>,
}

const fn row(
    rflags: u64,
    interruptibility: u64,
    activity: u64,
    injected: u64,
    at: Option<u64>,
) -> Row {
    Row {
        rflags,
        interruptibility,
        activity,
        injected,
        at,
    }
}

fn check(rows: &[Row], open: fn(&mut Nest), reason: u32, code: &[u8]) {
    for (index, row) in rows.iter().enumerate() {
        let mut nest = Nest::new(&[code, &VMCALL].concat());
        // #DB goes through a trap gate, which leaves RFLAGS.IF alone.
        let gate = handler(1) & 0xffff | 8 << 16 | 0x8f00 << 32 | (handler(1) >> 16) << 48;
        put(&mut nest.vm, common::bare::IDT + 16, &gate.to_le_bytes());
        open(&mut nest);
        nest.set(Field::GUEST_RFLAGS, row.rflags);
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, row.interruptibility);
        nest.set(Field::GUEST_ACTIVITY_STATE, row.activity);
        nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, row.injected);
        assert_eq!(nest.enter(), Entry::Exit(reason), "row {index}");
        let expected = row.at.map_or(handler(1), |offset| L2 + offset);
        assert_eq!(nest.get(Field::GUEST_RIP), expected, "row {index}");
        assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0, "row {index}");
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0, "row {index}");
    }
}

#[test]
fn the_nmi_window() {
    let nop = &[0x90, 0x90];
    check(
        &[
            row(2, 0, 0, 0, Some(0)),
            row(2, MOV_SS, 0, 0, Some(1)),
            row(2, 0, 0, DB, None),
            row(2, 0, 1, 0, Some(0)),
            row(2, 0, 1, DB, None),
        ],
        nmi_window,
        NMI_WINDOW,
        nop,
    );
    // Blocked until an IRET, of which only the handler of #DB has one.
    check(&[row(2, NMI, 0, DB, Some(0))], nmi_window, NMI_WINDOW, nop);
}

#[test]
fn the_interrupt_window() {
    check(
        &[
            row(IF, 0, 0, 0, Some(0)),
            row(IF, MOV_SS, 0, 0, Some(1)),
            row(IF, STI, 0, 0, Some(1)),
            row(IF, 0, 0, DB, None),
            row(IF, 0, 1, 0, Some(0)),
            row(IF, 0, 1, DB, None),
        ],
        interrupt_window,
        INTERRUPT_WINDOW,
        &[0x90, 0x90],
    );
    // NOP, STI, STI: the second STI casts no shadow.
    check(
        &[row(2, 0, 0, 0, Some(3))],
        interrupt_window,
        INTERRUPT_WINDOW,
        &[0x90, 0xfb, 0xfb, 0x90],
    );
    // POPF opens it at once; so does the IRET of an interrupt's handler.
    let popf = [0x68, 0x02, 0x02, 0, 0, 0x9d, 0x90];
    check(
        &[row(2, 0, 0, 0, Some(6))],
        interrupt_window,
        INTERRUPT_WINDOW,
        &popf,
    );
}

/// A window that opens while the processor is in HLT finds it there.
#[test]
fn both_windows_are_looked_at_in_hlt() {
    let mut nest = nop_then_vmcall();
    interrupt_window(&mut nest);
    nest.set(Field::GUEST_RFLAGS, IF);
    nest.set(Field::GUEST_ACTIVITY_STATE, 1);
    nest.expect(INTERRUPT_WINDOW, L2);
}

/// "VMX-Preemption Timer": with zero the exit comes before the first instruction, but after an injected
/// event and after pending debug exceptions.
#[test]
fn a_timer_of_zero() {
    let rows = [
        (0, 0, 0, PREEMPTION_TIMER, L2),
        (DB, 0, 0, PREEMPTION_TIMER, handler(1)),
        (DB, 0, 1 << 1, PREEMPTION_TIMER, handler(1)),
        (0, ENABLED_B1, 0, PREEMPTION_TIMER, handler(1)),
        (0, ENABLED_B1, 1 << 1, EXCEPTION, L2),
    ];
    for (injected, pending, exceptions, reason, rip) in rows {
        for activity in [0, 1] {
            let mut nest = nop_then_vmcall();
            timer(&mut nest, 0);
            nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, injected);
            nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, pending);
            nest.set(Field::EXCEPTION_BITMAP, exceptions);
            nest.set(Field::GUEST_ACTIVITY_STATE, activity);
            nest.expect(reason, rip);
            // What exits directly finds the processor in HLT.
            let still = if rip == L2 { activity } else { 0 };
            assert_eq!(
                nest.get(Field::GUEST_ACTIVITY_STATE),
                still,
                "{injected:#x} {pending:#x}"
            );
        }
    }
}

/// It counts while L2 runs and while it halts, keeps its value unless L1 asks to have it saved, and
/// comes before the other windows.
#[test]
fn a_timer_that_counts() {
    // jmp $
    let mut nest = Nest::new(&[0xeb, 0xfe]);
    timer(&mut nest, 1000);
    nest.expect(PREEMPTION_TIMER, L2);
    assert_eq!(nest.get(Field::VMX_PREEMPTION_TIMER_VALUE), 1000);
    nest.on(
        Field::VM_EXIT_CONTROLS,
        ExitControls::SAVE_PREEMPTION_TIMER_VALUE.bits(),
    );
    nest.expect(PREEMPTION_TIMER, L2);
    assert_eq!(nest.get(Field::VMX_PREEMPTION_TIMER_VALUE), 0);

    let mut nest = Nest::new(&[&[0xf4][..], &VMCALL].concat());
    timer(&mut nest, 1_000_000);
    nest.expect(PREEMPTION_TIMER, L2 + 1);
    assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), 1);

    let mut nest = nop_then_vmcall();
    timer(&mut nest, 0);
    nmi_window(&mut nest);
    interrupt_window(&mut nest);
    nest.set(Field::GUEST_RFLAGS, IF);
    nest.expect(PREEMPTION_TIMER, L2);
    nest.off(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::ACTIVATE_PREEMPTION_TIMER.bits(),
    );
    nest.expect(NMI_WINDOW, L2);
}

/// RDTSC past the deadline may run, but nothing behind it.
#[test]
fn the_timer_is_not_late() {
    // mov edi, PAGE; again: rdtsc; mov [rdi], eax; mov [rdi + 4], edx; jmp again
    let mut code = vec![0xbf];
    code.extend_from_slice(&(PAGE as u32).to_le_bytes());
    code.extend_from_slice(&[0x0f, 0x31, 0x89, 0x07, 0x89, 0x57, 0x04, 0xeb, 0xf7]);
    let mut nest = Nest::new(&code);
    timer(&mut nest, 100_000 >> 5);
    let start = tsc(&mut nest);
    assert_eq!(nest.enter(), Entry::Exit(PREEMPTION_TIMER));
    let mut last = [0; 8];
    use nvmx_core::vcpu::Vm;
    nest.vm
        .read_memory(nvmx_core::addr::L1Phys(PAGE), &mut last)
        .expect("RAM");
    let last = u64::from_le_bytes(last);
    let deadline = (start >> 5 << 5) + (100_000 >> 5 << 5);
    assert!(
        last > start && last <= deadline + 32,
        "{start} {last} {deadline}"
    );
}

fn tsc(nest: &mut Nest) -> u64 {
    nest.state().msrs.expect("MSRs")[&0x10]
}

/// An external interrupt that waits exits before L2's first instruction, whatever RFLAGS.IF says, and is
/// taken by the exit only where L1 asks for that.
#[test]
fn an_interrupt_that_waits() {
    for (flags, activity, acknowledge) in
        [(2, 0, false), (IF, 0, true), (2, 1, false), (IF, 1, true)]
    {
        let mut nest = nop_then_vmcall();
        pend(&mut nest, 0xf1);
        nest.on(
            Field::PIN_BASED_VM_EXEC_CONTROL,
            PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
        );
        if acknowledge {
            nest.on(
                Field::VM_EXIT_CONTROLS,
                ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits(),
            );
        }
        nest.set(Field::GUEST_RFLAGS, flags);
        nest.set(Field::GUEST_ACTIVITY_STATE, activity);
        nest.expect(EXTERNAL_INTERRUPT, L2);
        let expected = if acknowledge { VALID | 0xf1 } else { 0 };
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), expected);
        assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), activity);
        // Not acknowledged it waits on.
        assert_eq!(requested(&mut nest, 0xf1), !acknowledge);
    }
    // Without the control it is L2's own: through L2's IDT, out of HLT too.
    for activity in [0, 1] {
        let mut nest = nop_then_vmcall();
        pend(&mut nest, 0xf1);
        put(&mut nest.vm, handler(0xf1), &VMCALL);
        nest.set(Field::GUEST_RFLAGS, IF);
        nest.set(Field::GUEST_ACTIVITY_STATE, activity);
        nest.expect(VMCALL_EXIT, handler(0xf1));
        assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), 0);
        assert!(!requested(&mut nest, 0xf1));
    }
}

/// "Interrupt-window exiting" comes before the interrupt itself.
#[test]
fn the_interrupt_window_comes_before_the_interrupt() {
    let mut nest = nop_then_vmcall();
    pend(&mut nest, 0xf1);
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
    );
    interrupt_window(&mut nest);
    nest.set(Field::GUEST_RFLAGS, IF);
    nest.expect(INTERRUPT_WINDOW, L2);
}

/// Sets the vector's bit in IRR of an enabled APIC.
fn pend(nest: &mut Nest, vector: usize) {
    let mut state = nest.state();
    let lapic = state.lapic.as_mut().expect("an APIC page");
    lapic[0xf0..0xf4].copy_from_slice(&0x1ff_u32.to_le_bytes());
    lapic[0x200 + vector / 32 * 16 + vector % 32 / 8] |= 1 << (vector % 8);
    nest.set_state(CpuState {
        lapic: state.lapic,
        ..CpuState::default()
    });
}

fn requested(nest: &mut Nest, vector: usize) -> bool {
    let lapic = nest.state().lapic.expect("an APIC page");
    lapic[0x200 + vector / 32 * 16 + vector % 32 / 8] & 1 << (vector % 8) != 0
}

/// One that L1 itself blocks.
fn pend_nmi(nest: &mut Nest) {
    let events = nest.state().events.expect("events");
    nest.set_state(CpuState {
        events: Some(VcpuEvents {
            nmi_pending: 1,
            nmi_masked: true,
            ..events
        }),
        ..CpuState::default()
    });
}

/// An NMI: L1's with "NMI exiting", even while virtual NMIs are blocked; else L2's, out of HLT, and
/// blocked until IRET.
#[test]
fn an_nmi_that_waits() {
    for (interruptibility, activity) in [(0, 0), (NMI, 0), (0, 1)] {
        let mut nest = nop_then_vmcall();
        let pin = PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS;
        nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, pin.bits());
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, interruptibility);
        nest.set(Field::GUEST_ACTIVITY_STATE, activity);
        pend_nmi(&mut nest);
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 2 << 8 | 2);
        assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), activity);
        assert_eq!(
            nest.get(Field::GUEST_INTERRUPTIBILITY_INFO),
            interruptibility
        );
    }
    for activity in [0, 1] {
        let mut nest = nop_then_vmcall();
        put(&mut nest.vm, handler(2), &VMCALL);
        nest.set(Field::GUEST_ACTIVITY_STATE, activity);
        pend_nmi(&mut nest);
        nest.expect(VMCALL_EXIT, handler(2));
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), NMI);
    }
}

/// An event injected into HLT wakes it, for good.
#[test]
fn an_injected_event_ends_hlt() {
    for information in [VALID | 0xde, VALID | 2 << 8 | 2, DB] {
        let mut nest = nop_then_vmcall();
        nest.set(Field::GUEST_RFLAGS, IF);
        nest.set(Field::GUEST_ACTIVITY_STATE, 1);
        nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, information);
        nest.expect(VMCALL_EXIT, L2 + 2);
    }
}

/// HLT with a single step pending: the trap comes, and L2 is not asleep.
#[test]
fn hlt_and_a_single_step() {
    let mut nest = Nest::new(&[&[0xf4][..], &VMCALL].concat());
    nest.set(Field::GUEST_RFLAGS, 0x102);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
    nest.expect(EXCEPTION, L2 + 1);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::HLT_EXITING.bits(),
    );
    nest.set(Field::GUEST_RIP, L2);
    nest.set(Field::GUEST_ACTIVITY_STATE, 0);
    nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, 0);
    nest.expect(HLT, L2);
}
