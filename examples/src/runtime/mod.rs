//! What every guest shares.
//!
//! [`map`] says where things lie, [`tables`] lays out descriptor tables, page tables and EPT,
//! [`entry`] leads from the boot loader to 64-bit mode, [`handlers`] take exceptions, [`routines`]
//! are the subroutines of L1, [`second`] starts a second processor, [`vmcs`] holds the numbers of the manual, and [`program`] is the
//! vocabulary that a guest is written in.

pub mod entry;
pub mod handlers;
pub mod map;
pub mod program;
pub mod routines;
pub mod second;
pub mod standard;
pub mod tables;
pub mod vmcs;
mod vmx_words;

pub use program::Program;

use thiserror::Error;

/// What a guest can be built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Params {
    /// How often the guest goes through its scenarios. At least 1, at most 65,536: the checkpoint id
    /// has 16 bits for it.
    pub iterations: u32,
    /// How much L2 computes where it computes: passes of its loop.
    pub work: u32,
    /// Whether every report is also printed on the serial port, for machines that cannot record the
    /// report port.
    pub mirror_reports: bool,
}

impl Default for Params {
    /// One iteration, little work, no mirror.
    fn default() -> Self {
        Self {
            iterations: 1,
            work: 1000,
            mirror_reports: false,
        }
    }
}

/// Why a guest could not be assembled: a mistake in the guest's source.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BuildError {
    /// The assembler refused an instruction or a label.
    #[error("assembler: {0}")]
    Assembler(#[from] iced_x86::IcedError),
    /// A part is larger than its place in the memory map.
    #[error("{part} has {size:#x} bytes, but {room:#x} is all the room in the memory map")]
    TooBig {
        /// Which part.
        part: &'static str,
        /// Its size.
        size: u64,
        /// The room for it.
        room: u64,
    },
    /// The parameters are outside what the guest can do.
    #[error("parameter {name} is {value}: {rule}")]
    Parameter {
        /// Which parameter.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        rule: &'static str,
    },
}
