//! L2's descriptor tables, page tables, stubs and code.
//!
//! Every instruction of it is CPUID, which exits: where L2 arrives, RIP says.

pub(crate) mod arena;

use crate::layout;
use nvmx_examples::runtime::map::selector;
use nvmx_examples::runtime::tables as standard;

/// CPUID.
const CPUID: [u8; 2] = [0x0f, 0xa2];
/// The same, as often as it fits a word.
pub(crate) const FILL: [u8; 8] = [0x0f, 0xa2, 0x0f, 0xa2, 0x0f, 0xa2, 0x0f, 0xa2];
/// User access, in every paging entry that has the bit.
const USER: u64 = 4;

fn quads(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// Everything, by address.
pub(crate) fn chunks() -> Vec<(u64, Vec<u8>)> {
    let cpuids = |bytes: usize| CPUID.repeat(bytes / 2);
    let mut chunks = arena::chunks();
    chunks.extend([
        (layout::IDT_64, standard::idt(layout::STUBS, &[])),
        (layout::IDT_32, idt_32()),
        (layout::STUBS, cpuids(0x1000)),
        (layout::CODE, cpuids(0x1000)),
        (layout::REAL_IMAGE, real()),
        (layout::SHADOW_LINK, vec![0; 0x1000]),
        (layout::PLAIN_LINK, vec![0; 0x1000]),
        (layout::ENTRY_LOAD, msr_lists()),
        (layout::PML, vec![0; 0x1000]),
        (layout::DESCRIPTOR, vec![0; 0x1000]),
        (layout::APIC_ACCESS, vec![0; 0x1000]),
        (layout::EPTP_LIST, vec![0; 0x1000]),
        (layout::VE_INFORMATION, vec![0; 0x1000]),
        (
            layout::USER_PAGING,
            for_user(standard::paging(layout::USER_PAGING)),
        ),
        (
            layout::USER_PAE,
            for_user_pae(standard::paging_pae(layout::USER_PAE)),
        ),
        (layout::TSS_64, task_states()),
    ]);
    chunks
}

/// The example guests' EPT with accessed and dirty flags set, so that what an earlier case did to them
/// does not show in a later one.
pub(crate) fn ept() -> Vec<u8> {
    let tables = standard::ept();
    let (entries, _) = tables.as_chunks::<8>();
    let used = |entry: &[u8; 8]| match u64::from_le_bytes(*entry) {
        0 => 0,
        entry => entry | 0x300,
    };
    quads(&entries.iter().map(used).collect::<Vec<_>>())
}

/// 32-bit interrupt gates.
fn idt_32() -> Vec<u8> {
    let gate = |vector: u64| {
        let target = layout::STUBS + 16 * vector;
        (target & 0xffff)
            | u64::from(selector::CODE_32) << 16
            | 0x8e << 40
            | (target >> 16 & 0xffff) << 48
    };
    quads(&(0..256).map(gate).collect::<Vec<_>>())
}

/// Interrupt vectors, stubs, code.
fn real() -> Vec<u8> {
    let segment = (layout::REAL >> 4) as u16;
    let vector = |number: u16| [(0x1000 + 16 * number).to_le_bytes(), segment.to_le_bytes()];
    let mut page: Vec<u8> = (0..256).flat_map(vector).flatten().collect();
    page.resize(0x1000, 0);
    page.extend(CPUID.repeat(0x1000));
    page
}

/// The lists that a case may use two entries of: FMASK and KERNEL_GS_BASE. What is stored behind them is an MSR that
/// every processor has.
fn msr_lists() -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    for (address, values) in [
        (layout::ENTRY_LOAD, [0x1111, 0x2222]),
        (layout::EXIT_STORE, [0, 0]),
        (layout::EXIT_LOAD, [0x3333, 0x4444]),
    ] {
        let at = (address - layout::ENTRY_LOAD) as usize;
        let list = quads(&[0xc000_0084, values[0], 0xc000_0102, values[1]]);
        page[at..at + 32].copy_from_slice(&list);
    }
    let stored = quads(&[0xc000_0102, 0]);
    let (rest, end) = (layout::EXIT_STORE + 32, layout::EXIT_LOAD);
    for address in (rest..end).step_by(16) {
        let at = (address - layout::ENTRY_LOAD) as usize;
        page[at..at + 16].copy_from_slice(&stored);
    }
    page
}

fn for_user(tables: Vec<u8>) -> Vec<u8> {
    let (entries, _) = tables.as_chunks::<8>();
    let user = |entry: &[u8; 8]| match u64::from_le_bytes(*entry) {
        0 => 0,
        entry => entry | USER,
    };
    quads(&entries.iter().map(user).collect::<Vec<_>>())
}

/// The page-directory-pointer entries have no such bit.
fn for_user_pae(tables: Vec<u8>) -> Vec<u8> {
    let mut user = for_user(tables.clone());
    user[..32].copy_from_slice(&tables[..32]);
    user
}

/// Two task states: one with a 64-bit RSP0, one with ESP0 and SS0.
fn task_states() -> Vec<u8> {
    let mut page = vec![0; 0x200];
    let mut put = |at: usize, value: u64| page[at..at + 8].copy_from_slice(&value.to_le_bytes());
    put(4, layout::STACK);
    let at = (layout::TSS_32 - layout::TSS_64) as usize;
    put(at + 4, layout::STACK | u64::from(selector::DATA) << 32);
    // No I/O permission bitmap, no interrupt redirection: its offset is behind the limit.
    put(0x60, 0x68 << 48);
    put(at + 0x60, 0x68 << 48);
    page
}
