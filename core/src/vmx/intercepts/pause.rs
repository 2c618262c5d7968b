//! PAUSE (SDM Vol. 3C "Instructions That Cause VM Exits Conditionally", "Changes to Instruction Behavior
//! in VMX Non-Root Operation"): "PAUSE exiting" and "PAUSE-loop exiting".

use super::Intercepts;
use crate::vmx::controls::{Primary, Secondary};
use crate::vmx::exit::{ExitReason, VmExit};

/// What PAUSE-loop exiting remembers between two executions of PAUSE; [`Default`] after VM entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PauseLoop {
    /// Times of the first PAUSE of the loop and of the last.
    times: Option<[u64; 2]>,
}

impl Intercepts {
    /// PAUSE at this privilege level and time of L1's TSC.
    ///
    /// "PAUSE-loop exiting" looks at CPL 0 alone, and not at all with "PAUSE exiting".
    #[must_use]
    pub fn pause(&self, cpl: u8, now: u64, spin: &mut PauseLoop, length: u32) -> Option<VmExit> {
        let exit = VmExit::instruction(ExitReason::PAUSE, length);
        if self.primary(Primary::PAUSE_EXITING) {
            return Some(exit);
        }
        if !self.secondary(Secondary::PAUSE_LOOP_EXITING) || cpl != 0 {
            return None;
        }
        let [gap, window] = self.pause_gap_and_window.map(u64::from);
        let first = match spin.times {
            Some([first, last]) if now.wrapping_sub(last) <= gap => first,
            _ => now,
        };
        spin.times = Some([first, now]);
        (now.wrapping_sub(first) > window).then_some(exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_spins_past_the_window_exits() {
        let intercepts = Intercepts {
            secondary: Secondary::PAUSE_LOOP_EXITING,
            pause_gap_and_window: [10, 100],
            ..Intercepts::default()
        };
        let mut spin = PauseLoop::default();
        // Time, CPL, whether it exits.
        let rows = [
            (1000, 0, false),
            (1010, 0, false),
            // More than the gap later: a new loop.
            (1021, 0, false),
            // At CPL 3 nothing is noted.
            (1030, 3, false),
            (1032, 0, false),
            (1042, 0, false),
        ];
        for (now, cpl, exits) in rows {
            let exit = intercepts.pause(cpl, now, &mut spin, 2);
            assert_eq!(exit.is_some(), exits, "at {now}");
        }
        let mut now = 1042;
        let exit = loop {
            now += 9;
            if let Some(exit) = intercepts.pause(0, now, &mut spin, 2) {
                break exit;
            }
        };
        // The loop began at 1032.
        assert_eq!(now, 1141);
        assert_eq!(exit, VmExit::instruction(ExitReason::PAUSE, 2));
    }

    #[test]
    fn pause_exiting_goes_first_and_at_any_level() {
        let intercepts = Intercepts {
            primary: Primary::PAUSE_EXITING,
            secondary: Secondary::PAUSE_LOOP_EXITING,
            ..Intercepts::default()
        };
        let mut spin = PauseLoop::default();
        assert!(intercepts.pause(3, 5, &mut spin, 2).is_some());
        assert_eq!(spin, PauseLoop::default());
        let none = Intercepts::default();
        assert_eq!(none.pause(0, 5, &mut spin, 2), None);
    }
}
