//! The real-time clock and CMOS memory (Motorola "MC146818"), at ports 0x70 and 0x71.
//!
//! Its time starts at a fixed date, so that every run reads the same. What memory and processors there
//! are stands where QEMU's firmware leaves it.

const SECOND: u64 = 1_000_000_000;
/// The update-in-progress bit is set this long before a second ends.
const UPDATE: u64 = 244_141;
/// Seconds from 1970 to 2026-01-01, when every machine starts.
const START: i64 = 1_767_225_600;

mod a {
    pub(super) const UPDATE_IN_PROGRESS: u8 = 0x80;
    pub(super) const RATE: u8 = 0xf;
}
mod b {
    pub(super) const SET: u8 = 0x80;
    pub(super) const BINARY: u8 = 4;
    pub(super) const HOURS_24: u8 = 2;
}
/// Flags of register C, enabled by the same bits of register B.
mod flag {
    pub(super) const PERIODIC: u8 = 0x40;
    pub(super) const ALARM: u8 = 0x20;
    pub(super) const UPDATED: u8 = 0x10;
    pub(super) const ALL: u8 = 0x70;
    pub(super) const INTERRUPT: u8 = 0x80;
}

/// Register numbers.
mod register {
    pub(super) const SECONDS: u8 = 0;
    pub(super) const SECONDS_ALARM: u8 = 1;
    pub(super) const MINUTES: u8 = 2;
    pub(super) const MINUTES_ALARM: u8 = 3;
    pub(super) const HOURS: u8 = 4;
    pub(super) const HOURS_ALARM: u8 = 5;
    pub(super) const WEEKDAY: u8 = 6;
    pub(super) const DAY: u8 = 7;
    pub(super) const MONTH: u8 = 8;
    pub(super) const YEAR: u8 = 9;
    pub(super) const A: u8 = 10;
    pub(super) const B: u8 = 11;
    pub(super) const C: u8 = 12;
    pub(super) const D: u8 = 13;
    pub(super) const CENTURY: u8 = 0x32;
}
use register::{A, B, C, CENTURY, D};

/// The registers that hold the time.
const TIME: [u8; 8] = [
    register::SECONDS,
    register::MINUTES,
    register::HOURS,
    register::WEEKDAY,
    register::DAY,
    register::MONTH,
    register::YEAR,
    CENTURY,
];

/// Clock and memory.
#[derive(Debug, Clone)]
pub struct Rtc {
    index: u8,
    memory: [u8; 128],
    /// Seconds since 1970 at guest time zero.
    base: i64,
    /// Up to here events have been seen.
    seen: u64,
}

impl Rtc {
    /// The clock of a machine with so much RAM and so many processors.
    #[must_use]
    pub fn new(memory_size: u64, processors: usize) -> Self {
        let mut memory = [0; 128];
        let mut word = |at: usize, value: u64| {
            let value = u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes();
            memory[at..at + 2].copy_from_slice(&value);
        };
        word(0x15, 640); // KiB below 640 KiB
        let extended = memory_size.saturating_sub(1 << 20) >> 10; // KiB above 1 MiB
        word(0x17, extended);
        word(0x30, extended);
        word(0x34, memory_size.saturating_sub(16 << 20) >> 16); // 64 KiB above 16 MiB
        memory[0x14] = 0x06; // a coprocessor and a PS/2 port
        memory[0x5f] = u8::try_from(processors.saturating_sub(1)).unwrap_or(u8::MAX);
        memory[usize::from(A)] = 0x26;
        memory[usize::from(B)] = b::HOURS_24;
        memory[usize::from(D)] = 0x80; // the battery is good
        Self {
            index: 0,
            memory,
            base: START,
            seen: 0,
        }
    }

    fn register(&self, register: u8) -> u8 {
        self.memory[usize::from(register & 0x7f)]
    }

    fn is_set_mode(&self) -> bool {
        self.register(B) & b::SET != 0
    }

    /// Nanoseconds between periodic interrupts, as a fraction of 32768 Hz ticks; `None` for none.
    fn period(&self) -> Option<u64> {
        match self.register(A) & a::RATE {
            0 => None,
            // The two fastest rates repeat two slower ones.
            rate @ 1..=2 => Some(1 << (rate + 6)),
            rate => Some(1 << (rate - 1)),
        }
    }

    /// Sets the flags of what happened until `now`.
    pub fn advance(&mut self, now: u64) {
        if now <= self.seen {
            return;
        }
        let mut flags = 0;
        if let Some(period) = self.period()
            && ticks(now) / period != ticks(self.seen) / period
        {
            flags |= flag::PERIODIC;
        }
        let (first, last) = (self.seen / SECOND + 1, now / SECOND);
        if first <= last && !self.is_set_mode() {
            flags |= flag::UPDATED;
            // The alarm's pattern repeats every day.
            if (first..=last).take(86_400).any(|s| self.is_alarm(s)) {
                flags |= flag::ALARM;
            }
        }
        self.seen = now;
        self.memory[usize::from(C)] |= flags;
    }

    /// The interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.register(C) & self.register(B) & flag::ALL != 0
    }

    /// When something may raise the line next.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let waits = self.register(B) & flag::ALL & !self.register(C);
        if self.line() || waits == 0 {
            return None;
        }
        let periodic = self
            .period()
            .filter(|_| waits & flag::PERIODIC != 0)
            .map(|period| time((ticks(self.seen) / period + 1) * period));
        let second = (waits & (flag::UPDATED | flag::ALARM) != 0 && !self.is_set_mode())
            .then(|| (self.seen / SECOND + 1).saturating_mul(SECOND));
        periodic.into_iter().chain(second).min()
    }

    fn is_alarm(&self, second: u64) -> bool {
        let time = Time::at(self.base.saturating_add_unsigned(second));
        let pairs = [
            (register::SECONDS_ALARM, time.second),
            (register::MINUTES_ALARM, time.minute),
        ];
        let matches = |alarm: u8, encoded: u8| {
            let alarm = self.register(alarm);
            alarm >= 0xc0 || alarm == encoded
        };
        pairs
            .iter()
            .all(|(alarm, value)| matches(*alarm, self.encode(*value)))
            && matches(register::HOURS_ALARM, self.encode_hour(time.hour))
    }

    fn encode(&self, value: u8) -> u8 {
        if self.register(B) & b::BINARY != 0 {
            value
        } else {
            ((value / 10) << 4) | (value % 10)
        }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.register(B) & b::BINARY != 0 {
            value
        } else {
            (value >> 4) * 10 + (value & 0xf)
        }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.register(B) & b::HOURS_24 != 0 {
            return self.encode(hour);
        }
        let afternoon = if hour >= 12 { 0x80 } else { 0 };
        self.encode((hour + 11) % 12 + 1) | afternoon
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.register(B) & b::HOURS_24 != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// Puts the running time into the registers.
    fn show(&mut self, now: u64) {
        if self.is_set_mode() {
            return;
        }
        let time = Time::at(self.base.saturating_add_unsigned(now / SECOND));
        let values = [
            self.encode(time.second),
            self.encode(time.minute),
            self.encode_hour(time.hour),
            self.encode(time.weekday),
            self.encode(time.day),
            self.encode(time.month),
            self.encode((time.year % 100) as u8),
            self.encode((time.year / 100) as u8),
        ];
        for (register, value) in TIME.iter().zip(values) {
            self.memory[usize::from(*register)] = value;
        }
    }

    /// Takes the time from the registers.
    fn adopt(&mut self, now: u64) {
        let value = |register| self.decode(self.register(register));
        let time = Time {
            second: value(register::SECONDS),
            minute: value(register::MINUTES),
            hour: self.decode_hour(self.register(register::HOURS)),
            weekday: 1,
            day: value(register::DAY),
            month: value(register::MONTH),
            year: u32::from(value(CENTURY)) * 100 + u32::from(value(register::YEAR)),
        };
        self.base = time.seconds().saturating_sub_unsigned(now / SECOND);
    }

    /// Writes port 0x70: the register to access. Bit 7 would mask NMI.
    pub fn select(&mut self, value: u8) {
        self.index = value & 0x7f;
    }

    /// Reads port 0x71.
    pub fn read(&mut self, now: u64) -> u8 {
        self.advance(now);
        match self.index {
            A => {
                let updates = !self.is_set_mode() && now % SECOND >= SECOND - UPDATE;
                self.register(A) | if updates { a::UPDATE_IN_PROGRESS } else { 0 }
            }
            C => {
                let interrupt = if self.line() { flag::INTERRUPT } else { 0 };
                std::mem::take(&mut self.memory[usize::from(C)]) | interrupt
            }
            index => {
                if TIME.contains(&index) {
                    self.show(now);
                }
                self.register(index)
            }
        }
    }

    /// Writes port 0x71.
    pub fn write(&mut self, now: u64, value: u8) {
        self.advance(now);
        let at = usize::from(self.index);
        match self.index {
            A => self.memory[at] = value & !a::UPDATE_IN_PROGRESS,
            B => {
                self.show(now);
                let was_set = self.is_set_mode();
                self.memory[at] = if value & b::SET != 0 {
                    // As the chip has it: this also disables the update interrupt.
                    value & !flag::UPDATED
                } else {
                    value
                };
                if was_set && !self.is_set_mode() {
                    self.adopt(now);
                }
            }
            C | D => {}
            index => {
                let is_time = TIME.contains(&index);
                if is_time {
                    self.show(now);
                }
                self.memory[at] = value;
                if is_time && !self.is_set_mode() {
                    self.adopt(now);
                }
            }
        }
    }
}

/// Ticks of the 32768 Hz clock.
fn ticks(now: u64) -> u64 {
    (u128::from(now) * 32_768 / u128::from(SECOND)) as u64
}

/// The first nanosecond of a tick.
fn time(tick: u64) -> u64 {
    let time = (u128::from(tick) * u128::from(SECOND)).div_ceil(32_768);
    u64::try_from(time).unwrap_or(u64::MAX)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Time {
    second: u8,
    minute: u8,
    hour: u8,
    /// 1 is Sunday.
    weekday: u8,
    day: u8,
    month: u8,
    year: u32,
}

impl Time {
    /// Gregorian date of seconds since 1970, years 0 to 9999; days are counted from 0000-03-01.
    fn at(seconds: i64) -> Self {
        let seconds = seconds.clamp(-62_167_219_200, 253_402_300_799);
        let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
        let since_march = days + 719_468;
        let era = since_march.div_euclid(146_097);
        let day_of_era = since_march.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month = (5 * day_of_year + 2) / 153;
        let day = day_of_year - (153 * month + 2) / 5 + 1;
        let month = if month < 10 { month + 3 } else { month - 9 };
        Self {
            second: (rest % 60) as u8,
            minute: (rest / 60 % 60) as u8,
            hour: (rest / 3_600) as u8,
            weekday: ((days + 4).rem_euclid(7) + 1) as u8,
            day: day as u8,
            month: month as u8,
            year: (year_of_era + era * 400 + i64::from(month <= 2)) as u32,
        }
    }

    /// The inverse. Fields out of range carry over.
    fn seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let month_from_march = (month + 9) % 12;
        let day_of_year = (153 * month_from_march + 2) / 5 + i64::from(self.day) - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        let days = era * 146_097 + day_of_era - 719_468;
        let clock = i64::from(self.hour) * 3_600 + i64::from(self.minute) * 60;
        days * 86_400 + clock + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rtc() -> Rtc {
        Rtc::new(64 << 20, 2)
    }

    fn get(rtc: &mut Rtc, now: u64, register: u8) -> u8 {
        rtc.select(register);
        rtc.read(now)
    }

    fn set(rtc: &mut Rtc, now: u64, register: u8, value: u8) {
        rtc.select(register);
        rtc.write(now, value);
    }

    fn clock(rtc: &mut Rtc, now: u64) -> [u8; 8] {
        TIME.map(|register| get(rtc, now, register))
    }

    #[test]
    fn dates_there_and_back() {
        for (seconds, text) in [
            (0, (1970, 1, 1, 5)),
            (START, (2026, 1, 1, 5)),
            (951_782_400, (2000, 2, 29, 3)),
            (4_107_542_400, (2100, 3, 1, 2)),
            (-62_167_219_200, (0, 1, 1, 7)),
        ] {
            let time = Time::at(seconds);
            assert_eq!((time.year, time.month, time.day, time.weekday), text);
            assert_eq!(time.seconds(), seconds);
        }
    }

    #[test]
    fn it_starts_at_a_fixed_date_and_goes_on() {
        let mut rtc = rtc();
        assert_eq!(clock(&mut rtc, 0), [0, 0, 0, 5, 1, 1, 0x26, 0x20]);
        let later = (86_400 + 3_723) * SECOND;
        assert_eq!(clock(&mut rtc, later), [3, 2, 1, 6, 2, 1, 0x26, 0x20]);
    }

    #[test]
    fn twelve_hours_and_binary() {
        let mut rtc = rtc();
        for (hour, bcd_12, binary_24) in
            [(0, 0x12, 0), (11, 0x11, 11), (12, 0x92, 12), (23, 0x91, 23)]
        {
            let now = hour * 3_600 * SECOND;
            set(&mut rtc, now, B, 0);
            assert_eq!(get(&mut rtc, now, register::HOURS), bcd_12);
            assert_eq!(rtc.decode_hour(bcd_12), binary_24);
            set(&mut rtc, now, B, b::BINARY | b::HOURS_24);
            assert_eq!(get(&mut rtc, now, register::HOURS), binary_24);
        }
    }

    #[test]
    fn setting_the_time() {
        let mut rtc = rtc();
        let now = 5 * SECOND;
        set(&mut rtc, now, B, b::SET | b::HOURS_24);
        for (register, value) in TIME
            .iter()
            .zip([0x58, 0x59, 0x23, 0, 0x31, 0x12, 0x99, 0x19])
        {
            set(&mut rtc, now, *register, value);
        }
        assert_eq!(get(&mut rtc, now + SECOND, 0), 0x58, "it stands still");
        set(&mut rtc, now + 2 * SECOND, B, b::HOURS_24);
        let at = now + 4 * SECOND;
        assert_eq!(clock(&mut rtc, at), [0, 0, 0, 7, 1, 1, 0, 0x20]);
        // Without SET a write counts at once.
        set(&mut rtc, at, register::MINUTES, 0x30);
        assert_eq!(clock(&mut rtc, at + SECOND)[..3], [1, 0x30, 0]);
    }

    #[test]
    fn periodic_interrupts_by_rate() {
        for (rate, period) in [
            (6, 976_563),
            (3, 122_071),
            (1, 3_906_250),
            (15, 500_000_000),
        ] {
            let mut rtc = rtc();
            set(&mut rtc, 0, A, 0x20 | rate);
            set(&mut rtc, 0, B, flag::PERIODIC | b::HOURS_24);
            assert_eq!(rtc.deadline(), Some(period));
            rtc.advance(period - 1);
            assert!(!rtc.line());
            rtc.advance(period);
            assert!(rtc.line());
            assert_eq!(rtc.deadline(), None, "it waits to be acknowledged");
            assert_eq!(get(&mut rtc, period, C), 0xc0);
            assert!(!rtc.line());
            assert_eq!(get(&mut rtc, period, C), 0);
        }
        let mut rtc = rtc();
        set(&mut rtc, 0, A, 0x20);
        set(&mut rtc, 0, B, flag::PERIODIC);
        assert_eq!(rtc.deadline(), None, "rate 0 is off");
    }

    #[test]
    fn update_and_its_flag() {
        let mut rtc = rtc();
        assert_eq!(get(&mut rtc, SECOND - UPDATE - 1, A), 0x26);
        assert_eq!(get(&mut rtc, SECOND - UPDATE, A), 0xa6);
        assert_eq!(get(&mut rtc, SECOND, A), 0x26);
        assert_eq!(get(&mut rtc, SECOND, C), flag::UPDATED | flag::PERIODIC);
        set(&mut rtc, SECOND, B, flag::UPDATED | b::HOURS_24);
        assert_eq!(rtc.deadline(), Some(2 * SECOND));
        rtc.advance(2 * SECOND);
        assert_eq!(get(&mut rtc, 2 * SECOND, C) & 0x90, 0x90);
    }

    #[test]
    fn alarm() {
        let mut rtc = rtc();
        for (register, value) in [
            (register::SECONDS_ALARM, 0x03),
            (register::MINUTES_ALARM, 0xff),
            (register::HOURS_ALARM, 0xc0),
        ] {
            set(&mut rtc, 0, register, value);
        }
        set(&mut rtc, 0, B, flag::ALARM | b::HOURS_24);
        let mut rang = Vec::new();
        for _ in 0..70 {
            let now = rtc.deadline().expect("a second ends");
            rtc.advance(now);
            if rtc.line() {
                rang.push(now / SECOND);
                get(&mut rtc, now, C);
            }
        }
        assert_eq!(rang, [3, 63]);
    }

    #[test]
    fn memory_sizes_as_firmware_leaves_them() {
        let mut rtc = rtc();
        let mut word = |at| u16::from_le_bytes([get(&mut rtc, 0, at), get(&mut rtc, 0, at + 1)]);
        assert_eq!(word(0x15), 640);
        assert_eq!(word(0x17), 63 << 10);
        assert_eq!(word(0x30), 63 << 10);
        assert_eq!(word(0x34), 48 << 4);
        assert_eq!(get(&mut rtc, 0, 0x5f), 1);
        assert_eq!(get(&mut rtc, 0, D), 0x80);
        let mut large = Rtc::new(3 << 30, 1);
        assert_eq!(get(&mut large, 0, 0x17), 0xff);
        assert_eq!(get(&mut large, 0, 0x35), 0xbf);
    }
}
