//! `nvmx campaign`

use super::time;
use crate::args::{CampaignArguments, CampaignCommand, CampaignEntry, CampaignReplay, Judge};
use crate::backend::{self, Machine, Spec};
use crate::{DIFFERENT, SAME, output};
use anyhow::{Context, bail};
use nvmx_campaign::bochs::Bochs;
use nvmx_campaign::case::{Case, CaseFile};
use nvmx_campaign::code;
use nvmx_campaign::explain::Against;
use nvmx_campaign::generate::Generator;
use nvmx_campaign::judge::judge as verdict;
use nvmx_campaign::runner::{Make, Runner, Trouble, image, model_of};
use nvmx_campaign::session::{self, Cases, Finding, Peer, Plan, Report};
use nvmx_campaign::wire::{Access, Outcome};
use nvmx_core::cpu::Model;
use nvmx_core::personality::Personality;
use nvmx_core::profiles;
use nvmx_core::vcpu::{Parts, Vm, VmConfig};
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
    fn open(judge: &Judge, limit: Duration) -> anyhow::Result<Self> {
        match judge {
            Judge::Backend(spec) => {
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
            Judge::Bochs => {
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
        }
    }

    /// A machine of the model that shows the same processor.
    fn model(state: &CpuState, against: Against) -> Result<Box<dyn Vm>, Trouble> {
        let mut vm = SoftVm::new(&config())?;
        Vm::vcpu(&mut vm, 0).set_state(state)?;
        vm.set_personality(match against {
            Against::Kvm => Personality::Kvm,
            Against::Bochs => Personality::Sdm,
        });
        Ok(Box::new(vm))
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

fn entry(options: &CampaignEntry, generate: Generate) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let mut status = SAME;
    for judge in &options.backend {
        let mut sides = Sides::open(judge, limit)?;
        let generator = generate(&sides, options.seed)?;
        let plan = Plan {
            count: options.count,
            first: options.first,
            batch: options.batch,
            threads: 2,
            access: sides.access,
            against: sides.against,
            time: limit,
        };
        let bar = output::spinner(format!("campaign against {judge}"));
        let start = std::time::Instant::now();
        let (state, against) = (sides.state.clone(), sides.against);
        let mut progress = |report: &Report| {
            let (done, unexplained) = (report.cases, report.unexplained);
            bar.set_message(format!(
                "{done} of {} cases against {judge}, {unexplained} unexplained",
                options.count
            ));
            tracing::info!(done, unexplained, "batch");
        };
        let make = || Sides::model(&state, against);
        let report = session::run(
            &plan,
            generator.as_ref(),
            &make,
            sides.peer.as_mut(),
            &mut progress,
        )?;
        bar.finish_and_clear();
        let kept = keep(&options.keep, options.seed, &report)?;
        if let Some(folder) = &options.keep_explained {
            keep_explained(folder, &report)?;
        }
        // Who is right: the case on bare Bochs, too.
        let third = third(judge, options, &report)?;
        if options.json {
            output::print_json(&as_json(judge, &report, &kept, start.elapsed()))?;
        } else {
            output::print(&describe(judge, &report, &third, &kept, start.elapsed()))?;
        }
        if report.unexplained != 0 {
            status = DIFFERENT;
        }
    }
    Ok(status)
}

/// What bare Bochs makes of the first case of each kind, if it is among those asked.
fn third(
    judge: &Judge,
    options: &CampaignEntry,
    report: &Report,
) -> anyhow::Result<BTreeMap<u64, String>> {
    if *judge == Judge::Bochs || !options.backend.contains(&Judge::Bochs) {
        return Ok(BTreeMap::new());
    }
    let kinds = kinds(report);
    let findings: Vec<_> = kinds.iter().filter_map(|(_, of)| of.first()).collect();
    let cases: Vec<_> = findings
        .iter()
        .map(|finding| finding.case.clone())
        .collect();
    if cases.is_empty() {
        return Ok(BTreeMap::new());
    }
    let outcomes = Sides::open(&Judge::Bochs, Duration::ZERO)?
        .peer
        .run(&cases)?;
    let numbers = findings.iter().map(|finding| finding.number);
    Ok(numbers.zip(outcomes.iter().map(Outcome::summary)).collect())
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

fn as_json(
    judge: &Judge,
    report: &Report,
    kept: &[PathBuf],
    elapsed: Duration,
) -> serde_json::Value {
    json!({
        "backend": judge.to_string(),
        "report": report,
        "kinds": kinds(report).iter().map(|(kind, findings)| json!({"kind": kind, "cases": findings.len()})).collect::<Vec<_>>(),
        "kept": kept,
        "seconds": elapsed.as_secs_f64(),
    })
}

fn describe(
    judge: &Judge,
    report: &Report,
    third: &BTreeMap<u64, String>,
    kept: &[PathBuf],
    elapsed: Duration,
) -> String {
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
            if let Some(third) = third.get(&finding.number) {
                let _ = writeln!(text, "      bochs: {third}");
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
