//! Runs a machine on from where a snapshot put it, and captures where it arrived.

use crate::capture::{MemoryScope, capture};
use crate::error::{Error, Result};
use crate::model::{Meta, Snapshot};
use nvmx_core::addr::PAGE_SIZE;
use nvmx_core::vcpu::{BackendError, Budget, Capability, NestedEvent, Vm};
use nvmx_machine::{Driver, Stop};
use std::time::{Duration, Instant};

/// Where a replay ends at the latest. The first that is reached counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Until {
    /// After so many checkpoints of the guest.
    pub checkpoints: Option<u64>,
    /// At the checkpoint with this id.
    pub checkpoint_id: Option<u32>,
    /// After so many nested events (needs [`Capability::ExactNestedEvents`]).
    pub nested_events: Option<u64>,
    /// After so many instructions (needs [`Capability::ExactInstructions`]).
    pub instructions: Option<u64>,
    /// As soon as a nested entry is pending: met by the backend's own search, else by looking after
    /// every instruction.
    pub run_pending: bool,
    /// After so much time: a safety net.
    pub time: Option<Duration>,
}

/// What a replay saw.
#[derive(Debug)]
pub struct Replay {
    /// Ids of the checkpoints passed, in order.
    pub checkpoints: Vec<u32>,
    /// Why it ended.
    pub stop: Stop,
    /// Whether it ended where [`Until`] said, rather than by itself or by the clock.
    pub reached: bool,
    /// Nested events, as far as the backend sees them.
    pub events: Vec<NestedEvent>,
    /// Nested events that the backend could not keep.
    pub lost_events: u64,
    /// Values that the guest reported.
    pub reports: Vec<u32>,
    /// What the guest wrote to its serial port.
    pub serial: Vec<u8>,
}

/// Runs until `until`; `progress` hears of nested events so far at each stop.
pub fn run(
    vm: &mut dyn Vm,
    until: &Until,
    driver: &mut Driver,
    progress: &mut dyn FnMut(u64),
) -> Result<Replay> {
    check(vm, until)?;
    let start = Instant::now();
    let first_instruction = vm.vcpu(0).executed_instructions().unwrap_or(0);
    let failed = |e| Error::backend("running the guest")(e);
    let mut checkpoints = Vec::new();
    let (stop, reached) = loop {
        let events = driver.events().len() as u64;
        progress(events);
        let left = until
            .time
            .map(|limit| limit.saturating_sub(start.elapsed()));
        if left.is_some_and(|left| left.is_zero()) {
            break (Stop::Budget, false);
        }
        if until.run_pending {
            match seek_pending(vm, driver, left)? {
                Some(done) => break done,
                None => continue,
            }
        }
        let executed = vm.vcpu(0).executed_instructions().unwrap_or(0);
        let budget = Budget {
            instructions: until
                .instructions
                .map(|limit| limit.saturating_sub(executed - first_instruction)),
            nested_events: until
                .nested_events
                .map(|limit| limit.saturating_sub(events)),
            until: None,
            time: left,
        };
        let stop = driver.run(vm, budget).map_err(failed)?;
        match stop {
            Stop::Checkpoint(id) => {
                checkpoints.push(id);
                let enough = until
                    .checkpoints
                    .is_some_and(|n| checkpoints.len() as u64 >= n)
                    || until.checkpoint_id == Some(id);
                if enough {
                    break (stop, true);
                }
            }
            Stop::Budget => {
                let timed_out = until.time.is_some_and(|limit| start.elapsed() >= limit);
                let by_events = until
                    .nested_events
                    .is_some_and(|limit| driver.events().len() as u64 >= limit);
                let reached =
                    by_events || until.instructions.is_some() || (timed_out && only_time(until));
                break (stop, reached);
            }
            _ => break (stop, false),
        }
    };
    Ok(Replay {
        checkpoints,
        stop,
        reached,
        events: driver.take_events(),
        lost_events: driver.lost_events(),
        reports: driver.reports().to_vec(),
        serial: driver.serial().clone(),
    })
}

fn only_time(until: &Until) -> bool {
    let time_alone = Until {
        time: until.time,
        ..Until::default()
    };
    *until == time_alone
}

fn check(vm: &dyn Vm, until: &Until) -> Result<()> {
    let need = |wanted: bool, capability| {
        if wanted {
            vm.capabilities()
                .require(capability)
                .map_err(Error::backend("the end of the run as asked for"))
        } else {
            Ok(())
        }
    };
    need(until.nested_events.is_some(), Capability::ExactNestedEvents)?;
    need(until.instructions.is_some(), Capability::ExactInstructions)
}

/// Interruptions of one search, which is as long as nobody hears of progress.
const SEARCH_TRIES: u32 = 500;

/// On to a nested entry that is pending, or to the next exit to user space; the stop if the run ends
/// with it.
fn seek_pending(
    vm: &mut dyn Vm,
    driver: &mut Driver,
    left: Option<Duration>,
) -> Result<Option<(Stop, bool)>> {
    let failed = |e| Error::backend("looking for a pending nested entry")(e);
    match vm.vcpu(0).run_until_run_pending(SEARCH_TRIES) {
        Ok(true) => {
            driver.collect(vm).map_err(failed)?;
            return Ok(Some((Stop::Budget, true)));
        }
        Ok(false) => {}
        Err(BackendError::Unsupported(_)) => return step_until_pending(vm, driver, left),
        Err(error) => return Err(failed(error)),
    }
    // What stopped the search is an exit that waits here, or nothing: then one moment more.
    let exit = vm.vcpu(0).run(Budget::time(Duration::from_micros(1)));
    driver.collect(vm).map_err(failed)?;
    let stop = driver
        .handle(vm, 0, exit.map_err(failed)?)
        .map_err(failed)?;
    Ok(match stop {
        None | Some(Stop::Checkpoint(_) | Stop::Budget) => None,
        Some(stop) => Some((stop, false)),
    })
}

/// One instruction after the other; the stop if the run ends with it.
fn step_until_pending(
    vm: &mut dyn Vm,
    driver: &mut Driver,
    left: Option<Duration>,
) -> Result<Option<(Stop, bool)>> {
    use nvmx_core::nested::Flags;
    let start = Instant::now();
    loop {
        let failed = |e| Error::backend("stepping the guest")(e);
        let exit = vm.vcpu(0).step().map_err(failed)?;
        driver.collect(vm).map_err(failed)?;
        match driver.handle(vm, 0, exit).map_err(failed)? {
            None | Some(Stop::Checkpoint(_)) => {}
            Some(stop) => return Ok(Some((stop, false))),
        }
        let nested = vm.vcpu(0).nested_state().map_err(failed)?;
        if nested.flags().contains(Flags::RUN_PENDING) {
            return Ok(Some((Stop::Budget, true)));
        }
        if left.is_some_and(|left| start.elapsed() >= left) {
            return Ok(Some((Stop::Budget, false)));
        }
    }
}

/// Captures a machine whose memory was zero when it was created: only pages ever written are read,
/// where the backend knows them.
pub fn capture_written(vm: &mut dyn Vm, meta: Meta) -> Result<Snapshot> {
    if !vm.capabilities().has(Capability::DirtyPages) {
        return capture(vm, meta, MemoryScope::All);
    }
    let mut pages = vm
        .dirty_pages()
        .map_err(Error::backend("asking for written pages"))?;
    pages.retain(|page| *page < vm.memory_size() / PAGE_SIZE);
    capture(vm, meta, MemoryScope::Pages(&pages))
}
