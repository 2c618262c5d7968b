//! The command on files: convert, show, diff, their exit codes, and input that is not what it should be.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn nvmx(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvmx"))
        .args(arguments)
        .env_remove("NVMX_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn state(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/nested-state");
    folder.join(name).to_string_lossy().into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The command fails with status 2, one line that names all of `words`, and no panic.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = nvmx(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
    assert!(!error.contains("panicked"), "{error}");
    for word in words {
        assert!(
            error.contains(word),
            "{arguments:?} does not say {word:?}: {error}"
        );
    }
}

#[test]
fn every_state_survives_convert() {
    let folder = tempfile::tempdir().unwrap();
    let (ron, bin) = (folder.path().join("x.ron"), folder.path().join("y.bin"));
    let mut count = 0;
    for entry in std::fs::read_dir(Path::new(&state("x")).parent().unwrap()).unwrap() {
        let path: PathBuf = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "bin") {
            continue;
        }
        assert!(nvmx(&["convert", text(&path), text(&ron)]).status.success());
        assert!(nvmx(&["convert", text(&ron), text(&bin)]).status.success());
        assert_eq!(
            std::fs::read(&path).unwrap(),
            std::fs::read(&bin).unwrap(),
            "{}",
            path.display()
        );
        let diff = nvmx(&["diff", "--strict", text(&path), text(&ron)]);
        assert_eq!(diff.status.code(), Some(0));
        count += 1;
    }
    assert!(count >= 38, "only {count} files");
    // Nothing but the two files: no temporary file is left.
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn show_explains_and_speaks_json() {
    let shown = nvmx(&["show", &state("state-10.bin")]);
    assert_eq!(shown.status.code(), Some(0));
    let shown = String::from_utf8(shown.stdout).unwrap();
    for word in [
        "L2 runs",
        "Shadow vmcs12",
        "VMCS link",
        "GUEST_MODE",
        "primary",
    ] {
        assert!(shown.contains(word), "{word} is missing:\n{shown}");
    }
    assert!(!shown.contains('\x1b'), "colour without a terminal");
    let json = nvmx(&["show", "--json", &state("preemption-timer-01.bin")]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["vcpus"][0]["level"], "L2");
}

#[test]
fn diff_has_three_exit_codes() {
    let (a, b) = (state("state-05.bin"), state("state-06.bin"));
    assert_eq!(nvmx(&["diff", &a, &a]).status.code(), Some(0));
    assert_eq!(nvmx(&["diff", &a, &b]).status.code(), Some(1));
    refused(
        &["diff", &a, "/nonexistent.bin"],
        &["/nonexistent.bin", "cannot read", "check the path"],
    );
    let json = nvmx(&["diff", "--json", &a, &b]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert!(
        json["rows"]
            .as_array()
            .unwrap()
            .iter()
            .any(|row| row["path"] == "vcpu0.nested.flags")
    );
}

#[test]
fn damaged_files_are_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let (short, flipped, huge, not_text, ron) = (
        at("short.bin"),
        at("flipped.ron"),
        at("huge.ron"),
        at("not-text.ron"),
        at("x.ron"),
    );
    std::fs::write(&short, [0; 127]).unwrap();
    refused(&["show", &short], &["short.bin", "127"]);
    assert!(
        nvmx(&["convert", &state("state-06.bin"), &ron])
            .status
            .success()
    );
    let mut bytes = std::fs::read(&ron).unwrap();
    let middle = bytes.len() / 2;
    bytes.truncate(middle);
    std::fs::write(&flipped, &bytes).unwrap();
    refused(&["show", &flipped], &["flipped.ron", "line"]);
    let file = std::fs::File::create(&huge).unwrap();
    file.set_len(1 << 40).unwrap();
    refused(&["show", &huge], &["huge.ron", "limit"]);
    std::fs::copy(state("state-06.bin"), &not_text).unwrap();
    refused(&["show", &not_text], &["not-text.ron", ".bin"]);
    refused(&["replay", &ron], &["x.ron", "lacks memory"]);
    refused(
        &["show", &folder.path().to_string_lossy()],
        &["cannot read"],
    );
}

#[test]
fn images_that_are_none_are_refused() {
    refused(&["run", &state("state-06.bin")], &["state-06.bin"]);
    refused(&["run", "/nonexistent"], &["/nonexistent", "cannot read"]);
    refused(&["run", "example:nonexistent"], &["no such example"]);
    refused(
        &["run", "example:exits", "--backend", "remote:127.0.0.1:1"],
        &["127.0.0.1:1"],
    );
    refused(
        &["run", "example:exits", "--backend", "qemu"],
        &["known are soft, kvm"],
    );
    refused(
        &["run", "example:exits", "--memory", "0"],
        &["invalid value '0' for '--memory"],
    );
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    refused(
        &["convert", &state("state-06.bin"), "/dev/full"],
        &["/dev/full", "free some space"],
    );
    let folder = tempfile::tempdir().unwrap();
    // Root can have a real full disk; elsewhere the device above must do.
    let mounted = Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            "size=8k",
            "nvmx-test",
            text(folder.path()),
        ])
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if mounted {
        let target = folder.path().join("x.ron");
        refused(
            &["convert", &state("state-10.bin"), text(&target)],
            &["x.ron", "free some space"],
        );
        let left: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
        let _ = Command::new("umount").arg(folder.path()).status();
        assert!(left.is_empty(), "left behind: {left:?}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_trouble() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_nvmx"))
        .args(["completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert_ne!(output.status.code(), Some(101));
}

#[test]
fn help_shows_examples() {
    for command in [
        "run", "snapshot", "show", "diff", "replay", "compare", "convert", "lab", "agent",
        "backends",
    ] {
        let output = nvmx(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        let help = String::from_utf8(output.stdout).unwrap();
        assert!(help.contains("Examples:"), "{command}");
    }
}
