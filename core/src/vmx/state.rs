//! What a processor keeps of VMX operation beside the VMCS itself
//! (SDM Vol. 3C "Introduction to VMX Operation", and KVM's `struct nested_vmx`).

use super::vmcs12::Vmcs12;
use crate::addr::L1Phys;
use crate::nested::SmmFlags;

/// VMX operation of one vCPU, as L0 keeps it for L1.
#[derive(Clone, Default)]
pub struct VmxState {
    /// VMXON region; `None` outside VMX operation.
    pub vmxon: Option<L1Phys>,
    /// Current VMCS; `None` if there is none (SDM: the VMCS pointer is all ones).
    pub current: Option<L1Phys>,
    /// Cached copy of the current vmcs12: the one that counts until VMCLEAR or VMPTRLD writes it out.
    pub vmcs12: Vmcs12,
    /// Cached copy of the vmcs12 at the link pointer while L2 runs with VMCS shadowing.
    pub shadow_vmcs12: Vmcs12,
    /// In VMX non-root operation.
    pub guest_mode: bool,
    /// VMLAUNCH or VMRESUME succeeded and L2 has not run an instruction yet.
    pub run_pending: bool,
    /// An MTF VM exit waits.
    pub mtf_pending: bool,
    /// L1's TSC >> 5 at which the preemption timer of L2 expires, where it runs.
    pub preemption_timer_deadline: Option<u64>,
    /// NMIs are blocked in L1 while L2 runs: KVM keeps that apart (in vmcs01), and it is in no part of
    /// the nested state.
    pub l1_nmi_blocked: bool,
    /// In SMM: VMX operation that SMI interrupted (flags as `hdr.vmx.smm.flags`).
    pub smm_flags: u16,
}

impl VmxState {
    /// Whether the processor is in VMX operation. In SMM it is not, whatever the SMI interrupted.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.vmxon.is_some() && self.smm_flags & SmmFlags::VMXON.bits() == 0
    }
}
