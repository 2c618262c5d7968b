//! Events: `struct kvm_vcpu_events`.

use crate::refusal::{Invalid, require};
use kvm_bindings::{
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    kvm_vcpu_events,
};
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::x86::{Exception, VcpuEvents};

/// What of `struct kvm_vcpu_events` this VM speaks: each needs a capability of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventFeatures {
    /// `KVM_CAP_EXCEPTION_PAYLOAD` is enabled: pending and injected are told apart.
    pub payload: bool,
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT` is enabled.
    pub triple_fault: bool,
    /// `KVM_CAP_X86_SMM`.
    pub smm: bool,
}

/// `struct kvm_vcpu_events` to ours.
#[must_use]
pub fn events(kernel: &kvm_vcpu_events) -> VcpuEvents {
    let k = kernel;
    let payload = k.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
    let exception = k.exception.injected != 0 || (payload && k.exception.pending != 0);
    VcpuEvents {
        exception_injected: k.exception.injected != 0,
        exception_pending: payload && k.exception.pending != 0,
        // Without an event the kernel leaves the last one's numbers here: noise in a comparison.
        exception_vector: if exception { k.exception.nr } else { 0 },
        exception_error_code: (exception && k.exception.has_error_code != 0)
            .then_some(k.exception.error_code),
        exception_payload: (exception && payload && k.exception_has_payload != 0)
            .then_some(k.exception_payload),
        interrupt_injected: k.interrupt.injected != 0,
        interrupt_vector: if k.interrupt.injected != 0 {
            k.interrupt.nr
        } else {
            0
        },
        interrupt_soft: k.interrupt.injected != 0 && k.interrupt.soft != 0,
        interrupt_shadow: k.interrupt.shadow,
        nmi_injected: k.nmi.injected != 0,
        nmi_pending: k.nmi.pending,
        nmi_masked: k.nmi.masked != 0,
        sipi_vector: k.sipi_vector,
        smm: k.smi.smm != 0,
        smi_pending: k.smi.pending != 0,
        smm_inside_nmi: k.smi.smm_inside_nmi != 0,
        latched_init: k.smi.latched_init != 0,
        triple_fault_pending: k.triple_fault.pending != 0,
    }
}

/// Ours to `struct kvm_vcpu_events`; an error names what this kernel has no place for.
pub fn kernel_events(events: &VcpuEvents, features: EventFeatures) -> Result<kvm_vcpu_events> {
    let refuse = |field: &str, capability: &str| {
        Err(BackendError::StateRefused {
            part: format!("events.{field}"),
            reason: format!("this kernel does not offer {capability}"),
        })
    };
    if events.exception_pending && !features.payload {
        return refuse("exception_pending", "KVM_CAP_EXCEPTION_PAYLOAD");
    }
    if events.triple_fault_pending && !features.triple_fault {
        return refuse("triple_fault_pending", "KVM_CAP_X86_TRIPLE_FAULT_EVENT");
    }
    if (events.smm || events.smi_pending) && !features.smm {
        return refuse("smm", "KVM_CAP_X86_SMM");
    }
    let mut k = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW,
        sipi_vector: events.sipi_vector,
        ..Default::default()
    };
    k.exception.injected = events.exception_injected.into();
    k.exception.nr = events.exception_vector;
    k.exception.has_error_code = events.exception_error_code.is_some().into();
    k.exception.error_code = events.exception_error_code.unwrap_or(0);
    if features.payload {
        k.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        k.exception.pending = events.exception_pending.into();
        k.exception_has_payload = events.exception_payload.is_some().into();
        k.exception_payload = events.exception_payload.unwrap_or(0);
    }
    k.interrupt.injected = events.interrupt_injected.into();
    k.interrupt.nr = events.interrupt_vector;
    k.interrupt.soft = events.interrupt_soft.into();
    k.interrupt.shadow = events.interrupt_shadow;
    k.nmi.injected = events.nmi_injected.into();
    k.nmi.pending = events.nmi_pending;
    k.nmi.masked = events.nmi_masked.into();
    if features.smm {
        k.flags |= KVM_VCPUEVENT_VALID_SMM;
        k.smi.smm = events.smm.into();
        k.smi.pending = events.smi_pending.into();
        k.smi.smm_inside_nmi = events.smm_inside_nmi.into();
        k.smi.latched_init = events.latched_init.into();
    }
    if features.triple_fault {
        k.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        k.triple_fault.pending = events.triple_fault_pending.into();
    }
    Ok(k)
}

/// What KVM_GET_VCPU_EVENTS answers (`kvm_vcpu_ioctl_x86_get_vcpu_events`): software events are not told,
/// and without [`EventFeatures::payload`] a pending exception looks injected.
#[must_use]
pub fn answer(events: &VcpuEvents, features: EventFeatures) -> kvm_vcpu_events {
    let mut k = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SHADOW
            | KVM_VCPUEVENT_VALID_SMM,
        ..Default::default()
    };
    if !matches!(events.exception_vector, Exception::BP | Exception::OF) {
        let hidden = !features.payload && events.exception_pending;
        k.exception.injected = (events.exception_injected || hidden).into();
        k.exception.pending = events.exception_pending.into();
    }
    k.exception.nr = events.exception_vector;
    k.exception.has_error_code = events.exception_error_code.is_some().into();
    k.exception.error_code = events.exception_error_code.unwrap_or(0);
    k.exception_has_payload = events.exception_payload.is_some().into();
    k.exception_payload = events.exception_payload.unwrap_or(0);
    k.interrupt.injected = (events.interrupt_injected && !events.interrupt_soft).into();
    k.interrupt.nr = events.interrupt_vector;
    k.interrupt.shadow = events.interrupt_shadow;
    k.nmi.injected = events.nmi_injected.into();
    k.nmi.pending = events.nmi_pending;
    k.nmi.masked = events.nmi_masked.into();
    k.smi.smm = events.smm.into();
    k.smi.pending = events.smi_pending.into();
    k.smi.smm_inside_nmi = events.smm_inside_nmi.into();
    k.smi.latched_init = events.latched_init.into();
    if features.payload {
        k.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
    }
    if features.triple_fault {
        k.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        k.triple_fault.pending = events.triple_fault_pending.into();
    }
    k
}

/// What KVM_SET_VCPU_EVENTS makes of the events there are (`kvm_vcpu_ioctl_x86_set_vcpu_events`): what its
/// flags do not name stays.
pub fn apply(
    kernel: &kvm_vcpu_events,
    before: &VcpuEvents,
    features: EventFeatures,
    waits_for_sipi: bool,
) -> Result<VcpuEvents, Invalid> {
    const KNOWN: u32 = KVM_VCPUEVENT_VALID_NMI_PENDING
        | KVM_VCPUEVENT_VALID_SIPI_VECTOR
        | KVM_VCPUEVENT_VALID_SHADOW
        | KVM_VCPUEVENT_VALID_SMM
        | KVM_VCPUEVENT_VALID_PAYLOAD
        | KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
    let k = kernel;
    let names = |flag| k.flags & flag != 0;
    let has_payload = names(KVM_VCPUEVENT_VALID_PAYLOAD);
    let has_smm = names(KVM_VCPUEVENT_VALID_SMM);
    let has_triple_fault = names(KVM_VCPUEVENT_VALID_TRIPLE_FAULT);
    require(k.flags & !KNOWN == 0)?;
    require(!has_payload || features.payload)?;
    let pending = has_payload && k.exception.pending != 0;
    let injected = !pending && k.exception.injected != 0;
    let exception = pending || injected;
    require(!exception || k.exception.nr <= 31 && k.exception.nr != Exception::NMI)?;
    // INITs wait in SMM.
    let in_smm = has_smm && (k.smi.smm != 0 || k.smi.pending != 0);
    require(!(in_smm && waits_for_sipi))?;
    require(!has_triple_fault || features.triple_fault)?;

    let mut events = VcpuEvents {
        exception_injected: injected,
        exception_pending: pending,
        exception_vector: if exception { k.exception.nr } else { 0 },
        exception_error_code: (exception && k.exception.has_error_code != 0)
            .then_some(k.exception.error_code),
        exception_payload: (pending && k.exception_has_payload != 0).then_some(k.exception_payload),
        interrupt_injected: k.interrupt.injected != 0,
        interrupt_vector: if k.interrupt.injected != 0 {
            k.interrupt.nr
        } else {
            0
        },
        interrupt_soft: k.interrupt.injected != 0 && k.interrupt.soft != 0,
        nmi_injected: k.nmi.injected != 0,
        nmi_masked: k.nmi.masked != 0,
        ..*before
    };
    if names(KVM_VCPUEVENT_VALID_SHADOW) {
        events.interrupt_shadow = k.interrupt.shadow;
    }
    if names(KVM_VCPUEVENT_VALID_NMI_PENDING) {
        // One waits, and a second one behind it (`process_nmi`).
        events.nmi_pending = k.nmi.pending.min(2);
    }
    if names(KVM_VCPUEVENT_VALID_SIPI_VECTOR) {
        events.sipi_vector = k.sipi_vector;
    }
    if has_smm {
        events.smm = k.smi.smm != 0;
        events.smi_pending = k.smi.pending != 0;
        if events.smm {
            events.smm_inside_nmi = k.smi.smm_inside_nmi != 0;
        }
        events.latched_init = k.smi.latched_init != 0;
    }
    if has_triple_fault {
        events.triple_fault_pending = k.triple_fault.pending != 0;
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: EventFeatures = EventFeatures {
        payload: true,
        triple_fault: true,
        smm: true,
    };

    #[test]
    fn what_is_answered_can_be_set_again() {
        let events = VcpuEvents {
            exception_pending: true,
            exception_vector: 14,
            exception_error_code: Some(2),
            exception_payload: Some(0xdead),
            interrupt_shadow: 1,
            nmi_pending: 1,
            nmi_masked: true,
            smm: true,
            smm_inside_nmi: true,
            triple_fault_pending: true,
            ..VcpuEvents::default()
        };
        let before = VcpuEvents::default();
        let set = apply(&answer(&events, ALL), &before, ALL, false);
        assert_eq!(set, Ok(events));
        // Without payloads it is taken for one whose delivery began.
        let none = EventFeatures::default();
        let set = apply(&answer(&events, none), &before, none, false).expect("valid");
        assert!(set.exception_injected && !set.exception_pending);
        assert!(!set.triple_fault_pending);
    }

    #[test]
    fn what_no_flag_names_stays() {
        let before = VcpuEvents {
            interrupt_shadow: 2,
            nmi_pending: 1,
            smm: true,
            latched_init: true,
            triple_fault_pending: true,
            ..VcpuEvents::default()
        };
        let kernel = kvm_vcpu_events::default();
        assert_eq!(apply(&kernel, &before, ALL, true), Ok(before));
    }

    #[test]
    fn software_exceptions_are_not_told() {
        let events = VcpuEvents {
            exception_injected: true,
            exception_vector: 3,
            ..VcpuEvents::default()
        };
        assert_eq!(answer(&events, ALL).exception.injected, 0);
    }

    #[test]
    fn each_refusal() {
        type Change = fn(&mut kvm_vcpu_events);
        let rows: &[(&str, Change)] = &[
            ("an unknown flag", |k| k.flags = 1 << 31),
            ("a payload", |k| k.flags = KVM_VCPUEVENT_VALID_PAYLOAD),
            ("a triple fault", |k| {
                k.flags = KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
            }),
            ("an NMI as exception", |k| {
                (k.exception.injected, k.exception.nr) = (1, 2);
            }),
            ("vector 32", |k| {
                (k.exception.injected, k.exception.nr) = (1, 32);
            }),
            ("SMM while INIT was received", |k| {
                (k.flags, k.smi.smm) = (KVM_VCPUEVENT_VALID_SMM, 1);
            }),
        ];
        for (what, change) in rows {
            let mut kernel = kvm_vcpu_events::default();
            change(&mut kernel);
            let before = VcpuEvents::default();
            let answer = apply(&kernel, &before, EventFeatures::default(), true);
            assert_eq!(answer, Err(Invalid), "{what}");
        }
    }

    #[test]
    fn events_need_the_capabilities_that_carry_them() {
        let all = EventFeatures {
            payload: true,
            triple_fault: true,
            smm: true,
        };
        let events = VcpuEvents {
            exception_pending: true,
            exception_vector: 14,
            exception_error_code: Some(2),
            exception_payload: Some(0xdead),
            nmi_pending: 1,
            triple_fault_pending: true,
            smm: true,
            latched_init: true,
            interrupt_shadow: 1,
            ..Default::default()
        };
        assert_eq!(super::events(&kernel_events(&events, all).unwrap()), events);
        for (missing, field) in [
            (
                EventFeatures {
                    payload: false,
                    ..all
                },
                "exception_pending",
            ),
            (
                EventFeatures {
                    triple_fault: false,
                    ..all
                },
                "triple_fault_pending",
            ),
            (EventFeatures { smm: false, ..all }, "smm"),
        ] {
            let error = kernel_events(&events, missing).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
