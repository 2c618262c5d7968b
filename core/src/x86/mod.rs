//! The state of an x86 processor, as plain data that every backend reads and writes.

pub mod control;
pub mod cpuid;
pub mod cr_write;
pub mod event;
pub mod msr;
pub mod ownership;
pub mod regs;
pub mod segment;
pub mod sregs_rules;
pub mod state;
pub mod xsave;

pub use event::{Event, EventKind, Exception};
pub use regs::{DebugRegs, DescriptorTable, Gpr, Regs, Sregs};
pub use segment::{AccessRights, Segment};
pub use state::{CpuState, MpState, VcpuEvents};
