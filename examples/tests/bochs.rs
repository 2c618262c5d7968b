//! Every guest on bare Bochs, whose own VMX serves L1: a third opinion beside KVM and the model.
//!
//! `bochs/run.sh` boots each image through isolinux and mboot.c32, about a second each. Where Bochs is
//! not installed the test says SKIPPED and why.

use nvmx_examples::{Params, guests};
use std::process::{Command, ExitCode};

/// One boot in about fifty hangs before the guest starts: one retry.
const ATTEMPTS: usize = 2;
const SECONDS: &str = "60";

fn main() -> ExitCode {
    let directory = std::env::temp_dir().join(format!("nvmx-bochs-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir_all(&directory) {
        eprintln!("{}: {error}", directory.display());
        return ExitCode::FAILURE;
    }
    let result = run_all(&directory);
    let _ = std::fs::remove_dir_all(&directory);
    match result {
        Ok(Some(skipped)) => println!("SKIPPED: {skipped}"),
        Ok(None) => println!("bochs: {} guests ok", guests::all().len()),
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// `Ok(Some(reason))` if there is no Bochs to run on.
fn run_all(directory: &std::path::Path) -> Result<Option<String>, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/bochs/run.sh");
    for guest in guests::all() {
        let params = Params {
            iterations: 3,
            ..Params::default()
        };
        let image = (guest.build)(params).map_err(|error| format!("{}: {error}", guest.name))?;
        let file = directory.join(guest.name);
        std::fs::write(&file, image.to_elf())
            .map_err(|error| format!("{}: {error}", file.display()))?;
        let mut said = String::new();
        let mut passed = false;
        for _ in 0..ATTEMPTS {
            let output = Command::new("bash")
                .arg(script)
                .arg(&file)
                .arg(SECONDS)
                .output()
                .map_err(|error| format!("bash: {error}"))?;
            said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            match output.status.code() {
                Some(0) => passed = true,
                Some(2) => {
                    let reason = said.lines().last().unwrap_or_default();
                    return Ok(Some(reason.trim_start_matches("SKIPPED: ").to_owned()));
                }
                _ => {}
            }
            if passed {
                break;
            }
        }
        println!("{:<12} {said}", guest.name);
        if !passed {
            return Err(format!(
                "{}: failed on Bochs, see the line above",
                guest.name
            ));
        }
    }
    Ok(None)
}
