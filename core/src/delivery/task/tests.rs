//! The four checks that come before a task switch, row by row.

use super::*;
use crate::addr::L1Phys;
use crate::delivery::{Privilege, deliver};
use crate::memory::{GuestMemory, VecMemory};
use crate::paging::WalkFault;
use crate::x86::control::cr0;
use crate::x86::{DescriptorTable, Event, Segment};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;

/// Linear is physical.
struct Flat(VecMemory);

impl LinearMemory for Flat {
    fn read(&mut self, address: u64, buffer: &mut [u8], _: Privilege) -> Result<(), WalkFault> {
        let fault = WalkFault::PageFault(Exception::page_fault(0, address));
        self.0.read(L1Phys(address), buffer).map_err(|_| fault)
    }

    fn write(&mut self, _: u64, _: &[u8], _: Privilege) -> Result<(), WalkFault> {
        panic!("a task switch that is not made writes nothing")
    }

    fn check_write(&mut self, _: u64, _: usize, _: Privilege) -> Result<(), WalkFault> {
        panic!("a task switch that is not made writes nothing")
    }
}

/// A descriptor with this access byte and limit, or a gate to `selector`.
const fn entry(access: u64, limit: u64, selector: u64) -> u64 {
    limit & 0xffff | selector << 16 | access << 40
}

fn machine() -> (Cpu, Flat) {
    let flat = Flat(VecMemory::new(0x4000));
    let entries = [
        0,
        entry(0x89, 0x67, 0),   // 0x08: available
        entry(0x8b, 0x67, 0),   // 0x10: busy
        entry(0x09, 0x67, 0),   // 0x18: absent
        entry(0x89, 0x66, 0),   // 0x20: too short
        entry(0x81, 0x2b, 0),   // 0x28: 16 bits, available
        entry(0x85, 0, 0x08),   // 0x30: gate
        entry(0x05, 0, 0x08),   // 0x38: absent gate
        entry(0x85, 0, 0x10),   // 0x40: gate to the busy one
        entry(0x85, 0, 0x0c),   // 0x48: gate to the local table
        entry(0xe5, 0, 0x08),   // 0x50: gate for all
        entry(0x9b, 0xffff, 0), // 0x58: code
        entry(0x84, 0, 0x58),   // 0x60: call gate
        entry(0x83, 0x2a, 0),   // 0x68: 16 bits, busy, too short
        entry(0x85, 0, 0x58),   // 0x70: gate to code
    ];
    for (i, value) in (0..).zip(entries) {
        flat.0.write_u64(L1Phys(GDT + 8 * i), value).unwrap();
    }
    let mut cpu = Cpu::default();
    cpu.sregs.cr0 = cr0::PE;
    let limit = 8 * entries.len() as u16 - 1;
    cpu.sregs.gdtr = DescriptorTable { base: GDT, limit };
    cpu.sregs.idtr = DescriptorTable {
        base: IDT,
        limit: 0x7ff,
    };
    cpu.sregs.tr = Segment {
        base: TSS,
        limit: 0x67,
        ..Segment::default()
    };
    (cpu, flat)
}

fn user(cpu: &mut Cpu) {
    cpu.sregs.ss.ar = AccessRights::from_bits_retain(0xf3);
}

const fn faults(vector: u8, error_code: u32) -> DeliveryFault {
    DeliveryFault::Exception(Exception {
        vector,
        error_code: Some(error_code),
        payload: 0,
    })
}

#[test]
fn far_branches() {
    let none = Ok(None);
    // CPL, selector, outcome.
    let rows = [
        (0, 0x08, Ok(Some(0x08))),
        (0, 0x28, Ok(Some(0x28))),
        (0, 0x10, Err(faults(13, 0x10))),
        (0, 0x18, Err(faults(11, 0x18))),
        (0, 0x20, Err(faults(10, 0x20))),
        (0, 0x0b, Err(faults(13, 0x08))),
        (3, 0x08, Err(faults(13, 0x08))),
        (0, 0x30, Ok(Some(0x08))),
        (3, 0x30, Err(faults(13, 0x30))),
        (0, 0x38, Err(faults(11, 0x38))),
        (0, 0x40, Err(faults(13, 0x10))),
        (0, 0x48, Err(faults(13, 0x0c))),
        // Past the gate, no privilege is asked.
        (3, 0x53, Ok(Some(0x08))),
        (0, 0x70, Err(faults(13, 0x58))),
        // No task switches: code, a call gate, null, beyond the table.
        (0, 0x58, none),
        (0, 0x60, none),
        (0, 0x03, none),
        (0, 0x78, none),
    ];
    for (cpl, selector, expected) in rows {
        let (mut cpu, mut memory) = machine();
        if cpl == 3 {
            user(&mut cpu);
        }
        let result = task_of_far_branch(&cpu, &mut memory, selector);
        assert_eq!(result, expected, "CPL {cpl}, {selector:#x}");
    }
    let (mut cpu, mut memory) = machine();
    cpu.sregs.efer = efer::LMA;
    assert_eq!(task_of_far_branch(&cpu, &mut memory, 0x08), none);
}

#[test]
fn returns() {
    let rows = [
        (0x10, Ok(0x10)),
        (0x08, Err(faults(10, 0x08))),
        (0x14, Err(faults(10, 0x14))),
        (0, Err(faults(10, 0))),
        (0x78, Err(faults(10, 0x78))),
        (0x58, Err(faults(10, 0x58))),
        (0x68, Err(faults(10, 0x68))),
    ];
    for (link, expected) in rows {
        let (cpu, mut memory) = machine();
        memory.0.write_u32(L1Phys(TSS), link).unwrap();
        assert_eq!(task_of_iret(&cpu, &mut memory), expected, "{link:#x}");
    }
    let (mut cpu, mut memory) = machine();
    cpu.sregs.tr.limit = 0;
    cpu.sregs.tr.selector = 0x10;
    assert_eq!(task_of_iret(&cpu, &mut memory), Err(faults(10, 0x10)));
}

#[test]
fn gates_of_the_idt() {
    let software = |vector| Event {
        kind: crate::x86::EventKind::SoftwareInterrupt,
        vector,
        error_code: None,
        instruction_length: 2,
        payload: 0,
    };
    let external = Event::interrupt(0x40);
    // Gate, CPL, event, outcome.
    let rows = [
        (
            entry(0x85, 0, 0x08),
            0,
            external,
            DeliveryFault::TaskSwitch(0x08),
        ),
        (
            entry(0x85, 0, 0x08),
            3,
            external,
            DeliveryFault::TaskSwitch(0x08),
        ),
        (entry(0x85, 0, 0x08), 3, software(0x40), faults(13, 0x202)),
        (
            entry(0xe5, 0, 0x08),
            3,
            software(0x40),
            DeliveryFault::TaskSwitch(0x08),
        ),
        (entry(0x05, 0, 0x08), 0, external, faults(11, 0x203)),
        (entry(0x85, 0, 0x10), 0, external, faults(13, 0x11)),
        (entry(0x85, 0, 0x10), 0, software(0x40), faults(13, 0x10)),
        (entry(0x85, 0, 0x18), 0, software(0x40), faults(11, 0x18)),
        (entry(0x85, 0, 0x20), 0, external, faults(10, 0x21)),
        (entry(0x85, 0, 0x0c), 0, software(0x40), faults(13, 0x0c)),
    ];
    for (i, (gate, cpl, event, expected)) in rows.into_iter().enumerate() {
        let (mut cpu, mut memory) = machine();
        if cpl == 3 {
            user(&mut cpu);
        }
        memory.0.write_u64(L1Phys(IDT + 8 * 0x40), gate).unwrap();
        let result = deliver(&mut cpu, &mut memory, &event);
        assert_eq!(result, Err(expected), "row {i}");
    }
}
