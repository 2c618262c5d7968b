//! A 16550 with FIFO and interrupts (National Semiconductor "PC16550D Universal Asynchronous
//! Receiver/Transmitter"). A byte is sent in no time.
//!
//! As on QEMU, OUT2 does not gate the interrupt.

use std::collections::VecDeque;

const FIFO: usize = 16;

mod ier {
    pub(super) const RECEIVED: u8 = 1;
    pub(super) const TRANSMITTER: u8 = 2;
    pub(super) const LINE_STATUS: u8 = 4;
}
mod lsr {
    pub(super) const DATA_READY: u8 = 1;
    pub(super) const OVERRUN: u8 = 2;
    /// Holding register and transmitter are empty: always.
    pub(super) const EMPTY: u8 = 0x60;
}
const DLAB: u8 = 0x80;
const LOOPBACK: u8 = 0x10;
/// Carrier, data set ready, clear to send: somebody listens.
const MODEM_STATUS: u8 = 0xb0;

/// The port's registers and what it has received.
#[derive(Debug, Clone, Default)]
pub struct Uart {
    ier: u8,
    lcr: u8,
    mcr: u8,
    scratch: u8,
    divisor: [u8; 2],
    fifo_enabled: bool,
    overrun: bool,
    /// The transmitter became empty and nobody has been told.
    transmitter_pending: bool,
    received: VecDeque<u8>,
}

impl Uart {
    /// As after reset, at 9600 baud.
    #[must_use]
    pub fn new() -> Self {
        Self {
            divisor: [12, 0],
            ..Self::default()
        }
    }

    /// A byte from the other end; `false` if there is no room for it now.
    pub fn receive(&mut self, byte: u8) -> bool {
        let room = self.received.len() < self.capacity();
        if room {
            self.received.push_back(byte);
        }
        room
    }

    fn capacity(&self) -> usize {
        if self.fifo_enabled { FIFO } else { 1 }
    }

    /// Interrupt identification, by priority.
    fn identification(&self) -> u8 {
        if self.ier & ier::LINE_STATUS != 0 && self.overrun {
            6
        } else if self.ier & ier::RECEIVED != 0 && !self.received.is_empty() {
            4
        } else if self.ier & ier::TRANSMITTER != 0 && self.transmitter_pending {
            2
        } else {
            1
        }
    }

    /// The interrupt line.
    #[must_use]
    pub fn line(&self) -> bool {
        self.identification() & 1 == 0
    }

    fn is_divisor_open(&self) -> bool {
        self.lcr & DLAB != 0
    }

    /// Reads register 0 to 7.
    pub fn read(&mut self, register: u8) -> u8 {
        match register {
            0 | 1 if self.is_divisor_open() => self.divisor[usize::from(register)],
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.ier,
            2 => {
                let identification = self.identification();
                if identification == 2 {
                    self.transmitter_pending = false;
                }
                identification | if self.fifo_enabled { 0xc0 } else { 0 }
            }
            3 => self.lcr,
            4 => self.mcr,
            5 => {
                let ready = if self.received.is_empty() {
                    0
                } else {
                    lsr::DATA_READY
                };
                let overrun = if std::mem::take(&mut self.overrun) {
                    lsr::OVERRUN
                } else {
                    0
                };
                lsr::EMPTY | ready | overrun
            }
            6 if self.mcr & LOOPBACK != 0 => {
                // DTR to DSR, RTS to CTS, OUT1 to RI, OUT2 to DCD.
                (self.mcr & 1) << 5 | (self.mcr & 2) << 3 | (self.mcr & 0xc) << 4
            }
            6 => MODEM_STATUS,
            _ => self.scratch,
        }
    }

    /// Writes register 0 to 7; a byte that leaves the port.
    #[must_use]
    pub fn write(&mut self, register: u8, value: u8) -> Option<u8> {
        match register {
            0 | 1 if self.is_divisor_open() => self.divisor[usize::from(register)] = value,
            0 => {
                self.transmitter_pending = true;
                if self.mcr & LOOPBACK == 0 {
                    return Some(value);
                }
                self.overrun |= !self.receive(value);
            }
            1 => {
                let turned_on = value & !self.ier;
                self.ier = value & 0xf;
                // The transmitter is empty, so enabling its interrupt asks for one.
                self.transmitter_pending |= turned_on & ier::TRANSMITTER != 0;
            }
            2 => {
                let enabled = value & 1 != 0;
                if enabled != self.fifo_enabled || value & 2 != 0 {
                    self.received.clear();
                }
                self.fifo_enabled = enabled;
            }
            3 => self.lcr = value,
            4 => self.mcr = value & 0x1f,
            7 => self.scratch = value,
            // The status registers.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_unless_the_divisor_is_open_or_looped() {
        let mut uart = Uart::new();
        assert_eq!(uart.write(0, b'a'), Some(b'a'));
        assert_eq!(uart.write(3, DLAB | 3), None);
        assert_eq!(uart.write(0, 1), None);
        assert_eq!((uart.read(0), uart.read(1)), (1, 0));
        assert_eq!(uart.write(3, 3), None);
        assert_eq!(uart.write(4, LOOPBACK), None);
        assert_eq!(uart.write(0, b'b'), None);
        assert_eq!(uart.read(5), 0x61);
        assert_eq!(uart.read(0), b'b');
        assert_eq!(uart.read(5), 0x60);
    }

    #[test]
    fn the_empty_transmitter_interrupts_once_for_each_byte() {
        let mut uart = Uart::new();
        assert!(!uart.line());
        assert_eq!(uart.read(2), 1);
        let _ = uart.write(1, ier::TRANSMITTER);
        assert!(uart.line(), "enabling asks at once");
        assert_eq!(uart.read(2), 2);
        assert!(!uart.line(), "reading the identification acknowledges");
        let _ = uart.write(0, b'x');
        assert!(uart.line());
        let _ = uart.write(1, 0);
        assert!(!uart.line());
    }

    #[test]
    fn received_bytes_interrupt_until_they_are_read() {
        let mut uart = Uart::new();
        let _ = uart.write(2, 1);
        let _ = uart.write(1, ier::RECEIVED | ier::TRANSMITTER);
        for byte in 0..16 {
            assert!(uart.receive(byte));
        }
        assert!(!uart.receive(16), "the FIFO is full");
        for byte in 0..16 {
            assert_eq!(
                uart.read(2),
                0xc4,
                "before the transmitter, by its priority"
            );
            assert_eq!(uart.read(0), byte);
        }
        assert_eq!(uart.read(2), 0xc2);
        assert!(!uart.line());
        assert!(uart.receive(1));
        let _ = uart.write(2, 3);
        assert!(!uart.line(), "the FIFO was reset");
    }

    #[test]
    fn overrun_is_a_line_status() {
        let mut uart = Uart::new();
        let _ = uart.write(4, LOOPBACK);
        let _ = uart.write(1, ier::LINE_STATUS);
        let _ = uart.write(0, 1);
        assert!(!uart.line());
        let _ = uart.write(0, 2);
        assert_eq!(uart.read(2), 6);
        assert_eq!(uart.read(5), 0x63);
        assert_eq!(uart.read(2), 1);
    }

    #[test]
    fn modem_lines_loop_back() {
        let mut uart = Uart::new();
        assert_eq!(uart.read(6), 0xb0);
        for (mcr, msr) in [(1, 0x20), (2, 0x10), (4, 0x40), (8, 0x80)] {
            let _ = uart.write(4, LOOPBACK | mcr);
            assert_eq!(uart.read(6), msr);
        }
    }

    #[test]
    fn scratch() {
        let mut uart = Uart::new();
        let _ = uart.write(7, 0x5a);
        assert_eq!(uart.read(7), 0x5a);
    }
}
