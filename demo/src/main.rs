//! The demonstration: each snapshot in `demo/snapshots` was taken by real KVM in the middle of a
//! guest. The software model goes on from it to the guest's end, and the snapshot that it reaches is
//! compared with the one that real KVM itself reached from there.
//!
//! `nvmx-demo` prints the table. `nvmx-demo record FILE` makes what `take.sh` keeps of a run on KVM
//! out of the output of `nvmx replay --json`.
#![forbid(unsafe_code)]

mod seen;
mod table;

use anyhow::{Context, bail};
use nvmx_core::vcpu::VmConfig;
use nvmx_machine::Driver;
use nvmx_snapshots::replay::{self, Until};
use nvmx_snapshots::{Diff, Meta, Snapshot, Target};
use nvmx_soft::SoftVm;
use seen::Seen;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What every kernel's folder holds.
const INSTANTS: &[(&str, &str)] = &[
    ("l1", "in L1, a VMCS loaded"),
    ("l2", "in L2, in the middle of its I/O"),
    ("l2-shadow", "in L2, with a shadow vmcs12"),
    ("l2-timer", "in L2, a preemption-timer deadline ahead"),
    ("l2-deadline", "in L2, L1's TSC deadline ahead"),
    (
        "entry-pending",
        "between VM entry and L2's first instruction",
    ),
];
/// Kernels whose KVM took them.
const KERNELS: &[&str] = &["6.1", "6.12"];
/// No replay takes longer: a guest that hangs must not hang the demonstration.
const LIMIT: Duration = Duration::from_secs(60);

/// What a replay came to.
struct Row {
    instant: &'static str,
    kernel: String,
    level: &'static str,
    nested_events: usize,
    end: String,
    /// What differs and is not explained, in words.
    unexplained: Vec<String>,
    diff: Diff,
    took: Duration,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.as_slice() {
        [] => demonstrate(),
        [word, file] if word == "record" => Seen::record(Path::new(file)).map(|()| true),
        _ => Err(anyhow::anyhow!(
            "usage: nvmx-demo, or nvmx-demo record FILE"
        )),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("nvmx-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Whether nothing unexplained differs.
fn demonstrate() -> anyhow::Result<bool> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("snapshots");
    let mut rows = Vec::new();
    for kernel in KERNELS {
        for (instant, _) in INSTANTS {
            progress(&format!(
                "{} of {}: {instant} of Linux {kernel}",
                rows.len() + 1,
                KERNELS.len() * INSTANTS.len()
            ));
            let at = folder.join(kernel).join(instant);
            rows.push(replay_one(instant, &at).with_context(|| at.display().to_string())?);
        }
    }
    progress("");
    print!("{}", table::render(&rows));
    Ok(rows.iter().all(|row| row.unexplained.is_empty()))
}

/// A line that the next one overwrites, if someone watches.
fn progress(text: &str) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r\x1b[K{text}");
        let _ = out.flush();
    }
}

fn replay_one(instant: &'static str, at: &Path) -> anyhow::Result<Row> {
    let file = |suffix: &str| PathBuf::from(format!("{}{suffix}", at.display()));
    let start = nvmx_snapshots::load(&file(".ron"))?;
    let kvm_end = nvmx_snapshots::load(&file(".end.ron"))?;
    let kvm_seen = Seen::load(&file(".seen.json"))?;
    let Some(memory) = &start.memory else {
        bail!("the snapshot holds no memory");
    };
    let config = VmConfig {
        memory_size: memory.memory_size(),
        vcpus: start.vcpus.len(),
    };
    let began = Instant::now();
    let mut vm = SoftVm::new(&config)?;
    nvmx_snapshots::restore(&mut vm, &start, Target::Fresh)?;
    let until = Until {
        time: Some(LIMIT),
        ..Until::default()
    };
    let mut driver = Driver::default();
    let run = replay::run(&mut vm, &until, &mut driver, &mut |_| {})?;
    let reached = replay::capture_written(&mut vm, Meta::default())?;
    let diff = Diff::of(&kvm_end, &reached);
    let soft_seen = Seen::new(&run.stop, run.events.len(), &run.checkpoints, &run.reports);
    let mut unexplained = kvm_seen.differences(&soft_seen);
    unexplained.extend(table::unexplained_state(&diff));
    Ok(Row {
        instant,
        kernel: kernel(&start.meta),
        level: level(&start),
        nested_events: run.events.len(),
        end: format!("{:?}", run.stop),
        unexplained,
        diff,
        took: began.elapsed(),
    })
}

/// The kernel's release: `taken_by` is "KVM of Linux RELEASE at ...".
fn kernel(meta: &Meta) -> String {
    let mut words = meta.taken_by.split(' ');
    let release = words.by_ref().skip_while(|word| *word != "Linux").nth(1);
    release.unwrap_or("unknown").to_owned()
}

fn level(snapshot: &Snapshot) -> &'static str {
    use nvmx_core::nested::Flags;
    let nested = snapshot.vcpus.iter().find_map(|vcpu| vcpu.nested.as_ref());
    match nested {
        Some(nested) if nested.flags().contains(Flags::RUN_PENDING) => "L2, entry pending",
        Some(nested) if nested.shadow_vmcs12().is_some() => "L2, shadow vmcs12",
        Some(nested) if nested.preemption_timer_deadline().is_some() => "L2, timer deadline",
        Some(nested) if nested.guest_mode() => "L2",
        _ => "L1",
    }
}
