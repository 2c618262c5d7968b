//! `nvmx check`

use crate::args::Check;
use crate::{DIFFERENT, SAME, output};
use anyhow::bail;
use nvmx_snapshots::check;

pub(crate) fn run(options: &Check) -> anyhow::Result<u8> {
    let snapshot = nvmx_snapshots::load(&options.file)?;
    let audits = check::audit(&snapshot);
    if audits.is_empty() {
        bail!(
            "{}: no vCPU has a current VMCS; there is nothing to check",
            options.file.display()
        );
    }
    if options.json {
        output::print_json(&audits)?;
    } else {
        let text: String = audits.iter().map(ToString::to_string).collect();
        output::print(&text)?;
    }
    let clean = audits.iter().all(|audit| audit.broken.is_empty());
    Ok(if clean { SAME } else { DIFFERENT })
}
