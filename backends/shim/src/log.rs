//! What the shim tells on standard error: the program owns the rest.

use std::fmt;

/// How much is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    /// Nothing.
    Off,
    /// What the model has not been taught.
    Error,
    /// Also calls that were refused.
    Warn,
    /// Every call and every exit.
    Trace,
}

impl Detail {
    /// By its name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Some(match name {
            "off" => Self::Off,
            "error" => Self::Error,
            "warn" => Self::Warn,
            "trace" => Self::Trace,
            _ => return None,
        })
    }
}

/// Writes a line.
pub fn line(text: fmt::Arguments<'_>) {
    let line = format!("nvmx shim: {text}\n");
    // Whoever closed standard error wants to hear nothing.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
