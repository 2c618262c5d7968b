//! Where the selftests run: real KVM in the lab, and the model under the shim.

use crate::known::{self, Known};
use crate::table::{LEFT_OUT, Place, SELFTESTS, Selftest, Verdict};
use anyhow::Context;
use nvmx_lab::cache::{self, CachedKernel};
use nvmx_lab::programs::{self, Ended, Program, Status};
use nvmx_lab::{Kernel, Lab, LabConfig, agent};
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a selftest may take, by the clock of the machine that it runs on.
const LIMIT: Duration = Duration::from_secs(120);
/// The same for the model, where what takes longer takes minutes.
const SHIM_LIMIT: Duration = Duration::from_secs(30);
/// How long the lab may be silent, by our clock: then the emulated machine hangs.
const SILENCE: Duration = Duration::from_secs(150);
/// Where the selftests stand in the lab.
const FOLDER: &str = "/selftests";
/// What a dynamic program needs: loader and library, at the places that the programs name.
const LIBRARIES: [&str; 2] = [
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/x86_64-linux-gnu/libc.so.6",
];

/// One column of the table: selftests of a kernel, on real KVM of that kernel or under the shim.
pub(crate) struct Column {
    pub(crate) place: Place,
    pub(crate) kernel: Kernel,
    folder: PathBuf,
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.place.word(), self.kernel)
    }
}

impl Place {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Shim => "shim",
        }
    }
}

/// The columns that can be filled here, and what is missing for others.
pub(crate) fn columns() -> (Vec<Column>, Vec<String>) {
    let (mut columns, mut missing) = (Vec::new(), Vec::new());
    let cache = cache::default_dir();
    let shim = Command::new(env!("CARGO_BIN_EXE_nvmx"))
        .args(["shim", "--list"])
        .output();
    let shim = shim.is_ok_and(|output| output.status.success());
    for kernel in Kernel::ALL {
        let folder = cache.join("lab/selftests").join(kernel.name());
        if !folder.join("complete").is_file() {
            missing.push(format!("the selftests of {kernel}"));
            continue;
        }
        if let Err(error) = CachedKernel::find(&cache, kernel) {
            missing.push(error.reason.to_string());
        } else {
            columns.push(Column {
                place: Place::Kvm,
                kernel,
                folder: folder.clone(),
            });
        }
        if shim {
            columns.push(Column {
                place: Place::Shim,
                kernel,
                folder,
            });
        } else {
            missing.push("nvmx shim".into());
        }
    }
    columns.sort_by_key(|column| column.place == Place::Shim);
    (columns, missing)
}

impl Column {
    /// Runs the wanted tests; `None` where the kernel has no such test or it is not wanted.
    pub(crate) fn run(&self, wanted: &dyn Fn(&Selftest) -> bool) -> Vec<Option<Ended>> {
        let mut lab = None;
        SELFTESTS
            .iter()
            .map(|test| {
                let program = test.program(self.kernel).filter(|_| wanted(test))?;
                let known = known::find(self.place, self.kernel, test);
                if known.is_some_and(|known| known.verdict == Verdict::NotRun) {
                    return None;
                }
                let began = Instant::now();
                let ended = match self.place {
                    Place::Kvm => self.run_in_lab(&mut lab, program),
                    Place::Shim => self.run_under_shim(program),
                };
                let ended = ended.unwrap_or_else(|error| Ended {
                    status: Status::Exited(-1),
                    took: Duration::ZERO,
                    output: format!("{error:#}"),
                });
                let (status, took) = (ended.status, began.elapsed().as_secs_f64());
                println!("{program} {self}: {status:?}, {took:.1} s here");
                Some(ended)
            })
            .collect()
    }

    fn run_under_shim(&self, program: &str) -> anyhow::Result<Ended> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nvmx"));
        command.args(["shim", "--"]).arg(self.folder.join(program));
        programs::run_command(command, SHIM_LIMIT).context("nvmx shim")
    }

    /// Runs a program in an open lab. One that hangs the emulated machine takes the lab with it.
    fn run_in_lab(&self, open: &mut Option<Lab>, program: &str) -> anyhow::Result<Ended> {
        let lab = match open {
            Some(lab) => lab,
            None => open.insert(self.start_lab()?),
        };
        let mut stream = lab.stream();
        stream.set_timeout(Some(SILENCE));
        let request = Program {
            path: format!("{FOLDER}/{program}"),
            arguments: Vec::new(),
            limit: LIMIT,
        };
        let (answer, console) = (
            programs::run_in(stream, &request),
            lab.console_tail(crate::TAIL),
        );
        answer.or_else(|error| {
            *open = None;
            Ok(Ended {
                status: Status::TimedOut,
                took: SILENCE,
                output: format!("{console}\nthe lab is gone: {error}"),
            })
        })
    }

    fn start_lab(&self) -> anyhow::Result<Lab> {
        let mut say = |what: &str| println!("{what}");
        let mut config = LabConfig::new(self.kernel, agent::find(&mut say)?);
        config.agent_args = vec!["agent".into(), "--lab-programs".into()];
        config.extra_files = LIBRARIES.map(|path| (path.into(), path.into())).to_vec();
        for name in SELFTESTS
            .iter()
            .filter_map(|test| test.program(self.kernel))
        {
            config
                .extra_files
                .push((self.folder.join(name), format!("{FOLDER}/{name}")));
        }
        Ok(Lab::start(&config, &mut |_, _| {})?)
    }
}

/// What is not even started in these columns.
pub(crate) fn not_run<'a>(
    columns: &'a [Column],
    wanted: &dyn Fn(&Selftest) -> bool,
) -> Vec<(&'a Column, &'static Known)> {
    let mut all = Vec::new();
    for column in columns {
        for test in SELFTESTS.iter().filter(|test| wanted(test)) {
            let known = known::find(column.place, column.kernel, test);
            all.extend(
                known
                    .filter(|known| known.verdict == Verdict::NotRun)
                    .map(|known| (column, known)),
            );
        }
    }
    all
}

/// Programs in the cache of which the table says nothing.
pub(crate) fn unlisted(column: &Column) -> Vec<String> {
    let programs = std::fs::read_dir(&column.folder).into_iter().flatten();
    programs
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            let listed = SELFTESTS
                .iter()
                .any(|test| test.program(column.kernel) == Some(name));
            let left_out = LEFT_OUT.iter().any(|(start, _)| name.starts_with(start));
            !listed && !left_out && !["complete", "package"].contains(&name.as_str())
        })
        .collect()
}
