//! Prints the medians of the last `cargo bench -p nvmx-benches` as a Markdown table.
#![forbid(unsafe_code)]

use nvmx_benches::table;
use std::path::PathBuf;

fn main() -> anyhow::Result<()> {
    let directory = std::env::args_os()
        .nth(1)
        .map_or_else(table::directory, PathBuf::from);
    print!("{}", table::markdown(&table::read(&directory)?));
    Ok(())
}
