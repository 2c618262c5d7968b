//! CPUID features by name, and which the software model executes (SDM Vol. 2A "CPUID").

use super::soft::Dropped;
use crate::x86::cpuid::{self, CpuidEntry};

/// A bit of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Leaf.
    pub leaf: u32,
    /// Subleaf.
    pub subleaf: u32,
    /// 0 to 3: EAX, EBX, ECX, EDX.
    pub register: usize,
    /// Bit.
    pub bit: u32,
}

const fn feature(leaf: u32, subleaf: u32, register: usize, bit: u32) -> Feature {
    Feature {
        leaf,
        subleaf,
        register,
        bit,
    }
}

pub(super) const RDRAND: Feature = feature(1, 0, 2, 30);
pub(super) const SGX: Feature = feature(7, 0, 1, 2);
pub(super) const INVPCID: Feature = feature(7, 0, 1, 10);
pub(super) const MPX: Feature = feature(7, 0, 1, 14);
pub(super) const RDSEED: Feature = feature(7, 0, 1, 18);
pub(super) const WAITPKG: Feature = feature(7, 0, 2, 5);
pub(super) const KEY_LOCKER: Feature = feature(7, 0, 2, 23);
pub(super) const MSRLIST: Feature = feature(7, 1, 0, 27);
pub(super) const IBRS: Feature = feature(7, 0, 3, 26);
pub(super) const XSAVES: Feature = feature(0xd, 1, 0, 3);
pub(super) const RDTSCP: Feature = feature(0x8000_0001, 0, 3, 27);

/// Features that the software model executes, register by register. A register without a row is no set
/// of features and is passed on as it is.
const EXECUTED: &[(u32, u32, usize, u32)] = &[
    // SSE3, PCLMULQDQ, MONITOR, VMX, SSSE3, CX16, PDCM, PCID, SSE4.1, SSE4.2, x2APIC, MOVBE, POPCNT, TSC-deadline,
    // AES, XSAVE, RDRAND, hypervisor.
    (1, 0, 2, 0xc7fa_a22b),
    (1, 0, 3, 0x0f8b_fbff),
    // MWAIT's C0 and C1.
    (5, 0, 3, 0xff),
    // ARAT.
    (6, 0, 0, 1 << 2),
    (6, 0, 1, 0),
    (6, 0, 2, 0),
    (6, 0, 3, 0),
    // Its EAX counts subleaves, of which one is left.
    (7, 0, 0, 1),
    // FSGSBASE, TSC_ADJUST, BMI1, SMEP, BMI2, ERMS, INVPCID, RDSEED, ADX, SMAP.
    (7, 0, 1, 0x001c_078b),
    // UMIP, WAITPKG, LA57, RDPID.
    (7, 0, 2, 1 << 2 | 1 << 5 | 1 << 16 | 1 << 22),
    (7, 0, 3, 0),
    // RDMSRLIST, WRMSRLIST.
    (7, 1, 0, 1 << 27),
    (7, 1, 1, 0),
    (7, 1, 2, 0),
    (7, 1, 3, 0),
    (7, 2, 0, 0),
    (7, 2, 1, 0),
    (7, 2, 2, 0),
    (7, 2, 3, 0),
    // XSAVEOPT, XSAVEC, XGETBV with ECX = 1, XSAVES.
    (0xd, 1, 0, 0xf),
    // LAHF, LZCNT; SYSCALL, NX, 1-GiB pages, RDTSCP, long mode.
    (0x8000_0001, 0, 2, 0x21),
    (0x8000_0001, 0, 3, 0x2c10_0800),
    // Invariant TSC.
    (0x8000_0007, 0, 3, 0x100),
    (0x8000_0008, 0, 1, 0),
];

/// The bits of a register that the software model executes; `None` where the register is no set of
/// features.
pub(super) fn executed(leaf: u32, subleaf: u32, register: usize) -> Option<u32> {
    EXECUTED
        .iter()
        .find(|row| (row.0, row.1, row.2) == (leaf, subleaf, register))
        .map(|row| row.3)
}

/// Whether the software model executes a feature.
#[must_use]
pub fn is_executed(feature: Feature) -> bool {
    let Feature {
        leaf,
        subleaf,
        register,
        bit,
    } = feature;
    executed(leaf, subleaf, register).is_none_or(|bits| bits >> bit & 1 != 0)
}

const VECTOR: &str = "the engine has no VEX and EVEX encodings of vectors";
pub(super) const STATE: &str = "the engine has no state beyond the FXSAVE area";
const NOT_EXECUTED: &str = "the instruction is not executed";
const NOT_MODELLED: &str = "nothing of it is modelled";
const NO_COUNTERS: &str = "no traces, no stores of debug records";
const MITIGATION: &str = "no speculation to be mitigated";

/// Names, and why a feature is not executed.
const NAMES: &[(Feature, &str, &str)] = &[
    (feature(1, 0, 2, 2), "DTES64", NO_COUNTERS),
    (feature(1, 0, 2, 4), "DS-CPL", NO_COUNTERS),
    (feature(1, 0, 2, 6), "SMX", NOT_EXECUTED),
    (feature(1, 0, 2, 7), "EIST", NOT_MODELLED),
    (feature(1, 0, 2, 8), "TM2", NOT_MODELLED),
    (feature(1, 0, 2, 10), "CNXT-ID", NOT_MODELLED),
    (feature(1, 0, 2, 11), "SDBG", NOT_MODELLED),
    (feature(1, 0, 2, 12), "FMA", VECTOR),
    (feature(1, 0, 2, 14), "xTPR", NOT_MODELLED),
    (feature(1, 0, 2, 18), "DCA", NOT_MODELLED),
    (feature(1, 0, 2, 27), "OSXSAVE", "it follows CR4"),
    (feature(1, 0, 2, 28), "AVX", VECTOR),
    (feature(1, 0, 2, 29), "F16C", VECTOR),
    (feature(1, 0, 3, 18), "PSN", NOT_MODELLED),
    (feature(1, 0, 3, 21), "DS", NO_COUNTERS),
    (feature(1, 0, 3, 22), "ACPI", NOT_MODELLED),
    (
        feature(1, 0, 3, 28),
        "HTT",
        "one logical processor a package",
    ),
    (feature(1, 0, 3, 29), "TM", NOT_MODELLED),
    (feature(1, 0, 3, 31), "PBE", NO_COUNTERS),
    (SGX, "SGX", NOT_MODELLED),
    (feature(7, 0, 1, 4), "HLE", NOT_EXECUTED),
    (feature(7, 0, 1, 5), "AVX2", VECTOR),
    (feature(7, 0, 1, 6), "FDP_EXCPTN_ONLY", NOT_MODELLED),
    (feature(7, 0, 1, 11), "RTM", NOT_EXECUTED),
    (feature(7, 0, 1, 12), "RDT-M", NO_COUNTERS),
    (
        feature(7, 0, 1, 13),
        "deprecated FPU CS and DS",
        NOT_MODELLED,
    ),
    (MPX, "MPX", STATE),
    (feature(7, 0, 1, 15), "RDT-A", NO_COUNTERS),
    (feature(7, 0, 1, 16), "AVX512F", VECTOR),
    (feature(7, 0, 1, 17), "AVX512DQ", VECTOR),
    (feature(7, 0, 1, 21), "AVX512_IFMA", VECTOR),
    (feature(7, 0, 1, 23), "CLFLUSHOPT", NOT_EXECUTED),
    (feature(7, 0, 1, 24), "CLWB", NOT_EXECUTED),
    (feature(7, 0, 1, 25), "Intel PT", NO_COUNTERS),
    (feature(7, 0, 1, 26), "AVX512PF", VECTOR),
    (feature(7, 0, 1, 27), "AVX512ER", VECTOR),
    (feature(7, 0, 1, 28), "AVX512CD", VECTOR),
    (feature(7, 0, 1, 29), "SHA", NOT_EXECUTED),
    (feature(7, 0, 1, 30), "AVX512BW", VECTOR),
    (feature(7, 0, 1, 31), "AVX512VL", VECTOR),
    (feature(7, 0, 2, 1), "AVX512_VBMI", VECTOR),
    (feature(7, 0, 2, 3), "PKU", STATE),
    (feature(7, 0, 2, 4), "OSPKE", STATE),
    (feature(7, 0, 2, 6), "AVX512_VBMI2", VECTOR),
    (feature(7, 0, 2, 7), "CET_SS", STATE),
    (feature(7, 0, 2, 8), "GFNI", NOT_EXECUTED),
    (feature(7, 0, 2, 9), "VAES", VECTOR),
    (feature(7, 0, 2, 10), "VPCLMULQDQ", VECTOR),
    (feature(7, 0, 2, 11), "AVX512_VNNI", VECTOR),
    (feature(7, 0, 2, 12), "AVX512_BITALG", VECTOR),
    (feature(7, 0, 2, 13), "TME", NOT_MODELLED),
    (feature(7, 0, 2, 14), "AVX512_VPOPCNTDQ", VECTOR),
    (KEY_LOCKER, "Key Locker", STATE),
    (feature(7, 0, 2, 24), "bus-lock detection", NOT_MODELLED),
    (feature(7, 0, 2, 25), "CLDEMOTE", NOT_EXECUTED),
    (feature(7, 0, 2, 27), "MOVDIRI", NOT_EXECUTED),
    (feature(7, 0, 2, 28), "MOVDIR64B", NOT_EXECUTED),
    (feature(7, 0, 2, 29), "ENQCMD", NOT_EXECUTED),
    (feature(7, 0, 2, 30), "SGX_LC", NOT_MODELLED),
    (feature(7, 0, 2, 31), "PKS", STATE),
    (
        feature(7, 0, 3, 4),
        "fast short REP MOV",
        "nothing is faster for it",
    ),
    (feature(7, 0, 3, 5), "UINTR", STATE),
    (feature(7, 0, 3, 8), "AVX512_VP2INTERSECT", VECTOR),
    (feature(7, 0, 3, 10), "MD_CLEAR", MITIGATION),
    (feature(7, 0, 3, 14), "SERIALIZE", NOT_EXECUTED),
    (feature(7, 0, 3, 16), "TSXLDTRK", NOT_EXECUTED),
    (feature(7, 0, 3, 18), "PCONFIG", NOT_EXECUTED),
    (feature(7, 0, 3, 19), "architectural LBRs", NO_COUNTERS),
    (feature(7, 0, 3, 20), "CET_IBT", STATE),
    (feature(7, 0, 3, 22), "AMX_BF16", STATE),
    (feature(7, 0, 3, 23), "AVX512_FP16", VECTOR),
    (feature(7, 0, 3, 24), "AMX_TILE", STATE),
    (feature(7, 0, 3, 25), "AMX_INT8", STATE),
    (feature(7, 0, 3, 26), "IBRS and IBPB", MITIGATION),
    (feature(7, 0, 3, 27), "STIBP", MITIGATION),
    (feature(7, 0, 3, 28), "L1D_FLUSH", MITIGATION),
    (feature(7, 0, 3, 29), "IA32_ARCH_CAPABILITIES", MITIGATION),
    (feature(7, 0, 3, 30), "IA32_CORE_CAPABILITIES", NOT_MODELLED),
    (feature(7, 0, 3, 31), "SSBD", MITIGATION),
    (feature(0x8000_0001, 0, 2, 8), "PREFETCHW", NOT_EXECUTED),
];

impl Feature {
    /// Its name, if the table knows it.
    #[must_use]
    pub fn name(self) -> Option<&'static str> {
        NAMES.iter().find(|row| row.0 == self).map(|row| row.1)
    }

    /// Whether CPUID has it.
    pub(super) fn is_in(self, cpuid: &[CpuidEntry]) -> bool {
        cpuid::lookup(cpuid, self.leaf, self.subleaf)[self.register] >> self.bit & 1 != 0
    }

    pub(super) fn dropped(self) -> Dropped {
        let register = ["EAX", "EBX", "ECX", "EDX"][self.register & 3];
        let place = format!(
            "CPUID {:#x}.{}:{register}[{}]",
            self.leaf, self.subleaf, self.bit
        );
        match NAMES.iter().find(|row| row.0 == self) {
            Some((_, name, reason)) => Dropped {
                what: format!("{place} {name}"),
                reason,
            },
            None => Dropped {
                what: place,
                reason: NOT_MODELLED,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_executed_needs_no_excuse() {
        for (feature, name, reason) in NAMES {
            assert!(!is_executed(*feature), "{name}: {reason}");
        }
    }
}
