//! What user space sets of the vCPU that [`Vm::vcpu`](nvmx_core::vcpu::Vm::vcpu) was last asked for as it does with
//! KVM: MSRs one by one, with an answer to each, and whether registers would be taken.

use crate::processor::PendingRead;
use crate::{SoftVm, state};
use nvmx_core::apic::ApicFault;
use nvmx_core::msr::filter::MsrFilter;
use nvmx_core::msr::host::{self, Refused};
use nvmx_core::msr::{MsrEffect, MsrRead};
use nvmx_core::vcpu::BackendError;
use nvmx_core::vmx::capability::MSR_COUNT;
use nvmx_core::vmx::exit;
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::cr_write::is_unrestricted;
use nvmx_core::x86::{
    AccessRights, DebugRegs, Exception, MpState, Sregs, VcpuEvents, msr, sregs_rules,
};
use std::sync::Arc;

impl SoftVm {
    /// KVM_GET_MSRS of one.
    pub fn read_msr(&mut self, number: u32) -> Result<u64, Refused> {
        let processor = &self.processors[self.current];
        match host::read(&processor.cpu, number)? {
            MsrRead::Value(value) => Ok(value),
            MsrRead::Apic => {
                let now = processor.cpu.tsc.l1();
                processor
                    .apic
                    .msr_read(number, now)
                    .map_err(|ApicFault| Refused::Value)
            }
        }
    }

    /// KVM_SET_MSRS of one. Of the VMX capability MSRs it may be given what is `offered`, or less.
    pub fn write_msr(
        &mut self,
        offered: &[u64; MSR_COUNT],
        number: u32,
        value: u64,
    ) -> Result<(), Refused> {
        let processor = &mut self.processors[self.current];
        match host::write(&mut processor.cpu, offered, number, value)? {
            MsrEffect::Apic => {
                let now = processor.cpu.tsc.l1();
                processor
                    .apic
                    .msr_write(number, value, now)
                    .map_err(|ApicFault| Refused::Value)?;
            }
            MsrEffect::ApicBase(base) => processor.apic.set_base(base),
            MsrEffect::None | MsrEffect::Engine | MsrEffect::Efer | MsrEffect::Tsc => {}
        }
        if number == msr::IA32_FEATURE_CONTROL && value == 0 && processor.in_l2() {
            // `vmx_set_msr`: user space resets the processor.
            let left = exit::leave_nested(&mut processor.cpu, &processor.ram);
            processor.left(&left);
        }
        exit::note_msr_write(&mut processor.cpu, number);
        processor.level_changed();
        self.put();
        Ok(())
    }

    /// MSR accesses of a guest that its user space wants to hear of, with [`Exit::MsrRead`](nvmx_core::vcpu::Exit::MsrRead) and `MsrWrite`.
    pub fn set_msr_filter(&mut self, index: usize, filter: Option<Arc<MsrFilter>>) {
        self.processors[index].msr_filter = filter;
    }

    /// `KVM_CAP_HYPERV_ENLIGHTENED_VMCS`: nested state may speak of one. No guest gets to use it, for no Hyper-V
    /// is shown to it.
    pub fn enable_enlightened_vmcs(&mut self) {
        self.processors[self.current].enlightened_vmcs = true;
    }

    /// After user space has set segment registers: KVM runs L2 by its processor alone, so a TR that no VM entry takes
    /// ends L2 with a triple fault (`tr_valid`; `vmx_handle_exit`, `emulation_required` in guest mode).
    pub fn judge_l2(&mut self) {
        let cpu = &mut self.processors[self.current].cpu;
        let tr = &cpu.sregs.tr;
        let is_valid = tr.is_usable()
            && tr.selector & 4 == 0
            && tr.ar.contains(AccessRights::PRESENT)
            && matches!(tr.ar.segment_type(), 3 | 11);
        if cpu.vmx.guest_mode && !is_unrestricted(cpu) && !is_valid {
            cpu.triple_fault_pending = true;
        }
    }

    /// User space refuses the MSR access that waits: #GP.
    pub fn refuse_msr(&mut self) -> nvmx_core::vcpu::Result<()> {
        let processor = &mut self.processors[self.current];
        let Some(PendingRead::Msr { instruction, .. }) = processor.pending_read else {
            return Err(state::refused("refuse_msr", "no access to an MSR waits"));
        };
        processor.pending_read = None;
        let fault = Exception::GENERAL_PROTECTION.into();
        let exit = processor.settle(Err(fault), instruction.len());
        self.put();
        match exit {
            None => Ok(()),
            Some(exit) => Err(BackendError::Other(format!("refusing an MSR: {exit:?}"))),
        }
    }

    /// Whether KVM_SET_SREGS takes these; `most_cr4` has the bits of CR4 that any guest may have.
    #[must_use]
    pub fn takes_sregs(&self, sregs: &Sregs, most_cr4: u64) -> bool {
        sregs_rules::are_valid(&self.processors[self.current].cpu, sregs, most_cr4)
    }

    /// L1's TSC less the ticks of the machine: `KVM_VCPU_TSC_OFFSET`.
    #[must_use]
    pub fn tsc_offset(&self) -> u64 {
        self.processors[self.current].cpu.tsc.l1_offset
    }

    /// Sets it.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.processors[self.current].cpu.tsc.l1_offset = offset;
        self.put();
    }

    /// Whether the guest may read PLATFORM_INFO (`KVM_CAP_MSR_PLATFORM_INFO`).
    pub fn show_platform_info(&mut self, shown: bool) {
        for processor in &mut self.processors {
            processor.cpu.msrs.platform_info_hidden = !shown;
        }
    }

    /// IA32_MCG_CAP (`KVM_X86_SETUP_MCE`). `false`: there is no such thing here.
    pub fn set_up_machine_checks(&mut self, capabilities: u64) -> bool {
        self.processors[self.current]
            .cpu
            .machine_checks
            .set_up(capabilities)
    }

    /// KVM_GET_VCPU_EVENTS, and the other parts of [`CpuState`](nvmx_core::x86::CpuState), one at a time.
    #[must_use]
    pub fn events(&self) -> VcpuEvents {
        state::events(&self.processors[self.current])
    }

    /// An exception that waits is gone, and with it L1's debug trap.
    pub fn drop_pending_exception(&mut self) {
        let cpu = &mut self.processors[self.current].cpu;
        cpu.pending_exception = None;
        if !cpu.vmx.guest_mode {
            cpu.pending_debug = 0;
        }
        self.put();
    }

    /// The XSAVE area.
    #[must_use]
    pub fn xsave_area(&self) -> Vec<u8> {
        state::xsave(self.engine.env())
    }

    /// XCR0.
    #[must_use]
    pub fn xcr0(&self) -> u64 {
        self.processors[self.current].cpu.xcr0
    }

    /// The debug registers.
    #[must_use]
    pub fn debug_registers(&self) -> DebugRegs {
        self.processors[self.current].cpu.debug
    }

    /// Whether it runs.
    #[must_use]
    pub fn mp_state(&self) -> MpState {
        state::mp_state(&self.processors[self.current])
    }

    /// Whether INIT and SIPI are blocked by VMX root operation (SDM Vol. 3C "Restrictions on VMX Operation").
    #[must_use]
    pub fn blocks_init(&self) -> bool {
        let vmx = &self.processors[self.current].cpu.vmx;
        vmx.is_on() && !vmx.guest_mode
    }

    /// The register page of the local APIC.
    #[must_use]
    pub fn lapic_page(&self) -> Vec<u8> {
        let processor = &self.processors[self.current];
        processor.apic.to_kvm_page(processor.cpu.tsc.l1()).to_vec()
    }

    /// Whether the local APIC is in x2APIC mode.
    #[must_use]
    pub fn is_x2apic(&self) -> bool {
        let apic = &self.processors[self.current].apic;
        apic.is_enabled() && apic.mmio_base().is_none()
    }

    /// What a function finds in CPUID.
    pub fn with_cpuid<T>(&self, look: impl FnOnce(&[CpuidEntry]) -> T) -> T {
        look(&self.processors[self.current].cpu.model.cpuid)
    }

    /// L1's TSC frequency.
    #[must_use]
    pub fn tsc_khz(&self) -> u32 {
        self.processors[self.current].tsc_khz
    }
}
