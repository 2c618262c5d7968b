//! `nvmx convert`

use crate::SAME;
use crate::args::Convert;

pub(crate) fn run(options: &Convert) -> anyhow::Result<u8> {
    let snapshot = nvmx_snapshots::load(&options.input)?;
    nvmx_snapshots::save(&options.output, &snapshot)?;
    Ok(SAME)
}
