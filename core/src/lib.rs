//! VMX and KVM's nested-state ABI as plain data and functions: no I/O, no unsafe, no backend,
//! no clock, no randomness.
//!
//! The tree follows the manual: [`vmx`] is Volume 3C of the Intel SDM, [`x86`] the state that every
//! volume speaks of, [`nested`] what Linux puts around it (`KVM_GET_NESTED_STATE` and
//! `KVM_SET_NESTED_STATE`), [`paging`] guest paging of Volume 3A. [`vcpu`] holds the traits that
//! every backend implements.
#![forbid(unsafe_code)]

pub mod addr;
pub mod apic;
pub mod cpu;
pub mod delivery;
pub mod machine_check;
pub mod memory;
pub mod msr;
pub mod nested;
pub mod paging;
pub mod personality;
pub mod pmu;
pub mod profiles;
pub mod smm;
pub mod trace;
pub mod vcpu;
pub mod vmx;
pub mod x86;
