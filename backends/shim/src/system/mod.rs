//! What `/dev/kvm` itself answers.

pub mod basics;
