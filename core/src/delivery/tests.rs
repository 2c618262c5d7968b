//! Delivery over a flat memory: frames, checks in the order of the SDM's pseudocode, and that a fault
//! leaves the processor alone.

use super::*;
use crate::addr::L1Phys;
use crate::memory::{GuestMemory, VecMemory};
use crate::x86::control::{cr4, efer};
use crate::x86::{AccessRights, DescriptorTable, Gpr, Regs, Segment, Sregs};

mod classes;

const IDT: u64 = 0x1000;
const GDT: u64 = 0x3000;
const TSS: u64 = 0x4000;
const HANDLER: u64 = 0x1234;

/// Linear is physical; writes to `denied` page fault.
struct Flat {
    memory: VecMemory,
    denied: u64,
    writes: usize,
}

impl Flat {
    fn new() -> Self {
        Self {
            memory: VecMemory::new(0x20000),
            denied: u64::MAX,
            writes: 0,
        }
    }

    fn put(&self, address: u64, value: u64) {
        self.memory.write_u64(L1Phys(address), value).unwrap();
    }

    fn get<const N: usize>(&self, address: u64, size: usize) -> [u64; N] {
        std::array::from_fn(|i| {
            let mut bytes = [0; 8];
            let at = L1Phys(address + (i * size) as u64);
            self.memory.read(at, &mut bytes[..size]).unwrap();
            u64::from_le_bytes(bytes)
        })
    }
}

impl LinearMemory for Flat {
    fn read(&mut self, address: u64, buffer: &mut [u8], _: Privilege) -> Result<(), WalkFault> {
        let fault = WalkFault::PageFault(Exception::page_fault(0, address));
        self.memory.read(L1Phys(address), buffer).map_err(|_| fault)
    }

    fn write(&mut self, address: u64, bytes: &[u8], how: Privilege) -> Result<(), WalkFault> {
        self.check_write(address, bytes.len(), how)?;
        self.writes += 1;
        self.memory.write(L1Phys(address), bytes).unwrap();
        Ok(())
    }

    fn check_write(&mut self, address: u64, length: usize, _: Privilege) -> Result<(), WalkFault> {
        let fault = WalkFault::PageFault(Exception::page_fault(2, address));
        if address >> 12 == self.denied >> 12 {
            return Err(fault);
        }
        let mut bytes = [0; 128];
        self.memory
            .read(L1Phys(address), &mut bytes[..length])
            .map_err(|_| fault)
    }
}

/// An 8-byte descriptor: base 0, limit 4 GiB, this access byte and flags nibble.
fn descriptor(access: u64, flags: u64) -> u64 {
    0xffff | 0xf << 48 | access << 40 | flags << 52
}

fn segment(selector: u16, rights: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(rights),
    }
}

/// GDT: 8 code 64, 0x10 data, 0x18 user code 64, 0x20 user data, 0x28 code 32, 0x30 conforming
/// code 64, 0x38 absent code 64, 0x40 user code as a handler, 0x48 code 16.
fn gdt(flat: &Flat) {
    let entries = [
        0,
        descriptor(0x9b, 0xa),
        descriptor(0x93, 0xc),
        descriptor(0xfb, 0xa),
        descriptor(0xf3, 0xc),
        descriptor(0x9a, 0xc),
        descriptor(0x9f, 0xa),
        descriptor(0x1b, 0xa),
        descriptor(0xfb, 0xa),
        descriptor(0x9b, 0x0),
    ];
    for (i, entry) in entries.into_iter().enumerate() {
        flat.put(GDT + i as u64 * 8, entry);
    }
}

fn long_gate(flat: &Flat, vector: u64, selector: u64, rights: u64, ist: u64, offset: u64) {
    let at = IDT + vector * 16;
    let low =
        offset & 0xffff | selector << 16 | ist << 32 | rights << 40 | (offset >> 16 & 0xffff) << 48;
    flat.put(at, low);
    flat.put(at + 8, offset >> 32);
}

fn protected_gate(flat: &Flat, vector: u64, selector: u64, rights: u64) {
    flat.put(IDT + vector * 8, HANDLER | selector << 16 | rights << 40);
}

/// 64-bit mode at this privilege level, RSP 0x9008, RIP 0x5000.
fn long_mode(cpl: u8) -> Cpu {
    let mut cpu = Cpu {
        regs: Regs {
            rip: 0x5000,
            rflags: 0x4302, // NT, IF, TF
            ..Regs::default()
        },
        ..Cpu::default()
    };
    cpu.regs.set(Gpr::Rsp, 0x9008);
    let user = cpl == 3;
    cpu.sregs = Sregs {
        cr0: 0x8000_0031,
        cr4: cr4::PAE,
        efer: efer::LMA | efer::LME,
        cs: if user {
            segment(0x1b, 0xa0fb)
        } else {
            segment(8, 0xa09b)
        },
        ss: if user {
            segment(0x23, 0xc0f3)
        } else {
            segment(0x10, 0xc093)
        },
        tr: Segment {
            base: TSS,
            limit: 0x67,
            ..segment(0x50, 0x8b)
        },
        ldtr: segment(0, 0x10000),
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0x4f,
        },
        idtr: DescriptorTable {
            base: IDT,
            limit: 0xfff,
        },
        ..Sregs::default()
    };
    cpu
}

/// 32-bit protected mode.
fn protected_mode(cpl: u8) -> Cpu {
    let mut cpu = long_mode(cpl);
    cpu.sregs.cr0 = 0x31;
    cpu.sregs.efer = 0;
    cpu.sregs.cs.ar = AccessRights::from_bits_retain(0xc09b | u32::from(cpl) << 5);
    cpu
}

fn event(kind: EventKind, vector: u8) -> Event {
    Event {
        kind,
        vector,
        error_code: None,
        instruction_length: 2,
        payload: 0,
    }
}

fn image(cpu: &Cpu) -> (Regs, Sregs) {
    (cpu.regs, cpu.sregs)
}

#[test]
fn system_tables_that_reach_beyond_canonical_addresses_are_general_protection() {
    let mut flat = Flat::new();
    gdt(&flat);
    let event = Event::exception(Exception::page_fault(3, 0x777));
    let general_protection = |error_code| {
        Err(DeliveryFault::Exception(Exception {
            error_code: Some(error_code),
            ..Exception::GENERAL_PROTECTION
        }))
    };
    let mut cpu = long_mode(0);
    cpu.sregs.idtr.base = 0x7fff_ffff_ffff;
    // Vector 14, of the IDT, external.
    let vector = general_protection(14 << 3 | 3);
    assert_eq!(deliver(&mut cpu, &mut flat, &event), vector);
    let mut cpu = long_mode(0);
    long_gate(&flat, 14, 8, 0x8e, 0, 0x00ff_8000_1234);
    cpu.sregs.gdtr.base = 0x7fff_ffff_ffff;
    let selector = general_protection(8 | 1);
    assert_eq!(deliver(&mut cpu, &mut flat, &event), selector);
}

#[test]
fn same_privilege_in_64_bit_mode() {
    let mut flat = Flat::new();
    gdt(&flat);
    let fault = Event::exception(Exception::page_fault(3, 0x777));
    let mut cpu = long_mode(0);
    long_gate(&flat, 14, 8, 0x8e, 0, 0x8000_0000_1234);
    let not_canonical = DeliveryFault::Exception(Exception {
        error_code: Some(1),
        ..Exception::GENERAL_PROTECTION
    });
    assert_eq!(deliver(&mut cpu, &mut flat, &fault), Err(not_canonical));
    long_gate(&flat, 14, 8, 0x8e, 0, 0x00ff_8000_1234);
    deliver(&mut cpu, &mut flat, &fault).unwrap();
    // The frame is aligned to 16 bytes, SS and RSP are always pushed.
    assert_eq!(cpu.regs.get(Gpr::Rsp), 0x8fd0);
    assert_eq!(flat.get(0x8fd0, 8), [3, 0x5000, 8, 0x4302, 0x9008, 0x10]);
    assert_eq!(cpu.regs.rip, 0x00ff_8000_1234);
    assert_eq!(cpu.regs.rflags, 2, "TF, NT, IF are clear");
    assert_eq!((cpu.sregs.cs.selector, cpu.sregs.ss.selector), (8, 0x10));
    assert_eq!(cpu.sregs.cr2, 0, "CR2 is the raiser's");
}

#[test]
fn stack_switch_and_ist_in_64_bit_mode() {
    let mut flat = Flat::new();
    gdt(&flat);
    flat.put(TSS + 4, 0xa000);
    flat.put(TSS + 0x24 + 8, 0xb008);
    long_gate(&flat, 32, 8, 0x8f, 0, HANDLER);
    long_gate(&flat, 2, 8, 0x8e, 2, HANDLER);
    let mut cpu = long_mode(3);
    cpu.interruptibility = Interruptibility::STI;
    cpu.activity = Activity::Hlt;
    deliver(&mut cpu, &mut flat, &Event::interrupt(32)).unwrap();
    assert_eq!(flat.get(0x9fd8, 8), [0x5000, 0x1b, 0x4302, 0x9008, 0x23]);
    assert_eq!(cpu.sregs.ss.selector, 0);
    assert_eq!((cpu.cpl(), cpu.sregs.ss.is_usable()), (0, false));
    assert_eq!(cpu.regs.rflags, 0x202, "a trap gate leaves IF");
    assert_eq!(cpu.interruptibility, Interruptibility::empty());
    assert_eq!(cpu.activity, Activity::Active);

    let mut cpu = long_mode(0);
    deliver(&mut cpu, &mut flat, &Event::NMI).unwrap();
    assert_eq!(cpu.regs.get(Gpr::Rsp), 0xb000 - 40);
    assert_eq!(cpu.sregs.ss.selector, 0x10, "IST alone keeps SS");
    assert_eq!(cpu.interruptibility, Interruptibility::NMI);
}

#[test]
fn faults_of_delivery_in_64_bit_mode() {
    use EventKind::{ExternalInterrupt as Ext, SoftwareInterrupt as Int};
    let (gp, np, ts, ss) = (Exception::GP, Exception::NP, Exception::TS, Exception::SS);
    type Change = fn(&mut Cpu, &mut Flat);
    let plain: Change = |_, _| {};
    // Gate selector, rights, IST, CPL, kind, change, vector, error code. The vector is 0x20.
    type Row = (u64, u64, u64, u8, EventKind, Change, u8, u32);
    let rows: &[Row] = &[
        (
            8,
            0x8e,
            0,
            0,
            Ext,
            |c, _| c.sregs.idtr.limit = 0x20e,
            gp,
            0x103,
        ),
        (
            8,
            0x8e,
            0,
            0,
            Int,
            |c, _| c.sregs.idtr.limit = 0x20e,
            gp,
            0x102,
        ),
        (8, 0x86, 0, 0, Ext, plain, gp, 0x103),
        (8, 0x85, 0, 0, Ext, plain, gp, 0x103),
        (8, 0x0e, 0, 0, Ext, plain, np, 0x103),
        (8, 0x8e, 0, 3, Int, plain, gp, 0x102),
        (8, 0x0e, 0, 3, Int, plain, gp, 0x102), // DPL goes before P
        (0, 0x8e, 0, 0, Ext, plain, gp, 1),
        (0x50, 0x8e, 0, 0, Ext, plain, gp, 0x51),
        (0x10, 0x8e, 0, 0, Ext, plain, gp, 0x11),
        (0x18, 0x8e, 0, 0, Ext, plain, gp, 0x19), // less privileged
        (0x28, 0x8e, 0, 0, Ext, plain, gp, 0x29), // not 64-bit
        (0x38, 0x8e, 0, 0, Ext, plain, np, 0x39),
        (0x0c, 0x8e, 0, 0, Ext, plain, gp, 0x0d), // no LDT
        (8, 0x8e, 0, 3, Ext, |c, _| c.sregs.tr.limit = 10, ts, 0x51),
        (8, 0x8e, 7, 0, Ext, |c, _| c.sregs.tr.limit = 0x5a, ts, 0x51),
        (
            8,
            0x8e,
            0,
            0,
            Ext,
            |c, _| c.regs.set(Gpr::Rsp, 1 << 50),
            ss,
            1,
        ),
        (8, 0x8e, 0, 3, Ext, |_, f| f.put(TSS + 4, 1 << 50), ss, 1),
        (
            8,
            0x8e,
            0,
            0,
            Ext,
            |_, f| f.denied = 0x8000,
            Exception::PF,
            2,
        ),
    ];
    for (i, (selector, rights, ist, cpl, kind, change, vector, code)) in rows.iter().enumerate() {
        let mut flat = Flat::new();
        gdt(&flat);
        flat.put(TSS + 4, 0xa000);
        long_gate(&flat, 0x20, *selector, *rights, *ist, HANDLER);
        let mut cpu = long_mode(*cpl);
        change(&mut cpu, &mut flat);
        let before = image(&cpu);
        let result = deliver(&mut cpu, &mut flat, &event(*kind, 0x20));
        let Err(DeliveryFault::Exception(fault)) = result else {
            panic!("row {i}: {result:?}");
        };
        assert_eq!(
            (fault.vector, fault.error_code),
            (*vector, Some(*code)),
            "row {i}"
        );
        assert_eq!(image(&cpu), before, "row {i}");
        assert_eq!(flat.writes, 0, "row {i}");
    }
}

#[test]
fn conforming_code_keeps_the_privilege_level() {
    let mut flat = Flat::new();
    gdt(&flat);
    long_gate(&flat, 0x20, 0x30, 0xee, 0, HANDLER);
    let mut cpu = long_mode(3);
    deliver(
        &mut cpu,
        &mut flat,
        &event(EventKind::SoftwareInterrupt, 0x20),
    )
    .unwrap();
    assert_eq!((cpu.cpl(), cpu.sregs.cs.selector), (3, 0x33));
    let [rip, cs] = flat.get(cpu.regs.get(Gpr::Rsp), 8);
    assert_eq!((rip, cs), (0x5002, 0x1b), "INT n returns behind itself");
}

#[test]
fn frames_that_cross_a_page_are_checked_first() {
    let mut flat = Flat::new();
    gdt(&flat);
    long_gate(&flat, 0x20, 8, 0x8e, 0, HANDLER);
    let mut cpu = long_mode(0);
    cpu.regs.set(Gpr::Rsp, 0x9010);
    flat.denied = 0x8000;
    let result = deliver(&mut cpu, &mut flat, &Event::interrupt(0x20));
    let fault = Exception::page_fault(2, 0x8ff8);
    assert_eq!(result, Err(DeliveryFault::Exception(fault)));
    assert_eq!(flat.writes, 0);
    flat.denied = u64::MAX;
    deliver(&mut cpu, &mut flat, &Event::interrupt(0x20)).unwrap();
    assert_eq!(flat.get(0x8fe8, 8), [0x5000, 8, 0x4302, 0x9010, 0x10]);
}

#[test]
fn protected_mode_frames() {
    let mut flat = Flat::new();
    gdt(&flat);
    protected_gate(&flat, 13, 0x28, 0x8e);
    protected_gate(&flat, 14, 0x28, 0x86);
    let mut cpu = protected_mode(0);
    let gp = Event::exception(Exception {
        error_code: Some(0x18),
        ..Exception::GENERAL_PROTECTION
    });
    deliver(&mut cpu, &mut flat, &gp).unwrap();
    assert_eq!(flat.get(0x8ff8, 4), [0x18, 0x5000, 8, 0x4302]);
    assert_eq!((cpu.regs.get(Gpr::Rsp), cpu.regs.rip), (0x8ff8, HANDLER));
    assert_eq!(
        flat.memory.read_u64(L1Phys(GDT + 0x28)).unwrap() >> 40 & 0xff,
        0x9b,
        "accessed"
    );
    // A 16-bit gate pushes words.
    let mut cpu = protected_mode(0);
    deliver(
        &mut cpu,
        &mut flat,
        &Event::exception(Exception::page_fault(2, 0)),
    )
    .unwrap();
    assert_eq!(flat.get(0x9000, 2), [2, 0x5000, 8, 0x4302]);

    // To an inner level: SS:ESP from the TSS.
    flat.put(TSS + 4, 0x10_0000_a000);
    let mut cpu = protected_mode(3);
    deliver(&mut cpu, &mut flat, &gp).unwrap();
    assert_eq!(
        flat.get(0x9fe8, 4),
        [0x18, 0x5000, 0x1b, 0x4302, 0x9008, 0x23]
    );
    assert_eq!((cpu.cpl(), cpu.sregs.ss.selector), (0, 0x10));
}

#[test]
fn stacks_from_the_tss_are_checked() {
    let (ts, ss) = (Exception::TS, Exception::SS);
    // SS in the TSS, TSS limit, vector, error code.
    let rows = [
        (0u64, 0x67, ts, 1),
        (0x11, 0x67, ts, 0x11), // RPL
        (0x20, 0x67, ts, 0x21), // DPL
        (0x28, 0x67, ts, 0x29), // code
        (0x60, 0x67, ts, 0x61), // beyond the table
        (0x10, 8, ts, 0x51),
        (0x48, 0x67, ss, 0x49), // made absent data below
    ];
    for (selector, limit, vector, code) in rows {
        let mut flat = Flat::new();
        gdt(&flat);
        flat.put(GDT + 0x48, descriptor(0x13, 0xc));
        protected_gate(&flat, 0x20, 0x28, 0x8e);
        flat.put(TSS + 4, 0xa000 | selector << 32);
        let mut cpu = protected_mode(3);
        cpu.sregs.tr.limit = limit;
        let result = deliver(&mut cpu, &mut flat, &Event::interrupt(0x20));
        let expected = Exception {
            vector,
            error_code: Some(code),
            payload: 0,
        };
        assert_eq!(
            result,
            Err(DeliveryFault::Exception(expected)),
            "{selector:#x}"
        );
    }
}

#[test]
fn stack_limits() {
    let mut flat = Flat::new();
    gdt(&flat);
    protected_gate(&flat, 0x20, 0x28, 0x8e);
    // Limit, rights, ESP, delivered.
    let rows = [
        (0x8fff, 0xc093, 0x9000, true),
        (0x8ffe, 0xc093, 0x9000, false),
        (0x8ff3, 0xc097, 0x9000, true), // expand-down: above the limit
        (0x8ff4, 0xc097, 0x9000, false),
        (0xffff, 0x8093, 0x2, false), // a 16-bit stack wraps at an item
        (0xffff, 0x8093, 0x7000_0000, true),
    ];
    for (limit, rights, esp, delivered) in rows {
        let mut cpu = protected_mode(0);
        cpu.sregs.ss.limit = limit;
        cpu.sregs.ss.ar = AccessRights::from_bits_retain(rights);
        cpu.regs.set(Gpr::Rsp, esp);
        let result = deliver(&mut cpu, &mut flat, &Event::interrupt(0x20));
        if delivered {
            assert_eq!(result, Ok(()), "{limit:#x} {esp:#x}");
        } else {
            let fault = Exception {
                vector: Exception::SS,
                error_code: Some(1),
                payload: 0,
            };
            assert_eq!(
                result,
                Err(DeliveryFault::Exception(fault)),
                "{limit:#x} {esp:#x}"
            );
        }
        if esp == 0x7000_0000 {
            assert_eq!(cpu.regs.get(Gpr::Rsp), 0x7000_fff4, "the upper half stays");
        }
    }
}

#[test]
fn virtual_8086_mode() {
    let mut flat = Flat::new();
    gdt(&flat);
    protected_gate(&flat, 0x20, 0x28, 0xee);
    flat.put(TSS + 4, 0x10_0000_a000);
    let mut cpu = protected_mode(3);
    cpu.regs.rflags |= rflags::VM;
    let int = event(EventKind::SoftwareInterrupt, 0x20);
    let gp = DeliveryFault::Exception(Exception::GENERAL_PROTECTION);
    assert_eq!(deliver(&mut cpu, &mut flat, &int), Err(gp), "IOPL is 0");
    cpu.regs.rflags |= 3 << 12;
    cpu.sregs.gs.selector = 0x77;
    deliver(&mut cpu, &mut flat, &int).unwrap();
    let frame: [u64; 9] = flat.get(0xa000 - 36, 4);
    assert_eq!(frame, [0x5002, 0x1b, 0x2_7302, 0x9008, 0x23, 0, 0, 0, 0x77]);
    assert!(!cpu.sregs.gs.is_usable() && cpu.regs.rflags & rflags::VM == 0);
    cpu = protected_mode(3);
    cpu.regs.rflags |= rflags::VM;
    cpu.sregs.cr4 |= cr4::VME;
    let result = deliver(&mut cpu, &mut flat, &int);
    assert!(matches!(result, Err(DeliveryFault::Unsupported(_))));
}

#[test]
fn real_mode() {
    let mut flat = Flat::new();
    let mut cpu = protected_mode(0);
    cpu.sregs.cr0 = 0x30;
    cpu.sregs.idtr = DescriptorTable {
        base: 0,
        limit: 0x3ff,
    };
    cpu.sregs.ss = Segment {
        base: 0x1_0000,
        limit: 0xffff,
        ..segment(0x1000, 0x93)
    };
    cpu.sregs.cs.limit = 0xffff;
    cpu.regs.set(Gpr::Rsp, 0x100);
    flat.put(0x21 * 4, 0x2000_0456);
    let int = event(EventKind::SoftwareInterrupt, 0x21);
    deliver(&mut cpu, &mut flat, &int).unwrap();
    assert_eq!(flat.get(0x1_00fa, 2), [0x5002, 8, 0x4302]);
    assert_eq!(
        (cpu.sregs.cs.selector, cpu.sregs.cs.base, cpu.regs.rip),
        (0x2000, 0x2_0000, 0x456)
    );
    assert_eq!(cpu.regs.rflags, 0x4002);
    // No error code, not even for what goes wrong.
    let gp = Event::exception(Exception::GENERAL_PROTECTION);
    cpu.sregs.idtr.limit = 13 * 4 + 2;
    let result = deliver(&mut cpu, &mut flat, &gp);
    let Err(DeliveryFault::Exception(fault)) = result else {
        panic!("{result:?}");
    };
    assert_eq!((fault.vector, fault.error_code), (Exception::GP, None));
    cpu.sregs.idtr.limit = 0x3ff;
    deliver(&mut cpu, &mut flat, &gp).unwrap();
    assert_eq!(cpu.regs.get(Gpr::Rsp), 0x100 - 12);
}
