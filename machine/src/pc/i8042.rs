//! A keyboard controller (8042, ports 0x60 and 0x64) with a keyboard that nobody types on and no mouse:
//! enough for an operating system to find it and to reset the machine with it.

use super::Request;
use std::collections::VecDeque;

mod status {
    pub(super) const OUTPUT_FULL: u8 = 1;
    pub(super) const SYSTEM: u8 = 4;
    pub(super) const COMMAND: u8 = 8;
    /// The keyboard is not locked.
    pub(super) const UNLOCKED: u8 = 0x10;
}
/// Bit 0 of the command byte: interrupt when the output buffer fills.
const INTERRUPT: u8 = 1;
const RESET_LINE: u8 = 1;
const A20_LINE: u8 = 2;
const ACKNOWLEDGE: u8 = 0xfa;
/// Answers that wait at most, whatever the guest asks.
const MOST_WAITING: usize = 16;

/// What the next byte at port 0x60 is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Data {
    #[default]
    Keyboard,
    /// A parameter of the keyboard's last command.
    KeyboardParameter,
    CommandByte,
    OutputPort,
    /// Comes back as if typed.
    Echo,
    /// For the mouse that is not there.
    Mouse,
}

/// The controller.
#[derive(Debug, Clone)]
pub struct Keyboard {
    command_byte: u8,
    last_was_command: bool,
    expects: Data,
    output: VecDeque<u8>,
}

impl Default for Keyboard {
    fn default() -> Self {
        Self::new()
    }
}

impl Keyboard {
    /// As firmware leaves it: working, interrupts off.
    #[must_use]
    pub fn new() -> Self {
        Self {
            command_byte: 0x64, // translation, no mouse, system flag
            last_was_command: false,
            expects: Data::Keyboard,
            output: VecDeque::with_capacity(MOST_WAITING),
        }
    }

    /// Interrupt line 1.
    #[must_use]
    pub fn line(&self) -> bool {
        self.command_byte & INTERRUPT != 0 && !self.output.is_empty()
    }

    /// Reads port 0x60.
    pub fn read_data(&mut self) -> u8 {
        self.output.pop_front().unwrap_or(0)
    }

    /// Reads port 0x64.
    #[must_use]
    pub fn read_status(&self) -> u8 {
        let mut value = status::UNLOCKED | self.command_byte & status::SYSTEM;
        if !self.output.is_empty() {
            value |= status::OUTPUT_FULL;
        }
        if self.last_was_command {
            value |= status::COMMAND;
        }
        value
    }

    fn answer(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.output.len() < MOST_WAITING {
                self.output.push_back(*byte);
            }
        }
    }

    /// Writes port 0x64: a command for the controller.
    #[must_use]
    pub fn write_command(&mut self, command: u8) -> Option<Request> {
        self.last_was_command = true;
        self.expects = Data::Keyboard;
        match command {
            0x20 => self.answer(&[self.command_byte]),
            0x60 => self.expects = Data::CommandByte,
            0xa7 => self.command_byte |= 0x20,
            0xa8 => self.command_byte &= !0x20,
            0xaa => {
                self.command_byte |= status::SYSTEM;
                self.answer(&[0x55]);
            }
            0xab => self.answer(&[0]),
            0xad => self.command_byte |= 0x10,
            0xae => self.command_byte &= !0x10,
            0xd0 => self.answer(&[RESET_LINE | A20_LINE]),
            0xd1 => self.expects = Data::OutputPort,
            0xd2 => self.expects = Data::Echo,
            0xd3 | 0xd4 => self.expects = Data::Mouse,
            // Pulses the output lines whose bits are clear, of which line 0 is reset.
            0xf0..=0xff if command & RESET_LINE == 0 => return Some(Request::Reset),
            _ => {}
        }
        None
    }

    /// Writes port 0x60.
    #[must_use]
    pub fn write_data(&mut self, value: u8) -> Option<Request> {
        self.last_was_command = false;
        match std::mem::take(&mut self.expects) {
            Data::CommandByte => self.command_byte = value,
            Data::OutputPort if value & RESET_LINE == 0 => return Some(Request::Reset),
            Data::OutputPort if value & A20_LINE == 0 => {
                return Some(Request::Unsupported(
                    "A20 masked by the keyboard controller",
                ));
            }
            Data::OutputPort | Data::Mouse => {}
            Data::Echo => self.answer(&[value]),
            Data::KeyboardParameter => self.answer(&[ACKNOWLEDGE]),
            Data::Keyboard => self.keyboard(value),
        }
        None
    }

    fn keyboard(&mut self, command: u8) {
        match command {
            0xed | 0xf0 | 0xf3 => {
                self.expects = Data::KeyboardParameter;
                self.answer(&[ACKNOWLEDGE]);
            }
            0xee => self.answer(&[0xee]),
            0xf2 => self.answer(&[ACKNOWLEDGE, 0xab, 0x83]),
            0xff => self.answer(&[ACKNOWLEDGE, 0xaa]),
            _ => self.answer(&[ACKNOWLEDGE]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(keyboard: &mut Keyboard, command: u8) -> Vec<u8> {
        assert!(keyboard.write_command(command).is_none());
        drain(keyboard)
    }

    fn drain(keyboard: &mut Keyboard) -> Vec<u8> {
        let mut bytes = Vec::new();
        while keyboard.read_status() & status::OUTPUT_FULL != 0 {
            bytes.push(keyboard.read_data());
        }
        bytes
    }

    #[test]
    fn probe() {
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.read_status(), 0x14);
        assert_eq!(ask(&mut keyboard, 0xaa), [0x55]);
        assert_eq!(keyboard.read_status(), 0x1c);
        assert_eq!(ask(&mut keyboard, 0xab), [0]);
        assert_eq!(ask(&mut keyboard, 0x20), [0x64]);
        assert!(keyboard.write_command(0x60).is_none());
        assert!(keyboard.write_data(0x65).is_none());
        assert_eq!(ask(&mut keyboard, 0x20), [0x65]);
        for (byte, answer) in [
            (0xf2_u8, &[0xfa_u8, 0xab, 0x83] as &[u8]),
            (0xff, &[0xfa, 0xaa]),
            (0xed, &[0xfa]),
            (0x02, &[0xfa]),
            (0xee, &[0xee]),
        ] {
            assert!(keyboard.write_data(byte).is_none());
            assert!(keyboard.line());
            assert_eq!(drain(&mut keyboard), answer);
            assert!(!keyboard.line());
        }
        assert!(keyboard.write_command(0xd3).is_none());
        assert!(keyboard.write_data(0x5a).is_none());
        assert_eq!(drain(&mut keyboard), [], "no mouse");
    }

    #[test]
    fn reset_and_a20() {
        let mut keyboard = Keyboard::new();
        assert_eq!(keyboard.write_command(0xfe), Some(Request::Reset));
        assert_eq!(keyboard.write_command(0xff), None);
        for (value, request) in [(0xdf, false), (0xdd, true), (0xde, true)] {
            assert_eq!(keyboard.write_command(0xd1), None);
            assert_eq!(keyboard.write_data(value).is_some(), request, "{value:#x}");
        }
    }

    #[test]
    fn answers_are_bounded() {
        let mut keyboard = Keyboard::new();
        for _ in 0..1000 {
            let _ = keyboard.write_data(0xff);
        }
        assert_eq!(drain(&mut keyboard).len(), MOST_WAITING);
    }
}
