//! The rules of SET with the entry checks that a backend gives them.

use super::*;
use crate::cpu::Model;
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::entry::checks::{Context, kvm_restore_checks};

#[test]
fn the_blobs_break_the_same_rules_with_the_real_entry_checks() {
    let model = Model {
        vmx_msrs: KVM_6_1_ICELAKE,
        physical_address_width: 39,
        linear_address_width: 48,
        ..Model::default()
    };
    let memory = VecMemory::new(0x1_0000);
    for (address, bytes) in specimen::shadow_memory() {
        memory.write(address, &bytes).expect("RAM");
    }
    let checks = |vmcs12: &Vmcs12, run_pending: bool| {
        let context = Context {
            vmcs12,
            model: &model,
            memory: &memory,
            l1_long_mode: true,
            smm: false,
            current: Some(specimen::VMCS12),
        };
        kvm_restore_checks(&context, run_pending).map_err(EntryCheck::from)
    };
    let context = SetContext {
        entry_checks: &checks,
        ..context()
    };
    for state in [
        specimen::guest_mode(KVM),
        specimen::guest_mode_with_shadow(KVM),
    ] {
        if let Err(refused) = check(&state, &context) {
            panic!("a state that real KVM takes: {refused}");
        }
    }
    for &rule in SetRefusal::ALL {
        let Some(blob) = specimen::breaking_blob(rule) else {
            continue;
        };
        let context = SetContext {
            guest_has_vmx: blob.guest_has_vmx,
            in_smm: blob.in_smm,
            ..context
        };
        let refused = check_bytes(&blob.bytes, &context).err();
        assert_eq!(refused.map(|refused| refused.rule), Some(rule));
    }
}

/// The states that the kernel returned while L2 ran pass the checks that it would make on SET.
#[test]
fn the_kernels_own_running_states_pass_the_real_entry_checks() {
    let model = Model {
        vmx_msrs: KVM_6_1_ICELAKE,
        physical_address_width: 39,
        linear_address_width: 48,
        ..Model::default()
    };
    let memory = VecMemory::new(4 << 20);
    for (name, bytes) in files::files() {
        let state = NestedState::from_bytes(&bytes).expect("a state");
        let Some(vmcs12) = state.vmcs12().filter(|_| state.guest_mode()) else {
            continue;
        };
        if let Some(shadow) = state.shadow_vmcs12() {
            let link = L1Phys(vmcs12.get(Field::VMCS_LINK_POINTER));
            memory.write(link, shadow.bytes()).expect("RAM");
        }
        let context = Context {
            vmcs12,
            model: &model,
            memory: &memory,
            l1_long_mode: true,
            smm: false,
            current: state.vmcs12_pa(),
        };
        if let Err(rule) = kvm_restore_checks(&context, false) {
            panic!("{name}: {rule:?}: {}", rule.text);
        }
    }
}
