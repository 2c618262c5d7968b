//! "Virtualizing MSR-Based APIC Accesses": every MSR of the range.

use super::*;
use crate::x86::Exception;

const VALUE: u64 = 0x1122_3344_5566_7788;

fn controls(bits: u32) -> ApicVirtualization {
    ApicVirtualization {
        x2apic_mode: bits & 1 != 0,
        registers: bits & 2 != 0,
        delivery: bits & 4 != 0,
        ..shadow()
    }
}

#[test]
fn every_read() {
    for bits in 0..8 {
        let apic = controls(bits);
        for number in 0x7f0..0x910_u32 {
            let world = World::new(apic);
            let in_range = (0x800..=0x8ff).contains(&number);
            if in_range {
                let at = L1Phys(PAGE + u64::from(number - 0x800) * 16);
                world.memory.write_u64(at, VALUE).unwrap();
            }
            let expected = apic.x2apic_mode && in_range && (apic.registers || number == 0x808);
            assert_eq!(
                apic.read_msr(&world.memory, number),
                expected.then_some(VALUE),
                "controls {bits:#x}, MSR {number:#x}"
            );
        }
    }
}

#[test]
fn every_write() {
    for bits in 0..8 {
        let apic = controls(bits);
        for number in 0x7f0..0x910_u32 {
            // (the value, whether it faults where the MSR is special)
            for value in [0, 0x20, 0xff, 0x100, 1 << 31, 1 << 32, 1 << 63] {
                let mut world = World::new(apic);
                let result = world
                    .apic
                    .write_msr(&mut world.vmcs12, &world.memory, number, value);
                let special = apic.x2apic_mode
                    && (number == 0x808 || apic.delivery && matches!(number, 0x80b | 0x83f));
                let place = format!("controls {bits:#x}, MSR {number:#x}, {value:#x}");
                if !special {
                    assert_eq!(result, Ok(None), "{place}");
                    continue;
                }
                let allowed = if number == 0x80b { 0 } else { 0xff };
                if value > allowed {
                    assert_eq!(result, Err(Exception::GENERAL_PROTECTION), "{place}");
                    continue;
                }
                assert!(matches!(result, Ok(Some(_))), "{place}: {result:?}");
                let offset = u64::from(number - 0x800) * 16;
                assert_eq!(u64::from(world.word(offset)), value, "{place}");
            }
        }
    }
}

#[test]
fn writes_store_eight_bytes_and_go_on() {
    // TPR: the threshold.
    let mut world = World::new(ApicVirtualization {
        tpr_threshold: 5,
        ..controls(1)
    });
    world.put(0x84, u32::MAX);
    let write = |world: &mut World, number, value| {
        world
            .apic
            .write_msr(&mut world.vmcs12, &world.memory, number, value)
            .unwrap()
            .unwrap()
    };
    assert_eq!(
        exit(write(&mut world, 0x808, 0x4f)),
        Some((ExitReason::TPR_BELOW_THRESHOLD, 0))
    );
    assert_eq!((world.word(0x80), world.word(0x84)), (0x4f, 0));
    assert_eq!(write(&mut world, 0x808, 0x50), Virtualized::Done);

    // EOI.
    let mut world = World::delivering(0x31, 0x42);
    world.apic.x2apic_mode = true;
    assert_eq!(write(&mut world, 0x80b, 0), Virtualized::Evaluated(true));
    assert_eq!(world.status(), (0x31, 0));
    world.set_status(0x31, 0x42);
    world.apic.eoi_exits[1] = 1 << 2;
    assert_eq!(
        exit(write(&mut world, 0x80b, 0)),
        Some((ExitReason::VIRTUALIZED_EOI, 0x42))
    );

    // Self-IPI: the illegal vectors are L1's.
    for vector in 0..16 {
        assert_eq!(
            exit(write(&mut world, 0x83f, vector)),
            Some((ExitReason::APIC_WRITE, 0x3f0))
        );
        assert_eq!(u64::from(world.word(0x3f0)), vector);
    }
    assert_eq!(world.status(), (0x31, 0));
    assert_eq!(write(&mut world, 0x83f, 0x91), Virtualized::Evaluated(true));
    assert_eq!(world.status(), (0x91, 0));
}
