//! What comes first where an instruction of L2 would both fault and exit (SDM Vol. 3C "Relative Priority of
//! Faults and VM Exits"), as rows; a test of the software backend arranges each of them.

/// What an instruction ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First {
    /// An exception of this vector.
    Fault(u8),
    /// A VM exit.
    Exit,
}

/// One rule.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Name, unique.
    pub id: &'static str,
    /// Title of the SDM section that has it.
    pub section: &'static str,
    /// What comes first.
    pub first: First,
    /// Which instruction, and what it does not come to.
    pub text: &'static str,
}

macro_rules! rows {
    ($($id:literal $section:literal $first:expr, $text:literal;)*) => {
        /// The rows.
        pub const INSTRUCTIONS: &[Row] = &[$(Row {
            id: $id,
            section: $section,
            first: $first,
            text: $text,
        }),*];
    };
}

use First::{Exit, Fault};

const UD: First = Fault(6);
const GP: First = Fault(13);
const PF: First = Fault(14);

rows! {
    "privilege" "Relative Priority of Faults and VM Exits" GP,
        "a privileged instruction at CPL 3: #GP(0), though its exit is unconditional or asked for";
    "privilege.monitor" "Relative Priority of Faults and VM Exits" UD,
        "MONITOR and MWAIT at CPL 3: #UD, before \"MONITOR exiting\" and \"MWAIT exiting\"";
    "privilege.tsd" "Relative Priority of Faults and VM Exits" GP,
        "RDTSC with CR4.TSD at CPL 3, RDPMC without CR4.PCE: #GP(0), before their exits";
    "privilege.umip" "Relative Priority of Faults and VM Exits" GP,
        "SGDT and its like with CR4.UMIP at CPL 3: #GP(0), before \"descriptor-table exiting\"";
    "privilege.io" "Relative Priority of Faults and VM Exits" GP,
        "IN and OUT that IOPL and the TSS's bitmap do not permit: #GP(0), before I/O exits";
    "privilege.mov_dr" "Instructions That Cause VM Exits Conditionally" Exit,
        "MOV DR at CPL 3, or of DR4 with CR4.DE: the exit of \"MOV-DR exiting\"";
    "any_privilege" "Instructions That Cause VM Exits Unconditionally" Exit,
        "CPUID, and VMX instructions whatever their privilege: the exit";
    "undefined" "Relative Priority of Faults and VM Exits" UD,
        "instructions that L1 has not enabled, XSETBV without CR4.OSXSAVE, RSM, GETSEC without CR4.SMXE: #UD";
    "operand" "Relative Priority of Faults and VM Exits" PF,
        "LMSW from memory that cannot be read: #PF, since its exit depends on the operand";
    "operand.later" "Relative Priority of Faults and VM Exits" Exit,
        "SGDT, INVPCID, VMPTRLD with an operand in memory that cannot be reached: the exit";
    "value.control_register" "Relative Priority of Faults and VM Exits" Exit,
        "MOV CR0 or CR4 of a value with bits that are reserved, where the mask makes it exit: the exit";
    "value.control_register.own" "Instructions That Cause VM Exits Conditionally" GP,
        "the same where the mask leaves the bits to L2: #GP(0)";
    "value.msr" "Relative Priority of Faults and VM Exits" Exit,
        "RDMSR and WRMSR of an MSR that does not exist at CPL 0: the exit of the MSR bitmap";
    "value.msr.own" "MSR-Bitmap Address" GP,
        "the same where the bitmap has no bit for it: #GP(0)";
    "value.xsetbv" "Relative Priority of Faults and VM Exits" Exit,
        "XSETBV of an XCR or a value that does not exist: the exit";
    "value.rdpmc" "Relative Priority of Faults and VM Exits" Exit,
        "RDPMC of a counter that does not exist: the exit of \"RDPMC exiting\"";
    "string_io.segment" "Relative Priority of Faults and VM Exits" Exit,
        "INS and OUTS through a segment that is unusable: the exit";
    "page_fault" "EPT Violations" PF,
        "an access that L2's page tables do not permit: #PF, before the EPT violation of the page";
}

/// The row of this name.
#[must_use]
pub fn find(id: &str) -> Option<&'static Row> {
    INSTRUCTIONS.iter().find(|row| row.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_rows_complete() {
        for (at, row) in INSTRUCTIONS.iter().enumerate() {
            assert!(INSTRUCTIONS[..at].iter().all(|other| other.id != row.id));
            assert!(!row.section.is_empty() && !row.text.is_empty());
        }
        assert!(find("operand").is_some() && find("none").is_none());
    }
}
