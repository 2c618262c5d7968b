//! Nested events as lines: for people, or JSON for scripts.

use nvmx_core::vcpu::NestedEvent;
use nvmx_core::vmx::exit::ExitReason;
use std::fmt::Write;

/// One line for people.
pub(crate) fn line(event: &NestedEvent) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            let _ = write!(text, " {name} {value:#x}");
        }
    };
    match *event {
        NestedEvent::Entry {
            vmcs12,
            l2_rip,
            injected,
        } => {
            add("vmcs12", Some(vmcs12.0));
            add("rip", Some(l2_rip));
            add("injected", injected.filter(|i| i >> 31 != 0).map(u64::from));
            format!("entry{text}")
        }
        NestedEvent::EntryFailure { error } => {
            add("error", error.map(u64::from));
            format!("entry failed (VMfail){text}")
        }
        NestedEvent::Exit {
            reason,
            qualification,
            interruption,
            error_code,
            instruction_length,
            guest_physical,
            l2_rip,
        } => {
            add("rip", l2_rip);
            add("qualification", qualification.filter(|q| *q != 0));
            add(
                "interruption",
                interruption.filter(|i| i >> 31 != 0).map(u64::from),
            );
            add("error", error_code.filter(|e| *e != 0).map(u64::from));
            add(
                "length",
                instruction_length.filter(|l| *l != 0).map(u64::from),
            );
            add("guest-physical", guest_physical.filter(|g| *g != 0));
            let reason = ExitReason(reason);
            let failed = if reason.is_entry_failure() {
                "entry failed:"
            } else {
                "exit:"
            };
            format!("{failed} {reason}{text}")
        }
    }
}

/// One line of JSON.
pub(crate) fn json(event: &NestedEvent) -> anyhow::Result<String> {
    Ok(serde_json::to_string(event)?)
}
