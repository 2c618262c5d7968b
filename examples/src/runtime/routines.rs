//! Subroutines of every L1, at [`map::ROUTINES`]: reports, serial output, the end of a run, VMCS
//! set-up from tables, and the trip into L2 and back.
//!
//! Each takes its arguments in EAX, ECX, ESI, EDI as its comment says, may change RAX, RCX, RDX, RSI
//! and RDI, and keeps the rest.

use super::vmcs::field;
use super::{BuildError, map};
use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use nvmx_machine::ports;

/// Debug-exit values.
pub mod exit_code {
    /// Everything went as the guest's author wrote it.
    pub const SUCCESS: u32 = 0x10;
    /// Another VM exit, or VMfail, than expected.
    pub const UNEXPECTED_EXIT: u32 = 0x21;
    /// A value is not the expected one.
    pub const WRONG_VALUE: u32 = 0x22;
    /// A VMX instruction did not end as expected.
    pub const WRONG_VMX_RESULT: u32 = 0x23;
    /// VMWRITE of a set-up table failed.
    pub const SETUP: u32 = 0x24;
    /// L1 met an exception that it did not expect.
    pub const EXCEPTION: u32 = 0x31;
}

/// Addresses of the routines.
#[derive(Debug, Clone, Copy, Default)]
pub struct Routines {
    /// Reports EAX.
    pub report: u64,
    /// Reports VMCS field ECX (its low 32 bits).
    pub report_field: u64,
    /// Prints the zero-terminated string at RSI.
    pub print: u64,
    /// Prints EAX in hexadecimal and a blank.
    pub print_hex: u64,
    /// Ends the run with value EAX.
    pub exit: u64,
    /// Ends the run after an exception: vector EAX, error code ECX, RIP RDX.
    pub exception: u64,
    /// Writes ECX pairs of (field, value), 64 bits each, from RSI to the VMCS.
    pub vmwrite_table: u64,
    /// Writes the control field EDI: ESI as far as capability MSR ECX allows.
    pub control: u64,
    /// Enters L2 and comes back with the exit reason in [`map::RESULT`].
    pub run: u64,
    /// Goes on only if [`map::RESULT`] is ECX.
    pub expect: u64,
    /// Goes on only if the last VM entry failed with VM-instruction error ECX (zero: VMfailInvalid).
    pub expect_entry_failure: u64,
    /// Goes on only if RFLAGS in RAX say what ECX says (-1: VMfailInvalid, 0: success, else the error
    /// number of VMfailValid); reports it.
    pub expect_vmx: u64,
    /// Goes on only if EAX equals ECX; reports EAX.
    pub expect_value: u64,
    /// Where VM exits arrive (HOST_RIP).
    pub vm_exit: u64,
}

/// Registers of [`map::L2_REGISTERS`] in encoding order, without RSP.
const L2_GPRS: [(AsmRegister64, u64); 15] = [
    (rax, 0),
    (rcx, 1),
    (rdx, 2),
    (rbx, 3),
    (rbp, 5),
    (rsi, 6),
    (rdi, 7),
    (r8, 8),
    (r9, 9),
    (r10, 10),
    (r11, 11),
    (r12, 12),
    (r13, 13),
    (r14, 14),
    (r15, 15),
];
const PRESERVED: [AsmRegister64; 6] = [rbx, rbp, r12, r13, r14, r15];

/// Assembles the routines; their bytes go to [`map::ROUTINES`].
pub fn assemble() -> Result<(Vec<u8>, Routines), BuildError> {
    let mut asm = CodeAssembler::new(64)?;
    let a = &mut asm;
    let [
        mut report,
        mut report_field,
        mut print,
        mut print_hex,
        mut exit,
    ] = std::array::from_fn(|_| a.create_label());
    let [mut exception, mut table, mut control, mut run, mut vm_exit] =
        std::array::from_fn(|_| a.create_label());
    let [
        mut expect,
        mut expect_entry,
        mut expect_vmx,
        mut expect_value,
        mut putc,
    ] = std::array::from_fn(|_| a.create_label());
    let mut strings = Strings::default();

    // report(EAX)
    a.set_label(&mut report)?;
    let mut plain = a.create_label();
    a.mov(edx, u32::from(ports::REPORT))?;
    a.out(dx, eax)?;
    a.cmp(dword_ptr(map::MIRROR), 0)?;
    a.je(plain)?;
    a.call(print_hex)?;
    a.set_label(&mut plain)?;
    a.ret()?;

    // report_field(ECX)
    a.set_label(&mut report_field)?;
    a.vmread(rax, rcx)?;
    a.jmp(report)?;

    // putc(AL): waits for an empty transmit register. Keeps everything but AL.
    a.set_label(&mut putc)?;
    a.push(rdx)?;
    a.push(rax)?;
    a.mov(edx, u32::from(ports::SERIAL + 5))?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.in_(al, dx)?;
    a.test(al, 0x20)?;
    a.je(wait)?;
    a.pop(rax)?;
    a.mov(edx, u32::from(ports::SERIAL))?;
    a.out(dx, al)?;
    a.pop(rdx)?;
    a.ret()?;

    // print(RSI)
    a.set_label(&mut print)?;
    let mut printed = a.create_label();
    a.lodsb()?;
    a.test(al, al)?;
    a.je(printed)?;
    a.call(putc)?;
    a.jmp(print)?;
    a.set_label(&mut printed)?;
    a.ret()?;

    // print_hex(EAX)
    a.set_label(&mut print_hex)?;
    let [mut digit, mut decimal] = std::array::from_fn(|_| a.create_label());
    a.mov(edx, eax)?;
    a.mov(ecx, 8)?;
    a.set_label(&mut digit)?;
    a.rol(edx, 4)?;
    a.mov(eax, edx)?;
    a.and(eax, 15)?;
    a.add(eax, i32::from(b'0'))?;
    a.cmp(eax, i32::from(b'9'))?;
    a.jbe(decimal)?;
    a.add(eax, i32::from(b'a' - b'0' - 10))?;
    a.set_label(&mut decimal)?;
    a.call(putc)?;
    a.dec(ecx)?;
    a.jne(digit)?;
    a.mov(eax, i32::from(b' '))?;
    a.jmp(putc)?;

    // exit(EAX): debug exit, then Bochs' shutdown port once the serial port has drained.
    a.set_label(&mut exit)?;
    let [mut drain, mut letter, mut halt] = std::array::from_fn(|_| a.create_label());
    a.mov(edx, u32::from(ports::DEBUG_EXIT))?;
    a.out(dx, eax)?;
    a.mov(edx, u32::from(ports::SERIAL + 5))?;
    a.set_label(&mut drain)?;
    a.in_(al, dx)?;
    a.test(al, 0x40)?;
    a.je(drain)?;
    strings.load(a, &String::from_utf8_lossy(ports::SHUTDOWN_WORD))?;
    a.mov(edx, u32::from(ports::SHUTDOWN))?;
    a.mov(ecx, ports::SHUTDOWN_WORD.len() as u32)?;
    a.set_label(&mut letter)?;
    a.lodsb()?;
    a.out(dx, al)?;
    a.dec(ecx)?;
    a.jne(letter)?;
    a.set_label(&mut halt)?;
    a.hlt()?;
    a.jmp(halt)?;

    // exception(EAX vector, ECX error code, RDX RIP)
    a.set_label(&mut exception)?;
    print_all(
        a,
        &mut strings,
        (print, print_hex),
        "\nL1 exception, vector, error, rip: ",
        &[
            Shown::Register(eax),
            Shown::Register(ecx),
            Shown::Register(edx),
        ],
    )?;
    a.mov(eax, exit_code::EXCEPTION)?;
    a.jmp(exit)?;

    // vmwrite_table(RSI, ECX)
    a.set_label(&mut table)?;
    let mut written = a.create_label();
    a.mov(rax, qword_ptr(rsi))?;
    a.vmwrite(rax, qword_ptr(rsi + 8))?;
    a.ja(written)?;
    print_all(
        a,
        &mut strings,
        (print, print_hex),
        "\nset-up: VMWRITE failed, field: ",
        &[Shown::Register(eax)],
    )?;
    a.mov(eax, exit_code::SETUP)?;
    a.jmp(exit)?;
    a.set_label(&mut written)?;
    a.add(rsi, 16)?;
    a.dec(ecx)?;
    a.jne(table)?;
    a.ret()?;

    // control(EDI field, ESI wanted, ECX MSR): (wanted | allowed-0) & allowed-1. Where bit 55 of
    // IA32_VMX_BASIC says so, the TRUE MSR, 12 further on, leaves more bits free to be 0.
    a.set_label(&mut control)?;
    let mut original = a.create_label();
    a.cmp(ecx, 0x484)?;
    a.ja(original)?;
    a.push(rcx)?;
    a.mov(ecx, 0x480)?;
    a.rdmsr()?;
    a.pop(rcx)?;
    a.bt(edx, 55 - 32)?;
    a.jae(original)?;
    a.add(ecx, 12)?;
    a.set_label(&mut original)?;
    a.rdmsr()?;
    a.or(eax, esi)?;
    a.and(eax, edx)?;
    a.vmwrite(rdi, rax)?;
    a.ret()?;

    // run()
    a.set_label(&mut run)?;
    let [mut resume, mut failed, mut invalid, mut out] = std::array::from_fn(|_| a.create_label());
    for register in PRESERVED {
        a.push(register)?;
    }
    a.mov(eax, field::HOST_RSP)?;
    a.vmwrite(rax, rsp)?;
    a.cmp(dword_ptr(map::LAUNCHED), 0)?;
    // MOV leaves the flags of CMP alone.
    for (register, number) in L2_GPRS {
        a.mov(register, qword_ptr(map::L2_REGISTERS + 8 * number))?;
    }
    a.jne(resume)?;
    a.vmlaunch()?;
    a.jmp(failed)?;
    a.set_label(&mut resume)?;
    a.vmresume()?;
    a.set_label(&mut failed)?;
    a.jb(invalid)?;
    a.mov(eax, map::VMFAIL_VALID)?;
    a.jmp(out)?;
    a.set_label(&mut invalid)?;
    a.mov(eax, map::VMFAIL_INVALID)?;
    a.jmp(out)?;
    a.set_label(&mut vm_exit)?;
    for (register, number) in L2_GPRS {
        a.mov(qword_ptr(map::L2_REGISTERS + 8 * number), register)?;
    }
    a.mov(ecx, field::EXIT_REASON)?;
    a.vmread(rax, rcx)?;
    // A failed entry (bit 31) leaves the launch state as it was.
    a.test(eax, eax)?;
    a.js(out)?;
    a.mov(dword_ptr(map::LAUNCHED), 1)?;
    a.set_label(&mut out)?;
    a.mov(dword_ptr(map::RESULT), eax)?;
    for register in PRESERVED.iter().rev() {
        a.pop(*register)?;
    }
    // L2's values and addresses are out of the way before the next checkpoint.
    for register in [rax, rcx, rdx, rsi, rdi, r8, r9, r10, r11] {
        a.xor(register, register)?;
    }
    a.ret()?;

    // expect(ECX)
    a.set_label(&mut expect)?;
    let mut unexpected = a.create_label();
    a.mov(eax, dword_ptr(map::RESULT))?;
    a.cmp(eax, ecx)?;
    a.jne(unexpected)?;
    a.jmp(report)?;
    a.set_label(&mut unexpected)?;
    print_all(
        a,
        &mut strings,
        (print, print_hex),
        "\nexit reason, expected, qualification, rip, interruption, instruction error, iteration: ",
        &[
            Shown::Register(eax),
            Shown::Register(ecx),
            Shown::Field(field::EXIT_QUALIFICATION),
            Shown::Field(field::GUEST_RIP),
            Shown::Field(field::EXIT_INTERRUPTION),
            Shown::Field(field::INSTRUCTION_ERROR),
            Shown::Register(r15d),
        ],
    )?;
    a.mov(eax, exit_code::UNEXPECTED_EXIT)?;
    a.jmp(exit)?;

    // expect_entry_failure(ECX)
    a.set_label(&mut expect_entry)?;
    let mut without_number = a.create_label();
    a.push(rcx)?;
    a.test(ecx, ecx)?;
    a.je(without_number)?;
    a.mov(ecx, map::VMFAIL_VALID)?;
    a.call(expect)?;
    a.mov(ecx, field::INSTRUCTION_ERROR)?;
    a.vmread(rax, rcx)?;
    a.pop(rcx)?;
    a.jmp(expect_value)?;
    a.set_label(&mut without_number)?;
    a.mov(ecx, map::VMFAIL_INVALID)?;
    a.call(expect)?;
    a.pop(rcx)?;
    a.ret()?;

    // expect_vmx(RAX = RFLAGS, ECX)
    a.set_label(&mut expect_vmx)?;
    let [mut not_invalid, mut not_valid, mut compare] = std::array::from_fn(|_| a.create_label());
    a.bt(eax, 0)?;
    a.jae(not_invalid)?;
    a.mov(eax, -1)?;
    a.jmp(compare)?;
    a.set_label(&mut not_invalid)?;
    a.bt(eax, 6)?;
    a.jae(not_valid)?;
    a.mov(edx, field::INSTRUCTION_ERROR)?;
    a.vmread(rax, rdx)?;
    a.jmp(compare)?;
    a.set_label(&mut not_valid)?;
    a.xor(eax, eax)?;
    a.set_label(&mut compare)?;
    a.cmp(eax, ecx)?;
    a.je(report)?;
    print_all(
        a,
        &mut strings,
        (print, print_hex),
        "\nVMX instruction error (ffffffff invalid, 0 success), expected, caller, iteration: ",
        &[
            Shown::Register(eax),
            Shown::Register(ecx),
            Shown::Caller,
            Shown::Register(r15d),
        ],
    )?;
    a.mov(eax, exit_code::WRONG_VMX_RESULT)?;
    a.jmp(exit)?;

    // expect_value(EAX, ECX)
    a.set_label(&mut expect_value)?;
    a.cmp(eax, ecx)?;
    a.je(report)?;
    print_all(
        a,
        &mut strings,
        (print, print_hex),
        "\nvalue, expected, caller, iteration: ",
        &[
            Shown::Register(eax),
            Shown::Register(ecx),
            Shown::Caller,
            Shown::Register(r15d),
        ],
    )?;
    a.mov(eax, exit_code::WRONG_VALUE)?;
    a.jmp(exit)?;

    strings.emit(a)?;
    let result = asm.assemble_options(
        map::ROUTINES,
        BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
    )?;
    let ip = |label: &CodeLabel| result.label_ip(label);
    let routines = Routines {
        report: ip(&report)?,
        report_field: ip(&report_field)?,
        print: ip(&print)?,
        print_hex: ip(&print_hex)?,
        exit: ip(&exit)?,
        exception: ip(&exception)?,
        vmwrite_table: ip(&table)?,
        control: ip(&control)?,
        run: ip(&run)?,
        expect: ip(&expect)?,
        expect_entry_failure: ip(&expect_entry)?,
        expect_vmx: ip(&expect_vmx)?,
        expect_value: ip(&expect_value)?,
        vm_exit: ip(&vm_exit)?,
    };
    Ok((result.inner.code_buffer, routines))
}

/// Zero-terminated strings that follow the code.
#[derive(Default)]
pub struct Strings(Vec<(CodeLabel, Vec<u8>)>);

impl Strings {
    /// Emits LEA RSI, string.
    pub fn load(&mut self, a: &mut CodeAssembler, text: &str) -> Result<(), BuildError> {
        let label = a.create_label();
        a.lea(rsi, ptr(label))?;
        let mut bytes = text.as_bytes().to_vec();
        bytes.push(0);
        self.0.push((label, bytes));
        Ok(())
    }

    /// Emits the strings themselves.
    pub fn emit(&mut self, a: &mut CodeAssembler) -> Result<(), BuildError> {
        for (mut label, bytes) in self.0.drain(..) {
            a.set_label(&mut label)?;
            a.db(&bytes)?;
        }
        Ok(())
    }
}

/// Something to print in a message of failure.
enum Shown {
    Register(AsmRegister32),
    Field(u32),
    Caller,
}

/// Prints a message and values; registers are taken as they are before the message. Leaves the
/// stack deeper: only for code that does not return.
fn print_all(
    a: &mut CodeAssembler,
    strings: &mut Strings,
    (print, print_hex): (CodeLabel, CodeLabel),
    text: &str,
    values: &[Shown],
) -> Result<(), BuildError> {
    a.mov(rdi, qword_ptr(rsp))?;
    for value in values.iter().rev() {
        match value {
            Shown::Register(register) => {
                a.mov(edx, *register)?;
                a.push(rdx)?;
            }
            Shown::Field(field) => {
                a.push(rax)?;
                a.mov(edx, *field)?;
                a.vmread(rax, rdx)?;
                a.xchg(qword_ptr(rsp), rax)?;
            }
            Shown::Caller => a.push(rdi)?,
        }
    }
    strings.load(a, text)?;
    a.call(print)?;
    for _ in values {
        a.pop(rax)?;
        a.call(print_hex)?;
    }
    Ok(())
}
