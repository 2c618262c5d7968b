//! What `/dev/kvm` itself answers.

pub mod basics;
pub mod cpuid;
pub mod msrs;
