//! Backends by name: `soft`, `kvm`, `remote:ADDRESS`, `exec:COMMAND`, `lab[:KERNEL]`, `bochs`.

use crate::{lab, output};
use anyhow::Context;
use nvmx_core::personality::Personality;
use nvmx_core::vcpu::{Vm, VmConfig};
use nvmx_kvm::KvmVm;
use nvmx_lab::{Kernel, Lab};
use nvmx_remote::{RemoteVm, transport};
use std::fmt;
use std::process::Command;
use std::str::FromStr;

/// A backend as written on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Spec {
    /// The software model.
    Soft,
    /// /dev/kvm.
    Kvm,
    /// An agent at a TCP address.
    Remote(String),
    /// An agent that a command starts, spoken to over its standard input and output.
    Exec(String),
    /// Real KVM inside an emulated machine; the default kernel if none is named.
    Lab(Option<Kernel>),
    /// Bochs' own VMX: runs an image, and nobody looks into it.
    Bochs,
}

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "soft" => Ok(Self::Soft),
            None if text == "kvm" => Ok(Self::Kvm),
            None if text == "lab" => Ok(Self::Lab(None)),
            None if text == "bochs" => Ok(Self::Bochs),
            Some(("lab", kernel)) => kernel
                .parse()
                .map(|kernel| Self::Lab(Some(kernel)))
                .map_err(|e: nvmx_lab::config::UnknownKernel| e.to_string()),
            Some(("remote", address)) => match transport::tcp_address(address) {
                Some(_) => Ok(Self::Remote(address.into())),
                None => Err(format!("{address:?} is no address; write remote:HOST:PORT")),
            },
            Some(("exec", command)) if !command.trim().is_empty() => Ok(Self::Exec(command.into())),
            _ => Err(
                "known are soft, kvm, remote:HOST:PORT, exec:COMMAND, lab, lab:6.1, lab:6.12 and bochs"
                    .into(),
            ),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Soft => f.write_str("soft"),
            Self::Kvm => f.write_str("kvm"),
            Self::Remote(address) => write!(f, "remote:{address}"),
            Self::Exec(command) => write!(f, "exec:{command}"),
            Self::Lab(None) => f.write_str("lab"),
            Self::Bochs => f.write_str("bochs"),
            Self::Lab(Some(kernel)) => write!(f, "lab:{kernel}"),
        }
    }
}

/// A machine, and what must live as long as it.
pub(crate) struct Machine {
    /// The machine. Before the lab that it is in: it is dropped first.
    pub(crate) vm: Box<dyn Vm>,
    /// Kernel that KVM is in, where we know it.
    pub(crate) kernel: Option<String>,
    _lab: Option<Lab>,
}

impl Machine {
    fn new(vm: impl Vm + 'static) -> Self {
        Self {
            vm: Box::new(vm),
            kernel: None,
            _lab: None,
        }
    }
}

impl Machine {
    /// What makes the machines of one backend one after the other, this one first. The old one is put
    /// away before the next is made, since a lab's agent has one at a time.
    #[cfg(feature = "soft")]
    pub(crate) fn into_series(
        self,
        spec: Spec,
        config: VmConfig,
    ) -> impl FnMut(Option<Box<dyn Vm>>) -> anyhow::Result<Box<dyn Vm>> {
        let Self { vm, mut _lab, .. } = self;
        let mut first = Some(vm);
        move |old| {
            drop(old);
            if let Some(vm) = first.take() {
                return Ok(vm);
            }
            match &mut _lab {
                Some(lab) => Ok(Box::new(RemoteVm::connect(
                    lab.stream(),
                    "the lab".into(),
                    &config,
                )?)),
                None => Ok(open(&spec, &config)?.vm),
            }
        }
    }
}

/// Makes a machine on a backend.
pub(crate) fn open(spec: &Spec, config: &VmConfig) -> anyhow::Result<Machine> {
    open_as(spec, config, None)
}

/// Makes a machine on a backend, with this behaviour where it is ours to choose.
pub(crate) fn open_as(
    spec: &Spec,
    config: &VmConfig,
    personality: Option<Personality>,
) -> anyhow::Result<Machine> {
    open_inner(spec, config, personality).with_context(|| format!("backend {spec}"))
}

fn open_inner(
    spec: &Spec,
    config: &VmConfig,
    personality: Option<Personality>,
) -> anyhow::Result<Machine> {
    if personality.is_some() && *spec != Spec::Soft {
        anyhow::bail!("its behaviour is its own; --personality is for soft");
    }
    match spec {
        Spec::Soft => soft(config, personality),
        Spec::Bochs => anyhow::bail!(
            "bare Bochs runs images and is not looked into: it serves `nvmx run` and `nvmx campaign`"
        ),
        Spec::Kvm => {
            let mut machine = Machine::new(KvmVm::new(config)?);
            machine.kernel = host_kernel();
            Ok(machine)
        }
        Spec::Remote(address) => Ok(Machine::new(connect(address, config)?)),
        Spec::Exec(line) => {
            // Words as they stand: a command that needs a shell names one.
            let mut words = line.split_whitespace();
            let mut command = Command::new(words.next().unwrap_or_default());
            command.args(words);
            let stream = transport::ChildStream::spawn(&mut command, transport::SILENCE)?;
            Ok(Machine::new(RemoteVm::connect(
                stream,
                line.clone(),
                config,
            )?))
        }
        Spec::Lab(kernel) => {
            // `nvmx lab run` and `nvmx lab up` leave a lab open for others.
            if let Some(address) = lab::running(*kernel) {
                let stream = transport::connect_tcp(&address, transport::SILENCE)?;
                let vm = RemoteVm::connect(stream, "the lab".into(), config)?;
                let mut machine = Machine::new(vm);
                machine.kernel = lab::running_version();
                return Ok(machine);
            }
            let bar = output::spinner("starting the lab");
            let mut lab = lab::start(*kernel, &bar)?;
            bar.finish_and_clear();
            let vm = RemoteVm::connect(lab.stream(), "the lab".into(), config)?;
            Ok(Machine {
                vm: Box::new(vm),
                kernel: Some(lab.kernel_version().to_owned()),
                _lab: Some(lab),
            })
        }
    }
}

fn connect(address: &str, config: &VmConfig) -> anyhow::Result<RemoteVm> {
    let stream = transport::connect_tcp(address, transport::SILENCE)?;
    Ok(RemoteVm::connect(stream, address.to_owned(), config)?)
}

fn host_kernel() -> Option<String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?;
    Some(format!("Linux {}", release.trim()))
}

#[cfg(feature = "soft")]
fn soft(config: &VmConfig, personality: Option<Personality>) -> anyhow::Result<Machine> {
    let mut vm = nvmx_soft::SoftVm::new(config)?;
    if let Some(personality) = personality {
        vm.set_personality(personality);
    }
    Ok(Machine::new(vm))
}

#[cfg(not(feature = "soft"))]
fn soft(_config: &VmConfig, _personality: Option<Personality>) -> anyhow::Result<Machine> {
    anyhow::bail!("this nvmx was built without it; build with the cargo feature `soft`")
}

/// A machine with that much RAM and one vCPU.
pub(crate) fn config(memory_size: u64) -> VmConfig {
    VmConfig {
        memory_size,
        vcpus: 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_they_are_written() {
        for text in [
            "soft",
            "kvm",
            "lab",
            "lab:6.1",
            "lab:6.12",
            "bochs",
            "remote:host:1",
            "exec:ssh h nvmx agent --stdio",
        ] {
            assert_eq!(text.parse::<Spec>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "qemu",
            "lab:5.0",
            "remote:",
            "remote:host",
            "exec:",
            "soft:1",
            "remote:h:99999",
        ] {
            assert!(text.parse::<Spec>().is_err(), "{text}");
        }
    }
}
