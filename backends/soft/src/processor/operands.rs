//! Decoded operands in the words of the VM-exit instruction-information field
//! (SDM Vol. 3C "Information for VM Exits Due to Instruction Execution").

use crate::decode;
use iced_x86::{Instruction, OpKind, Register};
use nvmx_core::vmx::intercepts::{MemoryOperand, OperandSize, SegmentRegister};
use nvmx_core::x86::Gpr;

/// The number of a register that is known to be general-purpose.
pub(super) fn gpr_or_rax(register: Register) -> Gpr {
    decode::gpr(register).unwrap_or(Gpr::Rax)
}

/// Segment register as the field numbers it.
pub(super) fn segment(register: Register) -> SegmentRegister {
    match register {
        Register::ES => SegmentRegister::Es,
        Register::CS => SegmentRegister::Cs,
        Register::SS => SegmentRegister::Ss,
        Register::FS => SegmentRegister::Fs,
        Register::GS => SegmentRegister::Gs,
        _ => SegmentRegister::Ds,
    }
}

/// Address size of the memory operand.
pub(super) fn address_size(instruction: &Instruction, bits: u32) -> OperandSize {
    for operand in 0..instruction.op_count() {
        match instruction.op_kind(operand) {
            OpKind::MemoryESDI | OpKind::MemorySegSI | OpKind::MemorySegDI => {
                return OperandSize::Bits16;
            }
            OpKind::MemoryESEDI | OpKind::MemorySegESI | OpKind::MemorySegEDI => {
                return OperandSize::Bits32;
            }
            OpKind::MemoryESRDI | OpKind::MemorySegRSI | OpKind::MemorySegRDI => {
                return OperandSize::Bits64;
            }
            _ => {}
        }
    }
    let by_register = [instruction.memory_base(), instruction.memory_index()]
        .into_iter()
        .find(|&register| register != Register::None)
        .map(|register| match register {
            Register::RIP => 8,
            Register::EIP => 4,
            other => other.size(),
        });
    match by_register.unwrap_or(match (instruction.memory_displ_size(), bits) {
        (8, _) => 8,
        (4, _) => 4,
        (2, _) => 2,
        _ => bits as usize / 8,
    }) {
        2 => OperandSize::Bits16,
        4 => OperandSize::Bits32,
        _ => OperandSize::Bits64,
    }
}

/// The memory operand.
pub(super) fn memory(instruction: &Instruction, bits: u32) -> MemoryOperand {
    let relative = instruction.is_ip_rel_memory_operand();
    let register = |register: Register| {
        if relative {
            None
        } else {
            decode::gpr(register)
        }
    };
    MemoryOperand {
        base: register(instruction.memory_base()),
        index: register(instruction.memory_index()),
        scale: instruction.memory_index_scale() as u8,
        segment: segment(instruction.memory_segment()),
        address_size: address_size(instruction, bits),
        displacement: displacement(instruction, bits),
    }
}

/// The displacement as exit qualifications have it: sign-extended to 64 bits whatever the address size; of
/// a RIP-relative operand the target address (SDM Vol. 3C "Basic VM-Exit Information").
fn displacement(instruction: &Instruction, bits: u32) -> u64 {
    let value = instruction.memory_displacement64();
    match address_size(instruction, bits) {
        _ if instruction.is_ip_rel_memory_operand() => value,
        OperandSize::Bits16 => value as i16 as u64,
        OperandSize::Bits32 => value as i32 as u64,
        OperandSize::Bits64 => value,
    }
}

/// Operand size by bytes.
pub(super) const fn size(bytes: usize) -> OperandSize {
    match bytes {
        2 => OperandSize::Bits16,
        4 => OperandSize::Bits32,
        _ => OperandSize::Bits64,
    }
}

/// Whether operand `index` is in memory.
pub(super) fn is_memory(instruction: &Instruction, index: u32) -> bool {
    instruction.op_kind(index) == OpKind::Memory
}
