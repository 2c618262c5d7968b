//! At which of its instructions L2 met an exception: where it exited, or where the frame on its stack points to.

use crate::case::Case;
use crate::code::met;
use crate::judge::Pair;
use crate::layout::{self, status};
use crate::wire::Record;
use iced_x86::{Instruction, InstructionInfoFactory};
use nvmx_core::vmx::Field;

impl Pair<'_> {
    /// The instruction of the case's code at which this side met an exception of these vectors.
    pub(super) fn faulted(&self, record: &Record, vectors: &[u64]) -> Option<Instruction> {
        let vector = met(record)?;
        if !vectors.contains(&vector) {
            return None;
        }
        let mut instructions = self.case.instructions().into_iter();
        // Of several in the frame's reach the last one: what is pushed is not where the code starts.
        instructions.rfind(|instruction| points_at(self.case, record, instruction.ip()))
    }

    /// The other side's instruction that met an exception of these vectors, where the model met none.
    pub(super) fn right_alone(&self, vectors: &[u64]) -> Option<Instruction> {
        let right = self.faulted(self.right, vectors)?;
        let left = self.faulted(self.left, vectors);
        (left.map(|instruction| instruction.ip()) != Some(right.ip())).then_some(right)
    }

    /// The model's instruction that met an exception of these vectors, where the other side met none.
    pub(super) fn left_alone(&self, vectors: &[u64]) -> Option<Instruction> {
        let left = self.faulted(self.left, vectors)?;
        let right = self.faulted(self.right, vectors);
        (right.map(|instruction| instruction.ip()) != Some(left.ip())).then_some(left)
    }
}

/// Whether the exit or a frame that was pushed is at this linear address.
fn points_at(case: &Case, record: &Record, address: u64) -> bool {
    let base: u64 = record.vmcs12.get(Field::GUEST_CS_BASE);
    if record.vmcs12.get(Field::VM_EXIT_REASON) == 0 {
        let rip: u64 = record.vmcs12.get(Field::GUEST_RIP);
        return base.wrapping_add(rip) == address;
    }
    let offset = address.wrapping_sub(layout::REAL);
    let is_real = offset < layout::REAL_SIZE;
    let now = |at: u64| {
        let flipped = record.changes.get(&at).copied().unwrap_or_default();
        crate::tables::arena::word(case, at) ^ flipped
    };
    record.changes.keys().any(|&at| {
        let bytes = u128::from(now(at)) | u128::from(now(at.wrapping_add(8))) << 64;
        (0..8).any(|byte| {
            let value = (bytes >> (8 * byte)) as u32;
            u64::from(value) == address
                || is_real && (u64::from(value) == offset || u64::from(value as u16) == offset)
        })
    })
}

/// Whether an instruction reads or writes memory, its stack among it.
pub(super) fn touches_memory(instruction: &Instruction) -> bool {
    let mut factory = InstructionInfoFactory::new();
    !factory.info(instruction).used_memory().is_empty()
}

/// Whether a case left L2 by an exit.
pub(super) fn reason(record: &Record) -> Option<u64> {
    (record.status == status::EXIT).then(|| record.vmcs12.get(Field::VM_EXIT_REASON))
}
