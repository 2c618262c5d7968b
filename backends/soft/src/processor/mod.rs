//! One logical processor of the machine: what the engine cannot run, and everything of VMX, between
//! the engine (below) and the vCPU trait (above).
//!
//! [`Processor::handle`] takes one intercepted instruction or exception. A handler answers with how
//! it ended ([`Done`], or [`Trap`] for what came up instead), [`Processor::settle`] turns that into a
//! new state: retired, fault delivered through the IDT, VM exit to L1, or an [`Exit`] to user space.
//! [`boundary`] then looks at what is pending between two instructions.

mod alignment;
mod alu;
mod apic;
mod boundary;
mod breakpoints;
mod control;
mod debugger;
mod events;
mod flags;
mod io;
mod mmio;
mod mmu;
mod monitor;
mod msr;
mod msr_access;
mod operands;
mod outside;
mod selectors;
mod smm;
mod syscall;
mod system;
mod tables;
mod task;
mod vmx;
mod waiting;
mod xsave;

pub use debugger::Debugger;
pub(crate) use mmu::kind;
pub(crate) use monitor::ENABLED as MONITOR_ENABLED;
pub(crate) use outside::Outside;
pub(crate) use xsave::may_be_xsave;

use crate::decode;
use crate::engine::{Intercept, Special};
use crate::ram::Ram;
use iced_x86::{Instruction, InstructionInfoFactory};
use nvmx_core::apic::Apic;
use nvmx_core::cpu::{Cpu, Interruptibility};
use nvmx_core::msr::filter::MsrFilter;
use nvmx_core::paging::{Regime, WalkFault};
use nvmx_core::vcpu::{Exit, NestedEvent};
use nvmx_core::vmx::apic_virtualization::ApicVirtualization;
use nvmx_core::vmx::ept::EptFault;
use nvmx_core::vmx::exit::{ExitReason, VmExit};
use nvmx_core::vmx::intercepts::{Intercepts, PauseLoop};
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{Event, Exception};
use std::sync::Arc;

/// How an interpreted instruction ended well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    /// It is complete: RIP goes on behind it.
    Retired,
    /// It set RIP itself, or must run again.
    Jumped,
}

/// What came up instead.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Trap {
    /// A fault of the instruction.
    Fault(Exception),
    /// INT n, INT3, INTO or INT1: an event to be delivered, RIP at the instruction.
    Software(Event),
    /// L1 wants it.
    Exit(VmExit),
    /// An access met L1's EPT; `true` if it reads and writes in one.
    Ept(EptFault, bool),
    /// User space must see it.
    User(Exit),
}

/// Result of a handler.
pub(crate) type Outcome = Result<Done, Trap>;

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Self::Fault(exception)
    }
}

impl From<VmExit> for Trap {
    fn from(exit: VmExit) -> Self {
        Self::Exit(exit)
    }
}

impl From<WalkFault> for Trap {
    fn from(fault: WalkFault) -> Self {
        match fault {
            WalkFault::PageFault(exception) => Self::Fault(exception),
            WalkFault::Ept(fault @ EptFault::ApicAccess(_)) => {
                Self::Exit(vmx::ept_exit(&fault, false))
            }
            WalkFault::Ept(fault) => Self::Ept(fault, false),
        }
    }
}

/// `unsupported: <what>, SDM <section>`.
pub(crate) fn unsupported(what: impl Into<String>) -> Trap {
    Trap::User(Exit::Unsupported { what: what.into() })
}

/// A read that user space must answer before the processor goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PendingRead {
    /// IN: into AL, AX or EAX; or INS: to memory.
    Io {
        /// Bytes.
        size: u8,
        /// The instruction.
        instruction: Instruction,
    },
    /// RDMSR, or WRMSR, whose answer has no value.
    Msr {
        /// WRMSR.
        write: bool,
        /// The instruction.
        instruction: Instruction,
    },
    /// A load from a device.
    Mmio {
        /// Bytes.
        size: u8,
        /// The instruction.
        instruction: Instruction,
    },
}

/// Nested events that are kept for user space.
const MOST_EVENTS: usize = 1 << 20;

/// What the engine's side must do after a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Effects {
    /// Translations are stale.
    pub(crate) flush: bool,
    /// The translation of this page is stale.
    pub(crate) flush_page: Option<u64>,
    /// The level or L1's controls changed: intercepts must be chosen anew.
    pub(crate) controls: bool,
    /// The instruction at RIP has been looked at and is the engine's to run.
    pub(crate) native_once: bool,
    /// x87 and SSE state changed: `fpu` has it.
    pub(crate) fpu: bool,
}

/// One logical processor.
pub(crate) struct Processor {
    pub(crate) cpu: Cpu,
    pub(crate) ram: Ram,
    pub(crate) apic: Apic,
    /// L1's TSC frequency.
    pub(crate) tsc_khz: u32,
    pub(crate) regime: Regime,
    /// What L1 wants to see of L2; nothing while L1 runs.
    pub(crate) intercepts: Intercepts,
    /// What L1 lets L2 do to its APIC; nothing while L1 runs.
    pub(crate) apic_virtualization: ApicVirtualization,
    /// What waits at the boundary for the virtual APIC.
    virtual_apic: apic::Pending,
    pub(crate) effects: Effects,
    pub(crate) pending_read: Option<PendingRead>,
    /// User space has enabled `KVM_CAP_HYPERV_ENLIGHTENED_VMCS`.
    pub(crate) enlightened_vmcs: bool,
    /// MSR accesses of the guest that user space wants to hear of.
    pub(crate) msr_filter: Option<Arc<MsrFilter>>,
    /// A write to a device that completing a read led to: user space sees it before anything else runs.
    pub(crate) deferred_write: Option<Exit>,
    /// Nested events that user space has not fetched.
    pub(crate) events: Vec<NestedEvent>,
    /// Nested events since the machine started.
    pub(crate) event_count: u64,
    /// Nothing that could make another event happens between instructions once there are this many.
    pub(crate) event_limit: u64,
    /// The run comes back when the machine's time is at this tick.
    pub(crate) until: u64,
    /// What comes from outside.
    pub(crate) outside: Outside,
    /// What user space's debugger waits for.
    pub(crate) debugger: Debugger,
    /// The line that MONITOR watches.
    monitor: monitor::Monitor,
    /// Breakpoints that the accesses of the instruction in progress match.
    data_matches: u64,
    /// Looks at operands; made when a breakpoint first needs it.
    information: Option<Box<InstructionInfoFactory>>,
    /// x87 and SSE state, while another processor is in the engine.
    pub(crate) fxsave: Box<[u8; 512]>,
    /// The engine's count of instructions when it last got the processor's state.
    pub(crate) executed_at_sync: u64,
    /// The boundary must be looked at after exactly one more instruction.
    pub(crate) one_instruction: bool,
    /// The instruction under way is an IRET that began while NMIs were blocked.
    pub(crate) iret_unblocks: bool,
    /// The engine's x87 and SSE state as FXSAVE64 writes it, fetched for XSAVE and its kin alone.
    pub(crate) fpu: [u8; 512],
    /// L2's loop of PAUSE instructions.
    pause_loop: PauseLoop,
    /// What the state in force needs and the model lacks; no instruction runs while there is any.
    pub(crate) unsupported: Option<&'static str>,
    /// The PDPTEs of PAE paging must be read from memory before the next instruction.
    pub(crate) pdptes_stale: bool,
    /// Nested events that were dropped because user space fetched none.
    pub(crate) lost_events: u64,
    /// A second processor state that event delivery works on, kept so that nothing is allocated.
    scratch: Option<Box<Cpu>>,
}

impl Processor {
    /// A processor after RESET.
    pub(crate) fn new(ram: Ram, cpu: Cpu, apic: Apic) -> Self {
        let regime = Regime::new(&cpu, None);
        Self {
            cpu,
            ram,
            apic,
            tsc_khz: crate::model::TSC_KHZ,
            regime,
            intercepts: Intercepts::default(),
            apic_virtualization: ApicVirtualization::default(),
            virtual_apic: apic::Pending::default(),
            effects: Effects {
                flush: true,
                flush_page: None,
                controls: true,
                native_once: false,
                fpu: false,
            },
            pending_read: None,
            enlightened_vmcs: false,
            msr_filter: None,
            deferred_write: None,
            events: Vec::with_capacity(256),
            event_count: 0,
            event_limit: u64::MAX,
            until: u64::MAX,
            outside: Outside::default(),
            debugger: Debugger::default(),
            monitor: monitor::Monitor::default(),
            data_matches: 0,
            information: None,
            fxsave: Box::new([0; 512]),
            executed_at_sync: 0,
            one_instruction: false,
            iret_unblocks: false,
            fpu: [0; 512],
            pause_loop: PauseLoop::default(),
            unsupported: None,
            pdptes_stale: false,
            lost_events: 0,
            scratch: None,
        }
    }

    /// Handles what the engine reported: RIP is at the instruction, `bytes` are those at RIP.
    /// `Some` is an exit to user space.
    pub(crate) fn handle(
        &mut self,
        intercept: Intercept,
        error_code: u32,
        bytes: &[u8],
    ) -> Option<Exit> {
        // L2 is in: what comes now is its own.
        self.cpu.vmx.run_pending = false;
        let mut length = 0;
        let outcome = match intercept {
            Intercept::InterruptWindow => Ok(Done::Jumped),
            Intercept::Exception(vector) if vector != Exception::UD => self
                .mov_dr_before_privilege(vector, bytes)
                .unwrap_or_else(|| self.native_exception(vector, error_code)),
            Intercept::Special(Special::Undefined) => Err(Exception::UNDEFINED.into()),
            Intercept::Special(Special::NoDevice) => Err(Exception::NO_DEVICE.into()),
            _ => match decode::decode(bytes, decode::code_bits(&self.cpu), self.cpu.regs.rip) {
                None => Err(Exception::UNDEFINED.into()),
                Some(instruction) => {
                    length = instruction.len();
                    self.interpret(intercept, &instruction)
                }
            },
        };
        let exit = self.settle(outcome, length);
        if exit.is_some() || self.one_instruction {
            // An IRET that ends NMI blocking runs before anything is delivered.
            return exit;
        }
        self.boundary()
    }

    fn interpret(&mut self, intercept: Intercept, instruction: &Instruction) -> Outcome {
        match intercept {
            Intercept::CrRead(_) | Intercept::CrWrite(_) => self.control_register(instruction),
            Intercept::DrRead(_) | Intercept::DrWrite(_) => self.debug_register(instruction),
            Intercept::IdtrRead
            | Intercept::GdtrRead
            | Intercept::LdtrRead
            | Intercept::TrRead
            | Intercept::IdtrWrite
            | Intercept::GdtrWrite
            | Intercept::LdtrWrite
            | Intercept::TrWrite => self.descriptor_table(instruction),
            Intercept::Rdtsc | Intercept::Rdtscp => self.rdtsc(instruction),
            Intercept::Rdpmc | Intercept::Special(Special::Rdpmc) => self.rdpmc(instruction),
            Intercept::Cpuid => self.cpuid(instruction),
            Intercept::Rsm => self.rsm(),
            Intercept::Iret => self.iret(),
            Intercept::SoftwareInterrupt => self.software_interrupt(instruction),
            Intercept::CacheInvalidate => self.cache_invalidate(instruction),
            Intercept::Pause => self.pause(instruction),
            Intercept::Hlt => self.hlt(instruction),
            Intercept::Invlpg => self.invlpg(instruction),
            Intercept::Rdmsr => self.rdmsr(instruction),
            Intercept::Wrmsr => self.wrmsr(instruction),
            Intercept::Monitor | Intercept::Mwait => self.monitor_mwait(instruction),
            Intercept::Special(Special::Io) => self.io(instruction),
            Intercept::Special(Special::Syscall) => self.syscall(instruction),
            Intercept::Special(Special::Sysenter) => self.sysenter(),
            Intercept::Special(Special::Int1) => self.software_interrupt(instruction),
            Intercept::Special(Special::Rdrand | Special::Rdseed) => self.random(instruction),
            Intercept::Special(Special::Xgetbv | Special::Xsetbv) => {
                self.extended_control(instruction)
            }
            Intercept::Special(Special::UserWait) => self.user_wait(instruction),
            Intercept::Special(Special::FarTransfer) => self.far_transfer(instruction),
            Intercept::Special(Special::Selector) => self.selector(instruction),
            Intercept::Special(Special::FlagsFirst) => self.flags_first(instruction),
            Intercept::Special(Special::AlignmentCheck) => self.check_alignment(instruction),
            Intercept::Exception(Exception::UD) => self.undefined(instruction),
            Intercept::Pushf | Intercept::Popf => Err(unsupported(
                "PUSHF and POPF intercept, which nothing asks for",
            )),
            other => Err(unsupported(format!(
                "engine event {other:?} at RIP {:#x}",
                self.cpu.regs.rip
            ))),
        }
    }

    /// Turns the outcome of an instruction of `length` bytes into state.
    pub(crate) fn settle(&mut self, outcome: Outcome, length: usize) -> Option<Exit> {
        match outcome {
            Ok(Done::Retired) => {
                self.retire(length);
                None
            }
            Ok(Done::Jumped) => None,
            Err(Trap::Fault(exception)) => self.raise(Event::exception(exception)),
            Err(Trap::Software(event)) => {
                // INT n is an instruction like others: it takes its tick, and RF was cleared when it began (SDM
                // Vol. 3B "Resume Flag": what software-generated interrupts push).
                self.cpu.regs.rflags &= !rflags::RF;
                self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
                self.raise(event)
            }
            Err(Trap::Exit(mut exit)) => {
                if exit.reason == ExitReason::APIC_ACCESS && length != 0 {
                    // Defined during event delivery alone; processors give it, and L1 skips by it.
                    exit.instruction_length = Some(length as u32);
                }
                self.exit_to_l1(&exit);
                None
            }
            Err(Trap::Ept(fault, read_modify_write)) => self.ept_fault(&fault, read_modify_write),
            Err(Trap::User(exit)) => Some(exit),
        }
    }

    /// Completes an interpreted instruction: RIP, the end of shadows and RF, the single-step trap.
    pub(crate) fn retire(&mut self, length: usize) {
        self.cpu.regs.rip = self.cpu.next_rip(length as u64);
        self.cpu
            .interruptibility
            .remove(Interruptibility::STI | Interruptibility::MOV_SS);
        self.cpu.regs.rflags &= !rflags::RF;
        self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
        if self.cpu.regs.rflags & rflags::TF != 0 {
            self.single_step();
        }
        self.retire_breakpoints();
        if self.monitor_trap() {
            self.cpu.vmx.mtf_pending = true;
        }
    }

    /// Registers a nested event.
    pub(crate) fn record(&mut self, event: NestedEvent) {
        if self.events.len() < MOST_EVENTS {
            self.events.push(event);
        } else {
            self.lost_events += 1;
        }
        self.event_count += 1;
    }

    /// Faults unless CPL is 0: #GP(0), as the privileged instructions do.
    pub(crate) fn require_cpl0(&self) -> Result<(), Trap> {
        if self.cpu.cpl() == 0 {
            Ok(())
        } else {
            Err(Exception::GENERAL_PROTECTION.into())
        }
    }

    /// Whether L2 runs.
    pub(crate) fn in_l2(&self) -> bool {
        self.cpu.vmx.guest_mode
    }
}
