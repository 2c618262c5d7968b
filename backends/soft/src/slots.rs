//! What a machine that user space builds piece by piece has beside the traits, as KVM's VM file
//! descriptor has it: memory slots at the caller's addresses, vCPUs one by one.

use crate::engine::Engine;
use crate::processor::Processor;
use crate::ram::{Ram, SMM_SPACE, Slot};
use crate::schedule::{GuestClock, Turn};
use crate::vm::{SoftVm, capabilities, hide_features};
use crate::{model, reset, state};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::apic::Apic;
use nvmx_core::cpu::{Activity, Cpu};
use nvmx_core::paging::{Access, AccessKind};
use nvmx_core::vcpu::{BackendError, Result};
use std::sync::Arc;

/// The most vCPUs of a machine that is built piece by piece: what xAPIC ids tell apart.
pub const MOST_VCPUS: usize = 255;

/// An address space (KVM's `as_id`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Space {
    /// Of processors that are not in SMM.
    Normal,
    /// Of those in SMM, who see no other.
    Smm,
}

impl Space {
    const fn name(self, start: L1Phys) -> u64 {
        match self {
            Self::Normal => start.0,
            Self::Smm => start.0.saturating_add(SMM_SPACE),
        }
    }
}

/// Guest-physical memory at a host address of the caller's (`struct kvm_userspace_memory_region`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemorySlot {
    /// Which processors see it.
    pub space: Space,
    /// Where the guest sees it, page-aligned.
    pub start: L1Phys,
    /// Bytes: whole pages.
    pub length: u64,
    /// Where the caller has it, page-aligned.
    pub host: *mut u8,
    /// Writes are a device's, as where there is no RAM.
    pub read_only: bool,
}

impl SoftVm {
    /// A machine without memory and without vCPUs: see [`Self::add_memory`] and [`Self::add_vcpu`].
    pub fn empty() -> Result<Self> {
        Self::with_ram(Ram::none())
    }

    pub(crate) fn with_ram(ram: Ram) -> Result<Self> {
        let mut engine = Engine::new(ram.map()).map_err(|e| BackendError::Other(e.to_string()))?;
        hide_features(engine.env_mut());
        Ok(Self {
            capabilities: capabilities(),
            reset_fxsave: engine.env().fxsave(),
            engine,
            ram,
            processors: Vec::new(),
            current: 0,
            settled: false,
            turn: Turn::default(),
            clock: GuestClock::new(model::TSC_KHZ),
            local_apics: true,
            bootstrap: 0,
        })
    }

    /// Leaves the local APICs of the vCPUs that are added from now on to user space
    /// ([`Apic::leave_to_user_space`]). None of them waits for another to start it, and HLT is an exit.
    pub fn leave_out_local_apics(&mut self) {
        self.local_apics = false;
    }

    /// Says which of the vCPUs that are added from now on starts the others (KVM_SET_BOOT_CPU_ID).
    pub fn set_bootstrap(&mut self, apic_id: u8) {
        self.bootstrap = apic_id;
    }

    /// Adds a vCPU after RESET with this APIC id: at the reset vector if it starts the others (as the one
    /// with id 0 does unless [`Self::set_bootstrap`] said otherwise), else in wait-for-SIPI. Its index is the
    /// number of those before. CPUID is the default processor's.
    pub fn add_vcpu(&mut self, apic_id: u8) -> Result<usize> {
        let index = self.processors.len();
        if index >= MOST_VCPUS {
            return Err(BackendError::Unsupported(format!(
                "more than {MOST_VCPUS} vCPUs, SDM Vol. 3A \"Multiple-Processor Management\""
            )));
        }
        let default = model::default_model();
        let bootstrap = apic_id == self.bootstrap;
        let mut apic = Apic::new(apic_id, model::TSC_KHZ);
        apic.set_bootstrap(bootstrap);
        if !self.local_apics {
            apic.leave_to_user_space();
        }
        let mut sregs = reset::sregs();
        sregs.apic_base = apic.base();
        let cpu = Cpu {
            sregs,
            model: Arc::new(default),
            xcr0: 1,
            activity: if bootstrap || !self.local_apics {
                Activity::Active
            } else {
                Activity::WaitForSipi
            },
            ..reset::cpu()
        };
        let mut processor = Processor::new(self.ram.share(), cpu, apic);
        *processor.fxsave = self.reset_fxsave;
        if let Some(first) = self.processors.get(self.current) {
            let time = first.time();
            processor.set_time(time);
        }
        self.processors.push(processor);
        let peers = index > 0;
        for processor in &mut self.processors {
            processor.outside.peers = peers;
        }
        if !peers {
            self.put();
        }
        Ok(index)
    }

    /// Adds memory where there is none. Moving or changing a slot is removing and adding it.
    ///
    /// # Safety
    /// Until the slot is removed or the machine dropped, the host memory is the guest's: no reference of
    /// Rust's points into it. Other threads may read and write it, as devices do. Pages may be missing or
    /// protected ([`BackendError::HostMemory`] then, when the guest needs one), but one that the guest
    /// has used must stay until the slot is removed.
    pub unsafe fn add_memory(&mut self, slot: &MemorySlot) -> Result<()> {
        let MemorySlot {
            space,
            start: L1Phys(start),
            length,
            host,
            read_only,
        } = *slot;
        let refused = |reason: &str| state::refused(format!("memory slot at {start:#x}"), reason);
        let aligned = [start, length, host as usize as u64]
            .iter()
            .all(|value| value.is_multiple_of(PAGE_SIZE));
        if !aligned || length == 0 {
            return Err(refused("not made of whole pages"));
        }
        if start.checked_add(length).is_none_or(|end| end > SMM_SPACE) {
            return Err(refused("beyond every processor's address width"));
        }
        let start = space.name(slot.start);
        // SAFETY: by contract; the processors touch a page only after `Ram` found it there.
        unsafe {
            let env = self.engine.env_mut();
            env.add_ram(start, length, host)
                .map_err(|error| refused(&error.to_string()))?;
            if !self.ram.add(Slot::new(start, length, host, read_only)) {
                self.engine.env_mut().remove_ram(start);
                return Err(refused("there is RAM already"));
            }
        }
        self.settled = false;
        Ok(())
    }

    /// Removes the slot that starts at this address; answers whether there was one. What is there then is
    /// a device's.
    pub fn remove_memory(&mut self, space: Space, start: L1Phys) -> bool {
        self.settled = false;
        let start = space.name(start);
        self.ram.remove(start).is_some() && self.engine.env_mut().remove_ram(start)
    }

    /// Pages of a slot that were written since they were last cleared, one bit each.
    #[must_use]
    pub fn dirty_log(&self, space: Space, start: L1Phys) -> Option<&[u64]> {
        self.engine.env().dirty_words(space.name(start))
    }

    /// Clears the marks of pages of a slot whose bit is set in `bits`; the first bit is that of
    /// `first_page`, a multiple of 64.
    pub fn clear_dirty_log(&mut self, space: Space, start: L1Phys, first_page: u64, bits: &[u64]) {
        self.engine
            .env_mut()
            .clear_dirty_pages(space.name(start), first_page, bits);
    }

    /// Marks all pages of a slot, or none.
    pub fn fill_dirty_log(&mut self, space: Space, start: L1Phys, dirty: bool) {
        let start = space.name(start);
        self.engine.env_mut().fill_dirty(start, dirty);
    }

    /// The L1-physical address of a linear one at the level that runs, by a supervisor's walk
    /// (KVM_TRANSLATE).
    pub fn translate(&mut self, index: usize, linear: u64) -> Option<L1Phys> {
        let access = Access::explicit(AccessKind::Read, 0);
        self.switch_to(index);
        let mapping = self.processors[index].translate(linear, access);
        self.ram.take_absent();
        self.put();
        mapping.ok().map(|mapping| mapping.physical)
    }

    /// Others may have written the slots' memory: no code runs that was translated from what was there
    /// before. Costs a flush of the TLB, and a comparison of each page when code from it next runs.
    pub fn resync_code(&mut self) {
        self.engine.env_mut().doubt_code();
    }
}
