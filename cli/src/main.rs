//! nvmx: the command. Exit status 0 is success or equality, 1 a difference or a guest that failed,
//! 2 trouble; `nvmx run` passes the guest's own status on (see `nvmx run --help`).
#![forbid(unsafe_code)]

mod args;
mod backend;
mod commands;
mod events;
mod image;
mod lab;
mod output;

use args::{Arguments, Command};
use clap::Parser;
use std::process::ExitCode;

/// Equality or success.
const SAME: u8 = 0;
/// A difference that nothing explains.
const DIFFERENT: u8 = 1;
/// Something did not work.
const TROUBLE: u8 = 2;

fn main() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_env("NVMX_LOG")
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(output::colour_on(&std::io::stderr()))
        .without_time()
        .init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are no errors; a closed pipe is nobody's trouble.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { TROUBLE } else { SAME });
        }
    };
    let outcome = match arguments.command {
        Command::Backends(options) => commands::backends::run(&options),
        Command::Run(options) => commands::run::run(&options),
        Command::Snapshot(options) => commands::snapshot::run(&options),
        Command::Show(options) => commands::show::run(&options),
        Command::Check(options) => commands::check::run(&options),
        Command::Profiles(options) => commands::profiles::run(&options),
        Command::Diff(options) => commands::diff::run(&options),
        Command::Replay(options) => commands::replay::run(&options),
        Command::Compare(options) => commands::compare::run(&options),
        #[cfg(feature = "soft")]
        Command::Campaign(options) => commands::campaign::run(&options),
        Command::Convert(options) => commands::convert::run(&options),
        Command::Lab(options) => commands::lab::run(&options),
        #[cfg(feature = "soft")]
        Command::Shim(options) => commands::shim::run(&options),
        Command::Agent(options) => commands::agent::run(&options),
        Command::Completions(options) => commands::completions::run(&options),
    };
    match outcome {
        Ok(status) => ExitCode::from(status),
        Err(error) if output::is_closed_pipe(&error) => ExitCode::from(SAME),
        Err(error) => {
            output::complain(&output::chain(&error));
            ExitCode::from(TROUBLE)
        }
    }
}
