//! docs/rules.md is made of the tables in the code: this writes it anew and holds the committed one against
//! it. `make docs` writes it.

use nvmx_core::personality;
use nvmx_core::profiles::bochs::{self, DEPARTURES};
use nvmx_core::profiles::{self, Profile, rows, why_not};
use nvmx_core::vmx::capability::{Capability, ControlField, EptVpid};
use nvmx_core::vmx::entry::checks::{self, Class, Enforcement};
use nvmx_core::vmx::exit::priority;
use nvmx_core::vmx::instructions::rules::{self, NEVER, Outcome};
use nvmx_core::vmx::intercepts;
use nvmx_snapshots::policy::POLICIES;
use std::fmt::Write;
use std::path::Path;

/// The columns of the tables of controls.
const COLUMNS: &[&str] = &[
    "skylake-sp",
    "ice-lake-sp",
    "sapphire-rapids",
    "bochs-icelake",
    "bochs-sapphire-rapids",
    "kvm-6.1",
    "kvm-6.12",
    "kvm-6.1-sapphire-rapids",
];

const HEAD: &str = "\
# Rules and controls

Made of the tables in the code; do not edit. `make docs` writes it anew.

- [Controls](#controls): what each processor offers (`nvmx profiles`), and what `soft` carries out
- [Rules of VM entry](#rules-of-vm-entry): who enforces each
- [VMX instructions](#vmx-instructions): when they fault, exit or fail
- [Priorities](#priorities): what comes first at a boundary of L2
- [Where KVM differs from the SDM](#where-kvm-differs-from-the-sdm): what `--personality` selects
- [Known divergences](#known-divergences): what a comparison explains

";

fn mark(yes: bool) -> &'static str {
    if yes { "yes" } else { "·" }
}

fn columns() -> impl Iterator<Item = &'static Profile> {
    COLUMNS
        .iter()
        .map(|name| profiles::find(name).unwrap_or_else(|| panic!("{name} is no profile")))
}

fn heading(text: &mut String, first: &[&str]) {
    let names: Vec<_> = first
        .iter()
        .copied()
        .chain(COLUMNS.iter().copied())
        .collect();
    let _ = writeln!(text, "| {} | soft |", names.join(" | "));
    let _ = writeln!(text, "|{}", "---|".repeat(names.len() + 1));
}

fn title(field: ControlField) -> &'static str {
    match field {
        ControlField::PinBased => "Pin-based VM-execution controls",
        ControlField::Primary => "Primary processor-based VM-execution controls",
        ControlField::Secondary => "Secondary processor-based VM-execution controls",
        ControlField::Tertiary => "Tertiary processor-based VM-execution controls",
        ControlField::Exit => "VM-exit controls",
        ControlField::SecondaryExit => "Secondary VM-exit controls",
        ControlField::Entry => "VM-entry controls",
    }
}

fn controls(text: &mut String) {
    text.push_str(
        "## Controls\n\n\"yes\" where the control may be 1. The last column is the software model: whether it \
         carries the control out, where it is offered.\n",
    );
    for field in ControlField::ALL {
        let _ = writeln!(text, "\n### {}\n", title(field));
        heading(text, &["bit", "control"]);
        for row in rows(field) {
            let offers = |profile: &Profile| {
                let msrs = profile.vmx_msrs();
                Capability::new(&msrs).allowed(field).may_be_one >> row.bit & 1 != 0
            };
            let cells: Vec<_> = columns().map(|profile| mark(offers(profile))).collect();
            let soft = if why_not(field, row.bit).is_none() {
                "carried out"
            } else {
                "no"
            };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {soft} |",
                row.bit,
                row.name,
                cells.join(" | ")
            );
        }
    }
    text.push_str("\n### EPT and VPID capabilities\n\n");
    heading(text, &["capability"]);
    let max = profiles::find("max").expect("a profile").for_soft().model;
    for (name, bit) in EptVpid::all().iter_names() {
        let has = |msrs: &_| Capability::new(msrs).ept_vpid().contains(bit);
        let cells: Vec<_> = columns()
            .map(|profile| mark(has(&profile.vmx_msrs())))
            .collect();
        let _ = writeln!(
            text,
            "| {} | {} | {} |",
            name.to_lowercase().replace('_', " "),
            cells.join(" | "),
            mark(has(&max.vmx_msrs))
        );
    }
}

fn entry_rules(text: &mut String) {
    text.push_str(
        "\n## Rules of VM entry\n\nBy the SDM every rule holds. On KVM: \"software\" is KVM's own check, at VM \
         entry and, where it says so, at `KVM_SET_NESTED_STATE` (6.1 and 6.12 alike); \"processor\" is left to the \
         processor that KVM runs on. `soft` enforces by its personality: all, or what KVM on a processor \
         does. The last column has what is \
         known to differ on Bochs 2.7.\n\n\
         | rule | must hold | else | sdm | kvm | bochs |\n|---|---|---|---|---|---|\n",
    );
    for rule in checks::all() {
        let outcome = match rule.class {
            Class::InvalidControl => "VMfail 7",
            Class::InvalidHostState => "VMfail 8",
            Class::InvalidGuestState(_) => "exit 33",
        };
        let kvm = match rule.enforcement {
            Enforcement::Software => "software, restore too",
            Enforcement::SoftwareAtEntry => "software",
            Enforcement::SoftwareIfPending => "software, restore with RUN_PENDING too",
            Enforcement::Processor => "processor",
            Enforcement::Nobody => "nobody",
        };
        let bochs = bochs::departure(rule.id).unwrap_or("·");
        let _ = writeln!(
            text,
            "| `{}` | {} | {outcome} | yes | {kvm} | {bochs} |",
            rule.id, rule.text
        );
    }
}

fn instruction_rules(text: &mut String) {
    text.push_str(
        "\n## VMX instructions\n\nIn the order of the SDM's pseudo code: the first row that applies decides.\n\n\
         | rule | if | then |\n|---|---|---|\n",
    );
    for rule in rules::all() {
        let outcome = match rule.outcome {
            Outcome::Undefined => "#UD".to_owned(),
            Outcome::GeneralProtection => "#GP(0)".to_owned(),
            Outcome::Exit => "VM exit".to_owned(),
            Outcome::FailInvalid => "VMfailInvalid".to_owned(),
            Outcome::Fail(error) => format!("VMfail {}: {error}", error.0),
        };
        let _ = writeln!(text, "| `{}` | {} | {outcome} |", rule.id, rule.text);
    }
    text.push_str("\nVM-instruction errors that never come:\n\n| error | why |\n|---|---|\n");
    for (error, why) in NEVER {
        let _ = writeln!(text, "| {}: {error} | {why} |", error.0);
    }
}

fn priorities(text: &mut String) {
    text.push_str(
        "\n## Priorities\n\nWhat waits at one boundary between instructions of L2, first what comes first.\n\n\
         | event | what happens | SDM |\n|---|---|---|\n",
    );
    for row in priority::BOUNDARY {
        let _ = writeln!(text, "| `{}` | {} | {} |", row.id, row.text, row.section);
    }
    text.push_str(
        "\nAn instruction of L2 that would both fault and exit:\n\n\
         | rule | comes first | which | SDM |\n|---|---|---|---|\n",
    );
    for row in intercepts::priority::INSTRUCTIONS {
        let first = match row.first {
            intercepts::priority::First::Fault(vector) => format!("exception {vector}"),
            intercepts::priority::First::Exit => "VM exit".to_owned(),
        };
        let _ = writeln!(
            text,
            "| `{}` | {first} | {} | {} |",
            row.id, row.text, row.section
        );
    }
}

fn personalities(text: &mut String) {
    text.push_str(
        "\n## Where KVM differs from the SDM\n\n| respect | SDM | sdm | kvm | in Linux | why |\n|---|---|---|---|---|---|\n",
    );
    for row in personality::ROWS {
        let functions: Vec<_> = row.function.split(", ").map(|f| format!("`{f}`")).collect();
        let _ = writeln!(
            text,
            "| `{}` | {} | {} | {} | {} | {} |",
            row.id,
            row.section,
            row.sdm,
            row.kvm,
            functions.join(", "),
            row.reason
        );
    }
}

fn divergences(text: &mut String) {
    text.push_str(
        "\n## Known divergences\n\nDifferences of state that `nvmx diff` and `nvmx compare` explain; each applies \
         only where its condition holds.\n\n| policy | kind | reason |\n|---|---|---|\n",
    );
    for policy in POLICIES {
        let reason = policy.reason.replace('|', "\\|");
        let _ = writeln!(
            text,
            "| `{}` | {} | {reason} |",
            policy.id,
            policy.class.name()
        );
    }
    text.push_str(
        "\n### Bochs 2.7\n\nWhat the lab's processor does otherwise than the SDM.\n\n\
         | concerns | what |\n|---|---|\n",
    );
    for row in DEPARTURES {
        let concerns = match row.concerns {
            "" => "·".to_owned(),
            id => format!("`{id}`"),
        };
        let _ = writeln!(text, "| {concerns} | {} |", row.text);
    }
}

fn page() -> String {
    let mut text = HEAD.to_owned();
    controls(&mut text);
    entry_rules(&mut text);
    instruction_rules(&mut text);
    priorities(&mut text);
    personalities(&mut text);
    divergences(&mut text);
    text
}

#[test]
fn the_page_is_what_the_tables_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/rules.md");
    let page = page();
    if std::env::var_os("NVMX_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().expect("docs/")).expect("docs/ can be made");
        std::fs::write(&path, &page).expect("docs/rules.md can be written");
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let line = committed
        .lines()
        .zip(page.lines())
        .position(|(a, b)| a != b)
        .map_or(0, |at| at + 1);
    assert!(
        committed == page,
        "docs/rules.md is not what the tables say, from line {line} on: `make docs` writes it anew"
    );
}

#[test]
fn every_table_has_its_rows() {
    let page = page();
    for words in [
        "| 27 | Monitor trap flag |",
        "| `guest.cr0.pg_needs_pe` |",
        "| `vmptrld.revision` |",
        "| `external-interrupt` |",
        "| `sysenter-address` |",
    ] {
        assert!(page.contains(words), "{words}");
    }
    // A cell with a bar in it would shift the row.
    for line in page.lines().filter(|line| line.starts_with('|')) {
        assert!(line.ends_with('|'), "{line}");
    }
}
