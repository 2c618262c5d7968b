//! Every example guest runs to its end on the software backend.

use nvmx_core::vcpu::{Budget, VmConfig};
use nvmx_examples::{Params, guests};
use nvmx_machine::{Driver, LoadOptions, Stop, boot, load};
use nvmx_soft::SoftVm;
use std::time::Duration;

/// What a guest writes to the debug-exit port when all went as it should.
const SUCCESS: u32 = 0x10;

fn run(guest: &guests::Guest) -> Result<(), String> {
    let image = (guest.build)(Params::default())
        .map_err(|e| e.to_string())?
        .to_elf();
    let config = VmConfig::default();
    let mut vm = SoftVm::new(&config).map_err(|e| e.to_string())?;
    let options = LoadOptions {
        memory_size: config.memory_size,
        ..LoadOptions::default()
    };
    let loaded = load(&image, options).map_err(|e| e.to_string())?;
    boot(&mut vm, &loaded).map_err(|e| e.to_string())?;
    let mut driver = Driver::default();
    let mut checkpoints = Vec::new();
    let stop = loop {
        match driver.run(&mut vm, Budget::time(Duration::from_secs(60))) {
            Ok(Stop::Checkpoint(id)) => checkpoints.push(id),
            Ok(stop) => break stop,
            Err(error) => return Err(error.to_string()),
        }
    };
    let serial = String::from_utf8_lossy(driver.serial()).into_owned();
    let events = driver.events().len();
    if stop == Stop::DebugExit(SUCCESS) {
        println!(
            "{}: {events} nested events, {} checkpoints",
            guest.name,
            checkpoints.len()
        );
        return Ok(());
    }
    let state = nvmx_core::vcpu::Vcpu::state(&mut vm, nvmx_core::vcpu::Parts::Registers)
        .map_err(|e| e.to_string())?;
    Err(format!(
        "{}: {stop:?} after checkpoint {:x?} and {events} nested events (last {:x?})\nserial: {serial}\n{:x?}",
        guest.name,
        checkpoints.last(),
        &driver.events()[events.saturating_sub(3)..],
        state.regs,
    ))
}

#[test]
fn every_example_guest_succeeds() {
    let failures: Vec<String> = guests::all()
        .iter()
        .filter_map(|guest| run(guest).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} of {} fail:\n{}",
        failures.len(),
        guests::all().len(),
        failures.join("\n")
    );
}
