//! What Bochs 2.7, the lab's processor, does otherwise than the SDM: measured on bare Bochs, or below KVM in
//! the lab. A row names the control, the rule or the place in the order of priorities that it concerns.

/// One departure.
#[derive(Debug, Clone, Copy)]
pub struct Departure {
    /// A rule, a row of priorities, or a control's name; empty where it is none of them.
    pub concerns: &'static str,
    /// What Bochs does.
    pub text: &'static str,
}

macro_rules! departures {
    ($($concerns:literal $text:literal;)*) => {
        /// Every departure that is known.
        pub static DEPARTURES: &[Departure] = &[$(Departure { concerns: $concerns, text: $text }),*];
    };
}

departures! {
    "Monitor trap flag" "is offered on the models from Ice Lake on, and not carried out";
    "guest.rip.canonical" "an L2 with a non-canonical RIP is entered";
    "vmlaunch.shadow" "VMLAUNCH of a shadow VMCS fails with error 7, not with VMfailInvalid";
    "external-interrupt" "an external interrupt exits only while RFLAGS.IF is 1";
    "nmi" "blocking by NMI is kept across guests, until an IRET, and an NMI exit records L2 as blocked";
    "" "qualifications of VMREAD, VMWRITE, SLDT and STR with a register operand are left-overs";
    "" "IA32_TSC_DEADLINE stays set when it passes";
    "" "an EPT violation of a read-modify-write has the write bit alone";
    "" "a host interrupt is never delivered while a guest spins with RFLAGS.IF clear and no exit";
    "" "PKU is announced without its XSAVE area, so that Linux turns XSAVE off";
}

/// What is known of one rule, row or control.
#[must_use]
pub fn departure(concerns: &str) -> Option<&'static str> {
    DEPARTURES
        .iter()
        .find(|row| !row.concerns.is_empty() && row.concerns == concerns)
        .map(|row| row.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profiles::rows;
    use crate::vmx::capability::ControlField;
    use crate::vmx::entry::checks;
    use crate::vmx::exit::priority;
    use crate::vmx::instructions::rules;

    #[test]
    fn each_concerns_something_that_exists() {
        for Departure { concerns, text } in DEPARTURES {
            assert!(!text.is_empty());
            let exists = concerns.is_empty()
                || checks::find(concerns).is_some()
                || priority::place(concerns).is_some()
                || rules::all().any(|rule| rule.id == *concerns)
                || ControlField::ALL
                    .into_iter()
                    .any(|field| rows(field).iter().any(|row| row.name == *concerns));
            assert!(exists, "{concerns}");
        }
        assert!(departure("guest.rip.canonical").is_some() && departure("guest.cr0").is_none());
    }
}
