//! Rules on GDTR and IDTR, RIP and RFLAGS (SDM Vol. 3C "Checks on Guest Descriptor-Table Registers",
//! "Checks on Guest RIP, RFLAGS, and SSP").

use super::context::{Context, implies};
use super::entry_controls::{is_injecting, kind};
use super::{Class, rules};
use crate::vmx::Field;
use crate::vmx::controls::EntryControls;
use crate::vmx::exit::qualification::EntryFailure;
use crate::x86::control::{cr0, rflags};
use crate::x86::{AccessRights, EventKind};

/// Bits 63:22, 15, 5 and 3.
const RFLAGS_RESERVED: u64 = !0x3f_7fd7;

rules! { TABLES, "Checks on Guest Descriptor-Table Registers"
    => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.gdtr.base" "the base of GDTR is canonical" [GUEST_GDTR_BASE]
        |c| c.canonical(Field::GUEST_GDTR_BASE);
    Processor "guest.idtr.base" "the base of IDTR is canonical" [GUEST_IDTR_BASE]
        |c| c.canonical(Field::GUEST_IDTR_BASE);
    Processor "guest.gdtr.limit" "bits 31:16 of the limit of GDTR are 0" [GUEST_GDTR_LIMIT]
        |c| c.get(Field::GUEST_GDTR_LIMIT) >> 16 == 0;
    Processor "guest.idtr.limit" "bits 31:16 of the limit of IDTR are 0" [GUEST_IDTR_LIMIT]
        |c| c.get(Field::GUEST_IDTR_LIMIT) >> 16 == 0;
}

rules! { RIP_AND_RFLAGS, "Checks on Guest RIP, RFLAGS, and SSP"
    => Class::InvalidGuestState(EntryFailure::Default);
    Processor "guest.rip.upper"
        "without \"IA-32e mode guest\" or without CS.L, bits 63:32 of RIP are 0"
        [VM_ENTRY_CONTROLS GUEST_CS_AR_BYTES GUEST_RIP]
        |c| implies!(!in_64_bit_mode(c), c.get(Field::GUEST_RIP) >> 32 == 0);
    Processor "guest.rip.canonical"
        "in 64-bit mode, RIP is canonical"
        [VM_ENTRY_CONTROLS GUEST_CS_AR_BYTES GUEST_RIP]
        |c| implies!(in_64_bit_mode(c), c.canonical(Field::GUEST_RIP));
    Processor "guest.rflags.reserved"
        "bits 63:22, 15, 5 and 3 of RFLAGS are 0, bit 1 is 1"
        [GUEST_RFLAGS]
        |c| c.get(Field::GUEST_RFLAGS) & (RFLAGS_RESERVED | rflags::FIXED) == rflags::FIXED;
    Processor "guest.rflags.vm"
        "with \"IA-32e mode guest\" or without CR0.PE, RFLAGS.VM is 0"
        [VM_ENTRY_CONTROLS GUEST_CR0 GUEST_RFLAGS]
        |c| implies!(c.ia32e_guest() || c.get(Field::GUEST_CR0) & cr0::PE == 0,
            c.get(Field::GUEST_RFLAGS) & rflags::VM == 0);
    Processor "guest.rflags.if"
        "if an external interrupt is injected, RFLAGS.IF is 1"
        [VM_ENTRY_INTR_INFO_FIELD GUEST_RFLAGS]
        |c| implies!(is_injecting(c) && kind(c) == Some(EventKind::ExternalInterrupt),
            c.get(Field::GUEST_RFLAGS) & rflags::IF != 0);
    Processor "guest.ssp"
        "with \"load CET state\", bits 1:0 of SSP are 0, and it is canonical, outside 64-bit mode below 4 GiB"
        [VM_ENTRY_CONTROLS GUEST_CS_AR_BYTES GUEST_SSP]
        |c| implies!(c.entry(EntryControls::LOAD_CET_STATE), {
            let ssp = c.get(Field::GUEST_SSP);
            ssp & 3 == 0 && c.canonical_value(ssp) && (in_64_bit_mode(c) || ssp >> 32 == 0)
        });
}

fn in_64_bit_mode(c: &Context<'_>) -> bool {
    c.ia32e_guest() && c.get(Field::GUEST_CS_AR_BYTES) as u32 & AccessRights::LONG.bits() != 0
}
