//! `nvmx show`

use crate::args::Show;
use crate::{SAME, output};
use nvmx_snapshots::Explanation;

pub(crate) fn run(options: &Show) -> anyhow::Result<u8> {
    let snapshot = nvmx_snapshots::load(&options.file)?;
    let explanation = Explanation::of(&snapshot);
    if options.json {
        output::print_json(&explanation)?;
    } else {
        output::print(&output::highlight(&explanation.to_string()))?;
    }
    Ok(SAME)
}
