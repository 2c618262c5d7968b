//! CPUID of a vCPU: KVM_SET_CPUID, KVM_SET_CPUID2, KVM_GET_CPUID2 (arch/x86/kvm/cpuid.c).

use crate::errno::{Answer, Errno};
use crate::os::User;
use crate::vcpu::VcpuContext;
use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use nvmx_abi::cpuid;
use nvmx_core::profiles::cr4_fixed1;
use nvmx_core::x86::control::cr4;
use nvmx_core::x86::{CpuState, msr, xsave};

/// `struct kvm_cpuid2` and `kvm_cpuid`: the number of entries, padding, the entries.
pub const ENTRIES: u64 = 8;

/// KVM_SET_CPUID: `struct kvm_cpuid_entry` has no subleaves.
pub fn set_older(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let count = count(user, argument)?;
    // Leaf, EAX to EDX, padding.
    let entries = user.read_all::<[u32; 6]>(argument + ENTRIES, count)?;
    let entries = entries
        .into_iter()
        .map(|[function, eax, ebx, ecx, edx, _]| kvm_cpuid_entry2 {
            function,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        });
    put(context, entries.collect())
}

/// KVM_SET_CPUID2.
pub fn set(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let count = count(user, argument)?;
    let entries = user.read_all(argument.wrapping_add(ENTRIES), count)?;
    put(context, entries)
}

fn count(user: User, argument: u64) -> Result<usize, Errno> {
    let [count, _]: [u32; 2] = user.read(argument)?;
    if count > KVM_MAX_CPUID_ENTRIES as u32 {
        return Err(Errno::E2BIG);
    }
    Ok(count as usize)
}

/// Sets CPUID. Once the vCPU has run it can be set to what it is (`kvm_cpuid_check_equal`).
fn put(context: &mut VcpuContext<'_>, mut entries: Vec<kvm_cpuid_entry2>) -> Answer {
    bring_up_to_date(context, &mut entries);
    if context.record().has_run {
        let mut before = context.record().cpuid.clone();
        bring_up_to_date(context, &mut before);
        return if equal(&before, &entries) {
            Ok(0)
        } else {
            Err(Errno::EINVAL)
        };
    }
    // `kvm_check_cpuid`.
    let width = find(&entries, 0x8000_0008, 0).map_or(0, |entry| entry.eax >> 8 & 0xff);
    if !matches!(width, 0 | 48 | 57) {
        return Err(Errno::EINVAL);
    }
    let ours: Vec<_> = entries.iter().map(cpuid::entry).collect();
    // `nested_vmx_cr_fixed1_bits_update`.
    let fixed = (msr::IA32_VMX_CR4_FIXED1, cr4_fixed1(&ours));
    context.set_state(&CpuState {
        cpuid: Some(ours),
        msrs: Some([fixed].into()),
        ..CpuState::default()
    })?;
    context.record().cpuid = entries;
    Ok(0)
}

/// KVM_GET_CPUID2.
pub fn get(context: &mut VcpuContext<'_>, user: User, argument: u64) -> Answer {
    let [room, padding]: [u32; 2] = user.read(argument)?;
    let mut entries = context.record().cpuid.clone();
    if (room as usize) < entries.len() {
        return Err(Errno::E2BIG);
    }
    bring_up_to_date(context, &mut entries);
    user.write_all(argument.wrapping_add(ENTRIES), &entries)?;
    user.write(argument, &[entries.len() as u32, padding])?;
    Ok(0)
}

fn equal(before: &[kvm_cpuid_entry2], after: &[kvm_cpuid_entry2]) -> bool {
    let key = |e: &kvm_cpuid_entry2| (e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx);
    before.iter().map(key).eq(after.iter().map(key))
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    entries.iter().find(|entry| is(entry, function, index))
}

fn is(entry: &kvm_cpuid_entry2, function: u32, index: u32) -> bool {
    let significant = entry.flags & kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
    entry.function == function && (!significant || entry.index == index)
}

/// Bits that follow from registers (`__kvm_update_cpuid_runtime`): OSXSAVE, APIC, OSPKE, the size of the XSAVE
/// area.
fn bring_up_to_date(context: &mut VcpuContext<'_>, entries: &mut [kvm_cpuid_entry2]) {
    const OSXSAVE: u32 = 1 << 27;
    const APIC: u32 = 1 << 9;
    const APIC_ENABLED: u64 = 1 << 11;
    let Ok(state) = context.state(nvmx_core::vcpu::Parts::Registers) else {
        return;
    };
    let sregs = state.sregs.unwrap_or_default();
    let has_xsave = context.vm.offered.has(1, 2, 26);
    let put = |register: &mut u32, bit: u32, on: bool| {
        *register = *register & !bit | if on { bit } else { 0 };
    };
    for entry in entries {
        if is(entry, 1, 0) {
            if has_xsave {
                put(&mut entry.ecx, OSXSAVE, sregs.cr4 & cr4::OSXSAVE != 0);
            }
            put(&mut entry.edx, APIC, sregs.apic_base & APIC_ENABLED != 0);
        } else if is(entry, 0xd, 0) {
            // x87 and SSE alone have state here.
            entry.ebx = xsave::AREA as u32;
        }
    }
}
