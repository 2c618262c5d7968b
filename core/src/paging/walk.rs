//! The walk (SDM Vol. 3A "32-Bit Paging", "PAE Paging", "4-Level Paging and 5-Level Paging",
//! "Access Rights", "Accessed and Dirty Flags").

use super::{Access, AccessKind, Mapping, PagingMode, Regime, WalkFault, error_code};
use crate::addr::{L1Phys, L2Phys};
use crate::memory::GuestMemory;
use crate::vmx::ept::{self, EptAccess, EptFault};
use crate::x86::Exception;

const PRESENT: u64 = 1 << 0;
const WRITABLE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const DIRTY: u64 = 1 << 6;
const PAGE: u64 = 1 << 7;
const GLOBAL: u64 = 1 << 8;
const EXECUTE_DISABLE: u64 = 1 << 63;
/// Bits 51:12.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Translates `linear`, setting accessed and dirty flags.
///
/// Flags are set only where the access is allowed; of an access that faults, nothing is left behind
/// in the guest's structures.
pub fn translate<M: GuestMemory + ?Sized>(
    memory: &M,
    regime: &Regime,
    linear: u64,
    access: Access,
) -> Result<Mapping, WalkFault> {
    walk::<M, true>(memory, regime, linear, access)
}

/// Translates without a trace in memory: no flag is set and nothing is logged.
pub fn probe<M: GuestMemory + ?Sized>(
    memory: &M,
    regime: &Regime,
    linear: u64,
    access: Access,
) -> Result<Mapping, WalkFault> {
    walk::<M, false>(memory, regime, linear, access)
}

/// Translates a guest-physical address by the second stage alone; without EPT it is L1's already.
///
/// For accesses that have no linear address, such as the load of PDPTEs.
pub fn guest_physical_to_l1<M: GuestMemory + ?Sized>(
    memory: &M,
    regime: &Regime,
    guest_physical: u64,
) -> Result<L1Phys, EptFault> {
    match &regime.ept {
        None => Ok(L1Phys(guest_physical)),
        Some(e) => {
            let address = L2Phys(guest_physical);
            Ok(ept::translate(memory, e, address, EptAccess::PDPTES)?.physical)
        }
    }
}

/// An entry that was used: where it is, what it held, and whether its place may be written.
#[derive(Clone, Copy, Default)]
struct Visited {
    guest_physical: u64,
    physical: L1Phys,
    entry: u64,
    writable: bool,
}

/// The outcome of the structure walk: the translation before rights are looked at.
struct Leaf {
    page: u64,
    page_size: u64,
    /// WRITABLE and USER of all entries, EXECUTE_DISABLE of any, GLOBAL and DIRTY of the last.
    rights: u64,
}

struct Walker<'a, M: ?Sized, const COMMIT: bool> {
    memory: &'a M,
    regime: &'a Regime,
    linear: u64,
    access: Access,
    visited: [Visited; 5],
    depth: usize,
}

fn walk<M: GuestMemory + ?Sized, const COMMIT: bool>(
    memory: &M,
    regime: &Regime,
    linear: u64,
    access: Access,
) -> Result<Mapping, WalkFault> {
    let mut walker = Walker::<M, COMMIT> {
        memory,
        regime,
        linear,
        access,
        visited: [Visited::default(); 5],
        depth: 0,
    };
    match regime.mode {
        PagingMode::None => walker.unpaged(),
        PagingMode::Bits32 => {
            let leaf = walker.structures_32()?;
            walker.finish(leaf, 4)
        }
        PagingMode::Pae => {
            let leaf = walker.structures_pae()?;
            walker.finish(leaf, 8)
        }
        PagingMode::Level4 => {
            let leaf = walker.structures_64(regime.root, 4, WRITABLE | USER)?;
            walker.finish(leaf, 8)
        }
        PagingMode::Level5 => {
            let leaf = walker.structures_64(regime.root, 5, WRITABLE | USER)?;
            walker.finish(leaf, 8)
        }
    }
}

impl<M: GuestMemory + ?Sized, const COMMIT: bool> Walker<'_, M, COMMIT> {
    /// A page fault of this access; `cause` holds PRESENT and RESERVED.
    #[cold]
    fn page_fault(&self, cause: u32) -> WalkFault {
        let regime = self.regime;
        let mut code = cause;
        match self.access.kind {
            AccessKind::Write => code |= error_code::WRITE,
            // The I/D flag is kept only where the machine tells fetches apart.
            AccessKind::Fetch if regime.smep || regime.execute_disable => {
                code |= error_code::FETCH;
            }
            _ => {}
        }
        if self.access.user {
            code |= error_code::USER;
        }
        WalkFault::PageFault(Exception::page_fault(code, self.linear))
    }

    /// Where a paging-structure entry is, and whether it may be written.
    #[inline]
    fn structure(&self, guest_physical: u64) -> Result<(L1Phys, bool), WalkFault> {
        match &self.regime.ept {
            None => Ok((L1Phys(guest_physical), true)),
            Some(e) => {
                let mapping = ept::walk::<M, COMMIT>(
                    self.memory,
                    e,
                    L2Phys(guest_physical),
                    EptAccess::page_walk(self.linear),
                )?;
                Ok((mapping.physical, mapping.writable))
            }
        }
    }

    #[inline]
    fn visit(&mut self, guest_physical: u64, wide: bool) -> Result<u64, WalkFault> {
        let (physical, writable) = self.structure(guest_physical)?;
        // A structure outside RAM reads as not present, as KVM has it.
        let entry = if wide {
            self.memory.read_u64(physical).unwrap_or(0)
        } else {
            u64::from(self.memory.read_u32(physical).unwrap_or(0))
        };
        if entry & PRESENT == 0 {
            return Err(self.page_fault(0));
        }
        self.visited[self.depth] = Visited {
            guest_physical,
            physical,
            entry,
            writable,
        };
        self.depth += 1;
        Ok(entry)
    }

    fn reserved_fault(&self) -> WalkFault {
        self.page_fault(error_code::PRESENT | error_code::RESERVED)
    }

    /// 4-level and 5-level paging, and the last two levels of PAE paging.
    #[inline]
    fn structures_64(
        &mut self,
        mut table: u64,
        mut level: u32,
        mut rights: u64,
    ) -> Result<Leaf, WalkFault> {
        let regime = self.regime;
        let pae = regime.mode == PagingMode::Pae;
        // PAE paging reserves bits 62:M, the other modes 51:M.
        let mut always_reserved = if pae { !EXECUTE_DISABLE } else { ADDRESS };
        always_reserved &= !((1u64 << regime.width) - 1);
        if !regime.execute_disable {
            always_reserved |= EXECUTE_DISABLE;
        }
        loop {
            let shift = 12 + 9 * (level - 1);
            let index = self.linear >> shift & 0x1ff;
            let entry = self.visit(table | index << 3, true)?;
            let leaf = level == 1 || (entry & PAGE != 0 && level <= 3);
            let mut reserved = always_reserved;
            if level >= 4 || (level == 3 && !regime.page_1g) {
                reserved |= PAGE;
            }
            if leaf {
                reserved |= match level {
                    3 => 0x3fff_e000,
                    2 => 0x001f_e000,
                    _ => 0,
                };
            }
            if entry & reserved != 0 {
                return Err(self.reserved_fault());
            }
            rights = rights & entry & (WRITABLE | USER) | (rights | entry) & EXECUTE_DISABLE;
            if leaf {
                let page_size = 1u64 << shift;
                return Ok(Leaf {
                    page: entry & ADDRESS & !(page_size - 1),
                    page_size,
                    rights: rights | entry & (GLOBAL | DIRTY),
                });
            }
            table = entry & ADDRESS;
            level -= 1;
        }
    }

    /// SDM Vol. 3A "PAE Paging": the PDPTEs are registers, loaded by MOV to CR.
    fn structures_pae(&mut self) -> Result<Leaf, WalkFault> {
        self.linear &= 0xffff_ffff;
        let pdpte = self.regime.pdptrs[(self.linear >> 30 & 3) as usize];
        if pdpte & PRESENT == 0 {
            return Err(self.page_fault(0));
        }
        self.structures_64(pdpte & ADDRESS, 2, WRITABLE | USER)
    }

    /// SDM Vol. 3A "32-Bit Paging".
    fn structures_32(&mut self) -> Result<Leaf, WalkFault> {
        self.linear &= 0xffff_ffff;
        let pde = self.visit(self.regime.root | (self.linear >> 22) << 2, false)?;
        if pde & PAGE != 0 && self.regime.page_size_extensions {
            // PSE-36: bits 20:13 hold address bits 39:32, as far as the machine has them.
            let high_bits = self.regime.width.clamp(32, 40) - 32;
            let reserved = !((1u64 << (13 + high_bits)) - 1) & 0x003f_e000;
            if pde & reserved != 0 {
                return Err(self.reserved_fault());
            }
            return Ok(Leaf {
                page: pde & 0xffc0_0000 | (pde >> 13 & 0xff) << 32,
                page_size: 1 << 22,
                rights: pde & (WRITABLE | USER | GLOBAL | DIRTY),
            });
        }
        let pte = self.visit(pde & 0xffff_f000 | (self.linear >> 12 & 0x3ff) << 2, false)?;
        Ok(Leaf {
            page: pte & 0xffff_f000,
            page_size: 1 << 12,
            rights: pde & pte & (WRITABLE | USER) | pte & (GLOBAL | DIRTY),
        })
    }

    /// CR0.PG is 0: no rights but EPT's.
    fn unpaged(&self) -> Result<Mapping, WalkFault> {
        let linear = self.linear & 0xffff_ffff;
        let rights = WRITABLE | USER;
        self.complete(linear, 1 << 32, rights, [true; 3], false)
    }

    /// Checks the access, sets the flags, and goes through the second stage.
    #[inline]
    fn finish(&mut self, leaf: Leaf, entry_size: u64) -> Result<Mapping, WalkFault> {
        let regime = self.regime;
        let user_page = leaf.rights & USER != 0;
        let writable = leaf.rights & WRITABLE != 0;
        let not_disabled = leaf.rights & EXECUTE_DISABLE == 0;
        // SDM Vol. 3A "Determination of Access Rights".
        let (read, write, fetch) = if self.access.user {
            (user_page, user_page && writable, user_page && not_disabled)
        } else {
            let smap_bars = regime.smap
                && user_page
                && (self.access.implicit_supervisor || !regime.alignment_check);
            (
                !smap_bars,
                !smap_bars && (writable || !regime.write_protect),
                not_disabled && !(regime.smep && user_page),
            )
        };
        let allowed = match self.access.kind {
            AccessKind::Read => read,
            AccessKind::Write => write,
            AccessKind::Fetch => fetch,
        };
        if !allowed {
            return Err(self.page_fault(error_code::PRESENT));
        }
        let writes = self.access.kind == AccessKind::Write;
        let dirty = leaf.rights & DIRTY != 0 || (writes && COMMIT);
        if COMMIT {
            self.set_flags(writes, entry_size)?;
        }
        let guest_physical = leaf.page | self.linear & (leaf.page_size - 1);
        let global = regime.global_pages && leaf.rights & GLOBAL != 0;
        self.complete(
            guest_physical,
            leaf.page_size,
            leaf.rights,
            [read, write && dirty, fetch],
            global,
        )
    }

    /// SDM Vol. 3A "Accessed and Dirty Flags".
    #[inline]
    fn set_flags(&self, writes: bool, entry_size: u64) -> Result<(), WalkFault> {
        for (i, v) in self.visited[..self.depth].iter().enumerate() {
            let mut updated = v.entry | ACCESSED;
            if writes && i + 1 == self.depth {
                updated |= DIRTY;
            }
            if updated == v.entry {
                continue;
            }
            if !v.writable {
                self.require_write(v)?;
            }
            // The entry was read from there a moment ago; if the write misses, so be it.
            let _ = if entry_size == 8 {
                self.memory.write_u64(v.physical, updated)
            } else {
                self.memory.write_u32(v.physical, updated as u32)
            };
        }
        Ok(())
    }

    /// The update of a flag reads and writes the entry: EPT must allow it.
    #[cold]
    fn require_write(&self, v: &Visited) -> Result<(), WalkFault> {
        if let Some(e) = &self.regime.ept {
            let access = EptAccess {
                write: true,
                ..EptAccess::page_walk(self.linear)
            };
            ept::walk::<M, COMMIT>(self.memory, e, L2Phys(v.guest_physical), access)?;
        }
        Ok(())
    }

    /// The second stage of the final address. `rights` are those of all entries, the flags of later
    /// accesses what of them this one's privilege leaves.
    #[inline]
    fn complete(
        &self,
        guest_physical: u64,
        page_size: u64,
        rights: u64,
        [readable, writable, executable]: [bool; 3],
        global: bool,
    ) -> Result<Mapping, WalkFault> {
        let guest_physical = L2Phys(guest_physical);
        let user = rights & USER != 0;
        let Some(e) = &self.regime.ept else {
            return Ok(Mapping {
                physical: L1Phys(guest_physical.0),
                guest_physical,
                page_size,
                readable,
                writable,
                executable,
                user,
                global,
                sub_page: false,
            });
        };
        let access = EptAccess {
            read: self.access.kind == AccessKind::Read,
            write: self.access.kind == AccessKind::Write,
            fetch: self.access.kind == AccessKind::Fetch,
            user,
            linear: Some(self.linear),
            linear_writable: rights & WRITABLE != 0,
            linear_execute_disable: rights & EXECUTE_DISABLE != 0,
            paging_structure: false,
        };
        let second = ept::walk::<M, COMMIT>(self.memory, e, guest_physical, access)?;
        Ok(Mapping {
            physical: second.physical,
            guest_physical,
            page_size: page_size.min(second.page_size),
            readable: readable && second.readable,
            writable: writable && second.writable,
            executable: executable && second.executable,
            user,
            global,
            sub_page: second.sub_page,
        })
    }
}
