//! What the command takes, each part with examples in its help.

#[cfg(feature = "soft")]
mod campaign;
mod rules;
#[cfg(feature = "soft")]
mod shim;

#[cfg(feature = "soft")]
pub(crate) use campaign::{CampaignArguments, CampaignCommand, CampaignEntry, CampaignReplay};
pub(crate) use rules::{Check, Profiles};
#[cfg(feature = "soft")]
pub(crate) use shim::Shim;

mod guest;

pub(crate) use guest::{Cpu, Guest, MachineKind};

use crate::backend::Spec;
use clap::{Args, Parser, Subcommand};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A software model of Intel VMX beside real KVM: run, snapshot, diff, replay and compare guests
/// that use nested virtualization.
#[derive(Debug, Parser)]
#[command(
    name = "nvmx",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "\
Exit status: 0 success or equality, 1 a difference or a guest that failed, 2 trouble.
NVMX_LOG=debug shows what happens inside; NO_COLOR=1 turns colour off.

Examples:
  nvmx run example:exits --backend soft --trace
  nvmx snapshot example:exits --backend lab --at checkpoint:3 --out x.ron
  nvmx show x.ron
  nvmx replay x.ron --backend soft --checkpoints 10 --out y.ron --expect z.ron
  nvmx compare example:exits soft lab"
)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What each backend can do here, and what to do about what it cannot
    Backends(Backends),
    /// Run a guest
    Run(Run),
    /// Run a guest to a point and write a snapshot there
    Snapshot(Snapshot),
    /// Explain a snapshot: level, last exit, controls, registers and whose they are
    Show(Show),
    /// Audit a vmcs12 offline: every rule of VM entry that it breaks, with the values read
    Check(Check),
    /// Processors as data: list them, show the controls that one offers
    Profiles(Profiles),
    /// Compare two snapshots field by field
    Diff(Diff),
    /// Restore a snapshot on a backend and run on from it
    Replay(Replay),
    /// Run a guest on two backends in lockstep
    Compare(Compare),
    /// Random VM entries on the model and on another implementation, each difference judged
    #[cfg(feature = "soft")]
    Campaign(CampaignArguments),
    /// Convert a snapshot to or from the kernel's raw bytes
    Convert(Convert),
    /// Real KVM on machines without VMX: Debian's kernel inside Debian's Bochs
    Lab(LabArguments),
    /// Run a program that uses /dev/kvm, on the software model
    #[cfg(feature = "soft")]
    Shim(Shim),
    /// Serve a local backend to another nvmx
    Agent(Agent),
    /// Print completions for a shell
    Completions(Completions),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nvmx backends\n  nvmx backends --backend lab:6.12 --json")]
pub(crate) struct Backends {
    /// Ask this one only, which may start a lab (default: soft and kvm)
    #[arg(long, value_name = "BACKEND")]
    pub(crate) backend: Option<Spec>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: what the guest writes to its debug-exit port 0xf4 decides. 0 is success and gives 0, and so does 0x10 of
an example; any other value v gives v itself if it is 3 to 255, else 1 (QEMU would give 2v+1). Power-off and a final
HLT give 0, a triple fault gives 1. Time-out, unsupported instructions and other trouble give 2.

What the guest sends to its serial port goes to standard output as it comes. On pc, standard input goes to the
guest's serial port.

Examples:
  nvmx run example:exits
  nvmx run kernel.elf --backend kvm --memory 64M --append 'debug' --timeout 10
  nvmx run kernel.flat --cpu skylake-sp --smp 2 --memory 512M --append 'test1 test2'
  nvmx run vmlinuz --initrd initrd.img --append 'console=ttyS0' --memory 512M --timeout 300
  nvmx run example:ept --backend lab:6.12 --trace
  nvmx run example:ept --trace=json 2>events.jsonl")]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// soft, kvm, remote:HOST:PORT, exec:COMMAND, lab, lab:6.1, lab:6.12 or bochs (Bochs' own VMX)
    #[arg(long, value_name = "BACKEND", default_value = "soft")]
    pub(crate) backend: Spec,
    /// The processor: a profile (max, skylake-sp, kvm-6.12, ...), or default for the backend's own; what a
    /// profile has and soft does not execute is left out (default: max for images on soft, else default)
    #[arg(long, value_name = "PROFILE")]
    pub(crate) cpu: Option<Cpu>,
    /// Processors
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub(crate) smp: u8,
    /// The devices around the processors: pc has what QEMU's pc has that hypervisors and test suites use, bare
    /// a serial port and a debug exit (default: pc for images on soft, else bare)
    #[arg(long, value_name = "MACHINE")]
    pub(crate) machine: Option<MachineKind>,
    /// Whose behaviour soft shows where KVM's and the SDM's differ: kvm or sdm
    #[arg(long, value_name = "WHOSE")]
    pub(crate) personality: Option<nvmx_core::personality::Personality>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(crate) timeout: f64,
    /// Print nested entries and exits to standard error
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub(crate) trace: Option<TraceFormat>,
    /// Print a summary as JSON instead of the guest's serial output
    #[arg(long)]
    pub(crate) json: bool,
}

/// How to print nested events.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum TraceFormat {
    /// One line for people
    Text,
    /// One line of JSON
    Json,
}

/// Where to stop.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum At {
    /// After so many checkpoints.
    Checkpoint(u64),
    /// At the checkpoint with this id.
    CheckpointId(u32),
    /// After so many nested events.
    Event(u64),
    /// After so many instructions.
    Instructions(u64),
    /// After so many seconds.
    Time(f64),
    /// While a nested entry is pending.
    RunPending,
    /// At the guest's end.
    End,
}

impl fmt::Display for At {
    /// As [`At::from_str`] takes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Checkpoint(n) => write!(f, "checkpoint:{n}"),
            Self::CheckpointId(id) => write!(f, "checkpoint-id:{id:#x}"),
            Self::Event(n) => write!(f, "event:{n}"),
            Self::Instructions(n) => write!(f, "instructions:{n}"),
            Self::Time(seconds) => write!(f, "time:{seconds}"),
            Self::RunPending => f.write_str("run-pending"),
            Self::End => f.write_str("end"),
        }
    }
}

/// A number, decimal or with 0x.
fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

impl FromStr for At {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, value) = text.split_once(':').unwrap_or((text, ""));
        let count = number(value);
        Some(match kind {
            "run-pending" if value.is_empty() => Self::RunPending,
            "end" if value.is_empty() => Self::End,
            "checkpoint" => Self::Checkpoint(count.filter(|n| *n > 0).ok_or("checkpoint:N counts from 1")?),
            "checkpoint-id" => Self::CheckpointId(count.and_then(|n| u32::try_from(n).ok()).ok_or("checkpoint-id:N wants a number")?),
            "event" => Self::Event(count.filter(|n| *n > 0).ok_or("event:N counts from 1")?),
            "instructions" => Self::Instructions(count.ok_or("instructions:N wants a number")?),
            "time" => Self::Time(seconds(value)?),
            _ => return Err(
                "known are checkpoint:N, checkpoint-id:N, event:N, instructions:N, time:SECONDS, run-pending and end".into(),
            ),
        })
        .ok_or_else(String::new)
    }
}

/// A time in seconds: positive, finite, at most a year.
fn seconds(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|s: &f64| *s > 0.0 && *s <= 31_536_000.0)
        .ok_or_else(|| format!("{text:?} is no time in seconds"))
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvmx snapshot example:exits --backend soft --at checkpoint:3 --out x.ron
  nvmx snapshot example:timers --backend lab:6.12 --at time:2 --out x.ron
  nvmx snapshot example:exits --at run-pending --out pending.ron
  nvmx snapshot example:shadow --at event:5 --out nested-only.bin")]
pub(crate) struct Snapshot {
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// soft, kvm, remote:HOST:PORT, exec:COMMAND, lab, lab:6.1 or lab:6.12
    #[arg(long, value_name = "BACKEND", default_value = "soft")]
    pub(crate) backend: Spec,
    /// checkpoint:N, checkpoint-id:N, event:N, instructions:N, time:SECONDS, run-pending or end
    #[arg(long, value_name = "WHERE")]
    pub(crate) at: At,
    /// File to write: .bin for the kernel's raw nested state, else ours
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(crate) timeout: f64,
    /// A remark to keep in the snapshot
    #[arg(long, value_name = "TEXT")]
    pub(crate) note: Option<String>,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nvmx show x.ron\n  nvmx show state.bin --json | jq '.vcpus[0].findings'"
)]
pub(crate) struct Show {
    /// Snapshot (.bin: the kernel's raw nested state)
    pub(crate) file: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 if nothing differs or a policy explains every difference, 1 if something unexplained differs, 2 trouble.

Examples:
  nvmx diff before.ron after.ron
  nvmx diff x.bin x.ron
  nvmx diff soft.ron kvm.ron --json | jq '.rows[] | select(.class == \"architectural\")'")]
pub(crate) struct Diff {
    /// Left
    pub(crate) left: PathBuf,
    /// Right
    pub(crate) right: PathBuf,
    /// Every difference counts, explained or not
    #[arg(long)]
    pub(crate) strict: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: with --expect as diff's; else 0 if the run got where it should, 1 if the guest stopped before, 2 trouble.

Examples:
  nvmx replay x.ron --backend soft --events 1000
  nvmx replay x.ron --backend lab --checkpoints 10 --out y.ron
  nvmx replay x.ron --checkpoints 10 --expect y.ron")]
pub(crate) struct Replay {
    /// Snapshot with memory
    pub(crate) file: PathBuf,
    /// soft, kvm, remote:HOST:PORT, exec:COMMAND, lab, lab:6.1 or lab:6.12
    #[arg(long, value_name = "BACKEND", default_value = "soft")]
    pub(crate) backend: Spec,
    /// Stop after so many nested events
    #[arg(long, value_name = "COUNT", conflicts_with = "checkpoints")]
    pub(crate) events: Option<u64>,
    /// Stop after so many checkpoints of the guest
    #[arg(long, value_name = "COUNT")]
    pub(crate) checkpoints: Option<u64>,
    /// Write the snapshot that is reached
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Compare the snapshot that is reached with this one
    #[arg(long, value_name = "FILE")]
    pub(crate) expect: Option<PathBuf>,
    /// Give up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(crate) timeout: f64,
    /// Print nested entries and exits to standard error
    #[arg(long, value_name = "FORMAT", num_args = 0..=1, require_equals = true, default_missing_value = "text")]
    pub(crate) trace: Option<TraceFormat>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Both guests run from one checkpoint to the next (OUT to port 0x5e0) and are compared there in all that both backends
can see. The processor's model (CPUID, VMX capability MSRs) is that of the backend that is not soft.

Exit status: 0 same, 1 different (both sides are written), 2 trouble, or a run that says nothing.

Examples:
  nvmx compare example:exits soft lab
  nvmx compare example:ept soft lab:6.12 --iterations 500 --json
  nvmx compare kernel.elf soft kvm --checkpoints 100 --keep divergence")]
pub(crate) struct Compare {
    #[command(flatten)]
    pub(crate) guest: Guest,
    /// Left backend
    pub(crate) left: Spec,
    /// Right backend
    pub(crate) right: Spec,
    /// Stop after so many checkpoints
    #[arg(long, value_name = "COUNT")]
    pub(crate) checkpoints: Option<u64>,
    /// Time that a side may take from one checkpoint to the next, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(crate) timeout: f64,
    /// Where to write both sides if they differ: PREFIX-left.ron and PREFIX-right.ron
    #[arg(long, value_name = "PREFIX", default_value = "nvmx-divergence")]
    pub(crate) keep: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
A path ending in .bin holds the raw bytes of struct kvm_nested_state, any other a snapshot of ours. To .bin goes the
nested state alone. Raw bytes to ours and back are the same bytes.

Examples:
  nvmx convert state.bin state.ron
  nvmx convert x.ron nested.bin")]
pub(crate) struct Convert {
    /// File to read
    pub(crate) input: PathBuf,
    /// File to write
    pub(crate) output: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvmx lab fetch
  nvmx lab up
  nvmx lab run --kernel 6.12 -- cargo test")]
pub(crate) struct LabArguments {
    #[command(subcommand)]
    pub(crate) command: LabCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LabCommand {
    /// Start a lab, print its address, and keep it until interrupted
    Up(LabUp),
    /// Start a lab, run a command with NVMX_LAB set to its address, and end the lab
    Run(LabRun),
    /// Install and cache what labs need (Debian packages; root or sudo, network)
    Fetch(LabFetch),
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nvmx lab up\n  nvmx lab up --kernel 6.12 --listen 127.0.0.1:7000"
)]
pub(crate) struct LabUp {
    /// Kernel: 6.1 or 6.12
    #[arg(long, value_name = "KERNEL", default_value = "6.1")]
    pub(crate) kernel: nvmx_lab::Kernel,
    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    pub(crate) listen: String,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Exit status: the command's, or 2 if the lab did not start.\n\nExamples:\n  nvmx lab run -- nvmx backends --backend lab\n  nvmx lab run --kernel 6.12 -- make test-lab"
)]
pub(crate) struct LabRun {
    /// Kernel: 6.1 or 6.12
    #[arg(long, value_name = "KERNEL", default_value = "6.1")]
    pub(crate) kernel: nvmx_lab::Kernel,
    /// The command
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  nvmx lab fetch\n  nvmx lab fetch --kernel 6.1")]
pub(crate) struct LabFetch {
    /// Only this kernel: 6.1 or 6.12
    #[arg(long, value_name = "KERNEL")]
    pub(crate) kernel: Option<nvmx_lab::Kernel>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvmx agent --listen 127.0.0.1:7000
  ssh host nvmx agent --stdio")]
pub(crate) struct Agent {
    #[command(flatten)]
    pub(crate) channel: AgentChannel,
    /// Backend to serve: kvm or soft
    #[arg(long, value_name = "BACKEND", default_value = "kvm")]
    pub(crate) backend: Spec,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(crate) struct AgentChannel {
    /// Serve one client on standard input and output
    #[arg(long)]
    pub(crate) stdio: bool,
    /// Serve one client after the other on a TCP address
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) listen: Option<String>,
    /// Serve the lab's host (inside a lab)
    #[arg(long)]
    pub(crate) lab_channel: bool,
    /// Run programs for the lab's host (inside a lab)
    #[arg(long)]
    pub(crate) lab_programs: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nvmx completions bash > /etc/bash_completion.d/nvmx\n  nvmx completions zsh > ~/.zfunc/_nvmx"
)]
pub(crate) struct Completions {
    /// Shell
    pub(crate) shell: clap_complete::Shell,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent_and_every_command_has_examples() {
        fn check(command: &clap::Command) {
            let help = command
                .get_after_help()
                .map(ToString::to_string)
                .unwrap_or_default();
            assert!(
                help.contains("Examples:"),
                "{} has no examples",
                command.get_name()
            );
            command
                .get_subcommands()
                .filter(|c| c.get_name() != "help")
                .for_each(check);
        }
        Arguments::command().debug_assert();
        check(&Arguments::command());
    }

    #[test]
    fn places_to_stop_are_read_and_refused() {
        assert_eq!("checkpoint:3".parse(), Ok(At::Checkpoint(3)));
        assert_eq!("checkpoint-id:0x10".parse(), Ok(At::CheckpointId(16)));
        assert_eq!("run-pending".parse(), Ok(At::RunPending));
        assert_eq!("time:0.5".parse(), Ok(At::Time(0.5)));
        for text in [
            "",
            "checkpoint",
            "checkpoint:0",
            "event:x",
            "time:-1",
            "time:inf",
            "time:NaN",
            "end:1",
        ] {
            assert!(text.parse::<At>().is_err(), "{text}");
        }
    }
}
