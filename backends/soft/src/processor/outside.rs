//! What reaches a processor from outside its instruction stream: a PIC's interrupt, INIT and SIPI, the
//! other processors (SDM Vol. 3A "Multiple-Processor (MP) Initialization", "Local and External
//! Interrupts").

use super::Processor;
use super::boundary::Next;
use crate::reset;
use nvmx_core::apic::Received;
use nvmx_core::cpu::{Activity, Interruptibility};
use nvmx_core::personality::Difference;
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::control::cr0;
use nvmx_core::x86::{DebugRegs, Gpr, cpuid};

/// Lines and messages at the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Outside {
    /// The PIC's INTR line.
    pub(crate) interrupt_line: bool,
    /// A vector that the PIC gave in its acknowledge cycle and that is not delivered yet.
    pub(crate) pic_vector: Option<u8>,
    /// INIT waits.
    pub(crate) init: bool,
    /// A start-up IPI waits.
    pub(crate) sipi: Option<u8>,
    /// An EOI that the I/O APICs must hear of.
    pub(crate) eoi: Option<u8>,
    /// There are other processors.
    pub(crate) peers: bool,
    /// They run too: a processor that sleeps lets them, instead of letting time pass.
    pub(crate) together: bool,
    /// An interrupt command for the others.
    pub(crate) outbox: Option<u64>,
    /// The engine must come back although the guest could go on: it is another processor's turn.
    pub(crate) leave: bool,
}

/// IA32_APIC_BASE: the bootstrap processor.
const BOOTSTRAP: u64 = 1 << 8;

impl Processor {
    /// Whether the PIC's interrupt is at the processor's door.
    #[inline]
    pub(super) fn pic_interrupt(&self) -> bool {
        self.outside.pic_vector.is_some()
            || self.outside.interrupt_line && self.apic.accepts_pic_interrupt()
    }

    /// Whether a maskable interrupt waits, from the PIC or the local APIC.
    pub(crate) fn interrupt_waits(&self) -> bool {
        self.pic_interrupt() || self.apic.pending_interrupt().is_some()
    }

    /// The vector of the interrupt that is to be taken; the PIC's goes first, as in KVM. `Err`: user
    /// space must run the PIC's acknowledge cycle.
    pub(super) fn acknowledge_interrupt(&mut self) -> Result<Option<u8>, Exit> {
        if !self.pic_interrupt() {
            return Ok(self.apic.acknowledge());
        }
        match self.outside.pic_vector.take() {
            Some(vector) => Ok(Some(vector)),
            None => Err(Exit::InterruptWindow),
        }
    }

    /// INIT and SIPI, which go before everything but what VM entry injects.
    #[inline]
    pub(super) fn startup_events(&mut self) -> Option<Next> {
        if self.outside.init || self.outside.sipi.is_some() {
            self.init_or_sipi()
        } else {
            None
        }
    }

    /// SDM Vol. 3C "Other Causes of VM Exits", "Activity State": INIT is blocked in root operation and in
    /// SMM, and exits in non-root operation; SIPI means something in wait-for-SIPI alone, and is lost elsewhere.
    fn init_or_sipi(&mut self) -> Option<Next> {
        let waits = self.cpu.activity == Activity::WaitForSipi;
        if self.outside.init {
            if self.in_l2() {
                let held = waits && !self.cpu.model.as_kvm(Difference::InitInWaitForSipi);
                self.outside.init = held;
                if !waits {
                    let exit = self.intercepts.init();
                    return Some(self.reflect(exit));
                }
                // With a dropped INIT goes a pending MTF exit.
                if !held {
                    self.cpu.vmx.mtf_pending = false;
                }
            } else if !self.cpu.vmx.is_on() && !self.cpu.smm {
                self.outside.init = false;
                self.init();
                return Some(Next::Again);
            }
        }
        let vector = self.outside.sipi.take()?;
        if !waits {
            return None;
        }
        if self.in_l2() {
            let exit = self.intercepts.sipi(vector);
            return Some(self.reflect(exit));
        }
        let cs = &mut self.cpu.sregs.cs;
        cs.selector = u16::from(vector) << 8;
        cs.base = u64::from(vector) << 12;
        self.cpu.regs.rip = 0;
        self.cpu.activity = Activity::Active;
        Some(Next::Again)
    }

    /// INIT (SDM Vol. 3A, table "IA-32 and Intel 64 Processor States Following Power-up, Reset, or
    /// INIT"): MSRs, x87 and SSE state and the TSC stay.
    fn init(&mut self) {
        let apic_base = self.apic.base();
        let kept = self.cpu.sregs.cr0 & (cr0::CD | cr0::NW);
        let cpu = &mut self.cpu;
        cpu.regs = reset::cpu().regs;
        let signature = cpuid::lookup(&cpu.model.cpuid, 1, 0)[0];
        cpu.regs.set(Gpr::Rdx, u64::from(signature));
        cpu.sregs = reset::sregs();
        cpu.sregs.cr0 = cr0::ET | kept;
        cpu.sregs.apic_base = apic_base;
        cpu.debug = DebugRegs::default();
        cpu.interruptibility = Interruptibility::empty();
        cpu.pending_debug = 0;
        cpu.pending_exception = None;
        cpu.injected = None;
        cpu.nmi_pending = 0;
        cpu.triple_fault_pending = false;
        cpu.activity = if apic_base & BOOTSTRAP != 0 {
            Activity::Active
        } else {
            Activity::WaitForSipi
        };
        self.outside.pic_vector = None;
        self.pdptes_stale = false;
        self.one_instruction = false;
        self.apic.init();
        self.level_changed();
    }

    /// An interrupt command reached this processor.
    pub(crate) fn receive(&mut self, command: u64, is_sender: bool) {
        let received = self.apic.receive(command, is_sender);
        self.signal(received);
    }

    /// What reached the local APIC goes to the processor.
    fn signal(&mut self, received: Received) {
        match received {
            Received::Nothing => {}
            Received::Startup(vector) => self.outside.sipi = Some(vector),
            Received::Init => self.outside.init = true,
            Received::Nmi => self.cpu.nmi_pending = (self.cpu.nmi_pending + 1).min(2),
            Received::Smi => self.cpu.smi_pending = true,
        }
    }

    /// A performance counter is at an overflow that interrupts.
    #[cold]
    pub(super) fn counter_overflow(&mut self) {
        if self.cpu.counter_interrupt() {
            let received = self.apic.counter_interrupt();
            self.signal(received);
        }
    }

    /// Machine time as another processor has left it.
    pub(crate) fn set_time(&mut self, (ticks, idle): (u64, u64)) {
        let tsc = &mut self.cpu.tsc;
        let before = tsc.executed();
        (tsc.ticks, tsc.idle) = (ticks, idle);
        // What others executed is nothing to count here.
        self.cpu.pmu.skip(tsc.executed().wrapping_sub(before));
    }

    /// Machine time.
    pub(crate) fn time(&self) -> (u64, u64) {
        (self.cpu.tsc.ticks, self.cpu.tsc.idle)
    }

    /// Lets time pass without an instruction up to this tick.
    pub(crate) fn sleep_until(&mut self, tick: u64) {
        let skipped = tick.saturating_sub(self.cpu.tsc.ticks);
        let tsc = &mut self.cpu.tsc;
        tsc.idle = tsc.idle.wrapping_add(skipped);
        tsc.ticks = tsc.ticks.wrapping_add(skipped);
    }
}
