//! What the translator must not see in the present mode: [`scan`]'s list, and x87, MMX and SSE while they
//! are switched off.

use super::env::{Env, hidden};
use super::scan::{self, CodeSize, Special, Unit};

impl Env {
    /// What the instruction at these bytes is, if the translator must not see it in this mode.
    pub(super) fn special(&self, bytes: &[u8]) -> Option<Special> {
        let size = self.code_size();
        scan::classify(bytes, size)
            .or_else(|| self.switched_off(bytes, size))
            .or_else(|| self.returns_from_user(bytes, size))
    }

    /// IRET and far RET at privilege level 3, whose pops must be asked about first: see [`super::returns`].
    fn returns_from_user(&self, bytes: &[u8], size: CodeSize) -> Option<Special> {
        (self.cpl() == 3 && scan::is_far_return(bytes, size)).then_some(Special::FarTransfer)
    }

    /// What becomes of an instruction of a unit that is switched off (SDM Vol. 3A "Configuring the x87
    /// FPU Environment", "Providing Operating System Support for SSE Instructions").
    fn switched_off(&self, bytes: &[u8], size: CodeSize) -> Option<Special> {
        let hidden = self.hidden();
        if hidden & hidden::NO_UNITS == 0 {
            return None;
        }
        let (undefined, no_device) = match scan::unit(bytes, size)? {
            Unit::Wait => (0, hidden::NO_WAIT),
            Unit::X87 => (0, hidden::EMULATED | hidden::NO_DEVICE),
            Unit::Mmx => (hidden::EMULATED, hidden::NO_DEVICE),
            Unit::Sse => (hidden::EMULATED | hidden::NO_SSE, hidden::NO_DEVICE),
        };
        if hidden & undefined != 0 {
            Some(Special::Undefined)
        } else {
            (hidden & no_device != 0).then_some(Special::NoDevice)
        }
    }
}
