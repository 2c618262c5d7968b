//! What this host's KVM can do, and for what it cannot: the first thing missing, and what to do.

use crate::error;
use crate::sys::read_trimmed;
use crate::trace;
use kvm_bindings::{KVM_CAP_NESTED_STATE, KVM_CAP_X86_SMM};
use kvm_ioctls::{Cap, Kvm};
use nvmx_core::vcpu::{Capabilities, Capability, Result};

/// `/dev/kvm`, opened, with what was learnt about it.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
    nested_size: usize,
    capabilities: Capabilities,
}

impl Host {
    /// Opens `/dev/kvm` and asks it.
    ///
    /// # Errors
    /// No device, no permission, or not the API version 12 that every KVM of the last decade has.
    pub fn open() -> Result<Self> {
        let kvm = Kvm::new().map_err(error::ioctl("open /dev/kvm"))?;
        let version = kvm.get_api_version();
        if version != 12 {
            return Err(error::kernel("KVM_GET_API_VERSION", libc::EINVAL));
        }
        let nested_size = kvm.check_extension_raw(KVM_CAP_NESTED_STATE.into()).max(0) as usize;
        let nested = nested_verdict(&Facts::gather(nested_size));
        let capabilities = Capabilities {
            description: description(),
            entries: entries(&kvm, &nested),
        };
        Ok(Self {
            kvm,
            nested_size,
            capabilities,
        })
    }

    /// What this host lets the backend do.
    #[must_use]
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The system file descriptor.
    #[must_use]
    pub fn kvm(&self) -> &Kvm {
        &self.kvm
    }

    /// Bytes of the largest nested state, as KVM_CHECK_EXTENSION says; zero where there is none.
    #[must_use]
    pub fn nested_size(&self) -> usize {
        self.nested_size
    }
}

/// What a host that cannot even open `/dev/kvm` can do: nothing, each with the same reason.
#[must_use]
pub fn capabilities_without_kvm(reason: &str) -> Capabilities {
    let absent = |capability| (capability, Err(reason.to_owned()));
    Capabilities {
        description: description(),
        entries: ALL.iter().copied().map(absent).collect(),
    }
}

const ALL: [Capability; 9] = [
    Capability::NestedVmx,
    Capability::NestedEpt,
    Capability::SingleStep,
    Capability::DirtyPages,
    Capability::ExactInstructions,
    Capability::ExactNestedEvents,
    Capability::Deterministic,
    Capability::Smm,
    Capability::NestedEvents,
];

fn entries(
    kvm: &Kvm,
    nested: &Result<String, String>,
) -> Vec<(Capability, Result<String, String>)> {
    let verdict = |capability| match capability {
        Capability::NestedVmx => nested.clone(),
        Capability::NestedEpt => nested.clone().and_then(|_| ept_verdict()),
        Capability::SingleStep => {
            if kvm.check_extension(Cap::SetGuestDebug) {
                Ok("KVM_SET_GUEST_DEBUG".into())
            } else {
                Err("this kernel lacks KVM_CAP_SET_GUEST_DEBUG".into())
            }
        }
        Capability::DirtyPages => Ok("KVM_GET_DIRTY_LOG, and our own writes".into()),
        Capability::ExactInstructions => {
            Err("KVM counts no guest instructions; use a time limit or single steps".into())
        }
        Capability::ExactNestedEvents => {
            Err("KVM cannot stop at a nested event; use a time limit and the trace".into())
        }
        Capability::Deterministic => Err("the guest runs on real time".into()),
        Capability::Smm => match kvm.check_extension_raw(KVM_CAP_X86_SMM.into()) {
            1.. => Ok("KVM_CAP_X86_SMM".into()),
            _ => Err("this kernel lacks KVM_CAP_X86_SMM".into()),
        },
        Capability::NestedEvents => nested
            .clone()
            .and_then(|_| trace::availability().map(|path| format!("tracepoints in {path}"))),
    };
    ALL.iter().map(|&c| (c, verdict(c))).collect()
}

fn description() -> String {
    let release = read_trimmed("/proc/sys/kernel/osrelease").unwrap_or_else(|| "?".into());
    format!("KVM of Linux {release}")
}

/// What decides whether guests may use VMX, as the host's files say it.
#[derive(Debug, Clone, Default)]
struct Facts {
    /// KVM_CHECK_EXTENSION(KVM_CAP_NESTED_STATE).
    nested_size: usize,
    /// `vendor_id` of /proc/cpuinfo.
    vendor: String,
    /// Whether `vmx` is among the flags of /proc/cpuinfo.
    vmx: bool,
    /// Parameter `nested` of kvm_intel; `None` if the module is not there.
    kvm_intel_nested: Option<String>,
    /// Whether kvm_amd is loaded.
    kvm_amd: bool,
}

impl Facts {
    fn gather(nested_size: usize) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let value = |key: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':'))
                .map_or("", |(_, value)| value.trim())
        };
        Self {
            nested_size,
            vendor: value("vendor_id").into(),
            vmx: value("flags").split(' ').any(|flag| flag == "vmx"),
            kvm_intel_nested: read_trimmed("/sys/module/kvm_intel/parameters/nested"),
            kvm_amd: std::path::Path::new("/sys/module/kvm_amd").exists(),
        }
    }
}

/// Whether nested VMX works here; if not, the first thing that is missing and what to do.
fn nested_verdict(facts: &Facts) -> Result<String, String> {
    if facts.kvm_amd || facts.vendor == "AuthenticAMD" || facts.vendor == "HygonGenuine" {
        return Err(format!(
            "the host's processor is {}, which has SVM and no VMX; use an Intel host, \
             the soft backend, or the lab (`nvmx lab`)",
            if facts.vendor.is_empty() {
                "AMD"
            } else {
                &facts.vendor
            }
        ));
    }
    if !facts.vmx {
        return Err(
            "the processor does not offer VMX (no `vmx` in /proc/cpuinfo); enable it in the \
             firmware or, in a virtual machine, ask its host for nested virtualization"
                .into(),
        );
    }
    match facts.kvm_intel_nested.as_deref() {
        None => Err("the module kvm_intel is not loaded; `modprobe kvm_intel nested=1`".into()),
        Some("N" | "0") => Err(
            "kvm_intel is loaded with nested=0; `modprobe -r kvm_intel && modprobe kvm_intel \
             nested=1`"
                .into(),
        ),
        Some(_) if facts.nested_size == 0 => {
            Err("this kernel has no KVM_CAP_NESTED_STATE (Linux 4.20 or newer has it)".into())
        }
        Some(_) => Ok(format!(
            "kvm_intel nested=1, states of up to {} bytes",
            facts.nested_size
        )),
    }
}

fn ept_verdict() -> Result<String, String> {
    match read_trimmed("/sys/module/kvm_intel/parameters/ept").as_deref() {
        Some("Y" | "1") => Ok("kvm_intel ept=1".into()),
        Some(_) => Err("kvm_intel is loaded with ept=0; L1 uses shadow paging".into()),
        None => Err("the module kvm_intel is not loaded".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_thing_missing_is_named() {
        let good = Facts {
            nested_size: 8320,
            vendor: "GenuineIntel".into(),
            vmx: true,
            kvm_intel_nested: Some("Y".into()),
            kvm_amd: false,
        };
        assert!(nested_verdict(&good).is_ok());
        let cases: [(Facts, &str); 5] = [
            (
                Facts {
                    vendor: "AuthenticAMD".into(),
                    ..good.clone()
                },
                "SVM and no VMX",
            ),
            (
                Facts {
                    vmx: false,
                    kvm_intel_nested: None,
                    ..good.clone()
                },
                "does not offer VMX",
            ),
            (
                Facts {
                    kvm_intel_nested: None,
                    ..good.clone()
                },
                "modprobe kvm_intel nested=1",
            ),
            (
                Facts {
                    kvm_intel_nested: Some("N".into()),
                    ..good.clone()
                },
                "nested=0",
            ),
            (
                Facts {
                    nested_size: 0,
                    ..good.clone()
                },
                "KVM_CAP_NESTED_STATE",
            ),
        ];
        for (facts, words) in cases {
            let reason = nested_verdict(&facts).unwrap_err();
            assert!(reason.contains(words), "{reason}");
        }
    }
}
