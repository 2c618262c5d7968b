//! Loading guest state (SDM Vol. 3C "Loading Guest State").

use super::checks::{self, Rule};
use super::{active_secondary, entry_controls, pdptes};
use crate::addr::L1Phys;
use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::memory::GuestMemory;
use crate::paging::{PagingMode, mode_of};
use crate::personality::Difference;
use crate::vmx::controls::{EntryControls, Secondary};
use crate::vmx::exit::{SegmentFields, segment_fields};
use crate::vmx::instructions::physical_address_is_valid;
use crate::vmx::{Field, Vmcs12};
use crate::x86::control::{cr0, efer};
use crate::x86::{AccessRights, DescriptorTable, Event, EventKind, Gpr, Segment};

/// Bits of DR7 that can be set, and the one that always is.
const DR7_VOLATILE: u64 = 0xffff_2bff;
const DR7_FIXED: u64 = 0x400;
/// Activity states in which nothing is pending after VM entry.
const SHUTDOWN: u32 = Activity::Shutdown as u32;
const WAIT_FOR_SIPI: u32 = Activity::WaitForSipi as u32;
/// CR0 bits that a VM entry leaves alone.
const CR0_KEPT: u64 = cr0::NW | cr0::CD;

/// Loads guest state from the cached vmcs12 into the processor, which is in L2 from here on.
///
/// `run_pending`: the entry has not taken place yet, so that the load controls and event injection
/// apply. `memory`: where the PDPTEs are read from, if now is the time to.
pub(super) fn load_guest_state(
    cpu: &mut Cpu,
    memory: Option<&dyn GuestMemory>,
    run_pending: bool,
) -> Result<(), &'static Rule> {
    cpu.vmx.guest_mode = true;
    let controls = entry_controls(&cpu.vmx.vmcs12);
    load_control_registers(cpu, controls, run_pending);
    load_msrs(cpu, controls, run_pending);
    load_segments(cpu);
    let vmcs12 = &cpu.vmx.vmcs12;
    cpu.regs.rflags = vmcs12.get(Field::GUEST_RFLAGS);
    cpu.pending_debug = vmcs12.get(Field::GUEST_PENDING_DBG_EXCEPTIONS);

    // KVM finds these two while it loads: the rest of the state stays as it was.
    let cr3 = vmcs12.get(Field::GUEST_CR3);
    if !physical_address_is_valid(&cpu.model, L1Phys(cr3)) {
        return Err(checks::CR3.rule());
    }
    cpu.sregs.cr3 = cr3;
    load_pdptes(cpu, memory)?;

    let vmcs12 = &cpu.vmx.vmcs12;
    cpu.regs.set(Gpr::Rsp, vmcs12.get(Field::GUEST_RSP));
    cpu.regs.rip = vmcs12.get(Field::GUEST_RIP);
    if run_pending {
        load_non_register_state(cpu);
    }
    Ok(())
}

fn load_control_registers(cpu: &mut Cpu, controls: EntryControls, run_pending: bool) {
    const LONG_MODE: u64 = efer::LMA | efer::LME;
    let vmcs12 = &cpu.vmx.vmcs12;
    let sregs = &mut cpu.sregs;
    let old_cr0 = sregs.cr0;
    sregs.cr0 = vmcs12.get(Field::GUEST_CR0);
    if !cpu.model.as_kvm(Difference::EntryCr0) {
        sregs.cr0 = sregs.cr0 & !CR0_KEPT | old_cr0 & CR0_KEPT | cr0::ET;
    }
    sregs.cr4 = vmcs12.get(Field::GUEST_CR4);
    sregs.efer = if run_pending && controls.contains(EntryControls::LOAD_EFER) {
        vmcs12.get(Field::GUEST_IA32_EFER)
    } else if controls.contains(EntryControls::IA32E_MODE_GUEST) {
        sregs.efer | LONG_MODE
    } else if cpu.model.as_kvm(Difference::EntryEfer) || sregs.cr0 & cr0::PG != 0 {
        sregs.efer & !LONG_MODE
    } else {
        sregs.efer & !efer::LMA
    };
    if run_pending && controls.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        cpu.debug.dr7 = vmcs12.get(Field::GUEST_DR7) & DR7_VOLATILE | DR7_FIXED;
    }
}

fn load_msrs(cpu: &mut Cpu, controls: EntryControls, run_pending: bool) {
    let vmcs12 = &cpu.vmx.vmcs12;
    let msrs = &mut cpu.msrs;
    msrs.sysenter_cs = vmcs12.get(Field::GUEST_SYSENTER_CS);
    msrs.sysenter_esp = vmcs12.get(Field::GUEST_SYSENTER_ESP);
    msrs.sysenter_eip = vmcs12.get(Field::GUEST_SYSENTER_EIP);
    if controls.contains(EntryControls::LOAD_PERF_GLOBAL_CTRL) {
        let value = vmcs12.get(Field::GUEST_IA32_PERF_GLOBAL_CTRL);
        cpu.set_perf_global_ctrl(value);
    }
    if !run_pending {
        return;
    }
    let vmcs12 = &cpu.vmx.vmcs12;
    let msrs = &mut cpu.msrs;
    if controls.contains(EntryControls::LOAD_DEBUG_CONTROLS) {
        msrs.debugctl = if cpu.model.as_kvm(Difference::EntryDebugctl) {
            0
        } else {
            vmcs12.get(Field::GUEST_IA32_DEBUGCTL)
        };
    }
    if controls.contains(EntryControls::LOAD_PAT) {
        msrs.pat = vmcs12.get(Field::GUEST_IA32_PAT);
    }
    if controls.contains(EntryControls::LOAD_BNDCFGS) {
        msrs.bndcfgs = vmcs12.get(Field::GUEST_BNDCFGS);
    }
}

fn load_segments(cpu: &mut Cpu) {
    use segment_fields as f;
    let vmcs12 = &cpu.vmx.vmcs12;
    let segment = |fields: &SegmentFields| Segment {
        selector: vmcs12.get(fields.selector) as u16,
        base: vmcs12.get(fields.base),
        limit: vmcs12.get32(fields.limit),
        ar: AccessRights::from_bits_retain(vmcs12.get32(fields.access_rights)),
    };
    let table = |base, limit| DescriptorTable {
        base: vmcs12.get(base),
        limit: vmcs12.get(limit) as u16,
    };
    let sregs = &mut cpu.sregs;
    sregs.es = segment(&f::ES);
    sregs.cs = segment(&f::CS);
    sregs.ss = segment(&f::SS);
    sregs.ds = segment(&f::DS);
    sregs.fs = segment(&f::FS);
    sregs.gs = segment(&f::GS);
    sregs.ldtr = segment(&f::LDTR);
    sregs.tr = segment(&f::TR);
    sregs.gdtr = table(Field::GUEST_GDTR_BASE, Field::GUEST_GDTR_LIMIT);
    sregs.idtr = table(Field::GUEST_IDTR_BASE, Field::GUEST_IDTR_LIMIT);
}

/// "Loading Page-Directory-Pointer-Table Entries".
fn load_pdptes(cpu: &mut Cpu, memory: Option<&dyn GuestMemory>) -> Result<(), &'static Rule> {
    let vmcs12 = &cpu.vmx.vmcs12;
    let sregs = &mut cpu.sregs;
    if mode_of(sregs.cr0, sregs.cr4, sregs.efer) != PagingMode::Pae {
        sregs.pdptrs_valid = false;
        return Ok(());
    }
    if active_secondary(vmcs12).contains(Secondary::ENABLE_EPT) {
        sregs.pdptrs = pdptrs_of(vmcs12);
    } else if let Some(memory) = memory {
        sregs.pdptrs = pdptes::read(&cpu.model, memory, sregs.cr3)
            .ok_or_else(|| checks::PDPTES_IN_MEMORY.rule())?;
    } else {
        return Ok(());
    }
    sregs.pdptrs_valid = true;
    Ok(())
}

/// The four PDPTE fields.
pub(super) fn pdptrs_of(vmcs12: &Vmcs12) -> [u64; 4] {
    [
        vmcs12.get(Field::GUEST_PDPTR0),
        vmcs12.get(Field::GUEST_PDPTR1),
        vmcs12.get(Field::GUEST_PDPTR2),
        vmcs12.get(Field::GUEST_PDPTR3),
    ]
}

/// "Loading Guest Non-Register State" and "Event Injection".
fn load_non_register_state(cpu: &mut Cpu) {
    let vmcs12 = &cpu.vmx.vmcs12;
    cpu.vmx.l1_nmi_blocked = cpu.interruptibility.contains(Interruptibility::NMI);
    let interruptibility = vmcs12.get32(Field::GUEST_INTERRUPTIBILITY_INFO);
    cpu.interruptibility = Interruptibility::from_bits_truncate(interruptibility);
    cpu.injected = Event::from_information(
        vmcs12.get32(Field::VM_ENTRY_INTR_INFO_FIELD),
        vmcs12.get32(Field::VM_ENTRY_EXCEPTION_ERROR_CODE),
        vmcs12.get32(Field::VM_ENTRY_INSTRUCTION_LEN),
    );
    cpu.activity = Activity::Active;
    if !keeps_pending_debug(cpu) {
        cpu.pending_debug = 0;
    }
}

/// "Delivery of Pending Debug Exceptions after VM Entry": whether those of the field outlive the entry.
fn keeps_pending_debug(cpu: &Cpu) -> bool {
    let blocked = cpu.interruptibility.contains(Interruptibility::MOV_SS);
    match cpu.injected.map(|event| event.kind) {
        None => !matches!(
            cpu.vmx.vmcs12.get32(Field::GUEST_ACTIVITY_STATE),
            SHUTDOWN | WAIT_FOR_SIPI
        ),
        Some(EventKind::Other) => true,
        Some(EventKind::SoftwareInterrupt | EventKind::PrivilegedSoftwareException) => blocked,
        Some(_) => false,
    }
}
