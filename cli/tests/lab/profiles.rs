//! The profile of each kernel against what its KVM offers now: CPUID, VMX capability MSRs,
//! IA32_ARCH_CAPABILITIES. So a profile is a statement about KVM that somebody checks.

use crate::machine::OpenLab;
use crate::{Check, Checked, Outcome};
use anyhow::{Context, bail};
use nvmx_core::profiles;
use nvmx_core::vcpu::{Parts, Vm};
use nvmx_core::x86::cpuid::{self, CpuidEntry};
use nvmx_lab::Kernel;

const IA32_VMX_BASIC: u32 = 0x480;
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;
/// IA32_VMX_VMFUNC, the last capability MSR that KVM has.
const LAST: u32 = 0x491;

/// Leaf, subleaf, register and bit.
type CpuidBit = (u32, u32, usize, u32);

/// Bits of MSRs that are there with a feature of the vCPU's CPUID: a profile holds what /dev/kvm says, which
/// knows of no vCPU (`nested_vmx_cr_fixed1_bits_update`, `vmx_adjust_secondary_exec_control`). MSR, bit,
/// feature.
const FOLLOW_CPUID: &[(u32, u32, CpuidBit)] = &[
    // CR4.OSXSAVE, CR4.PKE, "enable XSAVES/XRSTORS".
    (0x489, 18, (1, 0, 2, 26)),
    (0x489, 22, (7, 0, 2, 3)),
    (0x48b, 32 + 20, (0xd, 1, 0, 3)),
];
/// CPUID.1:ECX.TSC_Deadline, which KVM leaves to user space and `backends/kvm` sets.
const TSC_DEADLINE: u32 = 1 << 24;

pub(crate) fn checks(kernel: Kernel) -> Vec<Check> {
    vec![Check {
        name: "profiles offered".into(),
        run: Box::new(move |lab| offered(lab, kernel)),
    }]
}

fn offered(lab: &OpenLab, kernel: Kernel) -> Checked {
    let name = format!("kvm-{kernel}");
    let profile = profiles::find(&name).with_context(|| format!("no profile {name}"))?;
    let state = lab.machine()?.vcpu(0).state(Parts::All)?;
    let (msrs, live) = (
        state.msrs.context("no MSRs")?,
        state.cpuid.context("no CPUID")?,
    );
    let mut different = Vec::new();
    let mut compared = 0;
    let mut compare = |what: String, expected: u64, found: Option<u64>| {
        compared += 1;
        if found != Some(expected) {
            different.push(format!(
                "{what}: {expected:#x} in the profile, {found:x?} live"
            ));
        }
    };
    for (number, expected) in (IA32_VMX_BASIC..=LAST).zip(profile.vmx_msrs()) {
        let absent = FOLLOW_CPUID.iter().filter(|(msr, _, feature)| {
            let (leaf, subleaf, register, bit) = *feature;
            *msr == number && cpuid::lookup(&live, leaf, subleaf)[register] >> bit & 1 == 0
        });
        let expected = absent.fold(expected, |value, (_, bit, _)| value & !(1 << bit));
        let found = msrs.get(&number).copied();
        compare(format!("MSR {number:#x}"), expected, found);
    }
    if let Some(expected) = profile.arch_capabilities {
        let found = msrs.get(&IA32_ARCH_CAPABILITIES).copied();
        compare("IA32_ARCH_CAPABILITIES".into(), expected, found);
    }
    let named = |entry: &&CpuidEntry| !is_of_the_vcpu(entry.leaf);
    for entry in profile.cpuid.iter().chain(&live).filter(named) {
        let (leaf, subleaf) = (entry.leaf, entry.subleaf);
        let expected = cpuid::lookup(profile.cpuid, leaf, subleaf);
        let found = cpuid::lookup(&live, leaf, subleaf);
        for (register, (expected, found)) in ["eax", "ebx", "ecx", "edx"]
            .into_iter()
            .zip(expected.into_iter().zip(found))
        {
            let kept = !of_the_vcpu(leaf, register);
            let what = format!("CPUID {leaf:#x}.{subleaf} {register}");
            compare(what, (expected & kept).into(), Some((found & kept).into()));
        }
    }
    if !different.is_empty() {
        bail!("{name}: {}", different.join("; "));
    }
    Ok(Outcome::Passed(format!("{compared} values equal"), 0))
}

/// Leaves that the owner of a vCPU fills in, not KVM: its place among others.
const fn is_of_the_vcpu(leaf: u32) -> bool {
    matches!(leaf, 0xb | 0x1f)
}

/// Bits that are the vCPU's own: initial APIC id, what CR4 and IA32_APIC_BASE say, what user space adds.
fn of_the_vcpu(leaf: u32, register: &str) -> u32 {
    match (leaf, register) {
        (1, "ebx") => 0xffff_0000,
        (1, "ecx") => 1 << 27 | TSC_DEADLINE,
        (1, "edx") => 1 << 9,
        _ => 0,
    }
}
