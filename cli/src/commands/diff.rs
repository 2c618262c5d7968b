//! `nvmx diff`

use crate::args::Diff;
use crate::{DIFFERENT, SAME, output};

pub(crate) fn run(options: &Diff) -> anyhow::Result<u8> {
    let left = nvmx_snapshots::load(&options.left)?;
    let right = nvmx_snapshots::load(&options.right)?;
    let diff = nvmx_snapshots::Diff::of(&left, &right);
    if options.json {
        output::print_json(&diff)?;
    } else {
        output::print(&output::highlight(&diff.to_string()))?;
    }
    let same = if options.strict {
        diff.is_empty() && diff.not_compared.is_empty()
    } else {
        diff.unexplained() == 0
    };
    Ok(if same { SAME } else { DIFFERENT })
}
