//! [`SoftVm`]: the machine behind the traits.

use crate::engine::{Engine, Env, FeatureWord};
use crate::processor::{PendingRead, Processor};
use crate::ram::Ram;
use crate::schedule::{GuestClock, Limits, Turn, give_up};
use crate::topology::with_topology;
use crate::{model, nested, state};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::cpu::Personality;
use nvmx_core::machine_check::{self, MachineCheck, Signalled};
use nvmx_core::memory::GuestMemory;
use nvmx_core::nested::NestedState;
use nvmx_core::personality::Difference;
use nvmx_core::vcpu::{
    BackendError, Budget, Capabilities, Capability, Exit, NestedEvent, Parts, Result, Vcpu, Vm,
    VmConfig,
};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event, EventKind, Exception};
use std::sync::Arc;

/// The most vCPUs that a machine may have.
const MAX_VCPUS: usize = 8;

/// A machine of the software backend: processors with their local APICs, RAM, one engine.
///
/// As a [`Vcpu`] it is the vCPU that [`Vm::vcpu`] was last asked for, at first vCPU 0.
pub struct SoftVm {
    pub(crate) capabilities: Capabilities,
    pub(crate) engine: Engine,
    pub(crate) ram: Ram,
    pub(crate) processors: Vec<Processor>,
    /// The processor in the engine.
    pub(crate) current: usize,
    /// Nothing has changed since the processor in the engine was looked at: the next instruction may run.
    pub(crate) settled: bool,
    pub(crate) turn: Turn,
    pub(crate) clock: GuestClock,
    /// x87 and SSE state after RESET.
    pub(crate) reset_fxsave: [u8; 512],
    /// vCPUs that are added have a local APIC here.
    pub(crate) local_apics: bool,
    /// The APIC id of the vCPU that starts the others.
    pub(crate) bootstrap: u8,
}

impl SoftVm {
    /// A machine after RESET: vCPU 0 at the reset vector, the others in wait-for-SIPI.
    pub fn new(config: &VmConfig) -> Result<Self> {
        if !(1..=MAX_VCPUS).contains(&config.vcpus) {
            return Err(BackendError::Unsupported(format!(
                "{} vCPUs on the soft backend (1 to {MAX_VCPUS}), SDM Vol. 3A \"Multiple-Processor Management\"",
                config.vcpus
            )));
        }
        let mut vm = Self::with_ram(Ram::new(config.memory_size)?)?;
        for index in 0..config.vcpus {
            vm.add_vcpu(index as u8)?;
        }
        for (index, processor) in vm.processors.iter_mut().enumerate() {
            let model = Arc::make_mut(&mut processor.cpu.model);
            let cpuid = with_topology(model.cpuid.clone(), index as u8, config.vcpus as u8);
            *model = model::model(cpuid, model.vmx_msrs);
        }
        vm.put();
        Ok(vm)
    }

    /// Whose behaviour the machine shows where KVM's and the SDM's differ: KVM's unless this says so.
    pub fn set_personality(&mut self, personality: Personality) {
        self.settled = false;
        for processor in &mut self.processors {
            Arc::make_mut(&mut processor.cpu.model).personality = personality;
            let model = &processor.cpu.model;
            processor
                .apic
                .log_errors(!model.as_kvm(Difference::ApicErrors));
        }
    }

    fn processor(&mut self) -> &mut Processor {
        &mut self.processors[self.current]
    }

    /// Runs one vCPU: [`Vcpu::run`], which both traits' names would hide.
    pub fn run(&mut self, budget: Budget) -> Result<Exit> {
        Vcpu::run(self, budget)
    }
}

/// Only what the model can switch, save and restore may be translated.
pub(crate) fn hide_features(env: &mut Env) {
    const FSGSBASE: u32 = 1;
    // FSGSBASE stays; PKU has no support in our page walks.
    const PKU: u32 = 1 << 3;
    let ebx = env.features(FeatureWord::Leaf7Ebx) | FSGSBASE;
    env.set_features(FeatureWord::Leaf7Ebx, ebx);
    let ecx = env.features(FeatureWord::Leaf7Ecx) & !PKU;
    env.set_features(FeatureWord::Leaf7Ecx, ecx);
}

pub(crate) fn capabilities() -> Capabilities {
    use Capability::*;
    let yes = |note: &str| Ok(note.to_owned());
    Capabilities {
        description: "soft: unicorn-engine 2.1.5 runs instructions, nvmx-core does VMX".into(),
        entries: vec![
            (NestedVmx, yes("modelled")),
            (NestedEpt, yes("modelled")),
            (SingleStep, yes("exact")),
            (DirtyPages, yes("")),
            (ExactInstructions, yes("")),
            (ExactNestedEvents, yes("")),
            (Deterministic, yes("time is the count of instructions")),
            (
                Smm,
                yes("default treatment of SMIs and RSM; no dual-monitor treatment"),
            ),
            (NestedEvents, yes("the model reports each entry and exit")),
        ],
    }
}

impl Vm for SoftVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn memory_size(&self) -> u64 {
        self.ram.size()
    }

    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()> {
        Ok(self.ram.read(address, buffer)?)
    }

    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()> {
        // The virtual-APIC page is memory, too.
        self.settled = false;
        self.ram.write(address, bytes)?;
        let env = self.engine.env_mut();
        self.ram
            .take_written(|address, length| env.host_wrote(address, length));
        Ok(())
    }

    fn dirty_pages(&mut self) -> Result<Vec<u64>> {
        let env = self.engine.env_mut();
        let pages = env
            .dirty_pages()
            .map(|address| address / PAGE_SIZE)
            .collect();
        env.clear_dirty();
        Ok(pages)
    }

    fn vcpu_count(&self) -> usize {
        self.processors.len()
    }

    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu {
        assert!(index < self.processors.len(), "there is no vCPU {index}");
        self.switch_to(index);
        self
    }

    fn run(&mut self, budget: Budget) -> Result<(usize, Exit)> {
        if self.processors.len() == 1 {
            return Ok((0, Vcpu::run(self, budget)?));
        }
        if let Some(index) = self
            .processors
            .iter()
            .position(|p| p.pending_read.is_some())
        {
            return Err(read_waits(index));
        }
        self.set_together(true);
        self.run_together(&budget)
    }

    fn now(&mut self) -> Option<u64> {
        let (tick, _) = self.processors.get(self.current)?.time();
        Some(self.clock.ns(tick))
    }

    fn signal_msi(&mut self, address: u64, data: u32) -> Result<bool> {
        Ok(self.message(address, data))
    }
}

fn read_waits(index: usize) -> BackendError {
    state::refused(
        format!("run of vCPU {index}"),
        "an IN or a load waits for its value: call complete_read first",
    )
}

impl Vcpu for SoftVm {
    fn state(&mut self, parts: Parts) -> Result<CpuState> {
        let processor = &self.processors[self.current];
        Ok(state::read(processor, self.engine.env(), parts))
    }

    fn set_state(&mut self, new: &CpuState) -> Result<()> {
        let processor = &mut self.processors[self.current];
        let result = state::write(processor, self.engine.env_mut(), new);
        // Guest time runs by the first processor's clock.
        let (tick, _) = processor.time();
        self.clock.set_khz(self.processors[0].tsc_khz, tick);
        self.put();
        result
    }

    fn nested_state(&mut self) -> Result<NestedState> {
        Ok(nested::get(self.processor()))
    }

    fn set_nested_state(&mut self, new: &NestedState) -> Result<()> {
        let result = nested::set(self.processor(), new);
        self.put();
        result
    }

    fn try_nested_bytes(&mut self, bytes: &[u8]) -> Result<i32> {
        Ok(nested::answer(self.processor(), bytes))
    }

    fn level(&mut self) -> Result<Level> {
        Ok(if self.processor().in_l2() {
            Level::L2
        } else {
            Level::L1
        })
    }

    fn run(&mut self, budget: Budget) -> Result<Exit> {
        if self.processor().pending_read.is_some() {
            return Err(read_waits(self.current));
        }
        self.set_together(false);
        let executed = self.engine.env().executed();
        let until = budget.until.map_or(u64::MAX, |ns| self.clock.tick(ns));
        let processor = self.processor();
        processor.until = until;
        let last_event = budget
            .nested_events
            .map_or(u64::MAX, |n| processor.event_count.saturating_add(n));
        self.run_to(Limits {
            last_instruction: budget
                .instructions
                .map_or(u64::MAX, |n| executed.saturating_add(n)),
            last_event,
            give_up: give_up(&budget),
        })
    }

    fn step(&mut self) -> Result<Exit> {
        Ok(match self.run(Budget::instructions(1))? {
            Exit::Budget => Exit::Stepped,
            exit => exit,
        })
    }

    fn complete_read(&mut self, value: u64) -> Result<()> {
        let processor = self.processor();
        let Some(pending) = processor.pending_read.take() else {
            return Err(state::refused("complete_read", "no read waits for a value"));
        };
        let (outcome, length) = match pending {
            PendingRead::Io { size, instruction } => (
                processor.complete_in(&instruction, size, value),
                instruction.len(),
            ),
            PendingRead::Msr { write, instruction } => {
                (Ok(processor.complete_msr(write, value)), instruction.len())
            }
            PendingRead::Mmio { size, instruction } => (
                processor.complete_load(&instruction, size, value),
                instruction.len(),
            ),
        };
        let exit = processor.settle(outcome, length);
        let exit = match exit {
            Some(write @ Exit::MmioWrite { .. }) => {
                processor.deferred_write = Some(write);
                None
            }
            exit => exit,
        };
        self.put();
        match exit {
            None => Ok(()),
            Some(exit) => Err(BackendError::Other(format!("completing a read: {exit:?}"))),
        }
    }

    fn inject(&mut self, event: Event) -> Result<()> {
        let processor = self.processor();
        match event.kind {
            EventKind::ExternalInterrupt => processor.apic.accept(event.vector, false),
            EventKind::Nmi => processor.cpu.nmi_pending = (processor.cpu.nmi_pending + 1).min(2),
            EventKind::HardwareException => {
                processor.cpu.pending_exception = Some(Exception {
                    vector: event.vector,
                    error_code: event.error_code,
                    payload: event.payload,
                });
            }
            other => {
                return Err(state::refused(
                    "inject",
                    format!("{other:?} is not a device's event"),
                ));
            }
        }
        self.put();
        Ok(())
    }

    fn inject_smi(&mut self) -> Result<()> {
        self.processor().cpu.smi_pending = true;
        self.put();
        Ok(())
    }

    fn inject_machine_check(&mut self, error: &MachineCheck) -> Result<()> {
        let cpu = &mut self.processor().cpu;
        match machine_check::signal(cpu, error) {
            Some(Signalled::Nothing) => {}
            Some(Signalled::Exception(event)) => return self.inject(event),
            Some(Signalled::Shutdown) => cpu.triple_fault_pending = true,
            None => {
                let reason = format!("no bank {}, or a status that is not valid", error.bank);
                return Err(state::refused("machine check", reason));
            }
        }
        self.put();
        Ok(())
    }

    fn set_interrupt_line(&mut self, asserted: bool) -> Result<()> {
        self.processor().outside.interrupt_line = asserted;
        self.put();
        Ok(())
    }

    fn acknowledge_interrupt(&mut self, vector: u8) -> Result<()> {
        if self
            .processor()
            .outside
            .pic_vector
            .replace(vector)
            .is_some()
        {
            return Err(state::refused(
                "acknowledge_interrupt",
                "a vector of the PIC waits already",
            ));
        }
        self.put();
        Ok(())
    }

    fn executed_instructions(&mut self) -> Option<u64> {
        Some(self.engine.env().executed())
    }

    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        events.append(&mut self.processor().events);
        Ok(())
    }

    fn lost_nested_events(&mut self) -> u64 {
        std::mem::take(&mut self.processor().lost_events)
    }
}
