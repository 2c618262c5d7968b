//! [`BackendError`] on the wire, with its kind and its errno.

use nvmx_core::addr::L1Phys;
use nvmx_core::memory::NotRam;
use nvmx_core::vcpu::{BackendError, Capability};
use serde::{Deserialize, Serialize};

/// A [`BackendError`] that can travel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)] // the fields are BackendError's
pub enum Fault {
    Absent {
        capability: Capability,
        reason: String,
    },
    Kernel {
        call: String,
        errno: i32,
        message: String,
    },
    NestedRefused {
        rule: String,
        errno: i32,
    },
    StateRefused {
        part: String,
        reason: String,
    },
    NotRam {
        address: L1Phys,
        length: u64,
    },
    Connection {
        peer: String,
        message: String,
    },
    Unsupported(String),
    Other(String),
}

/// Names of calls: [`BackendError::Kernel`] holds a name of the program's own, so that a name which
/// comes over the wire must be one of these.
const CALLS: &[&str] = &[
    "open /dev/kvm",
    "mmap",
    "mmap of the vCPU",
    "mprotect",
    "memfd_create",
    "pthread_sigmask",
    "timer_create",
    "timer_settime",
    "KVM_CREATE_VCPU",
    "KVM_CREATE_VM",
    "KVM_GET_API_VERSION",
    "KVM_GET_CPUID2",
    "KVM_GET_DEVICE_ATTR",
    "KVM_SET_DEVICE_ATTR",
    "KVM_GET_DEBUGREGS",
    "KVM_GET_DIRTY_LOG",
    "KVM_GET_LAPIC",
    "KVM_GET_MP_STATE",
    "KVM_GET_MSRS",
    "KVM_GET_MSR_INDEX_LIST",
    "KVM_GET_NESTED_STATE",
    "KVM_GET_REGS",
    "KVM_GET_SREGS",
    "KVM_GET_SREGS2",
    "KVM_GET_SUPPORTED_CPUID",
    "KVM_GET_VCPU_EVENTS",
    "KVM_GET_VCPU_MMAP_SIZE",
    "KVM_GET_XCRS",
    "KVM_GET_XSAVE",
    "KVM_INTERRUPT",
    "KVM_NMI",
    "KVM_RUN",
    "KVM_SET_CPUID2",
    "KVM_SET_DEBUGREGS",
    "KVM_SET_GUEST_DEBUG",
    "KVM_SET_IDENTITY_MAP_ADDR",
    "KVM_SET_LAPIC",
    "KVM_SET_MP_STATE",
    "KVM_SET_MSRS",
    "KVM_SET_NESTED_STATE",
    "KVM_SET_REGS",
    "KVM_SET_SIGNAL_MASK",
    "KVM_SET_SREGS",
    "KVM_SET_SREGS2",
    "KVM_SET_TSC_KHZ",
    "KVM_SET_TSS_ADDR",
    "KVM_SET_USER_MEMORY_REGION",
    "KVM_SET_VCPU_EVENTS",
    "KVM_SET_XCRS",
    "KVM_SET_XSAVE",
    "KVM_SIGNAL_MSI",
];

impl From<BackendError> for Fault {
    fn from(error: BackendError) -> Self {
        match error {
            BackendError::Absent { capability, reason } => Self::Absent { capability, reason },
            BackendError::Kernel {
                call,
                errno,
                message,
            } => Self::Kernel {
                call: call.into(),
                errno,
                message,
            },
            BackendError::NestedRefused { rule, errno } => Self::NestedRefused { rule, errno },
            BackendError::StateRefused { part, reason } => Self::StateRefused { part, reason },
            BackendError::NotRam(NotRam { address, length }) => Self::NotRam {
                address,
                length: length as u64,
            },
            BackendError::Connection { peer, message } => Self::Connection { peer, message },
            BackendError::Unsupported(what) => Self::Unsupported(what),
            // `Other`, and kinds that are newer than this crate.
            other => Self::Other(other.to_string()),
        }
    }
}

impl From<Fault> for BackendError {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Absent { capability, reason } => Self::Absent { capability, reason },
            Fault::Kernel {
                call,
                errno,
                message,
            } => match CALLS.iter().find(|known| **known == call) {
                Some(call) => Self::Kernel {
                    call,
                    errno,
                    message,
                },
                None => Self::Kernel {
                    call: "a call on the other side",
                    errno,
                    message: format!("{call}: {message}"),
                },
            },
            Fault::NestedRefused { rule, errno } => Self::NestedRefused { rule, errno },
            Fault::StateRefused { part, reason } => Self::StateRefused { part, reason },
            Fault::NotRam { address, length } => Self::NotRam(NotRam {
                address,
                length: length as usize,
            }),
            Fault::Connection { peer, message } => Self::Connection { peer, message },
            Fault::Unsupported(what) => Self::Unsupported(what),
            Fault::Other(what) => Self::Other(what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_error_keeps_kind_words_and_errno() {
        let text = || "words".to_owned();
        let faults = [
            Fault::Absent {
                capability: Capability::NestedVmx,
                reason: text(),
            },
            Fault::NestedRefused {
                rule: text(),
                errno: 22,
            },
            Fault::StateRefused {
                part: text(),
                reason: text(),
            },
            Fault::NotRam {
                address: L1Phys(7),
                length: 8,
            },
            Fault::Connection {
                peer: text(),
                message: text(),
            },
            Fault::Unsupported(text()),
            Fault::Other(text()),
        ];
        let calls = CALLS.iter().map(|call| Fault::Kernel {
            call: (*call).into(),
            errno: 14,
            message: text(),
        });
        for fault in faults.into_iter().chain(calls) {
            assert_eq!(Fault::from(BackendError::from(fault.clone())), fault);
        }
        let unknown = Fault::Kernel {
            call: "KVM_NEW".into(),
            errno: 5,
            message: text(),
        };
        let words = BackendError::from(unknown).to_string();
        assert!(
            words.contains("KVM_NEW") && words.contains("errno 5"),
            "{words}"
        );
    }
}
