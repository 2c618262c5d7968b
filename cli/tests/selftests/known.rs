//! The selftests that do not pass, and why.

use crate::table::{Place, Selftest, Verdict};
use nvmx_lab::Kernel;

/// A selftest that does not pass somewhere, and why.
pub(crate) struct Known {
    pub(crate) place: Place,
    pub(crate) kernels: &'static [Kernel],
    pub(crate) test: &'static str,
    pub(crate) verdict: Verdict,
    pub(crate) reason: &'static str,
}

/// All that do not pass.
pub(crate) const KNOWN: &[Known] = &[
    on_kvm(
        &Kernel::ALL,
        "vmx_preemption_timer_test",
        Verdict::NotRun,
        HANGS_BOCHS,
    ),
    on_kvm(
        &Kernel::ALL,
        "vmx_exception_with_invalid_guest_state",
        Verdict::Skipped,
        UNRESTRICTED,
    ),
    on_kvm(&Kernel::ALL, "vmx_pmu_caps_test", Verdict::Skipped, NO_PMU),
    on_kvm(
        &[Kernel::V6_12],
        "sync_regs_test",
        Verdict::NotRun,
        HANGS_BOCHS,
    ),
    on_kvm(
        &Kernel::ALL,
        "debug_regs",
        Verdict::Failed,
        "Bochs' debug exceptions below KVM: a single step of CPUID, which KVM emulates, stops twice",
    ),
    on_kvm(
        &Kernel::ALL,
        "cr4_cpuid_sync_test",
        Verdict::Skipped,
        NO_XSAVE,
    ),
    on_kvm(
        &[Kernel::V6_1],
        "exit_on_emulation_failure_test",
        Verdict::Skipped,
        "6.1's wants KVM_CAP_SMALLER_MAXPHYADDR, which KVM with EPT does not have",
    ),
    on_kvm(
        &[Kernel::V6_12],
        "monitor_mwait_test",
        Verdict::Failed,
        "it enables a quirk again that it has disabled, which 6.12's stable series does not do any more",
    ),
    on_kvm(
        &Kernel::ALL,
        "tsc_scaling_sync",
        Verdict::NotRun,
        HANGS_BOCHS,
    ),
    on_kvm(
        &Kernel::ALL,
        "xapic_ipi_test",
        Verdict::NotRun,
        "its sender waits with RFLAGS.IF clear, and there Bochs delivers no host interrupt: the halter never \
         runs, and the test says so after half a minute",
    ),
    on_kvm(
        &[Kernel::V6_12],
        "xcr0_cpuid_test",
        Verdict::Skipped,
        NO_XSAVE,
    ),
    on_kvm(&Kernel::ALL, "xss_msr_test", Verdict::Skipped, NO_XSAVE),
    on_kvm(
        &[Kernel::V6_12],
        "recalc_apic_map_test",
        Verdict::NotRun,
        HANGS_BOCHS,
    ),
    on_kvm(
        &[Kernel::V6_12],
        "smaller_maxphyaddr_emulation_test",
        Verdict::Skipped,
        "wants allow_smaller_maxphyaddr=1 of kvm_intel",
    ),
    on_kvm(
        &Kernel::ALL,
        "pmu_event_filter_test",
        Verdict::Skipped,
        NO_PMU,
    ),
    on_kvm(
        &[Kernel::V6_12],
        "pmu_counters_test",
        Verdict::Skipped,
        NO_PMU,
    ),
    on_kvm(
        &[Kernel::V6_1],
        "mmio_warning_test",
        Verdict::Skipped,
        UNRESTRICTED,
    ),
    on_kvm(
        &Kernel::ALL,
        "set_memory_region_test",
        Verdict::NotRun,
        HANGS_BOCHS,
    ),
    on_kvm(
        &[Kernel::V6_12],
        "kvm_create_max_vcpus",
        Verdict::NotRun,
        "a thousand vCPUs take minutes in the emulated machine",
    ),
    on_kvm(
        &[Kernel::V6_12],
        "dirty_log_test",
        Verdict::Failed,
        "wants more memory than the lab has",
    ),
    on_kvm(
        &[Kernel::V6_12],
        "dirty_log_page_splitting_test",
        Verdict::Skipped,
        "wants huge pages of the host",
    ),
    on_shim(
        &Kernel::ALL,
        "vmx_preemption_timer_test",
        Verdict::TimedOut,
        COUNTED_TIME,
    ),
    on_shim(
        &Kernel::ALL,
        "vmx_nested_tsc_scaling_test",
        Verdict::Failed,
        COUNTED_TIME,
    ),
    on_shim(
        &Kernel::ALL,
        "vmx_exception_with_invalid_guest_state",
        Verdict::Skipped,
        UNRESTRICTED,
    ),
    on_shim(
        &Kernel::ALL,
        "vmx_pmu_caps_test",
        Verdict::Skipped,
        NO_PMU_HERE,
    ),
    on_shim(
        &Kernel::ALL,
        "cr4_cpuid_sync_test",
        Verdict::Skipped,
        NO_XSAVE_HERE,
    ),
    on_shim(
        &Kernel::ALL,
        "fix_hypercall_test",
        Verdict::Failed,
        HYPERCALLS,
    ),
    on_shim(
        &Kernel::ALL,
        "exit_on_emulation_failure_test",
        Verdict::Skipped,
        "wants KVM_CAP_EXIT_ON_EMULATION_FAILURE or KVM_CAP_SMALLER_MAXPHYADDR: nothing is emulated behind the model",
    ),
    on_shim(
        &Kernel::ALL,
        "kvm_pv_test",
        Verdict::Skipped,
        NO_PARAVIRTUAL,
    ),
    on_shim(
        &Kernel::ALL,
        "kvm_clock_test",
        Verdict::Skipped,
        NO_PARAVIRTUAL,
    ),
    on_shim(
        &[Kernel::V6_12],
        "steal_time",
        Verdict::Skipped,
        NO_PARAVIRTUAL,
    ),
    on_shim(
        &Kernel::ALL,
        "monitor_mwait_test",
        Verdict::Failed,
        "MONITOR and MWAIT are never #UD: KVM's quirk cannot be disabled (6.12's would fail in any case: see kvm 6.12)",
    ),
    on_shim(
        &Kernel::ALL,
        "tsc_scaling_sync",
        Verdict::Failed,
        MANY_VCPUS,
    ),
    on_shim(
        &Kernel::ALL,
        "ucna_injection_test",
        Verdict::Skipped,
        "the model's machine-check banks have no CMCI",
    ),
    on_shim(
        &Kernel::ALL,
        "userspace_io_test",
        Verdict::Failed,
        "each iteration of a string input is an exit of its own, KVM's holds up to a page of them",
    ),
    on_shim(
        &Kernel::ALL,
        "xapic_ipi_test",
        Verdict::TimedOut,
        COUNTED_TIME,
    ),
    on_shim(
        &[Kernel::V6_12],
        "xapic_state_test",
        Verdict::Failed,
        "KVM 6.12 refuses reserved bits of the ICR in x2APIC mode, the model's APIC is 6.1's",
    ),
    on_shim(
        &[Kernel::V6_12],
        "xcr0_cpuid_test",
        Verdict::Skipped,
        NO_XSAVE_HERE,
    ),
    on_shim(
        &Kernel::ALL,
        "xss_msr_test",
        Verdict::Skipped,
        NO_XSAVE_HERE,
    ),
    on_shim(
        &[Kernel::V6_12],
        "apic_bus_clock_test",
        Verdict::Skipped,
        "KVM_CAP_X86_APIC_BUS_CYCLES_NS is absent",
    ),
    on_shim(
        &[Kernel::V6_12],
        "recalc_apic_map_test",
        Verdict::Failed,
        MANY_VCPUS,
    ),
    on_shim(
        &[Kernel::V6_12],
        "smaller_maxphyaddr_emulation_test",
        Verdict::Skipped,
        "wants allow_smaller_maxphyaddr=1 of kvm_intel",
    ),
    on_shim(
        &Kernel::ALL,
        "pmu_event_filter_test",
        Verdict::Skipped,
        NO_PMU_HERE,
    ),
    on_shim(
        &[Kernel::V6_12],
        "pmu_counters_test",
        Verdict::Skipped,
        NO_PMU_HERE,
    ),
    on_shim(
        &[Kernel::V6_1],
        "mmio_warning_test",
        Verdict::Skipped,
        UNRESTRICTED,
    ),
    on_shim(
        &Kernel::ALL,
        "kvm_binary_stats_test",
        Verdict::Skipped,
        "KVM_CAP_BINARY_STATS_FD is absent",
    ),
    on_shim(
        &Kernel::ALL,
        "system_counter_offset_test",
        Verdict::Failed,
        COUNTED_TIME,
    ),
    on_shim(
        &[Kernel::V6_12],
        "coalesced_io_test",
        Verdict::Skipped,
        "KVM_CAP_COALESCED_MMIO is absent",
    ),
    on_shim(
        &[Kernel::V6_12],
        "dirty_log_page_splitting_test",
        Verdict::Skipped,
        "wants huge pages of the host",
    ),
];

const COUNTED_TIME: &str = "the guest's time is the model's count of instructions, not the host's clock, so that runs repeat: \
     what measures one by the other cannot agree";
const NO_PMU_HERE: &str = "the processor that is offered has no performance counters";
const NO_XSAVE_HERE: &str =
    "the processor that is offered (kvm-6.12, as the lab's KVM shows it) has no XSAVE";
const NO_PARAVIRTUAL: &str = "none of KVM's paravirtual features is offered";
const HYPERCALLS: &str = "no hypercall is served: VMCALL and VMMCALL outside VMX operation are #UD";
const MANY_VCPUS: &str = "wants more vCPUs than a machine of the model may have";
const UNRESTRICTED: &str = "wants a KVM without unrestricted guests";
const NO_PMU: &str = "Bochs' processor has no performance counters that Linux knows";
const NO_XSAVE: &str = "XSAVE is off in the lab: Bochs' model announces PKU without its area";
const HANGS_BOCHS: &str = "the guest spins with RFLAGS.IF clear, and there Bochs delivers no host interrupt: \
     the emulated machine hangs";

const fn on_kvm(
    kernels: &'static [Kernel],
    test: &'static str,
    verdict: Verdict,
    reason: &'static str,
) -> Known {
    Known {
        place: Place::Kvm,
        kernels,
        test,
        verdict,
        reason,
    }
}

const fn on_shim(
    kernels: &'static [Kernel],
    test: &'static str,
    verdict: Verdict,
    reason: &'static str,
) -> Known {
    Known {
        place: Place::Shim,
        kernels,
        test,
        verdict,
        reason,
    }
}

/// The row that says that a test does not pass.
pub(crate) fn find(place: Place, kernel: Kernel, test: &Selftest) -> Option<&'static Known> {
    KNOWN.iter().find(|known| {
        known.place == place && known.kernels.contains(&kernel) && known.test == test.name()
    })
}
