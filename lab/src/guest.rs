//! The guest's end of the byte stream: drives the mailbox disk from user space.
//!
//! The disk is the master of the second ATA channel. No kernel driver is loaded for it, so this process may talk to
//! its ports: READ SECTORS and WRITE SECTORS with programmed I/O, interrupts off, no page cache in between. In Bochs
//! a command completes in the time of the instructions that drive it.

use std::io::{self, Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use nvmx_remote::port_io::PortAccess;

use crate::mailbox::{
    GUEST_HEADER, GUEST_SLOT, HOST_HEADER, HOST_SLOT, Header, INLINE, SECTOR, SLOT_SIZE, checksum,
};

/// Second ATA channel: command block and device control.
const ATA: u16 = 0x170;
const ATA_CONTROL: u16 = 0x376;
const READ_SECTORS: u8 = 0x20;
const WRITE_SECTORS: u8 = 0x30;
const BUSY: u8 = 0x80;
const WANTS_DATA: u8 = 0x08;
const FAILED: u8 = 0x01;

/// A command that takes longer than this is not going to end.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Polls in a row before the first sleep: an answer to an answer usually comes at once.
const EAGER_POLLS: u32 = 50;
/// Sleep between two polls. The emulator hurries through a halted CPU's time.
const POLL_SLEEP: Duration = Duration::from_micros(200);

/// The agent's end of the stream to the host. Reads and writes block.
///
/// A `write` is one message and waits until the host has taken the one before it: write whole frames, or wrap the
/// channel in a `BufWriter`.
pub struct GuestChannel {
    disk: Disk,
    /// Our header as it stands on the disk.
    ours: Header,
    /// Received but not yet read, from `taken` on.
    received: Vec<u8>,
    taken: usize,
}

impl std::fmt::Debug for GuestChannel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuestChannel")
            .field("sent", &self.ours.sequence)
            .field("received", &self.ours.acknowledged)
            .finish_non_exhaustive()
    }
}

impl GuestChannel {
    /// Opens the channel and tells the host that the agent is ready. A second process may open it after the first has
    /// ended; the stream goes on where it was.
    ///
    /// # Errors
    /// `EPERM` without the right to use ports, `NotFound` if there is no such disk or the host never prepared it.
    pub fn open() -> io::Result<Self> {
        let mut disk = Disk::open()?;
        let absent = || {
            io::Error::new(
                io::ErrorKind::NotFound,
                "no mailbox disk on the second ATA channel",
            )
        };
        let host = disk.read_header(HOST_HEADER)?.ok_or_else(absent)?;
        let ours = disk.read_header(GUEST_HEADER)?.unwrap_or(Header::EMPTY);
        tracing::debug!(sequence = host.sequence, "mailbox found");
        disk.write(GUEST_HEADER, &ours.encode())?;
        Ok(Self {
            disk,
            ours,
            received: Vec::new(),
            taken: 0,
        })
    }

    /// The host's header once `accept` likes it.
    fn wait_for_host(&mut self, accept: impl Fn(&Header) -> bool) -> io::Result<Header> {
        let mut polls = 0;
        loop {
            if let Some(header) = self.disk.read_header(HOST_HEADER)?
                && accept(&header)
            {
                return Ok(header);
            }
            polls += 1;
            if polls > EAGER_POLLS {
                thread::sleep(POLL_SLEEP);
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let last = self.ours.acknowledged;
        let header = self.wait_for_host(|header| header.sequence > last)?;
        if header.sequence != last + 1 {
            return Err(corrupt(format!(
                "message {} from the host after message {last}",
                header.sequence
            )));
        }
        self.received.clear();
        self.taken = 0;
        match header.inline_body() {
            Some(body) => self.received.extend_from_slice(body),
            None => {
                self.received
                    .resize((header.length as usize).next_multiple_of(SECTOR), 0);
                self.disk.read(HOST_SLOT, &mut self.received)?;
                self.received.truncate(header.length as usize);
            }
        }
        if checksum(&self.received) != header.body_checksum {
            return Err(corrupt(format!(
                "checksum of message {} from the host is wrong",
                header.sequence
            )));
        }
        self.ours.acknowledged = header.sequence;
        self.disk.write(GUEST_HEADER, &self.ours.encode())
    }
}

impl Read for GuestChannel {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.taken == self.received.len() {
            self.receive()?;
        }
        let count = buffer.len().min(self.received.len() - self.taken);
        buffer[..count].copy_from_slice(&self.received[self.taken..self.taken + count]);
        self.taken += count;
        Ok(count)
    }
}

impl Write for GuestChannel {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let body = &buffer[..buffer.len().min(SLOT_SIZE)];
        if body.is_empty() {
            return Ok(0);
        }
        let sent = self.ours.sequence;
        self.wait_for_host(|header| header.acknowledged >= sent)?;
        if body.len() > INLINE {
            self.disk.write(GUEST_SLOT, body)?;
        }
        self.ours.announce(body);
        self.disk.write(GUEST_HEADER, &self.ours.encode())?;
        Ok(body.len())
    }

    /// Nothing is held back: a message is on its way when `write` returns.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The mailbox disk, one command at a time.
struct Disk {
    ports: PortAccess,
    /// A sector on its way between ports and bytes.
    words: [u32; SECTOR / 4],
}

impl Disk {
    fn open() -> io::Result<Self> {
        let mut disk = Self {
            ports: PortAccess::acquire()?,
            words: [0; SECTOR / 4],
        };
        disk.ports.write_byte(ATA_CONTROL, 2)?; // no interrupts: nobody listens
        Ok(disk)
    }

    fn read_header(&mut self, sector: u32) -> io::Result<Option<Header>> {
        let mut bytes = [0; SECTOR];
        self.read(sector, &mut bytes)?;
        Ok(Header::decode(&bytes))
    }

    /// Reads whole sectors: `bytes` must be a multiple of a sector long.
    fn read(&mut self, mut sector: u32, bytes: &mut [u8]) -> io::Result<()> {
        for run in bytes.chunks_mut(256 * SECTOR) {
            let (chunks, rest) = run.as_chunks_mut::<SECTOR>();
            debug_assert!(rest.is_empty(), "whole sectors");
            let count = chunks.len();
            self.command(READ_SECTORS, sector, count)?;
            for chunk in chunks {
                self.wait(WANTS_DATA)?;
                self.ports.read_words(ATA, &mut self.words)?;
                // Arrays of known length: the compiler makes one block move of it, which the emulated CPU needs.
                for (bytes, word) in chunk.as_chunks_mut::<4>().0.iter_mut().zip(&self.words) {
                    *bytes = word.to_le_bytes();
                }
            }
            sector += count as u32;
        }
        Ok(())
    }

    /// Writes sectors, the last one filled up with zeros.
    fn write(&mut self, mut sector: u32, bytes: &[u8]) -> io::Result<()> {
        for run in bytes.chunks(256 * SECTOR) {
            let (chunks, rest) = run.as_chunks::<SECTOR>();
            let count = run.len().div_ceil(SECTOR);
            self.command(WRITE_SECTORS, sector, count)?;
            for chunk in chunks {
                self.write_sector(chunk)?;
            }
            if !rest.is_empty() {
                let mut last = [0; SECTOR];
                last[..rest.len()].copy_from_slice(rest);
                self.write_sector(&last)?;
            }
            sector += count as u32;
        }
        self.wait(0)
    }

    fn write_sector(&mut self, chunk: &[u8; SECTOR]) -> io::Result<()> {
        for (word, bytes) in self.words.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *word = u32::from_le_bytes(*bytes);
        }
        self.wait(WANTS_DATA)?;
        self.ports.write_words(ATA, &self.words)
    }

    /// Starts a command on 1 to 256 sectors, with a 28-bit sector number.
    fn command(&mut self, command: u8, sector: u32, count: usize) -> io::Result<()> {
        let [low, middle, high, top] = sector.to_le_bytes();
        let registers = [count as u8, low, middle, high, 0xe0 | (top & 0x0f), command];
        for (port, value) in (ATA + 2..).zip(registers) {
            self.ports.write_byte(port, value)?;
        }
        Ok(())
    }

    /// Waits until the disk is not busy and `wanted` is up in its status.
    fn wait(&mut self, wanted: u8) -> io::Result<()> {
        let mut since = None;
        for poll in 0u64.. {
            let status = self.ports.read_byte(ATA + 7)?;
            if status & BUSY == 0 {
                if status & FAILED != 0 || status == 0x7f {
                    return Err(io::Error::new(
                        io::ErrorKind::NotFound,
                        "the mailbox disk refused a command",
                    ));
                }
                if status & wanted == wanted {
                    break;
                }
            }
            // The clock costs more than the port: look at it now and then.
            if poll % 1024 == 1023
                && since.get_or_insert_with(Instant::now).elapsed() > COMMAND_LIMIT
            {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("mailbox disk stuck, status {status:#04x}"),
                ));
            }
        }
        Ok(())
    }
}

fn corrupt(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
