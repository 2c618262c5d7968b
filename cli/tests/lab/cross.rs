//! Snapshots that one took, run on by the other: both must come to the same end by the same way.

use crate::machine::{self, LIMIT, OpenLab};
use crate::{Check, Checked, Outcome};
use anyhow::{Context, bail};
use nvmx_core::nested::{Flags, NestedState};
use nvmx_core::vcpu::{NestedEvent, Vm};
use nvmx_machine::{Driver, boot};
use nvmx_snapshots::capture::{MemoryScope, capture};
use nvmx_snapshots::replay::{self, Replay, Until};
use nvmx_snapshots::{Diff, Meta, Snapshot, Target, compare};

/// Where to take a snapshot.
struct Instant {
    name: &'static str,
    guest: &'static str,
    iterations: u32,
    at: Until,
    /// What the nested state there must look like.
    holds: fn(&NestedState) -> bool,
}

const NOWHERE: Until = Until {
    checkpoints: None,
    checkpoint_id: None,
    nested_events: None,
    instructions: None,
    run_pending: false,
    time: Some(LIMIT),
};

const fn at_id(id: u32) -> Until {
    Until {
        checkpoint_id: Some(id),
        ..NOWHERE
    }
}

static INSTANTS: &[Instant] = &[
    Instant {
        name: "l1",
        guest: "roundtrip",
        iterations: 1,
        at: Until {
            checkpoints: Some(1),
            ..NOWHERE
        },
        holds: |nested| !nested.guest_mode() && nested.vmcs12().is_some(),
    },
    Instant {
        name: "l2",
        guest: "exits",
        iterations: 5,
        at: at_id(0x00ff_0000),
        holds: NestedState::guest_mode,
    },
    Instant {
        name: "l2-shadow",
        guest: "shadow",
        iterations: 5,
        at: at_id(0x00fd_0000),
        holds: |nested| nested.guest_mode() && nested.shadow_vmcs12().is_some(),
    },
    Instant {
        name: "l2-timer",
        guest: "timers",
        iterations: 3,
        at: at_id(0x00fc_0000),
        holds: |nested| nested.guest_mode() && nested.preemption_timer_deadline().is_some(),
    },
    Instant {
        name: "l2-deadline",
        guest: "apic",
        iterations: 3,
        at: at_id(0x00fe_0000),
        holds: NestedState::guest_mode,
    },
    Instant {
        name: "entry-pending",
        guest: "roundtrip",
        iterations: 5,
        at: Until {
            run_pending: true,
            ..NOWHERE
        },
        holds: |nested| nested.flags().contains(Flags::RUN_PENDING),
    },
];

pub(crate) fn checks() -> Vec<Check> {
    let mut checks = Vec::new();
    for instant in INSTANTS {
        checks.push(Check {
            name: format!("cross KVM to soft, {}", instant.name),
            run: Box::new(|lab| kvm_to_soft(lab, instant)),
        });
        checks.push(Check {
            name: format!("cross soft to KVM, {}", instant.name),
            run: Box::new(|lab| soft_to_kvm(lab, instant)),
        });
    }
    checks
}

fn kvm_to_soft(lab: &OpenLab, instant: &Instant) -> Checked {
    let mut kvm = lab.machine()?;
    boot(
        &mut kvm,
        &machine::image(instant.guest, instant.iterations)?,
    )?;
    let start = take(&mut kvm, instant)?;
    let theirs = go_on(&mut kvm, &start).context("KVM, going on")?;
    let mut soft = machine::soft()?;
    nvmx_snapshots::restore(&mut soft, &start, Target::Fresh)?;
    let ours = go_on(&mut soft, &start).context("soft, from KVM's snapshot")?;
    same(&without_pending_entry(theirs, &start), &ours)
}

/// KVM's tracepoint for an entry may be read only after the stop at which the entry was pending: it
/// then belongs to what was before the snapshot.
fn without_pending_entry(mut run: (Replay, Snapshot), start: &Snapshot) -> (Replay, Snapshot) {
    let nested = start.vcpus[0].nested.as_ref();
    let pending = nested.is_some_and(|nested| nested.flags().contains(Flags::RUN_PENDING));
    if pending && matches!(run.0.events.first(), Some(NestedEvent::Entry { .. })) {
        run.0.events.remove(0);
    }
    run
}

fn soft_to_kvm(lab: &OpenLab, instant: &Instant) -> Checked {
    let mut kvm = lab.machine()?;
    let mut soft = machine::soft()?;
    compare::align(&mut kvm, &mut soft)?;
    boot(
        &mut soft,
        &machine::image(instant.guest, instant.iterations)?,
    )?;
    let start = take(&mut soft, instant)?;
    let ours = go_on(&mut soft, &start).context("soft, going on")?;
    nvmx_snapshots::restore(&mut kvm, &start, Target::Fresh)?;
    let theirs = go_on(&mut kvm, &start).context("KVM, from soft's snapshot")?;
    same(&theirs, &ours)
}

/// Runs to the instant and captures; a second capture must be equal.
fn take(vm: &mut dyn Vm, instant: &Instant) -> anyhow::Result<Snapshot> {
    let mut driver = Driver::default();
    let run = replay::run(vm, &instant.at, &mut driver, &mut |_| {})?;
    if !run.reached {
        bail!(
            "{} was not reached: the guest ended with {:?} after {} nested events",
            instant.name,
            run.stop,
            run.events.len()
        );
    }
    let snapshot = replay::capture_written(vm, Meta::default())?;
    let nested = snapshot.vcpus[0].nested.as_ref();
    if !nested.is_some_and(instant.holds) {
        bail!(
            "the nested state is not what {} means: {nested:?}",
            instant.name
        );
    }
    let again = capture(vm, Meta::default(), MemoryScope::None)?;
    let diff = Diff::of(&snapshot, &again);
    if diff.rows.iter().any(|row| row.class.is_unexplained()) {
        bail!("a second capture differs:\n{diff}");
    }
    Ok(snapshot)
}

/// To the guest's end; what was seen, and the state there.
fn go_on(vm: &mut dyn Vm, start: &Snapshot) -> anyhow::Result<(Replay, Snapshot)> {
    let mut driver = Driver::default();
    let run = replay::run(vm, &NOWHERE, &mut driver, &mut |_| {})?;
    let mut pages = vm.dirty_pages()?;
    pages.extend(
        start
            .memory
            .iter()
            .flat_map(|memory| memory.index())
            .map(|(page, _)| *page),
    );
    pages.sort_unstable();
    pages.dedup();
    pages.retain(|page| *page < vm.memory_size() / nvmx_core::addr::PAGE_SIZE);
    let end = capture(vm, Meta::default(), MemoryScope::Pages(&pages))?;
    Ok((run, end))
}

fn same(kvm: &(Replay, Snapshot), soft: &(Replay, Snapshot)) -> Checked {
    let ((kvm, kvm_end), (soft, soft_end)) = (kvm, soft);
    if kvm.stop != nvmx_machine::Stop::DebugExit(0x10) || soft.stop != kvm.stop {
        bail!("KVM ended with {:?}, soft with {:?}", kvm.stop, soft.stop);
    }
    if kvm.checkpoints != soft.checkpoints || kvm.reports != soft.reports {
        bail!("checkpoints or reports differ");
    }
    if kvm.lost_events == 0 {
        let pairs = kvm.events.iter().zip(&soft.events);
        if let Some((a, b)) = pairs.clone().find(|(a, b)| !compare::same_event(a, b)) {
            bail!("nested events differ: {a:x?} on KVM, {b:x?} on soft");
        }
        if kvm.events.len() != soft.events.len() {
            bail!(
                "{} nested events on KVM, {} on soft",
                kvm.events.len(),
                soft.events.len()
            );
        }
    }
    let diff = Diff::of(kvm_end, soft_end);
    if diff.unexplained() > 0 {
        bail!("the ends differ (left KVM, right soft):\n{diff}");
    }
    Ok(Outcome::Passed(
        format!(
            "{} nested events from there to the same end, {} lost",
            soft.events.len(),
            kvm.lost_events
        ),
        0,
    ))
}
