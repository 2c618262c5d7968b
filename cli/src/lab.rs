//! The lab as a backend: finds or builds the agent, boots, and knows labs that others keep open.

use crate::output;
use indicatif::ProgressBar;
use nvmx_lab::{Kernel, Lab, LabConfig};

/// Address of an open lab, as `nvmx lab run` gives it to its command.
pub(crate) const LAB_VARIABLE: &str = "NVMX_LAB";
/// Kernel of that lab.
pub(crate) const LAB_KERNEL_VARIABLE: &str = "NVMX_LAB_KERNEL";
/// Package and version of that kernel.
pub(crate) const LAB_VERSION_VARIABLE: &str = "NVMX_LAB_VERSION";

/// The address of a lab that is open with this kernel.
pub(crate) fn running(kernel: Option<Kernel>) -> Option<String> {
    let address = std::env::var(LAB_VARIABLE)
        .ok()
        .filter(|address| !address.is_empty())?;
    let theirs = std::env::var(LAB_KERNEL_VARIABLE).ok();
    let fits = match (kernel, &theirs) {
        (Some(kernel), Some(theirs)) => kernel.name() == theirs,
        _ => true,
    };
    fits.then_some(address)
}

/// Package and version of the kernel in an open lab.
pub(crate) fn running_version() -> Option<String> {
    std::env::var(LAB_VERSION_VARIABLE).ok()
}

/// Boots a lab with our agent in it.
pub(crate) fn start(kernel: Option<Kernel>, bar: &ProgressBar) -> anyhow::Result<Lab> {
    let agent = nvmx_lab::agent::find(&mut output::say)?;
    let mut config = LabConfig::new(kernel.unwrap_or(Kernel::V6_1), agent);
    config.agent_args = vec!["agent".into(), "--lab-channel".into()];
    let name = config.kernel.name();
    let lab = Lab::start(&config, &mut |stage, _| {
        bar.set_message(format!("lab with kernel {name}: {stage}"));
    })?;
    Ok(lab)
}
