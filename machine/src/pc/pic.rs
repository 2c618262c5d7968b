//! The pair of 8259A interrupt controllers (Intel "8259A Programmable Interrupt Controller").
//!
//! As KVM and QEMU have it, a request that arrived by an edge stays until it is acknowledged, even if
//! its line falls before. Which lines are level-triggered is in the edge/level registers (PIIX "ELCR").

/// Line of the master that the slave's output drives.
const CASCADE: u8 = 2;
/// Lines whose trigger mode may be changed: not 0, 1, 2 on the master, not 8 and 13 on the slave.
const ELCR_WRITABLE: [u8; 2] = [0xf8, 0xde];
/// What a chip answers when its request is gone at the acknowledge cycle.
const SPURIOUS: u8 = 7;

/// What the next write to the odd port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Expects {
    /// OCW1, the mask.
    #[default]
    Mask,
    /// The vector of line 0.
    Icw2,
    /// Where the other chip is.
    Icw3,
    /// Modes.
    Icw4,
}

/// State of one of the two.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Chip {
    /// Levels of the inputs.
    pub lines: u8,
    /// Requests.
    pub irr: u8,
    /// In service.
    pub isr: u8,
    /// Masked.
    pub imr: u8,
    /// Level-triggered.
    pub elcr: u8,
    /// Vector of line 0.
    pub base: u8,
    /// What the next write to the odd port is.
    pub expects: Expects,
    /// The initialisation has a fourth word.
    pub needs_icw4: bool,
    /// It has no third.
    pub single: bool,
    /// The acknowledge cycle ends the interrupt.
    pub auto_eoi: bool,
    /// And rotates the priorities.
    pub rotates_on_auto_eoi: bool,
    /// Masked lines in service do not hold others back.
    pub special_mask: bool,
    /// The slave may interrupt itself.
    pub special_fully_nested: bool,
    /// The line with the highest priority.
    pub first: u8,
    /// The even port reads ISR.
    pub reads_isr: bool,
    /// The next read is a poll.
    pub polled: bool,
}

/// Lines whose trigger mode may be changed, of the master and of the slave.
pub const TRIGGER_MODES: [u8; 2] = ELCR_WRITABLE;

impl Chip {
    fn set_line(&mut self, line: u8, high: bool) {
        let bit = 1 << line;
        let rises = high && self.lines & bit == 0;
        self.lines = if high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        if rises || self.elcr & bit != 0 {
            self.irr = if high {
                self.irr | bit
            } else {
                self.irr & !bit
            };
        }
    }

    /// Lines from the highest priority to the lowest.
    fn by_priority(&self) -> impl Iterator<Item = u8> + use<> {
        let first = self.first;
        (0..8).map(move |step| (first + step) & 7)
    }

    /// In-service levels that hold others back, or that an unspecific EOI ends.
    fn blocking(&self) -> u8 {
        if self.special_mask {
            self.isr & !self.imr
        } else {
            self.isr
        }
    }

    /// The line that asks for an interrupt now.
    fn pending(&self) -> Option<u8> {
        let requests = self.irr & !self.imr;
        if requests == 0 {
            return None;
        }
        let mut blocking = self.blocking();
        if self.special_fully_nested {
            // The slave may interrupt itself with a higher priority.
            blocking &= !(1 << CASCADE);
        }
        self.by_priority()
            .find(|line| (requests | blocking) >> line & 1 != 0)
            .filter(|line| blocking >> line & 1 == 0)
    }

    /// The chip's part of an acknowledge cycle.
    fn acknowledge(&mut self) -> Option<u8> {
        let line = self.pending()?;
        let bit = 1 << line;
        if self.elcr & bit == 0 {
            self.irr &= !bit;
        }
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotates_on_auto_eoi {
            self.first = (line + 1) & 7;
        }
        Some(line)
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.initialise(value);
        } else if value & 8 != 0 {
            // OCW3
            self.polled = value & 4 != 0;
            if value & 2 != 0 {
                self.reads_isr = value & 1 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.end_of_interrupt(value);
        }
    }

    /// ICW1. The edge sense is cleared; a level that is still high asks again.
    fn initialise(&mut self, icw1: u8) {
        *self = Self {
            lines: self.lines,
            irr: self.lines & self.elcr,
            elcr: self.elcr,
            base: self.base,
            expects: Expects::Icw2,
            needs_icw4: icw1 & 1 != 0,
            single: icw1 & 2 != 0,
            ..Self::default()
        };
    }

    /// OCW2: rotation, EOI, or both.
    fn end_of_interrupt(&mut self, value: u8) {
        let named = value & 7;
        let (rotates, specific, ends) = (value & 0x80 != 0, value & 0x40 != 0, value & 0x20 != 0);
        if !ends {
            match (rotates, specific) {
                (true, true) => self.first = (named + 1) & 7,
                (false, true) => {}
                (rotates, false) => self.rotates_on_auto_eoi = rotates,
            }
            return;
        }
        let line = if specific {
            Some(named)
        } else {
            let ended = self.blocking();
            self.by_priority().find(|line| ended >> line & 1 != 0)
        };
        if let Some(line) = line {
            self.isr &= !(1 << line);
            if rotates {
                self.first = (line + 1) & 7;
            }
        }
    }

    fn write_data(&mut self, value: u8) {
        self.expects = match self.expects {
            Expects::Mask => {
                self.imr = value;
                Expects::Mask
            }
            Expects::Icw2 => {
                self.base = value & 0xf8;
                match (self.single, self.needs_icw4) {
                    (false, _) => Expects::Icw3,
                    (true, true) => Expects::Icw4,
                    (true, false) => Expects::Mask,
                }
            }
            // The cascade is wired.
            Expects::Icw3 if self.needs_icw4 => Expects::Icw4,
            Expects::Icw3 => Expects::Mask,
            Expects::Icw4 => {
                self.auto_eoi = value & 2 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                Expects::Mask
            }
        };
    }
}

/// Master at 0x20, slave at 0xa0 on the master's line 2.
#[derive(Debug, Clone)]
pub struct Pic {
    chips: [Chip; 2],
}

impl Default for Pic {
    fn default() -> Self {
        Self::new()
    }
}

impl Pic {
    /// As firmware leaves it: vectors 8 and 0x70, all masked but the cascade.
    #[must_use]
    pub fn new() -> Self {
        let chip = |base, imr| Chip {
            base,
            imr,
            ..Chip::default()
        };
        Self {
            chips: [chip(0x08, 0xfb), chip(0x70, 0xff)],
        }
    }

    /// The state of master and slave.
    #[must_use]
    pub const fn state(&self) -> &[Chip; 2] {
        &self.chips
    }

    /// Puts a state back.
    pub fn set_state(&mut self, state: [Chip; 2]) {
        self.chips = state;
        for chip in &mut self.chips {
            chip.first &= 7;
        }
        self.cascade();
    }

    /// Sets the level of an interrupt line, 0 to 15. Line 2 is the cascade and no input.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        if irq < 16 && irq != CASCADE {
            self.chips[usize::from(irq >> 3)].set_line(irq & 7, high);
            self.cascade();
        }
    }

    /// Whether a request on the line could reach the processor: it and its way are not masked.
    #[must_use]
    pub fn is_unmasked(&self, irq: u8) -> bool {
        let [master, slave] = &self.chips;
        match irq {
            0..8 => master.imr >> irq & 1 == 0,
            8..16 => slave.imr >> (irq & 7) & 1 == 0 && master.imr >> CASCADE & 1 == 0,
            _ => false,
        }
    }

    /// The INTR output.
    #[must_use]
    pub fn output(&self) -> bool {
        self.chips[0].pending().is_some()
    }

    /// An acknowledge cycle (INTA): the vector. Without a request it is the spurious one of line 7.
    pub fn acknowledge(&mut self) -> u8 {
        let [master, slave] = &mut self.chips;
        let vector = match master.acknowledge() {
            Some(CASCADE) => {
                let line = slave.acknowledge().unwrap_or(SPURIOUS);
                slave.base.wrapping_add(line)
            }
            line => master.base.wrapping_add(line.unwrap_or(SPURIOUS)),
        };
        self.cascade();
        vector
    }

    /// Reads port 0x20, 0x21, 0xa0 or 0xa1.
    pub fn read(&mut self, port: u16) -> u8 {
        let chip = &mut self.chips[usize::from(port >> 7 & 1)];
        if std::mem::take(&mut chip.polled) {
            // A poll is an acknowledge cycle whose answer goes to the reader.
            let answer = chip.acknowledge().map_or(0, |line| 0x80 | line);
            self.cascade();
            return answer;
        }
        match (port & 1 != 0, chip.reads_isr) {
            (true, _) => chip.imr,
            (false, true) => chip.isr,
            (false, false) => chip.irr,
        }
    }

    /// Writes port 0x20, 0x21, 0xa0 or 0xa1.
    pub fn write(&mut self, port: u16, value: u8) {
        let chip = &mut self.chips[usize::from(port >> 7 & 1)];
        if port & 1 == 0 {
            chip.write_command(value);
        } else {
            chip.write_data(value);
        }
        self.cascade();
    }

    /// Reads the edge/level register 0x4d0 or 0x4d1.
    #[must_use]
    pub fn read_trigger_mode(&self, port: u16) -> u8 {
        self.chips[usize::from(port & 1)].elcr
    }

    /// Writes the edge/level register 0x4d0 or 0x4d1.
    pub fn write_trigger_mode(&mut self, port: u16, value: u8) {
        let index = usize::from(port & 1);
        self.chips[index].elcr = value & ELCR_WRITABLE[index];
    }

    /// The slave's output is the master's line 2. It is taken as a level, since a slave lets it fall
    /// at each acknowledge cycle.
    fn cascade(&mut self) {
        let [master, slave] = &mut self.chips;
        let bit = 1 << CASCADE;
        if slave.pending().is_some() {
            master.irr |= bit;
        } else {
            master.irr &= !bit;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Initialised as Linux does it: vectors 0x30 and 0x38, nothing masked.
    fn initialised(icw4: u8) -> Pic {
        let mut pic = Pic::new();
        for (port, base, icw3) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            pic.write(port, 0x11);
            for value in [base, icw3, icw4, 0] {
                pic.write(port + 1, value);
            }
        }
        pic
    }

    #[test]
    fn every_line_has_its_vector_and_lasts_until_its_end() {
        for irq in (0..16).filter(|irq| *irq != CASCADE) {
            let mut pic = initialised(1);
            assert!(!pic.output());
            pic.set_line(irq, true);
            assert!(pic.output(), "line {irq}");
            assert_eq!(pic.acknowledge(), 0x30 + irq);
            assert!(!pic.output(), "in service");
            pic.set_line(irq, false);
            pic.set_line(irq, true);
            assert!(!pic.output(), "its own level is blocked");
            if irq >= 8 {
                pic.write(0xa0, 0x20);
            }
            pic.write(0x20, 0x20);
            assert!(pic.output(), "the second edge was kept");
        }
    }

    #[test]
    fn priority_and_masks() {
        let mut pic = initialised(1);
        pic.set_line(5, true);
        pic.set_line(1, true);
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(0x20, 0x61); // specific EOI
        assert_eq!(pic.acknowledge(), 0x38, "the slave is at line 2");
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 1 << 2, "ISR");
        pic.write(0x20, 0x0a);
        assert_eq!(pic.read(0x20), 1 << 5, "IRR");
        pic.write(0xa0, 0x20);
        pic.write(0x20, 0x20);
        pic.write(0x21, 1 << 5);
        assert_eq!(pic.read(0x21), 1 << 5);
        assert!(!pic.output());
        assert!(!pic.is_unmasked(5) && pic.is_unmasked(8));
        pic.write(0x21, 1 << 2);
        assert!(!pic.is_unmasked(8));
        assert_eq!(pic.acknowledge(), 0x35);
    }

    #[test]
    fn a_request_that_is_gone_is_spurious() {
        let mut pic = initialised(1);
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 0, "nothing is in service");
        // A level that falls between request and acknowledge.
        pic.write_trigger_mode(0x4d1, 0xff);
        assert_eq!(pic.read_trigger_mode(0x4d1), 0xde);
        pic.set_line(11, true);
        assert!(pic.output());
        pic.set_line(11, false);
        assert!(!pic.output());
    }

    #[test]
    fn a_level_asks_until_it_falls() {
        let mut pic = initialised(1);
        pic.write_trigger_mode(0x4d0, 0xff);
        assert_eq!(pic.read_trigger_mode(0x4d0), 0xf8);
        pic.set_line(5, true);
        for _ in 0..3 {
            assert_eq!(pic.acknowledge(), 0x35);
            assert!(!pic.output());
            pic.write(0x20, 0x20);
            assert!(pic.output());
        }
        pic.set_line(5, false);
        assert!(!pic.output());
    }

    #[test]
    fn automatic_end_and_rotation() {
        let mut pic = initialised(3);
        pic.write(0x20, 0x80);
        for irq in [0, 1] {
            pic.set_line(irq, true);
        }
        assert_eq!(pic.acknowledge(), 0x30);
        assert_eq!(pic.acknowledge(), 0x31);
        for irq in [0, 3] {
            pic.set_line(irq, false);
            pic.set_line(irq, true);
        }
        assert_eq!(pic.acknowledge(), 0x33, "line 1 is last now");
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn rotation_on_end_and_set_priority() {
        let mut pic = initialised(1);
        pic.set_line(0, true);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(0x20, 0xa0); // rotate on unspecific EOI
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(0x20, 0xe4); // rotate on specific EOI
        assert_eq!(pic.acknowledge(), 0x30);
        pic.write(0x20, 0x20);
        pic.write(0x20, 0xc2); // line 2 last: 3 is first
        for irq in [0, 3] {
            pic.set_line(irq, false);
            pic.set_line(irq, true);
        }
        assert_eq!(pic.acknowledge(), 0x33);
    }

    #[test]
    fn special_mask_lets_lower_levels_through() {
        let mut pic = initialised(1);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.set_line(6, true);
        assert!(!pic.output());
        pic.write(0x21, 1 << 1);
        pic.write(0x20, 0x68);
        assert_eq!(pic.acknowledge(), 0x36);
        pic.write(0x20, 0x20);
        pic.write(0x20, 0x0b);
        assert_eq!(pic.read(0x20), 1 << 1, "the masked level did not end");
    }

    #[test]
    fn a_state_put_back_goes_on() {
        let mut pic = initialised(1);
        pic.set_line(9, true);
        pic.set_line(3, true);
        pic.acknowledge();
        let mut other = Pic::new();
        other.set_state(pic.state().clone());
        assert_eq!(other.state(), pic.state());
        for end in [0x20, 0x20] {
            assert_eq!(other.acknowledge(), pic.acknowledge());
            other.write(0x20, end);
            pic.write(0x20, end);
        }
    }

    #[test]
    fn poll() {
        let mut pic = initialised(1);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0);
        pic.set_line(6, true);
        pic.write(0x20, 0x0c);
        assert_eq!(pic.read(0x20), 0x86);
        assert!(!pic.output());
    }

    #[test]
    fn initialisation_forgets_edges_and_keeps_levels() {
        let mut pic = initialised(1);
        pic.write_trigger_mode(0x4d0, 0x20);
        pic.set_line(4, true);
        pic.set_line(5, true);
        pic.write(0x20, 0x11);
        for value in [0x40, 4, 1] {
            pic.write(0x21, value);
        }
        assert_eq!(pic.read(0x20), 1 << 5);
        assert_eq!(pic.acknowledge(), 0x45);
    }
}
