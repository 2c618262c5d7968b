//! `nvmx snapshot`

use super::{boot, load, meta, time};
use crate::args::{At, Snapshot};
use crate::{SAME, backend, output};
use anyhow::bail;
use nvmx_machine::{Driver, Stop};
use nvmx_snapshots::replay::{self, Until};
use std::time::Duration;

pub(crate) fn run(options: &Snapshot) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let config = backend::config(options.guest.memory_size());
    let guest = load(&options.guest)?;
    let mut machine = backend::open(&options.backend, &config)?;
    boot(&mut machine, &guest)?;
    let bar = output::spinner(format!("running {}", options.guest.image));
    let mut driver = Driver::default();
    let outcome = replay::run(
        machine.vm.as_mut(),
        &until(options.at, limit),
        &mut driver,
        &mut |events| {
            bar.set_message(format!(
                "running {}: {events} nested events",
                options.guest.image
            ));
        },
    );
    bar.finish_and_clear();
    let outcome = outcome?;
    let ended =
        options.at == At::End && !matches!(outcome.stop, Stop::Budget | Stop::Unsupported(_));
    if !outcome.reached && !ended {
        bail!(
            "--at {} was not reached: the guest stopped at {} after {} checkpoints and {} nested events; no snapshot written",
            options.at,
            outcome.stop,
            outcome.checkpoints.len(),
            outcome.events.len()
        );
    }
    let mut origin = meta(&machine, Some(guest.description));
    origin.note = options.note.clone();
    let snapshot = replay::capture_written(machine.vm.as_mut(), origin)?;
    nvmx_snapshots::save(&options.out, &snapshot)?;
    Ok(SAME)
}

fn until(at: At, limit: Duration) -> Until {
    let mut until = Until {
        time: Some(limit),
        ..Until::default()
    };
    match at {
        At::Checkpoint(count) => until.checkpoints = Some(count),
        At::CheckpointId(id) => until.checkpoint_id = Some(id),
        At::Event(count) => until.nested_events = Some(count),
        At::Instructions(count) => until.instructions = Some(count),
        At::Time(seconds) => until.time = Some(Duration::from_secs_f64(seconds)),
        At::RunPending => until.run_pending = true,
        At::End => {}
    }
    until
}
