//! What a VM exit records in the exit-information fields (SDM Vol. 3C "Recording VM-Exit
//! Information and Updating VM-Entry Control Fields").

use super::ExitReason;
use super::qualification::{
    ApicAccessType, ControlRegisterAccess, EntryFailure, IoAccess, apic_access,
};
use crate::addr::L2Phys;
use crate::x86::{Event, EventKind, Exception, Gpr};

/// One VM exit, before it is recorded.
///
/// `None` in a field means that the exit does not define it; the vmcs12 keeps what it held, as
/// KVM's does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VmExit {
    /// Exit reason, all 32 bits.
    pub reason: ExitReason,
    /// Exit qualification.
    pub qualification: u64,
    /// VM-exit instruction length, in bytes.
    pub instruction_length: Option<u32>,
    /// VM-exit instruction information.
    pub instruction_information: Option<u32>,
    /// The event that caused the exit: exception, NMI, or acknowledged external interrupt.
    pub interruption: Option<Event>,
    /// NMI unblocking due to IRET: bit 12 of the interruption information.
    pub nmi_unblocking: bool,
    /// Guest-linear address.
    pub guest_linear: Option<u64>,
    /// Guest-physical address (EPT violations and misconfigurations, PML).
    pub guest_physical: Option<L2Phys>,
}

impl VmExit {
    /// An exit that records its reason alone: external interrupt without acknowledge, triple
    /// fault, windows, preemption timer, MTF, INIT.
    #[must_use]
    pub const fn new(reason: ExitReason) -> Self {
        Self {
            reason,
            qualification: 0,
            instruction_length: None,
            instruction_information: None,
            interruption: None,
            nmi_unblocking: false,
            guest_linear: None,
            guest_physical: None,
        }
    }

    /// An exit due to executing an instruction of `length` bytes, without qualification.
    #[must_use]
    pub const fn instruction(reason: ExitReason, length: u32) -> Self {
        Self {
            instruction_length: Some(length),
            ..Self::new(reason)
        }
    }

    /// With this qualification.
    #[must_use]
    pub const fn with_qualification(mut self, qualification: u64) -> Self {
        self.qualification = qualification;
        self
    }

    /// With this instruction information.
    #[must_use]
    pub const fn with_instruction_information(mut self, information: u32) -> Self {
        self.instruction_information = Some(information);
        self
    }

    /// With this instruction length.
    #[must_use]
    pub const fn with_instruction_length(mut self, length: u32) -> Self {
        self.instruction_length = Some(length);
        self
    }

    /// An exception that L1 intercepts. The qualification is CR2 for #PF, DR6's bits for #DB.
    #[must_use]
    pub const fn exception(exception: Exception) -> Self {
        Self::event(Event::exception(exception))
    }

    /// An exception or NMI as an event, software exceptions (INT3, INTO, INT1) among them.
    #[must_use]
    pub const fn event(event: Event) -> Self {
        let qualification = match (event.kind, event.vector) {
            (EventKind::Nmi, _) => 0,
            (_, Exception::PF | Exception::DB) => event.payload,
            _ => 0,
        };
        let instruction_length = match event.kind {
            EventKind::SoftwareException | EventKind::PrivilegedSoftwareException => {
                Some(event.instruction_length as u32)
            }
            _ => None,
        };
        Self {
            qualification,
            instruction_length,
            interruption: Some(event),
            ..Self::new(ExitReason::EXCEPTION_OR_NMI)
        }
    }

    /// An NMI.
    #[must_use]
    pub const fn nmi() -> Self {
        Self::event(Event::NMI)
    }

    /// An external interrupt; `acknowledged` holds the vector with "acknowledge interrupt on exit".
    #[must_use]
    pub const fn external_interrupt(acknowledged: Option<u8>) -> Self {
        Self {
            interruption: match acknowledged {
                Some(vector) => Some(Event::interrupt(vector)),
                None => None,
            },
            ..Self::new(ExitReason::EXTERNAL_INTERRUPT)
        }
    }

    /// CPUID.
    #[must_use]
    pub const fn cpuid(length: u32) -> Self {
        Self::instruction(ExitReason::CPUID, length)
    }

    /// HLT.
    #[must_use]
    pub const fn hlt(length: u32) -> Self {
        Self::instruction(ExitReason::HLT, length)
    }

    /// An I/O instruction. For INS and OUTS `guest_linear` is the address of the memory operand.
    #[must_use]
    pub const fn io(access: IoAccess, length: u32, guest_linear: Option<u64>) -> Self {
        Self {
            guest_linear,
            ..Self::instruction(ExitReason::IO_INSTRUCTION, length)
                .with_qualification(access.qualification())
        }
    }

    /// A control-register access. For LMSW with a memory operand `guest_linear` is its address.
    #[must_use]
    pub const fn control_register(
        access: ControlRegisterAccess,
        length: u32,
        guest_linear: Option<u64>,
    ) -> Self {
        Self {
            guest_linear,
            ..Self::instruction(ExitReason::CR_ACCESS, length)
                .with_qualification(access.qualification())
        }
    }

    /// MOV DR.
    #[must_use]
    pub const fn debug_register(dr: u8, from_dr: bool, gpr: Gpr, length: u32) -> Self {
        Self::instruction(ExitReason::MOV_DR, length)
            .with_qualification(super::qualification::mov_dr(dr, from_dr, gpr))
    }

    /// RDMSR or WRMSR.
    #[must_use]
    pub const fn msr(is_write: bool, length: u32) -> Self {
        let reason = if is_write {
            ExitReason::WRMSR
        } else {
            ExitReason::RDMSR
        };
        Self::instruction(reason, length)
    }

    /// RDMSRLIST or WRMSRLIST: the number of the MSR that exits, or 0 without MSR bitmaps.
    #[must_use]
    pub fn msr_list(is_write: bool, number: u32, length: u32) -> Self {
        let reason = if is_write {
            ExitReason::WRMSRLIST
        } else {
            ExitReason::RDMSRLIST
        };
        Self::instruction(reason, length).with_qualification(number.into())
    }

    /// INVLPG of a linear address.
    #[must_use]
    pub const fn invlpg(address: u64, length: u32) -> Self {
        Self::instruction(ExitReason::INVLPG, length).with_qualification(address)
    }

    /// An EPT violation; `guest_linear` if the qualification says that it is valid.
    #[must_use]
    pub const fn ept_violation(
        qualification: u64,
        guest_physical: L2Phys,
        guest_linear: Option<u64>,
    ) -> Self {
        Self {
            qualification,
            guest_linear,
            guest_physical: Some(guest_physical),
            ..Self::new(ExitReason::EPT_VIOLATION)
        }
    }

    /// An EPT misconfiguration.
    #[must_use]
    pub const fn ept_misconfiguration(guest_physical: L2Phys) -> Self {
        Self {
            guest_physical: Some(guest_physical),
            ..Self::new(ExitReason::EPT_MISCONFIGURATION)
        }
    }

    /// An access to the APIC-access page.
    #[must_use]
    pub const fn apic_access(offset: u16, access: ApicAccessType) -> Self {
        Self::new(ExitReason::APIC_ACCESS).with_qualification(apic_access(offset, access))
    }

    /// A virtualized write to the APIC-access page at `offset`, or of the MSR that is there.
    #[must_use]
    pub const fn apic_write(offset: u16) -> Self {
        Self::new(ExitReason::APIC_WRITE).with_qualification((offset & 0xfff) as u64)
    }

    /// EOI of a virtual interrupt whose bit is set in the EOI-exit bitmaps.
    #[must_use]
    pub const fn virtualized_eoi(vector: u8) -> Self {
        Self::new(ExitReason::VIRTUALIZED_EOI).with_qualification(vector as u64)
    }

    /// An SPP-related event: bit 11 of the qualification tells a miss from a misconfiguration.
    #[must_use]
    pub const fn sub_page(miss: bool, guest_physical: L2Phys, guest_linear: Option<u64>) -> Self {
        Self {
            qualification: (miss as u64) << 11,
            guest_linear,
            guest_physical: Some(guest_physical),
            ..Self::new(ExitReason::SPP_RELATED_EVENT)
        }
    }

    /// The page-modification log is full.
    #[must_use]
    pub const fn page_modification_log_full(guest_physical: L2Phys) -> Self {
        Self {
            guest_physical: Some(guest_physical),
            ..Self::new(ExitReason::PAGE_MODIFICATION_LOG_FULL)
        }
    }

    /// A failed VM entry due to invalid guest state.
    #[must_use]
    pub const fn invalid_guest_state(failure: EntryFailure) -> Self {
        Self::new(ExitReason::INVALID_GUEST_STATE.as_entry_failure())
            .with_qualification(failure as u64)
    }

    /// A failed VM entry due to MSR loading: `index` is that of the entry, from one.
    #[must_use]
    pub const fn msr_loading(index: u32) -> Self {
        Self::new(ExitReason::MSR_LOADING.as_entry_failure()).with_qualification(index as u64)
    }

    /// Notes that the exit came up in an IRET that began while NMIs were blocked: bit 12 of whichever
    /// field the exit's reason has for it ("Information About NMI Unblocking Due to IRET").
    #[must_use]
    pub const fn with_nmi_unblocking(mut self) -> Self {
        match self.reason {
            ExitReason::EXCEPTION_OR_NMI => self.nmi_unblocking = true,
            ExitReason::EPT_VIOLATION
            | ExitReason::PAGE_MODIFICATION_LOG_FULL
            | ExitReason::SPP_RELATED_EVENT => self.qualification |= 1 << 12,
            _ => {}
        }
        self
    }

    /// The VM-exit interruption-information field.
    #[must_use]
    pub const fn interruption_information(&self) -> u32 {
        let unblocking = if self.nmi_unblocking { 1 << 12 } else { 0 };
        match self.interruption {
            Some(event) => event.information() | unblocking,
            None => 0,
        }
    }
}
