//! CPUID: `struct kvm_cpuid_entry2`.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::x86::cpuid::CpuidEntry;

/// An entry as the kernel gives it.
#[must_use]
pub fn entry(kernel: &kvm_cpuid_entry2) -> CpuidEntry {
    CpuidEntry {
        leaf: kernel.function,
        subleaf: kernel.index,
        subleaf_significant: kernel.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: kernel.eax,
        ebx: kernel.ebx,
        ecx: kernel.ecx,
        edx: kernel.edx,
    }
}

/// An entry as the kernel takes it.
#[must_use]
pub fn kernel_entry(entry: &CpuidEntry) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: entry.leaf,
        index: entry.subleaf,
        flags: if entry.subleaf_significant {
            KVM_CPUID_FLAG_SIGNIFCANT_INDEX
        } else {
            0
        },
        eax: entry.eax,
        ebx: entry.ebx,
        ecx: entry.ecx,
        edx: entry.edx,
        padding: [0; 3],
    }
}

/// The kernel's CPUID table to ours.
#[must_use]
pub fn cpuid(kernel: &CpuId) -> Vec<CpuidEntry> {
    kernel.as_slice().iter().map(entry).collect()
}

/// Our CPUID table to the kernel's.
pub fn kernel_cpuid(entries: &[CpuidEntry]) -> Result<CpuId> {
    let entries: Vec<_> = entries.iter().map(kernel_entry).collect();
    CpuId::from_entries(&entries).map_err(|error| BackendError::StateRefused {
        part: "cpuid".into(),
        reason: format!("{} entries: {error:?}", entries.len()),
    })
}
