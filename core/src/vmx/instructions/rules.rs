//! When a VMX instruction faults, exits or fails, as rows in the order of the SDM's pseudo code (Vol. 3C,
//! the "Operation" sections of the chapter "VMX Instruction Reference"; Vol. 3C "VM Instruction Error
//! Numbers"). The code is in the modules beside; the tests hold each row against it, alone and in its
//! place before the rows that follow.

use super::{Instruction, InstructionError as E};

/// What a row leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// #UD.
    Undefined,
    /// #GP(0).
    GeneralProtection,
    /// A VM exit.
    Exit,
    /// VMfailInvalid.
    FailInvalid,
    /// VMfail: VMfailValid with this error, VMfailInvalid without a current VMCS.
    Fail(E),
}

/// One condition of an instruction.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Name, unique: `vmclear.address`.
    pub id: &'static str,
    /// The instruction.
    pub instruction: Instruction,
    /// Title of the SDM section.
    pub section: &'static str,
    /// The condition.
    pub text: &'static str,
    /// What it leads to.
    pub outcome: Outcome,
}

macro_rules! rules {
    ($name:ident $instruction:ident $prefix:literal $section:literal
        $($id:literal $outcome:expr, $text:literal;)*) => {
        static $name: &[Rule] = &[$(Rule {
            id: concat!($prefix, ".", $id),
            instruction: Instruction::$instruction,
            section: $section,
            text: $text,
            outcome: $outcome,
        },)*];
    };
}

/// Rules of an instruction that begins like most: #UD by mode, the exit from L2, privilege.
macro_rules! common_rules {
    ($name:ident $instruction:ident $prefix:literal $section:literal
        $($id:literal $outcome:expr, $text:literal;)*) => {
        rules! { $name $instruction $prefix $section
            "operation" UD, "not in VMX operation";
            "protected_mode" UD, "CR0.PE is 0";
            "virtual_8086" UD, "RFLAGS.VM is 1";
            "compatibility" UD, "in compatibility mode";
            "non_root" Outcome::Exit, "in VMX non-root operation";
            "privilege" GP, "CPL is not 0";
            $($id $outcome, $text;)*
        }
    };
}

const UD: Outcome = Outcome::Undefined;
const GP: Outcome = Outcome::GeneralProtection;

rules! { VMXON Vmxon "vmxon" "VMXON—Enter VMX Operation"
    "vmxe" UD, "CR4.VMXE is 0";
    "protected_mode" UD, "CR0.PE is 0";
    "virtual_8086" UD, "RFLAGS.VM is 1";
    "compatibility" UD, "in compatibility mode";
    "non_root" Outcome::Exit, "in VMX non-root operation";
    "privilege" GP, "CPL is not 0";
    "in_root" Outcome::Fail(E::VMXON_IN_ROOT), "in VMX root operation";
    "cr0" GP, "CR0 has a value that VMX operation does not support";
    "cr4" GP, "CR4 has a value that VMX operation does not support";
    "feature_control" GP, "IA32_FEATURE_CONTROL is not locked, or does not allow VMX outside SMX";
    "address" Outcome::FailInvalid, "the pointer is no page in the physical-address width";
    "revision" Outcome::FailInvalid, "the region has another revision identifier, or bit 31 set";
}

common_rules! { VMXOFF Vmxoff "vmxoff" "VMXOFF—Leave VMX Operation" }

common_rules! { VMCLEAR Vmclear "vmclear" "VMCLEAR—Clear Virtual-Machine Control Structure"
    "address" Outcome::Fail(E::VMCLEAR_INVALID_ADDRESS), "the pointer is no page in the physical-address width";
    "vmxon_pointer" Outcome::Fail(E::VMCLEAR_VMXON_POINTER), "the pointer is the VMXON pointer";
}

common_rules! { VMPTRLD Vmptrld "vmptrld" "VMPTRLD—Load Pointer to Virtual-Machine Control Structure"
    "address" Outcome::Fail(E::VMPTRLD_INVALID_ADDRESS), "the pointer is no page in the physical-address width";
    "vmxon_pointer" Outcome::Fail(E::VMPTRLD_VMXON_POINTER), "the pointer is the VMXON pointer";
    "revision" Outcome::Fail(E::VMPTRLD_INCORRECT_REVISION), "the region has another revision identifier";
    "shadow" Outcome::Fail(E::VMPTRLD_INCORRECT_REVISION), "the region is a shadow VMCS, and the processor has no VMCS shadowing";
}

common_rules! { VMPTRST Vmptrst "vmptrst" "VMPTRST—Store Pointer to Virtual-Machine Control Structure" }

common_rules! { VMREAD Vmread "vmread" "VMREAD—Read Field from Virtual-Machine Control Structure"
    "current" Outcome::FailInvalid, "there is no current VMCS";
    "field" Outcome::Fail(E::UNSUPPORTED_COMPONENT), "the source is no field of the processor's";
}

common_rules! { VMWRITE Vmwrite "vmwrite" "VMWRITE—Write Field to Virtual-Machine Control Structure"
    "current" Outcome::FailInvalid, "there is no current VMCS";
    "field" Outcome::Fail(E::UNSUPPORTED_COMPONENT), "the destination is no field of the processor's";
    "read_only" Outcome::Fail(E::READ_ONLY_COMPONENT), "the field is read-only, and IA32_VMX_MISC[29] is 0";
}

common_rules! { VMLAUNCH Vmlaunch "vmlaunch" "VMLAUNCH/VMRESUME—Launch/Resume Virtual Machine"
    "current" Outcome::FailInvalid, "there is no current VMCS";
    "shadow" Outcome::FailInvalid, "the current VMCS is a shadow VMCS";
    "mov_ss" Outcome::Fail(E::BLOCKED_BY_MOV_SS), "events are blocked by MOV SS";
    "not_clear" Outcome::Fail(E::VMLAUNCH_NOT_CLEAR), "the launch state is not clear";
    "controls" Outcome::Fail(E::INVALID_CONTROL_FIELD), "a rule on controls fails";
    "host_state" Outcome::Fail(E::INVALID_HOST_STATE_FIELD), "a rule on the host-state area fails";
    "guest_state" Outcome::Exit, "a rule on the guest-state area fails: exit reason 33";
}

common_rules! { VMRESUME Vmresume "vmresume" "VMLAUNCH/VMRESUME—Launch/Resume Virtual Machine"
    "current" Outcome::FailInvalid, "there is no current VMCS";
    "shadow" Outcome::FailInvalid, "the current VMCS is a shadow VMCS";
    "mov_ss" Outcome::Fail(E::BLOCKED_BY_MOV_SS), "events are blocked by MOV SS";
    "not_launched" Outcome::Fail(E::VMRESUME_NOT_LAUNCHED), "the launch state is not launched";
    "controls" Outcome::Fail(E::INVALID_CONTROL_FIELD), "a rule on controls fails";
    "host_state" Outcome::Fail(E::INVALID_HOST_STATE_FIELD), "a rule on the host-state area fails";
    "guest_state" Outcome::Exit, "a rule on the guest-state area fails: exit reason 33";
}

rules! { VMCALL Vmcall "vmcall" "VMCALL—Call to VM Monitor"
    "operation" UD, "not in VMX operation";
    "non_root" Outcome::Exit, "in VMX non-root operation";
    "virtual_8086" UD, "RFLAGS.VM is 1";
    "compatibility" UD, "in compatibility mode";
    "privilege" GP, "CPL is not 0";
    "in_root" Outcome::Fail(E::VMCALL_IN_ROOT), "there is no dual-monitor treatment";
}

rules! { INVEPT Invept "invept" "INVEPT—Invalidate Translations Derived from EPT"
    "exists" UD, "IA32_VMX_EPT_VPID_CAP[20] is 0";
    "operation" UD, "not in VMX operation";
    "protected_mode" UD, "CR0.PE is 0";
    "virtual_8086" UD, "RFLAGS.VM is 1";
    "compatibility" UD, "in compatibility mode";
    "non_root" Outcome::Exit, "in VMX non-root operation";
    "privilege" GP, "CPL is not 0";
    "type" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "the type is not supported";
    "eptp" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "the EPTP of a single-context INVEPT would fail a VM entry";
}

rules! { INVVPID Invvpid "invvpid" "INVVPID—Invalidate Translations Based on VPID"
    "exists" UD, "IA32_VMX_EPT_VPID_CAP[32] is 0";
    "operation" UD, "not in VMX operation";
    "protected_mode" UD, "CR0.PE is 0";
    "virtual_8086" UD, "RFLAGS.VM is 1";
    "compatibility" UD, "in compatibility mode";
    "non_root" Outcome::Exit, "in VMX non-root operation";
    "privilege" GP, "CPL is not 0";
    "type" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "the type is not supported";
    "reserved" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "bits 63:16 of the descriptor are not 0";
    "vpid" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "the VPID of an INVVPID of one context is 0";
    "address" Outcome::Fail(E::INVALID_INVALIDATION_OPERAND), "the linear address of an individual-address INVVPID is not canonical";
}

rules! { VMFUNC Vmfunc "vmfunc" "VMFUNC—Invoke VM Function"
    "root" UD, "not in VMX non-root operation";
    "enabled" UD, "\"enable VM functions\" is 0";
    "number" UD, "EAX is above 63";
    "function" Outcome::Exit, "the VM-function control of that number is 0";
    "index" Outcome::Exit, "EPTP switching: ECX is above 511";
    "eptp" Outcome::Exit, "EPTP switching: the entry would fail a VM entry";
}

rules! { GETSEC Getsec "getsec" "GETSEC (Vol. 2D)"
    "smxe" UD, "CR4.SMXE is 0";
    "non_root" Outcome::Exit, "in VMX non-root operation";
}

/// The rows of each instruction, in the order in which they are tried.
pub static GROUPS: &[&[Rule]] = &[
    VMXON, VMXOFF, VMCLEAR, VMPTRLD, VMPTRST, VMREAD, VMWRITE, VMLAUNCH, VMRESUME, VMCALL, INVEPT,
    INVVPID, VMFUNC, GETSEC,
];

/// VM-instruction errors that no row has, and why.
pub static NEVER: &[(E, &str)] = &[
    (
        E::VMRESUME_AFTER_VMXOFF,
        "the launch state is all that VMRESUME looks at",
    ),
    (E::INVALID_EXECUTIVE_POINTER, NO_SMM),
    (E::NON_LAUNCHED_EXECUTIVE, NO_SMM),
    (E::EXECUTIVE_NOT_VMXON, NO_SMM),
    (E::VMCALL_NOT_CLEAR, NO_SMM),
    (E::VMCALL_INVALID_EXIT_CONTROL, NO_SMM),
    (E::VMCALL_INCORRECT_MSEG, NO_SMM),
    (E::VMXOFF_DUAL_MONITOR, NO_SMM),
    (E::VMCALL_INVALID_SMM_MONITOR, NO_SMM),
    (E::INVALID_EXECUTIVE_CONTROL, NO_SMM),
];

const NO_SMM: &str = "there is no dual-monitor treatment of SMIs and SMM";

/// Every row.
pub fn all() -> impl Iterator<Item = &'static Rule> {
    GROUPS.iter().copied().flatten()
}
