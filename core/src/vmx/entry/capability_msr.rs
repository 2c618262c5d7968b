//! Where the VMX capability MSRs are in [`Model::vmx_msrs`](crate::cpu::Model::vmx_msrs).

pub(crate) const BASIC: usize = 0x0;
pub(crate) const PINBASED_CTLS: usize = 0x1;
pub(crate) const PROCBASED_CTLS: usize = 0x2;
pub(crate) const EXIT_CTLS: usize = 0x3;
pub(crate) const ENTRY_CTLS: usize = 0x4;
pub(crate) const MISC: usize = 0x5;
pub(crate) const CR0_FIXED0: usize = 0x6;
pub(crate) const CR0_FIXED1: usize = 0x7;
pub(crate) const CR4_FIXED0: usize = 0x8;
pub(crate) const CR4_FIXED1: usize = 0x9;
pub(crate) const PROCBASED_CTLS2: usize = 0xb;
pub(crate) const EPT_VPID_CAP: usize = 0xc;
pub(crate) const VMFUNC: usize = 0x11;

/// IA32_VMX_BASIC bit 55: the TRUE MSRs exist.
const TRUE_CONTROLS: u64 = 1 << 55;

/// The index of the MSR that says what one of the first four control fields may hold: the TRUE one
/// if there is one.
pub(crate) const fn effective(msrs: &[u64; 20], index: usize) -> usize {
    // IA32_VMX_TRUE_PINBASED_CTLS follows IA32_VMX_PINBASED_CTLS by 12, and so on.
    if msrs[BASIC] & TRUE_CONTROLS != 0 {
        index + 0xc
    } else {
        index
    }
}
