//! The guest, its processor and its devices, as the command line has them.

use clap::Args;
use nvmx_core::profiles::{self, Profile};
use std::str::FromStr;

/// The guest and its machine.
#[derive(Debug, Args)]
pub(crate) struct Guest {
    /// A multiboot, ELF or Linux (bzImage) file, or example:NAME
    pub(crate) image: String,
    /// RAM, with K, M or G behind it; MiB without (default: 16M for example:NAME, else 128M)
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    pub(crate) memory: Option<u64>,
    /// Command line for the guest; multiboot puts the image's name before it, as QEMU does
    #[arg(long, value_name = "TEXT", default_value = "")]
    pub(crate) append: String,
    /// Files to load beside it, each with its arguments behind a space, a comma between two and two
    /// commas for one of its own: multiboot's modules, Linux' initrd
    #[arg(long, value_name = "FILE")]
    pub(crate) initrd: Option<String>,
    /// How often an example goes through its scenarios
    #[arg(long, value_name = "COUNT", default_value_t = 1)]
    pub(crate) iterations: u32,
}

/// The devices of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum MachineKind {
    /// PIC, I/O APIC, PIT, RTC, 16550, PCI, ACPI tables and what belongs to them
    Pc,
    /// A serial port and a debug exit
    Bare,
}

/// The processor that a guest gets.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Cpu {
    /// What the backend has by itself.
    Default,
    /// A profile.
    Profile(&'static Profile),
}

impl FromStr for Cpu {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "default" {
            return Ok(Self::Default);
        }
        profiles::find(text).map(Self::Profile).ok_or_else(|| {
            let known: Vec<_> = profiles::names().map(|(name, _)| name).collect();
            format!("known are default, {}", known.join(", "))
        })
    }
}

impl Guest {
    /// Whether nvmx brings the image along.
    pub(crate) fn is_example(&self) -> bool {
        self.image.starts_with("example:")
    }

    /// Bytes of RAM.
    pub(crate) fn memory_size(&self) -> u64 {
        let default = if self.is_example() { 16 } else { 128 };
        self.memory.unwrap_or(default << 20)
    }
}

/// Bytes of RAM as `--memory` has them: whole pages, up to 64 GiB.
fn memory(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 20),
    };
    let size = digits
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(1 << shift));
    size.filter(|size| (1 << 20..=64 << 30).contains(size) && size % 4096 == 0)
        .ok_or_else(|| "a size such as 512M, 2G or 65536K: whole pages, from 1M to 64G".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_sizes_have_suffixes_and_limits() {
        for (text, expected) in [
            ("16", Some(16 << 20)),
            ("512M", Some(512 << 20)),
            ("2g", Some(2 << 30)),
            ("4096K", Some(4 << 20)),
            ("64G", Some(64 << 30)),
            ("65G", None),
            ("0", None),
            ("1023K", None),
            ("1025K", None),
            ("", None),
            ("M", None),
            ("-1", None),
            ("99999999999999999999G", None),
            ("1.5G", None),
        ] {
            assert_eq!(memory(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn processors_go_by_profile() {
        assert!(matches!("default".parse(), Ok(Cpu::Default)));
        assert!(matches!("max".parse(), Ok(Cpu::Profile(p)) if p.name == "max"));
        assert!("80386".parse::<Cpu>().unwrap_err().contains("skylake-sp"));
    }
}
