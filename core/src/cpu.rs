//! One logical processor as the VMX semantics see it: everything that an entry, an exit, an event
//! or an instruction of the model reads or changes. The software backend keeps it in step with its
//! execution engine; the tests need no engine.

use crate::machine_check::MachineChecks;
pub use crate::personality::Personality;
use crate::pmu::Pmu;
use crate::vmx::VmxState;
use crate::x86::cpuid::CpuidEntry;
use crate::x86::{DebugRegs, Event, Exception, Regs, Sregs};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

bitflags::bitflags! {
    /// Guest interruptibility state (SDM Vol. 3C "Guest Non-Register State").
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
    pub struct Interruptibility: u32 {
        /// Blocking by STI.
        const STI = 1 << 0;
        /// Blocking by MOV SS.
        const MOV_SS = 1 << 1;
        /// Blocking by SMI.
        const SMI = 1 << 2;
        /// Blocking by NMI (or by virtual NMI in non-root operation with virtual NMIs).
        const NMI = 1 << 3;
        /// Enclave interruption.
        const ENCLAVE = 1 << 4;
    }
}

/// Activity state (SDM Vol. 3C "Guest Non-Register State").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[repr(u32)]
pub enum Activity {
    /// Executes instructions.
    #[default]
    Active = 0,
    /// HLT.
    Hlt = 1,
    /// Shutdown after a triple fault.
    Shutdown = 2,
    /// Wait-for-SIPI.
    WaitForSipi = 3,
}

/// MSRs that the model keeps itself. The FS and GS bases are in [`Sregs`], EFER and the APIC base too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Msrs {
    pub star: u64,
    pub lstar: u64,
    pub cstar: u64,
    pub fmask: u64,
    pub kernel_gs_base: u64,
    pub tsc_aux: u64,
    pub sysenter_cs: u64,
    pub sysenter_esp: u64,
    pub sysenter_eip: u64,
    pub pat: u64,
    pub debugctl: u64,
    pub feature_control: u64,
    pub misc_enable: u64,
    pub smbase: u64,
    pub spec_ctrl: u64,
    pub bndcfgs: u64,
    pub perf_global_ctrl: u64,
    pub xss: u64,
    pub s_cet: u64,
    pub tsc_adjust: u64,
    pub mtrr_def_type: u64,
    /// Fixed-range MTRRs in the order of their numbers.
    pub mtrr_fixed: [u64; 11],
    /// Variable-range MTRRs 0x200 to 0x20f.
    pub mtrr_variable: [u64; 16],
    pub umwait_control: u64,
    pub misc_feature_enables: u64,
    pub kvm_wall_clock: u64,
    pub kvm_system_time: u64,
    /// IA32_BIOS_SIGN_ID.
    pub microcode: u64,
    pub arch_capabilities: u64,
    /// IA32_PERF_CAPABILITIES as user space set it; else what the counters can do.
    pub perf_capabilities: Option<u64>,
    pub platform_info: u64,
    /// KVM_CAP_MSR_PLATFORM_INFO is off: PLATFORM_INFO is #GP for the guest.
    pub platform_info_hidden: bool,
    pub power_ctl: u64,
    pub smi_count: u64,
    /// AMD's HWCR, which KVM keeps on every processor: for user space here.
    pub hwcr: u64,
}

impl Default for Msrs {
    /// As after RESET, with IA32_FEATURE_CONTROL locked and VMX enabled outside SMX.
    fn default() -> Self {
        Self {
            star: 0,
            lstar: 0,
            cstar: 0,
            fmask: 0,
            kernel_gs_base: 0,
            tsc_aux: 0,
            sysenter_cs: 0,
            sysenter_esp: 0,
            sysenter_eip: 0,
            pat: 0x0007_0406_0007_0406,
            debugctl: 0,
            feature_control: 5,
            misc_enable: 1,
            smbase: 0x3_0000,
            spec_ctrl: 0,
            bndcfgs: 0,
            perf_global_ctrl: 0,
            xss: 0,
            s_cet: 0,
            tsc_adjust: 0,
            mtrr_def_type: 0,
            mtrr_fixed: [0; 11],
            mtrr_variable: [0; 16],
            umwait_control: 0,
            misc_feature_enables: 0,
            kvm_wall_clock: 0,
            kvm_system_time: 0,
            // What KVM shows, and CPUID faulting.
            microcode: 0x1_0000_0000,
            arch_capabilities: 0,
            perf_capabilities: None,
            platform_info: 1 << 31,
            platform_info_hidden: false,
            power_ctl: 0,
            smi_count: 0,
            hwcr: 0,
        }
    }
}

/// How the TSC of each level follows from the machine's tick count (virtual, deterministic).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Tsc {
    /// Ticks since the machine started: one a retired instruction, more while halted.
    pub ticks: u64,
    /// Those of them that went by while the machine slept.
    pub idle: u64,
    /// L1's TSC less `ticks`.
    pub l1_offset: u64,
}

impl Tsc {
    /// L1's TSC now.
    #[must_use]
    pub const fn l1(&self) -> u64 {
        self.ticks.wrapping_add(self.l1_offset)
    }

    /// Instructions that the machine has executed.
    #[must_use]
    pub const fn executed(&self) -> u64 {
        self.ticks.wrapping_sub(self.idle)
    }
}

/// What stays the same while a processor runs: CPUID and the VMX capabilities of L1.
#[derive(Debug, Clone, Default)]
pub struct Model {
    /// CPUID.
    pub cpuid: Vec<CpuidEntry>,
    /// VMX capability MSRs 0x480 to 0x493, by `number - 0x480`.
    pub vmx_msrs: [u64; 20],
    /// Physical-address width in bits.
    pub physical_address_width: u8,
    /// Linear-address width in bits: 48 or 57.
    pub linear_address_width: u8,
    /// Whose behaviour it shows.
    pub personality: Personality,
}

impl Model {
    /// Bits of a linear address: at least 48, whatever CPUID says.
    #[inline(always)]
    #[must_use]
    pub const fn linear_width(&self) -> u8 {
        match self.linear_address_width {
            0..48 => 48,
            width @ 48..=64 => width,
            _ => 64,
        }
    }
}

/// One logical processor.
#[derive(Clone, Default)]
pub struct Cpu {
    /// General-purpose registers, RIP, RFLAGS.
    pub regs: Regs,
    /// Segments, control registers, EFER, APIC base.
    pub sregs: Sregs,
    /// Debug registers.
    pub debug: DebugRegs,
    /// MSRs.
    pub msrs: Msrs,
    /// Performance counters.
    pub pmu: Pmu,
    /// XCR0.
    pub xcr0: u64,
    /// Activity state.
    pub activity: Activity,
    /// What is blocked.
    pub interruptibility: Interruptibility,
    /// Pending debug exceptions (SDM Vol. 3C, same format as the guest-state field).
    pub pending_debug: u64,
    /// An event injected by VM entry (or set by user space) that is to be delivered before the next
    /// instruction; an exit during its delivery reports it as IDT vectoring.
    pub injected: Option<Event>,
    /// An exception found but not delivered: L1 may still intercept it.
    pub pending_exception: Option<Exception>,
    /// NMIs that wait.
    pub nmi_pending: u8,
    /// An SMI waits.
    pub smi_pending: bool,
    /// In SMM.
    pub smm: bool,
    /// SMM was entered while NMIs were blocked.
    pub smm_inside_nmi: bool,
    /// Machine checks.
    pub machine_checks: MachineChecks,
    /// A triple fault waits to be turned into an exit or a shutdown.
    pub triple_fault_pending: bool,
    /// Time.
    pub tsc: Tsc,
    /// VMX operation.
    pub vmx: VmxState,
    /// The processor's model.
    pub model: Arc<Model>,
}

impl Cpu {
    /// Current privilege level: SS.DPL (SDM Vol. 3C "Guest Register State").
    #[must_use]
    pub fn cpl(&self) -> u8 {
        self.sregs.ss.ar.dpl()
    }

    /// RIP behind an instruction of `length` bytes. Outside 64-bit mode EIP wraps at 32 bits (SDM Vol. 1
    /// "Instruction Pointer"); IP wraps by jumps alone.
    #[must_use]
    pub fn next_rip(&self, length: u64) -> u64 {
        let next = self.regs.rip.wrapping_add(length);
        if self.in_64_bit_mode() {
            next
        } else {
            next & 0xffff_ffff
        }
    }

    /// Bits of a linear address in the paging mode of IA-32e mode: what a branch target and an operand are
    /// held to, where a base or an MSR is held to what the processor has (SDM Vol. 1 "Canonical Addressing").
    #[must_use]
    pub const fn linear_width(&self) -> u8 {
        if self.sregs.cr4 & crate::x86::control::cr4::LA57 != 0 {
            57
        } else {
            48
        }
    }

    /// Whether the processor is in 64-bit mode (long mode, CS.L).
    #[must_use]
    pub fn in_64_bit_mode(&self) -> bool {
        self.sregs.efer & crate::x86::control::efer::LMA != 0
            && self.sregs.cs.ar.contains(crate::x86::AccessRights::LONG)
    }
}
