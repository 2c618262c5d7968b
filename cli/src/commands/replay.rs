//! `nvmx replay`

use super::{meta, time, trace};
use crate::args::Replay;
use crate::{DIFFERENT, SAME, TROUBLE, backend, output};
use anyhow::bail;
use nvmx_core::vcpu::VmConfig;
use nvmx_machine::{Driver, Stop};
use nvmx_snapshots::replay::{self, Until};
use nvmx_snapshots::{Diff, Target};
use serde_json::json;

pub(crate) fn run(options: &Replay) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let snapshot = nvmx_snapshots::load(&options.file)?;
    let expected = options
        .expect
        .as_deref()
        .map(nvmx_snapshots::load)
        .transpose()?;
    let Some(memory) = snapshot.memory.as_ref().filter(|_| snapshot.is_runnable()) else {
        bail!(
            "{}: cannot be run: it lacks memory or registers; take one with `nvmx snapshot`",
            options.file.display()
        );
    };
    let config = VmConfig {
        memory_size: memory.memory_size(),
        vcpus: snapshot.vcpus.len(),
    };
    let mut machine = backend::open(&options.backend, &config)?;
    nvmx_snapshots::restore(machine.vm.as_mut(), &snapshot, Target::Fresh)?;
    let until = Until {
        checkpoints: options.checkpoints,
        nested_events: options.events,
        time: Some(limit),
        ..Until::default()
    };
    let bar = output::spinner("replaying");
    let mut driver = Driver::default();
    let outcome = replay::run(machine.vm.as_mut(), &until, &mut driver, &mut |events| {
        bar.set_message(format!("replaying: {events} nested events"));
    });
    bar.finish_and_clear();
    let outcome = outcome?;
    trace(options.trace, &outcome.events)?;
    let origin = meta(&machine, snapshot.meta.image.clone());
    let reached = replay::capture_written(machine.vm.as_mut(), origin)?;
    if let Some(path) = &options.out {
        nvmx_snapshots::save(path, &reached)?;
    }
    let diff = expected.map(|expected| Diff::of(&expected, &reached));
    let to_the_end = options.checkpoints.is_none() && options.events.is_none();
    let poisoned = matches!(
        outcome.stop,
        Stop::Budget | Stop::Unsupported(_) | Stop::InternalError { .. } | Stop::FailEntry(_)
    );
    let got_there = outcome.reached || (to_the_end && !poisoned);
    if options.json {
        output::print_json(&json!({
            "stop": format!("{:?}", outcome.stop),
            "reached": got_there,
            "checkpoints": outcome.checkpoints,
            "nested_events": outcome.events.len(),
            "lost_nested_events": outcome.lost_events,
            "reports": outcome.reports,
            "diff": diff,
        }))?;
    } else {
        let mut text = format!(
            "stopped at {} after {} checkpoints and {} nested events\n",
            outcome.stop,
            outcome.checkpoints.len(),
            outcome.events.len()
        );
        if !got_there {
            text.push_str("the end asked for was not reached\n");
        }
        if let Some(diff) = &diff {
            text.push_str(&output::highlight(&diff.to_string()));
        }
        output::print(&text)?;
    }
    Ok(match (got_there, diff) {
        (false, _) if poisoned => TROUBLE,
        (false, _) => DIFFERENT,
        (true, Some(diff)) if diff.unexplained() > 0 => DIFFERENT,
        (true, _) => SAME,
    })
}
