//! L2's IA32_SPEC_CTRL with "virtualize IA32_SPEC_CTRL" (SDM Vol. 3C "Changes to Instruction Behavior in VMX
//! Non-Root Operation", "RDMSR" and "WRMSR"): L2 reads a shadow, and L1's mask keeps bits of the register. The
//! MSR bitmaps and the check of CPL go before.

use super::Field;
use super::controls::Tertiary;
use super::entry::active_tertiary;
use crate::cpu::Cpu;
use crate::msr::{self, MsrFault};
use crate::x86::msr::IA32_SPEC_CTRL;

/// Whether an access of L2 to this MSR is virtualized.
#[inline]
#[must_use]
pub fn is_virtualized(cpu: &Cpu, number: u32) -> bool {
    number == IA32_SPEC_CTRL
        && cpu.vmx.guest_mode
        && active_tertiary(&cpu.vmx.vmcs12).contains(Tertiary::VIRTUALIZE_SPEC_CTRL)
}

/// RDMSR: the shadow.
#[must_use]
pub fn read(cpu: &Cpu) -> u64 {
    cpu.vmx.vmcs12.get(Field::SPEC_CTRL_SHADOW)
}

/// WRMSR: the shadow takes the value, the register those bits that the mask leaves to L2.
pub fn write(cpu: &mut Cpu, value: u64) -> Result<(), MsrFault> {
    let before = cpu.msrs.spec_ctrl;
    msr::write(cpu, IA32_SPEC_CTRL, value)?;
    let mask = cpu.vmx.vmcs12.get(Field::SPEC_CTRL_MASK);
    cpu.msrs.spec_ctrl = value & !mask | before & mask;
    cpu.vmx.vmcs12.set(Field::SPEC_CTRL_SHADOW, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Model;
    use crate::x86::cpuid::CpuidEntry;
    use std::sync::Arc;

    fn l2(mask: u64) -> Cpu {
        let features = CpuidEntry {
            leaf: 7,
            edx: 1 << 26,
            ..CpuidEntry::default()
        };
        let mut cpu = Cpu {
            model: Arc::new(Model {
                cpuid: vec![features],
                ..Model::default()
            }),
            ..Cpu::default()
        };
        cpu.vmx.guest_mode = true;
        let vmcs12 = &mut cpu.vmx.vmcs12;
        vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << 17);
        vmcs12.set(Field::TERTIARY_VM_EXEC_CONTROL, 1 << 7);
        vmcs12.set(Field::SPEC_CTRL_MASK, mask);
        vmcs12.set(Field::SPEC_CTRL_SHADOW, 2);
        cpu.msrs.spec_ctrl = 1;
        cpu
    }

    #[test]
    fn the_mask_keeps_bits_and_the_shadow_tells_what_was_written() {
        let mut cpu = l2(1);
        assert!(is_virtualized(&cpu, IA32_SPEC_CTRL) && !is_virtualized(&cpu, 0x49));
        assert_eq!(read(&cpu), 2);
        assert_eq!(write(&mut cpu, 4), Ok(()));
        assert_eq!((read(&cpu), cpu.msrs.spec_ctrl), (4, 5));
        assert!(write(&mut cpu, 1 << 40).is_err(), "a reserved bit");
        assert_eq!((read(&cpu), cpu.msrs.spec_ctrl), (4, 5));
    }

    #[test]
    fn root_operation_and_other_controls_do_not() {
        let mut cpu = l2(0);
        cpu.vmx.vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, 0);
        assert!(!is_virtualized(&cpu, IA32_SPEC_CTRL));
        cpu = l2(0);
        cpu.vmx.guest_mode = false;
        assert!(!is_virtualized(&cpu, IA32_SPEC_CTRL));
    }
}
