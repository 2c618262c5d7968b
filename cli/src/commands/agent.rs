//! `nvmx agent`

use crate::args::Agent;
use crate::backend::{self, Spec};
use crate::{SAME, output};
use anyhow::{Context, bail};
use nvmx_core::vcpu::{BackendError, Vm, VmConfig};
use nvmx_lab::GuestChannel;
use nvmx_remote::{agent, transport};
use std::net::TcpListener;

pub(crate) fn run(options: &Agent) -> anyhow::Result<u8> {
    if !matches!(options.backend, Spec::Kvm | Spec::Soft) {
        bail!("--backend {}: an agent serves kvm or soft", options.backend);
    }
    let mut make = |config: &VmConfig| -> nvmx_core::vcpu::Result<Box<dyn Vm>> {
        match &options.backend {
            // The typed error, so that the client learns the errno.
            Spec::Kvm => Ok(Box::new(nvmx_kvm::KvmVm::new(config)?)),
            spec => backend::open(spec, config)
                .map(|machine| machine.vm)
                .map_err(|e| BackendError::Other(format!("{e:#}"))),
        }
    };
    if options.channel.stdio {
        agent::serve(transport::StandardStreams, &mut make)?;
    } else if options.channel.lab_channel {
        let channel = GuestChannel::open().context("the lab's channel")?;
        serve_lab(channel, &mut make)?;
    } else if options.channel.lab_programs {
        let channel = GuestChannel::open().context("the lab's channel")?;
        nvmx_lab::programs::serve(channel)?;
    } else if let Some(address) = &options.channel.listen {
        let listener = TcpListener::bind(address).with_context(|| format!("--listen {address}"))?;
        let address = listener.local_addr().context("--listen")?;
        output::print(&format!("{address}\n"))?;
        transport::serve_tcp(&listener, &mut make)?;
    }
    Ok(SAME)
}

/// The channel outlives its clients: one that leaves nonsense behind ends only its own session.
fn serve_lab(
    mut channel: GuestChannel,
    make: &mut dyn FnMut(&VmConfig) -> nvmx_core::vcpu::Result<Box<dyn Vm>>,
) -> anyhow::Result<()> {
    const TRIES: usize = 1000;
    for _ in 0..TRIES {
        match agent::serve(&mut channel, make) {
            Ok(()) => return Ok(()),
            Err(error) => output::say(&format!("session ended: {error}")),
        }
    }
    bail!("the lab's channel failed {TRIES} times")
}
