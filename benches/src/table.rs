//! Criterion's results as a Markdown table: `<target>/criterion/**/new/{benchmark,estimates}.json`.

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// One measured bench.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// Group and name.
    pub name: String,
    /// Median time of an iteration, in nanoseconds.
    pub median: f64,
    /// What an iteration gets through.
    pub work: Option<Work>,
}

/// What an iteration gets through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Work {
    /// Things: trips, instructions, pages.
    Elements(f64),
    /// Bytes.
    Bytes(f64),
}

/// Where criterion puts its results: `CRITERION_HOME`, else `criterion` in `CARGO_TARGET_DIR`, else
/// in the workspace's `target`.
#[must_use]
pub fn directory() -> PathBuf {
    if let Some(home) = std::env::var_os("CRITERION_HOME") {
        return home.into();
    }
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        PathBuf::from,
    );
    target.join("criterion")
}

/// Every result below `directory`, by name.
pub fn read(directory: &Path) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    collect(directory, &mut rows)?;
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(rows)
}

fn collect(directory: &Path, rows: &mut Vec<Row>) -> Result<()> {
    let entries = std::fs::read_dir(directory).with_context(|| {
        format!(
            "{}: no results; run `cargo bench -p nvmx-benches` first",
            directory.display()
        )
    })?;
    for entry in entries {
        let path = entry?.path();
        if !path.is_dir() {
            continue;
        }
        if path.file_name().is_some_and(|name| name == "new")
            && path.join("estimates.json").exists()
        {
            rows.push(
                row(
                    &json(&path, "benchmark.json")?,
                    &json(&path, "estimates.json")?,
                )
                .with_context(|| format!("{}: not as criterion writes it", path.display()))?,
            );
        } else {
            collect(&path, rows)?;
        }
    }
    Ok(())
}

fn json(directory: &Path, file: &str) -> Result<Value> {
    let path = directory.join(file);
    let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    serde_json::from_str(&text).with_context(|| path.display().to_string())
}

fn row(benchmark: &Value, estimates: &Value) -> Option<Row> {
    let throughput = &benchmark["throughput"];
    let elements = throughput["Elements"].as_f64().map(Work::Elements);
    Some(Row {
        name: benchmark["full_id"].as_str()?.replacen('/', ": ", 1),
        median: estimates["median"]["point_estimate"].as_f64()?,
        work: elements.or_else(|| throughput["Bytes"].as_f64().map(Work::Bytes)),
    })
}

/// The table: an iteration's median, each element's, and the rate.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let mut table = String::from("| bench | median | each | rate |\n|---|---:|---:|---:|\n");
    for row in rows {
        let (each, rate) = match row.work {
            Some(Work::Elements(count)) => (
                time(row.median / count),
                format!(
                    "{}/s",
                    scaled(count / row.median * 1e9, 1000.0, &["", " k", " M", " G"])
                ),
            ),
            Some(Work::Bytes(count)) => {
                let bytes = count / row.median * 1e9;
                let units = [" B", " KiB", " MiB", " GiB"];
                (
                    String::new(),
                    format!("{}/s", scaled(bytes, 1024.0, &units)),
                )
            }
            None => Default::default(),
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            table,
            "| {} | {} | {each} | {rate} |",
            row.name,
            time(row.median)
        );
    }
    table
}

fn time(nanoseconds: f64) -> String {
    scaled(nanoseconds, 1000.0, &[" ns", " µs", " ms", " s"])
}

/// Three figures in the largest unit that leaves at least one before the point.
fn scaled(mut value: f64, step: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while value >= step && unit + 1 < units.len() {
        value /= step;
        unit += 1;
    }
    let digits = match value {
        v if v >= 100.0 => 0,
        v if v >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(directory: &Path, full_id: &str, throughput: &str, median: f64) {
        let new = directory.join(full_id).join("new");
        std::fs::create_dir_all(&new).unwrap();
        let benchmark = format!(r#"{{"full_id":"{full_id}","throughput":{throughput}}}"#);
        let estimates = format!(r#"{{"median":{{"point_estimate":{median}}}}}"#);
        std::fs::write(new.join("benchmark.json"), benchmark).unwrap();
        std::fs::write(new.join("estimates.json"), estimates).unwrap();
    }

    #[test]
    fn results_become_rows_by_name() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), "trip/b", r#"{"Elements":100}"#, 250_000.0);
        write(directory.path(), "trip/a", "null", 12.34);
        write(directory.path(), "codec/c", r#"{"Bytes":4096}"#, 1000.0);
        let rows = read(directory.path()).unwrap();
        assert_eq!(
            markdown(&rows).lines().skip(2).collect::<Vec<_>>(),
            [
                "| codec: c | 1.00 µs |  | 3.81 GiB/s |",
                "| trip: a | 12.3 ns |  |  |",
                "| trip: b | 250 µs | 2.50 µs | 400 k/s |",
            ]
        );
    }

    #[test]
    fn what_is_not_there_is_an_error_that_says_what_to_run() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&directory.path().join("criterion")).unwrap_err();
        assert!(error.to_string().contains("cargo bench"), "{error}");
    }
}
