//! The host's end of the byte stream.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::Reason;
use crate::lab::Watch;
use crate::mailbox::{
    DISK_SIZE, GUEST_HEADER, GUEST_SLOT, HOST_HEADER, HOST_SLOT, Header, INLINE, SECTOR, SLOT_SIZE,
    checksum,
};

/// How often the guest's health is looked at while waiting for it.
const HEALTH: Duration = Duration::from_millis(20);

/// The host's end of the stream to the agent. Reads and writes block until the agent, or its death, answers.
///
/// Clones share one stream. A write is one message: write whole frames, or wrap the stream in a `BufWriter`.
#[derive(Clone, Debug)]
pub struct LabStream {
    end: Arc<Mutex<HostEnd>>,
    watch: Arc<Watch>,
    timeout: Option<Duration>,
}

/// The mailbox file and where both sides are in it.
#[derive(Debug)]
pub(crate) struct HostEnd {
    mailbox: File,
    ours: Header,
    received: Vec<u8>,
    taken: usize,
}

impl HostEnd {
    /// Makes the mailbox file, with the host's header in it.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        let mailbox = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        // Reserved now, so that a disk that fills up later cannot break the stream.
        match rustix::fs::fallocate(&mailbox, FallocateFlags::empty(), 0, DISK_SIZE) {
            Err(Errno::OPNOTSUPP) => mailbox.set_len(DISK_SIZE)?,
            result => result?,
        }
        let end = Self {
            mailbox,
            ours: Header::EMPTY,
            received: Vec::new(),
            taken: 0,
        };
        end.publish()?;
        Ok(end)
    }

    /// Whether the agent has opened its end.
    pub(crate) fn guest_is_there(&self) -> bool {
        matches!(self.guest(), Ok(Some(_)))
    }

    fn guest(&self) -> io::Result<Option<Header>> {
        let mut sector = [0; SECTOR];
        self.mailbox
            .read_exact_at(&mut sector, offset(GUEST_HEADER))?;
        Ok(Header::decode(&sector))
    }

    fn publish(&self) -> io::Result<()> {
        self.mailbox
            .write_all_at(&self.ours.encode(), offset(HOST_HEADER))
    }

    /// Hands out bytes that were received before.
    fn read(&mut self, buffer: &mut [u8]) -> usize {
        let count = buffer.len().min(self.received.len() - self.taken);
        buffer[..count].copy_from_slice(&self.received[self.taken..self.taken + count]);
        self.taken += count;
        count
    }

    /// Takes the guest's next message, if there is one. Returns whether there was.
    fn take_message(&mut self, guest: &Header) -> io::Result<bool> {
        let last = self.ours.acknowledged;
        if guest.sequence == last {
            return Ok(false);
        }
        if guest.sequence != last + 1 {
            return Err(corrupt(format!(
                "message {} from the guest after message {last}",
                guest.sequence
            )));
        }
        self.received.drain(..self.taken);
        self.taken = 0;
        let start = self.received.len();
        match guest.inline_body() {
            Some(body) => self.received.extend_from_slice(body),
            None => {
                self.received.resize(start + guest.length as usize, 0);
                self.mailbox
                    .read_exact_at(&mut self.received[start..], offset(GUEST_SLOT))?;
            }
        }
        if checksum(&self.received[start..]) != guest.body_checksum {
            return Err(corrupt(format!(
                "checksum of message {} from the guest is wrong",
                guest.sequence
            )));
        }
        self.ours.acknowledged = guest.sequence;
        self.publish()?;
        Ok(true)
    }

    /// Sends one message; the one before must have been taken.
    fn send(&mut self, body: &[u8]) -> io::Result<()> {
        if body.len() > INLINE {
            self.mailbox.write_all_at(body, offset(HOST_SLOT))?;
        }
        self.ours.announce(body);
        self.publish()
    }
}

impl LabStream {
    pub(crate) fn new(end: Arc<Mutex<HostEnd>>, watch: Arc<Watch>) -> Self {
        Self {
            end,
            watch,
            timeout: None,
        }
    }

    /// Sets how long a read or write may wait for the guest; `None`, the default, is for ever. After a time-out the
    /// stream is intact and the call may be repeated. A guest that dies ends the wait at once in any case.
    pub fn set_timeout(&mut self, timeout: Option<Duration>) {
        self.timeout = timeout;
    }

    fn lock(&self) -> MutexGuard<'_, HostEnd> {
        self.end.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in messages until `attempt` gives a result; it sees the host's end and the guest's header.
    ///
    /// The lock is free between attempts, so that one clone may write while another waits to read.
    fn wait<T>(
        &self,
        mut attempt: impl FnMut(&mut HostEnd, &Header) -> io::Result<Option<T>>,
    ) -> io::Result<T> {
        let start = Instant::now();
        let mut next_health = start + HEALTH;
        loop {
            let mut end = self.lock();
            if let Some(guest) = end.guest()? {
                // Draining while we wait to send is what keeps two large writes from blocking each other.
                let took = end.take_message(&guest)?;
                if let Some(result) = attempt(&mut end, &guest)? {
                    return Ok(result);
                }
                if took {
                    continue;
                }
            }
            drop(end);
            let now = Instant::now();
            if now >= next_health {
                if let Some(error) = self.watch.failure() {
                    return Err(error.into_io());
                }
                next_health = now + HEALTH;
            }
            if let Some(limit) = self.timeout.filter(|&limit| now - start >= limit) {
                return Err(self.watch.error(Reason::TimedOut(limit)).into_io());
            }
            thread::sleep(pause(now - start));
        }
    }
}

/// The longer nothing has come, the later we look again: an answer usually comes within a millisecond, or after the
/// guest has run for a while.
fn pause(waited: Duration) -> Duration {
    match waited.as_micros() {
        0..2_000 => Duration::from_micros(20),
        2_000..50_000 => Duration::from_micros(100),
        _ => Duration::from_micros(500),
    }
}

impl Read for LabStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let count = self.lock().read(buffer);
        if count > 0 {
            return Ok(count);
        }
        self.wait(|end, _| Ok(Some(end.read(buffer)).filter(|&count| count > 0)))
    }
}

impl Write for LabStream {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let body = &buffer[..buffer.len().min(SLOT_SIZE)];
        if body.is_empty() {
            return Ok(0);
        }
        self.wait(|end, guest| {
            if guest.acknowledged < end.ours.sequence {
                return Ok(None);
            }
            end.send(body)?;
            Ok(Some(body.len()))
        })
    }

    /// Nothing is held back: a message is on its way when `write` returns.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn offset(sector: u32) -> u64 {
    u64::from(sector) * SECTOR as u64
}

fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
