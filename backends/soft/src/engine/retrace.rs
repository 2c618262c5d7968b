//! What an instruction that faulted was, from its bytes: whether it reads and writes, and how to take
//! back a branch whose target faults.

use super::clock::Block;
use super::env::Env;
use super::scan::CodeSize;
use iced_x86::{Code, Decoder, DecoderOptions, InstructionInfoFactory, Mnemonic, OpAccess};
use nvmx_core::x86::control::cr4;
use nvmx_core::x86::{Gpr, cr_write};

pub(super) fn is_canonical(address: u64, control4: u64) -> bool {
    let la57 = control4 & cr4::LA57 != 0;
    cr_write::is_canonical(address, if la57 { 57 } else { 48 })
}

/// Takes back the near branch that ended `block` with a non-canonical target: the processor raises
/// #GP(0) at the branch, with nothing of it done (SDM Vol. 2 "JMP", "CALL", "RET").
pub(super) fn undo_branch(env: &mut Env, block: Block) -> bool {
    let Some(address) = block.addresses().last() else {
        return false;
    };
    let (bytes, length) = env.fetch(address);
    let instruction =
        Decoder::with_ip(64, &bytes[..length], address, DecoderOptions::NONE).decode();
    let restore = match (instruction.mnemonic(), instruction.code()) {
        (Mnemonic::Jmp, Code::Jmp_rm64) => 0,
        (Mnemonic::Call, Code::Call_rm64) => 8,
        (Mnemonic::Ret, Code::Retnq) => 8u64.wrapping_neg(),
        (Mnemonic::Ret, Code::Retnq_imm16) => {
            (8 + u64::from(instruction.immediate16())).wrapping_neg()
        }
        _ => return false,
    };
    let stack = env.gpr(Gpr::Rsp).wrapping_add(restore);
    env.set_gpr(Gpr::Rsp, stack);
    env.set_rip(address);
    env.clock.done = env.clock.done.saturating_sub(1);
    (env.bytes, env.bytes_len) = (bytes, length);
    true
}

/// Whether the instruction both reads and writes one memory operand.
pub(super) fn reads_and_writes(
    factory: &mut InstructionInfoFactory,
    bytes: &[u8],
    size: CodeSize,
) -> bool {
    let instruction = Decoder::new(size.bits(), bytes, DecoderOptions::NONE).decode();
    let info = factory.info(&instruction);
    info.used_memory().iter().any(|memory| {
        matches!(
            memory.access(),
            OpAccess::ReadWrite | OpAccess::ReadCondWrite
        )
    })
}

/// Whether these bytes hold a whole instruction.
pub(super) fn is_complete(bytes: &[u8], size: CodeSize) -> bool {
    let mut decoder = Decoder::new(size.bits(), bytes, DecoderOptions::NONE);
    let _ = decoder.decode();
    decoder.last_error() != iced_x86::DecoderError::NoMoreBytes
}
