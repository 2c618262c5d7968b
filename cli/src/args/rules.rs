//! What the commands about rules and processors take: `check`, `profiles`.

use clap::Args;
use nvmx_core::personality::Personality;
use nvmx_core::profiles::{self, Profile};
use std::path::PathBuf;

/// A processor by the name that `nvmx profiles` lists.
pub(crate) fn profile(text: &str) -> Result<&'static Profile, String> {
    profiles::find(text).ok_or_else(|| {
        let names: Vec<_> = profiles::names().map(|(name, _)| name).collect();
        format!("no such processor; known are {}", names.join(", "))
    })
}

#[derive(Debug, Args)]
#[command(after_help = "\
With several --profile the state is put on each of them, and the answer says where it restores and enters, and what
decides where it does not. A file of 4096 bytes that begins with KVM's VMCS revision is a bare VMCS region.

Exit status: 0 if no rule fails, 1 if one does, 2 trouble.

Examples:
  nvmx check x.ron
  nvmx check state.bin --json | jq '.[0].broken[].rule'
  nvmx check state.bin --profile sapphire-rapids --personality sdm
  nvmx check state.bin --profile kvm-6.12 --profile kvm-6.12-skylake")]
pub(crate) struct Check {
    /// Snapshot (.bin: the kernel's raw nested state, or a bare VMCS region)
    pub(crate) file: PathBuf,
    /// Processor to check for, several times to compare (default: the snapshot's own, else kvm-6.1)
    #[arg(long, value_name = "PROFILE", value_parser = profile)]
    pub(crate) profile: Vec<&'static Profile>,
    /// Whose behaviour, sdm or kvm (default: as the processor's)
    #[arg(long, value_name = "WHOSE")]
    pub(crate) personality: Option<Personality>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  nvmx profiles
  nvmx profiles sapphire-rapids
  nvmx profiles max --json | jq '.soft.dropped[].what'")]
pub(crate) struct Profiles {
    /// The one to show (default: list all)
    #[arg(value_parser = profile)]
    pub(crate) name: Option<&'static Profile>,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
