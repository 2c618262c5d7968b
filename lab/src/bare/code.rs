//! From the boot sector to a loaded image: the sector loads this second stage, which loads the image's memory and
//! puts the processor into the state that the image starts in.
//!
//! Where it lies, nothing of an image's may lie: in the page that `nvmx_machine`'s loader leaves free below the sector.

use std::io;
use std::path::Path;

use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_core::x86::{AccessRights, CpuState, Gpr, Regs, Segment, Sregs};
use nvmx_machine::LoadedImage;

use crate::boot_code::{self, Handover, Piece, SECTOR, boot_sector, jump_to_next};
use crate::boot_disk::write_disk;

/// Where the second stage lies.
const ORIGIN: u64 = 0x7000;
/// Behind it: a sector's worth of stack for the boot sector, then that one. Whole sectors are loaded.
const END: u64 = 0x7a00;
/// The end of what has to stay free.
const FREE_END: u64 = 0x7e00;
/// Images whose parts are this close are one piece of the disk.
const GAP: u64 = 0x800;

/// Writes a disk that boots the image. The error's text says what does not fit.
pub(super) fn write(path: &Path, image: &LoadedImage) -> io::Result<()> {
    let runs = runs(image)?;
    let sectors = ((END - ORIGIN) as usize).div_ceil(SECTOR) as u32;
    let first = Piece {
        sector: 1,
        count: sectors,
        address: ORIGIN as u32,
    };
    let mut next = 1 + sectors;
    let pieces: Vec<Piece> = runs
        .iter()
        .map(|(address, bytes)| {
            let piece = Piece {
                sector: next,
                count: bytes.len().div_ceil(SECTOR) as u32,
                address: *address as u32,
            };
            next += piece.count;
            piece
        })
        .collect();
    let code = second_stage(&pieces, &image.state).map_err(io::Error::other)?;
    if code.len() as u64 > END - ORIGIN {
        return Err(invalid(format!(
            "an image of {} scattered parts has no room in the loader's list",
            pieces.len()
        )));
    }
    let sector = boot_sector(&[first], Handover::Code(ORIGIN as u32)).map_err(io::Error::other)?;
    let contents = runs.iter().map(|(_, bytes)| bytes.as_slice());
    write_disk(
        path,
        &sector,
        std::iter::once((&first, code.as_slice())).chain(pieces.iter().zip(contents)),
    )
}

/// The image's memory as runs of bytes in ascending order, small gaps filled: a piece ends in whole sectors and would
/// cover what follows closely.
fn runs(image: &LoadedImage) -> io::Result<Vec<(u64, Vec<u8>)>> {
    let mut chunks: Vec<&(u64, Vec<u8>)> = image.chunks.iter().collect();
    chunks.sort_by_key(|(address, _)| *address);
    let mut runs: Vec<(u64, Vec<u8>)> = Vec::new();
    for (address, bytes) in chunks {
        if bytes.is_empty() {
            continue;
        }
        let end = address + bytes.len() as u64;
        if *address < FREE_END && end > ORIGIN || end > u64::from(u32::MAX) {
            return Err(invalid(format!(
                "the image has {:#x} bytes at {address:#x}, where the loader for Bochs is or cannot reach",
                bytes.len()
            )));
        }
        match runs.last_mut() {
            Some((start, run)) if *address < *start + run.len() as u64 + GAP => {
                run.resize((address - *start) as usize, 0);
                run.extend(bytes);
            }
            _ => runs.push((*address, bytes.clone())),
        }
    }
    Ok(runs)
}

/// The code with its list and its descriptor table behind it.
fn second_stage(pieces: &[Piece], state: &CpuState) -> Result<Vec<u8>, IcedError> {
    let regs = state.regs.unwrap_or_default();
    let sregs = state.sregs.unwrap_or_default();
    // Both passes are of one length: every address in it is below 64 KiB and is written as 32 bits.
    let length = code(ORIGIN + 0x400, &regs, &sregs)?.len() as u64;
    let mut bytes = code(ORIGIN + length, &regs, &sregs)?;
    let (descriptors, table) = descriptor_table(&sregs, ORIGIN + length);
    bytes.extend(descriptors);
    bytes.extend(table);
    bytes.extend(boot_code::list(pieces));
    Ok(bytes)
}

/// GDTR and IDTR as the image finds them, GDTR as the code here needs it, then the table: the code and data segments
/// of the state at their selectors. Pointers have room for the ten bytes of 64-bit mode.
fn descriptor_table(sregs: &Sregs, at: u64) -> (Vec<u8>, Vec<u8>) {
    let mut table = vec![0_u8; 8 * SLOTS];
    for segment in [&sregs.ds, &sregs.cs] {
        let slot = usize::from(segment.selector & !7);
        if let Some(place) = table.get_mut(slot..slot + 8).filter(|_| slot != 0) {
            place.copy_from_slice(&descriptor(segment).to_le_bytes());
        }
    }
    let mut pointers = Vec::new();
    for (limit, base) in [
        (sregs.gdtr.limit, sregs.gdtr.base),
        (sregs.idtr.limit, sregs.idtr.base),
        ((8 * SLOTS - 1) as u16, at + POINTERS),
    ] {
        pointers.extend(limit.to_le_bytes());
        pointers.extend(base.to_le_bytes());
        pointers.extend([0; 6]);
    }
    (pointers, table)
}

const POINTERS: u64 = 48;
const SLOTS: usize = 4;

/// A flat segment as a descriptor (SDM Vol. 3A "Segment Descriptors").
fn descriptor(segment: &Segment) -> u64 {
    const FLAT: u64 = 0x000f_0000_0000_ffff;
    let rights = u64::from(segment.ar.bits());
    FLAT | (rights & 0xff) << 40 | (rights >> 12 & 0xf) << 52
}

/// `data`: address of what stands behind the code.
fn code(data: u64, regs: &Regs, sregs: &Sregs) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    let list = data + POINTERS + 8 * SLOTS as u64;
    boot_code::load(&mut a, list as u32)?;
    a.lgdt(ptr((data + 32) as u32))?;
    let long = sregs.cs.ar.contains(AccessRights::LONG);
    if long {
        boot_code::enable_long_mode(&mut a, sregs.cr3 as u32)?;
    }
    a.mov(eax, cr0)?;
    a.and(eax, 0x8000_0000_u32 as i32)?;
    a.or(eax, (sregs.cr0 & 0x7fff_ffff) as i32)?;
    a.mov(cr0, eax)?;
    a.mov(eax, u32::from(sregs.ds.selector))?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, ax)?;
    }
    let at = ORIGIN + a.assemble(ORIGIN)?.len() as u64;
    jump_to_next(&mut a, at, sregs.cs.selector, true)?;
    let mut bytes = a.assemble(ORIGIN)?;
    bytes.extend(start(ORIGIN + bytes.len() as u64, long, data, regs)?);
    Ok(bytes)
}

/// The end of it, in the image's own mode: descriptor tables, flags, registers, and off to its entry point.
fn start(at: u64, long: bool, data: u64, regs: &Regs) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(if long { 64 } else { 32 })?;
    a.lgdt(ptr(data as u32))?;
    a.lidt(ptr((data + 16) as u32))?;
    a.push(2)?;
    if long {
        a.popfq()?;
        for (gpr, register) in LONG_REGISTERS {
            a.mov(register, regs.get(gpr))?;
        }
    } else {
        a.popfd()?;
        for (gpr, register) in REGISTERS {
            a.mov(register, regs.get(gpr) as u32)?;
        }
    }
    a.jmp(regs.rip)?;
    a.assemble(at)
}

const REGISTERS: [(Gpr, AsmRegister32); 8] = [
    (Gpr::Rax, eax),
    (Gpr::Rbx, ebx),
    (Gpr::Rcx, ecx),
    (Gpr::Rdx, edx),
    (Gpr::Rsi, esi),
    (Gpr::Rdi, edi),
    (Gpr::Rbp, ebp),
    (Gpr::Rsp, esp),
];

const LONG_REGISTERS: [(Gpr, AsmRegister64); 16] = [
    (Gpr::Rax, rax),
    (Gpr::Rbx, rbx),
    (Gpr::Rcx, rcx),
    (Gpr::Rdx, rdx),
    (Gpr::Rsi, rsi),
    (Gpr::Rdi, rdi),
    (Gpr::Rbp, rbp),
    (Gpr::R8, r8),
    (Gpr::R9, r9),
    (Gpr::R10, r10),
    (Gpr::R11, r11),
    (Gpr::R12, r12),
    (Gpr::R13, r13),
    (Gpr::R14, r14),
    (Gpr::R15, r15),
    (Gpr::Rsp, rsp),
];

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(chunks: Vec<(u64, Vec<u8>)>) -> LoadedImage {
        LoadedImage {
            chunks,
            state: nvmx_machine::start::multiboot(0x10_0000, 0x9000),
        }
    }

    #[test]
    fn close_parts_are_one_piece_and_far_ones_two() {
        let runs = runs(&image(vec![
            (0x20_0000, vec![3]),
            (0x10_0000, vec![1; 4]),
            (0x10_0100, vec![2]),
            (0x30_0000, vec![]),
        ]))
        .unwrap();
        assert_eq!(runs.len(), 2);
        assert_eq!((runs[0].0, runs[0].1.len()), (0x10_0000, 0x101));
        assert_eq!(runs[0].1[4..0x100], [0; 0xfc]);
        assert_eq!(runs[1], (0x20_0000, vec![3]));
    }

    #[test]
    fn what_the_loader_needs_or_cannot_reach_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("boot.img");
        for (address, length) in [(0x7000, 1), (0x6fff, 2), (0x7dff, 1), (1 << 32, 1)] {
            let error = write(&path, &image(vec![(address, vec![0; length])])).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{address:#x}");
        }
        let scattered = (0..300)
            .map(|page| (0x10_0000 + 0x1000 * page, vec![1]))
            .collect();
        assert!(write(&path, &image(scattered)).is_err());
        write(&path, &image(vec![(0x6fff, vec![1]), (0x7e00, vec![2])])).unwrap();
    }

    #[test]
    fn both_modes_assemble_with_their_tables_in_place() {
        for state in [
            nvmx_machine::start::multiboot(0x10_0000, 0x9000),
            nvmx_machine::start::long_mode(0x10_0000, 0x1000, 0x9000),
            nvmx_machine::start::linux_64(0x20_0000, 0x1000, 0x1_0000, 0x8000),
            nvmx_machine::start::linux_32(0x20_0000, 0x1_0000, 0x8000),
        ] {
            let piece = Piece {
                sector: 7,
                count: 1,
                address: 0x10_0000,
            };
            let bytes = second_stage(&[piece], &state).unwrap();
            let list = boot_code::list(&[piece]);
            assert!(bytes.ends_with(&list));
            let table = bytes.len() - list.len() - 8 * SLOTS;
            let sregs = state.sregs.unwrap();
            let code = table + usize::from(sregs.cs.selector);
            assert_eq!(bytes[code + 5], 0x9b);
            assert_eq!(
                bytes[code + 6] >> 5 & 1 != 0,
                sregs.cs.ar.contains(AccessRights::LONG)
            );
        }
    }
}
