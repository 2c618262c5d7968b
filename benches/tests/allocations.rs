//! The hot paths allocate nothing once they are warm.

use allocation_counter::measure;
use nvmx_benches::guest::Running;
use nvmx_benches::paging::{PAGES, Walks};
use nvmx_benches::processor::Bench;
use nvmx_core::cpu::Personality;

/// Allocations of `path`.
fn allocations(path: impl FnOnce()) -> u64 {
    measure(path).count_total
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn trips_between_l2_and_l1() {
    for mut guest in [Running::round_trips(), Running::bare_trips()].map(Result::unwrap) {
        guest.trips(1000).unwrap();
        assert_eq!(allocations(|| guest.trips(1000).unwrap()), 0);
    }
}

#[test]
fn computing_and_stepping_in_l2() {
    let mut guest = Running::computing().unwrap();
    guest.instructions(10_000).unwrap();
    assert_eq!(allocations(|| guest.instructions(100_000).unwrap()), 0);
    guest.step().unwrap();
    let steps = || (0..100).for_each(|_| guest.step().unwrap());
    assert_eq!(allocations(steps), 0);
}

#[test]
fn vm_entries_and_exits_of_the_model() {
    for personality in [Personality::Kvm, Personality::Sdm] {
        let mut bench = Bench::new(personality);
        let count = allocations(|| {
            bench.enter();
            bench.exit();
        });
        assert_eq!(count, 0);
    }
}

#[test]
fn page_walks() {
    for with_ept in [false, true] {
        let walks = Walks::new(with_ept);
        let all = || assert_eq!(walks.all(), PAGES);
        assert_eq!(allocations(all), 0);
    }
}
