//! Captures at odd instants: twice the same, the guest undisturbed, and what is restored from them
//! goes on as the guest would have. Runs repeat to the bit.

mod common;

use common::{Capture, Record, Run, capture, difference, hash, restore};
use nvmx_core::nested::Flags;
use nvmx_core::trace::TraceHash;
use nvmx_core::vcpu::{Budget, NestedEvent};
use nvmx_examples::guests::{self, Guest};
use nvmx_machine::Driver;

/// The record of an uninterrupted run.
fn reference(guest: &Guest) -> Record {
    let record = Run::new(guest).finish();
    assert_eq!(
        record.end,
        Some(nvmx_machine::Stop::DebugExit(common::SUCCESS)),
        "{}",
        guest.name
    );
    record
}

/// Captures twice.
fn capture_twice(run: &mut Run, guest: &Guest, place: &str) -> Capture {
    let first = run.capture();
    let second = run.capture();
    if let Some(text) = difference(&first, &second) {
        panic!(
            "{}, {place}: two captures in a row differ:\n{text}",
            guest.name
        );
    }
    first
}

/// Restores into a fresh machine, compares, and runs to the end: it must tell what is left of `whole`.
fn check_restored(guest: &Guest, place: &str, taken: &Capture, so_far: &Record, whole: &Record) {
    let mut vm = restore(taken, 16 << 20);
    if let Some(text) = difference(taken, &capture(&mut vm)) {
        panic!(
            "{}, {place}: the restored machine differs:\n{text}",
            guest.name
        );
    }
    let mut run = Run {
        vm,
        driver: Driver::default(),
        checkpoints: Vec::new(),
        end: None,
    };
    run.run(Budget::UNLIMITED);
    let rest = run.record();
    assert_eq!(rest.end, whole.end, "{}, {place}", guest.name);
    assert_eq!(
        rest.reports,
        whole.reports[so_far.reports.len()..],
        "{}, {place}: reports",
        guest.name
    );
    assert_eq!(
        rest.serial,
        whole.serial[so_far.serial.len()..],
        "{}, {place}: serial",
        guest.name
    );
    assert_eq!(
        rest.checkpoints,
        whole.checkpoints[so_far.checkpoints.len()..],
        "{}, {place}",
        guest.name
    );
    let (left, right) = (&rest.events, &whole.events[so_far.events.len()..]);
    if let Some(at) = (0..left.len().max(right.len())).find(|&i| left.get(i) != right.get(i)) {
        panic!(
            "{}, {place}: {} events later: {:x?} instead of {:x?}",
            guest.name,
            at,
            left.get(at),
            right.get(at)
        );
    }
}

/// Every guest, stopped after each nested event: exactly one more each time, an entry shows
/// RUN_PENDING, captures repeat, and the guest ends as if nobody had looked.
#[test]
fn a_capture_after_every_nested_event_disturbs_nothing() {
    for guest in guests::all() {
        let whole = reference(guest);
        let mut run = Run::new(guest);
        let restores = whole.events.len().div_ceil(12).max(1);
        for count in 1.. {
            run.run(Budget::nested_events(1));
            if run.end.is_some() {
                break;
            }
            let so_far = run.record();
            assert_eq!(
                so_far.events.len(),
                count,
                "{}: a budget of one event",
                guest.name
            );
            let place = format!("after event {count}");
            let nested = nvmx_core::vcpu::Vcpu::nested_state(&mut run.vm).expect("nested state");
            let entered = matches!(so_far.events.last(), Some(NestedEvent::Entry { .. }));
            let flags = nested.flags();
            assert_eq!(
                flags.contains(Flags::GUEST_MODE),
                entered,
                "{}, {place}",
                guest.name
            );
            // An entry that halts L2 is over at once.
            let halted = nested
                .vmcs12()
                .is_some_and(|v| v.get(nvmx_core::vmx::Field::GUEST_ACTIVITY_STATE) == 1);
            assert_eq!(
                flags.contains(Flags::RUN_PENDING),
                entered && !halted,
                "{}, {place}",
                guest.name
            );
            if count % restores == 0 {
                let taken = capture_twice(&mut run, guest, &place);
                check_restored(guest, &place, &taken, &so_far, &whole);
            }
        }
        assert_eq!(run.record(), whole, "{}", guest.name);
    }
}

/// Odd numbers of instructions: in the middle of L1 and of L2, before VMXON, with no VMCS.
#[test]
fn a_capture_after_any_instruction_goes_on_as_the_guest_did() {
    for guest in guests::all() {
        let whole = reference(guest);
        let mut run = Run::new(guest);
        let (mut stride, mut seen) = (7_u64, 0_u32);
        let mut kinds = [0_u32; 4];
        while run.end.is_none() {
            run.run(Budget::instructions(stride));
            stride = (stride * 5 + 3) % 2003;
            seen += 1;
            if run.end.is_some() {
                break;
            }
            let nested = nvmx_core::vcpu::Vcpu::nested_state(&mut run.vm).expect("nested state");
            let kind = match (nested.vmxon_pa(), nested.vmcs12_pa(), nested.guest_mode()) {
                (None, ..) => 0,
                (_, None, _) => 1,
                (_, _, false) => 2,
                _ => 3,
            };
            kinds[kind] += 1;
            // The first few of each kind, and some later ones.
            if kinds[kind] <= 2 || seen % 97 == 0 {
                let place = format!("stop {seen}");
                let taken = capture_twice(&mut run, guest, &place);
                let so_far = run.record();
                check_restored(guest, &place, &taken, &so_far, &whole);
            }
        }
        assert_eq!(run.record(), whole, "{}", guest.name);
    }
}

/// Twenty runs of a guest are one run.
#[test]
fn twenty_runs_have_one_hash() {
    for guest in guests::all() {
        let mut hashes: Vec<u64> = (0..20)
            .map(|_| {
                let mut run = Run::new(guest);
                run.run(Budget::UNLIMITED);
                hash(&run.record(), &run.capture())
            })
            .collect();
        hashes.dedup();
        assert_eq!(hashes.len(), 1, "{}", guest.name);
    }
}

/// Instruction by instruction gives what running gives.
#[test]
fn stepping_gives_the_events_of_running() {
    for guest in guests::all() {
        let whole = reference(guest);
        let mut run = Run::new(guest);
        while run.end.is_none() {
            run.run(Budget::instructions(1));
        }
        assert_eq!(run.record(), whole, "{}", guest.name);
    }
}

/// A hundred runs of the guest in which time matters most have one trace hash.
#[test]
fn a_hundred_runs_have_one_trace_hash() {
    let guest = guests::find("timers").expect("an example guest");
    let trace = || {
        let mut trace = TraceHash::default();
        let record = Run::new(guest).finish();
        assert_eq!(
            record.end,
            Some(nvmx_machine::Stop::DebugExit(common::SUCCESS))
        );
        record.events.iter().for_each(|event| trace.add(event));
        trace
    };
    let first = trace();
    assert!(first.events() > 10, "a trace worth comparing");
    for run in 1..100 {
        assert_eq!(trace(), first, "run {run}");
    }
}
