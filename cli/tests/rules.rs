//! `check` with processors and personalities, `profiles`, and `run --personality`.

use std::path::Path;
use std::process::{Command, Output, Stdio};

fn nvmx(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nvmx"))
        .args(arguments)
        .env_remove("NVMX_LOG")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn state(name: &str) -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/tests/data/nested-state");
    folder.join(name).to_string_lossy().into_owned()
}

#[test]
fn profiles_are_listed_and_shown() {
    let list = stdout(&nvmx(&["profiles"]));
    for name in ["max", "skylake-sp", "bochs-icelake", "kvm-6.12"] {
        assert!(list.contains(name), "{name}:\n{list}");
    }
    let shown = stdout(&nvmx(&["profiles", "sapphire-rapids"]));
    for words in [
        "IA32_VMX_PROCBASED_CTLS2",
        "Mode-based execute control for EPT",
        "computed: the bits of CR4 that CPUID has",
        "Not on soft",
    ] {
        assert!(shown.contains(words), "{words}:\n{shown}");
    }
    let json: serde_json::Value =
        serde_json::from_slice(&nvmx(&["profiles", "kvm-6.1", "--json"]).stdout).unwrap();
    assert_eq!(json["personality"], "kvm");
    assert_eq!(json["vmx_msrs"][0]["value"], "0x00d8100011e57ed0");
    let unknown = nvmx(&["profiles", "80286"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("known are max"));
}

#[test]
fn a_state_is_checked_on_several_processors() {
    let file = state("state-10.bin");
    let one = nvmx(&["check", &file, "--profile", "kvm-6.1"]);
    let text = stdout(&one);
    assert!(
        text.contains("for kvm-6.1") && text.contains("restore:"),
        "{text}"
    );
    let sdm = stdout(&nvmx(&["check", &file, "--personality", "sdm"]));
    assert!(
        sdm.contains("VM entry (sdm)") && !sdm.contains("restore:"),
        "{sdm}"
    );
    let both = nvmx(&[
        "check",
        &file,
        "--profile",
        "kvm-6.1",
        "--profile",
        "kvm-6.12",
    ]);
    assert_eq!(both.status.code(), one.status.code());
    assert!(
        stdout(&both).contains("restores on kvm-6.1, kvm-6.12"),
        "{}",
        stdout(&both)
    );
}

#[test]
fn a_bare_region_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let page = folder.path().join("page.bin");
    let state = std::fs::read(state("state-10.bin")).unwrap();
    std::fs::write(&page, &state[128..128 + 4096]).unwrap();
    let checked = nvmx(&["check", page.to_str().unwrap(), "--profile", "kvm-6.1"]);
    let text = stdout(&checked);
    assert!(
        text.contains("rules of VM entry fail, for kvm-6.1"),
        "{text}"
    );
}

#[test]
fn the_personality_of_a_run_is_chosen() {
    for whose in ["kvm", "sdm"] {
        let run = nvmx(&["run", "example:exits", "--personality", whose]);
        assert_eq!(run.status.code(), Some(0), "{whose}: {run:?}");
    }
    let bad = nvmx(&["run", "example:exits", "--personality", "amd"]);
    assert_eq!(bad.status.code(), Some(2));
}
