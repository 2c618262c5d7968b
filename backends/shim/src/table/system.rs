//! The ioctls of `/dev/kvm`.

use super::{io, iowr, rows};
use crate::errno::Errno;
use crate::system::{basics, cpuid, msrs};
use kvm_bindings::*;

rows! { System;
    KVM_GET_API_VERSION io(0x00), "", System(basics::get_api_version);
    KVM_CREATE_VM io(0x01), "", System(basics::create_vm);
    KVM_GET_MSR_INDEX_LIST iowr::<kvm_msr_list>(0x02), "", System(msrs::index_list);
    KVM_CHECK_EXTENSION io(0x03), "", System(basics::check_extension);
    KVM_GET_VCPU_MMAP_SIZE io(0x04), "", System(basics::get_vcpu_mmap_size);
    KVM_GET_SUPPORTED_CPUID iowr::<kvm_cpuid2>(0x05), "KVM_CAP_EXT_CPUID", System(cpuid::supported);
    KVM_GET_EMULATED_CPUID iowr::<kvm_cpuid2>(0x09), "KVM_CAP_EXT_EMUL_CPUID", System(cpuid::emulated);
    KVM_GET_MSR_FEATURE_INDEX_LIST iowr::<kvm_msr_list>(0x0a), "KVM_CAP_GET_MSR_FEATURES", System(msrs::feature_list);
    KVM_GET_MSRS iowr::<kvm_msrs>(0x88), "KVM_CAP_GET_MSR_FEATURES", System(msrs::get);
    KVM_X86_GET_MCE_CAP_SUPPORTED super::ior::<u64>(0x9d), "KVM_CAP_MCE", System(msrs::machine_check_capabilities);
    KVM_GET_SUPPORTED_HV_CPUID iowr::<kvm_cpuid2>(0xc1), "KVM_CAP_SYS_HYPERV_CPUID", Absent(Errno::EINVAL, "no Hyper-V interface");
    KVM_GET_DEVICE_ATTR super::iow::<kvm_device_attr>(0xe2), "KVM_CAP_SYS_ATTRIBUTES", Absent(Errno::EINVAL, "no attributes are kept here");
    KVM_HAS_DEVICE_ATTR super::iow::<kvm_device_attr>(0xe3), "KVM_CAP_SYS_ATTRIBUTES", Absent(Errno::EINVAL, "no attributes are kept here");
}
