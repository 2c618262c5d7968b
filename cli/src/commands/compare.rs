//! `nvmx compare`

use super::{boot, load, time};
use crate::args::Compare;
use crate::backend::{self, Machine, Spec};
use crate::{DIFFERENT, SAME, TROUBLE, output};
use nvmx_snapshots::compare::{self, Comparison, Options, Outcome, Side};
use serde_json::json;
use std::fmt::Write;
use std::path::{Path, PathBuf};

pub(crate) fn run(options: &Compare) -> anyhow::Result<u8> {
    let limits = Options {
        checkpoints: options.checkpoints,
        time: time(options.timeout)?,
    };
    let config = backend::config(options.guest.memory_size());
    let guest = load(&options.guest)?;
    let mut left = backend::open(&options.left, &config)?;
    let mut right = backend::open(&options.right, &config)?;
    align(&options.left, &mut left, &mut right)?;
    boot(&mut left, &guest)?;
    boot(&mut right, &guest)?;
    let name = |spec: &Spec, other: &Spec, side: &str| {
        if spec == other {
            format!("{spec} ({side})")
        } else {
            spec.to_string()
        }
    };
    let bar = output::spinner(format!("comparing {}", options.guest.image));
    let result = compare::compare(
        Side {
            name: name(&options.left, &options.right, "left"),
            vm: left.vm.as_mut(),
        },
        Side {
            name: name(&options.right, &options.left, "right"),
            vm: right.vm.as_mut(),
        },
        &limits,
        &mut |checkpoints, events| {
            bar.set_message(format!("{checkpoints} checkpoints, {events} nested events"));
        },
    );
    bar.finish_and_clear();
    let result = result?;
    let kept = keep(&options.keep, &result)?;
    if options.json {
        output::print_json(&as_json(&guest.description, &result, &kept))?;
    } else {
        output::print(&describe(&guest.description, &result, &kept))?;
    }
    Ok(match result.outcome {
        Outcome::Same => SAME,
        Outcome::Different(_) => DIFFERENT,
        Outcome::Poisoned(_) => TROUBLE,
    })
}

/// The side that is not the model decides what processor the guest sees.
fn align(left_spec: &Spec, left: &mut Machine, right: &mut Machine) -> anyhow::Result<()> {
    let (model, follower) = if *left_spec == Spec::Soft {
        (right, left)
    } else {
        (left, right)
    };
    Ok(compare::align(model.vm.as_mut(), follower.vm.as_mut())?)
}

/// Writes both sides of a divergence.
fn keep(prefix: &Path, result: &Comparison) -> anyhow::Result<Vec<PathBuf>> {
    let Outcome::Different(divergence) = &result.outcome else {
        return Ok(Vec::new());
    };
    let mut paths = Vec::new();
    for (side, snapshot) in [("left", &divergence.left), ("right", &divergence.right)] {
        let mut name = prefix.as_os_str().to_owned();
        name.push(format!("-{side}.ron"));
        let path = PathBuf::from(name);
        nvmx_snapshots::save(&path, snapshot)?;
        paths.push(path);
    }
    Ok(paths)
}

fn outcome(result: &Comparison) -> (&'static str, Option<&str>) {
    match &result.outcome {
        Outcome::Same => ("same", None),
        Outcome::Different(divergence) => ("different", Some(&divergence.what)),
        Outcome::Poisoned(why) => ("poisoned", Some(why)),
    }
}

fn as_json(image: &str, result: &Comparison, kept: &[PathBuf]) -> serde_json::Value {
    let (word, why) = outcome(result);
    let diff = match &result.outcome {
        Outcome::Different(divergence) => Some(&divergence.diff),
        _ => None,
    };
    json!({
        "image": image,
        "outcome": word,
        "why": why,
        "checkpoints": result.checkpoints,
        "nested_events": result.events,
        "compared_nested_events": result.compared_events,
        "compared_pages": result.compared_pages,
        "explained": result.explained,
        "not_compared": result.not_compared,
        "stop": format!("{:?}", result.stop),
        "diff": diff,
        "kept": kept,
    })
}

fn describe(image: &str, result: &Comparison, kept: &[PathBuf]) -> String {
    let (word, why) = outcome(result);
    let mut text = format!(
        "{image}: {word}\n  {} checkpoints, {} and {} nested events, {} of them compared, {} pages compared\n",
        result.checkpoints,
        result.events[0],
        result.events[1],
        result.compared_events,
        result.compared_pages
    );
    if let Some(why) = why {
        let _ = writeln!(text, "  {why}");
    }
    if let Some(stop) = &result.stop {
        let _ = writeln!(text, "  last common stop: {stop}");
    }
    for (policy, count) in &result.explained {
        let _ = writeln!(text, "  explained by {policy}: {count}");
    }
    for part in &result.not_compared {
        let _ = writeln!(text, "  not compared: {part}");
    }
    if let Outcome::Different(divergence) = &result.outcome {
        text.push_str(&output::highlight(&divergence.diff.to_string()));
    }
    for path in kept {
        let _ = writeln!(text, "  kept {}", path.display());
    }
    text
}
