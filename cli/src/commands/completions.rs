//! `nvmx completions`

use crate::args::{Arguments, Completions};
use crate::{SAME, output};
use clap::CommandFactory;

pub(crate) fn run(options: &Completions) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(
        options.shell,
        &mut Arguments::command(),
        "nvmx",
        &mut script,
    );
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(SAME)
}
