//! Exit qualifications and interruption information in words (SDM Vol. 3C "Basic VM-Exit
//! Information", the tables "Exit Qualification for ...").

use nvmx_core::vmx::exit::ExitReason;
use nvmx_core::x86::{EventKind, Gpr};

fn bit(value: u64, number: u32) -> bool {
    value >> number & 1 != 0
}

fn gpr(value: u64) -> String {
    format!("{:?}", Gpr::from_number((value >> 8 & 15) as u8)).to_uppercase()
}

/// What the qualification says for this basic reason; `None` where it has no bits of its own.
#[must_use]
pub(super) fn decode(reason: ExitReason, q: u64) -> Option<String> {
    Some(match ExitReason(u32::from(reason.basic())) {
        ExitReason::EXCEPTION_OR_NMI => return None,
        ExitReason::CR_ACCESS => control_register(q),
        ExitReason::MOV_DR => {
            let (dr, register) = (q & 7, gpr(q));
            if bit(q, 4) {
                format!("MOV {register}, DR{dr}")
            } else {
                format!("MOV DR{dr}, {register}")
            }
        }
        ExitReason::IO_INSTRUCTION => {
            let name = match (bit(q, 3), bit(q, 4)) {
                (true, true) => "INS",
                (true, false) => "IN",
                (false, true) => "OUTS",
                (false, false) => "OUT",
            };
            let rep = if bit(q, 5) { "REP " } else { "" };
            let operand = if bit(q, 6) { "immediate" } else { "DX" };
            let size = (q & 7) + 1;
            format!(
                "{rep}{name}, port {:#x} ({operand}), {size} bytes",
                q >> 16 & 0xffff
            )
        }
        ExitReason::EPT_VIOLATION => ept_violation(q),
        ExitReason::TASK_SWITCH => {
            let source = ["CALL", "IRET", "JMP", "task gate in the IDT"][(q >> 30 & 3) as usize];
            format!("to TSS selector {:#x} by {source}", q & 0xffff)
        }
        ExitReason::APIC_ACCESS => {
            let access = match q >> 12 & 15 {
                0 => "linear read",
                1 => "linear write",
                2 => "linear instruction fetch",
                3 => "linear access during event delivery",
                10 => "guest-physical access during event delivery",
                15 => "guest-physical access for an instruction",
                _ => "access of unknown type",
            };
            format!("{access} at offset {:#x}", q & 0xfff)
        }
        ExitReason::APIC_WRITE => format!("write at offset {:#x}", q & 0xfff),
        ExitReason::VIRTUALIZED_EOI => format!("EOI of vector {:#x}", q & 0xff),
        ExitReason::STARTUP_IPI => format!("SIPI vector {:#x}", q & 0xff),
        ExitReason::INVLPG => format!("linear address {q:#x}"),
        ExitReason::INVALID_GUEST_STATE => match q {
            0 => "not one of the cases with a number".into(),
            2 => "loading the PDPTEs".into(),
            3 => "injecting an NMI under blocking by STI".into(),
            4 => "VMCS link pointer".into(),
            _ => "unknown case".into(),
        },
        ExitReason::MSR_LOADING => format!("entry {q} of the MSR-load list (counted from 1)"),
        ExitReason::PAGE_MODIFICATION_LOG_FULL if bit(q, 12) => "NMI unblocking due to IRET".into(),
        _ => return None,
    })
}

fn control_register(q: u64) -> String {
    let (cr, register) = (q & 15, gpr(q));
    match q >> 4 & 3 {
        0 => format!("MOV CR{cr}, {register}"),
        1 => format!("MOV {register}, CR{cr}"),
        2 => "CLTS".into(),
        _ => {
            let operand = if bit(q, 6) { "memory" } else { "register" };
            format!("LMSW of {:#x} ({operand})", q >> 16 & 0xffff)
        }
    }
}

fn ept_violation(q: u64) -> String {
    let list = |names: [&str; 3], at: u32| {
        let set: Vec<_> = (0..3)
            .filter(|i| bit(q, at + i))
            .map(|i| names[i as usize])
            .collect();
        if set.is_empty() {
            "none".to_owned()
        } else {
            set.join(", ")
        }
    };
    let mut text = format!(
        "{}; allowed: {}",
        list(["data read", "data write", "instruction fetch"], 0),
        list(["read", "write", "execute"], 3)
    );
    if bit(q, 7) {
        let what = if bit(q, 8) {
            "final address"
        } else {
            "paging structure"
        };
        text.push_str(&format!("; linear address valid, access to its {what}"));
    }
    if bit(q, 12) {
        text.push_str("; NMI unblocking due to IRET");
    }
    text
}

/// An interruption-information field in words; `None` if its valid bit is clear.
#[must_use]
pub(super) fn interruption(information: u64, error_code: u64) -> Option<String> {
    if !bit(information, 31) {
        return None;
    }
    let vector = information & 0xff;
    let kind = match EventKind::from_bits((information >> 8 & 7) as u8) {
        Some(EventKind::ExternalInterrupt) => "external interrupt",
        Some(EventKind::Nmi) => "NMI",
        Some(EventKind::HardwareException) => "hardware exception",
        Some(EventKind::SoftwareInterrupt) => "software interrupt",
        Some(EventKind::PrivilegedSoftwareException) => "privileged software exception",
        Some(EventKind::SoftwareException) => "software exception",
        Some(EventKind::Other) => "other event",
        None => "event of a reserved type",
    };
    let name = match (kind, vector) {
        ("hardware exception" | "software exception", _) => exception_name(vector),
        ("other event", 0) => " (MTF VM exit pending)",
        _ => "",
    };
    let code = if bit(information, 11) {
        format!(", error code {error_code:#x}")
    } else {
        String::new()
    };
    Some(format!("{kind}, vector {vector:#x}{name}{code}"))
}

fn exception_name(vector: u64) -> &'static str {
    const NAMES: [&str; 22] = [
        " (#DE)", " (#DB)", "", " (#BP)", " (#OF)", " (#BR)", " (#UD)", " (#NM)", " (#DF)", "",
        " (#TS)", " (#NP)", " (#SS)", " (#GP)", " (#PF)", "", " (#MF)", " (#AC)", " (#MC)",
        " (#XM)", " (#VE)", " (#CP)",
    ];
    NAMES.get(vector as usize).copied().unwrap_or("")
}

/// Interruptibility state in words.
#[must_use]
pub(super) fn interruptibility(bits: u64) -> String {
    let names = ["STI", "MOV SS", "SMI", "NMI"];
    let set: Vec<_> = (0..4)
        .filter(|i| bit(bits, *i))
        .map(|i| names[i as usize])
        .collect();
    if set.is_empty() {
        "nothing blocked".into()
    } else {
        format!("blocked by {}", set.join(", "))
    }
}

/// Activity state in words.
#[must_use]
pub(super) const fn activity(state: u64) -> &'static str {
    match state {
        0 => "active",
        1 => "HLT",
        2 => "shutdown",
        3 => "wait-for-SIPI",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qualifications_read_as_the_tables_say() {
        let rows = [
            (ExitReason::CR_ACCESS, 0x300, "MOV CR0, RBX"),
            (ExitReason::CR_ACCESS, 0x13, "MOV RAX, CR3"),
            (
                ExitReason::IO_INSTRUCTION,
                0x3f8_0000,
                "OUT, port 0x3f8 (DX), 1 bytes",
            ),
            (
                ExitReason::EPT_VIOLATION,
                0x182,
                "data write; allowed: none; linear address valid, access to its final address",
            ),
            (
                ExitReason::INVALID_GUEST_STATE.as_entry_failure(),
                4,
                "VMCS link pointer",
            ),
        ];
        for (reason, qualification, text) in rows {
            assert_eq!(decode(reason, qualification).as_deref(), Some(text));
        }
        assert_eq!(decode(ExitReason::CPUID, 0), None);
    }

    #[test]
    fn interruption_information_reads_well() {
        assert_eq!(
            interruption(0x8000_0b0e, 2).as_deref(),
            Some("hardware exception, vector 0xe (#PF), error code 0x2")
        );
        assert_eq!(interruption(0x0b0e, 2), None);
        assert!(interruption(0xffff_ffff, u64::MAX).is_some());
    }
}
