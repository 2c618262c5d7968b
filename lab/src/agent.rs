//! The program that runs in the guest: a static nvmx without GPL code, found or built from the sources.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{IoContext, LabError, Reason};

/// A ready-made agent.
const VARIABLE: &str = "NVMX_AGENT";
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The agent: from `NVMX_AGENT`, beside this program as `nvmx-agent`, or built from the sources that this program or
/// the current directory is in. `say` hears of what takes long.
///
/// # Errors
/// `BadConfig` if there is none and it cannot be built, with the reason.
pub fn find(say: &mut dyn FnMut(&str)) -> Result<PathBuf, LabError> {
    if let Some(path) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(path);
        if !path.is_file() {
            return Err(missing(format!(
                "{VARIABLE}={}: there is no such file",
                path.display()
            )));
        }
        return Ok(path);
    }
    let program = std::env::current_exe().while_doing(|| "finding the agent".into())?;
    let beside = program.with_file_name("nvmx-agent");
    if beside.is_file() {
        return Ok(beside);
    }
    let here = std::env::current_dir().while_doing(|| "finding the agent".into())?;
    match source_tree(&program).or_else(|| source_tree(&here)) {
        Some(root) => build(&root, say),
        None => Err(missing(format!(
            "an agent for the lab: set {VARIABLE} to a static nvmx, or put it beside {} as nvmx-agent; \
             it is built with RUSTFLAGS=\"-C target-feature=+crt-static\" cargo build --profile agent \
             --no-default-features --target {TARGET} -p nvmx",
            program.display()
        ))),
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
fn build(root: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf, LabError> {
    let target = root.join("target/agent");
    let path = target.join(TARGET).join("agent/nvmx");
    if !path.is_file() {
        say("building the lab's agent; this takes a minute or two, once");
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
        ])
        .args([
            "-p",
            "nvmx",
            "--bin",
            "nvmx",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .output()
        .while_doing(|| "starting cargo to build the lab's agent".into())?;
    if built.status.success() {
        return Ok(path);
    }
    Err(missing(format!(
        "the lab's agent, which does not build ({}):\n{}",
        built.status,
        String::from_utf8_lossy(&built.stderr)
    )))
}

fn missing(what: String) -> LabError {
    LabError::preparing(Reason::BadConfig(what))
}
