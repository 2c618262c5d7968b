//! What differs between two outcomes of a case, and which differences have an explanation.

use crate::case::Case;
use crate::explain;
use crate::layout::status;
use crate::wire::{Outcome, Record};
use nvmx_core::vmx::Vmcs12;
use nvmx_core::vmx::vmcs12::Layout;
use std::collections::BTreeSet;
use std::fmt;

/// One difference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// What: a field's name, `outcome`, or one of [`Record::others`].
    pub what: String,
    /// On the model.
    pub left: u64,
    /// On the other.
    pub right: u64,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:#x} and {:#x}", self.what, self.left, self.right)
    }
}

/// The name of a difference in how the entries ended.
pub const OUTCOME: &str = "outcome";

/// Two outcomes of one case.
#[derive(Clone, Copy)]
pub struct Pair<'a> {
    /// The case.
    pub case: &'a Case,
    /// The VMCS before the entry.
    pub before: &'a Vmcs12,
    /// The model's.
    pub left: &'a Record,
    /// The other's.
    pub right: &'a Record,
}

/// The verdict on a case.
#[derive(Debug, Clone, Default)]
pub struct Verdict {
    /// Explanations that were needed, by id.
    pub explained: Vec<&'static str>,
    /// What nothing explains.
    pub unexplained: Vec<Difference>,
    /// Every difference by name, with the explanation that it has.
    pub all: Vec<(String, Option<&'static str>)>,
    /// What both, or each, came to.
    pub summary: [String; 2],
}

impl Verdict {
    /// Whether anything is left.
    #[must_use]
    pub fn agrees(&self) -> bool {
        self.unexplained.is_empty()
    }
}

/// Compares two outcomes.
#[must_use]
pub fn judge(
    case: &Case,
    before: &Vmcs12,
    left: &Outcome,
    right: &Outcome,
    against: explain::Against,
) -> Verdict {
    let mut verdict = Verdict {
        summary: [left.summary(), right.summary()],
        ..Verdict::default()
    };
    let (Outcome::Record(left), Outcome::Record(right)) = (left, right) else {
        let id = explain::stopped(case, before, left, right);
        if let Some(id) = id {
            verdict.explained.push(id);
        } else if left != right {
            verdict.unexplained.push(Difference {
                what: OUTCOME.into(),
                left: 0,
                right: 0,
            });
        }
        if left != right {
            verdict.all.push((OUTCOME.into(), id));
        }
        return verdict;
    };
    let pair = Pair {
        case,
        before,
        left,
        right,
    };
    for difference in differences(left, right) {
        let id = explain::field(&pair, &difference, against);
        verdict.all.push((difference.what.clone(), id));
        match id {
            Some(id) if verdict.explained.contains(&id) => {}
            Some(id) => verdict.explained.push(id),
            None => verdict.unexplained.push(difference),
        }
    }
    verdict
}

/// Everything that differs; if the way the entries ended differs, just that.
fn differences(left: &Record, right: &Record) -> Vec<Difference> {
    let difference = |what: String, left, right| Difference { what, left, right };
    let reason = |record: &Record| {
        let field = nvmx_core::vmx::Field::VM_EXIT_REASON;
        if record.status == status::EXIT {
            record.vmcs12.get(field)
        } else {
            0
        }
    };
    let ended = |record: &Record| u64::from(record.status) << 32 | reason(record);
    if ended(left) != ended(right) {
        return vec![difference(OUTCOME.into(), ended(left), ended(right))];
    }
    let fields = Layout::Linux6_1.fields().filter_map(|field| {
        let (a, b) = (left.vmcs12.get(field), right.vmcs12.get(field));
        (a != b).then(|| difference(field.to_string(), a, b))
    });
    let addresses: BTreeSet<_> = left.changes.keys().chain(right.changes.keys()).collect();
    let memory: Vec<_> = addresses
        .into_iter()
        .filter_map(|address| {
            let flipped =
                |record: &Record| record.changes.get(address).copied().unwrap_or_default();
            let (a, b) = (flipped(left), flipped(right));
            (a != b).then(|| difference(format!("flipped {address:#x}"), a, b))
        })
        .collect();
    // The words that changed say it all, if all are there; and if one of those that are differs, so does the digest.
    let is_whole = [left, right]
        .iter()
        .all(|record| record.changes.len() < crate::layout::record::MAX_CHANGES);
    let says_it = is_whole || !memory.is_empty();
    let others = left.others().zip(right.others()).filter(|((what, _), _)| {
        !(says_it && matches!(what.as_str(), "words changed" | "digest of changes"))
    });
    fields
        .chain(memory)
        .chain(
            others
                .filter(|(a, b)| a != b)
                .map(|((what, a), (_, b))| difference(what, a, b)),
        )
        .collect()
}
