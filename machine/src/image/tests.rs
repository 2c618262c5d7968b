//! Images that load, and images that say why they do not.

use super::*;

/// A multiboot header with these flags.
fn header(flags: u32) -> Vec<u8> {
    [0x1bad_b002, flags, 0_u32.wrapping_sub(0x1bad_b002 + flags)]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect()
}

/// A multiboot image with the a.out kludge: load_addr, load_end_addr, bss_end_addr, entry_addr.
fn kludge(load: u32, load_end: u32, bss_end: u32, entry: u32) -> Vec<u8> {
    let mut image = vec![0x90; 16];
    image.extend(header(1 << 16));
    for word in [load + 16, load, load_end, bss_end, entry] {
        image.extend(word.to_le_bytes());
    }
    image.extend([0xf4; 4]);
    image
}

/// An ELF64 with one PT_LOAD of `data`.
fn elf64(address: u64, virtual_address: u64, entry: u64, data: &[u8], memory_size: u64) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend(2_u16.to_le_bytes());
    elf.extend(62_u16.to_le_bytes());
    elf.extend(1_u32.to_le_bytes());
    for value in [entry, 64, 0] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes());
    elf.extend(7_u32.to_le_bytes());
    for value in [
        120,
        virtual_address,
        address,
        data.len() as u64,
        memory_size,
        16,
    ] {
        elf.extend(value.to_le_bytes());
    }
    elf.extend(data);
    elf
}

fn chunk(image: &LoadedImage, address: u64) -> &[u8] {
    let found = image.chunks.iter().find(|(start, _)| *start == address);
    found.map_or(&[], |(_, bytes)| bytes)
}

#[test]
fn the_address_fields_of_a_multiboot_header_say_what_to_load() {
    let file = kludge(0x10_0000, 0, 0x10_0100, 0x10_0030);
    let image = load(&file, LoadOptions::default()).unwrap();
    assert_eq!(chunk(&image, 0x10_0000).len(), 0x100);
    assert_eq!(&chunk(&image, 0x10_0000)[..file.len()], file.as_slice());
    let regs = image.state.regs.unwrap();
    assert_eq!(
        (regs.rip, regs.gpr[0], regs.gpr[3]),
        (0x10_0030, 0x2bad_b002, MULTIBOOT_INFO)
    );
    let sregs = image.state.sregs.unwrap();
    assert_eq!((sregs.cr0, sregs.efer, sregs.cs.base), (0x11, 0, 0));
}

#[test]
fn the_information_structure_describes_memory_command_line_and_module() {
    let options = LoadOptions {
        name: "kernel.flat",
        cmdline: "console=ttyS0",
        modules: &[
            Module {
                cmdline: "a.bin one",
                data: b"module",
            },
            Module {
                cmdline: "b.bin",
                data: b"second",
            },
        ],
        memory_size: 4 << 20,
    };
    let image = load(&kludge(0x10_0000, 0, 0, 0x10_0000), options).unwrap();
    let info = chunk(&image, MULTIBOOT_INFO);
    let word = |at: usize| u32::from_le_bytes(info[at..at + 4].try_into().unwrap()) as usize;
    let at = |address: usize| &info[address - MULTIBOOT_INFO as usize..];
    assert_eq!(word(0), 0b100_1101);
    assert_eq!(word(8), 3 * 1024);
    assert!(at(word(16)).starts_with(b"kernel.flat console=ttyS0\0"));
    assert_eq!(word(44), 48);
    let module = at(word(24));
    assert_eq!(module[..4], 0x10_1000_u32.to_le_bytes());
    assert_eq!(module[4..8], 0x10_1006_u32.to_le_bytes());
    assert_eq!(chunk(&image, 0x10_1000), b"module");
    let string = |entry: usize| {
        u32::from_le_bytes(module[entry + 8..entry + 12].try_into().unwrap()) as usize
    };
    assert!(at(string(0)).starts_with(b"a.bin one\0"));
    assert_eq!(module[16..20], 0x10_2000_u32.to_le_bytes());
    assert_eq!(chunk(&image, 0x10_2000), b"second");
    assert!(at(string(16)).starts_with(b"b.bin\0"));
}

#[test]
fn a_plain_elf64_starts_in_64_bit_mode_on_identity_tables() {
    let file = elf64(
        0x20_0000,
        0xffff_8000_0020_0000,
        0xffff_8000_0020_0002,
        b"\x90\x90\xf4",
        0x10,
    );
    let image = load(&file, LoadOptions::default()).unwrap();
    assert_eq!(
        chunk(&image, 0x20_0000),
        b"\x90\x90\xf4\0\0\0\0\0\0\0\0\0\0\0\0\0"
    );
    assert_eq!(image.state.regs.unwrap().rip, 0x20_0002);
    let sregs = image.state.sregs.unwrap();
    assert_eq!((sregs.cr3, sregs.efer), (PAGE_TABLES, 0x500));
    let tables = chunk(&image, PAGE_TABLES);
    // The page directory's second entry maps 2 MiB, large, writable, present.
    assert_eq!(tables[0x2008..0x2010], 0x20_0083_u64.to_le_bytes());
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let good = elf64(0x20_0000, 0x20_0000, 0x20_0000, b"\xf4", 1);
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let cases: &[(Vec<u8>, u64, &str, &str)] = &[
        (vec![], 0, "magic", "neither a bzImage"),
        (vec![0; 100], 0, "magic", "neither a bzImage"),
        (
            good[..63].to_vec(),
            64,
            "program header",
            "end behind the file",
        ),
        (
            good[..100].to_vec(),
            64,
            "program header",
            "end behind the file",
        ),
        (
            patched(4, &[1]),
            0x2a,
            "e_phentsize",
            "0: a program header has 32",
        ),
        (patched(5, &[2]), 4, "EI_CLASS, EI_DATA", "little-endian"),
        (patched(16, &[3]), 16, "e_type", "only executables"),
        (patched(18, &[40]), 18, "e_machine", "not an x86"),
        (
            patched(0x36, &[8]),
            0x36,
            "e_phentsize",
            "8: a program header has 56",
        ),
        (patched(0x38, &[0]), 0x38, "e_phnum", "no PT_LOAD"),
        (
            patched(0x20, &[0xff; 8]),
            u64::MAX,
            "program header",
            "end behind the file",
        ),
        (
            patched(64 + 8, &[0xff; 8]),
            u64::MAX,
            "p_offset, p_filesz",
            "end behind the file",
        ),
        (
            patched(64 + 40, &[0; 8]),
            64 + 40,
            "p_memsz",
            "less than p_filesz",
        ),
        (
            patched(64 + 40, &[0xff; 8]),
            64,
            "p_paddr, p_memsz",
            "do not fit",
        ),
        (
            patched(64 + 24, &[0xff; 8]),
            64,
            "p_paddr, p_memsz",
            "do not fit",
        ),
        (
            elf64(0x2000, 0x2000, 0x2000, b"\xf4", 1),
            0,
            "p_paddr",
            "overlaps",
        ),
        (header(4), 4, "flags", "requires 0x4"),
        (header(0), 0, "e_ident", "not an ELF file"),
        (header(1 << 16), 12, "header_addr", "end behind the file"),
        (
            kludge(0x10_0000, 0xf_0000, 0, 0),
            36,
            "load_end_addr",
            "below load_addr",
        ),
        (
            kludge(0x10_0000, 0x20_0000, 0, 0),
            0,
            "load_addr, load_end_addr",
            "end behind the file",
        ),
        (
            kludge(0x10_0000, 0, 0x10_0001, 0),
            40,
            "bss_end_addr",
            "below the end of the data",
        ),
        (
            kludge(0x9000, 0, 0, 0x9000),
            16,
            "multiboot header",
            "overlaps",
        ),
        (
            kludge(0xff_fff0, 0, 0, 0),
            32,
            "p_paddr, p_memsz",
            "do not fit",
        ),
    ];
    for (number, (file, offset, field, reason)) in cases.iter().enumerate() {
        let error = load(file, LoadOptions::default()).unwrap_err();
        assert_eq!(
            (error.offset, error.field),
            (*offset, *field),
            "case {number}: {error}"
        );
        assert!(error.reason.contains(reason), "case {number}: {error}");
    }
}

#[test]
fn a_command_line_that_does_not_fit_is_refused() {
    let cmdline = "x".repeat(0xa_0000);
    let options = LoadOptions {
        cmdline: &cmdline,
        ..LoadOptions::default()
    };
    let error = load(&kludge(0x10_0000, 0, 0, 0x10_0000), options).unwrap_err();
    assert!(error.reason.contains("shorten the command line"), "{error}");
}

/// Every byte of good images is flipped in several ways, and every length is tried: an error or an
/// image inside RAM, never a panic, never more memory than the machine has.
#[test]
fn damaged_images_never_panic_and_never_leave_ram() {
    let options = LoadOptions::default();
    let check = |file: &[u8]| {
        if let Ok(image) = load(file, options) {
            for (start, bytes) in &image.chunks {
                assert!(start + bytes.len() as u64 <= options.memory_size);
            }
        }
    };
    for good in [
        kludge(0x10_0000, 0, 0x10_0100, 0x10_0000),
        elf64(0x20_0000, 0x20_0000, 0x20_0000, b"\x90\xf4", 0x10),
    ] {
        for length in 0..good.len() {
            check(&good[..length]);
        }
        for at in 0..good.len() {
            for mask in [0x01, 0x02, 0x10, 0x40, 0x80, 0xff] {
                let mut file = good.clone();
                file[at] ^= mask;
                check(&file);
                for more in [1, 4, 7] {
                    if let Some(byte) = file.get_mut(at + more) {
                        *byte = 0xff;
                    }
                    check(&file);
                }
            }
        }
    }
}
