//! Every capability of the API as a row: what KVM_CHECK_EXTENSION answers, or why it is absent, and what
//! KVM_ENABLE_CAP does. Nothing else decides what is offered.

use crate::errno::{Answer, Errno};
use crate::vcpu::{VcpuContext, nested};
use crate::vm::{MAX_VCPU_ID, MAX_VCPUS, VmContext, irqchip, memory, msr_filter, options};
use Offer::{Absent, Value};
use kvm_bindings::kvm_enable_cap;
use nvmx_core::nested::MAX_STATE_SIZE;

/// What KVM_CHECK_EXTENSION answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// This.
    Value(i32),
    /// Zero, and why.
    Absent(&'static str),
}

/// What KVM_ENABLE_CAP does.
#[derive(Debug, Clone, Copy)]
pub enum Enable {
    /// Nothing: EINVAL.
    No,
    /// On a VM.
    Vm(fn(&mut VmContext<'_>, &kvm_enable_cap) -> Answer),
    /// On a vCPU.
    Vcpu(fn(&mut VcpuContext<'_>, &kvm_enable_cap) -> Answer),
}

/// A capability.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// `KVM_CAP_IRQCHIP`.
    pub name: &'static str,
    /// Its number.
    pub number: u32,
    /// What is there.
    pub offer: Offer,
    /// What enabling it does.
    pub enable: Enable,
}

macro_rules! rows {
    ($($number:literal $name:ident, $offer:expr, $enable:expr;)*) => {
        /// Every capability that x86 has.
        pub const ROWS: &[Row] = &[$(Row {
            name: stringify!($name),
            number: $number,
            offer: $offer,
            enable: $enable,
        }),*];

        #[test]
        fn numbers_are_the_kernels() {
            $(assert_eq!($number, kvm_bindings::$name, stringify!($name));)*
        }
    };
}

rows! {
    0 KVM_CAP_IRQCHIP, Value(1), Enable::No;
    1 KVM_CAP_HLT, Value(1), Enable::No;
    2 KVM_CAP_MMU_SHADOW_CACHE_CONTROL, Value(1), Enable::No;
    3 KVM_CAP_USER_MEMORY, Value(1), Enable::No;
    4 KVM_CAP_SET_TSS_ADDR, Value(1), Enable::No;
    6 KVM_CAP_VAPIC, Absent("the TPR is read where it is"), Enable::No;
    7 KVM_CAP_EXT_CPUID, Value(1), Enable::No;
    8 KVM_CAP_CLOCKSOURCE, Absent("no clock of KVM's in the guest"), Enable::No;
    9 KVM_CAP_NR_VCPUS, Value(MAX_VCPUS), Enable::No;
    10 KVM_CAP_NR_MEMSLOTS, Value(memory::USER_SLOTS as i32), Enable::No;
    11 KVM_CAP_PIT, Value(1), Enable::No;
    12 KVM_CAP_NOP_IO_DELAY, Value(1), Enable::No;
    14 KVM_CAP_MP_STATE, Value(1), Enable::No;
    15 KVM_CAP_COALESCED_MMIO, Absent("writes are not gathered: each is an exit"), Enable::No;
    16 KVM_CAP_SYNC_MMU, Value(1), Enable::No;
    21 KVM_CAP_DESTROY_MEMORY_REGION_WORKS, Value(1), Enable::No;
    22 KVM_CAP_USER_NMI, Value(1), Enable::No;
    23 KVM_CAP_SET_GUEST_DEBUG, Value(1), Enable::No;
    24 KVM_CAP_REINJECT_CONTROL, Value(1), Enable::No;
    25 KVM_CAP_IRQ_ROUTING, Value(irqchip::routing::MOST as i32), Enable::No;
    26 KVM_CAP_IRQ_INJECT_STATUS, Value(1), Enable::No;
    30 KVM_CAP_JOIN_MEMORY_REGIONS_WORKS, Value(1), Enable::No;
    31 KVM_CAP_MCE, Value(32), Enable::No;
    32 KVM_CAP_IRQFD, Absent("interrupts come by KVM_IRQ_LINE and KVM_SIGNAL_MSI"), Enable::No;
    33 KVM_CAP_PIT2, Value(1), Enable::No;
    34 KVM_CAP_SET_BOOT_CPU_ID, Value(1), Enable::No;
    35 KVM_CAP_PIT_STATE2, Value(1), Enable::No;
    36 KVM_CAP_IOEVENTFD, Value(1), Enable::No;
    37 KVM_CAP_SET_IDENTITY_MAP_ADDR, Value(1), Enable::No;
    38 KVM_CAP_XEN_HVM, Absent("no Xen interface"), Enable::No;
    39 KVM_CAP_ADJUST_CLOCK, Absent("no clock of KVM's in the guest"), Enable::No;
    40 KVM_CAP_INTERNAL_ERROR_DATA, Value(1), Enable::No;
    41 KVM_CAP_VCPU_EVENTS, Value(1), Enable::No;
    44 KVM_CAP_HYPERV, Absent("no Hyper-V interface"), Enable::No;
    49 KVM_CAP_INTR_SHADOW, Value(1), Enable::No;
    50 KVM_CAP_DEBUGREGS, Value(1), Enable::No;
    51 KVM_CAP_X86_ROBUST_SINGLESTEP, Value(1), Enable::No;
    54 KVM_CAP_ENABLE_CAP, Value(1), Enable::No;
    55 KVM_CAP_XSAVE, Value(1), Enable::No;
    56 KVM_CAP_XCRS, Value(1), Enable::No;
    59 KVM_CAP_ASYNC_PF, Absent("no paravirtual page faults"), Enable::No;
    60 KVM_CAP_TSC_CONTROL, Value(1), Enable::No;
    61 KVM_CAP_GET_TSC_KHZ, Value(1), Enable::No;
    66 KVM_CAP_MAX_VCPUS, Value(MAX_VCPUS), Enable::No;
    72 KVM_CAP_TSC_DEADLINE_TIMER, Value(1), Enable::No;
    74 KVM_CAP_SYNC_REGS, Value(crate::vcpu::run::sync::FIELDS as i32), Enable::No;
    76 KVM_CAP_KVMCLOCK_CTRL, Absent("no clock of KVM's in the guest"), Enable::No;
    77 KVM_CAP_SIGNAL_MSI, Value(1), Enable::No;
    81 KVM_CAP_READONLY_MEM, Value(1), Enable::No;
    82 KVM_CAP_IRQFD_RESAMPLE, Absent("interrupts come by KVM_IRQ_LINE and KVM_SIGNAL_MSI"), Enable::No;
    89 KVM_CAP_DEVICE_CTRL, Value(1), Enable::No;
    95 KVM_CAP_EXT_EMUL_CPUID, Value(1), Enable::No;
    96 KVM_CAP_HYPERV_TIME, Absent("no Hyper-V interface"), Enable::No;
    97 KVM_CAP_IOAPIC_POLARITY_IGNORED, Value(1), Enable::No;
    98 KVM_CAP_ENABLE_CAP_VM, Value(1), Enable::No;
    100 KVM_CAP_IOEVENTFD_NO_LENGTH, Value(1), Enable::No;
    101 KVM_CAP_VM_ATTRIBUTES, Absent("no attributes are kept here"), Enable::No;
    105 KVM_CAP_CHECK_EXTENSION_VM, Value(1), Enable::No;
    116 KVM_CAP_DISABLE_QUIRKS, Value(1), Enable::Vm(options::disable_quirks);
    117 KVM_CAP_X86_SMM, Value(1), Enable::No;
    118 KVM_CAP_MULTI_ADDRESS_SPACE, Value(memory::ADDRESS_SPACES as i32), Enable::No;
    121 KVM_CAP_SPLIT_IRQCHIP, Value(1), Enable::Vm(irqchip::ioctls::split);
    122 KVM_CAP_IOEVENTFD_ANY_LENGTH, Value(1), Enable::No;
    123 KVM_CAP_HYPERV_SYNIC, Absent("no Hyper-V interface"), Enable::No;
    127 KVM_CAP_VCPU_ATTRIBUTES, Value(1), Enable::No;
    128 KVM_CAP_MAX_VCPU_ID, Value(MAX_VCPU_ID), Enable::Vm(options::max_vcpu_id);
    129 KVM_CAP_X2APIC_API, Value(options::X2APIC_API as i32), Enable::Vm(options::x2apic_api);
    136 KVM_CAP_IMMEDIATE_EXIT, Value(1), Enable::No;
    143 KVM_CAP_X86_DISABLE_EXITS, Absent("HLT, MWAIT and PAUSE are always seen by the model"), Enable::No;
    148 KVM_CAP_HYPERV_SYNIC2, Absent("no Hyper-V interface"), Enable::No;
    149 KVM_CAP_HYPERV_VP_INDEX, Absent("no Hyper-V interface"), Enable::No;
    153 KVM_CAP_GET_MSR_FEATURES, Value(1), Enable::No;
    154 KVM_CAP_HYPERV_EVENTFD, Absent("no Hyper-V interface"), Enable::No;
    155 KVM_CAP_HYPERV_TLBFLUSH, Absent("no Hyper-V interface"), Enable::No;
    157 KVM_CAP_NESTED_STATE, Value(MAX_STATE_SIZE as i32), Enable::No;
    159 KVM_CAP_MSR_PLATFORM_INFO, Value(1), Enable::Vm(options::platform_info);
    161 KVM_CAP_HYPERV_SEND_IPI, Absent("no Hyper-V interface"), Enable::No;
    162 KVM_CAP_COALESCED_PIO, Absent("writes are not gathered: each is an exit"), Enable::No;
    163 KVM_CAP_HYPERV_ENLIGHTENED_VMCS, Value(1), Enable::Vcpu(nested::enable_enlightened_vmcs);
    164 KVM_CAP_EXCEPTION_PAYLOAD, Value(1), Enable::Vm(options::exception_payload);
    167 KVM_CAP_HYPERV_CPUID, Absent("no Hyper-V interface"), Enable::No;
    168 KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2, Value(3), Enable::Vm(memory::enable_manual_protect);
    173 KVM_CAP_PMU_EVENT_FILTER, Absent("the counters of the model are not filtered"), Enable::No;
    175 KVM_CAP_HYPERV_DIRECT_TLBFLUSH, Absent("no Hyper-V interface"), Enable::No;
    182 KVM_CAP_HALT_POLL, Absent("nothing polls"), Enable::No;
    183 KVM_CAP_ASYNC_PF_INT, Absent("no paravirtual page faults"), Enable::No;
    184 KVM_CAP_LAST_CPU, Absent("no host processor is told of"), Enable::No;
    185 KVM_CAP_SMALLER_MAXPHYADDR, Absent("guests have the physical addresses that CPUID says"), Enable::No;
    187 KVM_CAP_STEAL_TIME, Absent("no clock of KVM's in the guest"), Enable::No;
    188 KVM_CAP_X86_USER_SPACE_MSR, Value(1), Enable::Vm(msr_filter::enable_exits);
    189 KVM_CAP_X86_MSR_FILTER, Value(1), Enable::No;
    190 KVM_CAP_ENFORCE_PV_FEATURE_CPUID, Absent("no paravirtual feature to enforce"), Enable::No;
    191 KVM_CAP_SYS_HYPERV_CPUID, Absent("no Hyper-V interface"), Enable::No;
    192 KVM_CAP_DIRTY_LOG_RING, Absent("the dirty log is a bitmap"), Enable::No;
    193 KVM_CAP_X86_BUS_LOCK_EXIT, Absent("bus locks are not detected"), Enable::No;
    195 KVM_CAP_SET_GUEST_DEBUG2, Value(crate::vcpu::run::debug::VALID as i32), Enable::No;
    196 KVM_CAP_SGX_ATTRIBUTE, Absent("no SGX"), Enable::No;
    197 KVM_CAP_VM_COPY_ENC_CONTEXT_FROM, Absent("the model has no memory encryption"), Enable::No;
    199 KVM_CAP_HYPERV_ENFORCE_CPUID, Absent("no Hyper-V interface"), Enable::No;
    200 KVM_CAP_SREGS2, Value(1), Enable::No;
    201 KVM_CAP_EXIT_HYPERCALL, Absent("no hypercall is handed out"), Enable::No;
    203 KVM_CAP_BINARY_STATS_FD, Absent("no statistics are kept"), Enable::No;
    204 KVM_CAP_EXIT_ON_EMULATION_FAILURE, Absent("what the model lacks is always an exit"), Enable::No;
    206 KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM, Absent("the model has no memory encryption"), Enable::No;
    207 KVM_CAP_VM_GPA_BITS, Absent("protected guests only"), Enable::No;
    208 KVM_CAP_XSAVE2, Value(4096), Enable::No;
    209 KVM_CAP_SYS_ATTRIBUTES, Absent("no attributes are kept here"), Enable::No;
    212 KVM_CAP_PMU_CAPABILITY, Absent("the counters cannot be turned off"), Enable::No;
    213 KVM_CAP_DISABLE_QUIRKS2, Value(options::QUIRKS as i32), Enable::Vm(options::disable_quirks2);
    214 KVM_CAP_VM_TSC_CONTROL, Value(1), Enable::No;
    218 KVM_CAP_X86_TRIPLE_FAULT_EVENT, Value(1), Enable::Vm(options::triple_fault_event);
    219 KVM_CAP_X86_NOTIFY_VMEXIT, Absent("the processors of the profiles have no notification exits"), Enable::No;
    220 KVM_CAP_VM_DISABLE_NX_HUGE_PAGES, Absent("no huge pages of the host are involved"), Enable::No;
    223 KVM_CAP_DIRTY_LOG_RING_ACQ_REL, Absent("the dirty log is a bitmap"), Enable::No;
    225 KVM_CAP_DIRTY_LOG_RING_WITH_BITMAP, Absent("the dirty log is a bitmap"), Enable::No;
    226 KVM_CAP_PMU_EVENT_MASKED_EVENTS, Absent("the counters of the model are not filtered"), Enable::No;
    231 KVM_CAP_USER_MEMORY2, Value(1), Enable::No;
    232 KVM_CAP_MEMORY_FAULT_INFO, Absent("a missing page of the host is EFAULT alone"), Enable::No;
    233 KVM_CAP_MEMORY_ATTRIBUTES, Absent("no private memory"), Enable::No;
    234 KVM_CAP_GUEST_MEMFD, Absent("no private memory"), Enable::No;
    235 KVM_CAP_VM_TYPES, Absent("protected guests only"), Enable::No;
    236 KVM_CAP_PRE_FAULT_MEMORY, Absent("no page tables are made ahead"), Enable::No;
    237 KVM_CAP_X86_APIC_BUS_CYCLES_NS, Absent("the APIC's bus runs at one speed"), Enable::No;
    238 KVM_CAP_X86_GUEST_MODE, Value(1), Enable::No;
}

/// The capability with this number.
#[must_use]
pub fn find(number: u32) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.number == number)
}

/// The capability with this name.
#[must_use]
pub fn named(name: &str) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == name)
}

/// What KVM_CHECK_EXTENSION answers: zero to a number that does not exist.
#[must_use]
pub fn check(number: u64) -> i32 {
    let row = u32::try_from(number).ok().and_then(find);
    match row.map(|row| row.offer) {
        Some(Value(value)) => value,
        Some(Absent(_)) | None => 0,
    }
}

/// KVM_ENABLE_CAP on a VM (kvm_vm_ioctl_enable_cap).
pub fn enable_vm(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    if request.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match find(request.cap).map(|row| row.enable) {
        Some(Enable::Vm(enable)) => enable(context, request),
        _ => Err(Errno::EINVAL),
    }
}

/// KVM_ENABLE_CAP on a vCPU (kvm_vcpu_ioctl_enable_cap).
pub fn enable_vcpu(context: &mut VcpuContext<'_>, request: &kvm_enable_cap) -> Answer {
    if request.flags != 0 {
        return Err(Errno::EINVAL);
    }
    match find(request.cap).map(|row| row.enable) {
        Some(Enable::Vcpu(enable)) => enable(context, request),
        _ => Err(Errno::EINVAL),
    }
}
