//! PIC, I/O APIC and PIT of a VM, and who holds which of their inputs high.

use super::{Delivered, Source};
use nvmx_machine::pc::ioapic::{self, IoApic};
use nvmx_machine::pc::pic::Pic;
use nvmx_machine::pc::pit::Pit;

/// `IOAPIC_MEM_LENGTH`.
pub const IOAPIC_SIZE: u64 = 0x100;
/// Inputs of both PICs.
const PIC_PINS: usize = 16;
const SYSTEM_CONTROL_B: u16 = 0x61;

/// The devices.
#[derive(Debug)]
pub struct Chips {
    /// Both 8259s.
    pub pic: Pic,
    /// The I/O APIC.
    pub ioapic: IoApic,
    /// The timer, once KVM_CREATE_PIT2 made it.
    pub pit: Option<Pit>,
    /// The PIT has port 0x61, too: KVM_PIT_SPEAKER_DUMMY.
    pub has_speaker: bool,
    /// `flags` of KVM_SET_PIT2.
    pub pit_flags: u32,
    /// The PIC's output as vCPU 0 has it.
    pub output: bool,
    pic_levels: [u8; PIC_PINS],
    ioapic_levels: [u8; ioapic::PINS as usize],
}

impl Default for Chips {
    fn default() -> Self {
        let mut pic = Pic::new();
        // As after power-up: no vectors, nothing masked.
        let mut state = pic.state().clone();
        for chip in &mut state {
            (chip.base, chip.imr) = (0, 0);
        }
        pic.set_state(state);
        Self {
            pic,
            ioapic: IoApic::new(),
            pit: None,
            has_speaker: false,
            pit_flags: 0,
            output: false,
            pic_levels: [0; PIC_PINS],
            ioapic_levels: [0; ioapic::PINS as usize],
        }
    }
}

/// Notes who holds a line; answers its level.
fn hold(levels: &mut u8, source: Source, high: bool) -> bool {
    let bit = 1 << source as u8;
    *levels = *levels & !bit | if high { bit } else { 0 };
    *levels != 0
}

impl Chips {
    /// Sets an input of the PIC.
    pub fn set_pic(&mut self, source: Source, pin: u8, high: bool) -> Delivered {
        let Some(levels) = self.pic_levels.get_mut(usize::from(pin)) else {
            return -1;
        };
        let level = hold(levels, source, high);
        self.pic.set_line(pin, level);
        if level && !self.pic.is_unmasked(pin) {
            -1
        } else {
            1
        }
    }

    /// Sets an input of the I/O APIC.
    pub fn set_ioapic(&mut self, source: Source, pin: u8, high: bool) -> Delivered {
        let Some(levels) = self.ioapic_levels.get_mut(usize::from(pin)) else {
            return -1;
        };
        let level = hold(levels, source, high);
        self.ioapic.set_line(pin, level);
        if level && !self.ioapic.is_unmasked(pin) {
            -1
        } else {
            1
        }
    }

    /// Whether a port is one of these devices'.
    #[must_use]
    pub fn has_port(&self, port: u16) -> bool {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 | 0x4d0 | 0x4d1 => true,
            0x40..=0x43 => self.pit.is_some(),
            SYSTEM_CONTROL_B => self.pit.is_some() && self.has_speaker,
            _ => false,
        }
    }

    /// Reads a byte.
    pub fn read_port(&mut self, now: u64, port: u16) -> u8 {
        match (port, &mut self.pit) {
            (0x20 | 0x21 | 0xa0 | 0xa1, _) => self.pic.read(port),
            (0x4d0 | 0x4d1, _) => self.pic.read_trigger_mode(port),
            (0x40..=0x43, Some(pit)) => pit.read(now, port),
            (SYSTEM_CONTROL_B, Some(pit)) => pit.read_port_61(now),
            _ => 0xff,
        }
    }

    /// Writes a byte.
    pub fn write_port(&mut self, now: u64, port: u16, value: u8) {
        match (port, &mut self.pit) {
            (0x20 | 0x21 | 0xa0 | 0xa1, _) => self.pic.write(port, value),
            (0x4d0 | 0x4d1, _) => self.pic.write_trigger_mode(port, value),
            (0x40..=0x43, Some(pit)) => pit.write(now, port, value),
            (SYSTEM_CONTROL_B, Some(pit)) => pit.write_port_61(now, value),
            _ => {}
        }
    }
}
