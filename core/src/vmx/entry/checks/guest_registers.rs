//! Rules on guest control registers, debug registers and MSRs (SDM Vol. 3C "Checks on Guest Control
//! Registers, Debug Registers, and MSRs").

use super::context::{Context, implies, pat_is_valid, s_cet_is_valid};
use super::{Class, rules};
use crate::vmx::Field;
use crate::vmx::controls::EntryControls;
use crate::vmx::exit::qualification::EntryFailure;
use crate::x86::control::{cr0, cr4, efer};

/// Where the rule on CR3 is in [`MORE_RULES`].
pub(super) const CR3: usize = 10;
/// Bits 11:2 of IA32_BNDCFGS.
const BNDCFGS_RESERVED: u64 = 0xffc;

rules! {
    /// What KVM checks before the VMCS link pointer.
    RULES, "Checks on Guest Control Registers, Debug Registers, and MSRs"
    => Class::InvalidGuestState(EntryFailure::Default);
    Software "guest.cr0"
        "CR0 has no value that VMX operation does not support (PE and PG are free with \"unrestricted guest\")"
        [GUEST_CR0 SECONDARY_VM_EXEC_CONTROL]
        |c| {
            let free = if c.unrestricted() { cr0::PE | cr0::PG } else { 0 };
            c.capability().cr0().violations(c.get(Field::GUEST_CR0)) & !free == 0
        };
    Software "guest.cr4"
        "CR4 has no value that VMX operation does not support"
        [GUEST_CR4]
        |c| c.capability().cr4().permits(c.get(Field::GUEST_CR4));
    Software "guest.dr7"
        "with \"load debug controls\", bits 63:32 of DR7 are 0"
        [VM_ENTRY_CONTROLS GUEST_DR7]
        |c| implies!(c.entry(EntryControls::LOAD_DEBUG_CONTROLS), c.get(Field::GUEST_DR7) >> 32 == 0);
    Software "guest.debugctl"
        "with \"load debug controls\", reserved bits of IA32_DEBUGCTL are 0"
        [VM_ENTRY_CONTROLS GUEST_IA32_DEBUGCTL]
        |c| implies!(c.entry(EntryControls::LOAD_DEBUG_CONTROLS),
            c.get(Field::GUEST_IA32_DEBUGCTL) & c.debugctl_reserved() == 0);
    Software "guest.pat"
        "with \"load IA32_PAT\", each byte of it is a memory type"
        [VM_ENTRY_CONTROLS GUEST_IA32_PAT]
        |c| implies!(c.entry(EntryControls::LOAD_PAT), pat_is_valid(c.get(Field::GUEST_IA32_PAT)));
}

rules! {
    /// What KVM checks after the VMCS link pointer.
    MORE_RULES, "Checks on Guest Control Registers, Debug Registers, and MSRs"
    => Class::InvalidGuestState(EntryFailure::Default);
    Software "guest.perf_global_ctrl"
        "with \"load IA32_PERF_GLOBAL_CTRL\", reserved bits of it are 0"
        [VM_ENTRY_CONTROLS GUEST_IA32_PERF_GLOBAL_CTRL]
        |c| implies!(c.entry(EntryControls::LOAD_PERF_GLOBAL_CTRL),
            c.get(Field::GUEST_IA32_PERF_GLOBAL_CTRL) & c.perf_global_ctrl_reserved() == 0);
    Software "guest.cr0.pg_needs_pe"
        "if CR0.PG is 1, CR0.PE is 1"
        [GUEST_CR0]
        |c| implies!(has_paging(c), c.get(Field::GUEST_CR0) & cr0::PE != 0);
    Software "guest.ia32e_needs_pae"
        "with \"IA-32e mode guest\", CR4.PAE is 1"
        [VM_ENTRY_CONTROLS GUEST_CR4]
        |c| implies!(c.ia32e_guest(), c.get(Field::GUEST_CR4) & cr4::PAE != 0);
    Software "guest.ia32e_needs_pg"
        "with \"IA-32e mode guest\", CR0.PG is 1"
        [VM_ENTRY_CONTROLS GUEST_CR0]
        |c| implies!(c.ia32e_guest(), has_paging(c));
    SoftwareIfPending "guest.efer.reserved"
        "with \"load IA32_EFER\", reserved bits of it are 0"
        [VM_ENTRY_CONTROLS GUEST_IA32_EFER]
        |c| implies!(loads_efer(c), c.get(Field::GUEST_IA32_EFER) & c.efer_reserved() == 0);
    SoftwareIfPending "guest.efer.lma"
        "with \"load IA32_EFER\", LMA of it equals \"IA-32e mode guest\""
        [VM_ENTRY_CONTROLS GUEST_IA32_EFER]
        |c| implies!(loads_efer(c),
            (c.get(Field::GUEST_IA32_EFER) & efer::LMA != 0) == c.ia32e_guest());
    SoftwareIfPending "guest.efer.lme"
        "with \"load IA32_EFER\" and CR0.PG, LME of it equals LMA"
        [VM_ENTRY_CONTROLS GUEST_IA32_EFER GUEST_CR0]
        |c| implies!(loads_efer(c) && has_paging(c),
            (c.get(Field::GUEST_IA32_EFER) & efer::LME != 0) == c.ia32e_guest());
    Software "guest.bndcfgs.reserved"
        "with \"load IA32_BNDCFGS\", bits 11:2 of it are 0"
        [VM_ENTRY_CONTROLS GUEST_BNDCFGS]
        |c| implies!(loads_bndcfgs(c), c.get(Field::GUEST_BNDCFGS) & BNDCFGS_RESERVED == 0);
    Software "guest.bndcfgs.base"
        "with \"load IA32_BNDCFGS\", the linear address in it is canonical"
        [VM_ENTRY_CONTROLS GUEST_BNDCFGS]
        |c| implies!(loads_bndcfgs(c), c.canonical_value(c.get(Field::GUEST_BNDCFGS) & !0xfff));
    Software "guest.activity.exists"
        "the activity state is one that IA32_VMX_MISC[8:6] reports"
        [GUEST_ACTIVITY_STATE]
        |c| c.capability().allows_activity(c.vmcs12.get32(Field::GUEST_ACTIVITY_STATE));
    SoftwareAtEntry "guest.cr3"
        "CR3 has no bits beyond the physical-address width"
        [GUEST_CR3]
        |c| c.in_width(c.get(Field::GUEST_CR3));
    Processor "guest.cr4.pcide_needs_ia32e"
        "without \"IA-32e mode guest\", CR4.PCIDE is 0"
        [VM_ENTRY_CONTROLS GUEST_CR4]
        |c| implies!(!c.ia32e_guest(), c.get(Field::GUEST_CR4) & cr4::PCIDE == 0);
    Processor "guest.sysenter_esp"
        "IA32_SYSENTER_ESP is canonical"
        [GUEST_SYSENTER_ESP]
        |c| c.canonical(Field::GUEST_SYSENTER_ESP);
    Processor "guest.sysenter_eip"
        "IA32_SYSENTER_EIP is canonical"
        [GUEST_SYSENTER_EIP]
        |c| c.canonical(Field::GUEST_SYSENTER_EIP);
    Processor "guest.cr4.cet_needs_wp"
        "if CR4.CET is 1, CR0.WP is 1"
        [GUEST_CR4 GUEST_CR0]
        |c| implies!(c.get(Field::GUEST_CR4) & cr4::CET != 0, c.get(Field::GUEST_CR0) & cr0::WP != 0);
    Processor "guest.s_cet"
        "with \"load CET state\", IA32_S_CET is canonical, its reserved bits are 0, and SUPPRESS and TRACKER are not both 1"
        [VM_ENTRY_CONTROLS GUEST_S_CET]
        |c| implies!(c.entry(EntryControls::LOAD_CET_STATE),
            c.canonical(Field::GUEST_S_CET) && s_cet_is_valid(c.get(Field::GUEST_S_CET)));
    Processor "guest.interrupt_ssp_table"
        "with \"load CET state\", IA32_INTERRUPT_SSP_TABLE_ADDR is canonical"
        [VM_ENTRY_CONTROLS GUEST_INTR_SSP_TABLE]
        |c| implies!(c.entry(EntryControls::LOAD_CET_STATE), c.canonical(Field::GUEST_INTR_SSP_TABLE));
    Processor "guest.pkrs"
        "with \"load PKRS\", bits 63:32 of IA32_PKRS are 0"
        [VM_ENTRY_CONTROLS GUEST_IA32_PKRS]
        |c| implies!(c.entry(EntryControls::LOAD_PKRS), c.get(Field::GUEST_IA32_PKRS) >> 32 == 0);
}

fn has_paging(c: &Context<'_>) -> bool {
    c.get(Field::GUEST_CR0) & cr0::PG != 0
}

fn loads_efer(c: &Context<'_>) -> bool {
    c.entry(EntryControls::LOAD_EFER)
}

fn loads_bndcfgs(c: &Context<'_>) -> bool {
    c.entry(EntryControls::LOAD_BNDCFGS)
}
