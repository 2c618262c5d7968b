//! The end of a repeated string instruction. Where the translator does not join iterations into a loop, it
//! looks at the count once more behind the last one, as an instruction of its own; the processor is done
//! with the last iteration (SDM Vol. 2B "REP"). A trap that comes behind each must not come behind that look.

use super::clock::Block;
use super::env::Env;
use super::scan::CodeSize;
use iced_x86::{Decoder, DecoderOptions, Instruction, OpKind};
use nvmx_core::x86::regs::Gpr;

impl Env {
    /// Notes whether the instruction at this linear address, which is RIP's, has just run its last
    /// iteration; `last` is the block that ran last.
    #[cold]
    pub(super) fn look_for_spent_repeat(&mut self, last: Option<Block>, address: u64) {
        self.spent_repeat = 0;
        if last.and_then(|block| block.addresses().last()) != Some(address) {
            return;
        }
        let (bytes, length) = self.fetch(address);
        let bits = self.code_size().bits();
        let instruction = Decoder::new(bits, &bytes[..length], DecoderOptions::NONE).decode();
        let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        let count = self.gpr(Gpr::Rcx) & count_mask(&instruction);
        if instruction.is_string_instruction() && repeats && count == 0 {
            self.spent_repeat = instruction.len() as u8;
        }
    }

    /// Moves RIP behind such an instruction. The look at the count is not executed, nor counted.
    pub fn pass_spent_repeat(&mut self) {
        let length = u64::from(std::mem::take(&mut self.spent_repeat));
        if length == 0 {
            return;
        }
        let next = self.rip().wrapping_add(length);
        self.set_rip(match self.code_size() {
            CodeSize::Bits64 => next,
            _ => next & 0xffff_ffff,
        });
    }
}

/// The bits of RCX that count, by the address size.
fn count_mask(instruction: &Instruction) -> u64 {
    (0..instruction.op_count())
        .map(|operand| match instruction.op_kind(operand) {
            OpKind::MemorySegSI | OpKind::MemoryESDI => 0xffff,
            OpKind::MemorySegESI | OpKind::MemoryESEDI => 0xffff_ffff,
            _ => u64::MAX,
        })
        .fold(u64::MAX, |all, mask| all & mask)
}
