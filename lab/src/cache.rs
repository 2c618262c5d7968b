//! The unpacked kernels on this machine, and the script that makes them.
//!
//! `lab/setup.sh` fills the cache: per kernel the package's `vmlinuz`, the uncompressed `vmlinux`, the three modules stripped of what only
//! costs time, and the release's name. [`Lab::start`](crate::Lab::start) only reads it, so that a test run never
//! installs packages by surprise; [`install`] runs the script.

use std::ffi::OsString;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::config::Kernel;
use crate::error::{IoContext, LabError, Reason};

const SETUP: &str = include_str!("../setup.sh");

/// Modules in the order of loading.
pub const MODULES: [&str; 3] = ["irqbypass", "kvm", "kvm-intel"];

/// Programs and data of Debian packages: file and name.
type Needed = &'static [(&'static str, &'static str)];

/// What runs Bochs.
pub(crate) const EMULATOR: Needed = &[
    ("/usr/bin/bochs-bin", "bochs (package bochs)"),
    (
        "/usr/lib/x86_64-linux-gnu/bochs/plugins/libbx_term_gui.so",
        "Bochs' terminal display (package bochs-term)",
    ),
    (
        "/usr/share/bochs/BIOS-bochs-latest",
        "Bochs' BIOS (package bochsbios)",
    ),
    (
        "/usr/share/bochs/VGABIOS-lgpl-latest",
        "Bochs' VGA BIOS (package bochsbios)",
    ),
    ("/usr/bin/setpriv", "setpriv (package util-linux)"),
];

/// What a guest of ours is made of, apart from its kernel.
const GUEST: Needed = &[("/bin/busybox", "a static busybox (package busybox-static)")];

/// Whether all of these files are there; `NotInstalled` names the first that is not.
pub(crate) fn check_programs(lists: &[Needed]) -> Result<(), LabError> {
    let missing = lists
        .iter()
        .flat_map(|list| list.iter())
        .find(|(file, _)| !Path::new(file).exists());
    match missing {
        Some((_, name)) => Err(LabError::preparing(Reason::NotInstalled(
            (*name).to_owned(),
        ))),
        None => Ok(()),
    }
}

/// `$NVMX_CACHE`, else `~/.cache/nvmx`: the same rule as in `setup.sh`.
pub fn default_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("NVMX_CACHE").map(PathBuf::from).unwrap_or_else(|| {
        PathBuf::from(set("HOME").unwrap_or_else(|| OsString::from("/root"))).join(".cache/nvmx")
    })
}

/// One kernel in the cache.
#[derive(Clone, Debug)]
pub struct CachedKernel {
    dir: PathBuf,
}

impl CachedKernel {
    /// Finds `kernel` in `cache`.
    ///
    /// # Errors
    /// `NotInstalled`, naming what is missing: a package's file or the kernel itself.
    pub fn find(cache: &Path, kernel: Kernel) -> Result<Self, LabError> {
        check_programs(&[EMULATOR, GUEST])?;
        Self::unpacked(cache, kernel)
    }

    /// Finds `kernel` in `cache`, for whoever needs nothing else of the lab.
    ///
    /// # Errors
    /// `NotInstalled` if it is not there.
    pub fn unpacked(cache: &Path, kernel: Kernel) -> Result<Self, LabError> {
        let dir = cache.join("lab").join(kernel.name());
        if !dir.join("complete").exists() {
            let what = format!("kernel {kernel} in the cache {}", cache.display());
            return Err(LabError::preparing(Reason::NotInstalled(what)));
        }
        Ok(Self { dir })
    }

    /// The kernel as the package has it: a bzImage.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The uncompressed kernel.
    pub fn vmlinux(&self) -> PathBuf {
        self.dir.join("vmlinux")
    }

    /// One of [`MODULES`].
    pub fn module(&self, name: &str) -> PathBuf {
        self.dir.join("modules").join(format!("{name}.ko"))
    }

    /// The release, such as `6.1.0-56-cloud-amd64`, and the package's name and version.
    pub fn version(&self) -> String {
        fs::read_to_string(self.dir.join("package"))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    }
}

/// Runs the set-up script: installs missing packages and unpacks `kernels` into `cache`. It needs root or password-less
/// sudo, and the network; it returns at once if all is there. The script's own messages go to standard error.
///
/// # Errors
/// `NotInstalled` if the script failed; its messages say why.
pub fn install(cache: &Path, kernels: &[Kernel]) -> Result<(), LabError> {
    let mut child = Command::new("sh")
        .arg("-s")
        .args(kernels.iter().map(|kernel| kernel.name()))
        .env("NVMX_CACHE", cache)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .while_doing(|| "starting sh for the set-up script".into())?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(SETUP.as_bytes())
            .while_doing(|| "handing sh the set-up script".into())?;
    }
    let status = child
        .wait()
        .while_doing(|| "waiting for the set-up script".into())?;
    if status.success() {
        return Ok(());
    }
    Err(LabError::preparing(Reason::NotInstalled(format!(
        "what the set-up script should have installed ({status})"
    ))))
}
