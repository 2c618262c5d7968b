//! The example guest of two processors: it passes, and each run is the same, wherever it is cut.

mod common;

use common::{Record, Run, SUCCESS};
use nvmx_core::trace::TraceHash;
use nvmx_core::vcpu::{Budget, NestedEvent};
use nvmx_examples::{Params, guests};
use nvmx_machine::Stop;

fn smp(iterations: u32) -> Run {
    let params = Params {
        iterations,
        ..Params::default()
    };
    Run::with(guests::find("smp").expect("an example guest"), params)
}

fn succeeds(run: Run) -> Record {
    let record = run.finish();
    let serial = String::from_utf8_lossy(&record.serial);
    assert_eq!(record.end, Some(Stop::DebugExit(SUCCESS)), "{serial}");
    assert_eq!(serial, "guest smp: ok\n");
    record
}

#[test]
fn it_passes_with_all_it_has() {
    let record = succeeds(smp(3));
    // Three iterations of seven checkpoints: the one for posted interrupts among them.
    let expected: Vec<u32> = (0..3)
        .flat_map(|iteration| (1..=7).map(move |id| id << 16 | iteration))
        .collect();
    assert_eq!(record.checkpoints, expected);
    let count = |wanted: u32| {
        let is = |event: &&NestedEvent| matches!(event, NestedEvent::Exit { reason, .. } if *reason == wanted);
        record.events.iter().filter(is).count()
    };
    // External interrupt, INIT, SIPI, NMI.
    assert_eq!([count(1), count(3), count(4), count(0)], [9, 6, 3, 3]);
}

#[test]
fn with_one_processor_it_says_so() {
    let guest = guests::Guest {
        processors: 1,
        ..*guests::find("smp").expect("an example guest")
    };
    let record = Run::new(&guest).finish();
    assert_eq!(record.end, Some(Stop::DebugExit(SUCCESS)));
    let serial = String::from_utf8_lossy(&record.serial);
    assert!(serial.contains("no second processor"), "{serial}");
}

#[test]
fn a_hundred_runs_have_one_trace_hash() {
    let trace = || {
        let mut trace = TraceHash::default();
        let record = succeeds(smp(1));
        record.events.iter().for_each(|event| trace.add(event));
        (trace, record.reports)
    };
    let first = trace();
    assert!(first.0.events() > 10, "a trace worth comparing");
    for run in 1..100 {
        assert_eq!(trace(), first, "run {run}");
    }
}

#[test]
fn cuts_of_the_run_do_not_matter() {
    let whole = succeeds(smp(1));
    for stride in [1, 7, 1009] {
        let mut run = smp(1);
        while run.end.is_none() {
            run.run(Budget::instructions(stride));
        }
        let record = run.record();
        let told = |r: &Record| (r.end.clone(), r.reports.clone(), r.checkpoints.clone());
        assert_eq!(told(&record), told(&whole), "pieces of {stride}");
        assert_eq!(record.events.len(), whole.events.len());
    }
}
