//! MSRs that hold no state here: they read as a fixed value, and a write is #GP or ignored, as KVM's `kvm_get_msr_common` and `kvm_set_msr_common` have
//! it for a guest.

use super::{GP, MsrFault};
use crate::x86::msr::IA32_PERF_CAPABILITIES;

/// What a write of a constant MSR does.
#[derive(Clone, Copy)]
enum Write {
    /// #GP.
    Fault,
    /// Nothing.
    Ignored,
}

/// First and last number, value, write. In order of the numbers.
const CONSTANTS: &[(u32, u32, u64, Write)] = &[
    // P5_MC_ADDR, P5_MC_TYPE.
    (0x0, 0x1, 0, Write::Fault),
    // IA32_PLATFORM_ID, EBL_CR_POWERON.
    (0x17, 0x17, 0, Write::Fault),
    (0x2a, 0x2a, 0, Write::Fault),
    // Performance counters of the P6 family, where CPUID tells of none.
    (0xc1, 0xc2, 0, Write::Ignored),
    // FSB_FREQ.
    (0xcd, 0xcd, 3, Write::Fault),
    (0x11e, 0x11e, 0xbe70_2111, Write::Ignored),
    // P6 event selects.
    (0x186, 0x187, 0, Write::Ignored),
    // IA32_PERF_STATUS, IA32_PERF_CTL.
    (0x198, 0x198, 1000 | 4 << 40, Write::Fault),
    (0x199, 0x199, 0, Write::Fault),
    // Last branch and last interrupt.
    (0x1db, 0x1de, 0, Write::Fault),
    (
        IA32_PERF_CAPABILITIES,
        IA32_PERF_CAPABILITIES,
        0,
        Write::Fault,
    ),
];

pub(super) fn read(number: u32) -> Option<u64> {
    CONSTANTS
        .iter()
        .find(|(first, last, ..)| (*first..=*last).contains(&number))
        .map(|(_, _, value, _)| *value)
}

pub(super) fn write(number: u32) -> Result<(), MsrFault> {
    let (.., effect) = CONSTANTS
        .iter()
        .find(|(first, last, ..)| (*first..=*last).contains(&number))
        .ok_or(GP)?;
    match effect {
        Write::Fault => Err(GP),
        Write::Ignored => Ok(()),
    }
}
