//! The execution engine: guest code at translated speed, every sensitive event in Rust's hands.
//!
//! [`Engine`] runs guest instructions with unicorn and calls a [`Machine`] for whatever needs a
//! decision: intercepted instructions and exceptions, TLB misses, faults, accesses to what is no RAM.
//! Nothing is delivered or walked here. RIP and the count of executed instructions are exact at each
//! call, and a run stops after exactly as many instructions as asked.
//!
//! Known limits, from unicorn: no segment-limit checks; a store of 16 bytes or FXSAVE across pages may be
//! half done when the second page faults, and one that reaches from another page into the code of its own
//! block is done twice; task switches run natively; no hardware breakpoints.

mod clock;
mod control;
mod env;
mod ffi;
mod hooks;
mod intercept;
mod memory;
mod repeat;
mod retrace;
mod returns;
mod scan;
mod selftest;
mod special;
mod state;
#[cfg(test)]
mod tests;
mod tlb;
mod watch;

pub use env::{Env, FeatureWord, NativeMsr};
pub use intercept::{Intercept, Intercepts};
pub use memory::{PAGE_SIZE, PageBitmap};
pub use scan::{CodeSize, MAX_INSTRUCTION_LENGTH, Special};
pub use selftest::SelfTestError;
pub use state::SegmentRegister;

use clock::Clock;
use core::ffi::{c_int, c_void};
use core::ptr::NonNull;
use hooks::Shared;
use memory::Ram;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use unicorn_engine_sys::{
    Arch, ControlType, HookType, Mode, uc_close, uc_ctl, uc_emu_start, uc_engine, uc_error,
    uc_hook_add, uc_mem_map_ptr, uc_open,
};
use vm_memory::GuestMemoryMmap;
use vm_memory::bitmap::Bitmap;

/// What an access wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Access {
    Read,
    Write,
    Fetch,
}

/// An access whose translation is not in the TLB.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FillRequest {
    /// Linear address, exact to the byte. For an access that crosses into the next page and fails
    /// there, the first byte of that page.
    pub vaddr: u64,
    /// What it wants.
    pub access: Access,
    /// Bytes, as far as unicorn tells: 0 for the first fetch of a block.
    pub size: u32,
    /// A user-mode access: CPL 3 and not implicit (descriptor tables, TSS).
    pub user: bool,
    /// A supervisor access with SMAP in force: CR4.SMAP is set and RFLAGS.AC is clear or the access
    /// is implicit.
    pub smap: bool,
    /// A write that also reads, of an instruction whose load came first; or a load from a device, of one
    /// that also writes.
    pub read_modify_write: bool,
}

/// A translation of one page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TlbEntry {
    /// Guest-physical address; the low 12 bits are ignored.
    pub gpa: u64,
    /// Loads are allowed.
    pub readable: bool,
    /// Stores are allowed *without asking again*: every dirty flag that a store would set is set.
    /// Ignored for [`Access::Write`], which is itself the question.
    pub writable: bool,
    /// Fetches are allowed without asking again. Ignored for [`Access::Fetch`].
    pub executable: bool,
}

/// Answer to a [`FillRequest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// The access may go on. If no RAM is at the address, as [`Fill::Mmio`].
    Map(TlbEntry),
    /// A device's page: the instruction is left un-executed and [`Machine::mmio`] called.
    Mmio {
        /// Guest-physical address of the page.
        gpa: u64,
    },
    /// The access faults: the instruction is left un-executed and [`Machine::fault`] called.
    Fault,
}

/// An access that faulted. Nothing of the instruction has happened (see the module's limits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The access, as [`Machine::tlb_fill`] last refused it.
    pub request: FillRequest,
}

/// An access to a device's page. The layer above decodes the instruction at RIP and emulates it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mmio {
    /// The access; of an instruction that makes several, the first that left RAM.
    pub request: FillRequest,
    /// Guest-physical address, exact to the byte.
    pub gpa: u64,
}

/// What happens after a handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Go on at `env.rip()`.
    Continue,
    /// Make `run` return [`StopReason::Machine`].
    Stop,
}

/// Why [`Engine::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The budget is spent, to the instruction.
    Budget,
    /// A handler answered [`Action::Stop`].
    Machine,
    /// [`Env::request_stop`] or a [`StopHandle`].
    Requested,
}

/// The layer above: decides everything that is more than a plain instruction.
pub trait Machine {
    /// An instruction or exception that must be decided on. RIP is at the instruction, which has not
    /// run (for exceptions: whose effects are undone). The handler changes `env` as it likes; to skip
    /// the instruction it moves RIP, clears the interrupt shadow and calls [`Env::retired`].
    /// `error_code` is that of an exception, else 0 or a detail of no use.
    fn intercept(&mut self, env: &mut Env, intercept: Intercept, error_code: u32) -> Action;

    /// Translates one access. RIP, RFLAGS' arithmetic bits and the count in `env` are those of some
    /// instruction before; mode, privilege, control and segment registers are right. May flush the
    /// TLB. Fetches may run ahead of control by part of a page.
    fn tlb_fill(&mut self, env: &mut Env, request: &FillRequest) -> Fill;

    /// An access that [`Self::tlb_fill`] refused is architecturally reached: deliver its fault.
    fn fault(&mut self, env: &mut Env, fault: &Fault) -> Action;

    /// An access to a device's page, un-executed.
    fn mmio(&mut self, env: &mut Env, access: &Mmio) -> Action;
}

/// Why there is no engine, or it could not go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// Unicorn refused a call.
    #[error("unicorn: {call}: {error}")]
    Unicorn {
        /// The call.
        call: &'static str,
        /// Its error.
        error: uc_error,
    },
    /// Guest RAM cannot be used: a range is empty, not made of whole pages, or overlaps another.
    #[error("guest memory must be made of whole 4-KiB pages and not overlap")]
    Memory,
    /// Guest RAM reaches into the engine's own page.
    #[error("guest memory must lie below {SCRATCH:#x}")]
    MemoryTooHigh,
    /// The engine is not what the offsets were written for.
    #[error("start-up self-test of the execution engine: {0}")]
    SelfTest(#[from] SelfTestError),
    /// `uc_emu_start` returned without being asked to.
    #[error("unicorn stopped by itself at RIP {rip:#x}: {error}")]
    Stopped {
        /// Where.
        rip: u64,
        /// Its error, which may be "OK".
        error: uc_error,
    },
}

/// Stops a run from another thread.
#[derive(Debug, Clone)]
pub struct StopHandle(Arc<AtomicBool>);

impl StopHandle {
    /// Makes the current run (or the next, if none is on) return [`StopReason::Requested`], within
    /// some hundred thousand instructions. Where it stops is not repeatable.
    pub fn stop(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Guest-physical address of the page with the permission map that RDMSR and WRMSR intercepts read.
const SCRATCH: u64 = 1 << 51;
/// Offset of `msrpm_base_pa` in the VMCB.
const MSRPM_BASE: usize = 0x48;
const SCRATCH_SIZE: usize = 0x4000;
/// Unicorn checks none of its own: all is allowed.
const MEMORY_PERMISSIONS: u32 = 7;
/// Room for translated code; unicorn starts afresh when it is full.
const CODE_BUFFER: u32 = 256 << 20;
/// Unicorn's most complete model; the features that must not be seen are cleared.
const CPU_MODEL: c_int = 26;

#[repr(C, align(4096))]
struct Scratch([u8; SCRATCH_SIZE]);

/// One processor.
pub struct Engine {
    uc: *mut uc_engine,
    shared: NonNull<Shared>,
    // Unicorn holds its address.
    _scratch: Box<Scratch>,
}

impl core::fmt::Debug for Engine {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Engine").field("env", self.env()).finish()
    }
}

// SAFETY: an engine is one object with all it points to; unicorn keeps nothing per thread between
// calls. The memory it keeps mapped is `Send` by the bounds of `new`.
unsafe impl Send for Engine {}

fn check(call: &'static str, error: uc_error) -> Result<(), EngineError> {
    match error {
        uc_error::OK => Ok(()),
        error => Err(EngineError::Unicorn { call, error }),
    }
}

/// `UC_CTL_WRITE` of a control with this many arguments.
const fn control_write(control: ControlType, arguments: u32) -> ControlType {
    ControlType(control.0 | arguments << 26 | 1 << 30)
}

impl Engine {
    /// An engine over this memory, which it keeps mapped. The first engine of a process runs the
    /// self-test.
    ///
    /// The processor is in the state after RESET as far as unicorn has it; write registers before the
    /// first run.
    pub fn new<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, EngineError>
    where
        B: Bitmap + Clone + Send + Sync + 'static,
    {
        selftest::once()?;
        Self::unchecked(memory)
    }

    /// As [`Self::new`], before the self-test has passed.
    fn unchecked<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, EngineError>
    where
        B: Bitmap + Clone + Send + Sync + 'static,
    {
        let mut ram = Ram::new(memory)?;
        let mut uc = core::ptr::null_mut();
        // SAFETY: a plain constructor with an out-pointer.
        check("uc_open", unsafe {
            uc_open(Arch::X86, Mode::MODE_64, &mut uc)
        })?;
        let scratch = Self::scratch();
        match Self::set_up(uc, &scratch, &mut ram) {
            Ok((cpu, env, tcg)) => {
                // SAFETY: `set_up` has checked the pointers.
                let flushes = unsafe { tcg.add(ffi::TB_FLUSH_COUNT.0).cast::<u32>() };
                let env = Env {
                    uc,
                    cpu,
                    env,
                    tcg,
                    clock: Clock::new(flushes),
                    ram,
                    stop: None,
                    stop_flag: Arc::default(),
                    bytes: [0; MAX_INSTRUCTION_LENGTH],
                    bytes_len: 0,
                    no_fill: false,
                    resume_held: None,
                    native_once: false,
                    lent: None,
                    entered: tlb::EnteredPages::NONE,
                    spent_repeat: 0,
                    code_doubts: 0,
                };
                let shared = NonNull::from(Box::leak(Box::new(Shared::new(env))));
                let mut engine = Self {
                    uc,
                    shared,
                    _scratch: scratch,
                };
                engine.install_hooks()?;
                engine.initial_state();
                Ok(engine)
            }
            Err(error) => {
                // SAFETY: opened above and not used after.
                unsafe { uc_close(uc) };
                Err(error)
            }
        }
    }

    /// A page whose VMCB points at a permission map that intercepts every MSR.
    fn scratch() -> Box<Scratch> {
        let mut scratch = Box::new(Scratch([0xff; SCRATCH_SIZE]));
        scratch.0[MSRPM_BASE..MSRPM_BASE + 8].copy_from_slice(&(SCRATCH + 0x1000).to_le_bytes());
        scratch
    }

    #[allow(clippy::type_complexity)]
    fn set_up(
        uc: *mut uc_engine,
        scratch: &Scratch,
        ram: &mut Ram,
    ) -> Result<(*mut u8, *mut u8, *mut u8), EngineError> {
        // SAFETY: `uc` is open; the variadic arguments are those of each control; the mapped memory
        // outlives the engine, which owns both.
        unsafe {
            let control = |name, control, arguments: u32, value: u64| {
                check(name, uc_ctl(uc, control_write(control, arguments), value))
            };
            control("cpu model", ControlType::CPU_MODEL, 1, CPU_MODEL as u64)?;
            let size = u64::from(CODE_BUFFER);
            control("code buffer", ControlType::TCG_BUFFER_SIZE, 1, size)?;
            control("TLB type", ControlType::TLB_TYPE, 1, 1)?;
            control("exits", ControlType::UC_USE_EXITS, 1, 1)?;
            // One exit at 0: unicorn skips that address when it invalidates exits, and the tree must
            // hold a node for its comparison to be called.
            let exits = [0u64];
            let set_exits = control_write(ControlType::UC_EXITS, 2);
            check("exits", uc_ctl(uc, set_exits, exits.as_ptr(), 1usize))?;
            let pointer = scratch.0.as_ptr().cast_mut().cast::<c_void>();
            let (size, all) = (SCRATCH_SIZE as u64, MEMORY_PERMISSIONS);
            check("map", uc_mem_map_ptr(uc, SCRATCH, size, all, pointer))?;
            for region in &mut ram.regions {
                watch::map(uc, region)?;
            }
        }
        Ok(selftest::pointers(uc)?)
    }

    fn install_hooks(&mut self) -> Result<(), EngineError> {
        let shared = self.shared.as_ptr().cast::<c_void>();
        let hooks: [(HookType, *mut c_void); 2] = [
            (HookType::BLOCK, hooks::block_entry as *mut c_void),
            (HookType::INTR, hooks::on_event as *mut c_void),
        ];
        // SAFETY: the callbacks have the types that unicorn calls them with, and `shared` lives until
        // after `uc_close`. The pointers written were verified by `selftest::pointers`.
        unsafe {
            for (kind, callback) in hooks {
                let mut handle = 0;
                let kind = kind.0 as c_int;
                // From above to: every address.
                check(
                    "hook",
                    uc_hook_add(self.uc, &mut handle, kind, callback, shared, 1, 0),
                )?;
            }
            let cpu = self.shared.as_ref().env.cpu;
            let class = ffi::cpu::CLASS.read(cpu) as *mut u8;
            ffi::CLASS_TLB_FILL.write(class, hooks::on_tlb_miss as ffi::TlbFill as usize);
            let exits = ffi::uc::CTL_EXITS.read(self.uc.cast()) as *mut u8;
            ffi::tree::KEY_COMPARE_DATA.write(exits, shared as usize);
            ffi::tree::KEY_COMPARE.write(exits, hooks::on_translate as *const () as usize);
        }
        Ok(())
    }

    fn initial_state(&mut self) {
        /// Hides what the translator has in part (AVX, F16C, FMA, RDRAND through other means stays)
        /// or not at all (XSAVE); whoever wants XSAVE emulates it at its #UD.
        const LEAF_1_ECX_HIDDEN: u32 = 1 << 12 | 1 << 26 | 1 << 27 | 1 << 28 | 1 << 29;
        let env = self.env_mut();
        env.put(ffi::env::VM_VMCB, SCRATCH);
        env.set_intercepts(Intercepts::ALWAYS);
        let visible = env.features(FeatureWord::Leaf1Ecx) & !LEAF_1_ECX_HIDDEN;
        env.set_features(FeatureWord::Leaf1Ecx, visible);
        env.set_features(FeatureWord::LeafDSub1Eax, 0);
        env.flags_from_unicorn();
        env.refresh_hidden();
    }

    /// The processor's state.
    #[must_use]
    pub fn env(&self) -> &Env {
        // SAFETY: `shared` lives as long as the engine; while unicorn runs, `run` borrows `self`
        // mutably.
        unsafe { &self.shared.as_ref().env }
    }

    /// The processor's state, to change.
    pub fn env_mut(&mut self) -> &mut Env {
        // SAFETY: as in `env`, and `&mut self` is exclusive.
        unsafe { &mut self.shared.as_mut().env }
    }

    /// A handle that stops runs from other threads.
    #[must_use]
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle(self.env().stop_flag.clone())
    }

    /// Runs exactly `budget` instructions from `env().rip()`, or fewer if something stops it.
    ///
    /// Instructions that handlers execute count through [`Env::retired`]; a handler that retires more
    /// than is left overruns the budget by that. An event that belongs to the instruction after the
    /// last is left for the next run.
    pub fn run(
        &mut self,
        machine: &mut dyn Machine,
        budget: u64,
    ) -> Result<StopReason, EngineError> {
        if budget == 0 {
            return Ok(StopReason::Budget);
        }
        let env = self.env_mut();
        env.stop = None;
        env.clock.limit = env.clock.done.saturating_add(budget);
        env.clock.cut = false;
        env.clock.rearm();
        env.flags_to_unicorn();
        let rip = env.rip();
        // SAFETY: the pointer's lifetime is erased but it is taken back below, before the borrow
        // ends; unicorn calls the hooks on this thread only.
        let error = unsafe {
            let machine: *mut (dyn Machine + '_) = machine;
            let machine = core::mem::transmute::<
                *mut (dyn Machine + '_),
                *mut (dyn Machine + 'static),
            >(machine);
            (*self.shared.as_ptr()).machine = Some(machine);
            let error = uc_emu_start(self.uc, rip, 0, 0, 0);
            (*self.shared.as_ptr()).machine = None;
            error
        };
        // SAFETY: unicorn has returned; `&mut self` is exclusive again.
        let shared = unsafe { self.shared.as_mut() };
        shared.pending = None;
        shared.env.clock.complete();
        shared.env.flags_from_unicorn();
        if let Some(payload) = shared.panic.take() {
            std::panic::resume_unwind(payload);
        }
        let rip = shared.env.rip();
        match shared.env.stop.take() {
            Some(reason) => Ok(reason),
            None => Err(EngineError::Stopped { rip, error }),
        }
    }

    /// Executes exactly one instruction, or one iteration of a repeated one.
    ///
    /// RFLAGS.TF plays no part, so the guest sees nothing of it. What the handlers answer is theirs:
    /// an intercept may use the step up, or not if the handler retires nothing.
    pub fn step(&mut self, machine: &mut dyn Machine) -> Result<StopReason, EngineError> {
        self.run(machine, 1)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // SAFETY: unicorn does not run; after `uc_close` nothing refers to `shared`.
        unsafe {
            uc_close(self.uc);
            drop(Box::from_raw(self.shared.as_ptr()));
        }
    }
}
