//! The state that an image starts in: 32-bit protected mode for multiboot
//! (Multiboot Specification 0.6.96, "Machine state"), 64-bit mode for a plain ELF64, either for Linux
//! (Linux, Documentation/arch/x86/boot.rst "32-bit Boot Protocol", "64-bit Boot Protocol").

use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{AccessRights, CpuState, DescriptorTable, Gpr, Regs, Segment, Sregs};

/// What multiboot promises in EAX.
pub const MULTIBOOT_BOOTLOADER_MAGIC: u32 = 0x2bad_b002;
/// IA32_APIC_BASE after reset: enabled, bootstrap processor, 0xfee00000.
const APIC_BASE_AFTER_RESET: u64 = 0xfee0_0900;

fn flat(selector: u16, ar: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    }
}

fn state(code_ar: u32, rip: u64, sregs: Sregs, gprs: &[(Gpr, u64)]) -> CpuState {
    // Present, writable, accessed, 32-bit, 4-KiB granularity.
    let data = flat(0x10, 0xc093);
    let mut regs = Regs {
        rip,
        rflags: 2,
        ..Regs::default()
    };
    for (gpr, value) in gprs {
        regs.set(*gpr, *value);
    }
    CpuState {
        sregs: Some(Sregs {
            cs: flat(0x08, code_ar),
            ds: data,
            es: data,
            fs: data,
            gs: data,
            ss: data,
            // As after reset, but a TR that VM entry and KVM accept: a busy 32-bit TSS.
            tr: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                ar: AccessRights::from_bits_retain(0x8b),
            },
            ldtr: Segment {
                selector: 0,
                base: 0,
                limit: 0xffff,
                ar: AccessRights::UNUSABLE,
            },
            gdtr: DescriptorTable::default(),
            idtr: DescriptorTable::default(),
            apic_base: APIC_BASE_AFTER_RESET,
            ..sregs
        }),
        regs: Some(regs),
        ..CpuState::default()
    }
}

/// 32-bit protected mode, flat, paging off, interrupts off; EBX holds the information structure.
#[must_use]
pub fn multiboot(entry: u32, info: u32) -> CpuState {
    let sregs = Sregs {
        cr0: cr0::PE | cr0::ET,
        ..Sregs::default()
    };
    let magic = u64::from(MULTIBOOT_BOOTLOADER_MAGIC);
    state(
        0xc09b,
        u64::from(entry),
        sregs,
        &[(Gpr::Rax, magic), (Gpr::Rbx, u64::from(info))],
    )
}

/// 64-bit mode at CPL 0 with the loader's identity page tables at `page_tables`; RSP is `stack`.
#[must_use]
pub fn long_mode(entry: u64, page_tables: u64, stack: u64) -> CpuState {
    let sregs = Sregs {
        cr0: cr0::PE | cr0::ET | cr0::NE | cr0::WP | cr0::PG,
        cr3: page_tables,
        cr4: cr4::PAE,
        efer: efer::LME | efer::LMA,
        ..Sregs::default()
    };
    state(0xa09b, entry, sregs, &[(Gpr::Rsp, stack)])
}

/// Flat 64-bit code, as a descriptor.
pub(crate) const CODE_64: u64 = 0x00af_9b00_0000_ffff;
/// Flat 32-bit code.
pub(crate) const CODE_32: u64 = 0x00cf_9b00_0000_ffff;
/// Flat data.
pub(crate) const DATA: u64 = 0x00cf_9300_0000_ffff;

/// What both of Linux' entry points ask for: selectors 0x10 and 0x18 of a GDT with these two.
fn linux(mut state: CpuState, boot_params: u64, gdt: u64) -> CpuState {
    if let Some(regs) = &mut state.regs {
        regs.set(Gpr::Rsi, boot_params);
    }
    if let Some(sregs) = &mut state.sregs {
        sregs.cs.selector = 0x10;
        for segment in [
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
            &mut sregs.ss,
        ] {
            segment.selector = 0x18;
        }
        sregs.gdtr = DescriptorTable {
            base: gdt,
            limit: 4 * 8 - 1,
        };
    }
    state
}

/// Linux' 64-bit entry point, on identity page tables; RSI holds `boot_params`.
#[must_use]
pub fn linux_64(entry: u64, page_tables: u64, boot_params: u64, gdt: u64) -> CpuState {
    linux(long_mode(entry, page_tables, 0), boot_params, gdt)
}

/// Linux' 32-bit entry point, paging off; ESI holds `boot_params`, other registers are zero.
#[must_use]
pub fn linux_32(entry: u64, boot_params: u64, gdt: u64) -> CpuState {
    let sregs = Sregs {
        cr0: cr0::PE | cr0::ET,
        ..Sregs::default()
    };
    linux(state(0xc09b, entry, sregs, &[]), boot_params, gdt)
}
