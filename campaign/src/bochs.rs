//! Bare Bochs, whose own VMX serves L1: a third judge that knows neither our code nor Linux.
//!
//! Each batch is one boot. L1 names each case before it enters it, and the records come back on a disk, in chunks. So
//! if an entry hangs or ends the emulator, it is known which: that one case is lost, and another boot runs those behind
//! the last chunk.

use crate::base;
use crate::case::{Case, Code, Hex, Mutation, Named};
use crate::guest;
use crate::layout::{self, arena};
use crate::runner::Trouble;
use crate::session::Peer;
use crate::tables::arena::selector;
use crate::wire::{self, Access, Outcome, Record};
use nvmx_core::cpu::Model;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::PinBased;
use nvmx_lab::bare::{Bare, BareConfig, Said};
use nvmx_lab::error::{LabError, Reason};
use nvmx_machine::{LoadOptions, Stop, load, ports};
use std::path::Path;
use std::time::{Duration, Instant};

/// Cases between two writes to the disk.
const CHUNK: u32 = 64;
/// Boots that may fail before the guest starts.
const BOOTS: usize = 3;
/// How long the guest may be silent while it boots, and then in a case, which takes a millisecond: with busy
/// neighbours.
const BOOT_TIME: Duration = Duration::from_secs(20);
const CASE_TIME: Duration = Duration::from_secs(5);
/// How often the two are looked at.
const LOOK: Duration = Duration::from_millis(500);

/// The emulator as a peer.
pub struct Bochs {
    model: Model,
}

/// What came of one boot.
struct Boot {
    /// The records on the disk, in order, up to the first that is missing.
    records: Vec<Record>,
    /// The last case that was begun.
    begun: Option<usize>,
    /// How it ended.
    stop: Stop,
}

impl Bochs {
    /// With the processor that Bochs' model shows.
    #[must_use]
    pub const fn new(model: Model) -> Self {
        Self { model }
    }

    /// Whether NMIs may be left blocked behind this case: with "virtual NMIs" Bochs 2.7 unblocks them at L2's IRET
    /// alone, also for the next guest whose interruptibility state says that they are not blocked.
    fn has_virtual_nmis(&self, case: &Case) -> bool {
        let field = Field::PIN_BASED_VM_EXEC_CONTROL;
        let mutations = case
            .mutations
            .iter()
            .filter_map(|mutation| match *mutation {
                Mutation::Field(Named(changed), Hex(value)) if changed == field => Some(value),
                _ => None,
            });
        mutations
            .chain(self.pin_based(&case.base))
            .any(|pin| pin & u64::from(PinBased::VIRTUAL_NMIS.bits()) != 0)
    }

    fn pin_based(&self, name: &str) -> Option<u64> {
        let base = base::all().find(|base| base.name == name)?;
        let fields = base.fields(&self.model, 0);
        let pin = fields
            .iter()
            .find(|(field, _)| *field == Field::PIN_BASED_VM_EXEC_CONTROL);
        pin.map(|(_, value)| *value)
    }

    /// A case that unblocks NMIs: IRETQ with "virtual NMIs".
    fn unblock(&self) -> Case {
        let base = "code-long";
        let pin =
            self.pin_based(base).unwrap_or_default() | u64::from(PinBased::VIRTUAL_NMIS.bits());
        let frame = [
            arena::STUBS,
            selector::CODE.into(),
            2,
            arena::STACK_TOP,
            selector::DATA.into(),
        ];
        let frame = (arena::STACK_TOP..)
            .step_by(8)
            .zip(frame)
            .map(|(address, value)| Mutation::Memory(Hex(address), Hex(value)));
        let pin = Mutation::Field(Named(Field::PIN_BASED_VM_EXEC_CONTROL), Hex(pin));
        Case {
            base: base.into(),
            resume: false,
            mutations: std::iter::once(pin).chain(frame).collect(),
            code: Code(vec![0x48, 0xcf]),
        }
    }

    fn boot(&self, cases: &[&Case]) -> Result<Boot, Trouble> {
        let vm_exit = guest::build(Vec::new())?.vm_exit;
        let access = Access::Instructions;
        let guest = guest::build(vec![
            (layout::BASES, wire::bases(&self.model, vm_exit, access)),
            (layout::CONTROL, wire::control(cases.len(), access, CHUNK)),
            (layout::FIELD_LIST, wire::field_list()),
            (
                layout::CASES,
                cases.iter().flat_map(|case| case.encode()).collect(),
            ),
        ])?;
        let mut config = BareConfig::default();
        let options = LoadOptions {
            memory_size: u64::from(config.megs) << 20,
            ..LoadOptions::default()
        };
        let image = load(&guest.image.to_elf(), options)
            .map_err(|error| Trouble::Other(error.to_string()))?;
        let folder = tempfile::tempdir().map_err(said("a temporary directory"))?;
        let disk = folder.path().join("records.img");
        make_disk(&disk, cases.len() * layout::RECORD as usize)?;
        config.disk = Some(disk.clone());
        let mut machine = Bare::start(&image, &config).map_err(trouble)?;
        let mut begun = None;
        let (mut silence, mut heard) = (BOOT_TIME, Instant::now());
        let stop = loop {
            let before = begun;
            let stop = machine.run(Instant::now() + LOOK, &mut |said| {
                if let Said::Port { port, value } = said
                    && port == ports::REPORT
                {
                    begun = Some(value as usize);
                }
            });
            if begun != before {
                (silence, heard) = (CASE_TIME, Instant::now());
            }
            if stop != Stop::Budget || heard.elapsed() > silence {
                break stop;
            }
        };
        drop(machine);
        let disk = std::fs::read(&disk).map_err(said("the records"))?;
        let records = disk
            .chunks_exact(layout::RECORD as usize)
            .take(cases.len())
            .map_while(Record::decode)
            .collect();
        Ok(Boot {
            records,
            begun,
            stop,
        })
    }
}

impl Peer for Bochs {
    fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Trouble> {
        let unblock = self.unblock();
        let mut outcomes = vec![None; cases.len()];
        // By number, and without one where nobody asks for the record.
        let mut left = Vec::with_capacity(cases.len());
        for (index, case) in cases.iter().enumerate() {
            left.push((Some(index), case));
            if self.has_virtual_nmis(case) {
                left.push((None, &unblock));
            }
        }
        let mut silent_boots = 0;
        while !left.is_empty() {
            let these = left.iter().map(|&(_, case)| case);
            let these: Vec<&Case> = these.take(layout::MAX_BATCH).collect();
            let boot = self.boot(&these)?;
            let done = boot.records.len();
            for (&(index, _), record) in left.iter().zip(boot.records) {
                if let Some(index) = index {
                    outcomes[index] = Some(Outcome::Record(Box::new(record)));
                }
            }
            if let Some(fatal) = boot
                .begun
                .filter(|&begun| (done..these.len()).contains(&begun))
            {
                let why = format!("Bochs: {}", boot.stop);
                if let (Some(index), _) = left.remove(fatal) {
                    outcomes[index] = Some(Outcome::Stopped(why));
                }
            } else if done == 0 {
                silent_boots += 1;
                if silent_boots == BOOTS {
                    let stop = boot.stop;
                    return Err(Trouble::Other(format!("bare Bochs does not start: {stop}")));
                }
            }
            left.drain(..done);
        }
        Ok(outcomes.into_iter().flatten().collect())
    }
}

fn trouble(error: LabError) -> Trouble {
    match error.reason {
        Reason::NotInstalled(_) => Trouble::Absent(error.to_string()),
        _ => Trouble::Other(error.to_string()),
    }
}

/// A disk that Bochs takes: whole cylinders of 16 heads and 63 sectors.
fn make_disk(path: &Path, size: usize) -> Result<(), Trouble> {
    let cylinder = nvmx_lab::boot_disk::CYLINDER;
    let file = std::fs::File::create(path).map_err(said("the disk"))?;
    file.set_len((size as u64).next_multiple_of(cylinder) + cylinder)
        .map_err(said("the disk"))
}

fn said(what: &'static str) -> impl Fn(std::io::Error) -> Trouble {
    move |error| Trouble::Other(format!("{what}: {error}"))
}
