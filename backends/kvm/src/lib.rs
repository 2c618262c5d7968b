//! The kvm backend: [`Vm`] and [`Vcpu`] of nvmx-core over `/dev/kvm`.
//!
//! It stays as thin as KVM's own cut allows (Linux `Documentation/virt/kvm/api.rst`): one file for
//! each group of ioctls, all conversions in [`nvmx_abi`], all raw ioctls in `sys`. What a host
//! lacks is found out once, in [`host`], and said in [`Capabilities`].
//!
//! [`Vm`]: nvmx_core::vcpu::Vm
//! [`Vcpu`]: nvmx_core::vcpu::Vcpu
//! [`Capabilities`]: nvmx_core::vcpu::Capabilities
#![deny(unsafe_op_in_unsafe_fn)]

mod alarm;
pub mod error;
mod exit;
mod guarded;
pub mod host;
mod inject;
mod msrs;
mod nested;
mod ram;
mod rule;
mod run;
mod state;
mod sys;
pub mod trace;
mod tsc;
mod vcpu;
mod vm;

pub use host::Host;
pub use ram::Ram;
pub use vcpu::KvmVcpu;
pub use vm::KvmVm;
