//! The uncompressed kernel, flattened to the bytes that must stand in physical memory before its first instruction.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// A kernel image, flat from its lowest physical address on.
#[derive(Debug)]
pub struct FlatKernel {
    /// Physical address of the first byte.
    pub base: u32,
    /// Physical address of the first instruction (64-bit boot protocol, Documentation/arch/x86/boot).
    pub entry: u32,
    /// The bytes, without the zeros at the end: RAM is zero at power-on, and the kernel clears its own .bss.
    pub bytes: Vec<u8>,
}

/// Nothing that calls itself a kernel for this lab is larger.
const MAX_SIZE: u64 = 128 << 20;

/// Reads the loadable segments of the ELF file `path`.
///
/// # Errors
/// `InvalidData`, saying what is wrong, unless the file is an x86-64 ELF executable whose segments fit below 2 GiB.
pub fn flatten(path: &Path) -> io::Result<FlatKernel> {
    let file = File::open(path)?;
    let mut header = [0; 64];
    file.read_exact_at(&mut header, 0)?;
    if header[..6] != *b"\x7fELF\x02\x01" || u16_at(&header, 18) != 62 {
        return Err(invalid("not a 64-bit x86 ELF file"));
    }
    let (table, entry_size, count) = (
        u64_at(&header, 32),
        u16_at(&header, 54),
        u16_at(&header, 56),
    );
    if entry_size != 56 {
        return Err(invalid("unknown size of program headers"));
    }
    let mut segments = Vec::new();
    for index in 0..u64::from(count) {
        let mut program = [0; 56];
        file.read_exact_at(&mut program, table.saturating_add(index * 56))?;
        let (kind, offset, physical, size) = (
            u32_at(&program, 0),
            u64_at(&program, 8),
            u64_at(&program, 24),
            u64_at(&program, 32),
        );
        if kind == 1 && size > 0 {
            segments.push((offset, physical, size));
        }
    }
    let base = segments
        .iter()
        .map(|&(_, physical, _)| physical)
        .min()
        .ok_or_else(|| invalid("no segment to load"))?;
    let end = segments
        .iter()
        .map(|&(_, physical, size)| physical.saturating_add(size))
        .max()
        .unwrap_or(base);
    let entry = u64_at(&header, 24);
    if end - base > MAX_SIZE || end > 1 << 31 || entry < base || entry >= end {
        return Err(invalid(
            "segments or entry point outside the low 2 GiB of physical memory",
        ));
    }
    let mut bytes = vec![0; (end - base) as usize];
    for (offset, physical, size) in segments {
        let start = (physical - base) as usize;
        file.read_exact_at(&mut bytes[start..start + size as usize], offset)?;
    }
    let used = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |last| last + 1);
    bytes.truncate(used);
    Ok(FlatKernel {
        base: base as u32,
        entry: entry as u32,
        bytes,
    })
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn elf(segments: &[(u64, u64, &[u8])], entry: u64) -> tempfile::NamedTempFile {
        let mut image = vec![0u8; 64 + 56 * segments.len()];
        image[..6].copy_from_slice(b"\x7fELF\x02\x01");
        image[18] = 62;
        image[24..32].copy_from_slice(&entry.to_le_bytes());
        image[32] = 64;
        image[54] = 56;
        image[56] = segments.len() as u8;
        for (index, (kind, physical, content)) in segments.iter().enumerate() {
            let (at, offset) = (64 + 56 * index, image.len() as u64);
            image[at] = *kind as u8;
            image[at + 8..at + 16].copy_from_slice(&offset.to_le_bytes());
            image[at + 24..at + 32].copy_from_slice(&physical.to_le_bytes());
            image[at + 32..at + 40].copy_from_slice(&(content.len() as u64).to_le_bytes());
            image.extend_from_slice(content);
        }
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        file
    }

    #[test]
    fn segments_stand_at_their_physical_addresses() {
        let file = elf(
            &[
                (1, 0x10_0010, b"data"),
                (1, 0x10_0000, b"code"),
                (4, 0x50_0000, b"note"),
            ],
            0x10_0002,
        );
        let kernel = flatten(file.path()).unwrap();
        assert_eq!((kernel.base, kernel.entry), (0x10_0000, 0x10_0002));
        assert_eq!(kernel.bytes, b"code\0\0\0\0\0\0\0\0\0\0\0\0data");
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        for file in [
            elf(&[], 0),
            elf(&[(1, 0x10_0000, b"code")], 0x20_0000),
            elf(
                &[(1, 0x10_0000, b"a"), (1, u64::MAX - 8, b"far away")],
                0x10_0000,
            ),
        ] {
            assert_eq!(
                flatten(file.path()).unwrap_err().kind(),
                io::ErrorKind::InvalidData
            );
        }
        assert!(flatten(Path::new("/proc/self/cmdline")).is_err());
    }
}
