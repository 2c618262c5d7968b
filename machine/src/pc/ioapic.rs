//! The I/O APIC (Intel "82093AA I/O Advanced Programmable Interrupt Controller"), with the EOI register
//! of version 0x20.
//!
//! It sends messages as on the bus (SDM Vol. 3A "Message Signalled Interrupts"). What a caller does with
//! them: [`IoApic::next_message`], send, [`IoApic::sent`].

/// Where its registers are.
pub const ADDRESS: u64 = 0xfec0_0000;
/// Bytes of its register page.
pub const SIZE: u64 = 0x1000;
/// Inputs.
pub const PINS: u8 = 24;

const VERSION: u32 = 0x20;
const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// Bits of an entry that software cannot write.
const READ_ONLY: u64 = REMOTE_IRR | DELIVERY_STATUS;
/// Bits that an entry has: destination, mask to vector.
const DEFINED: u64 = 0xff00_0000_0001_ffff;

/// A message for the local APICs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// The input that it is for.
    pub pin: u8,
    /// Address on the bus.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// Inputs and redirection table.
#[derive(Debug, Clone)]
pub struct IoApic {
    id: u32,
    selected: u8,
    entries: [u64; PINS as usize],
    lines: u32,
    /// Edges that wait to be sent.
    edges: u32,
    /// Levels that no local APIC took: they wait for something to change.
    refused: u32,
}

/// What an I/O APIC holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    /// Its id.
    pub id: u32,
    /// The register that the window shows.
    pub selected: u8,
    /// The redirection table.
    pub entries: [u64; PINS as usize],
    /// Levels of the inputs.
    pub lines: u32,
    /// Edges that wait to be sent.
    pub edges: u32,
}

impl Default for IoApic {
    fn default() -> Self {
        Self::new()
    }
}

impl IoApic {
    /// As after reset: all pins masked.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            id: 0,
            selected: 0,
            entries: [MASKED; PINS as usize],
            lines: 0,
            edges: 0,
            refused: 0,
        }
    }

    /// What it holds.
    #[must_use]
    pub const fn state(&self) -> State {
        State {
            id: self.id,
            selected: self.selected,
            entries: self.entries,
            lines: self.lines,
            edges: self.edges,
        }
    }

    /// Puts a state back. Levels that nobody took are tried again.
    pub fn set_state(&mut self, state: &State) {
        const INPUTS: u32 = (1 << PINS) - 1;
        *self = Self {
            id: state.id & 0xf,
            selected: state.selected,
            entries: state.entries.map(|entry| entry & DEFINED),
            lines: state.lines & INPUTS,
            edges: state.edges & INPUTS,
            refused: 0,
        };
    }

    /// The redirection entry of a pin.
    #[must_use]
    pub fn entry(&self, pin: u8) -> Option<u64> {
        self.entries.get(usize::from(pin)).copied()
    }

    /// Sets the level of an input. An edge at a masked pin is lost, as the manual says.
    pub fn set_line(&mut self, pin: u8, high: bool) {
        if pin >= PINS {
            return;
        }
        let bit = 1 << pin;
        let rises = high && self.lines & bit == 0;
        self.lines = if high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if rises {
            self.refused &= !bit;
            if self.entries[usize::from(pin)] & (MASKED | LEVEL) == 0 {
                self.edges |= bit;
            }
        }
    }

    /// Whether a request on the pin would be sent.
    #[must_use]
    pub fn is_unmasked(&self, pin: u8) -> bool {
        self.entries
            .get(usize::from(pin))
            .is_some_and(|entry| entry & MASKED == 0)
    }

    /// The next message to send, from the lowest pin.
    #[must_use]
    pub fn next_message(&self) -> Option<Message> {
        if self.edges | self.lines & !self.refused == 0 {
            return None;
        }
        let pin = (0..PINS).find(|pin| {
            let entry = self.entries[usize::from(*pin)];
            let level = self.lines & !self.refused;
            self.edges >> pin & 1 != 0
                || entry & LEVEL != 0 && entry & (MASKED | REMOTE_IRR) == 0 && level >> pin & 1 != 0
        })?;
        Some(message(pin, self.entries[usize::from(pin)]))
    }

    /// The message was sent, and a local APIC took it or not.
    pub fn sent(&mut self, message: &Message, taken: bool) {
        let bit = 1 << message.pin;
        if self.edges & bit != 0 {
            self.edges &= !bit;
        } else if taken {
            self.entries[usize::from(message.pin)] |= REMOTE_IRR;
        } else {
            self.refused |= bit;
        }
    }

    /// EOI of a vector, from a local APIC: a level that is still high asks again.
    pub fn end_of_interrupt(&mut self, vector: u8) {
        for entry in &mut self.entries {
            if *entry & LEVEL != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
            }
        }
    }

    /// Reads at an offset in the register page, up to four bytes' worth.
    #[must_use]
    pub fn read(&self, offset: u64) -> u32 {
        match offset & 0xff {
            0x00 => self.selected.into(),
            0x10 => self.register(),
            _ => 0,
        }
    }

    /// Writes at an offset in the register page.
    pub fn write(&mut self, offset: u64, value: u32) {
        match offset & 0xff {
            0x00 => self.selected = value as u8,
            0x10 => self.set_register(value),
            0x40 => self.end_of_interrupt(value as u8),
            _ => {}
        }
    }

    fn register(&self) -> u32 {
        match self.selected {
            // Identification, and the arbitration priority that follows it.
            0 | 2 => self.id << 24,
            1 => VERSION | u32::from(PINS - 1) << 16,
            0x10..0x40 => {
                let entry = self.entries[usize::from(self.selected - 0x10) / 2];
                (entry >> (32 * (self.selected & 1))) as u32
            }
            _ => u32::MAX,
        }
    }

    fn set_register(&mut self, value: u32) {
        match self.selected {
            0 => self.id = value >> 24 & 0xf,
            0x10..0x40 => {
                let pin = usize::from(self.selected - 0x10) / 2;
                let shift = 32 * (self.selected & 1);
                let old = self.entries[pin];
                let half = u64::from(u32::MAX) << shift;
                let new = old & !half | u64::from(value) << shift;
                let mut entry = new & DEFINED & !READ_ONLY | old & READ_ONLY;
                if entry & LEVEL == 0 {
                    // A pin that becomes edge-triggered forgets that a level is in service.
                    entry &= !REMOTE_IRR;
                }
                self.entries[pin] = entry;
                self.refused &= !(1 << pin);
            }
            _ => {}
        }
    }
}

/// Redirection entry to message: destination and its mode into the address; vector, delivery mode,
/// assertion and trigger mode into the data.
fn message(pin: u8, entry: u64) -> Message {
    let destination = entry >> 56;
    let logical = entry >> 11 & 1;
    Message {
        pin,
        address: 0xfee0_0000 | destination << 12 | logical << 2,
        data: (entry & 0x7ff) as u32 | 1 << 14 | (entry & LEVEL) as u32,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(apic: &mut IoApic, pin: u8, entry: u64) {
        for (half, value) in [(1, (entry >> 32) as u32), (0, entry as u32)] {
            apic.write(0, u32::from(0x10 + 2 * pin + half));
            apic.write(0x10, value);
        }
    }

    fn get(apic: &mut IoApic, register: u32) -> u32 {
        apic.write(0, register);
        apic.read(0x10)
    }

    fn send(apic: &mut IoApic) -> Option<Message> {
        let message = apic.next_message()?;
        apic.sent(&message, true);
        Some(message)
    }

    #[test]
    fn a_state_put_back_goes_on() {
        let mut apic = IoApic::new();
        set(&mut apic, 3, 0x30);
        set(&mut apic, 5, LEVEL | 0x50);
        apic.set_line(3, true);
        apic.set_line(5, true);
        let mut other = IoApic::new();
        other.set_state(&apic.state());
        assert_eq!(other.state(), apic.state());
        for _ in 0..3 {
            assert_eq!(send(&mut other), send(&mut apic));
        }
    }

    #[test]
    fn registers() {
        let mut apic = IoApic::new();
        assert_eq!(get(&mut apic, 1), 0x0017_0020);
        apic.write(0x10, 0);
        assert_eq!(get(&mut apic, 1), 0x0017_0020, "read only");
        assert_eq!(get(&mut apic, 0x10), 0x10000, "masked after reset");
        apic.write(0, 0);
        apic.write(0x10, 0xff00_0000);
        assert_eq!(get(&mut apic, 0), 0x0f00_0000);
        assert_eq!(get(&mut apic, 2), 0x0f00_0000);
        set(&mut apic, 23, u64::MAX);
        assert_eq!(get(&mut apic, 0x3e), 0x0001_afff);
        assert_eq!(get(&mut apic, 0x3f), 0xff00_0000);
        assert_eq!(get(&mut apic, 0x40), u32::MAX);
        assert_eq!(apic.read(0), 0x40);
    }

    #[test]
    fn entry_to_message() {
        let cases = [
            (0x0100_0000_0000_0030, 0xfee0_1000, 0x4030),
            (0x0300_0000_0000_0931, 0xfee0_3004, 0x4131), // logical, lowest priority
            (0xff00_0000_0000_8032, 0xfeef_f000, 0xc032), // level
            (0, 0xfee0_0000, 0x4000),
        ];
        for (entry, address, data) in cases {
            let pin = 4;
            assert_eq!(
                message(pin, entry),
                Message { pin, address, data },
                "{entry:#x}"
            );
        }
    }

    #[test]
    fn an_edge_is_one_message_and_lost_while_masked() {
        let mut apic = IoApic::new();
        set(&mut apic, 14, MASKED | 0x81);
        apic.set_line(14, true);
        apic.set_line(14, false);
        assert!(!apic.is_unmasked(14));
        set(&mut apic, 14, 0x81);
        assert!(apic.is_unmasked(14));
        assert_eq!(send(&mut apic), None);
        apic.set_line(14, true);
        apic.set_line(14, true);
        assert_eq!(send(&mut apic).map(|m| m.data), Some(0x4081));
        assert_eq!(send(&mut apic), None);
    }

    #[test]
    fn a_level_waits_for_its_eoi() {
        let mut apic = IoApic::new();
        set(&mut apic, 14, LEVEL | 0x82);
        apic.set_line(14, true);
        assert_eq!(send(&mut apic).map(|m| m.data), Some(0xc082));
        assert_eq!(get(&mut apic, 0x10 + 28) & REMOTE_IRR as u32, 1 << 14);
        assert_eq!(send(&mut apic), None);
        apic.end_of_interrupt(0x83);
        assert_eq!(send(&mut apic), None, "another vector");
        apic.end_of_interrupt(0x82);
        assert!(send(&mut apic).is_some(), "still high");
        apic.set_line(14, false);
        apic.write(0x40, 0x82);
        assert_eq!(send(&mut apic), None);
        assert_eq!(get(&mut apic, 0x10 + 28) & REMOTE_IRR as u32, 0);
    }

    #[test]
    fn a_masked_level_is_sent_when_it_is_unmasked() {
        let mut apic = IoApic::new();
        set(&mut apic, 5, LEVEL | MASKED | 0x60);
        apic.set_line(5, true);
        assert_eq!(send(&mut apic), None);
        set(&mut apic, 5, LEVEL | 0x60);
        assert!(send(&mut apic).is_some());
    }

    #[test]
    fn becoming_edge_triggered_clears_remote_irr() {
        let mut apic = IoApic::new();
        set(&mut apic, 5, LEVEL | 0x60);
        apic.set_line(5, true);
        assert!(send(&mut apic).is_some());
        set(&mut apic, 5, MASKED | 0x60);
        set(&mut apic, 5, MASKED | LEVEL | 0x60);
        assert_eq!(get(&mut apic, 0x1a) & REMOTE_IRR as u32, 0);
    }

    #[test]
    fn a_refused_level_is_not_sent_again_at_once() {
        let mut apic = IoApic::new();
        set(&mut apic, 5, LEVEL | 0x60);
        apic.set_line(5, true);
        let message = apic.next_message().expect("high");
        apic.sent(&message, false);
        assert_eq!(apic.next_message(), None);
        set(&mut apic, 5, LEVEL | 0x61);
        assert!(apic.next_message().is_some());
    }

    #[test]
    fn pins_beyond_the_last_are_nothing() {
        let mut apic = IoApic::new();
        apic.set_line(24, true);
        apic.set_line(255, true);
        assert!(!apic.is_unmasked(24));
        assert_eq!(apic.next_message(), None);
    }
}
