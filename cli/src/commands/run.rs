//! `nvmx run`

use super::{boot, load, time, trace};
use crate::args::Run;
use crate::{DIFFERENT, SAME, TROUBLE, backend, output};
use nvmx_core::vcpu::Budget;
use nvmx_machine::{Driver, Stop};
use serde_json::json;
use std::time::Instant;

pub(crate) fn run(options: &Run) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let config = backend::config(options.guest.memory)?;
    let guest = load(&options.guest)?;
    let mut machine = backend::open(&options.backend, &config)?;
    boot(&mut machine, &guest)?;
    let bar = output::spinner(format!("{} on {}", options.guest.image, options.backend));
    let mut driver = Driver::default();
    let (mut printed, mut checkpoints, mut events) = (0, 0_u64, 0_u64);
    let start = Instant::now();
    let stop = loop {
        let left = limit.saturating_sub(start.elapsed());
        let stop = driver.run(machine.vm.as_mut(), Budget::time(left));
        let seen = driver.take_events();
        events += seen.len() as u64;
        trace(options.trace, &seen)?;
        if !options.json {
            output::print(&String::from_utf8_lossy(&driver.serial()[printed..]))?;
        }
        printed = driver.serial().len();
        match stop? {
            Stop::Checkpoint(_) => checkpoints += 1,
            stop => break stop,
        }
        bar.set_message(format!(
            "{}: {checkpoints} checkpoints, {events} nested events",
            options.guest.image
        ));
        if limit <= start.elapsed() {
            break Stop::Budget;
        }
    };
    bar.finish_and_clear();
    let status = status(&stop);
    if options.json {
        output::print_json(&json!({
            "image": guest.description,
            "backend": machine.vm.capabilities().description,
            "stop": format!("{stop:?}"),
            "status": status,
            "checkpoints": checkpoints,
            "nested_events": events,
            "lost_nested_events": driver.lost_events(),
            "reports": driver.reports(),
            "serial": String::from_utf8_lossy(driver.serial()),
        }))?;
    }
    match &stop {
        Stop::DebugExit(_) | Stop::PowerOff | Stop::Halted => {}
        Stop::Budget => output::complain(&format!(
            "the guest did not end within {} s; raise --timeout",
            options.timeout
        )),
        Stop::Unsupported(what) => output::complain(&format!("unsupported: {what}")),
        stop => output::complain(&format!("the guest ended with {stop:?}")),
    }
    Ok(status)
}

/// The exit status: see the help of `nvmx run`.
fn status(stop: &Stop) -> u8 {
    match stop {
        Stop::DebugExit(0 | 0x10) | Stop::PowerOff | Stop::Halted => SAME,
        Stop::DebugExit(value) => match u8::try_from(*value) {
            Ok(value) if value > TROUBLE => value,
            _ => DIFFERENT,
        },
        Stop::Shutdown => DIFFERENT,
        _ => TROUBLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_word_decides_but_trouble_stays_two() {
        for (stop, expected) in [
            (Stop::DebugExit(0x10), 0),
            (Stop::DebugExit(0), 0),
            (Stop::DebugExit(1), 1),
            (Stop::DebugExit(2), 1),
            (Stop::DebugExit(7), 7),
            (Stop::DebugExit(0x1_0000), 1),
            (Stop::PowerOff, 0),
            (Stop::Shutdown, 1),
            (Stop::Budget, 2),
            (Stop::Unsupported("x".into()), 2),
        ] {
            assert_eq!(status(&stop), expected, "{stop:?}");
        }
    }
}
