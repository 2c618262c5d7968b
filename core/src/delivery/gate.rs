//! Delivery through interrupt and trap gates (SDM Vol. 3A "Exception- or Interrupt-Handler
//! Procedures", "Exception and Interrupt Handling in 64-bit Mode"; Vol. 2 "INT n/INTO/INT3/INT1",
//! whose pseudocode gives the order of the checks).

use super::frame::{Descriptor, fault, is_addressable, linear, read_tss};
use super::stack::{MOST, Stack};
use super::{DeliveryFault, LinearMemory, Privilege, finish, return_address, task};
use crate::cpu::Cpu;
use crate::x86::control::{cr4, efer, iopl, rflags};
use crate::x86::cr_write::is_canonical;
use crate::x86::{AccessRights, Event, EventKind, Exception, Gpr, Segment};

/// A gate of the IDT that was found fit.
struct Gate {
    selector: u16,
    offset: u64,
    /// Interrupt gate: clears RFLAGS.IF.
    masks_interrupts: bool,
    /// Bytes of each item pushed.
    size: u8,
    /// Interrupt-stack table entry, or zero.
    ist: u8,
}

/// Where the handler runs.
struct Target {
    code: Segment,
    stack: Segment,
    cpl: u8,
    /// Stack pointer before the pushes.
    pointer: u64,
    /// The stack is another one: SS and RSP of the interrupted code are pushed.
    switches: bool,
}

pub(super) fn deliver<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    event: &Event,
) -> Result<(), DeliveryFault> {
    let long = cpu.sregs.efer & efer::LMA != 0;
    let external = !is_software(event);
    let virtual_8086 = cpu.regs.rflags & rflags::VM != 0;
    if virtual_8086 && event.kind == EventKind::SoftwareInterrupt {
        // SDM Vol. 3A "Handling Interrupts and Exceptions in Virtual-8086 Mode", methods 1 to 6.
        if cpu.sregs.cr4 & cr4::VME != 0 {
            return Err(DeliveryFault::Unsupported(
                "INT n in virtual-8086 mode with CR4.VME, SDM Vol. 3A \"Class 3 -- Software Interrupt Handling in Virtual-8086 Mode\"",
            ));
        }
        if iopl(cpu.regs.rflags) < 3 {
            return Err(DeliveryFault::Exception(Exception::GENERAL_PROTECTION));
        }
    }
    let gate = read_gate(cpu, memory, event, external)?;

    // The code segment.
    if gate.selector & 0xfffc == 0 {
        return Err(fault(Exception::GP, 0, external));
    }
    let code = Descriptor::read(cpu, memory, gate.selector, Exception::GP, external)?;
    let bad_code = fault(Exception::GP, gate.selector, external);
    let cpl = if virtual_8086 { 3 } else { cpu.cpl() };
    let dpl = code.rights().dpl();
    if !code.is(AccessRights::CODE_OR_DATA | AccessRights::CODE) || dpl > cpl {
        return Err(bad_code);
    }
    if !code.is(AccessRights::PRESENT) {
        return Err(fault(Exception::NP, gate.selector, external));
    }
    if long && (!code.is(AccessRights::LONG) || code.is(AccessRights::DEFAULT_BIG)) {
        return Err(bad_code);
    }
    let conforming = code.is(AccessRights::EXPAND_DOWN_CONFORMING);
    let new_cpl = if conforming { cpl } else { dpl };
    if virtual_8086 && (conforming || dpl != 0) {
        return Err(bad_code);
    }

    let code_segment = code.segment(gate.selector & !3 | u16::from(new_cpl));
    let target = if long {
        long_target(cpu, memory, &gate, code_segment, new_cpl, external)?
    } else {
        legacy_target(cpu, memory, &gate, code_segment, new_cpl, external)?
    };
    let linear_width = cpu.linear_width();
    let fits = if long {
        is_canonical(gate.offset, linear_width)
    } else {
        gate.offset <= u64::from(target.code.limit)
    };
    if !fits {
        return Err(fault(Exception::GP, 0, external));
    }

    let mut frame = [0; MOST];
    let mut count = 0;
    let mut push = |value: u64| {
        frame[count] = value;
        count += 1;
    };
    if virtual_8086 {
        let sregs = &cpu.sregs;
        for segment in [sregs.gs, sregs.fs, sregs.ds, sregs.es] {
            push(segment.selector.into());
        }
    }
    if target.switches || long {
        push(cpu.sregs.ss.selector.into());
        push(cpu.regs.get(Gpr::Rsp));
    }
    push(cpu.regs.rflags);
    push(cpu.sregs.cs.selector.into());
    push(return_address(cpu, event));
    if let Some(error_code) = event.error_code {
        push(error_code.into());
    }
    let stack = Stack {
        segment: target.stack,
        pointer: target.pointer,
        size: gate.size,
        long: long.then_some(linear_width),
        error_code: Some(if target.switches && !long {
            u32::from(target.stack.selector & 0xfffc) | u32::from(external)
        } else {
            external.into()
        }),
        privilege: Privilege::Handler(target.cpl),
    };
    let pointer = stack.push(memory, &frame[..count])?;
    code.set_accessed(memory)?;

    // From here on nothing can fault.
    cpu.regs.set(Gpr::Rsp, pointer);
    cpu.sregs.ss = target.stack;
    cpu.sregs.cs = target.code;
    cpu.regs.rip = gate.offset;
    let mut cleared = rflags::TF | rflags::NT | rflags::RF | rflags::VM;
    if gate.masks_interrupts {
        cleared |= rflags::IF;
    }
    cpu.regs.rflags &= !cleared;
    if virtual_8086 {
        let sregs = &mut cpu.sregs;
        for segment in [&mut sregs.gs, &mut sregs.fs, &mut sregs.ds, &mut sregs.es] {
            *segment = Segment {
                ar: AccessRights::UNUSABLE,
                ..Segment::default()
            };
        }
    }
    finish(cpu, event);
    Ok(())
}

/// INT n, INT3, INTO: the gate's DPL counts, and error codes say "not external".
pub(super) const fn is_software(event: &Event) -> bool {
    matches!(
        event.kind,
        EventKind::SoftwareInterrupt | EventKind::SoftwareException
    )
}

/// SDM Vol. 3A "IDT Descriptors", "64-Bit Mode IDT".
fn read_gate<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    event: &Event,
    external: bool,
) -> Result<Gate, DeliveryFault> {
    let long = cpu.sregs.efer & efer::LMA != 0;
    let bad = |vector: u8| {
        DeliveryFault::Exception(Exception {
            vector,
            error_code: Some(u32::from(event.vector) << 3 | 2 | u32::from(external)),
            payload: 0,
        })
    };
    let entry_size: u32 = if long { 16 } else { 8 };
    let offset = u32::from(event.vector) * entry_size;
    if offset + entry_size - 1 > u32::from(cpu.sregs.idtr.limit) {
        return Err(bad(Exception::GP));
    }
    let address = linear(cpu, cpu.sregs.idtr.base, offset);
    if !is_addressable(cpu, address) {
        return Err(bad(Exception::GP));
    }
    let mut bytes = [0; 16];
    memory.read(
        address,
        &mut bytes[..entry_size as usize],
        Privilege::ImplicitSupervisor,
    )?;
    let entry = u128::from_le_bytes(bytes);
    let rights = (entry >> 40) as u8;
    let (size, masks_interrupts) = match (rights & 0x1f, long) {
        (0x0e, true) => (8, true),
        (0x0f, true) => (8, false),
        (0x0e, false) => (4, true),
        (0x0f, false) => (4, false),
        (0x06, false) => (2, true),
        (0x07, false) => (2, false),
        (0x05, false) => (0, false),
        _ => return Err(bad(Exception::GP)),
    };
    let cpl = if cpu.regs.rflags & rflags::VM != 0 {
        3
    } else {
        cpu.cpl()
    };
    if is_software(event) && rights >> 5 & 3 < cpl {
        return Err(bad(Exception::GP));
    }
    if rights & 0x80 == 0 {
        return Err(bad(Exception::NP));
    }
    if size == 0 {
        // "Interrupt Tasks".
        let task = (entry >> 16) as u16;
        task::through_gate(cpu, memory, task, external)?;
        return Err(DeliveryFault::TaskSwitch(task));
    }
    let low = entry as u16;
    let middle = (entry >> 48) as u16;
    let offset = match size {
        2 => u64::from(low),
        4 => u64::from(low) | u64::from(middle) << 16,
        _ => u64::from(low) | u64::from(middle) << 16 | ((entry >> 64) as u64) << 32,
    };
    Ok(Gate {
        selector: (entry >> 16) as u16,
        offset,
        masks_interrupts,
        size,
        ist: if long { (entry >> 32) as u8 & 7 } else { 0 },
    })
}

/// SDM Vol. 3A "Stack Switching in IA-32e Mode", "Interrupt Stack Table".
fn long_target<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    gate: &Gate,
    code: Segment,
    cpl: u8,
    external: bool,
) -> Result<Target, DeliveryFault> {
    let inner = cpl < cpu.cpl();
    let pointer = if gate.ist != 0 {
        read_tss(cpu, memory, 0x1c + u32::from(gate.ist) * 8, 8, external)?
    } else if inner {
        read_tss(cpu, memory, 4 + u32::from(cpl) * 8, 8, external)?
    } else {
        cpu.regs.get(Gpr::Rsp)
    };
    let stack = if inner {
        // SS becomes a null selector whose RPL is the new CPL.
        Segment {
            selector: cpl.into(),
            ar: AccessRights::UNUSABLE | AccessRights::from_bits_retain(u32::from(cpl) << 5),
            ..Segment::default()
        }
    } else {
        cpu.sregs.ss
    };
    Ok(Target {
        code,
        stack,
        cpl,
        // The frame is 16-byte aligned whatever the stack was.
        pointer: pointer & !15,
        switches: inner || gate.ist != 0,
    })
}

/// SDM Vol. 3A "Stack Switching", Vol. 2 "INT n", INTER-PRIVILEGE-LEVEL-INTERRUPT.
fn legacy_target<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    gate: &Gate,
    code: Segment,
    cpl: u8,
    external: bool,
) -> Result<Target, DeliveryFault> {
    let _ = gate;
    let virtual_8086 = cpu.regs.rflags & rflags::VM != 0;
    if cpl == cpu.cpl() && !virtual_8086 {
        return Ok(Target {
            code,
            stack: cpu.sregs.ss,
            cpl,
            pointer: cpu.regs.get(Gpr::Rsp),
            switches: false,
        });
    }
    let tss32 = cpu.sregs.tr.ar.segment_type() & 8 != 0;
    let level = u32::from(cpl);
    let (pointer, selector) = if tss32 {
        // The check is on the pair: ESP and SS lie in one piece.
        let both = read_tss(cpu, memory, 4 + level * 8, 6, external)?;
        (both & 0xffff_ffff, (both >> 32) as u16)
    } else {
        let both = read_tss(cpu, memory, 2 + level * 4, 4, external)?;
        (both & 0xffff, (both >> 16) as u16)
    };
    if selector & 0xfffc == 0 {
        return Err(fault(Exception::TS, 0, external));
    }
    let bad = fault(Exception::TS, selector, external);
    let descriptor = Descriptor::read(cpu, memory, selector, Exception::TS, external)?;
    if (selector & 3) as u8 != cpl
        || descriptor.rights().dpl() != cpl
        || !descriptor.is(AccessRights::CODE_OR_DATA | AccessRights::WRITABLE_READABLE)
        || descriptor.is(AccessRights::CODE)
    {
        return Err(bad);
    }
    if !descriptor.is(AccessRights::PRESENT) {
        return Err(fault(Exception::SS, selector, external));
    }
    descriptor.set_accessed(memory)?;
    Ok(Target {
        code,
        stack: descriptor.segment(selector),
        cpl,
        pointer,
        switches: true,
    })
}
