//! vmcs12: the VMCS that L1 wrote for L2, in KVM's own layout (`arch/x86/kvm/vmx/vmcs12.h`).

/// A vmcs12: 4096 bytes in KVM's layout, fields found by the offset table.
#[derive(Clone, PartialEq, Eq)]
pub struct Vmcs12(Box<[u8; 4096]>);

impl Default for Vmcs12 {
    fn default() -> Self {
        Self(Box::new([0; 4096]))
    }
}
impl Vmcs12 {
    /// The raw bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.0
    }
}
