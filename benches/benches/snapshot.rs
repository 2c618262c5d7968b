//! Capture and restore of a machine whose L2 runs, on the software backend.
#![allow(missing_docs)]

use criterion::{Criterion, criterion_group, criterion_main};
use nvmx_benches::guest::Running;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Parts, Vcpu, VmConfig};
use nvmx_snapshots::{MemoryScope, Snapshot, Target, capture, restore};
use nvmx_soft::SoftVm;

type Result = anyhow::Result<()>;

fn machine(c: &mut Criterion) {
    let config = VmConfig::default();
    drop(SoftVm::new(&config));
    c.bench_function("machine/create", |b| {
        b.iter(|| SoftVm::new(&config).is_ok())
    });
}

fn vcpu(c: &mut Criterion) {
    let mut group = c.benchmark_group("vCPU in L2");
    let mut l2 = Running::computing().expect("compute runs");
    group.bench_function("read registers", |b| {
        b.iter(|| l2.vm.state(Parts::Registers))
    });
    group.bench_function("read all state", |b| b.iter(|| l2.vm.state(Parts::All)));
    group.bench_function("read nested state", |b| b.iter(|| l2.vm.nested_state()));
    let state = l2.vm.state(Parts::All).expect("state");
    let nested = l2.vm.nested_state().expect("nested state");
    let none = NestedState::default();
    let mut put_back = || -> Result {
        // L2 is left first, as a restore must.
        l2.vm.set_nested_state(&none)?;
        l2.vm.set_state(&state)?;
        l2.vm.set_nested_state(&nested)?;
        Ok(())
    };
    group.bench_function("write all state and nested state", |b| {
        b.iter(|| put_back().expect("state is taken"));
    });
    assert_eq!(l2.vm.nested_state().ok().as_ref(), Some(&nested));
    group.finish();
}

fn snapshots(c: &mut Criterion) {
    let mut group = c.benchmark_group("snapshot in L2");
    group.sample_size(20);
    let mut l2 = Running::computing().expect("compute runs");
    for (name, scope) in [
        ("vCPU", MemoryScope::None),
        ("vCPU and 16 MiB", MemoryScope::All),
    ] {
        let mut take =
            || -> anyhow::Result<Snapshot> { Ok(capture(&mut l2.vm, Default::default(), scope)?) };
        let snapshot = take().expect("capture");
        group.bench_function(format!("capture {name}"), |b| {
            b.iter(|| take().expect("capture"));
        });
        group.bench_function(format!("restore {name}"), |b| {
            b.iter(|| restore(&mut l2.vm, &snapshot, Target::Used).expect("restore"));
        });
        l2.instructions(1000).expect("L2 goes on");
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = nvmx_benches::criterion();
    targets = machine, vcpu, snapshots
}
criterion_main!(benches);
