//! INVEPT and INVVPID (SDM Vol. 3C "INVEPT", "INVVPID").

use super::{InstructionError, VmxResult};
use crate::cpu::{Cpu, Model};
use crate::vmx::capability::{Capability, ControlField, EptVpid};
use crate::vmx::controls::Secondary;
use crate::vmx::ept::eptp_is_valid;
use crate::vmx::exit::Flush;
use crate::x86::Exception;
use crate::x86::cr_write::is_canonical;

/// The bit of INVEPT type 0 in IA32_VMX_EPT_VPID_CAP; type 1 is the first that exists.
const INVEPT_TYPES_SHIFT: u32 = 24;
/// INVEPT types 1 and 2.
const INVEPT_TYPES: u64 = 0b110;
/// The bit of INVVPID type 0 in IA32_VMX_EPT_VPID_CAP.
const INVVPID_TYPES_SHIFT: u32 = 40;
/// INVVPID types 0 to 3.
const INVVPID_TYPES: u64 = 0b1111;

fn allows(model: &Model, control: Secondary) -> bool {
    let allowed = Capability::from(model).allowed(ControlField::Secondary);
    allowed.may_be_one & u64::from(control.bits()) != 0
}

fn capabilities(model: &Model) -> EptVpid {
    Capability::from(model).ept_vpid()
}

/// Whether INVEPT is there at all; it is #UD otherwise.
pub(super) fn invept_exists(model: &Model) -> bool {
    allows(model, Secondary::ENABLE_EPT) && capabilities(model).contains(EptVpid::INVEPT)
}

/// Whether INVVPID is there at all; it is #UD otherwise.
pub(super) fn invvpid_exists(model: &Model) -> bool {
    allows(model, Secondary::ENABLE_VPID) && capabilities(model).contains(EptVpid::INVVPID)
}

const fn has_type(types: u64, kind: u64) -> bool {
    kind < 32 && types & 1 << kind != 0
}

/// The type is checked before the descriptor is read.
pub(super) fn check_invept_type(cpu: &Cpu, kind: u64) -> Result<(), VmxResult> {
    let types = capabilities(&cpu.model).bits() >> INVEPT_TYPES_SHIFT & INVEPT_TYPES;
    check_type(cpu, types, kind)
}

/// The type is checked before the descriptor is read.
pub(super) fn check_invvpid_type(cpu: &Cpu, kind: u64) -> Result<(), VmxResult> {
    let types = capabilities(&cpu.model).bits() >> INVVPID_TYPES_SHIFT & INVVPID_TYPES;
    check_type(cpu, types, kind)
}

fn check_type(cpu: &Cpu, types: u64, kind: u64) -> Result<(), VmxResult> {
    if has_type(types, kind) {
        Ok(())
    } else {
        Err(invalid_operand(cpu))
    }
}

const fn invalid_operand(cpu: &Cpu) -> VmxResult {
    VmxResult::fail(cpu, InstructionError::INVALID_INVALIDATION_OPERAND)
}

/// INVEPT: `kind` from the register operand, the 16-byte descriptor as two little-endian words.
#[must_use]
pub fn invept(cpu: &Cpu, kind: u64, descriptor: [u64; 2]) -> (VmxResult, Flush) {
    if !invept_exists(&cpu.model) {
        return (VmxResult::Fault(Exception::UNDEFINED), Flush::None);
    }
    if let Err(result) = check_invept_type(cpu, kind) {
        return (result, Flush::None);
    }
    let eptp = descriptor[0];
    let width = cpu.model.physical_address_width;
    match kind {
        1 if eptp_is_valid(eptp, capabilities(&cpu.model).bits(), width) => {
            (VmxResult::Succeed, Flush::Eptp(eptp & !0xfff))
        }
        1 => (invalid_operand(cpu), Flush::None),
        _ => (VmxResult::Succeed, Flush::AllEptps),
    }
}

/// INVVPID: `kind` from the register operand, the 16-byte descriptor as two little-endian words.
#[must_use]
pub fn invvpid(cpu: &Cpu, kind: u64, descriptor: [u64; 2]) -> (VmxResult, Flush) {
    if !invvpid_exists(&cpu.model) {
        return (VmxResult::Fault(Exception::UNDEFINED), Flush::None);
    }
    if let Err(result) = check_invvpid_type(cpu, kind) {
        return (result, Flush::None);
    }
    let [vpid, address] = descriptor;
    // Bits 63:16 are reserved for every type.
    let Ok(vpid) = u16::try_from(vpid) else {
        return (invalid_operand(cpu), Flush::None);
    };
    let flush = match kind {
        0 if vpid != 0 && is_canonical(address, cpu.model.linear_width()) => {
            Flush::Linear { vpid, address }
        }
        // Retaining globals is allowed to drop them too.
        1 | 3 if vpid != 0 => Flush::Vpid(vpid),
        2 => Flush::AllVpids,
        _ => return (invalid_operand(cpu), Flush::None),
    };
    (VmxResult::Succeed, flush)
}
