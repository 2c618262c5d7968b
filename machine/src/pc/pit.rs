//! The 8254 timer (Intel "8254 Programmable Interval Timer") and port 0x61, through which the PC reads
//! and gates channel 2.
//!
//! Every counter is a function of the time since it was loaded; nothing ticks. A new count takes
//! effect at once in every mode, as on KVM and QEMU, where the 8254 would finish a period of modes 2
//! and 3 first.

/// Ticks a second.
pub const FREQUENCY: u64 = 1_193_182;
const SECOND: u128 = 1_000_000_000;

/// The tick that guest time `now`, in nanoseconds, lies in.
fn tick(now: u64) -> u64 {
    (u128::from(now) * u128::from(FREQUENCY) / SECOND) as u64
}

/// The first nanosecond of a tick.
fn time(tick: u64) -> u64 {
    let time = (u128::from(tick) * SECOND).div_ceil(u128::from(FREQUENCY));
    u64::try_from(time).unwrap_or(u64::MAX)
}

/// State of one channel.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Channel {
    /// 0 to 5.
    pub mode: u8,
    /// It counts in decimal.
    pub bcd: bool,
    /// Which bytes of the count are read and written: 1 low, 2 high, 3 low then high.
    pub access: u8,
    /// Ticks of a period, 1 to 0x10000.
    pub reload: u64,
    /// Tick at which the count was loaded; `None` while the counter waits for a count or a trigger.
    pub start: Option<u64>,
    /// Ticks counted when the gate closed.
    pub frozen: Option<u64>,
    /// The gate is open.
    pub gate: bool,
    /// A count has been written since the control word.
    pub null_count: bool,
    /// The low byte, while the high one is awaited.
    pub low_written: Option<u8>,
    /// The next byte that is read is the high one.
    pub high_next: bool,
    /// The count as it was latched.
    pub latched: Option<u16>,
    /// The status as it was latched.
    pub latched_status: Option<u8>,
}

impl Channel {
    fn new(gate: bool) -> Self {
        Self {
            mode: 2,
            access: 3,
            reload: 0x10000,
            start: Some(0),
            gate,
            ..Self::default()
        }
    }

    fn elapsed(&self, tick: u64) -> Option<u64> {
        self.frozen
            .or_else(|| Some(tick.saturating_sub(self.start?)))
    }

    fn output(&self, tick: u64) -> bool {
        let Some(elapsed) = self.elapsed(tick) else {
            return self.mode != 0;
        };
        let n = self.reload;
        match self.mode {
            0 | 1 => elapsed >= n,
            2 => self.frozen.is_some() || elapsed % n != n - 1,
            3 => self.frozen.is_some() || elapsed % n < n.div_ceil(2),
            _ => elapsed != n,
        }
    }

    /// The tick of the first rising edge of the output after `tick`.
    fn next_edge(&self, tick: u64) -> Option<u64> {
        let start = self.start.filter(|_| self.frozen.is_none())?;
        let first = match self.mode {
            0 | 1 => start + self.reload,
            2 | 3 => {
                let periods = tick.saturating_sub(start) / self.reload + 1;
                return Some(start.saturating_add(periods.saturating_mul(self.reload)));
            }
            _ => start + self.reload + 1,
        };
        Some(first).filter(|edge| *edge > tick)
    }

    /// What the counter shows.
    fn count(&self, tick: u64) -> u16 {
        let n = self.reload;
        let value = match self.elapsed(tick) {
            None => n,
            Some(elapsed) => match self.mode {
                2 => n - elapsed % n,
                3 => {
                    // It counts by two, twice a period.
                    let half = n.div_ceil(2);
                    let position = elapsed % n;
                    let position = if position < half {
                        position
                    } else {
                        position - half
                    };
                    (n & !1).saturating_sub(2 * position)
                }
                _ => {
                    let wrap = if self.bcd { 10_000 } else { 0x10000 };
                    (n + wrap - elapsed % wrap) % wrap
                }
            },
        };
        if self.bcd {
            let value = value % 10_000;
            let digit = |divisor| (value / divisor % 10) as u16;
            digit(1000) << 12 | digit(100) << 8 | digit(10) << 4 | digit(1)
        } else {
            value as u16
        }
    }

    fn status(&self, tick: u64) -> u8 {
        u8::from(self.output(tick)) << 7
            | u8::from(self.null_count) << 6
            | self.access << 4
            | self.mode << 1
            | u8::from(self.bcd)
    }

    fn control(&mut self, value: u8) {
        let access = value >> 4 & 3;
        let mode = match value >> 1 & 7 {
            mode @ 6..=7 => mode - 4,
            mode => mode,
        };
        *self = Self {
            mode,
            bcd: value & 1 != 0,
            access,
            reload: self.reload,
            gate: self.gate,
            null_count: true,
            ..Self::default()
        };
    }

    fn latch(&mut self, tick: u64) {
        if self.latched.is_none() {
            self.latched = Some(self.count(tick));
        }
    }

    fn read(&mut self, tick: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self
            .latched
            .unwrap_or_else(|| self.count(tick))
            .to_le_bytes();
        match self.access {
            1 => {
                self.latched = None;
                low
            }
            2 => {
                self.latched = None;
                high
            }
            _ => {
                self.high_next = !self.high_next;
                if self.high_next {
                    low
                } else {
                    self.latched = None;
                    high
                }
            }
        }
    }

    fn write(&mut self, tick: u64, value: u8) {
        match (self.access, self.low_written.take()) {
            (1, _) => self.load(tick, u16::from(value)),
            (2, _) => self.load(tick, u16::from(value) << 8),
            (_, Some(low)) => self.load(tick, u16::from_le_bytes([low, value])),
            (_, None) => {
                self.low_written = Some(value);
                if self.mode == 0 {
                    // The first byte stops the counter.
                    self.start = None;
                    self.frozen = None;
                }
            }
        }
    }

    fn load(&mut self, tick: u64, count: u16) {
        let count = u64::from(count);
        self.reload = if self.bcd {
            let digit = |shift: u32| (count >> shift & 0xf).min(9);
            match digit(12) * 1000 + digit(8) * 100 + digit(4) * 10 + digit(0) {
                0 => 10_000,
                count => count,
            }
        } else if count == 0 {
            0x10000
        } else {
            count
        };
        self.null_count = false;
        if matches!(self.mode, 1 | 5) {
            // These wait for the gate.
            return;
        }
        // The counter takes it over with the next clock.
        self.start = Some(tick + 1);
        self.frozen = (!self.gate).then_some(0);
    }

    fn set_gate(&mut self, tick: u64, open: bool) {
        if self.gate == open {
            return;
        }
        self.gate = open;
        match (self.mode, open) {
            (1 | 5, true) => self.start = (!self.null_count).then_some(tick + 1),
            (1 | 5, false) => {}
            (_, false) => self.frozen = self.elapsed(tick),
            (mode, true) => {
                if let Some(elapsed) = self.frozen.take() {
                    let counted = if matches!(mode, 2 | 3) { 0 } else { elapsed };
                    self.start = Some((tick + 1).saturating_sub(counted));
                }
            }
        }
    }
}

/// The timer's three channels.
#[derive(Debug, Clone)]
pub struct Pit {
    channels: [Channel; 3],
    speaker: bool,
    /// Up to this tick channel 0's edges have been seen.
    seen: u64,
    edge: bool,
}

impl Default for Pit {
    fn default() -> Self {
        Self::new()
    }
}

impl Pit {
    /// As firmware leaves it: channel 0 at 18.2 Hz, channel 2 gated off.
    #[must_use]
    pub fn new() -> Self {
        Self {
            channels: [Channel::new(true), Channel::new(true), Channel::new(false)],
            speaker: false,
            seen: 0,
            edge: false,
        }
    }

    /// As after power-up: no channel counts.
    #[must_use]
    pub fn idle() -> Self {
        let mut pit = Self::new();
        for channel in &mut pit.channels {
            channel.mode = 0;
            channel.start = None;
        }
        pit
    }

    /// The state of the three channels, and whether the speaker is on.
    #[must_use]
    pub const fn state(&self) -> (&[Channel; 3], bool) {
        (&self.channels, self.speaker)
    }

    /// Puts a state back that was so at guest time `now`. What no channel can be is made what is nearest.
    pub fn set_state(&mut self, now: u64, channels: [Channel; 3], speaker: bool) {
        self.channels = channels;
        for channel in &mut self.channels {
            channel.mode = channel.mode.min(5);
            channel.reload = channel.reload.clamp(1, 0x10000);
        }
        self.speaker = speaker;
        self.seen = tick(now);
        self.edge = false;
    }

    /// Loads a channel's count anew at guest time `now`.
    pub fn restart(&mut self, now: u64, channel: usize) {
        self.advance(now);
        let tick = tick(now);
        if let Some(channel) = self.channels.get_mut(channel) {
            channel.start = Some(tick + 1);
            channel.frozen = (!channel.gate).then_some(0);
        }
    }

    /// Guest time of a channel's start.
    #[must_use]
    pub fn started(&self, channel: usize) -> Option<u64> {
        self.channels.get(channel)?.start.map(time)
    }

    /// Lets time pass.
    pub fn advance(&mut self, now: u64) {
        let tick = tick(now);
        self.edge |= self.channels[0]
            .next_edge(self.seen)
            .is_some_and(|edge| edge <= tick);
        self.seen = self.seen.max(tick);
    }

    /// Whether channel 0 raised its output since the last call.
    pub fn take_edge(&mut self) -> bool {
        std::mem::take(&mut self.edge)
    }

    /// Channel 0's output: interrupt line 0.
    #[must_use]
    pub fn line(&self) -> bool {
        self.channels[0].output(self.seen)
    }

    /// When channel 0 raises its output next.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        self.channels[0].next_edge(self.seen).map(time)
    }

    /// Reads port 0x40 to 0x42 (0x43 cannot be read).
    pub fn read(&mut self, now: u64, port: u16) -> u8 {
        match self.channels.get_mut(usize::from(port & 3)) {
            Some(channel) => channel.read(tick(now)),
            None => 0xff,
        }
    }

    /// Writes port 0x40 to 0x43.
    pub fn write(&mut self, now: u64, port: u16, value: u8) {
        self.advance(now);
        let tick = tick(now);
        if let Some(channel) = self.channels.get_mut(usize::from(port & 3)) {
            channel.write(tick, value);
            return;
        }
        let selected = usize::from(value >> 6);
        let Some(channel) = self.channels.get_mut(selected) else {
            self.read_back(tick, value);
            return;
        };
        if value >> 4 & 3 == 0 {
            channel.latch(tick);
        } else {
            let was_low = !channel.output(tick);
            channel.control(value);
            // A control word raises the output of every mode but 0.
            self.edge |= selected == 0 && was_low && channel.output(tick);
        }
    }

    fn read_back(&mut self, tick: u64, value: u8) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value >> (index + 1) & 1 == 0 {
                continue;
            }
            if value & 0x20 == 0 {
                channel.latch(tick);
            }
            if value & 0x10 == 0 && channel.latched_status.is_none() {
                channel.latched_status = Some(channel.status(tick));
            }
        }
    }

    /// Reads port 0x61: gate and speaker as written, the refresh toggle, channel 2's output.
    #[must_use]
    pub fn read_port_61(&self, now: u64) -> u8 {
        let refresh = now >> 14 & 1; // it toggles about every 15 microseconds
        u8::from(self.channels[2].gate)
            | u8::from(self.speaker) << 1
            | (refresh as u8) << 4
            | u8::from(self.channels[2].output(tick(now))) << 5
    }

    /// Writes port 0x61: bit 0 is channel 2's gate, bit 1 the speaker.
    pub fn write_port_61(&mut self, now: u64, value: u8) {
        self.channels[2].set_gate(tick(now), value & 1 != 0);
        self.speaker = value & 2 != 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_put_back_goes_on() {
        let mut pit = loaded(0x34, 0x40, 1000);
        pit.advance(100_000);
        let mut other = Pit::idle();
        assert_eq!(other.deadline(), None);
        let (channels, speaker) = pit.state();
        other.set_state(100_000, channels.clone(), speaker);
        assert_eq!(other.deadline(), pit.deadline());
        assert_eq!(other.read(200_000, 0x40), pit.read(200_000, 0x40));
    }

    fn loaded(control: u8, port: u16, count: u16) -> Pit {
        let mut pit = Pit::new();
        pit.write(0, 0x43, control);
        for byte in count.to_le_bytes() {
            pit.write(0, port, byte);
        }
        pit
    }

    /// Ticks of channel 0's first rising edges.
    fn edges(pit: &mut Pit, count: usize) -> Vec<u64> {
        (0..count)
            .map_while(|_| {
                let deadline = pit.deadline()?;
                pit.advance(deadline - 1);
                assert!(!pit.take_edge(), "too early");
                pit.advance(deadline);
                assert!(pit.take_edge() && pit.line());
                Some(tick(deadline))
            })
            .collect()
    }

    #[test]
    fn rising_edges_of_each_mode() {
        let cases: [(u8, &[u64]); 5] = [
            (0x30, &[101]),           // mode 0: N + 1 after the write
            (0x32, &[]),              // mode 1 waits for the gate
            (0x34, &[101, 201, 301]), // mode 2
            (0x36, &[101, 201, 301]), // mode 3
            (0x38, &[102]),           // mode 4: the strobe is low for one tick
        ];
        for (control, expected) in cases {
            let mut pit = loaded(control, 0x40, 100);
            assert_eq!(edges(&mut pit, expected.len()), expected, "{control:#x}");
            assert_eq!(pit.deadline().is_some(), matches!(control, 0x34 | 0x36));
        }
    }

    #[test]
    fn ticks_and_times_fit() {
        for t in [0, 1, 7, 65536, 1_193_182, u64::MAX >> 20] {
            assert_eq!(tick(time(t)), t);
            assert!(t == 0 || tick(time(t) - 1) == t - 1);
        }
        assert_eq!(time(FREQUENCY), 1_000_000_000);
    }

    #[test]
    fn many_missed_edges_are_one() {
        let mut pit = loaded(0x34, 0x40, 100);
        pit.advance(time(1050));
        assert!(pit.take_edge());
        assert!(!pit.take_edge());
        assert_eq!(pit.deadline(), Some(time(1101)));
    }

    #[test]
    fn counts_down_latched_and_live() {
        let mut pit = loaded(0x34, 0x40, 0x1234);
        let at = time(1 + 0x34);
        pit.write(at, 0x43, 0); // latch
        assert_eq!([pit.read(at * 2, 0x40), pit.read(at * 2, 0x40)], [0, 0x12]);
        assert_eq!([pit.read(at, 0x40), pit.read(at, 0x40)], [0, 0x12], "live");
        // Mode 3 counts by two.
        let mut pit = loaded(0x36, 0x40, 100);
        assert_eq!(pit.read(time(1 + 10), 0x40), 80);
        pit.read(0, 0x40);
        assert_eq!(pit.read(time(1 + 60), 0x40), 80);
    }

    #[test]
    fn read_back_gives_status_before_count() {
        let mut pit = loaded(0x30, 0x40, 100);
        pit.write(0, 0x43, 0xc2);
        assert_eq!(pit.read(0, 0x40), 0x30, "low, loaded, both bytes, mode 0");
        assert_eq!([pit.read(0, 0x40), pit.read(0, 0x40)], [100, 0]);
        let late = time(200);
        pit.write(late, 0x43, 0xe2); // status alone
        assert_eq!(pit.read(late, 0x40), 0xb0);
        pit.write(late, 0x43, 0x16); // mode 3, low byte
        pit.write(late, 0x43, 0xe2);
        assert_eq!(pit.read(late, 0x40), 0xd6, "null count");
    }

    #[test]
    fn decimal_counts() {
        let mut pit = loaded(0x35, 0x40, 0x0100);
        assert_eq!(edges(&mut pit, 1), [101]);
        pit.read(0, 0x40);
        pit.read(0, 0x40);
        let at = time(1 + 1);
        assert_eq!([pit.read(at, 0x40), pit.read(at, 0x40)], [0x99, 0]);
    }

    #[test]
    fn the_speaker_channel_is_gated() {
        let mut pit = Pit::new();
        pit.write_port_61(0, 1);
        pit.write(0, 0x43, 0xb0);
        pit.write(0, 0x42, 100);
        pit.write(0, 0x42, 0);
        assert_eq!(pit.read_port_61(time(100)) & 0x21, 1);
        assert_eq!(pit.read_port_61(time(101)) & 0x21, 0x21);
        // The gate stops mode 0 where it is.
        pit.write(0, 0x42, 100);
        pit.write(0, 0x42, 0);
        pit.write_port_61(time(51), 0);
        assert_eq!(pit.read_port_61(time(1000)) & 0x20, 0);
        pit.write_port_61(time(1000), 3);
        assert_eq!(pit.read_port_61(time(1050)) & 0x23, 3);
        assert_eq!(pit.read_port_61(time(1051)) & 0x23, 0x23);
        // Mode 1 starts with the gate.
        pit.write(0, 0x43, 0xb2);
        pit.write(0, 0x42, 10);
        pit.write(0, 0x42, 0);
        pit.write_port_61(0, 0);
        assert_eq!(pit.read_port_61(time(50)) & 0x20, 0x20);
        pit.write_port_61(time(50), 1);
        assert_eq!(pit.read_port_61(time(52)) & 0x20, 0);
        assert_eq!(pit.read_port_61(time(61)) & 0x20, 0x20);
    }

    #[test]
    fn the_refresh_bit_toggles() {
        let pit = Pit::new();
        assert_ne!(pit.read_port_61(0) & 0x10, pit.read_port_61(1 << 14) & 0x10);
    }
}
