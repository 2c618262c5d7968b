//! L1's TSC, set to the tick.
//!
//! A write of IA32_TIME_STAMP_COUNTER by user space is taken as an attempt to synchronise vCPUs when it
//! is within a second of what the TSC holds, and then changes nothing (`kvm_synchronize_tsc`): a
//! snapshot would meet its preemption-timer deadline long before or after its time. The vCPU attribute
//! `KVM_VCPU_TSC_OFFSET` (Linux 5.16) sets the offset itself.

use crate::sys;
use crate::vcpu::KvmVcpu;
use nvmx_core::vcpu::Result;
use nvmx_core::x86::msr;

impl KvmVcpu {
    /// Makes L1's TSC `value` now. `false`: this kernel has no such attribute.
    pub(crate) fn set_tsc(&mut self, value: u64) -> Result<bool> {
        let Ok(offset) = sys::tsc_offset(self.raw()) else {
            return Ok(false);
        };
        let number = msr::IA32_TIME_STAMP_COUNTER;
        let Some(now) = self.read_msrs(&[number])?.get(&number).copied() else {
            return Ok(false);
        };
        let offset = offset.wrapping_add(value.wrapping_sub(now));
        sys::set_tsc_offset(self.raw(), offset)?;
        Ok(true)
    }
}
