//! Writes of control registers: each rule a row.

use super::*;
use crate::addr::L1Phys;
use crate::memory::VecMemory;
use crate::x86::AccessRights;
use crate::x86::cpuid::CpuidEntry;
use std::sync::Arc;

const PROTECTED: u64 = cr0::PE | cr0::NE | cr0::ET;
const PAGED: u64 = PROTECTED | cr0::PG;

/// A processor with VMX, SMEP, SMAP, PCID and LA57; width 40.
fn cpu() -> Cpu {
    let mut cpu = Cpu::default();
    let model = Arc::make_mut(&mut cpu.model);
    model.physical_address_width = 40;
    let leaf = |leaf, ebx, ecx| CpuidEntry {
        leaf,
        ebx,
        ecx,
        ..CpuidEntry::default()
    };
    model.cpuid = vec![
        leaf(1, 0, 1 << 5 | 1 << 17),
        leaf(7, 1 << 7 | 1 << 20, 1 << 16),
    ];
    let mut set =
        |number: u32, value| model.vmx_msrs[(number - msr::IA32_VMX_BASIC) as usize] = value;
    set(msr::IA32_VMX_CR0_FIXED0, cr0::PE | cr0::NE | cr0::PG);
    set(msr::IA32_VMX_CR0_FIXED1, 0xffff_ffff);
    set(msr::IA32_VMX_CR4_FIXED0, cr4::VMXE);
    set(msr::IA32_VMX_CR4_FIXED1, !0);
    cpu.sregs.cr0 = PROTECTED;
    cpu
}

fn long(cpu: &mut Cpu) {
    cpu.sregs.cr0 = PAGED;
    cpu.sregs.cr4 |= cr4::PAE;
    cpu.sregs.efer = efer::LME | efer::LMA;
}

type Change = fn(&mut Cpu);

fn check(rows: &[(Change, u8, u64, bool)]) {
    let memory = VecMemory::new(0x2000);
    for (i, (change, cr, value, accepted)) in rows.iter().enumerate() {
        let mut cpu = cpu();
        change(&mut cpu);
        let before = cpu.sregs;
        let result = match cr {
            0 => write_cr0(&mut cpu, &memory, None, *value),
            3 => write_cr3(&mut cpu, &memory, None, *value),
            _ => write_cr4(&mut cpu, &memory, None, *value),
        };
        assert_eq!(result.is_ok(), *accepted, "row {i}: {result:?}");
        if !accepted {
            assert_eq!(result, Err(GP));
            assert_eq!(cpu.sregs, before, "row {i} changed something");
        }
    }
}

#[test]
fn cr0_rules() {
    let plain: Change = |_| {};
    let vmx: Change = |c| {
        long(c);
        c.vmx.vmxon = Some(L1Phys(0x1000));
    };
    check(&[
        (plain, 0, PAGED, true),
        (plain, 0, PROTECTED | 1 << 32, false),
        (plain, 0, PROTECTED | 1 << 20, true), // ignored
        (plain, 0, cr0::PG, false),
        (plain, 0, PROTECTED | cr0::NW, false),
        (plain, 0, PROTECTED | cr0::NW | cr0::CD, true),
        (|c| c.sregs.cr4 = cr4::CET, 0, PROTECTED, false),
        (|c| c.sregs.efer = efer::LME, 0, PAGED, false), // without PAE
        (
            |c| (c.sregs.efer, c.sregs.cr4) = (efer::LME, cr4::PAE),
            0,
            PAGED,
            true,
        ),
        (
            |c| {
                (c.sregs.efer, c.sregs.cr4) = (efer::LME, cr4::PAE);
                c.sregs.cs.ar = AccessRights::LONG;
            },
            0,
            PAGED,
            false,
        ),
        (long, 0, PROTECTED, true), // from compatibility mode
        (
            |c| {
                long(c);
                c.sregs.cs.ar = AccessRights::LONG;
            },
            0,
            PROTECTED,
            false,
        ),
        (
            |c| {
                long(c);
                c.sregs.cr4 |= cr4::PCIDE;
            },
            0,
            PROTECTED,
            false,
        ),
        (vmx, 0, PAGED | cr0::WP, true),
        (vmx, 0, PAGED & !cr0::NE, false),
        (vmx, 0, PROTECTED, false),
    ]);
}

#[test]
fn an_unrestricted_l2_may_leave_paging() {
    let memory = VecMemory::new(0x1000);
    for (secondary, accepted) in [(0, false), (1 << 7, true)] {
        let mut cpu = cpu();
        long(&mut cpu);
        cpu.vmx.vmxon = Some(L1Phys(0x1000));
        cpu.vmx.guest_mode = true;
        let vmcs12 = &mut cpu.vmx.vmcs12;
        vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << 31);
        vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, secondary);
        let result = write_cr0(&mut cpu, &memory, None, PROTECTED & !cr0::PE);
        assert_eq!(result.is_ok(), accepted);
    }
}

#[test]
fn bits_that_l1_owns_stay() {
    let memory = VecMemory::new(0x1000);
    let mut cpu = cpu();
    cpu.sregs.cr0 |= cr0::TS;
    cpu.sregs.cr4 = cr4::VMXE;
    cpu.vmx.vmxon = Some(L1Phys(0x1000));
    long(&mut cpu);
    cpu.sregs.cr0 |= cr0::TS;
    cpu.vmx.guest_mode = true;
    cpu.vmx
        .vmcs12
        .set(Field::CR0_GUEST_HOST_MASK, cr0::TS | cr0::NE);
    cpu.vmx.vmcs12.set(Field::CR4_GUEST_HOST_MASK, cr4::VMXE);
    write_cr0(&mut cpu, &memory, None, cr0::PE | cr0::PG).unwrap();
    assert_eq!(cpu.sregs.cr0, PAGED | cr0::TS);
    write_cr4(&mut cpu, &memory, None, cr4::PAE).unwrap();
    assert_eq!(cpu.sregs.cr4, cr4::PAE | cr4::VMXE);
}

#[test]
fn cr3_and_cr4_rules() {
    let plain: Change = |_| {};
    check(&[
        (plain, 3, 0xff_ffff_f000, true),
        (plain, 3, 1 << 40, false),
        (long, 3, 1 << 63, false),
        (
            |c| {
                long(c);
                c.sregs.cr4 |= cr4::PCIDE;
            },
            3,
            1 << 63 | 5,
            true,
        ),
        (plain, 4, cr4::VMXE | cr4::SMEP | cr4::PAE, true),
        (plain, 4, 1 << 15, false),
        (plain, 4, 1 << 33, false),
        (plain, 4, cr4::OSXSAVE, false), // CPUID lacks it
        (|c| c.smm = true, 4, cr4::VMXE, false),
        (long, 4, 0, false), // PAE
        (long, 4, cr4::PAE | cr4::LA57, false),
        (plain, 4, cr4::LA57, true),
        (plain, 4, cr4::PCIDE, false), // outside IA-32e mode
        (long, 4, cr4::PAE | cr4::PCIDE, true),
        (
            |c| {
                long(c);
                c.sregs.cr3 = 8;
            },
            4,
            cr4::PAE | cr4::PCIDE,
            false,
        ),
        (|c| c.vmx.vmxon = Some(L1Phys(0)), 4, 0, false),
        (|c| c.vmx.vmxon = Some(L1Phys(0)), 4, cr4::VMXE, true),
    ]);
}

#[test]
fn long_mode_is_entered_and_left() {
    let memory = VecMemory::new(0x1000);
    let mut cpu = cpu();
    (cpu.sregs.cr4, cpu.sregs.efer) = (cr4::PAE, efer::LME);
    let effect = write_cr0(&mut cpu, &memory, None, PAGED).unwrap();
    assert_eq!(
        (cpu.sregs.efer, effect),
        (efer::LME | efer::LMA, CrEffect::ALL)
    );
    write_cr0(&mut cpu, &memory, None, PROTECTED).unwrap();
    assert_eq!(cpu.sregs.efer, efer::LME);
}

#[test]
fn pdptes_are_loaded_and_checked() {
    let memory = VecMemory::new(0x2000);
    let mut cpu = cpu();
    cpu.sregs.cr4 = cr4::PAE;
    cpu.sregs.cr3 = 0x1020;
    let put = |i: u64, value| memory.write_u64(L1Phys(0x1020 + i * 8), value).unwrap();
    put(0, 0x5001);
    put(2, 0x1e6); // not present: reserved bits do not count
    for (entry, accepted) in [
        (0x7001, true),
        (0x7003, false),
        (0x7021, false),
        (0x7001 | 1 << 40, false),
        (0x7001 | 1 << 63, false),
        (0x7e19, true),
    ] {
        put(3, entry);
        let mut cpu = cpu.clone();
        let result = write_cr0(&mut cpu, &memory, None, PAGED);
        assert_eq!(result.is_ok(), accepted, "{entry:#x}");
        assert_eq!(cpu.sregs.pdptrs_valid, accepted);
        if accepted {
            assert_eq!(cpu.sregs.pdptrs, [0x5001, 0, 0x1e6, entry]);
        }
    }
    // Beyond RAM: #GP, as KVM has it.
    cpu.sregs.cr0 = PAGED;
    assert_eq!(write_cr3(&mut cpu, &memory, None, 0x10_0000), Err(GP));
    // Through EPT: a violation without a linear address.
    let ept = Ept::new(0x1e, u64::MAX, 40);
    let result = write_cr3(&mut cpu, &memory, Some(&ept), 0x1020);
    let violation = EptFault::Violation {
        guest_physical: L2Phys(0x1020),
        guest_linear: None,
        qualification: 1,
        convertible: true,
    };
    assert_eq!(result, Err(CrFault::Ept(violation)));
    // With accessed and dirty flags the load is a read all the same.
    let ept = Ept::new(0x5e, u64::MAX, 40);
    let result = write_cr3(&mut cpu, &memory, Some(&ept), 0x1020);
    assert_eq!(result, Err(CrFault::Ept(violation)));
}

#[test]
fn what_a_write_makes_stale() {
    let memory = VecMemory::new(0x1000);
    let mut cpu = cpu();
    long(&mut cpu);
    let cr3 = write_cr3(&mut cpu, &memory, None, 0x5000).unwrap();
    assert_eq!((cr3.flush, cr3.flush_global), (true, false));
    let quiet = write_cr0(&mut cpu, &memory, None, PAGED | cr0::TS).unwrap();
    assert_eq!(quiet, CrEffect::default());
    let wp = write_cr0(&mut cpu, &memory, None, PAGED | cr0::WP).unwrap();
    assert_eq!(wp, CrEffect::ALL);
    let pge = write_cr4(&mut cpu, &memory, None, cr4::PAE | cr4::PGE).unwrap();
    assert!(pge.flush_global);
    cpu.sregs.cr3 = 0;
    write_cr4(&mut cpu, &memory, None, cr4::PAE | cr4::PCIDE).unwrap();
    let kept = write_cr3(&mut cpu, &memory, None, 1 << 63 | 0x5001).unwrap();
    assert!(!kept.flush);
    assert_eq!(cpu.sregs.cr3, 0x5001);
}

#[test]
fn lmsw_clts_and_cr8() {
    let memory = VecMemory::new(0x1000);
    let mut cpu = cpu();
    lmsw(&mut cpu, &memory, None, 0xfff8).unwrap();
    assert_eq!(cpu.sregs.cr0, PROTECTED | cr0::TS, "PE stays");
    clts(&mut cpu);
    assert_eq!(cpu.sregs.cr0, PROTECTED);
    cpu.sregs.cr0 = cr0::NE | cr0::ET;
    lmsw(&mut cpu, &memory, None, 1).unwrap();
    assert_eq!(cpu.sregs.cr0, PROTECTED);
    assert_eq!(write_cr8(&mut cpu, 16), Err(Exception::GENERAL_PROTECTION));
    assert_eq!(write_cr8(&mut cpu, 15), Ok(()));
    assert_eq!(cpu.sregs.cr8, 15);
}

#[test]
fn canonical_addresses() {
    let rows = [
        (0x0000_7fff_ffff_ffff, 48, true),
        (0x0000_8000_0000_0000, 48, false),
        (0xffff_8000_0000_0000, 48, true),
        (0xffff_7fff_ffff_ffff, 48, false),
        (0x00ff_ffff_ffff_ffff, 57, true),
        (0x0100_0000_0000_0000, 57, false),
        (u64::MAX, 57, true),
        (0x1234_5678_9abc_def0, 64, true),
    ];
    for (address, width, canonical) in rows {
        assert_eq!(is_canonical(address, width), canonical, "{address:#x}");
    }
}
