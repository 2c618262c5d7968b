//! What user space asks of a processor at every exit: little, and cheap.

use crate::SoftVm;
use crate::processor::Debugger;
use nvmx_core::cpu::{Activity, Interruptibility};
use nvmx_core::x86::control::rflags;

/// A processor in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Brief {
    /// RIP.
    pub rip: u64,
    /// The linear address that RIP stands for.
    pub linear_rip: u64,
    /// DR7, of the debug registers in force.
    pub dr7: u64,
    /// RFLAGS.IF.
    pub interrupt_flag: bool,
    /// An instruction's shadow holds interrupts off.
    pub shadow: bool,
    /// An event is under delivery, or an exception waits.
    pub event_waits: bool,
    /// CR8.
    pub cr8: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// In SMM.
    pub smm: bool,
    /// In L2.
    pub in_l2: bool,
    /// In L2, and interrupts exit to L1.
    pub interrupts_exit: bool,
    /// An entry into L2 is not complete.
    pub run_pending: bool,
    /// What it does.
    pub activity: Activity,
    /// The local APIC passes a PIC's interrupts on.
    pub accepts_pic: bool,
}

impl SoftVm {
    /// A processor in short; panics if there is none with this index.
    #[must_use]
    pub fn brief(&self, index: usize) -> Brief {
        let processor = &self.processors[index];
        let cpu = &processor.cpu;
        let shadows = Interruptibility::STI | Interruptibility::MOV_SS;
        Brief {
            rip: cpu.regs.rip,
            linear_rip: processor.linear_rip(),
            dr7: processor.debug_registers().dr7,
            interrupt_flag: cpu.regs.rflags & rflags::IF != 0,
            shadow: cpu.interruptibility.intersects(shadows),
            event_waits: cpu.injected.is_some() || cpu.pending_exception.is_some(),
            cr8: processor.apic.cr8(),
            apic_base: processor.apic.base(),
            smm: cpu.smm,
            in_l2: processor.in_l2(),
            interrupts_exit: processor.interrupts_exit(),
            run_pending: cpu.vmx.run_pending,
            activity: cpu.activity,
            accepts_pic: processor.apic.accepts_pic_interrupt(),
        }
    }

    /// Whether a processor that is not [`Active`](Activity::Active) would go on if it ran now, timers apart.
    #[must_use]
    pub fn would_wake(&self, index: usize) -> bool {
        let processor = &self.processors[index];
        let (cpu, outside) = (&processor.cpu, &processor.outside);
        let takes_interrupts = cpu.regs.rflags & rflags::IF != 0 || processor.interrupts_exit();
        outside.init
            || outside.sipi.is_some()
            || cpu.nmi_pending > 0
            || cpu.smi_pending
            || takes_interrupts && processor.interrupt_waits()
    }

    /// Gives up a read that waits for its value: the instruction has not been.
    pub fn forget_read(&mut self, index: usize) {
        self.processors[index].pending_read = None;
    }
    /// Sets CR8, as its owner outside does; panics if there is no processor with this index.
    pub fn set_cr8(&mut self, index: usize, cr8: u64) {
        self.settled = false;
        self.processors[index].apic.set_cr8(cr8);
    }

    /// Instructions that the machine has executed.
    #[must_use]
    pub fn executed(&self) -> u64 {
        self.engine.env().executed()
    }
    /// Sets what user space's debugger waits for; panics if there is no processor with this index.
    pub fn set_debugger(&mut self, index: usize, debugger: Debugger) {
        let processor = &mut self.processors[index];
        processor.debugger = debugger;
        processor.effects.controls = true;
        if index == self.current {
            self.put();
        }
    }
}
