//! MSRs: which ones the kernel saves, reading them all, and writing them with the culprit named.

use crate::error::{self, ioctl};
use crate::vcpu::KvmVcpu;
use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::Kvm;
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::x86::msr;
use std::collections::BTreeMap;

/// The MSRs to save: those of KVM_GET_MSR_INDEX_LIST, the VMX capability MSRs among the feature
/// MSRs, and the time stamp counter with its deadline.
pub(crate) fn list(kvm: &Kvm) -> Result<Vec<u32>> {
    let saved = kvm
        .get_msr_index_list()
        .map_err(ioctl("KVM_GET_MSR_INDEX_LIST"))?;
    let mut list = saved.as_slice().to_vec();
    // Old kernels have no feature MSRs: then there is no VMX to save either.
    if let Ok(features) = kvm.get_msr_feature_index_list() {
        list.extend(features.as_slice().iter().copied().filter(|n| is_vmx(*n)));
    }
    list.extend([msr::IA32_TIME_STAMP_COUNTER, msr::IA32_TSC_DEADLINE]);
    list.sort_unstable();
    list.dedup();
    Ok(list)
}

/// A VMX capability MSR: while in VMX operation the kernel refuses to write it, even its own value.
fn is_vmx(number: u32) -> bool {
    (msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2).contains(&number)
}

impl KvmVcpu {
    /// All MSRs of the list that this vCPU's CPUID lets it read.
    pub(crate) fn msrs(&mut self) -> Result<BTreeMap<u32, u64>> {
        let wanted = match self.readable_msrs.take() {
            Some(list) => list,
            None => self.shared.msrs.clone(),
        };
        let values = self.read_msrs(&wanted)?;
        self.readable_msrs = Some(values.keys().copied().collect());
        Ok(values)
    }

    /// Those of `wanted` that can be read.
    pub(crate) fn read_msrs(&self, wanted: &[u32]) -> Result<BTreeMap<u32, u64>> {
        let mut values = BTreeMap::new();
        let mut rest = wanted;
        while !rest.is_empty() {
            // The kernel takes no more than this in one call.
            let batch = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
            let mut msrs = entries(batch.iter().map(|&number| (number, 0)))?;
            let done = self.fd.get_msrs(&mut msrs).map_err(ioctl("KVM_GET_MSRS"))?;
            for entry in msrs.as_slice().iter().take(done) {
                values.insert(entry.index, entry.data);
            }
            // The kernel stops at the first that it cannot read: leave that one out.
            let refused = usize::from(done < batch.len());
            rest = &rest[(done + refused).min(rest.len())..];
        }
        Ok(values)
    }

    /// Writes MSRs, in ascending order (the TSC before its deadline).
    ///
    /// VMX capability MSRs that hold the value already are left alone, and so is any other that is
    /// refused for a value which it holds.
    pub(crate) fn set_msrs(&mut self, values: &BTreeMap<u32, u64>) -> Result<()> {
        let vmx: Vec<u32> = values.keys().copied().filter(|n| is_vmx(*n)).collect();
        let held = self.read_msrs(&vmx)?;
        let tsc = match values.get(&msr::IA32_TIME_STAMP_COUNTER) {
            Some(tsc) => self.set_tsc(*tsc)?,
            None => false,
        };
        let list: Vec<(u32, u64)> = values
            .iter()
            .filter(|(number, value)| held.get(number) != Some(value))
            .filter(|(number, _)| !(tsc && **number == msr::IA32_TIME_STAMP_COUNTER))
            .map(|(number, value)| (*number, *value))
            .collect();
        let mut rest = &list[..];
        while !rest.is_empty() {
            let batch = &rest[..rest.len().min(kvm_bindings::KVM_MAX_MSR_ENTRIES)];
            let done = self
                .fd
                .set_msrs(&entries(batch.iter().copied())?)
                .map_err(|e| error::kernel("KVM_SET_MSRS", e.errno()))?;
            rest = &rest[done.min(rest.len())..];
            if done < batch.len() {
                let (number, value) = rest[0];
                self.explain_refusal(number, value)?;
                rest = &rest[1..];
            }
        }
        Ok(())
    }

    /// Why `number` did not take `value`; `Ok` if it holds it already.
    fn explain_refusal(&self, number: u32, value: u64) -> Result<()> {
        let holds = self.read_msrs(&[number])?.get(&number).copied();
        if holds == Some(value) {
            return Ok(());
        }
        let name = msr::name(number).unwrap_or("MSR");
        let reason = match holds {
            None => format!("this kernel and CPUID do not have it (value {value:#x})"),
            Some(holds) if is_vmx(number) && self.is_in_vmx_operation()? => format!(
                "{value:#x} differs from {holds:#x}, and the kernel takes no VMX capability while \
                 in VMX operation (EBUSY)"
            ),
            Some(holds) => format!("the kernel does not take {value:#x}; it holds {holds:#x}"),
        };
        Err(BackendError::StateRefused {
            part: format!("msrs: {name} ({number:#x})"),
            reason,
        })
    }
}

fn entries(list: impl Iterator<Item = (u32, u64)>) -> Result<Msrs> {
    let list: Vec<kvm_msr_entry> = list
        .map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        })
        .collect();
    Msrs::from_entries(&list).map_err(|error| BackendError::Other(format!("MSRs: {error:?}")))
}
