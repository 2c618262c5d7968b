//! What a snapshot is, in memory.

use crate::pages::PageStore;
use nvmx_core::nested::NestedState;
use nvmx_core::x86::CpuState;
use serde::{Deserialize, Serialize};

/// Where a snapshot comes from: words for people, never compared.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Meta {
    /// The backend that it was taken on, and what is behind it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub taken_by: String,
    /// The host kernel, where the backend is KVM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// The command that made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// The guest's image: name, and a hash of its bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Anything else.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// One vCPU of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VcpuSnapshot {
    /// State without nested state; all parts absent in a snapshot that holds nested state alone.
    pub cpu: CpuState,
    /// Nested state; absent where the backend has none.
    pub nested: Option<NestedState>,
}

/// A machine at one instant.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Snapshot {
    /// Where it comes from.
    pub meta: Meta,
    /// Its vCPUs, by index.
    pub vcpus: Vec<VcpuSnapshot>,
    /// Guest memory, where it was captured.
    pub memory: Option<PageStore>,
}

impl Snapshot {
    /// Nested state alone, as from a `.bin` file.
    #[must_use]
    pub fn of_nested(nested: NestedState) -> Self {
        Self {
            vcpus: vec![VcpuSnapshot {
                cpu: CpuState::default(),
                nested: Some(nested),
            }],
            ..Self::default()
        }
    }

    /// Whether it can be restored and run: memory and registers are there.
    #[must_use]
    pub fn is_runnable(&self) -> bool {
        self.memory.is_some()
            && !self.vcpus.is_empty()
            && self
                .vcpus
                .iter()
                .all(|vcpu| vcpu.cpu.regs.is_some() && vcpu.cpu.sregs.is_some())
    }

    /// Whether two snapshots hold the same state, whatever their origin.
    #[must_use]
    pub fn same_state(&self, other: &Self) -> bool {
        self.vcpus == other.vcpus && self.memory == other.memory
    }
}
