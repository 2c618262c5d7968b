//! The processor that a machine has until user space sets another CPUID: what the engine can run,
//! and VMX as KVM 6.1 showed it to L1 in the lab.

use nvmx_core::cpu::{Model, Personality};
use nvmx_core::profiles::{self, cr4_fixed1};
use nvmx_core::vmx::capability::{KVM_6_1_ICELAKE, MSR_COUNT};
use nvmx_core::vmx::controls::PinBased;
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::msr;

/// TSC frequency in kHz: one tick is one nanosecond.
pub(crate) const TSC_KHZ: u32 = 1_000_000;

/// CPUID of the default model.
pub(crate) fn default_cpuid() -> Vec<CpuidEntry> {
    let leaf = |leaf, eax, ebx, ecx, edx| CpuidEntry {
        leaf,
        eax,
        ebx,
        ecx,
        edx,
        ..CpuidEntry::default()
    };
    vec![
        // "GenuineIntel"
        leaf(0, 0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69),
        // SSE3, PCLMULQDQ, VMX, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC-deadline, AES,
        // RDRAND, hypervisor.
        leaf(1, 0x0007_06e5, 0x0001_0800, 0xc3f8_2223, 0x0f8b_fbff),
        // FSGSBASE, TSC_ADJUST, BMI1, SMEP, BMI2, ERMS, ADX, SMAP.
        CpuidEntry {
            subleaf_significant: true,
            ..leaf(7, 0, 0x0018_038b, 0, 0)
        },
        leaf(0x8000_0000, 0x8000_0008, 0, 0, 0),
        // LAHF, LZCNT; SYSCALL, NX, 1-GiB pages, RDTSCP, long mode.
        leaf(0x8000_0001, 0, 0, 0x21, 0x2c10_0800),
        leaf(0x8000_0007, 0, 0, 0, 0x100),
        // 39 physical-address bits, as the lab's model; 48 linear ones.
        leaf(0x8000_0008, 0x3027, 0, 0, 0),
    ]
}

/// The model that follows from CPUID and the capability MSRs.
pub(crate) fn model(cpuid: Vec<CpuidEntry>, vmx_msrs: [u64; MSR_COUNT]) -> Model {
    profiles::model(cpuid, vmx_msrs, Personality::Kvm)
}

/// What KVM offers in the lab, less the controls that the model does not carry out, and with posted
/// interrupts, which KVM offers where its own processor has them. (Capability MSRs that a snapshot
/// brings are taken as they are: a VM entry that uses a missing control then ends in
/// [`Exit::Unsupported`](nvmx_core::vcpu::Exit::Unsupported).)
pub(crate) fn default_vmx_msrs() -> [u64; MSR_COUNT] {
    let mut msrs = KVM_6_1_ICELAKE;
    let posted = u64::from(PinBased::PROCESS_POSTED_INTERRUPTS.bits());
    for number in [
        msr::IA32_VMX_PINBASED_CTLS,
        msr::IA32_VMX_TRUE_PINBASED_CTLS,
    ] {
        // The high half says which controls may be 1.
        msrs[(number - msr::IA32_VMX_BASIC) as usize] |= posted << 32;
    }
    msrs
}

/// The default model.
pub(crate) fn default_model() -> Model {
    let cpuid = default_cpuid();
    let mut msrs = default_vmx_msrs();
    msrs[(msr::IA32_VMX_CR4_FIXED1 - msr::IA32_VMX_BASIC) as usize] = cr4_fixed1(&cpuid);
    model(cpuid, msrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::profiles::features::{Feature, is_executed};

    #[test]
    fn cr4_of_the_default_model_is_what_kvm_computes_from_its_cpuid() {
        // What KVM 6.1 in the lab held for this CPUID.
        assert_eq!(cr4_fixed1(&default_cpuid()), 0x3127ff);
    }

    /// A profile cut down for this backend keeps every feature that the default model has.
    #[test]
    fn what_the_default_model_has_is_in_the_table_of_what_is_executed() {
        for entry in default_cpuid() {
            let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
            for (number, register) in registers.into_iter().enumerate() {
                for bit in (0..32).filter(|bit| register >> bit & 1 != 0) {
                    let feature = Feature {
                        leaf: entry.leaf,
                        subleaf: entry.subleaf,
                        register: number,
                        bit,
                    };
                    assert!(is_executed(feature), "{feature:x?}");
                }
            }
        }
    }
}
