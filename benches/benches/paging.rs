//! What the engine's TLB is filled from (SDM Vol. 3A "4-Level Paging", Vol. 3C "The Extended Page
//! Table Mechanism (EPT)").
#![allow(missing_docs)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use nvmx_benches::paging::{PAGES, Walks};

fn walks(c: &mut Criterion) {
    let mut group = c.benchmark_group("page walk");
    group.throughput(Throughput::Elements(PAGES));
    for (name, with_ept) in [("4 levels", false), ("4 levels on 4 levels of EPT", true)] {
        let walks = Walks::new(with_ept);
        group.bench_function(name, |b| b.iter(|| assert_eq!(walks.all(), PAGES)));
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = nvmx_benches::criterion();
    targets = walks
}
criterion_main!(benches);
