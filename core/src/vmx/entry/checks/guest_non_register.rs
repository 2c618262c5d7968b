//! Rules on guest non-register state (SDM Vol. 3C "Checks on Guest Non-Register State", "Checks on
//! Guest Page-Directory-Pointer-Table Entries").
//!
//! Left out because it is up to the processor: that an NMI is not injected while STI blocks
//! (exit qualification 3), which Bochs and most processors allow.

use super::context::{Context, implies};
use super::entry_controls::{is_injecting, kind, vector};
use super::{Class, rules};
use crate::addr::L1Phys;
use crate::cpu::Interruptibility;
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::controls::{EntryControls, PinBased, Secondary};
use crate::vmx::entry::{load, pdptes};
use crate::vmx::exit::qualification::EntryFailure;
use crate::x86::control::{cr0, cr4, rflags};
use crate::x86::cpuid;
use crate::x86::{AccessRights, EventKind, Exception};

/// No VMCS link pointer.
const NO_LINK: u64 = u64::MAX;
const SHADOW_INDICATOR: u32 = 1 << 31;
/// Bits 11:4, 13, 15 and 63:17 of the pending debug exceptions.
const PENDING_DEBUG_RESERVED: u64 = !0x1_500f;
/// BS and RTM in the pending debug exceptions.
const SINGLE_STEP: u64 = 1 << 14;
const RTM: u64 = 1 << 16;
const ENABLED_BREAKPOINT: u64 = 1 << 12;
/// CPUID.(EAX=7,ECX=0):EBX.
const SGX: u32 = 1 << 2;
const HAS_RTM: u32 = 1 << 11;
/// IA32_DEBUGCTL.BTF.
const BRANCH_TRAP: u64 = 1 << 1;
const HLT: u64 = 1;
const SHUTDOWN: u64 = 2;
const WAIT_FOR_SIPI: u64 = 3;

rules! { LINK_POINTER, "Checks on Guest Non-Register State"
    => Class::InvalidGuestState(EntryFailure::LinkPointer);
    Software "guest.link_pointer.address"
        "a VMCS link pointer is a page in the physical-address width"
        [VMCS_LINK_POINTER]
        |c| implies!(has_link(c), c.page(Field::VMCS_LINK_POINTER));
    Software "guest.link_pointer.revision"
        "the region at the VMCS link pointer has the processor's VMCS revision identifier"
        [VMCS_LINK_POINTER]
        |c| implies!(has_link(c), linked_header(c)
            .is_some_and(|h| h & !SHADOW_INDICATOR == c.capability().revision()));
    Software "guest.link_pointer.shadow"
        "the region at the VMCS link pointer is a shadow VMCS exactly with \"VMCS shadowing\""
        [VMCS_LINK_POINTER SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(has_link(c), linked_header(c)
            .is_none_or(|h| (h & SHADOW_INDICATOR != 0) == c.secondary(Secondary::VMCS_SHADOWING)));
    Nobody "guest.link_pointer.not_current"
        "the VMCS link pointer is not the current VMCS"
        [VMCS_LINK_POINTER]
        |c| implies!(has_link(c), c.current != Some(L1Phys(c.get(Field::VMCS_LINK_POINTER))));
}

rules! { RULES, "Checks on Guest Non-Register State"
    => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.activity.hlt_needs_cpl_0"
        "in HLT, SS.DPL is 0"
        [GUEST_ACTIVITY_STATE GUEST_SS_AR_BYTES]
        |c| implies!(activity(c) == HLT, ss_dpl(c) == 0);
    Processor "guest.activity.blocking_needs_active"
        "with blocking by STI or MOV SS, the activity state is active"
        [GUEST_ACTIVITY_STATE GUEST_INTERRUPTIBILITY_INFO]
        |c| implies!(blocks(c, Interruptibility::STI) || blocks(c, Interruptibility::MOV_SS),
            activity(c) == 0);
    Processor "guest.activity.injection"
        "an event is only injected into an activity state that it would not be blocked in"
        [GUEST_ACTIVITY_STATE VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(is_injecting(c), activity_allows_injection(c));
    Processor "guest.activity.smm"
        "with \"entry to SMM\", the activity state is not wait-for-SIPI"
        [GUEST_ACTIVITY_STATE VM_ENTRY_CONTROLS]
        |c| implies!(c.entry(EntryControls::ENTRY_TO_SMM), activity(c) != WAIT_FOR_SIPI);
    Processor "guest.interruptibility.reserved"
        "bits 31:5 of the interruptibility state are 0"
        [GUEST_INTERRUPTIBILITY_INFO]
        |c| c.get(Field::GUEST_INTERRUPTIBILITY_INFO) >> 5 == 0;
    Processor "guest.interruptibility.sti_excludes_mov_ss"
        "there is not both blocking by STI and by MOV SS"
        [GUEST_INTERRUPTIBILITY_INFO]
        |c| !(blocks(c, Interruptibility::STI) && blocks(c, Interruptibility::MOV_SS));
    Processor "guest.interruptibility.sti_needs_if"
        "with RFLAGS.IF = 0, there is no blocking by STI"
        [GUEST_INTERRUPTIBILITY_INFO GUEST_RFLAGS]
        |c| implies!(blocks(c, Interruptibility::STI), c.get(Field::GUEST_RFLAGS) & rflags::IF != 0);
    Processor "guest.interruptibility.interrupt_injection"
        "if an external interrupt is injected, there is no blocking by STI or MOV SS"
        [GUEST_INTERRUPTIBILITY_INFO VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(injects(c, EventKind::ExternalInterrupt),
            !blocks(c, Interruptibility::STI) && !blocks(c, Interruptibility::MOV_SS));
    Processor "guest.interruptibility.nmi_injection"
        "if an NMI is injected, there is no blocking by MOV SS"
        [GUEST_INTERRUPTIBILITY_INFO VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(injects(c, EventKind::Nmi), !blocks(c, Interruptibility::MOV_SS));
    Processor "guest.interruptibility.smi"
        "outside SMM, there is no blocking by SMI"
        [GUEST_INTERRUPTIBILITY_INFO]
        |c| implies!(!c.smm, !blocks(c, Interruptibility::SMI));
    Processor "guest.interruptibility.entry_to_smm"
        "with \"entry to SMM\", there is blocking by SMI"
        [GUEST_INTERRUPTIBILITY_INFO VM_ENTRY_CONTROLS]
        |c| implies!(c.entry(EntryControls::ENTRY_TO_SMM), blocks(c, Interruptibility::SMI));
    Processor "guest.interruptibility.virtual_nmi_injection"
        "with \"virtual NMIs\", if an NMI is injected, there is no blocking by NMI"
        [GUEST_INTERRUPTIBILITY_INFO VM_ENTRY_INTR_INFO_FIELD PIN_BASED_VM_EXEC_CONTROL]
        |c| implies!(c.pin(PinBased::VIRTUAL_NMIS) && injects(c, EventKind::Nmi),
            !blocks(c, Interruptibility::NMI));
    Processor "guest.interruptibility.enclave"
        "with enclave interruption, the processor has SGX and there is no blocking by MOV SS"
        [GUEST_INTERRUPTIBILITY_INFO]
        |c| implies!(blocks(c, Interruptibility::ENCLAVE),
            has_feature(c, SGX) && !blocks(c, Interruptibility::MOV_SS));
    Processor "guest.pending_debug.reserved"
        "bits 11:4, 13, 15 and 63:17 of the pending debug exceptions are 0"
        [GUEST_PENDING_DBG_EXCEPTIONS]
        |c| pending_debug(c) & PENDING_DEBUG_RESERVED == 0;
    Processor "guest.pending_debug.single_step"
        "with blocking by STI or MOV SS or in HLT, BS is pending exactly if RFLAGS.TF is 1 and IA32_DEBUGCTL.BTF is 0"
        [GUEST_PENDING_DBG_EXCEPTIONS GUEST_INTERRUPTIBILITY_INFO GUEST_ACTIVITY_STATE GUEST_RFLAGS GUEST_IA32_DEBUGCTL]
        |c| implies!(
            blocks(c, Interruptibility::STI) || blocks(c, Interruptibility::MOV_SS) || activity(c) == HLT,
            (pending_debug(c) & SINGLE_STEP != 0) == steps(c));
    Processor "guest.pending_debug.rtm"
        "if RTM is pending, the processor has RTM, the enabled-breakpoint bit is its only company and there is no blocking by MOV SS"
        [GUEST_PENDING_DBG_EXCEPTIONS GUEST_INTERRUPTIBILITY_INFO]
        |c| implies!(pending_debug(c) & RTM != 0,
            has_feature(c, HAS_RTM)
                && pending_debug(c) == RTM | ENABLED_BREAKPOINT
                && !blocks(c, Interruptibility::MOV_SS));
}

rules! { PDPTES, "Checks on Guest Page-Directory-Pointer-Table Entries"
    => Class::InvalidGuestState(EntryFailure::Pdptes);
    SoftwareAtEntry "guest.pdptes.in_memory"
        "with PAE paging and without EPT, no present PDPTE in memory has a reserved bit set"
        [GUEST_CR0 GUEST_CR3 GUEST_CR4 SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(has_pae_paging(c) && !c.secondary(Secondary::ENABLE_EPT),
            pdptes::read(c.model, c.memory, c.get(Field::GUEST_CR3)).is_some());
    Processor "guest.pdptes.fields"
        "with PAE paging and EPT, no present PDPTE field has a reserved bit set"
        [GUEST_CR0 GUEST_CR4 SECONDARY_VM_EXEC_CONTROL GUEST_PDPTR0 GUEST_PDPTR1 GUEST_PDPTR2 GUEST_PDPTR3]
        |c| implies!(has_pae_paging(c) && c.secondary(Secondary::ENABLE_EPT),
            load::pdptrs_of(c.vmcs12).iter().all(|&entry| pdptes::is_valid(c.model, entry)));
}

fn has_link(c: &Context<'_>) -> bool {
    c.get(Field::VMCS_LINK_POINTER) != NO_LINK
}

/// The first word of the region at the link pointer, if it is RAM.
fn linked_header(c: &Context<'_>) -> Option<u32> {
    let pointer = L1Phys(c.get(Field::VMCS_LINK_POINTER));
    c.memory.read_u32(pointer).ok()
}

/// The activity state that the processor enters.
fn activity(c: &Context<'_>) -> u64 {
    if c.model.as_kvm(Difference::EntryActivity) {
        0
    } else {
        c.get(Field::GUEST_ACTIVITY_STATE)
    }
}

fn ss_dpl(c: &Context<'_>) -> u8 {
    AccessRights::from_bits_retain(c.vmcs12.get32(Field::GUEST_SS_AR_BYTES)).dpl()
}

fn blocks(c: &Context<'_>, by: Interruptibility) -> bool {
    c.get(Field::GUEST_INTERRUPTIBILITY_INFO) & u64::from(by.bits()) != 0
}

fn injects(c: &Context<'_>, what: EventKind) -> bool {
    is_injecting(c) && kind(c) == Some(what)
}

fn activity_allows_injection(c: &Context<'_>) -> bool {
    let hardware = kind(c) == Some(EventKind::HardwareException);
    match activity(c) {
        HLT => match kind(c) {
            Some(EventKind::ExternalInterrupt | EventKind::Nmi | EventKind::Other) => true,
            _ => hardware && matches!(vector(c), Exception::DB | Exception::MC),
        },
        SHUTDOWN => kind(c) == Some(EventKind::Nmi) || hardware && vector(c) == Exception::MC,
        WAIT_FOR_SIPI => false,
        _ => true,
    }
}

fn pending_debug(c: &Context<'_>) -> u64 {
    c.get(Field::GUEST_PENDING_DBG_EXCEPTIONS)
}

/// Whether CPUID.(EAX=7,ECX=0):EBX has the bit.
fn has_feature(c: &Context<'_>, bit: u32) -> bool {
    cpuid::lookup(&c.model.cpuid, 7, 0)[1] & bit != 0
}

fn steps(c: &Context<'_>) -> bool {
    c.get(Field::GUEST_RFLAGS) & rflags::TF != 0
        && c.get(Field::GUEST_IA32_DEBUGCTL) & BRANCH_TRAP == 0
}

fn has_pae_paging(c: &Context<'_>) -> bool {
    c.get(Field::GUEST_CR0) & cr0::PG != 0
        && c.get(Field::GUEST_CR4) & cr4::PAE != 0
        && !c.ia32e_guest()
}
