//! Runs a machine and answers its port accesses, the same on every backend.
//!
//! There are two machines: the small one here, which all backends share, and the PC of [`crate::pc`]
//! in `driver/pc.rs`, which needs a backend with a time of its own.
//!
//! The small one's 16550 follows "PC16550D Universal Asynchronous Receiver/Transmitter" by way of vm-superio;
//! no interrupt is wired, since the example guests poll. Ports without a device read all ones.

mod pc;

use crate::pc::Pc;
use crate::ports;
use nvmx_core::vcpu::{BackendError, Budget, Exit, NestedEvent, Result, Vm};
use std::convert::Infallible;
use std::fmt;
use std::io::Write;
use std::time::Instant;
use vm_superio::{Serial, Trigger};

/// Why a driven run stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stop {
    /// The guest wrote this to [`ports::DEBUG_EXIT`].
    DebugExit(u32),
    /// The guest wrote the shutdown word to [`ports::SHUTDOWN`].
    PowerOff,
    /// The guest wrote this id to [`ports::CHECKPOINT`]; the OUT is complete.
    Checkpoint(u32),
    /// HLT with nothing to wait for.
    Halted,
    /// Triple fault of L1.
    Shutdown,
    /// The guest asked for a reset, through a device.
    Reset,
    /// The budget is spent.
    Budget,
    /// The host could not enter the guest.
    FailEntry(u64),
    /// The backend cannot go on.
    InternalError {
        /// `KVM_INTERNAL_ERROR_*` or zero.
        suberror: u32,
        /// What happened.
        message: String,
    },
    /// The model has not been taught this.
    Unsupported(String),
    /// Access to memory that is not RAM, where this machine has no device.
    Mmio {
        /// L1-physical address.
        address: u64,
        /// Bytes.
        size: u8,
        /// A write of this value; `None` for a read, which waits for its value.
        written: Option<u64>,
    },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugExit(value) => write!(f, "debug exit {value:#x}"),
            Self::PowerOff => f.write_str("power off"),
            Self::Checkpoint(id) => write!(f, "checkpoint {id:#x}"),
            Self::Halted => f.write_str("HLT with nothing to wait for"),
            Self::Shutdown => f.write_str("triple fault of L1"),
            Self::Reset => f.write_str("reset by the guest"),
            Self::Budget => f.write_str("the limit of the run"),
            Self::FailEntry(reason) => {
                write!(f, "a failed VM entry of the host, reason {reason:#x}")
            }
            Self::InternalError { suberror, message } => {
                write!(f, "internal error {suberror}: {message}")
            }
            Self::Unsupported(what) => write!(f, "unsupported: {what}"),
            Self::Mmio {
                address,
                size,
                written,
            } => {
                let verb = if written.is_some() {
                    "write to"
                } else {
                    "read from"
                };
                write!(f, "{size}-byte {verb} {address:#x}, where nothing is")
            }
        }
    }
}

impl Stop {
    /// The exit status that QEMU's `isa-debug-exit` would give, for a debug exit.
    #[must_use]
    pub fn status(&self) -> Option<u32> {
        match self {
            Self::DebugExit(value) => Some(value.wrapping_shl(1) | 1),
            _ => None,
        }
    }
}

/// The serial port's interrupt line, which leads nowhere.
struct Unwired;

impl Trigger for Unwired {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        Ok(())
    }
}

/// The devices of a machine and what its guest said so far.
pub struct Driver<W: Write = Vec<u8>> {
    serial: Serial<Unwired, vm_superio::serial::NoEvents, W>,
    /// The devices of a PC, where the machine is one.
    pc: Option<Box<Pc>>,
    /// The PC's PIC asks for an interrupt, as vCPU 0 knows.
    interrupt_line: bool,
    shutdown_match: usize,
    reports: Vec<u32>,
    events: Vec<NestedEvent>,
    lost_events: u64,
}

impl Default for Driver {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl<W: Write> Driver<W> {
    /// Devices as after reset; what the serial port sends goes to `serial`.
    #[must_use]
    pub fn new(serial: W) -> Self {
        Self {
            serial: Serial::new(Unwired, serial),
            pc: None,
            interrupt_line: false,
            shutdown_match: 0,
            reports: Vec::new(),
            events: Vec::new(),
            lost_events: 0,
        }
    }

    /// Where the serial port writes to.
    #[must_use]
    pub fn serial(&self) -> &W {
        self.serial.writer()
    }

    /// Where the serial port wrote to, for who needs the devices no more.
    #[must_use]
    pub fn into_serial(self) -> W {
        self.serial.into_writer()
    }

    /// The values written to [`ports::REPORT`], in order.
    #[must_use]
    pub fn reports(&self) -> &[u32] {
        &self.reports
    }

    /// The nested events collected so far, in order.
    #[must_use]
    pub fn events(&self) -> &[NestedEvent] {
        &self.events
    }

    /// Takes the nested events collected so far.
    pub fn take_events(&mut self) -> Vec<NestedEvent> {
        std::mem::take(&mut self.events)
    }

    /// Nested events that the backend could not keep.
    #[must_use]
    pub const fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Runs the machine, all its vCPUs, until something that is not an access to a device stops it.
    ///
    /// The limits of `budget` count over the whole call. A backend that takes a limit on instructions
    /// but does not say how many it ran cannot carry it over an exit: there the run also stops with
    /// [`Stop::Budget`] after the first port access, and the caller counts.
    pub fn run(&mut self, vm: &mut dyn Vm, budget: Budget) -> Result<Stop> {
        if self.pc.is_some() {
            return self.run_pc(vm, budget);
        }
        let account = Account::open(budget, self.events.len(), vm);
        loop {
            let Some(left) = account.left(self.events.len(), vm) else {
                return Ok(Stop::Budget);
            };
            let ran = vm.run(left);
            self.collect(vm)?;
            let (vcpu, exit) = ran?;
            if let Some(stop) = self.handle(vm, vcpu, exit)? {
                return Ok(stop);
            }
            if account.cannot_count_instructions() {
                return Ok(Stop::Budget);
            }
        }
    }

    /// Takes over the nested events that the backend saw.
    pub fn collect(&mut self, vm: &mut dyn Vm) -> Result<()> {
        for index in 0..vm.vcpu_count() {
            let vcpu = vm.vcpu(index);
            vcpu.drain_nested_events(&mut self.events)?;
            self.lost_events += vcpu.lost_nested_events();
        }
        Ok(())
    }

    /// Answers one exit of vCPU `vcpu`; `None` means that the run can go on.
    pub fn handle(&mut self, vm: &mut dyn Vm, vcpu: usize, exit: Exit) -> Result<Option<Stop>> {
        Ok(match exit {
            Exit::IoOut { port, size, value } => self.write(port, size, value)?,
            Exit::IoIn { port, size } => {
                let value = self.read(port, size);
                vm.vcpu(vcpu).complete_read(value)?;
                None
            }
            Exit::MmioRead { address, size } => Some(Stop::Mmio {
                address: address.0,
                size,
                written: None,
            }),
            Exit::MmioWrite {
                address,
                size,
                value,
            } => Some(Stop::Mmio {
                address: address.0,
                size,
                written: Some(value),
            }),
            Exit::Hlt => Some(Stop::Halted),
            Exit::Shutdown => Some(Stop::Shutdown),
            Exit::Budget => Some(Stop::Budget),
            Exit::Stepped => None,
            Exit::FailEntry { reason } => Some(Stop::FailEntry(reason)),
            Exit::InternalError { suberror, message } => {
                Some(Stop::InternalError { suberror, message })
            }
            Exit::Unsupported { what } => Some(Stop::Unsupported(what)),
            // Without a PIC, an I/O APIC or a debugger nothing here asks for these.
            Exit::InterruptWindow | Exit::IoApicEoi { .. } | Exit::Debug { .. } => None,
            // Nor to hear of MSRs.
            exit @ (Exit::MsrRead { .. } | Exit::MsrWrite { .. }) => {
                Some(Stop::Unsupported(format!("{exit:?} for user space")))
            }
        })
    }

    fn write(&mut self, port: u16, size: u8, value: u32) -> Result<Option<Stop>> {
        // The serial port decodes bytes; a wider access reaches its registers one after the other.
        let bytes = value.to_le_bytes();
        match port {
            ports::DEBUG_EXIT => return Ok(Some(Stop::DebugExit(value))),
            ports::CHECKPOINT => return Ok(Some(Stop::Checkpoint(value))),
            ports::REPORT => self.reports.push(value),
            ports::SHUTDOWN => {
                for byte in &bytes[..usize::from(size.min(4))] {
                    if self.shutdown_byte(*byte) {
                        return Ok(Some(Stop::PowerOff));
                    }
                }
            }
            _ => {
                for (index, byte) in bytes[..usize::from(size.min(4))].iter().enumerate() {
                    if let Some(register) = serial_register(port, index) {
                        self.serial.write(register, *byte).map_err(|error| {
                            BackendError::Other(format!("serial port: {error}"))
                        })?;
                    }
                }
            }
        }
        Ok(None)
    }

    fn read(&mut self, port: u16, size: u8) -> u64 {
        (0..usize::from(size.min(8))).fold(0, |value, index| {
            let byte =
                serial_register(port, index).map_or(0xff, |register| self.serial.read(register));
            value | u64::from(byte) << (8 * index)
        })
    }

    fn shutdown_byte(&mut self, byte: u8) -> bool {
        let word = ports::SHUTDOWN_WORD;
        self.shutdown_match = if word[self.shutdown_match] == byte {
            self.shutdown_match + 1
        } else {
            // No prefix of the word repeats inside it, so only its first letter can start anew.
            usize::from(word[0] == byte)
        };
        let complete = self.shutdown_match == word.len();
        if complete {
            self.shutdown_match = 0;
        }
        complete
    }
}

/// The serial port's register behind byte `index` of an access at `port`.
fn serial_register(port: u16, index: usize) -> Option<u8> {
    let at = usize::from(port) + index;
    at.checked_sub(usize::from(ports::SERIAL))
        .and_then(|register| u8::try_from(register).ok())
        .filter(|register| *register < 8)
}

/// What of a budget is spent since a call began.
struct Account {
    budget: Budget,
    start: Instant,
    first_event: usize,
    /// vCPU 0's count of instructions; `None` if the backend has none.
    first_instruction: Option<u64>,
}

impl Account {
    /// Begins to count; `events` have been seen before.
    fn open(budget: Budget, events: usize, vm: &mut dyn Vm) -> Self {
        Self {
            budget,
            start: Instant::now(),
            first_event: events,
            first_instruction: vm.vcpu(0).executed_instructions(),
        }
    }

    /// What is left once `events` have been seen; `None` if nothing is.
    fn left(&self, events: usize, vm: &mut dyn Vm) -> Option<Budget> {
        let Budget {
            instructions,
            nested_events,
            until,
            time,
        } = self.budget;
        let seen = (events - self.first_event) as u64;
        let left = Budget {
            instructions: instructions.map(|limit| limit.saturating_sub(self.executed(vm))),
            nested_events: nested_events.map(|limit| limit.saturating_sub(seen)),
            until,
            time: time.map(|limit| limit.saturating_sub(self.start.elapsed())),
        };
        let spent = left.instructions == Some(0)
            || left.nested_events == Some(0)
            || left.time.is_some_and(|time| time.is_zero());
        (!spent).then_some(left)
    }

    /// Instructions that vCPU 0 has executed; zero if it does not count.
    fn executed(&self, vm: &mut dyn Vm) -> u64 {
        let now = vm.vcpu(0).executed_instructions();
        now.zip(self.first_instruction)
            .map_or(0, |(now, first)| now.saturating_sub(first))
    }

    /// Whether there is a limit on instructions that cannot be carried over an exit.
    fn cannot_count_instructions(&self) -> bool {
        self.budget.instructions.is_some() && self.first_instruction.is_none()
    }
}

#[cfg(test)]
mod tests;
