//! Bochs as a child process: its configuration, its pseudo-terminal, its death.
//!
//! Debian's Bochs has the debugger and only terminal displays. It runs under a pseudo-terminal of its own, with one
//! debugger command in a file: `c`, continue. It dies with this process, whatever that one dies of: `setpriv` asks the
//! kernel for that (`PR_SET_PDEATHSIG`). That request is bound to the thread that made the child, so one thread makes
//! it, waits for it and ends it.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// How often the child is looked at: the longest time that its death goes unnoticed.
const LOOK: Duration = Duration::from_millis(20);

/// File names in the run directory.
pub const BOOT_DISK: &str = "boot.img";
/// The mailbox disk.
pub const MAILBOX: &str = "mailbox.img";
/// What the guest prints.
pub const CONSOLE: &str = "console.txt";
/// Bochs' own log.
pub const LOG: &str = "bochs.log";

/// The emulated machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Bochs' name of the CPU.
    pub cpu_model: String,
    /// RAM in MiB.
    pub megs: u32,
    /// The disk on the second ATA channel, if there is one.
    pub second_disk: Option<PathBuf>,
    /// Parts of Bochs whose debug messages go to the log, by its names for them.
    pub debug: &'static [&'static str],
    /// RDMSR and WRMSR of an MSR that Bochs lacks do nothing, instead of #GP.
    pub ignores_bad_msrs: bool,
}

impl Machine {
    /// The text of Bochs' configuration file; all files are named relative to the run directory.
    fn configuration(&self) -> String {
        let Self {
            cpu_model, megs, ..
        } = self;
        let second_disk = self.second_disk.as_ref().map_or_else(String::new, |path| {
            format!(
                "ata1: enabled=1, ioaddr1=0x170, ioaddr2=0x370, irq=15\n\
                 ata1-master: type=disk, path={}, mode=flat\n",
                path.display()
            )
        });
        let debug: String = self
            .debug
            .iter()
            .map(|part| format!(", {part}=report"))
            .collect();
        let ignores = u8::from(self.ignores_bad_msrs);
        // Sound other than dummy aborts with a buffer overflow.
        format!(
            "config_interface: textconfig\n\
             display_library: term\n\
             romimage: file=/usr/share/bochs/BIOS-bochs-latest\n\
             vgaromimage: file=/usr/share/bochs/VGABIOS-lgpl-latest\n\
             megs: {megs}\n\
             cpu: model={cpu_model}, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs={ignores}\n\
             clock: sync=none, time0=1700000000\n\
             ata0: enabled=1, ioaddr1=0x1f0, ioaddr2=0x3f0, irq=14\n\
             ata0-master: type=disk, path={BOOT_DISK}, mode=flat\n\
             {second_disk}\
             boot: disk\n\
             com1: enabled=1, mode=file, dev={CONSOLE}\n\
             log: {LOG}\n\
             panic: action=fatal\n\
             error: action=report\n\
             info: action=report\n\
             debug: action=ignore{debug}\n\
             sound: waveoutdrv=dummy, waveindrv=dummy, midioutdrv=dummy\n\
             plugin_ctrl: speaker=0, sb16=0, es1370=0, gameport=0\n"
        )
    }
}

/// How Bochs ended.
#[derive(Clone, Debug)]
pub struct End {
    /// Exit status or signal.
    pub status: String,
    /// What it complained of on its terminal, if it did.
    pub complaint: String,
}

/// A running Bochs.
#[derive(Debug)]
pub struct Bochs {
    stop: Sender<()>,
    keeper: Option<JoinHandle<()>>,
    ended: Arc<OnceLock<End>>,
    process_id: u32,
}

impl Bochs {
    /// Starts Bochs in `run_dir`, where the disks and an empty console file stand.
    ///
    /// # Errors
    /// What the system said of the terminal, the files or the program.
    pub fn start(machine: &Machine, run_dir: &Path) -> io::Result<Self> {
        fs::write(run_dir.join("bochsrc"), machine.configuration())?;
        fs::write(run_dir.join("commands"), "c\n")?;
        let (terminal, far_end) = open_terminal()?;
        let mut command = Command::new("/usr/bin/setpriv");
        command
            .args([
                "--pdeathsig",
                "KILL",
                "/usr/bin/bochs-bin",
                "-q",
                "-f",
                "bochsrc",
                "-rc",
                "commands",
            ])
            .current_dir(run_dir)
            .env("TERM", "xterm")
            .env("LC_ALL", "C")
            .env_remove("BXSHARE")
            .stdin(far_end.try_clone()?)
            .stdout(far_end.try_clone()?)
            .stderr(far_end)
            .process_group(0);

        let ended = Arc::new(OnceLock::new());
        let (stop, stopped) = mpsc::channel();
        let (started, start) = mpsc::channel();
        let its_end = Arc::clone(&ended);
        let keeper = thread::Builder::new().name("bochs".into()).spawn(move || {
            let child = command.spawn();
            drop(command); // and with it our copies of the terminal's far end
            match child {
                Ok(mut child) => {
                    let _ = started.send(Ok(child.id()));
                    let drain = thread::spawn(move || drain(terminal));
                    let status = keep(&mut child, &stopped);
                    let complaint = drain.join().ok().flatten().unwrap_or_default();
                    let _ = its_end.set(End { status, complaint });
                }
                Err(error) => drop(started.send(Err(error))),
            }
        })?;
        let process_id = start.recv().map_err(io::Error::other)??;
        Ok(Self {
            stop,
            keeper: Some(keeper),
            ended,
            process_id,
        })
    }

    /// How Bochs ended, once it has: shared with those who outlive this value.
    pub fn end(&self) -> Arc<OnceLock<End>> {
        Arc::clone(&self.ended)
    }

    /// The process's id.
    pub fn process_id(&self) -> u32 {
        self.process_id
    }
}

impl Drop for Bochs {
    fn drop(&mut self) {
        let _ = self.stop.send(());
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
    }
}

/// Waits for the child's end or for the order to bring it about; says how it ended.
fn keep(child: &mut Child, stopped: &mpsc::Receiver<()>) -> String {
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return status.to_string(),
            Ok(None) => {}
            Err(error) => return error.to_string(),
        }
        match stopped.recv_timeout(LOOK) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => {
                let _ = child.kill();
                let _ = child.wait();
                return "stopped".to_owned();
            }
        }
    }
}

/// Bochs draws its screen on the terminal; nobody looks, but it must not block. Ends when Bochs closes its end, with
/// the first complaint seen: those about the configuration come before there is a log file.
fn drain(mut terminal: File) -> Option<String> {
    let mut buffer = [0; 4096];
    let (mut line, mut complaint) = (Vec::new(), None);
    while let Ok(count @ 1..) = terminal.read(&mut buffer) {
        for &byte in &buffer[..count] {
            if byte != b'\n' && line.len() < 1024 {
                line.push(byte);
                continue;
            }
            let text = String::from_utf8_lossy(&line);
            if complaint.is_none() && text.contains("PANIC") {
                complaint = Some(text.trim().to_owned());
            }
            line.clear();
        }
    }
    complaint
}

fn open_terminal() -> io::Result<(File, File)> {
    let near = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&near)?;
    rustix::pty::unlockpt(&near)?;
    let name = rustix::pty::ptsname(&near, Vec::new())?;
    let far = rustix::fs::open(
        name.as_c_str(),
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    // The display refuses to start on a terminal smaller than the emulated screen.
    rustix::termios::tcsetwinsize(
        &far,
        Winsize {
            ws_row: 60,
            ws_col: 140,
            ws_xpixel: 0,
            ws_ypixel: 0,
        },
    )?;
    Ok((File::from(near), File::from(far)))
}

/// The last complaint in Bochs' log, for error messages.
pub fn last_complaint(run_dir: &Path) -> String {
    let log = fs::read(run_dir.join(LOG)).unwrap_or_default();
    let text = String::from_utf8_lossy(&log);
    let is_complaint =
        |line: &&str| line.contains("PANIC") || line.as_bytes().get(11..13) == Some(b"p[");
    text.lines()
        .rfind(is_complaint)
        .unwrap_or_default()
        .trim()
        .to_owned()
}
