//! Linux's own KVM selftests as judge, from Debian's source of 6.1 and 6.12: on real KVM of the same kernel in the lab,
//! and on the model under the shim. What is expected of each stands in `table.rs`, and docs/selftests.md is made of it.
//!
//! Has its own `main`: the last line is the verdict. Arguments pick tests by a part of their name, and `kvm`, `shim`,
//! `6.1` or `6.12` the columns. What does not pass prints the end of its output. Without Bochs, kernels or selftests it
//! says SKIPPED and why.
#![forbid(unsafe_code)]

mod known;
mod page;
mod places;
mod table;

use nvmx_lab::programs::{Ended, Status};
use places::Column;
use std::process::ExitCode;
use std::thread;
use table::{Place, SELFTESTS, Selftest, Verdict};

/// `KSFT_SKIP` of tools/testing/selftests/kselftest.h.
const SKIP: i32 = 4;
/// Lines of a test's output that are shown.
const TAIL: usize = 12;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        println!("selftests: test");
        return ExitCode::SUCCESS;
    }
    let (mut columns, missing) = places::columns();
    let mut failed = page::check(&columns);
    if std::env::var_os("NVMX_WRITE_DOCS").is_some() {
        return ExitCode::from(u8::from(!failed.is_empty()));
    }
    for what in missing {
        println!("SKIPPED: {what} is missing (lab/setup.sh --selftests installs it)");
    }
    let (mut kinds, mut names) = (Vec::new(), Vec::new());
    for argument in &arguments {
        let kind = ["kvm", "shim", "6.1", "6.12"].contains(&argument.as_str());
        if kind { &mut kinds } else { &mut names }.push(argument.as_str());
    }
    columns.retain(|column| {
        let (kernels, places): (Vec<_>, Vec<_>) =
            kinds.iter().partition(|kind| kind.starts_with('6'));
        (kernels.is_empty() || kernels.contains(&&column.kernel.name()))
            && (places.is_empty() || places.contains(&&column.place.word()))
    });
    let wanted =
        |test: &Selftest| names.is_empty() || names.iter().any(|name| test.name().contains(name));
    // The lab's emulator takes one core and the model's columns another.
    let results: Vec<Vec<Option<Ended>>> = thread::scope(|scope| {
        let run = |place: Place| {
            let mine: Vec<&Column> = columns
                .iter()
                .filter(|column| column.place == place)
                .collect();
            scope.spawn(move || -> Vec<Vec<Option<Ended>>> {
                mine.into_iter().map(|column| column.run(&wanted)).collect()
            })
        };
        let runs = [run(Place::Kvm), run(Place::Shim)];
        runs.into_iter()
            .flat_map(|run| run.join().unwrap_or_default())
            .collect()
    });
    if results.len() != columns.len() {
        failed.push("a column was not run to its end".into());
    }
    let mut counts = [0_u32; 2];
    for (column, results) in columns.iter().zip(&results) {
        for (test, ended) in SELFTESTS.iter().zip(results) {
            let Some(ended) = ended else { continue };
            let verdict = judge(ended);
            let expected = known::find(column.place, column.kernel, test);
            let reason = expected.as_ref().map_or("", |known| known.reason);
            if verdict != Verdict::Passed {
                show(column, test, ended, reason);
            }
            let bad = |verdict: &Verdict| matches!(verdict, Verdict::Failed | Verdict::TimedOut);
            match (&verdict, expected) {
                (Verdict::Passed, None) => counts[0] += 1,
                (Verdict::Passed, Some(_)) => {
                    println!("{} {column} passes now: its row can go", test.name());
                    counts[0] += 1;
                }
                // Whether a test fails or runs out of time is a matter of the machine's speed.
                (verdict, Some(known))
                    if *verdict == known.verdict || bad(verdict) && bad(&known.verdict) =>
                {
                    counts[1] += 1;
                }
                (verdict, known) => failed.push(format!(
                    "{} {column}: {}, expected {}",
                    test.name(),
                    verdict.word(),
                    known.map_or("pass", |known| known.verdict.word())
                )),
            }
        }
    }
    for (column, known) in places::not_run(&columns, &wanted) {
        println!("SKIPPED: {} {column}: {}", known.test, known.reason);
        counts[1] += 1;
    }
    print_table(&columns, &results);
    for what in &failed {
        println!("FAILED: {what}");
    }
    println!(
        "selftests: {} passed, {} failed, {} skipped",
        counts[0],
        failed.len(),
        counts[1]
    );
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The verdict on an end.
fn judge(ended: &Ended) -> Verdict {
    match ended.status {
        Status::Exited(0) => Verdict::Passed,
        Status::Exited(SKIP) => Verdict::Skipped,
        Status::TimedOut => Verdict::TimedOut,
        Status::Exited(_) | Status::Signal(_) => Verdict::Failed,
    }
}

fn show(column: &Column, test: &Selftest, ended: &Ended, reason: &str) {
    println!(
        "-- {} {column}: {:?} after {:.1} s: {reason}",
        test.name(),
        ended.status,
        ended.took.as_secs_f64()
    );
    let lines: Vec<&str> = ended.output.lines().collect();
    for line in &lines[lines.len().saturating_sub(TAIL)..] {
        println!("   {line}");
    }
}

fn print_table(columns: &[Column], results: &[Vec<Option<Ended>>]) {
    print!("{:38}", "test");
    for column in columns {
        print!(" {:>16}", column.to_string());
    }
    println!();
    for (row, test) in SELFTESTS.iter().enumerate() {
        if results
            .iter()
            .all(|column| column.get(row).is_none_or(Option::is_none))
        {
            continue;
        }
        print!("{:38}", test.name());
        for column in results {
            let cell = match &column[row] {
                Some(ended) => {
                    format!("{} {:6.1} s", judge(ended).word(), ended.took.as_secs_f64())
                }
                None => "·".into(),
            };
            print!(" {cell:>16}");
        }
        println!();
    }
}
