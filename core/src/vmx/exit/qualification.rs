//! Exit qualifications (SDM Vol. 3C "Basic VM-Exit Information", the tables "Exit Qualification
//! for ...").

use crate::x86::Gpr;

/// Access of a control-register exit (table "Exit Qualification for Control-Register Accesses").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRegisterAccess {
    /// MOV to CRn from a register.
    MovTo {
        /// 0, 3, 4 or 8.
        cr: u8,
        /// Source.
        gpr: Gpr,
    },
    /// MOV from CRn to a register.
    MovFrom {
        /// 3 or 8.
        cr: u8,
        /// Destination.
        gpr: Gpr,
    },
    /// CLTS.
    Clts,
    /// LMSW.
    Lmsw {
        /// Source data, 16 bits.
        source: u16,
        /// Whether the operand is in memory.
        memory_operand: bool,
    },
}

impl ControlRegisterAccess {
    /// The exit qualification.
    #[must_use]
    pub const fn qualification(self) -> u64 {
        match self {
            Self::MovTo { cr, gpr } => (cr & 15) as u64 | (gpr as u64) << 8,
            Self::MovFrom { cr, gpr } => (cr & 15) as u64 | 1 << 4 | (gpr as u64) << 8,
            Self::Clts => 2 << 4,
            Self::Lmsw {
                source,
                memory_operand,
            } => 3 << 4 | (memory_operand as u64) << 6 | (source as u64) << 16,
        }
    }
}

/// MOV DR (table "Exit Qualification for MOV DR").
#[must_use]
pub const fn mov_dr(dr: u8, from_dr: bool, gpr: Gpr) -> u64 {
    (dr & 7) as u64 | (from_dr as u64) << 4 | (gpr as u64) << 8
}

/// An I/O instruction (table "Exit Qualification for I/O Instructions").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct IoAccess {
    /// Port.
    pub port: u16,
    /// Bytes: 1, 2 or 4.
    pub size: u8,
    /// IN or INS.
    pub is_in: bool,
    /// INS or OUTS.
    pub is_string: bool,
    /// REP prefix.
    pub is_rep: bool,
    /// The port is an immediate (else DX).
    pub is_immediate: bool,
}

impl IoAccess {
    /// The exit qualification.
    #[must_use]
    pub const fn qualification(self) -> u64 {
        (self.size.wrapping_sub(1) & 7) as u64
            | (self.is_in as u64) << 3
            | (self.is_string as u64) << 4
            | (self.is_rep as u64) << 5
            | (self.is_immediate as u64) << 6
            | (self.port as u64) << 16
    }
}

/// What initiated a task switch (table "Exit Qualification for Task Switches", bits 31:30).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum TaskSwitchSource {
    /// CALL instruction.
    Call = 0,
    /// IRET instruction.
    Iret = 1,
    /// JMP instruction.
    Jmp = 2,
    /// Task gate in the IDT.
    TaskGate = 3,
}

/// A task switch: selector of the new TSS and its source.
#[must_use]
pub const fn task_switch(selector: u16, source: TaskSwitchSource) -> u64 {
    selector as u64 | (source as u64) << 30
}

/// An access to the APIC-access page (table "Exit Qualification for APIC-Access VM Exits").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ApicAccessType {
    /// Linear access for a data read during instruction execution.
    LinearRead = 0,
    /// Linear access for a data write during instruction execution.
    LinearWrite = 1,
    /// Linear access for an instruction fetch.
    LinearFetch = 2,
    /// Linear access during event delivery.
    LinearEventDelivery = 3,
    /// Guest-physical access during event delivery.
    PhysicalEventDelivery = 10,
    /// Guest-physical access for an instruction fetch or during instruction execution.
    PhysicalInstruction = 15,
}

/// APIC access at `offset` in the page.
#[must_use]
pub const fn apic_access(offset: u16, access: ApicAccessType) -> u64 {
    (offset & 0xfff) as u64 | (access as u64) << 12
}

/// Exit qualification of a VM-entry failure due to invalid guest state
/// (SDM "VM-Entry Failures During or After Loading Guest State").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryFailure {
    /// Not one of the others.
    Default = 0,
    /// Loading the PDPTEs.
    Pdptes = 2,
    /// Injecting an NMI while there is blocking by STI.
    NmiInjection = 3,
    /// VMCS link pointer.
    LinkPointer = 4,
}

/// Pending debug exceptions as the exit qualification of a #DB exit (table "Exit Qualification for
/// Debug Exceptions"): B3:B0, BLD, BD, BS, RTM; from the bits that DR6 would get.
#[must_use]
pub const fn debug_exception(dr6_bits: u64) -> u64 {
    dr6_bits & 0x1_680f
}
