//! The classes of instructions that L2 may run, a class a row.

use super::emit::gpr::*;
use super::emit::{Emit, Prefix};
use super::memory as touch;
use super::system;
use nvmx_core::vmx::controls::{Primary, Secondary};

/// Modes that a class is drawn in.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Modes {
    /// All.
    All,
    /// 64-bit mode.
    Only64,
    /// 16-bit and 32-bit code.
    Not64,
}

/// One class.
pub(super) struct Class {
    /// Its name.
    pub(super) name: &'static str,
    /// Where it is drawn.
    pub(super) modes: Modes,
    /// How often, against the others.
    pub(super) weight: u64,
    /// Primary controls that decide about it.
    pub(super) primary: Primary,
    /// Secondary controls, likewise.
    pub(super) secondary: Secondary,
    /// Writes one.
    pub(super) emit: fn(&mut Emit<'_>),
}

const fn class(name: &'static str, weight: u64, emit: fn(&mut Emit<'_>)) -> Class {
    Class {
        name,
        modes: Modes::All,
        weight,
        primary: Primary::empty(),
        secondary: Secondary::empty(),
        emit,
    }
}

const fn primary(class: Class, primary: Primary) -> Class {
    Class { primary, ..class }
}

const fn secondary(class: Class, secondary: Secondary) -> Class {
    Class { secondary, ..class }
}

const fn modes(class: Class, modes: Modes) -> Class {
    Class { modes, ..class }
}

const IO: Primary = Primary::UNCONDITIONAL_IO_EXITING.union(Primary::USE_IO_BITMAPS);
const TABLES: Secondary = Secondary::DESCRIPTOR_TABLE_EXITING;

/// All of them.
pub(super) static CLASSES: &[Class] = &[
    class("CPUID", 1, |e| {
        let leaf = *e.random.pick(&[0, 1, 7, 0xd, 0x8000_0000]);
        e.set(AX, leaf);
        e.raw(&[0x0f, 0xa2]);
    }),
    primary(class("HLT", 2, |e| e.raw(&[0xf4])), Primary::HLT_EXITING),
    class("INVD", 1, |e| e.raw(&[0x0f, 0x08])),
    secondary(
        class("WBINVD", 1, |e| e.raw(&[0x0f, 0x09])),
        Secondary::WBINVD_EXITING,
    ),
    primary(
        class("INVLPG", 2, |e| {
            let aim = e.aim();
            e.memory(Prefix::default(), &[0x0f, 0x01], 7, aim);
        }),
        Primary::INVLPG_EXITING,
    ),
    primary(
        class("RDPMC", 2, |e| {
            let counter = *e
                .random
                .pick(&[0, 1, 3, 4, 0x4000_0000, 0x4000_0001, 0xffff_ffff]);
            e.set(CX, counter);
            e.raw(&[0x0f, 0x33]);
            system::forget(e, &[AX, DX]);
        }),
        Primary::RDPMC_EXITING,
    ),
    primary(
        class("RDTSC", 2, |e| {
            e.raw(&[0x0f, 0x31]);
            system::forget(e, &[AX, DX]);
        }),
        Primary::RDTSC_EXITING,
    ),
    secondary(
        primary(
            class("RDTSCP", 2, |e| {
                e.raw(&[0x0f, 0x01, 0xf9]);
                system::forget(e, &[AX, DX]);
            }),
            Primary::RDTSC_EXITING,
        ),
        Secondary::ENABLE_RDTSCP,
    ),
    class("VMX without operand", 2, |e| {
        let last = *e.random.pick(&[0xc1, 0xc2, 0xc3, 0xc4]);
        e.raw(&[0x0f, 0x01, last]);
    }),
    class("VMX with pointer", 2, system::vmx_pointer),
    secondary(
        class("VMREAD", 3, system::vmread),
        Secondary::VMCS_SHADOWING,
    ),
    secondary(
        class("VMWRITE", 3, system::vmwrite),
        Secondary::VMCS_SHADOWING,
    ),
    secondary(
        class("INVEPT and the like", 2, system::invalidate),
        Secondary::ENABLE_INVPCID,
    ),
    secondary(
        class("VMFUNC", 3, |e| {
            let function = *e.random.pick(&[0, 0, 0, 0, 1, 63, 64]);
            e.set(AX, function);
            let entry = *e.random.pick(&[0, 1, 2, 3, 4, 5, 511, 512]);
            e.set(CX, entry);
            e.raw(&[0x0f, 0x01, 0xd4]);
        }),
        Secondary::ENABLE_VM_FUNCTIONS,
    ),
    primary(
        class("MOV to CR", 8, system::to_control),
        Primary::CR3_LOAD_EXITING.union(Primary::CR8_LOAD_EXITING),
    ),
    primary(
        class("MOV from CR", 4, system::from_control),
        Primary::CR3_STORE_EXITING.union(Primary::CR8_STORE_EXITING),
    ),
    class("CLTS", 2, |e| e.raw(&[0x0f, 0x06])),
    class("LMSW", 3, |e| {
        let value = *e.random.pick(&[0, 1, 2, 3, 8, 9, 0xb, 0xf, 0xffff]);
        if e.random.one_in(2) {
            let register = e.register();
            e.set(register, value);
            e.registers(Prefix::default(), &[0x0f, 0x01], 6, register);
        } else {
            let aim = e.data();
            e.memory.push((system::physical(e, aim), value));
            e.memory(Prefix::default(), &[0x0f, 0x01], 6, aim);
        }
    }),
    class("SMSW", 3, |e| {
        // What a wider register gets in its upper half is undefined.
        let prefix = Prefix {
            other_size: e.bits != 16,
            ..Prefix::default()
        };
        e.either(prefix, &[0x0f, 0x01], 4);
    }),
    primary(
        class("MOV DR", 5, system::debug_register),
        Primary::MOV_DR_EXITING,
    ),
    primary(class("IN and OUT", 6, system::port), IO),
    primary(class("INS and OUTS", 6, system::string_port), IO),
    primary(class("RDMSR", 5, system::rdmsr), Primary::USE_MSR_BITMAPS),
    primary(class("WRMSR", 5, system::wrmsr), Primary::USE_MSR_BITMAPS),
    primary(
        class("MONITOR", 1, |e| {
            let aim = e.aim();
            e.set(AX, aim);
            e.set(CX, 0);
            e.raw(&[0x0f, 0x01, 0xc8]);
        }),
        Primary::MONITOR_EXITING,
    ),
    primary(
        class("MWAIT", 1, |e| {
            e.set(CX, 0);
            e.raw(&[0x0f, 0x01, 0xc9]);
        }),
        Primary::MWAIT_EXITING,
    ),
    secondary(
        class("UMWAIT and the like", 1, |e| {
            let mandatory = *e.random.pick(&[0x66, 0xf2, 0xf3]);
            let register = e.register();
            let prefix = Prefix {
                mandatory: Some(mandatory),
                ..Prefix::default()
            };
            e.registers(prefix, &[0x0f, 0xae], 6, register);
        }),
        Secondary::ENABLE_USER_WAIT_AND_PAUSE,
    ),
    primary(
        class("PAUSE", 1, |e| e.raw(&[0xf3, 0x90])),
        Primary::PAUSE_EXITING,
    ),
    secondary(
        class("PAUSE loop", 1, |e| {
            let times = e.random.below(6) as u8 + 1;
            // MOV ECX, or CX.
            e.raw(&[0xb9, times, 0]);
            if e.bits != 16 {
                e.raw(&[0, 0]);
            }
            // PAUSE; LOOP back to it.
            e.raw(&[0xf3, 0x90, 0xe2, 0xfc]);
        }),
        Secondary::PAUSE_LOOP_EXITING,
    ),
    secondary(class("SGDT and the like", 4, system::store_table), TABLES),
    secondary(class("LGDT and the like", 4, system::load_table), TABLES),
    secondary(class("LLDT and the like", 5, system::local_table), TABLES),
    class("LAR and the like", 2, system::about_selector),
    class("XSETBV and XGETBV", 1, |e| {
        e.set(CX, 0);
        let last = *e.random.pick(&[0xd0, 0xd1]);
        e.raw(&[0x0f, 0x01, last]);
    }),
    secondary(
        class("RDRAND", 2, |e| system::random_number(e, 6)),
        Secondary::RDRAND_EXITING,
    ),
    secondary(
        class("RDSEED", 2, |e| system::random_number(e, 7)),
        Secondary::RDSEED_EXITING,
    ),
    class("INT3 and INT n", 4, |e| match e.random.below(4) {
        0 => e.raw(&[0xcc]),
        1 => e.raw(&[0xf1]),
        _ => {
            let vector = *e.random.pick(&[
                0, 1, 2, 3, 4, 6, 8, 0xd, 0xe, 0x20, 0x80, 0x81, 0x82, 0x83, 0x85, 0xff,
            ]);
            e.raw(&[0xcd, vector]);
        }
    }),
    class("UD", 2, |e| match e.random.below(4) {
        0 => e.raw(&[0x0f, 0xff, 0xc0]),
        1 => e.raw(&[0x0f, 0xb9, 0xc0]),
        2 => e.raw(&[0xf0, 0x89, 0xc0]),
        _ => e.raw(&[0x0f, 0x0b]),
    }),
    modes(
        class("INTO, BOUND, ARPL", 3, |e| match e.random.below(4) {
            0 => {
                // MOV AL, 7F; ADD AL, AL: overflow.
                e.raw(&[0xb0, 0x7f, 0x00, 0xc0, 0xce]);
            }
            1 => e.raw(&[0xce]),
            2 => {
                let aim = e.data();
                let register = e.register();
                let prefix = touch::size(e);
                e.memory(prefix, &[0x62], register, aim);
            }
            _ => {
                let register = e.register();
                e.either(Prefix::default(), &[0x63], register);
            }
        }),
        Modes::Not64,
    ),
    class("division", 2, |e| {
        let divisor = e.random.below(2);
        e.set(BX, divisor);
        e.set(DX, 0);
        e.raw(&[0xf7, 0xf3]);
    }),
    class("load", 8, touch::load),
    class("store", 8, touch::store),
    class("read-modify-write", 8, touch::read_modify_write),
    class("stack", 8, touch::stack),
    class("string", 8, touch::string),
    class("SSE", 3, touch::sse),
    class("x87", 1, |e| {
        let bytes = *e
            .random
            .pick(&[&[0xdb, 0xe3][..], &[0xd9, 0xee], &[0x9b], &[0x0f, 0x77]]);
        e.raw(bytes);
    }),
    class("segment load", 6, system::segment),
    class("far transfer", 6, system::far),
    class("IRET", 5, system::iret),
    class("POPF", 4, system::popf),
    class("PUSHF", 1, |e| {
        let prefix = Prefix {
            other_size: e.random.one_in(3),
            ..Prefix::default()
        };
        e.plain(prefix, &[0x9c]);
    }),
    primary(
        class("STI and CLI", 3, |e| {
            let opcode = *e.random.pick(&[0xfa, 0xfb, 0xfb]);
            e.raw(&[opcode]);
        }),
        Primary::INTERRUPT_WINDOW_EXITING,
    ),
    class("GETSEC", 1, |e| e.raw(&[0x0f, 0x37])),
    secondary(
        class("XSAVES and XRSTORS", 1, |e| {
            let digit = *e.random.pick(&[3, 5]);
            let aim = e.data();
            e.memory(Prefix::default(), &[0x0f, 0xc7], digit, aim);
        }),
        Secondary::ENABLE_XSAVES,
    ),
    class("SYSCALL and the like", 3, system::fast_call),
    modes(
        class("SWAPGS and FS base", 2, |e| match e.random.below(3) {
            0 => e.raw(&[0x0f, 0x01, 0xf8]),
            _ => {
                let digit = e.random.below(4) as u8;
                let register = e.register();
                let prefix = Prefix {
                    mandatory: Some(0xf3),
                    wide: e.random.one_in(2),
                    ..Prefix::default()
                };
                e.registers(prefix, &[0x0f, 0xae], digit, register);
            }
        }),
        Modes::Only64,
    ),
    class("CLAC, STAC, RDPKRU", 1, |e| {
        let last = *e.random.pick(&[0xca, 0xcb, 0xee]);
        e.set(CX, 0);
        e.raw(&[0x0f, 0x01, last]);
    }),
    class("CLFLUSH and prefetch", 1, |e| {
        let aim = e.aim();
        if e.random.one_in(2) {
            e.memory(Prefix::default(), &[0x0f, 0xae], 7, aim);
        } else {
            e.memory(Prefix::default(), &[0x0f, 0x18], 1, aim);
        }
    }),
    class("AMD-V", 1, |e| {
        let last = *e.random.pick(&[0xd8, 0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xdf]);
        e.raw(&[0x0f, 0x01, last]);
    }),
    class("arithmetic", 4, |e| {
        let (reg, rm) = (e.register(), e.register());
        let opcode = *e
            .random
            .pick(&[0x01, 0x11, 0x19, 0x21, 0x29, 0x31, 0x39, 0x89]);
        let prefix = touch::size(e);
        e.registers(prefix, &[opcode], reg, rm);
    }),
];
