//! Why a lab failed, at which stage, and what to do about it.

use std::fmt;
use std::io;

use crate::config::Stage;

/// A lab that did not start, or stopped working.
///
/// Its `Display` form is for people: the stage, the reason, what to do next, and the end of the guest's console.
#[derive(Debug)]
pub struct LabError {
    /// How far the lab had come.
    pub stage: Stage,
    /// What went wrong.
    pub reason: Reason,
    /// The last lines of the guest's console, empty if it never printed.
    pub console: String,
}

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// A package or an unpacked kernel is missing on this machine.
    #[error("{0} is missing")]
    NotInstalled(String),
    /// The configuration cannot work.
    #[error("{0}")]
    BadConfig(String),
    /// A file could not be read or written.
    #[error("{what}: {source}")]
    Io {
        /// The operation and the file.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// Bochs ended by itself.
    #[error("Bochs ended ({status}){}", said(.log))]
    BochsDied {
        /// Exit status or signal.
        status: String,
        /// Bochs' own last words.
        log: String,
    },
    /// The guest's kernel panicked or oopsed; the text is the console's line that says so.
    #[error("the guest's kernel failed: {0}")]
    KernelFailed(String),
    /// `insmod kvm-intel` failed.
    #[error("kvm-intel did not load: {0}")]
    KvmFailed(String),
    /// The agent ended.
    #[error("the agent ended with status {0}")]
    AgentEnded(String),
    /// Nothing happened for too long.
    #[error("no progress within {0:.0?}")]
    TimedOut(std::time::Duration),
}

fn said(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!(": {log}")
    }
}

impl Reason {
    /// What the reader can do about it.
    pub fn advice(&self) -> &'static str {
        match self {
            Self::NotInstalled(_) => {
                "run lab/setup.sh (as root, or with sudo), which installs and caches what is missing"
            }
            Self::BadConfig(_) => "correct the lab's configuration",
            Self::Io { .. } => {
                "check that the disk is not full and that the file may be read and written"
            }
            Self::BochsDied { .. } => {
                "try again; if it repeats, check the CPU model's name and that bochs, bochs-term and bochsbios are of one version"
            }
            Self::KernelFailed(_) => {
                "the console's end below has the trace; another kernel or CPU model may fare better"
            }
            Self::KvmFailed(_) => "check the CPU model (it needs VMX) and the kvm-intel options",
            Self::AgentEnded(_) => {
                "the agent's own message is on the console below; it must be a static x86-64 ELF program"
            }
            Self::TimedOut(_) => {
                "try again, or allow more time (the emulator shares the CPU with all else that runs on this machine)"
            }
        }
    }

    /// Whether another boot may well succeed.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::TimedOut(_) | Self::BochsDied { .. } | Self::KernelFailed(_)
        )
    }
}

impl fmt::Display for LabError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "lab failed while {}: {}\n  what to do: {}",
            self.stage,
            self.reason,
            self.reason.advice()
        )?;
        if !self.console.is_empty() {
            write!(f, "\n  end of the guest's console:")?;
            for line in self.console.lines() {
                write!(f, "\n    | {line}")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for LabError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.reason {
            Reason::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl LabError {
    pub(crate) fn preparing(reason: Reason) -> Self {
        Self {
            stage: Stage::Prepare,
            reason,
            console: String::new(),
        }
    }

    /// As an error of a stream: the kind says whether the far end is gone or just slow.
    pub(crate) fn into_io(self) -> io::Error {
        let kind = match self.reason {
            Reason::TimedOut(_) => io::ErrorKind::TimedOut,
            _ => io::ErrorKind::BrokenPipe,
        };
        io::Error::new(kind, self)
    }
}

pub(crate) trait IoContext<T> {
    /// Adds what was being done to an I/O error.
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T, LabError>;
}

impl<T> IoContext<T> for io::Result<T> {
    fn while_doing(self, what: impl FnOnce() -> String) -> Result<T, LabError> {
        self.map_err(|source| {
            LabError::preparing(Reason::Io {
                what: what(),
                source,
            })
        })
    }
}
