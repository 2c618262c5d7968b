//! IRET and far RET at privilege level 3: their pops are the user's accesses (SDM Vol. 3A "Determination of
//! Access Rights").

mod common;

use common::bare::put;
use common::nest::*;
use common::user::{user, user_gate};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::EntryControls;

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const SMAP: u64 = 1 << 21;
#[test]
fn pops_are_the_users() {
    let iret: (&[u8], &[u64]) = (&[0x48, 0xcf], &[L2 + 2, 0x33, 2, L2_STACK, 0x3b]);
    let retf: (&[u8], &[u64]) = (&[0x48, 0xcb], &[L2 + 2, 0x33]);
    for (code, stack) in [iret, retf] {
        for smap in [0, SMAP] {
            let mut nest = user(code, stack, true);
            nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | smap);
            nest.expect(VMCALL_EXIT, L2 + 2);

            let mut nest = user(code, stack, false);
            nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | smap);
            nest.expect(EXCEPTION, L2);
            // Present, and the user's.
            assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 5);
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION) >> 12, L2_STACK >> 12);
        }
    }
}

/// Nor are they the supervisor's where its translation is there already: a handler has read the page.
#[test]
fn a_page_that_the_supervisor_has_touched_is_not_the_users() {
    for code in [[0x48, 0xcf], [0x48, 0xcb]] {
        // mov rax, [rsp], with interrupt 33's handler; then back to the return under test.
        let mut nest = user(&[&[0xcd, 0x21][..], &code].concat(), &[0; 5], false);
        let at = user_gate(&mut nest);
        // mov rax, [L2_STACK]; iretq
        let load = [
            &[0x48, 0x8b, 0x04, 0x25][..],
            &(L2_STACK as u32).to_le_bytes(),
            &[0x48, 0xcf],
        ];
        put(&mut nest.vm, at, &load.concat());
        nest.expect(EXCEPTION, L2 + 2);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 5);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION) >> 12, L2_STACK >> 12);
    }
}

/// What the user has popped stays out of a supervisor's reach.
#[test]
fn smap_holds_behind_a_pop() {
    // iretq; int 0x21, whose handler loads from the page that IRET has read.
    let code = [0x48, 0xcf, 0xcd, 0x21];
    let mut nest = user(&code, &[L2 + 2, 0x33, 2, L2_STACK, 0x3b], true);
    let at = user_gate(&mut nest);
    // mov rsp, [rsp + 24]; mov rax, [rsp]
    put(
        &mut nest.vm,
        at,
        &[0x48, 0x8b, 0x64, 0x24, 0x18, 0x48, 0x8b, 0x04, 0x24],
    );
    nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | SMAP);
    nest.expect(EXCEPTION, at + 5);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 1);
}

/// The exit of a faulting IRET tells that it unblocked NMIs, in 32-bit code as in 64-bit code.
#[test]
fn a_faulting_iret_has_unblocked_nmis() {
    for wide in [true, false] {
        let code: &[u8] = if wide { &[0x48, 0xcf] } else { &[0xcf] };
        let mut nest = Nest::new(code);
        if !wide {
            nest.off(
                Field::VM_ENTRY_CONTROLS,
                (EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_EFER).bits(),
            );
            nest.set(Field::GUEST_CR3, PAGE2);
            nest.set(Field::GUEST_CR4, 0x2010);
            nest.set(Field::GUEST_CS_SELECTOR, 0x18);
            nest.set(Field::GUEST_CS_AR_BYTES, 0xc09b);
            nest.set(Field::GUEST_CS_LIMIT, 0xffff_ffff);
            put(&mut nest.vm, PAGE2, &0x87_u32.to_le_bytes());
        }
        // RIP 0 and a selector beyond the table.
        let frame: &[u8] = &[0, 0, 0, 0, 0xf8, 0x7f, 0, 0, 0xf8, 0x7f, 0, 0];
        put(&mut nest.vm, L2_STACK, frame);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 13);
        nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, 8);
        nest.expect(EXCEPTION, L2);
        assert_eq!(
            nest.get(Field::VM_EXIT_INTR_INFO),
            0x8000_1b0d,
            "64-bit code: {wide}"
        );
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), 0);
    }
}

/// And so does that of one at CPL 3 whose stack is the supervisor's.
#[test]
fn a_users_faulting_iret_has_unblocked_nmis() {
    let mut nest = user(&[0x48, 0xcf], &[], false);
    nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, 8);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_1b0e);
    assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), 0);
}
