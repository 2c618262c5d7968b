//! The stack of a handler: limit checks, wrap-around and the writes of a frame (SDM Vol. 1 "Procedure
//! Stack", Vol. 3A "Limit Checking").

use super::{DeliveryFault, LinearMemory, Privilege};
use crate::addr::L2Phys;
use crate::paging::WalkFault;
use crate::vmx::apic_virtualization::{AccessKind, PageAccess};
use crate::vmx::ept::EptFault;
use crate::x86::cr_write::is_canonical;
use crate::x86::{AccessRights, Exception, Segment};

/// A fault is met by the first push, the topmost item, not by the frame as a whole.
fn first_push(fault: WalkFault, bottom: u64, distance: u64) -> WalkFault {
    /// Exit qualification bit 8: the access itself, not one to a paging entry.
    const FINAL_ADDRESS: u64 = 1 << 8;
    match fault {
        WalkFault::Ept(EptFault::ApicAccess(access)) if access.kind == AccessKind::Write => {
            let offset = (access.offset + distance as u16) & 0xfff;
            WalkFault::Ept(EptFault::ApicAccess(PageAccess { offset, ..access }))
        }
        WalkFault::Ept(EptFault::Violation {
            mut guest_physical,
            guest_linear,
            qualification,
            convertible,
        }) => {
            if qualification & FINAL_ADDRESS != 0 {
                guest_physical.0 += distance;
            }
            WalkFault::Ept(EptFault::Violation {
                guest_physical,
                guest_linear: guest_linear.map(|address| address.wrapping_add(distance)),
                qualification,
                convertible,
            })
        }
        // An address in the frame, not that of a paging entry.
        WalkFault::Ept(EptFault::Misconfiguration { guest_physical })
            if guest_physical.0 & 0xfff == bottom & 0xfff =>
        {
            WalkFault::Ept(EptFault::Misconfiguration {
                guest_physical: L2Phys(guest_physical.0 + distance),
            })
        }
        WalkFault::PageFault(exception) => WalkFault::PageFault(Exception {
            payload: exception.payload.wrapping_add(distance),
            ..exception
        }),
        other => other,
    }
}

/// The most items that a frame has: GS, FS, DS, ES, SS, ESP, EFLAGS, CS, EIP, error code.
pub(super) const MOST: usize = 10;

/// A stack that a frame is pushed on.
pub(super) struct Stack {
    /// The stack segment; only base, limit and rights are looked at.
    pub(super) segment: Segment,
    /// Stack pointer before the pushes.
    pub(super) pointer: u64,
    /// Bytes of each item: 2, 4 or 8.
    pub(super) size: u8,
    /// In IA-32e mode: flat, canonical addresses. The linear-address width in bits.
    pub(super) long: Option<u8>,
    /// Error code of the #SS for a stack that is too small; `None` in real-address mode.
    pub(super) error_code: Option<u32>,
    /// How the stack is written.
    pub(super) privilege: Privilege,
}

impl Stack {
    const fn mask(&self) -> u64 {
        if self.long.is_some() {
            u64::MAX
        } else if self.segment.ar.contains(AccessRights::DEFAULT_BIG) {
            0xffff_ffff
        } else {
            0xffff
        }
    }

    const fn fault(&self) -> DeliveryFault {
        DeliveryFault::Exception(Exception {
            vector: Exception::SS,
            error_code: self.error_code,
            payload: 0,
        })
    }

    /// The linear address of an item at `pointer`.
    fn linear(&self, pointer: u64) -> Result<u64, DeliveryFault> {
        if let Some(width) = self.long {
            let last = pointer.wrapping_add(u64::from(self.size) - 1);
            return if is_canonical(pointer, width) && is_canonical(last, width) {
                Ok(pointer)
            } else {
                Err(self.fault())
            };
        }
        let last = pointer + u64::from(self.size) - 1;
        let limit = u64::from(self.segment.limit);
        let fits = if self
            .segment
            .ar
            .contains(AccessRights::EXPAND_DOWN_CONFORMING)
            && !self.segment.ar.contains(AccessRights::CODE)
        {
            // Expand-down: valid offsets are above the limit.
            pointer > limit && last <= self.mask()
        } else {
            last <= limit
        };
        if !fits || !self.segment.is_usable() {
            return Err(self.fault());
        }
        Ok(self.segment.base.wrapping_add(pointer) & 0xffff_ffff)
    }

    /// Pushes `items` in their order and returns the stack pointer behind the last.
    ///
    /// Every item is checked, in the order of the pushes, before the first byte is written.
    pub(super) fn push<L: LinearMemory + ?Sized>(
        &self,
        memory: &mut L,
        items: &[u64],
    ) -> Result<u64, DeliveryFault> {
        let size = u64::from(self.size);
        let mask = self.mask();
        let mut addresses = [0; MOST];
        let mut pointer = self.pointer & mask;
        for address in &mut addresses[..items.len()] {
            pointer = pointer.wrapping_sub(size) & mask;
            *address = self.linear(pointer)?;
        }
        let (Some(&top), Some(&bottom)) = (addresses.first(), addresses[..items.len()].last())
        else {
            return Ok(pointer);
        };
        let length = items.len() as u64 * size;
        let contiguous = top.wrapping_sub(bottom) == length - size;
        if contiguous && bottom >> 12 == top.wrapping_add(size - 1) >> 12 {
            let mut frame = [0; MOST * 8];
            for (i, item) in items.iter().rev().enumerate() {
                let at = i * size as usize;
                frame[at..at + size as usize].copy_from_slice(&item.to_le_bytes()[..size as usize]);
            }
            memory
                .write(bottom, &frame[..length as usize], self.privilege)
                .map_err(|fault| first_push(fault, bottom, length - size))?;
        } else {
            for &address in &addresses[..items.len()] {
                memory.check_write(address, size as usize, self.privilege)?;
            }
            for (&address, item) in addresses.iter().zip(items) {
                memory.write(
                    address,
                    &item.to_le_bytes()[..size as usize],
                    self.privilege,
                )?;
            }
        }
        Ok(self.merge(pointer))
    }

    /// The stack register with the pointer in its low part: a 16-bit stack leaves the rest alone.
    const fn merge(&self, pointer: u64) -> u64 {
        if self.mask() == 0xffff {
            self.pointer & !0xffff | pointer
        } else {
            pointer
        }
    }
}
