//! Rules on VM-exit control fields (SDM Vol. 3C "VM-Exit Control Fields" under "Checks on VMX
//! Controls").

use super::Class::InvalidControl;
use super::context::implies;
use super::rules;
use crate::vmx::Field;
use crate::vmx::capability::ControlField;
use crate::vmx::controls::ExitControls;

rules! { RULES, "VM-Exit Control Fields" => InvalidControl;
    Software "control.exit.reserved"
        "reserved bits of the VM-exit controls are as IA32_VMX_(TRUE_)EXIT_CTLS says"
        [VM_EXIT_CONTROLS]
        |c| c.control_allowed(Field::VM_EXIT_CONTROLS, ControlField::Exit);
    Software "control.exit.secondary_reserved"
        "with \"activate secondary controls\" of VM exit, their reserved bits are as IA32_VMX_EXIT_CTLS2 says"
        [VM_EXIT_CONTROLS SECONDARY_VM_EXIT_CONTROLS]
        |c| implies!(c.exit(ExitControls::ACTIVATE_SECONDARY_CONTROLS),
            c.control_allowed(Field::SECONDARY_VM_EXIT_CONTROLS, ControlField::SecondaryExit));
    Software "control.exit.msr_load_list"
        "if the VM-exit MSR-load count is not 0, the list is 16-byte aligned in the physical-address width"
        [VM_EXIT_MSR_LOAD_ADDR VM_EXIT_MSR_LOAD_COUNT]
        |c| c.msr_list(Field::VM_EXIT_MSR_LOAD_ADDR, Field::VM_EXIT_MSR_LOAD_COUNT);
    Software "control.exit.msr_store_list"
        "if the VM-exit MSR-store count is not 0, the list is 16-byte aligned in the physical-address width"
        [VM_EXIT_MSR_STORE_ADDR VM_EXIT_MSR_STORE_COUNT]
        |c| c.msr_list(Field::VM_EXIT_MSR_STORE_ADDR, Field::VM_EXIT_MSR_STORE_COUNT);
}
