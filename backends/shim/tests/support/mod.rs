//! A guest of the shim, in process: descriptors, memory and a run page.
#![allow(dead_code, reason = "each test uses its own part")]

use nvmx_shim::errno::{Answer, Errno};
use nvmx_shim::{Object, Settings, Shim};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

pub(crate) const KVM_CREATE_VM: u32 = 0xae01;
pub(crate) const KVM_CREATE_VCPU: u32 = 0xae41;
pub(crate) const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
pub(crate) const KVM_RUN: u32 = 0xae80;

/// Memory that the guest shares with us, whole pages.
pub(crate) struct Memory {
    bytes: Box<[AtomicU8]>,
    skipped: usize,
}

impl Memory {
    pub(crate) fn new(pages: usize) -> Self {
        let bytes: Box<[AtomicU8]> = (0..(pages + 1) * 4096).map(|_| AtomicU8::new(0)).collect();
        let skipped = bytes.as_ptr().align_offset(4096);
        Self { bytes, skipped }
    }

    pub(crate) fn address(&self) -> u64 {
        self.bytes[self.skipped..].as_ptr() as u64
    }

    pub(crate) fn length(&self) -> u64 {
        (self.bytes.len() - 4096) as u64
    }

    pub(crate) fn write(&self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes[self.skipped + at..].iter().zip(bytes) {
            place.store(*byte, Ordering::Relaxed);
        }
    }

    pub(crate) fn read(&self, at: usize) -> u8 {
        self.bytes[self.skipped + at].load(Ordering::Relaxed)
    }
}

/// A VM with one page of code at the reset vector, and the vCPUs that were asked for.
pub(crate) struct Guest {
    pub(crate) shim: Arc<Shim>,
    pub(crate) system: i32,
    pub(crate) vm: i32,
    pub(crate) vcpus: Vec<i32>,
    pub(crate) code: Memory,
}

impl Guest {
    pub(crate) fn new(vcpus: u64, code: &[u8]) -> Self {
        Self::on(Arc::new(Shim::new(Settings::default())), vcpus, code)
    }

    pub(crate) fn on(shim: Arc<Shim>, vcpus: u64, code: &[u8]) -> Self {
        let system = shim.open_system(true).expect("/dev/kvm");
        let call = |fd, request, argument| shim.ioctl(fd, request, argument).expect("KVM's");
        let vm = call(system, KVM_CREATE_VM, 0).expect("a VM");
        let page = Memory::new(1);
        // A jump back from the reset vector to the page's beginning, where the code is.
        page.write(0xff0, &[0xe9, 0x0d, 0xf0]);
        page.write(0, code);
        let region: [u64; 4] = [0, 0xffff_f000, page.length(), page.address()];
        let address = region.as_ptr() as u64;
        call(vm, KVM_SET_USER_MEMORY_REGION, address).expect("a slot");
        let vcpus = (0..vcpus)
            .map(|id| call(vm, KVM_CREATE_VCPU, id).expect("a vCPU"))
            .collect();
        Self {
            shim,
            system,
            vm,
            vcpus,
            code: page,
        }
    }

    pub(crate) fn call(&self, fd: i32, request: u32, argument: u64) -> Answer {
        self.shim.ioctl(fd, request, argument).expect("KVM's")
    }

    /// KVM_RUN, and the exit reason.
    pub(crate) fn run(&self, vcpu: usize) -> Result<u32, Errno> {
        self.call(self.vcpus[vcpu], KVM_RUN, 0)?;
        Ok(self.page(vcpu, |page| page.exit_reason()))
    }

    /// Looks at a vCPU's run page.
    pub(crate) fn page<T>(
        &self,
        vcpu: usize,
        look: impl FnOnce(&nvmx_shim::os::RunPages) -> T,
    ) -> T {
        match self.shim.object(self.vcpus[vcpu]) {
            Some(Object::Vcpu(vcpu)) => look(&vcpu.pages),
            other => panic!("{other:?}"),
        }
    }
}
