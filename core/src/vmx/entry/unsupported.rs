//! Controls that the model checks but does not carry out. A caller that runs L2 asks here before it
//! enters, so that what is missing ends in a message and never in a wrong answer.

use super::active_secondary;
use crate::vmx::Vmcs12;
use crate::vmx::controls::Secondary;

/// Secondary controls without an implementation, with the SDM's section.
const SECONDARY: &[(Secondary, &str)] = &[
    (
        Secondary::PAUSE_LOOP_EXITING,
        "\"PAUSE-loop exiting\", SDM Vol. 3C \"Changes to Instruction Behavior in VMX Non-Root Operation\"",
    ),
    (
        Secondary::ENABLE_ENCLS_EXITING,
        "\"enable ENCLS exiting\", SDM Vol. 3C \"Instructions That Cause VM Exits Conditionally\"",
    ),
];

/// Every control that [`unsupported`] names: a model that offers none of them never meets one.
#[must_use]
pub fn unsupported_controls() -> Secondary {
    SECONDARY
        .iter()
        .fold(Secondary::empty(), |all, &(control, _)| all | control)
}

/// The first control of this vmcs12 that L2 could notice missing, with its SDM section.
#[must_use]
pub fn unsupported(vmcs12: &Vmcs12) -> Option<&'static str> {
    let secondary = active_secondary(vmcs12);
    SECONDARY
        .iter()
        .find(|(control, _)| secondary.contains(*control))
        .map(|&(_, text)| text)
        .or_else(|| super::missing::first(vmcs12))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::Field;
    use crate::vmx::entry::test_support::valid_vmcs12;

    #[test]
    fn missing_controls_are_named_and_the_rest_passes() {
        let mut vmcs12 = valid_vmcs12();
        assert_eq!(unsupported(&vmcs12), None);
        let secondary = vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL);
        for (control, text) in SECONDARY {
            let value = secondary | u64::from(control.bits());
            vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, value);
            assert_eq!(unsupported(&vmcs12), Some(*text));
        }
    }
}
