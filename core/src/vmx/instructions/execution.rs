//! Everything before an instruction touches its memory operand: mode, VMX operation, privilege,
//! exits from L2 (SDM Vol. 3C, the "Operation" sections of the chapter "VMX Instruction Reference";
//! "Instructions That Cause VM Exits Unconditionally").

use super::{VmxResult, invalidation, vmxon};
use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::controls::Secondary;
use crate::vmx::entry::active_secondary;
use crate::vmx::exit::{ExitReason, VmExit};
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::{Exception, Gpr};

/// A VMX instruction (and GETSEC, which VMX operation only refuses).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Instruction {
    Vmxon,
    Vmxoff,
    Vmclear,
    Vmptrld,
    Vmptrst,
    Vmread,
    Vmwrite,
    Vmlaunch,
    Vmresume,
    Vmcall,
    Invept,
    Invvpid,
    Vmfunc,
    Getsec,
}

impl Instruction {
    /// The exit that the instruction causes in L2.
    #[must_use]
    pub const fn exit_reason(self) -> ExitReason {
        match self {
            Self::Vmxon => ExitReason::VMXON,
            Self::Vmxoff => ExitReason::VMXOFF,
            Self::Vmclear => ExitReason::VMCLEAR,
            Self::Vmptrld => ExitReason::VMPTRLD,
            Self::Vmptrst => ExitReason::VMPTRST,
            Self::Vmread => ExitReason::VMREAD,
            Self::Vmwrite => ExitReason::VMWRITE,
            Self::Vmlaunch => ExitReason::VMLAUNCH,
            Self::Vmresume => ExitReason::VMRESUME,
            Self::Vmcall => ExitReason::VMCALL,
            Self::Invept => ExitReason::INVEPT,
            Self::Invvpid => ExitReason::INVVPID,
            Self::Vmfunc => ExitReason::VMFUNC,
            Self::Getsec => ExitReason::GETSEC,
        }
    }

    /// Whether its exit has a qualification (displacement) and instruction information.
    const fn has_operands(self) -> bool {
        matches!(
            self,
            Self::Vmxon
                | Self::Vmclear
                | Self::Vmptrld
                | Self::Vmptrst
                | Self::Vmread
                | Self::Vmwrite
                | Self::Invept
                | Self::Invvpid
        )
    }
}

/// What decoding found of the instruction's operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Operands {
    /// Length of the instruction, in bytes.
    pub length: u32,
    /// Displacement of the memory operand, sign-extended: the exit qualification. RIP-relative: the
    /// sum of next RIP and displacement. Zero for register operands.
    pub displacement: u64,
    /// VM-exit instruction information, as the SDM's tables encode the operands.
    pub information: u32,
    /// Value of the register operand: field encoding for VMREAD and VMWRITE, type for INVEPT and
    /// INVVPID; else zero.
    pub register: u64,
}

/// Checks up to where the memory operand is used. `Err` is how the instruction ends already: a
/// fault, an exit from L2, or VMfail.
///
/// With VMCS shadowing, VMREAD and VMWRITE in L2 pass as the bitmaps say and then act on the shadow
/// vmcs12.
pub fn check_execution(
    cpu: &Cpu,
    memory: &dyn GuestMemory,
    instruction: Instruction,
    operands: &Operands,
) -> Result<(), VmxResult> {
    if !is_recognised(cpu, instruction) {
        return Err(VmxResult::Fault(Exception::UNDEFINED));
    }
    if cpu.vmx.guest_mode {
        if exits_from_l2(cpu, memory, instruction, operands) {
            return Err(VmxResult::Exit(exit(instruction, operands)));
        }
        // What passes: VMFUNC at any privilege, VMREAD and VMWRITE of the shadow at CPL 0.
        if instruction == Instruction::Vmfunc {
            return Ok(());
        }
        return require_cpl_0(cpu);
    }
    match instruction {
        Instruction::Vmxon => vmxon::check(cpu),
        // Who may call is the hypercall's matter under KVM.
        Instruction::Vmcall if cpu.model.as_kvm(Difference::Vmcall) => Ok(()),
        Instruction::Invept => {
            require_cpl_0(cpu)?;
            invalidation::check_invept_type(cpu, operands.register)
        }
        Instruction::Invvpid => {
            require_cpl_0(cpu)?;
            invalidation::check_invvpid_type(cpu, operands.register)
        }
        _ => require_cpl_0(cpu),
    }
}

fn require_cpl_0(cpu: &Cpu) -> Result<(), VmxResult> {
    if cpu.cpl() == 0 {
        Ok(())
    } else {
        Err(VmxResult::Fault(Exception::GENERAL_PROTECTION))
    }
}

/// Protected mode, not virtual-8086, not compatibility mode.
fn mode_allows(cpu: &Cpu) -> bool {
    cpu.sregs.cr0 & cr0::PE != 0
        && cpu.regs.rflags & rflags::VM == 0
        && (cpu.sregs.efer & efer::LMA == 0 || cpu.in_64_bit_mode())
}

/// Whether the instruction is not #UD.
fn is_recognised(cpu: &Cpu, instruction: Instruction) -> bool {
    match instruction {
        Instruction::Vmxon => vmxon::is_enabled(cpu) && mode_allows(cpu),
        // An exit from L2 comes before the checks of the mode.
        Instruction::Vmcall => {
            cpu.vmx.guest_mode
                || cpu.model.as_kvm(Difference::Vmcall)
                || cpu.vmx.is_on() && mode_allows(cpu)
        }
        Instruction::Vmfunc => {
            cpu.vmx.guest_mode
                && active_secondary(&cpu.vmx.vmcs12).contains(Secondary::ENABLE_VM_FUNCTIONS)
                && cpu.regs.get(Gpr::Rax) & 0xffff_ffff <= 63
        }
        Instruction::Getsec => cpu.sregs.cr4 & cr4::SMXE != 0,
        Instruction::Invept => {
            invalidation::invept_exists(&cpu.model) && cpu.vmx.is_on() && mode_allows(cpu)
        }
        Instruction::Invvpid => {
            invalidation::invvpid_exists(&cpu.model) && cpu.vmx.is_on() && mode_allows(cpu)
        }
        _ => cpu.vmx.is_on() && mode_allows(cpu),
    }
}

fn exits_from_l2(
    cpu: &Cpu,
    memory: &dyn GuestMemory,
    instruction: Instruction,
    operands: &Operands,
) -> bool {
    let bitmap = match instruction {
        Instruction::Vmfunc => return false,
        Instruction::Vmread => Field::VMREAD_BITMAP,
        Instruction::Vmwrite => Field::VMWRITE_BITMAP,
        _ => return true,
    };
    let vmcs12 = &cpu.vmx.vmcs12;
    if !active_secondary(vmcs12).contains(Secondary::VMCS_SHADOWING) {
        return true;
    }
    let encoding = if cpu.in_64_bit_mode() {
        operands.register
    } else {
        operands.register & 0xffff_ffff
    };
    // "VMREAD" and "VMWRITE" of "Instructions That Cause VM Exits Conditionally".
    if encoding >> 15 != 0 {
        return true;
    }
    let mut byte = [0xff];
    // A bitmap outside RAM reads as all ones.
    let _ = memory.read(L1Phys(vmcs12.get(bitmap) + encoding / 8), &mut byte);
    byte[0] & 1 << (encoding % 8) != 0
}

fn exit(instruction: Instruction, operands: &Operands) -> VmExit {
    let exit = VmExit::instruction(instruction.exit_reason(), operands.length);
    if instruction.has_operands() {
        exit.with_qualification(operands.displacement)
            .with_instruction_information(operands.information)
    } else {
        exit
    }
}
