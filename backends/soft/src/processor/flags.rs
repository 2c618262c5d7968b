//! SETcc, RCL and RCR of memory, LOCK NEG (SDM Vol. 2 "SETcc", "RCL/RCR/ROL/ROR", "NEG"). The translator computes RFLAGS
//! in place before it touches the operand: after a fault they would be wrong, and so would be the
//! result once the instruction is repeated. And CMPXCHG8B, CMPXCHG16B, which in the translator's hands lose the flags that an
//! instruction of the same block has set and they keep.

use super::alu;
use super::io::mask;
use super::mmu::Place;
use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{ConditionCode, Instruction, Mnemonic, OpKind};
use nvmx_core::paging::{Access, AccessKind, WalkFault};
use nvmx_core::vmx::ept::EptFault;
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{Exception, Gpr};

impl Processor {
    /// SETcc, RCL, RCR or LOCK NEG with a destination in memory, CMPXCHG8B or CMPXCHG16B.
    pub(super) fn flags_first(&mut self, instruction: &Instruction) -> Outcome {
        match instruction.mnemonic() {
            Mnemonic::Rcl | Mnemonic::Rcr | Mnemonic::Neg => self.in_memory(instruction),
            Mnemonic::Cmpxchg8b | Mnemonic::Cmpxchg16b => self.compare_and_exchange(instruction),
            _ => {
                let value = holds(instruction.condition_code(), self.cpu.regs.rflags);
                self.device_write(instruction, 0, 1, u64::from(value))
            }
        }
    }

    /// RCL, RCR and NEG.
    fn in_memory(&mut self, instruction: &Instruction) -> Outcome {
        let size = instruction.memory_size().size() as u8;
        let mut bytes = [0; 8];
        let address = self.read_to_write(instruction, &mut bytes[..usize::from(size)])?;
        let old = u64::from_le_bytes(bytes);

        let count = match instruction.op1_kind() {
            OpKind::Register => self.cpu.regs.get(Gpr::Rcx) as u8,
            _ if instruction.op_count() > 1 => instruction.immediate8(),
            _ => 0,
        };
        let before = self.cpu.regs.rflags;
        let (new, flags) = match instruction.mnemonic() {
            Mnemonic::Neg => match alu::unary(Mnemonic::Neg, old, size, before) {
                Some(result) => (result.value.unwrap_or(old), result.flags),
                None => return Err(self.cannot(instruction)),
            },
            mnemonic => rotate(old, size, count, mnemonic == Mnemonic::Rcl, before),
        };
        self.write_linear(address, &new.to_le_bytes()[..usize::from(size)])?;
        self.cpu.regs.rflags = flags;
        Ok(Done::Retired)
    }

    /// CMPXCHG8B, CMPXCHG16B (SDM Vol. 2A "CMPXCHG8B/CMPXCHG16B"): of the flags only ZF changes, and the operand is
    /// written whatever the outcome.
    fn compare_and_exchange(&mut self, instruction: &Instruction) -> Outcome {
        let half = instruction.memory_size().size() / 2;
        let mut bytes = [0; 16];
        let address = self.read_to_write(instruction, &mut bytes[..2 * half])?;
        let bits = 8 * half as u32;
        let old = u128::from_le_bytes(bytes);
        let regs = &mut self.cpu.regs;
        let pair = |high, low| {
            let low = mask_wide(regs.get(low).into(), bits);
            mask_wide(u128::from(regs.get(high)) << bits | low, 2 * bits)
        };
        let is_equal = old == pair(Gpr::Rdx, Gpr::Rax);
        let new = if is_equal {
            pair(Gpr::Rcx, Gpr::Rbx)
        } else {
            old
        };
        self.write_linear(address, &new.to_le_bytes()[..2 * half])?;
        let regs = &mut self.cpu.regs;
        if is_equal {
            regs.rflags |= rflags::ZF;
        } else {
            regs.rflags &= !rflags::ZF;
            regs.set(Gpr::Rax, mask_wide(old, bits) as u64);
            regs.set(Gpr::Rdx, (old >> bits) as u64);
        }
        Ok(Done::Retired)
    }

    /// Reads the operand in memory, which may be written; answers its linear address.
    fn read_to_write(&mut self, instruction: &Instruction, bytes: &mut [u8]) -> Result<u64, Trap> {
        let length = bytes.len() as u64;
        let address = decode::resolve(&self.cpu, instruction, 0, length, true)?.linear;
        if length == 16 && !address.is_multiple_of(16) {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        self.check_write(address, length).map_err(read_and_write)?;
        let access = Access::explicit(AccessKind::Write, self.cpu.cpl());
        for at in [address, address.wrapping_add(length - 1)] {
            if let Place::Device(_) = self.place(at, access)? {
                return Err(self.cannot(instruction));
            }
        }
        self.read_linear(address, bytes)?;
        Ok(address)
    }
}

/// The low `bits`, 32 to 128.
fn mask_wide(value: u128, bits: u32) -> u128 {
    value & u128::MAX >> (128 - bits)
}

/// An EPT violation of an instruction that reads and writes tells of both (SDM Vol. 3C, table "Exit
/// Qualification for EPT Violations").
fn read_and_write(fault: WalkFault) -> Trap {
    match fault {
        WalkFault::Ept(fault @ EptFault::Violation { .. }) => Trap::Ept(fault, true),
        other => other.into(),
    }
}

/// RCL or RCR: the new value of the operand and the new RFLAGS. OF, undefined for counts above one, is
/// what the translator makes of it: whether the sign changed.
fn rotate(old: u64, size: u8, count: u8, left: bool, flags: u64) -> (u64, u64) {
    let bits = 8 * u32::from(size);
    let count = u32::from(count & if size == 8 { 0x3f } else { 0x1f }) % (bits + 1);
    if count == 0 {
        return (old, flags);
    }
    let up = if left { count } else { bits + 1 - count };
    let ring = u128::from(flags & rflags::CF) << bits | u128::from(old);
    let turned = ring << up | ring >> (bits + 1 - up);
    let new = mask(turned as u64, size);
    let mut flags = flags & !(rflags::CF | rflags::OF);
    if turned >> bits & 1 != 0 {
        flags |= rflags::CF;
    }
    if (old ^ new) >> (bits - 1) & 1 != 0 {
        flags |= rflags::OF;
    }
    (new, flags)
}

/// SDM Vol. 1, appendix "EFLAGS Condition Codes".
pub(super) fn holds(condition: ConditionCode, flags: u64) -> bool {
    let set = |flag: u64| flags & flag != 0;
    let less = set(rflags::SF) != set(rflags::OF);
    match condition {
        ConditionCode::None => false,
        ConditionCode::o => set(rflags::OF),
        ConditionCode::no => !set(rflags::OF),
        ConditionCode::b => set(rflags::CF),
        ConditionCode::ae => !set(rflags::CF),
        ConditionCode::e => set(rflags::ZF),
        ConditionCode::ne => !set(rflags::ZF),
        ConditionCode::be => set(rflags::CF | rflags::ZF),
        ConditionCode::a => !set(rflags::CF | rflags::ZF),
        ConditionCode::s => set(rflags::SF),
        ConditionCode::ns => !set(rflags::SF),
        ConditionCode::p => set(rflags::PF),
        ConditionCode::np => !set(rflags::PF),
        ConditionCode::l => less,
        ConditionCode::ge => !less,
        ConditionCode::le => less || set(rflags::ZF),
        ConditionCode::g => !less && !set(rflags::ZF),
    }
}
