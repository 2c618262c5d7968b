//! General-purpose, system and debug registers (SDM Vol. 1 "Basic Program Execution Registers",
//! Vol. 3A "System Architecture Overview").

use super::segment::Segment;
use serde::{Deserialize, Serialize};

/// A general-purpose register, numbered as ModR/M and the exit qualifications number it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Gpr {
    Rax,
    Rcx,
    Rdx,
    Rbx,
    Rsp,
    Rbp,
    Rsi,
    Rdi,
    R8,
    R9,
    R10,
    R11,
    R12,
    R13,
    R14,
    R15,
}

impl Gpr {
    /// All sixteen, in encoding order.
    pub const ALL: [Gpr; 16] = [
        Gpr::Rax,
        Gpr::Rcx,
        Gpr::Rdx,
        Gpr::Rbx,
        Gpr::Rsp,
        Gpr::Rbp,
        Gpr::Rsi,
        Gpr::Rdi,
        Gpr::R8,
        Gpr::R9,
        Gpr::R10,
        Gpr::R11,
        Gpr::R12,
        Gpr::R13,
        Gpr::R14,
        Gpr::R15,
    ];

    /// The register with this number; the number is taken modulo 16.
    #[must_use]
    pub const fn from_number(number: u8) -> Self {
        Self::ALL[(number & 15) as usize]
    }
}

/// General-purpose registers, RIP and RFLAGS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Regs {
    /// RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 ... R15: encoding order.
    pub gpr: [u64; 16],
    /// Instruction pointer.
    pub rip: u64,
    /// Flags.
    pub rflags: u64,
}

impl Regs {
    /// The value of one register.
    #[must_use]
    pub const fn get(&self, gpr: Gpr) -> u64 {
        self.gpr[gpr as usize]
    }

    /// Sets one register.
    pub const fn set(&mut self, gpr: Gpr, value: u64) {
        self.gpr[gpr as usize] = value;
    }
}

/// GDTR or IDTR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DescriptorTable {
    /// Linear base address.
    pub base: u64,
    /// Limit, in bytes less one.
    pub limit: u16,
}

/// Segment, control and descriptor-table registers: what `KVM_GET_SREGS2` holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Sregs {
    pub es: Segment,
    pub cs: Segment,
    pub ss: Segment,
    pub ds: Segment,
    pub fs: Segment,
    pub gs: Segment,
    pub ldtr: Segment,
    pub tr: Segment,
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    pub cr0: u64,
    pub cr2: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub cr8: u64,
    pub efer: u64,
    /// IA32_APIC_BASE.
    pub apic_base: u64,
    /// The PAE page-directory-pointer-table entries that MOV to CR3 loaded.
    pub pdptrs: [u64; 4],
    /// Whether `pdptrs` is meaningful (PAE paging in use).
    pub pdptrs_valid: bool,
}

/// DR0 to DR3, DR6, DR7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DebugRegs {
    /// DR0 to DR3.
    pub db: [u64; 4],
    /// DR6.
    pub dr6: u64,
    /// DR7.
    pub dr7: u64,
}

impl Default for DebugRegs {
    /// As after RESET (SDM Vol. 3A "Processor State After Reset").
    fn default() -> Self {
        Self {
            db: [0; 4],
            dr6: 0xffff_0ff0,
            dr7: 0x400,
        }
    }
}
