//! A campaign: batches of cases on the model and on one other implementation, side by side.

use crate::case::Case;
use crate::explain::Against;
use crate::judge::{Difference, Verdict, judge};
use crate::layout;
use crate::runner::{Runner, Trouble};
use crate::wire::{Access, Outcome};
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Vmcs12;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// Makes the model's machines, each in the thread that uses it.
pub type MakeModel<'a> = &'a (dyn Fn() -> Result<Box<dyn Vm>, Trouble> + Sync);

/// The other implementation.
pub trait Peer {
    /// Runs a batch: an outcome for each case.
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Trouble>;
}

impl Peer for Runner<'_> {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Trouble> {
        Self::run(self, cases)
    }
}

/// What is tried.
pub trait Cases {
    /// Case number `number`, always the same.
    fn case(&self, number: u64) -> Case;

    /// Its VMCS before the entry.
    fn vmcs12(&self, case: &Case) -> Vmcs12;
}

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Cases.
    pub count: u64,
    /// The first one's number.
    pub first: u64,
    /// Cases in a batch, at most [`layout::MAX_BATCH`].
    pub batch: usize,
    /// Threads of the model.
    pub threads: usize,
    /// How the fields get there.
    pub access: Access,
    /// Who the other one is.
    pub against: Against,
    /// What a batch may take on the model.
    pub time: Duration,
    /// Whether the report has the differences of every case.
    pub every: bool,
}

/// A case with a difference that nothing explains.
#[derive(Debug, Clone)]
pub struct Finding {
    /// Its number in the campaign.
    pub number: u64,
    /// The case.
    pub case: Case,
    /// What differs.
    pub differences: Vec<Difference>,
    /// What each side came to.
    pub summary: [String; 2],
}

impl Finding {
    /// What findings of one kind have in common: the names of what differs, and how they ended.
    #[must_use]
    pub fn kind(&self) -> String {
        let names: Vec<_> = self.differences.iter().map(|d| d.what.as_str()).collect();
        match names.as_slice() {
            ["outcome"] => {
                let end = |text: &str| text.split(" rip").next().unwrap_or_default().to_owned();
                format!("{} / {}", end(&self.summary[0]), end(&self.summary[1]))
            }
            names => names.join(" "),
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Cases that both ran.
    pub cases: u64,
    /// Cases by how they ended on the model.
    pub ended: BTreeMap<String, u64>,
    /// Cases with a difference that has an explanation, by its id.
    pub explained: BTreeMap<&'static str, u64>,
    /// The first case of each explanation.
    pub first_explained: BTreeMap<&'static str, u64>,
    /// The simplest case of each explanation that nothing else explains in part.
    #[serde(skip)]
    pub examples: BTreeMap<&'static str, Case>,
    /// Cases with a difference that has none.
    pub unexplained: u64,
    /// The first of them.
    #[serde(skip)]
    pub findings: Vec<Finding>,
    /// By number of the case: what differs, with the explanation that it has. See [`Plan::every`].
    #[serde(skip)]
    pub every: BTreeMap<u64, Vec<(String, Option<&'static str>)>>,
}

/// Findings that are kept.
const KEPT: usize = 2000;

impl Report {
    fn add(&mut self, number: u64, case: &Case, left: &Outcome, verdict: Verdict) {
        self.cases += 1;
        *self.ended.entry(ending(left)).or_default() += 1;
        for id in &verdict.explained {
            *self.explained.entry(id).or_default() += 1;
            self.first_explained.entry(id).or_insert(number);
        }
        if verdict.agrees() {
            let mut ids = verdict.explained.iter().filter(|id| !is_common(id));
            match (ids.next(), ids.next(), verdict.explained.as_slice()) {
                (Some(id), None, _) | (None, None, [id]) => self.example(id, case),
                _ => {}
            }
        }
        if verdict.agrees() {
            return;
        }
        self.unexplained += 1;
        if self.findings.len() < KEPT {
            self.findings.push(Finding {
                number,
                case: case.clone(),
                differences: verdict.unexplained,
                summary: verdict.summary,
            });
        }
    }
}

/// What the SDM leaves undefined differs in nearly every case, beside what a case is an example of.
fn is_common(id: &str) -> bool {
    id.starts_with("stale-")
        || matches!(
            id,
            "resume-flag" | "real-mode-code-type" | "unusable-segment" | "null-segment-base"
        )
}

impl Report {
    fn example(&mut self, id: &'static str, case: &Case) {
        let kept = self.examples.entry(id).or_insert_with(|| case.clone());
        let size = |case: &Case| (case.mutations.len(), case.code.0.len());
        if size(case) < size(kept) {
            *kept = case.clone();
        }
    }
}

/// How a case ended, without its particulars.
fn ending(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Stopped(_) => "stopped".into(),
        Outcome::Record(record) if record.entered() => "entered".into(),
        Outcome::Record(record) => {
            let text = record.summary();
            text.split(" qualification")
                .next()
                .unwrap_or_default()
                .to_owned()
        }
    }
}

/// Runs it. `progress` hears cases done and unexplained differences so far.
pub fn run(
    plan: &Plan,
    generator: &dyn Cases,
    make: MakeModel<'_>,
    peer: &mut dyn Peer,
    progress: &mut dyn FnMut(&Report),
) -> Result<Report, Trouble> {
    let mut report = Report::default();
    thread::scope(|scope| {
        let workers: Vec<_> = (0..plan.threads.max(1))
            .map(|_| {
                let (to, cases) = mpsc::channel::<Vec<Case>>();
                let (outcomes, from) = mpsc::channel();
                scope.spawn(move || worker(plan, make, &cases, &outcomes));
                (to, from)
            })
            .collect();
        let mut done = 0;
        while done < plan.count {
            let size = (plan.batch.clamp(1, layout::MAX_BATCH) as u64).min(plan.count - done);
            let first = plan.first + done;
            let cases: Vec<Case> = (first..first + size)
                .map(|number| generator.case(number))
                .collect();
            let share = cases.len().div_ceil(workers.len());
            let mut sent = Vec::new();
            for (chunk, (to, from)) in cases.chunks(share).zip(&workers) {
                let _ = to.send(chunk.to_vec());
                sent.push(from);
            }
            let right = peer.run(&cases)?;
            let mut left = Vec::with_capacity(cases.len());
            for from in sent {
                let gone = |_| Trouble::Other("a thread of the model ended".into());
                left.extend(from.recv().map_err(gone)??);
            }
            for (((number, case), left), right) in (first..).zip(&cases).zip(&left).zip(&right) {
                let before = generator.vmcs12(case);
                let mut verdict = judge(case, &before, left, right, plan.against);
                let all = std::mem::take(&mut verdict.all);
                if plan.every && !all.is_empty() {
                    report.every.insert(number, all);
                }
                report.add(number, case, left, verdict);
            }
            done += size;
            progress(&report);
        }
        Ok(report)
    })
}

fn worker(
    plan: &Plan,
    make: MakeModel<'_>,
    cases: &mpsc::Receiver<Vec<Case>>,
    outcomes: &mpsc::Sender<Result<Vec<Outcome>, Trouble>>,
) {
    let serve = || -> Result<(), Trouble> {
        let again = Box::new(|_: Option<Box<dyn Vm>>| make());
        let mut runner = Runner::new(again, plan.access, plan.time)?;
        for cases in cases {
            if outcomes.send(runner.run(&cases)).is_err() {
                break;
            }
        }
        Ok(())
    };
    if let Err(error) = serve() {
        let _ = outcomes.send(Err(error));
    }
}
