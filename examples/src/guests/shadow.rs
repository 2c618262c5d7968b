//! VMCS shadowing: two levels of VMCS (SDM Vol. 3C "VMCS Shadowing Bitmap Addresses", "VMCS Types:
//! Ordinary and Shadow", "VMREAD" and "VMWRITE").
//!
//! L1 prepares a shadow VMCS, links it, and gives L2 two fields of it by the bitmaps; any other field
//! exits. What L2 wrote is in the shadow VMCS afterwards.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{capability, field, primary, reason, secondary};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "shadow",
    about: "VMCS shadowing: L2's VMREAD and VMWRITE through a linked shadow VMCS, the rest exits; VMXON in L2",
    build,
    processors: 1,
};

const SHADOW_VMCS: u32 = 1 << 31;
/// The field that L2 may read and write.
const OPEN: u32 = field::GUEST_RSP;
/// The field that L2 may read only.
const READABLE: u32 = field::GUEST_RIP;
/// A field that L2 may not touch.
const CLOSED: u32 = field::GUEST_CR3;

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("shadow", params, |p| {
        p.require(
            capability::SECONDARY,
            secondary::VMCS_SHADOWING,
            "VMCS shadowing",
        )?;
        p.enable_vmx()
    })?;
    // Every field closed, then two opened: bit N of a bitmap is field N, bits 14:0 of the encoding.
    p.a.mov(edi, map::VMREAD_BITMAP as u32)?;
    p.a.mov(ecx, 1024)?;
    p.a.mov(rax, -1_i64 as u64)?;
    p.a.rep().stosq()?;
    for (bitmap, number) in [
        (map::VMREAD_BITMAP, OPEN),
        (map::VMREAD_BITMAP, READABLE),
        (map::VMWRITE_BITMAP, OPEN),
    ] {
        let byte = bitmap + u64::from(number & 0x7fff) / 8;
        p.a.and(byte_ptr(byte), !(1 << (number % 8)))?;
    }

    let l2 = p.l2(|a| {
        a.mov(ecx, READABLE)?;
        a.vmread(rax, rcx)?;
        a.mov(ecx, OPEN)?;
        a.mov(ebx, 0x4321)?;
        a.vmwrite(rcx, rbx)?;
        a.vmread(rdx, rcx)?;
        // User space stops here with a shadow VMCS in use.
        a.mov(rbx, rdx)?;
        a.push(rax)?;
        a.mov(edx, 0x5e0)?;
        a.mov(eax, 0x00fd_0000)?;
        a.out(dx, eax)?;
        a.pop(rax)?;
        a.vmcall()?;
        // These exit: the fields are closed. With a register operand the exit qualification would be
        // undefined, so the operands are in memory.
        let operand = qword_ptr(map::L2_VARS);
        a.mov(ecx, CLOSED)?;
        a.vmread(operand, rcx)?;
        a.vmwrite(rcx, operand)?;
        a.mov(ecx, READABLE)?;
        a.vmwrite(rcx, operand)?;
        // Bits beyond 14 of the encoding always exit.
        a.mov(ecx, 0x1_681e)?;
        a.vmread(operand, rcx)?;
        a.vmxon(qword_ptr(map::L2_VARS))?;
        a.hlt()
    })?;
    prepare_shadow(&mut p)?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::HLT | primary::IO_BITMAPS,
            secondary: secondary::VMCS_SHADOWING,
            ..Controls::default()
        },
    )?;
    p.vmwrites(&[
        (field::LINK_POINTER, map::VMCS_2),
        (field::VMREAD_BITMAP, map::VMREAD_BITMAP),
        (field::VMWRITE_BITMAP, map::VMWRITE_BITMAP),
    ])?;
    p.checkpoint(1)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0x1_2345)?;
    p.expect_l2(L2Register::Rbx, 0x4321)?;
    p.skip_instruction()?;
    p.checkpoint(2)?;
    for reason in [
        reason::VMREAD,
        reason::VMWRITE,
        reason::VMWRITE,
        reason::VMREAD,
        reason::VMXON,
        reason::HLT,
    ] {
        p.run_until(reason)?;
        p.skip_instruction()?;
    }
    p.checkpoint(3)?;

    // The shadow VMCS holds what L2 wrote. It can be current, but not entered.
    p.point_to(map::VMCS)?;
    p.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    p.point_to(map::VMCS_2)?;
    p.vmx(0, |a| a.vmptrld(qword_ptr(map::POINTER)))?;
    p.expect_field(OPEN, 0x4321)?;
    p.a.mov(dword_ptr(map::LAUNCHED), 0)?;
    // VMfailInvalid by the manual; Bochs 2.7 goes on to the controls and says VMfailValid(7). What is
    // asked here is that the entry fails; which way, a comparison of two machines shows.
    p.run()?;
    p.a.mov(eax, dword_ptr(map::RESULT))?;
    p.a.and(eax, !3)?;
    p.expect_eax(map::VMFAIL_INVALID & !3)?;
    p.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    p.checkpoint(4)?;
    p.finish()
}

/// Makes [`map::VMCS_2`] a shadow VMCS with a value in the readable field.
fn prepare_shadow(p: &mut Program) -> Result<(), BuildError> {
    p.point_to(map::VMCS_2)?;
    p.a.mov(edi, map::VMCS_2 as u32)?;
    p.a.mov(ecx, 512)?;
    p.a.xor(eax, eax)?;
    p.a.rep().stosq()?;
    p.write_revision(map::VMCS_2, SHADOW_VMCS)?;
    p.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    p.vmx(0, |a| a.vmptrld(qword_ptr(map::POINTER)))?;
    p.vmwrites(&[(READABLE, 0x1_2345), (OPEN, 0)])?;
    p.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))
}
