//! What a run showed on its way: how it stopped, its nested events, checkpoints and reports. Kept
//! beside the snapshot that real KVM reached, with checksums for the long lists.

use anyhow::Context;
use nvmx_machine::Stop;
use serde::{Deserialize, Serialize};
use std::path::Path;

/// What a run showed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Seen {
    /// How it stopped.
    stop: String,
    /// Nested entries, failed entries and exits.
    nested_events: usize,
    /// Number of checkpoints.
    checkpoints: usize,
    /// CRC-32 of their ids.
    checkpoints_crc32: String,
    /// Number of values that the guest reported.
    reports: usize,
    /// CRC-32 of the values.
    reports_crc32: String,
}

/// What `nvmx replay --json` prints, as far as it is needed here.
#[derive(Deserialize)]
struct Replayed {
    stop: String,
    nested_events: usize,
    lost_nested_events: u64,
    checkpoints: Vec<u32>,
    reports: Vec<u32>,
}

impl Seen {
    pub(crate) fn new(
        stop: &Stop,
        nested_events: usize,
        checkpoints: &[u32],
        reports: &[u32],
    ) -> Self {
        Self::of(format!("{stop:?}"), nested_events, checkpoints, reports)
    }

    fn of(stop: String, nested_events: usize, checkpoints: &[u32], reports: &[u32]) -> Self {
        Self {
            stop,
            nested_events,
            checkpoints: checkpoints.len(),
            checkpoints_crc32: crc32(checkpoints),
            reports: reports.len(),
            reports_crc32: crc32(reports),
        }
    }

    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    /// Prints what to keep of the output of `nvmx replay --json` in a file.
    pub(crate) fn record(path: &Path) -> anyhow::Result<()> {
        let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
        let run: Replayed =
            serde_json::from_str(&text).with_context(|| path.display().to_string())?;
        if run.lost_nested_events > 0 {
            anyhow::bail!(
                "{} nested events were lost; run it again",
                run.lost_nested_events
            );
        }
        let seen = Self::of(run.stop, run.nested_events, &run.checkpoints, &run.reports);
        println!("{}", serde_json::to_string_pretty(&seen)?);
        Ok(())
    }

    /// What differs, in words: KVM's first.
    pub(crate) fn differences(&self, soft: &Self) -> Vec<String> {
        let list = |count, crc32: &str| format!("{count} with checksum {crc32}");
        [
            ("end", self.stop.clone(), soft.stop.clone()),
            (
                "nested events",
                self.nested_events.to_string(),
                soft.nested_events.to_string(),
            ),
            (
                "checkpoints",
                list(self.checkpoints, &self.checkpoints_crc32),
                list(soft.checkpoints, &soft.checkpoints_crc32),
            ),
            (
                "reports",
                list(self.reports, &self.reports_crc32),
                list(soft.reports, &soft.reports_crc32),
            ),
        ]
        .into_iter()
        .filter(|(_, kvm, soft)| kvm != soft)
        .map(|(name, kvm, soft)| format!("{name}: {kvm} on KVM, {soft} on soft"))
        .collect()
    }
}

fn crc32(values: &[u32]) -> String {
    let bytes: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    format!("{:08x}", nvmx_snapshots::pages_file::checksum(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_counts() {
        let base = Seen::new(&Stop::DebugExit(16), 10, &[1, 2], &[3]);
        assert!(base.differences(&base).is_empty());
        for (other, name) in [
            (Seen::new(&Stop::Halted, 10, &[1, 2], &[3]), "end"),
            (
                Seen::new(&Stop::DebugExit(16), 11, &[1, 2], &[3]),
                "nested events",
            ),
            (
                Seen::new(&Stop::DebugExit(16), 10, &[2, 1], &[3]),
                "checkpoints",
            ),
            (
                Seen::new(&Stop::DebugExit(16), 10, &[1, 2], &[4]),
                "reports",
            ),
        ] {
            let found = base.differences(&other);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(name), "{found:?}");
        }
    }
}
