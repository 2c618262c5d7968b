//! x87, MMX and SSE while CR0 or CR4 switches them off (SDM Vol. 3A "Processing of x87 Instructions with CR0
//! and CR4 Controls", "Providing Operating System Support for SSE Instructions").

mod common;

use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::x86::{CpuState, Gpr};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const VALID: u64 = 1 << 31;

/// #NM of an x87 instruction, by CR0.TS that L2 sets itself and by CR0.EM that L1 sets.
#[test]
fn device_not_available() {
    const TS: u64 = 8;
    const EM: u64 = 4;
    // mov cr0, rbx; fnop; vmcall
    let mut nest = Nest::new(&[&[0x0f, 0x22, 0xc3, 0xd9, 0xd0][..], &VMCALL].concat());
    let cr0 = nest.get(Field::GUEST_CR0);
    let mut regs = nest.regs();
    regs.set(Gpr::Rbx, cr0 | TS);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest.set(Field::EXCEPTION_BITMAP, 1 << 7);
    for value in [None, Some(cr0 | EM)] {
        if let Some(value) = value {
            nest.set(Field::GUEST_CR0, value);
        }
        nest.expect(EXCEPTION, L2 + 3);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 3 << 8 | 7);
    }
    nest.set(Field::GUEST_CR0, cr0);
    nest.expect(VMCALL_EXIT, L2 + 5);
}

/// CR0.MP, CR0.EM and CR0.TS refuse what uses the units, and nothing that came with them.
#[test]
fn units_that_are_switched_off() {
    const MP: u64 = 2;
    const EM: u64 = 4;
    const TS: u64 = 8;
    const OSFXSR: u64 = 1 << 9;
    const NM: Option<u64> = Some(7);
    const UD: Option<u64> = Some(6);
    // What happens with EM; with TS; with TS and MP; with EM and TS.
    let cases: &[(&[u8], [Option<u64>; 4])] = &[
        // FNOP; WAIT; FXSAVE [RSP - 512]; EMMS; PXOR MM0, MM0; PXOR XMM0, XMM0; STMXCSR [RSP - 8].
        (&[0xd9, 0xd0], [NM; 4]),
        (&[0x9b], [None, None, NM, None]),
        (&[0x0f, 0xae, 0x84, 0x24, 0, 0xfe, 0xff, 0xff], [NM; 4]),
        (&[0x0f, 0x77], [UD, NM, NM, UD]),
        (&[0x0f, 0xef, 0xc0], [UD, NM, NM, UD]),
        (&[0x66, 0x0f, 0xef, 0xc0], [UD, NM, NM, UD]),
        (&[0x0f, 0xae, 0x5c, 0x24, 0xf8], [UD, NM, NM, UD]),
        // CRC32 EAX, AL; MOVBE EAX, [RSP]; SHLX EAX, EAX, ECX; MOVNTI [RSP - 8], EAX; LFENCE; PREFETCHT0.
        (&[0xf2, 0x0f, 0x38, 0xf0, 0xc0], [None; 4]),
        (&[0x0f, 0x38, 0xf0, 0x04, 0x24], [None; 4]),
        (&[0xc4, 0xe2, 0x71, 0xf7, 0xc0], [None; 4]),
        (&[0x0f, 0xc3, 0x44, 0x24, 0xf8], [None; 4]),
        (&[0x0f, 0xae, 0xe8], [None; 4]),
        (&[0x0f, 0x18, 0x0c, 0x24], [None; 4]),
    ];
    for (code, expected) in cases {
        let mut nest = Nest::new(&[code, &VMCALL[..]].concat());
        nest.set(Field::EXCEPTION_BITMAP, 1 << 6 | 1 << 7);
        let cr4 = nest.get(Field::GUEST_CR4);
        nest.set(Field::GUEST_CR4, cr4 | OSFXSR);
        let cr0 = nest.get(Field::GUEST_CR0) & !(MP | EM | TS);
        for (switches, vector) in [EM, TS, TS | MP, EM | TS].into_iter().zip(expected) {
            nest.set(Field::GUEST_CR0, cr0 | switches);
            nest.set(Field::GUEST_RIP, L2);
            match vector {
                Some(vector) => {
                    nest.expect(EXCEPTION, L2);
                    let information = nest.get(Field::VM_EXIT_INTR_INFO);
                    assert_eq!(
                        information,
                        VALID | 3 << 8 | vector,
                        "{code:x?} {switches:#x}"
                    );
                }
                None => nest.expect(VMCALL_EXIT, L2 + code.len() as u64),
            }
        }
    }
}
