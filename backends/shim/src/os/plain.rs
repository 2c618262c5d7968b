//! [`Plain`]: structures that go to and from the caller byte by byte.

use kvm_bindings::*;

/// Plain data: any bytes are a value of it, and it holds no pointer of ours.
///
/// # Safety
/// Holds for integers and for C structures and unions made of such.
pub unsafe trait Plain: Copy + 'static {
    /// All bytes zero.
    #[must_use]
    fn zeroed() -> Self {
        // SAFETY: any bytes are a value, as the trait demands.
        unsafe { std::mem::zeroed() }
    }
}

macro_rules! plain {
    ($($name:ty),* $(,)?) => {
        $(
            // SAFETY: an integer or a structure of the kernel's interface, all of plain integers.
            unsafe impl Plain for $name {}
        )*
    };
}

plain!(u8, i8, u16, u32, i32, u64, i64);
plain!(
    kvm_clock_data,
    kvm_clear_dirty_log,
    kvm_coalesced_mmio_zone,
    kvm_cpuid_entry2,
    kvm_create_device,
    kvm_debugregs,
    kvm_device_attr,
    kvm_dirty_log,
    kvm_enable_cap,
    kvm_fpu,
    kvm_guest_debug,
    kvm_interrupt,
    kvm_ioeventfd,
    kvm_irq_level,
    kvm_irq_routing_entry,
    kvm_irqchip,
    kvm_irqfd,
    kvm_lapic_state,
    kvm_mp_state,
    kvm_msi,
    kvm_msr_entry,
    kvm_msr_filter,
    kvm_pic_state,
    kvm_pit_config,
    kvm_pit_state,
    kvm_pit_state2,
    kvm_regs,
    kvm_run,
    kvm_sregs,
    kvm_sregs2,
    kvm_sync_regs,
    kvm_tpr_access_ctl,
    kvm_translation,
    kvm_userspace_memory_region,
    kvm_userspace_memory_region2,
    kvm_vapic_addr,
    kvm_vcpu_events,
    kvm_x86_mce,
    kvm_xcrs,
);

// SAFETY: an array of plain data is plain data.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}
