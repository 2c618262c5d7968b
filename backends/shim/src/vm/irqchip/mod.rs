//! Interrupt controllers and timer in the kernel: none, the local APICs alone (split), or PIC, I/O APIC and PIT too
//! (arch/x86/kvm/i8259.c, ioapic.c, i8254.c, irq_comm.c). The devices are those of `nvmx-machine`'s PC.

pub mod chips;
pub mod convert;
pub mod ioctls;
pub mod routing;

use crate::vm::VmState;
use chips::Chips;
use nvmx_core::vcpu::{Exit, Vm as _};
use nvmx_machine::pc::ioapic;
use routing::{Routes, Target};

/// What of a PC's interrupt controllers the kernel has.
#[derive(Debug, Default)]
pub enum Irqchip {
    /// None: the caller's.
    #[default]
    None,
    /// Local APICs; the caller has the others.
    Split,
    /// All.
    Whole(Box<Chips>),
}

/// Who drives a line; it is high while anybody holds it high.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// KVM_IRQ_LINE.
    Caller = 0,
    /// The PIT.
    Timer = 1,
}

/// What became of a change of a line: negative where nobody heard of it.
pub type Delivered = i32;

impl VmState {
    /// Sets the level of an interrupt line by its number in the routing table (`kvm_set_irq`).
    pub fn set_gsi(&mut self, source: Source, gsi: u32, high: bool) -> Delivered {
        let mut delivered = -1;
        for index in 0.. {
            let Some(target) = self.routes.nth(gsi, index) else {
                break;
            };
            let one = match target {
                Target::Msi { address, data } if high => self.send(address, data).into(),
                Target::Msi { .. } => -1,
                Target::Pic(pin) => self.with_chips(|chips| chips.set_pic(source, pin, high)),
                Target::IoApic(pin) => self.with_chips(|chips| chips.set_ioapic(source, pin, high)),
            };
            if one >= 0 {
                delivered = one + delivered.max(0);
            }
        }
        self.settle_interrupts();
        delivered
    }

    fn with_chips(&mut self, act: impl FnOnce(&mut Chips) -> Delivered) -> Delivered {
        match &mut self.irqchip {
            Irqchip::Whole(chips) => act(chips),
            _ => -1,
        }
    }

    /// A message for the local APICs; whether one took it.
    pub fn send(&mut self, address: u64, data: u32) -> bool {
        self.soft.0.signal_msi(address, data).unwrap_or(false)
    }

    /// Hands on what the chips have for the processors: messages of the I/O APIC, the PIC's output.
    pub fn settle_interrupts(&mut self) {
        let soft = &mut self.soft.0;
        let Irqchip::Whole(chips) = &mut self.irqchip else {
            return;
        };
        while let Some(message) = chips.ioapic.next_message() {
            let taken = soft
                .signal_msi(message.address, message.data)
                .unwrap_or(false);
            chips.ioapic.sent(&message, taken);
        }
        let output = chips.pic.output();
        if !self.vcpus.is_empty() && chips.output != output {
            chips.output = output;
            // It cannot fail on this backend.
            let _ = soft.vcpu(0).set_interrupt_line(output);
        }
    }

    /// Lets the PIT's time pass up to the guest's; answers when it next has something to say.
    pub fn tick_devices(&mut self) -> Option<u64> {
        if self.vcpus.is_empty() {
            return None;
        }
        let now = self.soft.0.now()?;
        let Irqchip::Whole(chips) = &mut self.irqchip else {
            return None;
        };
        let pit = chips.pit.as_mut()?;
        pit.advance(now);
        let rose = pit.take_edge();
        let deadline = pit.deadline();
        if rose {
            // KVM's timer pulses (`pit_do_work`).
            self.set_gsi(Source::Timer, 0, true);
            self.set_gsi(Source::Timer, 0, false);
        }
        deadline
    }

    /// Answers an exit that is the devices' own; `false` if it is the caller's.
    pub fn device_exit(&mut self, index: usize, exit: &Exit) -> bool {
        if self.vcpus.is_empty() {
            return false;
        }
        let now = self.soft.0.now().unwrap_or(0);
        let soft = &mut self.soft.0;
        let Irqchip::Whole(chips) = &mut self.irqchip else {
            return false;
        };
        let is_ioapic = |address: u64| address.wrapping_sub(ioapic::ADDRESS) < chips::IOAPIC_SIZE;
        match *exit {
            Exit::IoOut { port, size, value } if chips.has_port(port) => {
                for (offset, byte) in (0..).zip(&value.to_le_bytes()[..usize::from(size.min(4))]) {
                    chips.write_port(now, port.wrapping_add(offset), *byte);
                }
            }
            Exit::IoIn { port, size } if chips.has_port(port) => {
                let value = (0..size.min(4)).fold(0, |value, offset| {
                    let byte = chips.read_port(now, port.wrapping_add(offset.into()));
                    value | u64::from(byte) << (8 * offset)
                });
                let _ = soft.vcpu(index).complete_read(value);
            }
            Exit::MmioRead { address, .. } if is_ioapic(address.0) => {
                let value = chips.ioapic.read(address.0 - ioapic::ADDRESS);
                let _ = soft.vcpu(index).complete_read(value.into());
            }
            Exit::MmioWrite { address, value, .. } if is_ioapic(address.0) => {
                chips
                    .ioapic
                    .write(address.0 - ioapic::ADDRESS, value as u32);
            }
            Exit::InterruptWindow => {
                let vector = chips.pic.acknowledge();
                let _ = soft.vcpu(index).acknowledge_interrupt(vector);
            }
            Exit::IoApicEoi { vector } => chips.ioapic.end_of_interrupt(vector),
            _ => return false,
        }
        self.settle_interrupts();
        true
    }
}

impl Routes {
    /// The `index`-th target of a line.
    fn nth(&self, gsi: u32, index: usize) -> Option<Target> {
        self.of(gsi).nth(index)
    }
}
