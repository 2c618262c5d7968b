//! Exceptions, interrupts and windows (SDM Vol. 3C "Other Causes of VM Exits", "Changes to the
//! Blocking of Events").

use super::Intercepts;
use crate::cpu::{Cpu, Interruptibility};
use crate::vmx::controls::{ExitControls, PinBased, Primary};
use crate::vmx::exit::qualification::{TaskSwitchSource, task_switch};
use crate::vmx::exit::{ExitReason, VmExit};
use crate::x86::control::rflags;
use crate::x86::{Event, EventKind, Exception};

impl Intercepts {
    /// Whether an exception with this vector and error code exits (SDM Vol. 3C "Exception Bitmap").
    #[must_use]
    pub const fn wants_exception(&self, vector: u8, error_code: Option<u32>) -> bool {
        let in_bitmap = self.exceptions & 1 << (vector & 31) != 0;
        if vector == Exception::PF {
            let code = match error_code {
                Some(code) => code,
                None => 0,
            };
            // Where the masked error code does not match, bit 14 counts the other way round.
            let matches = code & self.page_fault_mask == self.page_fault_match;
            matches == in_bitmap
        } else {
            in_bitmap
        }
    }

    /// An exception that L2 raised.
    #[must_use]
    pub fn exception(&self, exception: Exception) -> Option<VmExit> {
        self.wants_exception(exception.vector, exception.error_code)
            .then(|| VmExit::exception(exception))
    }

    /// An event that is about to be delivered, software exceptions among them. INT n never exits.
    #[must_use]
    pub fn event(&self, event: &Event) -> Option<VmExit> {
        match event.kind {
            EventKind::HardwareException
            | EventKind::SoftwareException
            | EventKind::PrivilegedSoftwareException => self
                .wants_exception(event.vector, event.error_code)
                .then(|| VmExit::event(*event)),
            EventKind::Nmi => self.nmi(),
            EventKind::ExternalInterrupt => self
                .wants_external_interrupts()
                .then(|| VmExit::external_interrupt(Some(event.vector))),
            EventKind::SoftwareInterrupt | EventKind::Other => None,
        }
    }

    /// A non-maskable interrupt.
    #[must_use]
    pub fn nmi(&self) -> Option<VmExit> {
        self.pin(PinBased::NMI_EXITING).then(VmExit::nmi)
    }

    /// Whether external interrupts exit, whatever RFLAGS.IF says.
    #[must_use]
    pub const fn wants_external_interrupts(&self) -> bool {
        self.pin(PinBased::EXTERNAL_INTERRUPT_EXITING)
    }

    /// Whether the exit for an external interrupt takes the vector from the APIC.
    #[must_use]
    pub const fn acknowledges_interrupts(&self) -> bool {
        self.exit
            .contains(ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT)
    }

    /// Whether blocking by NMI is that of virtual NMIs.
    #[must_use]
    pub const fn virtual_nmis(&self) -> bool {
        self.pin(PinBased::VIRTUAL_NMIS)
    }

    /// Whether exits tell of NMI unblocking due to IRET: with "NMI exiting" and without "virtual NMIs"
    /// the bit is undefined.
    #[must_use]
    pub const fn reports_nmi_unblocking(&self) -> bool {
        self.iret_unblocks_nmis()
    }

    /// Whether IRET of L2 ends blocking by NMI: with "NMI exiting" and without "virtual NMIs" nothing does as
    /// long as L2 runs (SDM Vol. 3C "Interruptibility State").
    #[must_use]
    pub const fn iret_unblocks_nmis(&self) -> bool {
        !self.pin(PinBased::NMI_EXITING) || self.virtual_nmis()
    }

    /// INIT exits always (and is blocked in root operation).
    #[must_use]
    pub const fn init(&self) -> VmExit {
        VmExit::new(ExitReason::INIT_SIGNAL)
    }

    /// SIPI in the wait-for-SIPI state: the vector is the qualification.
    #[must_use]
    pub const fn sipi(&self, vector: u8) -> VmExit {
        VmExit::new(ExitReason::STARTUP_IPI).with_qualification(vector as u64)
    }

    /// A triple fault exits always.
    #[must_use]
    pub const fn triple_fault(&self) -> VmExit {
        VmExit::new(ExitReason::TRIPLE_FAULT)
    }

    /// A task switch exits always. `length` is that of JMP, CALL or IRET; for a task gate the event under
    /// delivery has one, or there is none.
    #[must_use]
    pub const fn task_switch(
        &self,
        selector: u16,
        source: TaskSwitchSource,
        length: Option<u32>,
    ) -> VmExit {
        VmExit {
            instruction_length: length,
            ..VmExit::new(ExitReason::TASK_SWITCH).with_qualification(task_switch(selector, source))
        }
    }

    /// "Interrupt-window exiting": RFLAGS.IF is 1 and neither STI nor MOV SS blocks. To be asked at
    /// each instruction boundary, HLT included.
    #[must_use]
    pub fn interrupt_window(&self, cpu: &Cpu) -> Option<VmExit> {
        let open = cpu.regs.rflags & rflags::IF != 0
            && !cpu
                .interruptibility
                .intersects(Interruptibility::STI | Interruptibility::MOV_SS);
        (open && self.primary(Primary::INTERRUPT_WINDOW_EXITING))
            .then(|| VmExit::new(ExitReason::INTERRUPT_WINDOW))
    }

    /// "NMI-window exiting": no virtual-NMI blocking and no blocking by MOV SS.
    #[must_use]
    pub fn nmi_window(&self, cpu: &Cpu) -> Option<VmExit> {
        let open = !cpu
            .interruptibility
            .intersects(Interruptibility::NMI | Interruptibility::MOV_SS);
        (open && self.primary(Primary::NMI_WINDOW_EXITING))
            .then(|| VmExit::new(ExitReason::NMI_WINDOW))
    }
}
