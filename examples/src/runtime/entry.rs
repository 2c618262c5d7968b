//! From the boot loader to 64-bit mode: the multiboot header and what comes before a guest's own code
//! (Multiboot Specification 0.6.96 "Machine state", SDM Vol. 3A "Initializing IA-32e Mode").

use super::{BuildError, map, map::selector};
use iced_x86::code_asm::*;
use nvmx_machine::ports;

/// Bytes of the multiboot header at [`map::ENTRY`]; the code follows.
const HEADER: u64 = 16;

/// The address that the boot loader jumps to.
pub const ENTRY_POINT: u64 = map::ENTRY + HEADER;

/// CR0 of L1 and of a 64-bit L2: PG, WP, NE, ET, PE.
pub const CR0: u32 = 0x8001_0031;
/// CR4 of L1 and L2: VMXE, OSFXSR, PAE.
pub const CR4: u32 = 0x2220;

/// The page at [`map::ENTRY`].
pub fn page() -> Result<Vec<u8>, BuildError> {
    let mut a = CodeAssembler::new(32)?;
    a.cli()?;
    a.cld()?;
    a.mov(esp, map::STACK_L1 as u32)?;
    a.lgdt(dword_ptr(map::GDT_POINTER as u32))?;
    turn_on_paging(&mut a, map::PAGING_L1)?;
    a.push(u32::from(selector::CODE))?;
    a.push(map::L1_CODE as u32)?;
    a.retf()?;

    const MAGIC: u32 = 0x1bad_b002;
    const FLAGS: u32 = 0;
    let mut page: Vec<u8> = [MAGIC, FLAGS, (MAGIC + FLAGS).wrapping_neg(), 0]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .collect();
    page.extend(a.assemble(ENTRY_POINT)?);
    Ok(page)
}

/// From 32-bit mode without paging to compatibility mode, with the 4-level tables at `tables`.
pub(super) fn turn_on_paging(a: &mut CodeAssembler, tables: u64) -> Result<(), BuildError> {
    // Everything that the boot loader or the firmware left in CR0 and CR4 goes.
    a.mov(eax, CR4 & !0x2000)?;
    a.mov(cr4, eax)?;
    a.mov(eax, tables as u32)?;
    a.mov(cr3, eax)?;
    a.mov(ecx, 0xc000_0080_u32)?;
    a.mov(eax, 0x100)?;
    a.xor(edx, edx)?;
    a.wrmsr()?;
    a.mov(eax, CR0)?;
    a.mov(cr0, eax)?;
    Ok(())
}

/// The first code in 64-bit mode: own segments, TSS and IDT; no interrupts from the old PICs; VMX
/// allowed by IA32_FEATURE_CONTROL; CR4.VMXE.
pub fn long_mode(a: &mut CodeAssembler) -> Result<(), BuildError> {
    a.mov(eax, u32::from(selector::DATA))?;
    a.mov(ss, eax)?;
    a.mov(ds, eax)?;
    a.mov(es, eax)?;
    a.xor(eax, eax)?;
    a.mov(fs, eax)?;
    a.mov(gs, eax)?;
    a.lldt(ax)?;
    a.mov(esp, map::STACK_L1 as u32)?;
    a.mov(eax, u32::from(selector::TSS_L1))?;
    a.ltr(ax)?;
    a.lidt(qword_ptr(map::IDT_POINTER))?;
    // Mask both 8259 PICs: firmware may have left a timer running.
    a.mov(eax, 0xff)?;
    a.out(0x21, al)?;
    a.out(0xa1, al)?;
    // The serial port: 8 data bits, no parity, one stop bit (divisor latch closed).
    a.mov(edx, u32::from(ports::SERIAL + 3))?;
    a.mov(eax, 3)?;
    a.out(dx, al)?;
    // Lock IA32_FEATURE_CONTROL with VMX outside SMX, if the firmware has not locked it.
    let mut locked = a.create_label();
    a.mov(ecx, 0x3a)?;
    a.rdmsr()?;
    a.test(eax, 1)?;
    a.jne(locked)?;
    a.or(eax, 5)?;
    a.wrmsr()?;
    a.set_label(&mut locked)?;
    a.mov(eax, CR4)?;
    a.mov(cr4, rax)?;
    // What the boot loader left in the other registers must not differ between machines.
    for register in [
        rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15,
    ] {
        a.xor(register, register)?;
    }
    Ok(())
}
