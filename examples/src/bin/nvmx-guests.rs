//! Lists the example guests, or writes one as a multiboot ELF32 file.

use nvmx_examples::{Params, guests};
use std::process::ExitCode;

const USAGE: &str = "usage: nvmx-guests list
       nvmx-guests build NAME FILE [--iterations N] [--work N] [--mirror]

  --iterations N  how often the guest goes through its scenarios (1 to 65536, default 1)
  --work N        passes of L2's loop, where L2 computes (default 1000)
  --mirror        print every report on the serial port too

example: nvmx-guests build exits exits.elf --iterations 10";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["list"] => {
            for guest in guests::all().iter().chain(guests::several()) {
                println!("{:<12} {}", guest.name, guest.about);
            }
            Ok(())
        }
        ["build", name, file, options @ ..] => build(name, file, options),
        _ => Err(USAGE.to_owned()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn build(name: &str, file: &str, options: &[&str]) -> Result<(), String> {
    let guest = guests::find(name)
        .ok_or_else(|| format!("no guest is called {name:?}: `nvmx-guests list` shows them"))?;
    let mut params = Params::default();
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut number = || {
            let value = options
                .next()
                .ok_or_else(|| format!("{option} needs a number"))?;
            value
                .parse()
                .map_err(|error| format!("{option} {value}: {error}"))
        };
        match *option {
            "--iterations" => params.iterations = number()?,
            "--work" => params.work = number()?,
            "--mirror" => params.mirror_reports = true,
            _ => return Err(format!("unknown option {option}\n\n{USAGE}")),
        }
    }
    let image = (guest.build)(params).map_err(|error| format!("{name}: {error}"))?;
    std::fs::write(file, image.to_elf()).map_err(|error| format!("{file}: {error}"))
}
