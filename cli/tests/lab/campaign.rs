//! Random VM entries on the model and on the lab's KVM, and the kept case of each explained class.

use crate::machine::OpenLab;
use crate::{Check, Checked, Outcome};
use anyhow::{Context, bail};
use std::path::Path;
use std::process::Command;

/// A sample: `nvmx campaign entry --count 100000` is the whole.
const CASES: &str = "5000";
/// A sample: `nvmx campaign code --count 20000` is the whole.
const CODE_CASES: &str = "3000";

pub(crate) fn checks() -> Vec<Check> {
    vec![
        Check {
            name: "campaign entry".into(),
            run: Box::new(|lab| campaign(lab, &["entry", "--count", CASES, "--seed", "1"])),
        },
        Check {
            name: "campaign code".into(),
            run: Box::new(|lab| campaign(lab, &["code", "--count", CODE_CASES])),
        },
        Check {
            name: "campaign cases".into(),
            run: Box::new(|lab| {
                let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../campaign/cases/kvm");
                let mut files: Vec<_> = std::fs::read_dir(&folder)
                    .with_context(|| folder.display().to_string())?
                    .filter_map(|entry| entry.ok()?.path().to_str().map(ToOwned::to_owned))
                    .collect();
                files.sort();
                let mut arguments = vec!["replay"];
                arguments.extend(files.iter().map(String::as_str));
                campaign(lab, &arguments)
            }),
        },
    ]
}

fn campaign(lab: &OpenLab, arguments: &[&str]) -> Checked {
    let keep = std::env::temp_dir().join(format!("nvmx-campaign-{}", std::process::id()));
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmx"));
    command.arg("campaign").args(arguments);
    command.args(["--backend", &format!("remote:{}", lab.address())]);
    if arguments[0] != "replay" {
        command.arg("--keep").arg(&keep);
    }
    let output = command.output().context("nvmx campaign")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("{}\n{said}{complaint}", output.status);
    }
    let first = said.lines().next().unwrap_or_default().to_owned();
    Ok(Outcome::Passed(first, 0))
}
