//! What `nvmx campaign` takes.

use crate::backend::Spec;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvmx campaign entry --count 100000 --backend lab
  nvmx campaign code --count 20000 --backend lab:6.12
  nvmx campaign replay case.ron --backend lab:6.12")]
pub(crate) struct CampaignArguments {
    #[command(subcommand)]
    pub(crate) command: CampaignCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum CampaignCommand {
    /// VM entries with a random vmcs12 at the boundary of validity
    Entry(CampaignEntry),
    /// A few random instructions of L2 under random controls, permissions and events
    Code(CampaignEntry),
    /// Run case files again
    Replay(CampaignReplay),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Exit status: 0 nothing unexplained differs, 1 something does (the cases are written), 2 trouble.

Examples:
  nvmx campaign entry --count 5000 --seed 7
  nvmx campaign entry --count 100000 --backend lab:6.12 --json
  nvmx campaign entry --count 20000 --backend lab:6.12 --backend bochs")]
pub(crate) struct CampaignEntry {
    /// Cases
    #[arg(long, value_name = "COUNT", default_value_t = 5000)]
    pub(crate) count: u64,
    /// Number of the first case
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    pub(crate) first: u64,
    /// Seed: with a case's number it decides the case
    #[arg(long, value_name = "SEED", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Whom the model is compared with: a backend, or bochs for bare Bochs. Of several, each runs the same
    /// cases, and the report says for each difference who sides with whom
    #[arg(long, value_name = "BACKEND", default_value = "lab")]
    pub(crate) backend: Vec<Spec>,
    /// Cases between two looks at the machines
    #[arg(long, value_name = "COUNT", default_value_t = 2048)]
    pub(crate) batch: usize,
    /// Time that a batch may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0)]
    pub(crate) timeout: f64,
    /// Where to write cases with an unexplained difference
    #[arg(long, value_name = "FOLDER", default_value = "nvmx-campaign")]
    pub(crate) keep: PathBuf,
    /// Where to write the simplest case of each explained class, by its name
    #[arg(long, value_name = "FOLDER")]
    pub(crate) keep_explained: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  nvmx campaign replay case.ron\n  nvmx campaign replay nvmx-campaign/*.ron --backend lab:6.12"
)]
pub(crate) struct CampaignReplay {
    /// Case files
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Whom the model is compared with, one after the other: a backend, or bochs for bare Bochs
    #[arg(long, value_name = "BACKEND", default_value = "lab")]
    pub(crate) backend: Vec<Spec>,
    /// Time that a case may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub(crate) timeout: f64,
}
