//! Exceptions and events on their way: to L1 as a VM exit, or through the IDT of whoever runs
//! (SDM Vol. 3C "Exceptions and Event-Delivery VM Exits", Vol. 3A "Interrupt and Exception Handling").

use super::mmu::DeliveryMemory;
use super::{Done, Outcome, Processor, Trap, unsupported, vmx};
use iced_x86::{Code, Instruction};
use nvmx_core::cpu::{Activity, Cpu, Interruptibility};
use nvmx_core::delivery::{self, Combined, DeliveryFault};
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::controls::Primary;
use nvmx_core::vmx::ept::EptFault;
use nvmx_core::vmx::exit::VmExit;
use nvmx_core::vmx::exit::qualification::TaskSwitchSource;
use nvmx_core::vmx::virtualization_exception;
use nvmx_core::x86::control::{cr0, rflags};
use nvmx_core::x86::{Event, EventKind, Exception};

impl Processor {
    /// An exception that the engine found while running an instruction natively.
    pub(super) fn native_exception(&mut self, vector: u8, error_code: u32) -> Outcome {
        let exception = match vector {
            Exception::DB => {
                // The only #DB that the engine raises is the single-step trap; RIP is behind the
                // instruction. It joins what is pending already, and a monitor trap comes first.
                self.single_step();
                self.retire_breakpoints();
                self.one_instruction = false;
                self.iret_unblocks = false;
                if self.monitor_trap() {
                    self.cpu.vmx.mtf_pending = true;
                }
                return Ok(Done::Jumped);
            }
            Exception::DF
            | Exception::TS
            | Exception::NP
            | Exception::SS
            | Exception::GP
            | Exception::AC => Exception {
                vector,
                error_code: Some(error_code),
                payload: 0,
            },
            Exception::PF => Exception::page_fault(error_code, self.cpu.sregs.cr2),
            _ => Exception {
                vector,
                error_code: None,
                payload: 0,
            },
        };
        Err(exception.into())
    }

    /// The trap of an instruction that ran with RFLAGS.TF set.
    pub(super) fn single_step(&mut self) {
        /// BS in the pending-debug-exceptions field.
        const BS: u64 = 1 << 14;
        const BRANCHES_ONLY: u64 = 1 << 1;
        self.cpu.pending_debug |= BS;
        if self.cpu.msrs.debugctl & BRANCHES_ONLY != 0 {
            self.unsupported =
                Some("a single step with BTF set, SDM Vol. 3B \"Single-Stepping on Branches\"");
        }
    }

    /// INT n, INT3, INTO, INT1.
    pub(super) fn software_interrupt(&mut self, instruction: &Instruction) -> Outcome {
        let (kind, vector) = match instruction.code() {
            Code::Int3 => (EventKind::SoftwareException, Exception::BP),
            Code::Into if self.cpu.regs.rflags & rflags::OF == 0 => return Ok(Done::Retired),
            Code::Into => (EventKind::SoftwareException, Exception::OF),
            Code::Int1 => (EventKind::PrivilegedSoftwareException, Exception::DB),
            _ => (EventKind::SoftwareInterrupt, instruction.immediate8()),
        };
        Err(Trap::Software(Event {
            kind,
            vector,
            error_code: None,
            instruction_length: instruction.len() as u8,
            payload: 0,
        }))
    }

    /// Gives an event that came up to whom it belongs: L1 if it intercepts it, else the IDT.
    /// `Some` is an exit to user space.
    pub(super) fn raise(&mut self, mut event: Event) -> Option<Exit> {
        // Whatever ran has not retired.
        self.data_matches = 0;
        let unblocks = std::mem::take(&mut self.iret_unblocks);
        if unblocks {
            // The IRET ends here.
            self.one_instruction = false;
        }
        if let Some(exit) = self.taken_by_debugger(&event) {
            return Some(exit);
        }
        if self.cpu.sregs.cr0 & cr0::PE == 0 {
            // Real-address mode has no error codes (SDM Vol. 3C "Information for VM Exits Due to Vectored Events").
            event.error_code = None;
        }
        if let Some(mut exit) = self.intercepted(&event) {
            if unblocks && self.intercepts.reports_nmi_unblocking() {
                exit = exit.with_nmi_unblocking();
            }
            self.exit_to_l1(&exit);
            return None;
        }
        // Only what comes up here: an event that VM entry injects has CR2 and DR6 set by L1.
        if event.kind == EventKind::HardwareException {
            let exception = Exception {
                vector: event.vector,
                error_code: event.error_code,
                payload: event.payload,
            };
            delivery::apply_payload(&mut self.cpu, &exception);
        } else if event.kind == EventKind::PrivilegedSoftwareException {
            delivery::enter_debug_handler(&mut self.cpu);
        }
        self.deliver(event)
    }

    fn intercepted(&self, event: &Event) -> Option<VmExit> {
        if self.in_l2() {
            self.intercepts.event(event)
        } else {
            None
        }
    }

    /// Delivers an event through the IDT, and whatever comes up on the way.
    pub(super) fn deliver(&mut self, first: Event) -> Option<Exit> {
        let mut event = first;
        loop {
            let delivered = match self.try_deliver(&event) {
                Err(DeliveryFault::TaskSwitch(task)) if !self.in_l2() => {
                    self.switch_task(&delivery::Switch::for_event(&self.cpu, task, &event))
                }
                delivered => delivered,
            };
            let fault = match delivered {
                Ok(()) => {
                    self.cpu.injected = None;
                    self.cpu.vmx.run_pending = false;
                    // A monitor-trap-flag exit is then pending before the handler's first instruction
                    // (SDM Vol. 3C "Monitor Trap Flag").
                    if self.in_l2() && self.primary_controls().contains(Primary::MONITOR_TRAP_FLAG)
                    {
                        self.cpu.vmx.mtf_pending = true;
                    }
                    self.cpu.activity = Activity::Active;
                    return None;
                }
                Err(fault) => fault,
            };
            // "There is no blocking by STI or by MOV SS when the VM exit commences", and "an NMI causes
            // subsequent NMIs to be blocked before the VM exit commences" (SDM Vol. 3C "Architectural State
            // Before a VM Exit", of events that cause one indirectly).
            self.cpu
                .interruptibility
                .remove(Interruptibility::STI | Interruptibility::MOV_SS);
            if event.kind == EventKind::Nmi {
                self.cpu.interruptibility.insert(Interruptibility::NMI);
            }
            // An exit from here on reports the event under delivery as IDT vectoring.
            self.cpu.injected = Some(event);
            match fault {
                DeliveryFault::Unsupported(what) => {
                    let Trap::User(exit) = unsupported(what) else {
                        return None;
                    };
                    return Some(exit);
                }
                DeliveryFault::TaskSwitch(task) => {
                    let source = TaskSwitchSource::TaskGate;
                    let exit = self.intercepts.task_switch(task, source, None);
                    self.exit_to_l1(&exit);
                    return None;
                }
                DeliveryFault::Ept(fault) => {
                    self.exit_to_l1(&vmx::ept_exit(&fault, true));
                    return None;
                }
                DeliveryFault::Exception(second) => {
                    // L1 judges the second exception before the two become a double fault
                    // (SDM Vol. 3C "Exceptions and Event-Delivery VM Exits": the exception bitmap is
                    // consulted for the exception that occurs, #DF only where it would be raised).
                    match delivery::combine(&event, &second) {
                        Combined::Serial(second) => {
                            let next = Event::exception(second);
                            if let Some(exit) = self.intercepted(&next) {
                                self.exit_to_l1(&exit);
                                return None;
                            }
                            delivery::apply_payload(&mut self.cpu, &second);
                            event = next;
                        }
                        Combined::DoubleFault => {
                            let occurring = Event::exception(second);
                            if let Some(exit) = self.intercepted(&occurring) {
                                self.exit_to_l1(&exit);
                                return None;
                            }
                            // Of the two it is #DF that L1 may intercept: the page fault was raised.
                            delivery::apply_payload(&mut self.cpu, &second);
                            let double = Event::exception(Combined::DOUBLE_FAULT);
                            if let Some(exit) = self.intercepted(&double) {
                                self.exit_to_l1(&exit);
                                return None;
                            }
                            event = double;
                        }
                        Combined::TripleFault => {
                            delivery::apply_payload(&mut self.cpu, &second);
                            self.cpu.injected = None;
                            return self.triple_fault();
                        }
                    }
                }
            }
        }
    }

    fn try_deliver(&mut self, event: &Event) -> Result<(), DeliveryFault> {
        self.on_a_copy(|cpu, memory| delivery::deliver(cpu, memory, event))
    }

    /// Does work of event delivery; the processor changes only if that is done.
    pub(super) fn on_a_copy<T>(
        &mut self,
        work: impl FnOnce(&mut Cpu, &mut DeliveryMemory<'_>) -> Result<T, DeliveryFault>,
    ) -> Result<T, DeliveryFault> {
        // Delivery works on a copy of the processor, so that the memory it goes through may borrow us.
        let mut cpu = self.scratch.take().unwrap_or_default();
        cpu.regs = self.cpu.regs;
        cpu.sregs = self.cpu.sregs;
        cpu.debug = self.cpu.debug;
        cpu.interruptibility = self.cpu.interruptibility;
        cpu.activity = self.cpu.activity;
        cpu.msrs = self.cpu.msrs;
        cpu.pending_exception = self.cpu.pending_exception;
        cpu.model.clone_from(&self.cpu.model);
        let result = work(&mut cpu, &mut DeliveryMemory(self));
        if result.is_ok() {
            self.cpu.regs = cpu.regs;
            self.cpu.sregs = cpu.sregs;
            self.cpu.debug = cpu.debug;
            self.cpu.interruptibility = cpu.interruptibility;
            self.cpu.activity = cpu.activity;
            self.cpu.pending_exception = cpu.pending_exception;
        }
        self.scratch = Some(cpu);
        result
    }

    /// A triple fault: an exit of L2, or L1's shutdown.
    pub(super) fn triple_fault(&mut self) -> Option<Exit> {
        self.cpu.triple_fault_pending = false;
        if self.in_l2() {
            let exit = self.intercepts.triple_fault();
            self.exit_to_l1(&exit);
            return None;
        }
        self.cpu.activity = Activity::Shutdown;
        Some(Exit::Shutdown)
    }
}

impl Processor {
    /// [`Processor::raise`], then what is pending at the boundary.
    pub(crate) fn raise_and_look(&mut self, event: Event) -> Option<Exit> {
        self.raise(event).or_else(|| self.boundary())
    }

    /// An access of the instruction at RIP met L1's EPT: an exit, or #VE.
    pub(crate) fn ept_fault(&mut self, fault: &EptFault, read_modify_write: bool) -> Option<Exit> {
        let mut fault = *fault;
        if let EptFault::Violation { qualification, .. } = &mut fault
            && read_modify_write
        {
            // Read and write in one access (SDM Vol. 3C, table "Exit Qualification for EPT
            // Violations", bits 0 and 1).
            *qualification |= 1;
        }
        if let Some(exception) = virtualization_exception::convert(&self.cpu, &self.ram, &fault) {
            return self.raise(Event::exception(exception));
        }
        let mut exit = vmx::ept_exit(&fault, false);
        if std::mem::take(&mut self.iret_unblocks) && self.intercepts.reports_nmi_unblocking() {
            exit = exit.with_nmi_unblocking();
        }
        self.exit_to_l1(&exit);
        None
    }
}
