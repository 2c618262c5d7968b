//! A case as data: a base VMCS by name and what is changed in it.

use nvmx_core::vmx::Field;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A number that files show in hexadecimal.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Hex(pub u64);

impl fmt::Debug for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:#x}", self.0))
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").unwrap_or_default();
        u64::from_str_radix(digits, 16)
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} is no number like \"0x1f\"")))
    }
}

/// A VMCS field by its name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named(pub Field);

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl Serialize for Named {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Named {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Registers that a case may give L2, in the order of [`crate::layout::control::REGISTERS`].
pub const REGISTERS: [&str; 20] = [
    "RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", "R8", "R9", "R10", "R11", "R12", "R13",
    "R14", "R15", "DR0", "DR1", "DR2", "DR3",
];

/// A register of L2, by its place in [`REGISTERS`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Register(pub u8);

impl Register {
    fn name(self) -> &'static str {
        REGISTERS.get(usize::from(self.0)).copied().unwrap_or("?")
    }
}

impl fmt::Debug for Register {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Register {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Register {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        REGISTERS
            .iter()
            .position(|name| *name == text)
            .map(|index| Self(index as u8))
            .ok_or_else(|| serde::de::Error::custom(format!("no register is called {text:?}")))
    }
}

/// Instructions as bytes, which files show in hexadecimal.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Code(pub Vec<u8>);

impl Code {
    fn text(&self) -> String {
        let bytes: Vec<_> = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        bytes.join(" ")
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Serialize for Code {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text())
    }
}

impl<'de> Deserialize<'de> for Code {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = text
            .split_whitespace()
            .map(|byte| u8::from_str_radix(byte, 16));
        bytes
            .collect::<Result<_, _>>()
            .map(Self)
            .map_err(|_| serde::de::Error::custom(format!("{text:?} are no bytes like \"0f a2\"")))
    }
}

/// One change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Mutation {
    /// A field of the VMCS.
    Field(Named, Hex),
    /// 64 bits of memory, by address.
    Memory(Hex, Hex),
    /// A 32-bit word of the region's header, by offset: 0 revision, 8 KVM's launch state.
    Header(Hex, Hex),
    /// A register of L2.
    Register(Register, Hex),
}

/// One case.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Case {
    /// The base's name: see [`crate::base::BASES`].
    pub base: String,
    /// VMRESUME instead of VMLAUNCH.
    #[serde(default)]
    pub resume: bool,
    /// What is changed in it, in this order.
    pub mutations: Vec<Mutation>,
    /// L2's instructions, at its RIP, where the base has an arena: see [`crate::layout::arena`].
    #[serde(default, skip_serializing_if = "Code::is_empty")]
    pub code: Code,
}

/// A case file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaseFile {
    /// The case.
    pub case: Case,
    /// What was seen, in words.
    #[serde(default)]
    pub note: String,
}

impl CaseFile {
    /// Reads a file's text.
    pub fn parse(text: &str) -> Result<Self, String> {
        let file: Self = ron::from_str(text).map_err(|error| error.to_string())?;
        file.case.check()?;
        Ok(file)
    }

    /// The file's text.
    #[must_use]
    pub fn to_text(&self) -> String {
        let pretty = ron::ser::PrettyConfig::default().compact_arrays(false);
        ron::ser::to_string_pretty(self, pretty).unwrap_or_default() + "\n"
    }
}

impl Case {
    /// Whether it fits the guest.
    pub fn check(&self) -> Result<(), String> {
        if crate::base::find(&self.base).is_none() {
            return Err(format!("no base is called {:?}", self.base));
        }
        if self.code.0.len() > crate::layout::MAX_CODE {
            return Err(format!("{} bytes of code", self.code.0.len()));
        }
        let count = self.mutations.len() + self.code.0.len().div_ceil(8);
        if count > crate::layout::MAX_PATCHES {
            return Err(format!(
                "{count} mutations, {} are possible",
                crate::layout::MAX_PATCHES
            ));
        }
        for mutation in &self.mutations {
            match *mutation {
                Mutation::Field(Named(field), _)
                    if nvmx_core::vmx::vmcs12::layout::locate(field).is_none() =>
                {
                    return Err(format!("KVM has no place for {field}"));
                }
                Mutation::Header(Hex(offset), _) if offset > 8 => {
                    return Err(format!("{offset:#x} is not in the region's header"));
                }
                Mutation::Memory(Hex(address), _) if address >= 16 << 20 => {
                    return Err(format!("{address:#x} is not in L1's memory"));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_read_back_and_hostile_ones_are_refused() {
        let file = CaseFile {
            case: Case {
                base: "long".into(),
                resume: true,
                mutations: vec![
                    Mutation::Field(Named(Field::GUEST_CR0), Hex(0x8000_0031)),
                    Mutation::Memory(Hex(0x17_f000), Hex(1)),
                    Mutation::Register(Register(17), Hex(5)),
                ],
                code: Code(vec![0x0f, 0xa2]),
            },
            note: "n".into(),
        };
        assert_eq!(CaseFile::parse(&file.to_text()), Ok(file.clone()));
        for (from, to) in [
            ("long", "wide"),
            ("GUEST_CR0", "GUEST_CR9"),
            ("0x17f000", "0x100000000"),
            ("0x8000", "8000"),
            ("DR1", "DR8"),
            ("0f a2", "0f a2 x"),
        ] {
            let text = file.to_text();
            assert!(text.contains(from), "{from}");
            assert!(CaseFile::parse(&text.replace(from, to)).is_err(), "{to}");
        }
    }
}
