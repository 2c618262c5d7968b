//! KVM_CREATE_IRQCHIP, KVM_IRQ_LINE, KVM_{GET,SET}_IRQCHIP, KVM_CREATE_PIT2 and its kin, KVM_SIGNAL_MSI,
//! KVM_CAP_SPLIT_IRQCHIP (arch/x86/kvm/x86.c: kvm_arch_vm_ioctl).

use super::chips::Chips;
use super::convert;
use super::routing::Routes;
use super::{Irqchip, Source};
use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vm::VmContext;
use kvm_bindings::*;
use nvmx_core::vcpu::Vm as _;
use nvmx_machine::pc::pit::Pit;

/// KVM_CREATE_IRQCHIP, before there is a vCPU.
pub fn create(context: &mut VmContext<'_>, _: User, _: u64) -> Answer {
    if !matches!(context.vm.irqchip, Irqchip::None) {
        return Err(Errno::EEXIST);
    }
    if !context.vm.vcpus.is_empty() {
        return Err(Errno::EINVAL);
    }
    context.vm.irqchip = Irqchip::Whole(Box::default());
    context.vm.routes = Routes::of_a_pc();
    Ok(0)
}

/// KVM_CAP_SPLIT_IRQCHIP: so many pins are the caller's I/O APICs'.
pub fn split(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    /// `MAX_NR_RESERVED_IOAPIC_PINS`.
    const MOST: u64 = super::routing::MOST as u64;
    if request.args[0] > MOST {
        return Err(Errno::EINVAL);
    }
    let is_there = !matches!(context.vm.irqchip, Irqchip::None);
    if is_there || !context.vm.vcpus.is_empty() {
        return Err(Errno::EEXIST);
    }
    context.vm.irqchip = Irqchip::Split;
    Ok(0)
}

fn chips<'a>(context: &'a mut VmContext<'_>, errno: Errno) -> Result<&'a mut Chips, Errno> {
    match &mut context.vm.irqchip {
        Irqchip::Whole(chips) => Ok(chips),
        _ => Err(errno),
    }
}

/// `struct kvm_irq_level`: the line, or what became of it; the level.
fn line(context: &mut VmContext<'_>, [gsi, level]: [u32; 2]) -> Result<i32, Errno> {
    if matches!(context.vm.irqchip, Irqchip::None) {
        return Err(Errno::ENXIO);
    }
    Ok(context.vm.set_gsi(Source::Caller, gsi, level != 0))
}

/// KVM_IRQ_LINE.
pub fn set_line(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    line(context, user.read(argument)?)?;
    Ok(0)
}

/// KVM_IRQ_LINE_STATUS.
pub fn set_line_status(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let status = line(context, user.read(argument)?)?;
    user.write(argument, &status)?;
    Ok(0)
}

/// Offset of the chip's state in `struct kvm_irqchip`.
const STATE: u64 = 8;

/// `struct kvm_irqchip` can be read; which chip it is about.
fn chip_id(user: User, argument: u64) -> Result<u32, Errno> {
    let whole: [u32; 130] = user.read(argument)?;
    Ok(whole[0])
}

/// KVM_GET_IRQCHIP.
pub fn get(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let chip = chip_id(user, argument)?;
    let chips = chips(context, Errno::ENXIO)?;
    let place = argument.wrapping_add(STATE);
    match chip {
        KVM_IRQCHIP_PIC_MASTER => user.write(place, &convert::pic(chips, 0))?,
        KVM_IRQCHIP_PIC_SLAVE => user.write(place, &convert::pic(chips, 1))?,
        KVM_IRQCHIP_IOAPIC => user.write(place, &convert::ioapic(chips))?,
        _ => return Err(Errno::EINVAL),
    }
    Ok(0)
}

/// KVM_SET_IRQCHIP.
pub fn set(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let chip = chip_id(user, argument)?;
    let place = argument.wrapping_add(STATE);
    let chips = chips(context, Errno::ENXIO)?;
    match chip {
        KVM_IRQCHIP_PIC_MASTER => convert::set_pic(chips, 0, &user.read(place)?),
        KVM_IRQCHIP_PIC_SLAVE => convert::set_pic(chips, 1, &user.read(place)?),
        KVM_IRQCHIP_IOAPIC => convert::set_ioapic(chips, &user.read(place)?),
        _ => return Err(Errno::EINVAL),
    }
    context.vm.settle_interrupts();
    Ok(0)
}

fn create_pit_with(context: &mut VmContext<'_>, flags: u32) -> Answer {
    match &mut context.vm.irqchip {
        Irqchip::Whole(chips) if chips.pit.is_some() => Err(Errno::EEXIST),
        Irqchip::Whole(chips) => {
            chips.pit = Some(Pit::idle());
            chips.has_speaker = flags & KVM_PIT_SPEAKER_DUMMY != 0;
            Ok(0)
        }
        _ => Err(Errno::ENOENT),
    }
}

/// KVM_CREATE_PIT.
pub fn create_pit(context: &mut VmContext<'_>, _: User, _: u64) -> Answer {
    create_pit_with(context, KVM_PIT_SPEAKER_DUMMY)
}

/// KVM_CREATE_PIT2.
pub fn create_pit2(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let config: kvm_pit_config = user.read(argument)?;
    create_pit_with(context, config.flags)
}

/// KVM_GET_PIT and KVM_GET_PIT2, whose argument begins with the other's.
fn pit_state(context: &mut VmContext<'_>) -> Result<kvm_pit_state2, Errno> {
    let chips = chips(context, Errno::ENXIO)?;
    let flags = chips.pit_flags;
    let pit = chips.pit.as_ref().ok_or(Errno::ENXIO)?;
    let speaker = if pit.state().1 {
        KVM_PIT_FLAGS_SPEAKER_DATA_ON
    } else {
        0
    };
    Ok(kvm_pit_state2 {
        channels: convert::pit(pit),
        flags: flags & !KVM_PIT_FLAGS_SPEAKER_DATA_ON | speaker,
        ..Default::default()
    })
}

/// KVM_GET_PIT.
pub fn get_pit(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let channels = pit_state(context)?.channels;
    user.write(argument, &kvm_pit_state { channels })?;
    Ok(0)
}

/// KVM_GET_PIT2.
pub fn get_pit2(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let state = pit_state(context)?;
    user.write(argument, &state)?;
    Ok(0)
}

fn put_pit(
    context: &mut VmContext<'_>,
    channels: &[kvm_pit_channel_state; 3],
    flags: Option<u32>,
) -> Answer {
    // Before there is a vCPU no time has passed.
    let has_time = !context.vm.vcpus.is_empty();
    let now = if has_time {
        context.vm.soft.0.now()
    } else {
        None
    };
    let chips = chips(context, Errno::ENXIO)?;
    let pit = chips.pit.as_mut().ok_or(Errno::ENXIO)?;
    let speaker = flags.map_or(pit.state().1, |flags| {
        flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON != 0
    });
    convert::set_pit(pit, now.unwrap_or(0), channels, speaker);
    if let Some(flags) = flags {
        chips.pit_flags = flags;
    }
    Ok(0)
}

/// KVM_SET_PIT.
pub fn set_pit(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let state: kvm_pit_state = user.read(argument)?;
    put_pit(context, &state.channels, None)
}

/// KVM_SET_PIT2.
pub fn set_pit2(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let state: kvm_pit_state2 = user.read(argument)?;
    put_pit(context, &state.channels, Some(state.flags))
}

/// KVM_REINJECT_CONTROL: ticks are never late here, so that there is nothing to make up for.
pub fn reinject_control(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    user.read::<[u8; 32]>(argument)?;
    let chips = chips(context, Errno::ENXIO)?;
    if chips.pit.is_none() {
        return Err(Errno::ENXIO);
    }
    Ok(0)
}

/// KVM_SIGNAL_MSI: whether a local APIC took it.
pub fn signal_msi(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let message: kvm_msi = user.read(argument)?;
    if matches!(context.vm.irqchip, Irqchip::None) || message.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let address = u64::from(message.address_lo) | u64::from(message.address_hi) << 32;
    let taken = context.vm.send(address, message.data);
    if taken { Ok(1) } else { Err(Errno::EPERM) }
}
