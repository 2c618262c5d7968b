//! SDM Vol. 3C "Virtualizing Memory-Mapped APIC Accesses".

use super::virtual_apic_state::{VEOI, VICR_HI, VICR_LO, VTPR};
use super::{ApicVirtualization, Virtualized};
use crate::addr::L1Phys;
use crate::memory::GuestMemory;
use crate::vmx::Vmcs12;
use crate::vmx::exit::VmExit;
use crate::vmx::exit::qualification::ApicAccessType;

/// How the APIC-access page was accessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AccessKind {
    /// A data read by linear address.
    Read,
    /// A data write by linear address.
    Write,
    /// An instruction fetch.
    Fetch,
    /// By guest-physical address alone: a paging structure of L2 under EPT.
    GuestPhysical,
}

/// An access to the APIC-access page that exits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageAccess {
    /// Offset in the page.
    pub offset: u16,
    /// How.
    pub kind: AccessKind,
}

impl PageAccess {
    /// The exit (SDM Vol. 3C, table "Exit Qualification for APIC-Access VM Exits").
    #[must_use]
    pub const fn exit(self, during_event_delivery: bool) -> VmExit {
        use ApicAccessType as Type;
        let access = match (self.kind, during_event_delivery) {
            (AccessKind::GuestPhysical, true) => Type::PhysicalEventDelivery,
            (AccessKind::GuestPhysical, false) => Type::PhysicalInstruction,
            (_, true) => Type::LinearEventDelivery,
            (AccessKind::Read, false) => Type::LinearRead,
            (AccessKind::Write, false) => Type::LinearWrite,
            (AccessKind::Fetch, false) => Type::LinearFetch,
        };
        VmExit::apic_access(self.offset, access)
    }
}

/// What it takes to virtualize an access to a register, beside "use TPR shadow".
#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    VirtualInterruptDelivery,
    RegisterVirtualization,
}

/// Registers of the page that can be virtualized.
struct Row {
    /// Offset of the first, and of the last 16 bytes further each.
    offsets: (u16, u16),
    /// For reads.
    read: Takes,
    /// For writes; `None` where no write ever is.
    write: Option<Takes>,
}

const fn row(first: u16, last: u16, read: Takes, write: Option<Takes>) -> Row {
    Row {
        offsets: (first, last),
        read,
        write,
    }
}

/// "Virtualizing Reads from the APIC-Access Page", "Determining Whether a Write Access is Virtualized".
const REGISTERS: &[Row] = {
    use Takes::{
        Nothing, RegisterVirtualization as Registers, VirtualInterruptDelivery as Delivery,
    };
    &[
        // Local APIC ID, local APIC version.
        row(0x020, 0x020, Registers, Some(Registers)),
        row(0x030, 0x030, Registers, None),
        // Task priority, end of interrupt.
        row(0x080, 0x080, Nothing, Some(Nothing)),
        row(0x0b0, 0x0b0, Delivery, Some(Delivery)),
        // Logical destination, destination format, spurious-interrupt vector.
        row(0x0d0, 0x0f0, Registers, Some(Registers)),
        // In-service, trigger mode, interrupt request.
        row(0x100, 0x270, Registers, None),
        // Error status.
        row(0x280, 0x280, Registers, Some(Registers)),
        // Interrupt command, low and high.
        row(0x300, 0x300, Delivery, Some(Delivery)),
        row(0x310, 0x310, Registers, Some(Registers)),
        // LVT entries, initial count.
        row(0x320, 0x380, Registers, Some(Registers)),
        // Divide configuration.
        row(0x3e0, 0x3e0, Registers, Some(Registers)),
    ]
};

/// Reserved bits, delivery status, trigger mode and delivery mode of VICR_LO: 31:20, 17:15, 13:12, 10:8.
const VICR_MUST_BE_ZERO: u32 = 0xfff3_b700;
/// Destination shorthand of VICR_LO, and "self" in it.
const VICR_SHORTHAND: u32 = 3 << 18;
const VICR_SELF: u32 = 1 << 18;

impl ApicVirtualization {
    /// Whether a physical address is on the APIC-access page.
    #[inline]
    #[must_use]
    pub fn is_access_page(&self, physical: L1Phys) -> bool {
        self.access_page
            .is_some_and(|page| page.0 ^ physical.0 < 0x1000)
    }

    /// Whether an access of `size` bytes at `offset` in the APIC-access page is virtualized; else it
    /// exits. `written` is the write (offset and size) that the same instruction or delivery has had
    /// virtualized already.
    #[must_use]
    pub fn virtualizes(
        &self,
        kind: AccessKind,
        offset: u16,
        size: usize,
        written: Option<(u16, u8)>,
    ) -> bool {
        if !self.tpr_shadow || !(1..=4).contains(&size) {
            return false;
        }
        // In the low 4 bytes of 16: bits 3:2 of its first and its last byte's address are 0.
        let is_contained = offset & 0xc == 0 && (usize::from(offset) + size - 1) & 0xc == 0;
        let is_first_or_again =
            written.is_none() || kind == AccessKind::Write && written == Some((offset, size as u8));
        let register = offset & 0xff0;
        let Some(row) = REGISTERS
            .iter()
            .find(|row| (row.offsets.0..=row.offsets.1).contains(&register))
        else {
            return false;
        };
        let takes = match kind {
            AccessKind::Read => Some(row.read),
            AccessKind::Write => row.write,
            AccessKind::Fetch | AccessKind::GuestPhysical => None,
        };
        let is_virtualized = match takes {
            None => false,
            Some(_) if self.registers => true,
            // Without "APIC-register virtualization" the offset itself is named, not a range.
            Some(_) if offset & 0xf != 0 => false,
            Some(Takes::Nothing) => true,
            Some(Takes::VirtualInterruptDelivery) => self.delivery,
            Some(Takes::RegisterVirtualization) => false,
        };
        is_contained && is_first_or_again && is_virtualized
    }

    /// A virtualized read.
    pub fn read_page<M: GuestMemory + ?Sized>(&self, memory: &M, offset: u16, buffer: &mut [u8]) {
        if memory.read(self.at(offset), buffer).is_err() {
            buffer.fill(0xff);
        }
    }

    /// A virtualized write; [`Self::emulate_write`] follows when the instruction or the delivery of
    /// the event is complete.
    pub fn write_page<M: GuestMemory + ?Sized>(&self, memory: &M, offset: u16, bytes: &[u8]) {
        // A page outside RAM swallows the write.
        let _ = memory.write(self.at(offset), bytes);
    }

    /// "APIC-Write Emulation".
    pub fn emulate_write<M: GuestMemory + ?Sized>(
        &self,
        vmcs12: &mut Vmcs12,
        memory: &M,
        offset: u16,
    ) -> Virtualized {
        match offset {
            VTPR => {
                let priority = self.task_priority(memory);
                self.write(memory, VTPR, priority.into());
                self.virtualize_tpr(vmcs12, memory)
            }
            VEOI if self.delivery => {
                self.write(memory, VEOI, 0);
                self.virtualize_eoi(vmcs12, memory)
            }
            VICR_LO if self.delivery && is_self_ipi(self.read(memory, VICR_LO)) => {
                let vector = self.read(memory, VICR_LO) as u8;
                self.virtualize_self_ipi(vmcs12, memory, vector)
            }
            VICR_LO if self.ipi.is_some() && is_plain_ipi(self.read(memory, VICR_LO)) => {
                let vector = self.read(memory, VICR_LO) as u8;
                self.virtualize_ipi(memory, vector, self.read(memory, VICR_HI) >> 24)
            }
            _ if offset & !3 == VICR_HI => {
                let high = self.read(memory, VICR_HI) & 0xff00_0000;
                self.write(memory, VICR_HI, high);
                Virtualized::Done
            }
            _ => Virtualized::Exit(VmExit::apic_write(offset)),
        }
    }
}

/// Whether this interrupt command is one that the processor sends to itself.
const fn is_self_ipi(command: u32) -> bool {
    command & VICR_MUST_BE_ZERO == 0 && command & VICR_SHORTHAND == VICR_SELF && command & 0xf0 != 0
}

/// Whether this interrupt command is one that IPI virtualization takes: fixed, edge-triggered, to a physical
/// destination without shorthand.
pub(super) const fn is_plain_ipi(command: u32) -> bool {
    const LOGICAL: u32 = 1 << 11;
    command & (VICR_MUST_BE_ZERO | VICR_SHORTHAND | LOGICAL) == 0
}
