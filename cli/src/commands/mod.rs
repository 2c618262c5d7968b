//! One command a file; each answers its exit status.

pub(crate) mod agent;
pub(crate) mod backends;
#[cfg(feature = "soft")]
pub(crate) mod campaign;
pub(crate) mod check;
pub(crate) mod compare;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod diff;
pub(crate) mod lab;
pub(crate) mod profiles;
pub(crate) mod replay;
pub(crate) mod run;
#[cfg(feature = "soft")]
pub(crate) mod shim;
pub(crate) mod show;
pub(crate) mod snapshot;
mod whereabouts;

use crate::args::{Guest, TraceFormat};
use crate::backend::Machine;
use crate::{events, image};
use anyhow::Context;
use nvmx_core::vcpu::NestedEvent;
use nvmx_snapshots::Meta;
use std::io::Write;
use std::time::Duration;

/// Loads a guest's image for a machine with that much RAM.
fn load(guest: &Guest) -> anyhow::Result<image::Guest> {
    let extra = image::Extra {
        command_line: &guest.append,
        initrd: guest.initrd.as_deref(),
        memory_size: guest.memory_size(),
        iterations: guest.iterations,
    };
    image::open(&guest.image, &extra)
}

/// Puts a guest into a machine.
fn boot(machine: &mut Machine, guest: &image::Guest) -> anyhow::Result<()> {
    nvmx_machine::boot(machine.vm.as_mut(), &guest.image).context("loading the guest")
}

/// A time limit from the command line.
fn time(seconds: f64) -> anyhow::Result<Duration> {
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|time| !time.is_zero())
        .with_context(|| format!("{seconds} is no time in seconds"))
}

/// Where a snapshot that this command takes comes from.
fn meta(machine: &Machine, image: Option<String>) -> Meta {
    let words: Vec<_> = std::env::args().skip(1).collect();
    Meta {
        taken_by: machine.vm.capabilities().description.clone(),
        kernel: machine.kernel.clone(),
        created_by: Some(format!("nvmx {}", words.join(" "))),
        image,
        note: None,
    }
}

/// Prints nested events to standard error.
fn trace(format: Option<TraceFormat>, all: &[NestedEvent]) -> anyhow::Result<()> {
    let Some(format) = format else { return Ok(()) };
    let mut out = std::io::BufWriter::new(std::io::stderr().lock());
    for event in all {
        let line = match format {
            TraceFormat::Text => events::line(event),
            TraceFormat::Json => events::json(event)?,
        };
        writeln!(out, "{line}")?;
    }
    Ok(())
}
