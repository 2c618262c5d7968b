//! Programs on `nvmx shim`: one of raw ioctls, and Debian's QEMU up to SeaBIOS' last word.
//!
//! Has its own `main`: what needs a program that is not installed says SKIPPED and why.

use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

const QEMU: &str = "qemu-system-x86_64";
/// Time for the firmware, on a machine that does other things.
const LIMIT: Duration = Duration::from_secs(180);

/// What a check says, or why it cannot.
enum Outcome {
    Passed(String),
    Skipped(String),
}

type Check = fn(&Path) -> Result<Outcome, String>;

fn main() -> ExitCode {
    let checks: [(&str, Check); 3] = [
        ("list", list),
        ("program", program),
        ("firmware on QEMU", firmware),
    ];
    let folder = tempfile::tempdir().expect("a folder of our own");
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    for (name, check) in checks {
        match check(folder.path()) {
            Ok(Outcome::Passed(said)) => {
                println!("{name}: {said}");
                passed += 1;
            }
            Ok(Outcome::Skipped(why)) => {
                println!("SKIPPED: {name}: {why}");
                skipped += 1;
            }
            Err(error) => {
                println!("{name}: FAILED: {error}");
                failed += 1;
            }
        }
    }
    println!("shim: {passed} passed, {failed} failed, {skipped} skipped");
    ExitCode::from(u8::from(failed > 0))
}

fn nvmx() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_nvmx"));
    command.arg("shim");
    command
}

/// Standard output of a command that must succeed.
fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| e.to_string())?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(format!("{}: {text}{errors}", output.status))
}

fn list(_: &Path) -> Result<Outcome, String> {
    let text = output(nvmx().arg("--list"))?;
    let has = |name: &str| text.lines().any(|line| line.contains(name));
    if !has("KVM_RUN") || !has("KVM_CAP_NESTED_STATE") {
        return Err(text);
    }
    Ok(Outcome::Passed(format!("{} rows", text.lines().count())))
}

fn program(folder: &Path) -> Result<Outcome, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/program.c");
    let binary = folder.join("program");
    let mut compiler = Command::new("cc");
    compiler.args(["-Wall", "-Werror", "-O1", "-pthread", "-o"]);
    output(compiler.arg(&binary).arg(source))?;
    let text = output(nvmx().arg("--").arg(&binary))?;
    let checks = text.lines().filter(|line| line.starts_with("ok ")).count();
    if checks != 8 {
        return Err(text);
    }
    Ok(Outcome::Passed(format!("{checks} checks")))
}

/// SeaBIOS goes through all of its start and finds nothing to boot; `enforce` makes QEMU refuse to start where
/// VMX is not offered to the guest.
fn firmware(folder: &Path) -> Result<Outcome, String> {
    if Command::new(QEMU).arg("--version").output().is_err() {
        return Ok(Outcome::Skipped(format!("{QEMU} is missing (setup.sh)")));
    }
    let log = folder.join("debug.log");
    let errors = folder.join("errors.log");
    let file = fs::File::create(&errors).map_err(|e| e.to_string())?;
    let mut command = nvmx();
    command.args(["--", QEMU, "-accel", "kvm", "-machine", "pc", "-m", "64"]);
    command.args([
        "-cpu",
        "host,+vmx,enforce",
        "-nodefaults",
        "-display",
        "none",
    ]);
    command.arg("-chardev");
    command.arg(format!("file,id=debug,path={}", log.display()));
    command.args(["-device", "isa-debugcon,iobase=0x402,chardev=debug"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let mut qemu = command.stderr(file).spawn().map_err(|e| e.to_string())?;
    let began = Instant::now();
    let reached = wait(&mut qemu, &log);
    let _ = qemu.kill();
    let _ = qemu.wait();
    if reached {
        let seconds = began.elapsed().as_secs();
        return Ok(Outcome::Passed(format!(
            "no bootable device after {seconds} s"
        )));
    }
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    Err(format!("{}{}", read(&log), read(&errors)))
}

/// Whether the firmware came to its end in time.
fn wait(qemu: &mut Child, log: &Path) -> bool {
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let said = fs::read(log).unwrap_or_default();
        if String::from_utf8_lossy(&said).contains("No bootable device") {
            return true;
        }
        if !matches!(qemu.try_wait(), Ok(None)) {
            return false;
        }
        thread::sleep(Duration::from_millis(200));
    }
    false
}
