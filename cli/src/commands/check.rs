//! `nvmx check`

use crate::args::Check;
use crate::{DIFFERENT, SAME, output};
use anyhow::bail;
use nvmx_snapshots::check::{self, Audit, Options};

pub(crate) fn run(options: &Check) -> anyhow::Result<u8> {
    let subject = check::load(&options.file)?;
    let on = |profile| Options {
        profile,
        personality: options.personality,
    };
    let audits: Vec<Audit> = if options.profile.is_empty() {
        check::audit(&subject, on(None))
    } else {
        let profiles = options.profile.iter().copied().map(Some);
        profiles
            .flat_map(|profile| check::audit(&subject, on(profile)))
            .collect()
    };
    if audits.is_empty() {
        bail!(
            "{}: no vCPU has a current VMCS; there is nothing to check",
            options.file.display()
        );
    }
    if options.json {
        output::print_json(&audits)?;
    } else if options.profile.len() > 1 {
        output::print(&check::comparison(&audits))?;
    } else {
        let text: String = audits.iter().map(ToString::to_string).collect();
        output::print(&text)?;
    }
    let clean = audits.iter().all(|audit| audit.broken.is_empty());
    Ok(if clean { SAME } else { DIFFERENT })
}
