//! Multiboot 1: the header in the image and the information structure for it
//! (Multiboot Specification 0.6.96, "OS image format" and "Boot information format").

use super::reader::{bytes, uint};
use super::{ImageError, LoadOptions, MULTIBOOT_INFO, Segment, add, end_of};
use crate::memory_map::{self, HIGH_START, LOW_END, RangeKind};
use nvmx_core::addr::PAGE_SIZE;

const MAGIC: u64 = 0x1bad_b002;
/// The header lies wholly within this many bytes.
const SEARCH: usize = 8192;
/// Flags 0 to 15 that this loader honours: page alignment of modules and memory information.
const KNOWN_REQUIREMENTS: u64 = 0b11;
const HAS_ADDRESSES: u64 = 1 << 16;

/// A multiboot header.
pub(super) struct Header {
    /// Offset in the file.
    pub(super) offset: u64,
    flags: u64,
}

/// The header, if there is one; an error if there is one that cannot be honoured.
pub(super) fn find(image: &[u8]) -> Result<Option<Header>, ImageError> {
    for offset in (0..image.len().min(SEARCH).saturating_sub(11)).step_by(4) {
        let offset = offset as u64;
        if uint(image, offset, 4, "magic")? != MAGIC {
            continue;
        }
        let flags = uint(image, offset + 4, 4, "flags")?;
        let checksum = uint(image, offset + 8, 4, "checksum")?;
        // The magic alone can be any operand of an instruction: only the sum makes it a header.
        if (MAGIC + flags + checksum) & 0xffff_ffff != 0 {
            continue;
        }
        let unknown = flags & 0xffff & !KNOWN_REQUIREMENTS;
        if unknown != 0 {
            return Err(ImageError::new(
                offset + 4,
                "flags",
                format!(
                    "requires {unknown:#x}, which this loader does not offer (video mode is bit 2)"
                ),
            ));
        }
        return Ok(Some(Header { offset, flags }));
    }
    Ok(None)
}

impl Header {
    /// Whether the header itself says what to load where (the a.out kludge).
    pub(super) fn has_addresses(&self) -> bool {
        self.flags & HAS_ADDRESSES != 0
    }

    /// The one segment that the address fields describe, and the entry point.
    pub(super) fn segments<'a>(
        &self,
        image: &'a [u8],
    ) -> Result<(Vec<Segment<'a>>, u64), ImageError> {
        let at = |index: u64, name| uint(image, self.offset + 12 + 4 * index, 4, name);
        let header = at(0, "header_addr")?;
        let load = at(1, "load_addr")?;
        let load_end = at(2, "load_end_addr")?;
        let bss_end = at(3, "bss_end_addr")?;
        let entry = at(4, "entry_addr")?;
        let before = header.checked_sub(load).ok_or_else(|| {
            ImageError::new(
                self.offset + 16,
                "load_addr",
                format!("{load:#x} is above header_addr, {header:#x}"),
            )
        })?;
        let start = self.offset.checked_sub(before).ok_or_else(|| {
            ImageError::new(
                self.offset + 16,
                "load_addr",
                format!(
                    "lies {before:#x} before the header, which is at file offset {:#x}",
                    self.offset
                ),
            )
        })?;
        let length = if load_end == 0 {
            image.len() as u64 - start
        } else {
            load_end.checked_sub(load).ok_or_else(|| {
                ImageError::new(
                    self.offset + 20,
                    "load_end_addr",
                    format!("{load_end:#x} is below load_addr, {load:#x}"),
                )
            })?
        };
        let data = bytes(image, start, length, "load_addr, load_end_addr")?;
        let memory_size = if bss_end == 0 {
            length
        } else {
            bss_end
                .checked_sub(load)
                .filter(|size| *size >= length)
                .ok_or_else(|| {
                    ImageError::new(
                        self.offset + 24,
                        "bss_end_addr",
                        format!(
                            "{bss_end:#x} is below the end of the data, {:#x}",
                            load + length
                        ),
                    )
                })?
        };
        let segment = Segment {
            offset: self.offset + 16,
            address: load,
            data,
            memory_size,
        };
        Ok((vec![segment], entry))
    }
}

/// Adds the information structure, memory map, module list, strings and the modules themselves.
pub(super) fn describe_machine(
    chunks: &mut Vec<(u64, Vec<u8>)>,
    header_offset: u64,
    options: LoadOptions<'_>,
) -> Result<(), ImageError> {
    const INFO: u64 = 120;
    const MAP_ENTRY: u64 = 24;
    const MODULE_ENTRY: u64 = 16;

    let too_big = |reason: String| ImageError::new(header_offset, "multiboot header", reason);
    let ranges: Vec<_> = memory_map::ranges(options.memory_size)
        .into_iter()
        .filter(|range| range.kind == RangeKind::Usable)
        .collect();
    let map = MULTIBOOT_INFO + INFO;
    let map_length = MAP_ENTRY * ranges.len() as u64;
    let modules = map + map_length;
    let cmdline = modules + MODULE_ENTRY * options.modules.len() as u64;
    // The image's name and a space come first, as QEMU has it.
    let mut strings = match options.name {
        "" => options.cmdline.as_bytes().to_vec(),
        name => format!("{name} {}", options.cmdline).into_bytes(),
    };
    strings.push(0);
    let mut module_entries = Vec::new();
    let mut at = end_of(chunks).max(HIGH_START);
    let mut module_chunks = Vec::new();
    for module in options.modules {
        let end = at + module.data.len() as u64;
        let string = cmdline + strings.len() as u64;
        strings.extend(module.cmdline.as_bytes());
        strings.push(0);
        for word in [at, end, string, 0] {
            let word =
                u32::try_from(word).map_err(|_| too_big("a module ends above 4 GiB".into()))?;
            module_entries.extend(word.to_le_bytes());
        }
        module_chunks.push((at, module.data));
        at = end.next_multiple_of(PAGE_SIZE);
    }
    let end = cmdline + strings.len() as u64;
    if end > LOW_END || options.memory_size < LOW_END {
        return Err(too_big(format!(
            "the information structure ends at {end:#x}, but must end below {LOW_END:#x} and in RAM: shorten the command line or give more memory"
        )));
    }
    let upper = options.memory_size.saturating_sub(HIGH_START);
    let mut info = [0_u32; (INFO / 4) as usize];
    // Memory sizes, command line, memory map; modules if there are any.
    info[0] = 1 << 0 | 1 << 2 | 1 << 6;
    info[1] = (LOW_END / 1024) as u32;
    info[2] = u32::try_from(upper / 1024).unwrap_or(u32::MAX);
    info[4] = cmdline as u32;
    info[11] = map_length as u32;
    info[12] = map as u32;
    if !options.modules.is_empty() {
        info[0] |= 1 << 3;
        info[5] = options.modules.len() as u32;
        info[6] = modules as u32;
    }

    let mut bytes: Vec<u8> = info.iter().flat_map(|word| word.to_le_bytes()).collect();
    for range in &ranges {
        // `size` does not count itself.
        bytes.extend(20_u32.to_le_bytes());
        bytes.extend(range.start.to_le_bytes());
        bytes.extend(range.length.to_le_bytes());
        bytes.extend((range.kind as u32).to_le_bytes());
    }
    bytes.extend(module_entries);
    bytes.extend(strings);
    add(chunks, MULTIBOOT_INFO, bytes, options.memory_size).map_err(too_big)?;
    for (start, data) in module_chunks {
        add(chunks, start, data.to_vec(), options.memory_size).map_err(too_big)?;
    }
    Ok(())
}
