//! Alignment checks (SDM Vol. 3A "Interrupt 17: Alignment Check Exception (#AC)"), which the translator
//! lacks: at CPL 3 with RFLAGS.AC set each instruction is looked at before it runs.

use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{Code, Instruction, InstructionInfoFactory, MemorySize, OpAccess};
use nvmx_core::x86::Exception;
use nvmx_core::x86::control::cr0;

/// Bytes that an operand of this kind must be aligned to (table "Alignment Requirements by Data Type").
/// Operands of 16 bytes and more have rules of their own: they fault with #GP, or are never checked.
const fn alignment(size: MemorySize, bytes: usize) -> u64 {
    match size {
        // A selector of 16 bits comes with the offset.
        MemorySize::SegPtr16 | MemorySize::Fword6 => 2,
        MemorySize::SegPtr32 | MemorySize::Fword10 => 4,
        MemorySize::Float80 | MemorySize::Bcd | MemorySize::SegPtr64 => 8,
        MemorySize::FpuEnv14 | MemorySize::FpuState94 => 2,
        MemorySize::FpuEnv28 | MemorySize::FpuState108 => 4,
        _ => match bytes {
            2 | 4 | 8 => bytes as u64,
            _ => 1,
        },
    }
}

impl Processor {
    /// #AC(0), or the instruction may run.
    pub(super) fn check_alignment(&mut self, instruction: &Instruction) -> Outcome {
        self.refuse_misaligned(instruction)?;
        self.effects.native_once = true;
        Ok(Done::Jumped)
    }

    /// #AC(0) if that is what the instruction's operands lead to.
    pub(super) fn refuse_misaligned(&self, instruction: &Instruction) -> Result<(), Trap> {
        if self.cpu.sregs.cr0 & cr0::AM != 0 && self.is_misaligned(instruction) {
            return Err(Exception {
                vector: Exception::AC,
                error_code: Some(0),
                payload: 0,
            }
            .into());
        }
        Ok(())
    }

    fn is_misaligned(&self, instruction: &Instruction) -> bool {
        // Hints and address arithmetic access nothing; descriptor tables are read by the supervisor.
        if matches!(
            instruction.code(),
            Code::Clflush_m8 | Code::Invlpg_m | Code::Sgdt_m1664 | Code::Sidt_m1664
        ) {
            return false;
        }
        let mut factory = InstructionInfoFactory::new();
        let info = factory.info(instruction);
        info.used_memory().iter().any(|memory| {
            let size = match memory.memory_size() {
                // Repeated string instructions.
                MemorySize::Unknown => instruction.memory_size(),
                size => size,
            };
            let needed = alignment(size, size.size());
            let is_accessed = !matches!(memory.access(), OpAccess::None | OpAccess::NoMemAccess);
            let address = memory.virtual_address(0, |register, _, _| {
                if register.is_segment_register() {
                    Some(decode::segment_base(&self.cpu, register))
                } else {
                    decode::read_register(&self.cpu, register)
                }
            });
            is_accessed && address.is_some_and(|address| address & (needed - 1) != 0)
        })
    }
}
