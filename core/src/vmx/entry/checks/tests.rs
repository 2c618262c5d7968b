//! Every rule is broken once, from a vmcs12 that breaks none.

use super::*;
use crate::addr::L1Phys;
use crate::cpu::Model;
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::Vmcs12;
use crate::vmx::controls::{EntryControls as En, ExitControls as Ex, PinBased as Pi};
use crate::vmx::controls::{Primary as Pr, Secondary as Se, Tertiary as Te};
use crate::vmx::entry::test_support as support;
use crate::x86::control::{cr0, cr4, efer, rflags};
use std::collections::{HashMap, HashSet};

struct Case {
    vmcs12: Vmcs12,
    model: Model,
    memory: VecMemory,
    l1_long_mode: bool,
}

impl Case {
    fn new() -> Self {
        Self {
            vmcs12: support::valid_vmcs12(),
            model: support::permissive_model(),
            memory: support::memory(),
            l1_long_mode: true,
        }
    }

    fn context(&self) -> Context<'_> {
        Context {
            vmcs12: &self.vmcs12,
            model: &self.model,
            memory: &self.memory,
            current: Some(support::VMCS),
            l1_long_mode: self.l1_long_mode,
            smm: false,
        }
    }

    fn failed(&self) -> Vec<&'static str> {
        audit(&self.context()).iter().map(|f| f.rule.id).collect()
    }

    fn sdm(&mut self) -> &mut Self {
        self.model.personality = crate::cpu::Personality::Sdm;
        self
    }
    fn set(&mut self, field: Field, value: u64) -> &mut Self {
        self.vmcs12.set(field, value);
        self
    }
    fn or(&mut self, field: Field, bits: u64) -> &mut Self {
        let value = self.vmcs12.get(field) | bits;
        self.set(field, value)
    }
    fn clear(&mut self, field: Field, bits: u64) -> &mut Self {
        let value = self.vmcs12.get(field) & !bits;
        self.set(field, value)
    }
    fn pin(&mut self, c: Pi) -> &mut Self {
        self.or(Field::PIN_BASED_VM_EXEC_CONTROL, c.bits().into())
    }
    fn primary(&mut self, c: Pr) -> &mut Self {
        self.or(Field::CPU_BASED_VM_EXEC_CONTROL, c.bits().into())
    }
    fn secondary(&mut self, c: Se) -> &mut Self {
        self.or(Field::SECONDARY_VM_EXEC_CONTROL, c.bits().into())
    }
    /// A processor that has CR4.CET.
    fn cet(&mut self) -> &mut Self {
        self.model.vmx_msrs[9] |= cr4::CET;
        self
    }
    fn tertiary(&mut self, c: Te) -> &mut Self {
        self.model.vmx_msrs[0x12] = u64::MAX;
        self.primary(Pr::ACTIVATE_TERTIARY_CONTROLS)
            .or(Field::TERTIARY_VM_EXEC_CONTROL, c.bits())
    }
    fn no_ept(&mut self) -> &mut Self {
        self.clear(
            Field::SECONDARY_VM_EXEC_CONTROL,
            Se::ENABLE_EPT.bits().into(),
        )
    }
    fn exit(&mut self, c: Ex) -> &mut Self {
        self.or(Field::VM_EXIT_CONTROLS, c.bits().into())
    }
    fn entry(&mut self, c: En) -> &mut Self {
        self.or(Field::VM_ENTRY_CONTROLS, c.bits().into())
    }
    fn inject(&mut self, information: u64) -> &mut Self {
        self.set(Field::VM_ENTRY_INTR_INFO_FIELD, information)
    }
    fn posted(&mut self) -> &mut Self {
        self.pin(Pi::PROCESS_POSTED_INTERRUPTS)
            .primary(Pr::USE_TPR_SHADOW)
            .secondary(Se::VIRTUAL_INTERRUPT_DELIVERY)
            .exit(Ex::ACKNOWLEDGE_INTERRUPT_ON_EXIT)
    }
    /// A 32-bit L2 without PAE.
    fn guest_32(&mut self) -> &mut Self {
        self.clear(Field::VM_ENTRY_CONTROLS, En::IA32E_MODE_GUEST.bits().into())
            .set(Field::GUEST_IA32_EFER, 0)
            .set(Field::GUEST_CR4, cr4::VMXE)
            .set(Field::GUEST_CS_AR_BYTES, 0xc09b)
    }
    /// A 32-bit L1 with a 32-bit L2.
    fn host_32(&mut self) -> &mut Self {
        self.l1_long_mode = false;
        self.guest_32()
            .clear(
                Field::VM_EXIT_CONTROLS,
                Ex::HOST_ADDRESS_SPACE_SIZE.bits().into(),
            )
            .set(Field::HOST_IA32_EFER, 0)
            .set(Field::HOST_RIP, 0x10_0000)
    }
    fn virtual_8086(&mut self) -> &mut Self {
        self.guest_32().or(Field::GUEST_RFLAGS, rflags::VM);
        for name in ["ES", "CS", "SS", "DS", "FS", "GS"] {
            let field = |part: &str| -> Field { format!("GUEST_{name}_{part}").parse().unwrap() };
            self.set(field("SELECTOR"), 0x100);
            self.set(field("BASE"), 0x1000);
            self.set(field("LIMIT"), 0xffff);
            self.set(field("AR_BYTES"), 0xf3);
        }
        self
    }
}

const BAD_PAGE: u64 = 0x1008;
const NON_CANONICAL: u64 = 1 << 50;
const VALID: u64 = 1 << 31;
const NMI: u64 = VALID | 2 << 8 | 2;

type Break = fn(&mut Case) -> &mut Case;

/// The rule, how to break it, and the rules that cannot hold with it.
// One row a line reads as a table.
#[rustfmt::skip]
const BREAKS: &[(&str, Break, &[&str])] = &[
    ("control.pin.reserved", |c| c.clear(Field::PIN_BASED_VM_EXEC_CONTROL, 2), &[]),
    ("control.primary.reserved", |c| c.clear(Field::CPU_BASED_VM_EXEC_CONTROL, 2), &[]),
    ("control.secondary.reserved", |c| c.or(Field::SECONDARY_VM_EXEC_CONTROL, 1 << 29), &[]),
    ("control.tertiary.reserved", |c| c.primary(Pr::ACTIVATE_TERTIARY_CONTROLS).set(Field::TERTIARY_VM_EXEC_CONTROL, 1), &[]),
    ("control.ipi_virtualization_needs_tpr_shadow", |c| c.tertiary(Te::IPI_VIRTUALIZATION), &[]),
    ("control.pid_pointer_table", |c| c.tertiary(Te::IPI_VIRTUALIZATION).primary(Pr::USE_TPR_SHADOW).set(Field::PID_POINTER_TABLE, 4), &[]),
    ("control.hlat_needs_ept", |c| c.no_ept().tertiary(Te::ENABLE_HLAT), &[]),
    ("control.cr3_target_count", |c| c.set(Field::CR3_TARGET_COUNT, 1), &[]),
    ("control.io_bitmap_a", |c| c.primary(Pr::USE_IO_BITMAPS).set(Field::IO_BITMAP_A, BAD_PAGE), &[]),
    ("control.io_bitmap_b", |c| c.primary(Pr::USE_IO_BITMAPS).set(Field::IO_BITMAP_B, 1 << 40), &[]),
    ("control.msr_bitmap", |c| c.primary(Pr::USE_MSR_BITMAPS).set(Field::MSR_BITMAP, BAD_PAGE), &[]),
    ("control.virtual_apic_page", |c| c.primary(Pr::USE_TPR_SHADOW).set(Field::VIRTUAL_APIC_PAGE_ADDR, BAD_PAGE), &[]),
    ("control.apic_access_page", |c| c.secondary(Se::VIRTUALIZE_APIC_ACCESSES).set(Field::APIC_ACCESS_ADDR, BAD_PAGE), &[]),
    ("control.x2apic_excludes_apic_accesses", |c| c.primary(Pr::USE_TPR_SHADOW).secondary(Se::VIRTUALIZE_APIC_ACCESSES | Se::VIRTUALIZE_X2APIC_MODE), &[]),
    ("control.vid_needs_interrupt_exiting", |c| c.primary(Pr::USE_TPR_SHADOW).secondary(Se::VIRTUAL_INTERRUPT_DELIVERY).clear(Field::PIN_BASED_VM_EXEC_CONTROL, 1), &[]),
    ("control.posted_interrupts.need_vid", |c| c.posted().clear(Field::SECONDARY_VM_EXEC_CONTROL, Se::VIRTUAL_INTERRUPT_DELIVERY.bits().into()), &[]),
    ("control.posted_interrupts.need_acknowledge", |c| c.posted().clear(Field::VM_EXIT_CONTROLS, Ex::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits().into()), &[]),
    ("control.posted_interrupts.vector", |c| c.posted().set(Field::POSTED_INTR_NV, 0x100), &[]),
    ("control.posted_interrupts.descriptor", |c| c.posted().set(Field::POSTED_INTR_DESC_ADDR, 0x20), &[]),
    ("control.apic_virtualization_needs_tpr_shadow", |c| c.secondary(Se::APIC_REGISTER_VIRTUALIZATION), &[]),
    ("control.virtual_nmis_need_nmi_exiting", |c| c.pin(Pi::VIRTUAL_NMIS), &[]),
    ("control.nmi_window_needs_virtual_nmis", |c| c.primary(Pr::NMI_WINDOW_EXITING), &[]),
    ("control.pml.needs_ept", |c| c.no_ept().secondary(Se::ENABLE_PML), &[]),
    ("control.pml.address", |c| c.secondary(Se::ENABLE_PML).set(Field::PML_ADDRESS, BAD_PAGE), &[]),
    ("control.unrestricted_needs_ept", |c| c.no_ept().secondary(Se::UNRESTRICTED_GUEST), &[]),
    ("control.mode_based_execute_needs_ept", |c| c.no_ept().secondary(Se::MODE_BASED_EXECUTE_CONTROL), &[]),
    ("control.vmread_bitmap", |c| c.secondary(Se::VMCS_SHADOWING).set(Field::VMREAD_BITMAP, BAD_PAGE), &[]),
    ("control.vmwrite_bitmap", |c| c.secondary(Se::VMCS_SHADOWING).set(Field::VMWRITE_BITMAP, BAD_PAGE), &[]),
    ("control.vpid", |c| c.set(Field::VIRTUAL_PROCESSOR_ID, 0), &[]),
    ("control.save_timer_needs_timer", |c| c.exit(Ex::SAVE_PREEMPTION_TIMER_VALUE), &[]),
    ("control.eptp", |c| c.set(Field::EPT_POINTER, support::EPT_ROOT | 3 << 3 | 5), &[]),
    ("control.vm_functions.reserved", |c| c.secondary(Se::ENABLE_VM_FUNCTIONS).set(Field::VM_FUNCTION_CONTROL, 2), &[]),
    ("control.eptp_switching.needs_ept", |c| c.no_ept().secondary(Se::ENABLE_VM_FUNCTIONS).set(Field::VM_FUNCTION_CONTROL, 1), &[]),
    ("control.eptp_switching.list", |c| c.secondary(Se::ENABLE_VM_FUNCTIONS).set(Field::VM_FUNCTION_CONTROL, 1).set(Field::EPTP_LIST_ADDRESS, BAD_PAGE), &[]),
    ("control.virtual_apic_page.mapped", |c| c.primary(Pr::USE_TPR_SHADOW).set(Field::VIRTUAL_APIC_PAGE_ADDR, 0x4000_0000), &[]),
    ("control.tpr_threshold.reserved", |c| c.primary(Pr::USE_TPR_SHADOW).set(Field::TPR_THRESHOLD, 0x10), &[]),
    ("control.tpr_threshold.vtpr", |c| c.primary(Pr::USE_TPR_SHADOW).set(Field::VIRTUAL_APIC_PAGE_ADDR, support::VIRTUAL_APIC.0).set(Field::TPR_THRESHOLD, 1), &[]),
    ("control.virtualization_exception.address", |c| c.secondary(Se::EPT_VIOLATION_VE).set(Field::VE_INFORMATION_ADDRESS, BAD_PAGE), &[]),
    ("control.sub_page.needs_ept", |c| c.no_ept().secondary(Se::SUB_PAGE_WRITE_PERMISSIONS), &[]),
    ("control.sub_page.pointer", |c| c.secondary(Se::SUB_PAGE_WRITE_PERMISSIONS).set(Field::SPP_TABLE_POINTER, BAD_PAGE), &[]),
    ("control.exit.reserved", |c| c.clear(Field::VM_EXIT_CONTROLS, 2), &[]),
    ("control.exit.secondary_reserved", |c| c.exit(Ex::ACTIVATE_SECONDARY_CONTROLS).set(Field::SECONDARY_VM_EXIT_CONTROLS, 1), &[]),
    ("control.exit.msr_load_list", |c| c.set(Field::VM_EXIT_MSR_LOAD_COUNT, 1).set(Field::VM_EXIT_MSR_LOAD_ADDR, 8), &[]),
    ("control.exit.msr_store_list", |c| c.set(Field::VM_EXIT_MSR_STORE_COUNT, 2).set(Field::VM_EXIT_MSR_STORE_ADDR, (1 << 40) - 16), &[]),
    ("control.entry.reserved", |c| c.clear(Field::VM_ENTRY_CONTROLS, 2), &[]),
    ("control.entry.msr_load_list", |c| c.set(Field::VM_ENTRY_MSR_LOAD_COUNT, 1).set(Field::VM_ENTRY_MSR_LOAD_ADDR, 8), &[]),
    ("control.entry.smm", |c| c.entry(En::DEACTIVATE_DUAL_MONITOR_TREATMENT), &[]),
    ("control.injection.type", |c| c.inject(VALID | 1 << 8), &[]),
    ("control.injection.vector", |c| c.inject(VALID | 2 << 8 | 3), &[]),
    ("control.injection.deliver_error_code", |c| c.inject(VALID | 3 << 8 | 13), &[]),
    ("control.injection.error_code", |c| c.inject(VALID | 3 << 8 | 1 << 11 | 13).set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, 1 << 16), &[]),
    ("control.injection.reserved", |c| c.inject(NMI | 1 << 12), &[]),
    ("control.injection.instruction_length", |c| c.inject(VALID | 4 << 8 | 0x80), &[]),
    ("host.address_space.is_l1s", |c| { c.l1_long_mode = false; c }, &[]),
    ("host.address_space.ia32e_guest", |c| c.host_32().entry(En::IA32E_MODE_GUEST).or(Field::GUEST_CR4, cr4::PAE).set(Field::GUEST_IA32_EFER, efer::LMA | efer::LME), &[]),
    ("host.address_space.pcide", |c| c.host_32().or(Field::HOST_CR4, cr4::PCIDE), &[]),
    ("host.address_space.rip_32", |c| c.host_32().set(Field::HOST_RIP, 1 << 32), &[]),
    ("host.address_space.pae", |c| c.clear(Field::HOST_CR4, cr4::PAE), &[]),
    ("host.address_space.rip", |c| c.set(Field::HOST_RIP, NON_CANONICAL), &[]),
    ("host.cr0", |c| c.clear(Field::HOST_CR0, cr0::NE), &[]),
    ("host.cr4", |c| c.clear(Field::HOST_CR4, cr4::VMXE), &[]),
    ("host.cr3", |c| c.set(Field::HOST_CR3, 1 << 40), &[]),
    ("host.sysenter_esp", |c| c.set(Field::HOST_IA32_SYSENTER_ESP, NON_CANONICAL), &[]),
    ("host.sysenter_eip", |c| c.set(Field::HOST_IA32_SYSENTER_EIP, NON_CANONICAL), &[]),
    ("host.perf_global_ctrl", |c| c.exit(Ex::LOAD_PERF_GLOBAL_CTRL).set(Field::HOST_IA32_PERF_GLOBAL_CTRL, 1 << 4), &[]),
    ("host.pat", |c| c.exit(Ex::LOAD_PAT).set(Field::HOST_IA32_PAT, 2), &[]),
    ("host.efer.reserved", |c| c.or(Field::HOST_IA32_EFER, 2), &[]),
    ("host.efer.lma", |c| c.clear(Field::HOST_IA32_EFER, efer::LMA), &[]),
    ("host.efer.lme", |c| c.clear(Field::HOST_IA32_EFER, efer::LME), &[]),
    ("host.cr4.cet_needs_wp", |c| c.cet().or(Field::HOST_CR4, cr4::CET).clear(Field::HOST_CR0, cr0::WP), &[]),
    ("host.s_cet", |c| c.exit(Ex::LOAD_CET_STATE).set(Field::HOST_S_CET, 3 << 10), &[]),
    ("host.ssp", |c| c.exit(Ex::LOAD_CET_STATE).set(Field::HOST_SSP, 2), &[]),
    ("host.interrupt_ssp_table", |c| c.exit(Ex::LOAD_CET_STATE).set(Field::HOST_INTR_SSP_TABLE, NON_CANONICAL), &[]),
    ("host.pkrs", |c| c.exit(Ex::LOAD_PKRS).set(Field::HOST_IA32_PKRS, 1 << 32), &[]),
    ("host.cs.selector", |c| c.set(Field::HOST_CS_SELECTOR, 9), &[]),
    ("host.ss.selector", |c| c.set(Field::HOST_SS_SELECTOR, 4), &[]),
    ("host.ds.selector", |c| c.set(Field::HOST_DS_SELECTOR, 1), &[]),
    ("host.es.selector", |c| c.set(Field::HOST_ES_SELECTOR, 2), &[]),
    ("host.fs.selector", |c| c.set(Field::HOST_FS_SELECTOR, 3), &[]),
    ("host.gs.selector", |c| c.set(Field::HOST_GS_SELECTOR, 4), &[]),
    ("host.tr.selector", |c| c.set(Field::HOST_TR_SELECTOR, 0x1c), &[]),
    ("host.cs.null", |c| c.set(Field::HOST_CS_SELECTOR, 0), &[]),
    ("host.tr.null", |c| c.set(Field::HOST_TR_SELECTOR, 0), &[]),
    ("host.ss.null", |c| c.host_32().set(Field::HOST_SS_SELECTOR, 0), &[]),
    ("host.fs.base", |c| c.set(Field::HOST_FS_BASE, NON_CANONICAL), &[]),
    ("host.gs.base", |c| c.set(Field::HOST_GS_BASE, NON_CANONICAL), &[]),
    ("host.gdtr.base", |c| c.set(Field::HOST_GDTR_BASE, NON_CANONICAL), &[]),
    ("host.idtr.base", |c| c.set(Field::HOST_IDTR_BASE, NON_CANONICAL), &[]),
    ("host.tr.base", |c| c.set(Field::HOST_TR_BASE, NON_CANONICAL), &[]),
    ("guest.cr0", |c| c.clear(Field::GUEST_CR0, cr0::NE), &[]),
    ("guest.cr4", |c| c.clear(Field::GUEST_CR4, cr4::VMXE), &[]),
    ("guest.dr7", |c| c.set(Field::GUEST_DR7, 1 << 32), &[]),
    ("guest.debugctl", |c| c.set(Field::GUEST_IA32_DEBUGCTL, 1 << 20), &[]),
    ("guest.pat", |c| c.entry(En::LOAD_PAT).set(Field::GUEST_IA32_PAT, 3), &[]),
    ("guest.perf_global_ctrl", |c| c.entry(En::LOAD_PERF_GLOBAL_CTRL).set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, 1 << 35), &[]),
    ("guest.cr0.pg_needs_pe", |c| c.secondary(Se::UNRESTRICTED_GUEST).clear(Field::GUEST_CR0, cr0::PE), &[]),
    ("guest.ia32e_needs_pae", |c| c.clear(Field::GUEST_CR4, cr4::PAE), &[]),
    ("guest.ia32e_needs_pg", |c| c.secondary(Se::UNRESTRICTED_GUEST).clear(Field::GUEST_CR0, cr0::PG), &[]),
    ("guest.efer.reserved", |c| c.or(Field::GUEST_IA32_EFER, 2), &[]),
    ("guest.efer.lma", |c| c.clear(Field::GUEST_IA32_EFER, efer::LMA), &[]),
    ("guest.efer.lme", |c| c.clear(Field::GUEST_IA32_EFER, efer::LME), &[]),
    ("guest.bndcfgs.reserved", |c| c.entry(En::LOAD_BNDCFGS).set(Field::GUEST_BNDCFGS, 4), &[]),
    ("guest.bndcfgs.base", |c| c.entry(En::LOAD_BNDCFGS).set(Field::GUEST_BNDCFGS, NON_CANONICAL), &[]),
    ("guest.activity.exists", |c| c.set(Field::GUEST_ACTIVITY_STATE, 4), &[]),
    ("guest.cr3", |c| c.set(Field::GUEST_CR3, 1 << 40), &[]),
    ("guest.cr4.pcide_needs_ia32e", |c| c.guest_32().or(Field::GUEST_CR4, cr4::PCIDE), &[]),
    ("guest.sysenter_esp", |c| c.set(Field::GUEST_SYSENTER_ESP, NON_CANONICAL), &[]),
    ("guest.sysenter_eip", |c| c.set(Field::GUEST_SYSENTER_EIP, NON_CANONICAL), &[]),
    ("guest.cr4.cet_needs_wp", |c| c.cet().or(Field::GUEST_CR4, cr4::CET).clear(Field::GUEST_CR0, cr0::WP), &[]),
    ("guest.s_cet", |c| c.entry(En::LOAD_CET_STATE).set(Field::GUEST_S_CET, 1 << 6), &[]),
    ("guest.interrupt_ssp_table", |c| c.entry(En::LOAD_CET_STATE).set(Field::GUEST_INTR_SSP_TABLE, NON_CANONICAL), &[]),
    ("guest.pkrs", |c| c.entry(En::LOAD_PKRS).set(Field::GUEST_IA32_PKRS, 1 << 32), &[]),
    ("guest.link_pointer.address", |c| c.set(Field::VMCS_LINK_POINTER, support::OTHER_VMCS.0 | 1 << 40), &["guest.link_pointer.revision"]),
    ("guest.link_pointer.revision", |c| c.set(Field::VMCS_LINK_POINTER, support::FREE_PAGE.0), &[]),
    ("guest.link_pointer.shadow", |c| c.set(Field::VMCS_LINK_POINTER, support::SHADOW_VMCS.0), &[]),
    ("guest.link_pointer.not_current", |c| c.set(Field::VMCS_LINK_POINTER, support::VMCS.0), &[]),
    ("guest.tr.selector", |c| c.or(Field::GUEST_TR_SELECTOR, 4), &[]),
    ("guest.ldtr.selector", |c| c.or(Field::GUEST_LDTR_SELECTOR, 4), &[]),
    ("guest.ss.selector", |c| c.or(Field::GUEST_CS_SELECTOR, 3), &[]),
    ("guest.cs.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_CS_LIMIT, 0xfffe), &[]),
    ("guest.cs.base", |c| c.set(Field::GUEST_CS_BASE, 1 << 32), &[]),
    ("guest.cs.type", |c| c.set(Field::GUEST_CS_AR_BYTES, 0xa098), &[]),
    ("guest.cs.system", |c| c.clear(Field::GUEST_CS_AR_BYTES, 0x10), &[]),
    ("guest.cs.dpl", |c| c.or(Field::GUEST_CS_AR_BYTES, 0x20), &[]),
    ("guest.cs.present", |c| c.clear(Field::GUEST_CS_AR_BYTES, 0x80), &[]),
    ("guest.cs.reserved", |c| c.or(Field::GUEST_CS_AR_BYTES, 0x100), &[]),
    ("guest.cs.default_size", |c| c.or(Field::GUEST_CS_AR_BYTES, 0x4000), &[]),
    ("guest.cs.granularity", |c| c.clear(Field::GUEST_CS_AR_BYTES, 0x8000), &[]),
    ("guest.ss.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_SS_BASE, 0), &[]),
    ("guest.ss.base", |c| c.set(Field::GUEST_SS_BASE, 1 << 32), &[]),
    ("guest.ss.type", |c| c.clear(Field::GUEST_SS_AR_BYTES, 2), &[]),
    ("guest.ss.system", |c| c.clear(Field::GUEST_SS_AR_BYTES, 0x10), &[]),
    ("guest.ss.dpl_rpl", |c| c.or(Field::GUEST_SS_SELECTOR, 1).or(Field::GUEST_CS_SELECTOR, 1), &[]),
    ("guest.ss.dpl_real", |c| c.secondary(Se::UNRESTRICTED_GUEST).set(Field::GUEST_CS_AR_BYTES, 0xa093).or(Field::GUEST_SS_AR_BYTES, 0x20), &[]),
    ("guest.ss.present", |c| c.clear(Field::GUEST_SS_AR_BYTES, 0x80), &[]),
    ("guest.ss.reserved", |c| c.or(Field::GUEST_SS_AR_BYTES, 1 << 17), &[]),
    ("guest.ss.granularity", |c| c.set(Field::GUEST_SS_LIMIT, 0xffff_f000), &[]),
    ("guest.ds.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_DS_AR_BYTES, 0x93), &[]),
    ("guest.ds.base", |c| c.set(Field::GUEST_DS_BASE, 1 << 32), &[]),
    ("guest.ds.type", |c| c.clear(Field::GUEST_DS_AR_BYTES, 1), &[]),
    ("guest.ds.system", |c| c.clear(Field::GUEST_DS_AR_BYTES, 0x10), &[]),
    ("guest.ds.dpl", |c| c.or(Field::GUEST_DS_SELECTOR, 3), &[]),
    ("guest.ds.present", |c| c.clear(Field::GUEST_DS_AR_BYTES, 0x80), &[]),
    ("guest.ds.reserved", |c| c.or(Field::GUEST_DS_AR_BYTES, 0x800), &[]),
    ("guest.ds.granularity", |c| c.clear(Field::GUEST_DS_AR_BYTES, 0x8000), &[]),
    ("guest.es.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_ES_LIMIT, 0), &[]),
    ("guest.es.base", |c| c.set(Field::GUEST_ES_BASE, 1 << 32), &[]),
    // Code that cannot be read.
    ("guest.es.type", |c| c.set(Field::GUEST_ES_AR_BYTES, 0xc099), &[]),
    ("guest.es.system", |c| c.clear(Field::GUEST_ES_AR_BYTES, 0x10), &[]),
    ("guest.es.dpl", |c| c.or(Field::GUEST_ES_SELECTOR, 3), &[]),
    ("guest.es.present", |c| c.clear(Field::GUEST_ES_AR_BYTES, 0x80), &[]),
    ("guest.es.reserved", |c| c.or(Field::GUEST_ES_AR_BYTES, 0x800), &[]),
    ("guest.es.granularity", |c| c.clear(Field::GUEST_ES_AR_BYTES, 0x8000), &[]),
    ("guest.fs.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_FS_LIMIT, 0), &[]),
    ("guest.fs.base", |c| c.set(Field::GUEST_FS_BASE, NON_CANONICAL), &[]),
    ("guest.fs.type", |c| c.clear(Field::GUEST_FS_AR_BYTES, 1), &[]),
    ("guest.fs.system", |c| c.clear(Field::GUEST_FS_AR_BYTES, 0x10), &[]),
    ("guest.fs.dpl", |c| c.or(Field::GUEST_FS_SELECTOR, 3), &[]),
    ("guest.fs.present", |c| c.clear(Field::GUEST_FS_AR_BYTES, 0x80), &[]),
    ("guest.fs.reserved", |c| c.or(Field::GUEST_FS_AR_BYTES, 0x800), &[]),
    ("guest.fs.granularity", |c| c.clear(Field::GUEST_FS_AR_BYTES, 0x8000), &[]),
    ("guest.gs.virtual_8086", |c| c.virtual_8086().set(Field::GUEST_GS_LIMIT, 0), &[]),
    ("guest.gs.base", |c| c.set(Field::GUEST_GS_BASE, NON_CANONICAL), &[]),
    ("guest.gs.type", |c| c.clear(Field::GUEST_GS_AR_BYTES, 1), &[]),
    ("guest.gs.system", |c| c.clear(Field::GUEST_GS_AR_BYTES, 0x10), &[]),
    ("guest.gs.dpl", |c| c.or(Field::GUEST_GS_SELECTOR, 3), &[]),
    ("guest.gs.present", |c| c.clear(Field::GUEST_GS_AR_BYTES, 0x80), &[]),
    ("guest.gs.reserved", |c| c.or(Field::GUEST_GS_AR_BYTES, 0x800), &[]),
    ("guest.gs.granularity", |c| c.clear(Field::GUEST_GS_AR_BYTES, 0x8000), &[]),
    ("guest.tr.base", |c| c.set(Field::GUEST_TR_BASE, NON_CANONICAL), &[]),
    ("guest.tr.type", |c| c.set(Field::GUEST_TR_AR_BYTES, 0x83), &[]),
    ("guest.tr.system", |c| c.or(Field::GUEST_TR_AR_BYTES, 0x10), &[]),
    ("guest.tr.present", |c| c.clear(Field::GUEST_TR_AR_BYTES, 0x80), &[]),
    ("guest.tr.reserved", |c| c.or(Field::GUEST_TR_AR_BYTES, 0x100), &[]),
    ("guest.tr.granularity", |c| c.or(Field::GUEST_TR_AR_BYTES, 0x8000), &[]),
    ("guest.tr.usable", |c| c.or(Field::GUEST_TR_AR_BYTES, 1 << 16), &[]),
    ("guest.ldtr.base", |c| c.set(Field::GUEST_LDTR_BASE, NON_CANONICAL), &[]),
    ("guest.ldtr.type", |c| c.set(Field::GUEST_LDTR_AR_BYTES, 0x83), &[]),
    ("guest.ldtr.system", |c| c.or(Field::GUEST_LDTR_AR_BYTES, 0x10), &[]),
    ("guest.ldtr.present", |c| c.clear(Field::GUEST_LDTR_AR_BYTES, 0x80), &[]),
    ("guest.ldtr.reserved", |c| c.or(Field::GUEST_LDTR_AR_BYTES, 0x100), &[]),
    ("guest.ldtr.granularity", |c| c.set(Field::GUEST_LDTR_LIMIT, 1 << 20), &[]),
    ("guest.gdtr.base", |c| c.set(Field::GUEST_GDTR_BASE, NON_CANONICAL), &[]),
    ("guest.idtr.base", |c| c.set(Field::GUEST_IDTR_BASE, NON_CANONICAL), &[]),
    ("guest.gdtr.limit", |c| c.set(Field::GUEST_GDTR_LIMIT, 1 << 16), &[]),
    ("guest.idtr.limit", |c| c.set(Field::GUEST_IDTR_LIMIT, 1 << 16), &[]),
    ("guest.rip.upper", |c| c.set(Field::GUEST_CS_AR_BYTES, 0xc09b).set(Field::GUEST_RIP, 1 << 32), &[]),
    ("guest.rip.canonical", |c| c.set(Field::GUEST_RIP, NON_CANONICAL), &[]),
    ("guest.rflags.reserved", |c| c.or(Field::GUEST_RFLAGS, 1 << 15), &[]),
    ("guest.rflags.vm", |c| c.virtual_8086().secondary(Se::UNRESTRICTED_GUEST).clear(Field::GUEST_CR0, cr0::PE | cr0::PG), &[]),
    ("guest.rflags.if", |c| c.inject(VALID | 0x20), &[]),
    ("guest.ssp", |c| c.entry(En::LOAD_CET_STATE).set(Field::GUEST_SSP, 1), &[]),
    ("guest.activity.hlt_needs_cpl_0", |c| { c.sdm(); c.or(Field::GUEST_CS_AR_BYTES, 0x60).or(Field::GUEST_SS_AR_BYTES, 0x60); c.or(Field::GUEST_CS_SELECTOR, 3).or(Field::GUEST_SS_SELECTOR, 3); c.set(Field::GUEST_ACTIVITY_STATE, 1) }, &[]),
    ("guest.activity.blocking_needs_active", |c| c.sdm().set(Field::GUEST_ACTIVITY_STATE, 2).set(Field::GUEST_INTERRUPTIBILITY_INFO, 2), &[]),
    ("guest.activity.injection", |c| c.sdm().set(Field::GUEST_ACTIVITY_STATE, 3).inject(NMI), &[]),
    ("guest.activity.smm", |c| c.sdm().entry(En::ENTRY_TO_SMM).set(Field::GUEST_ACTIVITY_STATE, 3), &["control.entry.smm", "guest.interruptibility.entry_to_smm"]),
    ("guest.interruptibility.reserved", |c| c.set(Field::GUEST_INTERRUPTIBILITY_INFO, 1 << 5), &[]),
    ("guest.interruptibility.sti_excludes_mov_ss", |c| c.or(Field::GUEST_RFLAGS, rflags::IF).set(Field::GUEST_INTERRUPTIBILITY_INFO, 3), &[]),
    ("guest.interruptibility.sti_needs_if", |c| c.set(Field::GUEST_INTERRUPTIBILITY_INFO, 1), &[]),
    ("guest.interruptibility.interrupt_injection", |c| c.or(Field::GUEST_RFLAGS, rflags::IF).set(Field::GUEST_INTERRUPTIBILITY_INFO, 1).inject(VALID | 0x20), &[]),
    ("guest.interruptibility.nmi_injection", |c| c.set(Field::GUEST_INTERRUPTIBILITY_INFO, 2).inject(NMI), &[]),
    ("guest.interruptibility.smi", |c| c.set(Field::GUEST_INTERRUPTIBILITY_INFO, 4), &[]),
    ("guest.interruptibility.entry_to_smm", |c| c.entry(En::ENTRY_TO_SMM), &["control.entry.smm"]),
    ("guest.interruptibility.virtual_nmi_injection", |c| c.pin(Pi::NMI_EXITING | Pi::VIRTUAL_NMIS).set(Field::GUEST_INTERRUPTIBILITY_INFO, 8).inject(NMI), &[]),
    ("guest.interruptibility.enclave", |c| c.set(Field::GUEST_INTERRUPTIBILITY_INFO, 0x12), &[]),
    ("guest.pending_debug.reserved", |c| c.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 13), &[]),
    ("guest.pending_debug.single_step", |c| c.or(Field::GUEST_RFLAGS, rflags::TF).set(Field::GUEST_INTERRUPTIBILITY_INFO, 2), &[]),
    ("guest.pending_debug.rtm", |c| c.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 16), &[]),
    ("guest.pdptes.in_memory", |c| { c.memory.write_u64(L1Phys(0xa000), 1 | 1 << 5).unwrap(); c.no_ept().guest_32().or(Field::GUEST_CR4, cr4::PAE) }, &[]),
    ("guest.pdptes.fields", |c| c.guest_32().or(Field::GUEST_CR4, cr4::PAE).set(Field::GUEST_PDPTR2, 1 | 1 << 1), &[]),
];

#[test]
fn the_valid_vmcs12_breaks_no_rule() {
    assert_eq!(Case::new().failed(), Vec::<&str>::new());
    let mut case = Case::new();
    case.model = support::model();
    assert_eq!(case.failed(), Vec::<&str>::new());
    for change in [Case::guest_32, Case::host_32, Case::virtual_8086] {
        let mut case = Case::new();
        change(&mut case);
        assert_eq!(case.failed(), Vec::<&str>::new());
    }
}

#[test]
fn every_rule_breaks_alone() {
    let mut untested: HashSet<_> = all().map(|rule| rule.id).collect();
    for (id, change, company) in BREAKS {
        let mut case = Case::new();
        change(&mut case);
        let mut failed = case.failed();
        assert!(failed.contains(id), "{id} holds; failed: {failed:?}");
        failed.retain(|f| f != id && !company.contains(f));
        assert!(failed.is_empty(), "{id} breaks {failed:?} too");
        assert!(untested.remove(id), "{id} twice");
    }
    assert!(untested.is_empty(), "no failing case: {untested:?}");
}

#[test]
fn ids_are_unique_and_fields_known() {
    let mut seen = HashMap::new();
    for rule in all() {
        assert!(seen.insert(rule.id, rule).is_none(), "{} twice", rule.id);
        assert!(!rule.fields.is_empty() && !rule.text.is_empty());
        assert!(
            rule.fields.iter().all(|f| f.name().is_some()),
            "{}",
            rule.id
        );
        assert_eq!(find(rule.id).map(|r| r.id), Some(rule.id));
    }
    assert_eq!(CR3.rule().id, "guest.cr3");
    assert_eq!(PDPTES_IN_MEMORY.rule().id, "guest.pdptes.in_memory");
}

#[test]
fn classes_come_in_order() {
    let rank = |class| match class {
        Class::InvalidControl => 0,
        Class::InvalidHostState => 1,
        Class::InvalidGuestState(_) => 2,
    };
    assert!(all().is_sorted_by_key(|rule| rank(rule.class)));
}

#[test]
fn restore_checks_what_kvm_checks() {
    for (id, change, _) in BREAKS {
        let mut case = Case::new();
        change(&mut case);
        let rule = find(id).unwrap();
        for run_pending in [false, true] {
            let refused = kvm_restore_checks(&case.context(), run_pending).is_err();
            let expected = match rule.enforcement {
                Enforcement::Software => true,
                Enforcement::SoftwareIfPending => run_pending,
                _ => false,
            };
            assert_eq!(refused, expected, "{id}, run pending {run_pending}");
        }
    }
}

#[test]
fn canonicality_follows_the_personality() {
    let mut case = Case::new();
    case.model.linear_address_width = 57;
    case.set(Field::HOST_FS_BASE, NON_CANONICAL);
    assert_eq!(case.failed(), ["host.fs.base"]);
    case.model.personality = crate::cpu::Personality::Sdm;
    assert_eq!(case.failed(), Vec::<&str>::new());
}
