//! What happens between two instructions, in the order of priority (SDM Vol. 3A "Priority Among
//! Concurrent Events", Vol. 3C "Other Causes of VM Exits", "Event Injection").

use super::Processor;
use nvmx_core::cpu::{Activity, Interruptibility};
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::controls::Primary;
use nvmx_core::vmx::entry;
use nvmx_core::vmx::exit::{ExitReason, VmExit};
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{Event, EventKind, Exception};

/// Bits of the pending-debug-exceptions field that make a #DB pending: enabled breakpoint, RTM, BS.
const DEBUG_PENDING: u64 = 1 << 12 | 1 << 14 | 1 << 16;

impl Processor {
    /// Delivers or reflects what is pending, until an instruction may run. `Some` is an exit to user
    /// space.
    pub(crate) fn boundary(&mut self) -> Option<Exit> {
        if self.deferred_write.is_some() {
            return self.deferred_write.take();
        }
        if let Some(exit) = self.cannot_run() {
            return Some(exit);
        }
        if let Some(vector) = self.outside.eoi.take() {
            return Some(Exit::IoApicEoi { vector });
        }
        self.enter_virtual_apic();
        while self.event_count < self.event_limit {
            self.apic.poll(self.cpu.tsc.l1());
            if self.cpu.pmu.alarm() <= self.cpu.tsc.executed() {
                self.counter_overflow();
            }
            match self.next_event() {
                Next::Run => return None,
                Next::Again => {}
                Next::User(exit) => return Some(exit),
                Next::Idle => {
                    if self.outside.together {
                        return Some(Exit::Hlt);
                    }
                    let alarm = match self.next_alarm() {
                        None if self.until == u64::MAX => return Some(Exit::Hlt),
                        alarm => alarm.unwrap_or(u64::MAX),
                    };
                    self.sleep_until(alarm.min(self.until));
                    if alarm >= self.until {
                        return Some(Exit::Budget);
                    }
                }
            }
        }
        None
    }

    /// What holds the processor whatever is pending: parts of its state that the model does not carry
    /// out. It stays so until user space sets another state.
    fn cannot_run(&mut self) -> Option<Exit> {
        let unsupported = |what: &str| {
            Some(Exit::Unsupported {
                what: what.to_owned(),
            })
        };
        if let Some(what) = self.unsupported {
            return unsupported(what);
        }
        if self.pdptes_stale {
            self.pdptes_stale = false;
            if !entry::reload_pdptes(&mut self.cpu, &self.ram) {
                // As KVM answers where the pages that L2 needs cannot be had.
                self.pdptes_stale = true;
                return Some(Exit::emulation_failure(format!(
                    "invalid PDPTEs at CR3 {:#x}",
                    self.cpu.sregs.cr3
                )));
            }
            self.address_space_changed();
        }
        None
    }

    /// The tick at which a timer wakes the sleeping processor, or may: one of the APIC whose interrupt
    /// is masked or waits already changes nothing when it fires. In wait-for-SIPI no timer wakes it (SDM
    /// Vol. 3C "VMX-Preemption Timer").
    pub(crate) fn next_alarm(&self) -> Option<u64> {
        if self.cpu.activity == Activity::WaitForSipi {
            return None;
        }
        let timer = self
            .apic
            .next_deadline()
            .filter(|_| self.apic.timer_can_interrupt());
        let deadline = self.or_preemption_timer(timer);
        let tsc = self.cpu.tsc;
        deadline.map(|deadline| tsc.ticks.saturating_add(deadline.saturating_sub(tsc.l1())))
    }

    fn next_event(&mut self) -> Next {
        if self.cpu.triple_fault_pending {
            return Next::from(self.triple_fault());
        }
        // What VM entry injected comes before all else.
        if let Some(event) = self.cpu.injected {
            if event.kind == EventKind::Other {
                // "Other event" with vector 0: a pending MTF VM exit (SDM Vol. 3C "Injection of
                // Pending MTF VM Exits"), which has its own priority.
                self.cpu.injected = None;
                self.cpu.vmx.mtf_pending = true;
                return Next::Again;
            }
            return Next::from(self.deliver(event));
        }
        // "APIC-write emulation takes priority over SMIs, INIT signals, and lower priority events", and
        // so do exits induced by the TPR threshold; both follow the delivery of an event.
        if let Some(exit) = self.virtual_apic_trap() {
            return self.reflect(exit);
        }
        if self.smi_comes(false)
            && self.cpu.pending_exception.is_none()
            && !self.debugger.blocks_interrupts
        {
            return self.enter_smm();
        }
        if let Some(next) = self.startup_events() {
            return next;
        }
        match self.cpu.activity {
            // All else is blocked (SDM Vol. 3C "Activity State").
            Activity::WaitForSipi => return Next::Idle,
            Activity::Shutdown if !self.in_l2() => return Next::User(Exit::Shutdown),
            _ => {}
        }
        if let Some(mut exception) = self.cpu.pending_exception.take() {
            // User space may have set more of an error code than there is: KVM delivers 16 bits, to L2 and to L1
            // (`vmx_inject_exception`, `nested_vmx_inject_exception_vmexit`).
            exception.error_code = exception.error_code.map(|code| code & 0xffff);
            return Next::from(self.raise(Event::exception(exception)));
        }
        if self.in_l2() && self.cpu.vmx.mtf_pending {
            self.cpu.vmx.mtf_pending = false;
            return self.reflect(VmExit::new(ExitReason::MONITOR_TRAP_FLAG));
        }
        let blocked_by_mov_ss = self.cpu.interruptibility.contains(Interruptibility::MOV_SS);
        if self.cpu.pending_debug & DEBUG_PENDING != 0 && !blocked_by_mov_ss {
            let dr6 = std::mem::take(&mut self.cpu.pending_debug) & !(1 << 12);
            let exception = Exception {
                vector: Exception::DB,
                error_code: None,
                payload: dr6,
            };
            return Next::from(self.raise(Event::exception(exception)));
        }
        if self.in_l2() && entry::preemption_timer_expired(&self.cpu) {
            return self.reflect(VmExit::new(ExitReason::PREEMPTION_TIMER));
        }
        if !self.debugger.blocks_interrupts {
            if self.smi_comes(true) {
                return self.enter_smm();
            }
            if let Some(next) = self.nmi() {
                return next;
            }
            if let Some(next) = self.external_interrupt() {
                return next;
            }
        }
        if self.cpu.activity != Activity::Active {
            return if self.wake_by_store() {
                Next::Again
            } else {
                Next::Idle
            };
        }
        if self.breakpoints_armed()
            && let Some(exception) = self.instruction_breakpoint()
        {
            return Next::from(self.raise(Event::exception(exception)));
        }
        Next::Run
    }

    fn nmi(&mut self) -> Option<Next> {
        const SHADOWS: Interruptibility = Interruptibility::STI.union(Interruptibility::MOV_SS);
        let blocked = self
            .cpu
            .interruptibility
            .intersects(SHADOWS.union(Interruptibility::NMI));
        if self.in_l2()
            && let Some(exit) = self.intercepts.nmi_window(&self.cpu)
        {
            return Some(self.reflect(exit));
        }
        if self.cpu.nmi_pending == 0 {
            return None;
        }
        if self.in_l2()
            && let Some(exit) = self.intercepts.nmi()
        {
            // With virtual NMIs the blocking bit speaks of virtual ones and does not hold this one off.
            let held = if self.intercepts.virtual_nmis() {
                SHADOWS
            } else {
                SHADOWS | Interruptibility::NMI
            };
            if self.cpu.interruptibility.intersects(held) {
                return None;
            }
            self.cpu.nmi_pending -= 1;
            return Some(self.reflect(exit));
        }
        if blocked {
            return None;
        }
        self.cpu.nmi_pending -= 1;
        self.cpu.interruptibility.insert(Interruptibility::NMI);
        self.effects.controls = true;
        Some(Next::from(self.deliver(Event::NMI)))
    }

    fn external_interrupt(&mut self) -> Option<Next> {
        if self.cpu.activity == Activity::Shutdown {
            // L2's: neither they nor their window wake it (SDM Vol. 3C "Activity State").
            return None;
        }
        if self.in_l2()
            && let Some(exit) = self.intercepts.interrupt_window(&self.cpu)
        {
            return Some(self.reflect(exit));
        }
        let open = self.interrupts_open();
        // At the priority of interrupt-window exiting, which rules it out: before external interrupts
        // (SDM Vol. 3C "Virtual-Interrupt Delivery").
        if open && let Some(event) = self.take_virtual_interrupt() {
            return Some(Next::from(self.deliver(event)));
        }
        let exits = self.in_l2() && self.intercepts.wants_external_interrupts();
        if !open && !exits || !self.interrupt_waits() {
            return None;
        }
        if exits {
            // External interrupts exit whatever RFLAGS.IF says (SDM Vol. 3C "Changes to the Blocking
            // of Events"); the instruction after STI or MOV SS is left to run first.
            if self
                .cpu
                .interruptibility
                .intersects(Interruptibility::STI | Interruptibility::MOV_SS)
            {
                return None;
            }
            let vector = if self.intercepts.acknowledges_interrupts() {
                match self.acknowledge_interrupt() {
                    Ok(vector) => vector,
                    Err(exit) => return Some(Next::User(exit)),
                }
            } else {
                None
            };
            if let Some(vector) = vector
                && self.apic_virtualization.is_notification(vector)
            {
                return Some(match self.process_posted_interrupts() {
                    Ok(()) => Next::Again,
                    Err(exit) => Next::User(exit),
                });
            }
            return Some(self.reflect(VmExit::external_interrupt(vector)));
        }
        match self.acknowledge_interrupt() {
            Ok(vector) => Some(Next::from(self.deliver(Event::interrupt(vector?)))),
            Err(exit) => Some(Next::User(exit)),
        }
    }

    /// Whether a maskable interrupt could be delivered now.
    fn interrupts_open(&self) -> bool {
        self.cpu.regs.rflags & rflags::IF != 0
            && !self
                .cpu
                .interruptibility
                .intersects(Interruptibility::STI | Interruptibility::MOV_SS)
    }

    /// Whether something waits for RFLAGS.IF or the end of a shadow: the engine must report the window.
    pub(crate) fn wants_interrupt_window(&self) -> bool {
        let window = self.in_l2()
            && self
                .primary_controls()
                .contains(Primary::INTERRUPT_WINDOW_EXITING);
        (window || self.virtual_apic.recognized || self.interrupt_waits())
            && !self.interrupts_open()
    }

    /// Whether something is held off by a shadow alone, which ends with one instruction whatever
    /// RFLAGS.IF says.
    pub(crate) fn waits_for_shadow(&self) -> bool {
        self.cpu
            .interruptibility
            .intersects(Interruptibility::STI | Interruptibility::MOV_SS)
            && (self.cpu.nmi_pending > 0
                || self.cpu.pending_debug & DEBUG_PENDING != 0
                || (self.in_l2()
                    && (self
                        .primary_controls()
                        .contains(Primary::NMI_WINDOW_EXITING)
                        || self.interrupt_waits())))
    }

    /// L1's TSC at which a timer does something next.
    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.or_preemption_timer(self.apic.next_deadline())
    }

    /// The earlier of a deadline and of the expiry of L2's VMX-preemption timer.
    fn or_preemption_timer(&self, deadline: Option<u64>) -> Option<u64> {
        let preemption = self
            .in_l2()
            .then(|| entry::preemption_timer_expiry(&self.cpu))
            .flatten();
        match (deadline, preemption) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Primary processor-based controls in force.
    pub(crate) fn primary_controls(&self) -> Primary {
        self.intercepts.primary
    }

    /// In L2, and external interrupts exit to L1.
    pub(crate) fn interrupts_exit(&self) -> bool {
        self.in_l2() && self.intercepts.wants_external_interrupts()
    }

    /// Whether each instruction ends in a monitor trap.
    pub(crate) fn monitor_trap(&self) -> bool {
        self.in_l2() && self.primary_controls().contains(Primary::MONITOR_TRAP_FLAG)
    }

    pub(super) fn reflect(&mut self, exit: VmExit) -> Next {
        self.exit_to_l1(&exit);
        Next::Again
    }
}

/// What the boundary found.
pub(super) enum Next {
    /// Nothing: the next instruction may run.
    Run,
    /// Something was done; look again.
    Again,
    /// The processor sleeps.
    Idle,
    /// User space must see it.
    User(Exit),
}

impl From<Option<Exit>> for Next {
    fn from(exit: Option<Exit>) -> Self {
        exit.map_or(Self::Again, Self::User)
    }
}

impl Processor {
    /// The engine ran an instruction natively up to a deadline: what waited for one has had it.
    pub(crate) fn instruction_ran_natively(&mut self) {
        self.one_instruction = false;
        self.iret_unblocks = false;
        self.retire_breakpoints();
        if self.in_l2() {
            self.cpu.vmx.run_pending = false;
        }
        if self.monitor_trap() {
            self.cpu.vmx.mtf_pending = true;
        }
    }
}
