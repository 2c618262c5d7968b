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
mod smp;
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
    /// Processors that it is written for; with fewer it says so and ends with success.
    pub processors: usize,
}

/// Every guest for one processor.
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

/// Every guest for several processors.
#[must_use]
pub fn several() -> &'static [Guest] {
    &[smp::GUEST]
}

/// The guest with this name.
#[must_use]
pub fn find(name: &str) -> Option<&'static Guest> {
    all()
        .iter()
        .chain(several())
        .find(|guest| guest.name == name)
}
