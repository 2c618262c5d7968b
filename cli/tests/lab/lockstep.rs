//! Every example guest on both at once, compared at each of its checkpoints and nested event by
//! nested event.

use crate::machine::{self, LIMIT};
use crate::{Check, Checked, Outcome};
use anyhow::bail;
use nvmx_core::vcpu::Vm;
use nvmx_lab::Kernel;
use nvmx_machine::{Stop, boot};
use nvmx_snapshots::compare::{self, Options, Side};

/// What a guest writes to the debug-exit port when all went as it should.
const SUCCESS: Stop = Stop::DebugExit(0x10);
/// Rounds that each guest goes through its scenarios: later ones start from what earlier ones left.
const ITERATIONS: u32 = 2;

/// Guests that say nothing there, and why.
const EXCLUDED: &[(&str, &str)] = &[(
    "stepping",
    "Bochs 2.7 offers the monitor trap flag to KVM but never traps, so KVM's L2 runs on",
)];

pub(crate) fn checks(kernel: Kernel) -> Vec<Check> {
    let check = |guest: &'static str| Check {
        name: format!("lockstep {guest}"),
        run: Box::new(move |lab| {
            let excluded = EXCLUDED.iter().find(|(name, _)| *name == guest);
            if let Some((_, why)) = excluded {
                return Ok(Outcome::Skipped((*why).into()));
            }
            run(guest, kernel, &mut lab.machine()?)
        }),
    };
    let all = nvmx_examples::guests::all().iter();
    all.map(|guest| check(guest.name)).collect()
}

fn run(guest: &str, kernel: Kernel, kvm: &mut dyn Vm) -> Checked {
    let image = machine::image(guest, ITERATIONS)?;
    let mut soft = machine::soft()?;
    compare::align(kvm, &mut soft)?;
    boot(&mut soft, &image)?;
    boot(kvm, &image)?;
    let side = |name: String, vm| Side { name, vm };
    let options = Options {
        checkpoints: None,
        time: LIMIT,
    };
    let result = compare::compare(
        side("soft".into(), &mut soft),
        side(format!("KVM {kernel}"), kvm),
        &options,
        &mut |_, _| {},
    )?;
    match result.outcome {
        compare::Outcome::Same => {}
        compare::Outcome::Different(divergence) => bail!(
            "after {} equal checkpoints: {}\n{}",
            result.checkpoints,
            divergence.what,
            divergence.diff
        ),
        compare::Outcome::Poisoned(why) => bail!("the run says nothing: {why}"),
    }
    if result.stop != Some(SUCCESS) {
        bail!("both ended with {:?}", result.stop);
    }
    if result.compared_events != result.events[0] {
        bail!(
            "{} of {} nested events were compared: {:?}",
            result.compared_events,
            result.events[0],
            result.not_compared
        );
    }
    let explained: Vec<_> = result.explained.keys().copied().collect();
    Ok(Outcome::Passed(
        format!(
            "{} checkpoints, {} nested events, {} pages; explained by {}",
            result.checkpoints,
            result.compared_events,
            result.compared_pages,
            explained.join(", ")
        ),
        result.compared_events,
    ))
}
