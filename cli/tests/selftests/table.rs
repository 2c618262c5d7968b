//! Which of Linux's KVM selftests are run, what each concerns, and what is known of those that do not pass.

use nvmx_lab::Kernel;

/// A selftest that is run.
pub(crate) struct Selftest {
    /// Its program in 6.1 and in 6.12; several were renamed, added or dropped in between.
    names: [Option<&'static str>; 2],
    /// What it is about.
    pub(crate) concerns: &'static str,
}

impl Selftest {
    /// Its program in the sources of a kernel.
    pub(crate) fn program(&self, kernel: Kernel) -> Option<&'static str> {
        self.names[kernel as usize]
    }

    /// Both names if they differ.
    pub(crate) fn title(&self) -> String {
        match self.names {
            [Some(old), Some(new)] if old != new => format!("{new} ({old} in 6.1)"),
            _ => self.name().to_owned(),
        }
    }

    /// Its name in the table: the newest.
    pub(crate) fn name(&self) -> &'static str {
        self.names[1].or(self.names[0]).unwrap_or_default()
    }
}

const fn both(name: &'static str, concerns: &'static str) -> Selftest {
    Selftest {
        names: [Some(name), Some(name)],
        concerns,
    }
}

const fn renamed(old: &'static str, new: &'static str, concerns: &'static str) -> Selftest {
    Selftest {
        names: [Some(old), Some(new)],
        concerns,
    }
}

const fn old(name: &'static str, concerns: &'static str) -> Selftest {
    Selftest {
        names: [Some(name), None],
        concerns,
    }
}

const fn new(name: &'static str, concerns: &'static str) -> Selftest {
    Selftest {
        names: [None, Some(name)],
        concerns,
    }
}

/// What is run, VMX first.
pub(crate) const SELFTESTS: &[Selftest] = &[
    both(
        "vmx_set_nested_state_test",
        "KVM_SET_NESTED_STATE: each refusal",
    ),
    both(
        "state_test",
        "all of a vCPU's state saved and restored at each step of a nested guest",
    ),
    both("smm_test", "SMIs in L1 and in L2, state saved in SMM"),
    both(
        "nested_exceptions_test",
        "exceptions of L2: injected, intercepted, double and triple faults",
    ),
    both(
        "vmx_preemption_timer_test",
        "the preemption timer across saving and restoring",
    ),
    both(
        "vmx_nested_tsc_scaling_test",
        "TSC scaling and offset of L1 and L2",
    ),
    both("vmx_tsc_adjust_test", "IA32_TSC_ADJUST written in L2"),
    both("vmx_apic_access_test", "an APIC-access page outside RAM"),
    both(
        "vmx_close_while_nested_test",
        "a VM closed while L2 is active",
    ),
    both(
        "vmx_dirty_log_test",
        "the dirty log of what L2 writes, with and without EPT",
    ),
    both(
        "vmx_invalid_nested_guest_state",
        "invalid state of L2 that user space sets",
    ),
    both(
        "vmx_exception_with_invalid_guest_state",
        "an exception with invalid guest state",
    ),
    both(
        "vmx_msrs_test",
        "VMX capability MSRs that user space narrows",
    ),
    both("vmx_pmu_caps_test", "IA32_PERF_CAPABILITIES"),
    both(
        "triple_fault_event_test",
        "KVM_CAP_X86_TRIPLE_FAULT_EVENT, in L2 too",
    ),
    both(
        "set_sregs_test",
        "KVM_SET_SREGS: bits of CR4, the APIC base",
    ),
    both("sync_regs_test", "registers in the run page"),
    both(
        "debug_regs",
        "KVM_SET_GUEST_DEBUG: breakpoints, single steps",
    ),
    both(
        "userspace_msr_exit_test",
        "MSR filters and MSR exits to user space",
    ),
    both("platform_info_test", "KVM_CAP_MSR_PLATFORM_INFO"),
    both(
        "get_msr_index_features",
        "lists of MSRs and of feature MSRs",
    ),
    both(
        "cpuid_test",
        "KVM_GET_SUPPORTED_CPUID against what the guest sees",
    ),
    both("cr4_cpuid_sync_test", "CPUID's OSXSAVE follows CR4"),
    both("fix_hypercall_test", "VMCALL and VMMCALL, patched or #UD"),
    renamed(
        "emulator_error_test",
        "exit_on_emulation_failure_test",
        "KVM_CAP_EXIT_ON_EMULATION_FAILURE",
    ),
    both("kvm_pv_test", "paravirtual features that CPUID lacks"),
    both(
        "kvm_clock_test",
        "KVM's paravirtual clock, KVM_GET_CLOCK, KVM_SET_CLOCK",
    ),
    new("steal_time", "stolen time"),
    both("max_vcpuid_cap_test", "KVM_CAP_MAX_VCPU_ID"),
    both(
        "monitor_mwait_test",
        "MONITOR and MWAIT with and without CPUID's word",
    ),
    both("set_boot_cpu_id", "KVM_SET_BOOT_CPU_ID"),
    both("tsc_msrs_test", "the TSC's MSRs, written by guest and host"),
    both("tsc_scaling_sync", "TSC frequencies of several vCPUs"),
    both(
        "ucna_injection_test",
        "corrected machine checks and their interrupt",
    ),
    both(
        "userspace_io_test",
        "a string input that user space ends early",
    ),
    both("xapic_ipi_test", "IPIs between two vCPUs that wait in HLT"),
    both("xapic_state_test", "the local APIC's page and modes"),
    new("xcr0_cpuid_test", "XCR0 and what CPUID says of it"),
    both("xss_msr_test", "IA32_XSS"),
    new("hwcr_msr_test", "MSR_K7_HWCR"),
    new("apic_bus_clock_test", "KVM_CAP_X86_APIC_BUS_CYCLES_NS"),
    new("recalc_apic_map_test", "the map of APIC ids, as ids change"),
    new(
        "smaller_maxphyaddr_emulation_test",
        "a guest of a smaller MAXPHYADDR",
    ),
    both("pmu_event_filter_test", "KVM_SET_PMU_EVENT_FILTER"),
    new(
        "pmu_counters_test",
        "performance counters and their CPUID leaf",
    ),
    old(
        "mmio_warning_test",
        "an I/O exit in a VM that is being torn down",
    ),
    both(
        "set_memory_region_test",
        "memory slots added, moved and removed",
    ),
    both(
        "kvm_create_max_vcpus",
        "as many vCPUs as KVM_CAP_MAX_VCPUS says",
    ),
    both("kvm_binary_stats_test", "KVM_GET_STATS_FD"),
    both(
        "system_counter_offset_test",
        "the TSC offset as a vCPU attribute",
    ),
    new("coalesced_io_test", "coalesced MMIO and PIO"),
    new("guest_print_test", "how a guest's strings reach user space"),
    new(
        "dirty_log_test",
        "the dirty log and the dirty ring under random writes",
    ),
    new(
        "dirty_log_page_splitting_test",
        "huge pages split for the dirty log",
    ),
];

/// Programs of the same build that are not run, each with its reason.
pub(crate) const LEFT_OUT: &[(&str, &str)] = &[
    ("svm_", "AMD's SVM"),
    ("sev_", "AMD's SEV"),
    ("hyperv_", "Hyper-V's interface"),
    ("evmcs_test", "Hyper-V's interface"),
    ("xen_", "Xen's interface"),
    ("amx_test", "AMX: no profile has it"),
    (
        "nx_huge_pages_test",
        "runs by a script that changes the host's settings",
    ),
    ("private_mem_", "private memory"),
    ("guest_memfd_test", "private memory"),
    ("pre_fault_memory_test", "a host's page tables"),
    (
        "access_tracking_perf_test",
        "measures a host's memory management",
    ),
    ("demand_paging_test", "measures a host's memory management"),
    ("dirty_log_perf_test", "measures a host's memory management"),
    ("kvm_page_table_test", "measures a host's memory management"),
    (
        "max_guest_memory_test",
        "measures a host's memory management",
    ),
    ("memslot_", "measures a host's memory management"),
    (
        "hardware_disable_test",
        "hundreds of processes to stress a host's virtualization switched off",
    ),
    ("rseq_test", "restartable sequences of a host's scheduler"),
];

/// Where a program is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// On real KVM of the kernel that it belongs to, in the lab.
    Kvm,
    /// On the model, under the shim.
    Shim,
}

/// How a selftest went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Status 0.
    Passed,
    /// Status 4, `KSFT_SKIP`: the test says that something is missing.
    Skipped,
    /// Any other end.
    Failed,
    /// It did not end in time.
    TimedOut,
    /// Not even started, since it takes the emulated machine with it.
    NotRun,
}

impl Verdict {
    /// In tables.
    pub(crate) fn word(&self) -> &'static str {
        match self {
            Self::Passed => "pass",
            Self::Skipped => "skip",
            Self::Failed => "FAIL",
            Self::TimedOut => "TIME",
            Self::NotRun => "not run",
        }
    }
}
