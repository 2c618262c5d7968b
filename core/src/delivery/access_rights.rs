//! Descriptors that LAR and LSL take (SDM Vol. 2A "LAR", "LSL": tables of valid types).

use super::LinearMemory;
use super::frame::Descriptor;
use crate::cpu::Cpu;
use crate::x86::control::efer;
use crate::x86::{AccessRights, Exception};

/// Whether the selector names a system descriptor that LAR (or LSL, if `limit`) takes outside IA-32e mode, and
/// not in it: a 16-bit TSS, a 16-bit call gate, a task gate.
pub fn is_of_legacy_mode_alone<L: LinearMemory + ?Sized>(
    cpu: &Cpu,
    memory: &mut L,
    selector: u16,
    limit: bool,
) -> bool {
    if cpu.sregs.efer & efer::LMA == 0 || selector & 0xfffc == 0 {
        return false;
    }
    let Ok(descriptor) = Descriptor::read(cpu, memory, selector, Exception::GP, false) else {
        return false;
    };
    let is_gate = matches!(descriptor.rights().segment_type(), 4 | 5);
    let is_tss = matches!(descriptor.rights().segment_type(), 1 | 3);
    !descriptor.is(AccessRights::CODE_OR_DATA) && (is_tss || is_gate && !limit)
}
