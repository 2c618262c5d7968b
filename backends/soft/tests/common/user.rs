//! L2 at privilege level 3, its supervisor's pages beside its own.

use super::bare::{GDT, IDT, PAGING, put};
use super::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;

/// Page tables of L2's that tell the user's pages from the supervisor's.
const TABLE: u64 = 0x6_8000;

/// L2 at CPL 3; the page of its stack belongs to the user or not.
pub(crate) fn user(code: &[u8], stack: &[u64], user_stack: bool) -> Nest {
    let nest = Nest::new(&[code, &VMCALL].concat());
    make_user(nest, stack, user_stack)
}

/// Puts L2 at CPL 3.
pub(crate) fn make_user(mut nest: Nest, stack: &[u64], user_stack: bool) -> Nest {
    for page in 0..512_u64 {
        let user = page == L2 >> 12 || page == L2_STACK >> 12 && user_stack;
        let rights = if user { 7 } else { 3 };
        let entry = page << 12 | rights;
        put(&mut nest.vm, TABLE + 8 * page, &entry.to_le_bytes());
    }
    put(&mut nest.vm, PAGING + 0x2000, &(TABLE | 7).to_le_bytes());
    // The user's code and data.
    put(
        &mut nest.vm,
        GDT + 0x30,
        &0x00af_fb00_0000_ffff_u64.to_le_bytes(),
    );
    put(
        &mut nest.vm,
        GDT + 0x38,
        &0x00cf_f300_0000_ffff_u64.to_le_bytes(),
    );
    for (index, word) in stack.iter().enumerate() {
        put(
            &mut nest.vm,
            L2_STACK + 8 * index as u64,
            &word.to_le_bytes(),
        );
    }
    for (field, value) in [
        (Field::GUEST_CS_SELECTOR, 0x33),
        (Field::GUEST_CS_AR_BYTES, 0xa0fb),
        (Field::GUEST_SS_SELECTOR, 0x3b),
        (Field::GUEST_SS_AR_BYTES, 0xc0f3),
        (Field::EXCEPTION_BITMAP, 1 << 14),
    ] {
        nest.set(field, value);
    }
    nest
}

/// Opens the gate of interrupt 33 to the user; the address of its handler.
pub(crate) fn user_gate(nest: &mut Nest) -> u64 {
    let gate = IDT + 16 * 0x21;
    let mut bytes = [0; 8];
    nest.vm
        .read_memory(L1Phys(gate), &mut bytes)
        .expect("the gate");
    let handler = u64::from_le_bytes(bytes);
    put(&mut nest.vm, gate, &(handler | 3 << 45).to_le_bytes());
    handler & 0xffff | handler >> 32 & 0xffff_0000
}
