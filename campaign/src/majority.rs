//! The same cases on the model and on several others: for each class of differences, who is with whom.
//!
//! The model is judged against each of the others with the personality and the processor of that one. A class is an
//! explanation, or the names of what nothing explains. So of a difference against one judge it is known whether the
//! others differ from the model in the same place, too, or side with it. Where the model's two personalities come
//! apart, that is a class of its own.

use crate::explain::Against;
use crate::judge::OUTCOME;
use crate::session::Report;
use serde::Serialize;
use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

/// One class of differences, and how the judges are divided over it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Division {
    /// An explanation's id, or `unexplained: ` and the names of what differs.
    pub class: String,
    /// Who agrees with the model there; the model itself is not among them.
    pub with_model: Vec<String>,
    /// Who differs from it there.
    pub against: Vec<String>,
    /// Who cannot be asked: the entry ended differently on it.
    pub elsewhere: Vec<String>,
    /// On whose side more are, if either.
    pub majority: Option<Side>,
    /// Cases.
    pub cases: u64,
    /// The first of them.
    pub first: u64,
}

/// A side of a division.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// The model's.
    Model,
    /// The others'.
    Others,
}

impl Division {
    /// `soft+lab:6.12 against bochs`.
    #[must_use]
    pub fn sides(&self) -> String {
        let mut model = vec!["soft"];
        model.extend(self.with_model.iter().map(String::as_str));
        let mut text = format!("{} against {}", model.join("+"), self.against.join("+"));
        if !self.elsewhere.is_empty() {
            text += &format!(", {} elsewhere", self.elsewhere.join("+"));
        }
        text
    }
}

/// One that the model was judged against.
#[derive(Clone, Copy)]
pub struct Judge<'a> {
    /// Its name.
    pub name: &'a str,
    /// What came of it, with [`Report::every`].
    pub report: &'a Report,
    /// Who it is: the model had KVM's personality against KVM and against itself, else the SDM's.
    pub who: Against,
}

/// What a judge says of a difference that another one has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Vote {
    WithModel,
    Against,
    Elsewhere,
    /// The model with the SDM's personality is asked only of its own differences.
    None,
}

impl Judge<'_> {
    fn differences(&self, number: u64) -> &[(String, Option<&'static str>)] {
        self.report.every.get(&number).map_or(&[], Vec::as_slice)
    }

    fn differs_in(&self, number: u64, what: &str) -> bool {
        self.differences(number)
            .iter()
            .any(|(name, _)| name == what)
    }

    fn class(&self, what: &str, id: Option<&str>) -> String {
        match (id, self.who) {
            (Some(id), _) => id.to_owned(),
            (None, Against::Sdm) => format!("personality: {what}"),
            (None, _) => format!("unexplained: {what}"),
        }
    }
}

/// How `judge` votes on a difference in `what` that `finder` has in a case.
fn vote(
    judges: &[Judge<'_>],
    finder: &Judge<'_>,
    judge: &Judge<'_>,
    number: u64,
    what: &str,
) -> Vote {
    let differs = judge.differs_in(number, what);
    let ended = what != OUTCOME && judge.differs_in(number, OUTCOME);
    // Whether the model's two personalities come apart there.
    let personalities = || {
        judges
            .iter()
            .filter(|judge| judge.who == Against::Sdm)
            .any(|judge| judge.differs_in(number, what) || judge.differs_in(number, OUTCOME))
    };
    match (finder.who, judge.who) {
        (Against::Sdm, Against::Sdm) => Vote::Against,
        (_, Against::Sdm) => Vote::None,
        // What agrees with the other personality.
        (Against::Sdm, Against::Bochs) if !differs && !ended => Vote::Against,
        (Against::Sdm, _) if differs => Vote::Elsewhere,
        (a, b) if a != b && a != Against::Sdm && personalities() => Vote::Elsewhere,
        _ if differs => Vote::Against,
        _ if ended => Vote::Elsewhere,
        _ => Vote::WithModel,
    }
}

/// Divides the judges over each class; the most frequent first.
#[must_use]
pub fn divisions(judges: &[Judge<'_>]) -> Vec<Division> {
    let numbers: BTreeSet<u64> = judges
        .iter()
        .flat_map(|judge| judge.report.every.keys().copied())
        .collect();
    let mut found: BTreeMap<(String, Vec<Vote>), (u64, u64)> = BTreeMap::new();
    for number in numbers {
        // Once a case, however many fields have this explanation, and whoever was asked first.
        let mut seen = BTreeSet::new();
        for finder in judges {
            for (what, id) in finder.differences(number) {
                let votes = judges
                    .iter()
                    .map(|judge| vote(judges, finder, judge, number, what));
                seen.insert((finder.class(what, *id), votes.collect::<Vec<_>>()));
            }
        }
        for key in seen {
            found.entry(key).or_insert((0, number)).0 += 1;
        }
    }
    let mut divisions: Vec<Division> = found
        .into_iter()
        .map(|((class, votes), (cases, first))| {
            let names = |wanted| {
                let all = judges.iter().zip(&votes);
                all.filter(|(_, vote)| **vote == wanted)
                    .map(|(judge, _)| judge.name.to_owned())
                    .collect::<Vec<_>>()
            };
            let (with_model, against) = (names(Vote::WithModel), names(Vote::Against));
            let majority = match (with_model.len() + 1).cmp(&against.len()) {
                Ordering::Greater => Some(Side::Model),
                Ordering::Less => Some(Side::Others),
                Ordering::Equal => None,
            };
            Division {
                class,
                with_model,
                against,
                elsewhere: names(Vote::Elsewhere),
                majority,
                cases,
                first,
            }
        })
        .collect();
    divisions.sort_by_key(|division| std::cmp::Reverse(division.cases));
    divisions
}

#[cfg(test)]
mod tests {
    use super::*;

    type Differences = &'static [(&'static str, Option<&'static str>)];

    fn report(every: &[(u64, Differences)]) -> Report {
        let every = every
            .iter()
            .map(|(number, all)| {
                let all = all.iter().map(|(what, id)| ((*what).to_owned(), *id));
                (*number, all.collect())
            })
            .collect();
        Report {
            every,
            ..Report::default()
        }
    }

    fn lines(judges: &[(&'static str, Against, &Report)]) -> Vec<String> {
        let judges: Vec<_> = judges
            .iter()
            .map(|&(name, who, report)| Judge { name, report, who })
            .collect();
        divisions(&judges)
            .iter()
            .map(|d| {
                let majority = d.majority.map_or("none", |side| match side {
                    Side::Model => "model",
                    Side::Others => "others",
                });
                format!(
                    "{} {}x{}: {}: {majority}",
                    d.class,
                    d.cases,
                    d.first,
                    d.sides()
                )
            })
            .collect()
    }

    #[test]
    fn a_difference_has_a_majority() {
        let kvm = report(&[
            (1, &[("GUEST_RIP", Some("a")), ("GUEST_RSP", Some("a"))]),
            (2, &[("GUEST_CR0", None)]),
            (3, &[("GUEST_CR0", None)]),
        ]);
        let bochs = report(&[
            (1, &[("GUEST_RIP", Some("a"))]),
            (3, &[("outcome", Some("b"))]),
        ]);
        let mut seen = lines(&[
            ("kvm", Against::Kvm, &kvm),
            ("bochs", Against::Bochs, &bochs),
        ]);
        seen.sort();
        let expected = [
            "a 1x1: soft against kvm+bochs: others",
            "a 1x1: soft+bochs against kvm: model",
            "b 1x3: soft+kvm against bochs: model",
            "unexplained: GUEST_CR0 1x2: soft+bochs against kvm: model",
            "unexplained: GUEST_CR0 1x3: soft against kvm, bochs elsewhere: none",
        ];
        assert_eq!(seen, expected);
        assert!(lines(&[("kvm", Against::Kvm, &report(&[]))]).is_empty());
    }

    #[test]
    fn personalities_are_a_class_of_their_own() {
        let kvm = report(&[(2, &[("GUEST_CR4", Some("k"))])]);
        let sdm = report(&[(1, &[("GUEST_CR0", None)]), (2, &[("GUEST_CR4", None)])]);
        let bochs = report(&[
            (2, &[("GUEST_CR4", Some("b"))]),
            (3, &[("GUEST_RIP", None)]),
        ]);
        let mut seen = lines(&[
            ("kvm", Against::Kvm, &kvm),
            ("soft:sdm", Against::Sdm, &sdm),
            ("bochs", Against::Bochs, &bochs),
        ]);
        seen.sort();
        let expected = [
            "b 1x2: soft against bochs, kvm elsewhere: none",
            "k 1x2: soft against kvm, bochs elsewhere: none",
            "personality: GUEST_CR0 1x1: soft+kvm against soft:sdm+bochs: none",
            "personality: GUEST_CR4 1x2: soft against soft:sdm, kvm+bochs elsewhere: none",
            "unexplained: GUEST_RIP 1x3: soft+kvm against bochs: model",
        ];
        assert_eq!(seen, expected);
    }
}
