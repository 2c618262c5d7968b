//! `nvmx backends`

use crate::args::Backends;
use crate::backend::{self, Spec};
use crate::{SAME, output};
use nvmx_core::vcpu::{Capabilities, VmConfig};
use nvmx_lab::bare;
use serde::Serialize;
use std::fmt::Write;

#[derive(Serialize)]
struct Entry {
    backend: String,
    available: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    capabilities: Option<Capabilities>,
}

pub(crate) fn run(options: &Backends) -> anyhow::Result<u8> {
    let specs = match &options.backend {
        Some(spec) => vec![spec.clone()],
        None => vec![Spec::Soft, Spec::Kvm, Spec::Bochs],
    };
    let entries: Vec<_> = specs.iter().map(ask).collect();
    if options.json {
        output::print_json(&entries)?;
    } else {
        let mut text: String = entries.iter().map(describe).collect();
        if options.backend.is_none() {
            text.push_str(
                "remote:HOST:PORT, exec:COMMAND and lab[:6.1|:6.12] are asked with --backend\n",
            );
        }
        output::print(&output::highlight(&text))?;
    }
    Ok(SAME)
}

fn ask(spec: &Spec) -> Entry {
    let capabilities = match spec {
        Spec::Bochs => bare::is_installed()
            .map(|()| bare::capabilities())
            .map_err(anyhow::Error::from),
        _ => backend::open(spec, &VmConfig::default())
            .map(|machine| machine.vm.capabilities().clone()),
    };
    match capabilities {
        Ok(capabilities) => Entry {
            backend: spec.to_string(),
            available: true,
            error: None,
            capabilities: Some(capabilities),
        },
        Err(error) => Entry {
            backend: spec.to_string(),
            available: false,
            error: Some(format!("{error:#}")),
            capabilities: None,
        },
    }
}

fn describe(entry: &Entry) -> String {
    let mut text = String::new();
    let about = match (&entry.capabilities, &entry.error) {
        (Some(capabilities), _) => capabilities.description.as_str(),
        (None, Some(error)) => error.as_str(),
        (None, None) => "",
    };
    let name = format!("{}: ", entry.backend);
    let about = about.strip_prefix(&name).unwrap_or(about);
    let _ = writeln!(text, "{name}{about}");
    for (capability, state) in entry.capabilities.iter().flat_map(|c| &c.entries) {
        let (word, note) = match state {
            Ok(note) => ("yes", note),
            Err(reason) => ("no ", reason),
        };
        let line = format!("  {:<19} {word} {note}", format!("{capability:?}"));
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}
