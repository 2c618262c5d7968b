//! What user space reads and writes of a vCPU, in the parts that KVM's ioctls cut it into.
//!
//! Every part is optional: `None` means not asked for, or not there on this backend. Nested state is
//! not among them, since it has its own rules: see [`crate::nested`] and [`super::ownership`].

use super::cpuid::CpuidEntry;
use super::regs::{DebugRegs, Regs, Sregs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// State of one vCPU, without its nested state.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuState {
    /// CPUID as the guest sees it (`KVM_SET_CPUID2`).
    pub cpuid: Option<Vec<CpuidEntry>>,
    /// TSC frequency in kHz (`KVM_GET_TSC_KHZ`).
    pub tsc_khz: Option<u32>,
    /// Segment, control and table registers.
    pub sregs: Option<Sregs>,
    /// MSRs by number.
    pub msrs: Option<BTreeMap<u32, u64>>,
    /// XCR0.
    pub xcr0: Option<u64>,
    /// The XSAVE area in standard format, 4096 bytes on KVM, 512 or more elsewhere.
    pub xsave: Option<Vec<u8>>,
    /// Pending and injected events.
    pub events: Option<VcpuEvents>,
    /// Whether the vCPU runs, waits or halts.
    pub mp_state: Option<MpState>,
    /// DR0 to DR3, DR6, DR7.
    pub debug: Option<DebugRegs>,
    /// General-purpose registers, RIP, RFLAGS.
    pub regs: Option<Regs>,
    /// The local APIC's register page, 1024 bytes.
    pub lapic: Option<Vec<u8>>,
}

/// `KVM_MP_STATE_*` as far as x86 has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(u32)]
pub enum MpState {
    /// Running.
    #[default]
    Runnable = 0,
    /// An application processor before INIT.
    Uninitialized = 1,
    /// Waits for SIPI.
    InitReceived = 2,
    /// In HLT.
    Halted = 3,
    /// Received SIPI.
    SipiReceived = 4,
}

impl MpState {
    /// From the kernel's number.
    #[must_use]
    pub const fn from_kernel(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Runnable,
            1 => Self::Uninitialized,
            2 => Self::InitReceived,
            3 => Self::Halted,
            4 => Self::SipiReceived,
            _ => return None,
        })
    }
}

/// Events that wait or are under way: `struct kvm_vcpu_events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct VcpuEvents {
    /// An exception is injected: delivery began and must be done again on entry.
    pub exception_injected: bool,
    /// An exception waits: its side effects (CR2, DR6) are not applied and L1 may still intercept it.
    pub exception_pending: bool,
    /// Vector of the exception.
    pub exception_vector: u8,
    /// Error code of the exception.
    pub exception_error_code: Option<u32>,
    /// Payload (CR2 or DR6 bits) of a pending exception.
    pub exception_payload: Option<u64>,
    /// An interrupt is injected.
    pub interrupt_injected: bool,
    /// Vector of the interrupt.
    pub interrupt_vector: u8,
    /// The interrupt is INT n.
    pub interrupt_soft: bool,
    /// `KVM_X86_SHADOW_INT_*`: 1 MOV SS, 2 STI.
    pub interrupt_shadow: u8,
    /// An NMI is injected.
    pub nmi_injected: bool,
    /// NMIs that wait.
    pub nmi_pending: u8,
    /// NMIs are blocked.
    pub nmi_masked: bool,
    /// Vector of a SIPI.
    pub sipi_vector: u32,
    /// In SMM.
    pub smm: bool,
    /// An SMI waits.
    pub smi_pending: bool,
    /// SMM was entered inside an NMI handler.
    pub smm_inside_nmi: bool,
    /// An INIT waits for the end of SMM.
    pub latched_init: bool,
    /// A triple fault waits.
    pub triple_fault_pending: bool,
}
