//! Boots a lab with any static program as the agent and shows its console until it ends.
//!
//! `cargo run -p nvmx-lab --example boot -- 6.12 ./agent [kernel argument | kvm:OPTION | file:HERE=THERE | cpu:MODEL]...`
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use nvmx_lab::{Lab, LabConfig, LabError};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(agent)) = (arguments.next(), arguments.next()) else {
        return Err("usage: boot 6.1|6.12 AGENT [ARGUMENT]...".into());
    };
    let mut config = LabConfig {
        retries: 0,
        ..LabConfig::new(kernel.parse()?, agent)
    };
    for argument in arguments {
        match argument.split_once(':') {
            Some(("kvm", option)) => config.kvm_options.push(option.into()),
            Some(("cpu", model)) => config.cpu_model = model.into(),
            Some(("file", pair)) => {
                let (here, there) = pair.split_once('=').ok_or("file:HERE=THERE")?;
                config.extra_files.push((here.into(), there.into()));
            }
            _ => config.kernel_args.push(argument),
        }
    }
    let start = Instant::now();
    let mut progress = |stage, at: Duration| eprintln!("{:7.2} s  {stage:?}", at.as_secs_f64());
    match Lab::start(&config, &mut progress) {
        Ok(lab) => {
            while lab.failure().is_none() {
                std::thread::sleep(Duration::from_millis(20));
            }
            println!("{}", lab.console_tail(400));
        }
        // A program that never opens the channel ends this way.
        Err(LabError {
            console, reason, ..
        }) => println!("{console}\n{reason}"),
    }
    eprintln!("{:7.2} s  end", start.elapsed().as_secs_f64());
    Ok(())
}
