//! The software backend: unicorn runs the instructions, nvmx-core does VMX.

pub mod engine;
