//! What this crate knows of unicorn's inside: the offsets of the hidden CPU state and the C functions
//! that unicorn links but does not document. Nothing outside `engine` sees any of it.
//!
//! Unicorn carries QEMU's x86 translator. Its state (`CPUX86State`, here "env") has no public
//! accessor for descriptor caches, hidden flags or intercept bitmaps, so they are reached by offset.
//! The offsets hold for version 2.1.5 on a 64-bit host alone; [`super::selftest`] compares them with
//! the public interface and with what runs before any guest does.

use core::ffi::{c_int, c_void};
use core::marker::PhantomData;
use unicorn_engine_sys::uc_engine;

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the offsets of unicorn's hidden state are known for 64-bit hosts alone");

/// A field of type `T` at a byte offset in one of unicorn's structures.
#[derive(Debug)]
pub(super) struct Field<T>(pub(super) usize, PhantomData<fn() -> T>);

impl<T> Clone for Field<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Field<T> {}

const fn at<T>(offset: usize) -> Field<T> {
    Field(offset, PhantomData)
}

impl<T: Copy> Field<T> {
    /// Reads the field of the structure at `base`.
    ///
    /// # Safety
    /// `base` points to a live structure of the kind that this field belongs to.
    #[inline(always)]
    pub(super) unsafe fn read(self, base: *const u8) -> T {
        // SAFETY: by contract the field lies in the structure; unicorn aligns its fields naturally.
        unsafe { base.add(self.0).cast::<T>().read() }
    }

    /// Writes the field of the structure at `base`.
    ///
    /// # Safety
    /// As [`Self::read`], and nothing else holds a reference to the field.
    #[inline(always)]
    pub(super) unsafe fn write(self, base: *mut u8, value: T) {
        // SAFETY: as in `read`.
        unsafe { base.add(self.0).cast::<T>().write(value) }
    }
}

impl<T, const N: usize> Field<[T; N]> {
    /// The element with this index; the index is reduced modulo `N`.
    #[inline(always)]
    pub(super) const fn index(self, index: usize) -> Field<T> {
        at(self.0 + (index % N) * size_of::<T>())
    }
}

/// A cached segment descriptor: `flags` is the second doubleword of the descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct SegmentCache {
    pub(super) selector: u32,
    pub(super) base: u64,
    pub(super) limit: u32,
    pub(super) flags: u32,
}

/// An x87 register: 80 bits in 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct X87Register {
    pub(super) mantissa: u64,
    pub(super) exponent: u16,
}

/// An SSE register in the room of a 512-bit one.
pub(super) type VectorRegister = [u64; 8];

/// Fields of `CPUX86State`.
pub(super) mod env {
    use super::{Field, SegmentCache, VectorRegister, X87Register, at};

    pub(in super::super) const REGS: Field<[u64; 16]> = at(0);
    pub(in super::super) const EIP: Field<u64> = at(128);
    pub(in super::super) const EFLAGS: Field<u64> = at(136);
    pub(in super::super) const CC_DST: Field<u64> = at(144);
    pub(in super::super) const CC_SRC: Field<u64> = at(152);
    pub(in super::super) const CC_SRC2: Field<u64> = at(160);
    pub(in super::super) const CC_OP: Field<u32> = at(168);
    pub(in super::super) const DF: Field<i32> = at(172);
    pub(in super::super) const HFLAGS: Field<u32> = at(176);
    pub(in super::super) const SEGS: Field<[SegmentCache; 6]> = at(184);
    pub(in super::super) const LDT: Field<SegmentCache> = at(328);
    pub(in super::super) const TR: Field<SegmentCache> = at(352);
    pub(in super::super) const GDT: Field<SegmentCache> = at(376);
    pub(in super::super) const IDT: Field<SegmentCache> = at(400);
    pub(in super::super) const CR: Field<[u64; 9]> = at(424);
    pub(in super::super) const EFER: Field<u64> = at(592);
    pub(in super::super) const FPSTT: Field<u32> = at(604);
    pub(in super::super) const FPUS: Field<u16> = at(608);
    pub(in super::super) const FPUC: Field<u16> = at(610);
    pub(in super::super) const FPTAGS: Field<[u8; 8]> = at(612);
    pub(in super::super) const FPREGS: Field<[X87Register; 8]> = at(624);
    pub(in super::super) const FPOP: Field<u16> = at(752);
    pub(in super::super) const FPIP: Field<u64> = at(760);
    pub(in super::super) const FPDP: Field<u64> = at(768);
    pub(in super::super) const MXCSR: Field<u32> = at(816);
    pub(in super::super) const XMM: Field<[VectorRegister; 32]> = at(824);
    pub(in super::super) const SYSENTER_CS: Field<u32> = at(4800);
    pub(in super::super) const SYSENTER_ESP: Field<u64> = at(4808);
    pub(in super::super) const SYSENTER_EIP: Field<u64> = at(4816);
    pub(in super::super) const STAR: Field<u64> = at(4824);
    pub(in super::super) const LSTAR: Field<u64> = at(4840);
    pub(in super::super) const CSTAR: Field<u64> = at(4848);
    pub(in super::super) const FMASK: Field<u64> = at(4856);
    pub(in super::super) const KERNEL_GS_BASE: Field<u64> = at(4864);
    pub(in super::super) const TSC_AUX: Field<u64> = at(4896);
    pub(in super::super) const PAT: Field<u64> = at(5280);
    pub(in super::super) const ERROR_CODE: Field<u32> = at(5384);
    pub(in super::super) const DR: Field<[u64; 8]> = at(5400);
    pub(in super::super) const VM_VMCB: Field<u64> = at(5504);
    pub(in super::super) const INTERCEPT: Field<u64> = at(5520);
    pub(in super::super) const INTERCEPT_CR_READ: Field<u16> = at(5528);
    pub(in super::super) const INTERCEPT_CR_WRITE: Field<u16> = at(5530);
    pub(in super::super) const INTERCEPT_DR_READ: Field<u16> = at(5532);
    pub(in super::super) const INTERCEPT_DR_WRITE: Field<u16> = at(5534);
    pub(in super::super) const INTERCEPT_EXCEPTIONS: Field<u32> = at(5536);
    pub(in super::super) const FEATURES: Field<[u64; 34]> = at(5632);
    pub(in super::super) const UC: Field<usize> = at(7000);
}

/// Fields of `CPUState`, which precedes env.
pub(super) mod cpu {
    use super::{Field, at};

    pub(in super::super) const CFLAGS_NEXT_TB: Field<i32> = at(24);
    pub(in super::super) const INTERRUPT_REQUEST: Field<u32> = at(28);
    pub(in super::super) const ENV_PTR: Field<usize> = at(296);
    pub(in super::super) const ICOUNT_DECR_PTR: Field<usize> = at(304);
    pub(in super::super) const EXCEPTION_INDEX: Field<i32> = at(33184);
    pub(in super::super) const UC: Field<usize> = at(33192);
    pub(in super::super) const CLASS: Field<usize> = at(33200);
    /// env lies this far behind the start of the CPU object.
    pub(in super::super) const ENV_DISTANCE: usize = 35408;
}

/// The softmmu's TLB, between `CPUState` and env, and the cache of blocks by address, in `CPUState`: all
/// offsets from the CPU object's start.
pub(super) mod tlb {
    use super::{Field, at};

    const START: usize = 33216;
    const DESCRIPTIONS: usize = START + 32;
    const DESCRIPTION_SIZE: usize = 696;
    const FAST: usize = START + 2128;

    /// `NB_MMU_MODES`.
    pub(in super::super) const MMU_INDEXES: usize = 3;
    /// Where `icount_decr` lies, behind the TLB.
    pub(in super::super) const END: usize = FAST + MMU_INDEXES * 16;
    /// Size of `CPUTLBEntry`; one with all bits set is empty.
    pub(in super::super) const ENTRY_SIZE: usize = 64;
    /// Size of the victims of one MMU index.
    pub(in super::super) const VICTIMS_SIZE: usize = 8 * ENTRY_SIZE;
    /// Start of `tb_jmp_cache`.
    pub(in super::super) const JMP_CACHE: usize = 312;
    pub(in super::super) const JMP_CACHE_SIZE: usize = 4096 * 8;
    /// Size of the part of it where the blocks that start in one page are.
    pub(in super::super) const JMP_PAGE_SIZE: usize = 64 * 8;

    /// A bit for each MMU index that has had an entry.
    pub(in super::super) const DIRTY: Field<u16> = at(START);

    /// One of the two numbers that each MMU index has for the fast path.
    #[derive(Debug, Clone, Copy)]
    pub(in super::super) struct Fast(usize);

    impl Fast {
        #[inline(always)]
        pub(in super::super) const fn index(self, index: usize) -> Field<usize> {
            at(self.0 + index % MMU_INDEXES * 16)
        }
    }

    /// Size of the table less one entry, in bytes.
    pub(in super::super) const MASK: Fast = Fast(FAST);
    /// Address of the table.
    pub(in super::super) const TABLE: Fast = Fast(FAST + 8);

    const fn description(index: usize) -> usize {
        DESCRIPTIONS + index % MMU_INDEXES * DESCRIPTION_SIZE
    }

    /// `large_page_addr`: all bits set, for this engine enters none.
    pub(in super::super) const fn large_page(index: usize) -> Field<u64> {
        at(description(index))
    }

    /// `n_used_entries`.
    pub(in super::super) const fn used(index: usize) -> Field<usize> {
        at(description(index) + 32)
    }

    /// `vindex`: how many entries went to the victims.
    pub(in super::super) const fn evicted(index: usize) -> Field<usize> {
        at(description(index) + 40)
    }

    /// Where the victims are.
    pub(in super::super) const fn victims(index: usize) -> usize {
        description(index) + 48
    }

    /// Where the blocks that start in the page of this address are (`tb_jmp_cache_hash_page`).
    #[inline(always)]
    pub(in super::super) const fn jmp_cache_of_page(vaddr: u64) -> usize {
        let page = vaddr >> 12 << 12;
        let mixed = (page ^ (page >> 6)) >> 6;
        JMP_CACHE + (mixed as usize & 0xfc0) * 8
    }
}

/// `CPUClass::tlb_fill`: what the softmmu calls when its TLB misses.
pub(super) const CLASS_TLB_FILL: Field<usize> = at(72);

/// Fields of `struct uc_struct`.
pub(super) mod uc {
    use super::{Field, at};

    pub(in super::super) const CPU: Field<usize> = at(440);
    pub(in super::super) const TCG_CTX: Field<usize> = at(768);
    pub(in super::super) const USE_EXITS: Field<u32> = at(1428);
    pub(in super::super) const CTL_EXITS: Field<usize> = at(1944);
    pub(in super::super) const NESTED_LEVEL: Field<u32> = at(14840);
}

/// Fields of the tree of exit addresses (`GTree`).
pub(super) mod tree {
    use super::{Field, at};

    pub(in super::super) const KEY_COMPARE: Field<usize> = at(8);
    pub(in super::super) const KEY_COMPARE_DATA: Field<usize> = at(32);
    pub(in super::super) const NODES: Field<u32> = at(40);
}

/// How often unicorn has thrown away all translated code (a field of `TCGContext`).
pub(super) const TB_FLUSH_COUNT: Field<u32> = at(39120);

/// Fields of `TranslationBlock`.
pub(super) mod tb {
    use super::{Field, at};

    pub(in super::super) const PC: Field<u64> = at(0);
    pub(in super::super) const ICOUNT: Field<u16> = at(22);
    pub(in super::super) const CFLAGS: Field<u32> = at(24);
    pub(in super::super) const CODE: Field<usize> = at(32);
    pub(in super::super) const CODE_SIZE: Field<usize> = at(40);
    /// Bits of `CFLAGS` that hold a limit on the number of instructions.
    pub(in super::super) const COUNT_MASK: u32 = 0x7fff;
}

/// `EXCP_HLT`: makes `uc_emu_start` return.
pub(super) const EXCP_HLT: i32 = 0x10001;
/// `CPU_INTERRUPT_HARD` in `INTERRUPT_REQUEST`.
pub(super) const CPU_INTERRUPT_HARD: u32 = 2;
/// Lazy flags state "all flags are in `CC_SRC`".
pub(super) const CC_OP_EFLAGS: u32 = 1;

/// `MMUAccessType`; 0 is a load.
pub(super) const MMU_DATA_STORE: c_int = 1;
pub(super) const MMU_INST_FETCH: c_int = 2;
/// MMU indexes: supervisor under SMAP, user, supervisor without SMAP.
pub(super) const MMU_SUPERVISOR_SMAP: c_int = 0;
pub(super) const MMU_USER: c_int = 1;
pub(super) const MMU_SUPERVISOR: c_int = 2;

/// Page protection bits of `tlb_set_page`.
pub(super) const PAGE_READ: c_int = 1;
pub(super) const PAGE_WRITE: c_int = 2;
pub(super) const PAGE_EXEC: c_int = 4;
/// The store may go through this once; the next one asks again.
pub(super) const PAGE_WRITE_INV: c_int = 0x40;

/// Type of `CPUClass::tlb_fill`.
pub(super) type TlbFill =
    unsafe extern "C" fn(*mut u8, u64, c_int, c_int, c_int, bool, usize) -> bool;

unsafe extern "C" {
    #[link_name = "tlb_flush_x86_64"]
    pub(super) fn tlb_flush(cpu: *mut u8);
    #[link_name = "tlb_flush_page_x86_64"]
    pub(super) fn tlb_flush_page(cpu: *mut u8, address: u64);
    #[link_name = "tlb_set_page_x86_64"]
    pub(super) fn tlb_set_page(
        cpu: *mut u8,
        vaddr: u64,
        paddr: u64,
        prot: c_int,
        mmu_index: c_int,
        size: u64,
    );
    #[link_name = "tlb_vaddr_to_host_x86_64"]
    pub(super) fn tlb_vaddr_to_host(
        env: *mut u8,
        vaddr: u64,
        access: c_int,
        mmu_index: c_int,
    ) -> *mut u8;
    #[link_name = "tb_invalidate_phys_range_x86_64"]
    pub(super) fn tb_invalidate_phys_range(uc: *mut uc_engine, start: u64, end: u64);
    #[link_name = "find_memory_mapping_x86_64"]
    pub(super) fn find_memory_mapping(uc: *mut uc_engine, gpa: u64) -> *mut c_void;
    #[link_name = "memory_region_get_ram_addr_x86_64"]
    pub(super) fn memory_region_get_ram_addr(region: *mut c_void) -> u64;
    #[link_name = "tcg_tb_lookup_x86_64"]
    pub(super) fn tcg_tb_lookup(tcg: *mut u8, host_pc: usize) -> *const u8;
    #[link_name = "cpu_loop_exit_x86_64"]
    pub(super) fn cpu_loop_exit(cpu: *mut u8) -> !;
    #[link_name = "cpu_loop_exit_noexc_x86_64"]
    pub(super) fn cpu_loop_exit_noexc(cpu: *mut u8) -> !;
    #[link_name = "cpu_loop_exit_restore_x86_64"]
    pub(super) fn cpu_loop_exit_restore(cpu: *mut u8, host_pc: usize) -> !;
    #[link_name = "unicorn_fill_tlb_x86_64"]
    pub(super) fn unicorn_fill_tlb(
        cpu: *mut u8,
        vaddr: u64,
        size: c_int,
        access: c_int,
        mmu_index: c_int,
        probe: bool,
        host_pc: usize,
    ) -> bool;
    #[link_name = "helper_cc_compute_all_x86_64"]
    pub(super) fn cc_compute_all(dst: u64, src: u64, src2: u64, op: c_int) -> u64;
    #[link_name = "update_fp_status_x86_64"]
    pub(super) fn update_fp_status(env: *mut u8);
    #[link_name = "update_mxcsr_status_x86_64"]
    pub(super) fn update_mxcsr_status(env: *mut u8);
}
