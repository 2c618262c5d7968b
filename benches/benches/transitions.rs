//! VM entries and VM exits of the model alone (SDM Vol. 3C "VM Entries", "VM Exits").
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use nvmx_benches::processor::Bench;
use nvmx_core::cpu::Personality;
use nvmx_core::vmx::entry::EntryOutcome;

fn transitions(c: &mut Criterion) {
    let mut group = c.benchmark_group("core");
    let mut bench = Bench::new(Personality::Kvm);
    group.bench_function("VM entry", |b| {
        b.iter(|| {
            let outcome = bench.enter();
            assert!(matches!(outcome, EntryOutcome::Entered(_)));
            outcome
        });
    });
    let mut bench = Bench::new(Personality::Sdm);
    group.bench_function("VM entry, the SDM's checks in one round", |b| {
        b.iter(|| {
            let outcome = bench.enter();
            assert!(matches!(outcome, EntryOutcome::Entered(_)));
            outcome
        });
    });
    let mut bench = Bench::new(Personality::Kvm);
    bench.enter();
    group.bench_function("VM exit", |b| {
        b.iter(|| {
            let left = bench.exit();
            assert!(left.abort.is_none());
            left
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = nvmx_benches::criterion();
    targets = transitions
}
criterion_main!(benches);
