//! The task switch itself, once the checks of [`super::task`] have passed (SDM Vol. 3A "Task Switching"). It
//! is in two parts, since what comes up in the second belongs to the new task: [`begin`] saves the old task
//! and loads the registers of the new one, [`finish_switch`] loads its segments.

use super::frame::{Descriptor, fault, linear};
use super::gate::is_software;
use super::stack::Stack;
use super::{DeliveryFault, LinearMemory, Privilege, return_address};
use crate::cpu::{Activity, Cpu, Interruptibility};
use crate::vmx::exit::qualification::TaskSwitchSource;
use crate::x86::control::{cr0, rflags};
use crate::x86::{AccessRights, Event, Exception, Gpr, Segment, Sregs};

/// A task switch that is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Switch {
    /// Selector of the new TSS.
    pub task: u16,
    /// What asks for it.
    pub source: TaskSwitchSource,
    /// RIP that the old task goes on at.
    pub return_rip: u64,
    /// An event from outside or an exception: the EXT bit of error codes.
    pub external: bool,
    /// The error code of an exception, which the new task finds on its stack.
    pub error_code: Option<u32>,
}

impl Switch {
    /// The switch that an event makes whose gate in the IDT is a task gate.
    #[must_use]
    pub fn for_event(cpu: &Cpu, task: u16, event: &Event) -> Self {
        Self {
            task,
            source: TaskSwitchSource::TaskGate,
            return_rip: return_address(cpu, event),
            external: !is_software(event),
            error_code: event.error_code,
        }
    }
}

/// Busy, and 32 bits, in a TSS descriptor's type.
const BUSY: u32 = 2;
const BITS_32: u32 = 8;
/// T flag of a 32-bit TSS.
const DEBUG_TRAP: u32 = 0x64;
/// The bits of EFLAGS that exist.
const FLAGS: u64 = 0x3f_7fd5;
/// Local enables and LE of DR7.
const DR7_LOCAL: u64 = 0x155;

/// Where the fields of a TSS are. The saved part is in one piece: EIP, EFLAGS, the general registers in
/// encoding order, ES, CS, SS, DS and, with 32 bits, FS and GS.
struct Layout {
    size: u32,
    /// Bytes of a field.
    width: usize,
    saved: u32,
    segments: usize,
    ldtr: u32,
}

const LAYOUT_32: Layout = Layout {
    size: 0x68,
    width: 4,
    saved: 0x20,
    segments: 6,
    ldtr: 0x60,
};
const LAYOUT_16: Layout = Layout {
    size: 0x2c,
    width: 2,
    saved: 0x0e,
    segments: 4,
    ldtr: 0x2a,
};
const CR3: u32 = 0x1c;
/// EIP, EFLAGS and eight registers come before the selectors.
const BEFORE_SEGMENTS: usize = 10;

impl Layout {
    const fn of(segment: &Segment) -> &'static Self {
        if segment.ar.bits() & BITS_32 != 0 {
            &LAYOUT_32
        } else {
            &LAYOUT_16
        }
    }

    const fn saved_size(&self) -> usize {
        (BEFORE_SEGMENTS + self.segments) * self.width
    }
}

fn field(bytes: &[u8], offset: u32, width: usize) -> u32 {
    let mut value = [0; 4];
    let start = offset as usize;
    if let Some(found) = bytes.get(start..start + width) {
        value[..width].copy_from_slice(found);
    }
    u32::from_le_bytes(value)
}

/// Saves the old task and loads registers, CR3 and TR of the new one. An error leaves all as it was. Behind
/// it translations are those of the new CR3.
pub fn begin<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    switch: &Switch,
) -> Result<(), DeliveryFault> {
    let old = cpu.sregs.tr;
    let old_layout = Layout::of(&old);
    if !old.is_usable() || old.limit < old_layout.size - 1 {
        return Err(fault(Exception::TS, old.selector, switch.external));
    }
    let descriptor = Descriptor::read(cpu, memory, switch.task, Exception::GP, switch.external)?;
    let new = descriptor.segment(switch.task);
    let layout = Layout::of(&new);
    let nests = matches!(
        switch.source,
        TaskSwitchSource::Call | TaskSwitchSource::TaskGate
    );

    // All that is read, and all that could fault while it is written.
    let mut tss = [0; LAYOUT_32.size as usize];
    let size = layout.size as usize;
    for start in (0..size).step_by(16) {
        let end = (start + 16).min(size);
        memory.read(
            linear(cpu, new.base, start as u32),
            &mut tss[start..end],
            Privilege::ImplicitSupervisor,
        )?;
    }
    let save_at = linear(cpu, old.base, old_layout.saved);
    let length = old_layout.saved_size();
    memory.check_write(save_at, length, Privilege::ImplicitSupervisor)?;
    let link_at = linear(cpu, new.base, 0);
    if nests {
        memory.check_write(link_at, 2, Privilege::ImplicitSupervisor)?;
    }

    if matches!(
        switch.source,
        TaskSwitchSource::Jmp | TaskSwitchSource::Iret
    ) {
        let old_descriptor =
            Descriptor::read(cpu, memory, old.selector, Exception::TS, switch.external)?;
        old_descriptor.set_busy(memory, false)?;
    }
    let saved = save(cpu, old_layout, switch);
    memory.write(save_at, &saved[..length], Privilege::ImplicitSupervisor)?;
    if nests {
        memory.write(
            link_at,
            &old.selector.to_le_bytes(),
            Privilege::ImplicitSupervisor,
        )?;
    }
    if switch.source != TaskSwitchSource::Iret {
        descriptor.set_busy(memory, true)?;
    }

    let at = |index: usize| {
        field(
            &tss,
            layout.saved + (index * layout.width) as u32,
            layout.width,
        )
    };
    let is_32_bit = layout.width == 4;
    cpu.regs.rip = at(0).into();
    let mut flags = u64::from(at(1)) & FLAGS | rflags::FIXED;
    if nests {
        flags |= rflags::NT;
    }
    cpu.regs.rflags = flags;
    for (index, register) in Gpr::ALL[..8].iter().enumerate() {
        // What a 16-bit TSS does not hold becomes ones, as in QEMU and Bochs.
        let upper = if is_32_bit { 0 } else { 0xffff_0000 };
        cpu.regs.set(*register, u64::from(at(index + 2) | upper));
    }
    let selector = |index: usize| {
        if index < layout.segments {
            at(BEFORE_SEGMENTS + index) as u16
        } else {
            0
        }
    };
    let privilege = if flags & rflags::VM != 0 {
        3
    } else {
        u32::from(selector(1) & 3)
    };
    let unusable = |selector: u16| Segment {
        selector,
        ar: AccessRights::UNUSABLE | AccessRights::from_bits_retain(privilege << 5),
        ..Segment::default()
    };
    let sregs = &mut cpu.sregs;
    for (index, segment) in [
        &mut sregs.es,
        &mut sregs.cs,
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.fs,
        &mut sregs.gs,
    ]
    .into_iter()
    .enumerate()
    {
        *segment = unusable(selector(index));
    }
    sregs.ldtr = unusable(field(&tss, layout.ldtr, 2) as u16);
    if is_32_bit && sregs.cr0 & cr0::PG != 0 {
        sregs.cr3 = field(&tss, CR3, 4).into();
    }
    sregs.cr0 |= cr0::TS;
    sregs.tr = new;
    sregs.tr.ar |= AccessRights::from_bits_retain(BUSY);
    cpu.debug.dr7 &= !DR7_LOCAL;
    if is_32_bit && field(&tss, DEBUG_TRAP, 2) & 1 != 0 {
        cpu.pending_exception = Some(Exception {
            vector: Exception::DB,
            error_code: None,
            // BT.
            payload: 1 << 15,
        });
    }
    cpu.interruptibility
        .remove(Interruptibility::STI | Interruptibility::MOV_SS);
    cpu.activity = Activity::Active;
    Ok(())
}

/// The dynamic fields of the old task.
fn save(cpu: &Cpu, layout: &Layout, switch: &Switch) -> [u8; LAYOUT_32.size as usize] {
    let mut flags = cpu.regs.rflags;
    if switch.source == TaskSwitchSource::Iret {
        flags &= !rflags::NT;
    }
    let sregs = &cpu.sregs;
    let head = [switch.return_rip, flags];
    let registers = Gpr::ALL[..8].iter().map(|register| cpu.regs.get(*register));
    let selectors = [
        sregs.es.selector,
        sregs.cs.selector,
        sregs.ss.selector,
        sregs.ds.selector,
        sregs.fs.selector,
        sregs.gs.selector,
    ];
    let values = head
        .into_iter()
        .chain(registers)
        .chain(selectors.map(u64::from));
    let mut bytes = [0; LAYOUT_32.size as usize];
    for (slot, value) in bytes.chunks_exact_mut(layout.width).zip(values) {
        slot.copy_from_slice(&value.to_le_bytes()[..layout.width]);
    }
    bytes
}

/// Loads the segments of the new task and gives it its error code (SDM Vol. 3A, table "Exception Conditions
/// Checked During a Task Switch"). What comes up is the new task's, with the segments that were loaded before.
pub fn finish_switch<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    switch: &Switch,
) -> Result<Option<Exception>, DeliveryFault> {
    match load_segments(cpu, memory, switch) {
        Ok(()) => Ok(None),
        Err(DeliveryFault::Exception(exception)) => Ok(Some(exception)),
        Err(other) => Err(other),
    }
}

fn load_segments<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    switch: &Switch,
) -> Result<(), DeliveryFault> {
    let external = switch.external;
    load_ldtr(cpu, memory, external)?;
    let cpl = (cpu.sregs.cs.selector & 3) as u8;
    type Place = fn(&mut Sregs) -> &mut Segment;
    let places: [(Place, Kind); 6] = [
        (|s| &mut s.cs, Kind::Code),
        (|s| &mut s.ss, Kind::Stack),
        (|s| &mut s.ds, Kind::Data),
        (|s| &mut s.es, Kind::Data),
        (|s| &mut s.fs, Kind::Data),
        (|s| &mut s.gs, Kind::Data),
    ];
    for (place, kind) in places {
        let selector = place(&mut cpu.sregs).selector;
        let loaded = if cpu.regs.rflags & rflags::VM != 0 {
            Segment {
                selector,
                base: u64::from(selector) << 4,
                limit: 0xffff,
                ar: AccessRights::from_bits_retain(0xf3),
            }
        } else {
            load(cpu, memory, selector, kind, cpl, external)?
        };
        *place(&mut cpu.sregs) = loaded;
    }
    if cpu.regs.rip > u64::from(cpu.sregs.cs.limit) {
        return Err(fault(Exception::GP, 0, external));
    }
    if let Some(error_code) = switch.error_code {
        let segment = cpu.sregs.ss;
        let stack = Stack {
            segment,
            pointer: cpu.regs.get(Gpr::Rsp),
            size: Layout::of(&cpu.sregs.tr).width as u8,
            long: None,
            error_code: Some(external.into()),
            privilege: Privilege::Handler(segment.ar.dpl()),
        };
        let pointer = stack.push(memory, &[error_code.into()])?;
        cpu.regs.set(Gpr::Rsp, pointer);
    }
    Ok(())
}

fn load_ldtr<L: LinearMemory + ?Sized>(
    cpu: &mut Cpu,
    memory: &mut L,
    external: bool,
) -> Result<(), DeliveryFault> {
    const LDT: u8 = 2;
    let selector = cpu.sregs.ldtr.selector;
    if selector & 0xfffc == 0 {
        return Ok(());
    }
    let bad = fault(Exception::TS, selector, external);
    if selector & 4 != 0 {
        return Err(bad);
    }
    let descriptor = Descriptor::read(cpu, memory, selector, Exception::TS, external)?;
    let rights = descriptor.rights();
    if rights.contains(AccessRights::CODE_OR_DATA)
        || rights.segment_type() != LDT
        || !rights.contains(AccessRights::PRESENT)
    {
        return Err(bad);
    }
    cpu.sregs.ldtr = Segment {
        ar: rights,
        ..descriptor.segment(selector)
    };
    Ok(())
}

/// What a segment register is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Code,
    Stack,
    Data,
}

fn load<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    selector: u16,
    kind: Kind,
    cpl: u8,
    external: bool,
) -> Result<Segment, DeliveryFault> {
    let bad = fault(Exception::TS, selector, external);
    if selector & 0xfffc == 0 {
        return if kind == Kind::Data {
            Ok(Segment {
                selector,
                ar: AccessRights::UNUSABLE,
                ..Segment::default()
            })
        } else {
            Err(bad)
        };
    }
    let descriptor = Descriptor::read(cpu, memory, selector, Exception::TS, external)?;
    let rights = descriptor.rights();
    let (dpl, rpl) = (rights.dpl(), (selector & 3) as u8);
    let is_code = rights.contains(AccessRights::CODE);
    let conforming = is_code && rights.contains(AccessRights::EXPAND_DOWN_CONFORMING);
    let accessible = rights.contains(AccessRights::WRITABLE_READABLE);
    let fits = rights.contains(AccessRights::CODE_OR_DATA)
        && match kind {
            Kind::Code => is_code && if conforming { dpl <= rpl } else { dpl == rpl },
            Kind::Stack => !is_code && accessible && dpl == cpl && rpl == cpl,
            Kind::Data => (!is_code || accessible) && (conforming || dpl >= cpl.max(rpl)),
        };
    if !fits {
        return Err(bad);
    }
    if !rights.contains(AccessRights::PRESENT) {
        let vector = if kind == Kind::Stack {
            Exception::SS
        } else {
            Exception::NP
        };
        return Err(fault(vector, selector, external));
    }
    descriptor.set_accessed(memory)?;
    Ok(descriptor.segment(selector))
}
