//! The monitor trap flag: L1 sees L2 after each instruction (SDM Vol. 3C "Monitor Trap Flag").
//!
//! A file of its own, because there are processors that offer the control and never trap (Bochs 2.7,
//! model corei7_icelake_u, is one): there the guest says so and ends well.

use super::Guest;
use crate::image::Image;
use crate::runtime::handlers::L2_EXCEPTION;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::routines::exit_code;
use crate::runtime::vmcs::{capability, exit_control, field, primary, reason};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "stepping",
    about: "monitor trap flag: single steps, a step that begins with an injected event, VMCALL without a trap",
    build,
    processors: 1,
};

const BASE: Controls = Controls {
    pin: 0,
    primary: 0,
    secondary: 0,
    exit: exit_control::HOST_64_BIT,
    entry: 1 << 9,
};
const STEPPING: Controls = Controls {
    primary: primary::MONITOR_TRAP_FLAG,
    ..BASE
};

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("stepping", params, |p| {
        p.require(
            capability::PRIMARY,
            primary::MONITOR_TRAP_FLAG,
            "monitor trap flag",
        )?;
        p.enable_vmx()
    })?;
    let l2 = p.l2(|a| {
        a.vmcall()?;
        a.mov(eax, 5)?;
        a.add(eax, eax)?;
        a.push(rax)?;
        a.pop(rbx)?;
        a.vmcall()?;
        a.nop()?;
        a.nop()?;
        a.vmcall()
    })?;
    p.fresh_vmcs(l2, BASE)?;
    p.vmwrite(field::GUEST_RFLAGS, 0x202)?;
    p.run_until(reason::VMCALL)?;
    p.skip_instruction()?;
    p.checkpoint(1)?;

    p.controls(STEPPING)?;
    p.run()?;
    let mut traps = p.a.create_label();
    p.a.cmp(dword_ptr(map::RESULT), reason::MTF as i32)?;
    p.a.je(traps)?;
    p.print("skipped: the monitor trap flag is offered but does not trap\n")?;
    p.end(exit_code::SUCCESS)?;
    p.a.set_label(&mut traps)?;
    p.a.zero_bytes()?;
    p.report_field(field::GUEST_RIP)?;
    for _ in 0..3 {
        p.run_until(reason::MTF)?;
        p.checkpoint(2)?;
    }
    p.expect_l2(L2Register::Rbx, 10)?;
    // VMCALL exits by itself: no trap after it.
    p.run_until(reason::VMCALL)?;
    p.skip_instruction()?;
    p.checkpoint(3)?;

    // With an event injected, the trap comes before the first instruction of its handler.
    p.vmwrite(field::ENTRY_INTERRUPTION, 1 << 31 | 0x44)?;
    p.set_l2(L2Register::R13, 0)?;
    p.run_until(reason::MTF)?;
    p.expect_field(field::GUEST_RIP, map::STUBS_L2 as u32 + 16 * 0x44)?;
    p.checkpoint(4)?;
    p.controls(BASE)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, L2_EXCEPTION | 0x44)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(5)?;
    p.finish()
}
