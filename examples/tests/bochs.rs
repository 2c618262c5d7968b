//! Every guest on bare Bochs, whose own VMX serves L1: a third opinion beside KVM and the model.
//!
//! A guest is a second or less. Where Bochs is not installed the test says SKIPPED and why.

use nvmx_examples::{Params, guests};
use nvmx_lab::bare::{self, Bare, BareConfig, Said};
use nvmx_machine::{LoadOptions, Stop, load};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What the guests write when all went well.
const SUCCESS: u32 = 0x10;
const LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Err(missing) = bare::is_installed() {
        println!("SKIPPED: {}", missing.reason);
        return ExitCode::SUCCESS;
    }
    for guest in guests::all() {
        match run(guest) {
            Ok(said) => println!("{:<12} {said}", guest.name),
            Err(error) => {
                eprintln!("{}: {error}", guest.name);
                return ExitCode::FAILURE;
            }
        }
    }
    println!("bochs: {} guests ok", guests::all().len());
    ExitCode::SUCCESS
}

/// What the guest said; an error if it did not say that all is well.
fn run(guest: &guests::Guest) -> Result<String, String> {
    let params = Params {
        iterations: 3,
        ..Params::default()
    };
    let image = (guest.build)(params).map_err(|error| error.to_string())?;
    let config = BareConfig::default();
    let options = LoadOptions {
        memory_size: u64::from(config.megs) << 20,
        ..LoadOptions::default()
    };
    let image = load(&image.to_elf(), options).map_err(|error| error.to_string())?;
    let mut machine = Bare::start(&image, &config).map_err(|error| error.to_string())?;
    let mut serial = Vec::new();
    let stop = machine.run(Instant::now() + LIMIT, &mut |said| {
        if let Said::Serial(bytes) = said {
            serial.extend(bytes);
        }
    });
    let said = String::from_utf8_lossy(&serial).trim().to_owned();
    let is_well = said.ends_with("ok") || said.contains("skipped: ");
    if stop == Stop::DebugExit(SUCCESS) && is_well {
        Ok(said)
    } else {
        Err(format!("{stop}, and it said {said:?}"))
    }
}
