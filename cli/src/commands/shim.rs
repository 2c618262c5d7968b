//! `nvmx shim`

use crate::args::Shim;
use crate::{SAME, output};
use anyhow::Context;
use nvmx_shim::report::{self, Entry};
use std::ffi::OsString;
use std::fmt::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// The library that goes before the C library.
const LIBRARY: &str = "libnvmx_preload.so";

pub(crate) fn run(options: &Shim) -> anyhow::Result<u8> {
    if options.list {
        let entries = report::entries();
        if options.json {
            output::print_json(&entries)?;
        } else {
            output::print(&list(&entries))?;
        }
        return Ok(SAME);
    }
    let [program, arguments @ ..] = options.command.as_slice() else {
        anyhow::bail!("no program is named");
    };
    let mut command = Command::new(program);
    command.args(arguments).env("LD_PRELOAD", preload()?);
    if let Some(profile) = options.cpu {
        command.env("NVMX_SHIM_PROFILE", profile.name);
    }
    if let Some(detail) = &options.log {
        command.env("NVMX_SHIM_LOG", detail);
    }
    Err(command.exec()).with_context(|| format!("starting {}", program.display()))
}

/// LD_PRELOAD with our library before what is there.
fn preload() -> anyhow::Result<OsString> {
    let mut list = library()?.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        list.push(":");
        list.push(others);
    }
    Ok(list)
}

/// Where the library is: where the environment says, or beside this command, or where cargo puts it.
fn library() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("NVMX_SHIM_LIBRARY") {
        return Ok(path.into());
    }
    let own = std::env::current_exe().context("finding this command")?;
    let folder = own.parent().context("finding this command's folder")?;
    ["", "deps", "../lib"]
        .iter()
        .map(|place| folder.join(place).join(LIBRARY))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "{LIBRARY} is not in {}: build it (cargo build --workspace), or name it in NVMX_SHIM_LIBRARY",
                folder.display()
            )
        })
}

fn list(entries: &[Entry]) -> String {
    let mut text = String::new();
    for entry in entries {
        let what = match (entry.absent, entry.value) {
            (Some(reason), _) => format!("no   {reason}"),
            (None, Some(value)) => format!("yes  {value}"),
            (None, None) => "yes".into(),
        };
        let _ = writeln!(
            text,
            "{:<10} {:<34} {:#10x}  {what}",
            entry.kind, entry.name, entry.number
        );
    }
    text
}
