//! MSRs as user space reads and writes them, one by one (Linux `arch/x86/kvm/x86.c` and `vmx/vmx.c`:
//! `host_initiated`): what the guest's CPUID hides is there, what is read-only can be set, and moving the TSC
//! leaves IA32_TSC_ADJUST alone.

use super::features::{self, EXECUTE_DISABLE, LONG_MODE};
use super::{MsrEffect, MsrFault, MsrRead, constant, system, vmx_restore};
use crate::cpu::Cpu;
use crate::pmu;
use crate::vmx::capability::MSR_COUNT;
use crate::x86::control::efer;
use crate::x86::cpuid::{self, CpuidEntry};
use crate::x86::msr::*;

/// Why user space does not get at an MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// There is none with this number, or it holds nothing here (`KVM_MSR_RET_UNSUPPORTED`): of an MSR that
    /// the kernel lists, it reads as zero and takes a zero.
    Unknown,
    /// The value.
    Value,
}

/// IA32_FEATURE_CONTROL: locked, VMX inside and outside SMX, SGX launch control, SGX, local machine checks
/// (`KVM_SUPPORTED_FEATURE_CONTROL`).
const FEATURE_CONTROL: u64 = 0b111 | 0b11 << 17 | 1 << 20;

/// Whether the MSR is there for user space: what a guest is refused for its CPUID alone is.
fn exists(cpu: &Cpu, number: u32) -> Result<(), Refused> {
    let gated = match number {
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2
        | IA32_BNDCFGS
        | IA32_U_CET
        | IA32_S_CET
        | IA32_PERF_GLOBAL_CTRL => Refused::Value,
        KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME_NEW => Refused::Unknown,
        _ => return Ok(()),
    };
    match features::gate(number) {
        Some(feature) if !feature.is_present(cpu) => Err(gated),
        _ => Ok(()),
    }
}

/// `KVM_GET_MSRS` of one.
pub fn read(cpu: &Cpu, number: u32) -> Result<MsrRead, Refused> {
    exists(cpu, number)?;
    Ok(match number {
        IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST => MsrRead::Apic,
        // Whatever level runs.
        IA32_TIME_STAMP_COUNTER => MsrRead::Value(cpu.tsc.l1()),
        IA32_SMBASE => MsrRead::Value(cpu.msrs.smbase),
        HWCR => MsrRead::Value(cpu.msrs.hwcr),
        IA32_PRED_CMD => return Err(Refused::Unknown),
        IA32_MCG_CTL => MsrRead::Value(cpu.machine_checks.read(number).unwrap_or(0)),
        _ => MsrRead::Value(super::value(cpu, number).map_err(|_| Refused::Unknown)?),
    })
}

/// `KVM_SET_MSRS` of one; `offered` are the VMX capability MSRs of which the guest may be given less.
pub fn write(
    cpu: &mut Cpu,
    offered: &[u64; MSR_COUNT],
    number: u32,
    value: u64,
) -> Result<MsrEffect, Refused> {
    exists(cpu, number)?;
    let require = |holds: bool| holds.then_some(()).ok_or(Refused::Value);
    let refused = |_: MsrFault| Refused::Value;
    if constant::read(number).is_some() && number != IA32_PERF_CAPABILITIES {
        return constant::write(number)
            .map(|()| MsrEffect::None)
            .map_err(|_| Refused::Unknown);
    }
    match number {
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2 => {
            vmx_restore::write(cpu, offered, number, value).map_err(refused)?;
        }
        IA32_TIME_STAMP_COUNTER => {
            cpu.tsc.l1_offset = value.wrapping_sub(cpu.tsc.ticks);
            return Ok(MsrEffect::Tsc);
        }
        IA32_TSC_ADJUST => {
            // Without the feature it is dropped.
            if features::gate(number).is_some_and(|feature| feature.is_present(cpu)) {
                cpu.msrs.tsc_adjust = value;
            }
        }
        IA32_APIC_BASE => return system::restore_apic_base(cpu, value).map_err(refused),
        IA32_FEATURE_CONTROL => {
            require(value & !FEATURE_CONTROL == 0)?;
            cpu.msrs.feature_control = value;
        }
        IA32_MISC_ENABLE => cpu.msrs.misc_enable = value,
        IA32_SMBASE => cpu.msrs.smbase = value,
        IA32_BIOS_SIGN_ID => cpu.msrs.microcode = value,
        IA32_ARCH_CAPABILITIES => cpu.msrs.arch_capabilities = value,
        IA32_PERF_CAPABILITIES => {
            let most = most_perf_capabilities(&cpu.model.cpuid);
            require(value & !most == 0)?;
            cpu.msrs.perf_capabilities = Some(value);
        }
        PLATFORM_INFO => {
            // Faulting CPUID cannot go while it is used.
            let faults = cpu.msrs.misc_feature_enables & super::CPUID_FAULTING != 0;
            require(value & 1 << 31 != 0 || !faults)?;
            cpu.msrs.platform_info = value;
        }
        SMI_COUNT => cpu.msrs.smi_count = value,
        HWCR => {
            /// Flush filter, emulation of IGNNE, TLB cache: dropped.
            const DROPPED: u64 = 1 << 3 | 1 << 6 | 1 << 8;
            /// McStatusWrEn, TscFreqSel.
            const KEPT: u64 = 1 << 18 | 1 << 24;
            require(value & !(DROPPED | KEPT) == 0)?;
            cpu.msrs.hwcr = value & KEPT;
        }
        IA32_EFER => {
            let allowed = efer::SCE | efer::LME | efer::LMA | efer::NXE;
            require(value & !allowed == 0)?;
            cpu.sregs.efer = value & !efer::LMA | cpu.sregs.efer & efer::LMA;
            return Ok(MsrEffect::Efer);
        }
        IA32_XSS => {
            require(value & !features::supervisor_states(cpu) == 0)?;
            cpu.msrs.xss = value;
        }
        IA32_SPEC_CTRL => {
            require(value & !7 == 0)?;
            cpu.msrs.spec_ctrl = value;
        }
        IA32_PRED_CMD => require(value & !1 == 0)?,
        IA32_UMWAIT_CONTROL => {
            require(value & !0xffff_fffd == 0)?;
            cpu.msrs.umwait_control = value;
        }
        IA32_TSC_AUX => {
            require(value >> 32 == 0)?;
            cpu.msrs.tsc_aux = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_MCG_CAP => return Err(Refused::Unknown),
        _ if pmu::is_register(&cpu.model, number) => pmu::restore(cpu, number, value),
        _ => {
            return match cpu.machine_checks.restore(number, value) {
                Some(true) => Ok(MsrEffect::None),
                Some(false) => Err(Refused::Value),
                None => {
                    super::write(cpu, number, value).map_err(|_| match super::value(cpu, number) {
                        Ok(_) => Refused::Value,
                        Err(_) => Refused::Unknown,
                    })
                }
            };
        }
    }
    Ok(MsrEffect::None)
}

/// IA32_PERF_CAPABILITIES that go with the counters of a CPUID.
#[must_use]
pub fn most_perf_capabilities(entries: &[CpuidEntry]) -> u64 {
    const VERSION: u32 = 0xff;
    match cpuid::lookup(entries, 0xa, 0)[0] & VERSION {
        0 | 1 => 0,
        _ => pmu::CAPABILITIES,
    }
}

/// Whether IA32_APIC_BASE may hold this.
#[must_use]
pub fn apic_base_is_valid(cpu: &Cpu, value: u64) -> bool {
    system::apic_base_is_valid(cpu, value)
}

/// Whether EFER has only bits that the guest's CPUID has (`__kvm_valid_efer`).
#[must_use]
pub fn efer_is_valid(cpu: &Cpu, value: u64) -> bool {
    let mut allowed = efer::SCE;
    if LONG_MODE.is_present(cpu) {
        allowed |= efer::LME | efer::LMA;
    }
    if EXECUTE_DISABLE.is_present(cpu) {
        allowed |= efer::NXE;
    }
    value & !allowed == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::capability::KVM_6_1_ICELAKE;

    fn set(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), Refused> {
        write(cpu, &KVM_6_1_ICELAKE, number, value).map(|_| ())
    }

    fn get(cpu: &Cpu, number: u32) -> Result<u64, Refused> {
        match read(cpu, number)? {
            MsrRead::Value(value) => Ok(value),
            MsrRead::Apic => panic!("{number:#x} is the APIC's"),
        }
    }

    #[test]
    fn what_a_guest_without_features_cannot_have_user_space_can() {
        // MSR, value, what a write answers; the processor has no CPUID at all.
        let rows = [
            (IA32_ARCH_CAPABILITIES, 0x5f, Ok(())),
            (IA32_BIOS_SIGN_ID, 7 << 32, Ok(())),
            (IA32_FEATURE_CONTROL, 0b111 | 1 << 20, Ok(())),
            (IA32_FEATURE_CONTROL, 1 << 3, Err(Refused::Value)),
            (IA32_MISC_ENABLE, u64::MAX, Ok(())),
            (IA32_SMBASE, 0x7_0000, Ok(())),
            (PLATFORM_INFO, 0x8000_ff00, Ok(())),
            (SMI_COUNT, 3, Ok(())),
            (HWCR, 1 << 18, Ok(())),
            (HWCR, 1 << 19, Err(Refused::Value)),
            (POWER_CTL, 0x1234, Ok(())),
            (IA32_SPEC_CTRL, 7, Ok(())),
            (IA32_SPEC_CTRL, 8, Err(Refused::Value)),
            (IA32_TSC_AUX, 0x1234, Ok(())),
            (IA32_TSC_AUX, 1 << 32, Err(Refused::Value)),
            (IA32_EFER, efer::LME | efer::NXE, Ok(())),
            (IA32_EFER, 1 << 20, Err(Refused::Value)),
            (IA32_MCG_CTL, 0, Ok(())),
            (IA32_MCG_CTL, 1, Err(Refused::Value)),
            (0x401, 5 << 60, Ok(())),
            (0x400, 5, Err(Refused::Value)),
            (IA32_VMX_BASIC, 0, Err(Refused::Value)),
            (KVM_SYSTEM_TIME_NEW, 0, Err(Refused::Unknown)),
            (0x1db, 0, Err(Refused::Unknown)),
            (0x474f_4f00, 0, Err(Refused::Unknown)),
            (IA32_MCG_CAP, 1, Err(Refused::Unknown)),
            (IA32_PAT, 0x0007_0406_0007_0406, Ok(())),
            (IA32_PAT, 2, Err(Refused::Value)),
        ];
        for (number, value, expected) in rows {
            let mut cpu = Cpu::default();
            let before = get(&cpu, number);
            assert_eq!(set(&mut cpu, number, value), expected, "{number:#x}");
            match expected {
                Ok(()) => assert_eq!(get(&cpu, number), Ok(value), "{number:#x}"),
                Err(_) => assert_eq!(get(&cpu, number), before, "{number:#x}"),
            }
        }
    }

    #[test]
    fn setting_the_counter_leaves_its_adjustment() {
        let mut cpu = Cpu::default();
        cpu.tsc.ticks = 1000;
        cpu.msrs.tsc_adjust = 5;
        set(&mut cpu, IA32_TIME_STAMP_COUNTER, 1 << 40).expect("any");
        assert_eq!(get(&cpu, IA32_TIME_STAMP_COUNTER), Ok(1 << 40));
        assert_eq!(cpu.msrs.tsc_adjust, 5);
    }
}
