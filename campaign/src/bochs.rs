//! Bare Bochs, whose own VMX serves L1: a third judge that knows neither our code nor Linux.
//!
//! Each batch is one boot. The records come back on a disk, in chunks, so that of a batch whose emulator
//! hangs or dies only the case that did it is lost.

use crate::case::Case;
use crate::guest;
use crate::layout;
use crate::runner::Trouble;
use crate::session::Peer;
use crate::wire::{self, Access, Outcome, Record};
use nvmx_core::cpu::Model;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

/// Boots an image by isolinux and mboot.c32; the examples' tests use it, too.
const SCRIPT: &str = include_str!("../../examples/bochs/run.sh");
/// Cases between two writes to the disk.
const CHUNK: u32 = 64;
/// One boot in about fifty hangs before the guest starts.
const BOOTS: usize = 3;
/// What a boot takes, apart from the cases.
const BOOT_TIME: Duration = Duration::from_secs(20);
/// What a case takes at most, with busy neighbours.
const CASE_TIME: Duration = Duration::from_millis(10);

/// The emulator as a peer.
pub struct Bochs {
    model: Model,
}

impl Bochs {
    /// With the processor that Bochs' model shows.
    #[must_use]
    pub const fn new(model: Model) -> Self {
        Self { model }
    }

    /// The records that one boot left, in order, up to the first that is missing.
    fn boot(&self, cases: &[Case], chunk: u32) -> Result<Vec<Record>, Trouble> {
        let vm_exit = guest::build(Vec::new())?.vm_exit;
        let access = Access::Instructions;
        let image = guest::build(vec![
            (layout::BASES, wire::bases(&self.model, vm_exit, access)),
            (layout::CONTROL, wire::control(cases.len(), access, chunk)),
            (layout::FIELD_LIST, wire::field_list()),
            (layout::CASES, cases.iter().flat_map(Case::encode).collect()),
        ])?;
        let folder = tempfile::tempdir().map_err(said("a temporary directory"))?;
        let path = |name: &str| folder.path().join(name);
        std::fs::write(path("guest.elf"), image.image.to_elf()).map_err(said("the image"))?;
        let size = cases.len() * layout::RECORD as usize;
        make_disk(&path("records.img"), size)?;
        let limit = BOOT_TIME + CASE_TIME * cases.len() as u32;
        let output = Command::new("bash")
            .args(["-c", SCRIPT, "run.sh"])
            .arg(path("guest.elf"))
            .arg(limit.as_secs().to_string())
            .env("NVMX_BOCHS_DISK", path("records.img"))
            .output()
            .map_err(said("bash"))?;
        if output.status.code() == Some(2) {
            let text = String::from_utf8_lossy(&output.stdout);
            return Err(Trouble::Absent(
                text.lines().last().unwrap_or_default().to_owned(),
            ));
        }
        let disk = std::fs::read(path("records.img")).map_err(said("the records"))?;
        Ok(disk
            .chunks_exact(layout::RECORD as usize)
            .take(cases.len())
            .map_while(Record::decode)
            .collect())
    }
}

impl Peer for Bochs {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Trouble> {
        let mut outcomes: Vec<Outcome> = Vec::with_capacity(cases.len());
        let mut boots = 0;
        while outcomes.len() < cases.len() {
            let rest = &cases[outcomes.len()..];
            // After a boot that was cut short: the chunk that it was in, case by case.
            let (rest, chunk) = if boots == 0 {
                (rest, CHUNK)
            } else {
                (&rest[..rest.len().min(CHUNK as usize)], 1)
            };
            let records = self.boot(rest, chunk)?;
            let done = records.len();
            outcomes.extend(
                records
                    .into_iter()
                    .map(|record| Outcome::Record(Box::new(record))),
            );
            if done == rest.len() {
                boots = 0;
            } else if done == 0 && boots < BOOTS {
                boots += 1;
            } else if chunk == 1 {
                outcomes.push(Outcome::Stopped("Bochs hung or died".into()));
                boots = 0;
            } else {
                boots = 1;
            }
        }
        Ok(outcomes)
    }
}

/// A disk that Bochs takes: whole cylinders of 16 heads and 63 sectors.
fn make_disk(path: &Path, size: usize) -> Result<(), Trouble> {
    let cylinder = 16 * 63 * 512;
    let file = std::fs::File::create(path).map_err(said("the disk"))?;
    let size = (size / cylinder + 2) * cylinder;
    file.set_len(size as u64).map_err(said("the disk"))
}

fn said(what: &'static str) -> impl Fn(std::io::Error) -> Trouble {
    move |error| Trouble::Other(format!("{what}: {error}"))
}
