//! VM-instruction error numbers (SDM Vol. 3C "VM Instruction Error Numbers").

use serde::{Deserialize, Serialize};
use std::fmt;

/// What the VM-instruction error field holds. An unknown number is data, not an error.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct InstructionError(pub u32);

macro_rules! errors {
    ($($number:literal $name:ident $text:literal;)*) => {
        impl InstructionError {
            $(#[doc = concat!($text, ".")] pub const $name: Self = Self($number);)*

            /// Every error of the table, in its order.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The SDM's words, if the table has the number.
            #[must_use]
            pub const fn text(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some($text),)*
                    _ => None,
                }
            }
        }
    };
}

errors! {
    1 VMCALL_IN_ROOT "VMCALL executed in VMX root operation";
    2 VMCLEAR_INVALID_ADDRESS "VMCLEAR with invalid physical address";
    3 VMCLEAR_VMXON_POINTER "VMCLEAR with VMXON pointer";
    4 VMLAUNCH_NOT_CLEAR "VMLAUNCH with non-clear VMCS";
    5 VMRESUME_NOT_LAUNCHED "VMRESUME with non-launched VMCS";
    6 VMRESUME_AFTER_VMXOFF "VMRESUME after VMXOFF (VMXOFF and VMXON between VMLAUNCH and VMRESUME)";
    7 INVALID_CONTROL_FIELD "VM entry with invalid control field(s)";
    8 INVALID_HOST_STATE_FIELD "VM entry with invalid host-state field(s)";
    9 VMPTRLD_INVALID_ADDRESS "VMPTRLD with invalid physical address";
    10 VMPTRLD_VMXON_POINTER "VMPTRLD with VMXON pointer";
    11 VMPTRLD_INCORRECT_REVISION "VMPTRLD with incorrect VMCS revision identifier";
    12 UNSUPPORTED_COMPONENT "VMREAD/VMWRITE from/to unsupported VMCS component";
    13 READ_ONLY_COMPONENT "VMWRITE to read-only VMCS component";
    15 VMXON_IN_ROOT "VMXON executed in VMX root operation";
    16 INVALID_EXECUTIVE_POINTER "VM entry with invalid executive-VMCS pointer";
    17 NON_LAUNCHED_EXECUTIVE "VM entry with non-launched executive VMCS";
    18 EXECUTIVE_NOT_VMXON "VM entry with executive-VMCS pointer not VMXON pointer";
    19 VMCALL_NOT_CLEAR "VMCALL with non-clear VMCS";
    20 VMCALL_INVALID_EXIT_CONTROL "VMCALL with invalid VM-exit control fields";
    22 VMCALL_INCORRECT_MSEG "VMCALL with incorrect MSEG revision identifier";
    23 VMXOFF_DUAL_MONITOR "VMXOFF under dual-monitor treatment of SMIs and SMM";
    24 VMCALL_INVALID_SMM_MONITOR "VMCALL with invalid SMM-monitor features";
    25 INVALID_EXECUTIVE_CONTROL "VM entry with invalid VM-execution control fields in executive VMCS";
    26 BLOCKED_BY_MOV_SS "VM entry with events blocked by MOV SS";
    28 INVALID_INVALIDATION_OPERAND "Invalid operand to INVEPT/INVVPID";
}

impl fmt::Debug for InstructionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "InstructionError({}: {self})", self.0)
    }
}

impl fmt::Display for InstructionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.text() {
            Some(text) => f.write_str(text),
            None => write!(f, "VM-instruction error {}", self.0),
        }
    }
}
