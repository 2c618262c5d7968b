//! What CPUID says of several processors: the local APIC's id, their number (SDM Vol. 3A "Hierarchical
//! Mapping of Shared Resources"). One package, one thread a core, APIC id and index are the same.

use nvmx_core::x86::cpuid::CpuidEntry;

/// CPUID of the processor with this APIC id among `count`. A machine with one stays as it is.
pub(crate) fn with_topology(mut cpuid: Vec<CpuidEntry>, id: u8, count: u8) -> Vec<CpuidEntry> {
    const HTT: u32 = 1 << 28;
    if count <= 1 {
        return cpuid;
    }
    let bits = (count - 1).ilog2() + 1;
    for entry in &mut cpuid {
        if entry.leaf == 1 {
            entry.ebx = entry.ebx & 0xffff | 1 << bits << 16 | u32::from(id) << 24;
            entry.edx |= HTT;
        }
    }
    // Level types: 1 SMT, 2 core, 0 the end.
    for (subleaf, shift, number, kind) in
        [(0, 0, 1, 1), (1, bits, u32::from(count), 2), (2, 0, 0, 0)]
    {
        cpuid.push(CpuidEntry {
            leaf: 0xb,
            subleaf,
            subleaf_significant: true,
            eax: shift,
            ebx: number,
            ecx: subleaf | kind << 8,
            edx: id.into(),
        });
    }
    cpuid.sort_by_key(|entry| (entry.leaf, entry.subleaf));
    cpuid
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::default_cpuid;
    use nvmx_core::x86::cpuid::lookup;

    #[test]
    fn one_processor_is_told_nothing_new() {
        assert_eq!(with_topology(default_cpuid(), 0, 1), default_cpuid());
    }

    #[test]
    fn ids_and_counts_are_where_software_looks() {
        for (count, bits) in [(2, 1), (3, 2), (4, 2), (5, 3), (8, 3)] {
            for id in 0..count {
                let cpuid = with_topology(default_cpuid(), id, count);
                let leaf1 = lookup(&cpuid, 1, 0);
                assert_eq!(leaf1[1] >> 24, u32::from(id));
                assert_eq!(leaf1[1] >> 16 & 0xff, 1 << bits);
                assert_ne!(leaf1[3] & 1 << 28, 0, "HTT");
                assert_eq!(lookup(&cpuid, 0xb, 0), [0, 1, 0x100, id.into()]);
                assert_eq!(
                    lookup(&cpuid, 0xb, 1),
                    [bits, count.into(), 0x201, id.into()]
                );
                assert_eq!(lookup(&cpuid, 0xb, 2)[1..3], [0, 2]);
            }
        }
    }
}
