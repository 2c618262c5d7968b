//! Guest paging (SDM Vol. 3A "Paging") as pure walks over guest memory.
//!
//! A [`Regime`] is built from the registers whenever one of them changes; [`translate`] then walks.
//! For L2 under EPT every paging-structure access and the final address go through
//! [`crate::vmx::ept`]. Canonicality of the linear address is the caller's matter, since it faults
//! as #GP or #SS before translation (see [`Regime::is_canonical`]).

mod walk;

#[cfg(test)]
mod tests;

use crate::addr::{L1Phys, L2Phys};
use crate::cpu::Cpu;
use crate::vmx::ept::{Ept, EptFault};
use crate::x86::Exception;
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::cpuid;

pub use walk::{guest_physical_to_l1, probe, translate};

/// Bits of the page-fault error code (SDM Vol. 3A "Page-Fault Exceptions").
pub mod error_code {
    /// The fault was no missing translation but a right or a reserved bit.
    pub const PRESENT: u32 = 1 << 0;
    /// A write.
    pub const WRITE: u32 = 1 << 1;
    /// A user-mode access.
    pub const USER: u32 = 1 << 2;
    /// A reserved bit is set.
    pub const RESERVED: u32 = 1 << 3;
    /// An instruction fetch.
    pub const FETCH: u32 = 1 << 4;
}

/// What an access does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AccessKind {
    /// Reads data.
    Read,
    /// Writes data.
    Write,
    /// Fetches an instruction.
    Fetch,
}

/// One access to a linear address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access {
    /// What it does.
    pub kind: AccessKind,
    /// User-mode: CPL is 3, and the access is not implicit.
    pub user: bool,
    /// An implicit supervisor-mode access (descriptor tables, TSS, delivery of an event): RFLAGS.AC
    /// does not lift SMAP for it, and it is no user-mode access whatever the CPL.
    pub implicit_supervisor: bool,
}

impl Access {
    /// An explicit access at this privilege level.
    #[must_use]
    pub const fn explicit(kind: AccessKind, cpl: u8) -> Self {
        Self {
            kind,
            user: cpl == 3,
            implicit_supervisor: false,
        }
    }

    /// An implicit supervisor-mode access.
    #[must_use]
    pub const fn implicit(kind: AccessKind) -> Self {
        Self {
            kind,
            user: false,
            implicit_supervisor: true,
        }
    }
}

/// Paging mode (SDM Vol. 3A "Paging-Mode Enabling").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PagingMode {
    /// CR0.PG is 0: linear is physical.
    #[default]
    None,
    /// 32-bit paging.
    Bits32,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    Level4,
    /// 5-level paging.
    Level5,
}

/// All that a walk depends on, apart from memory.
#[derive(Debug, Clone)]
pub struct Regime {
    /// Paging mode.
    pub mode: PagingMode,
    /// The table at the root (CR3 without its flags), guest-physical.
    pub root: u64,
    /// PDPTEs, for PAE paging.
    pub pdptrs: [u64; 4],
    /// CR0.WP.
    pub write_protect: bool,
    /// CR4.PSE: 4-MiB pages in 32-bit paging.
    pub page_size_extensions: bool,
    /// CR4.PGE: global translations.
    pub global_pages: bool,
    /// CR4.SMEP.
    pub smep: bool,
    /// CR4.SMAP.
    pub smap: bool,
    /// RFLAGS.AC.
    pub alignment_check: bool,
    /// EFER.NXE, in the modes that have execute-disable.
    pub execute_disable: bool,
    /// 1-GiB pages are supported.
    pub page_1g: bool,
    /// Physical-address width in bits.
    pub width: u8,
    /// Linear-address width that canonicality asks for: 48 or 57; 64 outside 64-bit paging modes.
    pub linear_width: u8,
    /// The second stage of L2.
    pub ept: Option<Ept>,
}

impl Regime {
    /// From the registers. `ept` is the second stage while L2 runs with EPT, else `None`.
    #[must_use]
    pub fn new(cpu: &Cpu, ept: Option<Ept>) -> Self {
        let sregs = &cpu.sregs;
        let mode = mode_of(sregs.cr0, sregs.cr4, sregs.efer);
        let width = match cpu.model.physical_address_width {
            0 => 36,
            width => width.min(52),
        };
        let root = match mode {
            PagingMode::None | PagingMode::Bits32 => sregs.cr3 & 0xffff_f000,
            PagingMode::Pae => sregs.cr3 & 0xffff_ffe0,
            PagingMode::Level4 | PagingMode::Level5 => sregs.cr3 & ((1 << width) - 1) & !0xfff,
        };
        Self {
            mode,
            root,
            pdptrs: sregs.pdptrs,
            write_protect: sregs.cr0 & cr0::WP != 0,
            page_size_extensions: sregs.cr4 & cr4::PSE != 0,
            global_pages: sregs.cr4 & cr4::PGE != 0,
            smep: sregs.cr4 & cr4::SMEP != 0,
            smap: sregs.cr4 & cr4::SMAP != 0,
            alignment_check: cpu.regs.rflags & rflags::AC != 0,
            execute_disable: sregs.efer & efer::NXE != 0
                && !matches!(mode, PagingMode::None | PagingMode::Bits32),
            page_1g: cpuid::lookup(&cpu.model.cpuid, 0x8000_0001, 0)[3] & 1 << 26 != 0,
            width,
            linear_width: match mode {
                PagingMode::Level4 => 48,
                PagingMode::Level5 => 57,
                _ => 64,
            },
            ept,
        }
    }

    /// Whether `linear` is canonical in this paging mode (SDM Vol. 1 "Canonical Addressing").
    #[must_use]
    pub const fn is_canonical(&self, linear: u64) -> bool {
        crate::x86::cr_write::is_canonical(linear, self.linear_width)
    }
}

/// The paging mode that CR0, CR4 and EFER select.
#[must_use]
pub const fn mode_of(cr0_value: u64, cr4_value: u64, efer_value: u64) -> PagingMode {
    if cr0_value & cr0::PG == 0 {
        PagingMode::None
    } else if cr4_value & cr4::PAE == 0 {
        PagingMode::Bits32
    } else if efer_value & efer::LMA == 0 {
        PagingMode::Pae
    } else if cr4_value & cr4::LA57 == 0 {
        PagingMode::Level4
    } else {
        PagingMode::Level5
    }
}

/// A translation and the rights that a TLB entry may carry, for the privilege of the access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// Where the byte is.
    pub physical: L1Phys,
    /// Its guest-physical address: equal to `physical` without EPT.
    pub guest_physical: L2Phys,
    /// Bytes of the page: the smaller of the guest's and EPT's.
    pub page_size: u64,
    /// Later reads of the same privilege may go through.
    pub readable: bool,
    /// Later writes may go through without another walk: allowed, and every dirty flag is set.
    pub writable: bool,
    /// Later fetches may go through.
    pub executable: bool,
    /// A user-mode address (U/S set in every entry).
    pub user: bool,
    /// Global: survives MOV to CR3.
    pub global: bool,
    /// A write that sub-page permissions allowed: the next one must ask again.
    pub sub_page: bool,
}

/// Why a linear address could not be accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WalkFault {
    /// #PF, CR2 as payload.
    PageFault(Exception),
    /// An exit of L2 because of EPT.
    Ept(EptFault),
}

impl From<EptFault> for WalkFault {
    fn from(fault: EptFault) -> Self {
        Self::Ept(fault)
    }
}
