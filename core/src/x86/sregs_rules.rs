//! Which segment and control registers user space may set (Linux `arch/x86/kvm/regs.c`,
//! `kvm_is_valid_sregs`): far fewer rules than a guest's own writes meet.

use super::Sregs;
use super::control::{cr0, cr4, efer};
use super::cr_write::{allowed_cr4, cr0_is_fixed, cr4_is_fixed};
use crate::cpu::Cpu;
use crate::msr::host;
use crate::x86::AccessRights;

/// The bits of EFER that there are. A guest without a CPUID yet may have them all: small programs set up long
/// mode so.
const EFER: u64 = efer::SCE | efer::LME | efer::LMA | efer::NXE;

/// Whether `KVM_SET_SREGS` takes them. `most_cr4` has the bits of CR4 that the kernel offers to any guest;
/// those of this guest count once it has a CPUID.
#[must_use]
pub fn are_valid(cpu: &Cpu, sregs: &Sregs, most_cr4: u64) -> bool {
    mode_is_valid(cpu, sregs)
        && cr4_is_valid(cpu, sregs.cr4, most_cr4)
        && cr0_is_valid(cpu, sregs.cr0)
        && (cpu.model.cpuid.is_empty() && sregs.efer & !EFER == 0
            || host::efer_is_valid(cpu, sregs.efer))
        && host::apic_base_is_valid(cpu, sregs.apic_base)
}

fn mode_is_valid(cpu: &Cpu, sregs: &Sregs) -> bool {
    let has = |bits| sregs.efer & bits != 0;
    if has(efer::LME) && sregs.cr0 & cr0::PG != 0 {
        let width = cpu.model.physical_address_width.max(36);
        sregs.cr4 & cr4::PAE != 0 && has(efer::LMA) && sregs.cr3 >> width.min(52) == 0
    } else {
        !has(efer::LMA) && !sregs.cs.ar.contains(AccessRights::LONG)
    }
}

fn cr0_is_valid(cpu: &Cpu, value: u64) -> bool {
    let needs = |bit, other| value & bit == 0 || value & other != 0;
    value >> 32 == 0
        && needs(cr0::NW, cr0::CD)
        && needs(cr0::PG, cr0::PE)
        && cr0_is_fixed(cpu, value)
}

fn cr4_is_valid(cpu: &Cpu, value: u64, most: u64) -> bool {
    let cpuid = &cpu.model.cpuid;
    value & !most == 0
        && (cpuid.is_empty() || value & !allowed_cr4(cpuid) == 0)
        && (value & cr4::VMXE == 0 || !cpu.smm)
        && cr4_is_fixed(cpu, value)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x86::cpuid::CpuidEntry;
    use std::sync::Arc;

    const MOST: u64 = cr4::PAE | cr4::VMXE | cr4::PSE | cr4::SMEP;

    /// A change that breaks a rule, or does not.
    type Change = fn(&mut Cpu, &mut Sregs);

    #[test]
    fn each_rule_can_be_broken() {
        let rows: &[(&str, bool, Change)] = &[
            ("as it is", true, |_, _| {}),
            ("no paging at all", true, |_, s| {
                (s.cr0, s.efer) = (cr0::PE, 0);
                s.cs.ar = AccessRights::empty();
            }),
            ("long mode without PAE", false, |_, s| s.cr4 = 0),
            ("long mode without LMA", false, |_, s| s.efer = efer::LME),
            ("CR3 beyond the width", false, |_, s| s.cr3 = 1 << 40),
            ("LMA without paging", false, |_, s| s.cr0 = cr0::PE),
            ("64-bit code without long mode", false, |_, s| {
                (s.cr0, s.efer) = (cr0::PE, 0);
            }),
            ("CR0 of 33 bits", false, |_, s| s.cr0 |= 1 << 32),
            ("NW without CD", false, |_, s| s.cr0 |= cr0::NW),
            ("PG without PE", false, |_, s| s.cr0 = cr0::PG),
            ("CR4 that the kernel lacks", false, |_, s| {
                s.cr4 |= cr4::SMAP
            }),
            ("CR4 that this guest lacks", false, |_, s| {
                s.cr4 |= cr4::SMEP
            }),
            ("the same before there is a CPUID", true, |c, s| {
                Arc::make_mut(&mut c.model).cpuid.clear();
                (s.cr0, s.efer, s.cr4) = (cr0::PE, 0, cr4::SMEP);
                s.cs.ar = AccessRights::empty();
            }),
            ("VMXE in SMM", false, |c, s| {
                c.smm = true;
                s.cr4 |= cr4::VMXE;
            }),
            ("an unknown bit of EFER", false, |_, s| s.efer |= 1 << 20),
            ("x2APIC mode while disabled", false, |_, s| {
                s.apic_base = 1 << 10
            }),
            ("the APIC at zero", true, |_, s| s.apic_base = 1 << 11),
        ];
        for (what, valid, change) in rows {
            let mut cpu = Cpu::default();
            let model = Arc::make_mut(&mut cpu.model);
            model.physical_address_width = 40;
            model.cpuid = vec![
                CpuidEntry {
                    leaf: 1,
                    ecx: 1 << 5 | 1 << 21,
                    ..CpuidEntry::default()
                },
                CpuidEntry {
                    leaf: 0x8000_0001,
                    edx: 1 << 29 | 1 << 20,
                    ..CpuidEntry::default()
                },
            ];
            let mut sregs = Sregs {
                cr0: cr0::PE | cr0::PG,
                cr4: cr4::PAE,
                efer: efer::LME | efer::LMA,
                apic_base: 0xfee0_0900,
                ..Sregs::default()
            };
            sregs.cs.ar = AccessRights::LONG;
            change(&mut cpu, &mut sregs);
            assert_eq!(are_valid(&cpu, &sregs, MOST), *valid, "{what}");
        }
    }
}
