//! The ioctls of a virtual machine.

use super::{io, ior, iow, iowr, rows};
use crate::errno::Errno;
use crate::vm::{create, ioeventfd, irqchip, memory, msr_filter, options};
use kvm_bindings::*;

/// Why there is nothing for protected guests.
const NO_ENCRYPTION: &str = "the model has no memory encryption";
const NO_XEN: &str = "no Xen interface";

rows! { Vm;
    KVM_CHECK_EXTENSION io(0x03), "KVM_CAP_CHECK_EXTENSION_VM", VmObject(create::check_extension);
    KVM_CREATE_VCPU io(0x41), "", VmObject(create::create_vcpu);
    KVM_GET_DIRTY_LOG iow::<kvm_dirty_log>(0x42), "", Vm(memory::get_dirty_log);
    KVM_SET_NR_MMU_PAGES io(0x44), "KVM_CAP_MMU_SHADOW_CACHE_CONTROL", Vm(memory::set_nr_mmu_pages);
    KVM_GET_NR_MMU_PAGES io(0x45), "KVM_CAP_MMU_SHADOW_CACHE_CONTROL", Absent(Errno::ENOTTY, "Linux has it no more");
    KVM_SET_USER_MEMORY_REGION iow::<kvm_userspace_memory_region>(0x46), "KVM_CAP_USER_MEMORY", Vm(memory::set_user_memory_region);
    KVM_SET_TSS_ADDR io(0x47), "KVM_CAP_SET_TSS_ADDR", Vm(memory::set_tss_addr);
    KVM_SET_IDENTITY_MAP_ADDR iow::<u64>(0x48), "KVM_CAP_SET_IDENTITY_MAP_ADDR", Vm(memory::set_identity_map_addr);
    KVM_SET_USER_MEMORY_REGION2 iow::<kvm_userspace_memory_region2>(0x49), "KVM_CAP_USER_MEMORY2", Vm(memory::set_user_memory_region2);
    KVM_CREATE_IRQCHIP io(0x60), "KVM_CAP_IRQCHIP", Vm(irqchip::ioctls::create);
    KVM_IRQ_LINE iow::<kvm_irq_level>(0x61), "KVM_CAP_IRQCHIP", Vm(irqchip::ioctls::set_line);
    KVM_GET_IRQCHIP iowr::<kvm_irqchip>(0x62), "KVM_CAP_IRQCHIP", Vm(irqchip::ioctls::get);
    KVM_SET_IRQCHIP ior::<kvm_irqchip>(0x63), "KVM_CAP_IRQCHIP", Vm(irqchip::ioctls::set);
    KVM_CREATE_PIT io(0x64), "KVM_CAP_PIT", Vm(irqchip::ioctls::create_pit);
    KVM_GET_PIT iowr::<kvm_pit_state>(0x65), "KVM_CAP_PIT", Vm(irqchip::ioctls::get_pit);
    KVM_SET_PIT ior::<kvm_pit_state>(0x66), "KVM_CAP_PIT", Vm(irqchip::ioctls::set_pit);
    KVM_IRQ_LINE_STATUS iowr::<kvm_irq_level>(0x67), "KVM_CAP_IRQ_INJECT_STATUS", Vm(irqchip::ioctls::set_line_status);
    KVM_REGISTER_COALESCED_MMIO iow::<kvm_coalesced_mmio_zone>(0x67), "KVM_CAP_COALESCED_MMIO", Absent(Errno::ENOTTY, "writes are not gathered: each is an exit");
    KVM_UNREGISTER_COALESCED_MMIO iow::<kvm_coalesced_mmio_zone>(0x68), "KVM_CAP_COALESCED_MMIO", Absent(Errno::ENOTTY, "writes are not gathered: each is an exit");
    KVM_SET_GSI_ROUTING iow::<kvm_irq_routing>(0x6a), "KVM_CAP_IRQ_ROUTING", Vm(irqchip::routing::set);
    KVM_REINJECT_CONTROL io(0x71), "KVM_CAP_REINJECT_CONTROL", Vm(irqchip::ioctls::reinject_control);
    KVM_IRQFD iow::<kvm_irqfd>(0x76), "KVM_CAP_IRQFD", Absent(Errno::EINVAL, "interrupts come by KVM_IRQ_LINE and KVM_SIGNAL_MSI");
    KVM_CREATE_PIT2 iow::<kvm_pit_config>(0x77), "KVM_CAP_PIT2", Vm(irqchip::ioctls::create_pit2);
    KVM_SET_BOOT_CPU_ID io(0x78), "KVM_CAP_SET_BOOT_CPU_ID", Vm(options::set_boot_cpu_id);
    KVM_IOEVENTFD iow::<kvm_ioeventfd>(0x79), "KVM_CAP_IOEVENTFD", Vm(ioeventfd::ioeventfd);
    KVM_XEN_HVM_CONFIG iow::<kvm_xen_hvm_config>(0x7a), "KVM_CAP_XEN_HVM", Absent(Errno::ENOTTY, NO_XEN);
    KVM_SET_CLOCK iow::<kvm_clock_data>(0x7b), "KVM_CAP_ADJUST_CLOCK", Absent(Errno::ENOTTY, "no clock of KVM's in the guest");
    KVM_GET_CLOCK ior::<kvm_clock_data>(0x7c), "KVM_CAP_ADJUST_CLOCK", Absent(Errno::ENOTTY, "no clock of KVM's in the guest");
    KVM_GET_PIT2 ior::<kvm_pit_state2>(0x9f), "KVM_CAP_PIT_STATE2", Vm(irqchip::ioctls::get_pit2);
    KVM_SET_PIT2 iow::<kvm_pit_state2>(0xa0), "KVM_CAP_PIT_STATE2", Vm(irqchip::ioctls::set_pit2);
    KVM_SET_TSC_KHZ io(0xa2), "KVM_CAP_VM_TSC_CONTROL", Vm(options::set_tsc_khz);
    KVM_GET_TSC_KHZ io(0xa3), "KVM_CAP_GET_TSC_KHZ", Vm(options::get_tsc_khz);
    KVM_ENABLE_CAP iow::<kvm_enable_cap>(0xa3), "KVM_CAP_ENABLE_CAP_VM", Vm(create::enable_cap);
    KVM_SIGNAL_MSI iow::<kvm_msi>(0xa5), "KVM_CAP_SIGNAL_MSI", Vm(irqchip::ioctls::signal_msi);
    KVM_SET_PMU_EVENT_FILTER iow::<kvm_pmu_event_filter>(0xb2), "KVM_CAP_PMU_EVENT_FILTER", Absent(Errno::ENOTTY, "the counters of the model are not filtered");
    KVM_MEMORY_ENCRYPT_OP iowr::<u64>(0xba), "", Absent(Errno::ENOTTY, NO_ENCRYPTION);
    KVM_MEMORY_ENCRYPT_REG_REGION ior::<kvm_enc_region>(0xbb), "", Absent(Errno::ENOTTY, NO_ENCRYPTION);
    KVM_MEMORY_ENCRYPT_UNREG_REGION ior::<kvm_enc_region>(0xbc), "", Absent(Errno::ENOTTY, NO_ENCRYPTION);
    KVM_HYPERV_EVENTFD iow::<kvm_hyperv_eventfd>(0xbd), "KVM_CAP_HYPERV_EVENTFD", Absent(Errno::ENOTTY, "no Hyper-V interface");
    KVM_CLEAR_DIRTY_LOG iowr::<kvm_clear_dirty_log>(0xc0), "KVM_CAP_MANUAL_DIRTY_LOG_PROTECT2", Vm(memory::clear_dirty_log);
    KVM_X86_SET_MSR_FILTER iow::<kvm_msr_filter>(0xc6), "KVM_CAP_X86_MSR_FILTER", Vm(msr_filter::set);
    KVM_RESET_DIRTY_RINGS io(0xc7), "KVM_CAP_DIRTY_LOG_RING", Absent(Errno::EINVAL, "the dirty log is a bitmap");
    KVM_XEN_HVM_GET_ATTR iowr::<kvm_xen_hvm_attr>(0xc8), "KVM_CAP_XEN_HVM", Absent(Errno::ENOTTY, NO_XEN);
    KVM_XEN_HVM_SET_ATTR iow::<kvm_xen_hvm_attr>(0xc9), "KVM_CAP_XEN_HVM", Absent(Errno::ENOTTY, NO_XEN);
    KVM_GET_STATS_FD io(0xce), "KVM_CAP_BINARY_STATS_FD", Absent(Errno::ENOTTY, "no statistics are kept");
    KVM_SET_MEMORY_ATTRIBUTES iow::<kvm_memory_attributes>(0xd2), "KVM_CAP_MEMORY_ATTRIBUTES", Absent(Errno::ENOTTY, "no private memory");
    KVM_CREATE_GUEST_MEMFD iowr::<kvm_create_guest_memfd>(0xd4), "KVM_CAP_GUEST_MEMFD", Absent(Errno::ENOTTY, "no private memory");
    KVM_CREATE_DEVICE iowr::<kvm_create_device>(0xe0), "KVM_CAP_DEVICE_CTRL", Absent(Errno::ENODEV, "no device is made by itself (VFIO is the only one of x86)");
    KVM_SET_DEVICE_ATTR iow::<kvm_device_attr>(0xe1), "KVM_CAP_VM_ATTRIBUTES", Absent(Errno::ENOTTY, "no attributes are kept here");
    KVM_GET_DEVICE_ATTR iow::<kvm_device_attr>(0xe2), "KVM_CAP_VM_ATTRIBUTES", Absent(Errno::ENOTTY, "no attributes are kept here");
    KVM_HAS_DEVICE_ATTR iow::<kvm_device_attr>(0xe3), "KVM_CAP_VM_ATTRIBUTES", Absent(Errno::ENOTTY, "no attributes are kept here");
}
