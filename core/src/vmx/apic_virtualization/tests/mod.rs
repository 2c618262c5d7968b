//! One test a rule of the chapter, against values written down by hand.

mod ipi;
mod memory_mapped;
mod msr_based;
mod virtual_interrupts;

use super::{ApicVirtualization, IpiVirtualization, PostedInterrupts, Virtualized};
use crate::addr::L1Phys;
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::controls::{PinBased, Primary, Secondary, Tertiary};
use crate::vmx::exit::{ExitReason, VmExit};
use crate::vmx::{Field, Vmcs12};

/// The virtual-APIC page of the tests.
const PAGE: u64 = 0x1000;
/// The APIC-access page.
const ACCESS_PAGE: u64 = 0xfee0_0000;
/// The posted-interrupt descriptor.
const DESCRIPTOR: u64 = 0x2040;

/// Everything that the tests change.
struct World {
    apic: ApicVirtualization,
    vmcs12: Vmcs12,
    memory: VecMemory,
}

impl World {
    fn new(apic: ApicVirtualization) -> Self {
        Self {
            apic,
            vmcs12: Vmcs12::new(),
            memory: VecMemory::new(0x3000),
        }
    }

    /// With virtual-interrupt delivery, RVI and SVI as given and their bits set.
    fn delivering(rvi: u8, svi: u8) -> Self {
        let mut world = Self::new(ApicVirtualization {
            delivery: true,
            ..shadow()
        });
        world.set_status(rvi, svi);
        if rvi != 0 {
            world.set(0x200, rvi);
        }
        if svi != 0 {
            world.set(0x100, svi);
        }
        world
    }

    fn set_status(&mut self, rvi: u8, svi: u8) {
        let value = u64::from(svi) << 8 | u64::from(rvi);
        self.vmcs12.set(Field::GUEST_INTR_STATUS, value);
    }

    /// (RVI, SVI).
    fn status(&self) -> (u8, u8) {
        let value = self.vmcs12.get(Field::GUEST_INTR_STATUS);
        (value as u8, (value >> 8) as u8)
    }

    fn word(&self, offset: u64) -> u32 {
        self.memory.read_u32(L1Phys(PAGE + offset)).unwrap()
    }

    fn put(&self, offset: u64, value: u32) {
        self.memory.write_u32(L1Phys(PAGE + offset), value).unwrap();
    }

    /// Sets a vector's bit in the 256-bit register at `register`.
    fn set(&self, register: u64, vector: u8) {
        let offset = register + u64::from(vector / 32) * 16;
        self.put(offset, self.word(offset) | 1 << (vector % 32));
    }

    /// The vectors of a 256-bit register.
    fn vectors(&self, register: u64) -> Vec<u8> {
        (0..=255u8)
            .filter(|vector| {
                let word = self.word(register + u64::from(vector / 32) * 16);
                word >> (vector % 32) & 1 != 0
            })
            .collect()
    }
}

/// "Use TPR shadow" alone.
fn shadow() -> ApicVirtualization {
    ApicVirtualization {
        tpr_shadow: true,
        page: L1Phys(PAGE),
        ..ApicVirtualization::default()
    }
}

/// The trap-like exit with its qualification.
fn exit(virtualized: Virtualized) -> Option<(ExitReason, u64)> {
    match virtualized {
        Virtualized::Exit(exit) => {
            assert_eq!(
                exit,
                VmExit::new(exit.reason).with_qualification(exit.qualification)
            );
            Some((exit.reason, exit.qualification))
        }
        _ => None,
    }
}

#[test]
fn controls_are_read_from_the_vmcs12() {
    let mut vmcs12 = Vmcs12::new();
    vmcs12.set(Field::APIC_ACCESS_ADDR, ACCESS_PAGE);
    vmcs12.set(Field::VIRTUAL_APIC_PAGE_ADDR, PAGE);
    vmcs12.set(Field::TPR_THRESHOLD, 0xf5);
    vmcs12.set(Field::POSTED_INTR_NV, 0xf2);
    vmcs12.set(Field::POSTED_INTR_DESC_ADDR, DESCRIPTOR);
    vmcs12.set(Field::EOI_EXIT_BITMAP2, 4);
    vmcs12.set(Field::PID_POINTER_TABLE, 0x3000);
    vmcs12.set(Field::LAST_PID_POINTER_INDEX, 9);
    vmcs12.set(
        Field::TERTIARY_VM_EXEC_CONTROL,
        Tertiary::IPI_VIRTUALIZATION.bits(),
    );
    vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, u64::MAX);
    vmcs12.set(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::PROCESS_POSTED_INTERRUPTS.bits().into(),
    );
    // The secondary controls are not active.
    assert_eq!(
        ApicVirtualization::new(&vmcs12),
        ApicVirtualization::default()
    );
    let primary = Primary::ACTIVATE_SECONDARY_CONTROLS
        | Primary::ACTIVATE_TERTIARY_CONTROLS
        | Primary::USE_TPR_SHADOW;
    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, primary.bits().into());
    let all = ApicVirtualization {
        tpr_shadow: true,
        access_page: Some(L1Phys(ACCESS_PAGE)),
        x2apic_mode: true,
        registers: true,
        delivery: true,
        interrupt_window: false,
        page: L1Phys(PAGE),
        tpr_threshold: 5,
        eoi_exits: [0, 0, 4, 0],
        posted: Some(PostedInterrupts {
            vector: 0xf2,
            descriptor: L1Phys(DESCRIPTOR),
        }),
        ipi: Some(IpiVirtualization {
            table: L1Phys(0x3000),
            last: 9,
        }),
    };
    assert_eq!(ApicVirtualization::new(&vmcs12), all);
    // "Virtualize APIC accesses" needs no TPR shadow.
    let secondary = Secondary::VIRTUALIZE_APIC_ACCESSES.bits();
    vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, secondary.into());
    vmcs12.set(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits().into(),
    );
    let alone = ApicVirtualization::new(&vmcs12);
    assert_eq!(
        (alone.tpr_shadow, alone.access_page, alone.delivery),
        (false, Some(L1Phys(ACCESS_PAGE)), false)
    );
}

#[test]
fn cr8_is_bits_7_to_4_of_vtpr() {
    let mut world = World::new(ApicVirtualization {
        tpr_threshold: 5,
        ..shadow()
    });
    world.put(0x80, 0xffff_ff9c);
    assert_eq!(world.apic.read_cr8(&world.memory), 9);
    let written = world.apic.write_cr8(&world.vmcs12, &world.memory, 5);
    assert_eq!((written, world.word(0x80)), (Virtualized::Done, 0x50));
    let written = world.apic.write_cr8(&world.vmcs12, &world.memory, 4);
    assert_eq!(exit(written), Some((ExitReason::TPR_BELOW_THRESHOLD, 0)));
    assert_eq!(world.word(0x80), 0x40);
    // With virtual-interrupt delivery the threshold is ignored, and VPPR follows.
    world.apic.delivery = true;
    let written = world.apic.write_cr8(&world.vmcs12, &world.memory, 3);
    assert_eq!(written, Virtualized::Evaluated(false));
    assert_eq!((world.word(0x80), world.word(0xa0)), (0x30, 0x30));
}

#[test]
fn the_threshold_is_looked_at_after_entry_with_an_access_page_alone() {
    for (page, delivery, tpr_shadow, vtpr, expected) in [
        (true, false, true, 0x4f, true),
        (true, false, true, 0x50, false),
        (true, true, true, 0, false),
        (false, false, true, 0, false),
        (true, false, false, 0, false),
    ] {
        let world = World::new(ApicVirtualization {
            tpr_shadow,
            delivery,
            access_page: page.then_some(L1Phys(ACCESS_PAGE)),
            tpr_threshold: 5,
            ..shadow()
        });
        world.put(0x80, vtpr);
        let exit = world.apic.exit_after_entry(&world.memory);
        assert_eq!(
            exit.map(|exit| exit.reason),
            expected.then_some(ExitReason::TPR_BELOW_THRESHOLD),
            "{page} {delivery} {tpr_shadow} {vtpr:#x}"
        );
    }
}
