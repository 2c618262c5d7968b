//! Every profile: complete, consistent, and what is left of it on the software model.

use super::*;
use crate::vmx::capability::{Capability, ControlField, KVM_6_1_ICELAKE};
use crate::vmx::vmcs12::Layout;
use std::collections::HashSet;

#[test]
fn names_are_unique_and_found() {
    let mut seen = HashSet::new();
    for profile in ALL {
        assert!(seen.insert(profile.name), "{} twice", profile.name);
        assert_eq!(find(profile.name).map(|p| p.name), Some(profile.name));
        assert!(!profile.summary.is_empty() && !profile.cpuid_source.is_empty());
        assert!(profile.vmx.iter().all(|row| !row.source.is_empty()));
    }
    assert!(find("80286").is_none() && find(DEFAULT).is_some());
    assert_eq!(names().count(), ALL.len());
}

/// SDM appendix A: the TRUE MSRs allow what the others do and more, the default1 class is what they
/// differ in, and what must be 1 may be 1.
#[test]
fn capabilities_are_consistent() {
    for profile in ALL {
        let msrs = profile.vmx_msrs();
        let at = |number: u32| msrs[index(number)];
        for field in ControlField::ALL {
            let allowed = Capability::new(&msrs).allowed(field);
            let contradiction = allowed.must_be_one & !allowed.may_be_one;
            assert_eq!(contradiction, 0, "{} {field:?}", profile.name);
        }
        for (plain, exact, default1) in [
            (0x481, 0x48d, 0x16),
            (0x482, 0x48e, 0x0401_e172),
            (0x483, 0x48f, 0x0003_6dff),
            (0x484, 0x490, 0x11ff),
        ] {
            assert_eq!(
                at(plain) >> 32,
                at(exact) >> 32,
                "{} {plain:#x}",
                profile.name
            );
            assert_eq!(
                at(plain) & 0xffff_ffff,
                default1,
                "{} {plain:#x}",
                profile.name
            );
            assert_eq!(
                at(exact) & !at(plain) & 0xffff_ffff,
                0,
                "{} {exact:#x}",
                profile.name
            );
        }
        for (fixed0, fixed1) in [(0x486, 0x487), (0x488, 0x489)] {
            assert_eq!(at(fixed0) & !at(fixed1), 0, "{} {fixed0:#x}", profile.name);
        }
        assert!(profile.vmx.is_sorted_by(|a, b| a.number < b.number));
        let vmx = crate::x86::cpuid::lookup(profile.cpuid, 1, 0)[2] >> 5 & 1;
        assert_eq!(vmx, 1, "{}", profile.name);
    }
}

#[test]
fn the_kvm_profile_is_the_captured_one() {
    let profile = find("kvm-6.1").unwrap();
    assert_eq!(profile.vmx_msrs(), KVM_6_1_ICELAKE);
    assert_eq!(profile.vmx_msrs()[index(0x48a)], kvm_vmcs_enum());
    assert_eq!(kvm_vmcs_enum(), Layout::Linux6_1.vmcs_enum());
    let model = profile.model();
    assert_eq!(model.physical_address_width, 40);
    assert_eq!(model.personality, Personality::Kvm);
}

/// Values that machines report, against the rules that compute them.
#[test]
fn computed_msrs_are_what_machines_report() {
    // With TSC scaling the highest field is the TSC multiplier, with ENCLV exiting its bitmap.
    for (name, field) in [
        ("skylake-sp", crate::vmx::Field::TSC_MULTIPLIER),
        ("ice-lake-sp", crate::vmx::Field::ENCLV_EXITING_BITMAP),
        ("sapphire-rapids", crate::vmx::Field::PID_POINTER_TABLE),
    ] {
        let msrs = find(name).unwrap().vmx_msrs();
        assert_eq!(highest_field(Capability::new(&msrs)), field, "{name}");
        assert_eq!(msrs[index(0x48a)], u64::from(field.index()) << 1, "{name}");
    }
    // Without EPT and the preemption timer, like the first processors with VMX, what is left is in the
    // guest state.
    let mut msrs = find("skylake-sp").unwrap().vmx_msrs();
    msrs[index(0x48e)] &= !(1 << 63);
    msrs[index(0x48d)] &= !(1 << 38);
    assert_eq!(vmcs_enum(&msrs), 0x2a);
    // Bochs reports what CPUID has; UMIP excepted, which KVM emulates.
    for name in ["bochs-icelake", "bochs-tigerlake"] {
        let profile = find(name).unwrap();
        assert_eq!(
            cr4_fixed1(profile.cpuid),
            profile.vmx_msrs()[index(0x489)],
            "{name}"
        );
    }
}

#[test]
fn the_software_model_gets_less_and_a_reason_for_each() {
    for profile in ALL {
        let whole = profile.model();
        let soft = profile.for_soft();
        for dropped in &soft.dropped {
            assert!(
                !dropped.reason.is_empty(),
                "{}: {}",
                profile.name,
                dropped.what
            );
        }
        let mut seen = HashSet::new();
        for dropped in &soft.dropped {
            assert!(
                seen.insert(&dropped.what),
                "{}: {} twice",
                profile.name,
                dropped.what
            );
        }
        for field in ControlField::ALL {
            let before = Capability::from(&whole).allowed(field);
            let after = Capability::from(&soft.model).allowed(field);
            assert_eq!(
                after.may_be_one & !before.may_be_one,
                0,
                "{} {field:?}",
                profile.name
            );
            assert_eq!(
                after.must_be_one & !after.may_be_one,
                0,
                "{} {field:?}",
                profile.name
            );
            for bit in 0..64 {
                if after.may_be_one & !after.must_be_one & 1 << bit != 0 {
                    assert_eq!(
                        why_not(field, bit),
                        None,
                        "{} {field:?} {bit}",
                        profile.name
                    );
                }
            }
        }
        for entry in &soft.model.cpuid {
            let whole = crate::x86::cpuid::lookup(&whole.cpuid, entry.leaf, entry.subleaf);
            let features = [1, 7, 0x8000_0001].contains(&entry.leaf);
            assert!(
                !features || entry.ecx & !whole[2] == 0,
                "{} {entry:x?}",
                profile.name
            );
        }
        // 5-level paging is carried out.
        let width = profile.model().linear_address_width;
        assert_eq!(soft.model.linear_address_width, width, "{}", profile.name);
    }
}

#[test]
fn avx_is_named_when_it_goes() {
    let dropped = find("skylake-sp").unwrap().for_soft().dropped;
    let names: Vec<_> = dropped.iter().map(|d| d.what.as_str()).collect();
    for name in [
        "CPUID 0x1.0:ECX[28] AVX",
        "CPUID leaf 0x14",
        "Entry control 16, \"Load IA32_BNDCFGS\"",
    ] {
        assert!(names.contains(&name), "{name} is not in {names:#?}");
    }
}

/// SDM appendix A "VMCS Enumeration": the highest index of a field that VMREAD finds, no more and no less.
#[test]
fn vmread_finds_what_vmcs_enum_says() {
    use crate::addr::L1Phys;
    use crate::cpu::Cpu;
    use crate::vmx::instructions::vmread;
    use std::sync::Arc;
    for profile in ALL {
        let mut cpu = Cpu {
            model: Arc::new(profile.for_soft().model),
            ..Cpu::default()
        };
        cpu.vmx.vmxon = Some(L1Phys(0x1000));
        cpu.vmx.current = Some(L1Phys(0x2000));
        let highest = (0..1_u64 << 16)
            .filter(|encoding| vmread(&cpu, *encoding).is_ok())
            .map(|encoding| encoding >> 1 & 0x1ff)
            .max();
        let told = cpu.model.vmx_msrs[index(msr::IA32_VMX_VMCS_ENUM)] >> 1 & 0x1ff;
        assert_eq!(highest, Some(told), "{}", profile.name);
    }
}

/// IA32_PERF_GLOBAL_CTRL is loaded and saved only where it exists.
#[test]
fn no_control_speaks_of_counters_that_are_not_there() {
    for profile in ALL {
        let left = profile.for_soft().model;
        let has_counters = cpuid::lookup(&left.cpuid, 0xa, 0)[0] & 0xff > 1;
        for (number, bit) in [
            (0x483, 12),
            (0x483, 30),
            (0x484, 13),
            (0x48f, 12),
            (0x490, 13),
        ] {
            let offered = left.vmx_msrs[index(number)] >> (32 + bit) & 1 != 0;
            assert!(
                has_counters || !offered,
                "{} {number:#x} {bit}",
                profile.name
            );
        }
    }
}

/// A VM entry takes what a control may be from the profile's MSRs alone, the TRUE ones where they are.
#[test]
fn controls_outside_a_profile_are_refused() {
    use crate::vmx::Field;
    use crate::vmx::entry::checks::{self, Context};
    use crate::vmx::entry::test_support as support;
    const FIELDS: [(ControlField, Field, &str); 5] = [
        (
            ControlField::PinBased,
            Field::PIN_BASED_VM_EXEC_CONTROL,
            "control.pin.reserved",
        ),
        (
            ControlField::Primary,
            Field::CPU_BASED_VM_EXEC_CONTROL,
            "control.primary.reserved",
        ),
        (
            ControlField::Secondary,
            Field::SECONDARY_VM_EXEC_CONTROL,
            "control.secondary.reserved",
        ),
        (
            ControlField::Exit,
            Field::VM_EXIT_CONTROLS,
            "control.exit.reserved",
        ),
        (
            ControlField::Entry,
            Field::VM_ENTRY_CONTROLS,
            "control.entry.reserved",
        ),
    ];
    let memory = support::memory();
    for profile in ALL {
        for model in [profile.model(), profile.for_soft().model] {
            for (control, field, rule) in FIELDS {
                let allowed = Capability::from(&model).allowed(control);
                let rule = checks::find(rule).unwrap();
                for bit in 0..32 {
                    let mut vmcs12 = support::valid_vmcs12();
                    let value = allowed.adjust(0) ^ 1 << bit;
                    vmcs12.set(field, value);
                    let context = Context {
                        vmcs12: &vmcs12,
                        model: &model,
                        memory: &memory,
                        current: None,
                        l1_long_mode: true,
                        smm: false,
                    };
                    let is_flexible =
                        allowed.may_be_one >> bit & 1 != 0 && allowed.must_be_one >> bit & 1 == 0;
                    let holds = (rule.holds)(&context);
                    assert_eq!(holds, is_flexible, "{}: {field} bit {bit}", profile.name);
                }
            }
        }
    }
}
