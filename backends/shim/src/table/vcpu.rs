//! The ioctls of a virtual CPU.

use super::{io, ior, iow, iowr, rows};
use crate::errno::Errno;
use crate::vcpu::{cpuid, events, lapic, msrs, nested, registers, run, time, units};
use kvm_bindings::*;

const NO_XEN: &str = "no Xen interface";

rows! { Vcpu;
    KVM_RUN io(0x80), "", VcpuObject(run::run);
    KVM_GET_REGS ior::<kvm_regs>(0x81), "", Vcpu(registers::get_regs);
    KVM_SET_REGS iow::<kvm_regs>(0x82), "", Vcpu(registers::set_regs);
    KVM_GET_SREGS ior::<kvm_sregs>(0x83), "", Vcpu(registers::get_sregs);
    KVM_SET_SREGS iow::<kvm_sregs>(0x84), "", Vcpu(registers::set_sregs);
    KVM_TRANSLATE iowr::<kvm_translation>(0x85), "", Vcpu(crate::vm::memory::translate);
    KVM_INTERRUPT iow::<kvm_interrupt>(0x86), "", Vcpu(run::inject::interrupt);
    KVM_GET_MSRS iowr::<kvm_msrs>(0x88), "", Vcpu(msrs::get);
    KVM_SET_MSRS iow::<kvm_msrs>(0x89), "", Vcpu(msrs::set);
    KVM_SET_CPUID iow::<kvm_cpuid>(0x8a), "", Vcpu(cpuid::set_older);
    KVM_SET_SIGNAL_MASK iow::<kvm_signal_mask>(0x8b), "", Vcpu(run::signal_mask::set);
    KVM_GET_FPU ior::<kvm_fpu>(0x8c), "", Vcpu(units::get_fpu);
    KVM_SET_FPU iow::<kvm_fpu>(0x8d), "", Vcpu(units::set_fpu);
    KVM_GET_LAPIC ior::<kvm_lapic_state>(0x8e), "KVM_CAP_IRQCHIP", Vcpu(lapic::get);
    KVM_SET_LAPIC iow::<kvm_lapic_state>(0x8f), "KVM_CAP_IRQCHIP", Vcpu(lapic::set);
    KVM_SET_CPUID2 iow::<kvm_cpuid2>(0x90), "KVM_CAP_EXT_CPUID", Vcpu(cpuid::set);
    KVM_GET_CPUID2 iowr::<kvm_cpuid2>(0x91), "KVM_CAP_EXT_CPUID", Vcpu(cpuid::get);
    KVM_TPR_ACCESS_REPORTING iowr::<kvm_tpr_access_ctl>(0x92), "KVM_CAP_VAPIC", Vcpu(crate::vcpu::vapic::report_access);
    KVM_SET_VAPIC_ADDR iow::<kvm_vapic_addr>(0x93), "KVM_CAP_VAPIC", Vcpu(crate::vcpu::vapic::set_address);
    KVM_GET_MP_STATE ior::<kvm_mp_state>(0x98), "KVM_CAP_MP_STATE", Vcpu(events::get_mp_state);
    KVM_SET_MP_STATE iow::<kvm_mp_state>(0x99), "KVM_CAP_MP_STATE", Vcpu(events::set_mp_state);
    KVM_NMI io(0x9a), "KVM_CAP_USER_NMI", Vcpu(run::inject::nmi);
    KVM_SET_GUEST_DEBUG iow::<kvm_guest_debug>(0x9b), "KVM_CAP_SET_GUEST_DEBUG", Vcpu(run::debug::set);
    KVM_X86_SETUP_MCE iow::<u64>(0x9c), "KVM_CAP_MCE", Vcpu(events::set_up_machine_checks);
    KVM_X86_SET_MCE iow::<kvm_x86_mce>(0x9e), "KVM_CAP_MCE", Vcpu(events::set_machine_check);
    KVM_GET_VCPU_EVENTS ior::<kvm_vcpu_events>(0x9f), "KVM_CAP_VCPU_EVENTS", Vcpu(events::get);
    KVM_SET_VCPU_EVENTS iow::<kvm_vcpu_events>(0xa0), "KVM_CAP_VCPU_EVENTS", Vcpu(events::set);
    KVM_GET_DEBUGREGS ior::<kvm_debugregs>(0xa1), "KVM_CAP_DEBUGREGS", Vcpu(registers::get_debugregs);
    KVM_SET_DEBUGREGS iow::<kvm_debugregs>(0xa2), "KVM_CAP_DEBUGREGS", Vcpu(registers::set_debugregs);
    KVM_SET_TSC_KHZ io(0xa2), "KVM_CAP_TSC_CONTROL", Vcpu(time::set_khz);
    KVM_GET_TSC_KHZ io(0xa3), "KVM_CAP_GET_TSC_KHZ", Vcpu(time::get_khz);
    KVM_ENABLE_CAP iow::<kvm_enable_cap>(0xa3), "KVM_CAP_ENABLE_CAP", Vcpu(crate::vcpu::basics::enable_cap);
    KVM_GET_XSAVE ior::<kvm_xsave>(0xa4), "KVM_CAP_XSAVE", Vcpu(units::get_xsave);
    KVM_SET_XSAVE iow::<kvm_xsave>(0xa5), "KVM_CAP_XSAVE", Vcpu(units::set_xsave);
    KVM_GET_XCRS ior::<kvm_xcrs>(0xa6), "KVM_CAP_XCRS", Vcpu(units::get_xcrs);
    KVM_SET_XCRS iow::<kvm_xcrs>(0xa7), "KVM_CAP_XCRS", Vcpu(units::set_xcrs);
    KVM_KVMCLOCK_CTRL io(0xad), "KVM_CAP_KVMCLOCK_CTRL", Absent(Errno::EINVAL, "no clock of KVM's in the guest");
    KVM_SMI io(0xb7), "KVM_CAP_X86_SMM", Vcpu(run::inject::smi);
    KVM_GET_NESTED_STATE iowr::<kvm_nested_state_header>(0xbe), "KVM_CAP_NESTED_STATE", Vcpu(nested::get);
    KVM_SET_NESTED_STATE iow::<kvm_nested_state_header>(0xbf), "KVM_CAP_NESTED_STATE", Vcpu(nested::set);
    KVM_GET_SUPPORTED_HV_CPUID iowr::<kvm_cpuid2>(0xc1), "KVM_CAP_HYPERV_CPUID", Absent(Errno::EINVAL, "no Hyper-V interface");
    KVM_XEN_VCPU_GET_ATTR iowr::<kvm_xen_vcpu_attr>(0xca), "KVM_CAP_XEN_HVM", Absent(Errno::EINVAL, NO_XEN);
    KVM_XEN_VCPU_SET_ATTR iow::<kvm_xen_vcpu_attr>(0xcb), "KVM_CAP_XEN_HVM", Absent(Errno::EINVAL, NO_XEN);
    KVM_GET_SREGS2 ior::<kvm_sregs2>(0xcc), "KVM_CAP_SREGS2", Vcpu(registers::get_sregs2);
    KVM_SET_SREGS2 iow::<kvm_sregs2>(0xcd), "KVM_CAP_SREGS2", Vcpu(registers::set_sregs2);
    KVM_GET_STATS_FD io(0xce), "KVM_CAP_BINARY_STATS_FD", Absent(Errno::EINVAL, "no statistics are kept");
    KVM_GET_XSAVE2 ior::<kvm_xsave>(0xcf), "KVM_CAP_XSAVE2", Vcpu(units::get_xsave);
    KVM_SET_DEVICE_ATTR iow::<kvm_device_attr>(0xe1), "KVM_CAP_VCPU_ATTRIBUTES", Vcpu(time::set_attribute);
    KVM_GET_DEVICE_ATTR iow::<kvm_device_attr>(0xe2), "KVM_CAP_VCPU_ATTRIBUTES", Vcpu(time::get_attribute);
    KVM_HAS_DEVICE_ATTR iow::<kvm_device_attr>(0xe3), "KVM_CAP_VCPU_ATTRIBUTES", Vcpu(time::has_attribute);
}

/// `struct kvm_nested_state` without the data that follows it, whose size is part of the number.
#[repr(C)]
struct kvm_nested_state_header([u8; 128]);
