//! Which values of a field are interesting.

use crate::case::{Hex, Mutation};
use crate::layout;
use crate::random::Random;
use nvmx_core::vmx::fields::{FieldType, Width};
use nvmx_core::vmx::{Field, Vmcs12};
use nvmx_examples::runtime::map;
use std::sync::LazyLock;

/// Fields to draw from; those that decide much are there several times.
static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
    crate::wire::writable()
        .filter(|field| *field != Field::HOST_RSP)
        .flat_map(|field| std::iter::repeat_n(field, weight(field)))
        .collect()
});

fn weight(field: Field) -> usize {
    match field {
        Field::PIN_BASED_VM_EXEC_CONTROL
        | Field::CPU_BASED_VM_EXEC_CONTROL
        | Field::SECONDARY_VM_EXEC_CONTROL
        | Field::VM_EXIT_CONTROLS
        | Field::VM_ENTRY_CONTROLS
        | Field::VM_ENTRY_INTR_INFO_FIELD
        | Field::GUEST_CR0
        | Field::GUEST_CR4
        | Field::GUEST_RFLAGS => 8,
        Field::GUEST_INTERRUPTIBILITY_INFO
        | Field::GUEST_PENDING_DBG_EXCEPTIONS
        | Field::GUEST_ACTIVITY_STATE
        | Field::GUEST_IA32_EFER
        | Field::EPT_POINTER
        | Field::VMCS_LINK_POINTER
        | Field::GUEST_CS_AR_BYTES
        | Field::GUEST_SS_AR_BYTES => 4,
        _ if (Field::GUEST_ES_AR_BYTES.0..=Field::GUEST_TR_AR_BYTES.0).contains(&field.0) => 2,
        _ => 1,
    }
}

const CANONICAL: &[u64] = &[
    0,
    0x7fff_ffff_ffff,
    0x8000_0000_0000,
    0xffff_7fff_ffff_ffff,
    0xffff_8000_0000_0000,
    0xff_ffff_ffff_ffff,
    0x100_0000_0000_0000,
    0xfeff_ffff_ffff_ffff,
    0xff00_0000_0000_0000,
    u64::MAX,
    1 << 32,
    0xffff_ffff,
    1 << 63,
];
const LIMITS: &[u64] = &[
    0,
    1,
    0x67,
    0xfff,
    0x1000,
    0xffff,
    0x1_0000,
    0xf_ffff,
    0x10_0000,
    0x10_0fff,
    0xffff_ffff,
    0xffff_f000,
    0xfff0_0000,
    0x67ff_ffff,
];
const RIGHTS: &[u64] = &[
    0, 0x93, 0x9b, 0xc093, 0xc09b, 0xa09b, 0x8b, 0x83, 0x82, 0x89, 0xf3, 0x1_0000, 0xc0f3, 0xa0fb,
    0xc09f, 0xc097, 0xc091, 0xe09b, 0xa093, 0x1_c093, 0xc0d3, 0xc0b3,
];
const SELECTORS: &[u64] = &[
    0, 1, 2, 3, 4, 7, 8, 0xb, 0x10, 0x13, 0x14, 0x18, 0x28, 0x38, 0x40, 0xffff, 0xfff8,
];

/// A field and a value for it.
pub(super) fn field(random: &mut Random, vmcs12: &Vmcs12, width: u8) -> (Field, u64) {
    let field = *random.pick(&FIELDS);
    let old = vmcs12.get(field);
    let value = match field.type_() {
        FieldType::HostState => host(random, field, old, width),
        _ => value(random, field, old, width),
    };
    (field, value & field.mask())
}

fn flip(random: &mut Random, old: u64, bits: u64) -> u64 {
    old ^ 1 << random.below(bits)
}

/// Addresses of structures: misaligned, beyond the physical-address width, no RAM, another page.
fn address(random: &mut Random, old: u64, width: u8) -> u64 {
    match random.below(8) {
        0 | 1 => old ^ 1 << random.below(12),
        2 => old | 1 << width,
        3 => old | 1 << random.below(64),
        4 => (1 << width) - 0x1000,
        5 => 0x4000_0000,
        6 => 0,
        _ => map::L2_VARS,
    }
}

fn count(random: &mut Random) -> u64 {
    *random.pick(&[0, 1, 2, 2, 3, 4])
}

fn value(random: &mut Random, field: Field, old: u64, width: u8) -> u64 {
    let name = field.name().unwrap_or_default();
    match field {
        Field::PIN_BASED_VM_EXEC_CONTROL
        | Field::CPU_BASED_VM_EXEC_CONTROL
        | Field::SECONDARY_VM_EXEC_CONTROL
        | Field::VM_EXIT_CONTROLS
        | Field::VM_ENTRY_CONTROLS => flip(random, old, 32),
        Field::EPT_POINTER => match random.below(4) {
            0 => address(random, old, width),
            // Bits 23:21 would lead to the batch itself, which is another on each side.
            _ => old ^ (1 << random.below(64)) & !0xe0_0000,
        },
        Field::GUEST_CR0 => match random.below(4) {
            0 => *random.pick(&[
                0x31,
                0x30,
                0x8000_0031,
                0xe000_0031,
                0x6000_0030,
                0x8005_003f,
                0x8000_0030,
            ]),
            1 => flip(random, old, 64),
            _ => flip(random, old, 32),
        },
        Field::GUEST_CR4 => match random.below(4) {
            0 => flip(random, old, 64),
            _ => flip(random, old, 24),
        },
        Field::GUEST_CR3 => match random.below(5) {
            0 => old | 1 << random.below(64 - u64::from(width)) << width,
            1 => old ^ 1 << random.below(5),
            2 => 0x4000_0000,
            3 => map::L2_VARS,
            _ => old ^ 1 << random.below(12),
        },
        Field::GUEST_RFLAGS => match random.below(6) {
            0 => flip(random, old, 64),
            1 => old | 0x100,
            2 => old | 0x200,
            _ => flip(random, old, 22),
        },
        Field::GUEST_RIP => match random.below(4) {
            0 => layout::CODE + 2 * random.below(16),
            _ => *random.pick(&[
                0x7fff_ffff_fffe,
                0x7fff_ffff_f000,
                0x8000_0000_0000,
                0xffff_7fff_ffff_ffff,
                0xffff_8000_0000_0000,
                0x1_0000_0000 + layout::CODE,
                1 << 63,
                0x4000_0000,
                0xff_ffff_ffff_ffff,
                0x1_0017_5000,
                0x17_5ffe,
            ]),
        },
        Field::GUEST_RSP => match random.below(3) {
            0 => layout::STACK - random.below(64),
            _ => *random.pick(&[
                0,
                0x7fff_ffff_fff8,
                0x8000_0000_0000,
                0xffff_8000_0000_0008,
                0x4000_0000,
                u64::MAX,
                0x1_0017_b000,
            ]),
        },
        Field::GUEST_DR7 | Field::GUEST_IA32_DEBUGCTL => match random.below(3) {
            0 => flip(random, old, 64),
            // Breakpoints of DR7 would need addresses: leave those off.
            _ if field == Field::GUEST_DR7 => flip(random, old, 16) & !0xff,
            _ => flip(random, old, 16),
        },
        Field::GUEST_IA32_EFER => match random.below(3) {
            0 => *random.pick(&[0, 0x100, 0x400, 0x500, 0x501, 0xd00, 0xd01, 0x901]),
            1 => flip(random, old, 64),
            _ => flip(random, old, 16),
        },
        Field::GUEST_IA32_PAT => match random.below(2) {
            0 => *random.pick(&[
                0,
                0x0606_0606_0606_0606,
                0x0101_0101_0101_0101,
                0x0007_0406_0007_0407,
                0x0405_0607_0001_0406,
            ]),
            _ => old ^ random.below(256) << (8 * random.below(8)),
        },
        Field::GUEST_IA32_PERF_GLOBAL_CTRL => flip(random, old, 64),
        Field::GUEST_BNDCFGS => match random.below(2) {
            0 => *random.pick(CANONICAL),
            _ => flip(random, old, 64),
        },
        Field::GUEST_INTERRUPTIBILITY_INFO => match random.below(4) {
            0 => random.below(32),
            1 => flip(random, old, 32),
            _ => flip(random, old, 5),
        },
        Field::GUEST_ACTIVITY_STATE => {
            *random.pick(&[0, 1, 1, 2, 4, 5, 0x8000_0000, 0x101, u64::MAX])
        }
        Field::GUEST_PENDING_DBG_EXCEPTIONS => match random.below(4) {
            0 => *random.pick(&[0x4000, 0x5000, 0x1_0000, 0x1_1000, 0x400f, 0x1001, 0xf]),
            1 => flip(random, old, 64),
            _ => flip(random, old, 17),
        },
        Field::VM_ENTRY_INTR_INFO_FIELD => injection(random, old),
        Field::VM_ENTRY_EXCEPTION_ERROR_CODE => match random.below(2) {
            0 => flip(random, old, 32),
            _ => *random.pick(&[0, 0x7fff, 0x8000, 0xffff, 0x1_0000, u64::MAX]),
        },
        Field::VM_ENTRY_INSTRUCTION_LEN => {
            *random.pick(&[0, 1, 2, 3, 14, 15, 16, 17, 0xff, 0xffff_ffff])
        }
        Field::VM_ENTRY_MSR_LOAD_COUNT
        | Field::VM_EXIT_MSR_STORE_COUNT
        | Field::VM_EXIT_MSR_LOAD_COUNT => count(random),
        Field::CR3_TARGET_COUNT => *random.pick(&[1, 2, 4, 5, 0xff, 0xffff_ffff]),
        Field::VMCS_LINK_POINTER => match random.below(3) {
            0 => *random.pick(&[
                layout::SHADOW_LINK,
                layout::PLAIN_LINK,
                layout::VMCS,
                u64::MAX,
            ]),
            1 => u64::MAX ^ 1 << random.below(64),
            _ => address(random, layout::SHADOW_LINK, width),
        },
        Field::TPR_THRESHOLD => *random.pick(&[0, 1, 4, 15, 16, 0x8000_0000]),
        // Either at once, or long after L2's first instruction.
        Field::VMX_PREEMPTION_TIMER_VALUE => *random.pick(&[0, 0x8000, 0x1_0000]),
        Field::VIRTUAL_PROCESSOR_ID => *random.pick(&[0, 1, 2, 0xffff]),
        Field::GUEST_PML_INDEX => *random.pick(&[0, 1, 511, 512, 0xffff]),
        Field::TSC_OFFSET | Field::TSC_MULTIPLIER => 0,
        Field::VM_FUNCTION_CONTROL => flip(random, old, 64),
        Field::GUEST_SYSENTER_ESP | Field::GUEST_SYSENTER_EIP => canonical(random, old),
        _ if name.ends_with("_SELECTOR") => match random.below(2) {
            0 => *random.pick(SELECTORS),
            _ => flip(random, old, 16),
        },
        _ if name.ends_with("_AR_BYTES") => match random.below(2) {
            0 => *random.pick(RIGHTS),
            _ => flip(random, old, 32),
        },
        _ if name.starts_with("GUEST_") && name.ends_with("_LIMIT") => *random.pick(LIMITS),
        _ if name.starts_with("GUEST_") && name.ends_with("_BASE") => match random.below(3) {
            // Not where L2 would run what the batch holds in memory.
            0 => old ^ 1 << random.below(4),
            1 => old ^ 1 << (32 + random.below(32)),
            _ => *random.pick(CANONICAL),
        },
        _ if name.starts_with("GUEST_PDPTR") => match random.below(3) {
            0 => 0,
            1 => old | 1 | 1 << random.below(64),
            _ => flip(random, old, 64),
        },
        _ if is_address(field) => address(random, old, width),
        _ => match random.below(3) {
            0 => random.bits(),
            1 => u64::MAX,
            _ => flip(random, old, 8 * field.access_bytes() as u64),
        },
    }
}

fn is_address(field: Field) -> bool {
    let name = field.name().unwrap_or_default();
    field.type_() == FieldType::Control
        && field.width() == Width::Bits64
        && !name.contains("BITMAP_")
        && (name.contains("ADDR") || name.contains("BITMAP"))
        || matches!(field, Field::IO_BITMAP_A | Field::IO_BITMAP_B)
}

fn canonical(random: &mut Random, old: u64) -> u64 {
    match random.below(3) {
        0 => flip(random, old, 64),
        _ => *random.pick(CANONICAL),
    }
}

fn injection(random: &mut Random, old: u64) -> u64 {
    match random.below(5) {
        0 => flip(random, old, 32),
        1 => flip(random, old, 12),
        _ => {
            let vector = match random.below(4) {
                0 => random.below(256),
                1 => *random.pick(&[1, 2, 3, 4]),
                _ => random.below(32),
            };
            0x8000_0000 | vector | random.below(8) << 8 | random.below(2) << 11
        }
    }
}

/// Host state that L1 survives, or that must fail.
fn host(random: &mut Random, field: Field, old: u64, width: u8) -> u64 {
    let name = field.name().unwrap_or_default();
    match field {
        // PE, MP to ET, NE, WP, AM, PG; what is left alone at an exit.
        Field::HOST_CR0 => flip(random, old, 64),
        Field::HOST_CR4 => flip(random, old, 64),
        Field::HOST_CR3 => match random.below(2) {
            0 => old | 1 << random.below(64 - u64::from(width)) << width,
            _ => old ^ 1 << (3 + random.below(2)),
        },
        Field::HOST_RIP => match random.below(2) {
            0 => old | 0x8000_0000_0000,
            _ => old | 1 << 63,
        },
        Field::HOST_IA32_EFER => match random.below(2) {
            0 => *random.pick(&[0, 0x100, 0x400, 0x500, 0x501, 0xd00, 0xd01]),
            _ => flip(random, old, 64),
        },
        Field::HOST_IA32_PAT => match random.below(2) {
            0 => *random.pick(&[
                0,
                0x0606_0606_0606_0606,
                0x0007_0406_0007_0407,
                0x0407_0506_0100_0606,
            ]),
            _ => old ^ random.below(256) << (8 * random.below(8)),
        },
        Field::HOST_IA32_PERF_GLOBAL_CTRL => flip(random, old, 64),
        _ if name.ends_with("_SELECTOR") => match random.below(2) {
            0 => *random.pick(SELECTORS),
            _ => flip(random, old, 16),
        },
        _ => canonical(random, old),
    }
}

/// Memory that an entry reads: the MSR lists, PDPTEs, VTPR, the regions at the link pointer.
pub(super) fn memory(random: &mut Random, width: u8) -> Mutation {
    let (address, value) = match random.below(8) {
        0..=3 => {
            let entry = layout::ENTRY_LOAD + 16 * random.below(2);
            if random.one_in(2) {
                let index = *random.pick(&[
                    0,
                    0x10,
                    0x1b,
                    0x3a,
                    0x79,
                    0x8b,
                    0x9b,
                    0x174,
                    0x175,
                    0x176,
                    0x1d9,
                    0x277,
                    0x480,
                    0x6e0,
                    0x800,
                    0x808,
                    0x8ff,
                    0x900,
                    0xc000_0080,
                    0xc000_0081,
                    0xc000_0082,
                    0xc000_0083,
                    0xc000_0084,
                    0xc000_0100,
                    0xc000_0101,
                    0xc000_0102,
                    0xc000_0103,
                    0x4b56_4d00,
                    0x1_0000_0174,
                    0xffff_ffff,
                    0xda0,
                    0x17_4000,
                ]);
                (entry, index)
            } else {
                let value = match random.below(3) {
                    0 => random.bits(),
                    1 => *random.pick(CANONICAL),
                    _ => random.below(0x1000),
                };
                (entry + 8, value)
            }
        }
        4 => (map::VIRTUAL_APIC + 0x80, random.below(256)),
        5 => (layout::SHADOW_LINK, random.bits()),
        6 => {
            let entry = layout::USER_PAE + 8 * random.below(4);
            (entry, 1 | 1 << random.below(64))
        }
        _ => {
            let entry = map::PAGING_PAE + 8 * random.below(4);
            let reserved = 1 << width;
            (
                entry,
                *random.pick(&[
                    0,
                    1,
                    0x1e1,
                    (map::PAGING_PAE + 0x1000) | 3,
                    reserved | 1,
                    1 << 63 | 1,
                    0x1_0000_0001,
                ]),
            )
        }
    };
    Mutation::Memory(Hex(address), Hex(value))
}
