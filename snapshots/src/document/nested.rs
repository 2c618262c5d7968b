//! `struct kvm_nested_state` as the text file shows it: the header's members by their kernel names,
//! every field of vmcs12 by its SDM name, and whatever no name covers as bytes at an offset.
//!
//! Encoding decodes its own result and keeps what is missing from it, so that bytes -> text -> bytes
//! is the identity for all inputs by construction.

use crate::hex::{Hex, Patch, Sparse, apply, inline_each, patches};
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::{Flags, Header, NO_POINTER, NestedState, SmmFlags, VmxFlags};
use nvmx_core::vmx::vmcs12::{Layout, layout};
use nvmx_core::vmx::{Field, Vmcs12};
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::ser::{SerializeStruct, Serializer};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::LazyLock;

/// More than any kernel's nested state: header and two VMCS regions are 8320.
const MAX: u64 = 1 << 20;

/// Nested state of one vCPU.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NestedDoc {
    flags: Hex,
    format: Hex,
    size: Hex,
    vmxon_pa: Hex,
    vmcs12_pa: Hex,
    #[serde(default, skip_serializing_if = "is_zero")]
    smm_flags: Hex,
    #[serde(default, skip_serializing_if = "is_zero")]
    vmx_flags: Hex,
    #[serde(default, skip_serializing_if = "is_zero")]
    preemption_timer_deadline: Hex,
    /// Header bytes without a name.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "lines"
    )]
    header_other: Vec<Patch>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    vmcs12: Option<VmcsDoc>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    shadow_vmcs12: Option<VmcsDoc>,
    /// What follows the last whole VMCS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tail: Option<Sparse>,
}

fn is_zero(value: &Hex) -> bool {
    value.0 == 0
}

fn lines<S: Serializer>(patches: &[Patch], serializer: S) -> Result<S::Ok, S::Error> {
    inline_each(patches, serializer)
}

/// One VMCS region.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmcsDoc {
    revision: Hex,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    shadow_indicator: bool,
    abort: Hex,
    launch_state: Hex,
    fields: Fields,
    /// Bytes that no field covers.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        serialize_with = "lines"
    )]
    other: Vec<Patch>,
}

/// VMCS fields by name. A field that is not named is zero.
#[derive(Debug, Clone, PartialEq, Default)]
struct Fields(BTreeMap<Field, u64>);

/// The fields of the layout by offset, for a stable order of the text.
fn rows() -> impl Iterator<Item = (Field, &'static str, bool)> {
    layout::ROWS.iter().filter_map(|row| {
        let optional = row.since != Layout::Linux6_1;
        Some((row.field, row.field.name()?, optional))
    })
}

static NAMES: LazyLock<Vec<&'static str>> =
    LazyLock::new(|| rows().map(|(_, name, _)| name).collect());

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let shown: Vec<_> = rows()
            .filter_map(|(field, name, _)| Some((name, self.0.get(&field)?)))
            .collect();
        let mut out = serializer.serialize_struct("Fields", shown.len())?;
        for (name, value) in shown {
            out.serialize_field(name, &Hex(*value))?;
        }
        out.end()
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("VMCS fields by name")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = BTreeMap::new();
                while let Some(Name(name)) = map.next_key()? {
                    let field: Field = name.parse().map_err(A::Error::custom)?;
                    let location = layout::locate(field)
                        .filter(|_| !field.is_high())
                        .ok_or_else(|| A::Error::custom(format!("{name} is not in vmcs12")))?;
                    let Hex(value) = map.next_value()?;
                    if location.bytes < 8 && value >> (8 * location.bytes) != 0 {
                        let bits = 8 * location.bytes;
                        return Err(A::Error::custom(format!(
                            "{name}: {value:#x} does not fit {bits} bits"
                        )));
                    }
                    if fields.insert(field, value).is_some() {
                        return Err(A::Error::custom(format!("{name} stands there twice")));
                    }
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_struct("Fields", &NAMES, Reader)
    }
}

/// A field's name as a map key, however the format writes keys.
struct Name(String);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl Visitor<'_> for Reader {
            type Value = Name;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a VMCS field")
            }

            fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Name, E> {
                Ok(Name(name.to_owned()))
            }
        }
        deserializer.deserialize_identifier(Reader)
    }
}

impl VmcsDoc {
    fn encode(vmcs: &Vmcs12) -> Self {
        let shown = rows().filter_map(|(field, _, optional)| {
            let value = vmcs.get(field);
            (!optional || value != 0).then_some((field, value))
        });
        let mut doc = Self {
            revision: Hex(vmcs.revision().into()),
            shadow_indicator: vmcs.is_shadow(),
            abort: Hex(vmcs.abort().into()),
            launch_state: Hex(vmcs.launch_state_raw().into()),
            fields: Fields(shown.collect()),
            other: Vec::new(),
        };
        if let Ok(decoded) = doc.decode() {
            doc.other = patches(vmcs.bytes(), decoded.bytes());
        }
        doc
    }

    fn decode(&self) -> Result<Vmcs12, String> {
        let mut vmcs = Vmcs12::default();
        let revision = narrow("revision", self.revision, 31)?;
        vmcs.set_revision(revision as u32);
        vmcs.set_shadow(self.shadow_indicator);
        vmcs.set_abort(narrow("abort", self.abort, 32)? as u32);
        let launch_state = narrow("launch_state", self.launch_state, 32)? as u32;
        vmcs.bytes_mut()[8..12].copy_from_slice(&launch_state.to_le_bytes());
        for (field, value) in &self.fields.0 {
            vmcs.set(*field, *value);
        }
        apply(vmcs.bytes_mut(), &self.other).map_err(|reason| format!("other: {reason}"))?;
        Ok(vmcs)
    }
}

fn narrow(name: &str, value: Hex, bits: u32) -> Result<u64, String> {
    if bits < 64 && value.0 >> bits != 0 {
        return Err(format!("{name}: {:#x} does not fit {bits} bits", value.0));
    }
    Ok(value.0)
}

impl NestedDoc {
    /// From a nested state.
    pub(super) fn encode(nested: &NestedState) -> Self {
        let header = nested.header();
        let pointer = |pa: Option<L1Phys>| Hex(pa.map_or(NO_POINTER, |pa| pa.0));
        let mut doc = Self {
            flags: Hex(header.flags().bits().into()),
            format: Hex(header.format().into()),
            size: Hex(header.size().into()),
            vmxon_pa: pointer(header.vmxon_pa()),
            vmcs12_pa: pointer(header.vmcs12_pa()),
            smm_flags: Hex(header.smm_flags().bits().into()),
            vmx_flags: Hex(header.vmx_flags().bits().into()),
            preemption_timer_deadline: Hex(header.preemption_timer_deadline_raw()),
            header_other: Vec::new(),
            vmcs12: nested.vmcs12().map(VmcsDoc::encode),
            shadow_vmcs12: nested.shadow_vmcs12().map(VmcsDoc::encode),
            tail: (!nested.rest().is_empty()).then(|| Sparse::from_bytes(nested.rest())),
        };
        if let Ok(decoded) = doc.decode_header() {
            doc.header_other = patches(header.bytes(), decoded.bytes());
        }
        doc
    }

    fn decode_header(&self) -> Result<Header, String> {
        let mut header = Header::default();
        header.set_flags(Flags::from_bits_retain(
            narrow("flags", self.flags, 16)? as u16
        ));
        header.set_format(narrow("format", self.format, 16)? as u16);
        header.set_size(narrow("size", self.size, 32)? as u32);
        header.set_vmxon_pa(Some(L1Phys(self.vmxon_pa.0)));
        header.set_vmcs12_pa(Some(L1Phys(self.vmcs12_pa.0)));
        let smm_flags = narrow("smm_flags", self.smm_flags, 16)? as u16;
        header.set_smm_flags(SmmFlags::from_bits_retain(smm_flags));
        // The flags after the deadline, which sets one of them.
        header.set_preemption_timer_deadline(Some(self.preemption_timer_deadline.0));
        let vmx_flags = narrow("vmx_flags", self.vmx_flags, 32)? as u32;
        header.set_vmx_flags(VmxFlags::from_bits_retain(vmx_flags));
        apply(header.bytes_mut(), &self.header_other)
            .map_err(|reason| format!("header_other: {reason}"))?;
        Ok(header)
    }

    /// The nested state, or which field is wrong.
    pub(super) fn decode(&self) -> Result<NestedState, String> {
        let mut bytes = self.decode_header()?.bytes().to_vec();
        if self.shadow_vmcs12.is_some() && self.vmcs12.is_none() {
            return Err("shadow_vmcs12: there is none without a vmcs12".into());
        }
        for (name, region) in [
            ("vmcs12", &self.vmcs12),
            ("shadow_vmcs12", &self.shadow_vmcs12),
        ] {
            if let Some(region) = region {
                let vmcs = region
                    .decode()
                    .map_err(|reason| format!("{name}.{reason}"))?;
                bytes.extend(vmcs.bytes());
            }
        }
        if let Some(tail) = &self.tail {
            bytes.extend(
                tail.to_bytes(MAX)
                    .map_err(|reason| format!("tail: {reason}"))?,
            );
        }
        NestedState::from_bytes(&bytes).map_err(|e| e.to_string())
    }
}
