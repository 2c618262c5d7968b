//! Task switches of L2, each of which exits, and the faults that come before (SDM Vol. 3C "Treatment of
//! Task Switches").

mod common;

use common::bare::{GDT, IDT, put};
use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::EntryControls;

const EXCEPTION: u32 = 0;
const TASK_SWITCH: u32 = 9;
const VMCALL_EXIT: u32 = 18;
const PAGE_DIRECTORY: u64 = 0x6_2000;
/// L2's TSS as `furnish` has it.
const TSS: u64 = 0xb000;

/// L2 in 32-bit mode with 32-bit paging. Selectors: 0x18 code, 0x28 the busy TSS, 0x30 another one,
/// 0x38 a task gate to it.
fn nest(code: &[u8]) -> Nest {
    let mut nest = Nest::new(code);
    nest.off(
        Field::VM_ENTRY_CONTROLS,
        (EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_EFER).bits(),
    );
    for (field, value) in [
        (Field::GUEST_CR3, PAGE_DIRECTORY),
        (Field::GUEST_CR4, 0x2010),
        (Field::GUEST_CS_SELECTOR, 0x18),
        (Field::GUEST_CS_AR_BYTES, 0xc09b),
        (Field::GUEST_CS_LIMIT, 0xffff_ffff),
    ] {
        nest.set(field, value);
    }
    put(&mut nest.vm, PAGE_DIRECTORY, &0x87_u32.to_le_bytes());
    for (selector, descriptor) in [
        (0x30, 0x0000_8900_c000_0067_u64),
        (0x38, 0x0000_8500_0030_0000),
    ] {
        put(&mut nest.vm, GDT + selector, &descriptor.to_le_bytes());
    }
    for vector in [6, 0x40] {
        put(
            &mut nest.vm,
            IDT + 8 * vector,
            &0x0000_8500_0030_0000_u64.to_le_bytes(),
        );
    }
    nest
}

/// JMP or CALL ptr16:32.
fn far(opcode: u8, selector: u8) -> [u8; 7] {
    [opcode, 0, 0, 0, 0, selector, 0]
}

#[test]
fn each_attempt_exits_with_its_source() {
    // Code, qualification, instruction length, IDT-vectoring information.
    let rows: [(&str, &[u8], u64, u64, u64); 7] = [
        ("JMP", &far(0xea, 0x30), 0x8000_0030, 7, 0),
        ("CALL", &far(0x9a, 0x30), 0x30, 7, 0),
        ("JMP through a gate", &far(0xea, 0x38), 0x8000_0030, 7, 0),
        // jmp far [ebx], the pointer in L2's code.
        (
            "JMP m16:32",
            &[0xff, 0x2b, 0, 0, 0, 0, 0x30, 0],
            0x8000_0030,
            2,
            0,
        ),
        ("IRET", &[0xcf], 0x4000_0028, 1, 0),
        ("INT", &[0xcd, 0x40], 0xc000_0030, 2, 0x8000_0440),
        ("UD2", &[0x0f, 0x0b], 0xc000_0030, u64::MAX, 0x8000_0306),
    ];
    for (name, code, qualification, length, vectoring) in rows {
        let mut nest = nest(code);
        // The link to the task that IRET returns to.
        put(&mut nest.vm, TSS, &[0x28, 0]);
        if name == "IRET" {
            nest.set(Field::GUEST_RFLAGS, 0x4002);
        }
        let mut regs = nest.regs();
        regs.gpr[3] = L2 + 2;
        nest.set_state(nvmx_core::x86::CpuState {
            regs: Some(regs),
            ..Default::default()
        });
        nest.expect(TASK_SWITCH, L2);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), qualification, "{name}");
        if length != u64::MAX {
            assert_eq!(nest.get(Field::VM_EXIT_INSTRUCTION_LEN), length, "{name}");
        }
        assert_eq!(
            nest.get(Field::IDT_VECTORING_INFO_FIELD),
            vectoring,
            "{name}"
        );
        assert_eq!(nest.get(Field::GUEST_TR_SELECTOR), 0x28, "{name}");
    }
}

#[test]
fn faults_come_before_the_exit() {
    // Code, #GP or #TS, error code.
    let rows: [(&[u8], u64, u64); 3] = [
        (&far(0xea, 0x28), 13, 0x28),
        (&far(0x9a, 0x33), 13, 0x30),
        (&[0xcf], 10, 0x30),
    ];
    for (code, vector, error_code) in rows {
        let mut nest = nest(code);
        put(&mut nest.vm, TSS, &[0x30, 0]);
        if code == [0xcf] {
            nest.set(Field::GUEST_RFLAGS, 0x4002);
        }
        nest.set(Field::EXCEPTION_BITMAP, 1 << 13 | 1 << 10);
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO) & 0xff, vector);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), error_code);
    }
}

#[test]
fn far_transfers_that_are_none_run() {
    let behind = (L2 + 7) as u32;
    // jmp 0x18:next; pushfd; push 0x18; push next; iretd; call 0x18:next; vmcall.
    let mut code = vec![0xea];
    code.extend(behind.to_le_bytes());
    code.extend([0x18, 0]);
    code.extend([0x9c, 0x6a, 0x18, 0x68]);
    code.extend((behind + 9).to_le_bytes());
    code.push(0xcf);
    code.push(0x9a);
    code.extend((behind + 16).to_le_bytes());
    code.extend([0x18, 0]);
    code.extend(VMCALL);
    let mut nest = nest(&code);
    nest.expect(VMCALL_EXIT, L2 + 23);
    assert_eq!(nest.get(Field::GUEST_RSP), L2_STACK - 8);
    assert_eq!(nest.get(Field::GUEST_CS_SELECTOR), 0x18);
}
