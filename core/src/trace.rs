//! A trace in one number: the nested events of a run, each with all its fields, folded into 64 bits. Two
//! runs of one guest on one backend that is deterministic have the same; what differs in a single field
//! of a single event almost surely has not.
//!
//! The fold is FNV-1a (Fowler, Noll, Vo) over a fixed little-endian encoding, so the number can be
//! written down and compared later, on another machine as well.

use crate::vcpu::NestedEvent;
use std::fmt;

/// The fold so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceHash {
    value: u64,
    events: u64,
}

impl Default for TraceHash {
    /// Of no event.
    fn default() -> Self {
        const OFFSET_BASIS: u64 = 0xcbf2_9ce4_8422_2325;
        Self {
            value: OFFSET_BASIS,
            events: 0,
        }
    }
}

impl TraceHash {
    /// Takes one event in.
    pub fn add(&mut self, event: &NestedEvent) {
        self.events += 1;
        match *event {
            NestedEvent::Entry {
                vmcs12,
                l2_rip,
                injected,
            } => {
                self.fold(0);
                self.fold(vmcs12.0);
                self.fold(l2_rip);
                self.optional(injected.map(u64::from));
            }
            NestedEvent::EntryFailure { error } => {
                self.fold(1);
                self.optional(error.map(u64::from));
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
                self.fold(2);
                self.fold(u64::from(reason));
                self.optional(qualification);
                self.optional(interruption.map(u64::from));
                self.optional(error_code.map(u64::from));
                self.optional(instruction_length.map(u64::from));
                self.optional(guest_physical);
                self.optional(l2_rip);
            }
        }
    }

    /// Events taken in.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// The number.
    #[must_use]
    pub const fn value(&self) -> u64 {
        self.value
    }

    /// What a backend cannot see is different from every value.
    fn optional(&mut self, value: Option<u64>) {
        self.fold(u64::from(value.is_some()));
        self.fold(value.unwrap_or(0));
    }

    fn fold(&mut self, word: u64) {
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        for byte in word.to_le_bytes() {
            self.value = (self.value ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    }
}

impl fmt::Display for TraceHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::L1Phys;

    fn of(events: &[NestedEvent]) -> String {
        let mut hash = TraceHash::default();
        events.iter().for_each(|event| hash.add(event));
        hash.to_string()
    }

    #[test]
    fn every_field_and_the_order_count() {
        let entry = NestedEvent::Entry {
            vmcs12: L1Phys(0x1000),
            l2_rip: 0x2000,
            injected: None,
        };
        let exit = |qualification, l2_rip| NestedEvent::Exit {
            reason: 18,
            qualification,
            interruption: None,
            error_code: None,
            instruction_length: Some(3),
            guest_physical: None,
            l2_rip,
        };
        let traces = [
            of(&[]),
            of(&[entry]),
            of(&[entry, exit(None, Some(1))]),
            of(&[entry, exit(Some(0), Some(1))]),
            of(&[entry, exit(None, Some(2))]),
            of(&[exit(None, Some(1)), entry]),
            of(&[entry, NestedEvent::EntryFailure { error: Some(7) }]),
            of(&[entry, NestedEvent::EntryFailure { error: None }]),
        ];
        for (index, trace) in traces.iter().enumerate() {
            assert!(!traces[..index].contains(trace), "{index}: {trace}");
        }
    }

    #[test]
    fn the_number_is_the_published_fold() {
        // FNV-1a of eight zero bytes, twice, then of 0x0000000000000001 and so on is what the definition
        // gives; the empty trace is its offset basis.
        assert_eq!(of(&[]), "cbf29ce484222325");
        // One word of zero bytes: eight multiplications of the basis by the prime.
        let mut expected = 0xcbf2_9ce4_8422_2325_u64;
        for _ in 0..8 {
            expected = expected.wrapping_mul(0x0000_0100_0000_01b3);
        }
        let mut hash = TraceHash::default();
        hash.fold(0);
        assert_eq!(hash.value(), expected);
    }
}
