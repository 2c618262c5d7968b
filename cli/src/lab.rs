//! The lab as a backend: finds or builds the agent, boots, and knows labs that others keep open.

use crate::output;
use anyhow::{Context, bail};
use indicatif::ProgressBar;
use nvmx_lab::{Kernel, Lab, LabConfig};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Address of an open lab, as `nvmx lab run` gives it to its command.
pub(crate) const LAB_VARIABLE: &str = "NVMX_LAB";
/// Kernel of that lab.
pub(crate) const LAB_KERNEL_VARIABLE: &str = "NVMX_LAB_KERNEL";
/// Package and version of that kernel.
pub(crate) const LAB_VERSION_VARIABLE: &str = "NVMX_LAB_VERSION";
/// A ready-made agent.
const AGENT_VARIABLE: &str = "NVMX_AGENT";
const TARGET: &str = "x86_64-unknown-linux-gnu";

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
    let agent = agent()?;
    let mut config = LabConfig::new(kernel.unwrap_or(Kernel::V6_1), agent);
    config.agent_args = vec!["agent".into(), "--lab-channel".into()];
    let name = config.kernel.name();
    let lab = Lab::start(&config, &mut |stage, _| {
        bar.set_message(format!("lab with kernel {name}: {stage}"));
    })?;
    Ok(lab)
}

/// A static nvmx without GPL code: from `NVMX_AGENT`, beside this program, or built from the sources.
fn agent() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(AGENT_VARIABLE) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            bail!("{AGENT_VARIABLE}={}: there is no such file", path.display());
        }
        return Ok(path);
    }
    let program = std::env::current_exe().context("finding the agent")?;
    let beside = program.with_file_name("nvmx-agent");
    if beside.is_file() {
        return Ok(beside);
    }
    let here = std::env::current_dir().context("finding the agent")?;
    match source_tree(&program).or_else(|| source_tree(&here)) {
        Some(root) => build(&root),
        None => bail!(
            "no agent for the lab: set {AGENT_VARIABLE} to a static nvmx, or put it beside {} as nvmx-agent; \
             it is built with RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --profile agent \
             --no-default-features --target {TARGET} -p nvmx",
            program.display()
        ),
    }
}

/// The workspace that a path is in.
fn source_tree(path: &Path) -> Option<PathBuf> {
    path.ancestors()
        .find(|folder| {
            folder.join("cli/Cargo.toml").is_file() && folder.join("lab/Cargo.toml").is_file()
        })
        .map(Path::to_owned)
}

/// Builds the agent; nothing happens if it is up to date.
fn build(root: &Path) -> anyhow::Result<PathBuf> {
    let target = root.join("target/agent");
    let path = target.join(TARGET).join("agent/nvmx");
    if !path.is_file() {
        output::say("building the lab's agent; this takes a minute or two, once");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(root)
        .args([
            "build",
            "--quiet",
            "--profile",
            "agent",
            "--no-default-features",
            "-p",
            "nvmx",
            "--bin",
            "nvmx",
        ])
        .args(["--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .context("starting cargo to build the lab's agent")?;
    if !built.status.success() {
        bail!(
            "the lab's agent does not build ({}):\n{}",
            built.status,
            String::from_utf8_lossy(&built.stderr)
        );
    }
    Ok(path)
}
