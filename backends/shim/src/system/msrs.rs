//! Which MSRs there are: KVM_GET_MSR_INDEX_LIST, KVM_GET_MSR_FEATURE_INDEX_LIST, and KVM_GET_MSRS of `/dev/kvm`
//! (arch/x86/kvm/x86.c: `msrs_to_save_base`, `msrs_to_save_pmu`, `emulated_msrs_all`, `msr_based_features`).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::processor::Offered;
use crate::shim::Shim;
use kvm_bindings::kvm_msr_entry;
use nvmx_core::x86::{cpuid, msr};

/// `MAX_IO_MSRS`.
const MOST: u32 = 256;
/// `struct kvm_msrs`: the number, padding, the entries.
const ENTRIES: u64 = 8;

/// What an MSR of the list needs.
#[derive(Debug, Clone, Copy)]
enum Needs {
    /// Nothing.
    Nothing,
    /// One of these bits of CPUID: leaf, register from EAX, bit.
    Feature(&'static [(u32, usize, u32)]),
    /// This many fixed counters.
    Fixed(u32),
    /// This many general counters.
    General(u32),
    /// Counters of version 2.
    Counters,
}

use Needs::{Counters, Feature, Fixed, General, Nothing};

/// The MSRs that hold state, in the kernel's order. Those of KVM's paravirtualization, Intel PT and AMD's are
/// missing as their features are.
#[rustfmt::skip]
const LIST: &[(u32, u32, Needs)] = &[
    (msr::IA32_SYSENTER_CS, msr::IA32_SYSENTER_EIP, Nothing),
    (msr::IA32_STAR, msr::IA32_STAR, Nothing),
    (msr::IA32_CSTAR, msr::IA32_CSTAR, Nothing),
    (msr::IA32_KERNEL_GS_BASE, msr::IA32_KERNEL_GS_BASE, Nothing),
    (msr::IA32_FMASK, msr::IA32_FMASK, Nothing),
    (msr::IA32_LSTAR, msr::IA32_LSTAR, Nothing),
    (msr::IA32_TIME_STAMP_COUNTER, msr::IA32_TIME_STAMP_COUNTER, Nothing),
    (msr::IA32_PAT, msr::IA32_PAT, Nothing),
    (msr::IA32_FEATURE_CONTROL, msr::IA32_FEATURE_CONTROL, Nothing),
    (msr::IA32_BNDCFGS, msr::IA32_BNDCFGS, Feature(&[(7, 1, 14)])),
    (msr::IA32_TSC_AUX, msr::IA32_TSC_AUX, Feature(&[(0x8000_0001, 3, 27), (7, 2, 22)])),
    (msr::IA32_SPEC_CTRL, msr::IA32_SPEC_CTRL, Feature(&[(7, 3, 26), (7, 3, 27), (7, 3, 31)])),
    (msr::IA32_UMWAIT_CONTROL, msr::IA32_UMWAIT_CONTROL, Feature(&[(7, 2, 5)])),
    (msr::IA32_DEBUGCTL, msr::IA32_DEBUGCTL, Nothing),
    // The last branch and the last interrupt.
    (0x1db, 0x1de, Nothing),
    // IA32_FIXED_CTR0 to 2, IA32_FIXED_CTR_CTRL, IA32_PERF_GLOBAL_STATUS, IA32_PERF_GLOBAL_CTRL.
    (0x309, 0x309, Fixed(1)),
    (0x30a, 0x30a, Fixed(2)),
    (0x30b, 0x30b, Fixed(3)),
    (0x38d, 0x38f, Counters),
    // IA32_PMC0 and IA32_PERFEVTSEL0 on.
    (0xc1, 0xc1, General(1)), (0xc2, 0xc2, General(2)), (0xc3, 0xc3, General(3)), (0xc4, 0xc4, General(4)),
    (0xc5, 0xc5, General(5)), (0xc6, 0xc6, General(6)), (0xc7, 0xc7, General(7)), (0xc8, 0xc8, General(8)),
    (0x186, 0x186, General(1)), (0x187, 0x187, General(2)), (0x188, 0x188, General(3)), (0x189, 0x189, General(4)),
    (0x18a, 0x18a, General(5)), (0x18b, 0x18b, General(6)), (0x18c, 0x18c, General(7)), (0x18d, 0x18d, General(8)),
    (msr::IA32_TSC_ADJUST, msr::IA32_TSC_ADJUST, Nothing),
    (msr::IA32_TSC_DEADLINE, msr::IA32_TSC_DEADLINE, Nothing),
    (msr::IA32_ARCH_CAPABILITIES, msr::IA32_ARCH_CAPABILITIES, Nothing),
    (msr::IA32_PERF_CAPABILITIES, msr::IA32_PERF_CAPABILITIES, Nothing),
    (msr::IA32_MISC_ENABLE, msr::IA32_MISC_ENABLE, Nothing),
    (msr::IA32_MCG_STATUS, msr::IA32_MCG_CTL, Nothing),
    (msr::IA32_SMBASE, msr::IA32_SMBASE, Nothing),
    (msr::SMI_COUNT, msr::SMI_COUNT, Nothing),
    (msr::PLATFORM_INFO, msr::PLATFORM_INFO, Nothing),
    (msr::MISC_FEATURE_ENABLES, msr::MISC_FEATURE_ENABLES, Nothing),
    (msr::POWER_CTL, msr::POWER_CTL, Nothing),
    (msr::IA32_BIOS_SIGN_ID, msr::IA32_BIOS_SIGN_ID, Nothing),
    (msr::IA32_VMX_BASIC, msr::IA32_VMX_BASIC, Nothing),
    (msr::IA32_VMX_TRUE_PINBASED_CTLS, msr::IA32_VMX_TRUE_ENTRY_CTLS, Nothing),
    (msr::IA32_VMX_MISC, msr::IA32_VMX_CR0_FIXED0, Nothing),
    (msr::IA32_VMX_CR4_FIXED0, msr::IA32_VMX_CR4_FIXED0, Nothing),
    (msr::IA32_VMX_VMCS_ENUM, msr::IA32_VMX_EPT_VPID_CAP, Nothing),
    (msr::IA32_VMX_VMFUNC, msr::IA32_VMX_VMFUNC, Nothing),
    (msr::HWCR, msr::HWCR, Nothing),
];

impl Needs {
    fn are_met(self, offered: &Offered) -> bool {
        let [eax, _, _, edx] = cpuid::lookup(&offered.cpuid, 0xa, 0);
        match self {
            Nothing => true,
            Feature(bits) => bits
                .iter()
                .any(|(leaf, register, bit)| offered.has(*leaf, *register, *bit)),
            Fixed(count) => edx & 0x1f >= count,
            General(count) => eax >> 8 & 0xff >= count,
            Counters => eax & 0xff >= 2,
        }
    }
}

/// Every MSR of KVM_GET_MSR_INDEX_LIST.
pub fn listed(offered: &Offered) -> impl Iterator<Item = u32> + '_ {
    LIST.iter()
        .filter(|(.., needs)| needs.are_met(offered))
        .flat_map(|(first, last, _)| *first..=*last)
}

/// Whether it lists this one.
#[must_use]
pub fn is_listed(offered: &Offered, number: u32) -> bool {
    listed(offered).any(|other| other == number)
}

/// The MSRs that say what a vCPU can do, as CPUID does.
pub fn features() -> impl Iterator<Item = u32> {
    [
        msr::IA32_BIOS_SIGN_ID,
        msr::IA32_ARCH_CAPABILITIES,
        msr::IA32_PERF_CAPABILITIES,
    ]
    .into_iter()
    .chain(msr::IA32_VMX_BASIC..=msr::IA32_VMX_VMFUNC)
}

/// Whether it cannot change once the vCPU has run (`kvm_is_immutable_feature_msr`).
#[must_use]
pub fn is_immutable(number: u32) -> bool {
    number != msr::IA32_BIOS_SIGN_ID && features().any(|feature| feature == number)
}

/// KVM_GET_MSR_INDEX_LIST.
pub fn index_list(shim: &Shim, user: User, argument: u64) -> Answer {
    let offered = Offered::new(shim.settings().profile);
    let list: Vec<_> = listed(&offered).collect();
    answer_list(user, argument, &list)
}

/// KVM_GET_MSR_FEATURE_INDEX_LIST.
pub fn feature_list(_: &Shim, user: User, argument: u64) -> Answer {
    let list: Vec<_> = features().collect();
    answer_list(user, argument, &list)
}

/// The number that there are comes back even where there is no room for them.
fn answer_list(user: User, argument: u64, list: &[u32]) -> Answer {
    let room: u32 = user.read(argument)?;
    user.write(argument, &(list.len() as u32))?;
    if (room as usize) < list.len() {
        return Err(Errno::E2BIG);
    }
    user.write_all(argument.wrapping_add(4), list)?;
    Ok(0)
}

/// KVM_GET_MSRS of `/dev/kvm`: feature MSRs.
pub fn get(shim: &Shim, user: User, argument: u64) -> Answer {
    let offered = Offered::new(shim.settings().profile);
    get_each(user, argument, |number| {
        // One that a vCPU would list reads as zero (`kvm_do_msr_access`).
        let zero = || is_listed(&offered, number).then_some(0);
        offered.feature_msr(number).or_else(zero)
    })
}

/// The entries of a `struct kvm_msrs`.
pub fn entries(user: User, argument: u64) -> Result<Vec<kvm_msr_entry>, Errno> {
    let [count, _]: [u32; 2] = user.read(argument)?;
    if count >= MOST {
        return Err(Errno::E2BIG);
    }
    user.read_all(argument.wrapping_add(ENTRIES), count as usize)
}

/// Reads one after the other up to the first that cannot be; answers how many (`msr_io`).
pub fn get_each(user: User, argument: u64, mut read: impl FnMut(u32) -> Option<u64>) -> Answer {
    let mut entries = entries(user, argument)?;
    let mut done = 0;
    for entry in &mut entries {
        let value = read(entry.index);
        entry.data = value.unwrap_or(0);
        if value.is_none() {
            break;
        }
        done += 1;
    }
    user.write_all(argument.wrapping_add(ENTRIES), &entries)?;
    Ok(done)
}

/// KVM_X86_GET_MCE_CAP_SUPPORTED.
pub fn machine_check_capabilities(_: &Shim, user: User, argument: u64) -> Answer {
    user.write(argument, &crate::vcpu::events::MCG_CAPABILITIES)?;
    Ok(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::profiles;
    use std::collections::HashSet;

    #[test]
    fn no_msr_is_listed_twice() {
        for profile in profiles::ALL {
            let offered = Offered::new(profile);
            let mut seen = HashSet::new();
            assert!(listed(&offered).all(|number| seen.insert(number)));
            for number in features() {
                assert!(offered.feature_msr(number).is_some(), "{number:#x}");
            }
        }
    }
}
