//! The boot sector: loads memory from the disk by port I/O, then enters 64-bit mode and jumps to a kernel, or
//! jumps to more code of ours.
//!
//! A boot loader from a CD image would decompress the kernel on the emulated CPU, at a cost of two to three seconds a
//! boot, and one such boot in fifty hung. This sector reads ready-made memory contents instead, at some 70 MB/s.
//!
//! The way through the modes is SDM Vol. 3, "Switching to Protected Mode" and "Initializing IA-32e Mode"; the state in
//! which the kernel is entered is Linux' 64-bit boot protocol (Documentation/arch/x86/boot): identity-mapped paging,
//! flat segments 0x10 and 0x18, interrupts off, RSI pointing at `boot_params`.

use iced_x86::IcedError;
use iced_x86::code_asm::*;

/// Size of a disk sector in bytes.
pub const SECTOR: usize = 512;
/// Where the BIOS puts the boot sector, and where it jumps to.
const ORIGIN: u64 = 0x7c00;
/// Offset of the descriptor table in the sector.
const GDT: usize = 0x180;
/// Offset of the list of pieces to load.
const PIECES: usize = 0x1a8;
/// How many pieces there is room for: the list ends with one of zero sectors, and the signature stands at 510.
pub const MAX_PIECES: usize = 5;

/// Selectors of the table: 32-bit code, then the kernel's `__BOOT_CS` (64-bit code) and `__BOOT_DS`.
const CODE_32: u16 = 0x08;
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;

/// First ATA channel: command block and device control.
const ATA: u32 = 0x1f0;
const ATA_CONTROL: u32 = 0x3f6;
const COM1: u32 = 0x3f8;

/// What the boot sector prints on COM1 just before it jumps to the kernel.
pub const GREETING: &[u8] = b"@@KERNEL\r\n";

/// One run of sectors to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// First sector on the disk.
    pub sector: u32,
    /// How many sectors.
    pub count: u32,
    /// Physical address of the first byte, apart from the sector and its stack: 64 KiB or above for a kernel.
    pub address: u32,
}

/// Where to go once all pieces are loaded.
#[derive(Clone, Copy, Debug)]
pub enum Handover {
    /// To Linux' 64-bit entry point, with a greeting on COM1.
    Kernel {
        /// Physical address of the top page table (PML4).
        page_table: u32,
        /// Physical address of `boot_params`.
        boot_params: u32,
        /// Physical address of the kernel's 64-bit entry.
        entry: u32,
    },
    /// To 32-bit code at this address, in the sector's own flat segments.
    Code(u32),
}

/// Why no boot sector could be made.
#[derive(Debug, thiserror::Error)]
pub enum BootCodeError {
    /// More pieces than [`MAX_PIECES`].
    #[error("too many pieces for one boot sector")]
    TooManyPieces,
    /// The code runs into the descriptor table: a mistake in this file, found by its tests.
    #[error("the boot sector's code is too long")]
    TooLong,
    /// The assembler refused an instruction: likewise.
    #[error(transparent)]
    Assembler(#[from] IcedError),
}

/// Assembles the boot sector.
///
/// # Errors
/// As [`BootCodeError`] says.
pub fn boot_sector(pieces: &[Piece], handover: Handover) -> Result<[u8; SECTOR], BootCodeError> {
    if pieces.len() > MAX_PIECES {
        return Err(BootCodeError::TooManyPieces);
    }
    let mut code = real_mode(matches!(handover, Handover::Code(_)))?;
    code.extend(protected_mode(ORIGIN + code.len() as u64, handover)?);
    if let Handover::Kernel {
        boot_params, entry, ..
    } = handover
    {
        code.extend(long_mode(ORIGIN + code.len() as u64, boot_params, entry)?);
        code.extend_from_slice(GREETING);
    }
    if code.len() > GDT {
        return Err(BootCodeError::TooLong);
    }
    let mut sector = [0; SECTOR];
    sector[..code.len()].copy_from_slice(&code);
    // SDM Vol. 3, "Segment Descriptors": base 0, limit 4 GiB, present, accessed; L for 64-bit code.
    let descriptors = [
        0u64,
        0x00cf_9b00_0000_ffff,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
    ];
    for (slot, descriptor) in descriptors.iter().enumerate() {
        sector[GDT + 8 * slot..GDT + 8 * slot + 8].copy_from_slice(&descriptor.to_le_bytes());
    }
    let pointer = [
        &31u16.to_le_bytes()[..],
        &(ORIGIN as u32 + GDT as u32).to_le_bytes(),
    ]
    .concat();
    sector[GDT + 32..GDT + 38].copy_from_slice(&pointer);
    let list = list(pieces);
    sector[PIECES..PIECES + list.len()].copy_from_slice(&list);
    sector[510..].copy_from_slice(&[0x55, 0xaa]);
    Ok(sector)
}

/// The pieces as the code reads them: three words each, and an end of zero sectors.
pub(crate) fn list(pieces: &[Piece]) -> Vec<u8> {
    pieces
        .iter()
        .flat_map(|piece| [piece.sector, piece.count, piece.address])
        .chain([0; 3])
        .flat_map(u32::to_le_bytes)
        .collect()
}

/// Far jump to what follows it, which is how a mode's code segment is loaded.
pub(crate) fn jump_to_next(
    a: &mut CodeAssembler,
    at: u64,
    selector: u16,
    wide: bool,
) -> Result<(), IcedError> {
    let [low, high] = selector.to_le_bytes();
    let next = at + if wide { 7 } else { 5 };
    let [a0, a1, a2, a3, ..] = next.to_le_bytes();
    if wide {
        a.db(&[0xea, a0, a1, a2, a3, low, high])
    } else {
        a.db(&[0xea, a0, a1, low, high])
    }
}

/// `quiet`: no interrupt of the PIC is left asserted, as the BIOS' timer would be by the time that all is loaded.
/// Masking alone does not take back one that the processor has been told of.
fn real_mode(quiet: bool) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(16)?;
    if quiet {
        a.cli()?;
        a.mov(al, 0xff)?;
        a.out(0x21, al)?;
        a.out(0xa1, al)?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
    }
    a.cli()?;
    a.cld()?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    // A20 by way of port 0x92: the BIOS has it on, but nothing promises that.
    a.in_(al, 0x92)?;
    a.or(al, 2)?;
    a.out(0x92, al)?;
    a.lgdt(word_ptr(ORIGIN as u32 + GDT as u32 + 32))?;
    a.mov(eax, cr0)?;
    a.or(al, 1)?;
    a.mov(cr0, eax)?;
    let at = ORIGIN + a.assemble(ORIGIN)?.len() as u64;
    jump_to_next(&mut a, at, CODE_32, false)?;
    a.assemble(ORIGIN)
}

fn protected_mode(origin: u64, handover: Handover) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(32)?;
    a.mov(eax, u32::from(BOOT_DS))?;
    for segment in [ds, es, ss, fs, gs] {
        a.mov(segment, ax)?;
    }
    a.mov(esp, ORIGIN as u32)?;
    // No interrupts from the disk, now or later.
    a.mov(edx, ATA_CONTROL)?;
    a.mov(al, 2)?;
    a.out(dx, al)?;
    load(&mut a, (ORIGIN as usize + PIECES) as u32)?;
    match handover {
        Handover::Kernel { page_table, .. } => {
            enable_long_mode(&mut a, page_table)?;
            let at = origin + a.assemble(origin)?.len() as u64;
            jump_to_next(&mut a, at, BOOT_CS, true)?;
        }
        Handover::Code(address) => {
            a.mov(eax, address)?;
            a.jmp(eax)?;
        }
    }
    a.assemble(origin)
}

/// 32-bit code that loads the pieces of the list at this address. Goes on behind itself.
pub(crate) fn load(a: &mut CodeAssembler, list: u32) -> Result<(), IcedError> {
    let [
        mut next_piece,
        mut next_command,
        mut next_sector,
        mut busy,
        mut loaded,
    ] = std::array::from_fn(|_| a.create_label());
    a.mov(esi, list)?;
    a.set_label(&mut next_piece)?;
    a.lodsd()?;
    a.mov(ebx, eax)?; // sector
    a.lodsd()?;
    a.mov(ebp, eax)?; // sectors left
    a.lodsd()?;
    a.mov(edi, eax)?; // address
    a.test(ebp, ebp)?;
    a.jz(loaded)?;

    // READ SECTORS, 28-bit address, up to 256 sectors (written as 0) a command.
    a.set_label(&mut next_command)?;
    a.mov(ecx, 256)?;
    a.cmp(ebp, ecx)?;
    a.cmovb(ecx, ebp)?;
    a.mov(edx, ATA + 2)?;
    a.mov(al, cl)?;
    a.out(dx, al)?;
    a.inc(edx)?;
    a.mov(al, bl)?;
    a.out(dx, al)?;
    a.inc(edx)?;
    a.mov(al, bh)?;
    a.out(dx, al)?;
    a.inc(edx)?;
    a.mov(eax, ebx)?;
    a.shr(eax, 16)?;
    a.out(dx, al)?;
    a.inc(edx)?;
    a.mov(al, ah)?;
    a.or(al, 0xe0u32 as i32)?;
    a.out(dx, al)?;
    a.inc(edx)?;
    a.mov(al, 0x20)?;
    a.out(dx, al)?;
    a.add(ebx, ecx)?;
    a.sub(ebp, ecx)?;

    a.set_label(&mut next_sector)?;
    a.push(ecx)?;
    a.mov(edx, ATA + 7)?;
    a.set_label(&mut busy)?;
    a.in_(al, dx)?;
    a.and(al, 0x88u32 as i32)?;
    a.cmp(al, 0x08)?; // not busy, data wanted
    a.jne(busy)?;
    a.mov(edx, ATA)?;
    a.mov(ecx, (SECTOR / 4) as u32)?;
    a.rep().insd()?;
    a.pop(ecx)?;
    a.dec(ecx)?;
    a.jnz(next_sector)?;
    a.test(ebp, ebp)?;
    a.jnz(next_command)?;
    a.jmp(next_piece)?;

    a.set_label(&mut loaded)?;
    a.zero_bytes()?;
    Ok(())
}

/// Paging by these tables, in 32-bit code on its way to 64-bit mode.
pub(crate) fn enable_long_mode(a: &mut CodeAssembler, page_table: u32) -> Result<(), IcedError> {
    a.mov(eax, page_table)?;
    a.mov(cr3, eax)?;
    a.mov(eax, cr4)?;
    a.or(eax, 1 << 5)?; // PAE
    a.mov(cr4, eax)?;
    a.mov(ecx, 0xc000_0080u32)?; // IA32_EFER
    a.rdmsr()?;
    a.or(eax, 1 << 8)?; // LME
    a.wrmsr()?;
    a.mov(eax, cr0)?;
    a.or(eax, 0x8000_0000u32 as i32)?; // PG
    a.mov(cr0, eax)
}

fn long_mode(origin: u64, boot_params: u32, entry: u32) -> Result<Vec<u8>, IcedError> {
    // The greeting follows the code; its address is known once the length is.
    let length = long_mode_at(origin, 0, boot_params, entry)?.len() as u64;
    long_mode_at(origin, (origin + length) as u32, boot_params, entry)
}

fn long_mode_at(
    origin: u64,
    greeting: u32,
    boot_params: u32,
    entry: u32,
) -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    let (mut next, mut full, mut sent) = (a.create_label(), a.create_label(), a.create_label());
    a.mov(edx, COM1 + 3)?; // line control: 8 bits, no parity, 1 stop bit
    a.mov(al, 3)?;
    a.out(dx, al)?;
    a.mov(esi, greeting)?;
    a.mov(ecx, GREETING.len() as u32)?;
    a.set_label(&mut next)?;
    a.mov(edx, COM1 + 5)?;
    a.set_label(&mut full)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?; // transmitter empty
    a.jz(full)?;
    a.mov(edx, COM1)?;
    a.lodsb()?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jnz(next)?;
    // The kernel resets the port: the last byte must be out by then.
    a.mov(edx, COM1 + 5)?;
    a.set_label(&mut sent)?;
    a.in_(al, dx)?;
    a.test(al, 0x40)?; // all sent
    a.jz(sent)?;
    a.mov(esi, boot_params)?;
    a.mov(eax, entry)?;
    a.jmp(rax)?;
    a.assemble(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDOVER: Handover = Handover::Kernel {
        page_table: 0x1_2000,
        boot_params: 0x1_0000,
        entry: 0x100_0b53,
    };

    #[test]
    fn the_sector_is_bootable_and_lists_its_pieces() {
        let piece = Piece {
            sector: 1,
            count: 3,
            address: 0x1_0000,
        };
        let sector = boot_sector(&[piece; MAX_PIECES], HANDOVER).unwrap();
        assert_eq!(sector[510..], [0x55, 0xaa]);
        assert_eq!(
            sector[PIECES..PIECES + 12],
            [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 1, 0]
        );
        // The list's end: zero sectors.
        assert_eq!(
            sector[PIECES + 12 * MAX_PIECES..PIECES + 12 * MAX_PIECES + 12],
            [0; 12]
        );
        assert!(
            sector
                .windows(GREETING.len())
                .any(|window| window == GREETING)
        );
        assert!(boot_sector(&[piece; MAX_PIECES + 1], HANDOVER).is_err());
        let other = boot_sector(&[piece], Handover::Code(0x7000)).unwrap();
        assert_eq!(other[PIECES..PIECES + 24], list(&[piece]));
        assert_ne!(other[..GDT], sector[..GDT]);
    }
}
