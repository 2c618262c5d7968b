//! What of a processor KVM offers to guests: the CPUID of KVM_GET_SUPPORTED_CPUID and the MSRs that go with it.

use nvmx_core::msr::host;
use nvmx_core::profiles::Profile;
use nvmx_core::vmx::capability::MSR_COUNT;
use nvmx_core::x86::cpuid::{self, CpuidEntry};
use nvmx_core::x86::cr_write::allowed_cr4;
use nvmx_core::x86::{CpuState, msr};

/// IA32_PERF_CAPABILITIES follows from CPUID; the others of the feature MSRs stand here.
#[derive(Debug, Clone)]
pub struct Offered {
    /// CPUID, each leaf up to the highest, as KVM lists them.
    pub cpuid: Vec<CpuidEntry>,
    /// The VMX capability MSRs.
    pub vmx: [u64; MSR_COUNT],
    /// IA32_ARCH_CAPABILITIES.
    pub arch_capabilities: u64,
    /// Bits of CR4 that a guest may have.
    pub cr4: u64,
    /// Bits of a physical address.
    pub physical_address_width: u8,
}

/// IA32_BIOS_SIGN_ID, the microcode's revision.
const MICROCODE: u64 = 1 << 32;
/// Leaves whose subleaf counts even where there is one alone (`do_host_cpuid`).
const WITH_SUBLEAVES: &[u32] = &[
    4, 7, 0xb, 0xd, 0xf, 0x10, 0x12, 0x14, 0x17, 0x18, 0x1d, 0x1e, 0x1f,
];

/// KVM_CPUID_FEATURES: what KVM does for guests that know of it.
const FEATURES: u32 = 0x4000_0001;
/// Of these, what asks for nothing: KVM_FEATURE_NOP_IO_DELAY. The others have MSRs that are not here.
const FEATURES_HERE: u32 = 1 << 1;

impl Offered {
    /// What the software model can do of a profile.
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        let model = profile.for_soft().model;
        let cr4 = allowed_cr4(&model.cpuid);
        let mut cpuid = every_leaf(&model.cpuid);
        for entry in cpuid.iter_mut().filter(|entry| entry.leaf == FEATURES) {
            entry.eax &= FEATURES_HERE;
        }
        Self {
            cpuid,
            vmx: model.vmx_msrs,
            arch_capabilities: profile.arch_capabilities.unwrap_or(0),
            cr4,
            physical_address_width: model.physical_address_width,
        }
    }

    /// A feature MSR, as `/dev/kvm` answers it (`kvm_get_feature_msr`).
    #[must_use]
    pub fn feature_msr(&self, number: u32) -> Option<u64> {
        match number {
            msr::IA32_VMX_BASIC..=msr::IA32_VMX_VMFUNC => {
                Some(self.vmx[(number - msr::IA32_VMX_BASIC) as usize])
            }
            msr::IA32_BIOS_SIGN_ID => Some(MICROCODE),
            msr::IA32_ARCH_CAPABILITIES => Some(self.arch_capabilities),
            msr::IA32_PERF_CAPABILITIES => Some(host::most_perf_capabilities(&self.cpuid)),
            _ => None,
        }
    }

    /// Whether a bit of CPUID is offered: leaf, register from EAX, bit.
    #[must_use]
    pub fn has(&self, leaf: u32, register: usize, bit: u32) -> bool {
        cpuid::lookup(&self.cpuid, leaf, 0)[register] >> bit & 1 != 0
    }

    /// A vCPU whose caller has not set CPUID yet has none, and the VMX capability MSRs whole.
    #[must_use]
    pub fn state_at_start(&self) -> CpuState {
        CpuState {
            cpuid: Some(Vec::new()),
            msrs: Some((msr::IA32_VMX_BASIC..).zip(self.vmx).collect()),
            ..CpuState::default()
        }
    }
}

/// With a leaf of zeroes where there is none, and the mark of those that have subleaves.
fn every_leaf(entries: &[CpuidEntry]) -> Vec<CpuidEntry> {
    let mut all = Vec::new();
    for first in [0, 0x8000_0000] {
        let last = cpuid::lookup(entries, first, 0)[0].max(first);
        for leaf in first..=last {
            let before = all.len();
            all.extend(entries.iter().filter(|entry| entry.leaf == leaf));
            if all.len() == before {
                all.push(CpuidEntry {
                    leaf,
                    ..CpuidEntry::default()
                });
            }
            for entry in &mut all[before..] {
                entry.subleaf_significant = WITH_SUBLEAVES.contains(&leaf);
            }
        }
    }
    all.extend(PARAVIRTUAL);
    all
}

/// KVM's own leaves: its signature, and the paravirtual features that the model has, which are none.
const PARAVIRTUAL: [CpuidEntry; 2] = {
    const BLANK: CpuidEntry = CpuidEntry {
        leaf: 0x4000_0001,
        subleaf: 0,
        subleaf_significant: false,
        eax: 0,
        ebx: 0,
        ecx: 0,
        edx: 0,
    };
    let signature = CpuidEntry {
        leaf: 0x4000_0000,
        eax: 0x4000_0001,
        ebx: u32::from_le_bytes(*b"KVMK"),
        ecx: u32::from_le_bytes(*b"VMKV"),
        edx: u32::from_le_bytes(*b"M\0\0\0"),
        ..BLANK
    };
    [signature, BLANK]
};

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::profiles;

    #[test]
    fn leaves_are_listed_without_gaps() {
        for profile in profiles::ALL {
            let offered = Offered::new(profile);
            let basic = offered
                .cpuid
                .iter()
                .filter(|entry| entry.leaf < 0x4000_0000);
            let mut next = 0;
            for entry in basic {
                assert!(
                    entry.leaf == next || entry.leaf + 1 == next,
                    "{}",
                    profile.name
                );
                next = entry.leaf + 1;
            }
            assert_eq!(next, offered.cpuid[0].eax + 1, "{}", profile.name);
            assert!(offered.has(1, 2, 5), "{}: no VMX", profile.name);
        }
    }
}
