//! `CpuState` as the text file shows it: registers by name, numbers in hexadecimal.

use crate::hex::{Hex, Sparse, inline_each_option, inline_option};
use crate::limits::MAX_AREA;
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::{
    AccessRights, CpuState, DebugRegs, DescriptorTable, MpState, Regs, Segment, Sregs, VcpuEvents,
    msr,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One vCPU's state, nested state apart.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CpuDoc {
    #[serde(skip_serializing_if = "Option::is_none")]
    regs: Option<RegsDoc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sregs: Option<SregsDoc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<DebugDoc>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xcr0: Option<Hex>,
    #[serde(skip_serializing_if = "Option::is_none")]
    events: Option<VcpuEvents>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mp_state: Option<MpState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tsc_khz: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    msrs: Option<BTreeMap<String, Hex>>,
    #[serde(
        skip_serializing_if = "Option::is_none",
        serialize_with = "inline_each_option"
    )]
    cpuid: Option<Vec<CpuidDoc>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lapic: Option<Sparse>,
    #[serde(skip_serializing_if = "Option::is_none")]
    xsave: Option<Sparse>,
}

macro_rules! register_doc {
    ($name:ident { $($field:ident),* $(,)? }) => {
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name { $($field: Hex),* }
    };
}

register_doc!(RegsDoc {
    rax,
    rcx,
    rdx,
    rbx,
    rsp,
    rbp,
    rsi,
    rdi,
    r8,
    r9,
    r10,
    r11,
    r12,
    r13,
    r14,
    r15,
    rip,
    rflags,
});
register_doc!(DebugDoc {
    dr0,
    dr1,
    dr2,
    dr3,
    dr6,
    dr7
});
register_doc!(SegmentDoc {
    selector,
    base,
    limit,
    ar
});
register_doc!(TableDoc { base, limit });

/// A CPUID row. `any` says that the leaf answers for every ECX.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct CpuidDoc {
    leaf: Hex,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subleaf: Option<Hex>,
    /// A number in the place of the subleaf that is not significant, kept for identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    index: Option<Hex>,
    eax: Hex,
    ebx: Hex,
    ecx: Hex,
    edx: Hex,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SregsDoc {
    #[serde(serialize_with = "crate::hex::inline")]
    es: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    cs: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    ss: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    ds: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    fs: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    gs: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    ldtr: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    tr: SegmentDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    gdtr: TableDoc,
    #[serde(serialize_with = "crate::hex::inline")]
    idtr: TableDoc,
    cr0: Hex,
    cr2: Hex,
    cr3: Hex,
    cr4: Hex,
    cr8: Hex,
    efer: Hex,
    apic_base: Hex,
    /// Present where they are meaningful.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "inline_option"
    )]
    pdptrs: Option<[Hex; 4]>,
    /// Left-over values of the PDPTE registers where they are not meaningful.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        serialize_with = "inline_option"
    )]
    stale_pdptrs: Option<[Hex; 4]>,
}

/// A number that must fit a narrower register.
fn narrow<T: TryFrom<u64>>(field: &str, value: Hex) -> Result<T, String> {
    T::try_from(value.0).map_err(|_| {
        format!(
            "{field}: {:#x} does not fit {} bits",
            value.0,
            size_of::<T>() * 8
        )
    })
}

impl From<&Regs> for RegsDoc {
    fn from(regs: &Regs) -> Self {
        let [
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        ] = regs.gpr.map(Hex);
        let (rip, rflags) = (Hex(regs.rip), Hex(regs.rflags));
        Self {
            rax,
            rcx,
            rdx,
            rbx,
            rsp,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
            rip,
            rflags,
        }
    }
}

impl From<&RegsDoc> for Regs {
    fn from(doc: &RegsDoc) -> Self {
        let gpr = [
            doc.rax, doc.rcx, doc.rdx, doc.rbx, doc.rsp, doc.rbp, doc.rsi, doc.rdi, doc.r8, doc.r9,
            doc.r10, doc.r11, doc.r12, doc.r13, doc.r14, doc.r15,
        ];
        Self {
            gpr: gpr.map(|value| value.0),
            rip: doc.rip.0,
            rflags: doc.rflags.0,
        }
    }
}

impl From<&Segment> for SegmentDoc {
    fn from(segment: &Segment) -> Self {
        Self {
            selector: Hex(segment.selector.into()),
            base: Hex(segment.base),
            limit: Hex(segment.limit.into()),
            ar: Hex(segment.ar.bits().into()),
        }
    }
}

impl SegmentDoc {
    fn read(&self, name: &str) -> Result<Segment, String> {
        Ok(Segment {
            selector: narrow(&format!("{name}.selector"), self.selector)?,
            base: self.base.0,
            limit: narrow(&format!("{name}.limit"), self.limit)?,
            ar: AccessRights::from_bits_retain(narrow(&format!("{name}.ar"), self.ar)?),
        })
    }
}

impl From<&DescriptorTable> for TableDoc {
    fn from(table: &DescriptorTable) -> Self {
        Self {
            base: Hex(table.base),
            limit: Hex(table.limit.into()),
        }
    }
}

impl TableDoc {
    fn read(&self, name: &str) -> Result<DescriptorTable, String> {
        Ok(DescriptorTable {
            base: self.base.0,
            limit: narrow(&format!("{name}.limit"), self.limit)?,
        })
    }
}

impl From<&Sregs> for SregsDoc {
    fn from(sregs: &Sregs) -> Self {
        let pdptrs = sregs.pdptrs.map(Hex);
        let stale = !sregs.pdptrs_valid && sregs.pdptrs != [0; 4];
        Self {
            es: (&sregs.es).into(),
            cs: (&sregs.cs).into(),
            ss: (&sregs.ss).into(),
            ds: (&sregs.ds).into(),
            fs: (&sregs.fs).into(),
            gs: (&sregs.gs).into(),
            ldtr: (&sregs.ldtr).into(),
            tr: (&sregs.tr).into(),
            gdtr: (&sregs.gdtr).into(),
            idtr: (&sregs.idtr).into(),
            cr0: Hex(sregs.cr0),
            cr2: Hex(sregs.cr2),
            cr3: Hex(sregs.cr3),
            cr4: Hex(sregs.cr4),
            cr8: Hex(sregs.cr8),
            efer: Hex(sregs.efer),
            apic_base: Hex(sregs.apic_base),
            pdptrs: sregs.pdptrs_valid.then_some(pdptrs),
            stale_pdptrs: stale.then_some(pdptrs),
        }
    }
}

impl SregsDoc {
    fn read(&self) -> Result<Sregs, String> {
        if self.pdptrs.is_some() && self.stale_pdptrs.is_some() {
            return Err("sregs: pdptrs and stale_pdptrs exclude each other".into());
        }
        let pdptrs = self.pdptrs.or(self.stale_pdptrs).unwrap_or_default();
        Ok(Sregs {
            es: self.es.read("es")?,
            cs: self.cs.read("cs")?,
            ss: self.ss.read("ss")?,
            ds: self.ds.read("ds")?,
            fs: self.fs.read("fs")?,
            gs: self.gs.read("gs")?,
            ldtr: self.ldtr.read("ldtr")?,
            tr: self.tr.read("tr")?,
            gdtr: self.gdtr.read("gdtr")?,
            idtr: self.idtr.read("idtr")?,
            cr0: self.cr0.0,
            cr2: self.cr2.0,
            cr3: self.cr3.0,
            cr4: self.cr4.0,
            cr8: self.cr8.0,
            efer: self.efer.0,
            apic_base: self.apic_base.0,
            pdptrs: pdptrs.map(|entry| entry.0),
            pdptrs_valid: self.pdptrs.is_some(),
        })
    }
}

impl From<&CpuidEntry> for CpuidDoc {
    fn from(entry: &CpuidEntry) -> Self {
        let subleaf = Hex(entry.subleaf.into());
        Self {
            leaf: Hex(entry.leaf.into()),
            subleaf: entry.subleaf_significant.then_some(subleaf),
            index: (!entry.subleaf_significant && entry.subleaf != 0).then_some(subleaf),
            eax: Hex(entry.eax.into()),
            ebx: Hex(entry.ebx.into()),
            ecx: Hex(entry.ecx.into()),
            edx: Hex(entry.edx.into()),
        }
    }
}

impl CpuidDoc {
    fn read(&self) -> Result<CpuidEntry, String> {
        let place = |register| format!("cpuid leaf {:#x}: {register}", self.leaf.0);
        let subleaf = self.subleaf.or(self.index).unwrap_or_default();
        Ok(CpuidEntry {
            leaf: narrow("cpuid: leaf", self.leaf)?,
            subleaf: narrow(&place("subleaf"), subleaf)?,
            subleaf_significant: self.subleaf.is_some(),
            eax: narrow(&place("eax"), self.eax)?,
            ebx: narrow(&place("ebx"), self.ebx)?,
            ecx: narrow(&place("ecx"), self.ecx)?,
            edx: narrow(&place("edx"), self.edx)?,
        })
    }
}

/// `IA32_EFER`, or `0x123` for an MSR without a name.
pub(crate) fn msr_key(number: u32) -> String {
    msr::name(number).map_or_else(|| format!("{number:#x}"), str::to_owned)
}

fn msr_number(key: &str) -> Result<u32, String> {
    if let Some(number) = msr::ALL.iter().find(|n| msr::name(**n) == Some(key)) {
        return Ok(*number);
    }
    key.strip_prefix("0x")
        .and_then(|digits| u32::from_str_radix(digits, 16).ok())
        .ok_or_else(|| {
            format!("msrs: {key:?} is neither the name of an MSR nor a number like 0x1d9")
        })
}

impl From<&CpuState> for CpuDoc {
    fn from(cpu: &CpuState) -> Self {
        Self {
            regs: cpu.regs.as_ref().map(Into::into),
            sregs: cpu.sregs.as_ref().map(Into::into),
            debug: cpu.debug.as_ref().map(|debug| {
                let [dr0, dr1, dr2, dr3] = debug.db.map(Hex);
                let (dr6, dr7) = (Hex(debug.dr6), Hex(debug.dr7));
                DebugDoc {
                    dr0,
                    dr1,
                    dr2,
                    dr3,
                    dr6,
                    dr7,
                }
            }),
            xcr0: cpu.xcr0.map(Hex),
            events: cpu.events,
            mp_state: cpu.mp_state,
            tsc_khz: cpu.tsc_khz,
            msrs: cpu
                .msrs
                .as_ref()
                .map(|msrs| msrs.iter().map(|(n, v)| (msr_key(*n), Hex(*v))).collect()),
            cpuid: cpu
                .cpuid
                .as_ref()
                .map(|rows| rows.iter().map(Into::into).collect()),
            lapic: cpu.lapic.as_deref().map(Sparse::from_bytes),
            xsave: cpu.xsave.as_deref().map(Sparse::from_bytes),
        }
    }
}

impl CpuDoc {
    /// Whether nothing was captured.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The state, or which field is wrong and why.
    pub(super) fn read(&self) -> Result<CpuState, String> {
        let mut msrs = None;
        for (key, value) in self.msrs.iter().flatten() {
            let number = msr_number(key)?;
            let all: &mut BTreeMap<u32, u64> = msrs.get_or_insert_default();
            if all.insert(number, value.0).is_some() {
                return Err(format!(
                    "msrs: {key} stands there twice, by name and by number"
                ));
            }
        }
        let area = |name: &str, area: &Option<Sparse>| {
            area.as_ref()
                .map(|area| area.to_bytes(MAX_AREA))
                .transpose()
                .map_err(|reason| format!("{name}: {reason}"))
        };
        Ok(CpuState {
            cpuid: self
                .cpuid
                .as_ref()
                .map(|rows| rows.iter().map(CpuidDoc::read).collect())
                .transpose()?,
            tsc_khz: self.tsc_khz,
            sregs: self.sregs.as_ref().map(SregsDoc::read).transpose()?,
            msrs: msrs.or_else(|| self.msrs.as_ref().map(|_| BTreeMap::new())),
            xcr0: self.xcr0.map(|value| value.0),
            xsave: area("xsave", &self.xsave)?,
            events: self.events,
            mp_state: self.mp_state,
            debug: self.debug.as_ref().map(|doc| DebugRegs {
                db: [doc.dr0, doc.dr1, doc.dr2, doc.dr3].map(|value| value.0),
                dr6: doc.dr6.0,
                dr7: doc.dr7.0,
            }),
            regs: self.regs.as_ref().map(Into::into),
            lapic: area("lapic", &self.lapic)?,
        })
    }
}
