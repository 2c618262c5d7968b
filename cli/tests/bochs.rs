//! Bare Bochs as a third judge: a slice of the campaign, the kept case of each class, and the report logs of the
//! example guests beside the model's.
//!
//! Has its own `main`: one emulator at a time, and where Bochs is not installed the last line says so.

use std::path::Path;
use std::process::{Command, ExitCode};

/// A sample: `nvmx campaign entry --count 20000 --backend bochs` is the whole, and `campaign code` likewise.
const CASES: &str = "3000";
/// Guests whose report log is the same on the model with the SDM's personality. Of the others, Bochs 2.7 differs
/// where examples/README.md says.
const GUESTS: [&str; 9] = [
    "exits", "ept", "events", "timers", "shadow", "failures", "control", "switches", "modes",
];

/// Says what it saw, or what is wrong.
type Check = fn() -> Result<String, String>;

fn main() -> ExitCode {
    if let Err(missing) = nvmx_lab::bare::is_installed() {
        println!("SKIPPED: {}", missing.reason);
        return ExitCode::SUCCESS;
    }
    let checks: [(&str, Check); 4] = [
        ("campaign of entries", || campaign("entry")),
        ("campaign of code", || campaign("code")),
        ("kept cases", kept_cases),
        ("report logs", report_logs),
    ];
    let mut failed = 0;
    for (name, check) in checks {
        match check() {
            Ok(said) => println!("{name}: {said}"),
            Err(error) => {
                println!("{name}: FAILED: {error}");
                failed += 1;
            }
        }
    }
    println!(
        "bochs: {} passed, {failed} failed, 0 skipped",
        checks.len() - failed
    );
    if failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn nvmx(arguments: &[&str]) -> Result<String, String> {
    let output = Command::new(env!("CARGO_BIN_EXE_nvmx"))
        .args(arguments)
        .output()
        .map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(said);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}\n{said}{complaint}", output.status))
}

fn campaign(kind: &str) -> Result<String, String> {
    let keep = tempfile::tempdir().map_err(|error| error.to_string())?;
    let keep = keep.path().to_str().ok_or("a strange name")?;
    let said = nvmx(&[
        "campaign",
        kind,
        "--count",
        CASES,
        "--backend",
        "bochs",
        "--keep",
        keep,
    ])?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

fn kept_cases() -> Result<String, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../campaign/cases/bochs");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .filter_map(|entry| entry.ok()?.path().to_str().map(ToOwned::to_owned))
        .collect();
    files.sort();
    let mut arguments = vec!["campaign", "replay", "--backend", "bochs"];
    arguments.extend(files.iter().map(String::as_str));
    let said = nvmx(&arguments)?;
    // A case of Bochs' or of the model's shows what it is named after, perhaps in a variant of it.
    for file in &files {
        let name = Path::new(file).file_stem().and_then(|name| name.to_str());
        let name = name.ok_or("a strange name")?;
        let mut lines = said
            .lines()
            .skip_while(|line| !line.starts_with(&format!("{file}:")));
        lines.next().ok_or_else(|| format!("{file} did not run"))?;
        let mut ids = lines.map_while(|line| line.strip_prefix("  explained by "));
        let has_row = name.starts_with("bochs-") || name.starts_with("model-");
        if has_row && !ids.any(|id| name.starts_with(id)) {
            return Err(format!("{file} shows nothing of its name"));
        }
    }
    Ok(format!("{} as kept", files.len()))
}

fn report_logs() -> Result<String, String> {
    for guest in GUESTS {
        let reports = |backend: &[&str]| -> Result<serde_json::Value, String> {
            let image = format!("example:{guest}");
            let said = nvmx(&[&["run", image.as_str(), "--json"], backend].concat())?;
            let said: serde_json::Value =
                serde_json::from_str(&said).map_err(|error| error.to_string())?;
            Ok(said["reports"].clone())
        };
        let bochs = reports(&["--backend", "bochs"])?;
        let soft = reports(&["--cpu", "bochs-icelake", "--personality", "sdm"])?;
        if bochs != soft || bochs.as_array().is_none_or(Vec::is_empty) {
            return Err(format!("{guest}: {bochs}\nand {soft}"));
        }
    }
    Ok(format!("{} guests", GUESTS.len()))
}
