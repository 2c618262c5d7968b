//! "Virtualizing Memory-Mapped APIC Accesses": every offset, every size, every set of controls.

use super::*;
use crate::vmx::apic_virtualization::{AccessKind, PageAccess};
use AccessKind::{Fetch, GuestPhysical, Read, Write};

/// The SDM's list of what "APIC-register virtualization" lets be read.
const READABLE: &[u16] = &[
    0x020, 0x030, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x100, 0x110, 0x120, 0x130, 0x140, 0x150,
    0x160, 0x170, 0x180, 0x190, 0x1a0, 0x1b0, 0x1c0, 0x1d0, 0x1e0, 0x1f0, 0x200, 0x210, 0x220,
    0x230, 0x240, 0x250, 0x260, 0x270, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350, 0x360,
    0x370, 0x380, 0x3e0,
];
/// And written.
const WRITABLE: &[u16] = &[
    0x020, 0x080, 0x0b0, 0x0d0, 0x0e0, 0x0f0, 0x280, 0x300, 0x310, 0x320, 0x330, 0x340, 0x350,
    0x360, 0x370, 0x380, 0x3e0,
];

/// The rule in the SDM's words.
fn expected(apic: &ApicVirtualization, kind: AccessKind, offset: u16, size: u16) -> bool {
    if !apic.tpr_shadow || size > 4 || !matches!(kind, Read | Write) {
        return false;
    }
    if apic.registers {
        let list = if kind == Read { READABLE } else { WRITABLE };
        return list
            .iter()
            .any(|&first| first <= offset && offset + size <= first + 4);
    }
    let fits = offset % 16 + size <= 4;
    fits && if apic.delivery {
        matches!(offset, 0x80 | 0xb0 | 0x300)
    } else {
        offset == 0x80
    }
}

#[test]
fn each_offset_size_and_set_of_controls() {
    let mut virtualized = 0;
    for controls in 0..8 {
        let apic = ApicVirtualization {
            tpr_shadow: controls & 1 != 0,
            registers: controls & 2 != 0,
            delivery: controls & 4 != 0,
            access_page: Some(L1Phys(ACCESS_PAGE)),
            ..shadow()
        };
        for kind in [Read, Write, Fetch, GuestPhysical] {
            for size in [1, 2, 3, 4, 5, 8, 16, 64] {
                for offset in 0..0x1000 {
                    let want = expected(&apic, kind, offset, size);
                    virtualized += u32::from(want);
                    assert_eq!(
                        apic.virtualizes(kind, offset, size.into(), None),
                        want,
                        "controls {controls:#x}, {kind:?} of {size} bytes at {offset:#x}"
                    );
                }
            }
        }
    }
    // 10 accesses of 1 to 4 bytes fit into a register, 4 start at its offset.
    let by_list = 2 * 10 * (READABLE.len() + WRITABLE.len()) as u32;
    assert_eq!(virtualized, by_list + 2 * 4 * (1 + 3));
}

#[test]
fn after_a_virtualized_write_only_the_same_write_is_virtualized() {
    let apic = ApicVirtualization {
        registers: true,
        ..shadow()
    };
    for (kind, offset, size, expected) in [
        (Write, 0x80, 4, true),
        (Write, 0x80, 2, false),
        (Write, 0x280, 4, false),
        (Read, 0x80, 4, false),
    ] {
        assert_eq!(
            apic.virtualizes(kind, offset, size, Some((0x80, 4))),
            expected,
            "{kind:?} of {size} bytes at {offset:#x}"
        );
    }
}

#[test]
fn the_page_is_recognized_by_its_physical_address() {
    let apic = ApicVirtualization {
        access_page: Some(L1Phys(0xfee0_0000)),
        ..shadow()
    };
    for (address, expected) in [
        (0xfee0_0000, true),
        (0xfee0_0fff, true),
        (0xfee0_1000, false),
        (0xfedf_ffff, false),
        (0x1_fee0_0080, false),
    ] {
        assert_eq!(apic.is_access_page(L1Phys(address)), expected);
    }
    assert!(!shadow().is_access_page(L1Phys(0)));
}

#[test]
fn exits_say_offset_and_type() {
    for (kind, delivery, access_type) in [
        (Read, false, 0),
        (Write, false, 1),
        (Fetch, false, 2),
        (Read, true, 3),
        (Write, true, 3),
        (GuestPhysical, true, 10),
        (GuestPhysical, false, 15),
    ] {
        let exit = PageAccess {
            offset: 0x3f8,
            kind,
        }
        .exit(delivery);
        assert_eq!(exit.reason, ExitReason::APIC_ACCESS);
        assert_eq!(exit.qualification, access_type << 12 | 0x3f8);
    }
}

#[test]
fn data_comes_from_and_goes_to_the_virtual_apic_page() {
    let world = World::new(shadow());
    world.put(0x80, 0x1234_5678);
    let mut bytes = [0; 2];
    world.apic.read_page(&world.memory, 0x81, &mut bytes);
    assert_eq!(bytes, [0x56, 0x34]);
    world.apic.write_page(&world.memory, 0x82, &[0xab]);
    assert_eq!(world.word(0x80), 0x12ab_5678);
    // A page outside RAM reads as all ones and swallows writes.
    let lost = ApicVirtualization {
        page: L1Phys(0x10_0000),
        ..shadow()
    };
    lost.read_page(&world.memory, 0x81, &mut bytes);
    lost.write_page(&world.memory, 0x81, &bytes);
    assert_eq!(bytes, [0xff; 2]);
}

/// What a write of `value` ends in, with nothing in service or requested.
fn written(delivery: bool, offset: u16, value: u32) -> (Virtualized, World) {
    let mut world = World::new(ApicVirtualization {
        registers: true,
        delivery,
        ..shadow()
    });
    world.put(u64::from(offset & !3), value);
    let what = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, offset);
    (what, world)
}

#[test]
fn apic_write_emulation() {
    let apic_write = |offset: u64| Some((ExitReason::APIC_WRITE, offset));
    for delivery in [false, true] {
        // TPR: bytes 3:1 are cleared.
        let (what, world) = written(delivery, 0x80, 0xffff_ff70);
        assert_eq!(exit(what), None);
        assert_eq!(world.word(0x80), 0x70);
        // But not for a write past its first byte.
        let (what, world) = written(delivery, 0x81, 0xffff_ff70);
        assert_eq!(exit(what), apic_write(0x81));
        assert_eq!(world.word(0x80), 0xffff_ff70);
        // EOI.
        let (what, world) = written(delivery, 0xb0, 0x55);
        if delivery {
            assert_eq!(what, Virtualized::Evaluated(false));
            assert_eq!(world.word(0xb0), 0);
        } else {
            assert_eq!(exit(what), apic_write(0xb0));
            assert_eq!(world.word(0xb0), 0x55);
        }
        // The high half of the interrupt command keeps the destination alone.
        for offset in 0x310..0x314 {
            let (what, world) = written(delivery, offset, 0x1234_5678);
            assert_eq!(
                (what, world.word(0x310)),
                (Virtualized::Done, 0x1200_0000),
                "{offset:#x}"
            );
        }
        for &offset in WRITABLE {
            if matches!(offset, 0x80 | 0xb0 | 0x300 | 0x310) {
                continue;
            }
            let (what, world) = written(delivery, offset, 0x1234_5678);
            assert_eq!(exit(what), apic_write(offset.into()));
            assert_eq!(world.word(offset.into()), 0x1234_5678);
        }
        let (what, _) = written(delivery, 0x301, 0x0004_0055);
        assert_eq!(exit(what), apic_write(0x301));
    }
}

#[test]
fn an_interrupt_command_is_a_self_ipi_or_exits() {
    const SELF: u32 = 1 << 18;
    // Level and destination mode do not count.
    for command in [SELF | 0x10, SELF | 0xff, SELF | 0x4855] {
        let (what, world) = written(true, 0x300, command);
        assert_eq!(what, Virtualized::Evaluated(true), "{command:#x}");
        assert_eq!(world.vectors(0x200), [command as u8]);
        assert_eq!(world.status(), (command as u8, 0));
        let (what, _) = written(false, 0x300, command);
        assert_eq!(exit(what), Some((ExitReason::APIC_WRITE, 0x300)));
    }
    let mut others = vec![SELF | 0x0f, 0x55, 2 << 18 | 0x55, 3 << 18 | 0x55];
    let wrong_bits = (20..32).chain([8, 9, 10, 12, 13, 15, 16, 17]);
    others.extend(wrong_bits.map(|bit| SELF | 0x55 | 1 << bit));
    for command in others {
        let (what, world) = written(true, 0x300, command);
        assert_eq!(
            exit(what),
            Some((ExitReason::APIC_WRITE, 0x300)),
            "{command:#x}"
        );
        assert_eq!(world.word(0x300), command);
        assert_eq!((world.status(), world.vectors(0x200)), ((0, 0), vec![]));
    }
}
