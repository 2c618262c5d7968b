//! KVM_GET_SUPPORTED_CPUID and KVM_GET_EMULATED_CPUID (kvm_dev_ioctl_get_cpuid).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::processor::Offered;
use crate::shim::Shim;
use crate::vcpu::cpuid::ENTRIES;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use nvmx_abi::cpuid;
use nvmx_core::x86::cpuid::CpuidEntry;

/// KVM_GET_SUPPORTED_CPUID.
pub fn supported(shim: &Shim, user: User, argument: u64) -> Answer {
    let room = room(user, argument)?;
    let offered = Offered::new(shim.settings().profile);
    let entries: Vec<_> = offered.cpuid.iter().map(cpuid::kernel_entry).collect();
    answer(user, argument, room, &entries)
}

/// KVM_GET_EMULATED_CPUID: MOVBE and RDPID, which KVM can do in software on any processor. Padding must be zero.
pub fn emulated(_: &Shim, user: User, argument: u64) -> Answer {
    let room = room(user, argument)?;
    let given: Vec<kvm_cpuid_entry2> = user
        .read_all(argument.wrapping_add(ENTRIES), room)
        .map_err(|_| Errno::EINVAL)?;
    if given.iter().any(|entry| entry.padding != [0; 3]) {
        return Err(Errno::EINVAL);
    }
    const MOVBE: u32 = 1 << 22;
    const RDPID: u32 = 1 << 22;
    let leaf = |leaf, eax, ecx| CpuidEntry {
        leaf,
        subleaf_significant: leaf == 7,
        eax,
        ecx,
        ..CpuidEntry::default()
    };
    let entries = [leaf(0, 7, 0), leaf(1, 0, MOVBE), leaf(7, 0, RDPID)];
    let entries: Vec<_> = entries.iter().map(cpuid::kernel_entry).collect();
    answer(user, argument, room, &entries)
}

fn room(user: User, argument: u64) -> Result<usize, Errno> {
    let [room, _]: [u32; 2] = user.read(argument)?;
    if room < 1 {
        return Err(Errno::E2BIG);
    }
    Ok((room as usize).min(KVM_MAX_CPUID_ENTRIES))
}

fn answer(user: User, argument: u64, room: usize, entries: &[kvm_cpuid_entry2]) -> Answer {
    if entries.len() > room {
        return Err(Errno::E2BIG);
    }
    user.write_all(argument.wrapping_add(ENTRIES), entries)?;
    user.write(argument, &(entries.len() as u32))?;
    Ok(0)
}
