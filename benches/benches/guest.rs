//! Guests on the software backend: trips between L2 and L1, computing in L2, single steps.
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvmx_benches::guest::Running;
use std::time::{Duration, Instant};

/// Trips in one call of `run`.
const TRIPS: u64 = 100;
/// Instructions in one call of `run`.
const INSTRUCTIONS: u64 = 1_000_000;

fn trips(c: &mut Criterion) {
    let mut group = c.benchmark_group("L2 to L1 and back");
    group.throughput(Throughput::Elements(TRIPS));
    let mut guest = Running::round_trips().expect("roundtrip runs");
    group.bench_function("guest roundtrip", |b| {
        b.iter(|| guest.trips(TRIPS).expect("trips"));
    });
    let mut guest = Running::bare_trips().expect("bare trips run");
    group.bench_function("VMCALL and VMRESUME alone", |b| {
        b.iter(|| guest.trips(TRIPS).expect("trips"));
    });
    group.throughput(Throughput::Elements(1));
    let mut guest = Running::round_trips().expect("roundtrip runs");
    group.bench_function("guest roundtrip, one trip a run", |b| {
        b.iter(|| guest.trips(1).expect("a trip"));
    });
    group.finish();
}

fn compute(c: &mut Criterion) {
    let mut group = c.benchmark_group("L2 computes");
    let mut guest = Running::computing().expect("compute runs");
    group.throughput(Throughput::Elements(INSTRUCTIONS));
    group.bench_function("mixed loop", |b| {
        b.iter_custom(|runs| {
            let mut total = Duration::ZERO;
            for _ in 0..runs {
                guest.rewind().expect("rewind");
                let start = Instant::now();
                guest.instructions(INSTRUCTIONS).expect("instructions");
                total += start.elapsed();
            }
            total
        });
    });
    group.throughput(Throughput::Elements(1));
    group.bench_function("single step", |b| {
        b.iter_custom(|runs| {
            guest.rewind().expect("rewind");
            let start = Instant::now();
            for _ in 0..runs {
                guest.step().expect("a step");
            }
            start.elapsed()
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = nvmx_benches::criterion();
    targets = trips, compute
}
criterion_main!(benches);
