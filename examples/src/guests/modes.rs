//! L1 in 64-bit mode, L2 in others: real mode, protected mode without paging, PAE paging
//! (SDM Vol. 3C "Unrestricted Guests", "Loading Page-Directory-Pointer-Table Entries").
//!
//! The first L2 starts in real mode, takes a software interrupt and an injected one through its
//! interrupt vector table, and walks by itself to 32-bit protected mode and on to PAE paging. The
//! second is entered with PAE paging on, its page-directory-pointer entries in the VMCS.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{capability, entry_control, exit_control, field, reason, secondary};
use crate::runtime::{BuildError, Params, map, standard};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "modes",
    about: "unrestricted real-mode L2 that walks to protected mode and PAE paging; L2 entered with PAE paging; 64-bit L1 throughout",
    build,
    processors: 1,
};

/// Where L1 puts the interrupt vector table and 16-bit code: below 1 MiB, so that far transfers in
/// real mode reach it.
const REAL_BASE: u64 = 0x8000;
/// Offset of the 16-bit code there; the table of 256 vectors is in front of it.
const REAL_CODE: u64 = 0x400;
/// Offset of the 16-bit interrupt handler.
const REAL_HANDLER: u64 = 0x500;
/// The image of this memory.
const REAL_IMAGE: u64 = map::L2_OTHER_CODE;
/// 32-bit code, where it runs.
const PROTECTED_CODE: u64 = map::L2_OTHER_CODE + 0x800;
/// 32-bit code for the L2 that is entered with PAE paging.
const PAE_CODE: u64 = map::L2_OTHER_CODE + 0xc00;
/// Bytes to copy.
const REAL_SIZE: u32 = 0x800;

const BASE: Controls = Controls {
    pin: 0,
    primary: 0,
    secondary: secondary::EPT | secondary::UNRESTRICTED,
    exit: exit_control::HOST_64_BIT,
    // Not IA-32e mode, and EFER is loaded: an entry with CR0.PG clear leaves EFER.LME as L1 has it, so
    // that an L2 which turns on PAE paging later would find itself in IA-32e mode.
    entry: entry_control::LOAD_EFER,
};

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("modes", params, |p| {
        p.require(
            capability::SECONDARY,
            secondary::EPT | secondary::UNRESTRICTED,
            "unrestricted guest",
        )?;
        p.enable_vmx()
    })?;
    code(&mut p)?;
    real_mode(&mut p)?;
    pae(&mut p)?;
    p.finish()
}

/// L2's code in 16 and 32 bits.
fn code(p: &mut Program) -> Result<(), BuildError> {
    p.code(16, REAL_IMAGE + REAL_CODE, REAL_CODE, |a| {
        a.mov(ax, 0x1234)?;
        a.int(0x20)?;
        a.mov(cx, ax)?;
        a.vmcall()?;
        a.nop()?;
        a.vmcall()?;
        // To protected mode: the GDT is far above 1 MiB, LGDT with a 32-bit operand reaches it.
        a.mov(bx, 0x600)?;
        a.db(&[0x66])?;
        a.lgdt(ptr(bx))?;
        a.mov(eax, cr0)?;
        a.or(eax, 1)?;
        a.mov(cr0, eax)?;
        // JMP FAR 32-bit: selector and offset.
        let mut jump = vec![0x66, 0xea];
        jump.extend((PROTECTED_CODE as u32).to_le_bytes());
        jump.extend(map::selector::CODE_32.to_le_bytes());
        a.db(&jump)
    })?;
    p.code(16, REAL_IMAGE + REAL_HANDLER, REAL_HANDLER, |a| {
        a.inc(ax)?;
        a.vmcall()?;
        a.iret()
    })?;
    // LGDT's operand at offset 0x600: limit and base of the GDT that L1 uses too.
    p.code(16, REAL_IMAGE + 0x600, 0x600, |a| {
        a.dw(&[0x3f, map::GDT as u16, (map::GDT >> 16) as u16])
    })?;
    p.code(32, PROTECTED_CODE, PROTECTED_CODE, |a| {
        a.mov(eax, i32::from(map::selector::DATA))?;
        a.mov(ds, eax)?;
        a.mov(es, eax)?;
        a.mov(ss, eax)?;
        a.mov(esp, map::STACK_L2 as u32)?;
        a.vmcall()?;
        // PAE paging: the processor loads the page-directory-pointer entries with CR0.PG.
        a.mov(eax, cr4)?;
        a.or(eax, 1 << 5)?;
        a.mov(cr4, eax)?;
        a.mov(eax, map::PAGING_PAE as u32)?;
        a.mov(cr3, eax)?;
        a.mov(eax, cr0)?;
        a.or(eax, 0x8000_0000_u32 as i32)?;
        a.mov(cr0, eax)?;
        a.mov(ebx, dword_ptr(map::SCRATCH as u32 + 0x9000))?;
        a.vmcall()
    })?;
    p.code(32, PAE_CODE, PAE_CODE, |a| {
        a.mov(ebx, dword_ptr(map::SCRATCH as u32 + 0x9000))?;
        a.push(ebx)?;
        a.vmcall()?;
        a.pop(eax)?;
        a.vmcall()
    })
}

fn real_mode(p: &mut Program) -> Result<(), BuildError> {
    p.a.mov(esi, REAL_IMAGE as u32)?;
    p.a.mov(edi, REAL_BASE as u32)?;
    p.a.mov(ecx, REAL_SIZE)?;
    p.a.rep().movsb()?;
    for vector in [0x20, 0x30] {
        // Offset and segment of the handler.
        p.a.mov(
            dword_ptr(REAL_BASE + 4 * vector),
            (REAL_HANDLER | (REAL_BASE >> 4) << 16) as i32,
        )?;
    }
    p.store(map::SCRATCH + 0x9000, 0xface)?;
    p.fresh_vmcs(map::L2_CODE, BASE)?;
    p.controls(BASE)?;
    p.vmwrites(&standard::real_mode(REAL_BASE, REAL_CODE))?;
    p.vmwrites(&[(field::GUEST_RFLAGS, 0x202), (field::GUEST_EFER, 0)])?;
    p.checkpoint(1)?;
    // INT 0x20 goes through the table; the handler's VMCALL.
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0x1235)?;
    p.skip_instruction()?;
    p.checkpoint(2)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rcx, 0x1235)?;
    p.skip_instruction()?;
    // An external interrupt, injected in real mode. The handler has cleared IF and IRET restored it.
    p.vmwrite(field::ENTRY_INTERRUPTION, 1 << 31 | 0x30)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0x1236)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.skip_instruction()?;
    p.checkpoint(3)?;
    // Protected mode, without paging.
    p.run_until(reason::VMCALL)?;
    p.expect_field(field::GUEST_CS, map::selector::CODE_32.into())?;
    p.report_field(field::GUEST_CR0)?;
    p.report_field(field::GUEST_CS_AR)?;
    p.skip_instruction()?;
    p.checkpoint(4)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rbx, 0xface)?;
    p.expect_field(field::GUEST_PDPTE0, (map::PAGING_PAE as u32 + 0x1000) | 1)?;
    p.checkpoint(5)
}

fn pae(p: &mut Program) -> Result<(), BuildError> {
    p.fresh_vmcs(PAE_CODE, BASE)?;
    p.controls(BASE)?;
    p.vmwrites(&standard::pae(PAE_CODE))?;
    p.checkpoint(6)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rbx, 0xface)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0xface)?;
    p.checkpoint(7)
}
