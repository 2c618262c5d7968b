//! What the tests of VMX start from: a processor in 64-bit mode in VMX root operation, and a vmcs12
//! for a 64-bit L2 that breaks no rule.

use crate::addr::L1Phys;
use crate::cpu::{Cpu, Model};
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::capability::KVM_6_1_ICELAKE;
use crate::vmx::controls::{EntryControls, ExitControls, PinBased, Primary, Secondary};
use crate::vmx::{Field, Vmcs12};
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::cpuid::CpuidEntry;
use crate::x86::{AccessRights, Segment};
use std::sync::Arc;

pub(crate) const VMXON_REGION: L1Phys = L1Phys(0x1000);
pub(crate) const VMCS: L1Phys = L1Phys(0x2000);
pub(crate) const OTHER_VMCS: L1Phys = L1Phys(0x3000);
pub(crate) const SHADOW_VMCS: L1Phys = L1Phys(0x4000);
/// A page of zeros: bitmaps, MSR lists.
pub(crate) const FREE_PAGE: L1Phys = L1Phys(0x5000);
pub(crate) const VIRTUAL_APIC: L1Phys = L1Phys(0x6000);
pub(crate) const EPT_ROOT: u64 = 0x8000;
pub(crate) const MEMORY_SIZE: usize = 0x10000;
pub(crate) const REVISION: u32 = 0x11e5_7ed0;
pub(crate) const SHADOW_BIT: u32 = 1 << 31;

pub(crate) const L1_RIP: u64 = 0x10_0000;
pub(crate) const HOST_RIP: u64 = 0xffff_8000_0010_0000;
pub(crate) const L2_RIP: u64 = 0x40_0000;

/// KVM's profile with 40 and 48 bits of addresses, NX, long mode and a version-2 PMU.
pub(crate) fn model() -> Model {
    Model {
        cpuid: vec![
            CpuidEntry {
                leaf: 0xa,
                eax: 0x0000_0402,
                edx: 3,
                ..CpuidEntry::default()
            },
            CpuidEntry {
                leaf: 0x8000_0001,
                edx: 1 << 20 | 1 << 29,
                ..CpuidEntry::default()
            },
        ],
        vmx_msrs: KVM_6_1_ICELAKE,
        physical_address_width: 40,
        linear_address_width: 48,
        ..Model::default()
    }
}

/// A model that allows every control that there is, so that each rule can be broken alone.
pub(crate) fn permissive_model() -> Model {
    let mut model = model();
    // The TRUE MSRs of pin-based, primary, exit and entry controls, and the secondary one; bit 29 of
    // the latter is no control.
    for msr in [0xd, 0xe, 0xf, 0x10] {
        model.vmx_msrs[msr] |= 0xffff_ffff << 32;
    }
    model.vmx_msrs[0xb] = 0xdfff_ffff << 32;
    // Shutdown, too.
    model.vmx_msrs[5] |= 1 << 7;
    model
}

pub(crate) fn memory() -> VecMemory {
    let memory = VecMemory::new(MEMORY_SIZE);
    for region in [VMXON_REGION, VMCS, OTHER_VMCS] {
        memory.write_u32(region, REVISION).unwrap();
    }
    memory
        .write_u32(SHADOW_VMCS, REVISION | SHADOW_BIT)
        .unwrap();
    memory
}

fn code() -> AccessRights {
    AccessRights::from_bits_retain(0xa09b)
}

fn data() -> AccessRights {
    AccessRights::from_bits_retain(0xc093)
}

/// L1 at CPL 0 in 64-bit mode, CR4.VMXE set, not in VMX operation.
pub(crate) fn cpu() -> Cpu {
    let mut cpu = Cpu {
        model: Arc::new(model()),
        ..Cpu::default()
    };
    cpu.sregs.cr0 = cr0::PE | cr0::NE | cr0::PG | cr0::ET;
    cpu.sregs.cr3 = 0x9000;
    cpu.sregs.cr4 = cr4::PAE | cr4::VMXE;
    cpu.sregs.efer = efer::LME | efer::LMA | efer::NXE;
    let segment = |selector, ar| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar,
    };
    cpu.sregs.cs = segment(8, code());
    cpu.sregs.ss = segment(16, data());
    cpu.regs.rip = L1_RIP;
    cpu.regs.rflags = rflags::FIXED;
    cpu
}

/// [`cpu`] in VMX root operation with [`valid_vmcs12`] current.
pub(crate) fn cpu_with_vmcs() -> Cpu {
    let mut cpu = cpu();
    cpu.vmx.vmxon = Some(VMXON_REGION);
    cpu.vmx.current = Some(VMCS);
    cpu.vmx.vmcs12 = valid_vmcs12();
    cpu
}

/// A vmcs12 for a 64-bit L1 and a 64-bit L2 with EPT and VPID, that breaks no rule.
pub(crate) fn valid_vmcs12() -> Vmcs12 {
    let mut vmcs12 = Vmcs12::new();
    for (fields, value) in [
        (Field::PIN_BASED_VM_EXEC_CONTROL, {
            0x16 | PinBased::EXTERNAL_INTERRUPT_EXITING.bits()
        }),
        (Field::CPU_BASED_VM_EXEC_CONTROL, {
            0x0400_6172 | (Primary::HLT_EXITING | Primary::ACTIVATE_SECONDARY_CONTROLS).bits()
        }),
        (Field::SECONDARY_VM_EXEC_CONTROL, {
            (Secondary::ENABLE_EPT | Secondary::ENABLE_VPID).bits()
        }),
        (Field::VM_EXIT_CONTROLS, {
            0x3_6dfb
                | (ExitControls::HOST_ADDRESS_SPACE_SIZE
                    | ExitControls::LOAD_EFER
                    | ExitControls::SAVE_EFER
                    | ExitControls::SAVE_DEBUG_CONTROLS)
                    .bits()
        }),
        (Field::VM_ENTRY_CONTROLS, {
            0x11fb
                | (EntryControls::IA32E_MODE_GUEST
                    | EntryControls::LOAD_EFER
                    | EntryControls::LOAD_DEBUG_CONTROLS)
                    .bits()
        }),
        (Field::GUEST_CS_AR_BYTES, code().bits()),
        (Field::GUEST_SS_AR_BYTES, data().bits()),
        (Field::GUEST_DS_AR_BYTES, data().bits()),
        (Field::GUEST_ES_AR_BYTES, data().bits()),
        (Field::GUEST_FS_AR_BYTES, data().bits()),
        (Field::GUEST_GS_AR_BYTES, data().bits()),
        (Field::GUEST_TR_AR_BYTES, 0x8b),
        (Field::GUEST_LDTR_AR_BYTES, 0x82),
    ] {
        vmcs12.set(fields, u64::from(value));
    }
    for (field, value) in [
        (Field::VIRTUAL_PROCESSOR_ID, 1),
        (Field::EPT_POINTER, EPT_ROOT | 3 << 3 | 6),
        (Field::VMCS_LINK_POINTER, u64::MAX),
        (Field::HOST_CR0, cr0::PE | cr0::NE | cr0::PG),
        (Field::HOST_CR3, 0x9000),
        (Field::HOST_CR4, cr4::PAE | cr4::VMXE),
        (Field::HOST_IA32_EFER, efer::LME | efer::LMA | efer::NXE),
        (Field::HOST_CS_SELECTOR, 8),
        (Field::HOST_SS_SELECTOR, 16),
        (Field::HOST_TR_SELECTOR, 24),
        (Field::HOST_TR_BASE, 0xffff_8000_0000_7000),
        (Field::HOST_RIP, HOST_RIP),
        (Field::HOST_RSP, 0xffff_8000_0020_0000),
        (Field::HOST_IA32_PAT, 0x0007_0406_0007_0406),
        (Field::GUEST_CR0, cr0::PE | cr0::NE | cr0::PG | cr0::ET),
        (Field::GUEST_CR3, 0xa000),
        (Field::GUEST_CR4, cr4::PAE | cr4::VMXE),
        (Field::GUEST_IA32_EFER, efer::LME | efer::LMA),
        (Field::GUEST_IA32_PAT, 0x0007_0406_0007_0406),
        (Field::GUEST_DR7, 0x400),
        (Field::GUEST_CS_SELECTOR, 8),
        (Field::GUEST_SS_SELECTOR, 16),
        (Field::GUEST_DS_SELECTOR, 16),
        (Field::GUEST_ES_SELECTOR, 16),
        (Field::GUEST_FS_SELECTOR, 16),
        (Field::GUEST_GS_SELECTOR, 16),
        (Field::GUEST_TR_SELECTOR, 24),
        (Field::GUEST_LDTR_SELECTOR, 32),
        (Field::GUEST_CS_LIMIT, 0xffff_ffff),
        (Field::GUEST_SS_LIMIT, 0xffff_ffff),
        (Field::GUEST_DS_LIMIT, 0xffff_ffff),
        (Field::GUEST_ES_LIMIT, 0xffff_ffff),
        (Field::GUEST_FS_LIMIT, 0xffff_ffff),
        (Field::GUEST_GS_LIMIT, 0xffff_ffff),
        (Field::GUEST_TR_LIMIT, 0x67),
        (Field::GUEST_LDTR_LIMIT, 0xffff),
        (Field::GUEST_GDTR_LIMIT, 0xffff),
        (Field::GUEST_IDTR_LIMIT, 0xffff),
        (Field::GUEST_RIP, L2_RIP),
        (Field::GUEST_RSP, 0x50_0000),
        (Field::GUEST_RFLAGS, rflags::FIXED),
    ] {
        vmcs12.set(field, value);
    }
    vmcs12
}
