//! Controls that a processor may offer and the model knows by name alone: no check looks at the fields
//! that come with them and nothing carries them out. A row goes when its control is taught.
//!
//! Not among them: "conceal VMX from PT", which is carried out where no trace is kept, and the two
//! VM-entry controls of SMM, which no entry outside SMM may set.

use super::{active_secondary, active_tertiary, entry_controls, exit_controls};
use crate::vmx::Vmcs12;
use crate::vmx::capability::ControlField;

/// One control.
struct Row {
    field: ControlField,
    bit: u32,
    text: &'static str,
}

macro_rules! missing {
    ($($field:ident $bit:literal $text:literal;)*) => {
        const ROWS: &[Row] = &[$(Row { field: ControlField::$field, bit: $bit, text: $text }),*];
    };
}

missing! {
    Secondary 21 "\"PASID translation\", SDM Vol. 3C \"PASID Translation\"";
    Secondary 24 "\"Intel PT uses guest physical addresses\", SDM Vol. 3C \"Intel PT Output and VMX\"";
    Secondary 27 "\"enable PCONFIG\", SDM Vol. 3C \"Changes to Instruction Behavior in VMX Non-Root Operation\"";
    Secondary 28 "\"enable ENCLV exiting\", SDM Vol. 3C \"Instructions That Cause VM Exits Conditionally\"";
    Secondary 30 "\"VMM bus-lock detection\", SDM Vol. 3C \"Other Causes of VM Exits\"";
    Secondary 31 "\"instruction timeout\", SDM Vol. 3C \"Other Causes of VM Exits\"";
    Tertiary 1 "\"enable HLAT\", SDM Vol. 3C \"Hypervisor-Managed Linear-Address Translation\"";
    Tertiary 2 "\"EPT paging-write control\", SDM Vol. 3C \"EPT Paging-Write Control\"";
    Tertiary 3 "\"guest-paging verification\", SDM Vol. 3C \"Guest-Paging Verification\"";
    Tertiary 8 "\"APIC-timer virtualization\", SDM Vol. 3C \"Tertiary Processor-Based VM-Execution Controls\"";
    Exit 25 "\"clear IA32_RTIT_CTL\", SDM Vol. 3C \"VM-Exit Controls\"";
    Exit 26 "\"clear IA32_LBR_CTL\", SDM Vol. 3C \"VM-Exit Controls\"";
    Exit 27 "\"clear UINV\", SDM Vol. 3C \"VM-Exit Controls\"";
    Exit 28 "\"load CET state\", SDM Vol. 3C \"VM-Exit Controls\"";
    Exit 29 "\"load PKRS\", SDM Vol. 3C \"VM-Exit Controls\"";
    Exit 31 "\"activate secondary controls\", SDM Vol. 3C \"VM-Exit Controls\"";
    Entry 18 "\"load IA32_RTIT_CTL\", SDM Vol. 3C \"VM-Entry Controls\"";
    Entry 19 "\"load UINV\", SDM Vol. 3C \"VM-Entry Controls\"";
    Entry 20 "\"load CET state\", SDM Vol. 3C \"VM-Entry Controls\"";
    Entry 21 "\"load guest IA32_LBR_CTL\", SDM Vol. 3C \"VM-Entry Controls\"";
    Entry 22 "\"load PKRS\", SDM Vol. 3C \"VM-Entry Controls\"";
    Entry 23 "\"load IA32 FRED MSRs\", SDM Vol. 3C \"VM-Entry Controls\"";
}

const fn mask(field: ControlField) -> u64 {
    let (mut mask, mut at) = (0, 0);
    while at < ROWS.len() {
        if ROWS[at].field as u32 == field as u32 {
            mask |= 1 << ROWS[at].bit;
        }
        at += 1;
    }
    mask
}

/// The first control of this vmcs12 that has a row, in words with its SDM section. A caller that runs L2
/// asks before it enters, so that what is missing ends in a message and never in a wrong answer.
#[must_use]
pub fn unsupported(vmcs12: &Vmcs12) -> Option<&'static str> {
    const FIELDS: [(ControlField, u64); 4] = [
        (ControlField::Tertiary, mask(ControlField::Tertiary)),
        (ControlField::Secondary, mask(ControlField::Secondary)),
        (ControlField::Exit, mask(ControlField::Exit)),
        (ControlField::Entry, mask(ControlField::Entry)),
    ];
    let values = [
        active_tertiary(vmcs12).bits(),
        active_secondary(vmcs12).bits().into(),
        exit_controls(vmcs12).bits().into(),
        entry_controls(vmcs12).bits().into(),
    ];
    let (field, set) = FIELDS
        .iter()
        .zip(values)
        .map(|(&(field, mask), value)| (field, value & mask))
        .find(|&(_, set)| set != 0)?;
    ROWS.iter()
        .find(|row| row.field == field && set >> row.bit & 1 != 0)
        .map(|row| row.text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmx::Field;
    use crate::vmx::entry::test_support::valid_vmcs12;

    #[test]
    fn each_row_is_found_in_a_vmcs12() {
        for row in ROWS {
            let mut vmcs12 = valid_vmcs12();
            let field = match row.field {
                ControlField::Tertiary => {
                    let primary = vmcs12.get(Field::CPU_BASED_VM_EXEC_CONTROL);
                    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, primary | 1 << 17);
                    Field::TERTIARY_VM_EXEC_CONTROL
                }
                ControlField::Secondary => Field::SECONDARY_VM_EXEC_CONTROL,
                ControlField::Exit => Field::VM_EXIT_CONTROLS,
                ControlField::Entry => Field::VM_ENTRY_CONTROLS,
                field => panic!("{field:?} has no control without one that activates it"),
            };
            vmcs12.set(field, vmcs12.get(field) | 1 << row.bit);
            assert_eq!(unsupported(&vmcs12), Some(row.text));
        }
    }
}
