//! What an engineer wants to see of a snapshot, of a hung L2 above all: which level runs, why L2
//! last exited, whether an entry is pending, what the controls allow, and whose each register is.

mod findings;
mod qualification;
mod vmcs;

use crate::document::msr_key;
use crate::model::Snapshot;
use nvmx_core::nested::{Flags, NestedState, SmmFlags};
use nvmx_core::x86::ownership::{Level, Owner, Part, msr_owner, owner};
use nvmx_core::x86::{CpuState, Gpr, msr};
use serde::Serialize;
use std::fmt;

/// One line: a name, a value, and what it means.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Name, the manual's or the kernel's.
    pub name: String,
    /// Value.
    pub value: String,
    /// What it means, where there is something to say.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// Lines that belong together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Section {
    /// Heading.
    pub title: String,
    /// Whose state it is, where it has one owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Lines.
    pub items: Vec<Item>,
}

/// One vCPU explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VcpuExplanation {
    /// The level that runs.
    pub level: Option<Level>,
    /// In one sentence.
    pub summary: String,
    /// What does not fit together, or explains a hang.
    pub findings: Vec<String>,
    /// Everything else.
    pub sections: Vec<Section>,
}

/// A snapshot explained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Where the snapshot comes from.
    pub origin: Section,
    /// Its vCPUs.
    pub vcpus: Vec<VcpuExplanation>,
}

impl Section {
    fn new(title: &str) -> Self {
        Self {
            title: title.into(),
            owner: None,
            items: Vec::new(),
        }
    }

    fn add(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.note(name, value, "");
    }

    fn note(&mut self, name: impl Into<String>, value: impl Into<String>, note: impl Into<String>) {
        self.items.push(Item {
            name: name.into(),
            value: value.into(),
            note: note.into(),
        });
    }

    fn hex(&mut self, name: impl Into<String>, value: u64) {
        self.add(name, format!("{value:#x}"));
    }
}

impl Explanation {
    /// Explains a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let mut origin = Section::new("Snapshot");
        let meta = &snapshot.meta;
        if !meta.taken_by.is_empty() {
            origin.add("taken by", &meta.taken_by);
        }
        for (name, value) in [
            ("kernel", &meta.kernel),
            ("made with", &meta.created_by),
            ("image", &meta.image),
            ("note", &meta.note),
        ] {
            if let Some(value) = value {
                origin.add(name, value);
            }
        }
        origin.add("vCPUs", snapshot.vcpus.len().to_string());
        match &snapshot.memory {
            Some(memory) => origin.add(
                "memory",
                format!(
                    "{} MiB, {} pages not zero, {} of them different",
                    memory.memory_size() >> 20,
                    memory.index().len(),
                    memory.distinct()
                ),
            ),
            None => origin.add("memory", "not in this snapshot"),
        }
        Self {
            origin,
            vcpus: snapshot
                .vcpus
                .iter()
                .map(|vcpu| explain_vcpu(&vcpu.cpu, vcpu.nested.as_ref()))
                .collect(),
        }
    }
}

fn explain_vcpu(cpu: &CpuState, nested: Option<&NestedState>) -> VcpuExplanation {
    let guest_mode = nested.is_some_and(NestedState::guest_mode);
    let level = nested.map(|_| if guest_mode { Level::L2 } else { Level::L1 });
    let mut sections = Vec::new();
    if let Some(nested) = nested {
        sections.push(header(nested));
        if let Some(vmcs12) = nested.vmcs12() {
            sections.extend(vmcs::sections(vmcs12, nested));
        }
        if let Some(shadow) = nested.shadow_vmcs12() {
            sections.push(vmcs::shadow(shadow));
        }
    }
    sections.extend(registers(cpu, level.unwrap_or(Level::L1)));
    VcpuExplanation {
        level,
        summary: summary(nested),
        findings: findings::of(cpu, nested),
        sections,
    }
}

fn summary(nested: Option<&NestedState>) -> String {
    let Some(nested) = nested else {
        return "No nested state: the backend has none.".into();
    };
    let flags = nested.flags();
    let text = if nested.smm().contains(SmmFlags::VMXON) {
        if nested.smm().contains(SmmFlags::GUEST_MODE) {
            "In SMM; the SMI interrupted L2."
        } else {
            "In SMM; the SMI interrupted L1 in VMX operation."
        }
    } else if flags.contains(Flags::GUEST_MODE | Flags::RUN_PENDING) {
        "L2 is loaded, its entry is pending: it has not run an instruction since VMLAUNCH or VMRESUME."
    } else if flags.contains(Flags::GUEST_MODE | Flags::MTF_PENDING) {
        "L2 runs; an MTF VM exit is pending."
    } else if flags.contains(Flags::GUEST_MODE) {
        "L2 runs."
    } else if nested.vmxon_pa().is_none() {
        "L1 runs outside VMX operation."
    } else if nested.vmcs12().is_none() {
        "L1 runs in VMX operation without a current VMCS."
    } else {
        "L1 runs in VMX operation with a current VMCS."
    };
    text.into()
}

fn header(nested: &NestedState) -> Section {
    let header = nested.header();
    let mut section = Section::new("Nested state (KVM_GET_NESTED_STATE)");
    section.owner = Some(Owner::L1);
    let flags: Vec<_> = header.flags().iter_names().map(|(name, _)| name).collect();
    section.note(
        "flags",
        format!("{:#x}", header.flags().bits()),
        flags.join(" | "),
    );
    if header.format() != 0 {
        section.note(
            "format",
            header.format().to_string(),
            "not VMX: what follows may mean nothing",
        );
    }
    let size_note = if header.size() as usize == nested.len() {
        String::new()
    } else {
        format!("but there are {} bytes", nested.len())
    };
    section.note("size", header.size().to_string(), size_note);
    let pointer =
        |pa: Option<nvmx_core::addr::L1Phys>| pa.map_or("none".into(), |pa| pa.to_string());
    section.add("vmxon_pa", pointer(header.vmxon_pa()));
    section.add("vmcs12_pa", pointer(header.vmcs12_pa()));
    if header.smm_flags().bits() != 0 {
        let names: Vec<_> = header
            .smm_flags()
            .iter_names()
            .map(|(name, _)| name)
            .collect();
        section.note(
            "smm.flags",
            format!("{:#x}", header.smm_flags().bits()),
            names.join(" | "),
        );
    }
    if let Some(deadline) = header.preemption_timer_deadline() {
        section.note(
            "preemption_timer_deadline",
            format!("{deadline:#x}"),
            format!(
                "L1's TSC {:#x} (units of 32 ticks)",
                deadline.wrapping_shl(5)
            ),
        );
    }
    section
}

fn registers(cpu: &CpuState, level: Level) -> Vec<Section> {
    let mut sections = Vec::new();
    if let Some(regs) = &cpu.regs {
        let mut section = Section::new("General-purpose registers");
        section.owner = Some(owner(Part::Regs, level));
        for four in Gpr::ALL.chunks(4) {
            let line: Vec<_> = four
                .iter()
                .map(|gpr| {
                    format!(
                        "{:<3} {:016x}",
                        format!("{gpr:?}").to_lowercase(),
                        regs.get(*gpr)
                    )
                })
                .collect();
            section.add("", line.join("  "));
        }
        section.hex("rip", regs.rip);
        section.hex("rflags", regs.rflags);
        sections.push(section);
    }
    if let Some(sregs) = &cpu.sregs {
        let mut section = Section::new("System registers");
        section.owner = Some(owner(Part::Sregs, level));
        for (name, value) in [
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("cr8", sregs.cr8),
            ("efer", sregs.efer),
            ("apic_base", sregs.apic_base),
        ] {
            section.hex(name, value);
        }
        for (name, segment) in [
            ("cs", &sregs.cs),
            ("ss", &sregs.ss),
            ("ds", &sregs.ds),
            ("es", &sregs.es),
            ("fs", &sregs.fs),
            ("gs", &sregs.gs),
            ("ldtr", &sregs.ldtr),
            ("tr", &sregs.tr),
        ] {
            section.add(
                name,
                format!(
                    "{:#06x} base {:#x} limit {:#x} access {:#x}",
                    segment.selector,
                    segment.base,
                    segment.limit,
                    segment.ar.bits()
                ),
            );
        }
        for (name, table) in [("gdtr", &sregs.gdtr), ("idtr", &sregs.idtr)] {
            section.add(
                name,
                format!("base {:#x} limit {:#x}", table.base, table.limit),
            );
        }
        sections.push(section);
    }
    if let Some(events) = &cpu.events {
        let mut section = Section::new("Events");
        section.owner = Some(owner(Part::Events, level));
        let words = format!("{events:?}");
        let set: Vec<_> = words
            .trim_start_matches("VcpuEvents { ")
            .trim_end_matches(" }")
            .split(", ")
            .filter(|word| {
                ![": false", ": 0", ": None"]
                    .iter()
                    .any(|nil| word.ends_with(nil))
            })
            .collect();
        section.add(
            "events",
            if set.is_empty() {
                "none".into()
            } else {
                set.join(", ")
            },
        );
        if let Some(state) = cpu.mp_state {
            section.add("mp_state", format!("{state:?}"));
        }
        sections.push(section);
    }
    if let Some(msrs) = &cpu.msrs {
        let mut section = Section::new("MSRs");
        for (number, value) in msrs.iter().filter(|(_, value)| **value != 0) {
            // Capability MSRs are in the file; sixteen lines of them help nobody here.
            if !(msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2).contains(number) {
                let whose = match msr_owner(*number, level) {
                    Owner::L1 => "L1's",
                    Owner::L2 => "L2's",
                    Owner::Shared => "shared",
                };
                let tsc = msrs.get(&msr::IA32_TIME_STAMP_COUNTER);
                let note = match (*number, tsc) {
                    (msr::IA32_TSC_DEADLINE, Some(tsc)) if value > tsc => {
                        format!("{whose}, due in {} ticks of L1's TSC", value - tsc)
                    }
                    (msr::IA32_TSC_DEADLINE, Some(_)) => format!("{whose}, passed already"),
                    _ => whose.to_owned(),
                };
                section.note(msr_key(*number), format!("{value:#x}"), note);
            }
        }
        sections.push(section);
    }
    if let Some(lapic) = &cpu.lapic {
        let mut section = Section::new("Local APIC");
        section.owner = Some(owner(Part::Lapic, level));
        for (number, register) in lapic.chunks(16).enumerate() {
            let value = register.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
            if value != 0 {
                section.hex(crate::rows::lapic_name(number * 16), value.into());
            }
        }
        sections.push(section);
    }
    sections
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.owner {
            Some(Owner::Shared) => writeln!(f, "{} [shared by L1 and L2]", self.title)?,
            Some(owner) => writeln!(f, "{} [{owner:?}'s]", self.title)?,
            None => writeln!(f, "{}", self.title)?,
        }
        let width = self
            .items
            .iter()
            .map(|item| item.name.len())
            .max()
            .unwrap_or(0);
        for item in &self.items {
            let line = if item.name.is_empty() {
                format!("  {}", item.value)
            } else {
                format!("  {:<width$}  {}", item.name, item.value)
            };
            if item.note.is_empty() {
                writeln!(f, "{}", line.trim_end())?;
            } else {
                writeln!(f, "{line}  {}", item.note)?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.origin)?;
        for (index, vcpu) in self.vcpus.iter().enumerate() {
            writeln!(f, "\nvCPU {index}: {}", vcpu.summary)?;
            for finding in &vcpu.findings {
                writeln!(f, "  ! {finding}")?;
            }
            for section in &vcpu.sections {
                write!(f, "\n{section}")?;
            }
        }
        Ok(())
    }
}
