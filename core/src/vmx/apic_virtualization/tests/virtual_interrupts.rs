//! Priority, evaluation and delivery; posted interrupts.

use super::*;

#[test]
fn vppr_is_the_higher_of_task_and_service() {
    for (vtpr, svi, expected) in [
        (0x00, 0x00, 0x00),
        (0x2f, 0x00, 0x2f),
        (0x2f, 0x2e, 0x2f),
        (0x2f, 0x3e, 0x30),
        (0xffff_ff45, 0x3e, 0x45),
        (0x00, 0xff, 0xf0),
    ] {
        let world = World::delivering(0, svi);
        world.put(0x80, vtpr);
        world.put(0xa0, u32::MAX);
        let entered = world.apic.enter(&world.vmcs12, &world.memory);
        assert_eq!(entered, Virtualized::Evaluated(false));
        assert_eq!(world.word(0xa0), expected, "{vtpr:#x} {svi:#x}");
    }
    // Without virtual-interrupt delivery entry leaves the page alone.
    let world = World::new(shadow());
    world.put(0xa0, 7);
    let entered = world.apic.enter(&world.vmcs12, &world.memory);
    assert_eq!((entered, world.word(0xa0)), (Virtualized::Done, 7));
}

#[test]
fn a_virtual_interrupt_is_recognized_above_the_priority_of_its_class() {
    for (rvi, vtpr, interrupt_window, expected) in [
        (0x31, 0x2f, false, true),
        (0x3f, 0x30, false, false),
        (0x3f, 0x40, false, false),
        (0x10, 0x00, false, true),
        (0x0f, 0x00, false, false),
        (0xff, 0x00, true, false),
    ] {
        let mut world = World::delivering(rvi, 0);
        world.apic.interrupt_window = interrupt_window;
        world.put(0x80, vtpr);
        assert_eq!(
            world.apic.enter(&world.vmcs12, &world.memory),
            Virtualized::Evaluated(expected),
            "{rvi:#x} {vtpr:#x} {interrupt_window}"
        );
    }
}

#[test]
fn delivery_moves_the_vector_from_request_to_service() {
    let mut world = World::delivering(0x61, 0x21);
    world.set(0x200, 0x33);
    world.set(0x200, 0x60);
    let vector = world
        .apic
        .take_virtual_interrupt(&mut world.vmcs12, &world.memory);
    assert_eq!(vector, 0x61);
    assert_eq!(world.status(), (0x60, 0x61));
    assert_eq!(world.word(0xa0), 0x60);
    assert_eq!(world.vectors(0x200), [0x33, 0x60]);
    assert_eq!(world.vectors(0x100), [0x21, 0x61]);
    // EOI goes back to what was interrupted; the next request of the same class is free now.
    let eoi = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, 0xb0);
    assert_eq!(eoi, Virtualized::Evaluated(true));
    assert_eq!(world.status(), (0x60, 0x21));
    assert_eq!(world.vectors(0x100), [0x21]);
    assert_eq!(world.word(0xa0), 0x20);
}

#[test]
fn an_eoi_exits_by_its_bitmap_without_evaluation() {
    for vector in [0x10, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xff_u8] {
        let mut world = World::delivering(0, vector);
        let index = usize::from(vector / 64);
        world.apic.eoi_exits[index] = !(1 << (vector % 64));
        let eoi = |world: &mut World| {
            let vmcs12 = &mut world.vmcs12;
            world.apic.emulate_write(vmcs12, &world.memory, 0xb0)
        };
        assert_eq!(eoi(&mut world), Virtualized::Evaluated(false));
        world.set_status(0, vector);
        world.apic.eoi_exits = [0; 4];
        world.apic.eoi_exits[index] = 1 << (vector % 64);
        assert_eq!(
            exit(eoi(&mut world)),
            Some((ExitReason::VIRTUALIZED_EOI, vector.into()))
        );
        assert_eq!(world.status(), (0, 0));
    }
    // With nothing in service it is vector 0's.
    let mut world = World::delivering(0, 0);
    world.apic.eoi_exits[0] = 1;
    let eoi = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, 0xb0);
    assert_eq!(exit(eoi), Some((ExitReason::VIRTUALIZED_EOI, 0)));
}

#[test]
fn a_lower_self_ipi_leaves_rvi() {
    let mut world = World::delivering(0x91, 0);
    world.put(0x300, 1 << 18 | 0x44);
    let sent = world
        .apic
        .emulate_write(&mut world.vmcs12, &world.memory, 0x300);
    assert_eq!(sent, Virtualized::Evaluated(true));
    assert_eq!(world.status(), (0x91, 0));
    assert_eq!(world.vectors(0x200), [0x44, 0x91]);
}

#[test]
fn posted_interrupts_are_taken_over() {
    // (RVI before, the posted vectors, RVI after)
    for (rvi, posted, after) in [
        (0x00, &[][..], 0x00),
        (0x55, &[], 0x55),
        (0x00, &[0x20, 0x61, 0xff], 0xff),
        (0x80, &[0x31, 0x3f], 0x80),
        (0x30, &[0x31], 0x31),
    ] {
        let mut world = World::delivering(rvi, 0);
        world.apic.posted = Some(PostedInterrupts {
            vector: 0xf2,
            descriptor: L1Phys(DESCRIPTOR),
        });
        assert!(world.apic.is_notification(0xf2) && !world.apic.is_notification(0xf3));
        let mut descriptor = [0; 64];
        // ON, and bits that are not the processor's.
        descriptor[32] = 0xff;
        descriptor[40] = 0xee;
        for vector in posted {
            descriptor[usize::from(vector / 8)] |= 1 << (vector % 8);
        }
        world.memory.write(L1Phys(DESCRIPTOR), &descriptor).unwrap();
        let taken = world
            .apic
            .process_posted_interrupts(&mut world.vmcs12, &world.memory);
        assert_eq!(taken, Virtualized::Evaluated(after != 0));
        assert_eq!(world.status(), (after, 0));
        let mut requests = posted.to_vec();
        requests.extend((rvi != 0).then_some(rvi));
        requests.sort_unstable();
        assert_eq!(world.vectors(0x200), requests);
        let mut left = [0; 64];
        world.memory.read(L1Phys(DESCRIPTOR), &mut left).unwrap();
        let mut expected = [0; 64];
        expected[32] = 0xfe;
        expected[40] = 0xee;
        assert_eq!(left, expected);
    }
    // Where there is no descriptor nothing is posted.
    let mut world = World::delivering(0, 0);
    assert!(!world.apic.is_notification(0));
    let taken = world
        .apic
        .process_posted_interrupts(&mut world.vmcs12, &world.memory);
    assert_eq!(taken, Virtualized::Done);
}
