//! ACPI's fixed hardware as the PIIX4 has it (ACPI Specification "ACPI Hardware Specification"; Intel
//! "82371AB PIIX4"): PM1 events and control at 0x600, the timer at 0x608, the general events at 0xafe0.

use super::Request;

/// First port of the PM1 block: status, enable, control, timer.
pub const PM1: u16 = 0x600;
/// Port of the power-management timer.
pub const TIMER: u16 = 0x608;
/// First port of general-purpose events: two bytes of status, two of enable.
pub const GPE0: u16 = 0xafe0;
/// Port at which ACPI mode is switched, and the two values for it.
pub const SMI_COMMAND: u16 = 0xb2;
/// Written to [`SMI_COMMAND`]: hand the events to the operating system.
pub const ENABLE: u8 = 0xf1;
/// Written to [`SMI_COMMAND`]: keep them in firmware.
pub const DISABLE: u8 = 0xf0;
/// What S5 is called in PM1 control's sleep type.
pub const SLEEP_TYPE_S5: u8 = 0;

const FREQUENCY: u128 = 3_579_545;
const SECOND: u128 = 1_000_000_000;
/// The timer has 24 bits and reports each change of the highest.
const HALF: u64 = 1 << 23;
const TIMER_EVENT: u16 = 1;
const SCI_ENABLED: u16 = 1;
/// Bits of PM1 status that are events: timer, bus master, global, power and sleep button, RTC, wake.
const STATUS: u16 = 0x8731;
const ENABLES: u16 = 0x0721;

fn ticks(now: u64) -> u64 {
    (u128::from(now) * FREQUENCY / SECOND) as u64
}

/// The registers.
#[derive(Debug, Clone, Default)]
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    general: [u8; 4],
    seen: u64,
}

impl PowerManagement {
    /// As after reset: in legacy mode.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the status of what happened until `now`.
    pub fn advance(&mut self, now: u64) {
        if ticks(now) / HALF != ticks(self.seen) / HALF {
            self.status |= TIMER_EVENT;
        }
        self.seen = self.seen.max(now);
    }

    /// The system control interrupt, line 9.
    #[must_use]
    pub fn line(&self) -> bool {
        self.control & SCI_ENABLED != 0 && self.status & self.enable != 0
    }

    /// When the timer raises the line.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.control & SCI_ENABLED != 0
            && self.enable & TIMER_EVENT != 0
            && self.status & TIMER_EVENT == 0;
        let tick = (ticks(self.seen) / HALF + 1) * HALF;
        let time = (u128::from(tick) * SECOND).div_ceil(FREQUENCY);
        waits.then(|| u64::try_from(time).unwrap_or(u64::MAX))
    }

    /// Reads a byte of the PM1 block, at its offset.
    pub fn read(&mut self, now: u64, offset: u16) -> u8 {
        self.advance(now);
        let byte = |value: u16| value.to_le_bytes()[usize::from(offset & 1)];
        match offset {
            0..2 => byte(self.status),
            2..4 => byte(self.enable),
            4..6 => byte(self.control),
            8..11 => (ticks(now) >> (8 * (offset - 8))) as u8,
            _ => 0,
        }
    }

    /// Writes a byte of the PM1 block.
    #[must_use]
    pub fn write(&mut self, now: u64, offset: u16, value: u8) -> Option<Request> {
        self.advance(now);
        let shift = 8 * (offset & 1);
        let place = |old: u16| old & !(0xff << shift) | u16::from(value) << shift;
        match offset {
            // Status is cleared by ones.
            0..2 => self.status &= !(u16::from(value) << shift & STATUS),
            2..4 => self.enable = place(self.enable) & ENABLES,
            4 => self.control = place(self.control) & !SCI_ENABLED | self.control & SCI_ENABLED,
            5 => {
                const SLEEP: u8 = 0x20;
                self.control = place(self.control) & !(u16::from(SLEEP) << 8);
                if value & SLEEP != 0 {
                    return Some(match value >> 2 & 7 {
                        SLEEP_TYPE_S5 => Request::PowerOff,
                        _ => Request::Unsupported("an ACPI sleep state other than S5"),
                    });
                }
            }
            _ => {}
        }
        None
    }

    /// Writes [`SMI_COMMAND`].
    pub fn command(&mut self, value: u8) {
        match value {
            ENABLE => self.control |= SCI_ENABLED,
            DISABLE => self.control &= !SCI_ENABLED,
            _ => {}
        }
    }

    /// Reads a byte of the general-purpose events, at its offset.
    #[must_use]
    pub fn read_general(&self, offset: u16) -> u8 {
        self.general[usize::from(offset & 3)]
    }

    /// Writes a byte of the general-purpose events: status, which never sets, or enable.
    pub fn write_general(&mut self, offset: u16, value: u8) {
        if offset & 2 != 0 {
            self.general[usize::from(offset & 3)] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timer(pm: &mut PowerManagement, now: u64) -> u32 {
        u32::from_le_bytes([8, 9, 10, 11].map(|offset| pm.read(now, offset)))
    }

    #[test]
    fn the_timer_has_24_bits() {
        let mut pm = PowerManagement::new();
        assert_eq!(timer(&mut pm, 0), 0);
        assert_eq!(timer(&mut pm, 1_000_000_000), 3_579_545);
        assert_eq!(timer(&mut pm, 5_000_000_000), 5 * 3_579_545 - (1 << 24));
    }

    #[test]
    fn the_timer_interrupts_in_acpi_mode() {
        let mut pm = PowerManagement::new();
        assert!(pm.write(0, 2, 1).is_none());
        assert_eq!(pm.deadline(), None, "legacy mode");
        pm.command(ENABLE);
        assert_eq!(pm.read(0, 4), 1);
        let deadline = pm.deadline().expect("a carry");
        assert_eq!(deadline, 2_343_484_438);
        pm.advance(deadline - 1);
        assert!(!pm.line());
        pm.advance(deadline);
        assert!(pm.line());
        assert!(pm.write(deadline, 0, 1).is_none());
        assert!(!pm.line());
        assert!(pm.deadline() > Some(deadline));
        pm.command(DISABLE);
        assert_eq!(pm.read(0, 4), 0);
    }

    #[test]
    fn sleep() {
        let mut pm = PowerManagement::new();
        pm.command(ENABLE);
        assert!(pm.write(0, 4, 0).is_none());
        assert_eq!(pm.read(0, 4), 1, "software does not leave ACPI mode here");
        assert_eq!(pm.write(0, 5, 0), None);
        assert_eq!(pm.write(0, 5, 0x20), Some(Request::PowerOff));
        let other = pm.write(0, 5, 0x24);
        assert!(matches!(other, Some(Request::Unsupported(_))));
        assert_eq!(pm.read(0, 5), 0x04, "the enable bit reads zero");
    }

    #[test]
    fn general_events() {
        let mut pm = PowerManagement::new();
        for offset in 0..4 {
            pm.write_general(offset, 0xff);
        }
        assert_eq!(
            [0, 1, 2, 3].map(|offset| pm.read_general(offset)),
            [0, 0, 0xff, 0xff]
        );
    }
}
