//! Where nobody looks into L1's memory: it names the case that comes, and writes the records to a disk.

use crate::layout::{self, control};
use iced_x86::code_asm::*;
use nvmx_examples::runtime::BuildError;
use nvmx_machine::ports;

/// Second ATA channel, master.
pub(super) const ATA: u32 = 0x170;

/// Names the case that comes now.
pub(super) fn say_which(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let mut done = a.create_label();
    a.cmp(dword_ptr(control::DISK_CHUNK), 0)?;
    a.je(done)?;
    a.mov(eax, dword_ptr(control::INDEX))?;
    a.mov(edx, u32::from(ports::REPORT))?;
    a.out(dx, eax)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}

/// Writes the records since the last time to disk, if this case ends a chunk or the batch.
pub(super) fn write(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [mut write, mut sector, mut wait, mut settle, mut done] =
        std::array::from_fn(|_| a.create_label());
    a.mov(ecx, dword_ptr(control::DISK_CHUNK))?;
    a.test(ecx, ecx)?;
    a.je(done)?;
    a.mov(eax, dword_ptr(control::INDEX))?;
    a.cmp(eax, dword_ptr(control::COUNT))?;
    a.je(write)?;
    a.xor(edx, edx)?;
    a.div(ecx)?;
    a.test(edx, edx)?;
    a.jne(done)?;
    a.set_label(&mut write)?;
    // EBX: sectors to write; ESI: where from; EDI: the first sector.
    a.mov(ecx, dword_ptr(control::WRITTEN))?;
    a.mov(ebx, dword_ptr(control::INDEX))?;
    a.mov(dword_ptr(control::WRITTEN), ebx)?;
    a.sub(ebx, ecx)?;
    a.imul_3(ebx, ebx, layout::RECORD as i32 / 512)?;
    a.imul_3(esi, ecx, layout::RECORD as i32)?;
    a.add(esi, layout::RECORDS as i32)?;
    a.imul_3(edi, ecx, layout::RECORD as i32 / 512)?;
    a.mov(eax, ebx)?;
    a.mov(edx, ATA + 2)?;
    a.out(dx, al)?;
    a.mov(eax, edi)?;
    for port in 3..6 {
        a.mov(edx, ATA + port)?;
        a.out(dx, al)?;
        a.shr(eax, 8)?;
    }
    a.or(eax, 0xe0)?;
    a.mov(edx, ATA + 6)?;
    a.out(dx, al)?;
    a.mov(edx, ATA + 7)?;
    a.mov(eax, 0x30)?;
    a.out(dx, al)?;
    a.set_label(&mut sector)?;
    a.mov(edx, ATA + 7)?;
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x80)?;
    a.jne(wait)?;
    a.test(al, 8)?;
    a.je(wait)?;
    a.mov(edx, ATA)?;
    a.mov(ecx, 256)?;
    a.rep().outsw()?;
    a.dec(ebx)?;
    a.jne(sector)?;
    a.mov(edx, ATA + 7)?;
    a.set_label(&mut settle)?;
    a.in_(al, dx)?;
    a.test(al, 0x80)?;
    a.jne(settle)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}
