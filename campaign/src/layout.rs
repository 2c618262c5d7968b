//! Where everything of a campaign lies in memory, beside what the example guests' runtime already has
//! in [`nvmx_examples::runtime::map`]; and how a case and its record look there.

/// Base VMCSs, a page each: in KVM's layout, or as pairs of field and value.
pub const BASES: u64 = 0x2c_0000;
/// Bases that there is room for.
pub const MAX_BASES: u64 = 64;
/// What the host says and L1 remembers: see [`control`].
pub const CONTROL: u64 = 0x17_0000;
/// For reading back with VMREAD: encoding, offset in the record, bytes; ends with all ones.
pub const FIELD_LIST: u64 = 0x17_1000;
/// IDT of a 64-bit L2.
pub const IDT_64: u64 = 0x17_2000;
/// IDT of a 32-bit L2.
pub const IDT_32: u64 = 0x17_3000;
/// Where L2's exceptions and interrupts lead: 16 bytes a vector, so that RIP says which.
pub const STUBS: u64 = 0x17_4000;
/// L2's first instruction.
pub const CODE: u64 = 0x17_5000;
/// What L1 copies to [`REAL`] when it starts.
pub const REAL_IMAGE: u64 = 0x17_6000;
/// Top of L2's stack.
pub const STACK: u64 = 0x17_b000;
/// The VMCS of every case.
pub const VMCS: u64 = 0x17_c000;
/// A region with the shadow-VMCS indicator.
pub const SHADOW_LINK: u64 = 0x17_d000;
/// A region without.
pub const PLAIN_LINK: u64 = 0x17_e000;
/// MSR-load list for VM entry, MSR-store and MSR-load list for VM exit.
pub const ENTRY_LOAD: u64 = 0x17_f000;
/// MSR-store list for VM exit.
pub const EXIT_STORE: u64 = 0x17_f400;
/// MSR-load list for VM exit.
pub const EXIT_LOAD: u64 = 0x17_f800;
/// Page-modification log.
pub const PML: u64 = 0x18_0000;
/// Posted-interrupt descriptor.
pub const DESCRIPTOR: u64 = 0x18_1000;
/// APIC-access page.
pub const APIC_ACCESS: u64 = 0x18_2000;
/// EPTP list.
pub const EPTP_LIST: u64 = 0x18_3000;
/// Virtualization-exception information area.
pub const VE_INFORMATION: u64 = 0x18_4000;
/// 4-level page tables that let CPL 3 in.
pub const USER_PAGING: u64 = 0x19_0000;
/// PAE page tables that let CPL 3 in.
pub const USER_PAE: u64 = 0x19_4000;
/// 64-bit TSS of L2.
pub const TSS_64: u64 = 0x19_6000;
/// 32-bit TSS of L2.
pub const TSS_32: u64 = 0x19_6100;
/// Real-address mode: interrupt vectors, stubs a page further on, code after those, and the stack.
pub const REAL: u64 = 0x1_0000;
/// Bytes of it.
pub const REAL_SIZE: u64 = 0x3000;
/// Where L2's instructions may write without harm: its registers start with this.
pub const SCRATCH: u64 = 0x20_0000;
/// The cases of a batch, one behind the other.
pub const CASES: u64 = 0x40_0000;
/// Patches that a case has room for.
pub const MAX_PATCHES: usize = 48;
/// Bytes of code that a case has room for.
pub const MAX_CODE: usize = 96;
/// The records of a batch.
pub const RECORDS: u64 = 0x60_0000;
/// Bytes of a record: the vmcs12 as KVM lays it out, then what [`record`] says.
pub const RECORD: u64 = 2048;
/// Cases that fit a batch.
pub const MAX_BATCH: usize = 4096;

/// The control page, by address. Words of 32 bits but for the lists.
pub mod control {
    use super::CONTROL;

    /// Cases in this batch; zero ends the run.
    pub const COUNT: u64 = CONTROL;
    /// 0: a case patches a page in KVM's layout. 1: it goes through VMWRITE and VMREAD.
    pub const BY_FIELDS: u64 = CONTROL + 4;
    /// Cases between two writes of records to disk; zero where the host reads memory.
    pub const DISK_CHUNK: u64 = CONTROL + 8;
    /// The case that runs.
    pub const INDEX: u64 = CONTROL + 0xc;
    /// Cases whose records are on disk.
    pub const WRITTEN: u64 = CONTROL + 0x10;
    /// VMCS revision identifier.
    pub const REVISION: u64 = CONTROL + 0x14;
    /// Where the case that runs begins.
    pub const CASE: u64 = CONTROL + 0x18;
    /// 64-bit operand of the VMX instructions: the case's VMCS.
    pub const POINTER: u64 = CONTROL + 0x40;
    /// MSRs to read after an exit, 32 bits each, ends with zero.
    pub const PROBES: u64 = CONTROL + 0x100;
    /// MSRs to write after an exit: number and value, 16 bytes each, ends with zero.
    pub const RESETS: u64 = CONTROL + 0x200;
    /// What the arena's cases are compared in: address, words, distance of the copy, zero; 32 bits each,
    /// ends with zeros.
    pub const RANGES: u64 = CONTROL + 0x600;
    /// L2's registers at the exit: the general-purpose ones in encoding order.
    pub const SAVED: u64 = CONTROL + 0x400;
    /// L2's registers before the entry: the general-purpose ones in encoding order, then DR0 to DR3.
    pub const REGISTERS: u64 = CONTROL + 0x500;
}

/// Flags of a case.
pub mod flag {
    /// VMRESUME, not VMLAUNCH.
    pub const RESUME: u32 = 1;
    /// Read the MSRs of [`super::control::PROBES`] after an exit.
    pub const PROBE: u32 = 2;
    /// Write the MSRs of [`super::control::RESETS`] after an exit.
    pub const RESET: u32 = 4;
    /// L2 has the [`super::arena`]: debug registers are loaded, translations are flushed, what changed
    /// in memory is recorded and put back.
    pub const ARENA: u32 = 8;
}

/// First word of a patch that is no field.
pub mod patch {
    /// 64 bits of memory; swapped back after the case.
    pub const MEMORY: u32 = u32::MAX;
    /// 32 bits of the region's header, where the region is in KVM's layout.
    pub const HEADER: u32 = u32::MAX - 1;
    /// A register of L2, by its offset in [`super::control::REGISTERS`].
    pub const REGISTER: u32 = u32::MAX - 2;
}

/// Offsets in a record behind the vmcs12.
pub mod record {
    /// How the entry ended: [`super::status`].
    pub const STATUS: usize = 1024;
    /// [`MAGIC`](super::MAGIC) once the case is done.
    pub const MAGIC: usize = 1028;
    /// L2's RAX, RBX, RCX.
    pub const GPRS: usize = 1032;
    /// L1's CR0, CR3, CR4, CR2, RFLAGS after the exit.
    pub const HOST: usize = 1056;
    /// GDTR and IDTR, 16 bytes each.
    pub const TABLES: usize = 1104;
    /// ES, CS, SS, DS, FS, GS, TR, LDTR.
    pub const SELECTORS: usize = 1136;
    /// MSRs that were asked for.
    pub const PROBES: usize = 1152;
    /// MSRs that there is room for.
    pub const MAX_PROBES: usize = 14;
    /// The top of L2's stack.
    pub const STACK: usize = 1280;
    /// Bytes of it.
    pub const STACK_BYTES: usize = 128;
    /// What stands at [`super::WATCHED`] afterwards.
    pub const WATCHED: usize = 1408;
    /// L2's RDX, RSI, RDI, RBP, R8 to R15.
    pub const MORE_GPRS: usize = 1536;
    /// DR0 to DR3, DR6, CR8 after the exit of a case with the arena.
    pub const DEBUG: usize = 1632;
    /// Words of the arena that changed.
    pub const CHANGED: usize = 1680;
    /// A digest of all of them.
    pub const DIGEST: usize = 1688;
    /// The first of them: address, and what flipped.
    pub const CHANGES: usize = 1696;
    /// As many as there is room for.
    pub const MAX_CHANGES: usize = 22;
}

/// Memory that an entry or exit may write, 64 bits each: the VMCS regions' headers, values of the
/// MSR-store list.
pub const WATCHED: [u64; 4] = [SHADOW_LINK, PLAIN_LINK, EXIT_STORE + 8, EXIT_STORE + 24];

/// What a finished record holds at [`record::MAGIC`].
pub const MAGIC: u32 = 0x6b6f_7665;

/// How an entry ended.
pub mod status {
    /// VMfailInvalid.
    pub const FAIL_INVALID: u32 = 1;
    /// VMfailValid.
    pub const FAIL_VALID: u32 = 2;
    /// VMLAUNCH said success and went on.
    pub const NOTHING: u32 = 3;
    /// A VM exit, or an entry that failed by one.
    pub const EXIT: u32 = 4;
    /// VMPTRLD failed.
    pub const NOT_LOADED: u32 = 5;
}

/// What L2 has to itself in cases with code: all of it is there anew in each.
pub mod arena {
    /// First byte.
    pub const START: u64 = 0x21_0000;
    /// L2's code, two pages.
    pub const CODE: u64 = START;
    /// Where exceptions and interrupts lead, 16 bytes a vector.
    pub const STUBS: u64 = START + 0x2000;
    /// IDT in IA-32e mode.
    pub const IDT_64: u64 = START + 0x3000;
    /// IDT elsewhere; the GDT, LDT and task states are on the same page.
    pub const IDT_32: u64 = START + 0x4000;
    /// GDT.
    pub const GDT: u64 = START + 0x4800;
    /// LDT.
    pub const LDT: u64 = START + 0x4900;
    /// Task state in IA-32e mode, with a map of I/O permissions.
    pub const TSS_64: u64 = START + 0x4a00;
    /// Task state elsewhere, likewise.
    pub const TSS_32: u64 = START + 0x4b00;
    /// A task to switch to.
    pub const OTHER_TSS: u64 = START + 0x4c00;
    /// Two pages of stack.
    pub const STACK: u64 = START + 0x5000;
    /// RSP at the entry.
    pub const STACK_TOP: u64 = START + 0x6800;
    /// Where the stack of CPL 0 begins when L2 comes from CPL 3.
    pub const INNER_STACK: u64 = START + 0x6e00;
    /// Pages of data: the second one's permissions vary.
    pub const DATA: u64 = START + 0x7000;
    /// How many.
    pub const DATA_PAGES: u64 = 4;
    /// Virtual-APIC page.
    pub const VIRTUAL_APIC: u64 = START + 0xb000;
    /// APIC-access page.
    pub const APIC_ACCESS: u64 = START + 0xc000;
    /// Page-modification log.
    pub const PML: u64 = START + 0xd000;
    /// Virtualization-exception information area.
    pub const VE_INFORMATION: u64 = START + 0xe000;
    /// EPTP list.
    pub const EPTP_LIST: u64 = START + 0xf000;
    /// 4-level page tables, four pages.
    pub const PAGING: u64 = START + 0x1_0000;
    /// The same for CPL 3.
    pub const USER_PAGING: u64 = START + 0x1_4000;
    /// PAE page tables, three pages.
    pub const PAE: u64 = START + 0x1_8000;
    /// The same for CPL 3, and a fourth page that maps [`super::REAL`].
    pub const USER_PAE: u64 = START + 0x1_b000;
    /// 32-bit page tables, two pages.
    pub const LEGACY: u64 = START + 0x1_f000;
    /// EPT, five pages: the last maps [`super::REAL`].
    pub const EPT: u64 = START + 0x2_1000;
    /// Behind the last byte.
    pub const END: u64 = START + 0x2_6000;
    /// From there to the copy that is never written.
    pub const COPY: u64 = 0x5_0000;

    /// What is compared and put back: address, bytes, distance of the copy. What changes most is last: a record has
    /// room for the first changes alone.
    const RANGES: &[(u64, u64, u64)] = &[
        (PML + 0xf80, 0x80, COPY),
        (VE_INFORMATION, 0x40, COPY),
        (VIRTUAL_APIC, 0x1000, COPY),
        (APIC_ACCESS, 0x1000, COPY),
        (CODE, 0x2000, COPY),
        (IDT_32, 0x1000, COPY),
        (STACK, 0x2000, COPY),
        (DATA, DATA_PAGES << 12, COPY),
        (
            super::REAL,
            super::REAL_SIZE,
            super::REAL_IMAGE - super::REAL,
        ),
    ];
    /// Of a page of page tables so much, since they map no more than the arena.
    const TABLE_BYTES: u64 = 0x300;
    /// The entries for the arena in the 32-bit page table.
    const LEGACY_ENTRIES: (u64, u64, u64) = (LEGACY + 0x1840, 0xa0, COPY);

    /// All that is compared and put back.
    pub fn ranges() -> impl Iterator<Item = (u64, u64, u64)> {
        let tables = (PAGING..END)
            .step_by(0x1000)
            .map(|page| (page, TABLE_BYTES, COPY));
        tables.chain([LEGACY_ENTRIES]).chain(RANGES.iter().copied())
    }
}
