//! Example guests on the software backend, stopped where a bench wants them.

use anyhow::{Context as _, Result, bail, ensure};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, NestedEvent, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Gpr};
use nvmx_examples::{Params, guests};
use nvmx_machine::{Driver, LoadOptions, Stop, boot, load};
use nvmx_soft::SoftVm;

/// Instructions of a pass of the guest `compute`.
pub const INSTRUCTIONS_A_PASS: u64 = 12;
/// VMRESUME (SDM Vol. 3C "VMX Instruction Reference").
const VMRESUME: [u8; 3] = [0x0f, 0x01, 0xc3];
/// VMCALL.
const VMCALL: [u8; 3] = [0x0f, 0x01, 0xc1];

/// A machine whose L2 runs.
pub struct Running {
    /// The machine.
    pub vm: SoftVm,
    events: Vec<NestedEvent>,
}

impl Running {
    /// Boots the example guest `name` and stops behind its first VM entry.
    pub fn new(name: &str, work: u32) -> Result<Self> {
        let guest = guests::find(name).with_context(|| format!("no example guest {name}"))?;
        let params = Params {
            work,
            ..Params::default()
        };
        let image = (guest.build)(params)?.to_elf();
        let config = VmConfig::default();
        let mut vm = SoftVm::new(&config)?;
        let options = LoadOptions {
            memory_size: config.memory_size,
            ..LoadOptions::default()
        };
        boot(&mut vm, &load(&image, options)?)?;
        let mut driver = Driver::default();
        while driver.events().is_empty() {
            match driver.run(&mut vm, Budget::nested_events(1))? {
                Stop::Budget | Stop::Checkpoint(_) => {}
                stop => bail!("{name} stopped before L2 ran: {stop:?}"),
            }
        }
        ensure!(vm.level()? == Level::L2, "{name} is not in L2");
        Ok(Self {
            vm,
            events: Vec::with_capacity(1 << 16),
        })
    }

    /// The guest `roundtrip`, which makes trips for longer than any bench runs.
    pub fn round_trips() -> Result<Self> {
        Self::new("roundtrip", u32::MAX)
    }

    /// The shortest trip that there is: L2 is one VMCALL, L1 one VMRESUME.
    pub fn bare_trips() -> Result<Self> {
        let mut running = Self::round_trips()?;
        let nested = running.vm.nested_state()?;
        let vmcs12 = nested.vmcs12().context("no vmcs12")?;
        // Both levels of the example guests see memory one to one.
        for (field, code) in [(Field::HOST_RIP, VMRESUME), (Field::GUEST_RIP, VMCALL)] {
            running.vm.write_memory(L1Phys(vmcs12.get(field)), &code)?;
        }
        running.trips(1000)?;
        Ok(running)
    }

    /// The guest `compute`, some way into its loop.
    pub fn computing() -> Result<Self> {
        let mut running = Self::new("compute", 1000)?;
        running.instructions(1000)?;
        running.rewind()?;
        Ok(running)
    }

    /// Makes `count` trips from L2 to L1 and back.
    pub fn trips(&mut self, count: u64) -> Result<()> {
        let exit = self.vm.run(Budget::nested_events(2 * count))?;
        ensure!(exit == Exit::Budget, "a trip ended in {exit:?}");
        self.events.clear();
        self.vm.drain_nested_events(&mut self.events)?;
        ensure!(
            self.events.len() as u64 == 2 * count,
            "{} events in {count} trips",
            self.events.len()
        );
        Ok(())
    }

    /// Runs exactly `count` instructions.
    pub fn instructions(&mut self, count: u64) -> Result<()> {
        let exit = self.vm.run(Budget::instructions(count))?;
        ensure!(exit == Exit::Budget, "the loop ended in {exit:?}");
        Ok(())
    }

    /// Runs one instruction.
    pub fn step(&mut self) -> Result<()> {
        let exit = self.vm.step()?;
        ensure!(exit == Exit::Stepped, "a step ended in {exit:?}");
        Ok(())
    }

    /// Gives the guest `compute` as many passes as its counter holds: 50 billion instructions.
    pub fn rewind(&mut self) -> Result<()> {
        let mut regs = self
            .vm
            .state(Parts::Registers)?
            .regs
            .context("no registers")?;
        regs.set(Gpr::Rcx, u64::from(u32::MAX));
        self.vm.set_state(&CpuState {
            regs: Some(regs),
            ..CpuState::default()
        })?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_trip_is_one_instruction_at_each_level() {
        let mut running = Running::bare_trips().unwrap();
        let resumed = running.vm.state(Parts::Registers).unwrap();
        // VMCALL exits and does not retire; VMRESUME is an instruction of L1.
        running.trips(10).unwrap();
        let after = running.vm.state(Parts::Registers).unwrap();
        assert_eq!(resumed.regs.unwrap(), after.regs.unwrap());
    }

    #[test]
    fn computing_stays_in_l2() {
        let mut running = Running::computing().unwrap();
        running.instructions(100 * INSTRUCTIONS_A_PASS).unwrap();
        running.step().unwrap();
        assert_eq!(running.vm.level().unwrap(), Level::L2);
    }
}
