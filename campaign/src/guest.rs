//! The L1 of a campaign: takes cases from memory, enters L2 with each, leaves a record of each.
//!
//! Where the region has KVM's layout a case costs L0 four exits (VMPTRLD, VMLAUNCH, L2's exit,
//! VMCLEAR); elsewhere L1 goes through VMWRITE and VMREAD. With a disk the records go there, since
//! nobody looks into the memory of a bare emulator.

mod arena;
mod disk;

use crate::layout::{self, control, flag, patch, record, status};
use crate::tables;
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use nvmx_examples::Image;
use nvmx_examples::runtime::routines::{self, exit_code};
use nvmx_examples::runtime::{BuildError, entry, handlers, map, tables as standard_tables};
use nvmx_machine::ports;

/// The checkpoint at which L1 waits for a batch.
pub const READY: u32 = 0x00c0_0000;

/// The image, and where VM exits arrive.
#[derive(Debug, Clone)]
pub struct Guest {
    /// The image.
    pub image: Image,
    /// HOST_RIP.
    pub vm_exit: u64,
}

/// Assembles it. `extra` is put into memory beside it, by address.
pub fn build(extra: Vec<(u64, Vec<u8>)>) -> Result<Guest, BuildError> {
    let (routine_bytes, routines) = routines::assemble()?;
    let mut l1_stubs = standard_tables::stubs();
    l1_stubs.extend(handlers::l1(routines.exception)?);
    let (code, vm_exit) = l1(routines.exit)?;
    let mut chunks = vec![
        (map::ENTRY, entry::page()?),
        (map::GDT, standard_tables::descriptor_page()),
        (map::IDT_L1, standard_tables::idt(map::STUBS_L1, &[2, 8])),
        (map::PAGING_L1, standard_tables::paging(map::PAGING_L1)),
        (map::PAGING_L2, standard_tables::paging(map::PAGING_L2)),
        (
            map::PAGING_PAE,
            standard_tables::paging_pae(map::PAGING_PAE),
        ),
        (map::STUBS_L1, l1_stubs),
        (map::ROUTINES, routine_bytes),
        (map::L1_CODE, code),
        (map::EPT, tables::ept()),
    ];
    chunks.extend(tables::chunks());
    chunks.extend(extra);
    chunks.sort_by_key(|(address, _)| *address);
    for pair in chunks.windows(2) {
        let (size, room) = (pair[0].1.len() as u64, pair[1].0 - pair[0].0);
        if size > room {
            let part = "a part of the campaign's image";
            return Err(BuildError::TooBig { part, size, room });
        }
    }
    Ok(Guest {
        image: Image {
            entry: entry::ENTRY_POINT as u32,
            chunks: chunks
                .into_iter()
                .map(|(address, bytes)| (address as u32, bytes))
                .collect(),
            zeroed: [
                (map::ZEROED, map::EPT),
                (map::VARS, map::ZEROED_END),
                (layout::STACK - 0x1000, layout::VMCS + 0x1000),
                (layout::SCRATCH, layout::SCRATCH + 0x1_0000),
            ]
            .map(|(start, end)| (start as u32, (end - start) as u32))
            .to_vec(),
        },
        vm_exit,
    })
}

/// Code of L1, and where VM exits arrive.
fn l1(exit: u64) -> Result<(Vec<u8>, u64), BuildError> {
    let mut a = CodeAssembler::new(64)?;
    entry::long_mode(&mut a)?;
    start(&mut a, exit)?;
    let mut vm_exit = a.create_label();
    let mut batch = a.create_label();
    let [mut next, mut done, mut no_checkpoint] = std::array::from_fn(|_| a.create_label());

    a.set_label(&mut batch)?;
    a.cmp(dword_ptr(control::DISK_CHUNK), 0)?;
    a.jne(no_checkpoint)?;
    a.mov(eax, READY)?;
    a.mov(edx, u32::from(ports::CHECKPOINT))?;
    a.out(dx, eax)?;
    a.set_label(&mut no_checkpoint)?;
    a.mov(dword_ptr(control::INDEX), 0)?;
    a.mov(dword_ptr(control::CASE), layout::CASES as i32)?;
    a.cmp(dword_ptr(control::COUNT), 0)?;
    a.je(done)?;

    a.set_label(&mut next)?;
    disk::say_which(&mut a)?;
    pointers(&mut a)?;
    clear(&mut a)?;
    arena::registers(&mut a)?;
    prepare(&mut a)?;
    arena::flush(&mut a)?;
    let mut collect = a.create_label();
    enter(&mut a, collect)?;
    a.set_label(&mut vm_exit)?;
    after_exit(&mut a)?;
    a.set_label(&mut collect)?;
    read_back(&mut a)?;
    arena::compare(&mut a)?;
    undo_memory(&mut a)?;
    a.mov(dword_ptr(r13 + record::MAGIC as i32), layout::MAGIC)?;
    a.inc(dword_ptr(control::INDEX))?;
    a.mov(eax, dword_ptr(r12 + 12))?;
    a.add(dword_ptr(control::CASE), eax)?;
    disk::write(&mut a)?;
    a.mov(eax, dword_ptr(control::INDEX))?;
    a.cmp(eax, dword_ptr(control::COUNT))?;
    a.jb(next)?;
    a.cmp(dword_ptr(control::DISK_CHUNK), 0)?;
    a.je(batch)?;
    a.set_label(&mut done)?;
    a.mov(eax, exit_code::SUCCESS)?;
    a.jmp(exit)?;

    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let result = a.assemble_options(map::L1_CODE, options)?;
    let vm_exit = result.label_ip(&vm_exit)?;
    Ok((result.inner.code_buffer, vm_exit))
}

/// VMXON, the regions' revisions, low memory.
fn start(a: &mut CodeAssembler, exit: u64) -> Result<(), BuildError> {
    let mut good = a.create_label();
    a.mov(ecx, 0x480)?;
    a.rdmsr()?;
    for region in [map::VMXON, layout::PLAIN_LINK, control::REVISION] {
        a.mov(dword_ptr(region), eax)?;
    }
    a.or(eax, i32::MIN)?;
    a.mov(dword_ptr(layout::SHADOW_LINK), eax)?;
    a.mov(eax, map::VMXON as u32)?;
    a.mov(qword_ptr(control::POINTER), rax)?;
    a.vmxon(qword_ptr(control::POINTER))?;
    a.ja(good)?;
    a.mov(eax, exit_code::WRONG_VMX_RESULT)?;
    a.jmp(exit)?;
    a.set_label(&mut good)?;
    a.mov(eax, layout::VMCS as u32)?;
    a.mov(qword_ptr(control::POINTER), rax)?;
    for &(msr, value) in crate::wire::RESETS {
        a.mov(ecx, msr)?;
        a.mov(eax, value as u32)?;
        a.mov(edx, (value >> 32) as u32)?;
        a.wrmsr()?;
    }
    a.mov(esi, layout::REAL_IMAGE as u32)?;
    a.mov(edi, layout::REAL as u32)?;
    a.mov(ecx, layout::REAL_SIZE as u32 / 8)?;
    a.rep().movsq()?;
    arena::copy(a)?;
    // No interrupts from the disk.
    a.mov(edx, disk::ATA + 0x206)?;
    a.mov(eax, 2)?;
    a.out(dx, al)?;
    Ok(())
}

/// R12: the case, R13: its record.
fn pointers(a: &mut CodeAssembler) -> Result<(), BuildError> {
    a.mov(eax, dword_ptr(control::INDEX))?;
    a.mov(r12d, dword_ptr(control::CASE))?;
    a.imul_3(r13d, eax, layout::RECORD as i32)?;
    a.add(r13d, layout::RECORDS as i32)?;
    Ok(())
}

/// Nothing of the case before stays: record, L2's stack, CR2, and on Bochs 2.7 the blocking of NMIs, which
/// outlives L2 there until an IRET.
fn clear(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let mut after = a.create_label();
    a.mov(rcx, rsp)?;
    a.push(i32::from(map::selector::DATA))?;
    a.push(rcx)?;
    a.pushfq()?;
    a.push(i32::from(map::selector::CODE))?;
    a.lea(rax, ptr(after))?;
    a.push(rax)?;
    a.iretq()?;
    a.set_label(&mut after)?;
    // With VMCS shadowing L2 writes these, and an exit may.
    const { assert!(layout::PLAIN_LINK == layout::SHADOW_LINK + 0x1000) };
    a.xor(eax, eax)?;
    a.mov(edi, layout::SHADOW_LINK as u32)?;
    a.mov(ecx, 2 * 0x1000 / 8)?;
    a.rep().stosq()?;
    a.mov(eax, dword_ptr(control::REVISION))?;
    a.mov(qword_ptr(layout::PLAIN_LINK), rax)?;
    a.bts(rax, 31)?;
    a.mov(qword_ptr(layout::SHADOW_LINK), rax)?;
    a.xor(eax, eax)?;
    a.mov(qword_ptr(layout::EXIT_STORE + 8), rax)?;
    a.mov(qword_ptr(layout::EXIT_STORE + 24), rax)?;
    a.mov(cr2, rax)?;
    a.mov(edi, r13d)?;
    a.mov(ecx, layout::RECORD as u32 / 8)?;
    a.rep().stosq()?;
    a.mov(edi, layout::STACK as u32 - record::STACK_BYTES as u32)?;
    a.mov(ecx, record::STACK_BYTES as u32 / 8)?;
    a.rep().stosq()?;
    Ok(())
}

/// The base VMCS with the case's patches, current.
fn prepare(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [
        mut by_fields,
        mut field,
        mut patches,
        mut each,
        mut not_memory,
        mut not_register,
        mut write,
    ] = std::array::from_fn(|_| a.create_label());
    let [mut four, mut eight, mut next, mut patched] = std::array::from_fn(|_| a.create_label());
    a.mov(esi, dword_ptr(r12))?;
    a.shl(esi, 12)?;
    a.add(esi, layout::BASES as i32)?;
    a.cmp(dword_ptr(control::BY_FIELDS), 0)?;
    a.jne(by_fields)?;
    // KVM's fields end before 1024; the rest of the page stays zero.
    a.mov(edi, layout::VMCS as u32)?;
    a.mov(ecx, 128)?;
    a.rep().movsq()?;
    a.jmp(patches)?;

    a.set_label(&mut by_fields)?;
    a.vmclear(qword_ptr(control::POINTER))?;
    a.mov(eax, dword_ptr(control::REVISION))?;
    a.mov(dword_ptr(layout::VMCS), eax)?;
    a.vmptrld(qword_ptr(control::POINTER))?;
    a.set_label(&mut field)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.cmp(eax, -1)?;
    a.je(patches)?;
    a.vmwrite(rax, qword_ptr(rsi + 8))?;
    a.add(rsi, 16)?;
    a.jmp(field)?;

    a.set_label(&mut patches)?;
    a.mov(ebx, dword_ptr(r12 + 4))?;
    a.lea(rsi, ptr(r12 + 16))?;
    a.set_label(&mut each)?;
    a.test(ebx, ebx)?;
    a.je(patched)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.mov(edx, dword_ptr(rsi + 4))?;
    a.mov(rcx, qword_ptr(rsi + 8))?;
    a.cmp(eax, patch::MEMORY as i32)?;
    a.jne(not_memory)?;
    swap(a)?;
    a.jmp(next)?;
    a.set_label(&mut not_memory)?;
    a.cmp(eax, patch::REGISTER as i32)?;
    a.jne(not_register)?;
    a.add(edx, control::REGISTERS as i32)?;
    a.mov(qword_ptr(rdx), rcx)?;
    a.jmp(next)?;
    a.set_label(&mut not_register)?;
    a.cmp(dword_ptr(control::BY_FIELDS), 0)?;
    a.jne(write)?;
    a.movzx(edi, dx)?;
    a.add(edi, layout::VMCS as i32)?;
    a.shr(edx, 16)?;
    a.cmp(edx, 4)?;
    a.je(four)?;
    a.ja(eight)?;
    a.mov(word_ptr(rdi), cx)?;
    a.jmp(next)?;
    a.set_label(&mut four)?;
    a.mov(dword_ptr(rdi), ecx)?;
    a.jmp(next)?;
    a.set_label(&mut eight)?;
    a.mov(qword_ptr(rdi), rcx)?;
    a.jmp(next)?;
    a.set_label(&mut write)?;
    // A field that this processor lacks is not written.
    a.vmwrite(rax, rcx)?;
    a.set_label(&mut next)?;
    a.add(rsi, 16)?;
    a.dec(ebx)?;
    a.jmp(each)?;
    a.set_label(&mut patched)?;
    Ok(())
}

/// Exchanges 64 bits of memory at EDX with the patch's value in RCX, at RSI; in the arena's copy, too.
fn swap(a: &mut CodeAssembler) -> Result<(), BuildError> {
    a.mov(rdi, qword_ptr(rdx))?;
    a.mov(qword_ptr(rdx), rcx)?;
    a.mov(qword_ptr(rsi + 8), rdi)?;
    arena::patch_copy(a)
}

/// General-purpose registers but RSP, by their number in encodings.
const GPRS: [(u64, AsmRegister64); 15] = [
    (0, rax),
    (1, rcx),
    (2, rdx),
    (3, rbx),
    (5, rbp),
    (6, rsi),
    (7, rdi),
    (8, r8),
    (9, r9),
    (10, r10),
    (11, r11),
    (12, r12),
    (13, r13),
    (14, r14),
    (15, r15),
];
/// Their order in a record.
const RECORDED: [u64; 15] = [0, 3, 1, 2, 6, 7, 5, 8, 9, 10, 11, 12, 13, 14, 15];

/// VMPTRLD, L2's registers, VMLAUNCH or VMRESUME; what comes back without an exit.
fn enter(a: &mut CodeAssembler, collect: CodeLabel) -> Result<(), BuildError> {
    let [
        mut loaded,
        mut launch_or_resume,
        mut resume,
        mut failed,
        mut invalid,
        mut valid,
    ] = std::array::from_fn(|_| a.create_label());
    a.cmp(dword_ptr(control::BY_FIELDS), 0)?;
    a.jne(launch_or_resume)?;
    a.vmptrld(qword_ptr(control::POINTER))?;
    a.ja(loaded)?;
    a.mov(dword_ptr(r13 + record::STATUS as i32), status::NOT_LOADED)?;
    a.jmp(collect)?;
    a.set_label(&mut loaded)?;
    a.zero_bytes()?;
    a.set_label(&mut launch_or_resume)?;
    a.test(dword_ptr(r12 + 8), flag::RESUME)?;
    for (number, register) in GPRS {
        a.mov(register, qword_ptr(control::REGISTERS + 8 * number))?;
    }
    a.jne(resume)?;
    a.vmlaunch()?;
    a.jmp(failed)?;
    a.set_label(&mut resume)?;
    a.vmresume()?;
    a.set_label(&mut failed)?;
    a.pushfq()?;
    a.pop(rcx)?;
    pointers(a)?;
    a.mov(eax, status::NOTHING)?;
    a.test(ecx, 1)?;
    a.jne(invalid)?;
    a.test(ecx, 0x40)?;
    a.je(valid)?;
    a.mov(eax, status::FAIL_VALID)?;
    a.jmp(valid)?;
    a.set_label(&mut invalid)?;
    a.mov(eax, status::FAIL_INVALID)?;
    a.set_label(&mut valid)?;
    a.mov(dword_ptr(r13 + record::STATUS as i32), eax)?;
    a.jmp(collect)?;
    Ok(())
}

/// What L2 had in registers, and the host state that the exit loaded.
fn after_exit(a: &mut CodeAssembler) -> Result<(), BuildError> {
    for (number, register) in GPRS {
        a.mov(qword_ptr(control::SAVED + 8 * number), register)?;
    }
    a.pushfq()?;
    a.pop(rbx)?;
    pointers(a)?;
    a.mov(dword_ptr(r13 + record::STATUS as i32), status::EXIT)?;
    let (first, more) = (record::GPRS as i32, record::MORE_GPRS as i32);
    let places = (0..3)
        .map(|index| first + 8 * index)
        .chain((0..12).map(|index| more + 8 * index));
    for (number, at) in RECORDED.into_iter().zip(places) {
        a.mov(rax, qword_ptr(control::SAVED + 8 * number))?;
        a.mov(qword_ptr(r13 + at), rax)?;
    }
    arena::after_exit(a)?;
    let host = record::HOST as i32;
    for (index, register) in [cr0, cr3, cr4, cr2].into_iter().enumerate() {
        a.mov(rax, register)?;
        a.mov(qword_ptr(r13 + host + 8 * index as i32), rax)?;
    }
    a.mov(qword_ptr(r13 + host + 32), rbx)?;
    a.sgdt(ptr(r13 + record::TABLES as i32))?;
    a.sidt(ptr(r13 + record::TABLES as i32 + 16))?;
    for (index, register) in [es, cs, ss, ds, fs, gs].into_iter().enumerate() {
        a.mov(eax, register)?;
        a.mov(
            word_ptr(r13 + record::SELECTORS as i32 + 2 * index as i32),
            ax,
        )?;
    }
    a.str(word_ptr(r13 + record::SELECTORS as i32 + 12))?;
    a.sldt(word_ptr(r13 + record::SELECTORS as i32 + 14))?;
    a.lgdt(ptr(map::GDT_POINTER))?;
    a.lidt(ptr(map::IDT_POINTER))?;
    // An exit leaves CD and NW as L2 had them (SDM Vol. 3C "Loading Host Control Registers, Debug Registers, MSRs").
    a.mov(eax, entry::CR0)?;
    a.mov(cr0, rax)?;
    msrs(a)
}

/// Reads and writes the MSRs that the host listed, if the case asks for it.
fn msrs(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [mut probe, mut probed, mut reset, mut done] = std::array::from_fn(|_| a.create_label());
    a.test(dword_ptr(r12 + 8), flag::PROBE)?;
    a.je(probed)?;
    a.mov(esi, control::PROBES as u32)?;
    a.lea(rdi, ptr(r13 + record::PROBES as i32))?;
    a.set_label(&mut probe)?;
    a.mov(ecx, dword_ptr(rsi))?;
    a.test(ecx, ecx)?;
    a.je(probed)?;
    a.rdmsr()?;
    a.mov(dword_ptr(rdi), eax)?;
    a.mov(dword_ptr(rdi + 4), edx)?;
    a.add(rsi, 4)?;
    a.add(rdi, 8)?;
    a.jmp(probe)?;
    a.set_label(&mut probed)?;
    a.test(dword_ptr(r12 + 8), flag::RESET)?;
    a.je(done)?;
    a.mov(esi, control::RESETS as u32)?;
    a.set_label(&mut reset)?;
    a.mov(ecx, dword_ptr(rsi))?;
    a.test(ecx, ecx)?;
    a.je(done)?;
    a.mov(eax, dword_ptr(rsi + 8))?;
    a.mov(edx, dword_ptr(rsi + 12))?;
    a.wrmsr()?;
    a.add(rsi, 16)?;
    a.jmp(reset)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}

/// The VMCS and L2's stack into the record; the VMCS is not current afterwards.
fn read_back(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [
        mut by_fields,
        mut each,
        mut skip,
        mut four,
        mut eight,
        mut read,
    ] = std::array::from_fn(|_| a.create_label());
    let mut done = a.create_label();
    a.mov(esi, layout::STACK as u32 - record::STACK_BYTES as u32)?;
    a.lea(rdi, ptr(r13 + record::STACK as i32))?;
    a.mov(ecx, record::STACK_BYTES as u32 / 8)?;
    a.rep().movsq()?;
    for (index, address) in layout::WATCHED.into_iter().enumerate() {
        a.mov(rax, qword_ptr(address))?;
        a.mov(qword_ptr(r13 + (record::WATCHED + 8 * index) as i32), rax)?;
    }
    a.cmp(dword_ptr(control::BY_FIELDS), 0)?;
    a.jne(by_fields)?;
    a.vmclear(qword_ptr(control::POINTER))?;
    a.mov(esi, layout::VMCS as u32)?;
    a.mov(edi, r13d)?;
    a.mov(ecx, 125)?;
    a.rep().movsq()?;
    a.jmp(done)?;

    a.set_label(&mut by_fields)?;
    a.mov(esi, layout::FIELD_LIST as u32)?;
    a.set_label(&mut each)?;
    a.mov(eax, dword_ptr(rsi))?;
    a.cmp(eax, -1)?;
    a.je(read)?;
    a.vmread(rcx, rax)?;
    a.jbe(skip)?;
    a.movzx(edi, word_ptr(rsi + 4))?;
    a.add(edi, r13d)?;
    a.movzx(edx, word_ptr(rsi + 6))?;
    a.cmp(edx, 4)?;
    a.je(four)?;
    a.ja(eight)?;
    a.mov(word_ptr(rdi), cx)?;
    a.jmp(skip)?;
    a.set_label(&mut four)?;
    a.mov(dword_ptr(rdi), ecx)?;
    a.jmp(skip)?;
    a.set_label(&mut eight)?;
    a.mov(qword_ptr(rdi), rcx)?;
    a.set_label(&mut skip)?;
    a.add(rsi, 8)?;
    a.jmp(each)?;
    a.set_label(&mut read)?;
    a.vmclear(qword_ptr(control::POINTER))?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}

/// Memory as it was before the case's patches.
fn undo_memory(a: &mut CodeAssembler) -> Result<(), BuildError> {
    let [mut each, mut next, mut done] = std::array::from_fn(|_| a.create_label());
    a.mov(ebx, dword_ptr(r12 + 4))?;
    a.lea(rsi, ptr(r12 + 16))?;
    a.set_label(&mut each)?;
    a.test(ebx, ebx)?;
    a.je(done)?;
    a.cmp(dword_ptr(rsi), patch::MEMORY as i32)?;
    a.jne(next)?;
    a.mov(edx, dword_ptr(rsi + 4))?;
    a.mov(rcx, qword_ptr(rsi + 8))?;
    swap(a)?;
    a.set_label(&mut next)?;
    a.add(rsi, 16)?;
    a.dec(ebx)?;
    a.jmp(each)?;
    a.set_label(&mut done)?;
    a.zero_bytes()?;
    Ok(())
}
