//! Criterion benches of the hot paths, and what they share.
//!
//! `cargo bench -p nvmx-benches` measures, `cargo bench -p nvmx-benches -- --test` only runs each
//! bench once, and `cargo run -p nvmx-benches` prints what was measured as a Markdown table.
#![forbid(unsafe_code)]

pub mod guest;
pub mod paging;
pub mod processor;
pub mod table;

use criterion::Criterion;
use std::time::Duration;

/// Short measurements: half a second of warm-up and one and a half of samples a bench.
#[must_use]
pub fn criterion() -> Criterion {
    Criterion::default()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_millis(1500))
}
