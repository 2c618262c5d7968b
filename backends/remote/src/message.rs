//! Requests and responses: one of each for a call.

use crate::bytes::{Bytes, Sparse};
use crate::fault::Fault;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Capabilities, Exit, NestedEvent, Parts, VmConfig};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event};
use serde::{Deserialize, Serialize};

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// The first: who is there? Needs no VM.
    Hello,
    /// Makes the one VM of this connection; another one of it is dropped first.
    CreateVm(VmConfig),
    /// Drops the VM.
    DropVm,
    /// `Vm::read_memory`; at most [`crate::bytes::MAX_TRANSFER`] bytes.
    ReadMemory {
        /// First byte.
        address: L1Phys,
        /// Bytes.
        length: u32,
    },
    /// `Vm::write_memory`.
    WriteMemory {
        /// First byte.
        address: L1Phys,
        /// What to write.
        contents: Sparse,
    },
    /// `Vm::read_pages`.
    ReadPages(Vec<u64>),
    /// `Vm::dirty_pages`.
    DirtyPages,
    /// A call to a vCPU.
    Vcpu {
        /// Which.
        index: u32,
        /// What.
        call: VcpuCall,
    },
}

/// A call to a vCPU, named as in the trait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the trait documents them
pub enum VcpuCall {
    State(Parts),
    /// `state(Parts::All)` and `nested_state()`.
    StateAndNested,
    SetState(Box<CpuState>),
    NestedState,
    SetNestedState(Bytes),
    TryNestedBytes(Bytes),
    RunUntilRunPending(u32),
    Level,
    Run(Budget),
    Step,
    CompleteRead(u64),
    Inject(Event),
    InjectSmi,
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Response {
    /// The call failed.
    Failed(Fault),
    /// To [`Request::Hello`]; the version of the protocol stands in every frame.
    Hello {
        /// Version of this crate at the agent.
        release: String,
    },
    /// Done, and nothing to say.
    Done,
    /// The VM is there.
    Created {
        /// What its backend can do.
        capabilities: Capabilities,
        /// Bytes of RAM.
        memory_size: u64,
        /// vCPUs.
        vcpus: u32,
    },
    /// Memory, or pages one after the other.
    Memory(Sparse),
    /// Page numbers.
    Pages(Vec<u64>),
    /// A state.
    State(Box<CpuState>),
    /// A state with the nested state of the same moment.
    StateAndNested {
        /// State.
        state: Box<CpuState>,
        /// The kernel's bytes.
        nested: Result<Bytes, Fault>,
    },
    /// Nested state: the kernel's bytes.
    Nested(Bytes),
    /// The kernel's answer.
    Answer(i32),
    /// The level.
    Level(Level),
    /// A run or a step came back.
    Ran {
        /// Why.
        exit: Exit,
        /// What it brings along.
        seen: Seen,
    },
    /// A search for RUN_PENDING came back.
    Searched {
        /// Whether it was met.
        found: bool,
        /// What it brings along.
        seen: Seen,
    },
}

/// What an answer to a run brings along, to save the round trips that follow it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    /// Nested events since the last run.
    pub events: Result<Vec<NestedEvent>, Fault>,
    /// Nested events lost.
    pub lost: u64,
    /// The level now.
    pub level: Result<Level, Fault>,
    /// `state(Parts::Registers)` now.
    pub registers: Result<Box<CpuState>, Fault>,
}
