//! How the tables of profiles are written: a leaf or an MSR a row.

use crate::vmx::capability::MSR_COUNT;
use crate::x86::cpuid::CpuidEntry;
use crate::x86::msr::IA32_VMX_BASIC;

/// A VMX capability MSR and where its value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsrRow {
    /// MSR 0x480 to 0x493.
    pub number: u32,
    /// Its value.
    pub value: u64,
    /// Where the value comes from, or how it was derived.
    pub source: &'static str,
}

/// A leaf that answers for every subleaf, or with `subleaf` for that one alone.
pub(super) const fn entry(leaf: u32, subleaf: Option<u32>, registers: [u32; 4]) -> CpuidEntry {
    let [eax, ebx, ecx, edx] = registers;
    CpuidEntry {
        leaf,
        subleaf: match subleaf {
            Some(subleaf) => subleaf,
            None => 0,
        },
        subleaf_significant: subleaf.is_some(),
        eax,
        ebx,
        ecx,
        edx,
    }
}

/// The values of rows by `number - 0x480`; zero where there is no row.
pub(super) const fn by_number(rows: &[MsrRow]) -> [u64; MSR_COUNT] {
    let mut msrs = [0; MSR_COUNT];
    let mut at = 0;
    while at < rows.len() {
        msrs[(rows[at].number - IA32_VMX_BASIC) as usize] = rows[at].value;
        at += 1;
    }
    msrs
}

/// CPUID as rows of leaf, subleaf where it matters, EAX, EBX, ECX, EDX. Leaves of zeroes are left out.
macro_rules! cpuid {
    ($(#[$doc:meta])* $name:ident: $($leaf:literal $(/ $subleaf:literal)? $eax:literal $ebx:literal $ecx:literal $edx:literal;)*) => {
        $(#[$doc])*
        pub(super) static $name: &[$crate::x86::cpuid::CpuidEntry] = &[$(
            $crate::profiles::table::entry(
                $leaf,
                $crate::profiles::table::cpuid!(@subleaf $($subleaf)?),
                [$eax, $ebx, $ecx, $edx],
            ),
        )*];
    };
    (@subleaf) => { None };
    (@subleaf $subleaf:literal) => { Some($subleaf) };
}
pub(super) use cpuid;

/// VMX capability MSRs as rows of number, value, source. IA32_VMX_CR4_FIXED1 and IA32_VMX_VMCS_ENUM
/// may be left out: they follow from the rest.
macro_rules! vmx {
    ($(#[$doc:meta])* $name:ident: $($number:literal $value:literal $source:expr;)*) => {
        $(#[$doc])*
        pub(super) static $name: &[$crate::profiles::table::MsrRow] = &[$(
            $crate::profiles::table::MsrRow { number: $number, value: $value, source: $source },
        )*];
    };
}
pub(super) use vmx;
