//! KVM's API over the software backend, for programs that know only `/dev/kvm`.
//!
//! This crate is the kernel's side of the API as a library: it takes a descriptor, a request, an argument, and
//! answers a number or an errno. `preload/` puts it before the C library of a program; tests call it in process.
//!
//! # How it is cut
//! - [`table`]: every ioctl a row, with its [`Handler`](table::Handler). [`capabilities`]: every KVM_CAP a row.
//!   Nothing else decides what is offered; `nvmx shim --list` prints both.
//! - A handler is a function of its own in a file of its subject, `fn(&mut VcpuContext, User, u64) -> Answer` for
//!   a vCPU, with [`VmContext`](vm::VmContext) or [`Shim`] in its place at the other levels. Its row names it.
//!   The `u64` is the caller's argument, a number or an address; memory of the caller is reached through
//!   [`User`](os::User) alone, which answers EFAULT.
//! - A context is what the lock of the VM guards: [`VmState`](vm::VmState), which holds the `SoftVm` and what the
//!   kernel keeps beside it, and one [`VcpuState`](vcpu::VcpuState) for each vCPU. Parts (memory slots, the
//!   irqchip, CPUID as it was set) are fields of these two, each of a type in its own file.
//! - [`os`] is the room of `unsafe`. To move a structure of the kernel's to or from the caller, name it in
//!   `os/plain.rs`.
//! - What is not there answers as a kernel without it does: [`Handler::Absent`](table::Handler::Absent).

pub mod capabilities;
pub mod errno;
pub mod files;
pub mod log;
pub mod os;
pub mod processor;
pub mod report;
mod settings;
mod shim;
pub mod system;
pub mod table;
pub mod vcpu;
pub mod vm;

pub use settings::Settings;
pub use shim::{Object, Shim};
