//! The guests, one a file.

mod apic;
mod compute;
mod control;
mod ept;
mod events;
mod exits;
mod failures;
mod modes;
mod roundtrip;
mod shadow;
mod stepping;
mod switches;
mod timers;

use crate::image::Image;
use crate::runtime::{BuildError, Params};

/// A guest that can be built.
#[derive(Clone, Copy)]
pub struct Guest {
    /// Its name, as commands take it.
    pub name: &'static str,
    /// What it meets, in a line.
    pub about: &'static str,
    /// Assembles it.
    pub build: fn(Params) -> Result<Image, BuildError>,
}

/// Every guest.
#[must_use]
pub fn all() -> &'static [Guest] {
    &[
        exits::GUEST,
        ept::GUEST,
        events::GUEST,
        timers::GUEST,
        apic::GUEST,
        shadow::GUEST,
        failures::GUEST,
        control::GUEST,
        stepping::GUEST,
        switches::GUEST,
        modes::GUEST,
        roundtrip::GUEST,
        compute::GUEST,
    ]
}

/// The guest with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Guest> {
    all().iter().find(|guest| guest.name == name)
}
