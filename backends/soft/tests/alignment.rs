//! Alignment checks at CPL 3 (SDM Vol. 3A "Interrupt 17: Alignment Check Exception (#AC)"): L2's own
//! handler gets them, or L1 where it asks for them.

mod common;

use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::x86::CpuState;
use nvmx_core::x86::control::cr0;

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const AC: u64 = 1 << 18;
const HANDLER: u64 = HANDLERS + 64 * 17;

/// L2 at CPL 3 with alignment checks on; RBX is `address`.
fn user(code: &[u8], address: u64) -> Nest {
    let mut nest = Nest::new(&[code, &VMCALL].concat());
    nest.set(Field::GUEST_CS_SELECTOR, 0x0b);
    nest.set(Field::GUEST_CS_AR_BYTES, 0xa0fb);
    nest.set(Field::GUEST_SS_SELECTOR, 0x23);
    nest.set(Field::GUEST_SS_AR_BYTES, 0xc0f3);
    nest.set(Field::GUEST_CR0, nest.get(Field::GUEST_CR0) | cr0::AM);
    nest.set(Field::GUEST_RFLAGS, 2 | AC);
    let mut regs = nest.regs();
    regs.gpr[1] = 2;
    regs.gpr[3] = address;
    regs.gpr[6] = PAGE;
    regs.gpr[7] = address;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest
}

const ROWS: [(&str, &[u8], u64); 14] = [
    ("MOV 8", &[0x8a, 0x03], 1),
    ("MOV 16", &[0x66, 0x8b, 0x03], 2),
    ("MOV 32", &[0x8b, 0x03], 4),
    ("MOV to memory", &[0x48, 0x89, 0x03], 8),
    ("ADD", &[0x01, 0x03], 4),
    ("LOCK XADD", &[0xf0, 0x48, 0x0f, 0xc1, 0x03], 8),
    ("PUSH from memory", &[0xff, 0x33], 8),
    ("FLD m80", &[0xdb, 0x2b], 8),
    ("FLD m32", &[0xd9, 0x03], 4),
    ("FLD m64", &[0xdd, 0x03], 8),
    ("REP MOVSD", &[0xf3, 0xa5], 4),
    ("MOVUPS", &[0x0f, 0x10, 0x03], 1),
    ("LEA", &[0x8d, 0x43, 0x01], 1),
    ("NOP of memory", &[0x0f, 0x1f, 0x03], 1),
];

#[test]
fn an_operand_that_is_not_aligned_faults() {
    for (name, code, alignment) in ROWS {
        for offset in 0..8 {
            let mut nest = user(code, PAGE + offset);
            nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | 1 << 9);
            nest.set(Field::EXCEPTION_BITMAP, 1 << 17);
            let faults = offset % alignment != 0;
            if faults {
                assert_eq!(nest.enter(), Entry::Exit(EXCEPTION), "{name} {offset}");
                assert_eq!(nest.get(Field::GUEST_RIP), L2, "{name}");
                assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0b11, "{name}");
                assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 0, "{name}");
                // Passed once checks are off.
                nest.set(Field::GUEST_RFLAGS, 2);
            }
            assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT), "{name} {offset}");
            assert_eq!(nest.get(Field::GUEST_RIP), L2 + code.len() as u64, "{name}");
        }
    }
}

#[test]
fn all_three_conditions_must_hold() {
    let code = [0x8b, 0x03];
    for (am, ac, user_mode) in [
        (false, true, true),
        (true, false, true),
        (true, true, false),
    ] {
        let mut nest = user(&code, PAGE + 1);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 17);
        if !am {
            nest.set(Field::GUEST_CR0, nest.get(Field::GUEST_CR0) & !cr0::AM);
        }
        if !ac {
            nest.set(Field::GUEST_RFLAGS, 2);
        }
        if !user_mode {
            nest.set(Field::GUEST_CS_SELECTOR, 0x08);
            nest.set(Field::GUEST_CS_AR_BYTES, 0xa09b);
            nest.set(Field::GUEST_SS_SELECTOR, 0x10);
            nest.set(Field::GUEST_SS_AR_BYTES, 0xc093);
        }
        nest.expect(VMCALL_EXIT, L2 + 2);
    }
}

/// By way of IRET and POPF, which the engine runs by itself; the handler is the guest's own.
#[test]
fn checks_begin_with_the_flag() {
    // popfq; mov eax, [rbx]
    let mut nest = user(&[0x9d, 0x8b, 0x03], PAGE + 1);
    common::bare::put(&mut nest.vm, HANDLER, &VMCALL);
    common::bare::put(&mut nest.vm, L2_STACK, &(2 | AC).to_le_bytes());
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.expect(VMCALL_EXIT, HANDLER);
    assert_eq!(nest.get(Field::GUEST_CS_SELECTOR), 8);

    // iretq to the instruction behind itself, at CPL 3.
    let mut nest = user(&[0x48, 0xcf, 0x90, 0x8b, 0x03], PAGE + 1);
    common::bare::put(&mut nest.vm, HANDLER, &VMCALL);
    for (index, word) in [L2 + 2, 0x0b, 2 | AC, L2_STACK, 0x23].iter().enumerate() {
        common::bare::put(
            &mut nest.vm,
            L2_STACK + 8 * index as u64,
            &u64::to_le_bytes(*word),
        );
    }
    // User code and data for the IRET.
    common::bare::put(
        &mut nest.vm,
        common::bare::GDT + 8,
        &0x00af_fb00_0000_ffff_u64.to_le_bytes(),
    );
    common::bare::put(
        &mut nest.vm,
        common::bare::GDT + 0x30,
        &0x00af_9b00_0000_ffff_u64.to_le_bytes(),
    );
    nest.set(Field::GUEST_CS_SELECTOR, 0x30);
    nest.set(Field::GUEST_CS_AR_BYTES, 0xa09b);
    nest.set(Field::GUEST_SS_SELECTOR, 0x10);
    nest.set(Field::GUEST_SS_AR_BYTES, 0xc093);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 17);
    nest.expect(EXCEPTION, L2 + 3);
}
