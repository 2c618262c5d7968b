//! Reads and writes, row by row.

use super::*;
use crate::personality::Personality;
use crate::x86::control::{cr0, efer};
use crate::x86::cpuid::CpuidEntry;
use std::sync::Arc;

/// Every feature that the gates ask for; width 40.
fn cpu() -> Cpu {
    let mut cpu = Cpu::default();
    cpu.sregs.apic_base = 0xfee0_0900;
    let model = Arc::make_mut(&mut cpu.model);
    model.physical_address_width = 40;
    model.linear_address_width = 48;
    let all = |leaf, subleaf| CpuidEntry {
        leaf,
        subleaf,
        subleaf_significant: false,
        eax: 0x0000_0402,
        ebx: u32::MAX,
        ecx: u32::MAX,
        edx: u32::MAX,
    };
    model.cpuid = vec![all(1, 0), all(7, 0), all(0x8000_0001, 0)];
    model.cpuid.push(CpuidEntry {
        leaf: 0xa,
        eax: 0x0000_0402,
        edx: 3,
        ..CpuidEntry::default()
    });
    model.cpuid.push(CpuidEntry {
        leaf: 0xd,
        eax: 8,
        ecx: 1 << 8,
        ..CpuidEntry::default()
    });
    model.vmx_msrs[0] = 0x1234;
    cpu
}

fn value(cpu: &Cpu, number: u32) -> Result<u64, MsrFault> {
    match read(cpu, number)? {
        MsrRead::Value(value) => Ok(value),
        MsrRead::Apic => panic!("{number:#x} is the APIC's"),
    }
}

#[test]
fn what_can_be_written_reads_back() {
    const HIGH: u64 = 0xffff_8000_0000_0000;
    const BAD: u64 = 0x0000_8000_0000_0000;
    // MSR, value, accepted.
    let rows = [
        (IA32_LSTAR, HIGH, true),
        (IA32_LSTAR, BAD, false),
        (IA32_CSTAR, BAD, false),
        (IA32_FS_BASE, HIGH, true),
        (IA32_FS_BASE, BAD, false),
        (IA32_GS_BASE, HIGH | 7, true),
        (IA32_KERNEL_GS_BASE, BAD, false),
        (IA32_STAR, u64::MAX, true),
        (IA32_FMASK, 0xffff_ffff, true),
        (IA32_FMASK, 1 << 32, false),
        (IA32_TSC_AUX, 5, true),
        (IA32_TSC_AUX, 1 << 32, false),
        (IA32_PAT, 0x0007_0406_0007_0406, true),
        (IA32_PAT, 2, false),
        (IA32_PAT, 3 << 56, false),
        (IA32_PAT, 8, false),
        (IA32_SPEC_CTRL, 7, true),
        (IA32_SPEC_CTRL, 8, false),
        (IA32_UMWAIT_CONTROL, 2, false),
        (MISC_FEATURE_ENABLES, 1, true),
        (MISC_FEATURE_ENABLES, 2, false),
        (IA32_XSS, 1 << 8, true),
        (IA32_XSS, 1 << 11, false),
        (IA32_PERF_GLOBAL_CTRL, 0xf | 7 << 32, true),
        (IA32_PERF_GLOBAL_CTRL, 0x10, false),
        (IA32_BNDCFGS, 0x1003, true),
        (IA32_BNDCFGS, 4, false),
        (IA32_MISC_ENABLE, 1 | 1 << 18, true),
        (IA32_MISC_ENABLE, 1 << 11, false),
        (IA32_MTRR_DEF_TYPE, 0xc06, true),
        (IA32_MTRR_DEF_TYPE, 0x1006, false),
        (IA32_MTRR_DEF_TYPE, 2, false),
        (0x250, 0x0606_0606_0606_0606, true),
        (0x26f, 0x0200, false),
        (0x200, 0x8000_0006, true),
        (0x200, 1 << 40, false),
        (0x20f, 0xff_8000_0800, true),
        (0x20f, 1, false),
        (IA32_VMX_BASIC, 0x1234, false),
        (IA32_MTRRCAP, 0x508, false),
        (IA32_FEATURE_CONTROL, 5, false),
        (IA32_MCG_CAP, 32, false),
        (0x1234_5678, 0, false),
    ];
    for (number, new, accepted) in rows {
        let mut cpu = cpu();
        let before = value(&cpu, number);
        let result = write(&mut cpu, number, new);
        assert_eq!(
            result.is_ok(),
            accepted,
            "{number:#x} <- {new:#x}: {result:?}"
        );
        let expected = if accepted { Ok(new) } else { before };
        assert_eq!(value(&cpu, number), expected, "{number:#x}");
    }
}

#[test]
fn features_gate() {
    let gated = [
        IA32_VMX_BASIC,
        IA32_TSC_ADJUST,
        IA32_SPEC_CTRL,
        IA32_UMWAIT_CONTROL,
        IA32_BNDCFGS,
        IA32_XSS,
        IA32_TSC_AUX,
        IA32_PERF_GLOBAL_CTRL,
        IA32_PERF_CAPABILITIES,
        IA32_ARCH_CAPABILITIES,
        KVM_SYSTEM_TIME_NEW,
        IA32_S_CET,
    ];
    for number in gated {
        let mut bare = Cpu::default();
        assert_eq!(read(&bare, number), Err(GP), "{number:#x}");
        assert_eq!(write(&mut bare, number, 0), Err(GP), "{number:#x}");
    }
    assert_eq!(value(&cpu(), IA32_VMX_BASIC), Ok(0x1234));
    assert_eq!(read(&cpu(), IA32_VMX_EXIT_CTLS2), Err(GP));
    assert_eq!(read(&cpu(), IA32_PRED_CMD), Err(GP), "write-only");
    assert_eq!(write(&mut cpu(), IA32_PRED_CMD, 1), Ok(MsrEffect::None));
}

#[test]
fn efer() {
    let paging = cr0::PG | cr0::PE;
    let (lme, lma, nxe) = (efer::LME, efer::LMA, efer::NXE);
    // CR0, EFER, value, result.
    let rows = [
        (0, 0, lme | nxe | 1, Ok(lme | nxe | 1)),
        (0, 0, lma, Ok(0)),
        (paging, 0, lme, Err(GP)),
        (paging, lme | lma, nxe, Err(GP)),
        (paging, lme | lma, lme | nxe, Ok(lme | lma | nxe)),
        (0, 0, 1 << 12, Err(GP)),
        (0, 0, 2, Err(GP)),
    ];
    for (c0, old, new, expected) in rows {
        let mut cpu = cpu();
        (cpu.sregs.cr0, cpu.sregs.efer) = (c0, old);
        let result = write(&mut cpu, IA32_EFER, new);
        assert_eq!(
            result,
            expected.map(|_| MsrEffect::Efer),
            "{old:#x} <- {new:#x}"
        );
        assert_eq!(cpu.sregs.efer, expected.unwrap_or(old));
    }
    let mut bare = Cpu::default();
    assert_eq!(write(&mut bare, IA32_EFER, nxe), Err(GP));
}

#[test]
fn apic_base() {
    const BASE: u64 = 0xfee0_0000;
    // Old, new, accepted: the arrows of the state diagram.
    let rows = [
        (0x900, 0xd00, true),
        (0x900, 0x100, true),
        (0xd00, 0x100, true),
        (0xd00, 0x900, false),
        (0x100, 0xd00, false),
        (0x100, 0x900, true),
        (0x900, 0x500, false),
        (0x900, 0x900 | 1 << 9, false),
        (0x900, 0x901, false),
        (0x900, 0x900 | 1 << 40, false),
    ];
    for (old, new, accepted) in rows {
        let mut cpu = cpu();
        cpu.sregs.apic_base = BASE | old;
        let result = write(&mut cpu, IA32_APIC_BASE, BASE | new);
        let expected = if accepted {
            Ok(MsrEffect::ApicBase(BASE | new))
        } else {
            Err(GP)
        };
        assert_eq!(result, expected, "{old:#x} <- {new:#x}");
    }
}

#[test]
fn time_moves_with_its_adjustment() {
    let mut cpu = cpu();
    cpu.tsc.ticks = 1000;
    assert_eq!(
        write(&mut cpu, IA32_TIME_STAMP_COUNTER, 5000),
        Ok(MsrEffect::Tsc)
    );
    assert_eq!((cpu.tsc.l1(), cpu.msrs.tsc_adjust), (5000, 4000));
    assert_eq!(write(&mut cpu, IA32_TSC_ADJUST, 0), Ok(MsrEffect::Tsc));
    assert_eq!(cpu.tsc.l1(), 1000);
}

#[test]
fn feature_control_locks() {
    let mut cpu = cpu();
    cpu.msrs.feature_control = 0;
    assert_eq!(write(&mut cpu, IA32_FEATURE_CONTROL, 8), Err(GP));
    assert_eq!(
        write(&mut cpu, IA32_FEATURE_CONTROL, 5),
        Ok(MsrEffect::None)
    );
    assert_eq!(write(&mut cpu, IA32_FEATURE_CONTROL, 5), Err(GP));
}

#[test]
fn what_is_the_apics_and_what_is_not_taught() {
    let mut cpu = cpu();
    for number in [IA32_TSC_DEADLINE, 0x800, 0x830, 0x8ff] {
        assert_eq!(read(&cpu, number), Ok(MsrRead::Apic));
        assert_eq!(write(&mut cpu, number, 1), Ok(MsrEffect::Apic));
    }
    for number in [IA32_S_CET, IA32_U_CET] {
        let result = write(&mut cpu, number, 1);
        assert!(matches!(result, Err(MsrFault::Unsupported(text)) if text.contains("SDM")));
    }
    assert_eq!(value(&cpu, 0x400), Ok(u64::MAX));
    assert_eq!(value(&cpu, 0x401), Ok(0));
    assert_eq!(write(&mut cpu, 0x401, 1), Err(GP));
    assert_eq!(write(&mut cpu, 0x400, 0), Ok(MsrEffect::None));
}

#[test]
fn the_two_personalities_differ_on_sysenter_and_debugctl() {
    let odd = 0x0000_8000_0000_0000;
    let mut kvm = cpu();
    let mut sdm = cpu();
    Arc::make_mut(&mut sdm.model).personality = Personality::Sdm;
    assert_eq!(write(&mut sdm, IA32_SYSENTER_ESP, odd), Err(GP));
    assert_eq!(
        write(&mut kvm, IA32_SYSENTER_ESP, odd),
        Ok(MsrEffect::Engine)
    );
    assert_eq!(value(&kvm, IA32_SYSENTER_ESP), Ok(0xffff_8000_0000_0000));
    assert_eq!(write(&mut kvm, IA32_DEBUGCTL, 3), Ok(MsrEffect::None));
    assert_eq!(value(&kvm, IA32_DEBUGCTL), Ok(0));
    assert_eq!(write(&mut sdm, IA32_DEBUGCTL, 1), Ok(MsrEffect::None));
    assert_eq!(value(&sdm, IA32_DEBUGCTL), Ok(1));
    assert_eq!(write(&mut sdm, IA32_DEBUGCTL, 4), Err(GP));
}

#[test]
fn every_msr_of_the_table_is_answered() {
    let cpu = cpu();
    for &number in ALL {
        // No MSR of the table falls through by accident: it reads, is the APIC's, or is known not to.
        let refused = [
            IA32_PRED_CMD,
            IA32_VMX_PROCBASED_CTLS3,
            IA32_VMX_EXIT_CTLS2,
            // In SMM alone; with a bit of IA32_MCG_CAP.
            IA32_SMBASE,
            IA32_MCG_CTL,
        ];
        let result = read(&cpu, number);
        let gated_away = matches!(
            number,
            KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME_NEW | IA32_U_CET
        );
        assert_eq!(
            result.is_ok(),
            !refused.contains(&number) && !gated_away,
            "{:?}: {result:?}",
            name(number)
        );
    }
}
