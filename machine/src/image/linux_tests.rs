//! bzImages that load, and bzImages that say why they do not.

use super::linux::BOOT_PARAMS;
use super::*;

const KERNEL: &[u8] = b"the protected-mode kernel";

/// Offset, value, size.
type Change = (usize, u64, usize);

/// Puts `value` into the file at `at`.
fn patch(file: &mut [u8], at: usize, value: u64, size: usize) {
    file[at..at + size].copy_from_slice(&value.to_le_bytes()[..size]);
}

/// A bzImage of protocol 2.15 with one sector of set-up code, changed.
fn bzimage(changes: &[Change]) -> Vec<u8> {
    let mut file = vec![0; 1024];
    for (at, value, size) in [
        (0x1f1, 1, 1),
        (0x1fe, 0xaa55, 2),
        (0x200, 0x6aeb, 2),
        (0x202, 0x5372_6448, 4),
        (0x206, 0x020f, 2),
        (0x211, 1, 1),
        (0x22c, 0x7fff_ffff, 4),
        (0x230, 0x20_0000, 4),
        (0x234, 1, 1),
        (0x236, 1, 2),
        (0x238, 2047, 4),
        (0x258, 0x100_0000, 8),
        (0x260, 0x10_0000, 4),
    ]
    .iter()
    .chain(changes)
    {
        patch(&mut file, *at, *value, *size);
    }
    file.extend(KERNEL);
    file
}

fn chunk(image: &LoadedImage, address: u64) -> &[u8] {
    let found = image.chunks.iter().find(|(start, _)| *start == address);
    found.map_or(&[], |(_, bytes)| bytes)
}

fn options() -> LoadOptions<'static> {
    LoadOptions {
        name: "vmlinuz",
        cmdline: "console=ttyS0",
        modules: &[
            Module {
                cmdline: "",
                data: b"first",
            },
            Module {
                cmdline: "",
                data: b"second",
            },
        ],
        memory_size: 64 << 20,
    }
}

#[test]
fn boot_params_describe_memory_command_line_and_initrd() {
    let image = load(&bzimage(&[]), options()).unwrap();
    assert_eq!(chunk(&image, 0x100_0000), KERNEL);
    let params = chunk(&image, BOOT_PARAMS);
    let word = |at: usize| u32::from_le_bytes(params[at..at + 4].try_into().unwrap());
    assert_eq!(params[0x1fe..0x210], bzimage(&[])[0x1fe..0x210]);
    assert_eq!(params[0x210], 0xff);
    assert_eq!(chunk(&image, word(0x228).into()), b"console=ttyS0\0");
    // Archives start at multiples of four.
    let initrd = chunk(&image, word(0x218).into());
    assert_eq!(initrd, b"first\0\0\0second");
    assert_eq!((word(0x218), word(0x21c)), ((64 << 20) - 4096, 14));
    assert_eq!(params[0x1e8], 4);
    let last = &params[0x2d0 + 60..0x2d0 + 80];
    assert_eq!(last[..8], 0x10_0000_u64.to_le_bytes());
    assert_eq!(last[8..16], (63_u64 << 20).to_le_bytes());
    assert_eq!(last[16..], 1_u32.to_le_bytes());

    let (regs, sregs) = (image.state.regs.unwrap(), image.state.sregs.unwrap());
    assert_eq!((regs.rip, regs.gpr[6]), (0x100_0200, BOOT_PARAMS));
    assert_eq!((sregs.cs.selector, sregs.ss.selector), (0x10, 0x18));
    assert_eq!((sregs.efer, sregs.cr3), (0x500, PAGE_TABLES));
    let gdt = chunk(&image, sregs.gdtr.base);
    // L in the code segment, D/B in the data segment.
    assert_eq!((gdt[0x16] & 0x60, gdt[0x1e] & 0x60), (0x20, 0x40));
}

#[test]
fn a_kernel_without_64_bit_entry_starts_at_its_first_byte() {
    let image = load(&bzimage(&[(0x236, 0, 2)]), options()).unwrap();
    let (regs, sregs) = (image.state.regs.unwrap(), image.state.sregs.unwrap());
    assert_eq!((regs.rip, regs.gpr[6]), (0x100_0000, BOOT_PARAMS));
    assert_eq!((sregs.cr0 & 1, sregs.efer, sregs.cs.selector), (1, 0, 0x10));
}

#[test]
fn a_relocatable_kernel_goes_lower_where_ram_is_short() {
    let options = LoadOptions {
        memory_size: 8 << 20,
        ..options()
    };
    let image = load(&bzimage(&[]), options).unwrap();
    assert_eq!(chunk(&image, 0x20_0000), KERNEL);
    assert_eq!(image.state.regs.unwrap().rip, 0x20_0200);
}

#[test]
fn what_cannot_be_loaded_is_named() {
    let cases: &[(&[Change], u64, &str, &str)] = &[
        (
            &[(0x1fe, 0, 2)],
            0x1fe,
            "boot_flag",
            "0x0 instead of 0xaa55",
        ),
        (&[(0x206, 0x20b, 2)], 0x206, "version", "protocol 2.11"),
        (&[(0x211, 0, 1)], 0x211, "loadflags", "zImage"),
        (&[(0x201, 0x20, 1)], 0x201, "jump", "before init_size"),
        (
            &[(0x1f1, 9, 1)],
            0x1f1,
            "setup_sects",
            "behind the file's end",
        ),
        (&[(0x260, 0xffff_ffff, 4)], 0x260, "init_size", "no kernel"),
        (
            &[(0x260, 0x3f0_0001, 4)],
            0x258,
            "pref_address, init_size",
            "fit neither at 0x1000000",
        ),
        (
            &[(0x258, u64::MAX, 8), (0x234, 0, 1)],
            0x258,
            "pref_address, init_size",
            "fit neither",
        ),
        (
            &[(0x258, 0, 8), (0x230, 0, 4)],
            0x258,
            "pref_address, init_size",
            "fit neither",
        ),
        (
            &[(0x238, 12, 4)],
            0x238,
            "cmdline_size",
            "12 bytes are the most",
        ),
        (
            &[(0x22c, 0x100_0000, 4)],
            0x22c,
            "initrd_addr_max",
            "does not fit",
        ),
    ];
    for (changes, offset, field, reason) in cases {
        let error = load(&bzimage(changes), options()).unwrap_err();
        assert_eq!((error.offset, error.field), (*offset, *field), "{error}");
        assert!(error.reason.contains(reason), "{error}");
    }
}

#[test]
fn damaged_bzimages_never_panic_and_never_leave_ram() {
    let good = bzimage(&[]);
    let check = |file: &[u8]| {
        if let Ok(image) = load(file, options()) {
            for (start, bytes) in &image.chunks {
                assert!(start + bytes.len() as u64 <= options().memory_size);
            }
        }
    };
    for length in 0..good.len() {
        check(&good[..length]);
    }
    for at in 0x1f0..0x270 {
        for value in 0..=255 {
            for width in [1, 2, 4, 8] {
                let mut file = good.clone();
                file[at..at + width].fill(value);
                check(&file);
            }
        }
    }
}
