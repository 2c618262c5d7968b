//! The controls of a vmcs12 as typed sets.

use crate::vmx::controls::{EntryControls, ExitControls, PinBased, Primary, Secondary, Tertiary};
use crate::vmx::{Field, Vmcs12};

/// Pin-based VM-execution controls.
#[inline(always)]
#[must_use]
pub fn pin_based(vmcs12: &Vmcs12) -> PinBased {
    PinBased::from_bits_retain(vmcs12.get32(Field::PIN_BASED_VM_EXEC_CONTROL))
}

/// Primary processor-based VM-execution controls.
#[inline(always)]
#[must_use]
pub fn primary(vmcs12: &Vmcs12) -> Primary {
    Primary::from_bits_retain(vmcs12.get32(Field::CPU_BASED_VM_EXEC_CONTROL))
}

/// Secondary processor-based VM-execution controls; none are set if the primary ones do not activate
/// them.
#[inline(always)]
#[must_use]
pub fn active_secondary(vmcs12: &Vmcs12) -> Secondary {
    if primary(vmcs12).contains(Primary::ACTIVATE_SECONDARY_CONTROLS) {
        Secondary::from_bits_retain(vmcs12.get32(Field::SECONDARY_VM_EXEC_CONTROL))
    } else {
        Secondary::empty()
    }
}

/// Tertiary processor-based VM-execution controls; none are set if the primary ones do not activate them.
#[inline(always)]
#[must_use]
pub fn active_tertiary(vmcs12: &Vmcs12) -> Tertiary {
    if primary(vmcs12).contains(Primary::ACTIVATE_TERTIARY_CONTROLS) {
        Tertiary::from_bits_retain(vmcs12.get(Field::TERTIARY_VM_EXEC_CONTROL))
    } else {
        Tertiary::empty()
    }
}

/// VM-exit controls.
#[inline(always)]
#[must_use]
pub fn exit_controls(vmcs12: &Vmcs12) -> ExitControls {
    ExitControls::from_bits_retain(vmcs12.get32(Field::VM_EXIT_CONTROLS))
}

/// VM-entry controls.
#[inline(always)]
#[must_use]
pub fn entry_controls(vmcs12: &Vmcs12) -> EntryControls {
    EntryControls::from_bits_retain(vmcs12.get32(Field::VM_ENTRY_CONTROLS))
}

/// The VPID that tags L2's translations; zero (root operation's) without "enable VPID".
#[inline(always)]
#[must_use]
pub fn vpid(vmcs12: &Vmcs12) -> u16 {
    if active_secondary(vmcs12).contains(Secondary::ENABLE_VPID) {
        vmcs12.get(Field::VIRTUAL_PROCESSOR_ID) as u16
    } else {
        0
    }
}
