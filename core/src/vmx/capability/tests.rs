//! The captured profile read through the view.

use super::*;
use crate::vmx::controls::{EntryControls, Primary, Secondary};
use crate::vmx::vmcs12::{Layout, VMCS12_REVISION};

const KVM: Capability<'static> = Capability::new(&KVM_6_1_ICELAKE);

#[test]
fn the_captured_profile_reads_as_kvm_describes_itself() {
    assert_eq!(KVM.revision(), VMCS12_REVISION);
    assert_eq!(KVM.region_size(), 4096);
    assert_eq!(KVM.memory_type(), 6);
    assert!(KVM.has_true_controls() && KVM.ins_outs_information());
    assert!(!KVM.dual_monitor() && !KVM.addresses_are_32_bit() && !KVM.any_error_code());
    assert_eq!(KVM.preemption_timer_rate(), 5);
    assert_eq!(KVM.cr3_targets(), 0);
    assert_eq!(KVM.msr_list_limit(), 512);
    assert!(KVM.vmwrite_any() && !KVM.zero_length_injection());
    let activities: Vec<_> = (0..5).map(|state| KVM.allows_activity(state)).collect();
    assert_eq!(activities, [true, true, false, true, false]);
    assert_eq!(
        u64::from(KVM.highest_field_index()) << 1,
        Layout::Linux6_1.vmcs_enum()
    );
    assert!(
        KVM.ept_vpid()
            .contains(EptVpid::EXECUTE_ONLY | EptVpid::PAGES_1G | EptVpid::INVVPID)
    );
    assert!(!KVM.ept_vpid().contains(EptVpid::WALK_LENGTH_5));
    assert_eq!(KVM.vm_functions(), 1);
    assert_eq!(KVM.msr(0x480), Some(KVM_6_1_ICELAKE[0]));
    assert_eq!((KVM.msr(0x494), KVM.msr(0x47f)), (None, None));
}

#[test]
fn controls_are_allowed_by_the_true_msrs() {
    let primary = KVM.allowed(ControlField::Primary);
    // CR3-load exiting may be 0 by the TRUE MSR alone.
    let cr3 = u64::from(Primary::CR3_LOAD_EXITING.bits());
    assert_eq!(primary.must_be_one & cr3, 0);
    let mut old = KVM_6_1_ICELAKE;
    old[0] &= !(1 << 55);
    assert_ne!(
        Capability::new(&old)
            .allowed(ControlField::Primary)
            .must_be_one
            & cr3,
        0
    );

    let tertiary = u64::from(Primary::ACTIVATE_TERTIARY_CONTROLS.bits());
    assert_eq!(primary.violations(primary.must_be_one | tertiary), tertiary);
    assert_eq!(primary.violations(0), primary.must_be_one);
    assert_eq!(KVM.allowed(ControlField::Tertiary).may_be_one, 0);
    let secondary = KVM.allowed(ControlField::Secondary);
    assert!(secondary.permits(u64::from(Secondary::VMCS_SHADOWING.bits())));
    assert!(!secondary.permits(u64::from(Secondary::PAUSE_LOOP_EXITING.bits())));
    let entry = KVM.allowed(ControlField::Entry);
    assert!(!entry.permits(entry.adjust(0) | u64::from(EntryControls::ENTRY_TO_SMM.bits())));
    for field in ControlField::ALL {
        let allowed = KVM.allowed(field);
        assert!(allowed.permits(allowed.adjust(0)), "{field:?}");
        assert!(allowed.permits(allowed.adjust(u64::MAX)), "{field:?}");
    }
}

#[test]
fn secondary_controls_need_the_bit_that_activates_them() {
    let mut msrs = KVM_6_1_ICELAKE;
    msrs[0xe] &= !(1 << 63);
    let none = Allowed {
        must_be_one: 0,
        may_be_one: 0,
    };
    assert_eq!(
        Capability::new(&msrs).allowed(ControlField::Secondary),
        none
    );
}
