//! Delivery of events through the IDT or the interrupt-vector table (SDM Vol. 3A "Interrupt and
//! Exception Handling", "Interrupt and Exception Handling in Real-Address Mode").
//!
//! Delivery is all or nothing: where it faults, the processor is as it was (bytes above the stack
//! top may have been written, as on silicon), and the caller decides with [`combine`] what the fault
//! makes of the event. CR2, DR6 and the RF of faults are no part of it: [`apply_payload`] sets them,
//! once nobody intercepts the exception.

mod access_rights;
mod classes;
mod frame;
mod gate;
mod real;
mod stack;
mod switch;
mod task;

#[cfg(test)]
mod tests;

pub use access_rights::is_of_legacy_mode_alone;
pub use classes::{Combined, combine};
pub use switch::{Switch, begin, finish_switch};
pub use task::{task_of_far_branch, task_of_iret};

use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::paging::WalkFault;
use crate::vmx::ept::EptFault;
use crate::x86::control::{cr0, dr7, rflags};
use crate::x86::{Event, EventKind, Exception};

/// How delivery accesses memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privilege {
    /// Implicit supervisor-mode: descriptor tables and TSS, whatever the CPL.
    ImplicitSupervisor,
    /// The stack of the handler: explicit, at the handler's privilege level.
    Handler(u8),
}

/// Linear memory as the caller's MMU gives it.
pub trait LinearMemory {
    /// Reads `buffer.len()` bytes (at most 16).
    fn read(
        &mut self,
        address: u64,
        buffer: &mut [u8],
        privilege: Privilege,
    ) -> Result<(), WalkFault>;

    /// Writes `bytes` (at most 80), whole or not at all.
    fn write(&mut self, address: u64, bytes: &[u8], privilege: Privilege) -> Result<(), WalkFault>;

    /// Whether `length` bytes could be written; may set accessed and dirty flags.
    fn check_write(
        &mut self,
        address: u64,
        length: usize,
        privilege: Privilege,
    ) -> Result<(), WalkFault>;
}

/// Why an event was not delivered. The processor is unchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeliveryFault {
    /// Another exception came up: see [`combine`].
    Exception(Exception),
    /// L2's delivery met EPT: the exit reports the event as IDT vectoring.
    Ept(EptFault),
    /// The event goes through a task gate to this TSS, which passed the checks that come before a VM exit.
    TaskSwitch(u16),
    /// The model has not been taught this; the text names the SDM section.
    Unsupported(&'static str),
}

impl From<WalkFault> for DeliveryFault {
    fn from(fault: WalkFault) -> Self {
        match fault {
            WalkFault::PageFault(exception) => Self::Exception(exception),
            WalkFault::Ept(fault) => Self::Ept(fault),
        }
    }
}

/// Delivers `event`: pushes the frame and loads CS:RIP, SS:RSP and RFLAGS.
///
/// `cpu.regs.rip` points at the instruction for faults and software events (the length is added for
/// the latter) and behind it for everything that is delivered between instructions.
pub fn deliver<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    event: &Event,
) -> Result<(), DeliveryFault> {
    if cpu.sregs.cr0 & cr0::PE == 0 {
        real::deliver(cpu, memory, event)
    } else {
        gate::deliver(cpu, memory, event)
    }
}

/// What raising `exception` does before delivery, once nobody intercepts it: CR2 (page fault), DR6 and
/// DR7.GD (debug exception), and RFLAGS.RF for faults (SDM Vol. 3A "Exception Classifications",
/// "Debug Exceptions"; Vol. 3B "Resume Flag").
///
/// Not for events that VM entry injects: their payload and RF come from the VMCS.
pub fn apply_payload(cpu: &mut Cpu, exception: &Exception) {
    match exception.vector {
        Exception::PF => cpu.sregs.cr2 = exception.payload,
        Exception::DB => {
            // B3:B0 are replaced, the other bits only ever set; RTM (bit 16) counts the other way.
            let dr6 = cpu.debug.dr6 & !0xf | exception.payload & !DR6_RTM;
            cpu.debug.dr6 = if exception.payload & DR6_RTM == 0 {
                dr6 | DR6_RTM
            } else {
                dr6 & !DR6_RTM
            };
            enter_debug_handler(cpu);
        }
        _ => {}
    }
    let is_fault = !matches!(
        exception.vector,
        Exception::DB
            | Exception::NMI
            | Exception::BP
            | Exception::OF
            | Exception::DF
            | Exception::MC
    );
    if is_fault {
        cpu.regs.rflags |= rflags::RF;
    }
}

/// What a debug exception turns off, that of INT1 too (SDM Vol. 3B "Debug Control Register (DR7)",
/// "IA32_DEBUGCTL MSR": branch records and branch steps).
pub fn enter_debug_handler(cpu: &mut Cpu) {
    cpu.debug.dr7 &= !dr7::GD;
    cpu.msrs.debugctl &= !DEBUGCTL_LBR_BTF;
}

const DR6_RTM: u64 = 1 << 16;
const DEBUGCTL_LBR_BTF: u64 = 0b11;

/// RIP that the frame holds: behind the instruction for software events.
const fn return_address(cpu: &Cpu, event: &Event) -> u64 {
    match event.kind {
        EventKind::SoftwareInterrupt
        | EventKind::SoftwareException
        | EventKind::PrivilegedSoftwareException => {
            cpu.regs.rip.wrapping_add(event.instruction_length as u64)
        }
        _ => cpu.regs.rip,
    }
}

/// Blocking and activity after delivery (SDM Vol. 3A "Handling Multiple NMIs", "Masking Exceptions
/// and Interrupts When Switching Stacks").
fn finish(cpu: &mut Cpu, event: &Event) {
    cpu.interruptibility
        .remove(Interruptibility::STI | Interruptibility::MOV_SS);
    if event.kind == EventKind::Nmi {
        cpu.interruptibility.insert(Interruptibility::NMI);
    }
    cpu.activity = Activity::Active;
}
