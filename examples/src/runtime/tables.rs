//! Descriptor tables, page tables and EPT, laid out when the image is built
//! (SDM Vol. 3A "Segment Descriptors", "4-Level Paging and 5-Level Paging"; Vol. 3C "The Extended
//! Page Table Mechanism").
//!
//! Accessed and dirty bits are set from the start: whether and when a processor sets them early is
//! no difference that a comparison should find.

use super::map::{self, MAPPED};

fn quads(entries: &[u64]) -> Vec<u8> {
    entries
        .iter()
        .flat_map(|entry| entry.to_le_bytes())
        .collect()
}

/// Limit of the GDT.
pub const GDT_LIMIT: u16 = 0x3f;

/// GDT, both TSSs and the operands of LGDT and LIDT: the page at [`map::GDT`].
#[must_use]
pub fn descriptor_page() -> Vec<u8> {
    let mut page = vec![0; 0x1000];
    let mut put = |address: u64, bytes: &[u8]| {
        let at = (address - map::GDT) as usize;
        page[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let [tss_l1, tss_l1_high] = tss_descriptor(map::TSS_L1);
    let [tss_l2, tss_l2_high] = tss_descriptor(map::TSS_L2);
    put(
        map::GDT,
        &quads(&[
            0,
            0x00af_9b00_0000_ffff,
            0x00cf_9300_0000_ffff,
            tss_l1,
            tss_l1_high,
            tss_l2,
            tss_l2_high,
            0x00cf_9b00_0000_ffff,
        ]),
    );
    for (tss, ist) in [(map::TSS_L1, map::STACK_IST), (map::TSS_L2, 0)] {
        put(tss + 0x24, &ist.to_le_bytes());
        // No I/O permission bitmap: its offset is behind the limit.
        put(tss + 0x66, &0x68_u16.to_le_bytes());
    }
    put(map::GDT_POINTER, &table_pointer(GDT_LIMIT, map::GDT));
    put(map::IDT_POINTER, &table_pointer(0xfff, map::IDT_L1));
    page
}

/// The operand of LGDT or LIDT.
#[must_use]
pub fn table_pointer(limit: u16, base: u64) -> Vec<u8> {
    let mut bytes = limit.to_le_bytes().to_vec();
    bytes.extend(base.to_le_bytes());
    bytes
}

/// An available 64-bit TSS: LTR marks L1's busy, VM entry takes L2's from the VMCS.
fn tss_descriptor(base: u64) -> [u64; 2] {
    let low = 0x67 | (base & 0xff_ffff) << 16 | 0x89 << 40 | (base >> 24 & 0xff) << 56;
    [low, base >> 32]
}

/// An IDT whose gates lead to the stubs at `stubs`, 16 bytes apart; vectors in `on_ist` use IST 1.
#[must_use]
pub fn idt(stubs: u64, on_ist: &[u64]) -> Vec<u8> {
    let mut entries = Vec::new();
    for vector in 0..256 {
        let target = stubs + 16 * vector;
        let ist = u64::from(on_ist.contains(&vector));
        entries.push(
            (target & 0xffff)
                | u64::from(map::selector::CODE) << 16
                | ist << 32
                | 0x8e << 40
                | (target >> 16 & 0xffff) << 48,
        );
        entries.push(target >> 32);
    }
    quads(&entries)
}

/// Present, writable, accessed, dirty.
const LEAF: u64 = 0x63;
/// Present, writable, accessed.
const TABLE: u64 = 0x23;
const LARGE: u64 = 0x80;

/// 4-level tables at `base` that map [`MAPPED`] bytes onto themselves in 2-MiB pages.
#[must_use]
pub fn paging(base: u64) -> Vec<u8> {
    let mut tables = vec![0; 3 * 512];
    tables[0] = (base + 0x1000) | TABLE;
    tables[512] = (base + 0x2000) | TABLE;
    for page in 0..MAPPED >> 21 {
        tables[1024 + page as usize] = page << 21 | LARGE | LEAF;
    }
    quads(&tables)
}

/// The tables of the second processor ([`map::PAGING_SECOND`]): its own pages stand where the first one's
/// do.
#[must_use]
pub fn paging_second() -> Vec<u8> {
    let mut tables = paging(map::PAGING_SECOND);
    let table = map::PAGING_SECOND + 0x3000;
    tables[0x2000..0x2008].copy_from_slice(&(table | TABLE).to_le_bytes());
    let own = |page: u64| match page {
        map::GDT => map::GDT_SECOND,
        map::L2_VARS => page,
        map::VARS..map::ZEROED_END => map::OWN_SECOND + (page - map::VARS),
        _ => page,
    };
    let entries: Vec<_> = (0..512).map(|page| own(page << 12) | LEAF).collect();
    tables.extend(quads(&entries));
    tables
}

/// PAE tables at `base`: four page-directory-pointer entries, then one page directory for the first
/// GiB. The other three entries are not present.
#[must_use]
pub fn paging_pae(base: u64) -> Vec<u8> {
    let mut tables = vec![0; 2 * 512];
    // Only P, PWT and PCD may be set here besides the address (SDM "PAE Paging").
    tables[0] = (base + 0x1000) | 1;
    for page in 0..MAPPED >> 21 {
        tables[512 + page as usize] = page << 21 | LARGE | LEAF;
    }
    quads(&tables)
}

/// EPT entry bits: read, write, execute.
pub const EPT_RWX: u64 = 7;
/// EPT memory type write-back, bits 5:3 of a leaf.
pub const EPT_WRITE_BACK: u64 = 6 << 3;
/// EPT pointer: write-back, page-walk length 4.
pub const EPT_POINTER: u64 = map::EPT | 6 | 3 << 3;
/// EPT pointer bit 6: accessed and dirty flags.
pub const EPT_POINTER_AD: u64 = 1 << 6;

/// EPT that maps [`MAPPED`] bytes onto themselves: 2-MiB pages, but 4-KiB pages from
/// [`map::SCRATCH`] on. Four pages at [`map::EPT`], the last at [`map::EPT_SCRATCH_TABLE`].
#[must_use]
pub fn ept() -> Vec<u8> {
    let mut tables = vec![0; 4 * 512];
    tables[0] = (map::EPT + 0x1000) | EPT_RWX;
    tables[512] = (map::EPT + 0x2000) | EPT_RWX;
    for page in 0..MAPPED >> 21 {
        tables[1024 + page as usize] = page << 21 | LARGE | EPT_WRITE_BACK | EPT_RWX;
    }
    tables[1024 + (map::SCRATCH >> 21) as usize] = map::EPT_SCRATCH_TABLE | EPT_RWX;
    for page in 0..512 {
        tables[1536 + page as usize] = (map::SCRATCH + page * 4096) | EPT_WRITE_BACK | EPT_RWX;
    }
    quads(&tables)
}

/// Exception stubs, 16 bytes each: push an error code of zero where the processor pushes none, push
/// the vector, jump to the handler behind the last stub (`base` + 4096).
#[must_use]
pub fn stubs() -> Vec<u8> {
    /// Exceptions with an error code (SDM Vol. 3A "Exceptions and Interrupts", a table of them).
    const WITH_ERROR_CODE: [u32; 8] = [8, 10, 11, 12, 13, 14, 17, 21];
    let mut bytes = Vec::new();
    for vector in 0..256_u32 {
        if !WITH_ERROR_CODE.contains(&vector) {
            bytes.extend([0x6a, 0]);
        }
        bytes.push(0x68);
        bytes.extend(vector.to_le_bytes());
        bytes.push(0xe9);
        let next = bytes.len() as u32 + 4;
        bytes.extend((4096 - next).to_le_bytes());
        bytes.resize(16 * (vector as usize + 1), 0xcc);
    }
    bytes
}
