//! What `nvmx shim --list` prints, out of the tables.

use crate::capabilities::{self, Offer};
use crate::table::{self, Handler};
use serde::Serialize;

/// An ioctl or a capability, for people and programs.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    /// `system`, `VM`, `vCPU` or `capability`.
    pub kind: &'static str,
    /// `KVM_RUN`.
    pub name: &'static str,
    /// The number.
    pub number: u32,
    /// What KVM_CHECK_EXTENSION answers, for capabilities that are there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<i32>,
    /// Why it is absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub absent: Option<&'static str>,
}

/// Every row of both tables.
#[must_use]
pub fn entries() -> Vec<Entry> {
    let calls = table::all().map(|row| Entry {
        kind: row.level.name(),
        name: row.name,
        number: row.request,
        value: None,
        absent: match row.handler {
            Handler::Absent(_, reason) => Some(reason),
            _ => None,
        },
    });
    let offers = capabilities::ROWS.iter().map(|row| {
        let (value, absent) = match row.offer {
            Offer::Value(value) => (Some(value), None),
            Offer::Absent(reason) => (None, Some(reason)),
        };
        Entry {
            kind: "capability",
            name: row.name,
            number: row.number,
            value,
            absent,
        }
    });
    calls.chain(offers).collect()
}
