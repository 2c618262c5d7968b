//! Control registers behind masks and shadows, and the other intercepted system instructions
//! (SDM Vol. 3C "Guest/Host Masks and Read Shadows for CR0 and CR4", "Instructions That Cause VM
//! Exits Conditionally").

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{capability, exit_control, field, primary, reason, secondary};
use crate::runtime::{BuildError, Params, entry, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "control",
    about: "CR0/CR4 masks and shadows, MOV CR, CLTS, LMSW, MOV DR, INVLPG, PAUSE, descriptor tables, WBINVD",
    build,
    processors: 1,
};

const TS: u32 = 1 << 3;
const MP: u32 = 1 << 1;
const VMXE: u32 = 1 << 13;
const DE: u32 = 1 << 3;
/// The controls that 64-bit mode needs, when the control fields are written anew.
const BASE: Controls = Controls {
    pin: 0,
    primary: 0,
    secondary: 0,
    exit: exit_control::HOST_64_BIT,
    entry: 1 << 9,
};

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("control", params, |p| {
        p.require(
            capability::SECONDARY,
            secondary::DESCRIPTOR_TABLE | secondary::WBINVD,
            "descriptor-table or WBINVD exiting",
        )?;
        p.enable_vmx()
    })?;
    masks(&mut p)?;
    instructions(&mut p)?;
    p.finish()
}

/// L1 owns CR0.TS and CR4.VMXE: L2 reads the shadow's, and a write that would change a shadow exits.
fn masks(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.mov(rax, cr0)?;
        a.mov(rbx, cr4)?;
        a.vmcall()?;
        // L2 owns MP: no exit. TS is L1's and set in the shadow: writing 1 changes nothing.
        a.or(eax, (TS | MP) as i32)?;
        a.mov(cr0, rax)?;
        // Clearing TS exits: MOV, then CLTS, then LMSW.
        a.and(eax, !(TS as i32))?;
        a.mov(cr0, rax)?;
        a.clts()?;
        a.mov(ebx, 1)?;
        a.lmsw(bx)?;
        // CR4.DE is L2's, VMXE is not.
        a.mov(rax, cr4)?;
        a.or(eax, DE as i32)?;
        a.mov(cr4, rax)?;
        a.or(eax, VMXE as i32)?;
        a.mov(cr4, rax)?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.vmcall()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::CR3_LOAD | primary::CR3_STORE,
            ..BASE
        },
    )?;
    p.vmwrites(&[
        (field::CR0_MASK, TS.into()),
        (field::CR0_SHADOW, TS.into()),
        (field::CR4_MASK, VMXE.into()),
        (field::CR4_SHADOW, 0),
    ])?;
    p.checkpoint(1)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, entry::CR0 | TS)?;
    p.expect_l2(L2Register::Rbx, entry::CR4 & !VMXE)?;
    p.skip_instruction()?;
    p.checkpoint(2)?;
    for _ in 0..3 {
        p.run_until(reason::CR_ACCESS)?;
        p.skip_instruction()?;
    }
    p.expect_field(field::GUEST_CR0, entry::CR0 | MP)?;
    p.run_until(reason::CR_ACCESS)?;
    p.expect_field(field::GUEST_CR4, entry::CR4 | DE)?;
    p.skip_instruction()?;
    p.checkpoint(3)?;
    // CR3: store (L1 answers), then load.
    p.run_until(reason::CR_ACCESS)?;
    p.set_l2(L2Register::Rax, map::PAGING_L2)?;
    p.skip_instruction()?;
    p.run_until(reason::CR_ACCESS)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(4)
}

/// One exit for each, in this order.
fn instructions(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.mov(rax, dr7)?;
        a.mov(dr0, rax)?;
        a.invlpg(byte_ptr(map::SCRATCH))?;
        a.pause()?;
        a.sgdt(ptr(map::L2_VARS))?;
        a.sidt(ptr(rsp - 16))?;
        // In memory: with a register operand the exit qualification would be undefined.
        a.sldt(word_ptr(map::L2_VARS))?;
        a.str(word_ptr(map::L2_VARS))?;
        a.wbinvd()?;
        a.vmcall()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::MOV_DR | primary::INVLPG | primary::PAUSE,
            secondary: secondary::DESCRIPTOR_TABLE | secondary::WBINVD,
            ..BASE
        },
    )?;
    for (number, exit_reason) in [
        reason::DR_ACCESS,
        reason::DR_ACCESS,
        reason::INVLPG,
        reason::PAUSE,
        reason::GDTR_IDTR,
        reason::GDTR_IDTR,
        reason::LDTR_TR,
        reason::LDTR_TR,
        reason::WBINVD,
        reason::VMCALL,
    ]
    .into_iter()
    .enumerate()
    {
        p.run_until(exit_reason)?;
        p.skip_instruction()?;
        if number == 4 {
            p.checkpoint(5)?;
        }
    }
    p.checkpoint(6)
}
