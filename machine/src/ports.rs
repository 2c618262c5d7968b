//! The I/O ports that mean something to this machine. Every other port reads all ones and ignores
//! writes, as an empty PC bus does.

/// 16550 serial port, eight registers from here (COM1).
pub const SERIAL: u16 = 0x3f8;
/// Debug exit: a write of `v` ends the run with exit status `(v << 1) | 1`, as QEMU's
/// `isa-debug-exit` does.
pub const DEBUG_EXIT: u16 = 0xf4;
/// Bochs' shutdown port: the bytes of `Shutdown`, one after the other.
pub const SHUTDOWN: u16 = 0x8900;
/// The word that ends the run at [`SHUTDOWN`].
pub const SHUTDOWN_WORD: &[u8] = b"Shutdown";
/// Checkpoint: a guest writes a 32-bit id here where its state holds nothing that depends on time.
/// Lockstep comparison stops both sides here. Whoever writes (L1, or L2 if L1's I/O bitmap lets it)
/// is the level that is current at the stop.
pub const CHECKPOINT: u16 = 0x5e0;
/// Report: a guest appends a 32-bit value to its own event log.
pub const REPORT: u16 = 0x5e4;
