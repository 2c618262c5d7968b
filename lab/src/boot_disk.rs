//! The disk that starts the kernel: boot sector, boot parameters, initramfs, kernel.
//!
//! Physical memory as the kernel finds it (64-bit boot protocol; "The Linux/x86 Boot Protocol" and "Zero Page" in the
//! kernel's Documentation/arch/x86):
//!
//! | from | what |
//! |---|---|
//! | 0x10000 | `boot_params`: memory map, addresses of the command line and the initramfs |
//! | 0x11000 | command line |
//! | 0x12000 | page tables: 4 GiB, identity-mapped in 2 MiB pages |
//! | 16 MiB | the kernel, where it was linked for |
//! | 128 MiB | the initramfs |

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::boot_code::{Handover, Piece, SECTOR, boot_sector};
use crate::vmlinux::FlatKernel;

const LOW: u32 = 0x1_0000;
const COMMAND_LINE: usize = 0x1000;
const PAGE_TABLES: usize = 0x2000;
const LOW_SIZE: usize = 0x8000;
const INITRAMFS: u32 = 128 << 20;

/// The longest command line that the kernel takes, with its final zero.
const COMMAND_LINE_MAX: usize = 2048;
/// Bochs wants whole cylinders of 16 heads and 63 sectors.
pub const CYLINDER: u64 = 16 * 63 * SECTOR as u64;

/// What Bochs' BIOS takes from the top of RAM for its ACPI tables.
const ACPI_TABLES: u64 = 64 << 10;

/// Writes a bootable disk image to `path`.
///
/// # Errors
/// `InvalidInput` if something does not fit in memory, else what the file system said.
pub fn write(
    path: &Path,
    kernel: &FlatKernel,
    initramfs: &[u8],
    command_line: &str,
    megs: u32,
) -> io::Result<()> {
    let ram = u64::from(megs) << 20;
    let kernel_end = u64::from(kernel.base) + kernel.bytes.len() as u64;
    if kernel_end > u64::from(INITRAMFS) || kernel.base < 0x10_0000 {
        return Err(invalid("the kernel does not fit between 1 and 128 MiB"));
    }
    if u64::from(INITRAMFS) + initramfs.len() as u64 + ACPI_TABLES > ram {
        return Err(invalid("the guest's RAM is too small for its initramfs"));
    }
    if command_line.len() >= COMMAND_LINE_MAX || command_line.contains('\0') {
        return Err(invalid("the kernel's command line is too long"));
    }
    let low = low_memory(ram, initramfs.len() as u32, command_line);
    let mut pieces = Vec::new();
    let mut next = 1;
    for (bytes, address) in [
        (low.as_slice(), LOW),
        (initramfs, INITRAMFS),
        (&kernel.bytes, kernel.base),
    ] {
        let count = bytes.len().div_ceil(SECTOR) as u32;
        pieces.push(Piece {
            sector: next,
            count,
            address,
        });
        next += count;
    }
    let handover = Handover::Kernel {
        page_table: LOW + PAGE_TABLES as u32,
        boot_params: LOW,
        entry: kernel.entry,
    };
    let sector = boot_sector(&pieces, handover).map_err(io::Error::other)?;

    write_disk(
        path,
        &sector,
        pieces
            .iter()
            .zip([low.as_slice(), initramfs, &kernel.bytes]),
    )
}

/// Writes a disk of whole cylinders: its boot sector, and each piece where it says.
pub(crate) fn write_disk<'a>(
    path: &Path,
    sector: &[u8; SECTOR],
    pieces: impl Iterator<Item = (&'a Piece, &'a [u8])>,
) -> io::Result<()> {
    let disk = File::create(path)?;
    disk.write_all_at(sector, 0)?;
    let mut end = 1;
    for (piece, bytes) in pieces {
        disk.write_all_at(bytes, u64::from(piece.sector) * SECTOR as u64)?;
        end = end.max(u64::from(piece.sector + piece.count));
    }
    disk.set_len((end * SECTOR as u64).next_multiple_of(CYLINDER))
}

fn low_memory(ram: u64, initramfs_size: u32, command_line: &str) -> Vec<u8> {
    let mut low = vec![0; LOW_SIZE];
    let mut put = |at: usize, bytes: &[u8]| low[at..at + bytes.len()].copy_from_slice(bytes);

    // The setup header, at its offsets in boot_params.
    put(0x1fe, &0xaa55u16.to_le_bytes()); // boot_flag
    put(0x202, b"HdrS"); // header
    put(0x206, &0x020fu16.to_le_bytes()); // version
    put(0x210, &[0xff]); // type_of_loader: undefined
    put(0x211, &[1]); // loadflags: LOADED_HIGH
    put(0x218, &INITRAMFS.to_le_bytes()); // ramdisk_image
    put(0x21c, &initramfs_size.to_le_bytes()); // ramdisk_size
    put(0x228, &(LOW + COMMAND_LINE as u32).to_le_bytes()); // cmd_line_ptr
    put(0x230, &0x20_0000u32.to_le_bytes()); // kernel_alignment
    put(0x238, &(COMMAND_LINE_MAX as u32 - 1).to_le_bytes()); // cmdline_size

    // Memory map as Bochs' BIOS reports it: (start, end, type), 1 usable, 2 reserved, 3 ACPI tables.
    let map: [(u64, u64, u32); 6] = [
        (0, 0x9_f000, 1),
        (0x9_f000, 0xa_0000, 2),
        (0xe_8000, 0x10_0000, 2),
        (0x10_0000, ram - ACPI_TABLES, 1),
        (ram - ACPI_TABLES, ram, 3),
        (0xfffc_0000, 0x1_0000_0000, 2),
    ];
    put(0x1e8, &[map.len() as u8]); // e820_entries
    for (slot, (start, end, kind)) in map.into_iter().enumerate() {
        let at = 0x2d0 + 20 * slot; // e820_table
        put(at, &start.to_le_bytes());
        put(at + 8, &(end - start).to_le_bytes());
        put(at + 16, &kind.to_le_bytes());
    }
    put(COMMAND_LINE, command_line.as_bytes());

    // SDM Vol. 3, "4-Level Paging": one PML4 entry, four PDPT entries, four page directories of 2 MiB pages.
    let table = |index: u32| u64::from(LOW) + PAGE_TABLES as u64 + u64::from(index) * 0x1000;
    put(PAGE_TABLES, &(table(1) | 3).to_le_bytes());
    for directory in 0..4 {
        put(
            PAGE_TABLES + 0x1000 + 8 * directory as usize,
            &(table(2 + directory) | 3).to_le_bytes(),
        );
    }
    for page in 0..2048u64 {
        put(
            PAGE_TABLES + 0x2000 + 8 * page as usize,
            &(page << 21 | 0x83).to_le_bytes(),
        );
    }
    low
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kernel(size: usize) -> FlatKernel {
        FlatKernel {
            base: 16 << 20,
            entry: 16 << 20,
            bytes: vec![7; size],
        }
    }

    #[test]
    fn a_disk_holds_its_pieces_in_whole_cylinders() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.img");
        write(&path, &kernel(1000), &[5; 600], "quiet", 256).unwrap();
        let disk = std::fs::read(&path).unwrap();
        assert_eq!(disk.len() as u64, CYLINDER);
        let low = &disk[SECTOR..SECTOR + LOW_SIZE];
        assert_eq!(&low[0x202..0x206], b"HdrS");
        assert_eq!(&low[COMMAND_LINE..COMMAND_LINE + 6], b"quiet\0");
        let initramfs = SECTOR + LOW_SIZE;
        assert_eq!(disk[initramfs..initramfs + 600], [5; 600]);
        assert_eq!(disk[initramfs + 1024..initramfs + 2024], [7; 1000]);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("boot.img");
        let long = "x".repeat(COMMAND_LINE_MAX);
        for (kernel, initramfs, line, megs) in [
            (kernel(113 << 20), 1, "", 512),
            (kernel(1), 65 << 20, "", 192),
            (kernel(1), 1, long.as_str(), 512),
        ] {
            let error = write(&path, &kernel, &vec![0; initramfs], line, megs).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
    }
}
