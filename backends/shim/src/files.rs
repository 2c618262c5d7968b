//! Files that a program reads of KVM: the device, and the parameters of its modules.

use crate::errno::{Answer, Errno};
use crate::os;
use crate::shim::Shim;
use std::ffi::CStr;

/// A module's parameter as it reads in /sys (arch/x86/kvm/vmx/vmx.c, arch/x86/kvm/x86.c).
const PARAMETERS: &[(&str, &str)] = &[
    ("/sys/module/kvm/parameters/enable_pmu", "N\n"),
    ("/sys/module/kvm/parameters/enable_vmware_backdoor", "N\n"),
    ("/sys/module/kvm/parameters/force_emulation_prefix", "0\n"),
    ("/sys/module/kvm/parameters/halt_poll_ns", "0\n"),
    ("/sys/module/kvm/parameters/ignore_msrs", "N\n"),
    ("/sys/module/kvm/parameters/nx_huge_pages", "N\n"),
    ("/sys/module/kvm/parameters/report_ignored_msrs", "Y\n"),
    ("/sys/module/kvm/parameters/tdp_mmu", "Y\n"),
    (
        "/sys/module/kvm_intel/parameters/allow_smaller_maxphyaddr",
        "N\n",
    ),
    ("/sys/module/kvm_intel/parameters/enable_apicv", "N\n"),
    ("/sys/module/kvm_intel/parameters/enable_shadow_vmcs", "N\n"),
    ("/sys/module/kvm_intel/parameters/ept", "Y\n"),
    ("/sys/module/kvm_intel/parameters/eptad", "Y\n"),
    ("/sys/module/kvm_intel/parameters/flexpriority", "Y\n"),
    ("/sys/module/kvm_intel/parameters/nested", "Y\n"),
    ("/sys/module/kvm_intel/parameters/pml", "N\n"),
    ("/sys/module/kvm_intel/parameters/preemption_timer", "Y\n"),
    ("/sys/module/kvm_intel/parameters/unrestricted_guest", "Y\n"),
    ("/sys/module/kvm_intel/parameters/vpid", "Y\n"),
];

/// Folders that a program looks for to find out which modules are there.
const FOLDERS: &[&str] = &[
    "/sys/module/kvm",
    "/sys/module/kvm/parameters",
    "/sys/module/kvm_intel",
    "/sys/module/kvm_intel/parameters",
];

/// A path that is not the file system's to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// `/dev/kvm`.
    Kvm,
    /// A file with this text.
    Text(&'static str),
    /// A folder that is there.
    Folder,
    /// A file that is not there, whatever the host has.
    Missing,
}

/// What is ours of all paths.
#[must_use]
pub fn find(path: &CStr) -> Option<File> {
    let path = path.to_str().ok()?;
    if path == "/dev/kvm" {
        return Some(File::Kvm);
    }
    let module = path.strip_prefix("/sys/module/kvm")?;
    if !module.is_empty() && !module.starts_with(['/', '_']) {
        return None;
    }
    if FOLDERS.contains(&path.trim_end_matches('/')) {
        return Some(File::Folder);
    }
    let row = PARAMETERS.iter().find(|(name, _)| *name == path);
    Some(row.map_or(File::Missing, |(_, text)| File::Text(text)))
}

impl Shim {
    /// open(2) of a path of ours. A folder is opened by nobody.
    pub fn open_file(&self, file: File, close_on_exec: bool) -> Answer {
        match file {
            File::Kvm => self.open_system(close_on_exec),
            File::Text(text) => os::text(text, close_on_exec),
            File::Folder => Err(Errno::EACCES),
            File::Missing => Err(Errno::ENOENT),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_ours_or_not() {
        let cases = [
            (c"/dev/kvm", Some(File::Kvm)),
            (c"/dev/kvmx", None),
            (
                c"/sys/module/kvm_intel/parameters/nested",
                Some(File::Text("Y\n")),
            ),
            (c"/sys/module/kvm_intel/", Some(File::Folder)),
            (
                c"/sys/module/kvm_amd/parameters/nested",
                Some(File::Missing),
            ),
            (c"/sys/module/kvmgt", None),
            (c"kvm", None),
        ];
        for (path, file) in cases {
            assert_eq!(find(path), file, "{path:?}");
        }
    }
}
