//! The remote backend: [`Vm`] and [`Vcpu`] over a byte stream, and the agent at its other end.
//!
//! [`wire`] cuts the stream into checked frames, [`message`] says what they mean, [`client`] makes
//! the traits of it, [`agent`] serves any local backend, and [`transport`] makes streams: TCP, or a
//! child's standard input and output.
//!
//! A round trip can cost milliseconds (through an emulated machine's devices), so each call of the
//! trait is one request at most, and an answer brings along what is asked for next: a run its nested
//! events, the level and the registers; a whole state the nested state.
//!
//! [`Vm`]: nvmx_core::vcpu::Vm
//! [`Vcpu`]: nvmx_core::vcpu::Vcpu
#![deny(unsafe_code)]

pub mod agent;
pub mod bytes;
pub mod client;
pub mod fault;
pub mod message;
pub mod port_io;
pub mod transport;
pub mod wire;

pub use client::RemoteVm;
