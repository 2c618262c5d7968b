//! The APIC timer: one-shot, periodic, TSC-deadline (SDM Vol. 3A "APIC Timer").

use super::Apic;
use super::registers::{CURRENT_COUNT, DIVIDE, INITIAL_COUNT, IRR, LVT_TIMER, MASKED};
use serde::{Deserialize, Serialize};

/// KVM's floor for the period of a periodic timer (`min_timer_period_us` is 200), in nanoseconds.
const SHORTEST_PERIOD_NS: u64 = 200_000;

/// Timer mode: bits 18:17 of the timer's local-vector-table entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    OneShot,
    Periodic,
    TscDeadline,
}

/// What the registers do not say of the timer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Timer {
    /// L1's TSC at the next expiry.
    pub(super) deadline: Option<u64>,
    /// IA32_TSC_DEADLINE.
    pub(super) tsc_deadline: u64,
    /// Nanoseconds of a period, after KVM's floor.
    pub(super) period_ns: u64,
}

impl Apic {
    pub(super) fn timer_mode(&self) -> Mode {
        match self.get(LVT_TIMER) >> 17 & 3 {
            0 => Mode::OneShot,
            1 => Mode::Periodic,
            // 3 is reserved; it counts nothing, as the deadline mode without a deadline.
            _ => Mode::TscDeadline,
        }
    }

    /// Nanoseconds of one count: the divide configuration, bits 3, 1 and 0.
    fn divide(&self) -> u64 {
        let value = self.get(DIVIDE);
        let encoded = value & 3 | value >> 1 & 4;
        1 << ((encoded + 1) & 7)
    }

    fn ns_to_ticks(&self, ns: u64) -> u64 {
        (u128::from(ns) * u128::from(self.tsc_khz)).div_ceil(1_000_000) as u64
    }

    fn ticks_to_ns(&self, ticks: u64) -> u64 {
        u64::try_from(u128::from(ticks) * 1_000_000 / u128::from(self.tsc_khz.max(1)))
            .unwrap_or(u64::MAX)
    }

    /// L1's TSC at which the timer expires next.
    #[must_use]
    pub fn next_deadline(&self) -> Option<u64> {
        self.timer.deadline
    }

    /// Whether an expiry would make an interrupt that does not wait already.
    #[must_use]
    pub fn timer_can_interrupt(&self) -> bool {
        let entry = self.get(LVT_TIMER);
        entry & MASKED == 0
            && self.is_enabled()
            && self.is_software_enabled()
            && !self.bit(IRR, entry as u8)
    }

    /// Lets the timer expire as often as `now` says. Expiries that were missed become one interrupt,
    /// which is what the request bit makes of them anyway.
    pub fn poll(&mut self, now: u64) {
        let Some(deadline) = self.timer.deadline else {
            return;
        };
        if now < deadline {
            return;
        }
        self.timer.deadline = None;
        match self.timer_mode() {
            Mode::OneShot => {}
            Mode::TscDeadline => self.timer.tsc_deadline = 0,
            Mode::Periodic => {
                let period = self.ns_to_ticks(self.timer.period_ns).max(1);
                let missed = (now - deadline) / period;
                let next = u128::from(deadline) + u128::from(period) * (u128::from(missed) + 1);
                self.timer.deadline = u64::try_from(next).ok();
            }
        }
        let entry = self.get(LVT_TIMER);
        if entry & MASKED == 0 {
            self.accept(entry as u8, false);
        }
    }

    /// The current-count register.
    pub(super) fn current_count(&self, now: u64) -> u32 {
        if self.timer_mode() == Mode::TscDeadline {
            return 0;
        }
        let Some(deadline) = self.timer.deadline else {
            return 0;
        };
        let ns = self.ticks_to_ns(deadline.saturating_sub(now));
        let count = ns.min(self.timer.period_ns) / self.divide();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    /// Starts to count `count` down; zero stops the timer.
    fn start(&mut self, count: u32, now: u64) {
        let initial = u64::from(self.get(INITIAL_COUNT)) * self.divide();
        self.timer.period_ns = match self.timer_mode() {
            Mode::Periodic => initial.max(SHORTEST_PERIOD_NS),
            _ => initial,
        };
        let mut ns = u64::from(count) * self.divide();
        if self.timer_mode() == Mode::Periodic && count == self.get(INITIAL_COUNT) {
            ns = self.timer.period_ns;
        }
        self.timer.deadline = (count != 0).then(|| now.saturating_add(self.ns_to_ticks(ns)));
    }

    /// A write of the initial-count register; ignored in TSC-deadline mode.
    pub(super) fn set_initial_count(&mut self, count: u32, now: u64) {
        if self.timer_mode() == Mode::TscDeadline {
            return;
        }
        self.set(INITIAL_COUNT, count);
        self.start(count, now);
    }

    /// A write of the divide configuration: what is left of the count goes on at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let left = self.current_count(now);
        self.set(DIVIDE, value & 0xb);
        if self.timer_mode() != Mode::TscDeadline && self.timer.deadline.is_some() {
            self.start(left.max(1), now);
        }
    }

    /// A write of the timer's local-vector-table entry; a change to or from TSC-deadline mode disarms.
    pub(super) fn set_lvt_timer(&mut self, value: u32, now: u64) {
        let old = self.timer_mode();
        let left = self.current_count(now);
        self.set(LVT_TIMER, value);
        let new = self.timer_mode();
        if old == new {
            return;
        }
        if old == Mode::TscDeadline || new == Mode::TscDeadline {
            self.set(INITIAL_COUNT, 0);
            self.timer = Timer::default();
        } else if left != 0 {
            self.start(left, now);
        }
    }

    /// IA32_TSC_DEADLINE as read: zero unless armed in that mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        if self.is_enabled() && self.timer_mode() == Mode::TscDeadline {
            self.timer.tsc_deadline
        } else {
            0
        }
    }

    /// A write of IA32_TSC_DEADLINE; ignored in the other modes. Zero disarms, the past fires at once.
    pub(super) fn set_tsc_deadline(&mut self, value: u64, now: u64) {
        if !self.is_enabled() || self.timer_mode() != Mode::TscDeadline {
            return;
        }
        self.timer.tsc_deadline = value;
        self.timer.deadline = (value != 0).then_some(value);
        self.poll(now);
    }

    /// After the registers were loaded: the count goes on from the current-count register.
    pub(super) fn resume_timer(&mut self, now: u64) {
        let kept = self.timer.tsc_deadline;
        self.timer = Timer::default();
        if self.timer_mode() == Mode::TscDeadline {
            self.timer.tsc_deadline = kept;
            self.timer.deadline = (kept != 0).then_some(kept);
            return;
        }
        let initial = self.get(INITIAL_COUNT);
        let mut count = self.get(CURRENT_COUNT).min(initial);
        if count == 0 && self.timer_mode() == Mode::Periodic {
            count = initial;
        }
        self.start(count, now);
    }
}
