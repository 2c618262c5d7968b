//! What an exception makes of the event during whose delivery it came up (SDM Vol. 3A "Interrupt 8 --
//! Double Fault Exception (#DF)", tables "Interrupt and Exception Classes" and "Conditions for
//! Generating a Double Fault").

use crate::x86::{Event, EventKind, Exception};

/// What becomes of two events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combined {
    /// The second is delivered in place of the first, which its handler may bring back.
    Serial(Exception),
    /// #DF(0).
    DoubleFault,
    /// Shutdown, or an exit of L2.
    TripleFault,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Benign,
    Contributory,
    PageFault,
    DoubleFault,
}

const fn class(vector: u8) -> Class {
    match vector {
        Exception::DE
        | Exception::TS
        | Exception::NP
        | Exception::SS
        | Exception::GP
        | Exception::CP => Class::Contributory,
        Exception::PF | Exception::VE => Class::PageFault,
        Exception::DF => Class::DoubleFault,
        _ => Class::Benign,
    }
}

/// What `second`, raised during the delivery of `first`, makes of the two.
#[must_use]
pub const fn combine(first: &Event, second: &Exception) -> Combined {
    let first = match first.kind {
        EventKind::HardwareException => class(first.vector),
        // Interrupts, NMIs and whatever software raised are benign, whatever their vector.
        _ => Class::Benign,
    };
    let second_class = class(second.vector);
    match (first, second_class) {
        (Class::Contributory, Class::Contributory)
        | (Class::PageFault, Class::Contributory | Class::PageFault) => Combined::DoubleFault,
        (Class::DoubleFault, Class::Contributory | Class::PageFault | Class::DoubleFault) => {
            Combined::TripleFault
        }
        _ => Combined::Serial(*second),
    }
}

impl Combined {
    /// #DF(0) as an exception.
    pub const DOUBLE_FAULT: Exception = Exception {
        vector: Exception::DF,
        error_code: Some(0),
        payload: 0,
    };
}
