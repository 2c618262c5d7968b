//! `nvmx campaign`

use super::time;
use crate::args::{CampaignArguments, CampaignCommand, CampaignEntry, CampaignReplay};
use crate::backend::{self, Machine, Spec};
use crate::{DIFFERENT, SAME, output};
use anyhow::{Context, bail};
use nvmx_campaign::case::CaseFile;
use nvmx_campaign::explain::Against;
use nvmx_campaign::generate::Generator;
use nvmx_campaign::judge::judge;
use nvmx_campaign::runner::{Make, Runner, Trouble, image, model_of};
use nvmx_campaign::session::{self, Finding, Plan, Report};
use nvmx_campaign::wire::{Access, Outcome};
use nvmx_core::vcpu::{Parts, Vm, VmConfig};
use nvmx_core::x86::CpuState;
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Unexplained differences of one kind that are written to files.
const FILES_OF_A_KIND: usize = 2;
/// Cases of one kind that are printed.
const SHOWN_OF_A_KIND: usize = 4;
/// Kinds that are printed.
const KINDS_SHOWN: usize = 40;

pub(crate) fn run(options: &CampaignArguments) -> anyhow::Result<u8> {
    match &options.command {
        CampaignCommand::Entry(options) => entry(options),
        CampaignCommand::Replay(options) => replay(options),
    }
}

fn config() -> VmConfig {
    VmConfig::default()
}

/// A machine of the model that shows the same processor as the peer.
fn model(state: &CpuState) -> Result<Box<dyn Vm>, Trouble> {
    let mut machine = backend::open(&Spec::Soft, &config())
        .map_err(|error| Trouble::Other(output::chain(&error)))?
        .vm;
    machine.vcpu(0).set_state(state)?;
    Ok(machine)
}

/// The other backend's machines, one after the other.
fn series(machine: Machine, spec: &Spec) -> Make<'static> {
    let mut series = machine.into_series(spec.clone(), config());
    Box::new(move |old| series(old).map_err(|error| Trouble::Other(output::chain(&error))))
}

fn entry(options: &CampaignEntry) -> anyhow::Result<u8> {
    let limit = time(options.timeout)?;
    let mut machine = backend::open(&options.backend, &config())?;
    let state = machine.vm.vcpu(0).state(Parts::All)?;
    let processor = model_of(machine.vm.as_mut())?;
    let guest = image(&processor, Access::Raw)?;
    let generator = Generator::new(&processor, guest.vm_exit, options.seed);
    let mut peer = Runner::new(series(machine, &options.backend), Access::Raw, limit)?;
    let plan = Plan {
        count: options.count,
        first: options.first,
        batch: options.batch,
        threads: 2,
        access: Access::Raw,
        against: Against::Kvm,
        time: limit,
    };
    let bar = output::spinner("campaign");
    let start = std::time::Instant::now();
    let report = session::run(
        &plan,
        &generator,
        &|| model(&state),
        &mut peer,
        &mut |report| {
            bar.set_message(format!(
                "{} of {} cases, {} unexplained",
                report.cases, options.count, report.unexplained
            ));
            tracing::info!(
                cases = report.cases,
                unexplained = report.unexplained,
                "batch"
            );
        },
    )?;
    bar.finish_and_clear();
    let kept = keep(&options.keep, options.seed, &report)?;
    if options.json {
        output::print_json(&as_json(&report, &kept, start.elapsed()))?;
    } else {
        output::print(&describe(&report, &kept, start.elapsed()))?;
    }
    Ok(if report.unexplained == 0 {
        SAME
    } else {
        DIFFERENT
    })
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
                note: format!("{kind}; {}", finding.summary.join(" / ")),
            };
            std::fs::write(&path, file.to_text()).with_context(|| path.display().to_string())?;
            paths.push(path);
        }
    }
    Ok(paths)
}

fn as_json(report: &Report, kept: &[PathBuf], elapsed: Duration) -> serde_json::Value {
    json!({
        "report": report,
        "kinds": kinds(report).iter().map(|(kind, findings)| json!({"kind": kind, "cases": findings.len()})).collect::<Vec<_>>(),
        "kept": kept,
        "seconds": elapsed.as_secs_f64(),
    })
}

fn describe(report: &Report, kept: &[PathBuf], elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64();
    let mut text = format!(
        "{} cases in {seconds:.0} s, {:.0} a second; {} unexplained\n",
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
                "      soft: {}; other: {}",
                finding.summary[0], finding.summary[1]
            );
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
    let mut machine = backend::open(&options.backend, &config())?;
    let state = machine.vm.vcpu(0).state(Parts::All)?;
    let processor = model_of(machine.vm.as_mut())?;
    let generator = Generator::new(&processor, image(&processor, Access::Raw)?.vm_exit, 0);
    let mut peer = Runner::new(series(machine, &options.backend), Access::Raw, limit)?;
    let mut soft = Runner::new(Box::new(|_| model(&state)), Access::Raw, limit)?;
    let mut status = SAME;
    for path in &options.files {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let file = match CaseFile::parse(&text) {
            Ok(file) => file,
            Err(error) => bail!("{}: {error}", path.display()),
        };
        let cases = [file.case];
        let (left, right) = (soft.run(&cases)?, peer.run(&cases)?);
        let stopped = || Outcome::Stopped("no outcome".into());
        let left = left.into_iter().next().unwrap_or_else(stopped);
        let right = right.into_iter().next().unwrap_or_else(stopped);
        let before = generator.vmcs12(&cases[0]);
        let verdict = judge(&cases[0], &before, &left, &right, Against::Kvm);
        let mut text = format!(
            "{}: soft: {}; {}: {}\n",
            path.display(),
            verdict.summary[0],
            options.backend,
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
    Ok(status)
}
