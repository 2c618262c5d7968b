//! Sub-page write permissions (SDM Vol. 3C "Sub-Page Write Permissions"): a page that its EPT entry makes
//! read-only may be written in those of its 32 pieces of 128 bytes that a table of its own names.

use super::EptFault;
use crate::addr::{L1Phys, L2Phys};
use crate::memory::GuestMemory;

const VALID: u64 = 1 << 0;
/// Odd bits of the last level's entry.
const ODD: u64 = 0xaaaa_aaaa_aaaa_aaaa;

/// Whether the piece at `guest_physical` may be written; `Err` if the table has no answer ("SPPT
/// Misconfigurations and SPPT Misses").
pub(super) fn may_write<M: GuestMemory + ?Sized>(
    memory: &M,
    root: L1Phys,
    width: u8,
    guest_physical: L2Phys,
    guest_linear: Option<u64>,
) -> Result<bool, EptFault> {
    let event = |miss| EptFault::SubPage {
        guest_physical,
        guest_linear,
        miss,
    };
    let address = super::address_mask(width);
    let mut table = root.0 & address;
    for level in [4, 3, 2] {
        let index = guest_physical.0 >> (12 + 9 * (level - 1)) & 0x1ff;
        // A table outside RAM reads as not valid, as an EPT paging structure does.
        let entry = memory.read_u64(L1Phys(table | index << 3)).unwrap_or(0);
        if entry & VALID == 0 {
            return Err(event(true));
        }
        if entry & !(address | VALID) != 0 {
            return Err(event(false));
        }
        table = entry & address;
    }
    let index = guest_physical.0 >> 12 & 0x1ff;
    let pieces = memory.read_u64(L1Phys(table | index << 3)).unwrap_or(0);
    if pieces & ODD != 0 {
        return Err(event(false));
    }
    let piece = guest_physical.0 >> 7 & 31;
    Ok(pieces >> (2 * piece) & 1 != 0)
}
