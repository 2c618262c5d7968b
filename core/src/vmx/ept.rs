//! The extended page-table mechanism (SDM Vol. 3C "The Extended Page Table Mechanism (EPT)"):
//! from a guest-physical address of L2 to one of L1, or the EPT violation, misconfiguration or full
//! page-modification log that stands in the way.

use super::Field;
use super::apic_virtualization::{AccessKind, PageAccess};
use super::controls::{Primary, Secondary};
use crate::addr::{L1Phys, L2Phys, PAGE_SIZE};
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use std::cell::Cell;

/// Bits of IA32_VMX_EPT_VPID_CAP that decide what an EPTP and an EPT entry may say
/// (SDM Vol. 3D, appendix "VPID and EPT Capabilities").
pub mod capability {
    /// Execute-only translations.
    pub const EXECUTE_ONLY: u64 = 1 << 0;
    /// Page-walk length 4.
    pub const WALK_LENGTH_4: u64 = 1 << 6;
    /// Page-walk length 5.
    pub const WALK_LENGTH_5: u64 = 1 << 7;
    /// EPT paging structures may be uncacheable.
    pub const UNCACHEABLE: u64 = 1 << 8;
    /// EPT paging structures may be write-back.
    pub const WRITE_BACK: u64 = 1 << 14;
    /// 2-MiB pages.
    pub const PAGE_2M: u64 = 1 << 16;
    /// 1-GiB pages.
    pub const PAGE_1G: u64 = 1 << 17;
    /// Accessed and dirty flags.
    pub const ACCESSED_DIRTY: u64 = 1 << 21;
    /// Advanced VM-exit information for EPT violations.
    pub const ADVANCED_INFORMATION: u64 = 1 << 22;
    /// Supervisor shadow-stack pages.
    pub const SUPERVISOR_SHADOW_STACK: u64 = 1 << 23;
}

/// Bits of the exit qualification for EPT violations
/// (SDM Vol. 3C, table "Exit Qualification for EPT Violations").
pub mod qualification {
    /// Data read.
    pub const READ: u64 = 1 << 0;
    /// Data write.
    pub const WRITE: u64 = 1 << 1;
    /// Instruction fetch.
    pub const FETCH: u64 = 1 << 2;
    /// The entries allow reads.
    pub const READABLE: u64 = 1 << 3;
    /// The entries allow writes.
    pub const WRITABLE: u64 = 1 << 4;
    /// The entries allow (supervisor-mode) fetches.
    pub const EXECUTABLE: u64 = 1 << 5;
    /// The entries allow user-mode fetches (with mode-based execute control only).
    pub const USER_EXECUTABLE: u64 = 1 << 6;
    /// The guest linear-address field is valid.
    pub const LINEAR_VALID: u64 = 1 << 7;
    /// The access was to the translation of the linear address, not to a paging structure.
    pub const TRANSLATED: u64 = 1 << 8;
    /// Advanced information: guest paging makes the linear address a user-mode one.
    pub const LINEAR_USER: u64 = 1 << 9;
    /// Advanced information: guest paging lets the page be written.
    pub const LINEAR_WRITABLE: u64 = 1 << 10;
    /// Advanced information: guest paging bars instruction fetches.
    pub const LINEAR_EXECUTE_DISABLE: u64 = 1 << 11;
    /// NMI unblocking due to IRET.
    pub const NMI_UNBLOCKING: u64 = 1 << 12;
}

const READ: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const EXECUTE: u64 = 1 << 2;
const PAGE: u64 = 1 << 7;
const ACCESSED: u64 = 1 << 8;
const DIRTY: u64 = 1 << 9;
const USER_EXECUTE: u64 = 1 << 10;
/// Bit 61 of the entry of a 4-KiB page: writes are decided by its sub-page permissions.
const SUB_PAGE: u64 = 1 << 61;
/// Bit 63: suppress #VE.
const SUPPRESS_VE: u64 = 1 << 63;

/// The page-modification log (SDM Vol. 3C "Page-Modification Logging").
#[derive(Debug, Clone)]
pub struct PageModificationLog {
    /// The 4-KiB log of 512 addresses.
    pub address: L1Phys,
    /// PML index: the entry to be written next; counts down, and past zero means full.
    pub index: Cell<u16>,
}

/// What an EPT walk needs to know; built at VM entry from the EPTP and the capabilities.
#[derive(Debug, Clone)]
pub struct Ept {
    /// The table at the root.
    pub root: L1Phys,
    /// Page-walk length: 4 or 5.
    pub levels: u8,
    /// Accessed and dirty flags are kept (EPTP bit 6).
    pub accessed_dirty: bool,
    /// Entries may be execute-only.
    pub execute_only: bool,
    /// 2-MiB pages are supported.
    pub page_2m: bool,
    /// 1-GiB pages are supported.
    pub page_1g: bool,
    /// Mode-based execute control for EPT is on.
    pub mode_based_execute: bool,
    /// Violations report the rights of the guest's own translation.
    pub advanced_information: bool,
    /// The sub-page-permission table, where that control is on.
    pub sub_page_table: Option<L1Phys>,
    /// Physical-address width in bits.
    pub width: u8,
    /// Page-modification log, where that control is on.
    pub log: Option<PageModificationLog>,
    /// The APIC-access page, where that control is on.
    pub apic_access_page: Option<L1Phys>,
}

impl Ept {
    /// From an EPTP that [`eptp_is_valid`], IA32_VMX_EPT_VPID_CAP and the physical-address width.
    #[must_use]
    pub const fn new(eptp: u64, capabilities: u64, width: u8) -> Self {
        Self {
            root: L1Phys(eptp & address_mask(width)),
            // VM entry accepts no other length than 4 and 5.
            levels: if eptp >> 3 & 7 == 4 { 5 } else { 4 },
            accessed_dirty: eptp & 1 << 6 != 0,
            execute_only: capabilities & capability::EXECUTE_ONLY != 0,
            page_2m: capabilities & capability::PAGE_2M != 0,
            page_1g: capabilities & capability::PAGE_1G != 0,
            mode_based_execute: false,
            advanced_information: capabilities & capability::ADVANCED_INFORMATION != 0,
            sub_page_table: None,
            width,
            log: None,
            apic_access_page: None,
        }
    }

    /// The second stage of L2 as its vmcs12 sets it up; `None` in L1 or where L2 runs without EPT.
    ///
    /// The log's index counts in this copy from there on: write it back to GUEST_PML_INDEX before the
    /// vmcs12 is looked at.
    #[must_use]
    pub fn of_l2(cpu: &Cpu) -> Option<Self> {
        let vmcs12 = &cpu.vmx.vmcs12;
        if !cpu.vmx.guest_mode {
            return None;
        }
        let primary =
            Primary::from_bits_retain(vmcs12.get(Field::CPU_BASED_VM_EXEC_CONTROL) as u32);
        let secondary =
            Secondary::from_bits_retain(vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL) as u32);
        if !primary.contains(Primary::ACTIVATE_SECONDARY_CONTROLS)
            || !secondary.contains(Secondary::ENABLE_EPT)
        {
            return None;
        }
        let capabilities = cpu.model.vmx_msrs
            [(crate::x86::msr::IA32_VMX_EPT_VPID_CAP - crate::x86::msr::IA32_VMX_BASIC) as usize];
        let width = match cpu.model.physical_address_width {
            0 => 36,
            width => width,
        };
        let log = secondary
            .contains(Secondary::ENABLE_PML)
            .then(|| PageModificationLog {
                address: L1Phys(vmcs12.get(Field::PML_ADDRESS)),
                index: Cell::new(vmcs12.get(Field::GUEST_PML_INDEX) as u16),
            });
        let sub_page_table = secondary
            .contains(Secondary::SUB_PAGE_WRITE_PERMISSIONS)
            .then(|| L1Phys(vmcs12.get(Field::SPP_TABLE_POINTER)));
        Some(Self {
            sub_page_table,
            mode_based_execute: secondary.contains(Secondary::MODE_BASED_EXECUTE_CONTROL),
            log,
            apic_access_page: secondary
                .contains(Secondary::VIRTUALIZE_APIC_ACCESSES)
                .then(|| L1Phys(vmcs12.get(Field::APIC_ACCESS_ADDR))),
            ..Self::new(vmcs12.get(Field::EPT_POINTER), capabilities, width)
        })
    }
}

/// Whether VM entry accepts an EPTP (SDM Vol. 3C "VM-Execution Control Fields", rule on EPTP).
#[must_use]
pub const fn eptp_is_valid(eptp: u64, capabilities: u64, width: u8) -> bool {
    let memory_type = match eptp & 7 {
        0 => capabilities & capability::UNCACHEABLE != 0,
        6 => capabilities & capability::WRITE_BACK != 0,
        _ => false,
    };
    let walk_length = match eptp >> 3 & 7 {
        3 => capabilities & capability::WALK_LENGTH_4 != 0,
        4 => capabilities & capability::WALK_LENGTH_5 != 0,
        _ => false,
    };
    let accessed_dirty = eptp & 1 << 6 == 0 || capabilities & capability::ACCESSED_DIRTY != 0;
    let shadow_stack =
        eptp & 1 << 7 == 0 || capabilities & capability::SUPERVISOR_SHADOW_STACK != 0;
    memory_type
        && walk_length
        && accessed_dirty
        && shadow_stack
        && eptp & 0xf00 == 0
        && eptp & !(address_mask(width) | 0xfff) == 0
}

/// Bits `width-1:12`.
const fn address_mask(width: u8) -> u64 {
    let width = if width > 52 { 52 } else { width };
    ((1 << width) - 1) & !(PAGE_SIZE - 1)
}

/// One access to a guest-physical address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EptAccess {
    /// Reads data.
    pub read: bool,
    /// Writes data.
    pub write: bool,
    /// Fetches an instruction.
    pub fetch: bool,
    /// The linear address is a user-mode one (U/S set in its translation): what mode-based execute
    /// control asks.
    pub user: bool,
    /// The linear address that is being translated; `None` for an access that has none (the load of
    /// PDPTEs by MOV to CR).
    pub linear: Option<u64>,
    /// Guest paging lets the page of the linear address be written.
    pub linear_writable: bool,
    /// Guest paging bars fetches from the page of the linear address.
    pub linear_execute_disable: bool,
    /// The access is to a paging structure of the guest on the way to the linear address.
    pub paging_structure: bool,
}

impl EptAccess {
    const NONE: Self = Self {
        read: false,
        write: false,
        fetch: false,
        user: false,
        linear: None,
        linear_writable: false,
        linear_execute_disable: false,
        paging_structure: false,
    };

    /// The load of PDPTEs: a plain read even with EPT's accessed and dirty flags (SDM Vol. 3C "Accessed
    /// and Dirty Flags for EPT").
    pub const PDPTES: Self = Self {
        read: true,
        paging_structure: true,
        ..Self::NONE
    };

    /// A read of a guest paging-structure entry on the way to `linear`.
    #[must_use]
    pub const fn page_walk(linear: u64) -> Self {
        Self {
            read: true,
            linear: Some(linear),
            paging_structure: true,
            ..Self::NONE
        }
    }
}

/// Why an access to a guest-physical address failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EptFault {
    /// EPT violation (exit reason 48).
    Violation {
        /// Where.
        guest_physical: L2Phys,
        /// Guest linear address, if bit 7 of the qualification is set.
        guest_linear: Option<u64>,
        /// Exit qualification, NMI unblocking (bit 12) apart.
        qualification: u64,
        /// The entry that refused does not suppress #VE.
        convertible: bool,
    },
    /// EPT misconfiguration (exit reason 49).
    Misconfiguration {
        /// Where.
        guest_physical: L2Phys,
    },
    /// SPP-related event (exit reason 66): the sub-page-permission table has no answer.
    SubPage {
        /// Where.
        guest_physical: L2Phys,
        /// Guest linear address.
        guest_linear: Option<u64>,
        /// An entry is not valid, instead of having reserved bits set.
        miss: bool,
    },
    /// A dirty flag would have to be set and the page-modification log is full (exit reason 62).
    LogFull {
        /// Where.
        guest_physical: L2Phys,
    },
    /// The access ends on the APIC-access page, with EPT or without (SDM Vol. 3C "Virtualizing
    /// Memory-Mapped APIC Accesses"; exit reason 44).
    ApicAccess(PageAccess),
}

/// A translation, with the rights that may be kept for the whole page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EptMapping {
    /// Where the byte is.
    pub physical: L1Phys,
    /// Bytes of the page: 4 KiB, 2 MiB or 1 GiB.
    pub page_size: u64,
    /// May be read.
    pub readable: bool,
    /// May be written without another walk: allowed, and the dirty flag (if kept) is set.
    pub writable: bool,
    /// May be fetched by the mode (user or supervisor) of the access.
    pub executable: bool,
    /// The write was allowed for these 128 bytes alone: the next one must ask again.
    pub sub_page: bool,
}

/// Translates `guest_physical`, setting accessed and dirty flags and logging as configured.
pub fn translate<M: GuestMemory + ?Sized>(
    memory: &M,
    ept: &Ept,
    guest_physical: L2Phys,
    access: EptAccess,
) -> Result<EptMapping, EptFault> {
    walk::<M, true>(memory, ept, guest_physical, access)
}

/// Translates without a trace in memory: no flag is set and nothing is logged.
pub fn probe<M: GuestMemory + ?Sized>(
    memory: &M,
    ept: &Ept,
    guest_physical: L2Phys,
    access: EptAccess,
) -> Result<EptMapping, EptFault> {
    walk::<M, false>(memory, ept, guest_physical, access)
}

/// [`translate`] or [`probe`], chosen at compile time.
pub(crate) fn walk<M: GuestMemory + ?Sized, const COMMIT: bool>(
    memory: &M,
    ept: &Ept,
    guest_physical: L2Phys,
    mut access: EptAccess,
) -> Result<EptMapping, EptFault> {
    // SDM "Accessed and Dirty Flags for EPT": with the flags on, accesses to guest paging structures
    // count as writes; the load of PDPTEs, which has no linear address, does not.
    if ept.accessed_dirty && access.paging_structure && access.linear.is_some() {
        access.write = true;
    }
    let violation = |rights: u64, entry: u64| EptFault::Violation {
        guest_physical,
        guest_linear: access.linear,
        qualification: violation_qualification(ept, access, rights),
        convertible: entry & SUPPRESS_VE == 0,
    };

    // A guest-physical address wider than the walk has no translation.
    let top = 12 + 9 * u32::from(ept.levels);
    if guest_physical.0 >> top != 0 {
        return Err(violation(0, SUPPRESS_VE));
    }

    let mut visited = [(L1Phys(0), 0u64); 5];
    let mut depth = 0;
    let mut rights = READ | WRITE | EXECUTE | USER_EXECUTE;
    let mut table = ept.root.0;
    let mut level = u32::from(ept.levels);
    let (leaf, page_size) = loop {
        let shift = 12 + 9 * (level - 1);
        let address = L1Phys(table | (guest_physical.0 >> shift & 0x1ff) << 3);
        // A table outside RAM reads as not present, as KVM has it.
        let entry = memory.read_u64(address).unwrap_or(0);
        rights &= entry;
        let present_bits = if ept.mode_based_execute {
            READ | WRITE | EXECUTE | USER_EXECUTE
        } else {
            READ | WRITE | EXECUTE
        };
        if entry & present_bits == 0 {
            return Err(violation(rights, entry));
        }
        let leaf = level == 1 || (entry & PAGE != 0 && level <= 3);
        if is_misconfigured(ept, entry, level, leaf) {
            return Err(EptFault::Misconfiguration { guest_physical });
        }
        visited[depth] = (address, entry);
        depth += 1;
        if leaf {
            break (entry, 1u64 << shift);
        }
        table = entry & address_mask(52);
        level -= 1;
    };

    let execute = if ept.mode_based_execute && access.user {
        USER_EXECUTE
    } else {
        EXECUTE
    };
    let denied = access.read && rights & READ == 0 || access.fetch && rights & execute == 0;
    let mut sub_page = false;
    if access.write && rights & WRITE == 0 && !denied {
        // Only the page's own entry bars the write, and it refers to the sub-page permissions.
        let upper = visited[..depth - 1].iter().all(|(_, e)| e & WRITE != 0);
        let eligible = page_size == PAGE_SIZE && leaf & SUB_PAGE != 0 && upper;
        sub_page = match ept.sub_page_table {
            Some(table) if eligible && !access.paging_structure => {
                sub_page::may_write(memory, table, ept.width, guest_physical, access.linear)?
            }
            _ => false,
        };
    }
    if denied || access.write && rights & WRITE == 0 && !sub_page {
        return Err(violation(rights, leaf));
    }

    let mut dirty = leaf & DIRTY != 0;
    if COMMIT && ept.accessed_dirty {
        if access.write && !dirty {
            log_modification(memory, ept, guest_physical)?;
            dirty = true;
        }
        for (i, &(address, entry)) in visited[..depth].iter().enumerate() {
            let mut updated = entry | ACCESSED;
            if i + 1 == depth && dirty {
                updated |= DIRTY;
            }
            if updated != entry {
                // The entry was read from there a moment ago; if the write misses, so be it.
                let _ = memory.write_u64(address, updated);
            }
        }
    }

    let physical =
        L1Phys(leaf & address_mask(52) & !(page_size - 1) | guest_physical.0 & (page_size - 1));
    // SDM "Guest-Physical Accesses to the APIC-Access Page": an exit always, and below EPT violations.
    // What linear addresses translate to is the caller's to look at.
    if (access.paging_structure || access.linear.is_none())
        && let Some(page) = ept.apic_access_page
        && page == physical.page()
    {
        return Err(EptFault::ApicAccess(PageAccess {
            offset: physical.page_offset() as u16,
            kind: AccessKind::GuestPhysical,
        }));
    }

    Ok(EptMapping {
        physical,
        page_size,
        readable: rights & READ != 0,
        writable: rights & WRITE != 0 && (!ept.accessed_dirty || dirty),
        executable: rights & execute != 0,
        sub_page,
    })
}

/// SDM Vol. 3C, table "Exit Qualification for EPT Violations".
fn violation_qualification(ept: &Ept, access: EptAccess, rights: u64) -> u64 {
    let mut q = 0;
    let mut set = |condition: bool, bit: u64| {
        if condition {
            q |= bit;
        }
    };
    set(access.read, qualification::READ);
    set(access.write, qualification::WRITE);
    set(access.fetch, qualification::FETCH);
    set(rights & READ != 0, qualification::READABLE);
    set(rights & WRITE != 0, qualification::WRITABLE);
    set(rights & EXECUTE != 0, qualification::EXECUTABLE);
    set(
        ept.mode_based_execute && rights & USER_EXECUTE != 0,
        qualification::USER_EXECUTABLE,
    );
    set(access.linear.is_some(), qualification::LINEAR_VALID);
    set(
        access.linear.is_some() && !access.paging_structure,
        qualification::TRANSLATED,
    );
    if ept.advanced_information && access.linear.is_some() && !access.paging_structure {
        set(access.user, qualification::LINEAR_USER);
        set(access.linear_writable, qualification::LINEAR_WRITABLE);
        let disabled = access.linear_execute_disable;
        set(disabled, qualification::LINEAR_EXECUTE_DISABLE);
    }
    q
}

/// SDM Vol. 3C "EPT Misconfigurations".
fn is_misconfigured(ept: &Ept, entry: u64, level: u32, leaf: bool) -> bool {
    let execute = if ept.mode_based_execute {
        EXECUTE | USER_EXECUTE
    } else {
        EXECUTE
    };
    if entry & READ == 0 && (entry & WRITE != 0 || entry & execute != 0 && !ept.execute_only) {
        return true;
    }
    let mut reserved = address_mask(52) & !address_mask(ept.width);
    if leaf {
        match level {
            3 if !ept.page_1g => return true,
            2 if !ept.page_2m => return true,
            3 => reserved |= 0x3fff_f000,
            2 => reserved |= 0x001f_f000,
            _ => {}
        }
        if matches!(entry >> 3 & 7, 2 | 3 | 7) {
            return true;
        }
    } else {
        // Bits 6:3 in every entry that references a table; bit 7 too where no page can be mapped.
        reserved |= if level >= 4 { 0xf8 } else { 0x78 };
    }
    entry & reserved != 0
}

/// SDM Vol. 3C "Page-Modification Logging": the log is written before the dirty flag.
fn log_modification<M: GuestMemory + ?Sized>(
    memory: &M,
    ept: &Ept,
    guest_physical: L2Phys,
) -> Result<(), EptFault> {
    let Some(log) = &ept.log else {
        return Ok(());
    };
    let index = log.index.get();
    if index > 511 {
        return Err(EptFault::LogFull { guest_physical });
    }
    let slot = L1Phys(log.address.page().0 + u64::from(index) * 8);
    let _ = memory.write_u64(slot, guest_physical.page().0);
    log.index.set(index.wrapping_sub(1));
    Ok(())
}

mod sub_page;

#[cfg(test)]
mod tests;
