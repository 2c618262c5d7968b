//! Each register, what counts, overflow, and state that is saved.

use super::*;
use crate::msr::{self, MsrRead};
use crate::x86::AccessRights;
use crate::x86::cpuid::CpuidEntry;
use std::sync::Arc;

const GLOBAL_CTRL: u32 = 0x38f;
const GP: Result<(), MsrFault> = Err(MsrFault::GeneralProtection);
const BOTH_LEVELS: u64 = 0x43_0000;

/// Four general-purpose counters, three fixed ones, written at full width.
fn cpu() -> Cpu {
    let leaf = |leaf, eax, ecx, edx| CpuidEntry {
        leaf,
        eax,
        ecx,
        edx,
        ..CpuidEntry::default()
    };
    Cpu {
        model: Arc::new(Model {
            cpuid: vec![leaf(1, 0, 1 << 15, 0), leaf(0xa, 0x0730_0402, 0, 0x603)],
            ..Model::default()
        }),
        ..Cpu::default()
    }
}

fn write(cpu: &mut Cpu, number: u32, value: u64) -> Result<(), MsrFault> {
    msr::write(cpu, number, value).map(|_| ())
}

fn read(cpu: &Cpu, number: u32) -> Result<u64, MsrFault> {
    msr::read(cpu, number).map(|read| match read {
        MsrRead::Value(value) => value,
        MsrRead::Apic => panic!("{number:#x} is the APIC's"),
    })
}

fn run(cpu: &mut Cpu, instructions: u64) {
    cpu.tsc.ticks += instructions;
}

fn set_level(cpu: &mut Cpu, level: u32) {
    cpu.sregs.ss.ar = AccessRights::from_bits_retain(0x93 | level << 5);
}

#[test]
fn reserved_bits_of_each_register() {
    // MSR, value, accepted; what then reads.
    let rows: [(u32, u64, Result<(), MsrFault>, u64); 22] = [
        (GLOBAL_CTRL, 0x7_0000_000f, Ok(()), 0x7_0000_000f),
        (GLOBAL_CTRL, 1 << 4, GP, 0),
        (GLOBAL_CTRL, 1 << 35, GP, 0),
        (0xc1, 0x7fff_ffff, Ok(()), 0x7fff_ffff),
        (0xc1, 0x8000_0000, Ok(()), 0xffff_8000_0000),
        (0xc4, 0x1_0000_0005, Ok(()), 5),
        (0xc5, 0, GP, 0),
        (0x4c1, 0xffff_ffff_ffff, Ok(()), 0xffff_ffff_ffff),
        (0x4c1, 1 << 48, GP, 0),
        (0x186, 0xff9f_ffff & !0x43_0000, Ok(()), 0xff9c_ffff),
        (0x186, 1 << 21, GP, 0),
        (0x186, 1 << 32, GP, 0),
        (0x189, 0x43_00c0, Ok(()), 0x43_00c0),
        (0x18a, 0, GP, 0),
        (0x309, 0xffff_0000_0000_0001, Ok(()), 1),
        (0x30c, 0, GP, 0),
        (0x38d, 0xbbb, Ok(()), 0xbbb),
        (0x38d, 4, GP, 0),
        (0x38d, 0x3000, GP, 0),
        (0x38e, 0, GP, 0),
        (0x390, 0xc000_0007_0000_000f, Ok(()), 0),
        (0x390, 1 << 4, GP, 0),
    ];
    for (number, value, accepted, reads) in rows {
        let mut cpu = cpu();
        assert_eq!(
            write(&mut cpu, number, value),
            accepted,
            "{number:#x} <- {value:#x}"
        );
        if let Ok(found) = read(&cpu, number) {
            assert_eq!(found, reads, "{number:#x}");
        }
    }
    // Without the leaf none of it is there, but for what the P6 family had.
    let mut bare = Cpu::default();
    for number in [GLOBAL_CTRL, 0x309, 0x38d, 0x38e, 0x390, 0x4c1] {
        assert_eq!(write(&mut bare, number, 0), GP, "{number:#x}");
    }
    assert_eq!(read(&cpu(), 0x345), Ok(CAPABILITIES));
}

#[test]
fn counters_count_what_is_enabled() {
    // Select, counts.
    let events = [
        (BOTH_LEVELS | 0xc0, true),
        (BOTH_LEVELS | 0x3c, true),
        (BOTH_LEVELS | 0x13c, true),
        (BOTH_LEVELS | 0xc4, false),
        (BOTH_LEVELS | 0x4f2e, false),
        (0x03_00c0, false),
        (0x40_00c0, false),
        (BOTH_LEVELS | 0xc0 | 1 << 24, true),
        (BOTH_LEVELS | 0xc0 | 2 << 24, false),
        (BOTH_LEVELS | 0xc0 | 1 << 24 | 1 << 23, false),
        (BOTH_LEVELS | 0xc0 | 2 << 24 | 1 << 23, true),
        (BOTH_LEVELS | 0xc0 | 1 << 18, false),
    ];
    for (select, counts) in events {
        let mut cpu = cpu();
        assert_eq!(write(&mut cpu, 0x187, select), Ok(()));
        run(&mut cpu, 100);
        assert_eq!(read(&cpu, 0xc2), Ok(0), "not enabled globally");
        assert_eq!(write(&mut cpu, GLOBAL_CTRL, 2), Ok(()));
        run(&mut cpu, 1000);
        let expected = if counts { 1000 } else { 0 };
        assert_eq!(read(&cpu, 0xc2), Ok(expected), "{select:#x}");
        assert_eq!(rdpmc(&cpu, 1), Some(expected));
        // Sleep is no instruction, and others' instructions are not ours.
        cpu.tsc.ticks += 50;
        cpu.tsc.idle += 50;
        run(&mut cpu, 70);
        cpu.pmu.skip(70);
        assert_eq!(read(&cpu, 0xc2), Ok(expected), "{select:#x}");
        assert_eq!(write(&mut cpu, GLOBAL_CTRL, 0), Ok(()));
        run(&mut cpu, 9);
        assert_eq!(read(&cpu, 0xc2), Ok(expected), "{select:#x}");
    }
}

#[test]
fn one_privilege_level_alone_counts_what_it_executes() {
    // Select or fixed control, the counter, and what it makes of 5 instructions at CPL 0 and 3 at CPL 3.
    for (control, value, counter, expected) in [
        (0x186, 0x43_00c0, 0xc1, 8),
        (0x186, 0x41_00c0, 0xc1, 3),
        (0x186, 0x42_003c, 0xc1, 5),
        (0x38d, 0x30, 0x30a, 8),
        (0x38d, 0x10, 0x30a, 5),
        (0x38d, 0x20, 0x30a, 3),
    ] {
        let mut cpu = cpu();
        write(&mut cpu, control, value).unwrap();
        write(&mut cpu, GLOBAL_CTRL, 1 | 1 << 33).unwrap();
        let one_level = expected != 8;
        for dpl in [0, 3] {
            set_level(&mut cpu, dpl);
            for _ in 0..if dpl == 0 { 5 } else { 3 } {
                // As the boundary does before each instruction.
                assert_eq!(cpu.pmu.alarm() <= cpu.tsc.executed(), one_level);
                assert!(!cpu.counter_interrupt());
                run(&mut cpu, 1);
            }
        }
        assert_eq!(read(&cpu, counter), Ok(expected), "{control:#x} {value:#x}");
    }
    // Overflow of a counter of one level, with interrupt.
    let mut cpu = cpu();
    write(&mut cpu, 0x38d, 0xa0).unwrap();
    write(&mut cpu, 0x30a, MASK).unwrap();
    write(&mut cpu, GLOBAL_CTRL, 1 << 33).unwrap();
    run(&mut cpu, 1);
    assert!(!cpu.counter_interrupt(), "at CPL 0");
    set_level(&mut cpu, 3);
    assert!(!cpu.counter_interrupt());
    run(&mut cpu, 1);
    assert!(cpu.counter_interrupt(), "at CPL 3");
}

#[test]
fn overflow_sets_its_bit_and_interrupts_on_time() {
    let mut cpu = cpu();
    write(&mut cpu, 0x38d, 0xb0).unwrap();
    write(&mut cpu, 0x30a, MASK - 9).unwrap();
    assert_eq!(cpu.pmu.alarm(), u64::MAX, "nothing counts yet");
    write(&mut cpu, GLOBAL_CTRL, 1 << 33).unwrap();
    assert_eq!(cpu.pmu.alarm(), cpu.tsc.executed() + 10);
    run(&mut cpu, 9);
    assert!(!cpu.counter_interrupt());
    assert_eq!(read(&cpu, 0x38e), Ok(0));
    run(&mut cpu, 3);
    assert!(cpu.counter_interrupt());
    assert!(!cpu.counter_interrupt(), "once");
    assert_eq!(read(&cpu, 0x38e), Ok(1 << 33));
    assert_eq!(read(&cpu, 0x30a), Ok(2));
    write(&mut cpu, 0x390, 1 << 33).unwrap();
    assert_eq!(read(&cpu, 0x38e), Ok(0));
    // Without the interrupt bit there is no alarm, but a look finds the overflow.
    write(&mut cpu, 0x38d, 0x30).unwrap();
    write(&mut cpu, 0x30a, MASK).unwrap();
    assert_eq!(cpu.pmu.alarm(), u64::MAX);
    run(&mut cpu, 1);
    assert_eq!((read(&cpu, 0x30a), read(&cpu, 0x38e)), (Ok(0), Ok(1 << 33)));
}

#[test]
fn rdpmc_finds_the_counters_that_cpuid_tells_of() {
    let found = |cpu: &Cpu, selector| rdpmc(cpu, selector).is_some();
    let bare = Cpu::default();
    assert!(!found(&bare, 0) && !found(&bare, 1 << 30));
    let cpu = cpu();
    assert!(found(&cpu, 3) && !found(&cpu, 4));
    assert!(found(&cpu, 1 << 30 | 2) && !found(&cpu, 1 << 30 | 3) && !found(&cpu, 1 << 31));
}

#[test]
fn what_is_saved_comes_back() {
    let mut old = cpu();
    write(&mut old, 0x186, BOTH_LEVELS | 0xc0).unwrap();
    write(&mut old, GLOBAL_CTRL, 1).unwrap();
    write(&mut old, 0x4c1, MASK - 1).unwrap();
    run(&mut old, 5);
    let mut new = cpu();
    new.tsc.ticks = 777;
    let numbers: Vec<u32> = registers(&old.model).collect();
    assert_eq!(numbers.len(), 4 + 4 + 3 + 2);
    for number in numbers.iter().copied() {
        restore(&mut new, number, read(&old, number).unwrap());
    }
    new.set_perf_global_ctrl(1);
    run(&mut new, 10);
    run(&mut old, 10);
    for number in numbers {
        assert_eq!(read(&new, number), read(&old, number), "{number:#x}");
    }
}

#[test]
fn reset_enables_the_general_counters() {
    assert_eq!(reset_value(&cpu().model), 0xf);
    assert_eq!(reset_value(&Model::default()), 0);
}
