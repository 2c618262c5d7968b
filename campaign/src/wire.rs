//! Cases and bases as the guest reads them, and records as it leaves them.

use crate::base::BASES;
use crate::case::{Case, Hex, Mutation, Named};
use crate::layout::{self, flag, patch, record, status};
use nvmx_core::cpu::Model;
use nvmx_core::vmx::capability::Capability;
use nvmx_core::vmx::vmcs12::{Layout, layout::locate};
use nvmx_core::vmx::{Field, Vmcs12};

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
    0x1d9,       // DEBUGCTL
    0x174,       // SYSENTER_CS, _ESP, _EIP
    0x175,
    0x176,
    0xc000_0100, // FS, GS and kernel GS base
    0xc000_0101,
    0xc000_0102,
    0xc000_0081, // STAR, LSTAR, FMASK
    0xc000_0082,
    0xc000_0084,
];

/// MSRs of L1 that are written after the exits of cases that may leave another value.
pub(crate) const RESETS: &[(u32, u64)] = &[
    (0xc000_0080, 0x500),
    (0x277, 0x0007_0406_0007_0406),
    (0xc000_0102, 0),
    (0xc000_0081, 0),
    (0xc000_0082, 0),
    (0xc000_0084, 0),
];

/// The pages at [`layout::BASES`].
#[must_use]
pub fn bases(model: &Model, vm_exit: u64, access: Access) -> Vec<u8> {
    let mut bytes = Vec::new();
    for base in BASES {
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
    for (address, msr) in (layout::control::PROBES..).step_by(4).zip(PROBES) {
        put(address, &msr.to_le_bytes());
    }
    for (address, (msr, value)) in (layout::control::RESETS..).step_by(16).zip(RESETS) {
        put(address, &u64::from(*msr).to_le_bytes());
        put(address + 8, &value.to_le_bytes());
    }
    page
}

impl Case {
    /// The case as the guest reads it.
    #[must_use]
    pub fn encode(&self) -> [u8; layout::CASE as usize] {
        let mut bytes = [0; layout::CASE as usize];
        let mut put = |at: usize, word: u32| bytes[at..at + 4].copy_from_slice(&word.to_le_bytes());
        let base = crate::base::find(&self.base).unwrap_or_default();
        let mutations = &self.mutations[..self.mutations.len().min(layout::MAX_PATCHES)];
        put(0, base as u32);
        put(4, mutations.len() as u32);
        put(8, self.flags());
        for (at, mutation) in (16..).step_by(16).zip(mutations) {
            let (first, second, value) = match *mutation {
                Mutation::Field(Named(field), Hex(value)) => {
                    (field.0, u32::from_le_bytes(place(field)), value)
                }
                Mutation::Memory(Hex(address), Hex(value)) => {
                    (patch::MEMORY, address as u32, value)
                }
                Mutation::Header(Hex(offset), Hex(value)) => {
                    (patch::HEADER, offset as u32 | 4 << 16, value)
                }
            };
            put(at, first);
            put(at + 4, second);
            put(at + 8, value as u32);
            put(at + 12, (value >> 32) as u32);
        }
        bytes
    }

    /// Cases that may leave L1 with other MSRs look at them, and put them back.
    fn flags(&self) -> u32 {
        let mut flags = if self.resume { flag::RESUME } else { 0 };
        let touches = self.base == "msr-lists"
            || self.mutations.iter().any(|mutation| match *mutation {
                Mutation::Field(Named(field), _) => is_about_msrs(field),
                Mutation::Memory(Hex(address), _) => address >> 12 == layout::ENTRY_LOAD >> 12,
                Mutation::Header(..) => false,
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
        let (words, _) = bytes[record::GPRS..].as_chunks::<8>();
        Some(Self {
            vmcs12,
            status: word(record::STATUS)?,
            words: words.iter().map(|word| u64::from_le_bytes(*word)).collect(),
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
