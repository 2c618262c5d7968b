//! KVM's nested-state ABI: `struct kvm_nested_state` and what KVM_SET_NESTED_STATE refuses.

/// `struct kvm_nested_state`.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct NestedState {}
