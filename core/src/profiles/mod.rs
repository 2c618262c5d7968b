//! Processors as data: CPUID, VMX capability MSRs and address widths, as silicon, Bochs' models and KVM
//! report them (SDM Vol. 3, appendix A "VMX Capability Reporting Facility"). A VM entry takes what it
//! allows from the model's MSRs alone, so a profile decides all of it.

pub mod bochs;
mod bochs_cpuid;
mod bochs_vmx;
mod derive;
pub mod features;
mod ice_lake_sp_cpuid;
mod kvm_cpuid;
mod kvm_vmx;
mod max;
mod sapphire_rapids_cpuid;
mod silicon_vmx;
mod skylake_sp_cpuid;
mod soft;
mod table;
#[cfg(test)]
mod tests;

pub use derive::{cr4_fixed1, has_field, highest_field, kvm_vmcs_enum, vmcs_enum};
pub use kvm_vmx::KVM_6_1_ICELAKE;
pub use soft::{Dropped, ForSoft, rows, why_not};
pub use table::MsrRow;

use crate::cpu::{Model, Personality};
use crate::vmx::capability::MSR_COUNT;
use crate::x86::cpuid::{self, CpuidEntry};
use crate::x86::msr;

/// What a profile describes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A processor that one can buy.
    Silicon,
    /// A model of Bochs.
    Bochs,
    /// What KVM shows to L1.
    Kvm,
    /// Nothing that exists: everything at once.
    Model,
}

impl Kind {
    /// In a word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Silicon => "silicon",
            Self::Bochs => "bochs",
            Self::Kvm => "kvm",
            Self::Model => "model",
        }
    }
}

/// A processor as data.
#[derive(Debug, Clone, Copy)]
pub struct Profile {
    /// Its name: `skylake-sp`.
    pub name: &'static str,
    /// What it is, in a line.
    pub summary: &'static str,
    /// What kind of thing it describes.
    pub kind: Kind,
    /// Where CPUID comes from.
    pub cpuid_source: &'static str,
    /// CPUID. Leaves of zeroes are left out.
    pub cpuid: &'static [CpuidEntry],
    /// The VMX capability MSRs that are not computed.
    pub vmx: &'static [MsrRow],
    /// IA32_ARCH_CAPABILITIES, where it was seen.
    pub arch_capabilities: Option<u64>,
}

macro_rules! profiles {
    ($($name:literal $kind:ident $summary:literal $cpuid:expr, $cpuid_source:literal, $vmx:expr, $arch:expr;)*) => {
        /// Every profile.
        pub static ALL: &[Profile] = &[$(Profile {
            name: $name,
            summary: $summary,
            kind: Kind::$kind,
            cpuid_source: $cpuid_source,
            cpuid: $cpuid,
            vmx: $vmx,
            arch_capabilities: $arch,
        }),*];
    };
}

profiles! {
    "max" Model "everything that the model knows; on soft, everything that soft carries out"
        max::CPUID, "every feature that has a name", max::VMX, None;
    "skylake-sp" Silicon "Xeon Gold 6130 (Skylake-SP)"
        skylake_sp_cpuid::CPUID, "test data of libvirt, read on such a machine", silicon_vmx::SKYLAKE_SP, None;
    "ice-lake-sp" Silicon "an early Ice Lake server"
        ice_lake_sp_cpuid::CPUID, "test data of libvirt, read on such a machine", silicon_vmx::ICE_LAKE_SP, Some(0xb);
    "sapphire-rapids" Silicon "Xeon w7-3465X (Sapphire Rapids)"
        sapphire_rapids_cpuid::CPUID, "test data of libvirt, read on such a machine", silicon_vmx::SAPPHIRE_RAPIDS, Some(0x6ca8_fdeb);
    "bochs-icelake" Bochs "Bochs 2.7, corei7_icelake_u: the lab's processor"
        bochs_cpuid::ICELAKE_U, "read by CPUID inside Bochs 2.7", bochs_vmx::ICELAKE_U, Some(0x1f);
    "bochs-skylake" Bochs "Bochs 2.7, corei7_skylake_x"
        bochs_cpuid::SKYLAKE_X, "read by CPUID inside Bochs 2.7", bochs_vmx::SKYLAKE_X, Some(0);
    "bochs-tigerlake" Bochs "Bochs 2.7, tigerlake"
        bochs_cpuid::TIGERLAKE, "read by CPUID inside Bochs 2.7", bochs_vmx::TIGERLAKE, Some(0x1f);
    "bochs-sapphire-rapids" Bochs "Bochs 3.0, sapphire_rapids"
        bochs_cpuid::SAPPHIRE_RAPIDS, "leaves 1 and 7 read by CPUID inside Bochs 3.0, the others derived", bochs_vmx::SAPPHIRE_RAPIDS, Some(0x1f);
    "kvm-6.1" Kvm "KVM of Linux 6.1.192 in the lab, on Bochs' corei7_icelake_u"
        kvm_cpuid::LINUX_6_1, "KVM_GET_SUPPORTED_CPUID in the lab", kvm_vmx::ICELAKE_U, Some(0x0800_005f);
    "kvm-6.12" Kvm "KVM of Linux 6.12.117 in the lab, on Bochs' corei7_icelake_u"
        kvm_cpuid::LINUX_6_12, "KVM_GET_SUPPORTED_CPUID in the lab", kvm_vmx::ICELAKE_U, Some(0x0800_005f);
    "kvm-6.12-skylake" Kvm "KVM of Linux 6.12.117 on Bochs' corei7_skylake_x: no monitor trap flag"
        kvm_cpuid::SKYLAKE_X, "KVM_GET_SUPPORTED_CPUID in the lab", kvm_vmx::SKYLAKE_X, Some(0x4000_0000_0800_0040);
    "kvm-6.12-tigerlake" Kvm "KVM of Linux 6.12.117 on Bochs' tigerlake"
        kvm_cpuid::TIGERLAKE, "KVM_GET_SUPPORTED_CPUID in the lab", kvm_vmx::TIGERLAKE, Some(0x0800_005f);
    "kvm-6.1-sapphire-rapids" Kvm "KVM of Linux 6.1 on Bochs 3.0's sapphire_rapids: with APICv"
        bochs_cpuid::SAPPHIRE_RAPIDS, "Bochs' own, of which KVM passes on most", kvm_vmx::SAPPHIRE_RAPIDS, Some(0x4000_0000_0c00_005f);
}

/// The profile that a foreign image gets where nobody chose another.
pub const DEFAULT: &str = "max";

/// The profile with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Profile> {
    ALL.iter().find(|profile| profile.name == name)
}

/// Every name with its line, for help and for messages.
pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
    ALL.iter().map(|profile| (profile.name, profile.summary))
}

impl Profile {
    /// VMX capability MSRs 0x480 to 0x493, by `number - 0x480`, the computed ones included.
    #[must_use]
    pub fn vmx_msrs(&self) -> [u64; MSR_COUNT] {
        let mut msrs = table::by_number(self.vmx);
        if self.row(msr::IA32_VMX_CR4_FIXED1).is_none() {
            msrs[index(msr::IA32_VMX_CR4_FIXED1)] = cr4_fixed1(self.cpuid);
        }
        if self.row(msr::IA32_VMX_VMCS_ENUM).is_none() {
            msrs[index(msr::IA32_VMX_VMCS_ENUM)] = vmcs_enum(&msrs);
        }
        msrs
    }

    /// The row of a capability MSR; `None` if it is computed or does not exist.
    #[must_use]
    pub fn row(&self, number: u32) -> Option<&'static MsrRow> {
        self.vmx.iter().find(|row| row.number == number)
    }

    /// Where the value of a capability MSR comes from.
    #[must_use]
    pub fn source(&self, number: u32) -> &'static str {
        match (self.row(number), number) {
            (Some(row), _) => row.source,
            (None, msr::IA32_VMX_CR4_FIXED1) => "computed: the bits of CR4 that CPUID has",
            (None, msr::IA32_VMX_VMCS_ENUM) => "computed: the fields that the controls bring",
            (None, _) => "not there",
        }
    }

    /// The processor whole, with whose behaviour it is: KVM's for what KVM shows, else the SDM's.
    #[must_use]
    pub fn model(&self) -> Model {
        model(self.cpuid.to_vec(), self.vmx_msrs(), self.personality())
    }

    /// Whose behaviour goes with it.
    #[must_use]
    pub const fn personality(&self) -> Personality {
        match self.kind {
            Kind::Kvm => Personality::Kvm,
            _ => Personality::Sdm,
        }
    }
}

const fn index(number: u32) -> usize {
    (number - msr::IA32_VMX_BASIC) as usize
}

/// The model that follows from CPUID and the capability MSRs.
#[must_use]
pub fn model(
    cpuid: Vec<CpuidEntry>,
    vmx_msrs: [u64; MSR_COUNT],
    personality: Personality,
) -> Model {
    let linear = (cpuid::lookup(&cpuid, 0x8000_0008, 0)[0] >> 8 & 0xff) as u8;
    Model {
        physical_address_width: cpuid::physical_address_width(&cpuid),
        linear_address_width: if linear == 57 { 57 } else { 48 },
        cpuid,
        vmx_msrs,
        personality,
    }
}
