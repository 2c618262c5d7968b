//! Who runs, and for how long: the loop around the engine for one processor, and the turns of several.
//!
//! All processors share the engine, one at a time in a fixed order, for slices that are counted in
//! instructions; so a run of several repeats to the bit as one of one does, wherever it is cut. Time is
//! one for all: an instruction of any of them is a tick.

use crate::engine::StopReason;
use crate::machine::{Runner, sync_in, sync_out};
use crate::vm::SoftVm;
use nvmx_core::addr::L1Phys;
use nvmx_core::apic::{is_lowest_priority, message_command};
use nvmx_core::cpu::Activity;
use nvmx_core::vcpu::{BackendError, Budget, Exit, Result};
use std::time::{Duration, Instant};

/// Instructions between two looks at the clock.
const TIME_SLICE: u64 = 2_000_000;
/// Instructions of a processor's turn, if it neither sleeps nor spins with PAUSE nor sends an interrupt.
const TURN: u64 = 1 << 14;

/// Where a run stops, in absolute counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Instructions of the machine.
    pub(crate) last_instruction: u64,
    /// Nested events of the processor.
    pub(crate) last_event: u64,
    /// Wall-clock time.
    pub(crate) give_up: Option<Instant>,
}

/// When a run with this budget gives up.
pub(crate) fn give_up(budget: &Budget) -> Option<Instant> {
    let longest = Duration::from_secs(1 << 32);
    budget.time.map(|limit| Instant::now() + limit.min(longest))
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Turn {
    index: usize,
    /// Its last instruction, in the machine's count.
    end: u64,
}

/// Machine time in nanoseconds, from ticks. A new TSC frequency holds from where it was set.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GuestClock {
    pub(crate) khz: u32,
    ticks: u64,
    ns: u64,
}

impl GuestClock {
    pub(crate) const fn new(khz: u32) -> Self {
        Self {
            khz,
            ticks: 0,
            ns: 0,
        }
    }

    /// Nanoseconds at this tick.
    pub(crate) fn ns(&self, tick: u64) -> u64 {
        let passed = u128::from(tick.saturating_sub(self.ticks)) * 1_000_000;
        let passed = u64::try_from(passed / u128::from(self.khz.max(1))).unwrap_or(u64::MAX);
        self.ns.saturating_add(passed)
    }

    /// The first tick at or after this time.
    pub(crate) fn tick(&self, ns: u64) -> u64 {
        let passed = u128::from(ns.saturating_sub(self.ns)) * u128::from(self.khz);
        let passed = u64::try_from(passed.div_ceil(1_000_000)).unwrap_or(u64::MAX);
        self.ticks.saturating_add(passed)
    }

    pub(crate) fn set_khz(&mut self, khz: u32, tick: u64) {
        if khz != self.khz {
            *self = Self {
                khz,
                ticks: tick,
                ns: self.ns(tick),
            };
        }
    }
}

/// What a processor that is not in the engine would do.
enum Look {
    Ready,
    Asleep,
    Exit(Exit),
}

impl SoftVm {
    /// The registers of the processor in the engine back into the engine.
    pub(crate) fn put(&mut self) {
        self.settled = false;
        if let Some(processor) = self.processors.get_mut(self.current) {
            sync_out(processor, self.engine.env_mut());
        }
    }

    /// Runs the processor in the engine. With [`Outside::together`](crate::processor::Outside) it comes
    /// back when it sleeps ([`Exit::Hlt`]) or gives way ([`Exit::Budget`]).
    pub(crate) fn run_to(&mut self, limits: Limits) -> Result<Exit> {
        self.processors[self.current].event_limit = limits.last_event;
        let (mut idle_calls, mut executed_at_call) = (0, self.engine.env().executed());
        loop {
            // A step ends where the next one begins.
            if !std::mem::take(&mut self.settled) {
                let exit = self.processors[self.current].boundary();
                self.put();
                if let Some(address) = self.ram.take_absent() {
                    return Err(BackendError::HostMemory {
                        address: L1Phys(address),
                    });
                }
                if let Some(exit) = exit {
                    return Ok(exit);
                }
            }
            let executed = self.engine.env().executed();
            let processor = &mut self.processors[self.current];
            if executed >= limits.last_instruction
                || processor.event_count >= limits.last_event
                || processor.cpu.tsc.ticks >= processor.until
                || limits.give_up.is_some_and(|time| Instant::now() >= time)
            {
                // With no event left the boundary has not looked.
                self.settled = processor.event_count < limits.last_event;
                return Ok(Exit::Budget);
            }
            let slice = if limits.give_up.is_some() {
                executed.saturating_add(TIME_SLICE)
            } else {
                u64::MAX
            };
            let mut runner = Runner {
                processor,
                last_instruction: limits.last_instruction.min(slice),
                last_event: limits.last_event,
                exit: None,
                calls: 0,
                idle_calls,
                executed_at_call,
            };
            let budget = runner.deadline(executed).saturating_sub(executed);
            let reason = self
                .engine
                .run(&mut runner, budget)
                .map_err(|e| BackendError::Other(format!("execution engine: {e}")))?;
            let exit = runner.exit.take();
            (idle_calls, executed_at_call) = (runner.idle_calls, runner.executed_at_call);
            let native = self.engine.env().executed() > processor.executed_at_sync;
            if native && processor.monitor_trap() {
                self.engine.env_mut().pass_spent_repeat();
            }
            sync_in(processor, self.engine.env());
            if let Some(address) = processor.ram.take_absent() {
                return Err(BackendError::HostMemory {
                    address: L1Phys(address),
                });
            }
            match (reason, exit) {
                (StopReason::Machine, Some(Exit::Budget))
                | (StopReason::Budget | StopReason::Requested, None) => {
                    // What was waiting for one instruction has had it.
                    if native {
                        processor.instruction_ran_natively();
                    }
                }
                (_, Some(exit)) => return Ok(exit),
                (StopReason::Machine, None) => {}
            }
            if processor.outside.leave && self.give_way() {
                return Ok(Exit::Budget);
            }
        }
    }

    /// Hands on what the processor in the engine sends. Whether its turn is over.
    fn give_way(&mut self) -> bool {
        let outside = &mut self.processors[self.current].outside;
        outside.leave = false;
        let together = outside.together;
        if let Some(command) = outside.outbox.take() {
            self.send(command, Some(self.current));
        }
        if together {
            self.turn.end = self.engine.env().executed();
        }
        together
    }

    /// Gives an interrupt command to whom it concerns; the sender has had its own already, unless one of
    /// several is to be picked. Whether anybody took it.
    pub(crate) fn send(&mut self, command: u64, sender: Option<usize>) -> bool {
        let is_sender = |index| sender == Some(index);
        if is_lowest_priority(command) {
            let lowest = self
                .processors
                .iter()
                .enumerate()
                .filter(|(index, p)| p.apic.is_destination(command, is_sender(*index)))
                .filter_map(|(index, p)| Some((p.apic.arbitration_priority()?, index)))
                .min();
            let Some((_, index)) = lowest else {
                return false;
            };
            self.hand(index, command, is_sender(index));
            return true;
        }
        let mut taken = false;
        for index in 0..self.processors.len() {
            let apic = &self.processors[index].apic;
            if !is_sender(index) && apic.is_destination(command, false) {
                taken = true;
                self.hand(index, command, false);
            }
        }
        taken
    }

    fn hand(&mut self, index: usize, command: u64, is_sender: bool) {
        self.processors[index].receive(command, is_sender);
    }

    /// A message on the bus. Whether anybody took it.
    pub(crate) fn message(&mut self, address: u64, data: u32) -> bool {
        let taken = message_command(address, data).is_some_and(|command| self.send(command, None));
        self.put();
        taken
    }

    /// Brings a processor into the engine.
    pub(crate) fn switch_to(&mut self, index: usize) {
        if index == self.current {
            return;
        }
        let env = self.engine.env_mut();
        let old = &mut self.processors[self.current];
        *old.fxsave = env.fxsave();
        let time = old.time();
        let new = &mut self.processors[index];
        env.set_fxsave(&new.fxsave);
        new.set_time(time);
        // Unicorn's TLB and intercepts are those of the other.
        new.effects.flush = true;
        new.effects.controls = true;
        self.current = index;
        self.put();
    }

    /// Whether the processors take turns.
    pub(crate) fn set_together(&mut self, together: bool) {
        for processor in &mut self.processors {
            if processor.outside.together != together {
                self.settled = false;
                processor.outside.together = together;
                processor.effects.controls = true;
            }
        }
    }

    /// Runs all processors in turns.
    pub(crate) fn run_together(&mut self, budget: &Budget) -> Result<(usize, Exit)> {
        let executed = self.engine.env().executed();
        let last_instruction = budget
            .instructions
            .map_or(u64::MAX, |n| executed.saturating_add(n));
        let last_event = budget
            .nested_events
            .map_or(u64::MAX, |n| self.event_count().saturating_add(n));
        let give_up = give_up(budget);
        let until = budget.until.map_or(u64::MAX, |ns| self.clock.tick(ns));
        loop {
            let executed = self.engine.env().executed();
            let (tick, _) = self.processors[self.current].time();
            let events_left = last_event - self.event_count().min(last_event);
            if executed >= last_instruction
                || events_left == 0
                || tick >= until
                || give_up.is_some_and(|time| Instant::now() >= time)
            {
                return Ok((self.turn.index, Exit::Budget));
            }
            if executed >= self.turn.end {
                self.begin_turn(self.turn.index + 1, executed);
            }
            let mut ready = None;
            for step in 0..self.processors.len() {
                let index = (self.turn.index + step) % self.processors.len();
                match self.look(index, until, events_left) {
                    Look::Asleep => {}
                    Look::Ready => {
                        ready = Some(index);
                        break;
                    }
                    Look::Exit(exit) => return Ok((index, exit)),
                }
            }
            let Some(index) = ready else {
                let alarm = self.next_alarm(None);
                if alarm.min(until) == u64::MAX {
                    return Ok((0, Exit::Hlt));
                }
                self.processors[self.current].sleep_until(alarm.min(until));
                self.put();
                continue;
            };
            if index != self.turn.index {
                self.begin_turn(index, executed);
            }
            self.switch_to(index);
            // A sleeper is woken on time.
            let (tick, _) = self.processors[index].time();
            let alarm = self.next_alarm(Some(index)).saturating_sub(tick).max(1);
            let last = last_instruction
                .min(self.turn.end)
                .min(executed.saturating_add(alarm));
            let limits = Limits {
                last_instruction: last,
                last_event: self.processors[index]
                    .event_count
                    .saturating_add(events_left),
                give_up,
            };
            match self.run_to(limits)? {
                // The loop finds out which limit it was, and who sleeps.
                Exit::Budget | Exit::Hlt => {}
                exit => return Ok((index, exit)),
            }
        }
    }

    fn begin_turn(&mut self, index: usize, executed: u64) {
        self.turn = Turn {
            index: index % self.processors.len(),
            end: executed.saturating_add(TURN),
        };
    }

    /// Nested events of all processors.
    fn event_count(&self) -> u64 {
        self.processors.iter().map(|p| p.event_count).sum()
    }

    /// Delivers what waits at a processor, and says what it does next.
    fn look(&mut self, index: usize, until: u64, events_left: u64) -> Look {
        let time = self.processors[self.current].time();
        let processor = &mut self.processors[index];
        processor.set_time(time);
        processor.until = until;
        processor.event_limit = processor.event_count.saturating_add(events_left);
        let exit = processor.boundary();
        if index == self.current {
            self.put();
        }
        match exit {
            None => Look::Ready,
            Some(Exit::Hlt) => Look::Asleep,
            Some(exit) => Look::Exit(exit),
        }
    }

    /// The first tick at which a timer wakes one that sleeps, `but` one.
    fn next_alarm(&self, but: Option<usize>) -> u64 {
        self.processors
            .iter()
            .enumerate()
            .filter(|(index, p)| but != Some(*index) && p.cpu.activity != Activity::Active)
            .filter_map(|(_, processor)| processor.next_alarm())
            .min()
            .unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_time_does_not_jump_with_the_frequency() {
        let mut clock = GuestClock::new(1_000_000);
        assert_eq!((clock.ns(5), clock.tick(5)), (5, 5));
        clock.set_khz(3_000_000, 600);
        assert_eq!(clock.ns(600), 600);
        assert_eq!(clock.ns(900), 700);
        assert_eq!(clock.tick(700), 900);
        assert_eq!(clock.ns(clock.tick(701)), 701);
        assert_eq!(clock.tick(u64::MAX), u64::MAX);
    }
}
