//! Streams to an agent: TCP, and the standard input and output of a command.

use crate::agent;
use nvmx_core::vcpu::{BackendError, Result, Vm, VmConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

/// How long a peer may be silent: far beyond the slices that runs are cut into.
pub const SILENCE: Duration = Duration::from_secs(60);

/// `host:port` of `tcp://host:port` or of `host:port`.
#[must_use]
pub fn tcp_address(text: &str) -> Option<&str> {
    let address = text.strip_prefix("tcp://").unwrap_or(text);
    let (host, port) = address.rsplit_once(':')?;
    (!host.is_empty() && port.parse::<u16>().is_ok()).then_some(address)
}

fn failed(peer: &str, message: impl std::fmt::Display) -> BackendError {
    BackendError::Connection {
        peer: peer.into(),
        message: message.to_string(),
    }
}

/// Connects to `tcp://host:port` or `host:port`; reads and writes that take longer than `silence`
/// fail.
///
/// # Errors
/// Not an address, or nobody there.
pub fn connect_tcp(text: &str, silence: Duration) -> Result<TcpStream> {
    let address = tcp_address(text)
        .ok_or_else(|| failed(text, "not an address; it should read tcp://host:port"))?;
    let mut last = None;
    for target in address.to_socket_addrs().map_err(|e| failed(text, e))? {
        match TcpStream::connect_timeout(&target, silence) {
            Ok(stream) => {
                set_up(&stream, silence).map_err(|e| failed(text, e))?;
                return Ok(stream);
            }
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) => failed(text, error),
        None => failed(text, "the name has no address"),
    })
}

fn set_up(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    // Each message is one small write that waits for its answer.
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(silence))?;
    stream.set_write_timeout(Some(silence))
}

/// Serves one client after the other on `listener`; a client that fails ends only its own session.
///
/// # Errors
/// The listener fails.
pub fn serve_tcp(
    listener: &TcpListener,
    make: &mut dyn FnMut(&VmConfig) -> Result<Box<dyn Vm>>,
) -> Result<()> {
    loop {
        let (stream, client) = listener.accept().map_err(|e| failed("listener", e))?;
        // No read timeout: a client may think for hours.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::warn!("{client}: {error}");
        }
        tracing::info!("{client} connected");
        if let Err(error) = agent::serve(stream, make) {
            tracing::warn!("{client}: {error}");
        }
    }
}

/// A command that we talk to over its standard input and output; it is ended with the stream.
#[derive(Debug)]
pub struct ChildStream {
    child: Child,
    // Closed before the child is waited for.
    input: Option<ChildStdin>,
    output: ChildStdout,
    silence: Duration,
}

/// How long a child may take to end after its input is closed.
const FAREWELL: Duration = Duration::from_secs(2);

impl ChildStream {
    /// Starts `command`; reads that wait longer than `silence` fail.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(command: &mut Command, silence: Duration) -> Result<Self> {
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|e| failed(&name, e))?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(&name, "no pipes to it"));
        };
        Ok(Self {
            child,
            input: Some(input),
            output,
            silence,
        })
    }
}

impl Read for ChildStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let timeout = Timespec {
            tv_sec: self.silence.as_secs().min(1 << 40) as i64,
            tv_nsec: self.silence.subsec_nanos().into(),
        };
        let mut fds = [PollFd::new(&self.output, PollFlags::IN)];
        if poll(&mut fds, Some(&timeout))? == 0 {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("silent for {:?}", self.silence),
            ));
        }
        self.output.read(buffer)
    }
}

impl Write for ChildStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.input {
            Some(input) => input.write(bytes),
            None => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.input.as_mut().map_or(Ok(()), Write::flush)
    }
}

impl Drop for ChildStream {
    fn drop(&mut self) {
        // An agent ends when its input does.
        self.input = None;
        let step = Duration::from_millis(5);
        let mut waited = Duration::ZERO;
        while waited < FAREWELL {
            match self.child.try_wait() {
                Ok(None) => std::thread::sleep(step),
                _ => return,
            }
            waited += step;
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// This process's standard input and output as one stream: what an agent behind
/// [`ChildStream`] serves. Nothing else may print there.
#[derive(Debug, Default)]
pub struct StandardStreams;

impl Read for StandardStreams {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        io::stdin().lock().read(buffer)
    }
}

impl Write for StandardStreams {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        io::stdout().lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stdout().lock().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for (text, address) in [
            ("tcp://lab:4444", Some("lab:4444")),
            ("127.0.0.1:1", Some("127.0.0.1:1")),
            ("tcp://[::1]:9", Some("[::1]:9")),
            ("tcp://lab", None),
            ("lab:70000", None),
            (":5", None),
            ("unix:/x", None),
        ] {
            assert_eq!(tcp_address(text), address, "{text}");
        }
    }

    #[test]
    fn a_silent_child_times_out_and_is_ended() {
        let mut sleep = Command::new("cat");
        let mut stream = ChildStream::spawn(&mut sleep, Duration::from_millis(20)).unwrap();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        stream.write_all(b"x").unwrap();
        let mut byte = [0];
        stream.silence = Duration::from_secs(5);
        stream.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"x");
    }
}
