//! Instructions that Rust interprets: decoded by iced-x86, their operands resolved against the
//! processor's state (SDM Vol. 1 "Operand Addressing").

use iced_x86::{Code, Decoder, DecoderOptions, Instruction, OpKind, Register};
use nvmx_core::cpu::Cpu;
use nvmx_core::x86::control::{cr0, rflags};
use nvmx_core::x86::cr_write::is_canonical;
use nvmx_core::x86::{AccessRights, Exception, Gpr, Segment};

/// Bits of the code segment: 16, 32 or 64.
pub(crate) fn code_bits(cpu: &Cpu) -> u32 {
    if cpu.in_64_bit_mode() {
        64
    } else if cpu.sregs.cr0 & cr0::PE != 0
        && cpu.regs.rflags & rflags::VM == 0
        && cpu.sregs.cs.ar.contains(AccessRights::DEFAULT_BIG)
    {
        32
    } else {
        16
    }
}

/// Decodes the instruction whose bytes start `bytes`; `None` if they are too few or no instruction.
///
/// In 64-bit mode the overrides of ES, CS, SS and DS are ignored (SDM Vol. 1 "Segmentation in 64-Bit Mode"):
/// they are not there.
pub(crate) fn decode(bytes: &[u8], bits: u32, rip: u64) -> Option<Instruction> {
    let mut decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    let mut instruction = decoder.decode();
    if bits == 64 && !matches!(instruction.segment_prefix(), Register::FS | Register::GS) {
        instruction.set_segment_prefix(Register::None);
    }
    (instruction.code() != Code::INVALID).then_some(instruction)
}

/// The general-purpose register that `register` is a part of; `None` for others.
pub(crate) fn gpr(register: Register) -> Option<Gpr> {
    register
        .is_gpr()
        .then(|| Gpr::from_number(register.full_register().number() as u8))
}

/// Reads a general-purpose register, or a part of one.
pub(crate) fn read_register(cpu: &Cpu, register: Register) -> Option<u64> {
    let value = cpu.regs.get(gpr(register)?);
    Some(match register.size() {
        1 if is_high_byte(register) => {
            cpu.regs.get(Gpr::from_number(high_byte_owner(register))) >> 8 & 0xff
        }
        1 => value & 0xff,
        2 => value & 0xffff,
        4 => value & 0xffff_ffff,
        _ => value,
    })
}

/// Writes a general-purpose register or a part of one: 32-bit writes clear the upper half.
pub(crate) fn write_register(cpu: &mut Cpu, register: Register, value: u64) {
    let Some(gpr) = gpr(register) else { return };
    let old = cpu.regs.get(gpr);
    match register.size() {
        1 if is_high_byte(register) => {
            let owner = Gpr::from_number(high_byte_owner(register));
            let old = cpu.regs.get(owner);
            cpu.regs.set(owner, old & !0xff00 | (value & 0xff) << 8);
        }
        1 => cpu.regs.set(gpr, old & !0xff | value & 0xff),
        2 => cpu.regs.set(gpr, old & !0xffff | value & 0xffff),
        4 => cpu.regs.set(gpr, value & 0xffff_ffff),
        _ => cpu.regs.set(gpr, value),
    }
}

fn is_high_byte(register: Register) -> bool {
    matches!(
        register,
        Register::AH | Register::CH | Register::DH | Register::BH
    )
}

fn high_byte_owner(register: Register) -> u8 {
    match register {
        Register::AH => 0,
        Register::CH => 1,
        Register::DH => 2,
        _ => 3,
    }
}

/// The segment register that iced names.
pub(crate) fn segment(cpu: &Cpu, register: Register) -> &Segment {
    match register {
        Register::ES => &cpu.sregs.es,
        Register::CS => &cpu.sregs.cs,
        Register::SS => &cpu.sregs.ss,
        Register::FS => &cpu.sregs.fs,
        Register::GS => &cpu.sregs.gs,
        _ => &cpu.sregs.ds,
    }
}

/// What the segment adds to an offset.
pub(crate) fn segment_base(cpu: &Cpu, register: Register) -> u64 {
    if cpu.in_64_bit_mode() && !matches!(register, Register::FS | Register::GS) {
        0
    } else {
        segment(cpu, register).base
    }
}

/// The linear address of the top of the stack.
pub(crate) fn stack_address(cpu: &Cpu) -> u64 {
    let pointer = cpu.regs.get(Gpr::Rsp);
    if cpu.in_64_bit_mode() {
        return pointer;
    }
    let segment = segment(cpu, Register::SS);
    let is_wide = segment.ar.contains(AccessRights::DEFAULT_BIG);
    let offset = pointer & if is_wide { 0xffff_ffff } else { 0xffff };
    segment.base.wrapping_add(offset) & 0xffff_ffff
}

/// A memory operand after segmentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    /// Offset in the segment, truncated to the address size.
    pub(crate) offset: u64,
    /// Linear address.
    pub(crate) linear: u64,
}

/// Resolves the memory operand of `instruction` for an access of `length` bytes, with the checks of
/// segmentation (SDM Vol. 3A "Limit Checking", "Type Checking") and of canonicality
/// (SDM Vol. 1 "Canonical Addressing").
pub(crate) fn resolve(
    cpu: &Cpu,
    instruction: &Instruction,
    operand: u32,
    length: u64,
    write: bool,
) -> Result<Address, Exception> {
    let register = memory_segment(instruction, operand);
    check(
        cpu,
        register,
        offset(cpu, instruction, operand),
        length,
        write,
    )
}

/// The linear address of the memory operand, whether it may be used or not.
pub(crate) fn unchecked_linear(cpu: &Cpu, instruction: &Instruction, operand: u32) -> u64 {
    let base = segment_base(cpu, memory_segment(instruction, operand));
    let linear = base.wrapping_add(offset(cpu, instruction, operand));
    if cpu.in_64_bit_mode() {
        linear
    } else {
        linear & 0xffff_ffff
    }
}

fn offset(cpu: &Cpu, instruction: &Instruction, operand: u32) -> u64 {
    instruction
        .virtual_address(operand, 0, |register, _, _| {
            if register.is_segment_register() {
                Some(0)
            } else {
                read_register(cpu, register)
            }
        })
        .unwrap_or(0)
}

/// The segment register that the memory operand goes through.
pub(crate) fn memory_segment(instruction: &Instruction, operand: u32) -> Register {
    match instruction.op_kind(operand) {
        OpKind::MemoryESDI | OpKind::MemoryESEDI | OpKind::MemoryESRDI => Register::ES,
        _ => instruction.memory_segment(),
    }
}

/// The linear address of `offset` in the segment, checked.
pub(crate) fn check(
    cpu: &Cpu,
    register: Register,
    offset: u64,
    length: u64,
    write: bool,
) -> Result<Address, Exception> {
    let segment = segment(cpu, register);
    let fault = if register == Register::SS {
        Exception {
            vector: Exception::SS,
            error_code: Some(0),
            payload: 0,
        }
    } else {
        Exception::GENERAL_PROTECTION
    };
    if cpu.in_64_bit_mode() {
        let base = if matches!(register, Register::FS | Register::GS) {
            segment.base
        } else {
            0
        };
        let linear = base.wrapping_add(offset);
        let last = linear.wrapping_add(length.max(1) - 1);
        let width = cpu.linear_width();
        if !is_canonical(linear, width) || !is_canonical(last, width) {
            return Err(fault);
        }
        return Ok(Address { offset, linear });
    }
    let real_or_v86 = cpu.sregs.cr0 & cr0::PE == 0 || cpu.regs.rflags & rflags::VM != 0;
    let ar = segment.ar;
    if !real_or_v86 {
        if !segment.is_usable() {
            return Err(fault);
        }
        let code = ar.contains(AccessRights::CODE);
        let flag = ar.contains(AccessRights::WRITABLE_READABLE);
        let allowed = if write { !code && flag } else { !code || flag };
        if !allowed {
            return Err(fault);
        }
    }
    let limit = u64::from(segment.limit);
    let last = offset.saturating_add(length.max(1) - 1);
    let expand_down =
        !ar.contains(AccessRights::CODE) && ar.contains(AccessRights::EXPAND_DOWN_CONFORMING);
    let inside = if expand_down && !real_or_v86 {
        let top = if ar.contains(AccessRights::DEFAULT_BIG) {
            0xffff_ffff
        } else {
            0xffff
        };
        offset > limit && last <= top
    } else {
        last <= limit
    };
    if !inside {
        return Err(fault);
    }
    Ok(Address {
        offset,
        linear: segment.base.wrapping_add(offset) & 0xffff_ffff,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::x86::control::efer;

    fn long_mode() -> Cpu {
        let mut cpu = Cpu::default();
        cpu.sregs.cr0 = cr0::PE | cr0::PG;
        cpu.sregs.efer = efer::LMA | efer::LME;
        cpu.sregs.cs.ar = AccessRights::from_bits_retain(0xa09b);
        cpu
    }

    #[test]
    fn partial_registers_follow_the_manual() {
        let mut cpu = long_mode();
        cpu.regs.gpr[0] = 0x1122_3344_5566_7788;
        assert_eq!(read_register(&cpu, Register::AH), Some(0x77));
        write_register(&mut cpu, Register::AH, 0xaa);
        assert_eq!(cpu.regs.gpr[0], 0x1122_3344_5566_aa88);
        write_register(&mut cpu, Register::EAX, 5);
        assert_eq!(cpu.regs.gpr[0], 5);
        write_register(&mut cpu, Register::SIL, 7);
        assert_eq!(cpu.regs.get(Gpr::Rsi), 7);
    }

    #[test]
    fn overrides_that_64_bit_mode_ignores_are_not_there() {
        // SS:, DS:, FS: mov rax, [rbx]; SS: mov eax, [ebx] of 32-bit code.
        for (bytes, bits, segment) in [
            (&[0x36, 0x48, 0x8b, 0x03][..], 64, Register::DS),
            (&[0x3e, 0x48, 0x8b, 0x04, 0x24], 64, Register::SS),
            (&[0x64, 0x48, 0x8b, 0x03], 64, Register::FS),
            (&[0x36, 0x8b, 0x03], 32, Register::SS),
        ] {
            let instruction = decode(bytes, bits, 0).expect("valid");
            assert_eq!(instruction.memory_segment(), segment, "{bytes:x?}");
        }
    }

    #[test]
    fn a_non_canonical_operand_is_a_general_protection_fault() {
        let mut cpu = long_mode();
        cpu.regs.set(Gpr::Rbx, 0x8000_0000_0000);
        // mov rax, [rbx]
        let instruction = decode(&[0x48, 0x8b, 0x03], 64, 0).expect("valid");
        assert_eq!(
            resolve(&cpu, &instruction, 1, 8, false),
            Err(Exception::GENERAL_PROTECTION)
        );
        cpu.regs.set(Gpr::Rbx, 0x7fff_ffff_f000);
        assert_eq!(
            resolve(&cpu, &instruction, 1, 8, false).map(|a| a.linear),
            Ok(0x7fff_ffff_f000)
        );
    }

    #[test]
    fn limits_hold_outside_64_bit_mode() {
        let mut cpu = Cpu::default();
        cpu.sregs.cr0 = cr0::PE;
        cpu.sregs.ds.limit = 0xfff;
        cpu.sregs.ds.ar = AccessRights::from_bits_retain(0x4093);
        assert!(check(&cpu, Register::DS, 0xffd, 4, false).is_err());
        assert!(check(&cpu, Register::DS, 0xffc, 4, true).is_ok());
        cpu.sregs.ds.ar = AccessRights::from_bits_retain(0x4091);
        assert!(
            check(&cpu, Register::DS, 0, 4, true).is_err(),
            "not writable"
        );
    }
}
