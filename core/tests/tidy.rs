//! Laws of the tree that no compiler holds: read from the files themselves, so that one look here
//! says what every crate promises.
//!
//! Each law is a function from a file's text to its complaints; [`the_tree_is_tidy`] asks all of them
//! about every file, and [`each_law_can_fail`] shows that none of them is asleep.

use std::fs;
use std::path::{Path, PathBuf};

/// Lines that a source file may have: one idea a file.
const MAX_LINES: usize = 600;

/// Files that are longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];

/// Where `unsafe` may stand: unicorn's inside, ioctls and mappings, raw port I/O.
const UNSAFE_ROOMS: &[&str] = &[
    "backends/soft/",
    "backends/kvm/",
    "backends/remote/src/port_io.rs",
    "backends/shim/src/os/",
    "backends/shim/preload/",
];

/// Crate roots that cannot forbid `unsafe` because of such a room.
const NOT_FORBIDDING: &[&str] = &[
    "backends/soft/src/lib.rs",
    "backends/kvm/src/lib.rs",
    "backends/remote/src/lib.rs",
    "backends/shim/src/lib.rs",
    "backends/shim/preload/src/lib.rs",
];

/// What nvmx-core may depend on: no crate that does I/O, and none of ours.
const CORE_MAY_USE: &[&str] = &["bitflags", "bitvec", "serde", "thiserror"];

/// Modules of the standard library that reach the outside world or a clock.
const OUTSIDE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "time::Instant",
    "time::SystemTime",
];

/// Folders of the crates that link unicorn whatever the features, and so are GPL-2.0-only.
const LINKS_UNICORN: &[&str] = &[
    "backends/soft",
    "backends/shim",
    "backends/shim/preload",
    "benches",
    "demo",
];

/// Crates under GPL-2.0 or with such code in them.
const GPL: &[&str] = &[
    "nvmx-soft",
    "nvmx-shim",
    "nvmx-preload",
    "nvmx-benches",
    "nvmx-demo",
    "unicorn-engine",
    "unicorn-engine-sys",
];

/// The arrows of the workspace: a crate, and which of ours it may depend on.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("machine", &["nvmx-core"]),
    ("backends/soft", &["nvmx-core"]),
    ("backends/abi", &["nvmx-core"]),
    ("backends/kvm", &["nvmx-core", "nvmx-abi"]),
    ("backends/remote", &["nvmx-core"]),
    (
        "backends/shim",
        &["nvmx-core", "nvmx-abi", "nvmx-machine", "nvmx-soft"],
    ),
    ("backends/shim/preload", &["nvmx-core", "nvmx-shim"]),
    ("snapshots", &["nvmx-core", "nvmx-machine"]),
    ("examples", &["nvmx-core", "nvmx-machine"]),
    ("lab", &["nvmx-core", "nvmx-machine", "nvmx-remote"]),
    (
        "cli",
        &[
            "nvmx-core",
            "nvmx-machine",
            "nvmx-soft",
            "nvmx-kvm",
            "nvmx-remote",
            "nvmx-shim",
            "nvmx-preload",
            "nvmx-snapshots",
            "nvmx-examples",
            "nvmx-lab",
            "nvmx-campaign",
        ],
    ),
    (
        "campaign",
        &["nvmx-core", "nvmx-machine", "nvmx-examples", "nvmx-lab"],
    ),
    (
        "demo",
        &["nvmx-core", "nvmx-machine", "nvmx-soft", "nvmx-snapshots"],
    ),
    (
        "benches",
        &[
            "nvmx-core",
            "nvmx-machine",
            "nvmx-soft",
            "nvmx-snapshots",
            "nvmx-examples",
        ],
    ),
];

/// Beginnings of paths that exist on one machine alone, cut so that this file does not name them.
const MACHINE_PATHS: &[&str] = &[
    concat!("/wo", "rk/"),
    concat!("/tmp/", "nvmx"),
    concat!("/ho", "me/"),
];

/// A law: complaints about a file, by its path in the tree and its text.
type Law = fn(&str, &str) -> Vec<String>;

const LAWS: &[(&str, Law)] = &[
    ("opens with //!", opens_with_its_purpose),
    ("short", is_short),
    ("unsafe in its rooms", unsafe_is_in_its_rooms),
    ("unsafe is forbidden", forbids_unsafe),
    ("modules are documented", modules_are_documented),
    ("core reaches nothing", core_reaches_nothing),
    ("arrows", follows_the_arrows),
    ("GPL", keeps_gpl_apart),
    ("no machine path", names_no_machine),
    ("personality is asked by a row's name", asks_the_table),
];

fn is_rust(path: &str) -> bool {
    path.ends_with(".rs")
}

/// Whether a source file is compiled for tests alone.
fn is_test(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

fn opens_with_its_purpose(path: &str, text: &str) -> Vec<String> {
    if !is_rust(path) || text.starts_with("//! ") {
        return Vec::new();
    }
    vec!["does not open with a line of //! that says what it is".into()]
}

fn is_short(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    if !is_rust(path) || lines <= MAX_LINES || LONGER.iter().any(|(file, _)| *file == path) {
        return Vec::new();
    }
    vec![format!("{lines} lines, of {MAX_LINES}")]
}

fn unsafe_is_in_its_rooms(path: &str, text: &str) -> Vec<String> {
    if !is_rust(path) || UNSAFE_ROOMS.iter().any(|room| path.starts_with(room)) {
        return Vec::new();
    }
    let uses = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.match_indices("unsafe").any(|(at, word)| {
            let before = code[..at].chars().next_back();
            let after = code[at + word.len()..].trim_start();
            !before.is_some_and(|c| c.is_alphanumeric() || "_\"`(".contains(c))
                && ["{", "fn ", "impl", "extern", "trait"]
                    .iter()
                    .any(|next| after.starts_with(next))
        })
    };
    text.lines()
        .zip(1..)
        .filter(|(line, _)| uses(line))
        .map(|(_, number)| format!("line {number}: unsafe code outside its rooms"))
        .collect()
}

fn forbids_unsafe(path: &str, text: &str) -> Vec<String> {
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if !is_root || NOT_FORBIDDING.contains(&path) || text.contains("\n#![forbid(unsafe_code)]\n") {
        return Vec::new();
    }
    vec!["a crate root without #![forbid(unsafe_code)]".into()]
}

/// A module in a file of its own is documented there; one in braces needs its line above.
fn modules_are_documented(path: &str, text: &str) -> Vec<String> {
    if !is_rust(path) {
        return Vec::new();
    }
    let mut complaints = Vec::new();
    let mut documented = false;
    for line in text.lines().map(str::trim_start) {
        if line.starts_with("pub mod ") && line.ends_with('{') && !documented {
            complaints.push(format!("{line} without a /// above it"));
        }
        // Attributes may stand between a comment and its item.
        // In a macro the comment comes from its caller: `$(#[$meta])*`.
        documented = line.starts_with("///")
            || line.starts_with("$(#[")
            || (documented && line.starts_with("#["));
    }
    complaints
}

fn core_reaches_nothing(path: &str, text: &str) -> Vec<String> {
    if path == "core/Cargo.toml" {
        return dependencies(text)
            .filter(|name| !CORE_MAY_USE.contains(name))
            .map(|name| format!("depends on {name}; core may use {CORE_MAY_USE:?}"))
            .collect();
    }
    if !path.starts_with("core/src/") || !is_rust(path) || is_test(path) {
        return Vec::new();
    }
    OUTSIDE
        .iter()
        .filter(|outside| text.contains(*outside))
        .map(|outside| format!("core uses {outside}"))
        .collect()
}

/// Names under `[dependencies]`, `[build-dependencies]` and the like, development apart.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    manifest.lines().filter_map(move |line| {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && !line.contains("dev-dependencies");
            return None;
        }
        let is_entry = inside && line.starts_with(|c: char| c.is_ascii_alphabetic());
        is_entry.then(|| {
            line.split(['.', ' ', '='])
                .next()
                .unwrap_or_default()
                .trim_matches('"')
        })
    })
}

/// The folder of a member of the workspace whose manifest this is.
fn member(path: &str) -> Option<&str> {
    path.strip_suffix("/Cargo.toml")
}

fn follows_the_arrows(path: &str, text: &str) -> Vec<String> {
    let Some(folder) = member(path) else {
        return Vec::new();
    };
    let Some((_, allowed)) = ARROWS.iter().find(|(name, _)| *name == folder) else {
        return vec!["a crate that ARROWS in core/tests/tidy.rs does not know".into()];
    };
    dependencies(text)
        .filter(|name| name.starts_with("nvmx") && !allowed.contains(name))
        .map(|name| format!("depends on {name}, against the arrows of ARCHITECTURE.md"))
        .collect()
}

fn keeps_gpl_apart(path: &str, text: &str) -> Vec<String> {
    let Some(folder) = member(path) else {
        return Vec::new();
    };
    let is_gpl = LINKS_UNICORN.contains(&folder);
    let says_gpl = text.contains("\nlicense = \"GPL-2.0-only\"\n");
    let mut complaints = Vec::new();
    if is_gpl != says_gpl {
        complaints.push(format!(
            "license: GPL-2.0-only belongs to {LINKS_UNICORN:?}, to each and to no other"
        ));
    }
    if is_gpl {
        return complaints;
    }
    for name in dependencies(text).filter(|name| GPL.contains(name)) {
        let behind_feature = text
            .lines()
            .any(|line| line.starts_with(name) && line.contains("optional = true"));
        if folder != "cli" || !behind_feature {
            complaints.push(format!("depends on {name}, which is GPL-2.0"));
        }
    }
    complaints
}

fn names_no_machine(_path: &str, text: &str) -> Vec<String> {
    let names = |line: &str| MACHINE_PATHS.iter().any(|path| line.contains(path));
    text.lines()
        .zip(1..)
        .filter(|(line, _)| names(line))
        .map(|(line, number)| format!("line {number} names a path of one machine: {line}"))
        .collect()
}

/// Where KVM differs from the SDM is the business of core/src/personality.rs alone.
fn asks_the_table(path: &str, text: &str) -> Vec<String> {
    let asks = |line: &str| {
        let code = line.split("//").next().unwrap_or_default();
        code.contains("personality ==")
            || code.contains("personality !=")
            || code.contains("match") && code.contains(".personality")
            || code.contains("matches!") && code.contains("personality")
    };
    if !is_rust(path) || is_test(path) || path == "core/src/personality.rs" {
        return Vec::new();
    }
    text.lines()
        .zip(1..)
        .filter(|(line, _)| asks(line))
        .map(|(_, number)| {
            format!(
                "line {number} compares a personality: give the difference a row and ask `as_kvm`"
            )
        })
        .collect()
}

fn root() -> PathBuf {
    let core = Path::new(env!("CARGO_MANIFEST_DIR"));
    core.parent().unwrap_or(core).to_owned()
}

/// Every text file of the tree, with its path in it. Build results and what git ignores are none of it.
fn files(folder: &Path, root: &Path, found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).expect("the folder can be read") {
        let path = entry.expect("the entry can be read").path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        // In a second worktree `.git` is a file.
        if name == "target" || name == ".git" {
            continue;
        }
        if path.is_dir() {
            files(&path, root, found);
        } else if !name.starts_with("nvmx-divergence-")
            && let Ok(text) = fs::read_to_string(&path)
        {
            let inside = path.strip_prefix(root).unwrap_or(&path);
            found.push((inside.to_string_lossy().into_owned(), text));
        }
    }
}

#[test]
fn the_tree_is_tidy() {
    let root = root();
    let mut found = Vec::new();
    files(&root, &root, &mut found);
    let sources = found.iter().filter(|(path, _)| is_rust(path)).count();
    assert!(sources > 200, "only {sources} sources below {root:?}");
    let mut complaints = Vec::new();
    for (path, text) in &found {
        for (law, holds) in LAWS {
            let broken = holds(path, text);
            complaints.extend(
                broken
                    .into_iter()
                    .map(|what| format!("{path}: {law}: {what}")),
            );
        }
    }
    // A row of the table that no code asks about describes nothing.
    let is_asked = |name: &str| {
        let question = format!("as_kvm(Difference::{name})");
        found
            .iter()
            .any(|(path, text)| is_rust(path) && text.contains(&question))
    };
    for row in nvmx_core::personality::ROWS {
        if !is_asked(&format!("{:?}", row.difference)) {
            complaints.push(format!("personality: nobody asks for {:?}", row.difference));
        }
    }
    for (folder, _) in ARROWS {
        let manifest = format!("{folder}/Cargo.toml");
        if !found.iter().any(|(path, _)| *path == manifest) {
            complaints.push(format!("{manifest}: ARROWS names it, but it is not there"));
        }
    }
    for (file, _) in LONGER {
        let lines = found
            .iter()
            .find(|(path, _)| path == file)
            .map_or(0, |(_, text)| text.lines().count());
        if lines <= MAX_LINES {
            complaints.push(format!(
                "{file}: is an exception in LONGER without need: {lines} lines"
            ));
        }
    }
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

/// One text for each law that breaks it, and one that is near it and does not.
#[test]
fn each_law_can_fail() {
    let long = "//! x\n".repeat(MAX_LINES + 1);
    let machine_path = format!("see {}x", MACHINE_PATHS[0]);
    let gpl = "[package]\nlicense = \"GPL-2.0-only\"\n";
    let cases: &[(Law, &str, &str, bool)] = &[
        (opens_with_its_purpose, "a/src/x.rs", "use std;\n", true),
        (opens_with_its_purpose, "a/src/x.rs", "//! What.\n", false),
        (opens_with_its_purpose, "a/x.sh", "echo\n", false),
        (is_short, "a/src/x.rs", &long, true),
        (is_short, "a/x.md", &long, false),
        (
            unsafe_is_in_its_rooms,
            "core/src/x.rs",
            concat!("let a = uns", "afe { b };"),
            true,
        ),
        (
            unsafe_is_in_its_rooms,
            "core/src/x.rs",
            "// unsafe { b }",
            false,
        ),
        (
            unsafe_is_in_its_rooms,
            "core/src/x.rs",
            "#![forbid(unsafe_code)]",
            false,
        ),
        (
            unsafe_is_in_its_rooms,
            "backends/kvm/src/x.rs",
            "unsafe { b }",
            false,
        ),
        (forbids_unsafe, "core/src/lib.rs", "//! x\n", true),
        (
            forbids_unsafe,
            "core/src/lib.rs",
            "//! x\n#![forbid(unsafe_code)]\n",
            false,
        ),
        (
            modules_are_documented,
            "a/src/x.rs",
            "//! x\npub mod y {\n}",
            true,
        ),
        (
            modules_are_documented,
            "a/src/x.rs",
            "/// y\n#[rustfmt::skip]\npub mod y {\n}",
            false,
        ),
        (
            core_reaches_nothing,
            "core/src/x.rs",
            "use std::fs::File;",
            true,
        ),
        (
            core_reaches_nothing,
            "core/src/tests.rs",
            "use std::fs::File;",
            false,
        ),
        (
            core_reaches_nothing,
            "core/Cargo.toml",
            "[dependencies]\nlibc = \"0.2\"",
            true,
        ),
        (
            core_reaches_nothing,
            "core/Cargo.toml",
            "[dev-dependencies]\nlibc = \"0.2\"",
            false,
        ),
        (
            follows_the_arrows,
            "machine/Cargo.toml",
            "[dependencies]\nnvmx-kvm.workspace = true",
            true,
        ),
        (
            follows_the_arrows,
            "machine/Cargo.toml",
            "[dependencies]\nnvmx-core.workspace = true",
            false,
        ),
        (follows_the_arrows, "new/Cargo.toml", "", true),
        (
            keeps_gpl_apart,
            "lab/Cargo.toml",
            "[dependencies]\nnvmx-soft.workspace = true",
            true,
        ),
        (
            keeps_gpl_apart,
            "cli/Cargo.toml",
            "[dependencies]\nnvmx-soft.workspace = true",
            true,
        ),
        (
            keeps_gpl_apart,
            "cli/Cargo.toml",
            "[dependencies]\nnvmx-soft = { workspace = true, optional = true }",
            false,
        ),
        (keeps_gpl_apart, "lab/Cargo.toml", gpl, true),
        (keeps_gpl_apart, "backends/soft/Cargo.toml", gpl, false),
        (names_no_machine, "a/x.md", &machine_path, true),
        (names_no_machine, "a/x.md", "see works/", false),
        (
            asks_the_table,
            "core/src/x.rs",
            "if cpu.model.personality == Personality::Sdm {",
            true,
        ),
        (
            asks_the_table,
            "core/src/x.rs",
            "model.personality = it;",
            false,
        ),
    ];
    for (law, path, text, breaks) in cases {
        let complaints = law(path, text);
        assert_eq!(!complaints.is_empty(), *breaks, "{path}: {complaints:?}");
    }
    for (name, law) in LAWS {
        let is_tried = cases
            .iter()
            .any(|(tried, _, _, breaks)| *breaks && std::ptr::fn_addr_eq(*tried, *law));
        assert!(is_tried, "no case breaks the law {name:?}");
    }
}
