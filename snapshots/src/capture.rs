//! Taking a snapshot of a machine, and putting one back.

use crate::error::{Error, Result};
use crate::model::{Meta, Snapshot, VcpuSnapshot};
use crate::pages::{PAGE, PageStore};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Capability, Parts, Vm};
use nvmx_core::x86::CpuState;

/// Pages that are read or compared in one go: 4 MiB.
const BATCH: u64 = 1024;

/// Which memory to take along.
#[derive(Debug, Clone, Copy)]
pub enum MemoryScope<'a> {
    /// None.
    None,
    /// All of it.
    All,
    /// These pages; the others are known to be zero (pages written since the machine was created).
    Pages(&'a [u64]),
}

/// Captures a machine between two runs. It is not disturbed: a second capture gives the same.
pub fn capture(vm: &mut dyn Vm, meta: Meta, memory: MemoryScope<'_>) -> Result<Snapshot> {
    let memory = match memory {
        MemoryScope::None => None,
        MemoryScope::All => {
            let pages: Vec<u64> = (0..vm.memory_size() / PAGE_SIZE).collect();
            Some(read_memory(vm, &pages)?)
        }
        MemoryScope::Pages(pages) => Some(read_memory(vm, pages)?),
    };
    Ok(Snapshot {
        meta,
        vcpus: capture_vcpus(vm)?,
        memory,
    })
}

/// Captures the vCPUs alone.
pub fn capture_vcpus(vm: &mut dyn Vm) -> Result<Vec<VcpuSnapshot>> {
    let nested = vm.capabilities().has(Capability::NestedVmx);
    (0..vm.vcpu_count())
        .map(|index| {
            let vcpu = vm.vcpu(index);
            Ok(VcpuSnapshot {
                cpu: vcpu
                    .state(Parts::All)
                    .map_err(Error::backend(format!("reading vCPU {index}")))?,
                nested: nested
                    .then(|| vcpu.nested_state())
                    .transpose()
                    .map_err(Error::backend(format!("nested state of vCPU {index}")))?,
            })
        })
        .collect()
}

fn read_memory(vm: &mut dyn Vm, pages: &[u64]) -> Result<PageStore> {
    let mut store = PageStore::new(vm.memory_size());
    for batch in pages.chunks(BATCH as usize) {
        let bytes = vm
            .read_pages(batch)
            .map_err(Error::backend("reading guest memory"))?;
        for (page, content) in batch.iter().zip(bytes.as_chunks::<PAGE>().0) {
            store.set(*page, content);
        }
    }
    Ok(store)
}

/// What the machine holds that a snapshot is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// New: its memory is zero and it never ran.
    Fresh,
    /// It may have run: memory is compared first, nested state dropped before the rest is set.
    Used,
}

/// Puts a snapshot into a machine of the same size: memory, then each vCPU's state, nested state
/// last (see [`nvmx_core::x86::ownership::RESTORE_ORDER`]). If anything is refused, the machine is
/// put back as it was.
pub fn restore(vm: &mut dyn Vm, snapshot: &Snapshot, target: Target) -> Result<()> {
    check_fit(vm, snapshot)?;
    let before = capture_vcpus(vm)?;
    let mut undo = Vec::new();
    let outcome = write_memory(vm, snapshot, target, &mut undo)
        .and_then(|()| restore_vcpus(vm, &snapshot.vcpus, &before));
    let Err(error) = outcome else { return Ok(()) };
    let put_back = undo
        .iter()
        .try_for_each(|(page, old)| {
            vm.write_memory(L1Phys(page * PAGE_SIZE), &old[..])
                .map_err(Error::backend("putting memory back"))
        })
        .and_then(|()| {
            let now = capture_vcpus(vm)?;
            restore_vcpus(vm, &before, &now)
        });
    match put_back {
        Ok(()) => Err(error),
        Err(second) => Err(Error::Unfit(format!(
            "{error}; and the machine could not be put back as it was: {second}"
        ))),
    }
}

fn check_fit(vm: &mut dyn Vm, snapshot: &Snapshot) -> Result<()> {
    if vm.vcpu_count() != snapshot.vcpus.len() {
        return Err(Error::Unfit(format!(
            "the snapshot has {} vCPUs, the machine {}",
            snapshot.vcpus.len(),
            vm.vcpu_count()
        )));
    }
    if let Some(memory) = &snapshot.memory
        && memory.memory_size() != vm.memory_size()
    {
        return Err(Error::Unfit(format!(
            "the snapshot has {} bytes of memory, the machine {}; create it with the same --memory",
            memory.memory_size(),
            vm.memory_size()
        )));
    }
    if snapshot
        .vcpus
        .iter()
        .any(|vcpu| vcpu.nested.as_ref().is_some_and(|n| !is_none(n)))
    {
        vm.capabilities()
            .require(Capability::NestedVmx)
            .map_err(Error::backend("the snapshot holds nested state"))?;
    }
    Ok(())
}

/// Whether nested state says that VMX is not in use at all.
fn is_none(nested: &NestedState) -> bool {
    *nested == NestedState::default()
}

fn write_memory(
    vm: &mut dyn Vm,
    snapshot: &Snapshot,
    target: Target,
    undo: &mut Vec<(u64, Box<[u8; PAGE]>)>,
) -> Result<()> {
    let Some(memory) = &snapshot.memory else {
        return Ok(());
    };
    let mut write = |vm: &mut dyn Vm, page: u64, old: &[u8; PAGE]| {
        undo.push((page, Box::new(*old)));
        vm.write_memory(L1Phys(page * PAGE_SIZE), memory.page(page))
            .map_err(Error::backend(format!("writing guest page {page:#x}")))
    };
    if target == Target::Fresh {
        return memory
            .index()
            .iter()
            .try_for_each(|&(page, _)| write(vm, page, &[0; PAGE]));
    }
    for start in (0..memory.page_count()).step_by(BATCH as usize) {
        let pages: Vec<u64> = (start..memory.page_count().min(start + BATCH)).collect();
        let bytes = vm
            .read_pages(&pages)
            .map_err(Error::backend("reading guest memory"))?;
        for (page, old) in pages.into_iter().zip(bytes.as_chunks::<PAGE>().0) {
            if old != memory.page(page) {
                write(vm, page, old)?;
            }
        }
    }
    Ok(())
}

fn restore_vcpus(vm: &mut dyn Vm, wanted: &[VcpuSnapshot], now: &[VcpuSnapshot]) -> Result<()> {
    for (index, (wanted, now)) in wanted.iter().zip(now).enumerate() {
        let vcpu = vm.vcpu(index);
        let nested_failed = |e| Error::backend(format!("setting nested state of vCPU {index}"))(e);
        // VMX capability MSRs answer EBUSY while VMXON is in effect: leave VMX operation first.
        if now.nested.as_ref().is_some_and(|nested| !is_none(nested)) {
            vcpu.set_nested_state(&NestedState::default())
                .map_err(nested_failed)?;
        }
        vcpu.set_state(&without_what_is_equal(&wanted.cpu, &now.cpu))
            .map_err(Error::backend(format!("setting the state of vCPU {index}")))?;
        if let Some(nested) = &wanted.nested
            && (!is_none(nested) || now.nested.is_some())
        {
            vcpu.set_nested_state(nested).map_err(nested_failed)?;
        }
    }
    Ok(())
}

/// KVM refuses some parts after the first run even if they do not change (CPUID with any
/// difference in order, VMX capability MSRs): leave out what is there already.
fn without_what_is_equal(wanted: &CpuState, now: &CpuState) -> CpuState {
    let mut set = wanted.clone();
    if wanted.cpuid == now.cpuid {
        set.cpuid = None;
    }
    if wanted.tsc_khz == now.tsc_khz {
        set.tsc_khz = None;
    }
    if let (Some(wanted), Some(now)) = (&mut set.msrs, &now.msrs) {
        use nvmx_core::x86::msr::{IA32_VMX_BASIC, IA32_VMX_EXIT_CTLS2};
        wanted.retain(|number, value| {
            !(IA32_VMX_BASIC..=IA32_VMX_EXIT_CTLS2).contains(number)
                || now.get(number) != Some(value)
        });
    }
    set
}
