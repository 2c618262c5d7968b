//! `nvmx campaign`

use super::time;
use crate::args::{CampaignArguments, CampaignCommand, CampaignEntry, CampaignReplay};
use crate::backend::{self, Machine, Spec};
use crate::{DIFFERENT, SAME, output};
use anyhow::{Context, bail};
use nvmx_campaign::bochs::Bochs;
use nvmx_campaign::case::{Case, CaseFile};
use nvmx_campaign::code;
use nvmx_campaign::explain::Against;
use nvmx_campaign::generate::Generator;
use nvmx_campaign::judge::judge as verdict;
use nvmx_campaign::majority::{self, Division, Judge, Side};
use nvmx_campaign::runner::{Make, Runner, Trouble, image, model_of};
use nvmx_campaign::session::{self, Cases, Finding, Peer, Plan, Report};
use nvmx_campaign::wire::Access;
use nvmx_core::cpu::Model;
use nvmx_core::personality::Personality;
use nvmx_core::profiles;
use nvmx_core::vcpu::{Parts, Vm, VmConfig};
use nvmx_core::vmx::Vmcs12;
use nvmx_core::x86::{CpuState, msr};
use nvmx_soft::SoftVm;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What bare Bochs shows its guest.
const BOCHS_PROFILE: &str = "bochs-icelake";
/// Unexplained differences of one kind that are written to files.
const FILES_OF_A_KIND: usize = 2;
/// Cases of one kind that are printed.
const SHOWN_OF_A_KIND: usize = 4;
/// Kinds that are printed.
const KINDS_SHOWN: usize = 40;

pub(crate) fn run(options: &CampaignArguments) -> anyhow::Result<u8> {
    match &options.command {
        CampaignCommand::Entry(options) => entry(options, Sides::entries),
        CampaignCommand::Code(options) => entry(options, Sides::code),
        CampaignCommand::Replay(options) => replay(options),
    }
}

fn config() -> VmConfig {
    VmConfig::default()
}

/// The model and whom it is compared with.
struct Sides {
    /// The other one.
    peer: Box<dyn Peer>,
    /// The processor that both show.
    processor: Model,
    /// The same as state.
    state: CpuState,
    access: Access,
    against: Against,
}

impl Sides {
    fn open(spec: &Spec, limit: Duration) -> anyhow::Result<Self> {
        match spec {
            Spec::Bochs => {
                let profile = profiles::find(BOCHS_PROFILE).context(BOCHS_PROFILE)?;
                let processor = profile.model();
                let numbers = msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2;
                let state = CpuState {
                    cpuid: Some(processor.cpuid.clone()),
                    msrs: Some(numbers.zip(processor.vmx_msrs).collect()),
                    ..CpuState::default()
                };
                Ok(Self {
                    peer: Box::new(Bochs::new(processor.clone())),
                    processor,
                    state,
                    access: Access::Instructions,
                    against: Against::Bochs,
                })
            }
            _ => {
                let mut machine = backend::open(spec, &config())?;
                let state = machine.vm.vcpu(0).state(Parts::All)?;
                let processor = model_of(machine.vm.as_mut())?;
                let peer = Runner::new(series(machine, spec), Access::Raw, limit)?;
                Ok(Self {
                    peer: Box::new(peer),
                    processor,
                    state,
                    access: Access::Raw,
                    against: Against::Kvm,
                })
            }
        }
    }

    /// A machine of the model that shows the same processor.
    fn model(state: &CpuState, against: Against) -> Result<Box<dyn Vm>, Trouble> {
        let mut vm = SoftVm::new(&config())?;
        Vm::vcpu(&mut vm, 0).set_state(state)?;
        vm.set_personality(match against {
            Against::Kvm | Against::Sdm => Personality::Kvm,
            Against::Bochs => Personality::Sdm,
        });
        Ok(Box::new(vm))
    }

    /// The model with the SDM's personality on the same processor, as the other one.
    fn personalities(&self, limit: Duration) -> Result<Self, Trouble> {
        let state = self.state.clone();
        let make = Box::new(move |_| Self::model(&state, Against::Bochs));
        Ok(Self {
            peer: Box::new(Runner::new(make, self.access, limit)?),
            processor: self.processor.clone(),
            state: self.state.clone(),
            access: self.access,
            against: Against::Sdm,
        })
    }

    fn entries(&self, seed: u64) -> Result<Box<dyn Cases>, Trouble> {
        let vm_exit = image(&self.processor, self.access)?.vm_exit;
        Ok(Box::new(Generator::new(&self.processor, vm_exit, seed)))
    }

    fn code(&self, seed: u64) -> Result<Box<dyn Cases>, Trouble> {
        let vm_exit = image(&self.processor, self.access)?.vm_exit;
        Ok(Box::new(code::Generator::new(
            &self.processor,
            vm_exit,
            seed,
        )))
    }
}

/// The other backend's machines, one after the other.
fn series(machine: Machine, spec: &Spec) -> Make<'static> {
    let mut series = machine.into_series(spec.clone(), config());
    Box::new(move |old| series(old).map_err(|error| Trouble::Other(output::chain(&error))))
}

/// Makes the cases of a campaign, by seed.
type Generate = fn(&Sides, u64) -> Result<Box<dyn Cases>, Trouble>;

/// The cases that were drawn for one processor, on another one.
struct Drawn<'a> {
    drawn: &'a dyn Cases,
    own: Box<dyn Cases>,
}

impl Cases for Drawn<'_> {
    fn case(&self, number: u64) -> Case {
        self.drawn.case(number)
    }

    fn vmcs12(&self, case: &Case) -> Vmcs12 {
        self.own.vmcs12(case)
    }
}

/// What came of one judge.
struct Judged {
    name: String,
    who: Against,
    report: Report,
    kept: Vec<PathBuf>,
    elapsed: Duration,
}

fn entry(options: &CampaignEntry, generate: Generate) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let mut drawn: Option<Box<dyn Cases>> = None;
    let mut judged: Vec<Judged> = Vec::new();
    let mut several = options.backend.len() > 1;
    for spec in &options.backend {
        let mut sides = Sides::open(spec, limit)?;
        let own = generate(&sides, options.seed)?;
        let drawn = match &mut drawn {
            Some(drawn) => drawn,
            none => none.insert(generate(&sides, options.seed)?),
        };
        let cases = Drawn {
            drawn: drawn.as_ref(),
            own,
        };
        judged.push(campaign(options, &spec.to_string(), &mut sides, &cases)?);
        if several && sides.against == Against::Kvm {
            let mut sides = sides.personalities(limit)?;
            judged.push(campaign(options, "soft:sdm", &mut sides, &cases)?);
            several = false;
        }
    }
    finish(options, &judged)
}

/// The whole campaign on the model and on one other.
fn campaign(
    options: &CampaignEntry,
    name: &str,
    sides: &mut Sides,
    cases: &dyn Cases,
) -> anyhow::Result<Judged> {
    let plan = Plan {
        count: options.count,
        first: options.first,
        batch: options.batch,
        threads: 2,
        access: sides.access,
        against: sides.against,
        time: time(options.timeout)?,
        every: options.backend.len() > 1,
    };
    let bar = output::spinner(format!("campaign against {name}"));
    let start = std::time::Instant::now();
    let (state, against) = (sides.state.clone(), sides.against);
    let mut progress = |report: &Report| {
        let (done, unexplained) = (report.cases, report.unexplained);
        bar.set_message(format!(
            "{done} of {} cases against {name}, {unexplained} unexplained",
            options.count
        ));
        tracing::info!(done, unexplained, "batch");
    };
    let make = || Sides::model(&state, against);
    let report = session::run(&plan, cases, &make, sides.peer.as_mut(), &mut progress)?;
    bar.finish_and_clear();
    let mut kept = Vec::new();
    if against != Against::Sdm {
        kept = keep(&options.keep, options.seed, &report)?;
        if let Some(folder) = &options.keep_explained {
            keep_explained(folder, &report)?;
        }
    }
    Ok(Judged {
        name: name.to_owned(),
        who: against,
        report,
        kept,
        elapsed: start.elapsed(),
    })
}

/// Prints what came of it. The model's own two personalities differ by design.
fn finish(options: &CampaignEntry, judged: &[Judged]) -> anyhow::Result<u8> {
    let judges: Vec<_> = judged
        .iter()
        .map(|one| Judge {
            name: &one.name,
            report: &one.report,
            who: one.who,
        })
        .collect();
    let divisions = if options.backend.len() > 1 {
        majority::divisions(&judges)
    } else {
        Vec::new()
    };
    let others = || judged.iter().filter(|one| one.who != Against::Sdm);
    if options.json {
        match judged {
            [one] => output::print_json(&as_json(one))?,
            _ => output::print_json(&json!({
                "judges": others().map(as_json).collect::<Vec<_>>(),
                "divisions": divisions,
            }))?,
        }
    } else {
        for one in others() {
            output::print(&describe(one))?;
        }
        output::print(&describe_divisions(&divisions))?;
    }
    let differs = others().any(|one| one.report.unexplained != 0);
    Ok(if differs { DIFFERENT } else { SAME })
}

fn describe_divisions(divisions: &[Division]) -> String {
    let mut text = String::new();
    if !divisions.is_empty() {
        text.push_str("who sides with whom:\n");
    }
    for division in divisions {
        let majority = match division.majority {
            Some(Side::Model) => "the majority is soft's",
            Some(Side::Others) => "the majority is against soft",
            None => "no majority",
        };
        let _ = writeln!(
            text,
            "  {}: {}: {}, case {} first; {majority}",
            division.class,
            division.sides(),
            division.cases,
            division.first
        );
    }
    text
}

fn kinds(report: &Report) -> Vec<(String, Vec<&Finding>)> {
    let mut kinds: BTreeMap<String, Vec<&Finding>> = BTreeMap::new();
    for finding in &report.findings {
        kinds.entry(finding.kind()).or_default().push(finding);
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, findings)| std::cmp::Reverse(findings.len()));
    for (_, findings) in &mut kinds {
        // The simplest cases say most.
        findings.sort_by_key(|finding| finding.case.mutations.len());
    }
    kinds
}

/// Writes the simplest cases of each kind.
fn keep(folder: &Path, seed: u64, report: &Report) -> anyhow::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for (kind, findings) in kinds(report) {
        for finding in findings.iter().take(FILES_OF_A_KIND) {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            let path = folder.join(format!("seed-{seed}-case-{}.ron", finding.number));
            let file = CaseFile {
                case: finding.case.clone(),
                note: note(
                    &finding.case,
                    &format!("{kind}; {}", finding.summary.join(" / ")),
                ),
            };
            std::fs::write(&path, file.to_text()).with_context(|| path.display().to_string())?;
            paths.push(path);
        }
    }
    Ok(paths)
}

/// What a case's file says of it.
fn note(case: &Case, kind: &str) -> String {
    let code = code::disassemble(case);
    if code.is_empty() {
        kind.to_owned()
    } else {
        format!("{kind}; code: {code}")
    }
}

/// Writes the simplest case of each explanation.
fn keep_explained(folder: &Path, report: &Report) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    for (id, case) in &report.examples {
        let path = folder.join(format!("{id}.ron"));
        let file = CaseFile {
            case: case.clone(),
            note: note(case, id),
        };
        std::fs::write(&path, file.to_text()).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn as_json(judged: &Judged) -> serde_json::Value {
    let kinds = kinds(&judged.report);
    let kinds = kinds
        .iter()
        .map(|(kind, findings)| json!({"kind": kind, "cases": findings.len()}));
    json!({
        "backend": judged.name,
        "report": judged.report,
        "kinds": kinds.collect::<Vec<_>>(),
        "kept": judged.kept,
        "seconds": judged.elapsed.as_secs_f64(),
    })
}

fn describe(judged: &Judged) -> String {
    let Judged {
        name: judge,
        report,
        kept,
        elapsed,
        ..
    } = judged;
    let seconds = elapsed.as_secs_f64();
    let mut text = format!(
        "{judge}: {} cases in {seconds:.0} s, {:.0} a second; {} unexplained\n",
        report.cases,
        report.cases as f64 / seconds.max(0.001),
        report.unexplained
    );
    for (end, count) in &report.ended {
        let _ = writeln!(text, "  {end}: {count}");
    }
    for (id, count) in &report.explained {
        let first = report.first_explained.get(id).copied().unwrap_or_default();
        let _ = writeln!(text, "  explained by {id}: {count}, case {first} first");
    }
    for (kind, findings) in kinds(report).iter().take(KINDS_SHOWN) {
        let _ = writeln!(text, "  ! {} of: {kind}", findings.len());
        for finding in findings.iter().take(SHOWN_OF_A_KIND) {
            let _ = writeln!(
                text,
                "    case {}: {} {:?}",
                finding.number, finding.case.base, finding.case.mutations
            );
            let _ = writeln!(
                text,
                "      soft: {}; {judge}: {}",
                finding.summary[0], finding.summary[1]
            );
            let code = code::disassemble(&finding.case);
            if !code.is_empty() {
                let _ = writeln!(text, "      code: {code}");
            }
        }
        for difference in findings[0].differences.iter().take(6) {
            let _ = writeln!(text, "      {difference}");
        }
    }
    for path in kept.iter().take(KINDS_SHOWN) {
        let _ = writeln!(text, "  kept {}", path.display());
    }
    text
}

fn replay(options: &CampaignReplay) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let mut status = SAME;
    let mut cases = Vec::new();
    for path in &options.files {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        match CaseFile::parse(&text) {
            Ok(file) => cases.push(file.case),
            Err(error) => bail!("{}: {error}", path.display()),
        }
    }
    for judge in &options.backend {
        let mut sides = Sides::open(judge, limit)?;
        let generator = sides.entries(0)?;
        let (state, against) = (sides.state.clone(), sides.against);
        let make = Box::new(move |_| Sides::model(&state, against));
        let mut soft = Runner::new(make, sides.access, limit)?;
        let (left, right) = (soft.run(&cases)?, sides.peer.run(&cases)?);
        for (((case, path), left), right) in cases.iter().zip(&options.files).zip(&left).zip(&right)
        {
            let verdict = verdict(case, &generator.vmcs12(case), left, right, against);
            let mut text = format!(
                "{}: soft: {}; {judge}: {}\n",
                path.display(),
                verdict.summary[0],
                verdict.summary[1]
            );
            for id in &verdict.explained {
                let _ = writeln!(text, "  explained by {id}");
            }
            for difference in &verdict.unexplained {
                let _ = writeln!(text, "  ! {difference}");
                status = DIFFERENT;
            }
            output::print(&text)?;
        }
    }
    Ok(status)
}
