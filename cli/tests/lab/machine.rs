//! An open lab, machines in it and beside it, and example guests to boot.

use anyhow::{Context, bail};
use nvmx_core::vcpu::VmConfig;
use nvmx_examples::{Params, guests};
use nvmx_lab::Kernel;
use nvmx_machine::{LoadOptions, LoadedImage};
use nvmx_remote::{RemoteVm, transport};
use nvmx_soft::SoftVm;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

/// Longest time that a guest may take from one stop to the next, with a busy neighbour.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// `nvmx lab up` in a process of its own, ended with this value.
pub(crate) struct OpenLab {
    process: Mutex<Child>,
    address: String,
}

impl OpenLab {
    /// Boots.
    pub(crate) fn start(kernel: Kernel) -> anyhow::Result<Self> {
        let mut process = Command::new(env!("CARGO_BIN_EXE_nvmx"))
            .args(["lab", "up", "--kernel", kernel.name()])
            .env_remove("NVMX_LAB")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("nvmx lab up")?;
        let mut address = String::new();
        if let Some(out) = process.stdout.take() {
            BufReader::new(out).read_line(&mut address)?;
        }
        let lab = Self {
            process: Mutex::new(process),
            address: address.trim().to_owned(),
        };
        if lab.address.is_empty() {
            bail!("nvmx lab up --kernel {kernel} did not come up");
        }
        Ok(lab)
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// Whether it still runs.
    pub(crate) fn is_alive(&self) -> bool {
        let mut process = self.process.lock().unwrap_or_else(|e| e.into_inner());
        matches!(process.try_wait(), Ok(None)) && self.machine().is_ok()
    }

    /// A new machine on the lab's KVM. One at a time.
    pub(crate) fn machine(&self) -> anyhow::Result<RemoteVm> {
        let stream = transport::connect_tcp(&self.address, transport::SILENCE)?;
        Ok(RemoteVm::connect(
            stream,
            "the lab".into(),
            &VmConfig::default(),
        )?)
    }
}

impl Drop for OpenLab {
    fn drop(&mut self) {
        let process = self.process.get_mut().unwrap_or_else(|e| e.into_inner());
        // Bochs dies with its parent.
        let _ = process.kill();
        let _ = process.wait();
    }
}

/// A new machine on the software model.
pub(crate) fn soft() -> anyhow::Result<SoftVm> {
    Ok(SoftVm::new(&VmConfig::default())?)
}

/// An example guest, ready to boot.
pub(crate) fn image(name: &str, iterations: u32) -> anyhow::Result<LoadedImage> {
    let guest = guests::find(name).with_context(|| format!("no example {name}"))?;
    let params = Params {
        iterations,
        ..Params::default()
    };
    let elf = (guest.build)(params)
        .context("building the guest")?
        .to_elf();
    let options = LoadOptions {
        memory_size: VmConfig::default().memory_size,
        ..LoadOptions::default()
    };
    nvmx_machine::load(&elf, options).context("loading the guest")
}
