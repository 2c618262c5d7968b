//! An audit in words, and several audits of one state side by side.

use super::{Audit, Verdict};
use std::fmt;
use std::fmt::Write;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.rule {
            Some(rule) => write!(f, " ({rule})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "vCPU {}: {} of {} rules of VM entry fail, for {}",
            self.vcpu,
            self.broken.len(),
            self.rules,
            self.profile
        )?;
        writeln!(f, "  VM entry ({}): {}", self.personality, self.entry)?;
        if let Some(restore) = &self.restore {
            writeln!(f, "  restore: {restore}")?;
        }
        for broken in &self.broken {
            writeln!(f, "  {}: must hold: {}", broken.rule, broken.text)?;
            writeln!(
                f,
                "    SDM Vol. 3C \"{}\": {}",
                broken.section, broken.consequence
            )?;
            writeln!(f, "    {}", broken.enforcement)?;
            for (field, value) in &broken.values {
                writeln!(f, "    {field} {value}")?;
            }
        }
        Ok(())
    }
}

/// One state on several processors: where it restores and enters, where not, and because of what. All
/// audits are of the same state, one for each processor.
#[must_use]
pub fn comparison(audits: &[Audit]) -> String {
    let mut text = String::new();
    let vcpus = audits
        .iter()
        .map(|audit| audit.vcpu)
        .max()
        .map_or(0, |v| v + 1);
    for vcpu in 0..vcpus {
        let here: Vec<_> = audits.iter().filter(|audit| audit.vcpu == vcpu).collect();
        let questions: [(&str, &str, &str, Question); 2] = [
            ("restores on", "refused on", "restore", |a| {
                a.restore.as_ref()
            }),
            ("enters on", "fails on", "VM entry", |a| Some(&a.entry)),
        ];
        for (good, bad, what, question) in questions {
            let asked = here.iter().filter(|audit| question(audit).is_some());
            let passing: Vec<_> = asked
                .clone()
                .filter(|audit| question(audit).is_some_and(|verdict| verdict.passes))
                .map(|audit| audit.profile.as_str())
                .collect();
            if asked.clone().next().is_none() {
                continue;
            }
            let _ = write!(text, "vCPU {vcpu}, {what}: ");
            let _ = match passing.as_slice() {
                [] => writeln!(text, "{good} none of them"),
                passing => writeln!(text, "{good} {}", passing.join(", ")),
            };
            for audit in asked {
                if let Some(verdict) = question(audit).filter(|verdict| !verdict.passes) {
                    because(&mut text, bad, audit, verdict);
                }
            }
        }
    }
    text
}

type Question = fn(&Audit) -> Option<&Verdict>;

fn because(text: &mut String, bad: &str, audit: &Audit, verdict: &Verdict) {
    let _ = writeln!(text, "  {bad} {}, because {verdict}", audit.profile);
    let broken = audit
        .broken
        .iter()
        .find(|broken| Some(broken.rule) == verdict.rule.as_deref());
    if let Some(broken) = broken {
        let _ = writeln!(text, "    must hold: {}", broken.text);
        for (field, value) in &broken.values {
            let _ = writeln!(text, "    {field} {value}");
        }
    }
}
