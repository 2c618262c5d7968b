//! L2 computes: a loop of arithmetic, memory, shifts and calls, `work` passes an iteration, then one
//! VMCALL with the checksum.
//!
//! EPT is on where there is EPT, so that address translation is part of what is measured. IF is 1 in
//! L2: on an L0 that runs inside Bochs a long stretch with IF=0 would hold up the host's interrupts.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{field, reason, secondary};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "compute",
    about: "L2 computes `work` passes of a mixed loop an iteration, 12 instructions a pass, one exit",
    build,
    processors: 1,
};

/// What L2 computes, in Rust: the checksum that L1 expects.
fn checksum(work: u32) -> u32 {
    let mut table = [0_u64; 64];
    let mut sum = 0x9e37_79b9_7f4a_7c15_u64;
    for pass in (1..=u64::from(work.max(1))).rev() {
        let slot = (pass & 63) as usize;
        sum = sum.wrapping_add(pass).rotate_left(7) ^ table[slot];
        table[slot] = table[slot].wrapping_add(sum);
    }
    sum as u32
}

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::new("compute", params)?;
    let l2 = p.l2(|a| {
        let mut again = a.create_label();
        let mut pass = a.create_label();
        a.mov(edi, map::SCRATCH as u32)?;
        a.mov(ecx, params.work.max(1))?;
        a.mov(rax, 0x9e37_79b9_7f4a_7c15_u64)?;
        a.set_label(&mut again)?;
        a.call(pass)?;
        a.dec(ecx)?;
        a.jne(again)?;
        a.vmcall()?;
        a.set_label(&mut pass)?;
        a.mov(edx, ecx)?;
        a.and(edx, 63)?;
        a.add(rax, rcx)?;
        a.rol(rax, 7)?;
        a.xor(rax, qword_ptr(rdi + rdx * 8))?;
        a.add(qword_ptr(rdi + rdx * 8), rax)?;
        a.nop()?;
        a.nop()?;
        a.ret()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            secondary: secondary::EPT,
            ..Controls::default()
        },
    )?;
    p.vmwrite(field::GUEST_RFLAGS, 0x202)?;
    p.a.mov(edi, map::SCRATCH as u32)?;
    p.a.mov(ecx, 64)?;
    p.a.xor(eax, eax)?;
    p.a.rep().stosq()?;
    p.checkpoint(1)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, checksum(params.work))?;
    p.checkpoint(2)?;
    p.finish()
}
