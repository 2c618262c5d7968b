//! Batches of cases on a machine behind the traits.

use crate::case::Case;
use crate::guest::{self, Guest, READY};
use crate::layout::{self, control};
use crate::wire::{self, Access, Outcome, Record};
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Model;
use nvmx_core::vcpu::{BackendError, Budget, Parts, Vm};
use nvmx_core::vmx::capability::MSR_COUNT;
use nvmx_core::x86::{cpuid, msr};
use nvmx_machine::{Driver, LoadOptions, Stop, boot, load};
use std::time::Duration;
use thiserror::Error;

/// Why a batch says nothing.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Trouble {
    /// The guest does not assemble.
    #[error("the campaign's guest: {0}")]
    Build(#[from] nvmx_examples::BuildError),
    /// The backend failed.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// What the peer needs is not installed.
    #[error("{0}")]
    Absent(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Makes a machine; it is given the one before, if there was one, to put away first.
pub type Make<'a> = Box<dyn FnMut(Option<Box<dyn Vm>>) -> Result<Box<dyn Vm>, Trouble> + 'a>;

/// A machine with the campaign's guest in it, waiting for a batch.
pub struct Runner<'a> {
    /// `None` only while one machine takes the place of another.
    vm: Option<Box<dyn Vm>>,
    make: Make<'a>,
    access: Access,
    time: Duration,
}

impl<'a> Runner<'a> {
    /// Boots the guest. `time` is what one batch may take.
    pub fn new(mut make: Make<'a>, access: Access, time: Duration) -> Result<Self, Trouble> {
        let mut vm = make(None)?;
        start_guest(vm.as_mut(), access, time)?;
        Ok(Self {
            vm: Some(vm),
            make,
            access,
            time,
        })
    }

    /// Runs cases, at most [`layout::MAX_BATCH`]. A case that stops the machine is an outcome, and a
    /// new machine runs the rest.
    pub fn run(&mut self, cases: &[Case]) -> Result<Vec<Outcome>, Trouble> {
        let mut outcomes = Vec::with_capacity(cases.len());
        while outcomes.len() < cases.len() {
            let rest = &cases[outcomes.len()..];
            let why = match self.start(rest) {
                Ok(Stop::Checkpoint(READY)) => None,
                Ok(stop) => Some(stop.to_string()),
                // KVM may give up on a machine; what it has is still there.
                Err(Trouble::Backend(error)) => Some(error.to_string()),
                Err(error) => return Err(error),
            };
            let done = if why.is_none() {
                rest.len()
            } else {
                let mut index = [0; 4];
                self.vm()?.read_memory(L1Phys(control::INDEX), &mut index)?;
                (u32::from_le_bytes(index) as usize).min(rest.len())
            };
            self.collect(done, &mut outcomes)?;
            if let Some(why) = why {
                if outcomes.len() < cases.len() {
                    outcomes.push(Outcome::Stopped(why));
                }
                self.renew()?;
            }
        }
        Ok(outcomes)
    }

    fn renew(&mut self) -> Result<(), Trouble> {
        let old = self.vm.take();
        let vm = self.vm.insert((self.make)(old)?);
        start_guest(vm.as_mut(), self.access, self.time)
    }

    fn vm(&mut self) -> Result<&mut dyn Vm, Trouble> {
        match &mut self.vm {
            Some(vm) => Ok(vm.as_mut()),
            None => Err(Trouble::Other("there is no machine any more".into())),
        }
    }

    fn start(&mut self, cases: &[Case]) -> Result<Stop, Trouble> {
        let bytes: Vec<u8> = cases.iter().flat_map(Case::encode).collect();
        if layout::CASES + bytes.len() as u64 > layout::RECORDS {
            return Err(Trouble::Other("the batch is too big".into()));
        }
        self.vm()?.write_memory(L1Phys(layout::CASES), &bytes)?;
        let count = (cases.len() as u32).to_le_bytes();
        self.vm()?.write_memory(L1Phys(control::COUNT), &count)?;
        let time = self.time;
        Ok(Driver::default().run(self.vm()?, Budget::time(time))?)
    }

    fn collect(&mut self, count: usize, outcomes: &mut Vec<Outcome>) -> Result<(), Trouble> {
        let first = layout::RECORDS / 4096;
        let size = layout::RECORD as usize;
        let pages: Vec<u64> = (first..first + (count * size).div_ceil(4096) as u64).collect();
        let mut bytes = Vec::new();
        for pages in pages.chunks(128) {
            bytes.extend(self.vm()?.read_pages(pages)?);
        }
        for record in bytes.chunks_exact(size).take(count) {
            let record = Record::decode(record)
                .ok_or_else(|| Trouble::Other("the guest left a record half-written".into()))?;
            outcomes.push(Outcome::Record(Box::new(record)));
        }
        Ok(())
    }
}

/// Boots the guest and waits until it is ready for a batch.
fn start_guest(vm: &mut dyn Vm, access: Access, time: Duration) -> Result<(), Trouble> {
    let model = model_of(vm)?;
    let guest = image(&model, access)?;
    let options = LoadOptions {
        memory_size: vm.memory_size(),
        ..LoadOptions::default()
    };
    let elf = guest.image.to_elf();
    let image = load(&elf, options).map_err(|error| Trouble::Other(error.to_string()))?;
    boot(vm, &image)?;
    let stop = Driver::default().run(vm, Budget::time(time))?;
    if stop == Stop::Checkpoint(READY) {
        return Ok(());
    }
    Err(Trouble::Other(format!(
        "the campaign's guest did not come up: {stop}"
    )))
}

/// The guest with everything that the host says before it starts.
pub fn image(model: &Model, access: Access) -> Result<Guest, Trouble> {
    let vm_exit = guest::build(Vec::new())?.vm_exit;
    Ok(guest::build(vec![
        (layout::BASES, wire::bases(model, vm_exit, access)),
        (layout::CONTROL, wire::control(0, access, 0)),
        (layout::FIELD_LIST, wire::field_list()),
    ])?)
}

/// The processor that a machine shows its guest.
pub fn model_of(vm: &mut dyn Vm) -> Result<Model, Trouble> {
    let state = vm.vcpu(0).state(Parts::All)?;
    let msrs = state.msrs.unwrap_or_default();
    let mut vmx_msrs = [0; MSR_COUNT];
    for (number, value) in (msr::IA32_VMX_BASIC..).zip(&mut vmx_msrs) {
        *value = msrs.get(&number).copied().unwrap_or_default();
    }
    let cpuid = state.cpuid.unwrap_or_default();
    let linear = (cpuid::lookup(&cpuid, 0x8000_0008, 0)[0] >> 8 & 0xff) as u8;
    Ok(Model {
        vmx_msrs,
        physical_address_width: cpuid::physical_address_width(&cpuid),
        linear_address_width: if linear == 57 { 57 } else { 48 },
        cpuid,
        ..Model::default()
    })
}
