//! What a lab is made of: kernel, agent, CPU model, limits.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

/// A kernel that the lab can boot. Each is Debian's stock cloud image, in whichever build its mirror has today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Kernel {
    /// Linux 6.1, the kernel of Debian 12.
    #[serde(rename = "6.1")]
    V6_1,
    /// Linux 6.12, from Debian 12's security archive or backports.
    #[serde(rename = "6.12")]
    V6_12,
}

impl Kernel {
    /// All kernels, oldest first.
    pub const ALL: [Self; 2] = [Self::V6_1, Self::V6_12];

    /// The series as people write it, which is also the name of its folder in the cache.
    pub const fn name(self) -> &'static str {
        match self {
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
        }
    }
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name given is no kernel that the lab knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown lab kernel {0:?}: known are 6.1 and 6.12")]
pub struct UnknownKernel(pub String);

impl FromStr for Kernel {
    type Err = UnknownKernel;

    fn from_str(text: &str) -> Result<Self, UnknownKernel> {
        Self::ALL
            .into_iter()
            .find(|kernel| kernel.name() == text)
            .ok_or_else(|| UnknownKernel(text.to_owned()))
    }
}

/// How far a lab has come. Stages are reached in this order.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Stage {
    /// Checking the cache, building the boot disk.
    Prepare,
    /// Bochs runs, its BIOS has the say.
    Bios,
    /// The boot sector has loaded the kernel and jumps to it.
    KernelStarted,
    /// The kernel has started /init.
    Init,
    /// kvm-intel is loaded with nested=1.
    KvmLoaded,
    /// The agent has opened its end of the channel.
    AgentReady,
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Prepare => "preparing the boot disk",
            Self::Bios => "in the BIOS",
            Self::KernelStarted => "booting the kernel",
            Self::Init => "loading KVM",
            Self::KvmLoaded => "starting the agent",
            Self::AgentReady => "running",
        })
    }
}

/// What to boot and how. [`LabConfig::new`] fills in what is rarely changed.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Which kernel.
    pub kernel: Kernel,
    /// A static ELF program; it runs as `/bin/agent` in the guest, as root.
    pub agent: PathBuf,
    /// The agent's arguments.
    pub agent_args: Vec<String>,
    /// Bochs' name of the CPU to emulate. Models without VMX or EPT boot, but KVM will not load or lack features.
    pub cpu_model: String,
    /// Options for kvm-intel besides `nested=1`, such as `enable_shadow_vmcs=0`.
    pub kvm_options: Vec<String>,
    /// More words for the kernel's command line, such as `initcall_debug`.
    pub kernel_args: Vec<String>,
    /// More files for the guest's root file system: (file here, absolute path there). Modes are kept.
    pub extra_files: Vec<(PathBuf, String)>,
    /// The guest's RAM in MiB, 192 to 2048.
    pub megs: u32,
    /// How long one boot may take from the start of Bochs to [`Stage::AgentReady`].
    pub boot_timeout: Duration,
    /// Where unpacked kernels are kept (see [`crate::cache::default_dir`]).
    pub cache: PathBuf,
    /// How often to boot again after a boot that hung or died before the agent was ready.
    pub retries: u32,
}

impl LabConfig {
    /// A lab with `kernel` and `agent`, and the usual rest: Ice Lake, 512 MiB, two minutes a boot, one retry.
    pub fn new(kernel: Kernel, agent: impl Into<PathBuf>) -> Self {
        Self {
            kernel,
            agent: agent.into(),
            agent_args: Vec::new(),
            cpu_model: "corei7_icelake_u".to_owned(),
            kvm_options: Vec::new(),
            kernel_args: Vec::new(),
            extra_files: Vec::new(),
            megs: 512,
            boot_timeout: Duration::from_secs(120),
            cache: crate::cache::default_dir(),
            retries: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_read_back_as_they_are_written() {
        for kernel in Kernel::ALL {
            assert_eq!(kernel.to_string().parse(), Ok(kernel));
        }
        assert_eq!("6.13".parse::<Kernel>(), Err(UnknownKernel("6.13".into())));
    }

    #[test]
    fn stages_are_ordered() {
        assert!(
            Stage::Prepare < Stage::Bios
                && Stage::KernelStarted < Stage::Init
                && Stage::Init < Stage::AgentReady
        );
    }
}
