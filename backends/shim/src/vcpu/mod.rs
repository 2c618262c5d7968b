//! A virtual CPU: its number, its shared pages, and what the kernel keeps for it.

pub mod basics;
pub mod cpuid;
pub mod events;
pub mod lapic;
pub mod msrs;
pub mod nested;
pub mod registers;
pub mod run;
pub mod time;
pub mod units;
pub mod vapic;

use crate::errno::Errno;
use crate::os::RunPages;
use crate::vm::{Vm, VmState};
use kvm_bindings::kvm_cpuid_entry2;
use nvmx_core::vcpu::Parts;
use nvmx_core::x86::{CpuState, MpState};
use nvmx_soft::SoftVm;
use run::RunState;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A virtual CPU. The VM lives while one of its vCPUs does.
#[derive(Debug)]
pub struct Vcpu {
    vm: Arc<Vm>,
    index: usize,
    /// `struct kvm_run` and what follows it.
    pub pages: RunPages,
    /// Held by the one call that a vCPU serves at a time (`vcpu->mutex`).
    busy: Mutex<()>,
}

/// What the VM's lock guards of a vCPU.
#[derive(Debug)]
pub struct VcpuState {
    /// The caller's number, the APIC's at the start.
    pub id: u32,
    /// What KVM_RUN keeps.
    pub run: RunState,
    /// It has run: what it can do stays as it is.
    pub has_run: bool,
    /// CPUID as the caller set it.
    pub cpuid: Vec<kvm_cpuid_entry2>,
    /// The caller put it into the state that INIT leaves.
    pub was_reset_by_init: bool,
}

/// A vCPU of a VM that is locked, for a handler.
pub struct VcpuContext<'a> {
    /// The VM with all of its vCPUs.
    pub vm: &'a mut VmState,
    /// The vCPU's index in the model and in [`VmState::vcpus`].
    pub index: usize,
    /// The pages that it shares with the caller.
    pub pages: &'a RunPages,
}

impl Vcpu {
    pub(crate) fn new(vm: Arc<Vm>, index: usize, pages: RunPages) -> Self {
        Self {
            vm,
            index,
            pages,
            busy: Mutex::new(()),
        }
    }

    /// Its VM.
    #[must_use]
    pub fn vm(&self) -> &Arc<Vm> {
        &self.vm
    }

    /// Its index in the model.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits until no other call is at work on this vCPU.
    pub fn busy(&self) -> MutexGuard<'_, ()> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl VcpuState {
    pub(crate) fn new(id: u32) -> Self {
        Self {
            id,
            run: RunState::default(),
            has_run: false,
            cpuid: Vec::new(),
            was_reset_by_init: false,
        }
    }
}

impl<'a> VcpuContext<'a> {
    pub(crate) fn new(vm: &'a mut VmState, vcpu: &'a Vcpu) -> Self {
        Self {
            vm,
            index: vcpu.index,
            pages: &vcpu.pages,
        }
    }

    /// The vCPU of the model.
    pub fn cpu(&mut self) -> &mut dyn nvmx_core::vcpu::Vcpu {
        let index = self.index;
        nvmx_core::vcpu::Vm::vcpu(self.soft(), index)
    }

    /// The model, with this vCPU as the one that its methods mean.
    pub fn model(&mut self) -> &mut SoftVm {
        let index = self.index;
        let soft = self.soft();
        nvmx_core::vcpu::Vm::vcpu(soft, index);
        soft
    }

    /// Reads its state.
    pub fn state(&mut self, parts: Parts) -> Result<CpuState, Errno> {
        self.cpu().state(parts).map_err(|_| Errno::EIO)
    }

    /// Sets the parts of its state that are there; what the model refuses is EINVAL.
    pub fn set_state(&mut self, state: &CpuState) -> Result<(), Errno> {
        self.cpu().set_state(state).map_err(|_| Errno::EINVAL)
    }

    /// The model.
    pub fn soft(&mut self) -> &mut SoftVm {
        &mut self.vm.soft.0
    }

    /// Makes it `KVM_MP_STATE_RUNNABLE`.
    pub fn wake(&mut self) -> nvmx_core::vcpu::Result<()> {
        self.cpu().set_state(&CpuState {
            mp_state: Some(MpState::Runnable),
            ..CpuState::default()
        })
    }

    /// What the kernel keeps for it.
    pub fn record(&mut self) -> &mut VcpuState {
        &mut self.vm.vcpus[self.index]
    }
}
