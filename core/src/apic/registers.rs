//! Offsets, masks and bits of the local APIC's registers (SDM Vol. 3A "Local APIC Register Address
//! Map"); which of them exist in which mode.

use crate::x86::msr::{IA32_TSC_DEADLINE, X2APIC_FIRST};

pub(super) const ID: u16 = 0x20;
pub(super) const VERSION: u16 = 0x30;
pub(super) const TPR: u16 = 0x80;
pub(super) const ARBITRATION: u16 = 0x90;
pub(super) const PPR: u16 = 0xa0;
pub(super) const EOI: u16 = 0xb0;
pub(super) const LDR: u16 = 0xd0;
pub(super) const DFR: u16 = 0xe0;
pub(super) const SPURIOUS: u16 = 0xf0;
pub(super) const ISR: u16 = 0x100;
pub(super) const TMR: u16 = 0x180;
pub(super) const IRR: u16 = 0x200;
pub(super) const IRR_LAST: u16 = 0x270;
pub(super) const ESR: u16 = 0x280;
pub(super) const ICR: u16 = 0x300;
pub(super) const ICR_HIGH: u16 = 0x310;
pub(super) const LVT_TIMER: u16 = 0x320;
pub(super) const LVT_THERMAL: u16 = 0x330;
pub(super) const LVT_PERFORMANCE: u16 = 0x340;
pub(super) const LVT_LINT0: u16 = 0x350;
pub(super) const LVT_LINT1: u16 = 0x360;
pub(super) const LVT_ERROR: u16 = 0x370;
pub(super) const INITIAL_COUNT: u16 = 0x380;
pub(super) const CURRENT_COUNT: u16 = 0x390;
pub(super) const DIVIDE: u16 = 0x3e0;
pub(super) const SELF_IPI: u16 = 0x3f0;

/// The six entries of the local vector table that KVM has, with the bits that can be written.
pub(super) const LVT: [(u16, u32); 6] = [
    (LVT_TIMER, 0x7_10ff),
    (LVT_THERMAL, 0x1_17ff),
    (LVT_PERFORMANCE, 0x1_17ff),
    (LVT_LINT0, 0x1_f7ff),
    (LVT_LINT1, 0x1_f7ff),
    (LVT_ERROR, 0x1_10ff),
];

/// Mask bit of a local-vector-table entry.
pub(super) const MASKED: u32 = 1 << 16;
/// APIC software enable, in the spurious-interrupt vector register.
pub(super) const SOFTWARE_ENABLE: u32 = 1 << 8;
/// Delivery status of the ICR: always idle.
pub(super) const BUSY: u32 = 1 << 12;

/// IA32_APIC_BASE: the processor is the bootstrap processor.
pub(super) const BASE_BSP: u64 = 1 << 8;
/// IA32_APIC_BASE: x2APIC mode.
pub(super) const BASE_X2APIC: u64 = 1 << 10;
/// IA32_APIC_BASE: global enable.
pub(super) const BASE_ENABLE: u64 = 1 << 11;

/// Bits of an x2APIC register that a write must leave 0 (SDM Vol. 3A "x2APIC Register Address Space",
/// "Reserved Bit Checking"), by its MSR; none for a number that is no register to be written.
#[must_use]
pub const fn reserved_bits(number: u32) -> u64 {
    const DESTINATION: u64 = 0xffff_ffff << 32;
    let offset = (number.wrapping_sub(X2APIC_FIRST) << 4 & 0xffff) as u16;
    let writable: u64 = match (number, offset) {
        (IA32_TSC_DEADLINE, _) => u64::MAX,
        (_, TPR | SELF_IPI) => 0xff,
        (_, EOI | ESR) => 0,
        (_, SPURIOUS) => 0x3ff,
        (_, ICR) => 0xc_cfff | DESTINATION,
        (_, LVT_TIMER) => 0x7_10ff,
        (_, LVT_THERMAL | LVT_PERFORMANCE) => 0x1_17ff,
        (_, LVT_LINT0 | LVT_LINT1) => 0x1_f7ff,
        (_, LVT_ERROR) => 0x1_10ff,
        (_, INITIAL_COUNT) => 0xffff_ffff,
        (_, DIVIDE) => 0xb,
        _ => u64::MAX,
    };
    !writable
}

/// Whether a register can be read.
pub(super) const fn is_readable(offset: u16, x2apic: bool) -> bool {
    match offset {
        ID | VERSION | TPR | PPR | LDR | SPURIOUS | ESR | ICR | INITIAL_COUNT | CURRENT_COUNT
        | DIVIDE => true,
        ISR..=IRR_LAST | LVT_TIMER..=LVT_ERROR => offset & 0xf == 0,
        ARBITRATION | DFR | ICR_HIGH => !x2apic,
        _ => false,
    }
}

/// Whether an xAPIC's page has no register there (table "Local APIC Register Address Map"). The entry for
/// corrected machine checks is one that this version, of six entries, lacks.
pub(super) const fn is_reserved(offset: u16) -> bool {
    matches!(
        offset,
        0x000..ID | 0x040..TPR | 0x290..ICR | 0x3a0..DIVIDE | SELF_IPI..
    )
}
