//! Rules on VM-entry control fields (SDM Vol. 3C "VM-Entry Control Fields" under "Checks on VMX
//! Controls").

use super::Class::InvalidControl;
use super::context::{Context, implies};
use super::rules;
use crate::vmx::Field;
use crate::vmx::capability::ControlField;
use crate::vmx::controls::{EntryControls, Primary};
use crate::x86::control::cr0;
use crate::x86::{EventKind, Exception};

const DELIVER_ERROR_CODE: u64 = 1 << 11;
const RESERVED: u64 = 0x7fff_f000;
const VALID: u64 = 1 << 31;

rules! { RULES, "VM-Entry Control Fields" => InvalidControl;
    Software "control.entry.reserved"
        "reserved bits of the VM-entry controls are as IA32_VMX_(TRUE_)ENTRY_CTLS says"
        [VM_ENTRY_CONTROLS]
        |c| c.control_allowed(Field::VM_ENTRY_CONTROLS, ControlField::Entry);
    Software "control.entry.msr_load_list"
        "if the VM-entry MSR-load count is not 0, the list is 16-byte aligned in the physical-address width"
        [VM_ENTRY_MSR_LOAD_ADDR VM_ENTRY_MSR_LOAD_COUNT]
        |c| c.msr_list(Field::VM_ENTRY_MSR_LOAD_ADDR, Field::VM_ENTRY_MSR_LOAD_COUNT);
    Processor "control.entry.smm"
        "outside SMM, \"entry to SMM\" and \"deactivate dual-monitor treatment\" are 0"
        [VM_ENTRY_CONTROLS]
        |c| implies!(!c.smm, !c.entry(EntryControls::ENTRY_TO_SMM)
            && !c.entry(EntryControls::DEACTIVATE_DUAL_MONITOR_TREATMENT));
}

rules! {
    /// Fields relevant to VM-entry event injection; they hold if nothing is injected.
    INJECTION, "VM-Entry Control Fields" => InvalidControl;
    Software "control.injection.type"
        "the type of an injected event is not 1, and 7 only with support for \"monitor trap flag\""
        [VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(is_injecting(c), match kind(c) {
            None => false,
            Some(EventKind::Other) => supports_monitor_trap_flag(c),
            Some(_) => true,
        });
    Software "control.injection.vector"
        "the vector is 2 for an NMI, at most 31 for a hardware exception, 0 for an other event"
        [VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(is_injecting(c), match kind(c) {
            Some(EventKind::Nmi) => vector(c) == Exception::NMI,
            Some(EventKind::HardwareException) => vector(c) <= 31,
            Some(EventKind::Other) => vector(c) == 0,
            _ => true,
        });
    Software "control.injection.deliver_error_code"
        "an error code is delivered exactly with a hardware exception that has one, in protected mode"
        [VM_ENTRY_INTR_INFO_FIELD GUEST_CR0 SECONDARY_VM_EXEC_CONTROL]
        |c| implies!(is_injecting(c), delivers_error_code(c) == should_deliver_error_code(c)
            || any_error_code(c));
    Software "control.injection.error_code"
        "bits 31:16 of an error code that is delivered are 0"
        [VM_ENTRY_INTR_INFO_FIELD VM_ENTRY_EXCEPTION_ERROR_CODE]
        |c| implies!(is_injecting(c) && delivers_error_code(c),
            c.get(Field::VM_ENTRY_EXCEPTION_ERROR_CODE) >> 16 == 0);
    Software "control.injection.reserved"
        "bits 30:12 of the interruption information of an injected event are 0"
        [VM_ENTRY_INTR_INFO_FIELD]
        |c| implies!(is_injecting(c), information(c) & RESERVED == 0);
    Software "control.injection.instruction_length"
        "the instruction length of an injected software event is 1 to 15, or 0 where that is supported"
        [VM_ENTRY_INTR_INFO_FIELD VM_ENTRY_INSTRUCTION_LEN]
        |c| implies!(is_injecting(c) && is_software(c), match c.get(Field::VM_ENTRY_INSTRUCTION_LEN) {
            0 => c.capability().zero_length_injection(),
            length => length <= 15,
        });
}

fn information(c: &Context<'_>) -> u64 {
    c.get(Field::VM_ENTRY_INTR_INFO_FIELD)
}

/// Whether the VM entry injects an event.
pub(super) fn is_injecting(c: &Context<'_>) -> bool {
    information(c) & VALID != 0
}

/// The type of the event to be injected; `None` for the reserved type.
pub(super) fn kind(c: &Context<'_>) -> Option<EventKind> {
    EventKind::from_bits((information(c) >> 8 & 7) as u8)
}

/// The vector of the event to be injected.
pub(super) fn vector(c: &Context<'_>) -> u8 {
    information(c) as u8
}

fn is_software(c: &Context<'_>) -> bool {
    matches!(
        kind(c),
        Some(
            EventKind::SoftwareInterrupt
                | EventKind::PrivilegedSoftwareException
                | EventKind::SoftwareException
        )
    )
}

fn delivers_error_code(c: &Context<'_>) -> bool {
    information(c) & DELIVER_ERROR_CODE != 0
}

fn in_protected_mode(c: &Context<'_>) -> bool {
    !c.unrestricted() || c.get(Field::GUEST_CR0) & cr0::PE != 0
}

fn should_deliver_error_code(c: &Context<'_>) -> bool {
    kind(c) == Some(EventKind::HardwareException)
        && in_protected_mode(c)
        && matches!(
            vector(c),
            Exception::DF
                | Exception::TS
                | Exception::NP
                | Exception::SS
                | Exception::GP
                | Exception::PF
                | Exception::AC
        )
}

fn any_error_code(c: &Context<'_>) -> bool {
    c.capability().any_error_code()
        && kind(c) == Some(EventKind::HardwareException)
        && in_protected_mode(c)
}

fn supports_monitor_trap_flag(c: &Context<'_>) -> bool {
    let allowed = c.capability().allowed(ControlField::Primary);
    allowed.may_be_one & u64::from(Primary::MONITOR_TRAP_FLAG.bits()) != 0
}
