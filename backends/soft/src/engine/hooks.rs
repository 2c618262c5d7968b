//! The four places where unicorn calls this crate: block start, event, TLB miss, translation.
//!
//! Each is a plain C function that gets a pointer to [`Shared`]. Some leave by unicorn's
//! `cpu_loop_exit`, which jumps over the frames between: those functions hold no value with a
//! destructor at that point. A panic of a handler is kept and raised again when `run` returns,
//! since it must not cross the C frames.

use super::clock::Block;
use super::env::Env;
use super::ffi::{self, tree};
use super::intercept::Intercept;
use super::memory::PAGE_SIZE;
use super::retrace::{is_canonical, reads_and_writes, undo_branch};
use super::scan::{CodeSize, Special, is_hlt, is_rdtscp};
use super::watch;
use super::{Access, Action, Fault, Fill, FillRequest, Machine, Mmio, StopReason, TlbEntry};
use core::ffi::c_int;
use iced_x86::InstructionInfoFactory;
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use unicorn_engine_sys::uc_engine;

/// Events of our own, told from SVM exit codes by their number.
const EVENT_FAULT: i32 = 0x4000;
const EVENT_MMIO: i32 = 0x4001;
/// Flags of a block of one instruction that is translated without a look at its alignment. `CF_LAST_IO`,
/// of no other use here, keeps it apart from blocks of one instruction that stand for that look.
const NATIVE_ONCE: i32 = 1 | 0x8000;

/// What the C functions work on. One allocation, reached by raw pointer from both sides.
pub(super) struct Shared {
    pub(super) env: Env,
    pub(super) machine: Option<*mut dyn Machine>,
    pub(super) pending: Option<Pending>,
    pub(super) panic: Option<Box<dyn Any + Send>>,
    /// Instructions translated so far in the block under translation.
    translated: u64,
    /// The next question about the block's first address comes from its first instruction.
    asked_for_block: bool,
    /// A block of one instruction was asked for because the lookup of a longer one faulted.
    lookup_cut: bool,
    /// The TLB has an entry that stands for another page: see [`is_page_beside`].
    forget_page_beside: bool,
    /// Looks at the operands of instructions; kept so that nothing is allocated.
    information: InstructionInfoFactory,
}

/// An access that could not be satisfied.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    request: FillRequest,
    gpa: Option<u64>,
}

impl Shared {
    pub(super) fn new(env: Env) -> Self {
        Self {
            env,
            machine: None,
            pending: None,
            panic: None,
            translated: 0,
            asked_for_block: false,
            lookup_cut: false,
            forget_page_beside: false,
            information: InstructionInfoFactory::new(),
        }
    }

    /// Calls the machine, keeping a panic for later.
    fn call<R>(&mut self, f: impl FnOnce(&mut dyn Machine, &mut Env) -> R) -> Option<R> {
        if self.panic.is_some() {
            return None;
        }
        let machine = self.machine?;
        self.env.no_fill = true;
        let env = &mut self.env;
        // SAFETY: `run` holds the machine's exclusive borrow for as long as the pointer is here, and
        // `no_fill` keeps a nested call from making a second reference.
        let result = catch_unwind(AssertUnwindSafe(|| f(unsafe { &mut *machine }, env)));
        self.env.no_fill = false;
        match result {
            Ok(value) => Some(value),
            Err(payload) => {
                self.panic = Some(payload);
                self.env.stop = Some(StopReason::Requested);
                self.env.clock.slow_at = 0;
                None
            }
        }
    }
}

/// Leaves translated code and `uc_emu_start`.
///
/// # Safety
/// Inside a hook on unicorn's thread; no frame up to unicorn's loop holds a destructor.
unsafe fn leave(cpu: *mut u8) -> ! {
    // SAFETY: `cpu` is the live CPUState; by contract the jump passes over plain frames.
    unsafe {
        ffi::cpu::EXCEPTION_INDEX.write(cpu, ffi::EXCP_HLT);
        ffi::cpu_loop_exit(cpu)
    }
}

/// Translates the next block with at most `count` instructions, from the current RIP.
///
/// # Safety
/// As [`leave`].
unsafe fn restart_limited(shared: *mut Shared, count: u64) -> ! {
    // SAFETY: by contract.
    unsafe { restart(shared, count.min(0x7fff) as i32) }
}

/// Translates the next block as `flags` (`CF_*`) say.
///
/// # Safety
/// As [`leave`].
unsafe fn restart(shared: *mut Shared, flags: i32) -> ! {
    // SAFETY: `shared` is live; the jump passes over plain frames.
    unsafe {
        (*shared).env.clock.cut = true;
        let cpu = (*shared).env.cpu;
        ffi::cpu::CFLAGS_NEXT_TB.write(cpu, flags);
        ffi::cpu_loop_exit_noexc(cpu)
    }
}

/// Called at the start of every block; passes the caller's address on, which names the block.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn block_entry() {
    core::arch::naked_asm!("mov r8, [rsp]", "jmp {f}", f = sym on_block)
}

/// As on x86-64.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
pub(super) unsafe extern "C" fn block_entry() {
    core::arch::naked_asm!("mov x4, x30", "b {f}", f = sym on_block)
}

unsafe extern "C" fn on_block(
    _uc: *mut uc_engine,
    address: u64,
    _size: u32,
    shared: *mut Shared,
    host_pc: usize,
) {
    // SAFETY: unicorn passes the pointer that the engine registered, on the thread that runs it.
    unsafe {
        if !(*shared).env.clock.enter_known(host_pc) {
            on_block_slow(shared, address, host_pc);
        }
    }
}

/// # Safety
/// As [`on_block`].
#[cold]
#[inline(never)]
unsafe fn on_block_slow(shared: *mut Shared, address: u64, host_pc: usize) {
    // SAFETY: as in `on_block`; the references end before each jump.
    unsafe {
        let env = &mut (*shared).env;
        let block = match env.clock.known(host_pc) {
            Some(block) => block,
            None => match Block::new(ffi::tcg_tb_lookup(env.tcg, host_pc)) {
                Some(block) => {
                    env.clock.learn(host_pc, block);
                    block
                }
                // Cannot be: every call comes from a block. Stop rather than count wrongly.
                None => {
                    env.stop = Some(StopReason::Requested);
                    leave(env.cpu)
                }
            },
        };
        let previous = env.clock.block();
        if block.is_limited() && !env.clock.cut {
            // Unicorn itself cut this block: a store changed the code of the block before it, which
            // was left at the store and is done again from there.
            env.clock.leave_at(address);
        } else {
            env.clock.complete();
        }
        env.take_back();
        env.clock.cut = false;
        (*shared).lookup_cut = false;
        let env = &mut (*shared).env;
        if env.stop.is_none()
            && env
                .stop_flag
                .swap(false, core::sync::atomic::Ordering::Relaxed)
        {
            env.stop = Some(StopReason::Requested);
        }
        if env.stop.is_none() && env.clock.remaining() == 0 {
            env.stop = Some(StopReason::Budget);
            env.look_for_spent_repeat(previous, address);
        }
        if env.stop.is_some() {
            leave(env.cpu);
        }
        env.clock.rearm();
        let open = env.get(ffi::env::EFLAGS) & nvmx_core::x86::control::rflags::IF != 0
            && !env.interrupt_shadow();
        if env.interrupt_request() && open {
            ffi::cpu_loop_exit_noexc(env.cpu);
        }
        if env.native_once {
            if !block.is_limited() {
                restart(shared, NATIVE_ONCE);
            }
            env.native_once = false;
        }
        let remaining = env.clock.remaining();
        if block.instructions() > remaining {
            restart_limited(shared, remaining);
        }
        env.clock.enter(block);
    }
}

/// Called for every exception and intercept, from unicorn's loop.
pub(super) unsafe extern "C" fn on_event(_uc: *mut uc_engine, number: u32, shared: *mut Shared) {
    // SAFETY: unicorn passes the pointer that the engine registered, on the thread that runs it.
    unsafe {
        dispatch(&mut *shared, number as i32);
        let env = &mut (*shared).env;
        if env.stop.is_none() && env.clock.remaining() == 0 {
            env.stop = Some(StopReason::Budget);
        }
        if env.stop.is_some() {
            leave(env.cpu);
        }
    }
}

fn dispatch(shared: &mut Shared, number: i32) {
    let env = &mut shared.env;
    if std::mem::take(&mut shared.forget_page_beside) {
        env.flush_tlb();
    }
    if env.clock.cut {
        env.clock.cut = false;
        // SAFETY: `cpu` is the live CPUState.
        unsafe { ffi::cpu::CFLAGS_NEXT_TB.write(env.cpu, -1) };
    }
    let error_code = env.get(ffi::env::ERROR_CODE);
    let pending = shared.pending.take();
    let fetch = pending.is_some_and(|p| p.request.access == Access::Fetch);
    let code = (number - 0x100) as u16;
    let between = match number {
        EVENT_FAULT | EVENT_MMIO => fetch,
        // Interrupt window; #DB by single step, which comes behind its instruction.
        _ => code == 0x60 || code == 0x41,
    };
    let last = env.clock.block();
    env.spent_repeat = 0;
    if code == 0x41 {
        env.look_for_spent_repeat(last, env.linear_rip());
        env.pass_spent_repeat();
    }
    if between {
        env.clock.complete();
        if env.clock.remaining() == 0 && code != 0x41 {
            // What comes next belongs to the next run.
            return;
        }
    } else {
        let rip = env.linear_rip();
        env.clock.leave_at(rip);
    }
    let resumed = env.hold_resume_flag();
    env.native_once = false;
    env.bytes_len = 0;
    if !between || code == 0x41 {
        let rip = env.linear_rip();
        (shared.env.bytes, shared.env.bytes_len) = shared.env.fetch(rip);
    }
    let action = match (number, pending) {
        (EVENT_FAULT, Some(pending)) => fault(shared, pending, last),
        (
            EVENT_MMIO,
            Some(Pending {
                request,
                gpa: Some(gpa),
            }),
        ) => {
            let mut request = request;
            request.read_modify_write = request.access == Access::Read
                && reads_and_writes(
                    &mut shared.information,
                    shared.env.instruction_bytes(),
                    shared.env.code_size(),
                );
            let access = Mmio { request, gpa };
            shared.call(|machine, env| machine.mmio(env, &access))
        }
        (0x100..=0x1ff, _) => {
            let mut intercept = Intercept::from_svm(code, error_code);
            let bytes = shared.env.instruction_bytes();
            if intercept == Intercept::Hlt
                && let Some(special) = shared.env.special(bytes)
            {
                intercept = Intercept::Special(special);
            } else if intercept == Intercept::Rdtsc && is_rdtscp(bytes) {
                intercept = Intercept::Rdtscp;
            } else if intercept == Intercept::Hlt && !is_hlt(bytes) {
                if resumed {
                    // Left here for RF's sake alone; the block is translated anew without it.
                    return;
                }
                intercept = Intercept::Special(Special::AlignmentCheck);
            }
            shared.call(|machine, env| machine.intercept(env, intercept, error_code))
        }
        _ => {
            let intercept = Intercept::Exception(number as u8 & 31);
            shared.call(|machine, env| machine.intercept(env, intercept, error_code))
        }
    };
    if action == Some(Action::Stop) {
        shared.env.stop.get_or_insert(StopReason::Machine);
    }
}

fn fault(shared: &mut Shared, pending: Pending, last: Option<Block>) -> Option<Action> {
    let mut request = pending.request;
    if request.access == Access::Fetch
        && shared.env.code_size() == CodeSize::Bits64
        && !is_canonical(request.vaddr, shared.env.cr4())
        && let Some(block) = last
        && undo_branch(&mut shared.env, block)
    {
        return shared.call(|machine, env| machine.intercept(env, Intercept::Exception(13), 0));
    }
    let both = request.access != Access::Fetch
        && reads_and_writes(
            &mut shared.information,
            shared.env.instruction_bytes(),
            shared.env.code_size(),
        );
    // Of a locked instruction the store comes first.
    request.read_modify_write = both && request.access == Access::Write;
    if both && request.access == Access::Read {
        // Translated code loads first; the processor asks for write permission at once.
        request.access = Access::Write;
        request.read_modify_write = true;
        match shared.call(|machine, env| machine.tlb_fill(env, &request))? {
            Fill::Fault => {}
            // Only the load is refused: report that.
            _ => {
                request = pending.request;
                shared.call(|machine, env| machine.tlb_fill(env, &request))?;
            }
        }
    }
    let fault = Fault { request };
    shared.call(|machine, env| machine.fault(env, &fault))
}

/// The engine's `Shared`, from unicorn's CPU object.
///
/// # Safety
/// `cpu` is the CPUState of an engine whose exit tree was set up by [`super::Engine`].
unsafe fn shared_of(cpu: *const u8) -> *mut Shared {
    // SAFETY: the chain of pointers lives as long as the engine.
    unsafe {
        let uc = ffi::cpu::UC.read(cpu) as *const u8;
        let exits = ffi::uc::CTL_EXITS.read(uc) as *const u8;
        tree::KEY_COMPARE_DATA.read(exits) as *mut Shared
    }
}

/// Unicorn translates a special first instruction as a block without bytes, and then looks up the page of
/// the byte before it, too; when it comes to that block again, the page behind it. Neither plays a part: they
/// may not be there, and looking sets accessed flags. (A block that begins a page never leaves it.)
fn is_page_beside(shared: &Shared, vaddr: u64) -> bool {
    let rip = shared.env.linear_rip();
    let pages = [rip.wrapping_sub(1), rip.wrapping_add(PAGE_SIZE)];
    rip.is_multiple_of(PAGE_SIZE) && pages.iter().any(|at| at / PAGE_SIZE == vaddr / PAGE_SIZE)
}

/// Stands in for `CPUClass::tlb_fill`: asks the machine for a translation.
///
/// Unlike unicorn's own hook this one sees the whole address and the privilege of the access, and
/// restores RIP only when it must.
pub(super) unsafe extern "C" fn on_tlb_miss(
    cpu: *mut u8,
    vaddr: u64,
    size: c_int,
    access: c_int,
    mmu_index: c_int,
    probe: bool,
    host_pc: usize,
) -> bool {
    // SAFETY: unicorn calls this on the engine's thread with the engine's CPU; references to
    // `Shared` end before each jump, and the frames hold no destructor then.
    unsafe {
        let shared = shared_of(cpu);
        let kind = Env::take_fault_kind(access);
        let pops = (*shared).env.pops_as_user(vaddr, kind, mmu_index);
        if pops {
            (*shared).env.lend(vaddr);
        }
        let beside = access == ffi::MMU_INST_FETCH && is_page_beside(&*shared, vaddr);
        (*shared).forget_page_beside |= beside;
        let asked = if beside {
            (*shared).env.linear_rip()
        } else {
            vaddr
        };
        let request = FillRequest {
            vaddr: (*shared).env.linear(asked, kind),
            access: kind,
            size: size.max(0) as u32,
            user: pops || mmu_index == ffi::MMU_USER,
            smap: !pops && mmu_index == ffi::MMU_SUPERVISOR_SMAP,
            read_modify_write: false,
        };
        let gpa = match ask(&mut *shared, &request) {
            Some(Fill::Map(entry)) => {
                match install(&mut (*shared).env, vaddr, kind, &entry, mmu_index) {
                    Installed::Yes => return true,
                    Installed::CodeDropped => {
                        let first_page = (*shared).env.linear_rip() / PAGE_SIZE;
                        if !probe && vaddr / PAGE_SIZE != first_page {
                            // A lookup has the block in hand that reaches into this page, and which is
                            // gone: look again.
                            ffi::cpu_loop_exit_noexc(cpu);
                        }
                        return true;
                    }
                    Installed::NoRam => {}
                }
                Some((entry.gpa & !(PAGE_SIZE - 1)) | (vaddr % PAGE_SIZE))
            }
            Some(Fill::Mmio { gpa }) => Some((gpa & !(PAGE_SIZE - 1)) | (vaddr % PAGE_SIZE)),
            Some(Fill::Fault) | None => None,
        };
        if probe {
            return false;
        }
        if access == ffi::MMU_INST_FETCH {
            let first_page = (*shared).env.linear_rip() / PAGE_SIZE;
            if vaddr / PAGE_SIZE != first_page {
                // A block reaches into the next page, but control may never get there.
                if size == 0 && !(*shared).lookup_cut {
                    (*shared).lookup_cut = true;
                    restart_limited(shared, 1);
                }
                if size > 0 && (*shared).translated > 0 {
                    restart_limited(shared, (*shared).translated);
                }
            }
        }
        (*shared).pending = Some(Pending { request, gpa });
        let event = if gpa.is_some() {
            EVENT_MMIO
        } else {
            EVENT_FAULT
        };
        ffi::cpu::EXCEPTION_INDEX.write(cpu, event);
        ffi::cpu_loop_exit_restore(cpu, host_pc)
    }
}

fn ask(shared: &mut Shared, request: &FillRequest) -> Option<Fill> {
    if shared.env.no_fill {
        return None;
    }
    if request.access == Access::Fetch
        && shared.env.code_size() == CodeSize::Bits64
        && !is_canonical(request.vaddr, shared.env.cr4())
    {
        return Some(Fill::Fault);
    }
    shared.call(|machine, env| machine.tlb_fill(env, request))
}

/// How [`install`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Installed {
    Yes,
    /// Yes, and code translated from the page was dropped since others had written it.
    CodeDropped,
    NoRam,
}

/// Enters a translation into unicorn's TLB.
///
/// A page is never both executable and writable at full speed: an entry with both makes every store
/// slow. So entries for fetches lack write permission, and once a page has been fetched from, entries
/// for stores to it, under whatever linear address, keep unicorn checking for changed code.
fn install(
    env: &mut Env,
    vaddr: u64,
    access: Access,
    entry: &TlbEntry,
    mmu_index: c_int,
) -> Installed {
    let Some(page) = env.ram.page(entry.gpa) else {
        return Installed::NoRam;
    };
    let region = &mut env.ram.regions[page.region];
    if region.ram_address.is_none() && watch::map(env.uc, region).is_err() {
        return Installed::NoRam;
    }
    let watched = region.watched.is_some();
    let mut installed = Installed::Yes;
    let read = if entry.readable { ffi::PAGE_READ } else { 0 };
    let protection = match access {
        Access::Fetch => {
            if !region.code.get(page.page) {
                region.code.set(page.page);
                // Entries that let stores pass unseen go.
                env.flush_tlb_in_fill();
            }
            if watched && env.fetch_watched(page) {
                installed = Installed::CodeDropped;
            }
            read | ffi::PAGE_EXEC
        }
        Access::Write => {
            region.dirty.set(page.page);
            let code = region.code.get(page.page);
            let asks = code && watched && env.store_to_code(page);
            read | ffi::PAGE_WRITE
                | match (code, entry.executable && !asks) {
                    (false, _) => 0,
                    (true, true) => ffi::PAGE_EXEC,
                    (true, false) => ffi::PAGE_WRITE_INV,
                }
        }
        Access::Read => {
            let plain = region.dirty.get(page.page) && !region.code.get(page.page);
            if entry.writable && plain {
                ffi::PAGE_READ | ffi::PAGE_WRITE
            } else {
                ffi::PAGE_READ
            }
        }
    };
    // SAFETY: this is a fill, and the page is RAM.
    unsafe { env.enter_translation(vaddr, entry.gpa, protection, mmu_index) };
    installed
}

/// Stands in for the comparison of exit addresses: unicorn asks it for every block and for every
/// instruction that it is about to translate, and translates an intercepted HLT where it answers 0.
pub(super) unsafe extern "C" fn on_translate(
    address: *const u64,
    _node: *const u64,
    shared: *mut Shared,
) -> c_int {
    // SAFETY: unicorn passes the address it asks about and the pointer that the engine stored.
    unsafe { c_int::from(!must_not_translate(&mut *shared, *address)) }
}

fn must_not_translate(shared: &mut Shared, address: u64) -> bool {
    if address == shared.env.linear_rip() && !shared.asked_for_block {
        // The question about the block as a whole: a yes would leave out its count.
        shared.asked_for_block = true;
        shared.translated = 0;
        return false;
    }
    let mut native = false;
    if shared.asked_for_block {
        shared.asked_for_block = false;
        let env = &shared.env;
        native = env.native_once;
        if env.resume_flag_in_sight() || env.checks_alignment() && !native {
            return true;
        }
    } else {
        shared.translated += 1;
    }
    let (bytes, length) = shared.env.fetch(address);
    match shared.env.special(&bytes[..length]) {
        None => false,
        Some(Special::FarTransfer | Special::Selector) => !native,
        Some(_) => true,
    }
}
