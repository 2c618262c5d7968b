//! The PC's run: its devices' timers, its interrupt controllers, and what the bus asks for.
//!
//! A run lasts until a device would raise a line by itself ([`Budget::until`]), so lines change at the
//! same instruction in every run. The PIC's output goes to vCPU 0, the I/O APIC's messages to all.

use super::{Account, Driver, Stop};
use crate::pc::fw_cfg::{DESCRIPTOR_SIZE, FwCfg};
use crate::pc::{Config, MOST_MEMORY, Pc, Request, acpi, bios_data};
use crate::ports;
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::vcpu::{BackendError, Budget, Exit, Result, Vm};
use std::io::Write;

/// Exits between two looks at what nested events there are, if nobody counts them.
const COLLECT_EVERY: u32 = 1024;

impl<W: Write> Driver<W> {
    /// The PC as firmware hands it over; what its serial port sends goes to `serial`.
    ///
    /// `vm` gets the ACPI tables and what a BIOS leaves in low memory. Its RAM, its vCPUs and `config` must be of the same size.
    pub fn pc(serial: W, config: &Config, vm: &mut dyn Vm) -> Result<Self> {
        if vm.now().is_none() {
            return Err(BackendError::Unsupported(
                "the PC on a backend that has no time of its own (soft has)".into(),
            ));
        }
        if config.memory_size != vm.memory_size() || config.processors != vm.vcpu_count() {
            return Err(BackendError::Other(format!(
                "a PC with {:#x} bytes and {} processors in a machine with {:#x} and {}",
                config.memory_size,
                config.processors,
                vm.memory_size(),
                vm.vcpu_count()
            )));
        }
        if !(1 << 20..=MOST_MEMORY).contains(&config.memory_size) {
            return Err(BackendError::Unsupported(format!(
                "a PC with {} MiB of RAM: from 1 to {} MiB fit below its devices",
                config.memory_size >> 20,
                MOST_MEMORY >> 20
            )));
        }
        let tables = acpi::tables(config.processors);
        for (address, bytes) in tables.into_iter().chain(bios_data::tables()) {
            vm.write_memory(L1Phys(address), &bytes)?;
        }
        Ok(Self {
            pc: Some(Box::new(Pc::new(config))),
            ..Self::new(serial)
        })
    }

    /// A byte for the PC's serial port; `false` if there is no room for it now.
    pub fn type_byte(&mut self, byte: u8) -> bool {
        self.pc.as_mut().is_some_and(|pc| pc.receive(byte))
    }

    pub(super) fn run_pc(&mut self, vm: &mut dyn Vm, budget: Budget) -> Result<Stop> {
        let Some(mut pc) = self.pc.take() else {
            return Err(BackendError::Other("no PC".into()));
        };
        let stop = self.run_devices(&mut pc, vm, budget);
        self.pc = Some(pc);
        let collected = self.collect(vm);
        let stop = stop?;
        collected.map(|()| stop)
    }

    fn run_devices(&mut self, pc: &mut Pc, vm: &mut dyn Vm, budget: Budget) -> Result<Stop> {
        let account = Account::open(budget, self.events.len(), vm);
        let mut since_collected = 0;
        let mut now = time(vm)?;
        pc.advance(now);
        loop {
            self.signal(pc, vm)?;
            let deadline = pc.deadline();
            if budget.until.is_some_and(|until| until <= now) {
                return Ok(Stop::Budget);
            }
            let Some(mut left) = account.left(self.events.len(), vm) else {
                return Ok(Stop::Budget);
            };
            left.until = deadline.into_iter().chain(budget.until).min();
            let (vcpu, exit) = vm.run(left)?;
            since_collected += 1;
            if budget.nested_events.is_some() || since_collected == COLLECT_EVERY {
                since_collected = 0;
                self.collect(vm)?;
            }
            now = time(vm)?;
            pc.advance(now);
            let stop = match exit {
                Exit::Budget if deadline.is_some_and(|deadline| deadline <= now) => None,
                exit => self.answer(pc, vm, vcpu, now, exit)?,
            };
            if let Some(stop) = stop {
                self.signal(pc, vm)?;
                return Ok(stop);
            }
        }
    }

    fn answer(
        &mut self,
        pc: &mut Pc,
        vm: &mut dyn Vm,
        vcpu: usize,
        now: u64,
        exit: Exit,
    ) -> Result<Option<Stop>> {
        match exit {
            Exit::IoOut {
                port: ports::CHECKPOINT | ports::REPORT | ports::SHUTDOWN,
                ..
            } => self.handle(vm, vcpu, exit),
            Exit::IoOut { port, size, value } => match pc.write_port(now, port, size, value) {
                Some(request) => self.carry_out(pc, vm, request),
                None => Ok(None),
            },
            Exit::IoIn { port, size } => {
                let value = pc.read_port(now, port, size);
                vm.vcpu(vcpu).complete_read(value.into())?;
                Ok(None)
            }
            Exit::MmioRead { address, size } => {
                let value = pc.read_memory(address.0, size);
                vm.vcpu(vcpu).complete_read(value)?;
                Ok(None)
            }
            Exit::MmioWrite {
                address,
                size,
                value,
            } => {
                pc.write_memory(address.0, size, value);
                Ok(None)
            }
            Exit::InterruptWindow => {
                let vector = pc.pic().acknowledge();
                vm.vcpu(vcpu).acknowledge_interrupt(vector)?;
                Ok(None)
            }
            Exit::IoApicEoi { vector } => {
                pc.ioapic().end_of_interrupt(vector);
                Ok(None)
            }
            exit => self.handle(vm, vcpu, exit),
        }
    }

    fn carry_out(
        &mut self,
        pc: &mut Pc,
        vm: &mut dyn Vm,
        request: Request,
    ) -> Result<Option<Stop>> {
        match request {
            Request::Serial(byte) => self
                .serial
                .write(0, byte)
                .map_err(|error| BackendError::Other(format!("serial port: {error}")))?,
            Request::Console(byte) => {
                // Where QEMU's debug console would be a file of its own; losing it fails no run.
                let _ = std::io::stderr().write_all(&[byte]);
            }
            Request::DebugExit(value) => return Ok(Some(Stop::DebugExit(value))),
            Request::PowerOff => return Ok(Some(Stop::PowerOff)),
            Request::Reset => return Ok(Some(Stop::Reset)),
            Request::Dma(address) => transfer(pc.fw_cfg(), vm, address)?,
            Request::Unsupported(what) => return Ok(Some(Stop::Unsupported(what.into()))),
        }
        Ok(None)
    }

    /// Brings what the interrupt controllers ask for to the processors.
    fn signal(&mut self, pc: &mut Pc, vm: &mut dyn Vm) -> Result<()> {
        let asserted = pc.pic().output();
        if asserted != self.interrupt_line {
            vm.vcpu(0).set_interrupt_line(asserted)?;
            self.interrupt_line = asserted;
        }
        while let Some(message) = pc.ioapic().next_message() {
            let taken = vm.signal_msi(message.address, message.data)?;
            pc.ioapic().sent(&message, taken);
        }
        Ok(())
    }
}

fn time(vm: &mut dyn Vm) -> Result<u64> {
    vm.now()
        .ok_or_else(|| BackendError::Other("the backend lost its time".into()))
}

/// Carries out the DMA descriptor at `address`. What does not lie in RAM ends in its error bit.
fn transfer(fw_cfg: &mut FwCfg, vm: &mut dyn Vm, address: u64) -> Result<()> {
    let is_ram = |vm: &dyn Vm, start: u64, length: u64| {
        start
            .checked_add(length)
            .is_some_and(|end| end <= vm.memory_size())
    };
    let mut descriptor = [0; DESCRIPTOR_SIZE];
    if !is_ram(vm, address, DESCRIPTOR_SIZE as u64) {
        return Ok(());
    }
    vm.read_memory(L1Phys(address), &mut descriptor)?;
    let transfer = fw_cfg.execute(descriptor);
    let mut status = transfer.status;
    if let Some(to) = transfer.to {
        if is_ram(vm, to, transfer.length.into()) {
            let mut buffer = [0; PAGE_SIZE as usize];
            let mut done = 0;
            while done < transfer.length {
                let count = (transfer.length - done).min(PAGE_SIZE as u32);
                let piece = &mut buffer[..count as usize];
                fw_cfg.read_into(piece);
                vm.write_memory(L1Phys(to + u64::from(done)), piece)?;
                done += count;
            }
        } else {
            status = FwCfg::error();
        }
    }
    vm.write_memory(L1Phys(address), &status)
}
