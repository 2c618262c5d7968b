//! Which task an attempted task switch leads to, and the faults on the way (SDM Vol. 3C "Treatment of
//! Task Switches", whose four checks come before the VM exit; Vol. 2 "JMP", "CALL", "IRET"; Vol. 3A
//! "Task Management").

use super::frame::{Descriptor, fault, read_tss};
use super::{DeliveryFault, LinearMemory};
use crate::cpu::Cpu;
use crate::x86::control::efer;
use crate::x86::{AccessRights, Exception};

/// A task gate among the descriptors.
const TASK_GATE: u8 = 5;
/// Bits of a TSS descriptor's type: busy, 32-bit.
const BUSY: u8 = 2;
const BITS_32: u8 = 8;

/// The task that a far JMP or CALL of `selector` switches to. `None`: none, or a fault that the
/// instruction finds in any case.
pub fn task_of_far_branch<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    selector: u16,
) -> Result<Option<u16>, DeliveryFault> {
    if selector & 0xfffc == 0 || cpu.sregs.efer & efer::LMA != 0 {
        return Ok(None);
    }
    let Ok(descriptor) = Descriptor::read(cpu, memory, selector, Exception::GP, false) else {
        return Ok(None);
    };
    let kind = descriptor.rights().segment_type();
    let is_gate = kind == TASK_GATE;
    if descriptor.is(AccessRights::CODE_OR_DATA) || !is_gate && !is_tss(kind) {
        return Ok(None);
    }
    let dpl = descriptor.rights().dpl();
    if dpl < cpu.cpl() || dpl < (selector & 3) as u8 {
        return Err(fault(Exception::GP, selector, false));
    }
    if !is_gate {
        check(&descriptor, selector, Exception::GP, false, false)?;
        return Ok(Some(selector));
    }
    if !descriptor.is(AccessRights::PRESENT) {
        return Err(fault(Exception::NP, selector, false));
    }
    let task = descriptor.gate_selector();
    through_gate(cpu, memory, task, false)?;
    Ok(Some(task))
}

/// The task that IRET with RFLAGS.NT set returns to.
pub fn task_of_iret<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
) -> Result<u16, DeliveryFault> {
    let link = read_tss(cpu, memory, 0, 2, false)? as u16;
    let descriptor = global(cpu, memory, link, Exception::TS, false)?;
    check(&descriptor, link, Exception::TS, true, false)?;
    Ok(link)
}

/// Checks the TSS that a task gate names.
pub(super) fn through_gate<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    task: u16,
    external: bool,
) -> Result<(), DeliveryFault> {
    let descriptor = global(cpu, memory, task, Exception::GP, external)?;
    check(&descriptor, task, Exception::GP, false, external)
}

const fn is_tss(kind: u8) -> bool {
    matches!(kind, 1 | 3 | 9 | 11)
}

/// A TSS descriptor is in the GDT.
fn global<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    selector: u16,
    vector: u8,
    external: bool,
) -> Result<Descriptor, DeliveryFault> {
    if selector & 4 != 0 || selector & 0xfffc == 0 {
        return Err(fault(vector, selector, external));
    }
    Descriptor::read(cpu, memory, selector, vector, external)
}

/// Type, presence and limit of a TSS descriptor; `vector` is the fault of a wrong type.
fn check(
    descriptor: &Descriptor,
    selector: u16,
    vector: u8,
    busy: bool,
    external: bool,
) -> Result<(), DeliveryFault> {
    let kind = descriptor.rights().segment_type();
    if descriptor.is(AccessRights::CODE_OR_DATA) || !is_tss(kind) || (kind & BUSY != 0) != busy {
        return Err(fault(vector, selector, external));
    }
    if !descriptor.is(AccessRights::PRESENT) {
        return Err(fault(Exception::NP, selector, external));
    }
    // "TSS Descriptor": 67H, or 2BH for a 16-bit TSS.
    let least = if kind & BITS_32 != 0 { 0x67 } else { 0x2b };
    if descriptor.segment(selector).limit < least {
        return Err(fault(Exception::TS, selector, external));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
