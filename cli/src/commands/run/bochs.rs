//! `nvmx run --backend bochs`: the image on bare Bochs, and what is heard of it.

use super::{Console, Ran};
use crate::args::{Cpu, Run};
use crate::commands::trace;
use crate::image;
use anyhow::bail;
use nvmx_core::trace::TraceHash;
use nvmx_lab::bare::{self, Bare, BareConfig, Said};
use nvmx_machine::{Stop, ports};
use std::io::Write;
use std::time::{Duration, Instant};

/// Bochs' models, by the profile that was read in them.
const MODELS: [(&str, &str); 3] = [
    ("bochs-icelake", "corei7_icelake_u"),
    ("bochs-skylake", "corei7_skylake_x"),
    ("bochs-tigerlake", "tigerlake"),
];

pub(super) fn run(options: &Run, guest: &image::Guest, limit: Duration) -> anyhow::Result<Ran> {
    let config = config(options)?;
    let mut machine = Bare::start(&guest.image, &config)?;
    let mut ran = Ran {
        backend: bare::capabilities().description,
        console: Console::new(options.json),
        stop: Stop::Budget,
        checkpoints: 0,
        hash: TraceHash::default(),
        lost_events: 0,
        reports: Vec::new(),
        whereabouts: Vec::new(),
    };
    let mut trouble = None;
    ran.stop = machine.run(Instant::now() + limit, &mut |said| match said {
        Said::Serial(bytes) => {
            let _ = ran.console.write_all(&bytes);
        }
        Said::Port { port, .. } if port == ports::CHECKPOINT => ran.checkpoints += 1,
        Said::Port { port, value } if port == ports::REPORT => ran.reports.push(value),
        Said::Nested(event) => {
            ran.hash.add(&event);
            let traced = trace(options.trace, &[event]);
            trouble = trouble.take().or(traced.err());
        }
        _ => {}
    });
    match trouble {
        Some(error) => Err(error),
        None => Ok(ran),
    }
}

fn config(options: &Run) -> anyhow::Result<BareConfig> {
    let mib = options.guest.memory_size() >> 20;
    if !options.guest.memory_size().is_multiple_of(1 << 20) {
        bail!("bare Bochs has whole MiB of RAM");
    }
    if options.smp != 1 {
        bail!("bare Bochs runs one processor here; --smp is for soft");
    }
    if options.machine.is_some() {
        bail!("bare Bochs has the devices of its own PC; --machine is for soft");
    }
    if options.personality.is_some() {
        bail!("its behaviour is its own; --personality is for soft");
    }
    let mut config = BareConfig {
        megs: u32::try_from(mib).unwrap_or(u32::MAX),
        exits: options.trace.is_some() || options.json,
        ..BareConfig::default()
    };
    if let Some(Cpu::Profile(profile)) = options.cpu {
        let Some((_, model)) = MODELS.iter().find(|(name, _)| *name == profile.name) else {
            let known: Vec<_> = MODELS.iter().map(|(name, _)| *name).collect();
            bail!(
                "bare Bochs is no {}; it can be {}",
                profile.name,
                known.join(", ")
            );
        };
        config.cpu_model = (*model).to_owned();
    }
    Ok(config)
}
