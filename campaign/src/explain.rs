//! Differences that have an explanation, as rows.

use crate::judge::{Difference, Pair};
use crate::wire::Outcome;

/// Whom the model is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Against {
    /// Real KVM, in the lab on Bochs.
    Kvm,
    /// Bochs' own VMX.
    Bochs,
}

/// One class of differences.
pub struct Row {
    /// Its name.
    pub id: &'static str,
    /// Against whom.
    pub against: &'static [Against],
    /// What explains it, with the source.
    pub reason: &'static str,
    /// Whether the difference is of this class.
    holds: fn(&Pair<'_>, &Difference) -> bool,
}

/// All rows that explain single fields.
pub static ROWS: &[Row] = &[];

/// The row that explains a difference.
pub(crate) fn field(pair: &Pair<'_>, difference: &Difference, against: Against) -> Option<&'static str> {
    ROWS.iter()
        .find(|row| row.against.contains(&against) && (row.holds)(pair, difference))
        .map(|row| row.id)
}

/// The row that takes a case out of the comparison as a whole.
pub(crate) fn whole_case(_pair: &Pair<'_>, _against: Against) -> Option<&'static str> {
    None
}

/// The row that explains that a machine stopped.
pub(crate) fn stopped(left: &Outcome, _right: &Outcome) -> Option<&'static str> {
    match left {
        Outcome::Stopped(why) if why.starts_with("unsupported") => Some("model-lacks"),
        _ => None,
    }
}
