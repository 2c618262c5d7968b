//! Frames: magic, version, length and CRC-32 before a postcard payload.
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | `NVMX` |
//! | 4 | 2 | version, little-endian |
//! | 6 | 2 | zero |
//! | 8 | 4 | length of the payload |
//! | 12 | 4 | CRC-32 of bytes 0 to 11 and the payload |
//!
//! A stream that breaks any of this is given up: there is no way back into step.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::{self, Read, Write};
use thiserror::Error;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"NVMX";
/// Version of frames and messages. There is one; both sides must speak it.
pub const VERSION: u16 = 2;
/// The longest payload.
pub const MAX_PAYLOAD: usize = 64 << 20;
/// Bytes before the payload.
pub const HEADER_SIZE: usize = 16;

/// What can be wrong with a frame.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The stream ended between two frames: the peer is gone, in good order.
    #[error("closed by the other side")]
    Closed,
    /// The stream failed, or ended inside a frame.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not the start of a frame.
    #[error("no frame: it begins with {0:02x?}")]
    Magic([u8; 4]),
    /// Another version.
    #[error("the other side speaks version {theirs}, this one {VERSION}: use the same release")]
    Version {
        /// What the peer speaks.
        theirs: u16,
    },
    /// A length beyond [`MAX_PAYLOAD`].
    #[error("a payload of {0} bytes is too long")]
    TooLong(u64),
    /// The checksum does not match.
    #[error("damaged in transit: checksum {computed:#010x}, not {stated:#010x}")]
    Checksum {
        /// As the frame says.
        stated: u32,
        /// As its bytes say.
        computed: u32,
    },
    /// The payload is no message.
    #[error("not a message: {0}")]
    Payload(#[from] postcard::Error),
}

/// The frame that carries `message`.
///
/// # Errors
/// It is too long.
pub fn encode(message: &impl Serialize) -> Result<Vec<u8>, FrameError> {
    let mut frame = postcard::to_extend(message, vec![0; HEADER_SIZE])?;
    let length = frame.len() - HEADER_SIZE;
    if length > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length as u64));
    }
    frame[..4].copy_from_slice(&MAGIC);
    frame[4..6].copy_from_slice(&VERSION.to_le_bytes());
    frame[8..12].copy_from_slice(&(length as u32).to_le_bytes());
    let checksum = checksum(&frame[..12], &frame[HEADER_SIZE..]);
    frame[12..16].copy_from_slice(&checksum.to_le_bytes());
    Ok(frame)
}

/// Writes one message.
///
/// # Errors
/// It is too long, or the stream fails.
pub fn send(stream: &mut impl Write, message: &impl Serialize) -> Result<(), FrameError> {
    stream.write_all(&encode(message)?)?;
    stream.flush()?;
    Ok(())
}

/// Reads one message. Allocates no more than the bytes that really come.
///
/// # Errors
/// Any [`FrameError`].
pub fn receive<T: DeserializeOwned>(stream: &mut impl Read) -> Result<T, FrameError> {
    let mut header = [0; HEADER_SIZE];
    read_header(stream, &mut header)?;
    let magic = [header[0], header[1], header[2], header[3]];
    if magic != MAGIC {
        return Err(FrameError::Magic(magic));
    }
    let theirs = u16::from_le_bytes([header[4], header[5]]);
    if theirs != VERSION {
        return Err(FrameError::Version { theirs });
    }
    let word = |at: usize| {
        u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let (length, stated) = (word(8), word(12));
    if length as usize > MAX_PAYLOAD {
        return Err(FrameError::TooLong(length.into()));
    }
    let mut payload = Vec::new();
    stream.take(length.into()).read_to_end(&mut payload)?;
    if payload.len() != length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    let computed = checksum(&header[..12], &payload);
    if computed != stated {
        return Err(FrameError::Checksum { stated, computed });
    }
    let (message, rest) = postcard::take_from_bytes(&payload)?;
    if !rest.is_empty() {
        return Err(postcard::Error::DeserializeBadEncoding.into());
    }
    Ok(message)
}

/// As `read_exact`, but an end before the first byte is [`FrameError::Closed`].
fn read_header(stream: &mut impl Read, header: &mut [u8; HEADER_SIZE]) -> Result<(), FrameError> {
    let mut have = 0;
    while have < header.len() {
        match stream.read(&mut header[have..]) {
            Ok(0) if have == 0 => return Err(FrameError::Closed),
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => have += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(header);
    hasher.update(payload);
    hasher.finalize()
}
