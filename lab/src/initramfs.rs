//! The guest's root file system: a static busybox, three modules, the agent, and an /init that starts it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cache::{CachedKernel, MODULES};
use crate::config::LabConfig;
use crate::cpio::Archive;
use crate::error::{IoContext, LabError, Reason};

/// Where the console says how far /init has come; `bochs` and `console` read these.
pub const INIT_MARK: &str = "@@INIT";
/// Followed by the status of `insmod kvm-intel`.
pub const KVM_MARK: &str = "@@KVM";
/// Followed by the agent's exit status.
pub const EXIT_MARK: &str = "@@EXIT";

/// Builds the archive.
///
/// # Errors
/// `Io` for a file that cannot be read, `BadConfig` for an agent that is no static program or a bad target path.
pub fn build(config: &LabConfig, kernel: &CachedKernel) -> Result<Vec<u8>, LabError> {
    let mut archive = Archive::default();
    for directory in ["bin", "dev", "lib", "proc", "root", "sys", "tmp"] {
        archive.directory(directory);
    }
    let busybox = read(Path::new("/bin/busybox"))?;
    check_static(&busybox).map_err(|_| {
        LabError::preparing(Reason::NotInstalled(
            "a static busybox (package busybox-static)".into(),
        ))
    })?;
    archive.file("bin/busybox", 0o755, &busybox);
    for applet in [
        "cat", "echo", "grep", "head", "insmod", "ls", "mount", "sh", "sleep",
    ] {
        archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    for module in MODULES {
        archive.file(
            &format!("lib/{module}.ko"),
            0o644,
            &read(&kernel.module(module))?,
        );
    }
    let agent = read(&config.agent)?;
    check_static(&agent).map_err(|why| bad(format!("agent {}: {why}", config.agent.display())))?;
    archive.file("bin/agent", 0o755, &agent);
    let mut directories = Vec::new();
    for (source, target) in &config.extra_files {
        let path = target.trim_start_matches('/');
        if path.is_empty() || path.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(bad(format!(
                "extra file {}: {target:?} is no usable path",
                source.display()
            )));
        }
        for (at, _) in path.match_indices('/') {
            let directory = path[..at].to_owned();
            if !directories.contains(&directory) {
                archive.directory(&directory);
                directories.push(directory);
            }
        }
        let mode = fs::metadata(source)
            .while_doing(|| format!("reading {}", source.display()))?
            .permissions()
            .mode();
        archive.file(path, mode, &read(source)?);
    }
    archive.file("init", 0o755, init_script(config).as_bytes());
    Ok(archive.finish())
}

fn init_script(config: &LabConfig) -> String {
    let words = |list: &[String]| {
        list.iter()
            .map(|word| format!(" {}", quoted(word)))
            .collect::<String>()
    };
    let (options, arguments) = (words(&config.kvm_options), words(&config.agent_args));
    // The kernel ignores options that a module does not have; a lab that measures the wrong thing would be worse.
    let names: Vec<String> = config
        .kvm_options
        .iter()
        .map(|option| option.split('=').next().unwrap_or_default().to_owned())
        .collect();
    let names = words(&names);
    format!(
        "#!/bin/sh\n\
         export PATH=/bin HOME=/root RUST_BACKTRACE=1\n\
         mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev\n\
         exec >/dev/ttyS0 2>&1 </dev/null\n\
         echo {INIT_MARK}\n\
         mount -t tracefs tracefs /sys/kernel/tracing\n\
         insmod /lib/irqbypass.ko && insmod /lib/kvm.ko && insmod /lib/kvm-intel.ko nested=1{options}\n\
         status=$?\n\
         for name in{names}; do\n\
         [ $status != 0 ] || [ -e /sys/module/kvm_intel/parameters/$name ] || {{ echo no such option: $name; status=2; }}\n\
         done\n\
         echo {KVM_MARK} $status\n\
         /bin/agent{arguments}\n\
         echo {EXIT_MARK} $?\n\
         while :; do sleep 1000; done\n"
    )
}

/// A word that the shell takes literally.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// A program that names an interpreter needs shared libraries, and there are none inside.
fn check_static(program: &[u8]) -> Result<(), &'static str> {
    if program.len() < 64 || program[..6] != *b"\x7fELF\x02\x01" || program[18..20] != [62, 0] {
        return Err("not an x86-64 ELF program");
    }
    let word = |at: usize| {
        program
            .get(at..at + 8)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    };
    let table = word(32).unwrap_or(0) as usize;
    let count = usize::from(u16::from_le_bytes([program[56], program[57]]));
    let interpreter = (0..count).any(|index| {
        let at = table.saturating_add(56 * index);
        program.get(at..at.saturating_add(4)) == Some(&[3, 0, 0, 0])
    });
    if interpreter {
        Err("not static: build it with -C target-feature=+crt-static")
    } else {
        Ok(())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LabError> {
    fs::read(path).while_doing(|| format!("reading {}", path.display()))
}

fn bad(what: String) -> LabError {
    LabError::preparing(Reason::BadConfig(what))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Kernel;

    #[test]
    fn arguments_reach_the_agent_as_they_are() {
        let mut config = LabConfig::new(Kernel::V6_1, "/agent");
        config.agent_args = vec!["--serve".into(), "it's $HOME".into()];
        config.kvm_options = vec!["ept=0".into()];
        let script = init_script(&config);
        assert!(
            script.contains(r"/bin/agent '--serve' 'it'\''s $HOME'"),
            "{script}"
        );
        assert!(
            script.contains("kvm-intel.ko nested=1 'ept=0'\n"),
            "{script}"
        );
    }

    #[test]
    fn only_static_programs_are_taken() {
        assert!(
            check_static(&fs::read("/bin/busybox").unwrap_or_default()).is_ok()
                || !Path::new("/bin/busybox").exists()
        );
        assert!(
            check_static(&fs::read("/bin/sh").unwrap())
                .unwrap_err()
                .contains("static")
        );
        assert!(check_static(b"#!/bin/sh").is_err());
    }
}
