//! Which interrupt line is what: KVM_SET_GSI_ROUTING (virt/kvm/irqchip.c, arch/x86/kvm/irq_comm.c).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vm::VmContext;
use crate::vm::irqchip::Irqchip;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE,
};
use nvmx_machine::pc::ioapic;

/// `KVM_MAX_IRQ_ROUTES`.
pub const MOST: u32 = 4096;
/// Pins of one PIC.
const PIC_PINS: u32 = 8;

/// Where a line leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// An input of the PICs, 0 to 15.
    Pic(u8),
    /// An input of the I/O APIC.
    IoApic(u8),
    /// A message.
    Msi {
        /// On the bus.
        address: u64,
        /// On the bus.
        data: u32,
    },
}

/// The table.
#[derive(Debug, Clone, Default)]
pub struct Routes(Vec<(u32, Target)>);

impl Routes {
    /// As KVM_CREATE_IRQCHIP makes it: lines 0 to 15 to both controllers, 16 to 23 to the I/O APIC.
    #[must_use]
    pub fn of_a_pc() -> Self {
        let ioapic = (0..ioapic::PINS).map(|pin| (pin.into(), Target::IoApic(pin)));
        let pic = (0..16).map(|pin| (pin.into(), Target::Pic(pin)));
        Self(ioapic.chain(pic).collect())
    }

    /// Where a line leads.
    pub fn of(&self, gsi: u32) -> impl Iterator<Item = Target> + '_ {
        let is_it = move |(number, _): &&(u32, Target)| *number == gsi;
        self.0.iter().filter(is_it).map(|(_, target)| *target)
    }
}

/// `struct kvm_irq_routing_entry`: gsi, type, flags, padding; chip and pin, or address, the rest of it, data.
type Entry = [u32; 12];

fn target(entry: &Entry, has_chips: bool) -> Option<Target> {
    let [_, kind, _, _, first, second, third, ..] = *entry;
    match kind {
        KVM_IRQ_ROUTING_IRQCHIP if has_chips => match first {
            KVM_IRQCHIP_PIC_MASTER if second < PIC_PINS => Some(Target::Pic(second as u8)),
            KVM_IRQCHIP_PIC_SLAVE if second < PIC_PINS => {
                Some(Target::Pic((second + PIC_PINS) as u8))
            }
            KVM_IRQCHIP_IOAPIC if second < ioapic::PINS.into() => {
                Some(Target::IoApic(second as u8))
            }
            _ => None,
        },
        KVM_IRQ_ROUTING_MSI => Some(Target::Msi {
            address: u64::from(first) | u64::from(second) << 32,
            data: third,
        }),
        _ => None,
    }
}

/// KVM_SET_GSI_ROUTING. A line leads to each controller once at the most.
pub fn set(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    const ENTRIES: u64 = 8;
    let [count, flags]: [u32; 2] = user.read(argument)?;
    let has_chips = match context.vm.irqchip {
        Irqchip::None => return Err(Errno::EINVAL),
        Irqchip::Split => false,
        Irqchip::Whole(_) => true,
    };
    if count > MOST || flags != 0 {
        return Err(Errno::EINVAL);
    }
    let entries: Vec<Entry> = user.read_all(argument.wrapping_add(ENTRIES), count as usize)?;
    let mut routes: Vec<(u32, Target)> = Vec::with_capacity(entries.len());
    for entry in &entries {
        let [gsi, _, flags, ..] = *entry;
        if flags != 0 || gsi >= MOST {
            return Err(Errno::EINVAL);
        }
        let target = target(entry, has_chips).ok_or(Errno::EINVAL)?;
        let clashes = |(number, other): &(u32, Target)| {
            let is_message = |target: &Target| matches!(target, Target::Msi { .. });
            *number == gsi
                && (is_message(other) || is_message(&target) || chip(other) == chip(&target))
        };
        if routes.iter().any(clashes) {
            return Err(Errno::EINVAL);
        }
        routes.push((gsi, target));
    }
    context.vm.routes = Routes(routes);
    Ok(0)
}

/// Which of the three controllers; both PICs count.
fn chip(target: &Target) -> u8 {
    match target {
        Target::Pic(pin) => pin / 8,
        Target::IoApic(_) => 2,
        Target::Msi { .. } => 3,
    }
}
