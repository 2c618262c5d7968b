//! A vCPU on KVM: what it holds, and the trait over the files that do the work.

use crate::alarm::Alarm;
use crate::error::ioctl;
use crate::exit::ReadSlot;
use crate::sys::RunArea;
use crate::vm::Shared;
use kvm_bindings::CpuId;
use kvm_ioctls::VcpuFd;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{BackendError, Budget, Capability, Exit, NestedEvent, Parts, Result, Vcpu};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event};
use std::collections::VecDeque;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::Arc;

/// What KVM still has to do for an exit that was handed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pending {
    /// Nothing.
    Nothing,
    /// Finish the instruction, at the next KVM_RUN.
    Completion,
    /// Get a value from the caller first.
    Read(ReadSlot),
}

/// A vCPU of a [`crate::KvmVm`].
#[derive(Debug)]
pub struct KvmVcpu {
    pub(crate) fd: VcpuFd,
    pub(crate) shared: Arc<Shared>,
    pub(crate) index: usize,
    pub(crate) area: RunArea,
    pub(crate) alarm: Option<Alarm>,
    pub(crate) pending: Pending,
    /// Exits that came in one KVM_RUN and are not handed out yet.
    pub(crate) queue: VecDeque<Exit>,
    /// Without an in-kernel APIC: an external interrupt that waits for its window.
    pub(crate) waiting_interrupt: Option<u8>,
    /// Without an in-kernel APIC: HLT came back, and nothing has woken the vCPU.
    pub(crate) halted: bool,
    /// MSRs that this CPUID can read; `None` if not known.
    pub(crate) readable_msrs: Option<Vec<u32>>,
    /// Nested state that a whole restore took out and that nothing has replaced yet.
    pub(crate) held_nested: Option<Vec<u8>>,
}

impl KvmVcpu {
    pub(crate) fn new(
        shared: Arc<Shared>,
        index: usize,
        run_size: usize,
        supported: &CpuId,
    ) -> Result<Self> {
        let fd = shared
            .vm
            .create_vcpu(index as u64)
            .map_err(ioctl("KVM_CREATE_VCPU"))?;
        let area = RunArea::map(&fd, run_size)?;
        let mut cpuid = supported.clone();
        for entry in cpuid.as_mut_slice() {
            match entry.function {
                // Initial APIC ID (SDM Vol. 2A "CPUID", leaf 1).
                1 => entry.ebx = entry.ebx & 0x00ff_ffff | (index as u32) << 24,
                // x2APIC ID.
                0xb | 0x1f => entry.edx = index as u32,
                _ => {}
            }
        }
        fd.set_cpuid2(&cpuid).map_err(ioctl("KVM_SET_CPUID2"))?;
        Ok(Self {
            fd,
            shared,
            index,
            area,
            alarm: None,
            pending: Pending::Nothing,
            queue: VecDeque::new(),
            waiting_interrupt: None,
            halted: false,
            readable_msrs: None,
            held_nested: None,
        })
    }

    /// The raw file descriptor, for ioctls of [`crate::sys`].
    pub(crate) fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// An error if a read waits for its value: state is between two instructions then.
    pub(crate) fn refuse_open_read(&self) -> Result<()> {
        match self.pending {
            Pending::Read(slot) => Err(BackendError::Other(format!(
                "{:?} waits for its value: call complete_read first",
                slot.exit()
            ))),
            _ => Ok(()),
        }
    }
}

impl Vcpu for KvmVcpu {
    fn state(&mut self, parts: Parts) -> Result<CpuState> {
        if parts == Parts::All {
            self.refuse_open_read()?;
        }
        self.settle()?;
        self.get_state(parts)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<()> {
        self.abandon_read()?;
        self.put_state(state)
    }

    fn nested_state(&mut self) -> Result<NestedState> {
        self.refuse_open_read()?;
        self.settle()?;
        self.reinstate_nested()?;
        crate::nested::to_core(&self.nested_bytes()?)
    }

    fn set_nested_state(&mut self, state: &NestedState) -> Result<()> {
        self.abandon_read()?;
        self.put_nested(state)
    }

    fn try_nested_bytes(&mut self, bytes: &[u8]) -> Result<i32> {
        self.refuse_open_read()?;
        self.settle()?;
        self.probe_nested(bytes)
    }

    fn run_until_run_pending(&mut self, max_tries: u32) -> Result<bool> {
        self.search_run_pending(max_tries)
    }

    fn level(&mut self) -> Result<Level> {
        self.settle()?;
        self.reinstate_nested()?;
        self.current_level()
    }

    fn run(&mut self, budget: Budget) -> Result<Exit> {
        for (asked, capability) in [
            (budget.instructions, Capability::ExactInstructions),
            (budget.nested_events, Capability::ExactNestedEvents),
        ] {
            if asked.is_some() {
                self.shared.capabilities.require(capability)?;
            }
        }
        self.reinstate_nested()?;
        self.run_for(budget.time)
    }

    fn step(&mut self) -> Result<Exit> {
        self.reinstate_nested()?;
        self.step_one()
    }

    fn complete_read(&mut self, value: u64) -> Result<()> {
        self.fill_read(value)
    }

    fn inject(&mut self, event: Event) -> Result<()> {
        self.refuse_open_read()?;
        self.settle()?;
        self.reinstate_nested()?;
        self.queue_event(event)
    }

    fn inject_smi(&mut self) -> Result<()> {
        self.refuse_open_read()?;
        self.settle()?;
        self.reinstate_nested()?;
        self.halted = false;
        self.fd.smi().map_err(crate::error::ioctl("KVM_SMI"))
    }

    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        self.drain_trace(events)
    }

    fn lost_nested_events(&mut self) -> u64 {
        self.lost_trace_events()
    }
}
