//! Debian's stock kernels as L1 on the software model: to a shell on the serial console with kvm_intel
//! loaded, and Linux' KVM running guests of its own there, nested ones included.
//!
//! Has its own `main`: the last line is the verdict. An argument picks the checks whose name contains it.
//! Without the cached kernels or a static busybox it says SKIPPED and why.
#![forbid(unsafe_code)]

mod guest;

use anyhow::{Context, ensure};
use guest::Guest;
use nvmx_lab::Kernel;
use nvmx_lab::cache::CachedKernel;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

/// What a check saw.
type Checked = anyhow::Result<String>;
/// A check of one kernel.
type Check = fn(&CachedKernel) -> Checked;

fn main() -> ExitCode {
    let wanted: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    if std::env::args().any(|argument| argument == "--list") {
        println!("linux: test");
        return ExitCode::SUCCESS;
    }
    let mut kernels = Vec::new();
    for kernel in Kernel::ALL {
        match find(kernel) {
            Ok(cached) => kernels.push((kernel, cached)),
            Err(what) => {
                println!("SKIPPED: {what} is missing (lab/setup.sh installs it)");
                return ExitCode::SUCCESS;
            }
        }
    }
    let (mut passed, mut failed) = (0, Vec::new());
    for (kernel, cached) in &kernels {
        let checks: [(&str, Check); 3] = [
            ("shell", shell),
            ("two processors", two_processors),
            ("nested", nested),
        ];
        for (name, check) in checks {
            let name = format!("{kernel} {name}");
            if !wanted.is_empty() && !wanted.iter().any(|word| name.contains(word.as_str())) {
                continue;
            }
            let began = Instant::now();
            match check(cached) {
                Ok(seen) => {
                    passed += 1;
                    println!("{name}: {seen} ({:.0} s)", began.elapsed().as_secs_f64());
                }
                Err(error) => {
                    println!("{name}: FAILED: {error:#}");
                    failed.push(name);
                }
            }
        }
    }
    println!("linux: {passed} passed, {} failed, 0 skipped", failed.len());
    if failed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn find(kernel: Kernel) -> Result<CachedKernel, String> {
    if !Path::new("/bin/busybox").is_file() {
        return Err("a static busybox (package busybox-static)".into());
    }
    let cached = CachedKernel::unpacked(&nvmx_lab::cache::default_dir(), kernel)
        .map_err(|_| format!("kernel {kernel} in the cache"))?;
    if !cached.vmlinuz().is_file() {
        return Err(format!("vmlinuz of kernel {kernel} in the cache"));
    }
    Ok(cached)
}

/// Boots with an initramfs, hands the shell to `check`, and powers off.
fn boot(
    kernel: &CachedKernel,
    agent: Option<&Path>,
    arguments: &[&str],
    check: impl FnOnce(&mut Guest) -> Checked,
) -> Checked {
    let initrd = tempfile::NamedTempFile::new()?;
    std::fs::write(initrd.path(), guest::initramfs(kernel, agent)?)?;
    let mut guest = Guest::boot(kernel, initrd.path(), arguments)?;
    let seen = check(&mut guest)?;
    guest.power_off()?;
    Ok(seen)
}

/// A shell that computes, the release that the package says, and /dev/kvm.
fn shell(kernel: &CachedKernel) -> Checked {
    boot(kernel, None, &[], |guest| {
        ensure!(guest.expect("echo $((6 * 7))")? == "42");
        let release = guest.expect("uname -r")?;
        ensure!(kernel.version().contains(&release), "{release}");
        let device = guest.expect("ls -l /dev/kvm")?;
        ensure!(device.starts_with('c'), "{device}");
        for parameter in ["ept", "unrestricted_guest", "vpid"] {
            let value =
                guest.expect(&format!("cat /sys/module/kvm_intel/parameters/{parameter}"))?;
            ensure!(value == "Y", "kvm_intel {parameter}={value}");
        }
        Ok(format!("{release} with kvm_intel"))
    })
}

/// Both processors come up, and KVM with them.
fn two_processors(kernel: &CachedKernel) -> Checked {
    boot(kernel, None, &["--smp", "2"], |guest| {
        let online = guest.expect("cat /sys/devices/system/cpu/online")?;
        ensure!(online == "0-1", "CPUs {online}");
        guest.expect("ls /dev/kvm")?;
        Ok(format!("CPUs {online}"))
    })
}

/// Linux' KVM as L1 runs the example guests, which are hypervisors themselves: L2 and L3.
fn nested(kernel: &CachedKernel) -> Checked {
    const GUESTS: [&str; 5] = ["exits", "ept", "shadow", "timers", "modes"];
    let agent = nvmx_lab::agent::find(&mut |what| println!("{what}")).context("the static nvmx")?;
    boot(kernel, Some(&agent), &[], |guest| {
        for name in GUESTS {
            guest.expect(&format!(
                "nvmx run example:{name} --backend kvm --timeout 200"
            ))?;
        }
        Ok(format!("KVM ran {}", GUESTS.join(", ")))
    })
}
