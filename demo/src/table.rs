//! The table that people read, and below it what each word in it means.

use crate::{INSTANTS, Row};
use nvmx_snapshots::Diff;
use nvmx_snapshots::policy::Class;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A policy that explained something, with its kind and reason.
type Explained<'a> = (&'static str, Class, &'a str);

/// Rows and memory of a diff that nothing explains, in words.
pub(crate) fn unexplained_state(diff: &Diff) -> Vec<String> {
    let none = || "nothing".to_owned();
    let rows = diff.rows.iter().filter(|row| row.class.is_unexplained());
    let rows = rows.map(|row| {
        let (left, right) = (row.left.clone(), row.right.clone());
        format!(
            "{}: {} on KVM, {} on soft",
            row.path,
            left.unwrap_or_else(none),
            right.unwrap_or_else(none)
        )
    });
    let memory = diff
        .memory
        .iter()
        .filter(|range| range.class.is_unexplained());
    let memory = memory.map(|range| {
        format!(
            "memory {:#x}, {} pages, first at {:#x}: {:#04x} on KVM, {:#04x} on soft",
            range.address, range.pages, range.first, range.bytes.0, range.bytes.1
        )
    });
    rows.chain(memory).collect()
}

fn explained(diff: &Diff) -> impl Iterator<Item = Explained<'_>> {
    let rows = diff
        .rows
        .iter()
        .map(|row| (row.policy, row.class, row.reason));
    let memory = diff
        .memory
        .iter()
        .map(|range| (range.policy, range.class, range.reason));
    rows.chain(memory)
        .filter_map(|(policy, class, reason)| Some((policy?, class, reason.unwrap_or_default())))
        .filter(|(_, class, _)| !class.is_unexplained())
}

/// The whole answer.
pub(crate) fn render(rows: &[Row]) -> String {
    let mut text = String::from(
        "Snapshots that real KVM took, replayed on the software model to the guest's end, beside where real KVM went.\n\n",
    );
    let head = [
        "snapshot",
        "taken by",
        "level",
        "events",
        "end",
        "unexplained",
        "time",
    ];
    let lines: Vec<[String; 7]> = rows
        .iter()
        .map(|row| {
            [
                row.instant.to_owned(),
                row.kernel.clone(),
                row.level.to_owned(),
                row.nested_events.to_string(),
                row.end.clone(),
                row.unexplained.len().to_string(),
                format!("{:.2} s", row.took.as_secs_f64()),
            ]
        })
        .collect();
    let mut widths = head.map(str::len);
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut put = |cells: [&str; 7], last: &str| {
        for (column, (cell, width)) in cells.iter().zip(widths).enumerate() {
            // Numbers to the right.
            let _ = match column {
                3 | 5 | 6 => write!(text, "{cell:>width$}  "),
                _ => write!(text, "{cell:<width$}  "),
            };
        }
        let _ = writeln!(text, "{last}");
    };
    put(head, "explained by");
    for (line, row) in lines.iter().zip(rows) {
        put(line.each_ref().map(String::as_str), &policies(&row.diff));
    }
    text.push('\n');
    legend(&mut text, rows);
    for row in rows.iter().filter(|row| !row.unexplained.is_empty()) {
        let _ = writeln!(
            text,
            "\nunexplained, {} of Linux {}:",
            row.instant, row.kernel
        );
        for what in &row.unexplained {
            let _ = writeln!(text, "  {what}");
        }
    }
    let events: usize = rows.iter().map(|row| row.nested_events).sum();
    let bad: usize = rows.iter().map(|row| row.unexplained.len()).sum();
    let _ = writeln!(
        text,
        "\n{} snapshots, {events} nested events replayed, {bad} unexplained differences",
        rows.len()
    );
    text
}

/// Names and counts: what was compared and differs for a known reason.
fn policies(diff: &Diff) -> String {
    let mut counts = BTreeMap::<&str, usize>::new();
    for (policy, ..) in explained(diff) {
        *counts.entry(policy).or_default() += 1;
    }
    let words: Vec<_> = counts
        .iter()
        .map(|(policy, count)| format!("{policy} x{count}"))
        .collect();
    words.join(", ")
}

fn legend(text: &mut String, rows: &[Row]) {
    for (instant, what) in INSTANTS {
        let _ = writeln!(text, "  {instant:<14} {what}");
    }
    text.push_str(
        "\nevents: nested VM entries and exits that soft ran; KVM's tracepoints counted as many.\n\
         The guest's own log of its exits is equal too, and 'end' is what it wrote to its debug-exit port\n\
         (16 is success). Explained differences and why:\n",
    );
    let all: BTreeSet<(&str, &str, &str)> = rows
        .iter()
        .flat_map(|row| explained(&row.diff))
        .map(|(policy, class, reason)| (policy, class.name(), reason))
        .collect();
    for (policy, class, reason) in all {
        let _ = writeln!(text, "  {policy} ({class}): {reason}");
    }
    let not_compared: BTreeSet<&String> =
        rows.iter().flat_map(|row| &row.diff.not_compared).collect();
    for part in not_compared {
        let what = part.replace("left", "KVM").replace("right", "soft");
        let _ = writeln!(text, "  not compared: {what}");
    }
}
