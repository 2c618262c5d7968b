//! `nvmx run`

mod bochs;

use super::{boot, load, time, trace, whereabouts};
use crate::args::{Cpu, MachineKind, Run};
use crate::backend::{Machine, Spec};
use crate::{DIFFERENT, SAME, TROUBLE, backend, image, output};
use anyhow::Context;
use nvmx_core::profiles::{self, Profile};
use nvmx_core::trace::TraceHash;
use nvmx_core::vcpu::{Budget, Parts, VmConfig};
use nvmx_core::x86::cpuid::{self, CpuidEntry};
use nvmx_core::x86::{CpuState, msr};
use nvmx_machine::{Driver, Stop, pc};
use serde_json::json;
use std::io::{self, Read, Write};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// What came of a run.
struct Ran {
    /// The backend, for people.
    backend: String,
    console: Console,
    stop: Stop,
    checkpoints: u64,
    hash: TraceHash,
    lost_events: u64,
    reports: Vec<u32>,
    /// Where each vCPU stands, if it was no proper end.
    whereabouts: Vec<String>,
}

pub(crate) fn run(options: &Run) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let guest = load(&options.guest)?;
    let ran = match options.backend {
        Spec::Bochs => bochs::run(options, &guest, limit)?,
        _ => on_a_vm(options, &guest, limit)?,
    };
    if let Some(error) = ran.console.error() {
        return Err(error.into());
    }
    let status = status(&ran.stop, options.guest.is_example());
    if options.json {
        output::print_json(&json!({
            "image": guest.description,
            "backend": ran.backend,
            "stop": format!("{:?}", ran.stop),
            "status": status,
            "checkpoints": ran.checkpoints,
            "nested_events": ran.hash.events(),
            "trace_hash": ran.hash.to_string(),
            "lost_nested_events": ran.lost_events,
            "reports": ran.reports,
            "serial": String::from_utf8_lossy(ran.console.collected()),
        }))?;
    }
    match &ran.stop {
        Stop::DebugExit(_) | Stop::PowerOff | Stop::Halted => {}
        Stop::Budget => output::complain(&format!(
            "the guest did not end within {} s; raise --timeout",
            options.timeout
        )),
        Stop::Unsupported(what) => output::complain(&format!("unsupported: {what}")),
        stop => output::complain(&format!("the guest ended with {stop:?}")),
    }
    ran.whereabouts.iter().for_each(|line| output::say(line));
    Ok(status)
}

/// Runs the image on a backend behind the traits.
fn on_a_vm(options: &Run, guest: &image::Guest, limit: Duration) -> anyhow::Result<Ran> {
    let config = VmConfig {
        vcpus: options.smp.into(),
        ..backend::config(options.guest.memory_size())
    };
    let profile = profile(options);
    let personality = options.personality.or_else(|| {
        let profile = profile.filter(|_| options.backend == Spec::Soft)?;
        Some(profile.personality())
    });
    let mut machine = backend::open_as(&options.backend, &config, personality)?;
    if let Some(profile) = profile {
        set_processor(&mut machine, profile, options.backend == Spec::Soft)?;
    }
    boot(&mut machine, guest)?;
    let console = Console::new(options.json);
    let pc = match options.machine {
        Some(kind) => kind == MachineKind::Pc,
        None => options.backend == Spec::Soft && !options.guest.is_example(),
    };
    let mut driver = if pc {
        let config = pc::Config {
            memory_size: config.memory_size,
            processors: config.vcpus,
            command_line: options.guest.append.clone(),
            initrd: guest.initrd.clone(),
        };
        Driver::pc(console, &config, machine.vm.as_mut()).context("--machine pc")?
    } else {
        Driver::new(console)
    };
    let mut keyboard = pc.then(Keyboard::new);
    let mut checkpoints = 0_u64;
    let mut hash = TraceHash::default();
    let start = Instant::now();
    let stop = loop {
        let mut left = limit.saturating_sub(start.elapsed());
        if let Some(keyboard) = &mut keyboard {
            keyboard.type_into(&mut driver);
            left = left.min(Keyboard::LOOK_EVERY);
        }
        let stop = driver.run(machine.vm.as_mut(), Budget::time(left));
        let seen = driver.take_events();
        seen.iter().for_each(|event| hash.add(event));
        trace(options.trace, &seen)?;
        if let Some(error) = driver.serial().error() {
            return Err(error.into());
        }
        match stop? {
            Stop::Checkpoint(_) => checkpoints += 1,
            Stop::Budget => {}
            stop => break stop,
        }
        if limit <= start.elapsed() {
            break Stop::Budget;
        }
    };
    let whereabouts = if status(&stop, options.guest.is_example()) == TROUBLE {
        whereabouts::lines(machine.vm.as_mut())?
    } else {
        Vec::new()
    };
    Ok(Ran {
        backend: machine.vm.capabilities().description.clone(),
        stop,
        checkpoints,
        hash,
        lost_events: driver.lost_events(),
        reports: driver.reports().to_vec(),
        whereabouts,
        console: driver.into_serial(),
    })
}

/// The profile that the processors get; `None`: what the backend has by itself.
fn profile(options: &Run) -> Option<&'static Profile> {
    match options.cpu {
        Some(Cpu::Default) => None,
        Some(Cpu::Profile(profile)) => Some(profile),
        None if options.backend == Spec::Soft && !options.guest.is_example() => {
            profiles::find(profiles::DEFAULT)
        }
        None => None,
    }
}

/// Makes the processors what the profile says; on soft, as far as soft executes it.
fn set_processor(machine: &mut Machine, profile: &Profile, soft: bool) -> anyhow::Result<()> {
    let state = if soft {
        let fitted = profile.for_soft();
        for dropped in &fitted.dropped {
            tracing::debug!(
                "--cpu {}: without {}: {}",
                profile.name,
                dropped.what,
                dropped.reason
            );
        }
        fitted.state()
    } else {
        let numbers = msr::IA32_VMX_BASIC..;
        CpuState {
            cpuid: Some(profile.cpuid.to_vec()),
            msrs: Some(numbers.zip(profile.vmx_msrs()).collect()),
            ..CpuState::default()
        }
    };
    let count = machine.vm.vcpu_count();
    for index in 0..count {
        let vcpu = machine.vm.vcpu(index);
        let own = vcpu.state(Parts::All)?.cpuid.unwrap_or_default();
        let mut state = state.clone();
        if let Some(cpuid) = state.cpuid.as_mut().filter(|_| count > 1) {
            keep_topology(cpuid, &own);
        }
        vcpu.set_state(&state)
            .with_context(|| format!("--cpu {}", profile.name))?;
    }
    Ok(())
}

/// Which processor this is, and among how many, stays the machine's (SDM Vol. 3A "Hierarchical Mapping of
/// Shared Resources"): the initial APIC id and the number of ids in leaf 1, and leaf 0xb.
/// Leaf 0x1f would go before that one, so it goes.
fn keep_topology(cpuid: &mut Vec<CpuidEntry>, own: &[CpuidEntry]) {
    const IDS: u32 = 0xffff_0000;
    const SEVERAL: u32 = 1 << 28;
    const TOPOLOGY: u32 = 0xb;
    const TOPOLOGY_V2: u32 = 0x1f;
    let Some(from) = cpuid::find(own, 1, 0) else {
        return;
    };
    for entry in cpuid.iter_mut().filter(|entry| entry.leaf == 1) {
        entry.ebx = entry.ebx & !IDS | from.ebx & IDS;
        entry.edx = entry.edx & !SEVERAL | from.edx & SEVERAL;
    }
    cpuid.retain(|entry| ![TOPOLOGY, TOPOLOGY_V2].contains(&entry.leaf));
    cpuid.extend(own.iter().filter(|entry| entry.leaf == TOPOLOGY));
    cpuid.sort_by_key(|entry| (entry.leaf, entry.subleaf));
}

/// Standard input on its way to the guest's serial port: read by a thread, which a run never waits for.
struct Keyboard {
    bytes: Receiver<u8>,
    /// The byte that the serial port had no room for.
    waiting: Option<u8>,
}

impl Keyboard {
    /// How long what was typed may wait.
    const LOOK_EVERY: Duration = Duration::from_millis(20);

    fn new() -> Self {
        /// Read ahead of the guest.
        const MOST: usize = 4096;
        let (sender, bytes) = mpsc::sync_channel(MOST);
        std::thread::spawn(move || {
            for byte in io::stdin().lock().bytes() {
                let Ok(byte) = byte else { return };
                if sender.send(byte).is_err() {
                    return;
                }
            }
        });
        Self {
            bytes,
            waiting: None,
        }
    }

    /// Types what the serial port has room for.
    fn type_into<W: Write>(&mut self, driver: &mut Driver<W>) {
        while let Some(byte) = self.waiting.take().or_else(|| self.bytes.try_recv().ok()) {
            if !driver.type_byte(byte) {
                self.waiting = Some(byte);
                return;
            }
        }
    }
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
        Stop::Shutdown | Stop::Reset => DIFFERENT,
        _ => TROUBLE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_leaves_each_processor_its_number() {
        let leaf = |leaf, subleaf, ebx, edx| CpuidEntry {
            leaf,
            subleaf,
            ebx,
            edx,
            ..CpuidEntry::default()
        };
        let own = [
            leaf(1, 0, 0x0302_0800, 1 << 28 | 1),
            leaf(0xb, 0, 1, 3),
            leaf(0xb, 1, 4, 3),
        ];
        let mut cpuid = vec![
            leaf(0, 0, 7, 0),
            leaf(1, 0, 0x0010_0444, 6),
            leaf(0xb, 0, 9, 9),
            leaf(0x1f, 0, 9, 9),
        ];
        keep_topology(&mut cpuid, &own);
        let expected = [
            leaf(0, 0, 7, 0),
            leaf(1, 0, 0x0302_0444, 1 << 28 | 6),
            own[1],
            own[2],
        ];
        assert_eq!(cpuid, expected);
    }

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
