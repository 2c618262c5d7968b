//! A KVM virtual machine: RAM at address zero, the in-kernel local APIC, vCPUs.

use crate::error::{self, ioctl};
use crate::host::Host;
use crate::ram::{IDENTITY_MAP_ADDRESS, Ram, TSS_ADDRESS};
use crate::trace::Tracer;
use crate::vcpu::KvmVcpu;
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_SREGS2, KVM_CAP_X86_SMM,
    KVM_CAP_X86_TRIPLE_FAULT_EVENT, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::VmFd;
use nvmx_abi::EventFeatures;
use nvmx_core::addr::L1Phys;
use nvmx_core::memory::GuestMemory as _;
use nvmx_core::vcpu::{BackendError, Capabilities, Capability, Result, Vcpu, Vm, VmConfig};
use std::sync::{Arc, Mutex};
use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

/// How the local APIC is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Irqchip {
    /// Local APIC in the kernel, all other interrupt controllers the caller's.
    Split,
    /// All of a PC's interrupt controllers in the kernel: where `Split` is refused.
    Full,
    /// None: HLT comes back at once, and there is no LAPIC state.
    None,
}

/// What a VM's vCPUs need of it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) vm: VmFd,
    pub(crate) capabilities: Capabilities,
    pub(crate) nested_size: usize,
    pub(crate) irqchip: Irqchip,
    pub(crate) events: EventFeatures,
    pub(crate) sregs2: bool,
    /// MSRs that the kernel saves (KVM_GET_MSR_INDEX_LIST and the VMX feature MSRs).
    pub(crate) msrs: Vec<u32>,
    /// The RAM again, to look into (its marks of written pages are not the ones that count).
    pub(crate) memory: Ram,
    pub(crate) tracer: Option<Mutex<Tracer>>,
}

/// A virtual machine on `/dev/kvm`.
#[derive(Debug)]
pub struct KvmVm {
    // First: vCPUs go before the VM, the VM before its memory.
    vcpus: Vec<KvmVcpu>,
    shared: Arc<Shared>,
    ram: Ram,
}

impl KvmVm {
    /// Makes a VM as `config` says: zeroed RAM, vCPUs after RESET with all of the CPUID that KVM
    /// supports.
    ///
    /// # Errors
    /// No `/dev/kvm`, or a call to it fails: the error names the call and what to do.
    pub fn new(config: &VmConfig) -> Result<Self> {
        Self::on(&Host::open()?, config)
    }

    /// The same on a host that is open already.
    ///
    /// # Errors
    /// As [`KvmVm::new`].
    pub fn on(host: &Host, config: &VmConfig) -> Result<Self> {
        let kvm = host.kvm();
        let most = kvm.get_max_vcpus();
        if config.vcpus > most {
            return Err(BackendError::StateRefused {
                part: "vcpus".into(),
                reason: format!(
                    "{} of them; this host has at most {most} a VM",
                    config.vcpus
                ),
            });
        }
        let ram = Ram::new(config.memory_size)?;
        let vm = kvm.create_vm().map_err(ioctl("KVM_CREATE_VM"))?;
        vm.set_tss_address(TSS_ADDRESS as usize)
            .map_err(ioctl("KVM_SET_TSS_ADDR"))?;
        vm.set_identity_map_address(IDENTITY_MAP_ADDRESS)
            .map_err(ioctl("KVM_SET_IDENTITY_MAP_ADDR"))?;
        let irqchip = create_irqchip(&vm);
        let events = EventFeatures {
            payload: enable(&vm, KVM_CAP_EXCEPTION_PAYLOAD, 1),
            triple_fault: enable(&vm, KVM_CAP_X86_TRIPLE_FAULT_EVENT, 1),
            smm: vm.check_extension_raw(KVM_CAP_X86_SMM.into()) > 0,
        };
        map(&vm, &ram)?;
        let mut capabilities = host.capabilities().clone();
        let tracer = capabilities
            .has(Capability::NestedEvents)
            .then(|| Tracer::new(config.vcpus));
        let tracer = match tracer {
            Some(Ok(tracer)) => Some(Mutex::new(tracer)),
            Some(Err(reason)) => {
                for (capability, verdict) in &mut capabilities.entries {
                    if *capability == Capability::NestedEvents {
                        *verdict = Err(reason.clone());
                    }
                }
                None
            }
            None => None,
        };
        let shared = Arc::new(Shared {
            events,
            sregs2: vm.check_extension_raw(KVM_CAP_SREGS2.into()) > 0,
            nested_size: if capabilities.has(Capability::NestedVmx) {
                // The kernel can write past a smaller buffer: see sys::nested_state.
                host.nested_size().max(8320)
            } else {
                0
            },
            msrs: crate::msrs::list(kvm)?,
            vm,
            capabilities,
            irqchip,
            memory: ram.clone(),
            tracer,
        });
        let run_size = kvm
            .get_vcpu_mmap_size()
            .map_err(ioctl("KVM_GET_VCPU_MMAP_SIZE"))?;
        let mut supported = kvm
            .get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("KVM_GET_SUPPORTED_CPUID"))?;
        if kvm.check_extension_raw(kvm_bindings::KVM_CAP_TSC_DEADLINE_TIMER.into()) > 0 {
            // KVM leaves the bit of the TSC-deadline timer to whoever gives it an in-kernel APIC
            // (Documentation/virt/kvm/api.rst, KVM_GET_SUPPORTED_CPUID).
            const TSC_DEADLINE: u32 = 1 << 24;
            for entry in supported.as_mut_slice() {
                if entry.function == 1 {
                    entry.ecx |= TSC_DEADLINE;
                }
            }
        }
        let mut vcpus = Vec::with_capacity(config.vcpus);
        for index in 0..config.vcpus {
            vcpus.push(KvmVcpu::new(
                Arc::clone(&shared),
                index,
                run_size,
                &supported,
            )?);
        }
        Ok(Self { vcpus, shared, ram })
    }

    /// The RAM, for who wants to share it.
    #[must_use]
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// A vCPU with what only this backend has.
    #[must_use]
    pub fn kvm_vcpu(&mut self, index: usize) -> Option<&mut KvmVcpu> {
        self.vcpus.get_mut(index)
    }
}

fn enable(vm: &VmFd, capability: u32, argument: u64) -> bool {
    vm.check_extension_raw(capability.into()) > 0
        && vm
            .enable_cap(&kvm_enable_cap {
                cap: capability,
                args: [argument, 0, 0, 0],
                ..Default::default()
            })
            .is_ok()
}

fn create_irqchip(vm: &VmFd) -> Irqchip {
    // No pins are reserved: EOI exits belong to an IOAPIC, which would be the caller's.
    if enable(vm, KVM_CAP_SPLIT_IRQCHIP, 0) {
        Irqchip::Split
    } else if vm.create_irq_chip().is_ok() {
        Irqchip::Full
    } else {
        Irqchip::None
    }
}

fn map(vm: &VmFd, ram: &Ram) -> Result<()> {
    for (slot, region) in ram.map().iter().enumerate() {
        let address = ram
            .map()
            .get_host_address(region.start_addr())
            .map_err(|e| BackendError::Other(format!("memory: {e}")))?;
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: KVM_MEM_LOG_DIRTY_PAGES,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: address as u64,
        };
        // SAFETY: the region is mapped by `ram`, which KvmVm drops after the VM and its vCPUs;
        // it is accessed only through vm-memory, which expects others to write it.
        unsafe { vm.set_user_memory_region(region) }
            .map_err(ioctl("KVM_SET_USER_MEMORY_REGION"))?;
    }
    Ok(())
}

impl Vm for KvmVm {
    fn capabilities(&self) -> &Capabilities {
        &self.shared.capabilities
    }

    fn memory_size(&self) -> u64 {
        self.ram.size()
    }

    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()> {
        // What an instruction is about to write has to be in memory first.
        self.settle()?;
        Ok(self.ram.read(address, buffer)?)
    }

    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()> {
        Ok(self.ram.write_marked(address, bytes)?)
    }

    fn dirty_pages(&mut self) -> Result<Vec<u64>> {
        self.settle()?;
        let log = self
            .shared
            .vm
            .get_dirty_log(0, self.ram.size() as usize)
            .map_err(|e| error::kernel("KVM_GET_DIRTY_LOG", e.errno()))?;
        Ok(self.ram.take_dirty(&log))
    }

    fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu {
        &mut self.vcpus[index]
    }
}

impl KvmVm {
    /// Lets KVM finish the instructions whose exits were handed out.
    fn settle(&mut self) -> Result<()> {
        self.vcpus.iter_mut().try_for_each(KvmVcpu::settle)
    }
}
