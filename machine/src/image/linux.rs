//! bzImage: Linux' own format (Linux, Documentation/arch/x86/boot.rst "The Linux/x86 Boot Protocol" and
//! zero-page.rst), protocol 2.12 and later.
//!
//! A kernel with a 64-bit entry point (`XLF_KERNEL_64`) starts there, on the loader's identity page
//! tables; any other in 32-bit protected mode. The real-mode part is not run: what it would ask the
//! firmware for stands in `boot_params`.

use super::reader::{bytes, uint};
use super::{ImageError, LoadOptions, LoadedImage, PAGE_TABLES, add, identity_page_tables};
use crate::memory_map::{self, HIGH_START, LOW_END};
use crate::start;
use nvmx_core::addr::PAGE_SIZE;

/// `boot_params`, the "zero page".
pub const BOOT_PARAMS: u64 = 0x1_0000;
/// Descriptors that the protocol asks for: code at 0x10, data at 0x18.
const GDT: u64 = 0x8000;
const COMMAND_LINE: u64 = BOOT_PARAMS + PAGE_SIZE;

/// Fields of the setup header, by their offset in the file and in `boot_params` alike.
mod field {
    pub(super) const SETUP_SECTS: u64 = 0x1f1;
    pub(super) const BOOT_FLAG: u64 = 0x1fe;
    pub(super) const JUMP: u64 = 0x200;
    pub(super) const MAGIC: u64 = 0x202;
    pub(super) const VERSION: u64 = 0x206;
    pub(super) const TYPE_OF_LOADER: u64 = 0x210;
    pub(super) const LOADFLAGS: u64 = 0x211;
    pub(super) const CODE32_START: u64 = 0x214;
    pub(super) const RAMDISK_IMAGE: u64 = 0x218;
    pub(super) const RAMDISK_SIZE: u64 = 0x21c;
    pub(super) const CMD_LINE_PTR: u64 = 0x228;
    pub(super) const INITRD_ADDR_MAX: u64 = 0x22c;
    pub(super) const KERNEL_ALIGNMENT: u64 = 0x230;
    pub(super) const RELOCATABLE: u64 = 0x234;
    pub(super) const XLOADFLAGS: u64 = 0x236;
    pub(super) const CMDLINE_SIZE: u64 = 0x238;
    pub(super) const PREF_ADDRESS: u64 = 0x258;
    pub(super) const INIT_SIZE: u64 = 0x260;
    /// In `boot_params` only.
    pub(super) const E820_ENTRIES: u64 = 0x1e8;
    pub(super) const VID_MODE: u64 = 0x1fa;
    pub(super) const E820_TABLE: u64 = 0x2d0;
}

const MAGIC: u64 = 0x5372_6448;
const OLDEST: u64 = 0x020c;
const LOADED_HIGH: u64 = 1;
const KERNEL_64: u64 = 1;
/// A boot loader without a number of its own.
const UNDEFINED_LOADER: u8 = 0xff;
/// Beyond this an image that claims to need more room is damaged.
const MOST_ROOM: u64 = 1 << 30;

/// Whether the file has the setup header's magic.
pub(super) fn is_linux(image: &[u8]) -> bool {
    uint(image, field::MAGIC, 4, "header") == Ok(MAGIC)
}

/// What the header says, checked.
struct Header {
    kernel_at: u64,
    kernel_length: u64,
    /// End of the setup header in the file.
    end: u64,
    load_address: u64,
    room: u64,
    entry_64: bool,
}

fn header(image: &[u8], memory_size: u64) -> Result<Header, ImageError> {
    let read = |at, size, name| uint(image, at, size, name);
    let fail = |at, name, reason: String| -> Result<(), ImageError> {
        Err(ImageError::new(at, name, reason))
    };
    let flag = read(field::BOOT_FLAG, 2, "boot_flag")?;
    if flag != 0xaa55 {
        fail(
            field::BOOT_FLAG,
            "boot_flag",
            format!("{flag:#x} instead of 0xaa55"),
        )?;
    }
    let version = read(field::VERSION, 2, "version")?;
    if version < OLDEST {
        let (major, minor) = (version >> 8, version & 0xff);
        fail(
            field::VERSION,
            "version",
            format!("protocol {major}.{minor:02}: 2.12 or later is loaded (Linux 3.8)"),
        )?;
    }
    if read(field::LOADFLAGS, 1, "loadflags")? & LOADED_HIGH == 0 {
        fail(
            field::LOADFLAGS,
            "loadflags",
            "a zImage (LOADED_HIGH is clear), only a bzImage is loaded".into(),
        )?;
    }
    // The jump over the header ends where the header does.
    let end = field::MAGIC + read(field::JUMP + 1, 1, "jump")?;
    if end < field::INIT_SIZE + 4 {
        fail(
            field::JUMP + 1,
            "jump",
            format!("the header ends at {end:#x}, before init_size"),
        )?;
    }
    bytes(
        image,
        field::SETUP_SECTS,
        end - field::SETUP_SECTS,
        "setup header",
    )?;
    let sectors = match read(field::SETUP_SECTS, 1, "setup_sects")? {
        0 => 4,
        sectors => sectors,
    };
    let kernel_at = (sectors + 1) * 512;
    let kernel_length = (image.len() as u64)
        .checked_sub(kernel_at)
        .filter(|length| *length > 0)
        .ok_or_else(|| {
            ImageError::new(
                field::SETUP_SECTS,
                "setup_sects",
                format!("{sectors}: the kernel would start behind the file's end"),
            )
        })?;
    let room = read(field::INIT_SIZE, 4, "init_size")?.max(kernel_length);
    if room > MOST_ROOM {
        fail(
            field::INIT_SIZE,
            "init_size",
            format!("{room:#x} bytes are no kernel"),
        )?;
    }
    let preferred = read(field::PREF_ADDRESS, 8, "pref_address")?;
    let fits = |address: u64| {
        address >= HIGH_START
            && address
                .checked_add(room)
                .is_some_and(|end| end <= memory_size.min(1 << 32))
    };
    let alignment = read(field::KERNEL_ALIGNMENT, 4, "kernel_alignment")?;
    let load_address = if fits(preferred) {
        preferred
    } else {
        let lowest = HIGH_START
            .checked_next_multiple_of(alignment)
            .unwrap_or(u64::MAX);
        if read(field::RELOCATABLE, 1, "relocatable_kernel")? == 0 || !fits(lowest) {
            fail(
                field::PREF_ADDRESS,
                "pref_address, init_size",
                format!(
                    "{room:#x} bytes fit neither at {preferred:#x} nor, aligned to {alignment:#x}, lower in {memory_size:#x} bytes of RAM"
                ),
            )?;
        }
        lowest
    };
    Ok(Header {
        kernel_at,
        kernel_length,
        end,
        load_address,
        room,
        entry_64: read(field::XLOADFLAGS, 2, "xloadflags")? & KERNEL_64 != 0,
    })
}

/// Reads a bzImage.
pub(super) fn load(image: &[u8], options: &LoadOptions<'_>) -> Result<LoadedImage, ImageError> {
    let memory_size = options.memory_size;
    let header = header(image, memory_size)?;
    let mut params = vec![0; PAGE_SIZE as usize];
    let header_bytes = field::SETUP_SECTS as usize..header.end as usize;
    params[header_bytes.clone()].copy_from_slice(&image[header_bytes]);
    let mut put = |at: u64, value: u64, size: usize| {
        params[at as usize..at as usize + size].copy_from_slice(&value.to_le_bytes()[..size]);
    };
    put(field::TYPE_OF_LOADER, UNDEFINED_LOADER.into(), 1);
    // No mode was set: there is no display.
    put(field::VID_MODE, 0xffff, 2);
    put(field::CODE32_START, header.load_address, 4);

    let mut chunks = Vec::new();
    let kernel = bytes(image, header.kernel_at, header.kernel_length, "kernel")?;
    let no_room = |reason| ImageError::new(field::INIT_SIZE, "init_size", reason);
    add(
        &mut chunks,
        header.load_address,
        kernel.to_vec(),
        memory_size,
    )
    .map_err(no_room)?;

    let most = match uint(image, field::CMDLINE_SIZE, 4, "cmdline_size")? {
        0 => 255,
        most => most.min(LOW_END - COMMAND_LINE - 1),
    };
    if options.cmdline.len() as u64 > most || options.cmdline.contains('\0') {
        return Err(ImageError::new(
            field::CMDLINE_SIZE,
            "cmdline_size",
            format!(
                "{most} bytes are the most that this kernel takes as a command line, without zeros; given are {}",
                options.cmdline.len()
            ),
        ));
    }
    let mut cmdline = options.cmdline.as_bytes().to_vec();
    cmdline.push(0);
    put(field::CMD_LINE_PTR, COMMAND_LINE, 4);

    if let Some(initrd) = initrd(options)? {
        let highest = uint(image, field::INITRD_ADDR_MAX, 4, "initrd_addr_max")?;
        let length = initrd.len() as u64;
        // As high as it may: the kernel unpacks itself upwards from where it lies.
        let start = (highest + 1)
            .min(memory_size)
            .checked_sub(length)
            .map(|at| at & !(PAGE_SIZE - 1));
        let start = start
            .filter(|start| *start >= header.load_address + header.room)
            .ok_or_else(|| {
                ImageError::new(
                    field::INITRD_ADDR_MAX,
                    "initrd_addr_max",
                    format!(
                        "an initrd of {length:#x} bytes does not fit between the kernel's end, {:#x}, and the end of RAM, {memory_size:#x}",
                        header.load_address + header.room
                    ),
                )
            })?;
        put(field::RAMDISK_IMAGE, start, 4);
        put(field::RAMDISK_SIZE, length, 4);
        add(&mut chunks, start, initrd, memory_size).map_err(no_room)?;
    }

    let ranges = memory_map::ranges(memory_size);
    put(field::E820_ENTRIES, ranges.len() as u64, 1);
    for (index, range) in (0..).zip(&ranges) {
        let at = field::E820_TABLE + 20 * index;
        put(at, range.start, 8);
        put(at + 8, range.length, 8);
        put(at + 16, range.kind as u64, 4);
    }

    let state = if header.entry_64 {
        /// Where the 64-bit entry point lies in the kernel ("64-bit Boot Protocol").
        const ENTRY_64: u64 = 0x200;
        add(
            &mut chunks,
            PAGE_TABLES,
            identity_page_tables(),
            memory_size,
        )
        .map_err(no_room)?;
        start::linux_64(
            header.load_address + ENTRY_64,
            PAGE_TABLES,
            BOOT_PARAMS,
            GDT,
        )
    } else {
        start::linux_32(header.load_address, BOOT_PARAMS, GDT)
    };
    let code = if header.entry_64 {
        start::CODE_64
    } else {
        start::CODE_32
    };
    let gdt = [0, 0, code, start::DATA];
    let gdt = gdt.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    for (address, bytes) in [(GDT, gdt), (BOOT_PARAMS, params), (COMMAND_LINE, cmdline)] {
        add(&mut chunks, address, bytes, memory_size).map_err(no_room)?;
    }
    Ok(LoadedImage { chunks, state })
}

/// All initial RAM disks, one after the other: the kernel unpacks a row of archives, each from a
/// multiple of four bytes (Linux, Documentation/driver-api/early-userspace/buffer-format.rst).
fn initrd(options: &LoadOptions<'_>) -> Result<Option<Vec<u8>>, ImageError> {
    let mut all = Vec::new();
    for module in options.modules {
        all.resize(all.len().next_multiple_of(4), 0);
        all.extend_from_slice(module.data);
    }
    if u32::try_from(all.len()).is_err() {
        return Err(ImageError::new(
            field::RAMDISK_SIZE,
            "ramdisk_size",
            "an initrd has less than 4 GiB",
        ));
    }
    Ok((!all.is_empty()).then_some(all))
}
