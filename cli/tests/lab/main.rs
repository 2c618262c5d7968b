//! Real KVM in the lab against the software model: every example guest in lockstep, snapshots of
//! each carried to the other and run on, and every rule of KVM_SET_NESTED_STATE. One boot a kernel.
//!
//! Has its own `main`: labs boot one after the other, and the last line is the verdict. An argument
//! picks the checks whose name contains it (`lockstep`, `cross`, `rules`, `profiles`, `6.12`, a guest's name).
//! Without Bochs or the cached kernels it says SKIPPED and why.
#![forbid(unsafe_code)]

mod campaign;
mod cross;
mod lockstep;
mod machine;
mod profiles;
mod rules;

use machine::OpenLab;
use nvmx_lab::Kernel;
use nvmx_lab::cache::CachedKernel;
use nvmx_lab::error::Reason;
use std::process::ExitCode;
use std::time::Instant;

/// How a check went: what it saw, or why it says nothing; `Err` is what is wrong.
pub(crate) enum Outcome {
    /// It holds. The number counts nested events that were compared one by one.
    Passed(String, u64),
    /// It was not tried, or its result would say nothing.
    Skipped(String),
}

pub(crate) type Checked = anyhow::Result<Outcome>;

/// A check by name, to be run in an open lab.
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) run: Box<dyn Fn(&OpenLab) -> Checked>,
}

/// Nested events that all lockstep runs together must compare.
const LOCKSTEP_EVENTS: u64 = 5000;

#[derive(Default)]
struct Tally {
    passed: u64,
    failed: Vec<String>,
    skipped: Vec<String>,
    lockstep_events: u64,
}

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    // For `cargo test -- --list` and the like: there is nothing else here.
    if std::env::args().any(|argument| argument == "--list") {
        println!("lab: test");
        return ExitCode::SUCCESS;
    }
    if let Some(what) = missing() {
        println!("SKIPPED: {what} is missing (lab/setup.sh installs it)");
        return ExitCode::SUCCESS;
    }
    let mut tally = Tally::default();
    for kernel in Kernel::ALL {
        let checks: Vec<Check> = [
            lockstep::checks(kernel),
            cross::checks(),
            rules::checks(),
            profiles::checks(kernel),
            campaign::checks(),
        ]
        .into_iter()
        .flatten()
        .map(|check| Check {
            name: format!("{kernel} {}", check.name),
            ..check
        })
        .filter(|check| {
            wanted.is_empty() || wanted.iter().any(|word| check.name.contains(word.as_str()))
        })
        .collect();
        if !checks.is_empty() {
            run_in_lab(kernel, &checks, &mut tally);
        }
    }
    if wanted.is_empty() && tally.lockstep_events < LOCKSTEP_EVENTS {
        tally.failed.push(format!(
            "lockstep compared {} nested events, fewer than {LOCKSTEP_EVENTS}",
            tally.lockstep_events
        ));
    }
    for (word, names) in [("SKIPPED", &tally.skipped), ("FAILED", &tally.failed)] {
        for name in names {
            println!("{word}: {name}");
        }
    }
    println!("lockstep: {} nested events compared", tally.lockstep_events);
    println!(
        "lab: {} passed, {} failed, {} skipped",
        tally.passed,
        tally.failed.len(),
        tally.skipped.len()
    );
    if tally.failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// What is missing on this machine, if anything is.
fn missing() -> Option<String> {
    let cache = nvmx_lab::cache::default_dir();
    let found = Kernel::ALL.map(|kernel| CachedKernel::find(&cache, kernel));
    let error = found.into_iter().find_map(Result::err)?;
    match error.reason {
        Reason::NotInstalled(what) => Some(what),
        other => Some(other.to_string()),
    }
}

fn run_in_lab(kernel: Kernel, checks: &[Check], tally: &mut Tally) {
    let mut lab = match OpenLab::start(kernel) {
        Ok(lab) => lab,
        Err(error) => return tally.failed.push(format!("{kernel}: no lab: {error:#}")),
    };
    for check in checks {
        let start = Instant::now();
        let mut result = (check.run)(&lab);
        if result.is_err() && !lab.is_alive() {
            // The emulator hangs or dies now and then, which says nothing about the check.
            println!("the lab is gone; starting it again for {}", check.name);
            lab = match OpenLab::start(kernel) {
                Ok(lab) => lab,
                Err(error) => {
                    return tally
                        .failed
                        .push(format!("{}: no lab: {error:#}", check.name));
                }
            };
            result = (check.run)(&lab);
        }
        let seconds = start.elapsed().as_secs_f64();
        match result {
            Ok(Outcome::Passed(what, events)) => {
                println!("ok       {}: {what} ({seconds:.1} s)", check.name);
                tally.passed += 1;
                tally.lockstep_events += events;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("SKIPPED  {}: {why}", check.name);
                tally.skipped.push(format!("{}: {why}", check.name));
            }
            Err(error) => {
                println!("FAILED   {}: {error:#} ({seconds:.1} s)", check.name);
                tally.failed.push(format!("{}: {error:#}", check.name));
            }
        }
    }
}
