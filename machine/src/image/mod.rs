//! Guest images: Linux' bzImage, multiboot 1 and plain ELF, read as hostile bytes.
//!
//! What is recognised, in this order:
//! 1. a bzImage ("HdrS" at 0x202), see [`linux`];
//! 2. a multiboot header (magic 0x1BADB002, aligned to 4, in the first 8 KiB), with the a.out kludge
//!    (flag bit 16) or in an ELF32 or ELF64 file: 32-bit protected mode, see [`crate::start::multiboot`];
//! 3. an ELF32 executable without such a header: as if it had one;
//! 4. an ELF64 executable for x86-64 without such a header: 64-bit mode on identity page tables.
//!
//! The loader keeps the first page and the following low memory for itself:
//!
//! | L1-physical | what |
//! |---|---|
//! | 0x1000 | ELF64 and bzImage: PML4, then PDPT at 0x2000 and four page directories (identity, 4 GiB, 2-MiB pages) |
//! | 0x8000 | ELF64: stack, growing down from 0x9000; bzImage: GDT |
//! | 0x9000 | multiboot: information structure, memory map, module list, command lines |
//! | 0x10000 | bzImage: `boot_params`, then the command line |
//!
//! Multiboot modules go to the pages behind the last segment, Linux' initrd to the end of RAM.

mod elf;
pub mod linux;
mod multiboot;
mod reader;

use crate::start;
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::vcpu::Vm;
use nvmx_core::x86::CpuState;
use thiserror::Error;

/// First byte of the loader's page tables (plain ELF64).
pub const PAGE_TABLES: u64 = 0x1000;
/// Where the stack of a plain ELF64 starts; it grows down.
pub const STACK_TOP: u64 = 0x9000;
/// The multiboot information structure.
pub const MULTIBOOT_INFO: u64 = 0x9000;

/// Why bytes are not a loadable image: where in the file, which field, what is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("image offset {offset:#x}, {field}: {reason}")]
pub struct ImageError {
    /// Offset in the file of the field at fault.
    pub offset: u64,
    /// The field, by its name in the format's specification.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

impl ImageError {
    pub(crate) fn new(offset: u64, field: &'static str, reason: impl Into<String>) -> Self {
        Self {
            offset,
            field,
            reason: reason.into(),
        }
    }
}

/// A file to load beside the image.
#[derive(Debug, Clone, Copy)]
pub struct Module<'a> {
    /// Its command line: multiboot hands it on, and QEMU has the file's name as its first word.
    pub cmdline: &'a str,
    /// Its bytes.
    pub data: &'a [u8],
}

/// What the loader needs beside the image.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions<'a> {
    /// The image's name, which multiboot's command line starts with (as QEMU passes it); may be empty.
    pub name: &'a str,
    /// Command line.
    pub cmdline: &'a str,
    /// Multiboot modules; for Linux, the archives of the initrd.
    pub modules: &'a [Module<'a>],
    /// Bytes of RAM, from address zero.
    pub memory_size: u64,
}

impl Default for LoadOptions<'_> {
    /// No command line, no module, 16 MiB.
    fn default() -> Self {
        Self {
            name: "",
            cmdline: "",
            modules: &[],
            memory_size: 16 << 20,
        }
    }
}

/// Bytes to put into RAM and the state to start from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadedImage {
    /// L1-physical address and bytes; no two overlap and all are in RAM.
    pub chunks: Vec<(u64, Vec<u8>)>,
    /// `regs` and `sregs`; every other part stays as the backend starts it.
    pub state: CpuState,
}

/// A segment to load: `data` followed by zeros up to `memory_size` bytes.
#[derive(Debug, Clone)]
pub(crate) struct Segment<'a> {
    /// Where the file describes it.
    offset: u64,
    address: u64,
    data: &'a [u8],
    memory_size: u64,
}

/// Reads an image.
pub fn load(image: &[u8], options: LoadOptions<'_>) -> Result<LoadedImage, ImageError> {
    if linux::is_linux(image) {
        return linux::load(image, &options);
    }
    let header = multiboot::find(image)?;
    if header.is_some() || elf::is_elf(image) && !elf::is_64_bit(image) {
        let (segments, entry) = match &header {
            Some(header) if header.has_addresses() => header.segments(image)?,
            _ => elf::segments(image)?,
        };
        let mut chunks = place(&segments, options.memory_size)?;
        let entry = u32::try_from(entry)
            .map_err(|_| ImageError::new(0x18, "e_entry", "a 32-bit entry point is below 4 GiB"))?;
        let offset = header.map_or(0, |header| header.offset);
        multiboot::describe_machine(&mut chunks, offset, options)?;
        return Ok(LoadedImage {
            chunks,
            state: start::multiboot(entry, MULTIBOOT_INFO as u32),
        });
    }
    if !elf::is_elf(image) {
        return Err(ImageError::new(
            0,
            "magic",
            "neither a bzImage (HdrS at 0x202) nor a multiboot header (0x1badb002 within the first 8 KiB, aligned to 4) nor an ELF file (7f 45 4c 46)",
        ));
    }
    let (segments, entry) = elf::segments(image)?;
    let mut chunks = place(&segments, options.memory_size)?;
    add(
        &mut chunks,
        PAGE_TABLES,
        identity_page_tables(),
        options.memory_size,
    )
    .map_err(|reason| ImageError::new(0, "p_paddr", reason))?;
    Ok(LoadedImage {
        chunks,
        state: start::long_mode(entry, PAGE_TABLES, STACK_TOP),
    })
}

/// Puts a loaded image into a machine and sets the first vCPU to its start state.
pub fn boot(vm: &mut dyn Vm, image: &LoadedImage) -> nvmx_core::vcpu::Result<()> {
    for (address, bytes) in &image.chunks {
        vm.write_memory(L1Phys(*address), bytes)?;
    }
    // The tables that the processor keeps hidden (GDTR, IDTR, TR) start as the state says, the rest
    // as the backend reset it.
    vm.vcpu(0).set_state(&image.state)
}

/// Lays the segments out in RAM: inside it, above the loader's memory and apart from each other.
fn place(segments: &[Segment<'_>], memory_size: u64) -> Result<Vec<(u64, Vec<u8>)>, ImageError> {
    let mut chunks = Vec::new();
    // Segments cannot overlap, so that no image makes us hold more than its RAM.
    for segment in segments {
        let fail = |reason: String| ImageError::new(segment.offset, "p_paddr, p_memsz", reason);
        check_room(
            &chunks,
            segment.address,
            segment.memory_size.max(segment.data.len() as u64),
            memory_size,
        )
        .map_err(fail)?;
        let mut bytes = segment.data.to_vec();
        bytes.resize(segment.memory_size.max(bytes.len() as u64) as usize, 0);
        chunks.push((segment.address, bytes));
    }
    Ok(chunks)
}

fn check_room(
    chunks: &[(u64, Vec<u8>)],
    address: u64,
    length: u64,
    memory_size: u64,
) -> Result<(), String> {
    let end = address
        .checked_add(length)
        .filter(|end| *end <= memory_size)
        .ok_or_else(|| {
            format!(
                "{length:#x} bytes at {address:#x} do not fit into {memory_size:#x} bytes of RAM"
            )
        })?;
    let clash = chunks
        .iter()
        .find(|(start, bytes)| address < start + bytes.len() as u64 && *start < end);
    match clash {
        Some((start, bytes)) => Err(format!(
            "{address:#x} to {end:#x} overlaps {start:#x} to {:#x}",
            start + bytes.len() as u64
        )),
        None => Ok(()),
    }
}

/// Adds a chunk of the loader's own.
fn add(
    chunks: &mut Vec<(u64, Vec<u8>)>,
    address: u64,
    bytes: Vec<u8>,
    memory_size: u64,
) -> Result<(), String> {
    check_room(chunks, address, bytes.len() as u64, memory_size)?;
    chunks.push((address, bytes));
    Ok(())
}

/// The first page behind every chunk.
fn end_of(chunks: &[(u64, Vec<u8>)]) -> u64 {
    chunks
        .iter()
        .map(|(start, bytes)| start + bytes.len() as u64)
        .max()
        .unwrap_or(0)
        .next_multiple_of(PAGE_SIZE)
}

/// PML4, PDPT and four page directories that map the first 4 GiB onto themselves
/// (SDM Vol. 3A "4-Level Paging and 5-Level Paging").
fn identity_page_tables() -> Vec<u8> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 0x80;
    let mut tables = vec![0_u64; 6 * 512];
    tables[0] = (PAGE_TABLES + PAGE_SIZE) | PRESENT_WRITABLE;
    for directory in 0..4 {
        tables[512 + directory] =
            (PAGE_TABLES + (2 + directory as u64) * PAGE_SIZE) | PRESENT_WRITABLE;
    }
    for page in 0..4 * 512 {
        tables[1024 + page] = ((page as u64) << 21) | PRESENT_WRITABLE | LARGE;
    }
    tables
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

#[cfg(test)]
mod linux_tests;
#[cfg(test)]
mod tests;
