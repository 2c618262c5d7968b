//! What the guest prints on its serial console, and what that says of its health.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::boot_code::GREETING;
use crate::config::Stage;
use crate::error::Reason;
use crate::initramfs::{EXIT_MARK, INIT_MARK, KVM_MARK};

/// Beginnings of kernel messages after which nothing good follows.
const FATAL: [&str; 5] = [
    "Kernel panic - not syncing",
    "Oops: ",
    "BUG: ",
    "kernel BUG at ",
    "general protection fault",
];

/// Lines kept for error messages.
const KEPT: usize = 400;

/// A reader that follows the console's file.
#[derive(Debug)]
pub struct Console {
    file: File,
    offset: u64,
    partial: Vec<u8>,
    lines: std::collections::VecDeque<String>,
    stage: Stage,
    failure: Option<Failure>,
}

#[derive(Debug, Clone)]
enum Failure {
    Kernel(String),
    Kvm(String),
    Agent(String),
}

impl Console {
    /// Follows `path`, which must exist.
    ///
    /// # Errors
    /// What the file system said.
    pub fn follow(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open(path)?,
            offset: 0,
            partial: Vec::new(),
            lines: std::collections::VecDeque::new(),
            stage: Stage::Bios,
            failure: None,
        })
    }

    /// Takes in what was printed since the last call.
    pub fn update(&mut self) {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = self.file.read_at(&mut buffer, self.offset) {
            self.offset += count as u64;
            for &byte in &buffer[..count] {
                if byte == b'\n' {
                    let line = String::from_utf8_lossy(&self.partial).trim_end().to_owned();
                    self.partial.clear();
                    self.take(line);
                } else {
                    self.partial.push(byte);
                }
            }
        }
    }

    fn take(&mut self, line: String) {
        let greeting = String::from_utf8_lossy(GREETING);
        if line.contains(greeting.trim_end()) {
            self.stage = self.stage.max(Stage::KernelStarted);
        } else if line == INIT_MARK {
            self.stage = self.stage.max(Stage::Init);
        } else if let Some(status) = line.strip_prefix(KVM_MARK) {
            if status.trim() == "0" {
                self.stage = self.stage.max(Stage::KvmLoaded);
            } else {
                let before = self.lines.back().cloned().unwrap_or_default();
                self.fail(Failure::Kvm(format!(
                    "insmod returned {}: {before}",
                    status.trim()
                )));
            }
        } else if let Some(status) = line.strip_prefix(EXIT_MARK) {
            self.fail(Failure::Agent(status.trim().to_owned()));
        } else if kernel_message(&line)
            .is_some_and(|text| FATAL.iter().any(|fatal| text.starts_with(fatal)))
        {
            self.fail(Failure::Kernel(line.clone()));
        }
        if self.lines.len() == KEPT {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// The first failure is the cause of the others.
    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
    }

    /// How far the console shows the guest to be: at most [`Stage::KvmLoaded`].
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Why the guest cannot go on, if the console says so.
    pub fn failure(&self) -> Option<Reason> {
        self.failure.clone().map(|failure| match failure {
            Failure::Kernel(line) => Reason::KernelFailed(line),
            Failure::Kvm(what) => Reason::KvmFailed(what),
            Failure::Agent(status) => Reason::AgentEnded(status),
        })
    }

    /// The last `count` lines, the unfinished one included.
    pub fn tail(&self, count: usize) -> String {
        let partial = String::from_utf8_lossy(&self.partial);
        let all = self
            .lines
            .iter()
            .map(String::as_str)
            .chain((!partial.is_empty()).then_some(&*partial));
        let lines: Vec<&str> = all.collect();
        lines[lines.len().saturating_sub(count)..].join("\n")
    }
}

/// What stands after the kernel's time stamp, if the line is the kernel's and not the agent's.
fn kernel_message(line: &str) -> Option<&str> {
    let (time, text) = line.strip_prefix('[')?.split_once("] ")?;
    time.trim().parse::<f64>().ok().map(|_| text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn console(text: &str) -> Console {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let mut console = Console::follow(file.path()).unwrap();
        console.update();
        console
    }

    #[test]
    fn marks_become_stages() {
        for (text, stage) in [
            ("", Stage::Bios),
            ("@@KERNEL\r\n", Stage::KernelStarted),
            ("@@KERNEL\r\n@@INIT\r\n", Stage::Init),
            (
                "@@KERNEL\r\n@@INIT\r\n[    1.2] x\r\n@@KVM 0\r\n",
                Stage::KvmLoaded,
            ),
            ("@@KERNEL\r\n@@INIT\r\n@@KVM 1\r\n", Stage::Init),
        ] {
            assert_eq!(console(text).stage(), stage, "{text:?}");
        }
    }

    #[test]
    fn failures_are_told_apart_and_the_first_counts() {
        let reason = |text| {
            console(text)
                .failure()
                .map(|reason| reason.to_string())
                .unwrap_or_default()
        };
        assert_eq!(reason("@@INIT\nall well\n"), "");
        assert!(
            reason("[ 2.0] Kernel panic - not syncing: no init\n@@EXIT 139\n").contains("no init")
        );
        assert!(
            reason("insmod: can't insert: No such device\r\n@@KVM 1\r\n")
                .contains("No such device")
        );
        assert_eq!(
            reason("thread main panicked\n@@EXIT 101\n"),
            "the agent ended with status 101"
        );
    }

    #[test]
    fn the_tail_has_the_unfinished_line() {
        assert_eq!(console("a\nb\r\nc").tail(2), "b\nc");
        assert_eq!(console("").tail(5), "");
    }
}
