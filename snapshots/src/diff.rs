//! Two snapshots side by side: every difference with its kind and, where one is known, its reason.

use crate::model::Snapshot;
use crate::pages::{PAGE, PageStore};
use crate::policy::{self, Class, Situation};
use crate::rows::{Rows, Value};
use nvmx_core::addr::PAGE_SIZE;
use nvmx_core::vmx::Vmcs12;
use nvmx_core::vmx::vmcs12::VMCS12_REVISION;
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt;

/// One row that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `vcpu0.nested.vmcs12.GUEST_RIP`.
    pub path: String,
    /// Value on the left, as text; absent if there is none.
    pub left: Option<String>,
    /// Value on the right.
    pub right: Option<String>,
    /// Kind.
    pub class: Class,
    /// Name of the policy that says so.
    pub policy: Option<&'static str>,
    /// Its reason.
    pub reason: Option<&'static str>,
}

/// A run of pages that differ.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PageRange {
    /// Address of the first byte.
    pub address: u64,
    /// Number of pages.
    pub pages: u64,
    /// Address of the first byte that differs.
    pub first: u64,
    /// That byte on the left and on the right.
    pub bytes: (u8, u8),
    /// Kind.
    pub class: Class,
    /// Name of the policy that says so.
    pub policy: Option<&'static str>,
    /// Its reason.
    pub reason: Option<&'static str>,
}

/// All that differs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Diff {
    /// Rows.
    pub rows: Vec<Difference>,
    /// Memory.
    pub memory: Vec<PageRange>,
    /// Parts that one side did not capture, with the side that has them.
    pub not_compared: Vec<String>,
}

const VMCS_REGION: (&str, &str) = (
    "vmcs-region",
    "a VMCS region in memory is the processor's: KVM writes its cached vmcs12 there when it must (SDM Vol. 3C \"Software Use of Virtual-Machine Control Structures\"); the cached copy is compared field by field",
);

impl Diff {
    /// Compares two snapshots.
    #[must_use]
    pub fn of(left: &Snapshot, right: &Snapshot) -> Self {
        let mut diff = Self::of_rows(&Rows::of(left), &Rows::of(right));
        match (&left.memory, &right.memory) {
            (Some(a), Some(b)) => {
                let regions = vmcs_regions(left)
                    .union(&vmcs_regions(right))
                    .copied()
                    .collect();
                diff.memory = memory(a, b, &regions);
                if a.memory_size() != b.memory_size() {
                    diff.rows.push(Difference {
                        path: "memory.size".into(),
                        left: Some(format!("{:#x}", a.memory_size())),
                        right: Some(format!("{:#x}", b.memory_size())),
                        class: Class::Architectural,
                        policy: None,
                        reason: None,
                    });
                }
            }
            (Some(_), None) => diff.not_compared.push("memory (left only)".into()),
            (None, Some(_)) => diff.not_compared.push("memory (right only)".into()),
            (None, None) => {}
        }
        if left.vcpus.len() != right.vcpus.len() {
            diff.rows.push(Difference {
                path: "vcpus".into(),
                left: Some(left.vcpus.len().to_string()),
                right: Some(right.vcpus.len().to_string()),
                class: Class::Architectural,
                policy: None,
                reason: None,
            });
        }
        diff
    }

    /// Compares the rows alone.
    #[must_use]
    pub fn of_rows(left: &Rows, right: &Rows) -> Self {
        let mut diff = Self::default();
        for (side, parts, others) in [
            ("left", &left.parts, &right.parts),
            ("right", &right.parts, &left.parts),
        ] {
            let only = parts.difference(others);
            diff.not_compared
                .extend(only.map(|part| format!("{part} ({side} only)")));
        }
        let paths: BTreeSet<&String> = left.values.keys().chain(right.values.keys()).collect();
        for path in paths {
            let part = Rows::part_of(path);
            if !left.parts.contains(part) || !right.parts.contains(part) {
                continue;
            }
            let (a, b) = (left.values.get(path), right.values.get(path));
            if same(a, b) {
                continue;
            }
            let (vcpu, name) = path.split_once('.').unwrap_or(("", path));
            let policy = policy::explain(&Situation {
                name,
                vcpu,
                left: a,
                right: b,
                left_rows: left,
                right_rows: right,
            });
            diff.rows.push(Difference {
                path: path.clone(),
                left: a.map(Value::to_string),
                right: b.map(Value::to_string),
                class: policy.map_or(Class::Architectural, |policy| policy.class),
                policy: policy.map(|policy| policy.id),
                reason: policy.map(|policy| policy.reason),
            });
        }
        diff
    }

    /// Whether there is no difference at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.memory.is_empty()
    }

    /// Number of differences that nothing explains.
    #[must_use]
    pub fn unexplained(&self) -> usize {
        let rows = self.rows.iter().filter(|row| row.class.is_unexplained());
        let memory = self
            .memory
            .iter()
            .filter(|range| range.class.is_unexplained());
        rows.count() + memory.count()
    }
}

/// Equal, or one missing where the other is all zero bytes.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let zero =
        |value: &Value| matches!(value, Value::Bytes(bytes) if bytes.iter().all(|b| *b == 0));
    match (a, b) {
        (Some(Value::Bytes(a)), Some(Value::Bytes(b))) => {
            let common = a.len().min(b.len());
            a[..common] == b[..common] && a[common..].iter().chain(&b[common..]).all(|b| *b == 0)
        }
        (Some(a), Some(b)) => a == b,
        (Some(one), None) | (None, Some(one)) => zero(one),
        (None, None) => true,
    }
}

/// Pages that hold the VMXON region, the current vmcs12 or its shadow.
fn vmcs_regions(snapshot: &Snapshot) -> BTreeSet<u64> {
    use nvmx_core::vmx::Field;
    let nested = snapshot
        .vcpus
        .iter()
        .filter_map(|vcpu| vcpu.nested.as_ref());
    nested
        .flat_map(|nested| {
            let link = nested
                .vmcs12()
                .map(|vmcs| vmcs.get(Field::VMCS_LINK_POINTER));
            [
                nested.vmxon_pa().map(|pa| pa.0),
                nested.vmcs12_pa().map(|pa| pa.0),
                link.filter(|link| *link != u64::MAX),
            ]
        })
        .flatten()
        .map(|address| address / PAGE_SIZE)
        .collect()
}

/// Whether a page holds a VMCS region on both sides (by its revision) and differs only in fields that
/// the table of known divergences explains: one that was current once and was written out.
fn is_explained_region(left: &[u8; PAGE], right: &[u8; PAGE]) -> bool {
    let region = |bytes| {
        let vmcs = Vmcs12::from_bytes(bytes);
        (vmcs.revision() == VMCS12_REVISION).then(|| Rows::of_region(&vmcs))
    };
    let (Some(left), Some(right)) = (region(left), region(right)) else {
        return false;
    };
    Diff::of_rows(&left, &right).unexplained() == 0
}

fn memory(left: &PageStore, right: &PageStore, regions: &BTreeSet<u64>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for page in left.changed_pages(right) {
        let (a, b) = (left.page(page), right.page(page));
        let is_region = regions.contains(&page) || is_explained_region(a, b);
        let class = if is_region {
            Class::Implementation
        } else {
            Class::Architectural
        };
        if let Some(last) = ranges.last_mut()
            && last.address / PAGE_SIZE + last.pages == page
            && last.class == class
        {
            last.pages += 1;
            continue;
        }
        let at = (0..PAGE).find(|at| a[*at] != b[*at]).unwrap_or(0);
        ranges.push(PageRange {
            address: page * PAGE_SIZE,
            pages: 1,
            first: page * PAGE_SIZE + at as u64,
            bytes: (a[at], b[at]),
            class,
            policy: is_region.then_some(VMCS_REGION.0),
            reason: is_region.then_some(VMCS_REGION.1),
        });
    }
    ranges
}

impl fmt::Display for Diff {
    /// Unexplained differences first, then the others by kind with their reasons.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let none = || "(absent)".to_owned();
        for class in [
            Class::Architectural,
            Class::Explained,
            Class::Implementation,
            Class::Time,
            Class::NotCaptured,
        ] {
            let rows: Vec<_> = self.rows.iter().filter(|row| row.class == class).collect();
            let memory: Vec<_> = self
                .memory
                .iter()
                .filter(|range| range.class == class)
                .collect();
            if rows.is_empty() && memory.is_empty() {
                continue;
            }
            writeln!(f, "{} ({}):", class.name(), rows.len() + memory.len())?;
            if class == Class::NotCaptured {
                // By the dozen, and each says no more than its name.
                let names: Vec<&str> = rows.iter().map(|row| row.path.as_str()).collect();
                writeln!(f, "  {}", names.join(", "))?;
                continue;
            }
            for row in rows {
                let left = row.left.clone().unwrap_or_else(none);
                let right = row.right.clone().unwrap_or_else(none);
                writeln!(f, "  {:<48} {left} -> {right}", row.path)?;
                if let (Some(id), Some(reason)) = (row.policy, row.reason) {
                    writeln!(f, "      {id}: {reason}")?;
                }
            }
            for range in memory {
                writeln!(
                    f,
                    "  memory {:#x}, {} page{}: first at {:#x}: {:#04x} -> {:#04x}",
                    range.address,
                    range.pages,
                    if range.pages == 1 { "" } else { "s" },
                    range.first,
                    range.bytes.0,
                    range.bytes.1
                )?;
                if let (Some(id), Some(reason)) = (range.policy, range.reason) {
                    writeln!(f, "      {id}: {reason}")?;
                }
            }
        }
        for part in &self.not_compared {
            writeln!(f, "not compared: {part}")?;
        }
        match (self.is_empty(), self.unexplained()) {
            (true, _) => writeln!(f, "no difference"),
            (false, 0) => writeln!(f, "every difference is explained"),
            (false, 1) => writeln!(f, "1 unexplained difference"),
            (false, count) => writeln!(f, "{count} unexplained differences"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::nested::NestedState;
    use nvmx_core::vmx::{Field, Vmcs12};
    use nvmx_core::x86::{AccessRights, Regs, Sregs};
    use std::collections::BTreeMap;

    fn sample() -> Snapshot {
        let mut nested = NestedState::default();
        nested.set_regions(Some(Vmcs12::new()), None);
        let mut snapshot = Snapshot::of_nested(nested);
        let cpu = &mut snapshot.vcpus[0].cpu;
        cpu.regs = Some(Regs::default());
        cpu.sregs = Some(Sregs::default());
        cpu.msrs = Some(BTreeMap::from([(0x10, 5), (0xc000_0080, 0)]));
        snapshot.memory = Some(PageStore::new(1 << 20));
        snapshot
    }

    /// The class of the one difference that an edit makes.
    fn class_of(edit: impl FnOnce(&mut Snapshot)) -> Class {
        let (left, mut right) = (sample(), sample());
        edit(&mut right);
        let diff = Diff::of(&left, &right);
        assert_eq!(diff.rows.len() + diff.memory.len(), 1, "{diff}");
        diff.rows
            .first()
            .map(|row| row.class)
            .unwrap_or_else(|| diff.memory[0].class)
    }

    fn nested(snapshot: &mut Snapshot) -> &mut NestedState {
        snapshot.vcpus[0].nested.as_mut().unwrap()
    }

    fn vmcs12(snapshot: &mut Snapshot) -> &mut Vmcs12 {
        nested(snapshot).vmcs12_mut().unwrap()
    }

    fn sregs(snapshot: &mut Snapshot) -> &mut Sregs {
        snapshot.vcpus[0].cpu.sregs.as_mut().unwrap()
    }

    #[test]
    fn equal_snapshots_have_no_difference() {
        assert!(Diff::of(&sample(), &sample()).is_empty());
    }

    #[test]
    fn each_kind_of_difference_is_told_apart() {
        use Class::{Architectural, Implementation, Time};
        assert_eq!(
            class_of(|s| vmcs12(s).set(Field::GUEST_RIP, 1)),
            Architectural
        );
        assert_eq!(class_of(|s| vmcs12(s).set_abort(1)), Implementation);
        assert_eq!(
            class_of(|s| vmcs12(s).bytes_mut()[2000] = 1),
            Implementation
        );
        assert_eq!(
            class_of(|s| s.vcpus[0].cpu.regs.as_mut().unwrap().rip = 1),
            Architectural
        );
        let msrs = |s: &mut Snapshot, n, v| s.vcpus[0].cpu.msrs.as_mut().unwrap().insert(n, v);
        assert_eq!(class_of(|s| _ = msrs(s, 0x10, 6)), Time);
        assert_eq!(class_of(|s| _ = msrs(s, 0xc000_0080, 1)), Architectural);
        assert_eq!(class_of(|s| _ = msrs(s, 0x1d9, 1)), Class::NotCaptured);
        assert_eq!(
            class_of(|s| s.memory.as_mut().unwrap().set(3, &[1; PAGE])),
            Architectural
        );
    }

    #[test]
    fn a_timer_value_is_time_only_while_the_timer_is_active() {
        let edit = |s: &mut Snapshot| vmcs12(s).set(Field::VMX_PREEMPTION_TIMER_VALUE, 9);
        assert_eq!(class_of(edit), Class::Architectural);
        let (mut left, mut right) = (sample(), sample());
        for side in [&mut left, &mut right] {
            vmcs12(side).set(Field::PIN_BASED_VM_EXEC_CONTROL, 1 << 6);
        }
        edit(&mut right);
        assert_eq!(Diff::of(&left, &right).rows[0].class, Class::Time);
    }

    #[test]
    fn segment_policies_are_no_wider_than_their_reasons() {
        let ar = AccessRights::from_bits_retain;
        assert_eq!(class_of(|s| sregs(s).cs.ar = ar(1)), Class::Explained);
        assert_eq!(class_of(|s| sregs(s).cs.ar = ar(2)), Class::Architectural);
        assert_eq!(
            class_of(|s| sregs(s).cs.ar = ar(0x81)),
            Class::Architectural
        );
        let unusable = |edit: fn(&mut Snapshot)| {
            let (mut left, mut right) = (sample(), sample());
            for side in [&mut left, &mut right] {
                sregs(side).fs.ar = ar(1 << 16);
                vmcs12(side).set(Field::GUEST_DS_AR_BYTES, 1 << 16);
            }
            edit(&mut right);
            Diff::of(&left, &right).rows[0].class
        };
        assert_eq!(unusable(|s| sregs(s).fs.limit = 9), Class::Explained);
        assert_eq!(unusable(|s| sregs(s).fs.base = 9), Class::Architectural);
        assert_eq!(unusable(|s| sregs(s).fs.selector = 9), Class::Architectural);
        assert_eq!(
            unusable(|s| vmcs12(s).set(Field::GUEST_DS_LIMIT, 9)),
            Class::Explained
        );
        assert_eq!(
            unusable(|s| vmcs12(s).set(Field::GUEST_ES_LIMIT, 9)),
            Class::Architectural
        );
    }

    #[test]
    fn the_vmcs_region_in_memory_is_not_the_guests_business() {
        let (mut left, mut right) = (sample(), sample());
        for side in [&mut left, &mut right] {
            nested(side)
                .header_mut()
                .set_vmcs12_pa(Some(nvmx_core::addr::L1Phys(0x3000)));
        }
        for page in [3, 4] {
            right.memory.as_mut().unwrap().set(page, &[1; PAGE]);
        }
        let diff = Diff::of(&left, &right);
        assert_eq!(diff.memory[0].class, Class::Implementation);
        assert_eq!(diff.memory[1].class, Class::Architectural);
        assert_eq!(diff.unexplained(), 1);
    }

    #[test]
    fn what_one_side_lacks_is_named() {
        let full = sample();
        let mut part = sample();
        part.vcpus[0].cpu = Default::default();
        part.memory = None;
        let diff = Diff::of(&part, &full);
        assert!(diff.is_empty());
        assert_eq!(
            diff.not_compared,
            [
                "vcpu0.msrs (right only)",
                "vcpu0.regs (right only)",
                "vcpu0.sregs (right only)",
                "memory (right only)"
            ]
        );
    }
}
