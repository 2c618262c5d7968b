//! A VM that is no machine: it remembers what was set, and answers from a script.
#![allow(dead_code, unreachable_pub)] // each test uses its part

use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::memory::{GuestMemory as _, VecMemory};
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{
    BackendError, Budget, Capabilities, Capability, Exit, NestedEvent, Parts, Result, Vcpu, Vm,
    VmConfig,
};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event, Regs, Sregs};
use std::collections::VecDeque;

pub struct FakeVm {
    capabilities: Capabilities,
    memory: VecMemory,
    size: u64,
    vcpus: Vec<FakeVcpu>,
}

pub struct FakeVcpu {
    pub state: CpuState,
    nested: Vec<u8>,
    events: Vec<NestedEvent>,
    exits: VecDeque<Exit>,
    level: Level,
}

pub fn config() -> VmConfig {
    VmConfig {
        memory_size: 64 * PAGE_SIZE,
        vcpus: 2,
    }
}

/// A vCPU's whole state, every part there.
pub fn full_state() -> CpuState {
    let regs = Regs {
        gpr: std::array::from_fn(|i| u64::MAX - i as u64),
        rip: 0x1000,
        rflags: 2,
    };
    CpuState {
        cpuid: Some(vec![Default::default(); 3]),
        tsc_khz: Some(2_000_000),
        sregs: Some(Sregs {
            cr0: 0x8000_0031,
            ..Default::default()
        }),
        msrs: Some([(0x10, 77), (0xc000_0080, 0xd00)].into()),
        xcr0: Some(7),
        xsave: Some((0..4096).map(|i| i as u8).collect()),
        events: Some(Default::default()),
        mp_state: Some(Default::default()),
        debug: Some(Default::default()),
        regs: Some(regs),
        lapic: Some(vec![3; 1024]),
    }
}

pub fn nested_bytes(fill: u8) -> Vec<u8> {
    let mut bytes = vec![fill; 128 + 4096];
    bytes[4..8].copy_from_slice(&(128_u32 + 4096).to_le_bytes());
    bytes
}

pub fn an_entry() -> NestedEvent {
    NestedEvent::Entry {
        vmcs12: L1Phys(0x3000),
        l2_rip: 0x4000,
        injected: None,
    }
}

pub fn make(config: &VmConfig) -> Result<Box<dyn Vm>> {
    if config.vcpus == 0 {
        return Err(BackendError::Kernel {
            call: "KVM_CREATE_VM",
            errno: 12,
            message: "no memory".into(),
        });
    }
    if config.vcpus > 4 || config.memory_size > 1 << 20 {
        return Err(BackendError::Other("too much to fake".into()));
    }
    let vcpu = |_| FakeVcpu {
        state: full_state(),
        nested: nested_bytes(0),
        events: Vec::new(),
        exits: VecDeque::from([
            Exit::IoOut {
                port: 0x80,
                size: 1,
                value: 7,
            },
            Exit::IoIn {
                port: 0x60,
                size: 1,
            },
            Exit::Hlt,
        ]),
        level: Level::L1,
    };
    Ok(Box::new(FakeVm {
        capabilities: Capabilities {
            description: "fake".into(),
            entries: vec![
                (Capability::NestedVmx, Ok(String::new())),
                (Capability::Smm, Err("why not".into())),
            ],
        },
        memory: VecMemory::new(config.memory_size as usize),
        size: config.memory_size,
        vcpus: (0..config.vcpus).map(vcpu).collect(),
    }))
}

impl Vm for FakeVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn memory_size(&self) -> u64 {
        self.size
    }

    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()> {
        Ok(self.memory.read(address, buffer)?)
    }

    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()> {
        Ok(self.memory.write(address, bytes)?)
    }

    fn dirty_pages(&mut self) -> Result<Vec<u64>> {
        Ok(vec![1, 5])
    }

    fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu {
        &mut self.vcpus[index]
    }
}

impl Vcpu for FakeVcpu {
    fn state(&mut self, parts: Parts) -> Result<CpuState> {
        Ok(match parts {
            Parts::All => self.state.clone(),
            Parts::Registers => CpuState {
                regs: self.state.regs,
                sregs: self.state.sregs,
                ..Default::default()
            },
        })
    }

    fn set_state(&mut self, state: &CpuState) -> Result<()> {
        if state.tsc_khz == Some(1) {
            return Err(BackendError::StateRefused {
                part: "tsc_khz".into(),
                reason: "too slow".into(),
            });
        }
        if state.regs.is_some() {
            self.state.regs = state.regs;
        }
        Ok(())
    }

    fn nested_state(&mut self) -> Result<NestedState> {
        NestedState::from_bytes(&self.nested).map_err(|e| BackendError::Other(e.to_string()))
    }

    fn set_nested_state(&mut self, state: &NestedState) -> Result<()> {
        let bytes = state.to_bytes();
        if bytes[0] == 0xff {
            return Err(BackendError::NestedRefused {
                rule: "flags".into(),
                errno: 22,
            });
        }
        self.nested = bytes;
        Ok(())
    }

    fn run_until_run_pending(&mut self, max_tries: u32) -> Result<bool> {
        self.events.push(an_entry());
        Ok(max_tries > 5)
    }

    fn level(&mut self) -> Result<Level> {
        Ok(self.level)
    }

    fn run(&mut self, budget: Budget) -> Result<Exit> {
        if budget.instructions.is_some() {
            return Err(BackendError::Absent {
                capability: Capability::ExactInstructions,
                reason: "cannot count".into(),
            });
        }
        self.level = Level::L2;
        self.events.push(an_entry());
        if let Some(regs) = &mut self.state.regs {
            regs.rip += 1;
        }
        Ok(self.exits.pop_front().unwrap_or(Exit::Budget))
    }

    fn step(&mut self) -> Result<Exit> {
        if let Some(regs) = &mut self.state.regs {
            regs.rip += 2;
        }
        Ok(Exit::Stepped)
    }

    fn complete_read(&mut self, value: u64) -> Result<()> {
        if let Some(regs) = &mut self.state.regs {
            regs.gpr[0] = value;
        }
        Ok(())
    }

    fn inject(&mut self, event: Event) -> Result<()> {
        if event.vector < 16 {
            return Err(BackendError::Unsupported("small vectors".into()));
        }
        self.events.clear();
        Ok(())
    }

    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        events.append(&mut self.events);
        Ok(())
    }

    fn lost_nested_events(&mut self) -> u64 {
        3
    }
}
