//! The error status register (SDM Vol. 3A "Error Handling"). KVM has none: see the row `apic-errors` of
//! [`crate::personality`].

use super::Apic;
use super::registers::{ESR, LVT_ERROR, MASKED};
use serde::{Deserialize, Serialize};

/// Send Illegal Vector.
pub(super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
/// Receive Illegal Vector.
pub(super) const RECEIVE_ILLEGAL_VECTOR: u32 = 1 << 6;
/// Illegal Register Address.
pub(super) const ILLEGAL_REGISTER_ADDRESS: u32 = 1 << 7;

/// The lowest vector that an interrupt may have.
pub(super) const FIRST_VECTOR: u8 = 16;

/// What was found since the register was last written. No part of KVM's page, so a capture between the
/// error and that write loses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct Errors {
    /// Whether errors are looked for.
    pub(super) logged: bool,
    found: u32,
    /// The error interrupt came since the last write of the register, and does not come again before the
    /// next one.
    signaled: bool,
}

impl Errors {
    /// After INIT.
    pub(super) const fn reset(self) -> Self {
        Self {
            logged: self.logged,
            found: 0,
            signaled: false,
        }
    }
}

impl Apic {
    /// Whether errors are logged and signaled, as on silicon, or not, as under KVM.
    pub fn log_errors(&mut self, logged: bool) {
        self.errors = Errors {
            logged,
            ..Errors::default()
        };
    }

    /// Logs an error, and sends the error interrupt unless its entry is masked or it came already.
    pub(super) fn found(&mut self, error: u32) {
        if !self.errors.logged {
            return;
        }
        self.errors.found |= error;
        let entry = self.get(LVT_ERROR);
        if entry & MASKED == 0 && !self.errors.signaled {
            // Before the interrupt, whose own vector may be an error.
            self.errors.signaled = true;
            self.accept(entry as u8, false);
        }
    }

    /// A write of the register: what was found since the last one becomes readable, and the error
    /// interrupt can come again.
    pub(super) fn write_error_status(&mut self) {
        let found = self.errors.found;
        self.errors = self.errors.reset();
        self.set(ESR, found);
    }
}
