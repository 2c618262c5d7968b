//! The arguments of `nvmx shim`.

use clap::Args;
use nvmx_core::profiles::Profile;
use std::ffi::OsString;

#[derive(Debug, Args)]
#[command(after_help = "\
The program is started with a library before its C library (LD_PRELOAD) that answers for /dev/kvm, so it must be
dynamically linked. Neither VMX nor a /dev/kvm is needed. NVMX_SHIM_LIBRARY names the library where it is not beside
this command; NVMX_SHIM_PROFILE and NVMX_SHIM_LOG say what --cpu and --log say.

Exit status: the program's, or 2 if it did not start.

Examples:
  nvmx shim -- ./state_test
  nvmx shim --cpu kvm-6.1 --log warn -- qemu-system-x86_64 -accel kvm -nographic
  nvmx shim --list
  nvmx shim --list --json | jq '.[] | select(.absent)'")]
pub(crate) struct Shim {
    /// Print every ioctl and capability of the API, and why one is absent
    #[arg(long)]
    pub(crate) list: bool,
    /// Print the list as JSON
    #[arg(long, requires = "list")]
    pub(crate) json: bool,
    /// The processor that is offered to guests: a profile (default: kvm-6.12)
    #[arg(long, value_name = "PROFILE", value_parser = super::rules::profile)]
    pub(crate) cpu: Option<&'static Profile>,
    /// What is told on standard error: off, error (what the model lacks), warn (calls refused, too) or trace
    #[arg(long, value_name = "DETAIL", value_parser = ["off", "error", "warn", "trace"])]
    pub(crate) log: Option<String>,
    /// The program and its arguments
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        required_unless_present = "list"
    )]
    pub(crate) command: Vec<OsString>,
}
