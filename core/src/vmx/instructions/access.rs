//! VMREAD and VMWRITE (SDM Vol. 3C "VMREAD", "VMWRITE").

use super::{InstructionError, VmxResult};
use crate::cpu::Cpu;
use crate::personality::Difference;
use crate::profiles::has_field;
use crate::vmx::Field;
use crate::vmx::capability::Capability;
use crate::vmx::vmcs12::Layout;

/// No VMCS link pointer.
const NO_LINK: u64 = u64::MAX;
/// Bits of an access-rights field that KVM keeps on VMWRITE, as some processors do.
const ACCESS_RIGHTS_KEPT: u64 = 0x1_f0ff;

/// Whether there is a VMCS to access: the current one, or in L2 the one at the link pointer.
fn has_target(cpu: &Cpu) -> bool {
    cpu.vmx.current.is_some()
        && !(cpu.vmx.guest_mode && cpu.vmx.vmcs12.get(Field::VMCS_LINK_POINTER) == NO_LINK)
}

const UNSUPPORTED: VmxResult = VmxResult::FailValid(InstructionError::UNSUPPORTED_COMPONENT);

/// Encodings have 32 bits; in 64-bit mode the register's others must be zero.
fn field_of(encoding: u64) -> Result<Field, VmxResult> {
    u32::try_from(encoding).map(Field).map_err(|_| UNSUPPORTED)
}

/// The fields that the processor has a place for, if it has `field`.
fn layout(cpu: &Cpu, field: Field) -> Option<Layout> {
    if cpu.model.as_kvm(Difference::VmcsFields) {
        return Some(Layout::Linux6_1);
    }
    has_field(Capability::from(&*cpu.model), field).then_some(Layout::Extended)
}

/// VMREAD of the field whose encoding the register operand holds. The caller stores the value (its
/// low 32 bits outside 64-bit mode) and completes with [`VmxResult::Succeed`].
pub fn vmread(cpu: &Cpu, encoding: u64) -> Result<u64, VmxResult> {
    if !has_target(cpu) {
        return Err(VmxResult::FailInvalid);
    }
    let field = field_of(encoding)?;
    let vmcs = if cpu.vmx.guest_mode {
        &cpu.vmx.shadow_vmcs12
    } else {
        &cpu.vmx.vmcs12
    };
    layout(cpu, field)
        .and_then(|layout| vmcs.try_get(field, layout))
        .ok_or(UNSUPPORTED)
}

/// VMWRITE of `value` (zero-extended from 32 bits outside 64-bit mode) to the field with this
/// encoding.
pub fn vmwrite(cpu: &mut Cpu, encoding: u64, mut value: u64) -> VmxResult {
    if !has_target(cpu) {
        return VmxResult::FailInvalid;
    }
    let field = match field_of(encoding) {
        Ok(field) => field,
        Err(result) => return result,
    };
    let exists = layout(cpu, field).and_then(|layout| cpu.vmx.vmcs12.try_get(field, layout));
    if exists.is_none() {
        return UNSUPPORTED;
    }
    if field.is_read_only() && !Capability::from(&*cpu.model).vmwrite_any() {
        return VmxResult::FailValid(InstructionError::READ_ONLY_COMPONENT);
    }
    let is_access_rights = (Field::GUEST_ES_AR_BYTES..=Field::GUEST_TR_AR_BYTES).contains(&field);
    if is_access_rights && cpu.model.as_kvm(Difference::AccessRights) {
        value &= ACCESS_RIGHTS_KEPT;
    }
    let vmcs = if cpu.vmx.guest_mode {
        &mut cpu.vmx.shadow_vmcs12
    } else {
        &mut cpu.vmx.vmcs12
    };
    vmcs.set(field, value);
    VmxResult::Succeed
}
