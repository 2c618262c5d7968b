//! KVM_X86_SET_MSR_FILTER and KVM_CAP_X86_USER_SPACE_MSR: which MSR accesses of the guest its caller hears of
//! (kvm_vm_ioctl_set_msr_filter, kvm_add_msr_filter).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vm::{VmContext, VmState};
use kvm_bindings::{
    KVM_MSR_FILTER_DEFAULT_DENY, KVM_MSR_FILTER_READ, KVM_MSR_FILTER_WRITE, kvm_enable_cap,
    kvm_msr_filter, kvm_msr_filter_range,
};
use nvmx_core::msr::filter::MsrRange;
use std::sync::Arc;

/// `KVM_MSR_FILTER_MAX_BITMAP_SIZE`.
const MOST_BYTES: usize = 0x600;
/// `KVM_MSR_EXIT_REASON_VALID_MASK`.
const REASONS: u64 = 7;

/// KVM_X86_SET_MSR_FILTER.
pub fn set(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_msr_filter = user.read(argument)?;
    let allow = request.flags & KVM_MSR_FILTER_DEFAULT_DENY == 0;
    if request.flags & !KVM_MSR_FILTER_DEFAULT_DENY != 0 {
        return Err(Errno::EINVAL);
    }
    let is_empty = request.ranges.iter().all(|range| range.nmsrs == 0);
    if is_empty && !allow {
        return Err(Errno::EINVAL);
    }
    let mut ranges = Vec::new();
    for range in request.ranges.iter().filter(|range| range.nmsrs != 0) {
        ranges.push(self::range(user, range)?);
    }
    let filter = Arc::make_mut(&mut context.vm.msr_filter);
    (filter.allow, filter.ranges) = (allow, ranges);
    context.vm.msr_filter_changed();
    Ok(0)
}

fn range(user: User, range: &kvm_msr_filter_range) -> Result<MsrRange, Errno> {
    if range.flags == 0 || range.flags & !(KVM_MSR_FILTER_READ | KVM_MSR_FILTER_WRITE) != 0 {
        return Err(Errno::EINVAL);
    }
    // In whole words, as the kernel copies it.
    let bytes = range.nmsrs.div_ceil(64) as usize * 8;
    if bytes > MOST_BYTES {
        return Err(Errno::EINVAL);
    }
    let mut bitmap = vec![0; bytes];
    user.read_bytes(range.bitmap as u64, &mut bitmap)?;
    Ok(MsrRange {
        reads: range.flags & KVM_MSR_FILTER_READ != 0,
        writes: range.flags & KVM_MSR_FILTER_WRITE != 0,
        first: range.base,
        count: range.nmsrs,
        bitmap,
    })
}

/// KVM_CAP_X86_USER_SPACE_MSR.
pub fn enable_exits(context: &mut VmContext<'_>, request: &kvm_enable_cap) -> Answer {
    if request.args[0] & !REASONS != 0 {
        return Err(Errno::EINVAL);
    }
    Arc::make_mut(&mut context.vm.msr_filter).exits = request.args[0] as u8;
    context.vm.msr_filter_changed();
    Ok(0)
}

impl VmState {
    /// Hands the filter to the vCPUs.
    pub fn msr_filter_changed(&mut self) {
        for index in 0..self.vcpus.len() {
            let filter = Some(Arc::clone(&self.msr_filter));
            self.soft.0.set_msr_filter(index, filter);
        }
    }
}
