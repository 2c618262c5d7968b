//! The field values that every VMCS here starts with: a host that comes back to this L1, and a
//! 64-bit L2 at CPL 0 with page tables and descriptor tables of its own
//! (SDM Vol. 3C "Guest-State Area" and "Host-State Area").

use super::entry::{CR0, CR4};
use super::map::{self, selector};
use super::tables::GDT_LIMIT;
use super::vmcs::field::*;

/// Access rights of segments.
pub mod ar {
    /// 64-bit code, accessed.
    pub const CODE_64: u64 = 0xa09b;
    /// 32-bit code, accessed.
    pub const CODE_32: u64 = 0xc09b;
    /// 16-bit code, accessed.
    pub const CODE_16: u64 = 0x009b;
    /// 32-bit data, accessed.
    pub const DATA: u64 = 0xc093;
    /// 16-bit data, accessed.
    pub const DATA_16: u64 = 0x0093;
    /// Busy TSS.
    pub const TSS: u64 = 0x008b;
    /// Not usable.
    pub const UNUSABLE: u64 = 0x1_0000;
}

/// Host state: HOST_RSP is written on each entry.
#[must_use]
pub fn host(vm_exit: u64) -> Vec<(u32, u64)> {
    vec![
        (HOST_CR0, CR0.into()),
        (HOST_CR3, map::PAGING_L1),
        (HOST_CR4, CR4.into()),
        (HOST_CS, selector::CODE.into()),
        (HOST_SS, selector::DATA.into()),
        (HOST_DS, selector::DATA.into()),
        (HOST_ES, selector::DATA.into()),
        (HOST_TR, selector::TSS_L1.into()),
        (HOST_TR_BASE, map::TSS_L1),
        (HOST_GDTR_BASE, map::GDT),
        (HOST_IDTR_BASE, map::IDT_L1),
        (HOST_RIP, vm_exit),
    ]
}

/// Guest state of a 64-bit L2 that starts at `rip`.
#[must_use]
pub fn guest(rip: u64) -> Vec<(u32, u64)> {
    let mut fields = vec![
        (GUEST_CR0, CR0.into()),
        (GUEST_CR3, map::PAGING_L2),
        (GUEST_CR4, CR4.into()),
        (GUEST_DR7, 0x400),
        (GUEST_RIP, rip),
        (GUEST_RSP, map::STACK_L2),
        (GUEST_RFLAGS, 2),
        (GUEST_CS, selector::CODE.into()),
        (GUEST_CS_AR, ar::CODE_64),
        (GUEST_TR, selector::TSS_L2.into()),
        (GUEST_TR_BASE, map::TSS_L2),
        (GUEST_TR_LIMIT, 0x67),
        (GUEST_TR_AR, ar::TSS),
        (GUEST_LDTR_AR, ar::UNUSABLE),
        (GUEST_FS_AR, ar::UNUSABLE),
        (GUEST_GS_AR, ar::UNUSABLE),
        (GUEST_GDTR_BASE, map::GDT),
        (GUEST_GDTR_LIMIT, GDT_LIMIT.into()),
        (GUEST_IDTR_BASE, map::IDT_L2),
        (GUEST_IDTR_LIMIT, 0xfff),
        (GUEST_CS_LIMIT, 0xffff_ffff),
        (LINK_POINTER, u64::MAX),
    ];
    for (selector, limit, rights) in [
        (GUEST_SS, GUEST_SS_LIMIT, GUEST_SS_AR),
        (GUEST_DS, GUEST_DS_LIMIT, GUEST_DS_AR),
        (GUEST_ES, GUEST_ES_LIMIT, GUEST_ES_AR),
    ] {
        fields.extend([
            (selector, selector::DATA.into()),
            (limit, 0xffff_ffff),
            (rights, ar::DATA),
        ]);
    }
    fields
}

/// What changes for a real-mode L2 (unrestricted guest): 16-bit segments whose base is `base`,
/// no paging, an interrupt vector table at `base`.
#[must_use]
pub fn real_mode(base: u64, ip: u64) -> Vec<(u32, u64)> {
    let mut fields = vec![
        // NE and ET; PE and PG are clear.
        (GUEST_CR0, 0x30),
        (GUEST_CR3, 0),
        (GUEST_CR4, 0x2000),
        (GUEST_RIP, ip),
        (GUEST_RSP, 0xff0),
        (GUEST_IDTR_BASE, base),
        (GUEST_IDTR_LIMIT, 0x3ff),
    ];
    for (selector, its_base, limit, rights, value) in [
        (
            GUEST_CS,
            GUEST_CS_BASE,
            GUEST_CS_LIMIT,
            GUEST_CS_AR,
            ar::CODE_16,
        ),
        (
            GUEST_SS,
            GUEST_SS_BASE,
            GUEST_SS_LIMIT,
            GUEST_SS_AR,
            ar::DATA_16,
        ),
        (
            GUEST_DS,
            GUEST_DS_BASE,
            GUEST_DS_LIMIT,
            GUEST_DS_AR,
            ar::DATA_16,
        ),
        (
            GUEST_ES,
            GUEST_ES_BASE,
            GUEST_ES_LIMIT,
            GUEST_ES_AR,
            ar::DATA_16,
        ),
    ] {
        fields.extend([
            (selector, base >> 4 & 0xffff),
            (its_base, base),
            (limit, 0xffff),
            (rights, value),
        ]);
    }
    fields
}

/// What changes for a 32-bit L2 with PAE paging that starts at `eip`.
#[must_use]
pub fn pae(eip: u64) -> Vec<(u32, u64)> {
    vec![
        (GUEST_CR3, map::PAGING_PAE),
        (GUEST_RIP, eip),
        (GUEST_CS, selector::CODE_32.into()),
        (GUEST_CS_AR, ar::CODE_32),
        // With EPT, VM entry takes the page-directory-pointer entries from the VMCS.
        (GUEST_PDPTE0, (map::PAGING_PAE + 0x1000) | 1),
    ]
}
