//! MSRs as user space reads and writes them, one by one, with an answer to each: KVM_GET_MSRS and KVM_SET_MSRS.

use crate::SoftVm;
use nvmx_core::apic::ApicFault;
use nvmx_core::msr::host::{self, Refused};
use nvmx_core::msr::{MsrEffect, MsrRead};
use nvmx_core::vmx::capability::MSR_COUNT;
use nvmx_core::vmx::exit;
use nvmx_core::x86::msr;

impl SoftVm {
    /// An MSR of the vCPU that [`Vm::vcpu`](nvmx_core::vcpu::Vm::vcpu) was last asked for.
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

    /// Sets an MSR of that vCPU. Of the VMX capability MSRs it may be given what is `offered`, or less.
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
}
