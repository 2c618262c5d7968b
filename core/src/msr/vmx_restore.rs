//! The VMX capability MSRs as user space sets them: what KVM offers, or less (Linux
//! `arch/x86/kvm/vmx/nested.c`, `vmx_set_vmx_msr`). The SDM knows them as read-only.

use super::GP;
use super::MsrFault;
use super::require;
use crate::cpu::Cpu;
use crate::vmx::capability::MSR_COUNT;
use crate::x86::msr::*;

/// IA32_VMX_BASIC: dual-monitor treatment, information on INS and OUTS, the true controls.
const BASIC_FEATURES: u64 = 1 << 49 | 1 << 54 | 1 << 55;
const BASIC_RESERVED: u64 = 0xff << 56 | 0b111 << 45 | 1 << 31;
const BASIC_32_BIT_ADDRESSES: u64 = 1 << 48;
/// IA32_VMX_MISC: EFER.LMA is saved, activity states, Intel PT, IA32_SMBASE, VMXOFF and SMIs, VMWRITE to any
/// field, injection with length 0.
const MISC_FEATURES: u64 = 0b1111 << 5 | 1 << 14 | 1 << 15 | 0b111 << 28;
const MISC_RESERVED: u64 = 1 << 31 | 0x1f << 9;
const PREEMPTION_TIMER: u64 = 1 << (32 + 6);
const LOW: u64 = 0xffff_ffff;

/// A true control MSR, the one without "true" that KVM derives from it, and the controls that must be 1 there
/// (SDM Vol. 3D "Reserved Controls and Default Settings").
const DERIVED: [(u32, u32, u64); 4] = [
    (IA32_VMX_TRUE_PINBASED_CTLS, IA32_VMX_PINBASED_CTLS, 0x16),
    (
        IA32_VMX_TRUE_PROCBASED_CTLS,
        IA32_VMX_PROCBASED_CTLS,
        0x0401_e172,
    ),
    (IA32_VMX_TRUE_EXIT_CTLS, IA32_VMX_EXIT_CTLS, 0x3_6dff),
    (IA32_VMX_TRUE_ENTRY_CTLS, IA32_VMX_ENTRY_CTLS, 0x11ff),
];

const fn is_subset(whole: u64, part: u64, mask: u64) -> bool {
    part & mask & !whole == 0
}

const fn bits(value: u64, low: u32, count: u32) -> u64 {
    value >> low & ((1 << count) - 1)
}

/// Sets a capability MSR within what is `offered`. The caller has seen to it that the guest has VMX.
pub(super) fn write(
    cpu: &mut Cpu,
    offered: &[u64; MSR_COUNT],
    number: u32,
    value: u64,
) -> Result<(), MsrFault> {
    require(!cpu.vmx.is_on())?;
    let index = |number: u32| (number - IA32_VMX_BASIC) as usize;
    let most = offered[index(number)];
    let timer = cpu.model.vmx_msrs[index(IA32_VMX_TRUE_PINBASED_CTLS)] & PREEMPTION_TIMER != 0;
    require(match number {
        IA32_VMX_BASIC => {
            is_subset(most, value, BASIC_FEATURES | BASIC_RESERVED)
                && value & BASIC_32_BIT_ADDRESSES == 0
                && bits(value, 0, 31) == bits(most, 0, 31)
                && bits(value, 32, 13) >= bits(most, 32, 13)
        }
        IA32_VMX_TRUE_PINBASED_CTLS
        | IA32_VMX_TRUE_PROCBASED_CTLS
        | IA32_VMX_TRUE_EXIT_CTLS
        | IA32_VMX_TRUE_ENTRY_CTLS
        | IA32_VMX_PROCBASED_CTLS2 => is_subset(value, most, LOW) && is_subset(most, value, !LOW),
        IA32_VMX_MISC => {
            is_subset(most, value, MISC_FEATURES | MISC_RESERVED)
                && !(timer && bits(value, 0, 5) != bits(most, 0, 5))
                && bits(value, 16, 9) <= bits(most, 16, 9)
                && bits(value, 25, 3) <= bits(most, 25, 3)
                && value >> 32 == most >> 32
        }
        IA32_VMX_CR0_FIXED0 | IA32_VMX_CR4_FIXED0 => is_subset(value, most, u64::MAX),
        IA32_VMX_EPT_VPID_CAP | IA32_VMX_VMFUNC => is_subset(most, value, u64::MAX),
        IA32_VMX_VMCS_ENUM => true,
        // Derived from others, or from CPUID.
        _ => return Err(GP),
    })?;
    let msrs = &mut std::sync::Arc::make_mut(&mut cpu.model).vmx_msrs;
    msrs[index(number)] = value;
    if let Some((_, other, must)) = DERIVED.iter().find(|(from, ..)| *from == number) {
        msrs[index(*other)] = value | must;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::capability::KVM_6_1_ICELAKE;
    use std::sync::Arc;

    fn cpu() -> Cpu {
        let mut cpu = Cpu::default();
        Arc::make_mut(&mut cpu.model).vmx_msrs = KVM_6_1_ICELAKE;
        cpu
    }

    fn offered(number: u32) -> u64 {
        KVM_6_1_ICELAKE[(number - IA32_VMX_BASIC) as usize]
    }

    #[test]
    fn less_is_taken_and_more_is_not() {
        // MSR, bits that are flipped, accepted.
        let rows = [
            (IA32_VMX_BASIC, 0, true),
            (IA32_VMX_BASIC, 1 << 55, true),
            (IA32_VMX_BASIC, 1 << 49, false),
            (IA32_VMX_BASIC, 1 << 48, false),
            (IA32_VMX_BASIC, 1, false),
            (IA32_VMX_BASIC, 1 << 60, false),
            (IA32_VMX_TRUE_PINBASED_CTLS, 1 << 38, true),
            (IA32_VMX_TRUE_PINBASED_CTLS, 1 << 40, false),
            (IA32_VMX_TRUE_PINBASED_CTLS, 1, true),
            (IA32_VMX_TRUE_PINBASED_CTLS, 2, false),
            (IA32_VMX_PROCBASED_CTLS2, 1 << 33, true),
            (IA32_VMX_PINBASED_CTLS, 0, false),
            (IA32_VMX_MISC, 1 << 29, true),
            (IA32_VMX_MISC, 1, false),
            (IA32_VMX_MISC, 1 << 28, false),
            (IA32_VMX_MISC, 1 << 32, false),
            (IA32_VMX_CR0_FIXED0, 1 << 5, false),
            (IA32_VMX_CR0_FIXED0, 1 << 4, true),
            (IA32_VMX_CR0_FIXED1, 0, false),
            (IA32_VMX_EPT_VPID_CAP, 1, true),
            (IA32_VMX_EPT_VPID_CAP, 2, false),
            (IA32_VMX_VMFUNC, 2, false),
            (IA32_VMX_VMCS_ENUM, u64::MAX, true),
            (IA32_VMX_PROCBASED_CTLS3, 0, false),
        ];
        for (number, flip, accepted) in rows {
            let mut cpu = cpu();
            let value = offered(number) ^ flip;
            let result = write(&mut cpu, &KVM_6_1_ICELAKE, number, value);
            assert_eq!(result.is_ok(), accepted, "{number:#x} ^ {flip:#x}");
            let now = cpu.model.vmx_msrs[(number - IA32_VMX_BASIC) as usize];
            let expected = if accepted { value } else { offered(number) };
            assert_eq!(now, expected, "{number:#x} ^ {flip:#x}");
        }
    }

    #[test]
    fn the_others_follow_the_true_ones() {
        let mut cpu = cpu();
        for (from, to, must) in DERIVED {
            assert_eq!(offered(from) | must, offered(to), "{to:#x}");
            let value = offered(from) & !(1 << 33);
            write(&mut cpu, &KVM_6_1_ICELAKE, from, value).expect("less");
            let now = cpu.model.vmx_msrs[(to - IA32_VMX_BASIC) as usize];
            assert_eq!(now, value | must, "{to:#x}");
        }
    }

    #[test]
    fn nothing_changes_in_vmx_operation() {
        let mut cpu = cpu();
        cpu.vmx.vmxon = Some(crate::addr::L1Phys(0x1000));
        let same = offered(IA32_VMX_BASIC);
        assert!(write(&mut cpu, &KVM_6_1_ICELAKE, IA32_VMX_BASIC, same).is_err());
    }
}
