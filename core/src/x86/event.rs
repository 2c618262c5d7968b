//! Exceptions and events, with the interruption-information format that the VMCS shares between
//! injection, VM exits and IDT vectoring (SDM Vol. 3C "VM-Entry Controls for Event Injection").

use serde::{Deserialize, Serialize};

/// An exception to be delivered: a fault of an instruction that ran.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Exception {
    /// Vector, 0 to 31.
    pub vector: u8,
    /// Error code, where the exception pushes one.
    pub error_code: Option<u32>,
    /// CR2 for a page fault; DR6 bits for a debug exception; else zero.
    pub payload: u64,
}

#[allow(missing_docs)]
impl Exception {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;

    /// #UD.
    pub const UNDEFINED: Self = Self {
        vector: Self::UD,
        error_code: None,
        payload: 0,
    };
    /// #NM.
    pub const NO_DEVICE: Self = Self {
        vector: Self::NM,
        error_code: None,
        payload: 0,
    };
    /// #GP(0).
    pub const GENERAL_PROTECTION: Self = Self {
        vector: Self::GP,
        error_code: Some(0),
        payload: 0,
    };

    /// #PF with this error code at this linear address.
    #[must_use]
    pub const fn page_fault(error_code: u32, address: u64) -> Self {
        Self {
            vector: Self::PF,
            error_code: Some(error_code),
            payload: address,
        }
    }
}

/// Type of an event, numbered as bits 10:8 of interruption information.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum EventKind {
    /// External interrupt.
    ExternalInterrupt = 0,
    /// Non-maskable interrupt.
    Nmi = 2,
    /// Hardware exception.
    HardwareException = 3,
    /// Software interrupt (INT n).
    SoftwareInterrupt = 4,
    /// Privileged software exception (INT1).
    PrivilegedSoftwareException = 5,
    /// Software exception (INT3, INTO).
    SoftwareException = 6,
    /// Other event (pending MTF VM exit, for one).
    Other = 7,
}

impl EventKind {
    /// From bits 10:8; `None` for the reserved value 1.
    #[must_use]
    pub const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::ExternalInterrupt,
            2 => Self::Nmi,
            3 => Self::HardwareException,
            4 => Self::SoftwareInterrupt,
            5 => Self::PrivilegedSoftwareException,
            6 => Self::SoftwareException,
            7 => Self::Other,
            _ => return None,
        })
    }
}

/// An event under delivery, or to be injected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Event {
    /// What it is.
    pub kind: EventKind,
    /// Vector.
    pub vector: u8,
    /// Error code to push, if any.
    pub error_code: Option<u32>,
    /// Length of the instruction, for software events: RIP pushed is that much further on.
    pub instruction_length: u8,
    /// CR2 or DR6 payload of an exception that has not been delivered yet; else zero.
    pub payload: u64,
}

impl Event {
    /// A hardware exception as an event.
    #[must_use]
    pub const fn exception(exception: Exception) -> Self {
        Self {
            kind: EventKind::HardwareException,
            vector: exception.vector,
            error_code: exception.error_code,
            instruction_length: 0,
            payload: exception.payload,
        }
    }

    /// An external interrupt.
    #[must_use]
    pub const fn interrupt(vector: u8) -> Self {
        Self {
            kind: EventKind::ExternalInterrupt,
            vector,
            error_code: None,
            instruction_length: 0,
            payload: 0,
        }
    }

    /// An NMI.
    pub const NMI: Self = Self {
        kind: EventKind::Nmi,
        vector: 2,
        error_code: None,
        instruction_length: 0,
        payload: 0,
    };

    /// The interruption-information field for this event, valid bit set.
    #[must_use]
    pub const fn information(&self) -> u32 {
        let deliver_error_code = if self.error_code.is_some() {
            1 << 11
        } else {
            0
        };
        self.vector as u32 | ((self.kind as u32) << 8) | deliver_error_code | 1 << 31
    }

    /// From interruption information, error code and instruction length.
    ///
    /// `None` if the valid bit is clear or the type is reserved.
    #[must_use]
    pub fn from_information(information: u32, error_code: u32, length: u32) -> Option<Self> {
        if information & 1 << 31 == 0 {
            return None;
        }
        Some(Self {
            kind: EventKind::from_bits((information >> 8 & 7) as u8)?,
            vector: information as u8,
            error_code: (information & 1 << 11 != 0).then_some(error_code),
            instruction_length: length as u8,
            payload: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interruption_information_round_trips() {
        let event = Event::exception(Exception::page_fault(2, 0));
        assert_eq!(event.information(), 0x8000_0b0e);
        assert_eq!(Event::from_information(0x8000_0b0e, 2, 0), Some(event));
        assert_eq!(Event::from_information(0x0000_0b0e, 2, 0), None);
        assert_eq!(Event::from_information(0x8000_010e, 2, 0), None);
    }
}
