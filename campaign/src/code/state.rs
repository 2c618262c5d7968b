//! What surrounds the code: controls, masks, events, bitmaps, permissions.

use super::classes::Class;
use super::emit::Emit;
use super::system;
use crate::base::CodeBase;
use crate::layout::{self, arena};
use nvmx_core::vmx::capability::{Capability, ControlField};
use nvmx_core::vmx::controls::{PinBased, Primary, Secondary};
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_examples::runtime::map;

/// Bits of the primary controls that may change for any code. Not the monitor trap flag: Bochs does
/// not carry it out.
const PRIMARY: Primary = Primary::all().difference(
    Primary::ACTIVATE_SECONDARY_CONTROLS
        .union(Primary::MONITOR_TRAP_FLAG)
        .union(Primary::USE_TPR_SHADOW),
);

fn flip(e: &mut Emit<'_>, value: u64, among: u64, allowed: u64) -> u64 {
    let candidates: Vec<u32> = (0..64)
        .filter(|bit| among >> bit & 1 != 0 && allowed >> bit & 1 != 0)
        .collect();
    if candidates.is_empty() {
        return value;
    }
    value ^ 1 << *e.random.pick(&candidates)
}

/// Fields that differ from the base's.
pub(super) fn fields(
    e: &mut Emit<'_>,
    base: &Vmcs12,
    classes: &[&Class],
    capability: Capability<'_>,
) -> Vec<(Field, u64)> {
    let mut changed = base.clone();
    let free = |control| {
        let allowed = capability.allowed(control);
        allowed.may_be_one & !allowed.must_be_one
    };
    let mut set = |field: Field, value: u64| changed.set(field, value & field.mask());
    let mut primary: u64 = base.get(Field::CPU_BASED_VM_EXEC_CONTROL);
    let mut secondary: u64 = base.get(Field::SECONDARY_VM_EXEC_CONTROL);
    for class in classes {
        if e.random.one_in(2) {
            let bits = u64::from(class.primary.bits());
            primary = flip(e, primary, bits, free(ControlField::Primary));
        }
        if e.random.one_in(2) {
            let bits = u64::from(class.secondary.bits());
            secondary = flip(e, secondary, bits, free(ControlField::Secondary));
        }
    }
    while e.random.one_in(3) {
        primary = flip(
            e,
            primary,
            PRIMARY.bits().into(),
            free(ControlField::Primary),
        );
    }
    while e.random.one_in(4) {
        secondary = flip(
            e,
            secondary,
            Secondary::all().bits().into(),
            free(ControlField::Secondary),
        );
    }
    if secondary != 0 {
        primary |= u64::from(Primary::ACTIVATE_SECONDARY_CONTROLS.bits());
    }
    let mut pin: u64 = base.get(Field::PIN_BASED_VM_EXEC_CONTROL);
    if primary & u64::from(Primary::NMI_WINDOW_EXITING.bits()) != 0 || e.random.one_in(6) {
        pin |= u64::from(PinBased::VIRTUAL_NMIS.bits());
    }
    set(Field::PIN_BASED_VM_EXEC_CONTROL, pin);
    set(Field::CPU_BASED_VM_EXEC_CONTROL, primary);
    set(Field::SECONDARY_VM_EXEC_CONTROL, secondary);
    if e.random.one_in(3) {
        let bitmap = match e.random.below(4) {
            0 => u64::MAX,
            1 => 1 << e.random.below(32),
            2 => 0x6040,
            _ => e.random.bits(),
        };
        set(Field::EXCEPTION_BITMAP, bitmap);
        if e.random.one_in(3) {
            let mask = e.random.below(32);
            set(Field::PAGE_FAULT_ERROR_CODE_MASK, mask);
            let value = e.random.below(32);
            set(Field::PAGE_FAULT_ERROR_CODE_MATCH, value);
        }
    }
    masks(e, base, &mut set);
    events(e, base, &mut set);
    if e.random.one_in(8) {
        let (field, value) = system::breakpoints(e);
        set(field, value);
    }
    if e.random.one_in(12) {
        let page = *e.random.pick(&[
            arena::STACK + 0x1000,
            arena::STACK,
            arena::DATA + 0x1000,
            arena::DATA,
        ]);
        if !e.is_real {
            set(
                Field::GUEST_RSP,
                page + 8 * e.random.below(3) + e.random.below(3),
            );
        }
    }
    let fields = crate::wire::writable();
    fields
        .filter(|field| base.get(*field) != changed.get(*field))
        .map(|field| (field, changed.get(field)))
        .collect()
}

/// Guest/host masks and read shadows, and what CR0, CR4 and RFLAGS are.
fn masks(e: &mut Emit<'_>, base: &Vmcs12, set: &mut impl FnMut(Field, u64)) {
    if e.random.one_in(3) {
        let mask = *e.random.pick(&[
            1,
            2,
            8,
            0xa,
            0xb,
            0xf,
            0x8000_0001,
            0xffff_ffff,
            0x6000_0000,
        ]);
        set(Field::CR0_GUEST_HOST_MASK, mask);
        let shadow = *e
            .random
            .pick(&[0, 1, 8, 0xf, 0x8000_0031, 0x8001_0031, 0x6000_0031]);
        set(Field::CR0_READ_SHADOW, shadow);
    }
    if e.random.one_in(3) {
        let mask = *e.random.pick(&[0x2000, 0x20, 0x30, 0xffff_ffff, 0x80, 4]);
        set(Field::CR4_GUEST_HOST_MASK, mask);
        let shadow = *e.random.pick(&[0, 0x20, 0x2220, 0x2020, 0xffff]);
        set(Field::CR4_READ_SHADOW, shadow);
    }
    if e.random.one_in(6) {
        let cr4 = base.get(Field::GUEST_CR4);
        let bit = *e.random.pick(&[0, 1, 2, 3, 4, 7, 8, 9, 10, 11, 16]);
        set(Field::GUEST_CR4, cr4 ^ 1 << bit);
    }
    if e.random.one_in(6) {
        let cr0 = base.get(Field::GUEST_CR0);
        let flipped = *e.random.pick(&[2, 4, 8, 0x1_0000, 0x4_0000]);
        set(Field::GUEST_CR0, cr0 ^ flipped);
    }
    if e.random.one_in(4) {
        let flags = base.get(Field::GUEST_RFLAGS);
        let flipped = *e.random.pick(&[
            0x100, 0x200, 0x3000, 0x4000, 0x4_0000, 0x400, 0x1_0000, 0x3200,
        ]);
        set(Field::GUEST_RFLAGS, flags ^ flipped);
    }
}

/// Interruptibility, pending debug exceptions, injection.
fn events(e: &mut Emit<'_>, base: &Vmcs12, set: &mut impl FnMut(Field, u64)) {
    if e.random.one_in(10) {
        let state = *e.random.pick(&[1, 2, 8, 9, 0xa]);
        set(Field::GUEST_INTERRUPTIBILITY_INFO, state);
        if state & 1 != 0 {
            let flags = base.get(Field::GUEST_RFLAGS);
            set(Field::GUEST_RFLAGS, flags | 0x200);
        }
    }
    if e.random.one_in(24) {
        let pending = *e.random.pick(&[0x1001, 0x1002, 0x1008]);
        set(Field::GUEST_PENDING_DBG_EXCEPTIONS, pending);
    }
    if e.random.one_in(12) {
        let (information, error) = *e.random.pick(&[
            (0x8000_0041, 0),
            (0x8000_0202, 0),
            (0x8000_0306, 0),
            (0x8000_0b0d, 0),
            (0x8000_0b0e, 2),
            (0x8000_0301, 0),
            (0x8000_0603, 0),
            (0x8000_0480, 0),
            (0x8000_0485, 0),
            (0x8000_0501, 0),
        ]);
        set(Field::VM_ENTRY_INTR_INFO_FIELD, information);
        set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, error);
        set(Field::VM_ENTRY_INSTRUCTION_LEN, 1 + e.random.below(3));
        if information & 0x700 == 0 {
            let flags = base.get(Field::GUEST_RFLAGS);
            set(Field::GUEST_RFLAGS, flags | 0x200);
        }
    }
}

/// Page-table entries, EPT entries and bitmaps that differ.
pub(super) fn memory(
    e: &mut Emit<'_>,
    base: &Vmcs12,
    code: &CodeBase,
    width: u8,
) -> Vec<(u64, u64)> {
    let mut words = Vec::new();
    let page = |e: &mut Emit<'_>| {
        let data = arena::DATA + 0x1000 * e.random.below(arena::DATA_PAGES);
        *e.random.pick(&[
            data,
            data,
            data,
            arena::STACK,
            arena::STACK + 0x1000,
            arena::CODE,
            arena::CODE + 0x1000,
            arena::GDT & !0xfff,
            arena::STUBS,
        ])
    };
    if e.random.one_in(2) {
        let page = page(e);
        if let Some((address, entry)) = leaf(base, page) {
            let entry = match e.random.below(8) {
                0 => entry & !1,
                1 | 2 => entry & !2,
                3 => entry ^ 4,
                4 => entry | 1 << 63,
                5 => entry & !0x40,
                6 => entry & !0x60,
                _ => entry | 1 << (u64::from(width) + e.random.below(51 - u64::from(width))),
            };
            words.push((address, entry));
        }
    }
    let secondary: u64 = base.get(Field::SECONDARY_VM_EXEC_CONTROL);
    if secondary & u64::from(Secondary::ENABLE_EPT.bits()) != 0 && e.random.one_in(2) {
        words.push(ept(e, code, width));
    }
    let bit = |e: &mut Emit<'_>| {
        *e.random
            .pick(&[u64::MAX, 0x5555_5555_5555_5555, 1, 1 << 63])
    };
    if e.random.one_in(4) {
        // Ports where the code's are; MSRs from 0, from C0000000, those of the x2APIC.
        let at = *e.random.pick(&[
            map::IO_BITMAP_A + 0x18,
            map::IO_BITMAP_A + 0x400,
            map::IO_BITMAP_A + 0xff8,
            map::IO_BITMAP_B,
            map::IO_BITMAP_B + 0x200,
            map::IO_BITMAP_B + 0xff8,
        ]);
        words.push((at, bit(e)));
    }
    if e.random.one_in(4) {
        let half = *e.random.pick(&[0, 0x800]);
        let at = *e.random.pick(&[
            0x28, 0x48, 0x38, 0x400, 0x410, 0x420, 0x100, 0x418, 0x3f8, 0x7f8,
        ]);
        words.push((map::MSR_BITMAP + half + at, bit(e)));
    }
    if e.random.one_in(6) {
        let bitmap = *e.random.pick(&[map::VMREAD_BITMAP, map::VMWRITE_BITMAP]);
        let at = *e
            .random
            .pick(&[0xd00, 0x880, 0x500, 0x100, 0xd80, 0xc80, 0x980]);
        words.push((bitmap + at, bit(e)));
    }
    if e.random.one_in(8) {
        // The virtual TPR, and the rest of that page's registers.
        let at = *e.random.pick(&[0x80, 0x80, 0x20, 0x100, 0x300]);
        words.push((arena::VIRTUAL_APIC + at, e.random.below(256)));
    }
    words
}

/// The paging-structure entry that maps a page of the arena: its address and value.
fn leaf(base: &Vmcs12, page: u64) -> Option<(u64, u64)> {
    let user = if base.get(Field::GUEST_CS_AR_BYTES) >> 5 & 3 == 3 {
        4
    } else {
        0
    };
    let number = page >> 12 & 511;
    let entry = page | 0x63 | user;
    let tables: u64 = base.get(Field::GUEST_CR3);
    let table = match tables {
        arena::PAGING | arena::USER_PAGING => tables + 0x3000,
        arena::PAE | arena::USER_PAE => tables + 0x2000,
        _ => return None,
    };
    Some((table + 8 * number, entry))
}

fn ept(e: &mut Emit<'_>, code: &CodeBase, width: u8) -> (u64, u64) {
    let (table, page) = if code.is_real {
        (
            arena::EPT + 0x4000,
            layout::REAL + 0x1000 * e.random.below(3),
        )
    } else {
        let page = *e.random.pick(&[
            arena::DATA,
            arena::DATA + 0x1000,
            arena::DATA + 0x2000,
            arena::DATA + 0x3000,
            arena::STACK,
            arena::STACK + 0x1000,
            arena::CODE,
            arena::CODE + 0x1000,
            arena::STUBS,
            arena::GDT & !0xfff,
            arena::PAGING + 0x3000,
            arena::PAE + 0x2000,
            arena::USER_PAGING + 0x3000,
            arena::PAE,
        ]);
        (arena::EPT + 0x3000, page)
    };
    let address = table + 8 * (page >> 12 & 511);
    let flags = match e.random.below(8) {
        // Permissions, good and bad ones.
        0..=3 => 0x330 | e.random.below(8),
        // Memory types.
        4 => 0x307 | e.random.below(8) << 3,
        // Never accessed, never written.
        5 => 0x37 | *e.random.pick(&[0, 0x100]),
        6 => 0x337 | 1 << (u64::from(width) + e.random.below(51 - u64::from(width))),
        _ => 0x330 | e.random.below(8) | *e.random.pick(&[1 << 63, 1 << 10, 1 << 60]),
    };
    (address, page | flags)
}

/// Whether VM entry refuses the controls: other campaigns look at that.
pub(super) fn is_pointless(vmcs12: &Vmcs12, capability: Capability<'_>) -> bool {
    let primary = Primary::from_bits_retain(vmcs12.get32(Field::CPU_BASED_VM_EXEC_CONTROL));
    let secondary = Secondary::from_bits_retain(vmcs12.get32(Field::SECONDARY_VM_EXEC_CONTROL));
    let pin = PinBased::from_bits_retain(vmcs12.get32(Field::PIN_BASED_VM_EXEC_CONTROL));
    let permitted = [
        (ControlField::Primary, u64::from(primary.bits())),
        (ControlField::Secondary, u64::from(secondary.bits())),
        (ControlField::PinBased, u64::from(pin.bits())),
    ]
    .into_iter()
    .all(|(field, value)| capability.allowed(field).permits(value));
    let needs_shadow = Secondary::VIRTUALIZE_X2APIC_MODE
        | Secondary::APIC_REGISTER_VIRTUALIZATION
        | Secondary::VIRTUAL_INTERRUPT_DELIVERY;
    let needs_ept = Secondary::UNRESTRICTED_GUEST
        | Secondary::ENABLE_PML
        | Secondary::ENABLE_VM_FUNCTIONS
        | Secondary::MODE_BASED_EXECUTE_CONTROL;
    !permitted
        || secondary.intersects(needs_shadow) && !primary.contains(Primary::USE_TPR_SHADOW)
        || secondary
            .contains(Secondary::VIRTUALIZE_X2APIC_MODE | Secondary::VIRTUALIZE_APIC_ACCESSES)
        || secondary.contains(Secondary::VIRTUAL_INTERRUPT_DELIVERY)
            && !pin.contains(PinBased::EXTERNAL_INTERRUPT_EXITING)
        || secondary.intersects(needs_ept) && !secondary.contains(Secondary::ENABLE_EPT)
        || secondary.contains(Secondary::ENABLE_PML) && vmcs12.get(Field::EPT_POINTER) >> 6 & 1 == 0
        || secondary.contains(Secondary::VMCS_SHADOWING)
            && vmcs12.get(Field::VMCS_LINK_POINTER) == u64::MAX
        || secondary.contains(Secondary::ENABLE_VPID)
            && vmcs12.get(Field::VIRTUAL_PROCESSOR_ID) == 0
        || vmcs12.get(Field::GUEST_CR0) & 1 == 0
            && !secondary.contains(Secondary::UNRESTRICTED_GUEST)
        || primary.contains(Primary::NMI_WINDOW_EXITING) && !pin.contains(PinBased::VIRTUAL_NMIS)
}
