//! A snapshot as a table of named values: what `diff` compares row by row.
//!
//! A row's path is `vcpu0.PART.NAME`. A part that was not captured has no rows and is not compared;
//! inside a captured part, a sparse row that is missing is zero.

use crate::document::msr_key;
use crate::hex::to_digits;
use crate::model::{Snapshot, VcpuSnapshot};
use nvmx_core::nested::NestedState;
use nvmx_core::vmx::Vmcs12;
use nvmx_core::x86::{CpuState, Gpr, Segment, Sregs, VcpuEvents};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(u64),
    /// Bytes; all zero if the row is missing.
    Bytes(Vec<u8>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number:#x}"),
            Self::Bytes(bytes) => f.write_str(&to_digits(bytes)),
        }
    }
}

/// The rows of a snapshot, and which parts it has.
#[derive(Debug, Clone, Default)]
pub struct Rows {
    /// Values by path.
    pub values: BTreeMap<String, Value>,
    /// Captured parts, as `vcpu0.msrs`.
    pub parts: BTreeSet<String>,
}

impl Rows {
    /// All vCPUs of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        Self::of_vcpus(&snapshot.vcpus)
    }

    /// All of these vCPUs.
    #[must_use]
    pub fn of_vcpus(vcpus: &[VcpuSnapshot]) -> Self {
        let mut rows = Self::default();
        for (index, vcpu) in vcpus.iter().enumerate() {
            let prefix = format!("vcpu{index}");
            rows.cpu(&prefix, &vcpu.cpu);
            if let Some(nested) = &vcpu.nested {
                rows.nested(&prefix, nested);
            }
        }
        rows
    }

    /// A number by its path.
    #[must_use]
    pub fn number(&self, path: &str) -> Option<u64> {
        match self.values.get(path) {
            Some(Value::Number(number)) => Some(*number),
            _ => None,
        }
    }

    /// The part that a path belongs to.
    #[must_use]
    pub fn part_of(path: &str) -> &str {
        let dot = |from: usize| path[from..].find('.').map(|at| from + at);
        match dot(0).and_then(|first| dot(first + 1)) {
            Some(second) => &path[..second],
            None => path,
        }
    }

    fn put(&mut self, part: &str, name: impl fmt::Display, value: impl Into<u64>) {
        self.values
            .insert(format!("{part}.{name}"), Value::Number(value.into()));
    }

    fn part(&mut self, prefix: &str, name: &str) -> String {
        let part = format!("{prefix}.{name}");
        self.parts.insert(part.clone());
        part
    }

    fn cpu(&mut self, prefix: &str, cpu: &CpuState) {
        if let Some(regs) = &cpu.regs {
            let part = self.part(prefix, "regs");
            for gpr in Gpr::ALL {
                self.put(&part, format!("{gpr:?}").to_lowercase(), regs.get(gpr));
            }
            self.put(&part, "rip", regs.rip);
            self.put(&part, "rflags", regs.rflags);
        }
        if let Some(sregs) = &cpu.sregs {
            let part = self.part(prefix, "sregs");
            self.sregs(&part, sregs);
        }
        if let Some(debug) = &cpu.debug {
            let part = self.part(prefix, "debug");
            for (number, value) in debug.db.iter().enumerate() {
                self.put(&part, format!("dr{number}"), *value);
            }
            self.put(&part, "dr6", debug.dr6);
            self.put(&part, "dr7", debug.dr7);
        }
        if let Some(xcr0) = cpu.xcr0 {
            let part = self.part(prefix, "xcr0");
            self.put(&part, "xcr0", xcr0);
        }
        if let Some(mp_state) = cpu.mp_state {
            let part = self.part(prefix, "mp_state");
            self.put(&part, "mp_state", mp_state as u32);
        }
        if let Some(tsc_khz) = cpu.tsc_khz {
            let part = self.part(prefix, "tsc_khz");
            self.put(&part, "tsc_khz", tsc_khz);
        }
        if let Some(events) = &cpu.events {
            let part = self.part(prefix, "events");
            self.events(&part, events);
        }
        if let Some(msrs) = &cpu.msrs {
            let part = self.part(prefix, "msrs");
            for (number, value) in msrs {
                self.put(&part, msr_key(*number), *value);
            }
        }
        if let Some(entries) = &cpu.cpuid {
            let part = self.part(prefix, "cpuid");
            for entry in entries {
                let leaf = if entry.subleaf_significant {
                    format!("{:#x}.{:#x}", entry.leaf, entry.subleaf)
                } else {
                    format!("{:#x}", entry.leaf)
                };
                for (register, value) in [
                    ("eax", entry.eax),
                    ("ebx", entry.ebx),
                    ("ecx", entry.ecx),
                    ("edx", entry.edx),
                ] {
                    self.put(&part, format!("{leaf}.{register}"), value);
                }
            }
        }
        if let Some(lapic) = &cpu.lapic {
            let part = self.part(prefix, "lapic");
            for (number, register) in lapic.chunks(16).enumerate() {
                // Each register is 32 bits in a slot of 16 bytes.
                let value = register.first_chunk().map_or(0, |b| u32::from_le_bytes(*b));
                self.put(&part, lapic_name(number * 16), value);
            }
        }
        if let Some(xsave) = &cpu.xsave {
            let part = self.part(prefix, "xsave");
            self.xsave(&part, xsave);
        }
    }

    fn sregs(&mut self, part: &str, sregs: &Sregs) {
        let segments: [(&str, &Segment); 8] = [
            ("es", &sregs.es),
            ("cs", &sregs.cs),
            ("ss", &sregs.ss),
            ("ds", &sregs.ds),
            ("fs", &sregs.fs),
            ("gs", &sregs.gs),
            ("ldtr", &sregs.ldtr),
            ("tr", &sregs.tr),
        ];
        for (name, segment) in segments {
            self.put(part, format!("{name}.selector"), segment.selector);
            self.put(part, format!("{name}.base"), segment.base);
            self.put(part, format!("{name}.limit"), segment.limit);
            self.put(part, format!("{name}.ar"), segment.ar.bits());
        }
        for (name, table) in [("gdtr", &sregs.gdtr), ("idtr", &sregs.idtr)] {
            self.put(part, format!("{name}.base"), table.base);
            self.put(part, format!("{name}.limit"), table.limit);
        }
        for (name, value) in [
            ("cr0", sregs.cr0),
            ("cr2", sregs.cr2),
            ("cr3", sregs.cr3),
            ("cr4", sregs.cr4),
            ("cr8", sregs.cr8),
            ("efer", sregs.efer),
            ("apic_base", sregs.apic_base),
            ("pdptrs_valid", sregs.pdptrs_valid.into()),
        ] {
            self.put(part, name, value);
        }
        for (number, value) in sregs.pdptrs.iter().enumerate() {
            self.put(part, format!("pdptr{number}"), *value);
        }
    }

    fn events(&mut self, part: &str, events: &VcpuEvents) {
        // An error code or payload that is absent is no zero: it gets a number above 32 bits.
        const ABSENT: u64 = 1 << 63;
        for (name, value) in [
            ("exception_injected", events.exception_injected.into()),
            ("exception_pending", events.exception_pending.into()),
            ("exception_vector", events.exception_vector.into()),
            (
                "exception_error_code",
                events.exception_error_code.map_or(ABSENT, u64::from),
            ),
            ("exception_payload", events.exception_payload.unwrap_or(0)),
            (
                "exception_has_payload",
                events.exception_payload.is_some().into(),
            ),
            ("interrupt_injected", events.interrupt_injected.into()),
            ("interrupt_vector", events.interrupt_vector.into()),
            ("interrupt_soft", events.interrupt_soft.into()),
            ("interrupt_shadow", events.interrupt_shadow.into()),
            ("nmi_injected", events.nmi_injected.into()),
            ("nmi_pending", events.nmi_pending.into()),
            ("nmi_masked", events.nmi_masked.into()),
            ("sipi_vector", events.sipi_vector.into()),
            ("smm", events.smm.into()),
            ("smi_pending", events.smi_pending.into()),
            ("smm_inside_nmi", events.smm_inside_nmi.into()),
            ("latched_init", events.latched_init.into()),
            ("triple_fault_pending", events.triple_fault_pending.into()),
        ] {
            self.put(part, name, value);
        }
    }

    /// The XSAVE area, standard format (SDM Vol. 1 "Layout of the XSAVE Area").
    fn xsave(&mut self, part: &str, area: &[u8]) {
        let number = |at: usize, length: usize| {
            let byte = |i: usize| u64::from(area.get(at + i).copied().unwrap_or(0));
            (0..length).map(|i| byte(i) << (8 * i)).sum::<u64>()
        };
        for (name, at, length) in [
            ("fcw", 0, 2),
            ("fsw", 2, 2),
            ("ftw", 4, 1),
            ("fop", 6, 2),
            ("fip", 8, 8),
            ("fdp", 16, 8),
            ("mxcsr", 24, 4),
            ("mxcsr_mask", 28, 4),
        ] {
            self.put(part, name, number(at, length));
        }
        let mut slice = |name: String, at: usize, length: usize| {
            let end = area.len().min(at + length);
            if let Some(bytes) = area.get(at..end)
                && bytes.iter().any(|byte| *byte != 0)
            {
                let mut bytes = bytes.to_vec();
                bytes.resize(length, 0);
                self.values
                    .insert(format!("{part}.{name}"), Value::Bytes(bytes));
            }
        };
        for i in 0..8 {
            slice(format!("st{i}"), 32 + 16 * i, 10);
        }
        for i in 0..16 {
            slice(format!("xmm{i}"), 160 + 16 * i, 16);
        }
        for at in (416..512).step_by(16) {
            slice(format!("software_available+{at:#x}"), at, 16);
        }
        for i in 0..16 {
            slice(format!("ymm{i}_high"), 576 + 16 * i, 16);
        }
        for at in (832..area.len()).step_by(64) {
            slice(format!("extended+{at:#x}"), at, 64);
        }
        if area.len() >= 576 {
            self.put(part, "xstate_bv", number(512, 8));
            self.put(part, "xcomp_bv", number(520, 8));
        }
    }

    fn nested(&mut self, prefix: &str, nested: &NestedState) {
        let part = self.part(prefix, "nested");
        let header = nested.header();
        let pointer = |pa: Option<nvmx_core::addr::L1Phys>| pa.map_or(u64::MAX, |pa| pa.0);
        self.put(&part, "flags", header.flags().bits());
        self.put(&part, "format", header.format());
        self.put(&part, "size", header.size());
        self.put(&part, "vmxon_pa", pointer(header.vmxon_pa()));
        self.put(&part, "vmcs12_pa", pointer(header.vmcs12_pa()));
        self.put(&part, "smm_flags", header.smm_flags().bits());
        self.put(&part, "vmx_flags", header.vmx_flags().bits());
        self.put(
            &part,
            "preemption_timer_deadline",
            header.preemption_timer_deadline_raw(),
        );
        let padding: Vec<u8> = header.padding().collect();
        self.bytes(&part, "header_padding", &padding);
        self.bytes(&part, "rest", nested.rest());
        for (name, region) in [
            ("vmcs12", nested.vmcs12()),
            ("shadow_vmcs12", nested.shadow_vmcs12()),
        ] {
            if let Some(region) = region {
                self.vmcs(&format!("{part}.{name}"), region);
            }
        }
    }

    fn bytes(&mut self, part: &str, name: impl fmt::Display, bytes: &[u8]) {
        if bytes.iter().any(|byte| *byte != 0) {
            self.values
                .insert(format!("{part}.{name}"), Value::Bytes(bytes.to_vec()));
        }
    }

    /// The rows of a VMCS region in memory, under the same names as those of the cached vmcs12.
    #[must_use]
    pub(crate) fn of_region(region: &Vmcs12) -> Self {
        let mut rows = Self::default();
        rows.vmcs("memory.nested.vmcs12", region);
        rows
    }

    fn vmcs(&mut self, path: &str, vmcs: &Vmcs12) {
        self.put(path, "revision", vmcs.revision());
        self.put(path, "shadow_indicator", vmcs.is_shadow());
        self.put(path, "abort", vmcs.abort());
        self.put(path, "launch_state", vmcs.launch_state_raw());
        for (field, value) in vmcs.iter() {
            self.put(path, field, value);
        }
        for gap in Vmcs12::gaps() {
            let at = gap.start;
            self.bytes(path, format!("padding+{at:#x}"), &vmcs.bytes()[gap]);
        }
    }
}

/// Registers of the local APIC by offset (SDM Vol. 3A "Local APIC Register Address Map").
pub(crate) fn lapic_name(offset: usize) -> String {
    match offset {
        0x20 => "ID".into(),
        0x30 => "VERSION".into(),
        0x80 => "TPR".into(),
        0x90 => "APR".into(),
        0xa0 => "PPR".into(),
        0xb0 => "EOI".into(),
        0xc0 => "RRD".into(),
        0xd0 => "LDR".into(),
        0xe0 => "DFR".into(),
        0xf0 => "SVR".into(),
        0x100..0x180 => format!("ISR{}", (offset - 0x100) / 16),
        0x180..0x200 => format!("TMR{}", (offset - 0x180) / 16),
        0x200..0x280 => format!("IRR{}", (offset - 0x200) / 16),
        0x280 => "ESR".into(),
        0x2f0 => "LVT_CMCI".into(),
        0x300 => "ICR_LOW".into(),
        0x310 => "ICR_HIGH".into(),
        0x320 => "LVT_TIMER".into(),
        0x330 => "LVT_THERMAL".into(),
        0x340 => "LVT_PERFORMANCE".into(),
        0x350 => "LVT_LINT0".into(),
        0x360 => "LVT_LINT1".into(),
        0x370 => "LVT_ERROR".into(),
        0x380 => "TIMER_INITIAL_COUNT".into(),
        0x390 => "TIMER_CURRENT_COUNT".into(),
        0x3e0 => "TIMER_DIVIDE".into(),
        _ => format!("{offset:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_name_their_part() {
        assert_eq!(Rows::part_of("vcpu0.msrs.IA32_EFER"), "vcpu0.msrs");
        assert_eq!(
            Rows::part_of("vcpu0.nested.vmcs12.GUEST_RIP"),
            "vcpu0.nested"
        );
        assert_eq!(Rows::part_of("memory"), "memory");
    }
}
