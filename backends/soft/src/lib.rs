//! The software backend: unicorn runs the instructions, nvmx-core does VMX.
//!
//! [`SoftVm`] implements the traits of [`nvmx_core::vcpu`]. [`engine`] is the room where unicorn and
//! every unsafe line about it live; `processor` interprets what the engine leaves to us; `machine`
//! keeps the two in step.

pub mod engine;

mod brief;
mod decode;
mod machine;
mod model;
mod nested;
mod processor;
mod ram;
mod reset;
mod schedule;
mod slots;
mod state;
mod topology;
mod user_space;
mod vm;

pub use brief::Brief;
pub use processor::Debugger;
pub use slots::{MOST_VCPUS, MemorySlot, Space};
pub use vm::SoftVm;
