//! L2's APIC as its controls have it: accesses to the APIC-access page, what follows from them, virtual
//! interrupts, posted interrupts (SDM Vol. 3C, chapter "APIC Virtualization and Virtual Interrupts").

use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::apic::ApicEffect;
use nvmx_core::cpu::Activity;
use nvmx_core::paging::{AccessKind as Kind, WalkFault};
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::apic_virtualization::{
    AccessKind, ApicVirtualization, PageAccess, Virtualized,
};
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::vmx::ept::EptFault;
use nvmx_core::vmx::exit::VmExit;
use nvmx_core::x86::Event;

/// EOI in the local APIC's page (SDM Vol. 3A "Local APIC Register Address Map").
const EOI: u16 = 0xb0;

/// What waits at the boundary.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Pending {
    /// L2 was entered and PPR virtualization is to come.
    entered: bool,
    /// L2 was entered and the TPR threshold is to be looked at.
    threshold: bool,
    /// Offset and size of a virtualized write whose emulation is to come: behind the instruction, or
    /// behind the delivery of a fault that ended it. A VM exit drops it.
    pub(super) written: Option<(u16, u8)>,
    /// A virtual interrupt is recognized.
    pub(super) recognized: bool,
}

impl Processor {
    /// Derives what depends on L1's controls. Entering L2 anew, by VM entry or from a snapshot, is an
    /// entry for the virtual APIC: KVM makes one, too.
    pub(super) fn apic_level_changed(&mut self) {
        let in_l2 = self.in_l2();
        // Most of L2s have none of it, and a level changes often.
        let is_virtual = in_l2
            && (self.intercepts.primary.contains(Primary::USE_TPR_SHADOW)
                || self
                    .intercepts
                    .secondary
                    .contains(Secondary::VIRTUALIZE_APIC_ACCESSES));
        if is_virtual {
            self.apic_virtualization = ApicVirtualization::new(&self.cpu.vmx.vmcs12);
        } else if self.apic_virtualization != ApicVirtualization::default() {
            self.apic_virtualization = ApicVirtualization::default();
        }
        self.virtual_apic = Pending {
            entered: is_virtual,
            threshold: is_virtual,
            ..Pending::default()
        };
    }

    /// What VM entry does to the virtual APIC before anything is delivered.
    #[inline]
    pub(super) fn enter_virtual_apic(&mut self) {
        if std::mem::take(&mut self.virtual_apic.entered) {
            let vmcs12 = &self.cpu.vmx.vmcs12;
            let entered = self.apic_virtualization.enter(vmcs12, &self.ram);
            // Entry by itself never exits here.
            let _ = self.take(entered);
        }
    }

    /// What goes before all that is pending, once an injected event is delivered: emulation of a
    /// virtualized write, and the exit that the TPR threshold induces after VM entry.
    #[inline]
    pub(super) fn virtual_apic_trap(&mut self) -> Option<VmExit> {
        if let Some((offset, _)) = self.virtual_apic.written.take() {
            let vmcs12 = &mut self.cpu.vmx.vmcs12;
            let emulated = self
                .apic_virtualization
                .emulate_write(vmcs12, &self.ram, offset);
            return self.take(emulated);
        }
        // Not where the entry was to shutdown or wait-for-SIPI.
        let is_awake = matches!(self.cpu.activity, Activity::Active | Activity::Hlt);
        if std::mem::take(&mut self.virtual_apic.threshold) && is_awake {
            return self.apic_virtualization.exit_after_entry(&self.ram);
        }
        None
    }

    /// Notes what an operation on the virtual APIC found; `Some` is its trap-like exit.
    fn take(&mut self, virtualized: Virtualized) -> Option<VmExit> {
        match virtualized {
            Virtualized::Done => None,
            Virtualized::Evaluated(recognized) => {
                self.virtual_apic.recognized = recognized;
                None
            }
            Virtualized::Notify {
                vector,
                destination,
            } => {
                const X2APIC: u64 = 1 << 10;
                let is_x2apic = self.apic.base() & X2APIC != 0;
                let id = if is_x2apic {
                    destination
                } else {
                    destination >> 8 & 0xff
                };
                // Fixed, asserted, physical.
                let command = u64::from(id) << 32 | 1 << 14 | u64::from(vector);
                // Sending an interrupt needs nothing of user space.
                let _ = self.apic_effect(ApicEffect::Ipi(command));
                None
            }
            Virtualized::Exit(exit) => Some(exit),
        }
    }

    /// Ends an instruction of `length` bytes that did `virtualized`: an exit comes behind it.
    pub(super) fn virtualized(&mut self, virtualized: Virtualized, length: usize) -> Outcome {
        match self.take(virtualized) {
            None => Ok(Done::Retired),
            Some(exit) => {
                self.retire(length);
                Err(exit.into())
            }
        }
    }

    /// The virtual interrupt that is recognized, as an event to be delivered now.
    pub(super) fn take_virtual_interrupt(&mut self) -> Option<Event> {
        if !std::mem::take(&mut self.virtual_apic.recognized) {
            return None;
        }
        let vmcs12 = &mut self.cpu.vmx.vmcs12;
        let vector = self
            .apic_virtualization
            .take_virtual_interrupt(vmcs12, &self.ram);
        Some(Event::interrupt(vector))
    }

    /// "Posted-Interrupt Processing", after the notification was acknowledged.
    pub(super) fn process_posted_interrupts(&mut self) -> Result<(), Exit> {
        let vmcs12 = &mut self.cpu.vmx.vmcs12;
        let processed = self
            .apic_virtualization
            .process_posted_interrupts(vmcs12, &self.ram);
        let _ = self.take(processed);
        let effect = self.apic.write(EOI, 0, self.cpu.tsc.l1());
        match self.apic_effect(effect) {
            Err(Trap::User(exit)) => Err(exit),
            _ => Ok(()),
        }
    }

    /// Reads from the APIC-access page; `length` is that of the whole access, of which `chunk` may be
    /// the part on this page.
    pub(super) fn read_apic_page(
        &mut self,
        offset: u16,
        chunk: &mut [u8],
        length: usize,
    ) -> Result<(), WalkFault> {
        self.require_virtualized(AccessKind::Read, offset, length)?;
        self.apic_virtualization.read_page(&self.ram, offset, chunk);
        Ok(())
    }

    /// Writes to the APIC-access page.
    pub(super) fn write_apic_page(&mut self, offset: u16, bytes: &[u8]) -> Result<(), WalkFault> {
        self.require_virtualized(AccessKind::Write, offset, bytes.len())?;
        self.apic_virtualization
            .write_page(&self.ram, offset, bytes);
        self.virtual_apic.written = Some((offset, bytes.len() as u8));
        Ok(())
    }

    fn require_virtualized(
        &self,
        kind: AccessKind,
        offset: u16,
        size: usize,
    ) -> Result<(), WalkFault> {
        let written = self.virtual_apic.written;
        if self
            .apic_virtualization
            .virtualizes(kind, offset, size, written)
        {
            Ok(())
        } else {
            Err(EptFault::ApicAccess(PageAccess { offset, kind }).into())
        }
    }

    /// Whether an access that the engine reports exits for being on the APIC-access page: no
    /// instruction needs to be interpreted then. A `size` of zero is not known, and an operand of several
    /// parts (of SGDT, say) is as large as all of them.
    pub(crate) fn apic_access_exit(
        &self,
        kind: Kind,
        physical: L1Phys,
        size: usize,
        bytes: &[u8],
    ) -> Option<PageAccess> {
        if !self.apic_virtualization.is_access_page(physical) {
            return None;
        }
        let operand = decode::decode(bytes, decode::code_bits(&self.cpu), self.cpu.regs.rip)
            .map_or(1, |instruction| instruction.memory_size().size());
        let kind = match kind {
            Kind::Read => AccessKind::Read,
            Kind::Write => AccessKind::Write,
            Kind::Fetch => AccessKind::Fetch,
        };
        let offset = (physical.0 % PAGE_SIZE) as u16;
        let is_virtualized =
            self.apic_virtualization
                .virtualizes(kind, offset, size.max(operand).max(1), None);
        (!is_virtualized).then_some(PageAccess { offset, kind })
    }

    /// The instruction whose bytes these are exits for such an access.
    pub(crate) fn apic_access(&mut self, access: PageAccess, bytes: &[u8]) -> Option<Exit> {
        let length = match access.kind {
            AccessKind::Fetch => 0,
            _ => decode::decode(bytes, decode::code_bits(&self.cpu), self.cpu.regs.rip)
                .map_or(0, |instruction| instruction.len()),
        };
        self.settle(Err(access.exit(false).into()), length)
            .or_else(|| self.boundary())
    }
}
