//! Cases and bases as the guest reads them, and records as it leaves them.

use crate::base;
use crate::case::{Case, Hex, Mutation, Named};
use crate::layout::{self, flag, patch, record, status};
use nvmx_core::cpu::Model;
use nvmx_core::vmx::capability::Capability;
use nvmx_core::vmx::vmcs12::{Layout, layout::locate};
use nvmx_core::vmx::{Field, Vmcs12};
use std::collections::BTreeMap;

/// How fields reach the VMCS and come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As bytes of a page in KVM's layout.
    Raw,
    /// By VMWRITE and VMREAD.
    Instructions,
}

/// MSRs of L1 that are read after the exits of cases that touch host state.
pub const PROBES: &[u32] = &[
    0xc000_0080, // EFER
    0x277,       // PAT
    0x174,       // SYSENTER_CS, _ESP, _EIP
    0x175,
    0x176,
    0xc000_0100, // FS, GS and kernel GS base
    0xc000_0101,
    0xc000_0102,
    0xc000_0081, // STAR, LSTAR, FMASK
    0xc000_0082,
    0xc000_0084,
    0xc000_0083, // CSTAR
    0xc000_0103, // TSC_AUX
    DEBUGCTL,
];

/// Not on bare Bochs, which does not have it.
const DEBUGCTL: u32 = 0x1d9;

/// MSRs of L1 that are written after the exits of cases that may leave another value.
pub(crate) const RESETS: &[(u32, u64)] = &[
    (0xc000_0080, 0x500),
    (0x277, 0x0007_0406_0007_0406),
    (0xc000_0102, 0),
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0084, 0),
    (0xc000_0083, 0),
    (0xc000_0103, 0),
];

const NOP: u8 = 0x90;

/// The pages at [`layout::BASES`].
#[must_use]
pub fn bases(model: &Model, vm_exit: u64, access: Access) -> Vec<u8> {
    let mut bytes = Vec::new();
    for base in base::all() {
        let fields = base.fields(model, vm_exit);
        let mut page = match access {
            Access::Raw => {
                let mut vmcs12 = Vmcs12::new();
                vmcs12.set_revision(Capability::from(model).revision());
                for (field, value) in fields {
                    vmcs12.set(field, value);
                }
                vmcs12.bytes().to_vec()
            }
            Access::Instructions => pairs(&fields),
        };
        page.resize(0x1000, 0);
        bytes.extend(page);
    }
    bytes
}

/// Fields for VMWRITE: those of the base, and zero for every other one.
fn pairs(fields: &[(Field, u64)]) -> Vec<u8> {
    let others = writable().filter(|field| fields.iter().all(|(set, _)| set != field));
    let all = fields.iter().copied().chain(others.map(|field| (field, 0)));
    let mut bytes = Vec::new();
    for (field, value) in all {
        bytes.extend(u64::from(field.0).to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0xff; 16]);
    bytes
}

/// Fields of KVM's layout that VMWRITE may write.
pub fn writable() -> impl Iterator<Item = Field> {
    Layout::Linux6_1
        .fields()
        .filter(|field| !field.is_read_only())
}

/// The list at [`layout::FIELD_LIST`].
#[must_use]
pub fn field_list() -> Vec<u8> {
    let mut bytes = Vec::new();
    // A VMREAD that fails would write it.
    let error = Field::VM_INSTRUCTION_ERROR;
    let others = Layout::Linux6_1.fields().filter(|field| *field != error);
    for field in std::iter::once(error).chain(others) {
        bytes.extend(field.0.to_le_bytes());
        bytes.extend(place(field));
    }
    bytes.extend([0xff; 8]);
    bytes
}

/// Offset and size of a field in KVM's layout.
fn place(field: Field) -> [u8; 4] {
    let Some(location) = locate(field) else {
        return [0; 4];
    };
    let word = location.offset as u32 | (location.bytes as u32) << 16;
    word.to_le_bytes()
}

/// The page at [`layout::CONTROL`].
#[must_use]
pub fn control(count: usize, access: Access, disk_chunk: u32) -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - layout::CONTROL) as usize;
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(layout::control::COUNT, &(count as u32).to_le_bytes());
    let by_fields = u32::from(access == Access::Instructions);
    put(layout::control::BY_FIELDS, &by_fields.to_le_bytes());
    put(layout::control::DISK_CHUNK, &disk_chunk.to_le_bytes());
    let probes = PROBES
        .iter()
        .filter(|&&msr| access == Access::Raw || msr != DEBUGCTL);
    for (address, msr) in (layout::control::PROBES..).step_by(4).zip(probes) {
        put(address, &msr.to_le_bytes());
    }
    for (address, (msr, value)) in (layout::control::RESETS..).step_by(16).zip(RESETS) {
        put(address, &u64::from(*msr).to_le_bytes());
        put(address + 8, &value.to_le_bytes());
    }
    for (address, (start, size, distance)) in (layout::control::RANGES..)
        .step_by(16)
        .zip(layout::arena::ranges())
    {
        for (at, word) in (address..).step_by(4).zip([start, size / 8, distance]) {
            put(at, &(word as u32).to_le_bytes());
        }
    }
    page
}

impl Case {
    /// The case as the guest reads it: base, patches, flags, bytes; then the patches.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![0; 16];
        let mut patches = 0_u32;
        let mut patch = |first: u32, second: u32, value: u64| {
            bytes.extend(first.to_le_bytes());
            bytes.extend(second.to_le_bytes());
            bytes.extend(value.to_le_bytes());
            patches += 1;
        };
        for mutation in &self.mutations {
            match *mutation {
                Mutation::Field(Named(field), Hex(value)) => {
                    patch(field.0, u32::from_le_bytes(place(field)), value);
                }
                Mutation::Memory(Hex(address), Hex(value)) => {
                    patch(patch::MEMORY, address as u32, value);
                }
                Mutation::Header(Hex(offset), Hex(value)) => {
                    patch(patch::HEADER, offset as u32 | 4 << 16, value);
                }
                Mutation::Register(register, Hex(value)) => {
                    patch(patch::REGISTER, 8 * u32::from(register.0), value);
                }
            }
        }
        for (address, word) in (self.code_address()..).step_by(8).zip(self.code_words()) {
            patch(patch::MEMORY, address as u32, word);
        }
        let index = base::find(&self.base).unwrap_or_default() as u32;
        let size = bytes.len() as u32;
        for (at, word) in (0..).step_by(4).zip([index, patches, self.flags(), size]) {
            bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// The code as words; behind it L2 meets what is everywhere there.
    fn code_words(&self) -> impl Iterator<Item = u64> {
        self.code.0.chunks(8).map(|bytes| {
            let mut word = crate::tables::FILL;
            word[..bytes.len()].copy_from_slice(bytes);
            // Behind an odd end a NOP, so that CPUIDs are where they are in the rest of the page.
            if bytes.len() % 2 == 1 {
                word[bytes.len()] = NOP;
            }
            u64::from_le_bytes(word)
        })
    }

    /// Where the code goes: L2's RIP, or where that is in memory.
    #[must_use]
    pub fn code_address(&self) -> u64 {
        let rip = self
            .mutations
            .iter()
            .rev()
            .find_map(|mutation| match *mutation {
                Mutation::Field(Named(Field::GUEST_RIP), Hex(rip)) => Some(rip),
                _ => None,
            });
        match base::find_code(&self.base) {
            Some(code) if code.is_real => layout::REAL + (rip.unwrap_or(base::REAL_RIP) & 0xffff),
            _ => rip.unwrap_or(layout::arena::CODE),
        }
    }

    /// Cases that may leave L1 with other MSRs look at them, and put them back.
    fn flags(&self) -> u32 {
        let mut flags = if self.resume { flag::RESUME } else { 0 };
        if base::find_code(&self.base).is_some() {
            flags |= flag::ARENA | flag::PROBE | flag::RESET;
        }
        let touches = self.base == "msr-lists"
            || self.mutations.iter().any(|mutation| match *mutation {
                Mutation::Field(Named(field), _) => is_about_msrs(field),
                Mutation::Memory(Hex(address), _) => address >> 12 == layout::ENTRY_LOAD >> 12,
                Mutation::Header(..) | Mutation::Register(..) => false,
            });
        if touches {
            flags |= flag::PROBE | flag::RESET;
        }
        flags
    }
}

fn is_about_msrs(field: Field) -> bool {
    matches!(
        field,
        Field::VM_EXIT_CONTROLS
            | Field::VM_ENTRY_CONTROLS
            | Field::VM_ENTRY_MSR_LOAD_COUNT
            | Field::VM_EXIT_MSR_LOAD_COUNT
            | Field::VM_ENTRY_MSR_LOAD_ADDR
            | Field::VM_EXIT_MSR_LOAD_ADDR
            | Field::GUEST_IA32_PAT
            | Field::GUEST_IA32_EFER
    ) || field.type_() == nvmx_core::vmx::fields::FieldType::HostState
}

/// What became of a case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// L1 lived on and wrote this.
    Record(Box<Record>),
    /// The machine stopped instead: why.
    Stopped(String),
}

/// What the guest wrote.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// The VMCS afterwards; only what VMREAD gives where there is no page in KVM's layout.
    pub vmcs12: Vmcs12,
    /// How the entry ended: see [`status`].
    pub status: u32,
    /// Everything else, 64 bits each: see [`Record::others`].
    words: Vec<u64>,
    /// What L2 flipped in its arena, by address; the first words of it.
    pub changes: BTreeMap<u64, u64>,
}

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.summary())
    }
}

/// Names of the words behind the vmcs12 that have one.
const WORDS: &[(usize, &str)] = &[
    (record::GPRS, "L2 RAX"),
    (record::GPRS + 8, "L2 RBX"),
    (record::GPRS + 16, "L2 RCX"),
    (record::HOST, "L1 CR0"),
    (record::HOST + 8, "L1 CR3"),
    (record::HOST + 16, "L1 CR4"),
    (record::HOST + 24, "CR2"),
    (record::HOST + 32, "L1 RFLAGS"),
    (record::TABLES, "L1 GDTR limit and base"),
    (record::TABLES + 8, "L1 GDTR base, high"),
    (record::TABLES + 16, "L1 IDTR limit and base"),
    (record::TABLES + 24, "L1 IDTR base, high"),
    (record::SELECTORS, "L1 ES, CS, SS, DS"),
    (record::SELECTORS + 8, "L1 FS, GS, TR, LDTR"),
    (record::MORE_GPRS, "L2 RDX"),
    (record::MORE_GPRS + 8, "L2 RSI"),
    (record::MORE_GPRS + 16, "L2 RDI"),
    (record::MORE_GPRS + 24, "L2 RBP"),
    (record::MORE_GPRS + 32, "L2 R8"),
    (record::MORE_GPRS + 40, "L2 R9"),
    (record::MORE_GPRS + 48, "L2 R10"),
    (record::MORE_GPRS + 56, "L2 R11"),
    (record::MORE_GPRS + 64, "L2 R12"),
    (record::MORE_GPRS + 72, "L2 R13"),
    (record::MORE_GPRS + 80, "L2 R14"),
    (record::MORE_GPRS + 88, "L2 R15"),
    (record::DEBUG, "DR0"),
    (record::DEBUG + 8, "DR1"),
    (record::DEBUG + 16, "DR2"),
    (record::DEBUG + 24, "DR3"),
    (record::DEBUG + 32, "DR6"),
    (record::DEBUG + 40, "CR8"),
    (record::CHANGED, "words changed"),
    (record::DIGEST, "digest of changes"),
];

impl Record {
    /// Reads a record; `None` if the guest did not finish it.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
        if bytes.len() != layout::RECORD as usize || word(record::MAGIC)? != layout::MAGIC {
            return None;
        }
        let mut vmcs12 = Vmcs12::default();
        vmcs12.bytes_mut()[..1000].copy_from_slice(&bytes[..1000]);
        let (words, _) = bytes[record::GPRS..record::CHANGES].as_chunks::<8>();
        let (changes, _) = bytes[record::CHANGES..].as_chunks::<16>();
        let changes = changes.iter().map(|change| {
            let [address, flipped] = [&change[..8], &change[8..]].map(|half| {
                half.first_chunk()
                    .map_or(0, |word| u64::from_le_bytes(*word))
            });
            (address, flipped)
        });
        Some(Self {
            vmcs12,
            status: word(record::STATUS)?,
            words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
            changes: changes.filter(|(address, _)| *address != 0).collect(),
        })
    }

    /// Everything beside the VMCS, by name.
    pub fn others(&self) -> impl Iterator<Item = (String, u64)> + '_ {
        self.words.iter().enumerate().map(|(index, word)| {
            let at = record::GPRS + 8 * index;
            let name = WORDS.iter().find(|(offset, _)| *offset == at);
            let name = match name {
                Some((_, name)) => (*name).to_owned(),
                None if at >= record::WATCHED => {
                    match layout::WATCHED.get((at - record::WATCHED) / 8) {
                        Some(address) => format!("memory {address:#x}"),
                        None => format!("record {at:#x}"),
                    }
                }
                None if at >= record::STACK => format!(
                    "stack {:#x}",
                    layout::STACK as usize - record::STACK_BYTES + at - record::STACK
                ),
                None => match PROBES.get((at.wrapping_sub(record::PROBES)) / 8) {
                    Some(msr) => format!("L1 MSR {msr:#x}"),
                    None => format!("record {at:#x}"),
                },
            };
            (name, *word)
        })
    }

    fn gpr(&self, name: &str) -> u64 {
        let value = self.others().find(|(what, _)| what == name);
        value.map_or(0, |(_, value)| value)
    }

    /// L2's RCX at the exit.
    pub(crate) fn rcx(&self) -> u64 {
        self.gpr("L2 RCX")
    }

    /// L2's RDX at the exit.
    pub(crate) fn rdx(&self) -> u64 {
        self.gpr("L2 RDX")
    }

    /// Whether L2 was entered.
    #[must_use]
    pub fn entered(&self) -> bool {
        self.status == status::EXIT && self.vmcs12.get(Field::VM_EXIT_REASON) >> 31 == 0
    }

    /// In a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        let get = |field| self.vmcs12.get(field);
        match self.status {
            status::FAIL_INVALID => "VMfailInvalid".into(),
            status::FAIL_VALID => format!("VMfailValid {}", get(Field::VM_INSTRUCTION_ERROR)),
            status::EXIT => format!(
                "exit {:#x} qualification {:#x} rip {:#x}",
                get(Field::VM_EXIT_REASON),
                get(Field::EXIT_QUALIFICATION),
                get(Field::GUEST_RIP)
            ),
            status::NOT_LOADED => "VMPTRLD failed".into(),
            other => format!("status {other}"),
        }
    }
}

impl Outcome {
    /// In a few words.
    #[must_use]
    pub fn summary(&self) -> String {
        match self {
            Self::Record(record) => record.summary(),
            Self::Stopped(why) => format!("the machine stopped: {why}"),
        }
    }
}
