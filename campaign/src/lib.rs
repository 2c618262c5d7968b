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

/// The processor that KVM in the lab shows, as far as generators look.
#[cfg(test)]
fn lab_model() -> nvmx_core::cpu::Model {
    nvmx_core::cpu::Model {
        vmx_msrs: nvmx_core::vmx::capability::KVM_6_1_ICELAKE,
        physical_address_width: 39,
        linear_address_width: 48,
        ..nvmx_core::cpu::Model::default()
    }
}
