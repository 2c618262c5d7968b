//! What L1 does for the cases with code: the arena is fresh for each, and what L2 changed in it is
//! recorded.

use crate::layout::{self, arena, control, flag, record};
use iced_x86::code_asm::*;
use nvmx_examples::runtime::BuildError;
use nvmx_examples::runtime::map;

/// Once: the copies that cases are compared with.
pub(super) fn copy(a: &mut CodeAssembler) -> Result<(), BuildError> {
    a.mov(esi, arena::START as u32)?;
    a.mov(edi, (arena::START + arena::COPY) as u32)?;
    a.mov(ecx, (arena::END - arena::START) as u32 / 8)?;
    a.rep().movsq()?;
    Ok(())
}

/// What L2's registers start with, before the case's own.
pub(super) fn registers(a: &mut CodeAssembler) -> Result<(), BuildError> {
    a.mov(eax, layout::SCRATCH as u32)?;
    a.mov(edi, control::REGISTERS as u32)?;
    a.mov(ecx, 16)?;
    a.rep().stosq()?;
    a.xor(eax, eax)?;
    a.mov(ecx, 4)?;
    a.rep().stosq()?;
    Ok(())
}

/// A patch at RDX of RCX goes to the copy, too. Changes RDI.
pub(super) fn patch_copy(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [mut not_arena, mut done] = std::array::from_fn(|_| a.create_label());
    let real = (layout::REAL_IMAGE - layout::REAL) as i32;
    for (start, end, distance, otherwise) in [
        (arena::START, arena::END, arena::COPY as i32, &mut not_arena),
        (
            layout::REAL,
            layout::REAL + layout::REAL_SIZE,
            real,
            &mut done,
        ),
    ] {
        a.cmp(edx, start as i32)?;
        a.jb(*otherwise)?;
        a.cmp(edx, end as i32)?;
        a.jae(*otherwise)?;
        a.mov(qword_ptr(rdx + distance), rcx)?;
        a.set_label(otherwise)?;
    }
    a.zero_bytes()?;
    Ok(())
}

/// No translation of the case before is left, and L2's breakpoints are loaded.
pub(super) fn flush(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let mut done = a.create_label();
    a.test(dword_ptr(r12 + 8), flag::ARENA)?;
    a.je(done)?;
    a.xor(eax, eax)?;
    a.mov(qword_ptr(map::DESCRIPTOR), rax)?;
    a.mov(qword_ptr(map::DESCRIPTOR + 8), rax)?;
    a.mov(eax, 2)?;
    a.invept(rax, xmmword_ptr(map::DESCRIPTOR))?;
    a.invvpid(rax, xmmword_ptr(map::DESCRIPTOR))?;
    for (index, register) in [dr0, dr1, dr2, dr3].into_iter().enumerate() {
        a.mov(rax, qword_ptr(control::REGISTERS + 0x80 + 8 * index as u64))?;
        a.mov(register, rax)?;
    }
    a.mov(eax, 0xffff_0ff0_u32)?;
    a.mov(dr6, rax)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}

/// Debug registers and CR8, which no VMCS saves; L2's x87 and SSE state goes.
pub(super) fn after_exit(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let mut done = a.create_label();
    a.test(dword_ptr(r12 + 8), flag::ARENA)?;
    a.je(done)?;
    a.fninit()?;
    for register in [xmm0, xmm1, xmm2, xmm3, xmm4, xmm5, xmm6, xmm7] {
        a.xorps(register, register)?;
    }
    let debug = record::DEBUG as i32;
    for (index, register) in [dr0, dr1, dr2, dr3, dr6].into_iter().enumerate() {
        a.mov(rax, register)?;
        a.mov(qword_ptr(r13 + debug + 8 * index as i32), rax)?;
    }
    a.mov(rax, cr8)?;
    a.mov(qword_ptr(r13 + debug + 40), rax)?;
    a.xor(eax, eax)?;
    a.mov(cr8, rax)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}

/// Finds what differs from the copies, notes it and puts it back.
pub(super) fn compare(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [mut range, mut again, mut next, mut full, mut done] =
        std::array::from_fn(|_| a.create_label());
    a.test(dword_ptr(r12 + 8), flag::ARENA)?;
    a.je(done)?;
    // R8: the range; R9: changes; R10: digest; R11: where the next change goes.
    a.mov(r8d, control::RANGES as u32)?;
    a.xor(r9d, r9d)?;
    a.xor(r10d, r10d)?;
    a.lea(r11, ptr(r13 + record::CHANGES as i32))?;
    a.set_label(&mut range)?;
    a.mov(esi, dword_ptr(r8))?;
    a.mov(ecx, dword_ptr(r8 + 4))?;
    a.mov(edi, dword_ptr(r8 + 8))?;
    a.add(r8, 16)?;
    a.add(rdi, rsi)?;
    a.test(ecx, ecx)?;
    let mut all = a.create_label();
    a.je(all)?;
    a.set_label(&mut again)?;
    a.repe().cmpsq()?;
    a.je(range)?;
    a.mov(rax, qword_ptr(rsi - 8))?;
    a.mov(rdx, qword_ptr(rdi - 8))?;
    a.mov(qword_ptr(rsi - 8), rdx)?;
    a.xor(rax, rdx)?;
    a.rol(r10, 7)?;
    a.xor(r10, rax)?;
    a.add(r10, rsi)?;
    a.cmp(r9d, record::MAX_CHANGES as i32)?;
    a.jae(full)?;
    a.lea(rdx, ptr(rsi - 8))?;
    a.mov(qword_ptr(r11), rdx)?;
    a.mov(qword_ptr(r11 + 8), rax)?;
    a.add(r11, 16)?;
    a.set_label(&mut full)?;
    a.inc(r9d)?;
    a.test(ecx, ecx)?;
    a.jne(again)?;
    a.set_label(&mut next)?;
    a.jmp(range)?;
    a.set_label(&mut all)?;
    a.mov(qword_ptr(r13 + record::CHANGED as i32), r9)?;
    a.mov(qword_ptr(r13 + record::DIGEST as i32), r10)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}
