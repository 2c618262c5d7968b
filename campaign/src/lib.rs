//! Campaigns: random VM entries, judged by several implementations of VMX.
//!
//! A case is data: a valid VMCS ([`base`]) and a few mutations of it ([`case`], [`generate`]). One L1
//! ([`guest`]) enters L2 with each and leaves a record; the same image runs on every backend
//! ([`runner`]) and on bare Bochs. [`judge`] compares two records, [`explain`] has the rows of what may
//! differ and why.
#![forbid(unsafe_code)]

pub mod base;
pub mod bochs;
pub mod case;
pub mod code;
pub mod explain;
pub mod generate;
pub mod guest;
pub mod judge;
pub mod layout;
pub mod majority;
pub mod random;
pub mod runner;
pub mod session;
mod tables;
pub mod wire;
