//! Between the ABI and the model's own [`VmxState`].
//!
//! While an SMM handler runs, KVM leaves VMX operation but keeps the VMXON pointer: in [`VmxState`]
//! `vmxon` stays `Some` and `smm_flags` says that operation is suspended.

use super::{Flags, NestedState, SmmFlags};
use crate::vcpu::BackendError;
use crate::vmx::controls::{PinBased, Primary, Secondary};
use crate::vmx::{Field, Vmcs12, VmxState};
use thiserror::Error;

/// A nested state that [`VmxState`] cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotRepresentable {
    /// The flag KVM_STATE_NESTED_EVMCS: the model has no enlightened VMCS.
    #[error("unsupported: enlightened VMCS (KVM_STATE_NESTED_EVMCS), no SDM section: Hyper-V TLFS")]
    EnlightenedVmcs,
    /// `format` is not VMX.
    #[error("unsupported: nested state of format {0}, SDM has VMX (0) only")]
    Format(u16),
    /// A current VMCS but not all the bytes of its vmcs12.
    #[error("the state names a current VMCS but holds no whole vmcs12")]
    Vmcs12Missing,
}

impl From<NotRepresentable> for BackendError {
    fn from(error: NotRepresentable) -> Self {
        let text = error.to_string();
        match text.strip_prefix("unsupported: ") {
            Some(what) => Self::Unsupported(what.into()),
            None => Self::StateRefused {
                part: "nested state".into(),
                reason: text,
            },
        }
    }
}

/// Whether L2 has VMCS shadowing (KVM: `nested_cpu_has_shadow_vmcs`).
#[must_use]
pub(crate) fn has_vmcs_shadowing(vmcs12: &Vmcs12) -> bool {
    let primary = Primary::from_bits_retain(vmcs12.get32(Field::CPU_BASED_VM_EXEC_CONTROL));
    let secondary = Secondary::from_bits_retain(vmcs12.get32(Field::SECONDARY_VM_EXEC_CONTROL));
    primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS)
        && secondary.contains(Secondary::VMCS_SHADOWING)
}

/// Whether L2 has the VMX-preemption timer (KVM: `nested_cpu_has_preemption_timer`).
#[must_use]
pub(crate) fn has_preemption_timer(vmcs12: &Vmcs12) -> bool {
    PinBased::from_bits_retain(vmcs12.get32(Field::PIN_BASED_VM_EXEC_CONTROL))
        .contains(PinBased::ACTIVATE_PREEMPTION_TIMER)
}

/// Whether a vmcs12 has a shadow VMCS: VMCS shadowing and a link pointer.
#[must_use]
pub(crate) fn needs_shadow(vmcs12: &Vmcs12) -> bool {
    has_vmcs_shadowing(vmcs12) && vmcs12.get(Field::VMCS_LINK_POINTER) != super::NO_POINTER
}

impl NestedState {
    /// What KVM_GET_NESTED_STATE yields for `vmx` (KVM: `vmx_get_nested_state`), in a buffer that is
    /// large enough. The vmcs12 must be up to date with the processor: L2's state synced into it.
    #[must_use]
    pub fn capture(vmx: &VmxState) -> Self {
        let mut state = Self::default();
        let Some(vmxon) = vmx.vmxon else { return state };
        let header = state.header_mut();
        header.set_vmxon_pa(Some(vmxon));
        header.set_vmcs12_pa(vmx.current);
        header.set_smm_flags(SmmFlags::from_bits_retain(vmx.smm_flags));
        if vmx.guest_mode {
            let mut flags = Flags::GUEST_MODE;
            flags.set(Flags::RUN_PENDING, vmx.run_pending);
            flags.set(Flags::MTF_PENDING, vmx.mtf_pending);
            header.set_flags(flags);
            if has_preemption_timer(&vmx.vmcs12) {
                header.set_preemption_timer_deadline(vmx.preemption_timer_deadline);
            }
        }
        if vmx.current.is_some() {
            let shadow = vmx.guest_mode && needs_shadow(&vmx.vmcs12);
            let shadow = shadow.then(|| vmx.shadow_vmcs12.clone());
            state.set_regions(Some(vmx.vmcs12.clone()), shadow);
        }
        state
    }

    /// Makes `vmx` what the state says, with no check but whether it can: see
    /// [`super::set_rules::check`] for what the kernel refuses. `vmx` is changed as a whole or not.
    pub fn apply(&self, vmx: &mut VmxState) -> Result<(), NotRepresentable> {
        if self.header().format() != super::FORMAT_VMX {
            return Err(NotRepresentable::Format(self.header().format()));
        }
        if self.flags().contains(Flags::EVMCS) && self.vmxon_pa().is_some() {
            return Err(NotRepresentable::EnlightenedVmcs);
        }
        let current = self.vmxon_pa().and(self.vmcs12_pa());
        let vmcs12 = match (current, self.vmcs12()) {
            (None, _) => Vmcs12::default(),
            (Some(_), Some(vmcs12)) => vmcs12.clone(),
            (Some(_), None) => return Err(NotRepresentable::Vmcs12Missing),
        };
        let guest_mode = self.guest_mode() && current.is_some();
        *vmx = VmxState {
            vmxon: self.vmxon_pa(),
            current,
            vmcs12,
            shadow_vmcs12: self.shadow_vmcs12().cloned().unwrap_or_default(),
            guest_mode,
            run_pending: guest_mode && self.flags().contains(Flags::RUN_PENDING),
            mtf_pending: guest_mode && self.flags().contains(Flags::MTF_PENDING),
            preemption_timer_deadline: self.preemption_timer_deadline().filter(|_| guest_mode),
            smm_flags: self.smm().bits(),
            // What the ABI does not carry starts afresh.
            ..VmxState::default()
        };
        Ok(())
    }
}
