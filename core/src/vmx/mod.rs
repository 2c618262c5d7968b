//! VMX: Volume 3C of the Intel SDM, a module a chapter or section.

pub mod apic_virtualization;
pub mod capability;
pub mod controls;
pub mod entry;
pub mod ept;
pub mod exit;
pub mod fields;
pub mod instructions;
pub mod intercepts;
pub mod spec_ctrl;
pub mod state;
pub mod virtualization_exception;
pub mod vmcs12;

pub use fields::Field;
pub use state::VmxState;
pub use vmcs12::Vmcs12;
