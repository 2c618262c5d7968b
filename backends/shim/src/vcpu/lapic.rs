//! KVM_GET_LAPIC and KVM_SET_LAPIC (arch/x86/kvm/lapic.c).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::kvm_lapic_state;
use nvmx_abi::areas::{self, LAPIC_SIZE};
use nvmx_core::x86::CpuState;

/// Offset of the id register.
const ID: usize = 0x20;

/// KVM_GET_LAPIC.
pub fn get(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    require(context)?;
    let mut page = context.model().lapic_page();
    if context.model().is_x2apic() && context.vm.options.x2apic_ids_are_32_bit {
        put_id(&mut page, |id| id >> 24);
    }
    let kernel = areas::kernel_lapic(&page).ok_or(Errno::EIO)?;
    user.write(argument, &kernel)?;
    Ok(0)
}

/// KVM_SET_LAPIC. In x2APIC mode with 32-bit ids it must be the vCPU's (`kvm_apic_state_fixup`).
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    require(context)?;
    let kernel: kvm_lapic_state = user.read(argument)?;
    let mut page = areas::lapic(&kernel);
    if context.model().is_x2apic() {
        let wide = context.vm.options.x2apic_ids_are_32_bit;
        if wide && id(&page) != context.record().id {
            return Err(Errno::EINVAL);
        }
        // The id of this mode is read-only.
        let own = context.record().id;
        put_id(&mut page, |_| own << 24);
    }
    context.set_state(&CpuState {
        lapic: Some(page),
        ..CpuState::default()
    })?;
    Ok(0)
}

fn require(context: &mut VcpuContext<'_>) -> Result<(), Errno> {
    if context.vm.has_local_apic() {
        Ok(())
    } else {
        Err(Errno::EINVAL)
    }
}

fn id(page: &[u8]) -> u32 {
    page.get(ID..)
        .and_then(|bytes| bytes.first_chunk())
        .map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

fn put_id(page: &mut [u8], change: impl Fn(u32) -> u32) {
    debug_assert_eq!(page.len(), LAPIC_SIZE);
    let changed = change(id(page)).to_le_bytes();
    if let Some(bytes) = page.get_mut(ID..ID + 4) {
        bytes.copy_from_slice(&changed);
    }
}
