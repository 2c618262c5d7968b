//! The processor's state inside unicorn, typed: registers, hidden flags, time, TLB.
//!
//! RFLAGS needs care: while unicorn runs, the arithmetic flags and DF live in lazy form outside
//! EFLAGS. [`Env`] keeps that form at all times, and [`super::Engine::run`] converts at its ends.
//! RF is held back: unicorn clears it at the end of some blocks only, so translated code never sees
//! it, and it counts as set until one more instruction has run (SDM Vol. 3B "Instruction-Breakpoint
//! Exception Condition"). Only IRET sets it natively; see [`super::hooks`].

use super::clock::Clock;
use super::ffi::{self, Field, SegmentCache};
use super::intercept::Intercepts;
use super::memory::{PAGE_SIZE, Ram};
use super::scan::{CodeSize, MAX_INSTRUCTION_LENGTH};
use super::tlb::EnteredPages;
use super::{Access, StopReason};
use nvmx_core::x86::control::{cr0, cr4, efer, rflags};
use nvmx_core::x86::regs::Gpr;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use unicorn_engine_sys::uc_engine;

/// Hidden flags (`HF_*`): what a block was translated for.
pub(super) mod hidden {
    pub(super) const CPL: u32 = 3;
    pub(super) const INHIBIT_IRQ: u32 = 1 << 3;
    pub(super) const CS32: u32 = 1 << 4;
    pub(super) const SS32: u32 = 1 << 5;
    pub(super) const ADDSEG: u32 = 1 << 6;
    pub(super) const PE: u32 = 1 << 7;
    pub(super) const LMA: u32 = 1 << 14;
    pub(super) const CS64: u32 = 1 << 15;
    pub(super) const GUEST: u32 = 1 << 21;
    pub(super) const OSFXSR: u32 = 1 << 22;
    pub(super) const SMAP: u32 = 1 << 23;
    // Ours, bits that unicorn leaves alone. By CR0.EM, CR0.TS and CR4.OSFXSR unicorn would refuse BMI2,
    // CRC32, MOVBE and INVEPT as well: it sees none of the three, and `Env::special` keeps from it what
    // they really refuse.
    /// CR0.MP and CR0.TS: WAIT raises #NM.
    pub(in super::super) const NO_WAIT: u32 = 1 << 28;
    /// CR0.TS.
    pub(in super::super) const NO_DEVICE: u32 = 1 << 29;
    /// CR0.EM.
    pub(in super::super) const EMULATED: u32 = 1 << 30;
    /// CR4.OSFXSR is clear.
    pub(in super::super) const NO_SSE: u32 = 1 << 31;
    pub(in super::super) const NO_UNITS: u32 = NO_WAIT | NO_DEVICE | EMULATED | NO_SSE;
}

const ARITHMETIC: u64 = nvmx_core::x86::control::ARITHMETIC_FLAGS;

/// Words of the feature table that the translator consults, named by the CPUID leaf and register that
/// they mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
#[allow(missing_docs)]
pub enum FeatureWord {
    Leaf1Edx = 0,
    Leaf1Ecx = 1,
    Leaf7Ebx = 2,
    Leaf7Ecx = 3,
    Leaf7Edx = 4,
    Leaf80000001Edx = 6,
    Leaf80000001Ecx = 7,
    LeafDSub1Eax = 19,
}

/// MSRs that translated code itself reads or writes; all others are the layer above's alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum NativeMsr {
    /// IA32_EFER without any effect on the hidden flags: use `Env::set_efer` for those.
    Star,
    Lstar,
    Cstar,
    Fmask,
    FsBase,
    GsBase,
    KernelGsBase,
    SysenterCs,
    SysenterEsp,
    SysenterEip,
    TscAux,
    Pat,
}

/// The processor, as handlers and their owner see it.
#[derive(Debug)]
pub struct Env {
    pub(super) uc: *mut uc_engine,
    pub(super) cpu: *mut u8,
    pub(super) env: *mut u8,
    pub(super) tcg: *mut u8,
    pub(super) clock: Clock,
    pub(super) ram: Ram,
    pub(super) stop: Option<StopReason>,
    pub(super) stop_flag: Arc<AtomicBool>,
    pub(super) bytes: [u8; MAX_INSTRUCTION_LENGTH],
    pub(super) bytes_len: usize,
    /// A look at memory from inside a handler must not call the handler again.
    pub(super) no_fill: bool,
    /// RFLAGS.RF is set for as long as the count of executed instructions is this.
    pub(super) resume_held: Option<u64>,
    /// The instruction at RIP is to be translated whatever RFLAGS.AC says.
    pub(super) native_once: bool,
    /// A page of the user's in the supervisor's TLB: see [`super::returns`].
    pub(super) lent: Option<u64>,
    /// See [`super::tlb`].
    pub(super) entered: EnteredPages,
    /// Length of the repeated instruction at RIP, whose last iteration has just run; else 0.
    pub(super) spent_repeat: u8,
    /// How often others may have written code: see [`super::watch`].
    pub(super) code_doubts: u64,
}

impl Env {
    #[inline(always)]
    pub(super) fn get<T: Copy>(&self, field: Field<T>) -> T {
        // SAFETY: `env` is the live CPUX86State of the engine that owns this, and the fields used
        // with this method are those of `ffi::env`.
        unsafe { field.read(self.env) }
    }

    #[inline(always)]
    pub(super) fn put<T: Copy>(&mut self, field: Field<T>, value: T) {
        // SAFETY: as in `get`; unicorn holds no references, and `&mut self` excludes our own.
        unsafe { field.write(self.env, value) }
    }

    // ---- General-purpose registers, RIP, RFLAGS ----

    /// A general-purpose register, all 64 bits.
    #[inline]
    #[must_use]
    pub fn gpr(&self, gpr: Gpr) -> u64 {
        self.get(ffi::env::REGS.index(gpr as usize))
    }

    /// Sets a general-purpose register.
    #[inline]
    pub fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        self.put(ffi::env::REGS.index(gpr as usize), value);
    }

    /// All sixteen, in encoding order.
    #[must_use]
    pub fn gprs(&self) -> [u64; 16] {
        self.get(ffi::env::REGS)
    }

    /// Sets all sixteen.
    pub fn set_gprs(&mut self, gprs: &[u64; 16]) {
        self.put(ffi::env::REGS, *gprs);
    }

    /// RIP, EIP or IP: the offset in CS. Exact in every handler but [`super::Machine::tlb_fill`].
    #[inline]
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.get(ffi::env::EIP)
    }

    /// Sets RIP; execution goes on there.
    #[inline]
    pub fn set_rip(&mut self, rip: u64) {
        self.put(ffi::env::EIP, rip);
    }

    /// CS base + RIP as translated code addresses it.
    #[must_use]
    pub(super) fn linear_rip(&self) -> u64 {
        self.segment_cache(1).base.wrapping_add(self.rip())
    }

    /// The linear address of an access that unicorn makes at `address`: outside 64-bit mode it has 32
    /// bits (SDM Vol. 3A "Logical and Linear Addresses"), and unicorn cuts the sum of base and offset for
    /// data alone. Descriptor tables are read as data, and lie anywhere in IA-32e mode.
    pub(super) fn linear(&self, address: u64, access: Access) -> u64 {
        if access == Access::Fetch && self.code_size() != CodeSize::Bits64 {
            address & 0xffff_ffff
        } else {
            address
        }
    }

    /// RFLAGS, complete.
    #[must_use]
    pub fn rflags(&self) -> u64 {
        // SAFETY: a pure function of four numbers.
        let arithmetic = unsafe {
            ffi::cc_compute_all(
                self.get(ffi::env::CC_DST),
                self.get(ffi::env::CC_SRC),
                self.get(ffi::env::CC_SRC2),
                self.get(ffi::env::CC_OP) as i32,
            )
        };
        let direction = if self.get(ffi::env::DF) < 0 {
            rflags::DF
        } else {
            0
        };
        self.get(ffi::env::EFLAGS) & !(ARITHMETIC | rflags::DF)
            | arithmetic & ARITHMETIC
            | direction
            | rflags::FIXED
            | self.held_resume_flag()
    }

    /// Sets RFLAGS, complete.
    pub fn set_rflags(&mut self, value: u64) {
        self.put(ffi::env::CC_SRC, value & ARITHMETIC);
        self.put(ffi::env::CC_OP, ffi::CC_OP_EFLAGS);
        self.put(ffi::env::DF, if value & rflags::DF != 0 { -1 } else { 1 });
        self.resume_held = (value & rflags::RF != 0).then_some(self.clock.done);
        self.put(
            ffi::env::EFLAGS,
            value & !(ARITHMETIC | rflags::DF | rflags::RF) | rflags::FIXED,
        );
    }

    /// RF, if it is held and no instruction has run since.
    fn held_resume_flag(&self) -> u64 {
        match self.resume_held {
            Some(count) if count == self.clock.done => rflags::RF,
            _ => 0,
        }
    }

    /// Takes RF out of translated code's sight, where a native IRET put it. Answers whether it was there.
    pub(super) fn hold_resume_flag(&mut self) -> bool {
        let flags = self.get(ffi::env::EFLAGS);
        let set = flags & rflags::RF != 0;
        if set {
            self.put(ffi::env::EFLAGS, flags & !rflags::RF);
            self.resume_held = Some(self.clock.done);
        }
        set
    }

    /// Whether translated code could see RF.
    pub(super) fn resume_flag_in_sight(&self) -> bool {
        self.get(ffi::env::EFLAGS) & rflags::RF != 0
    }

    /// Whether each instruction must be looked at before it runs, for its alignment.
    pub(super) fn checks_alignment(&self) -> bool {
        self.get(ffi::env::EFLAGS) & rflags::AC != 0 && self.cpl() == 3
    }

    /// Has the next instruction run without [`super::Special::AlignmentCheck`].
    pub fn run_natively_once(&mut self) {
        self.native_once = true;
        self.clock.slow_at = 0;
    }

    /// Puts RFLAGS where `uc_emu_start` expects them.
    pub(super) fn flags_to_unicorn(&mut self) {
        self.hold_resume_flag();
        let value = self.rflags() & !rflags::RF;
        self.put(ffi::env::EFLAGS, value);
    }

    /// Takes RFLAGS from where `uc_emu_start` left them, after the count has been brought up to date.
    pub(super) fn flags_from_unicorn(&mut self) {
        let value = self.get(ffi::env::EFLAGS) | self.held_resume_flag();
        self.set_rflags(value);
    }

    // ---- Mode ----

    /// Current privilege level.
    #[inline]
    #[must_use]
    pub fn cpl(&self) -> u8 {
        (self.hidden() & hidden::CPL) as u8
    }

    /// Operand and address size of the code segment.
    #[must_use]
    pub fn code_size(&self) -> CodeSize {
        let flags = self.hidden();
        if flags & hidden::CS64 != 0 {
            CodeSize::Bits64
        } else if flags & hidden::CS32 != 0 {
            CodeSize::Bits32
        } else {
            CodeSize::Bits16
        }
    }

    /// Whether STI or MOV SS holds off interrupts for one instruction. Which of the two it was,
    /// the translator does not keep.
    #[must_use]
    pub fn interrupt_shadow(&self) -> bool {
        self.hidden() & hidden::INHIBIT_IRQ != 0
    }

    /// Sets or clears the shadow. A handler that completes an instruction must clear it.
    pub fn set_interrupt_shadow(&mut self, on: bool) {
        let flags = self.hidden() & !hidden::INHIBIT_IRQ;
        self.put(
            ffi::env::HFLAGS,
            flags | if on { hidden::INHIBIT_IRQ } else { 0 },
        );
    }

    #[inline]
    pub(super) fn hidden(&self) -> u32 {
        self.get(ffi::env::HFLAGS)
    }

    /// Derives the hidden flags from the control registers and segments.
    ///
    /// Every setter that matters calls it; CPL is SS.DPL in protected mode (SDM Vol. 3C "Checks on
    /// Guest Segment Registers" holds the two equal), 3 in virtual-8086 mode and 0 in real mode.
    pub(super) fn refresh_hidden(&mut self) {
        const BIG: u32 = 1 << 22;
        const LONG: u32 = 1 << 21;
        let (control0, control4) = (self.cr0(), self.cr4());
        let (cs, ss) = (self.segment_cache(1), self.segment_cache(2));
        let virtual_8086 = self.get(ffi::env::EFLAGS) & rflags::VM != 0;
        let protected = control0 & cr0::PE != 0;
        let long = self.efer() & efer::LMA != 0;

        let mut flags = self.hidden() & hidden::INHIBIT_IRQ | hidden::GUEST | hidden::OSFXSR;
        if protected {
            flags |= hidden::PE;
            flags |= if virtual_8086 { 3 } else { ss.flags >> 13 & 3 };
        }
        const WAITS: u64 = cr0::MP | cr0::TS;
        for (on, bit) in [
            (control0 & WAITS == WAITS, hidden::NO_WAIT),
            (control0 & cr0::TS != 0, hidden::NO_DEVICE),
            (control0 & cr0::EM != 0, hidden::EMULATED),
            (control4 & cr4::OSFXSR == 0, hidden::NO_SSE),
            (control4 & cr4::SMAP != 0, hidden::SMAP),
            (long, hidden::LMA),
        ] {
            if on {
                flags |= bit;
            }
        }
        if long && cs.flags & LONG != 0 {
            flags |= hidden::CS64 | hidden::CS32 | hidden::SS32;
        } else {
            let big_code = cs.flags & BIG != 0;
            flags |= if big_code { hidden::CS32 } else { 0 };
            flags |= if ss.flags & BIG != 0 { hidden::SS32 } else { 0 };
            let flat = [0, 2, 3].iter().all(|&s| self.segment_cache(s).base == 0);
            if !protected || virtual_8086 || !big_code || !flat {
                flags |= hidden::ADDSEG;
            }
        }
        self.put(ffi::env::HFLAGS, flags);
    }

    // ---- Control registers, EFER, MSRs, debug registers ----

    /// CR0.
    #[must_use]
    pub fn cr0(&self) -> u64 {
        self.get(ffi::env::CR.index(0))
    }

    /// Sets CR0 and the mode that follows from it. EFER.LMA and the TLB stay as they are: setting the
    /// one and flushing the other are decisions of paging, which is the layer above's.
    pub fn set_cr0(&mut self, value: u64) {
        self.put(ffi::env::CR.index(0), value);
        self.refresh_hidden();
    }

    /// CR2.
    #[must_use]
    pub fn cr2(&self) -> u64 {
        self.get(ffi::env::CR.index(2))
    }

    /// Sets CR2.
    pub fn set_cr2(&mut self, value: u64) {
        self.put(ffi::env::CR.index(2), value);
    }

    /// CR3.
    #[must_use]
    pub fn cr3(&self) -> u64 {
        self.get(ffi::env::CR.index(3))
    }

    /// Sets CR3. Does not flush the TLB.
    pub fn set_cr3(&mut self, value: u64) {
        self.put(ffi::env::CR.index(3), value);
    }

    /// CR4.
    #[must_use]
    pub fn cr4(&self) -> u64 {
        self.get(ffi::env::CR.index(4))
    }

    /// Sets CR4. Does not flush the TLB.
    pub fn set_cr4(&mut self, value: u64) {
        self.put(ffi::env::CR.index(4), value);
        self.refresh_hidden();
    }

    /// IA32_EFER.
    #[must_use]
    pub fn efer(&self) -> u64 {
        self.get(ffi::env::EFER)
    }

    /// Sets IA32_EFER, LMA included.
    pub fn set_efer(&mut self, value: u64) {
        self.put(ffi::env::EFER, value);
        self.refresh_hidden();
    }

    /// DR0 to DR7; 4 and 5 mean 6 and 7.
    #[must_use]
    pub fn dr(&self, number: u8) -> u64 {
        self.get(ffi::env::DR.index(debug_register(number)))
    }

    /// Sets a debug register. Unicorn arms no breakpoint for it: comparing addresses with DR0 to DR3
    /// is the layer above's.
    pub fn set_dr(&mut self, number: u8, value: u64) {
        self.put(ffi::env::DR.index(debug_register(number)), value);
    }

    /// An MSR that translated code uses.
    #[must_use]
    pub fn msr(&self, msr: NativeMsr) -> u64 {
        match msr {
            NativeMsr::FsBase => self.segment_cache(4).base,
            NativeMsr::GsBase => self.segment_cache(5).base,
            NativeMsr::SysenterCs => u64::from(self.get(ffi::env::SYSENTER_CS)),
            other => self.get(msr_field(other)),
        }
    }

    /// Sets an MSR that translated code uses. No checks: WRMSR's are the layer above's.
    pub fn set_msr(&mut self, msr: NativeMsr, value: u64) {
        match msr {
            NativeMsr::FsBase => self.set_segment_base(4, value),
            NativeMsr::GsBase => self.set_segment_base(5, value),
            NativeMsr::SysenterCs => self.put(ffi::env::SYSENTER_CS, value as u32),
            other => self.put(msr_field(other), value),
        }
    }

    fn set_segment_base(&mut self, index: usize, base: u64) {
        let cache = self.segment_cache(index);
        self.put_segment_cache(index, SegmentCache { base, ..cache });
    }

    pub(super) fn segment_cache(&self, index: usize) -> SegmentCache {
        self.get(ffi::env::SEGS.index(index))
    }

    pub(super) fn put_segment_cache(&mut self, index: usize, cache: SegmentCache) {
        self.put(ffi::env::SEGS.index(index), cache);
    }

    /// A word of the feature table.
    #[must_use]
    pub fn features(&self, word: FeatureWord) -> u32 {
        self.get(ffi::env::FEATURES.index(word as usize)) as u32
    }

    /// Sets a word of the feature table: an instruction whose bit is clear raises #UD. Blocks that
    /// were translated before keep what they were translated with: call before the first run.
    pub fn set_features(&mut self, word: FeatureWord, value: u32) {
        self.put(ffi::env::FEATURES.index(word as usize), u64::from(value));
    }

    // ---- Interception ----

    /// Sets which instructions are intercepted, beside those that always are. Takes effect at once.
    pub fn set_intercepts(&mut self, intercepts: Intercepts) {
        let all = intercepts.union(Intercepts::ALWAYS);
        self.put(ffi::env::INTERCEPT, all.codes);
        self.put(ffi::env::INTERCEPT_CR_READ, all.cr_read);
        self.put(ffi::env::INTERCEPT_CR_WRITE, all.cr_write);
        self.put(ffi::env::INTERCEPT_DR_READ, all.dr_read);
        self.put(ffi::env::INTERCEPT_DR_WRITE, all.dr_write);
        self.put(ffi::env::INTERCEPT_EXCEPTIONS, u32::MAX);
    }

    /// Asks for [`super::Intercept::InterruptWindow`] at the first instruction boundary where
    /// RFLAGS.IF is set and no shadow is on. It comes again and again until this is called with
    /// `false`, so the handler must call it or close the window.
    pub fn set_interrupt_request(&mut self, on: bool) {
        // SAFETY: `cpu` is the live CPUState; the field is one of `ffi::cpu`.
        unsafe {
            let others = ffi::cpu::INTERRUPT_REQUEST.read(self.cpu) & !ffi::CPU_INTERRUPT_HARD;
            let hard = if on { ffi::CPU_INTERRUPT_HARD } else { 0 };
            ffi::cpu::INTERRUPT_REQUEST.write(self.cpu, others | hard);
        }
        if on {
            // A chain of blocks does not look at the request: have the next block leave it.
            self.clock.slow_at = 0;
        }
    }

    /// Whether an interrupt window is asked for.
    #[must_use]
    pub fn interrupt_request(&self) -> bool {
        // SAFETY: as in `set_interrupt_request`.
        let request = unsafe { ffi::cpu::INTERRUPT_REQUEST.read(self.cpu) };
        request & ffi::CPU_INTERRUPT_HARD != 0
    }

    /// The bytes at RIP, as many as could be fetched, up to 15: set for every intercept and fault but
    /// fetch faults and interrupt windows (empty then).
    #[must_use]
    pub fn instruction_bytes(&self) -> &[u8] {
        &self.bytes[..self.bytes_len]
    }

    /// MMU index of accesses at the current privilege level.
    pub(super) fn mmu_index(&self) -> i32 {
        if self.cpl() == 3 {
            ffi::MMU_USER
        } else if self.hidden() & hidden::SMAP == 0 || self.get(ffi::env::EFLAGS) & rflags::AC != 0
        {
            ffi::MMU_SUPERVISOR
        } else {
            ffi::MMU_SUPERVISOR_SMAP
        }
    }

    /// Host address of a byte of code, through the TLB; may call `tlb_fill`.
    pub(super) fn code_pointer(&mut self, linear: u64) -> Option<*const u8> {
        let index = self.mmu_index();
        // SAFETY: env is live; the function probes and does not leave by a jump.
        let pointer =
            unsafe { ffi::tlb_vaddr_to_host(self.env, linear, ffi::MMU_INST_FETCH, index) };
        (!pointer.is_null()).then_some(pointer.cast_const())
    }

    /// Up to 15 bytes of code at a linear address.
    pub(super) fn fetch(&mut self, linear: u64) -> ([u8; MAX_INSTRUCTION_LENGTH], usize) {
        let mut bytes = [0; MAX_INSTRUCTION_LENGTH];
        let mut length = 0;
        while length < bytes.len() {
            let address = linear.wrapping_add(length as u64);
            let in_page = (PAGE_SIZE - address % PAGE_SIZE) as usize;
            let part = in_page.min(bytes.len() - length);
            // An instruction that ends in this page does not touch the next.
            if length > 0 && super::retrace::is_complete(&bytes[..length], self.code_size()) {
                break;
            }
            let Some(pointer) = self.code_pointer(address) else {
                break;
            };
            // SAFETY: the pointer is to mapped guest RAM and `part` does not leave the page.
            unsafe {
                core::ptr::copy_nonoverlapping(pointer, bytes.as_mut_ptr().add(length), part);
            }
            length += part;
        }
        (bytes, length)
    }

    pub(super) fn take_fault_kind(access: i32) -> Access {
        match access {
            ffi::MMU_DATA_STORE => Access::Write,
            ffi::MMU_INST_FETCH => Access::Fetch,
            _ => Access::Read,
        }
    }
}

const fn debug_register(number: u8) -> usize {
    match number & 7 {
        4 => 6,
        5 => 7,
        n => n as usize,
    }
}

const fn msr_field(msr: NativeMsr) -> Field<u64> {
    match msr {
        NativeMsr::Star => ffi::env::STAR,
        NativeMsr::Lstar => ffi::env::LSTAR,
        NativeMsr::Cstar => ffi::env::CSTAR,
        NativeMsr::Fmask => ffi::env::FMASK,
        NativeMsr::SysenterEsp => ffi::env::SYSENTER_ESP,
        NativeMsr::SysenterEip => ffi::env::SYSENTER_EIP,
        NativeMsr::TscAux => ffi::env::TSC_AUX,
        NativeMsr::Pat => ffi::env::PAT,
        // FsBase, GsBase and SysenterCs are handled before.
        _ => ffi::env::KERNEL_GS_BASE,
    }
}
