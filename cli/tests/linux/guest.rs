//! One run of `nvmx run` with Debian's kernel, spoken to over its serial console.

use anyhow::{Context, bail};
use nvmx_lab::cache::{CachedKernel, MODULES};
use nvmx_lab::cpio::Archive;
use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

/// A boot and all that is asked in it ends within this.
const LIMIT: Duration = Duration::from_secs(300);
/// What the shell prints when it waits for a command.
const PROMPT: &str = "/ # ";
/// Follows the exit status of each command.
const DONE: &str = "@@DONE";

/// A static busybox, the modules, and the static nvmx if there is one.
pub(crate) fn initramfs(kernel: &CachedKernel, agent: Option<&Path>) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| path.display().to_string());
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lib", "proc", "sys", "tmp"] {
        archive.directory(directory);
    }
    archive.file("bin/busybox", 0o755, &read(Path::new("/bin/busybox"))?);
    for applet in [
        "cat", "cttyhack", "echo", "insmod", "ls", "mount", "poweroff", "setsid", "sh", "stty",
        "uname",
    ] {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    for module in MODULES {
        let bytes = read(&kernel.module(module))?;
        archive.file(&format!("lib/{module}.ko"), 0o644, &bytes);
    }
    if let Some(agent) = agent {
        archive.file("bin/nvmx", 0o755, &read(agent)?);
    }
    archive.file(
        "init",
        0o755,
        b"#!/bin/sh\n\
          export PATH=/bin\n\
          mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
          exec >/dev/ttyS0 2>&1 </dev/ttyS0\n\
          insmod /lib/irqbypass.ko && insmod /lib/kvm.ko && insmod /lib/kvm-intel.ko\n\
          stty -echo\n\
          exec setsid cttyhack sh\n",
    );
    Ok(archive.finish())
}

/// A kernel that runs.
pub(crate) struct Guest {
    child: Child,
    input: ChildStdin,
    output: Receiver<Vec<u8>>,
    /// All that it printed.
    console: String,
    /// As much of it has been looked at.
    seen: usize,
    deadline: Instant,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Guest {
    /// Starts the kernel and waits for the shell.
    pub(crate) fn boot(
        kernel: &CachedKernel,
        initrd: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let mut child = Command::new(env!("CARGO_BIN_EXE_nvmx"))
            .arg("run")
            .arg(kernel.vmlinuz())
            .arg("--initrd")
            .arg(initrd)
            .args(["--append", "console=ttyS0", "--memory", "512M"])
            .args(["--timeout", &LIMIT.as_secs().to_string()])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()?;
        let (Some(input), Some(mut from)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("no pipes to nvmx");
        };
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if sender.send(buffer[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        let mut guest = Self {
            child,
            input,
            output,
            console: String::new(),
            seen: 0,
            deadline: Instant::now() + LIMIT,
        };
        guest.wait_for(PROMPT).context("waiting for the shell")?;
        Ok(guest)
    }

    /// What is printed up to `mark`.
    fn wait_for(&mut self, mark: &str) -> anyhow::Result<String> {
        loop {
            if let Some(at) = self.console[self.seen..].find(mark) {
                let text = self.console[self.seen..self.seen + at].to_owned();
                self.seen += at + mark.len();
                return Ok(text);
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(bytes) => self.console.push_str(&String::from_utf8_lossy(&bytes)),
                Err(_) => bail!(
                    "{mark:?} did not come; the console's end:\n{}",
                    self.end_of_console()
                ),
            }
        }
    }

    fn end_of_console(&self) -> String {
        let lines: Vec<_> = self.console.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }

    /// Runs a command in the shell: what it printed, and its exit status.
    pub(crate) fn command(&mut self, command: &str) -> anyhow::Result<(String, i32)> {
        // The mark in two parts, so that no echo of the command can be taken for it.
        let (first, second) = DONE.split_at(2);
        writeln!(self.input, "{command}; echo {first}\"\"{second} $?")?;
        let printed = self.wait_for(DONE).with_context(|| command.to_owned())?;
        let status = self.wait_for("\n")?;
        let status = status
            .trim()
            .parse()
            .with_context(|| format!("{command}: {status:?}"))?;
        self.wait_for(PROMPT).with_context(|| command.to_owned())?;
        // The shell asks the terminal where the cursor is.
        let printed = printed.replace("\r\n", "\n").replace("\x1b[6n", "");
        Ok((printed.trim().to_owned(), status))
    }

    /// As [`Self::command`], which must succeed.
    pub(crate) fn expect(&mut self, command: &str) -> anyhow::Result<String> {
        let (printed, status) = self.command(command)?;
        if status != 0 {
            bail!("{command}: status {status}:\n{printed}");
        }
        Ok(printed)
    }

    /// Powers the guest off; nvmx must end with 0.
    pub(crate) fn power_off(mut self) -> anyhow::Result<()> {
        writeln!(self.input, "poweroff -f")?;
        while Instant::now() < self.deadline {
            if let Some(status) = self.child.try_wait()? {
                if !status.success() {
                    bail!("nvmx ended with {status}:\n{}", self.end_of_console());
                }
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("no power-off:\n{}", self.end_of_console())
    }
}
