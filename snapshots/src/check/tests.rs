//! A valid vmcs12, spoiled ones, and the same one on several processors.

use super::*;
use nvmx_core::nested::specimen;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};

fn guest() -> NestedState {
    let bytes = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE)).to_bytes();
    NestedState::from_bytes(&bytes).expect("a specimen")
}

fn subject(nested: NestedState) -> Subject {
    Subject::Snapshot(Box::new(Snapshot::of_nested(nested)))
}

fn on(name: &str) -> Options {
    Options {
        profile: Some(profiles::find(name).expect("a profile")),
        personality: None,
    }
}

#[test]
fn a_valid_vmcs12_breaks_no_rule_and_a_spoiled_one_the_rule_in_question() {
    let valid = audit(&subject(guest()), Options::default());
    assert!(valid[0].broken.is_empty(), "{}", valid[0]);
    assert!(valid[0].entry.passes && valid[0].restore.as_ref().is_some_and(|v| v.passes));

    let mut nested = guest();
    let vmcs12 = nested.vmcs12_mut().expect("guest mode has one");
    vmcs12.set(Field::GUEST_RFLAGS, 0);
    let spoiled = audit(&subject(nested), Options::default());
    assert_eq!(spoiled[0].broken.len(), 1, "{}", spoiled[0]);
    assert_eq!(
        spoiled[0].broken[0].values,
        [("GUEST_RFLAGS".to_owned(), "0x0".to_owned())]
    );
    // KVM leaves RFLAGS to the processor.
    assert!(!spoiled[0].entry.passes);
    assert!(spoiled[0].restore.as_ref().is_some_and(|v| v.passes));
}

#[test]
fn without_a_vmcs12_there_is_nothing_to_audit() {
    assert!(audit(&subject(NestedState::default()), Options::default()).is_empty());
}

#[test]
fn a_control_that_one_processor_lacks_decides_where_it_restores() {
    let mut nested = guest();
    let vmcs12 = nested.vmcs12_mut().expect("guest mode has one");
    let with_trap_flag = vmcs12.get(Field::CPU_BASED_VM_EXEC_CONTROL) | 1 << 27;
    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, with_trap_flag);
    let subject = subject(nested);
    let audits: Vec<_> = ["kvm-6.12", "kvm-6.12-skylake"]
        .into_iter()
        .flat_map(|name| audit(&subject, on(name)))
        .collect();
    assert!(audits[0].restore.as_ref().is_some_and(|v| v.passes));
    let refused = audits[1].restore.as_ref().expect("KVM's");
    assert_eq!(refused.rule.as_deref(), Some("control.primary.reserved"));
    let text = comparison(&audits);
    for words in [
        "restores on kvm-6.12\n",
        "refused on kvm-6.12-skylake, because",
        "CPU_BASED_VM_EXEC_CONTROL 0x",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
}

#[test]
fn the_personality_decides_who_enforces() {
    let mut nested = guest();
    let current = nested.vmcs12_pa().expect("guest mode has one");
    let vmcs12 = nested.vmcs12_mut().expect("guest mode has one");
    vmcs12.set(Field::VMCS_LINK_POINTER, current.0);
    let subject = subject(nested);
    for personality in Personality::ALL {
        let options = Options {
            profile: None,
            personality: Some(personality),
        };
        let audits = audit(&subject, options);
        let names: Vec<_> = audits[0].broken.iter().map(|b| b.rule).collect();
        assert!(
            names.contains(&"guest.link_pointer.not_current"),
            "{names:?}"
        );
        let has_restore = audits[0].restore.is_some();
        assert_eq!(has_restore, personality.name() == "kvm");
    }
}

#[test]
fn a_bare_region_is_told_by_its_revision() {
    let nested = guest();
    let bytes = nested.vmcs12().expect("guest mode has one").bytes();
    let region = region(bytes).expect("a region");
    let audits = audit(&Subject::Region(region), on("kvm-6.1"));
    assert!(audits[0].broken.is_empty(), "{}", audits[0]);
    assert!(audits[0].restore.is_none());
    assert!(super::region(&[0; VMCS12_SIZE]).is_none());
    assert!(super::region(&[]).is_none());
}

/// A region keeps KVM's format on whichever processor it is looked at.
#[test]
fn silicon_does_not_refuse_a_region_for_its_revision() {
    let shadowing = specimen::guest_mode_with_shadow(Capability::new(&KVM_6_1_ICELAKE));
    for name in ["skylake-sp", "sapphire-rapids", "kvm-6.12"] {
        let audits = audit(&subject(shadowing.clone()), on(name));
        assert!(audits[0].broken.is_empty(), "{}", audits[0]);
    }
}
