//! [`Vm`] and [`Vcpu`] at this end of the wire.

use crate::bytes::{Bytes, MAX_TRANSFER, Sparse};
use crate::message::{Request, Response, Seen, VcpuCall};
use crate::wire;
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::memory::NotRam;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{
    BackendError, Budget, Capabilities, Capability, Exit, NestedEvent, Parts, Result, Vcpu, Vm,
    VmConfig,
};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event};
use std::io::{Read, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A byte stream to an agent.
pub trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A run without exact limits goes in slices of this, so that a peer which stays silent for much
/// longer is known to be dead.
const SLICE: Duration = Duration::from_secs(2);

/// vCPUs that an agent may claim to have.
const MAX_VCPUS: u32 = 1024;

/// A VM behind a wire.
pub struct RemoteVm {
    link: Arc<Mutex<Link>>,
    capabilities: Capabilities,
    memory_size: u64,
    vcpus: Vec<RemoteVcpu>,
}

impl std::fmt::Debug for RemoteVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RemoteVm")
            .field("peer", &lock(&self.link).peer)
            .field("memory_size", &self.memory_size)
            .finish_non_exhaustive()
    }
}

/// The stream, and whether it is still of use.
struct Link {
    stream: Box<dyn Stream>,
    peer: String,
    dead: Option<String>,
    /// Counts calls that may change a vCPU: what was remembered before is stale.
    generation: u64,
}

fn lock(link: &Mutex<Link>) -> MutexGuard<'_, Link> {
    link.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Link {
    fn gone(&self, message: impl Into<String>) -> BackendError {
        BackendError::Connection {
            peer: self.peer.clone(),
            message: message.into(),
        }
    }

    /// One request, one response. After a failure of the wire nothing more goes over it.
    fn call(&mut self, request: &Request) -> Result<Response> {
        if let Some(why) = &self.dead {
            return Err(self.gone(why.clone()));
        }
        let exchange = wire::send(&mut self.stream, request)
            .and_then(|()| wire::receive::<Response>(&mut self.stream));
        match exchange {
            Ok(Response::Failed(fault)) => Err(fault.into()),
            Ok(response) => Ok(response),
            Err(error) => {
                let message = error.to_string();
                let error = self.gone(message.clone());
                self.dead = Some(message);
                Err(error)
            }
        }
    }

    /// A response of the wrong kind: we are out of step.
    fn surprise(&mut self, request: &str, response: &Response) -> BackendError {
        let text = format!("{response:?}");
        let kind = text.split([' ', '(', '{']).next().unwrap_or_default();
        let message = format!("answered {kind} to {request}");
        self.dead = Some(message.clone());
        self.gone(message)
    }
}

/// `expect!(link, "name", request, pattern => value)`: the value, or the error.
macro_rules! expect {
    ($link:expr, $name:literal, $request:expr, $pattern:pat => $value:expr) => {{
        let link: &mut Link = $link;
        match link.call($request)? {
            $pattern => Ok($value),
            other => Err(link.surprise($name, &other)),
        }
    }};
}

impl RemoteVm {
    /// Greets the agent at the other end of `stream` and makes a VM there. `peer` is its name in
    /// errors.
    ///
    /// # Errors
    /// The stream fails, the agent speaks another version, or its backend has no such VM.
    pub fn connect(
        stream: impl Read + Write + Send + 'static,
        peer: String,
        config: &VmConfig,
    ) -> Result<Self> {
        let mut link = Link {
            stream: Box::new(stream),
            peer,
            dead: None,
            generation: 0,
        };
        let release = expect!(&mut link, "Hello", &Request::Hello,
            Response::Hello { release } => release)?;
        tracing::debug!("agent at {} is of release {release}", link.peer);
        let (mut capabilities, memory_size, vcpus) = expect!(
            &mut link, "CreateVm", &Request::CreateVm(config.clone()),
            Response::Created { capabilities, memory_size, vcpus }
                => (capabilities, memory_size, vcpus))?;
        if vcpus > MAX_VCPUS {
            return Err(link.gone(format!("claims to have {vcpus} vCPUs")));
        }
        capabilities.description = format!("{} at {}", capabilities.description, link.peer);
        let nested = capabilities.has(Capability::NestedVmx);
        let link = Arc::new(Mutex::new(link));
        let vcpu = |index| RemoteVcpu {
            link: Arc::clone(&link),
            index,
            nested,
            known: Known::default(),
            events: Vec::new(),
            events_error: None,
            lost: 0,
        };
        Ok(Self {
            vcpus: (0..vcpus).map(vcpu).collect(),
            link,
            capabilities,
            memory_size,
        })
    }

    /// Whether `length` bytes at `address` are RAM: the same answer that the agent would give.
    fn check(&self, address: L1Phys, length: usize) -> Result<()> {
        match address.0.checked_add(length as u64) {
            Some(end) if end <= self.memory_size => Ok(()),
            _ => Err(NotRam { address, length }.into()),
        }
    }

    fn expand(&self, sparse: &Sparse, length: usize) -> Result<Vec<u8>> {
        let bytes = sparse.expand().filter(|bytes| bytes.len() == length);
        bytes.ok_or_else(|| lock(&self.link).gone("memory came back damaged"))
    }
}

impl Drop for RemoteVm {
    fn drop(&mut self) {
        let mut link = lock(&self.link);
        if link.dead.is_none() {
            // The agent drops the VM anyway when the stream closes.
            let _ = link.call(&Request::DropVm);
        }
    }
}

impl Vm for RemoteVm {
    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn memory_size(&self) -> u64 {
        self.memory_size
    }

    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()> {
        self.check(address, buffer.len())?;
        let mut at = address.0;
        for chunk in buffer.chunks_mut(MAX_TRANSFER) {
            let request = Request::ReadMemory {
                address: L1Phys(at),
                length: chunk.len() as u32,
            };
            let sparse = expect!(&mut *lock(&self.link), "ReadMemory", &request,
                Response::Memory(sparse) => sparse)?;
            chunk.copy_from_slice(&self.expand(&sparse, chunk.len())?);
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()> {
        self.check(address, bytes.len())?;
        let mut at = address.0;
        for chunk in bytes.chunks(MAX_TRANSFER) {
            let request = Request::WriteMemory {
                address: L1Phys(at),
                contents: Sparse::new(chunk),
            };
            expect!(&mut *lock(&self.link), "WriteMemory", &request, Response::Done => ())?;
            at += chunk.len() as u64;
        }
        Ok(())
    }

    fn read_pages(&mut self, pages: &[u64]) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(pages.len() * PAGE_SIZE as usize);
        for chunk in pages.chunks(MAX_TRANSFER / PAGE_SIZE as usize) {
            let request = Request::ReadPages(chunk.to_vec());
            let sparse = expect!(&mut *lock(&self.link), "ReadPages", &request,
                Response::Memory(sparse) => sparse)?;
            bytes.extend(self.expand(&sparse, chunk.len() * PAGE_SIZE as usize)?);
        }
        Ok(bytes)
    }

    fn dirty_pages(&mut self) -> Result<Vec<u64>> {
        expect!(&mut *lock(&self.link), "DirtyPages", &Request::DirtyPages,
            Response::Pages(pages) => pages)
    }

    fn vcpu_count(&self) -> usize {
        self.vcpus.len()
    }

    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu {
        &mut self.vcpus[index]
    }
}

/// What answers brought along, as of a generation of the link.
#[derive(Default)]
struct Known {
    generation: u64,
    level: Option<Level>,
    registers: Option<Box<CpuState>>,
    nested: Option<Vec<u8>>,
}

/// A vCPU behind a wire.
struct RemoteVcpu {
    link: Arc<Mutex<Link>>,
    index: u32,
    nested: bool,
    known: Known,
    events: Vec<NestedEvent>,
    events_error: Option<BackendError>,
    lost: u64,
}

/// `vcpu_expect!(self, Name(arguments), pattern => value)`.
macro_rules! vcpu_expect {
    ($self:ident, $name:literal, $call:expr, $pattern:pat => $value:expr) => {{
        let request = Request::Vcpu {
            index: $self.index,
            call: $call,
        };
        expect!(&mut *lock(&$self.link), $name, &request, $pattern => $value)
    }};
}

impl RemoteVcpu {
    /// What is remembered, if nothing has happened since; else an empty record for now.
    fn known(&mut self) -> &mut Known {
        let generation = lock(&self.link).generation;
        if self.known.generation != generation {
            self.known = Known {
                generation,
                ..Known::default()
            };
        }
        &mut self.known
    }

    /// A call follows that may change a vCPU (this or, through interrupts, another).
    fn changes(&mut self) {
        lock(&self.link).generation += 1;
    }

    fn remember(&mut self, seen: Seen) {
        match seen.events {
            Ok(events) => self.events.extend(events),
            Err(fault) => self.events_error = Some(fault.into()),
        }
        self.lost += seen.lost;
        let known = self.known();
        known.level = seen.level.ok();
        known.registers = seen.registers.ok();
    }

    fn run_once(&mut self, budget: Budget) -> Result<Exit> {
        self.changes();
        let (exit, seen) = vcpu_expect!(self, "Run", VcpuCall::Run(budget),
            Response::Ran { exit, seen } => (exit, seen))?;
        self.remember(seen);
        Ok(exit)
    }

    fn to_nested(&self, bytes: &[u8]) -> Result<NestedState> {
        NestedState::from_bytes(bytes)
            .map_err(|error| lock(&self.link).gone(format!("nested state: {error}")))
    }
}

impl Vcpu for RemoteVcpu {
    fn state(&mut self, parts: Parts) -> Result<CpuState> {
        if parts == Parts::Registers {
            if let Some(registers) = &self.known().registers {
                return Ok((**registers).clone());
            }
            let state = vcpu_expect!(self, "State", VcpuCall::State(parts),
                Response::State(state) => state)?;
            self.known().registers = Some(state.clone());
            return Ok(*state);
        }
        if !self.nested {
            return vcpu_expect!(self, "State", VcpuCall::State(parts),
                Response::State(state) => *state);
        }
        // Who reads all of the state reads the nested state next.
        let (state, nested) = vcpu_expect!(self, "StateAndNested", VcpuCall::StateAndNested,
            Response::StateAndNested { state, nested } => (*state, nested))?;
        self.known().nested = nested.ok().map(|bytes| bytes.0);
        Ok(state)
    }

    fn set_state(&mut self, state: &CpuState) -> Result<()> {
        self.changes();
        vcpu_expect!(self, "SetState", VcpuCall::SetState(Box::new(state.clone())),
            Response::Done => ())
    }

    fn nested_state(&mut self) -> Result<NestedState> {
        if let Some(bytes) = self.known().nested.clone() {
            return self.to_nested(&bytes);
        }
        let bytes = vcpu_expect!(self, "NestedState", VcpuCall::NestedState,
            Response::Nested(bytes) => bytes)?;
        let state = self.to_nested(&bytes.0)?;
        self.known().nested = Some(bytes.0);
        Ok(state)
    }

    fn set_nested_state(&mut self, state: &NestedState) -> Result<()> {
        self.changes();
        let call = VcpuCall::SetNestedState(Bytes(state.to_bytes()));
        vcpu_expect!(self, "SetNestedState", call, Response::Done => ())
    }

    fn try_nested_bytes(&mut self, bytes: &[u8]) -> Result<i32> {
        self.changes();
        let call = VcpuCall::TryNestedBytes(Bytes(bytes.to_vec()));
        vcpu_expect!(self, "TryNestedBytes", call, Response::Answer(answer) => answer)
    }

    fn run_until_run_pending(&mut self, max_tries: u32) -> Result<bool> {
        self.changes();
        let call = VcpuCall::RunUntilRunPending(max_tries);
        let (found, seen) = vcpu_expect!(self, "RunUntilRunPending", call,
            Response::Searched { found, seen } => (found, seen))?;
        self.remember(seen);
        Ok(found)
    }

    fn level(&mut self) -> Result<Level> {
        if let Some(level) = self.known().level {
            return Ok(level);
        }
        let level = vcpu_expect!(self, "Level", VcpuCall::Level, Response::Level(level) => level)?;
        self.known().level = Some(level);
        Ok(level)
    }

    fn run(&mut self, budget: Budget) -> Result<Exit> {
        if budget.instructions.is_some() || budget.nested_events.is_some() {
            // What is left of an exact limit is not known here: this cannot be sliced.
            return self.run_once(budget);
        }
        let deadline = budget
            .time
            .and_then(|time| Instant::now().checked_add(time));
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            let last = left.is_some_and(|left| left <= SLICE);
            let slice = left.map_or(SLICE, |left| left.min(SLICE));
            let exit = self.run_once(Budget::time(slice))?;
            if exit != Exit::Budget || last {
                return Ok(exit);
            }
        }
    }

    fn step(&mut self) -> Result<Exit> {
        self.changes();
        let (exit, seen) = vcpu_expect!(self, "Step", VcpuCall::Step,
            Response::Ran { exit, seen } => (exit, seen))?;
        self.remember(seen);
        Ok(exit)
    }

    fn complete_read(&mut self, value: u64) -> Result<()> {
        self.changes();
        vcpu_expect!(self, "CompleteRead", VcpuCall::CompleteRead(value), Response::Done => ())
    }

    fn inject(&mut self, event: Event) -> Result<()> {
        self.changes();
        vcpu_expect!(self, "Inject", VcpuCall::Inject(event), Response::Done => ())
    }

    fn inject_smi(&mut self) -> Result<()> {
        self.changes();
        vcpu_expect!(self, "InjectSmi", VcpuCall::InjectSmi, Response::Done => ())
    }

    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()> {
        events.append(&mut self.events);
        self.events_error.take().map_or(Ok(()), Err)
    }

    fn lost_nested_events(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }
}
