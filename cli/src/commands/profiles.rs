//! `nvmx profiles`

use crate::args::Profiles;
use crate::{SAME, output};
use nvmx_core::profiles::{self, ForSoft, Profile, rows};
use nvmx_core::vmx::capability::{Capability, ControlField};
use nvmx_core::x86::msr;
use serde_json::{Value, json};
use std::fmt::Write;

pub(crate) fn run(options: &Profiles) -> anyhow::Result<u8> {
    match (options.name, options.json) {
        (Some(profile), true) => output::print_json(&as_json(profile))?,
        (Some(profile), false) => output::print(&as_text(profile))?,
        (None, true) => {
            let list: Vec<Value> = profiles::ALL.iter().map(summary).collect();
            output::print_json(&list)?;
        }
        (None, false) => {
            let mut text = String::new();
            for profile in profiles::ALL {
                let kind = profile.kind.name();
                let _ = writeln!(text, "{:<24} {kind:<8} {}", profile.name, profile.summary);
            }
            output::print(&text)?;
        }
    }
    Ok(SAME)
}

fn summary(profile: &Profile) -> Value {
    json!({
        "name": profile.name,
        "kind": profile.kind.name(),
        "summary": profile.summary,
        "personality": profile.personality().name(),
    })
}

/// Number, name and value of each capability MSR that is there.
fn msrs(profile: &Profile) -> impl Iterator<Item = (u32, &'static str, u64)> {
    let values = profile.vmx_msrs();
    (msr::IA32_VMX_BASIC..)
        .zip(values)
        .filter(|(number, value)| *number <= msr::IA32_VMX_VMFUNC || *value != 0)
        .map(|(number, value)| (number, msr::name(number).unwrap_or("?"), value))
}

/// A control that a field may have.
struct Control {
    bit: u32,
    name: Option<&'static str>,
    fixed: bool,
}

/// The controls of a field that may be 1.
fn controls(capability: Capability<'_>, field: ControlField) -> Vec<Control> {
    let allowed = capability.allowed(field);
    let offered = (0..64).filter(|bit| allowed.may_be_one >> bit & 1 != 0);
    offered
        .map(|bit| Control {
            bit,
            name: rows(field)
                .iter()
                .find(|row| row.bit == bit)
                .map(|row| row.name),
            fixed: allowed.must_be_one >> bit & 1 != 0,
        })
        .collect()
}

fn as_json(profile: &Profile) -> Value {
    let values = profile.vmx_msrs();
    let model = profile.model();
    let ForSoft {
        model: soft,
        dropped,
    } = profile.for_soft();
    let msrs: Vec<Value> = msrs(profile)
        .map(|(number, name, value)| {
            json!({
                "number": format!("{number:#x}"),
                "name": name,
                "value": format!("{value:#018x}"),
                "source": profile.source(number),
            })
        })
        .collect();
    let controls: serde_json::Map<String, Value> = ControlField::ALL
        .into_iter()
        .map(|field| {
            let list: Vec<Value> = controls(Capability::new(&values), field)
                .iter()
                .map(|c| json!({ "bit": c.bit, "name": c.name, "must_be_one": c.fixed }))
                .collect();
            (format!("{field:?}"), list.into())
        })
        .collect();
    let dropped: Vec<Value> = dropped
        .iter()
        .map(|d| json!({ "what": d.what, "reason": d.reason }))
        .collect();
    json!({
        "name": profile.name,
        "kind": profile.kind.name(),
        "summary": profile.summary,
        "personality": profile.personality().name(),
        "cpuid_source": profile.cpuid_source,
        "cpuid": model.cpuid,
        "physical_address_width": model.physical_address_width,
        "linear_address_width": model.linear_address_width,
        "arch_capabilities": profile.arch_capabilities.map(|v| format!("{v:#x}")),
        "vmx_msrs": msrs,
        "controls": controls,
        "soft": { "cpuid": soft.cpuid, "dropped": dropped },
    })
}

fn as_text(profile: &Profile) -> String {
    let values = profile.vmx_msrs();
    let capability = Capability::new(&values);
    let model = profile.model();
    let mut text = String::new();
    let _ = writeln!(text, "{}: {}", profile.name, profile.summary);
    let _ = writeln!(
        text,
        "personality {}; addresses of {} bits physical, {} linear",
        profile.personality(),
        model.physical_address_width,
        model.linear_address_width
    );
    let _ = writeln!(text, "\nVMX capability MSRs");
    for (number, name, value) in msrs(profile) {
        let source = profile.source(number);
        let _ = writeln!(text, "  {number:#x} {name:<29} {value:#018x}  {source}");
    }
    for field in ControlField::ALL {
        let list = controls(capability, field);
        if list.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n{field:?} controls that may be 1");
        for Control { bit, name, fixed } in list {
            let name = match name {
                Some(name) => name,
                None if fixed => continue,
                None => "(no name)",
            };
            let must = if fixed { ", must be" } else { "" };
            let _ = writeln!(text, "  {bit:>2} {name}{must}");
        }
    }
    let _ = writeln!(text, "\nCPUID ({})", profile.cpuid_source);
    for e in profile.cpuid {
        let _ = writeln!(
            text,
            "  {:#010x}.{:<2} {:08x} {:08x} {:08x} {:08x}",
            e.leaf, e.subleaf, e.eax, e.ebx, e.ecx, e.edx
        );
    }
    let dropped = profile.for_soft().dropped;
    let _ = writeln!(text, "\nNot on soft");
    for d in &dropped {
        let _ = writeln!(text, "  {}: {}", d.what, d.reason);
    }
    text
}
