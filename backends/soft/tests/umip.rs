//! User-mode instruction prevention (SDM Vol. 3A "Control Registers", CR4.UMIP): descriptor tables and CR0
//! stay hidden from CPL 3, in L1 as in L2, and the fault goes before the exit that L1 asks for.

mod common;

use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::control::cr4;
use nvmx_core::x86::{CpuState, Gpr};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const GDTR_OR_IDTR: u32 = 46;
const LDTR_OR_TR: u32 = 47;
const GP: u64 = 13;

/// Instruction on [RBX], its exit under "descriptor-table exiting".
const ROWS: [(&str, &[u8], Option<u32>); 5] = [
    ("SGDT", &[0x0f, 0x01, 0x03], Some(GDTR_OR_IDTR)),
    ("SIDT", &[0x0f, 0x01, 0x0b], Some(GDTR_OR_IDTR)),
    ("SLDT", &[0x0f, 0x00, 0x03], Some(LDTR_OR_TR)),
    ("STR", &[0x0f, 0x00, 0x0b], Some(LDTR_OR_TR)),
    ("SMSW", &[0x0f, 0x01, 0x23], None),
];

#[test]
fn it_prevents_at_cpl_3_alone() {
    for (name, code, exit) in ROWS {
        for case in 0..8 {
            let [umip, user, exits] = [0, 1, 2].map(|bit| case >> bit & 1 != 0);
            let mut nest = Nest::of_profile(Some("max"), &[code, &VMCALL].concat());
            if user {
                nest.set(Field::GUEST_CS_SELECTOR, 0x0b);
                nest.set(Field::GUEST_CS_AR_BYTES, 0xa0fb);
                nest.set(Field::GUEST_SS_SELECTOR, 0x23);
                nest.set(Field::GUEST_SS_AR_BYTES, 0xc0f3);
            }
            if umip {
                let value = nest.get(Field::GUEST_CR4) | cr4::UMIP;
                nest.set(Field::GUEST_CR4, value);
            }
            if exits {
                nest.on(
                    Field::CPU_BASED_VM_EXEC_CONTROL,
                    Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
                );
                nest.on(
                    Field::SECONDARY_VM_EXEC_CONTROL,
                    Secondary::DESCRIPTOR_TABLE_EXITING.bits(),
                );
            }
            nest.set(Field::EXCEPTION_BITMAP, 1 << GP);
            let mut regs = nest.regs();
            regs.set(Gpr::Rbx, PAGE);
            nest.set_state(CpuState {
                regs: Some(regs),
                ..CpuState::default()
            });
            let text = format!("{name}, UMIP {umip}, user {user}, exiting {exits}");
            let entry = nest.enter();
            let expected = if umip && user {
                EXCEPTION
            } else {
                exit.filter(|_| exits).unwrap_or(VMCALL_EXIT)
            };
            assert_eq!(entry, Entry::Exit(expected), "{text}");
            if expected == EXCEPTION {
                assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO) & 0xff, GP, "{text}");
                assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 0, "{text}");
            }
        }
    }
}

/// MOV to CR4 turns it on and off.
#[test]
fn a_move_to_cr4_switches_it() {
    // mov cr4, rax; sgdt [rbx]; vmcall, from CPL 0: nothing is prevented.
    let code = [&[0x0f, 0x22, 0xe0, 0x0f, 0x01, 0x03][..], &VMCALL].concat();
    let mut nest = Nest::of_profile(Some("max"), &code);
    for bits in [cr4::UMIP, 0] {
        let mut regs = nest.regs();
        regs.set(Gpr::Rax, nest.get(Field::GUEST_CR4) & !cr4::UMIP | bits);
        regs.set(Gpr::Rbx, PAGE);
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        nest.set(Field::GUEST_RIP, L2);
        nest.expect(VMCALL_EXIT, L2 + 6);
        assert_eq!(nest.get(Field::GUEST_CR4) & cr4::UMIP, bits);
    }
}
