//! The PC that L1 images for QEMU's `pc` machine expect: its bus, and which device is where.
//!
//! Every device is a state machine over the guest time that it is given, so equal runs meet equal
//! devices. [`Pc`] answers port and memory accesses, sets the interrupt lines of PIC and I/O APIC, and
//! says until when nothing happens by itself. What else is to be done stands in a [`Request`].
//!
//! | ports | device |
//! |---|---|
//! | 0x20, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1 | [`pic`] |
//! | 0x40 to 0x43, 0x61 | [`pit`] |
//! | 0x60, 0x64 | [`i8042`] |
//! | 0x70, 0x71 | [`rtc`] |
//! | 0x92, 0xcf9 | reset |
//! | 0xe0 to 0xeb, 0x2000 to 0x2017 | [`test_device`] |
//! | 0xe9, by the byte | debug console |
//! | 0xf4 to 0xf7 | debug exit |
//! | 0x3f8 to 0x3ff | [`serial`] |
//! | 0x510, 0x511, 0x514 to 0x51b | [`fw_cfg`] |
//! | 0x600 to 0x60b, 0xafe0 to 0xafe3, 0xb2 | [`pm`] |
//! | 0xcf8, 0xcfc to 0xcff | [`pci`] |
//!
//! | memory | device |
//! |---|---|
//! | 0xfec00000 | [`ioapic`] |
//! | 0xff000000 | [`test_device`] |
//!
//! Where nothing is, reads are all ones and writes are dropped, as on a PC's bus.

pub mod acpi;
pub mod bios_data;
pub mod fw_cfg;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm;
pub mod rtc;
pub mod serial;
pub mod test_device;

use crate::ports;
use fw_cfg::FwCfg;
use i8042::Keyboard;
use ioapic::IoApic;
use pci::Pci;
use pic::Pic;
use pit::Pit;
use pm::PowerManagement;
use rtc::Rtc;
use serial::Uart;
use test_device::TestDevice;

/// QEMU's debug console: a read gives the port's number, a write is shown.
const DEBUG_CONSOLE: u16 = 0xe9;
const SYSTEM_CONTROL_A: u16 = 0x92;
const SYSTEM_CONTROL_B: u16 = 0x61;
const RESET_CONTROL: u16 = 0xcf9;
const PCI_ADDRESS: u16 = 0xcf8;

/// RAM ends here at the latest: above are the devices.
pub const MOST_MEMORY: u64 = 0xe000_0000;

/// Interrupt lines.
mod line {
    pub(super) const TIMER: u8 = 0;
    pub(super) const KEYBOARD: u8 = 1;
    pub(super) const SERIAL: u8 = 4;
    pub(super) const CLOCK: u8 = 8;
    pub(super) const POWER: u8 = 9;
}
/// The I/O APIC's input for the timer, whose own is the PIC's output on a PC.
const TIMER_INPUT: u8 = 2;

/// What the PC is made of.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// Bytes of RAM.
    pub memory_size: u64,
    /// Processors.
    pub processors: usize,
    /// The kernel's command line, for who asks [`fw_cfg`].
    pub command_line: String,
    /// The initial RAM disk, for who asks [`fw_cfg`].
    pub initrd: Vec<u8>,
}

/// What a write asks for beyond the bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// A byte leaves the serial port.
    Serial(u8),
    /// A byte for the debug console.
    Console(u8),
    /// The debug-exit port was written.
    DebugExit(u32),
    /// ACPI's S5.
    PowerOff,
    /// The processor is to be reset.
    Reset,
    /// A DMA descriptor of [`fw_cfg`] at this address is to be carried out.
    Dma(u64),
    /// The PC cannot do this.
    Unsupported(&'static str),
}

/// The bus and its devices.
pub struct Pc {
    pic: Pic,
    pit: Pit,
    rtc: Rtc,
    ioapic: IoApic,
    uart: Uart,
    keyboard: Keyboard,
    power: PowerManagement,
    pci: Pci,
    fw_cfg: FwCfg,
    test: TestDevice,
    reset_control: u8,
    /// Levels as PIC and I/O APIC know them.
    lines: u32,
}

impl Pc {
    /// A PC as firmware hands it over.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        let mut pc = Self {
            pic: Pic::new(),
            pit: Pit::new(),
            rtc: Rtc::new(config.memory_size, config.processors),
            ioapic: IoApic::new(),
            uart: Uart::new(),
            keyboard: Keyboard::new(),
            power: PowerManagement::new(),
            pci: Pci::new(),
            fw_cfg: FwCfg::new(config),
            test: TestDevice::new(),
            reset_control: 0,
            lines: 0,
        };
        pc.wire();
        pc
    }

    /// Lets time pass, in nanoseconds of guest time.
    pub fn advance(&mut self, now: u64) {
        self.pit.advance(now);
        self.rtc.advance(now);
        self.power.advance(now);
        self.wire();
    }

    /// The guest time at which a device may next raise a line that somebody listens to.
    #[must_use]
    pub fn deadline(&self) -> Option<u64> {
        let heard = |irq, input| self.pic.is_unmasked(irq) || self.ioapic.is_unmasked(input);
        [
            self.pit
                .deadline()
                .filter(|_| heard(line::TIMER, TIMER_INPUT)),
            self.rtc
                .deadline()
                .filter(|_| heard(line::CLOCK, line::CLOCK)),
            self.power
                .deadline()
                .filter(|_| heard(line::POWER, line::POWER)),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// The PIC, for its output and acknowledge cycles.
    pub fn pic(&mut self) -> &mut Pic {
        &mut self.pic
    }

    /// The I/O APIC, for its messages and their EOI.
    pub fn ioapic(&mut self) -> &mut IoApic {
        &mut self.ioapic
    }

    /// The configuration device, for its DMA.
    pub fn fw_cfg(&mut self) -> &mut FwCfg {
        &mut self.fw_cfg
    }

    /// A byte arrives at the serial port; `false` if there is no room for it now.
    pub fn receive(&mut self, byte: u8) -> bool {
        let taken = self.uart.receive(byte);
        self.wire();
        taken
    }

    /// Hands the devices' lines to PIC and I/O APIC.
    fn wire(&mut self) {
        if self.pit.take_edge() {
            // Whatever the level is now, it has risen since.
            self.set_line(line::TIMER, false);
            self.set_line(line::TIMER, true);
        }
        let devices = [
            (line::TIMER, self.pit.line()),
            (line::KEYBOARD, self.keyboard.line()),
            (line::SERIAL, self.uart.line()),
            (line::CLOCK, self.rtc.line()),
            (line::POWER, self.power.line()),
        ];
        let levels = devices
            .iter()
            .fold(self.test.lines(), |levels, (irq, high)| {
                levels | u32::from(*high) << irq
            });
        let mut changed = levels ^ self.lines;
        while changed != 0 {
            let irq = changed.trailing_zeros() as u8;
            changed &= changed - 1;
            self.set_line(irq, levels >> irq & 1 != 0);
        }
    }

    fn set_line(&mut self, irq: u8, high: bool) {
        let bit = 1 << irq;
        self.lines = if high {
            self.lines | bit
        } else {
            self.lines & !bit
        };
        self.pic.set_line(irq, high);
        let input = if irq == line::TIMER { TIMER_INPUT } else { irq };
        self.ioapic.set_line(input, high);
    }

    /// Reads `size` bytes at a port.
    pub fn read_port(&mut self, now: u64, port: u16, size: u8) -> u32 {
        let size = size.min(4);
        let value = match (port, size) {
            (PCI_ADDRESS, 4) => self.pci.address(),
            (DEBUG_CONSOLE, 1) => DEBUG_CONSOLE.into(),
            (ports::DEBUG_EXIT..=0xf7, _) => 0,
            _ => (0..size).fold(0, |value, index| {
                let byte = self.read_byte(now, port.wrapping_add(index.into()));
                value | u32::from(byte) << (8 * index)
            }),
        };
        self.wire();
        value
    }

    fn read_byte(&mut self, now: u64, port: u16) -> u8 {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.read(port),
            0x4d0 | 0x4d1 => self.pic.read_trigger_mode(port),
            0x40..=0x43 => self.pit.read(now, port),
            0x60 => self.keyboard.read_data(),
            SYSTEM_CONTROL_B => self.pit.read_port_61(now),
            0x64 => self.keyboard.read_status(),
            0x71 => self.rtc.read(now),
            SYSTEM_CONTROL_A => 2, // A20 is on
            0xe0..=0xe3 | 0xe8..=0xeb => self.test.read_scratch(port),
            0x3f8..=0x3ff => self.uart.read((port & 7) as u8),
            fw_cfg::DATA => self.fw_cfg.read(),
            0x514..=0x51b => self.fw_cfg.read_dma(port),
            0x600..=0x60b => self.power.read(now, port - pm::PM1),
            0xafe0..=0xafe3 => self.power.read_general(port - pm::GPE0),
            RESET_CONTROL => self.reset_control,
            0xcfc..=0xcff => self.pci.read(port & 3),
            _ => 0xff,
        }
    }

    /// Writes `size` bytes at a port.
    pub fn write_port(&mut self, now: u64, port: u16, size: u8, value: u32) -> Option<Request> {
        let size = size.min(4);
        let request = match (port, size) {
            (PCI_ADDRESS, 4) => {
                self.pci.set_address(value);
                None
            }
            (DEBUG_CONSOLE, 1) => Some(Request::Console(value as u8)),
            (ports::DEBUG_EXIT..=0xf7, _) => Some(Request::DebugExit(value)),
            (fw_cfg::SELECTOR, 2) => {
                self.fw_cfg.select(value as u16);
                None
            }
            (0x514 | 0x518, 4) => self.fw_cfg.write_dma(port, value).map(Request::Dma),
            (0x2000..=0x2017, 1) => {
                self.test.set_line(port - test_device::LINES, value as u8);
                None
            }
            (0x2000..=0x2017, _) => None,
            _ => {
                let mut request = None;
                for (index, byte) in (0..).zip(&value.to_le_bytes()[..usize::from(size)]) {
                    let asked = self.write_byte(now, port.wrapping_add(index), *byte);
                    request = request.or(asked);
                }
                request
            }
        };
        self.wire();
        request
    }

    fn write_byte(&mut self, now: u64, port: u16, value: u8) -> Option<Request> {
        match port {
            0x20 | 0x21 | 0xa0 | 0xa1 => self.pic.write(port, value),
            0x4d0 | 0x4d1 => self.pic.write_trigger_mode(port, value),
            0x40..=0x43 => self.pit.write(now, port, value),
            0x60 => return self.keyboard.write_data(value),
            SYSTEM_CONTROL_B => self.pit.write_port_61(now, value),
            0x64 => return self.keyboard.write_command(value),
            0x70 => self.rtc.select(value),
            0x71 => self.rtc.write(now, value),
            SYSTEM_CONTROL_A if value & 1 != 0 => return Some(Request::Reset),
            SYSTEM_CONTROL_A if value & 2 == 0 => {
                return Some(Request::Unsupported("A20 masked by port 0x92"));
            }
            0xe0..=0xe3 | 0xe8..=0xeb => self.test.write_scratch(port, value),
            pm::SMI_COMMAND => self.power.command(value),
            0x3f8..=0x3ff => {
                return self
                    .uart
                    .write((port & 7) as u8, value)
                    .map(Request::Serial);
            }
            0x600..=0x60b => return self.power.write(now, port - pm::PM1, value),
            0xafe0..=0xafe3 => self.power.write_general(port - pm::GPE0, value),
            RESET_CONTROL => {
                self.reset_control = value & 0x0e;
                if value & 4 != 0 {
                    return Some(Request::Reset);
                }
            }
            0xcfc..=0xcff => self.pci.write(port & 3, value),
            _ => {}
        }
        None
    }

    /// Reads `size` bytes of memory that is not RAM.
    #[must_use]
    pub fn read_memory(&self, address: u64, size: u8) -> u64 {
        let size = size.min(8);
        let value = match address {
            0xfec0_0000..0xfec0_1000 => self.ioapic.read(address - ioapic::ADDRESS).into(),
            0xff00_0000..0xff01_0000 => (0..size).fold(0, |value, index| {
                let at = address - test_device::MEMORY + u64::from(index);
                value | u64::from(self.test.read_memory(at)) << (8 * index)
            }),
            _ => u64::MAX,
        };
        value & mask(size)
    }

    /// Writes `size` bytes of memory that is not RAM.
    pub fn write_memory(&mut self, address: u64, size: u8, value: u64) {
        let size = size.min(8);
        match address {
            0xfec0_0000..0xfec0_1000 => {
                let value = (value & mask(size)) as u32;
                self.ioapic.write(address - ioapic::ADDRESS, value);
            }
            0xff00_0000..0xff01_0000 => {
                for (index, byte) in (0..).zip(&value.to_le_bytes()[..usize::from(size)]) {
                    self.test
                        .write_memory(address - test_device::MEMORY + index, *byte);
                }
            }
            _ => {}
        }
    }
}

/// The bits of so many bytes.
fn mask(size: u8) -> u64 {
    1_u64
        .checked_shl(8 * u32::from(size))
        .map_or(u64::MAX, |bit| bit - 1)
}

#[cfg(test)]
mod tests;
