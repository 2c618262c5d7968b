//! `nvmx run`

use super::{boot, load, time, trace};
use crate::args::Run;
use crate::{DIFFERENT, SAME, TROUBLE, backend, output};
use nvmx_core::trace::TraceHash;
use nvmx_core::vcpu::{Budget, VmConfig};
use nvmx_machine::{Driver, Stop};
use serde_json::json;
use std::io::{self, Write};
use std::time::Instant;

pub(crate) fn run(options: &Run) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let config = VmConfig {
        vcpus: options.smp.into(),
        ..backend::config(options.guest.memory_size())
    };
    let guest = load(&options.guest)?;
    let mut machine = backend::open_as(&options.backend, &config, options.personality)?;
    boot(&mut machine, &guest)?;
    let mut driver = Driver::new(Console::new(options.json));
    let mut checkpoints = 0_u64;
    let mut hash = TraceHash::default();
    let start = Instant::now();
    let stop = loop {
        let left = limit.saturating_sub(start.elapsed());
        let stop = driver.run(machine.vm.as_mut(), Budget::time(left));
        let seen = driver.take_events();
        seen.iter().for_each(|event| hash.add(event));
        trace(options.trace, &seen)?;
        if let Some(error) = driver.serial().error() {
            return Err(error.into());
        }
        match stop? {
            Stop::Checkpoint(_) => checkpoints += 1,
            stop => break stop,
        }
        if limit <= start.elapsed() {
            break Stop::Budget;
        }
    };
    let status = status(&stop, options.guest.is_example());
    if options.json {
        output::print_json(&json!({
            "image": guest.description,
            "backend": machine.vm.capabilities().description,
            "stop": format!("{stop:?}"),
            "status": status,
            "checkpoints": checkpoints,
            "nested_events": hash.events(),
            "trace_hash": hash.to_string(),
            "lost_nested_events": driver.lost_events(),
            "reports": driver.reports(),
            "serial": String::from_utf8_lossy(driver.serial().collected()),
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

/// Where the guest's serial port writes to.
enum Console {
    /// For the summary.
    Collect(Vec<u8>),
    /// Standard output, byte by byte, until that fails.
    Stream(Option<io::Error>),
}

impl Console {
    fn new(collect: bool) -> Self {
        if collect {
            Self::Collect(Vec::new())
        } else {
            Self::Stream(None)
        }
    }

    fn collected(&self) -> &[u8] {
        match self {
            Self::Collect(bytes) => bytes,
            Self::Stream(_) => &[],
        }
    }

    /// What standard output failed with.
    fn error(&self) -> Option<io::Error> {
        match self {
            Self::Stream(Some(error)) => Some(io::Error::new(error.kind(), error.to_string())),
            _ => None,
        }
    }
}

impl Write for Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Collect(all) => all.write(bytes),
            Self::Stream(error) => {
                let mut out = io::stdout().lock();
                let result = out
                    .write(bytes)
                    .and_then(|count| out.flush().map(|()| count));
                if let Err(e) = &result {
                    *error = Some(io::Error::new(e.kind(), e.to_string()));
                }
                result
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The exit status: see the help of `nvmx run`.
fn status(stop: &Stop, example: bool) -> u8 {
    /// What the examples write when all went well.
    const EXAMPLE_SUCCESS: u32 = 0x10;
    match stop {
        Stop::DebugExit(0) | Stop::PowerOff | Stop::Halted => SAME,
        Stop::DebugExit(EXAMPLE_SUCCESS) if example => SAME,
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
            (Stop::DebugExit(0x10), 16),
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
            assert_eq!(status(&stop, false), expected, "{stop:?}");
        }
        assert_eq!(status(&Stop::DebugExit(0x10), true), 0);
    }
}
