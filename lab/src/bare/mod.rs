//! An image on bare Bochs, whose own VMX serves it: no Linux, no KVM, no boot loader.
//!
//! Nobody can look into the machine while it runs. What it does is heard of: its serial port, and the log, which has
//! every write to a port without a device (checkpoints, reports, the debug exit) and, if asked for, every VM exit.

mod code;
mod log;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use nvmx_core::vcpu::{Capabilities, Capability};
use nvmx_machine::{LoadedImage, Stop, ports};
use rustix::fs::{FileType, Mode, OFlags};
use tempfile::TempDir;

use crate::bochs::{self, Bochs, Machine};
use crate::cache;
use crate::error::{IoContext, LabError, Reason};
use crate::lab::make_run_dir;

pub use log::Said;

/// What the image finds.
#[derive(Debug, Clone)]
pub struct BareConfig {
    /// Bochs' name of the processor.
    pub cpu_model: String,
    /// RAM in MiB, 1 to 2048.
    pub megs: u32,
    /// Hear of VM exits too: every one is lines in the log, and so is much else that the processor does.
    pub exits: bool,
    /// A disk on the second ATA channel.
    pub disk: Option<PathBuf>,
}

impl Default for BareConfig {
    /// Ice Lake with 64 MiB.
    fn default() -> Self {
        Self {
            cpu_model: "corei7_icelake_u".into(),
            megs: 64,
            exits: false,
            disk: None,
        }
    }
}

/// A machine that runs. It ends with its value.
#[derive(Debug)]
pub struct Bare {
    said: Receiver<Said>,
    /// Before the directory that it works in.
    bochs: Bochs,
    run_dir: TempDir,
}

impl Bare {
    /// Starts the image.
    ///
    /// # Errors
    /// `NotInstalled` without Bochs, `BadConfig` for an image that does not fit, else what the system said.
    pub fn start(image: &LoadedImage, config: &BareConfig) -> Result<Self, LabError> {
        const FEWEST: u32 = 1;
        const MOST: u32 = 2048;
        is_installed()?;
        if !(FEWEST..=MOST).contains(&config.megs) {
            let why = format!(
                "bare Bochs has {FEWEST} to {MOST} MiB of RAM, not {}",
                config.megs
            );
            return Err(LabError::preparing(Reason::BadConfig(why)));
        }
        let run_dir = make_run_dir()?;
        let at = |name: &str| run_dir.path().join(name);
        code::write(&at(bochs::BOOT_DISK), image).map_err(|error| match error.kind() {
            io::ErrorKind::InvalidInput => {
                LabError::preparing(Reason::BadConfig(error.to_string()))
            }
            _ => LabError::preparing(Reason::Io {
                what: "writing the boot disk".into(),
                source: error,
            }),
        })?;
        for name in [bochs::CONSOLE, bochs::LOG] {
            pipe(&at(name)).while_doing(|| format!("making the pipe {name}"))?;
        }
        let machine = Machine {
            cpu_model: config.cpu_model.clone(),
            megs: config.megs,
            second_disk: config.disk.clone(),
            debug: if config.exits {
                &["unmapped", "cpu0"]
            } else {
                &["unmapped"]
            },
            ignores_bad_msrs: false,
        };
        let bochs =
            Bochs::start(&machine, run_dir.path()).while_doing(|| "starting Bochs".into())?;
        let (say, said) = mpsc::channel();
        let (console, log) = (at(bochs::CONSOLE), at(bochs::LOG));
        let speak = say.clone();
        thread::spawn(move || serial(&console, &speak));
        thread::spawn(move || listen(&log, &say));
        Ok(Self {
            said,
            bochs,
            run_dir,
        })
    }

    /// The next thing heard of; `None` if there was nothing until `deadline`.
    pub fn next(&mut self, deadline: Instant) -> Option<Said> {
        /// How long Bochs' death goes unnoticed, if it dies without a word.
        const LOOK: Duration = Duration::from_millis(100);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let has_ended = self.bochs.end().get().is_some();
            match self.said.recv_timeout(left.min(LOOK)) {
                Ok(said) => return Some(said),
                // What it said before its end is all there, for its pipes are closed.
                Err(RecvTimeoutError::Disconnected) => return self.silent_end(),
                Err(RecvTimeoutError::Timeout) if has_ended => return self.silent_end(),
                Err(RecvTimeoutError::Timeout) if left <= LOOK => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Runs to the guest's end, or to `deadline`. `hear` hears of all that is not the end.
    pub fn run(&mut self, deadline: Instant, hear: &mut dyn FnMut(Said)) -> Stop {
        /// How long the last bytes of the serial port may be on their way.
        const LAST_WORDS: Duration = Duration::from_millis(300);
        let stop = loop {
            match self.next(deadline) {
                None => break Stop::Budget,
                Some(Said::Port { port, value }) if port == ports::DEBUG_EXIT => {
                    break Stop::DebugExit(value);
                }
                Some(Said::PowerOff) => break Stop::PowerOff,
                Some(Said::Shutdown) => break Stop::Shutdown,
                Some(Said::Died(message)) => {
                    break Stop::InternalError {
                        suberror: 0,
                        message,
                    };
                }
                Some(said) => hear(said),
            }
        };
        if stop == Stop::Budget {
            return stop;
        }
        while let Some(said) = self.next(Instant::now() + LAST_WORDS) {
            match said {
                Said::Serial(_) => hear(said),
                Said::Died(_) => break,
                _ => {}
            }
        }
        stop
    }

    fn silent_end(&self) -> Option<Said> {
        let end = self.bochs.end();
        let end = end.get()?;
        let said = [end.complaint.as_str(), end.status.as_str()];
        said.into_iter()
            .find(|text| !text.is_empty())
            .map(|text| Said::Died(text.to_owned()))
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // Whoever still waits for Bochs to open its pipes waits no more.
        for name in [bochs::CONSOLE, bochs::LOG] {
            let path = self.run_dir.path().join(name);
            let _ = rustix::fs::open(path, OFlags::WRONLY | OFlags::NONBLOCK, Mode::empty());
        }
    }
}

fn pipe(path: &Path) -> io::Result<()> {
    rustix::fs::mknodat(
        rustix::fs::CWD,
        path,
        FileType::Fifo,
        Mode::RUSR | Mode::WUSR,
        0,
    )?;
    Ok(())
}

fn serial(path: &Path, say: &Sender<Said>) {
    let Ok(mut console) = File::open(path) else {
        return;
    };
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = console.read(&mut buffer) {
        if say.send(Said::Serial(buffer[..count].to_vec())).is_err() {
            return;
        }
    }
}

fn listen(path: &Path, say: &Sender<Said>) {
    let Ok(log) = File::open(path) else {
        return;
    };
    let mut log = BufReader::new(log);
    let mut reader = log::Reader::default();
    let mut line = Vec::new();
    while let Ok(1..) = log.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line) {
        if let Some(said) = reader.line(&String::from_utf8_lossy(&line))
            && say.send(said).is_err()
        {
            return;
        }
        line.clear();
    }
}

const LONGEST_LINE: u64 = 1 << 16;

/// Whether Bochs is here.
///
/// # Errors
/// `NotInstalled`, with what is missing.
pub fn is_installed() -> Result<(), LabError> {
    cache::check_programs(&[cache::EMULATOR])
}

/// What bare Bochs can do and cannot, as other backends say it.
#[must_use]
pub fn capabilities() -> Capabilities {
    let yes = |note: &str| Ok(note.to_owned());
    let no = |reason: &str| Err(reason.to_owned());
    let blind = "nobody can look into its machine; what a guest does is heard of by its serial port and the log";
    Capabilities {
        description: "bochs: bare Bochs, whose own VMX serves L1; runs images, no more".into(),
        entries: vec![
            (
                Capability::NestedVmx,
                no(&format!("guests may use VMX, but {blind}")),
            ),
            (Capability::NestedEpt, yes("")),
            (
                Capability::SingleStep,
                no("its debugger steps, but nothing here drives it"),
            ),
            (Capability::DirtyPages, no(blind)),
            (
                Capability::ExactInstructions,
                no("a run ends where the guest ends it, or by time"),
            ),
            (
                Capability::ExactNestedEvents,
                no("a run ends where the guest ends it, or by time"),
            ),
            (
                Capability::Deterministic,
                no(
                    "its clock counts instructions, but the firmware that runs first reads the disk at the host's pace",
                ),
            ),
            (
                Capability::Smm,
                no("its firmware owns SMM, and nothing sends SMIs from here"),
            ),
            (
                Capability::NestedEvents,
                yes("VM exits with reason and qualification, from Bochs' log; no entries"),
            ),
        ],
    }
}
