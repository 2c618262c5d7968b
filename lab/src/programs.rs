//! Programs that run to their end: started, limited in time, and told about. [`run`] does it here; [`serve`] does it in a
//! lab for whoever calls [`run_in`] at the host's end of the stream.
//!
//! The agent is one answer to each question, so a program that hangs the whole emulated machine shows as a stream that
//! goes silent: the caller sets the stream's time limit, the agent the program's.

use std::io::{self, Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nvmx_remote::wire::{self, FrameError};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// The end of the output that is kept.
const KEPT: usize = 64 << 10;
/// How often a running program is looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    /// The program's path, where it runs.
    pub path: String,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// How long it may take, by the clock of the machine that it runs on.
    pub limit: Duration,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Signal(i32),
    /// It was ended at its time limit.
    TimedOut,
}

/// What is known of a program that has ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// How.
    pub status: Status,
    /// After how long.
    pub took: Duration,
    /// The end of what it wrote, standard output and standard error as they came.
    pub output: String,
}

/// Runs a program on this machine, without input and in a process group of its own, which ends with it.
///
/// # Errors
/// It cannot be started or waited for.
pub fn run(program: &Program) -> io::Result<Ended> {
    let mut command = Command::new(&program.path);
    command.args(&program.arguments);
    run_command(command, program.limit)
}

/// As [`run`], for a command that the caller has made.
///
/// # Errors
/// It cannot be started or waited for.
pub fn run_command(mut command: Command, limit: Duration) -> io::Result<Ended> {
    let (mut reader, writer) = io::pipe()?;
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0);
    let began = Instant::now();
    let mut child = command.spawn()?;
    drop(command); // and with it our copies of the pipe's far end
    let group = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let end_group = || group.map(|group| kill_process_group(group, Signal::KILL));
    let output = thread::spawn(move || last_of(&mut reader));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            let signal = Status::Signal(status.signal().unwrap_or_default());
            break status.code().map_or(signal, Status::Exited);
        }
        if began.elapsed() > limit {
            end_group();
            child.wait()?;
            break Status::TimedOut;
        }
        thread::sleep(LOOK);
    };
    let took = began.elapsed();
    // Children that it left behind hold the pipe, and the reader waits for them.
    end_group();
    let output = output.join().unwrap_or_default();
    Ok(Ended {
        status,
        took,
        output: String::from_utf8_lossy(&output).into_owned(),
    })
}

/// Reads to the end and keeps the last bytes.
fn last_of(reader: &mut impl Read) -> Vec<u8> {
    let (mut kept, mut buffer) = (Vec::new(), [0; 4096]);
    while let Ok(count @ 1..) = reader.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..count]);
        if kept.len() > 2 * KEPT {
            kept.drain(..kept.len() - KEPT);
        }
    }
    kept.split_off(kept.len().saturating_sub(KEPT))
}

/// Runs what is asked for on `stream` until the other side closes it.
///
/// # Errors
/// The stream fails.
pub fn serve(mut stream: impl Read + Write) -> Result<(), FrameError> {
    loop {
        let program: Program = match wire::receive(&mut stream) {
            Ok(program) => program,
            Err(FrameError::Closed) => return Ok(()),
            Err(error) => return Err(error),
        };
        let ended = run(&program).map_err(|error| error.to_string());
        wire::send(&mut stream, &ended)?;
    }
}

/// Has the other side of `stream` run a program.
///
/// # Errors
/// The stream fails, or the program cannot be started there.
pub fn run_in(mut stream: impl Read + Write, program: &Program) -> Result<Ended, FrameError> {
    wire::send(&mut stream, program)?;
    let ended: Result<Ended, String> = wire::receive(&mut stream)?;
    ended.map_err(|error| io::Error::other(format!("{}: {error}", program.path)).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixStream;

    fn shell(script: &str, limit: Duration) -> Program {
        Program {
            path: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            limit,
        }
    }

    #[test]
    fn a_program_ends_as_it_does() {
        let minute = Duration::from_secs(60);
        for (script, status, output) in [
            (
                "echo out; echo err >&2; exit 3",
                Status::Exited(3),
                "out\nerr\n",
            ),
            ("kill -9 $$", Status::Signal(9), ""),
            // Whom it leaves behind ends with it, or this would take a minute.
            ("sleep 60 & echo gone", Status::Exited(0), "gone\n"),
        ] {
            let ended = run(&shell(script, minute)).unwrap();
            assert_eq!((ended.status, &*ended.output), (status, output), "{script}");
            assert!(ended.took < minute / 2, "{script}");
        }
        let late = run(&shell("echo begun; sleep 60", Duration::from_millis(200))).unwrap();
        assert_eq!((late.status, &*late.output), (Status::TimedOut, "begun\n"));
    }

    #[test]
    fn the_end_of_the_output_is_kept() {
        let script = "yes 0123456 | head -n 100000; echo last";
        let ended = run(&shell(script, Duration::from_secs(60))).unwrap();
        assert_eq!(ended.output.len(), KEPT);
        assert!(ended.output.ends_with("0123456\nlast\n"));
    }

    #[test]
    fn the_other_side_runs_it() {
        let (near, far) = UnixStream::pair().unwrap();
        let agent = thread::spawn(move || serve(far));
        let ended = run_in(&near, &shell("echo $0", Duration::from_secs(60))).unwrap();
        assert_eq!(
            (ended.status, &*ended.output),
            (Status::Exited(0), "/bin/sh\n")
        );
        let absent = Program {
            path: "/no/such/program".into(),
            ..shell("", Duration::from_secs(1))
        };
        let error = run_in(&near, &absent).unwrap_err().to_string();
        assert!(error.starts_with("/no/such/program: "), "{error}");
        drop(near);
        agent.join().unwrap().unwrap();
    }
}
