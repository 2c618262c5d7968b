//! What the tests of the software backend share: guests that run, whole captures of a machine.
#![allow(dead_code)] // each test uses its part

pub(crate) mod bare;
pub(crate) mod nest;
pub(crate) mod user;
pub(crate) mod virtual_apic;

use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Budget, NestedEvent, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::x86::CpuState;
use nvmx_examples::{Params, guests};
use nvmx_machine::{Driver, LoadOptions, Stop, boot, load};
use nvmx_soft::SoftVm;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

/// What a guest writes to the debug-exit port when all went as it should.
pub(crate) const SUCCESS: u32 = 0x10;

/// The longest that any single run may take: a hang is a failure, not a wait.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A machine with a guest and its devices.
pub(crate) struct Run {
    pub(crate) vm: SoftVm,
    pub(crate) driver: Driver,
    pub(crate) checkpoints: Vec<u32>,
    /// Where the guest stopped for good.
    pub(crate) end: Option<Stop>,
}

/// Everything that user space can read of a machine.
#[derive(Clone, PartialEq)]
pub(crate) struct Capture {
    pub(crate) state: CpuState,
    pub(crate) nested: NestedState,
    /// Pages that are not zero.
    pub(crate) pages: Vec<(u64, Box<[u8]>)>,
}

/// What a guest told the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) end: Option<Stop>,
    pub(crate) events: Vec<NestedEvent>,
    pub(crate) reports: Vec<u32>,
    pub(crate) serial: Vec<u8>,
    pub(crate) checkpoints: Vec<u32>,
}

impl Run {
    /// The guest in a machine of its own, at its first instruction.
    pub(crate) fn new(guest: &guests::Guest) -> Self {
        Self::with(guest, Params::default())
    }

    /// As [`Self::new`], built with `params`.
    pub(crate) fn with(guest: &guests::Guest, params: Params) -> Self {
        let image = (guest.build)(params).expect("the guest assembles").to_elf();
        let config = VmConfig {
            vcpus: guest.processors,
            ..VmConfig::default()
        };
        let mut vm = SoftVm::new(&config).expect("a machine");
        let options = LoadOptions {
            memory_size: config.memory_size,
            ..LoadOptions::default()
        };
        let loaded = load(&image, options).expect("an image");
        boot(&mut vm, &loaded).expect("boots");
        Self {
            vm,
            driver: Driver::default(),
            checkpoints: Vec::new(),
            end: None,
        }
    }

    /// Runs for `budget`, or to the guest's end. Checkpoints are noted and passed over, except that
    /// a budget of instructions ends at any exit.
    pub(crate) fn run(&mut self, budget: Budget) {
        let first = self.driver.events().len() as u64;
        while self.end.is_none() {
            let seen = self.driver.events().len() as u64 - first;
            let nested_events = budget.nested_events.map(|limit| limit.saturating_sub(seen));
            if nested_events == Some(0) {
                return;
            }
            let left = Budget {
                nested_events,
                time: budget.time.or(Some(PATIENCE)),
                ..budget
            };
            match self
                .driver
                .run(&mut self.vm, left)
                .expect("the machine runs")
            {
                Stop::Checkpoint(id) => self.checkpoints.push(id),
                Stop::Budget => {
                    assert!(
                        budget != Budget::UNLIMITED,
                        "the guest hangs after checkpoint {:x?}",
                        self.checkpoints.last()
                    );
                    return;
                }
                stop => self.end = Some(stop),
            }
            if budget.instructions.is_some() {
                return;
            }
        }
    }

    /// Runs to the guest's end and returns what it told.
    pub(crate) fn finish(mut self) -> Record {
        self.run(Budget::UNLIMITED);
        self.record()
    }

    /// What the guest told so far.
    pub(crate) fn record(&self) -> Record {
        Record {
            end: self.end.clone(),
            events: self.driver.events().to_vec(),
            reports: self.driver.reports().to_vec(),
            serial: self.driver.serial().clone(),
            checkpoints: self.checkpoints.clone(),
        }
    }

    pub(crate) fn capture(&mut self) -> Capture {
        capture(&mut self.vm)
    }
}

/// Reads everything.
pub(crate) fn capture(vm: &mut SoftVm) -> Capture {
    let state = vm.state(Parts::All).expect("state");
    let nested = vm.nested_state().expect("nested state");
    let mut pages = Vec::new();
    for page in 0..vm.memory_size() / PAGE_SIZE {
        let mut bytes = vec![0; PAGE_SIZE as usize].into_boxed_slice();
        vm.read_memory(L1Phys(page * PAGE_SIZE), &mut bytes)
            .expect("RAM");
        if bytes.iter().any(|byte| *byte != 0) {
            pages.push((page, bytes));
        }
    }
    Capture {
        state,
        nested,
        pages,
    }
}

/// A fresh machine in the captured state: memory first, then the parts in `RESTORE_ORDER`.
pub(crate) fn restore(capture: &Capture, memory_size: u64) -> SoftVm {
    let mut vm = SoftVm::new(&VmConfig {
        memory_size,
        ..VmConfig::default()
    })
    .expect("a machine");
    for (page, bytes) in &capture.pages {
        vm.write_memory(L1Phys(page * PAGE_SIZE), bytes)
            .expect("RAM");
    }
    vm.set_state(&capture.state).expect("the state is taken");
    vm.set_nested_state(&capture.nested)
        .expect("the nested state is taken");
    vm
}

/// Says where two captures differ.
pub(crate) fn difference(a: &Capture, b: &Capture) -> Option<String> {
    let (x, y) = (&a.state, &b.state);
    let mut out = String::new();
    let mut part = |name: &str, equal: bool, text: &dyn Fn() -> String| {
        if !equal {
            out += &format!("{name}: {}\n", text());
        }
    };
    part("regs", x.regs == y.regs, &|| {
        format!("{:x?}\n      {:x?}", x.regs, y.regs)
    });
    part("sregs", x.sregs == y.sregs, &|| {
        format!("{:x?}\n       {:x?}", x.sregs, y.sregs)
    });
    part("events", x.events == y.events, &|| {
        format!("{:?}\n        {:?}", x.events, y.events)
    });
    part("debug", x.debug == y.debug, &|| {
        format!("{:x?} {:x?}", x.debug, y.debug)
    });
    part("mp_state", x.mp_state == y.mp_state, &|| {
        format!("{:?} {:?}", x.mp_state, y.mp_state)
    });
    part("xcr0", x.xcr0 == y.xcr0, &String::new);
    part("xsave", x.xsave == y.xsave, &String::new);
    part("cpuid", x.cpuid == y.cpuid, &String::new);
    part("tsc_khz", x.tsc_khz == y.tsc_khz, &String::new);
    part("lapic", x.lapic == y.lapic, &|| {
        let pair = x.lapic.iter().flatten().zip(y.lapic.iter().flatten());
        let all: Vec<_> = pair
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, (a, b))| (i, *a, *b))
            .collect();
        format!("{all:x?}")
    });
    part("msrs", x.msrs == y.msrs, &|| {
        let other = y.msrs.clone().unwrap_or_default();
        let all: Vec<_> = x
            .msrs
            .iter()
            .flatten()
            .filter(|(n, v)| other.get(n) != Some(v))
            .collect();
        format!(
            "{:x?} differ",
            all.iter()
                .map(|(n, v)| (**n, **v, other.get(n)))
                .collect::<Vec<_>>()
        )
    });
    part("nested", a.nested == b.nested, &|| {
        let (a, b) = (a.nested.to_bytes(), b.nested.to_bytes());
        let offsets: Vec<_> = a
            .iter()
            .zip(&b)
            .enumerate()
            .filter(|(_, (a, b))| a != b)
            .map(|(i, _)| i)
            .collect();
        format!("{} and {} bytes, differ at {offsets:?}", a.len(), b.len())
    });
    part("memory", a.pages == b.pages, &|| {
        let pages: Vec<_> = a
            .pages
            .iter()
            .filter(|page| !b.pages.contains(page))
            .map(|(n, _)| n)
            .collect();
        format!("pages {pages:x?}")
    });
    (!out.is_empty()).then_some(out)
}

/// One number for a whole run.
pub(crate) fn hash(record: &Record, capture: &Capture) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{record:?}{:?}", capture.state).hash(&mut hasher);
    capture.nested.to_bytes().hash(&mut hasher);
    for (page, bytes) in &capture.pages {
        (page, bytes).hash(&mut hasher);
    }
    hasher.finish()
}
