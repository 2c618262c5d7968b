//! Where everything of a campaign lies in memory, beside what the example guests' runtime already has
//! in [`nvmx_examples::runtime::map`]; and how a case and its record look there.

/// Base VMCSs, a page each: in KVM's layout, or as pairs of field and value.
pub const BASES: u64 = 0x15_0000;
/// Bases that there is room for.
pub const MAX_BASES: u64 = 32;
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
/// The cases of a batch.
pub const CASES: u64 = 0x40_0000;
/// Bytes of a case.
pub const CASE: u64 = 128;
/// Patches that a case has room for.
pub const MAX_PATCHES: usize = 7;
/// The records of a batch.
pub const RECORDS: u64 = 0x60_0000;
/// Bytes of a record: the vmcs12 as KVM lays it out, then what [`record`] says.
pub const RECORD: u64 = 1536;
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
    /// L2's RAX, RBX and RCX at the exit.
    pub const SAVED: u64 = CONTROL + 0x20;
    /// 64-bit operand of the VMX instructions: the case's VMCS.
    pub const POINTER: u64 = CONTROL + 0x40;
    /// MSRs to read after an exit, 32 bits each, ends with zero.
    pub const PROBES: u64 = CONTROL + 0x100;
    /// MSRs to write after an exit: number and value, 16 bytes each, ends with zero.
    pub const RESETS: u64 = CONTROL + 0x200;
}

/// Flags of a case.
pub mod flag {
    /// VMRESUME, not VMLAUNCH.
    pub const RESUME: u32 = 1;
    /// Read the MSRs of [`super::control::PROBES`] after an exit.
    pub const PROBE: u32 = 2;
    /// Write the MSRs of [`super::control::RESETS`] after an exit.
    pub const RESET: u32 = 4;
}

/// First word of a patch that is no field.
pub mod patch {
    /// 64 bits of memory; swapped back after the case.
    pub const MEMORY: u32 = u32::MAX;
    /// 32 bits of the region's header, where the region is in KVM's layout.
    pub const HEADER: u32 = u32::MAX - 1;
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
