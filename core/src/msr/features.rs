//! Which CPUID feature an MSR needs (SDM Vol. 4 "IA-32 Architectural MSRs", column "Comment").

use crate::cpu::Cpu;
use crate::x86::cpuid;
use crate::x86::msr::*;

/// A bit of CPUID. Several alternatives: one is enough.
#[derive(Debug, Clone, Copy)]
pub(super) struct Feature(&'static [(u32, u32, usize, u32)]);

impl Feature {
    /// Whether the processor has it.
    pub(super) fn is_present(self, cpu: &Cpu) -> bool {
        self.0.iter().any(|&(leaf, subleaf, register, bit)| {
            cpuid::lookup(&cpu.model.cpuid, leaf, subleaf)[register] >> bit & 1 != 0
        })
    }
}

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

const VMX: Feature = Feature(&[(1, 0, ECX, 5)]);
pub(super) const X2APIC: Feature = Feature(&[(1, 0, ECX, 21)]);
const PDCM: Feature = Feature(&[(1, 0, ECX, 15)]);
const TSC_ADJUST: Feature = Feature(&[(7, 0, EBX, 1)]);
const MPX: Feature = Feature(&[(7, 0, EBX, 14)]);
const WAITPKG: Feature = Feature(&[(7, 0, ECX, 5)]);
const CET: Feature = Feature(&[(7, 0, ECX, 7), (7, 0, EDX, 20)]);
const SPEC_CTRL: Feature = Feature(&[(7, 0, EDX, 26), (7, 0, EDX, 27), (7, 0, EDX, 31)]);
const PRED_CMD: Feature = Feature(&[(7, 0, EDX, 26)]);
const ARCH_CAPABILITIES: Feature = Feature(&[(7, 0, EDX, 29)]);
const XSAVES: Feature = Feature(&[(0xd, 1, EAX, 3)]);
const TSC_AUX: Feature = Feature(&[(0x8000_0001, 0, EDX, 27), (7, 0, ECX, 22)]);
const KVM_CLOCK: Feature = Feature(&[(0x4000_0001, 0, EAX, 3)]);
pub(super) const LONG_MODE: Feature = Feature(&[(0x8000_0001, 0, EDX, 29)]);
pub(super) const EXECUTE_DISABLE: Feature = Feature(&[(0x8000_0001, 0, EDX, 20)]);

/// The feature without which an access is #GP; `None` if the MSR needs none.
pub(super) const fn gate(number: u32) -> Option<Feature> {
    Some(match number {
        IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2 => VMX,
        IA32_PERF_CAPABILITIES => PDCM,
        IA32_TSC_ADJUST => TSC_ADJUST,
        IA32_BNDCFGS => MPX,
        IA32_UMWAIT_CONTROL => WAITPKG,
        IA32_U_CET | IA32_S_CET => CET,
        IA32_SPEC_CTRL => SPEC_CTRL,
        IA32_PRED_CMD => PRED_CMD,
        IA32_ARCH_CAPABILITIES => ARCH_CAPABILITIES,
        IA32_XSS => XSAVES,
        IA32_TSC_AUX => TSC_AUX,
        IA32_PERF_GLOBAL_CTRL => PERFORMANCE_MONITORING_2,
        KVM_WALL_CLOCK_NEW | KVM_SYSTEM_TIME_NEW => KVM_CLOCK,
        _ => return None,
    })
}

/// Version 2 or above of architectural performance monitoring; 1 alone lacks the global control.
const PERFORMANCE_MONITORING_2: Feature =
    Feature(&[(0xa, 0, EAX, 1), (0xa, 0, EAX, 2), (0xa, 0, EAX, 3)]);

/// Bits of IA32_XSS that exist.
pub(super) fn supervisor_states(cpu: &Cpu) -> u64 {
    let [_, _, ecx, edx] = cpuid::lookup(&cpu.model.cpuid, 0xd, 1);
    u64::from(ecx) | u64::from(edx) << 32
}
