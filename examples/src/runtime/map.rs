//! Where everything lies in memory: physical and linear addresses of L1, the same for L2 where EPT
//! is the identity. All of it is between 1 and 4 MiB; 16 MiB are mapped.

/// Multiboot header and 32-bit entry.
pub const ENTRY: u64 = 0x10_0000;
/// GDT, TSS of L1 and L2, pointers to the tables.
pub const GDT: u64 = 0x10_1000;
/// TSS of L1.
pub const TSS_L1: u64 = 0x10_1100;
/// TSS of L2.
pub const TSS_L2: u64 = 0x10_1200;
/// LGDT's operand.
pub const GDT_POINTER: u64 = 0x10_1300;
/// LIDT's operand.
pub const IDT_POINTER: u64 = 0x10_1310;
/// IDT of L1.
pub const IDT_L1: u64 = 0x10_2000;
/// IDT of L2.
pub const IDT_L2: u64 = 0x10_3000;
/// Page tables of L1: PML4, PDPT, page directory.
pub const PAGING_L1: u64 = 0x10_4000;
/// Page tables of L2, likewise.
pub const PAGING_L2: u64 = 0x10_8000;
/// PAE page tables for a 32-bit L2: page-directory-pointer table, page directory.
pub const PAGING_PAE: u64 = 0x10_b000;
/// Exception stubs of L1, 16 bytes a vector, and its handler behind them.
pub const STUBS_L1: u64 = 0x10_d000;
/// Exception stubs of L2, likewise.
pub const STUBS_L2: u64 = 0x11_0000;
/// Routines that every L1 shares.
pub const ROUTINES: u64 = 0x11_2000;
/// Code of L1.
pub const L1_CODE: u64 = 0x11_4000;
/// Code of L2.
pub const L2_CODE: u64 = 0x12_8000;
/// Code of L2 in other modes than 64-bit: the segment base that its 16-bit code runs with.
pub const L2_OTHER_CODE: u64 = 0x12_c000;

/// First byte of memory that starts as zeros.
pub const ZEROED: u64 = 0x13_0000;
/// VMXON region.
pub const VMXON: u64 = 0x13_0000;
/// The VMCS that every scenario starts with.
pub const VMCS: u64 = 0x13_1000;
/// A second VMCS, also used as the shadow VMCS.
pub const VMCS_2: u64 = 0x13_2000;
/// MSR bitmap.
pub const MSR_BITMAP: u64 = 0x13_3000;
/// I/O bitmaps A and B.
pub const IO_BITMAP_A: u64 = 0x13_4000;
/// I/O bitmap B.
pub const IO_BITMAP_B: u64 = 0x13_5000;
/// VMREAD bitmap.
pub const VMREAD_BITMAP: u64 = 0x13_6000;
/// VMWRITE bitmap.
pub const VMWRITE_BITMAP: u64 = 0x13_7000;
/// MSR-load list for VM entry.
pub const MSR_LOAD: u64 = 0x13_8000;
/// MSR-store list for VM exit.
pub const MSR_STORE: u64 = 0x13_8800;
/// Virtual-APIC page.
pub const VIRTUAL_APIC: u64 = 0x13_9000;
/// EPT: PML4, PDPT, page directory, page table of the second 2 MiB.
pub const EPT: u64 = 0x13_a000;
/// EPT page table that maps [`SCRATCH`] and the 2 MiB from there in 4-KiB pages.
pub const EPT_SCRATCH_TABLE: u64 = 0x13_d000;
/// Variables of the runtime.
pub const VARS: u64 = 0x13_e000;
/// Variables of L2.
pub const L2_VARS: u64 = 0x13_f000;
/// Top of L1's stack.
pub const STACK_L1: u64 = 0x14_2000;
/// Top of L2's stack.
pub const STACK_L2: u64 = 0x14_4000;
/// Top of the stack that L1's double faults and NMIs switch to (IST 1).
pub const STACK_IST: u64 = 0x14_5000;
/// Behind the last zeroed byte.
pub const ZEROED_END: u64 = 0x14_5000;
/// Pages for EPT scenarios: 2 MiB that EPT maps in 4-KiB pages.
pub const SCRATCH: u64 = 0x20_0000;
/// Where a second processor starts, in real mode: below 1 MiB, and the vector of its SIPI times 4096.
pub const TRAMPOLINE: u64 = 0x8000;
/// What is moved there.
pub const TRAMPOLINE_CODE: u64 = 0x12_e000;
/// The second processor's 32-bit code.
pub const SECOND_32: u64 = 0x12_f000;
/// Its page tables: PML4, PDPT, page directory, page table of the first 2 MiB. They map as L1's do, but
/// for the pages that a processor has for itself.
pub const PAGING_SECOND: u64 = 0x14_6000;
/// Its VMXON region.
pub const VMXON_SECOND: u64 = 0x14_a000;
/// Its VMCS.
pub const VMCS_SECOND: u64 = 0x14_b000;
/// Its own copy of the page at [`GDT`]: a busy TSS is one processor's.
pub const GDT_SECOND: u64 = 0x14_c000;
/// Its own variables of the runtime and stacks: [`VARS`] and what lies from there to [`ZEROED_END`].
pub const OWN_SECOND: u64 = 0x14_d000;
/// Behind its last page.
pub const SECOND_END: u64 = OWN_SECOND + (ZEROED_END - VARS);
/// 32-bit, of both processors: the step that they are at.
pub const STEP: u64 = L2_VARS + 0x800;
/// 64-bit, of both: the second processor's first 64-bit code.
pub const SECOND_ENTRY: u64 = L2_VARS + 0x808;
/// 32-bit, of both: how often the second processor started.
pub const STARTS: u64 = L2_VARS + 0x810;
/// Posted-interrupt descriptor.
pub const POSTED: u64 = L2_VARS + 0x840;
/// Bytes of RAM that the page tables and EPT map.
pub const MAPPED: u64 = 16 << 20;

/// L2's general-purpose registers, 16 of 8 bytes in encoding order (RSP unused: it is in the VMCS).
pub const L2_REGISTERS: u64 = VARS;
/// 32-bit: whether the current VMCS was launched.
pub const LAUNCHED: u64 = VARS + 0x80;
/// 32-bit: exit reason, or [`VMFAIL_INVALID`] or [`VMFAIL_VALID`].
pub const RESULT: u64 = VARS + 0x88;
/// 64-bit: where the next exception of L1 continues; zero makes it fatal.
pub const FIXUP: u64 = VARS + 0x90;
/// 32-bit: vector of the last exception that was fixed up.
pub const EXCEPTION_VECTOR: u64 = VARS + 0x98;
/// 32-bit: its error code.
pub const EXCEPTION_ERROR: u64 = VARS + 0x9c;
/// 32-bit: NMIs that L1 took.
pub const NMI_COUNT: u64 = VARS + 0xa0;
/// 32-bit: interrupts that L1 took.
pub const INTERRUPT_COUNT: u64 = VARS + 0xa4;
/// 32-bit: vector of the last.
pub const INTERRUPT_VECTOR: u64 = VARS + 0xa8;
/// 32-bit: whether L1's interrupt handler must write the x2APIC's EOI.
pub const HAS_X2APIC: u64 = VARS + 0xac;
/// 32-bit: whether reports also go to the serial port.
pub const MIRROR: u64 = VARS + 0xb0;
/// 64-bit operand of VMXON, VMCLEAR, VMPTRLD.
pub const POINTER: u64 = VARS + 0xc0;
/// 128-bit operand of INVEPT and INVVPID.
pub const DESCRIPTOR: u64 = VARS + 0xd0;
/// 64-bit: free for a scenario.
pub const SCENARIO: u64 = VARS + 0x100;

/// [`RESULT`] after VMfailInvalid.
pub const VMFAIL_INVALID: u32 = 0xffff_0001;
/// [`RESULT`] after VMfailValid.
pub const VMFAIL_VALID: u32 = 0xffff_0002;

/// Selectors in the GDT.
pub mod selector {
    /// 64-bit code, CPL 0.
    pub const CODE: u16 = 0x08;
    /// Data, CPL 0.
    pub const DATA: u16 = 0x10;
    /// TSS of L1.
    pub const TSS_L1: u16 = 0x18;
    /// TSS of L2.
    pub const TSS_L2: u16 = 0x28;
    /// 32-bit code, CPL 0.
    pub const CODE_32: u16 = 0x38;
}
