//! A running lab: from the configuration to the agent's first sign of life, and back to nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bochs::{self, Bochs, Machine};
use crate::cache::CachedKernel;
use crate::config::{LabConfig, Stage};
use crate::console::Console;
use crate::error::{IoContext, LabError, Reason};
use crate::stream::{HostEnd, LabStream};
use crate::{boot_disk, initramfs, vmlinux};

/// How often a booting guest is looked at.
const LOOK: Duration = Duration::from_millis(5);
/// Lines of the console in an error.
const TAIL: usize = 20;
const RUN_DIR_PREFIX: &str = "nvmx-lab-";

/// The kernel's command line. What each part is for:
/// - `tsc=reliable`: no watchdog; the TSC counts emulated instructions.
/// - `mitigations=off nokaslr cryptomgr.notests=1` and the blacklist: seconds of emulated work that nobody needs here.
/// - `nopku clearcpuid=fsrm`: Bochs' newer CPU models announce both, but PKRU's XSAVE area is missing and with
///   `fsrm` the boot loops in page faults.
const COMMAND_LINE: &str = "console=ttyS0,115200 quiet tsc=reliable mitigations=off nokaslr nopku clearcpuid=fsrm \
     cryptomgr.notests=1 initcall_blacklist=trace_eval_init,load_system_certificate_list,crypto_algapi_init,cubictcp_register,jent_mod_init";

/// Real KVM with nested VMX, with an agent in it. Ends with its value: nothing runs on, nothing stays on disk.
#[derive(Debug)]
pub struct Lab {
    end: Arc<Mutex<HostEnd>>,
    watch: Arc<Watch>,
    bochs: Bochs,
    started_in: Duration,
    kernel_version: String,
    /// Last, so that it goes after Bochs.
    _run_dir: TempDir,
}

/// What is known of a guest's health, shared by the lab and its streams.
#[derive(Debug)]
pub(crate) struct Watch {
    console: Mutex<Console>,
    ended: Arc<OnceLock<bochs::End>>,
    ready: OnceLock<()>,
    run_dir: PathBuf,
}

impl Watch {
    /// How far the guest has come.
    fn stage(&self) -> Stage {
        if self.ready.get().is_some() {
            return Stage::AgentReady;
        }
        self.console().stage()
    }

    fn console(&self) -> std::sync::MutexGuard<'_, Console> {
        let mut console = self.console.lock().unwrap_or_else(PoisonError::into_inner);
        console.update();
        console
    }

    /// Why the guest will not answer any more, if that is so.
    pub(crate) fn failure(&self) -> Option<LabError> {
        let ended = self.ended.get();
        // A kernel that panicked may take Bochs with it: the panic is the cause.
        let said = self.console().failure();
        let reason = said.or_else(|| {
            ended.map(|end| Reason::BochsDied {
                status: end.status.clone(),
                log: Some(bochs::last_complaint(&self.run_dir))
                    .filter(|log| !log.is_empty())
                    .unwrap_or_else(|| end.complaint.clone()),
            })
        })?;
        Some(self.error(reason))
    }

    /// An error with the present stage and the console's end.
    pub(crate) fn error(&self, reason: Reason) -> LabError {
        let stage = self.stage();
        LabError {
            stage,
            reason,
            console: self.console().tail(TAIL),
        }
    }
}

impl Lab {
    /// Boots a lab and waits until the agent has opened its end of the stream.
    ///
    /// `progress` hears of each stage once per attempt, with the time since the call. A boot that hangs or dies is
    /// tried again as often as `config.retries` says.
    ///
    /// # Errors
    /// `NotInstalled` or `BadConfig` before anything runs; else the last attempt's failure.
    pub fn start(
        config: &LabConfig,
        progress: &mut dyn FnMut(Stage, Duration),
    ) -> Result<Self, LabError> {
        let start = Instant::now();
        let mut attempt = 0;
        loop {
            let result = Self::boot(config, start, progress);
            match result {
                Err(error) if attempt < config.retries && error.reason.is_transient() => {
                    tracing::warn!(stage = %error.stage, reason = %error.reason, "the lab did not boot, trying again");
                    attempt += 1;
                }
                result => return result,
            }
        }
    }

    fn boot(
        config: &LabConfig,
        start: Instant,
        progress: &mut dyn FnMut(Stage, Duration),
    ) -> Result<Self, LabError> {
        progress(Stage::Prepare, start.elapsed());
        check(config)?;
        let kernel = CachedKernel::find(&config.cache, config.kernel)?;
        let run_dir = make_run_dir()?;
        let at = |name: &str| run_dir.path().join(name);
        let initramfs = initramfs::build(config, &kernel)?;
        let flat = vmlinux::flatten(&kernel.vmlinux())
            .while_doing(|| format!("reading {}", kernel.vmlinux().display()))?;
        let command_line = [&[COMMAND_LINE.to_owned()], config.kernel_args.as_slice()]
            .concat()
            .join(" ");
        boot_disk::write(
            &at(bochs::BOOT_DISK),
            &flat,
            &initramfs,
            &command_line,
            config.megs,
        )
        .while_doing(|| format!("writing {}", at(bochs::BOOT_DISK).display()))?;
        drop((flat, initramfs));
        let end =
            HostEnd::create(&at(bochs::MAILBOX)).while_doing(|| "writing the mailbox".into())?;
        fs::write(at(bochs::CONSOLE), "").while_doing(|| "writing the console's file".into())?;
        let console = Console::follow(&at(bochs::CONSOLE))
            .while_doing(|| "reading the console's file".into())?;

        let machine = Machine {
            cpu_model: config.cpu_model.clone(),
            megs: config.megs,
            second_disk: Some(bochs::MAILBOX.into()),
            debug: &[],
            // KVM probes MSRs that Bochs lacks.
            ignores_bad_msrs: true,
        };
        let bochs =
            Bochs::start(&machine, run_dir.path()).while_doing(|| "starting Bochs".into())?;
        tracing::debug!(process = bochs.process_id(), run_dir = %run_dir.path().display(), "Bochs started");
        let watch = Arc::new(Watch {
            console: Mutex::new(console),
            ended: bochs.end(),
            ready: OnceLock::new(),
            run_dir: run_dir.path().to_owned(),
        });
        let booting = Instant::now();
        let mut reached = Stage::Prepare;
        while reached < Stage::AgentReady {
            if end.guest_is_there() {
                let _ = watch.ready.set(());
            }
            let stage = watch.stage();
            for passed in [
                Stage::Bios,
                Stage::KernelStarted,
                Stage::Init,
                Stage::KvmLoaded,
                Stage::AgentReady,
            ] {
                if passed > reached && passed <= stage {
                    progress(passed, start.elapsed());
                    reached = passed;
                }
            }
            if reached < Stage::AgentReady {
                if let Some(error) = watch.failure() {
                    return Err(error);
                }
                if booting.elapsed() > config.boot_timeout {
                    return Err(watch.error(Reason::TimedOut(config.boot_timeout)));
                }
                thread::sleep(LOOK);
            }
        }
        Ok(Self {
            end: Arc::new(Mutex::new(end)),
            watch,
            bochs,
            started_in: start.elapsed(),
            kernel_version: kernel.version(),
            _run_dir: run_dir,
        })
    }

    /// The stream to the agent. All streams of a lab are one: whoever reads takes the bytes.
    pub fn stream(&mut self) -> LabStream {
        LabStream::new(Arc::clone(&self.end), Arc::clone(&self.watch))
    }

    /// The last `lines` lines of the guest's console, where the agent's standard error goes.
    pub fn console_tail(&self, lines: usize) -> String {
        self.watch.console().tail(lines)
    }

    /// Why the guest will not answer any more, if that is so.
    pub fn failure(&self) -> Option<LabError> {
        self.watch.failure()
    }

    /// How long [`Lab::start`] took.
    pub fn started_in(&self) -> Duration {
        self.started_in
    }

    /// Package name and version of the kernel inside.
    pub fn kernel_version(&self) -> &str {
        &self.kernel_version
    }

    /// The id of the Bochs process, for messages and measurements.
    pub fn process_id(&self) -> u32 {
        self.bochs.process_id()
    }

    /// Ends the lab. Dropping it does the same.
    pub fn stop(self) {
        drop(self);
    }
}

fn check(config: &LabConfig) -> Result<(), LabError> {
    let bad = |what: String| Err(LabError::preparing(Reason::BadConfig(what)));
    let word = |text: &str| {
        text.chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
    };
    if !(192..=2048).contains(&config.megs) {
        return bad(format!("megs is {}, must be 192 to 2048", config.megs));
    }
    // The model goes into Bochs' configuration file, where a comma or a line end would start another option.
    if config.cpu_model.is_empty() || !word(&config.cpu_model) {
        return bad(format!("{:?} is no CPU model", config.cpu_model));
    }
    Ok(())
}

/// A fresh directory for Bochs; removes those of processes that were killed.
pub(crate) fn make_run_dir() -> Result<TempDir, LabError> {
    let parent = std::env::temp_dir();
    for entry in fs::read_dir(&parent).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|name| name.strip_prefix(RUN_DIR_PREFIX))
            .and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner.filter(|owner| owner.parse::<u32>().is_ok())
            && !Path::new("/proc").join(owner).exists()
        {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    tempfile::Builder::new()
        .prefix(&format!("{RUN_DIR_PREFIX}{}-", std::process::id()))
        .tempdir_in(&parent)
        .while_doing(|| format!("making a run directory in {}", parent.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labs_and_streams_may_change_threads() {
        fn check<T: Send>() {}
        check::<Lab>();
        check::<LabStream>();
    }
}
