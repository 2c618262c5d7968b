//! CPUID leaves as a table (SDM Vol. 2A "CPUID").

use serde::{Deserialize, Serialize};

/// One leaf (and subleaf) of CPUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct CpuidEntry {
    pub leaf: u32,
    pub subleaf: u32,
    /// Whether `subleaf` must match ECX; else the leaf answers for every ECX.
    pub subleaf_significant: bool,
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// The entry that answers `leaf`, `subleaf`.
#[must_use]
pub fn find(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> Option<&CpuidEntry> {
    entries
        .iter()
        .find(|e| e.leaf == leaf && (!e.subleaf_significant || e.subleaf == subleaf))
}

/// What `CPUID` returns, as `[eax, ebx, ecx, edx]`: an unknown basic leaf reads zero.
#[must_use]
pub fn lookup(entries: &[CpuidEntry], leaf: u32, subleaf: u32) -> [u32; 4] {
    find(entries, leaf, subleaf).map_or([0; 4], |e| [e.eax, e.ebx, e.ecx, e.edx])
}

/// Physical-address width in bits: CPUID.80000008H:EAX\[7:0\], 36 if absent.
#[must_use]
pub fn physical_address_width(entries: &[CpuidEntry]) -> u8 {
    match lookup(entries, 0x8000_0008, 0)[0] & 0xff {
        0 => 36,
        // 52 is what the paging structures can hold.
        width => width.min(52) as u8,
    }
}
