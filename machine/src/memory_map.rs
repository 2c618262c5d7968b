//! RAM and holes of the machine as an image is told of them: the same list for multiboot's memory map
//! and for Linux' `e820` table (ACPI "System Address Map Interfaces").

/// Where conventional memory ends: the last KiB below 640 KiB belongs to the firmware's data area.
pub const LOW_END: u64 = 0x9_fc00;
/// Where RAM goes on above video memory and ROMs.
pub const HIGH_START: u64 = 0x10_0000;
/// Where the firmware's tables lie, if there are any.
pub const FIRMWARE: u64 = 0xf_0000;

/// What a range is, by its number in both formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum RangeKind {
    /// RAM to use.
    Usable = 1,
    /// Not to be touched.
    Reserved = 2,
}

/// A range of physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What it is.
    pub kind: RangeKind,
}

/// The map of a machine with `memory_size` bytes of RAM, in order of addresses.
#[must_use]
pub fn ranges(memory_size: u64) -> Vec<Range> {
    [
        (0, LOW_END, RangeKind::Usable),
        (LOW_END, 0xa_0000, RangeKind::Reserved),
        (FIRMWARE, HIGH_START, RangeKind::Reserved),
        (HIGH_START, memory_size, RangeKind::Usable),
    ]
    .into_iter()
    .filter_map(|(start, end, kind)| {
        let length = end.min(memory_size).checked_sub(start)?;
        (length > 0).then_some(Range {
            start,
            length,
            kind,
        })
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_end_where_ram_ends_and_do_not_overlap() {
        for size in [0x1000, 0x9_fc00, 0xf_8000, 0x10_0000, 16 << 20, 512 << 20] {
            let map = ranges(size);
            for pair in map.windows(2) {
                assert!(pair[0].start + pair[0].length <= pair[1].start);
            }
            let last = map[map.len() - 1];
            assert!(last.start + last.length <= size, "{size:#x}");
        }
        assert_eq!(ranges(16 << 20)[3].length, 15 << 20);
        assert_eq!(ranges(0x1000).len(), 1);
    }
}
