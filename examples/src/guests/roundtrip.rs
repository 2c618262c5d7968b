//! Many short trips: L2 does CPUID and VMCALL in turn, L1 answers and resumes
//! (SDM Vol. 3C "Instructions That Cause VM Exits Unconditionally").
//!
//! The trip itself is what is measured and compared, so L1 reports only after each `work` trips.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{field, reason};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "roundtrip",
    about: "`work` round trips an iteration (default 1000), CPUID and VMCALL in turn; for benches and long replays",
    build,
    processors: 1,
};

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::new("roundtrip", params)?;
    let l2 = p.l2(|a| {
        let mut again = a.create_label();
        a.set_label(&mut again)?;
        a.cpuid()?;
        a.inc(ebx)?;
        a.vmcall()?;
        a.jmp(again)
    })?;
    p.fresh_vmcs(l2, Controls::default())?;
    p.set_l2(L2Register::Rbx, 0)?;
    p.checkpoint(1)?;

    let mut again = p.a.create_label();
    let mut known = p.a.create_label();
    p.a.mov(r14d, params.work.max(1))?;
    p.a.set_label(&mut again)?;
    p.a.zero_bytes()?;
    p.run()?;
    p.a.mov(eax, dword_ptr(map::RESULT))?;
    p.a.cmp(eax, reason::CPUID as i32)?;
    p.a.je(known)?;
    p.a.cmp(eax, reason::VMCALL as i32)?;
    p.a.je(known)?;
    p.expect_eax(reason::VMCALL)?;
    p.a.set_label(&mut known)?;
    p.skip_instruction()?;
    p.a.dec(r14d)?;
    p.a.jne(again)?;
    p.expect_l2(L2Register::Rbx, params.work.max(1) / 2)?;
    p.report_field(field::GUEST_RIP)?;
    p.checkpoint(2)?;
    p.finish()
}
