//! RDMSR and WRMSR (SDM Vol. 4, Vol. 2 "RDMSR", "WRMSR") for the MSRs of [`crate::x86::msr`], as KVM
//! shows them to a guest (`arch/x86/kvm/x86.c`, `vmx/vmx.c`). Privilege, and whether L2's access
//! exits to L1 ([`crate::vmx::intercepts`]), are the caller's to check first.

mod constant;
mod features;
pub mod filter;
pub mod host;
mod memory_type;
mod system;
mod vmx_restore;

#[cfg(test)]
mod tests;

use crate::cpu::Cpu;
use crate::machine_check;
use crate::personality::Difference;
use crate::pmu;
use crate::vmx::capability::Capability;
use crate::vmx::entry::l2_tsc;
use crate::x86::cr_write::is_canonical;
use crate::x86::msr::*;

/// What a read gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrRead {
    /// The value.
    Value(u64),
    /// A register of the local APIC: ask [`crate::apic::Apic::msr_read`].
    Apic,
}

/// What a write asks of the caller beside what it did to the [`Cpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrEffect {
    /// Nothing.
    None,
    /// A register of the local APIC: hand the write to [`crate::apic::Apic::msr_write`].
    Apic,
    /// IA32_APIC_BASE changed: tell the APIC ([`crate::apic::Apic::set_base`]).
    ApicBase(u64),
    /// EFER changed: translations and the execution mode are stale.
    Efer,
    /// L1's TSC moved: deadlines count anew.
    Tsc,
    /// A base or another register that an execution engine keeps itself changed (FS, GS,
    /// KERNEL_GS_BASE, STAR and the like).
    Engine,
}

/// Why an access failed. Nothing changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MsrFault {
    /// #GP(0).
    GeneralProtection,
    /// The model has not been taught this; the text names the SDM section.
    Unsupported(&'static str),
}

const GP: MsrFault = MsrFault::GeneralProtection;

const fn require(condition: bool) -> Result<(), MsrFault> {
    if condition { Ok(()) } else { Err(GP) }
}

/// RDMSR.
pub fn read(cpu: &Cpu, number: u32) -> Result<MsrRead, MsrFault> {
    if matches!(number, IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST) {
        return Ok(MsrRead::Apic);
    }
    if let Some(feature) = features::gate(number) {
        require(feature.is_present(cpu))?;
    }
    if number == PLATFORM_INFO {
        require(!cpu.msrs.platform_info_hidden)?;
    }
    value(cpu, number).map(MsrRead::Value)
}

/// The value of an MSR that the processor has.
fn value(cpu: &Cpu, number: u32) -> Result<u64, MsrFault> {
    let msrs = &cpu.msrs;
    let sregs = &cpu.sregs;
    Ok(match number {
        IA32_TIME_STAMP_COUNTER => l2_tsc(cpu),
        IA32_TSC_ADJUST => msrs.tsc_adjust,
        IA32_APIC_BASE => sregs.apic_base,
        IA32_FEATURE_CONTROL => msrs.feature_control,
        IA32_SPEC_CTRL => msrs.spec_ctrl,
        IA32_UMWAIT_CONTROL => msrs.umwait_control,
        MISC_FEATURE_ENABLES => msrs.misc_feature_enables,
        IA32_SYSENTER_CS => msrs.sysenter_cs,
        IA32_SYSENTER_ESP => msrs.sysenter_esp,
        IA32_SYSENTER_EIP => msrs.sysenter_eip,
        IA32_MISC_ENABLE => msrs.misc_enable,
        IA32_SMBASE => {
            require(cpu.smm && Capability::from(&*cpu.model).rdmsr_smbase())?;
            msrs.smbase
        }
        IA32_DEBUGCTL => msrs.debugctl,
        IA32_PAT => msrs.pat,
        IA32_PERF_GLOBAL_CTRL => msrs.perf_global_ctrl,
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2 => {
            let value = cpu.model.vmx_msrs[(number - IA32_VMX_BASIC) as usize];
            // The two newest exist only where something says so.
            require(number <= IA32_VMX_VMFUNC || value != 0)?;
            value
        }
        IA32_S_CET => msrs.s_cet,
        IA32_U_CET => {
            return Err(MsrFault::Unsupported(
                "IA32_U_CET, SDM Vol. 1 \"Control-Flow Enforcement Technology (CET)\"",
            ));
        }
        IA32_BNDCFGS => msrs.bndcfgs,
        IA32_XSS => msrs.xss,
        KVM_WALL_CLOCK_NEW => msrs.kvm_wall_clock,
        KVM_SYSTEM_TIME_NEW => msrs.kvm_system_time,
        IA32_EFER => sregs.efer,
        IA32_STAR => msrs.star,
        IA32_LSTAR => msrs.lstar,
        IA32_CSTAR => msrs.cstar,
        IA32_FMASK => msrs.fmask,
        IA32_FS_BASE => sregs.fs.base,
        IA32_GS_BASE => sregs.gs.base,
        IA32_KERNEL_GS_BASE => msrs.kernel_gs_base,
        IA32_TSC_AUX => msrs.tsc_aux,
        IA32_BIOS_SIGN_ID => msrs.microcode,
        IA32_ARCH_CAPABILITIES => msrs.arch_capabilities,
        PLATFORM_INFO => msrs.platform_info,
        IA32_PERF_CAPABILITIES => msrs
            .perf_capabilities
            .unwrap_or_else(|| pmu::counters(&cpu.model).map_or(0, |_| pmu::CAPABILITIES)),
        POWER_CTL => msrs.power_ctl,
        SMI_COUNT => msrs.smi_count,
        _ => match memory_type::read(cpu, number)
            .or_else(|| pmu::read(cpu, number))
            .or_else(|| cpu.machine_checks.read(number))
        {
            Some(value) => value,
            None => constant::read(number).ok_or(GP)?,
        },
    })
}

/// WRMSR.
pub fn write(cpu: &mut Cpu, number: u32, value: u64) -> Result<MsrEffect, MsrFault> {
    if matches!(number, IA32_TSC_DEADLINE | X2APIC_FIRST..=X2APIC_LAST) {
        return Ok(MsrEffect::Apic);
    }
    if let Some(feature) = features::gate(number) {
        require(feature.is_present(cpu))?;
    }
    match number {
        IA32_TIME_STAMP_COUNTER => return Ok(system::write_tsc(cpu, value)),
        IA32_TSC_ADJUST => return Ok(system::write_tsc_adjust(cpu, value)),
        IA32_APIC_BASE => return system::write_apic_base(cpu, value),
        IA32_FEATURE_CONTROL => system::write_feature_control(cpu, value)?,
        // IBRS, STIBP, SSBD.
        IA32_SPEC_CTRL => store(&mut cpu.msrs.spec_ctrl, value, 7)?,
        // A command that has nothing to flush here.
        IA32_PRED_CMD => require(value & !1 == 0)?,
        IA32_UMWAIT_CONTROL => store(&mut cpu.msrs.umwait_control, value, 0xffff_fffd)?,
        MISC_FEATURE_ENABLES => store(&mut cpu.msrs.misc_feature_enables, value, CPUID_FAULTING)?,
        IA32_SYSENTER_CS => {
            cpu.msrs.sysenter_cs = value & 0xffff_ffff;
            return Ok(MsrEffect::Engine);
        }
        IA32_SYSENTER_ESP => {
            cpu.msrs.sysenter_esp = sysenter_address(cpu, value)?;
            return Ok(MsrEffect::Engine);
        }
        IA32_SYSENTER_EIP => {
            cpu.msrs.sysenter_eip = sysenter_address(cpu, value)?;
            return Ok(MsrEffect::Engine);
        }
        IA32_MISC_ENABLE => system::write_misc_enable(cpu, value)?,
        IA32_DEBUGCTL => system::write_debugctl(cpu, value)?,
        IA32_PAT => {
            require(memory_type::pat_is_valid(value))?;
            cpu.msrs.pat = value;
        }
        IA32_PERF_GLOBAL_CTRL => {
            let counters = pmu::counters(&cpu.model).ok_or(GP)?;
            require(value & !counters == 0)?;
            cpu.set_perf_global_ctrl(value);
        }
        // Read-only: SDM Vol. 3D, appendix "VMX Capability Reporting Facility".
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2 => return Err(GP),
        IA32_S_CET | IA32_U_CET => {
            return Err(MsrFault::Unsupported(
                "CET, SDM Vol. 1 \"Control-Flow Enforcement Technology (CET)\"",
            ));
        }
        IA32_BNDCFGS => {
            require(canonical(cpu, value & !0xfff) && value & 0xffc == 0)?;
            cpu.msrs.bndcfgs = value;
        }
        IA32_XSS => {
            let mask = features::supervisor_states(cpu);
            store(&mut cpu.msrs.xss, value, mask)?;
        }
        // A command to load microcode that is not there.
        IA32_BIOS_SIGN_ID => {}
        POWER_CTL => cpu.msrs.power_ctl = value,
        IA32_ARCH_CAPABILITIES | PLATFORM_INFO | SMI_COUNT => return Err(GP),
        KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME_NEW => {
            if value != 0 {
                return Err(MsrFault::Unsupported(
                    "KVM's paravirtual clock (Linux, Documentation/virt/kvm/x86/msr.rst)",
                ));
            }
        }
        IA32_EFER => return system::write_efer(cpu, value),
        IA32_STAR => {
            cpu.msrs.star = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_LSTAR => {
            require(canonical(cpu, value))?;
            cpu.msrs.lstar = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_CSTAR => {
            require(canonical(cpu, value))?;
            cpu.msrs.cstar = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_FMASK => {
            store(&mut cpu.msrs.fmask, value, 0xffff_ffff)?;
            return Ok(MsrEffect::Engine);
        }
        IA32_FS_BASE => {
            require(canonical(cpu, value))?;
            cpu.sregs.fs.base = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_GS_BASE => {
            require(canonical(cpu, value))?;
            cpu.sregs.gs.base = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_KERNEL_GS_BASE => {
            require(canonical(cpu, value))?;
            cpu.msrs.kernel_gs_base = value;
            return Ok(MsrEffect::Engine);
        }
        IA32_TSC_AUX => {
            store(&mut cpu.msrs.tsc_aux, value, 0xffff_ffff)?;
            return Ok(MsrEffect::Engine);
        }
        _ => match memory_type::write(cpu, number, value) {
            Some(result) => result?,
            None => match pmu::write(cpu, number, value) {
                Some(result) => result?,
                None => match machine_check::write(cpu, number, value) {
                    Some(result) => result?,
                    None => constant::write(number)?,
                },
            },
        },
    }
    Ok(MsrEffect::None)
}

/// Bit 0 of MISC_FEATURE_ENABLES: CPUID is #GP outside privilege level 0 (SDM Vol. 4).
pub const CPUID_FAULTING: u64 = 1;

/// Stores `value`; a bit outside `allowed` is #GP.
fn store(register: &mut u64, value: u64, allowed: u64) -> Result<(), MsrFault> {
    require(value & !allowed == 0)?;
    *register = value;
    Ok(())
}

/// Whether an address is canonical for the processor's linear-address width.
fn canonical(cpu: &Cpu, value: u64) -> bool {
    is_canonical(value, cpu.model.linear_width())
}

fn sysenter_address(cpu: &Cpu, value: u64) -> Result<u64, MsrFault> {
    if cpu.model.as_kvm(Difference::SysenterAddress) {
        let unused = 64 - u32::from(cpu.model.linear_width());
        return Ok(((value << unused) as i64 >> unused) as u64);
    }
    require(canonical(cpu, value))?;
    Ok(value)
}
