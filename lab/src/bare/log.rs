//! What Bochs' log tells of a guest: writes to ports that belong to no device, VM exits, and how it ended.

use nvmx_core::vcpu::NestedEvent;

/// One thing that a guest did, or that was done to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Bytes on the serial port.
    Serial(Vec<u8>),
    /// A write to a port where Bochs has no device.
    Port {
        /// The port.
        port: u16,
        /// What was written.
        value: u32,
    },
    /// A VM exit, or a failed VM entry.
    Nested(NestedEvent),
    /// The guest asked for the machine's end at Bochs' shutdown port.
    PowerOff,
    /// The processor shut down: a triple fault of L1's, or a VMX abort.
    Shutdown,
    /// Bochs gave up; its last words.
    Died(String),
}

/// Reads lines of the log, what belongs together of several.
#[derive(Debug, Default)]
pub(super) struct Reader {
    /// Guest-physical address of an EPT violation or misconfiguration, which comes before the exit.
    guest_physical: Option<u64>,
}

impl Reader {
    /// What a line says, if it says something.
    pub(super) fn line(&mut self, line: &str) -> Option<Said> {
        // 00190359168d[UNMAP ] unmapped: 32-bit write to 05e4 = 00000012
        let (ticks, rest) = line.split_once('[')?;
        let (_, text) = rest.split_once("] ")?;
        if ticks.ends_with('p') {
            return Some(last_words(text));
        }
        if let Some(write) = text.strip_prefix("unmapped: ") {
            let (_, write) = write.split_once("-bit write to ")?;
            let (port, value) = write.split_once(" = ")?;
            return Some(Said::Port {
                port: u16::from_str_radix(port, 16).ok()?,
                value: u32::from_str_radix(value.trim(), 16).ok()?,
            });
        }
        let exit = text.strip_prefix("VMEXIT")?;
        if let Some((_, address)) = exit.split_once("for guest paddr 0x") {
            let digits = address.split(' ').next()?;
            self.guest_physical = u64::from_str_radix(digits, 16).ok();
            return None;
        }
        // VMEXIT reason = 48 (EPT Violation) qualification=0x181
        let exit = exit.strip_prefix(" reason = ")?;
        let basic: u32 = exit.split(' ').next()?.parse().ok()?;
        let (_, qualification) = exit.split_once("qualification=0x")?;
        let is_failure = matches!(basic, 33 | 34 | 41);
        Some(Said::Nested(NestedEvent::Exit {
            reason: basic | u32::from(is_failure) << 31,
            qualification: u64::from_str_radix(qualification.trim(), 16).ok(),
            interruption: None,
            error_code: None,
            instruction_length: None,
            guest_physical: self
                .guest_physical
                .take()
                .filter(|_| matches!(basic, 48 | 49)),
            l2_rip: None,
        }))
    }
}

fn last_words(text: &str) -> Said {
    let text = text.trim_start_matches(">>PANIC<< ").trim();
    if text.starts_with("Shutdown port:") {
        Said::PowerOff
    } else if text.contains("exception with no resolution") || text.contains("VMABORT") {
        Said::Shutdown
    } else {
        Said::Died(text.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(reason: u32, qualification: u64, guest_physical: Option<u64>) -> Option<Said> {
        Some(Said::Nested(NestedEvent::Exit {
            reason,
            qualification: Some(qualification),
            interruption: None,
            error_code: None,
            instruction_length: None,
            guest_physical,
            l2_rip: None,
        }))
    }

    #[test]
    fn lines_of_a_log() {
        let mut reader = Reader::default();
        let port = |port, value| Some(Said::Port { port, value });
        for (line, expected) in [
            (
                "00190359168d[UNMAP ] unmapped: 32-bit write to 05e4 = 00000012",
                port(0x5e4, 0x12),
            ),
            (
                "00190367105d[UNMAP ] unmapped: 8-bit write to 00f4 = 10",
                port(0xf4, 0x10),
            ),
            (
                "00000000000d[UNMAP ] unmapped: 8-bit read from 01eb = ff",
                None,
            ),
            (
                "00190355257e[CPU0  ] VMEXIT: EPT violation for guest paddr 0x000000200000 laddr 0x0000000000200000",
                None,
            ),
            (
                "00190355257d[CPU0  ] VMEXIT reason = 48 (EPT Violation) qualification=0x181",
                exit(48, 0x181, Some(0x20_0000)),
            ),
            (
                "00190355392d[CPU0  ] VMEXIT reason = 18 (VMCALL) qualification=0x0",
                exit(18, 0, None),
            ),
            (
                "00190355392d[CPU0  ] VMEXIT reason = 33 (x) qualification=0x4",
                exit(0x8000_0021, 4, None),
            ),
            ("00190355392d[CPU0  ] VMEXIT to x86-64 host", None),
            (
                "00190375725p[UNMAP ] >>PANIC<< Shutdown port: shutdown requested",
                Some(Said::PowerOff),
            ),
            (
                "00190375725p[CPU0  ] >>PANIC<< exception(): 3rd (13) exception with no resolution",
                Some(Said::Shutdown),
            ),
            (
                "00000000000p[HD    ] >>PANIC<< no such disk",
                Some(Said::Died("no such disk".into())),
            ),
            ("", None),
            ("d[", None),
            ("x] y", None),
            ("d[UNMAP ] unmapped: 32-bit write to zz = 1", None),
        ] {
            assert_eq!(reader.line(line), expected, "{line}");
        }
    }
}
