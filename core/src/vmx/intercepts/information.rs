//! The VM-exit instruction-information field (SDM Vol. 3C "Information for VM Exits Due to
//! Instruction Execution", the tables "Format of the VM-Exit Instruction-Information Field as Used
//! for ...") and the displacement that is the exit qualification of these instructions.

use crate::x86::Gpr;

/// A segment register, numbered as the field numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SegmentRegister {
    Es = 0,
    Cs = 1,
    Ss = 2,
    Ds = 3,
    Fs = 4,
    Gs = 5,
}

/// Operand or address size, numbered as the field numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum OperandSize {
    /// 16 bits.
    Bits16 = 0,
    /// 32 bits.
    Bits32 = 1,
    /// 64 bits.
    Bits64 = 2,
}

/// Address size: the same numbers.
pub type IndirectSize = OperandSize;

/// A decoded memory operand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOperand {
    /// Base register; `None` for absolute and RIP-relative operands.
    pub base: Option<Gpr>,
    /// Index register.
    pub index: Option<Gpr>,
    /// Scale of the index: 1, 2, 4 or 8.
    pub scale: u8,
    /// Segment, overrides applied.
    pub segment: SegmentRegister,
    /// Address size.
    pub address_size: OperandSize,
    /// Displacement, sign-extended; for a RIP-relative operand plus the RIP of the next instruction.
    /// It is the exit qualification.
    pub displacement: u64,
}

impl MemoryOperand {
    /// Bits that every format with a memory operand shares: scaling 1:0, address size 9:7,
    /// segment 17:15, index 22:18, base 27:23.
    const fn bits(&self) -> u32 {
        let (index, scaling) = match self.index {
            Some(gpr) => ((gpr as u32) << 18, scale_bits(self.scale)),
            None => (1 << 22, 0),
        };
        let base = match self.base {
            Some(gpr) => (gpr as u32) << 23,
            None => 1 << 27,
        };
        scaling | (self.address_size as u32) << 7 | (self.segment as u32) << 15 | index | base
    }
}

const fn scale_bits(scale: u8) -> u32 {
    match scale {
        2 => 1,
        4 => 2,
        8 => 3,
        _ => 0,
    }
}

/// INS (`segment` is `None`) and OUTS.
#[must_use]
pub const fn string_io_information(
    address_size: OperandSize,
    segment: Option<SegmentRegister>,
) -> u32 {
    let segment = match segment {
        Some(segment) => (segment as u32) << 15,
        None => 0,
    };
    (address_size as u32) << 7 | segment
}

/// INVEPT, INVPCID, INVVPID: the register holds the type.
#[must_use]
pub const fn invalidate_information(memory: &MemoryOperand, register: Gpr) -> u32 {
    memory.bits() | (register as u32) << 28
}

/// LGDT, LIDT, SGDT, SIDT, numbered as bits 29:28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum DescriptorTableInstruction {
    Sgdt = 0,
    Sidt = 1,
    Lgdt = 2,
    Lidt = 3,
}

/// LGDT, LIDT, SGDT, SIDT. Bit 11 is the operand size: set for 32 bits (undefined in 64-bit mode).
#[must_use]
pub const fn descriptor_table_information(
    instruction: DescriptorTableInstruction,
    memory: &MemoryOperand,
    operand_size: OperandSize,
) -> u32 {
    let size = match operand_size {
        OperandSize::Bits32 => 1 << 11,
        // Undefined in 64-bit mode: zero, as Bochs has it.
        OperandSize::Bits16 | OperandSize::Bits64 => 0,
    };
    memory.bits() | size | (instruction as u32) << 28
}

/// LLDT, LTR, SLDT, STR, numbered as bits 29:28.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum SystemSegmentInstruction {
    Sldt = 0,
    Str = 1,
    Lldt = 2,
    Ltr = 3,
}

/// LLDT, LTR, SLDT, STR: the operand is a register or memory.
#[must_use]
pub const fn system_segment_information(
    instruction: SystemSegmentInstruction,
    operand: Result<Gpr, &MemoryOperand>,
) -> u32 {
    let operand = match operand {
        Ok(gpr) => (gpr as u32) << 3 | 1 << 10,
        Err(memory) => memory.bits(),
    };
    operand | (instruction as u32) << 28
}

/// RDRAND and RDSEED.
#[must_use]
pub const fn random_information(destination: Gpr, size: OperandSize) -> u32 {
    (destination as u32) << 3 | (size as u32) << 11
}

/// TPAUSE and UMWAIT.
#[must_use]
pub const fn user_wait_information(source: Gpr) -> u32 {
    (source as u32) << 3
}

/// VMCLEAR, VMPTRLD, VMPTRST, VMXON, XRSTORS, XSAVES.
#[must_use]
pub const fn vmcs_pointer_information(memory: &MemoryOperand) -> u32 {
    memory.bits()
}

/// VMREAD and VMWRITE: `field` is the register that holds the encoding.
#[must_use]
pub const fn vmcs_access_information(field: Gpr, operand: Result<Gpr, &MemoryOperand>) -> u32 {
    let operand = match operand {
        Ok(gpr) => (gpr as u32) << 3 | 1 << 10,
        Err(memory) => memory.bits(),
    };
    operand | (field as u32) << 28
}
