//! The maps against numbers of the manuals, and what a save and a load make of a state.

use super::map::{Item, Map, Name};
use super::*;
use crate::cpu::{Model, Personality};
use crate::memory::VecMemory;
use crate::x86::Gpr;
use crate::x86::Sregs;
use std::sync::Arc;

fn cpu(personality: Personality) -> Cpu {
    let mut cpu = Cpu {
        model: Arc::new(Model {
            personality,
            physical_address_width: 40,
            linear_address_width: 48,
            ..Model::default()
        }),
        ..Cpu::default()
    };
    for (number, register) in Gpr::ALL.into_iter().enumerate() {
        cpu.regs
            .set(register, 0x1111_2222_0000_0000 + number as u64);
    }
    cpu.regs.rip = 0xffff_8000_1234_5678;
    cpu.regs.rflags = 0x246;
    cpu.debug.dr6 = 0xffff_0ff1;
    cpu.debug.dr7 = 0x401;
    cpu.msrs.smbase = 0x4_0000;
    let sregs = &mut cpu.sregs;
    (sregs.cr0, sregs.cr3, sregs.cr4) = (0x8005_0033, 0x1000, cr4::PAE);
    sregs.efer = 0xd01;
    let mut number = 0;
    for segment in [
        &mut sregs.es,
        &mut sregs.cs,
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.tr,
    ] {
        number += 8;
        *segment = Segment {
            selector: number,
            base: 0xffff_8888_0000_0000 + u64::from(number),
            limit: 0xfff0_0fff,
            ar: AccessRights::from_bits_retain(0xa09b),
        };
    }
    sregs.ldtr = Segment {
        selector: 0,
        base: 0xffff_8888_7777_0000,
        limit: 0xffff,
        ar: AccessRights::UNUSABLE,
    };
    sregs.gdtr = DescriptorTable {
        base: 0xffff_8001_0000_1000,
        limit: 0x7f,
    };
    sregs.idtr = DescriptorTable {
        base: 0xffff_8002_0000_2000,
        limit: 0xfff,
    };
    cpu
}

#[test]
fn rows_lie_apart_and_inside() {
    for personality in Personality::ALL {
        let mut taken = [false; 0x400];
        for row in Map::of(&cpu(personality).model).rows() {
            for byte in 0..u16::from(row.size) {
                let at = usize::from(row.offset - 0x7c00 + byte);
                assert!(!taken[at], "{personality}: {row:?}");
                taken[at] = true;
            }
        }
    }
}

/// Written down from the manuals apart from the tables: Intel's SDM, table "SMRAM State Save Map for Intel
/// 64 Architecture"; AMD's APM Vol. 2, table "AMD64 Architecture SMM State-Save Area".
#[test]
fn places_are_the_manuals() {
    type Place = (Item, u16, u8);
    let places: [(Personality, &[Place]); 2] = [
        (
            Personality::Sdm,
            &[
                (Item::Cr0, 0x7ff8, 8),
                (Item::Rip, 0x7fd8, 8),
                (Item::Register(Gpr::Rax), 0x7f5c, 8),
                (Item::Register(Gpr::R15), 0x7f1c, 8),
                (Item::AutoHalt, 0x7f02, 2),
                (Item::Smbase, 0x7ef8, 4),
                (Item::EnableEpt, 0x7ee0, 4),
                (Item::Eptp, 0x7ed8, 8),
                (Item::Cr4WithoutVmxe, 0x7e40, 4),
            ],
        ),
        (
            Personality::Kvm,
            &[
                (Item::Selector(Name::Cs), 0x7e10, 2),
                (Item::Rights(Name::Cs), 0x7e12, 2),
                (Item::Limit(Name::Cs), 0x7e14, 4),
                (Item::Base(Name::Cs), 0x7e18, 8),
                (Item::Limit(Name::Tr), 0x7e94, 4),
                (Item::Efer, 0x7ed0, 8),
                (Item::Smbase, 0x7f00, 4),
                (Item::Cr0, 0x7f58, 8),
                (Item::Rip, 0x7f78, 8),
                (Item::Register(Gpr::Rax), 0x7ff8, 8),
            ],
        ),
    ];
    for (personality, expected) in places {
        let map = Map::of(&cpu(personality).model);
        for (item, offset, size) in expected {
            let row = map.rows().find(|row| row.item == *item);
            let found = row.map(|row| (row.offset, row.size));
            assert_eq!(found, Some((*offset, *size)), "{personality}: {item:?}");
        }
    }
}

#[test]
fn a_load_gives_what_was_saved() {
    for personality in Personality::ALL {
        let before = cpu(personality);
        let mut after = before.clone();
        let memory = VecMemory::new(0x5_0000);
        after.smi_pending = true;
        assert!(!blocks_smi(&after));
        enter(&mut after, &memory);
        assert!(after.smm && blocks_smi(&after) && !after.smi_pending);
        assert_eq!((after.regs.rip, after.regs.rflags), (0x8000, 2));
        let cs = after.sregs.cs;
        assert_eq!((cs.selector, cs.base), (0x4000, 0x4_0000));
        assert_eq!((after.sregs.cr0, after.sregs.cr4), (0x5_0032, 0));
        assert_eq!((after.sregs.efer, after.sregs.ss.limit), (0, u32::MAX));
        after.regs.gpr = [7; 16];
        assert_eq!(resume(&mut after, &memory), Ok(()), "{personality}");
        assert!(!after.smm);
        assert_eq!(after.regs, before.regs, "{personality}");
        assert_eq!(after.debug, before.debug, "{personality}");
        let expected = Sregs {
            pdptrs_valid: false,
            ..before.sregs
        };
        assert_eq!(after.sregs, expected, "{personality}");
        assert_eq!(after.interruptibility, Interruptibility::empty());
    }
}

#[test]
fn what_is_blocked_comes_back() {
    for personality in Personality::ALL {
        let mut cpu = cpu(personality);
        let blocked = Interruptibility::NMI | Interruptibility::STI;
        cpu.interruptibility = blocked;
        let memory = VecMemory::new(0x5_0000);
        enter(&mut cpu, &memory);
        assert_eq!(cpu.interruptibility, Interruptibility::NMI);
        assert!(cpu.smm_inside_nmi);
        assert_eq!(resume(&mut cpu, &memory), Ok(()));
        assert_eq!(cpu.interruptibility, blocked, "{personality}");
    }
}

#[test]
fn states_that_shut_the_processor_down() {
    let cr = |personality| match personality {
        Personality::Sdm => (0x7ff8, 0x7e40),
        Personality::Kvm => (0x7f58, 0x7f48),
    };
    for personality in Personality::ALL {
        let (cr0_at, cr4_at) = cr(personality);
        for (name, at, value) in [
            ("PG without PE", cr0_at, 0x8000_0010_u32),
            ("NW without CD", cr0_at, 0xa000_0011),
            ("long mode without PAE", cr4_at, 0),
            ("a reserved bit of CR4", cr4_at, 1 << 31 | 0x20),
            ("VMXE", cr4_at, 0x2020),
        ] {
            let mut cpu = cpu(personality);
            let memory = VecMemory::new(0x5_0000);
            enter(&mut cpu, &memory);
            memory.write_u32(L1Phys(0x4_8000 + at), value).expect("RAM");
            assert_eq!(
                resume(&mut cpu, &memory),
                Err(Shutdown),
                "{personality}: {name}"
            );
        }
    }
    let mut cpu = cpu(Personality::Sdm);
    let gone = VecMemory::new(0);
    enter(&mut cpu, &gone);
    assert_eq!(resume(&mut cpu, &gone), Err(Shutdown), "SMRAM is gone");
}

#[test]
fn hlt_is_gone_back_to_as_the_bit_says() {
    for (personality, clear, expected) in [
        (Personality::Sdm, false, Activity::Hlt),
        (Personality::Sdm, true, Activity::Active),
        (Personality::Kvm, false, Activity::Active),
    ] {
        let mut cpu = cpu(personality);
        cpu.activity = Activity::Hlt;
        let memory = VecMemory::new(0x5_0000);
        enter(&mut cpu, &memory);
        assert_eq!(cpu.activity, Activity::Active);
        if clear {
            memory.write(L1Phys(0x4_ff02), &[0]).expect("RAM");
        }
        assert_eq!(resume(&mut cpu, &memory), Ok(()));
        assert_eq!(cpu.activity, expected, "{personality} {clear}");
    }
}
