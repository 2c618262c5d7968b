//! What the environment says: which processor, and how much is told.

use crate::log::Detail;
use nvmx_core::profiles::{self, Profile};

/// The processor that KVM offers to its guests, where nobody chose another.
const DEFAULT_PROFILE: &str = "kvm-6.12";

/// Choices of whoever starts the program.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// `NVMX_SHIM_PROFILE`: whose CPUID and VMX capability MSRs are offered.
    pub profile: &'static Profile,
    /// `NVMX_SHIM_LOG`: what goes to standard error.
    pub detail: Detail,
}

impl Settings {
    /// From the environment; an error names what is wrong there.
    pub fn from_environment() -> Result<Self, String> {
        let word = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let mut settings = Self::default();
        if let Some(name) = word("NVMX_SHIM_PROFILE") {
            settings.profile = profiles::find(&name)
                .ok_or_else(|| format!("NVMX_SHIM_PROFILE: there is no profile {name:?}"))?;
        }
        if let Some(text) = word("NVMX_SHIM_LOG") {
            settings.detail = Detail::named(&text).ok_or_else(|| {
                format!("NVMX_SHIM_LOG: {text:?} is none of off, error, warn, trace")
            })?;
        }
        Ok(settings)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            profile: profiles::find(DEFAULT_PROFILE).unwrap_or(&profiles::ALL[0]),
            detail: Detail::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_profile_is_there() {
        assert_eq!(Settings::default().profile.name, DEFAULT_PROFILE);
    }
}
