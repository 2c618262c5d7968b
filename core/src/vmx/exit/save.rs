//! Saving guest state (SDM Vol. 3C "Saving Guest State").

use crate::cpu::{Activity, Cpu};
use crate::paging::{PagingMode, mode_of};
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::controls::{EntryControls, ExitControls, Secondary};
use crate::vmx::entry::{
    active_secondary, entry_controls, exit_controls, preemption_timer_to_save,
};
use crate::x86::control::efer;
use crate::x86::{Gpr, Segment, msr};

/// The fields of one segment register.
pub(crate) struct SegmentFields {
    pub(crate) selector: Field,
    pub(crate) base: Field,
    pub(crate) limit: Field,
    pub(crate) access_rights: Field,
}

macro_rules! segment_fields {
    ($($segment:ident: $selector:ident $base:ident $limit:ident $access_rights:ident;)*) => {
        /// The guest's segment registers with their fields.
        pub(crate) mod segment_fields {
            use super::{Field, SegmentFields};
            $(pub(crate) const $segment: SegmentFields = SegmentFields {
                selector: Field::$selector,
                base: Field::$base,
                limit: Field::$limit,
                access_rights: Field::$access_rights,
            };)*
        }
    };
}

segment_fields! {
    ES: GUEST_ES_SELECTOR GUEST_ES_BASE GUEST_ES_LIMIT GUEST_ES_AR_BYTES;
    CS: GUEST_CS_SELECTOR GUEST_CS_BASE GUEST_CS_LIMIT GUEST_CS_AR_BYTES;
    SS: GUEST_SS_SELECTOR GUEST_SS_BASE GUEST_SS_LIMIT GUEST_SS_AR_BYTES;
    DS: GUEST_DS_SELECTOR GUEST_DS_BASE GUEST_DS_LIMIT GUEST_DS_AR_BYTES;
    FS: GUEST_FS_SELECTOR GUEST_FS_BASE GUEST_FS_LIMIT GUEST_FS_AR_BYTES;
    GS: GUEST_GS_SELECTOR GUEST_GS_BASE GUEST_GS_LIMIT GUEST_GS_AR_BYTES;
    LDTR: GUEST_LDTR_SELECTOR GUEST_LDTR_BASE GUEST_LDTR_LIMIT GUEST_LDTR_AR_BYTES;
    TR: GUEST_TR_SELECTOR GUEST_TR_BASE GUEST_TR_LIMIT GUEST_TR_AR_BYTES;
}

/// Writes L2's state into the cached vmcs12, as a VM exit does and as `KVM_GET_NESTED_STATE` does
/// while L2 runs. Changes nothing else.
pub fn save_guest_state(cpu: &mut Cpu) {
    let timer = preemption_timer_to_save(cpu);
    save_control_registers(cpu);
    save_segments(cpu);
    let saves = exit_controls(&cpu.vmx.vmcs12);
    let saves_msrs = !cpu.model.as_kvm(Difference::ExitMsrs);
    let saves_shutdown = !cpu.model.as_kvm(Difference::ExitShutdown);
    let vmcs12 = &mut cpu.vmx.vmcs12;

    vmcs12.set(Field::GUEST_RSP, cpu.regs.get(Gpr::Rsp));
    vmcs12.set(Field::GUEST_RIP, cpu.regs.rip);
    vmcs12.set(Field::GUEST_RFLAGS, cpu.regs.rflags);

    vmcs12.set(Field::GUEST_SYSENTER_CS, cpu.msrs.sysenter_cs);
    vmcs12.set(Field::GUEST_SYSENTER_ESP, cpu.msrs.sysenter_esp);
    vmcs12.set(Field::GUEST_SYSENTER_EIP, cpu.msrs.sysenter_eip);
    if saves.contains(ExitControls::SAVE_DEBUG_CONTROLS) {
        vmcs12.set(Field::GUEST_DR7, cpu.debug.dr7);
    }
    if saves.contains(ExitControls::SAVE_EFER) {
        vmcs12.set(Field::GUEST_IA32_EFER, cpu.sregs.efer);
    }
    // Else they are in vmcs12 since L2 wrote them: see `note_msr_write`.
    if saves_msrs {
        if saves.contains(ExitControls::SAVE_DEBUG_CONTROLS) {
            vmcs12.set(Field::GUEST_IA32_DEBUGCTL, cpu.msrs.debugctl);
        }
        if saves.contains(ExitControls::SAVE_PAT) {
            vmcs12.set(Field::GUEST_IA32_PAT, cpu.msrs.pat);
        }
        if saves.contains(ExitControls::SAVE_PERF_GLOBAL_CTRL) {
            let value = cpu.msrs.perf_global_ctrl;
            vmcs12.set(Field::GUEST_IA32_PERF_GLOBAL_CTRL, value);
        }
    }

    vmcs12.set(
        Field::GUEST_INTERRUPTIBILITY_INFO,
        u64::from(cpu.interruptibility.bits()),
    );
    let activity = match cpu.activity {
        Activity::Shutdown if !saves_shutdown => Activity::Active,
        activity => activity,
    };
    vmcs12.set(Field::GUEST_ACTIVITY_STATE, activity as u64);
    vmcs12.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, cpu.pending_debug);

    let mut entry = entry_controls(vmcs12);
    entry.set(
        EntryControls::IA32E_MODE_GUEST,
        cpu.sregs.efer & efer::LMA != 0,
    );
    vmcs12.set(Field::VM_ENTRY_CONTROLS, u64::from(entry.bits()));
    if let Some(value) = timer {
        vmcs12.set(Field::VMX_PREEMPTION_TIMER_VALUE, u64::from(value));
    }
}

fn save_control_registers(cpu: &mut Cpu) {
    let sregs = &cpu.sregs;
    let vmcs12 = &mut cpu.vmx.vmcs12;
    // Bits that L1 owns cannot have changed; KVM keeps what L1 wrote there.
    let merged = |old: u64, mask: u64, now: u64| old & mask | now & !mask;
    // The SDM's entry leaves some bits of CR0 as they were, whoever owns them, and its exit saves the register.
    let cr0 = if cpu.model.as_kvm(Difference::EntryCr0) {
        merged(
            vmcs12.get(Field::GUEST_CR0),
            vmcs12.get(Field::CR0_GUEST_HOST_MASK),
            sregs.cr0,
        )
    } else {
        sregs.cr0
    };
    let cr4 = merged(
        vmcs12.get(Field::GUEST_CR4),
        vmcs12.get(Field::CR4_GUEST_HOST_MASK),
        sregs.cr4,
    );
    vmcs12.set(Field::GUEST_CR0, cr0);
    vmcs12.set(Field::GUEST_CR3, sregs.cr3);
    vmcs12.set(Field::GUEST_CR4, cr4);
    let is_pae = mode_of(sregs.cr0, sregs.cr4, sregs.efer) == PagingMode::Pae;
    if is_pae && active_secondary(vmcs12).contains(Secondary::ENABLE_EPT) {
        let fields = [
            Field::GUEST_PDPTR0,
            Field::GUEST_PDPTR1,
            Field::GUEST_PDPTR2,
            Field::GUEST_PDPTR3,
        ];
        for (field, value) in fields.into_iter().zip(sregs.pdptrs) {
            vmcs12.set(field, value);
        }
    }
}

fn save_segments(cpu: &mut Cpu) {
    use segment_fields as f;
    let sregs = &cpu.sregs;
    let vmcs12 = &mut cpu.vmx.vmcs12;
    let mut save = |fields: &SegmentFields, segment: &Segment| {
        vmcs12.set(fields.selector, u64::from(segment.selector));
        vmcs12.set(fields.base, segment.base);
        vmcs12.set(fields.limit, u64::from(segment.limit));
        vmcs12.set(fields.access_rights, u64::from(segment.ar.bits()));
    };
    save(&f::ES, &sregs.es);
    save(&f::CS, &sregs.cs);
    save(&f::SS, &sregs.ss);
    save(&f::DS, &sregs.ds);
    save(&f::FS, &sregs.fs);
    save(&f::GS, &sregs.gs);
    save(&f::LDTR, &sregs.ldtr);
    save(&f::TR, &sregs.tr);
    vmcs12.set(Field::GUEST_GDTR_BASE, sregs.gdtr.base);
    vmcs12.set(Field::GUEST_GDTR_LIMIT, u64::from(sregs.gdtr.limit));
    vmcs12.set(Field::GUEST_IDTR_BASE, sregs.idtr.base);
    vmcs12.set(Field::GUEST_IDTR_LIMIT, u64::from(sregs.idtr.limit));
}

/// Call after L2 wrote an MSR that L1 does not intercept: KVM puts some of them into vmcs12 at the
/// write instead of at the exit (`vmx_set_msr`), and so leaves the field alone where L2 wrote none.
pub fn note_msr_write(cpu: &mut Cpu, number: u32) {
    if !cpu.vmx.guest_mode || !cpu.model.as_kvm(Difference::ExitMsrs) {
        return;
    }
    let saves = exit_controls(&cpu.vmx.vmcs12);
    let (field, value) = match number {
        msr::IA32_DEBUGCTL if saves.contains(ExitControls::SAVE_DEBUG_CONTROLS) => {
            (Field::GUEST_IA32_DEBUGCTL, cpu.msrs.debugctl)
        }
        msr::IA32_PAT if saves.contains(ExitControls::SAVE_PAT) => {
            (Field::GUEST_IA32_PAT, cpu.msrs.pat)
        }
        msr::IA32_BNDCFGS => (Field::GUEST_BNDCFGS, cpu.msrs.bndcfgs),
        _ => return,
    };
    cpu.vmx.vmcs12.set(field, value);
}
