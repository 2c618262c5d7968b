//! Delivery through the interrupt-vector table (SDM Vol. 3A "Interrupt and Exception Handling" in the
//! chapter "8086 Emulation").

use super::stack::Stack;
use super::{DeliveryFault, LinearMemory, Privilege, finish, return_address};
use crate::cpu::Cpu;
use crate::x86::control::rflags;
use crate::x86::{Event, Exception, Gpr};

pub(super) fn deliver<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    event: &Event,
) -> Result<(), DeliveryFault> {
    // Real-address mode knows no error codes, neither for the event nor for what goes wrong.
    let general_protection = DeliveryFault::Exception(Exception {
        error_code: None,
        ..Exception::GENERAL_PROTECTION
    });
    let offset = u32::from(event.vector) * 4;
    if offset + 3 > u32::from(cpu.sregs.idtr.limit) {
        return Err(general_protection);
    }
    let mut entry = [0; 4];
    memory.read(
        cpu.sregs.idtr.base.wrapping_add(offset.into()) & 0xffff_ffff,
        &mut entry,
        Privilege::ImplicitSupervisor,
    )?;
    let ip = u16::from_le_bytes([entry[0], entry[1]]);
    let selector = u16::from_le_bytes([entry[2], entry[3]]);
    if u32::from(ip) > cpu.sregs.cs.limit {
        return Err(general_protection);
    }
    let stack = Stack {
        segment: cpu.sregs.ss,
        pointer: cpu.regs.get(Gpr::Rsp),
        size: 2,
        long: None,
        error_code: None,
        privilege: Privilege::Handler(0),
    };
    let frame = [
        cpu.regs.rflags & 0xffff,
        u64::from(cpu.sregs.cs.selector),
        return_address(cpu, event) & 0xffff,
    ];
    let pointer = stack.push(memory, &frame)?;
    cpu.regs.set(Gpr::Rsp, pointer);
    cpu.sregs.cs.selector = selector;
    cpu.sregs.cs.base = u64::from(selector) << 4;
    cpu.regs.rip = ip.into();
    cpu.regs.rflags &= !(rflags::IF | rflags::TF | rflags::RF | rflags::AC);
    finish(cpu, event);
    Ok(())
}
