//! Two backends in lockstep: the same guest on both, stopped at each of its checkpoints, compared in
//! everything that both can see, until the first difference that nothing explains.

use crate::capture::{MemoryScope, capture, capture_vcpus};
use crate::diff::Diff;
use crate::error::{Error, Result};
use crate::model::{Meta, Snapshot};
use crate::pages::{PAGE, PageStore};
use nvmx_core::addr::PAGE_SIZE;
use nvmx_core::vcpu::{Budget, Capability, NestedEvent, Parts, Vm};
use nvmx_machine::{Driver, Stop};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One side.
pub struct Side<'a> {
    /// Its name, for messages.
    pub name: String,
    /// The machine, with the guest loaded.
    pub vm: &'a mut dyn Vm,
}

/// How far to go.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Checkpoints at most.
    pub checkpoints: Option<u64>,
    /// Time that either side may take from one stop to the next.
    pub time: Duration,
}

/// How it ended.
#[derive(Debug)]
pub enum Outcome {
    /// Both came to the same end, and nothing unexplained differed on the way.
    Same,
    /// The first difference that nothing explains.
    Different(Box<Divergence>),
    /// The run says nothing about equality: why.
    Poisoned(String),
}

/// A difference, and both machines as they were.
#[derive(Debug)]
pub struct Divergence {
    /// What differs, in words.
    pub what: String,
    /// State that differs, where it does.
    pub diff: Diff,
    /// The left machine.
    pub left: Snapshot,
    /// The right machine.
    pub right: Snapshot,
}

/// The result.
#[derive(Debug)]
pub struct Comparison {
    /// Checkpoints that both passed alike.
    pub checkpoints: u64,
    /// Nested events seen on the left and on the right.
    pub events: [u64; 2],
    /// Nested events that were compared one by one.
    pub compared_events: u64,
    /// Pages of memory compared.
    pub compared_pages: u64,
    /// Differences that a policy explained, by its name.
    pub explained: BTreeMap<&'static str, u64>,
    /// What could not be compared, and why.
    pub not_compared: BTreeSet<String>,
    /// The last stop.
    pub stop: Option<Stop>,
    /// How it ended.
    pub outcome: Outcome,
}

/// Gives `follower` the whole power-on state of `model`, its CPUID, TSC frequency and VMX capability
/// MSRs included, so that the guest sees the same processor on both. Call it before anything runs.
pub fn align(model: &mut dyn Vm, follower: &mut dyn Vm) -> Result<()> {
    for index in 0..model.vcpu_count().min(follower.vcpu_count()) {
        let state = model
            .vcpu(index)
            .state(Parts::All)
            .map_err(Error::backend("reading the processor's model"))?;
        follower
            .vcpu(index)
            .set_state(&state)
            .map_err(Error::backend("giving both sides the same processor"))?;
    }
    Ok(())
}

struct Runner<'a> {
    sides: [Side<'a>; 2],
    drivers: [Driver; 2],
    result: Comparison,
}

/// Runs both to the end, or to the first difference. `progress` hears checkpoints and events so far.
pub fn compare<'a>(
    left: Side<'a>,
    right: Side<'a>,
    options: &Options,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Comparison> {
    let mut runner = Runner {
        sides: [left, right],
        drivers: [Driver::default(), Driver::default()],
        result: Comparison {
            checkpoints: 0,
            events: [0; 2],
            compared_events: 0,
            compared_pages: 0,
            explained: BTreeMap::new(),
            not_compared: BTreeSet::new(),
            stop: None,
            outcome: Outcome::Same,
        },
    };
    runner.drain_dirty()?;
    loop {
        let stops = [runner.advance(0, options)?, runner.advance(1, options)?];
        progress(
            runner.result.checkpoints,
            runner.result.events[0].max(runner.result.events[1]),
        );
        if let Some(outcome) = runner.judge(&stops)? {
            runner.result.outcome = outcome;
            break;
        }
        let [stop, _] = stops;
        let is_checkpoint = matches!(stop, Stop::Checkpoint(_));
        runner.result.stop = Some(stop);
        if !is_checkpoint {
            break;
        }
        runner.result.checkpoints += 1;
        if options
            .checkpoints
            .is_some_and(|limit| runner.result.checkpoints >= limit)
        {
            break;
        }
    }
    Ok(runner.result)
}

impl Runner<'_> {
    fn advance(&mut self, index: usize, options: &Options) -> Result<Stop> {
        let side = &mut self.sides[index];
        self.drivers[index]
            .run(side.vm, Budget::time(options.time))
            .map_err(Error::backend(format!("running {}", side.name)))
    }

    /// The outcome if this stop decides it.
    fn judge(&mut self, stops: &[Stop; 2]) -> Result<Option<Outcome>> {
        for (side, stop) in self.sides.iter().zip(stops) {
            let why = match stop {
                Stop::Unsupported(what) => format!("unsupported: {what}"),
                Stop::InternalError { suberror, message } => {
                    format!("internal error {suberror}: {message}")
                }
                Stop::Budget => "the time was up before the next checkpoint".into(),
                _ => continue,
            };
            return Ok(Some(Outcome::Poisoned(format!("{}: {why}", side.name))));
        }
        let events = [self.drivers[0].take_events(), self.drivers[1].take_events()];
        for (count, events) in self.result.events.iter_mut().zip(&events) {
            *count += events.len() as u64;
        }
        let mut what = Vec::new();
        if stops[0] != stops[1] {
            what.push(format!("stops differ: {:?} and {:?}", stops[0], stops[1]));
        }
        if let Some(difference) = self.compare_events(&events) {
            what.push(difference);
        }
        let [a, b] = &self.drivers;
        if let Some(difference) = first_difference("reports", a.reports(), b.reports()) {
            what.push(difference);
        }
        if let Some(difference) = first_difference("serial output", a.serial(), b.serial()) {
            what.push(difference);
        }
        let diff = self.compare_state()?;
        for row in diff.rows.iter().filter_map(|row| row.policy) {
            *self.result.explained.entry(row).or_default() += 1;
        }
        for range in diff.memory.iter().filter_map(|range| range.policy) {
            *self.result.explained.entry(range).or_default() += 1;
        }
        self.result
            .not_compared
            .extend(diff.not_compared.iter().cloned());
        if diff.unexplained() > 0 {
            what.push(format!(
                "{} unexplained differences of state",
                diff.unexplained()
            ));
        }
        if what.is_empty() {
            return Ok(None);
        }
        let mut snapshots = Vec::new();
        for side in &mut self.sides {
            let meta = Meta {
                taken_by: side.vm.capabilities().description.clone(),
                note: Some(format!(
                    "{} at the first difference, after {} equal checkpoints",
                    side.name, self.result.checkpoints
                )),
                ..Meta::default()
            };
            snapshots.push(capture(side.vm, meta, MemoryScope::All)?);
        }
        let mut snapshots = snapshots.into_iter();
        let (left, right) = (snapshots.next(), snapshots.next());
        Ok(Some(Outcome::Different(Box::new(Divergence {
            what: what.join("; "),
            diff,
            left: left.unwrap_or_default(),
            right: right.unwrap_or_default(),
        }))))
    }

    fn compare_events(&mut self, events: &[Vec<NestedEvent>; 2]) -> Option<String> {
        for (side, driver) in self.sides.iter().zip(&self.drivers) {
            let reason = if !side.vm.capabilities().has(Capability::NestedEvents) {
                "does not report them"
            } else if driver.lost_events() > 0 {
                "lost some"
            } else {
                continue;
            };
            let entry = format!("nested events: {} {reason}", side.name);
            self.result.not_compared.insert(entry);
            return None;
        }
        for (number, (a, b)) in events[0].iter().zip(&events[1]).enumerate() {
            if !same_event(a, b) {
                return Some(format!(
                    "nested event {number} since the last checkpoint: {a:x?} and {b:x?}"
                ));
            }
            self.result.compared_events += 1;
        }
        let (a, b) = (events[0].len(), events[1].len());
        (a != b).then(|| {
            let longer = if a > b { &events[0] } else { &events[1] };
            format!("{a} and {b} nested events since the last checkpoint; the first that one side lacks: {:x?}", longer[a.min(b)])
        })
    }

    fn drain_dirty(&mut self) -> Result<()> {
        for side in &mut self.sides {
            if side.vm.capabilities().has(Capability::DirtyPages) {
                side.vm
                    .dirty_pages()
                    .map_err(Error::backend(format!("dirty pages of {}", side.name)))?;
            }
        }
        Ok(())
    }

    fn compare_state(&mut self) -> Result<Diff> {
        let mut pages = BTreeSet::new();
        let mut all_report = true;
        for side in &mut self.sides {
            if side.vm.capabilities().has(Capability::DirtyPages) {
                let dirty = side.vm.dirty_pages();
                pages.extend(
                    dirty.map_err(Error::backend(format!("dirty pages of {}", side.name)))?,
                );
            } else {
                all_report = false;
                let entry = format!("pages that only {} wrote: it keeps no record", side.name);
                self.result.not_compared.insert(entry);
            }
        }
        if !all_report && pages.is_empty() {
            pages.extend(0..self.sides[0].vm.memory_size() / PAGE_SIZE);
        }
        let mut snapshots = Vec::new();
        for side in &mut self.sides {
            let size = side.vm.memory_size();
            let numbers: Vec<u64> = pages
                .iter()
                .copied()
                .filter(|p| *p < size / PAGE_SIZE)
                .collect();
            let mut store = PageStore::new(size);
            for batch in numbers.chunks(1024) {
                let bytes = side
                    .vm
                    .read_pages(batch)
                    .map_err(Error::backend(format!("memory of {}", side.name)))?;
                for (page, content) in batch.iter().zip(bytes.as_chunks::<PAGE>().0) {
                    store.set(*page, content);
                }
            }
            snapshots.push(Snapshot {
                vcpus: capture_vcpus(side.vm)?,
                memory: Some(store),
                ..Snapshot::default()
            });
        }
        self.result.compared_pages += pages.len() as u64;
        Ok(Diff::of(&snapshots[0], &snapshots[1]))
    }
}

/// Equal in everything that both sides can see.
#[must_use]
pub fn same_event(a: &NestedEvent, b: &NestedEvent) -> bool {
    fn seen<T: PartialEq>(a: Option<T>, b: Option<T>) -> bool {
        match (a, b) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        }
    }
    use NestedEvent::{Entry, EntryFailure, Exit};
    match (*a, *b) {
        (
            Entry {
                vmcs12: v,
                l2_rip: r,
                injected: i,
            },
            Entry {
                vmcs12: w,
                l2_rip: s,
                injected: j,
            },
        ) => v == w && r == s && seen(i, j),
        (EntryFailure { error: e }, EntryFailure { error: f }) => seen(e, f),
        (
            Exit {
                reason: r1,
                qualification: q1,
                interruption: i1,
                error_code: e1,
                instruction_length: l1,
                guest_physical: g1,
                l2_rip: p1,
            },
            Exit {
                reason: r2,
                qualification: q2,
                interruption: i2,
                error_code: e2,
                instruction_length: l2,
                guest_physical: g2,
                l2_rip: p2,
            },
        ) => {
            // EPT misconfigurations define no qualification: see the policy
            // `misconfiguration-qualification`.
            const EPT_MISCONFIGURATION: u32 = 49;
            r1 == r2
                && (r1 == EPT_MISCONFIGURATION || seen(q1, q2))
                && seen(i1, i2)
                && seen(e1, e2)
                && seen(l1, l2)
                && seen(g1, g2)
                && seen(p1, p2)
        }
        _ => false,
    }
}

fn first_difference<T: PartialEq + std::fmt::LowerHex>(
    name: &str,
    a: &[T],
    b: &[T],
) -> Option<String> {
    if let Some(at) = a.iter().zip(b).position(|(a, b)| a != b) {
        return Some(format!(
            "{name} differ at {at}: {:#x} and {:#x}",
            a[at], b[at]
        ));
    }
    (a.len() != b.len()).then(|| format!("{name} have {} and {} entries", a.len(), b.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_compared_in_what_both_sides_see() {
        let exit = |reason, qualification| NestedEvent::Exit {
            reason,
            qualification,
            interruption: None,
            error_code: None,
            instruction_length: Some(2),
            guest_physical: None,
            l2_rip: Some(0x1000),
        };
        assert!(same_event(&exit(10, None), &exit(10, Some(5))));
        assert!(!same_event(&exit(10, Some(4)), &exit(10, Some(5))));
        assert!(!same_event(&exit(10, None), &exit(12, None)));
        assert!(!same_event(
            &exit(10, None),
            &NestedEvent::EntryFailure { error: None }
        ));
    }

    #[test]
    fn the_first_difference_is_named() {
        assert_eq!(first_difference("x", &[1_u32, 2], &[1, 2]), None);
        assert_eq!(
            first_difference("x", &[1_u32, 2], &[1, 3]).unwrap(),
            "x differ at 1: 0x2 and 0x3"
        );
        assert_eq!(
            first_difference("x", &[1_u32], &[1, 3]).unwrap(),
            "x have 1 and 2 entries"
        );
    }
}
