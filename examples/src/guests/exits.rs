//! VMCALL, CPUID, MSR and port exits, with bitmaps that leave some of them to L0
//! (SDM Vol. 3C "Instructions That Cause VM Exits", "MSR-Bitmap Address", "I/O-Bitmap Addresses").
//!
//! L2 executes a row of instructions. L1 expects one exit for each that it intercepts, in this order,
//! and answers CPUID and RDMSR itself. IA32_SYSENTER_CS and the checkpoint port are clear in the
//! bitmaps: L0 serves them while L2 stays the current level.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{primary, reason};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "exits",
    about: "VMCALL, CPUID, RDMSR, WRMSR, IN and OUT exits; MSR and I/O bitmaps with holes",
    build,
    processors: 1,
};

/// In the low half of the MSR bitmap, intercepted.
const IA32_SYSENTER_ESP: u32 = 0x175;
/// In the high half of the MSR bitmap, intercepted.
const IA32_LSTAR: u32 = 0xc000_0082;
/// In the low half, not intercepted.
const IA32_SYSENTER_CS: u32 = 0x174;
/// Ports, one in each I/O bitmap.
const PORT_A: u32 = 0x80;
const PORT_B: u32 = 0x9000;

/// Sets the bit of `number` in a bitmap at `bitmap`.
fn set_bit(a: &mut CodeAssembler, bitmap: u64, number: u32) -> Result<(), iced_x86::IcedError> {
    let byte = bitmap + u64::from(number / 8);
    a.or(byte_ptr(byte), 1 << (number % 8))
}

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::new("exits", params)?;
    let l2 = p.l2(|a| {
        a.vmcall()?;
        a.xor(ecx, ecx)?;
        a.xor(eax, eax)?;
        a.cpuid()?;
        a.mov(ecx, IA32_SYSENTER_ESP)?;
        a.rdmsr()?;
        a.mov(ecx, IA32_LSTAR)?;
        a.wrmsr()?;
        // Not intercepted: L0 keeps the value, no exit to L1.
        a.mov(ecx, IA32_SYSENTER_CS)?;
        a.mov(eax, 0x1234)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.xor(eax, eax)?;
        a.rdmsr()?;
        a.mov(ebx, eax)?;
        // An MSR outside both ranges exits whatever the bitmap says.
        a.mov(ecx, 0x4b56_4d00)?;
        a.rdmsr()?;
        a.out(PORT_A as i32, al)?;
        a.mov(edx, PORT_B)?;
        a.in_(ax, dx)?;
        // The checkpoint port is clear in the bitmap: user space stops while L2 is current.
        a.mov(edx, 0x5e0)?;
        a.mov(eax, 0x00ff_0000)?;
        a.out(dx, eax)?;
        // A string instruction: one exit before its first iteration.
        a.mov(edx, PORT_B)?;
        a.mov(esi, map::L2_VARS as u32)?;
        a.mov(ecx, 2)?;
        a.rep().outsb()?;
        a.invd()?;
        a.hlt()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::MSR_BITMAPS | primary::IO_BITMAPS | primary::HLT,
            ..Controls::default()
        },
    )?;
    // Reads at offset 0 (low) and 0x400 (high), writes at 0x800 and 0xc00.
    set_bit(&mut p.a, map::MSR_BITMAP, IA32_SYSENTER_ESP)?;
    set_bit(&mut p.a, map::MSR_BITMAP + 0xc00, IA32_LSTAR & 0x1fff)?;
    set_bit(&mut p.a, map::IO_BITMAP_A, PORT_A)?;
    set_bit(&mut p.a, map::IO_BITMAP_B, PORT_B & 0x7fff)?;
    set_bit(&mut p.a, map::IO_BITMAP_B, (PORT_B & 0x7fff) + 1)?;
    p.checkpoint(1)?;

    p.run_until(reason::VMCALL)?;
    p.skip_instruction()?;
    p.checkpoint(2)?;
    p.run_until(reason::CPUID)?;
    p.set_l2(L2Register::Rax, 0x1111)?;
    p.skip_instruction()?;
    p.run_until(reason::RDMSR)?;
    p.expect_l2(L2Register::Rcx, IA32_SYSENTER_ESP)?;
    p.set_l2(L2Register::Rax, 0x2222)?;
    p.set_l2(L2Register::Rdx, 0)?;
    p.skip_instruction()?;
    p.run_until(reason::WRMSR)?;
    p.expect_l2(L2Register::Rax, 0x2222)?;
    p.skip_instruction()?;
    p.checkpoint(3)?;
    p.run_until(reason::RDMSR)?;
    p.expect_l2(L2Register::Rbx, 0x1234)?;
    p.skip_instruction()?;
    p.run_until(reason::IO)?;
    p.skip_instruction()?;
    p.run_until(reason::IO)?;
    p.set_l2(L2Register::Rax, 0x5555)?;
    p.skip_instruction()?;
    p.run_until(reason::IO)?;
    p.expect_l2(L2Register::Rcx, 2)?;
    p.skip_instruction()?;
    p.run_until(13)?;
    p.skip_instruction()?;
    p.run_until(reason::HLT)?;
    p.checkpoint(4)?;
    p.finish()
}
