//! A virtual machine: the model, what the kernel keeps beside it, and the lock around both.

pub mod create;
pub mod ioeventfd;
pub mod irqchip;
mod lock;
pub mod memory;
pub mod msr_filter;
pub mod options;

use crate::errno::Errno;
use crate::processor::Offered;
use crate::settings::Settings;
use crate::vcpu::{Vcpu, VcpuContext, VcpuState};
use ioeventfd::IoEvents;
use irqchip::Irqchip;
use irqchip::routing::Routes;
use lock::{FairLock, Guard};
use memory::Memory;
use nvmx_core::cpu::Activity;
use nvmx_core::msr::filter::MsrFilter;
use nvmx_core::vcpu::Parts;
use nvmx_core::x86::{CpuState, MpState, msr};
use nvmx_soft::SoftVm;
use options::Options;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// vCPUs that a VM may have.
pub const MAX_VCPUS: i32 = 8;
/// KVM_CAP_MAX_VCPU_ID: a vCPU's number is below.
pub const MAX_VCPU_ID: i32 = 255;

/// A virtual machine.
pub struct Vm {
    /// The process that made it.
    owner: u32,
    state: FairLock<VmState>,
    /// Counts what may wake a vCPU that sleeps.
    changes: Mutex<u64>,
    changed: Condvar,
}

/// What the lock guards.
pub struct VmState {
    /// The model.
    pub soft: crate::os::Sent<SoftVm>,
    /// By the vCPU's index in the model.
    pub vcpus: Vec<VcpuState>,
    /// Memory slots.
    pub memory: Memory,
    /// Writes that eventfds hear of.
    pub io_events: IoEvents,
    /// MSR accesses of the guest that the caller hears of.
    pub msr_filter: Arc<MsrFilter>,
    /// Bits of a guest-physical address, at the most.
    pub physical_address_width: u8,
    /// The processor that its vCPUs may be.
    pub offered: Arc<Offered>,
    /// What its caller chose.
    pub options: Options,
    /// Interrupt controllers.
    pub irqchip: Irqchip,
    /// Where interrupt lines lead.
    pub routes: Routes,
}

/// A VM that is locked, for a handler.
pub struct VmContext<'a> {
    /// All there is.
    pub vm: &'a mut VmState,
}

/// A VM that is locked.
pub struct Locked<'a>(Guard<'a, VmState>);

impl Vm {
    /// A VM without memory and without vCPUs.
    pub fn new(settings: &Settings) -> Result<Self, Errno> {
        let soft = SoftVm::empty().map_err(|_| Errno::ENOMEM)?;
        Ok(Self {
            owner: std::process::id(),
            state: FairLock::new(VmState {
                soft: crate::os::Sent(soft),
                vcpus: Vec::new(),
                memory: Memory::default(),
                io_events: IoEvents::default(),
                msr_filter: Arc::default(),
                physical_address_width: settings.profile.model().physical_address_width,
                offered: Arc::new(Offered::new(settings.profile)),
                options: Options::default(),
                irqchip: Irqchip::None,
                routes: Routes::default(),
            }),
            changes: Mutex::new(0),
            changed: Condvar::new(),
        })
    }

    /// Whether the process that calls made it.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.owner == std::process::id()
    }

    /// Waits for the lock, first come, first served.
    pub fn lock(&self) -> Locked<'_> {
        Locked(self.state.lock())
    }

    /// Whether somebody waits for the lock.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.state.is_wanted()
    }
}

impl Vm {
    /// Something happened that may wake a vCPU that sleeps.
    pub fn tell(&self) {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// How much has happened so far.
    #[must_use]
    pub fn changes(&self) -> u64 {
        *self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until more has happened, or the time is over.
    pub fn wait(&self, seen: u64, time: Duration) {
        let changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner);
        let is_old = |changes: &mut u64| *changes == seen;
        drop(self.changed.wait_timeout_while(changes, time, is_old));
    }
}

impl Locked<'_> {
    /// For a handler of the VM.
    pub fn context(&mut self) -> VmContext<'_> {
        VmContext { vm: &mut self.0 }
    }

    /// For a handler of a vCPU.
    pub fn vcpu_context<'a>(&'a mut self, vcpu: &'a Arc<Vcpu>) -> VcpuContext<'a> {
        VcpuContext::new(&mut self.0, vcpu)
    }
}

impl Deref for Locked<'_> {
    type Target = VmState;

    fn deref(&self) -> &VmState {
        &self.0
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut VmState {
        &mut self.0
    }
}

impl fmt::Debug for Vm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vm")
            .field("owner", &self.owner)
            .finish_non_exhaustive()
    }
}

impl VmState {
    /// Whether the vCPUs have local APICs of ours: an irqchip in the kernel, split or whole.
    #[must_use]
    pub fn has_local_apic(&self) -> bool {
        !matches!(self.irqchip, Irqchip::None)
    }

    /// Whether the PIC and the I/O APIC are ours, too.
    #[must_use]
    pub fn has_pic(&self) -> bool {
        matches!(self.irqchip, Irqchip::Whole(_))
    }

    /// A vCPU that was just made is as KVM's are (kvm_arch_vcpu_create, kvm_vcpu_reset): no CPUID, VMX not yet
    /// enabled by firmware, and at work if it is the first or nobody could start it.
    pub fn start_vcpu(&mut self, index: usize) -> Result<(), Errno> {
        /// IA32_MISC_ENABLE: no branch-trace store, no PEBS.
        const MISC_ENABLE: u64 = 0b11 << 11;
        /// IA32_APIC_BASE: the bootstrap processor.
        const BOOTSTRAP: u64 = 1 << 8;
        let is_first = self.vcpus[index].id == self.options.boot_cpu;
        let works = is_first || !self.has_local_apic();
        let offered = Arc::clone(&self.offered);
        let arch_capabilities = offered.arch_capabilities;
        let soft = &mut self.soft.0;
        let vcpu = nvmx_core::vcpu::Vm::vcpu(soft, index);
        let mut sregs = vcpu
            .state(Parts::Registers)
            .ok()
            .and_then(|state| state.sregs);
        if let Some(sregs) = &mut sregs {
            sregs.apic_base &= !BOOTSTRAP;
            sregs.apic_base |= if is_first { BOOTSTRAP } else { 0 };
        }
        let start = CpuState {
            tsc_khz: Some(self.options.tsc_khz),
            sregs,
            mp_state: Some(if works {
                MpState::Runnable
            } else {
                MpState::Uninitialized
            }),
            ..offered.state_at_start()
        };
        vcpu.set_state(&start).map_err(|_| Errno::ENOMEM)?;
        for (number, value) in [
            (msr::IA32_ARCH_CAPABILITIES, arch_capabilities),
            (msr::IA32_FEATURE_CONTROL, 0),
            (msr::IA32_MISC_ENABLE, MISC_ENABLE),
        ] {
            soft.write_msr(&offered.vmx, number, value)
                .map_err(|_| Errno::ENOMEM)?;
        }
        Ok(())
    }

    /// Whether a vCPU other than this one sleeps and would not any more.
    #[must_use]
    pub fn somebody_wakes(&self, but: usize) -> bool {
        let soft = &self.soft.0;
        (0..self.vcpus.len()).any(|index| {
            index != but && soft.brief(index).activity != Activity::Active && soft.would_wake(index)
        })
    }
}
