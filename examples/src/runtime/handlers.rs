//! What L1 and L2 do with an exception or interrupt (SDM Vol. 3A "Exception and Interrupt Handling
//! in 64-bit Mode").

use super::{BuildError, map};
use iced_x86::code_asm::*;

/// Added to the vector in RAX when L2's handler reports by VMCALL.
pub const L2_EXCEPTION: u32 = 0x1000;

/// L1's handler. An NMI or interrupt is counted; an exception continues at [`map::FIXUP`] if that is
/// set, and else ends the run through `fatal`.
pub fn l1(fatal: u64) -> Result<Vec<u8>, BuildError> {
    let mut a = CodeAssembler::new(64)?;
    let mut external = a.create_label();
    let mut nmi = a.create_label();
    let mut unexpected = a.create_label();
    let mut done = a.create_label();
    a.push(rax)?;
    a.push(rcx)?;
    a.push(rdx)?;
    a.mov(eax, dword_ptr(rsp + 24))?;
    a.cmp(eax, 32)?;
    a.jae(external)?;
    a.cmp(eax, 2)?;
    a.je(nmi)?;
    a.cmp(qword_ptr(map::FIXUP), 0)?;
    a.je(unexpected)?;
    a.mov(dword_ptr(map::EXCEPTION_VECTOR), eax)?;
    a.mov(ecx, dword_ptr(rsp + 32))?;
    a.mov(dword_ptr(map::EXCEPTION_ERROR), ecx)?;
    a.mov(rax, qword_ptr(map::FIXUP))?;
    a.mov(qword_ptr(rsp + 40), rax)?;
    a.mov(qword_ptr(map::FIXUP), 0)?;
    a.set_label(&mut done)?;
    a.pop(rdx)?;
    a.pop(rcx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.iretq()?;

    a.set_label(&mut nmi)?;
    a.inc(dword_ptr(map::NMI_COUNT))?;
    a.jmp(done)?;

    a.set_label(&mut external)?;
    a.mov(dword_ptr(map::INTERRUPT_VECTOR), eax)?;
    a.inc(dword_ptr(map::INTERRUPT_COUNT))?;
    a.cmp(dword_ptr(map::HAS_X2APIC), 0)?;
    a.je(done)?;
    a.xor(eax, eax)?;
    a.xor(edx, edx)?;
    a.mov(ecx, 0x80b)?; // EOI
    a.wrmsr()?;
    a.jmp(done)?;

    a.set_label(&mut unexpected)?;
    a.mov(ecx, dword_ptr(rsp + 32))?;
    a.mov(rdx, qword_ptr(rsp + 40))?;
    a.jmp(fatal)?;
    Ok(a.assemble(map::STUBS_L1 + 4096)?)
}

/// L2's handler: tells L1 by VMCALL with RAX = [`L2_EXCEPTION`] + vector and RBX = error code, then
/// returns R13 bytes behind where it was interrupted.
pub fn l2() -> Result<Vec<u8>, BuildError> {
    let mut a = CodeAssembler::new(64)?;
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(eax, dword_ptr(rsp + 16))?;
    a.or(eax, L2_EXCEPTION)?;
    a.mov(rbx, qword_ptr(rsp + 24))?;
    a.vmcall()?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.add(rsp, 16)?;
    a.add(qword_ptr(rsp), r13)?;
    a.iretq()?;
    Ok(a.assemble(map::STUBS_L2 + 4096)?)
}
