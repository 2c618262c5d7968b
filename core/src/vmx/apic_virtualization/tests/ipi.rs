//! "IPI Virtualization": what is posted, what notifies, what is left to L1.

use super::*;
use crate::x86::Exception;

const TABLE: u64 = 0x2800;
/// NDST 7, NV E1H.
const INFORMATION: u64 = 7 << 32 | 0xe1 << 16;

/// A table of three: the descriptor, one that is not valid, one with a reserved bit.
fn world() -> World {
    let world = World::new(ApicVirtualization {
        x2apic_mode: true,
        ipi: Some(IpiVirtualization {
            table: L1Phys(TABLE),
            last: 2,
        }),
        ..shadow()
    });
    for (index, pointer) in [(0, DESCRIPTOR | 1), (1, DESCRIPTOR), (2, DESCRIPTOR | 3)] {
        let at = L1Phys(TABLE + 8 * index);
        world.memory.write_u64(at, pointer).unwrap();
    }
    let at = L1Phys(DESCRIPTOR + 32);
    world.memory.write_u64(at, INFORMATION).unwrap();
    world
}

fn write(world: &mut World, value: u64) -> Result<Option<Virtualized>, Exception> {
    world
        .apic
        .write_msr(&mut world.vmcs12, &world.memory, 0x830, value)
}

#[test]
fn the_first_notifies_and_the_others_only_post() {
    let mut world = world();
    let notify = Virtualized::Notify {
        vector: 0xe1,
        destination: 7,
    };
    assert_eq!(write(&mut world, 0x41), Ok(Some(notify)));
    assert_eq!(write(&mut world, 0x42), Ok(Some(Virtualized::Done)));
    let word = |offset| world.memory.read_u32(L1Phys(DESCRIPTOR + offset)).unwrap();
    assert_eq!((word(8), word(32)), (6, 0xe1 << 16 | 1));
    assert_eq!(world.word(0x300), 0x42, "VICR");
    // Suppressed: posted, no more.
    let at = L1Phys(DESCRIPTOR + 32);
    world.memory.write_u64(at, INFORMATION | 2).unwrap();
    assert_eq!(write(&mut world, 0x43), Ok(Some(Virtualized::Done)));
    assert_eq!(world.memory.read_u64(at), Ok(INFORMATION | 2));
}

#[test]
fn what_cannot_be_virtualized_is_l1s() {
    for (name, value) in [
        ("vector below 16", 0x0f),
        ("NMI", 4 << 8 | 0x41),
        ("logical destination", 1 << 11 | 0x41),
        ("level-triggered", 1 << 15 | 0x41),
        ("shorthand", 2 << 18 | 0x41),
        ("not valid", 1 << 32 | 0x41),
        ("a reserved bit of the pointer", 2 << 32 | 0x41),
        ("beyond the table", 3 << 32 | 0x41),
    ] {
        let mut world = world();
        let result = write(&mut world, value).unwrap().unwrap();
        let expected = Some((ExitReason::APIC_WRITE, 0x300));
        assert_eq!(exit(result), expected, "{name}");
        assert_eq!(
            world.memory.read_u32(L1Phys(DESCRIPTOR + 8)),
            Ok(0),
            "{name}"
        );
    }
    for reserved in [1 << 12, 1 << 13, 1 << 16, 1 << 20, 1 << 31] {
        let result = write(&mut world(), reserved | 0x41);
        assert_eq!(result, Err(Exception::GENERAL_PROTECTION), "{reserved:#x}");
    }
    // Without the control the MSR is the local APIC's.
    let mut without = world();
    without.apic.ipi = None;
    assert_eq!(write(&mut without, 0x41), Ok(None));
}

#[test]
fn the_memory_mapped_register_goes_the_same_way() {
    let mut world = world();
    world.put(0x310, 0);
    world.put(0x300, 0x51);
    let result = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, 0x300);
    assert!(matches!(result, Virtualized::Notify { vector: 0xe1, .. }));
    world.put(0x310, 1 << 24);
    let result = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, 0x300);
    assert_eq!(exit(result), Some((ExitReason::APIC_WRITE, 0x300)));
}
