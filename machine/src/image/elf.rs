//! ELF32 and ELF64 executables (System V ABI "Object Files"): their PT_LOAD segments by physical
//! address.

use super::reader::{bytes, uint};
use super::{ImageError, Segment};

const PT_LOAD: u64 = 1;
const EM_386: u64 = 3;
const EM_X86_64: u64 = 62;

/// Where the fields stand in each class: (offset, size).
struct Layout {
    entry: (u64, u64),
    phoff: (u64, u64),
    phentsize: u64,
    phnum: u64,
    program_header: u64,
    p_offset: (u64, u64),
    p_vaddr: (u64, u64),
    p_paddr: (u64, u64),
    p_filesz: (u64, u64),
    p_memsz: (u64, u64),
}

const ELF32: Layout = Layout {
    entry: (0x18, 4),
    phoff: (0x1c, 4),
    phentsize: 0x2a,
    phnum: 0x2c,
    program_header: 32,
    p_offset: (4, 4),
    p_vaddr: (8, 4),
    p_paddr: (12, 4),
    p_filesz: (16, 4),
    p_memsz: (20, 4),
};

const ELF64: Layout = Layout {
    entry: (0x18, 8),
    phoff: (0x20, 8),
    phentsize: 0x36,
    phnum: 0x38,
    program_header: 56,
    p_offset: (8, 8),
    p_vaddr: (16, 8),
    p_paddr: (24, 8),
    p_filesz: (32, 8),
    p_memsz: (40, 8),
};

/// Whether the file starts like an ELF file.
pub(super) fn is_elf(image: &[u8]) -> bool {
    image.starts_with(b"\x7fELF")
}

/// Whether EI_CLASS says 64-bit.
pub(super) fn is_64_bit(image: &[u8]) -> bool {
    image.get(4) == Some(&2)
}

/// The PT_LOAD segments and the physical entry point.
pub(super) fn segments(image: &[u8]) -> Result<(Vec<Segment<'_>>, u64), ImageError> {
    if !is_elf(image) {
        return Err(ImageError::new(
            0,
            "e_ident",
            "not an ELF file, and the multiboot header gives no addresses (flag bit 16 is clear)",
        ));
    }
    let layout = match bytes(image, 4, 2, "EI_CLASS, EI_DATA")? {
        [1, 1] => &ELF32,
        [2, 1] => &ELF64,
        other => {
            return Err(ImageError::new(
                4,
                "EI_CLASS, EI_DATA",
                format!("{other:x?}: only little-endian ELF32 (1, 1) and ELF64 (2, 1) are loaded"),
            ));
        }
    };
    let kind = uint(image, 0x10, 2, "e_type")?;
    if kind != 2 {
        return Err(ImageError::new(
            0x10,
            "e_type",
            format!("{kind}: only executables (ET_EXEC, 2) are loaded"),
        ));
    }
    let machine = uint(image, 0x12, 2, "e_machine")?;
    if machine != EM_386 && machine != EM_X86_64 {
        return Err(ImageError::new(
            0x12,
            "e_machine",
            format!("{machine}: not an x86 executable (3 or 62)"),
        ));
    }
    let virtual_entry = uint(image, layout.entry.0, layout.entry.1, "e_entry")?;
    let table = uint(image, layout.phoff.0, layout.phoff.1, "e_phoff")?;
    let size = uint(image, layout.phentsize, 2, "e_phentsize")?;
    let count = uint(image, layout.phnum, 2, "e_phnum")?;
    if size < layout.program_header {
        return Err(ImageError::new(
            layout.phentsize,
            "e_phentsize",
            format!(
                "{size}: a program header has {} bytes",
                layout.program_header
            ),
        ));
    }
    let mut found = Vec::new();
    let mut entry = virtual_entry;
    for index in 0..count {
        let header = table.checked_add(index * size).ok_or_else(|| {
            ImageError::new(layout.phoff.0, "e_phoff", "the table ends behind 2^64")
        })?;
        // Once the whole header is known to be there, sums of its offsets cannot overflow.
        bytes(image, header, layout.program_header, "program header")?;
        let field = |(at, size): (u64, u64), name| uint(image, header + at, size, name);
        if field((0, 4), "p_type")? != PT_LOAD {
            continue;
        }
        let file_size = field(layout.p_filesz, "p_filesz")?;
        let memory_size = field(layout.p_memsz, "p_memsz")?;
        if memory_size == 0 && file_size == 0 {
            continue;
        }
        if memory_size < file_size {
            return Err(ImageError::new(
                header + layout.p_memsz.0,
                "p_memsz",
                format!("{memory_size:#x} is less than p_filesz, {file_size:#x}"),
            ));
        }
        let address = field(layout.p_paddr, "p_paddr")?;
        let virtual_address = field(layout.p_vaddr, "p_vaddr")?;
        if let Some(inside) = virtual_entry.checked_sub(virtual_address)
            && inside < memory_size
        {
            entry = address.wrapping_add(inside);
        }
        found.push(Segment {
            offset: header,
            address,
            data: bytes(
                image,
                field(layout.p_offset, "p_offset")?,
                file_size,
                "p_offset, p_filesz",
            )?,
            memory_size,
        });
    }
    if found.is_empty() {
        return Err(ImageError::new(
            layout.phnum,
            "e_phnum",
            "no PT_LOAD segment: nothing to load",
        ));
    }
    Ok((found, entry))
}
