//! docs/selftests.md, made of the table; the run holds the table against what happens.

use crate::known::{self, KNOWN};
use crate::places::{self, Column};
use crate::table::{LEFT_OUT, Place, SELFTESTS};
use nvmx_lab::Kernel;
use std::fmt::Write;
use std::path::Path;

const HEAD: &str = "\
# Linux's KVM selftests

Made of the table in `cli/tests/selftests/table.rs`; do not edit. `make docs` writes it anew, and
`cargo test -p nvmx --test selftests` holds the table against what really happens.

The programs are those of Debian's linux-source-6.1 and linux-source-6.12, unchanged (`lab/setup.sh --selftests` builds
them). `kvm` is real KVM of that same kernel in the lab, on Bochs' VMX; `shim` is the model behind `nvmx shim`. \"skip\" is
the test's own word (exit status 4) that something which it needs is missing: it is not counted as passed.

";

/// Writes the page if asked to; says what is wrong with the committed one.
pub(crate) fn check(columns: &[Column]) -> Vec<String> {
    let mut wrong = Vec::new();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/selftests.md");
    let page = page();
    if std::env::var_os("NVMX_WRITE_DOCS").is_some() {
        if let Err(error) = std::fs::write(&path, &page) {
            wrong.push(format!("docs/selftests.md: {error}"));
        }
    } else if std::fs::read_to_string(&path).unwrap_or_default() != page {
        wrong.push("docs/selftests.md is not what the table says: run `make docs`".into());
    }
    for column in columns {
        for program in places::unlisted(column) {
            wrong.push(format!(
                "{program} of {} is neither in SELFTESTS nor in LEFT_OUT",
                column.kernel
            ));
        }
    }
    for known in KNOWN {
        let test = SELFTESTS.iter().find(|test| test.name() == known.test);
        for &kernel in known.kernels {
            if test.and_then(|test| test.program(kernel)).is_none() {
                wrong.push(format!("{} {kernel}: no such test", known.test));
            }
        }
    }
    wrong
}

fn page() -> String {
    let mut text = HEAD.to_owned();
    let columns: Vec<(Place, Kernel)> = [Place::Kvm, Place::Shim]
        .into_iter()
        .flat_map(|place| Kernel::ALL.map(|kernel| (place, kernel)))
        .collect();
    let names: Vec<String> = columns
        .iter()
        .map(|(place, kernel)| format!("{} {kernel}", place.word()))
        .collect();
    let _ = writeln!(text, "| test | {} | what it is about |", names.join(" | "));
    let _ = writeln!(text, "|---|{}---|", "---|".repeat(columns.len()));
    let mut passed = vec![0; columns.len()];
    let mut all = vec![0; columns.len()];
    for test in SELFTESTS {
        let mut cells = Vec::new();
        for (at, &(place, kernel)) in columns.iter().enumerate() {
            let cell = match (test.program(kernel), known::find(place, kernel, test)) {
                (None, _) => "·",
                (Some(_), Some(known)) => known.verdict.word(),
                (Some(_), None) => "pass",
            };
            all[at] += u32::from(cell != "·");
            passed[at] += u32::from(cell == "pass");
            cells.push(cell);
        }
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            test.title(),
            cells.join(" | "),
            test.concerns
        );
    }
    let sums: Vec<String> = passed
        .iter()
        .zip(&all)
        .map(|(passed, all)| format!("{passed} of {all}"))
        .collect();
    let _ = writeln!(text, "| **pass** | {} | |", sums.join(" | "));
    text.push_str(
        "\n## What does not pass, and why\n\n| test | where | how | why |\n|---|---|---|---|\n",
    );
    for known in KNOWN {
        let kernels: Vec<&str> = known.kernels.iter().map(|kernel| kernel.name()).collect();
        let _ = writeln!(
            text,
            "| {} | {} {} | {} | {} |",
            known.test,
            known.place.word(),
            kernels.join(", "),
            known.verdict.word(),
            known.reason
        );
    }
    text.push_str("\n## What is not run\n\n| programs | why |\n|---|---|\n");
    for (start, reason) in LEFT_OUT {
        let star = if start.ends_with('_') { "*" } else { "" };
        let _ = writeln!(text, "| {start}{star} | {reason} |");
    }
    text
}
