//! What the arena holds: descriptor tables, task states, page tables, EPT.

use super::{CPUID, quads};
use crate::case::{Case, Hex, Mutation};
use crate::layout::{self, arena};

/// Selectors in the arena's GDT.
pub(crate) mod selector {
    /// 64-bit code, CPL 0.
    pub(crate) const CODE: u16 = 0x08;
    /// Data, CPL 0.
    pub(crate) const DATA: u16 = 0x10;
    /// A task state that is not busy.
    pub(crate) const OTHER_TSS: u16 = 0x18;
    /// L2's task state.
    pub(crate) const TSS: u16 = 0x28;
    /// 32-bit code, CPL 0.
    pub(crate) const CODE_32: u16 = 0x38;
    /// 64-bit code, CPL 3.
    pub(crate) const USER_64: u16 = 0x43;
    /// Data, CPL 3.
    pub(crate) const USER_DATA: u16 = 0x4b;
    /// 32-bit code, CPL 3.
    pub(crate) const USER_32: u16 = 0x53;
    /// All that there is, and some that is not.
    pub(crate) const ANY: &[u16] = &[
        0, 3, CODE, DATA, OTHER_TSS, TSS, CODE_32, USER_64, USER_DATA, USER_32, CONFORMING,
        FRESH_DATA, ABSENT, DOWN, CALL_GATE, LOCAL, CODE_16, TASK_GATE, READ_ONLY, 4, 0xc, 0xf,
        0x13, 0x20, 0xc8, 0xfff8,
    ];
    /// Conforming 32-bit code, not accessed.
    pub(crate) const CONFORMING: u16 = 0x58;
    /// Data, not accessed.
    pub(crate) const FRESH_DATA: u16 = 0x60;
    /// Data that is not present.
    pub(crate) const ABSENT: u16 = 0x68;
    /// Data that expands down.
    pub(crate) const DOWN: u16 = 0x70;
    /// A call gate to a stub.
    pub(crate) const CALL_GATE: u16 = 0x78;
    /// A local descriptor table.
    pub(crate) const LOCAL: u16 = 0x88;
    /// 16-bit code.
    pub(crate) const CODE_16: u16 = 0x98;
    /// A task gate.
    pub(crate) const TASK_GATE: u16 = 0xa0;
    /// Data that cannot be written.
    pub(crate) const READ_ONLY: u16 = 0xa8;
}

/// Limit of the GDT.
pub(crate) const GDT_LIMIT: u64 = 0xbf;
/// Limit of the task states: the map of I/O permissions has 256 ports.
pub(crate) const TSS_LIMIT: u64 = 0x88;

/// Everything, by address.
pub(crate) fn chunks() -> Vec<(u64, Vec<u8>)> {
    let fill = |pages: usize| CPUID.repeat(0x800 * pages);
    let mut chunks = vec![
        (arena::CODE, fill(2)),
        (arena::STUBS, fill(1)),
        (arena::IDT_64, idt_64()),
        (arena::IDT_32, system()),
        (arena::STACK, vec![0; 0x2000]),
        (arena::DATA, data()),
        (arena::VIRTUAL_APIC, vec![0; 0x1000]),
        (arena::APIC_ACCESS, vec![0; 0x1000]),
        (arena::PML, vec![0; 0x1000]),
        (arena::VE_INFORMATION, vec![0; 0x1000]),
        (arena::EPTP_LIST, eptp_list()),
    ];
    chunks.push((arena::PAGING, paging(arena::PAGING, 0)));
    chunks.push((arena::USER_PAGING, paging(arena::USER_PAGING, USER)));
    chunks.push((arena::PAE, pae(arena::PAE, 0)));
    chunks.push((arena::USER_PAE, pae(arena::USER_PAE, USER)));
    chunks.push((arena::LEGACY, legacy()));
    chunks.push((arena::EPT, ept()));
    chunks
}

const USER: u64 = 4;
/// Present, writable, accessed.
const TABLE: u64 = 0x23;
/// Present, writable, accessed, dirty.
const LEAF: u64 = 0x63;

/// Pages of the arena, by number.
fn pages() -> impl Iterator<Item = u64> {
    arena::START >> 12..arena::END >> 12
}

/// A leaf for a page of the arena. Pages that are not looked at after a case cannot be written.
fn leaf(page: u64) -> u64 {
    const WRITABLE: u64 = 2;
    let address = page << 12;
    let read_only = matches!(
        address,
        arena::STUBS | arena::IDT_64 | arena::VE_INFORMATION | arena::EPTP_LIST | arena::PML
    ) || address >= arena::PAGING;
    address | LEAF & !(if read_only { WRITABLE } else { 0 })
}

fn paging(base: u64, user: u64) -> Vec<u8> {
    let mut tables = vec![0; 4 * 512];
    tables[0] = (base + 0x1000) | TABLE | user;
    tables[512] = (base + 0x2000) | TABLE | user;
    tables[1024 + (arena::START >> 21) as usize] = (base + 0x3000) | TABLE | user;
    for page in pages() {
        tables[1536 + (page & 511) as usize] = leaf(page) | user;
    }
    quads(&tables)
}

/// For CPL 3 with a fourth page, which maps the memory of virtual-8086 mode.
fn pae(base: u64, user: u64) -> Vec<u8> {
    let mut tables = vec![0; if user == 0 { 3 } else { 4 } * 512];
    tables[0] = (base + 0x1000) | 1;
    tables[512 + (arena::START >> 21) as usize] = (base + 0x2000) | TABLE | user;
    for page in pages() {
        tables[1024 + (page & 511) as usize] = leaf(page) | user;
    }
    if user != 0 {
        tables[512] = (base + 0x3000) | TABLE | user;
        for page in real_pages() {
            tables[1536 + page as usize] = page << 12 | LEAF | user;
        }
    }
    quads(&tables)
}

fn real_pages() -> std::ops::Range<u64> {
    layout::REAL >> 12..(layout::REAL + layout::REAL_SIZE) >> 12
}

fn legacy() -> Vec<u8> {
    let mut tables = vec![0_u32; 2 * 1024];
    tables[0] = (arena::LEGACY + 0x1000) as u32 | TABLE as u32;
    for page in pages() {
        tables[1024 + page as usize] = leaf(page) as u32;
    }
    tables
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// Read, write, execute; accessed and dirty are set.
const EPT_TABLE: u64 = 0x107;
const EPT_LEAF: u64 = 0x337;

fn ept() -> Vec<u8> {
    let mut tables = vec![0; 5 * 512];
    tables[0] = (arena::EPT + 0x1000) | EPT_TABLE;
    tables[512] = (arena::EPT + 0x2000) | EPT_TABLE;
    tables[1024] = (arena::EPT + 0x4000) | EPT_TABLE;
    tables[1024 + (arena::START >> 21) as usize] = (arena::EPT + 0x3000) | EPT_TABLE;
    for page in pages() {
        tables[1536 + (page & 511) as usize] = page << 12 | EPT_LEAF;
    }
    for page in real_pages() {
        tables[2048 + page as usize] = page << 12 | EPT_LEAF;
    }
    quads(&tables)
}

/// EPT pointers: good ones, with and without accessed and dirty flags, and bad ones.
fn eptp_list() -> Vec<u8> {
    let mut list = vec![0; 512];
    list[..6].copy_from_slice(&[
        arena::EPT | 0x1e,
        arena::EPT | 0x5e,
        arena::EPT | 0x1d,
        0,
        arena::EPT | 0x9e,
        arena::EPT,
    ]);
    quads(&list)
}

fn data() -> Vec<u8> {
    (0..arena::DATA_PAGES * 512)
        .flat_map(|word| data_word(word).to_le_bytes())
        .collect()
}

const fn data_word(number: u64) -> u64 {
    number << 32 | 0x5a5a_0000 | number
}

/// What a word of the stack, the data or the code holds before a case, and zero elsewhere.
pub(crate) fn word(case: &Case, address: u64) -> u64 {
    let patched = case.mutations.iter().find_map(|mutation| match *mutation {
        Mutation::Memory(Hex(at), Hex(value)) if at == address => Some(value),
        _ => None,
    });
    let data = arena::DATA..arena::DATA + (arena::DATA_PAGES << 12);
    let real_code = layout::REAL + 0x1000..layout::REAL + layout::REAL_SIZE;
    patched.unwrap_or_else(|| {
        if data.contains(&address) {
            data_word((address - arena::DATA) / 8)
        } else if real_code.contains(&address) {
            u64::from_le_bytes(super::FILL)
        } else {
            0
        }
    })
}

/// The type of a vector's gate, its DPL and P: interrupt gates, and a few others.
fn gate_rights(vector: u64) -> u64 {
    match vector {
        3 | 4 | 0x80 => 0xee,
        0x81 => 0xef,
        0x82 => 0x6e,
        0x83 => 0xe2,
        _ => 0x8e,
    }
}

fn gate(vector: u64, code: u16, rights: u64) -> u64 {
    let target = arena::STUBS + 16 * vector;
    target & 0xffff | u64::from(code) << 16 | rights << 40 | (target >> 16 & 0xffff) << 48
}

fn idt_64() -> Vec<u8> {
    let gates = (0..256).flat_map(|vector| [gate(vector, selector::CODE, gate_rights(vector)), 0]);
    quads(&gates.collect::<Vec<_>>())
}

/// The page that starts with the 32-bit IDT.
fn system() -> Vec<u8> {
    let mut page: Vec<u8> = (0..256)
        .map(|vector| match vector {
            0x85 => task_gate(),
            _ => gate(vector, selector::CODE_32, gate_rights(vector)),
        })
        .flat_map(u64::to_le_bytes)
        .collect();
    page.resize(0x1000, 0);
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - arena::IDT_32) as usize;
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    put(arena::GDT, &quads(&gdt()));
    // One descriptor of code, one of data.
    put(
        arena::LDT,
        &quads(&[0x00cf_9b00_0000_ffff, 0x00cf_9300_0000_ffff]),
    );
    for (address, wide) in [
        (arena::TSS_64, true),
        (arena::TSS_32, false),
        (arena::OTHER_TSS, false),
    ] {
        let mut tss = vec![0; 0x68];
        if wide {
            tss[4..12].copy_from_slice(&arena::INNER_STACK.to_le_bytes());
        } else {
            tss[4..8].copy_from_slice(&(arena::INNER_STACK as u32).to_le_bytes());
            tss[8..10].copy_from_slice(&selector::DATA.to_le_bytes());
        }
        tss[0x66..].copy_from_slice(&0x68_u16.to_le_bytes());
        // Ports: every other group of eight is allowed. The last byte has all bits set.
        tss.extend((0..32).map(|byte| if byte % 2 == 0 { 0 } else { 0xff }));
        tss.push(0xff);
        put(address, &tss);
    }
    page
}

fn task_gate() -> u64 {
    u64::from(selector::OTHER_TSS) << 16 | 0x85 << 40
}

fn gdt() -> Vec<u64> {
    let system = |base: u64, limit: u64, rights: u64| {
        limit | (base & 0xff_ffff) << 16 | rights << 40 | (base >> 24 & 0xff) << 56
    };
    let mut table = vec![0; (GDT_LIMIT as usize + 1) / 8];
    let mut put = |selector: u16, descriptor: u64| table[usize::from(selector) / 8] = descriptor;
    put(selector::CODE, 0x00af_9b00_0000_ffff);
    put(selector::DATA, 0x00cf_9300_0000_ffff);
    put(
        selector::OTHER_TSS,
        system(arena::OTHER_TSS, TSS_LIMIT, 0x89),
    );
    put(selector::TSS, system(arena::TSS_64, TSS_LIMIT, 0x8b));
    put(selector::CODE_32, 0x00cf_9b00_0000_ffff);
    put(selector::USER_64, 0x00af_fb00_0000_ffff);
    put(selector::USER_DATA, 0x00cf_f300_0000_ffff);
    put(selector::USER_32, 0x00cf_fb00_0000_ffff);
    put(selector::CONFORMING, 0x00cf_9e00_0000_ffff);
    put(selector::FRESH_DATA, 0x00cf_9200_0000_ffff);
    put(selector::ABSENT, 0x00cf_1300_0000_ffff);
    put(selector::DOWN, 0x00cf_9700_0000_0000);
    put(selector::CALL_GATE, gate(0x90, selector::CODE, 0xec));
    put(selector::LOCAL, system(arena::LDT, 15, 0x82));
    put(selector::CODE_16, 0x000f_9b00_0000_ffff);
    put(selector::TASK_GATE, task_gate());
    put(selector::READ_ONLY, 0x00cf_9100_0000_ffff);
    table
}
