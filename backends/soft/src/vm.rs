//! [`SoftVm`]: the machine behind the traits.

use crate::engine::{Engine, Env, FeatureWord, StopReason};
use crate::machine::{Runner, sync_in, sync_out};
use crate::processor::{PendingRead, Processor};
use crate::ram::Ram;
use crate::{model, nested, state};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::apic::Apic;
use nvmx_core::cpu::{Cpu, Personality};
use nvmx_core::memory::GuestMemory;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{
    BackendError, Budget, Capabilities, Capability, Exit, NestedEvent, Parts, Result, Vcpu, Vm,
    VmConfig,
};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{AccessRights, CpuState, Event, EventKind, Exception, Segment, Sregs};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Instructions between two looks at the clock.
const TIME_SLICE: u64 = 2_000_000;

/// A machine of the software backend: one processor, RAM, a local APIC.
pub struct SoftVm {
    capabilities: Capabilities,
    engine: Engine,
    processor: Processor,
}

impl SoftVm {
    /// A machine after RESET.
    pub fn new(config: &VmConfig) -> Result<Self> {
        if config.vcpus != 1 {
            return Err(BackendError::Unsupported(format!(
                "{} vCPUs on the soft backend (one), SDM Vol. 3A \"Multiple-Processor Management\"",
                config.vcpus
            )));
        }
        let ram = Ram::new(config.memory_size)?;
        let mut engine = Engine::new(ram.map()).map_err(|e| BackendError::Other(e.to_string()))?;
        hide_features(engine.env_mut());
        let cpu = Cpu {
            sregs: reset_sregs(),
            model: Arc::new(model::default_model()),
            xcr0: 1,
            ..reset_cpu()
        };
        let processor = Processor::new(ram, cpu, Apic::new(0, model::TSC_KHZ));
        let mut vm = Self {
            capabilities: capabilities(),
            engine,
            processor,
        };
        vm.put();
        Ok(vm)
    }

    /// Whose behaviour the machine shows where KVM's and the SDM's differ: KVM's unless this says so.
    pub fn set_personality(&mut self, personality: Personality) {
        Arc::make_mut(&mut self.processor.cpu.model).personality = personality;
    }

    /// The processor's registers back into the engine.
    fn put(&mut self) {
        sync_out(&mut self.processor, self.engine.env_mut());
    }

    /// Runs up to absolute counts of instructions and nested events.
    fn run_to(
        &mut self,
        last_instruction: u64,
        last_event: u64,
        until: Option<Instant>,
    ) -> Result<Exit> {
        self.processor.event_limit = last_event;
        let (mut idle_calls, mut executed_at_call) = (0, self.engine.env().executed());
        loop {
            if let Some(exit) = self.processor.boundary() {
                self.put();
                return Ok(exit);
            }
            self.put();
            let executed = self.engine.env().executed();
            if executed >= last_instruction
                || self.processor.event_count >= last_event
                || until.is_some_and(|until| Instant::now() >= until)
            {
                return Ok(Exit::Budget);
            }
            let slice = if until.is_some() {
                executed.saturating_add(TIME_SLICE)
            } else {
                u64::MAX
            };
            let mut runner = Runner {
                processor: &mut self.processor,
                last_instruction: last_instruction.min(slice),
                last_event,
                exit: None,
                calls: 0,
                idle_calls,
                executed_at_call,
            };
            let budget = runner.deadline(executed).saturating_sub(executed);
            let reason = self
                .engine
                .run(&mut runner, budget)
                .map_err(|e| BackendError::Other(format!("execution engine: {e}")))?;
            let exit = runner.exit.take();
            (idle_calls, executed_at_call) = (runner.idle_calls, runner.executed_at_call);
            let native = self.engine.env().executed() > self.processor.executed_at_sync;
            sync_in(&mut self.processor, self.engine.env());
            match (reason, exit) {
                (StopReason::Machine, Some(Exit::Budget))
                | (StopReason::Budget | StopReason::Requested, None) => {
                    // What was waiting for one instruction has had it.
                    if native {
                        self.processor.instruction_ran_natively();
                    }
                }
                (_, Some(exit)) => return Ok(exit),
                (StopReason::Machine, None) => {}
            }
        }
    }
}

/// Only what the model can switch, save and restore may be translated.
fn hide_features(env: &mut Env) {
    const FSGSBASE: u32 = 1;
    // FSGSBASE stays; PKU has no support in our page walks.
    const PKU: u32 = 1 << 3;
    let ebx = env.features(FeatureWord::Leaf7Ebx) | FSGSBASE;
    env.set_features(FeatureWord::Leaf7Ebx, ebx);
    let ecx = env.features(FeatureWord::Leaf7Ecx) & !PKU;
    env.set_features(FeatureWord::Leaf7Ecx, ecx);
}

fn reset_cpu() -> Cpu {
    let mut cpu = Cpu::default();
    cpu.regs.rip = 0xfff0;
    cpu.regs.rflags = 2;
    cpu
}

/// Segments and control registers after RESET (SDM Vol. 3A "Processor State After Reset").
fn reset_sregs() -> Sregs {
    let segment = |ar, selector, base| Segment {
        selector,
        base,
        limit: 0xffff,
        ar: AccessRights::from_bits_retain(ar),
    };
    let data = segment(0x93, 0, 0);
    Sregs {
        es: data,
        cs: segment(0x9b, 0xf000, 0xffff_0000),
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldtr: segment(0x82, 0, 0),
        tr: segment(0x8b, 0, 0),
        gdtr: nvmx_core::x86::DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        idtr: nvmx_core::x86::DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        cr0: 0x6000_0010,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    }
}

fn capabilities() -> Capabilities {
    use Capability::*;
    let yes = |note: &str| Ok(note.to_owned());
    Capabilities {
        description: "soft: unicorn-engine 2.1.5 runs instructions, nvmx-core does VMX".into(),
        entries: vec![
            (NestedVmx, yes("modelled")),
            (NestedEpt, yes("modelled")),
            (
                SingleStep,
                yes(
                    "exact; breakpoints of DR7 are not modelled: a run with one enabled ends as unsupported",
                ),
            ),
            (DirtyPages, yes("")),
            (ExactInstructions, yes("")),
            (ExactNestedEvents, yes("")),
            (Deterministic, yes("time is the count of instructions")),
            (
                Smm,
                Err(
                    "unsupported: system-management mode, SDM Vol. 3C \"System Management Mode\""
                        .into(),
                ),
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
        self.processor.ram.size()
    }

    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()> {
        Ok(self.processor.ram.read(address, buffer)?)
    }

    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()> {
        self.processor.ram.write(address, bytes)?;
        let env = self.engine.env_mut();
        self.processor
            .ram
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
        1
    }

    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu {
        assert_eq!(index, 0, "the soft backend has one vCPU");
        self
    }
}

impl Vcpu for SoftVm {
    fn state(&mut self, parts: Parts) -> Result<CpuState> {
        Ok(state::read(&self.processor, self.engine.env(), parts))
    }

    fn set_state(&mut self, new: &CpuState) -> Result<()> {
        let result = state::write(&mut self.processor, self.engine.env_mut(), new);
        self.put();
        result
    }

    fn nested_state(&mut self) -> Result<NestedState> {
        Ok(nested::get(&mut self.processor))
    }

    fn set_nested_state(&mut self, new: &NestedState) -> Result<()> {
        let result = nested::set(&mut self.processor, new);
        self.put();
        result
    }

    fn try_nested_bytes(&mut self, bytes: &[u8]) -> Result<i32> {
        Ok(nested::answer(&self.processor, bytes))
    }

    fn level(&mut self) -> Result<Level> {
        Ok(if self.processor.in_l2() {
            Level::L2
        } else {
            Level::L1
        })
    }

    fn run(&mut self, budget: Budget) -> Result<Exit> {
        if self.processor.pending_read.is_some() {
            return Err(state::refused(
                "run",
                "an IN or a load waits for its value: call complete_read first",
            ));
        }
        let executed = self.engine.env().executed();
        let last_instruction = budget
            .instructions
            .map_or(u64::MAX, |n| executed.saturating_add(n));
        let last_event = budget
            .nested_events
            .map_or(u64::MAX, |n| self.processor.event_count.saturating_add(n));
        let until = budget
            .time
            .map(|limit| Instant::now() + limit.min(Duration::from_secs(1 << 32)));
        self.run_to(last_instruction, last_event, until)
    }

    fn step(&mut self) -> Result<Exit> {
        Ok(match self.run(Budget::instructions(1))? {
            Exit::Budget => Exit::Stepped,
            exit => exit,
        })
    }

    fn complete_read(&mut self, value: u64) -> Result<()> {
        let Some(pending) = self.processor.pending_read.take() else {
            return Err(state::refused("complete_read", "no read waits for a value"));
        };
        let (outcome, length) = match pending {
            PendingRead::Io { size, instruction } => (
                self.processor.complete_in(&instruction, size, value),
                instruction.len(),
            ),
            PendingRead::Mmio { size, instruction } => (
                self.processor.complete_load(&instruction, size, value),
                instruction.len(),
            ),
        };
        let exit = self.processor.settle(outcome, length);
        self.put();
        match exit {
            None => Ok(()),
            Some(exit) => Err(BackendError::Other(format!("completing a read: {exit:?}"))),
        }
    }

    fn inject(&mut self, event: Event) -> Result<()> {
        match event.kind {
            EventKind::ExternalInterrupt => self.processor.apic.accept(event.vector, false),
            EventKind::Nmi => {
                self.processor.cpu.nmi_pending = (self.processor.cpu.nmi_pending + 1).min(2)
            }
            EventKind::HardwareException => {
                self.processor.cpu.pending_exception = Some(Exception {
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

    fn executed_instructions(&mut self) -> Option<u64> {
        Some(self.engine.env().executed())
    }

    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        events.append(&mut self.processor.events);
        Ok(())
    }

    fn lost_nested_events(&mut self) -> u64 {
        std::mem::take(&mut self.processor.lost_events)
    }
}
