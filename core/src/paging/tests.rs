//! Each rule of the walk as a row: 4-level rights, reserved bits, flags, the other modes, EPT below.

use super::error_code::{FETCH, PRESENT as P, RESERVED, USER, WRITE};
use super::*;
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::ept;

const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const PD: u64 = 0x3000;
const PT: u64 = 0x4000;
const PAGE: u64 = 0x9000;
const LINEAR: u64 = 0x0000_7f12_3456_7890;
const XD: u64 = 1 << 63;

fn index(level: u32) -> u64 {
    (LINEAR >> (12 + 9 * (level - 1)) & 0x1ff) * 8
}

fn regime() -> Regime {
    Regime {
        mode: PagingMode::Level4,
        root: PML4,
        pdptrs: [0; 4],
        write_protect: true,
        page_size_extensions: true,
        global_pages: true,
        smep: false,
        smap: false,
        alignment_check: false,
        execute_disable: true,
        page_1g: true,
        width: 40,
        linear_width: 48,
        ept: None,
    }
}

/// Tables for [`LINEAR`] with these entries' flags, PML4E first.
fn tables(flags: [u64; 4]) -> VecMemory {
    let memory = VecMemory::new(1 << 20);
    let places = [(PML4, PDPT), (PDPT, PD), (PD, PT), (PT, PAGE)];
    for (i, ((table, next), flags)) in places.into_iter().zip(flags).enumerate() {
        let address = L1Phys(table + index(4 - i as u32));
        memory.write_u64(address, next | flags).unwrap();
    }
    memory
}

fn entry(memory: &VecMemory, table: u64, level: u32) -> u64 {
    memory.read_u64(L1Phys(table + index(level))).unwrap()
}

fn access(kind: AccessKind, user: bool) -> Access {
    Access {
        kind,
        user,
        implicit_supervisor: false,
    }
}

fn code(result: Result<Mapping, WalkFault>) -> Result<u64, u32> {
    match result {
        Ok(mapping) => Ok(mapping.physical.0),
        Err(WalkFault::PageFault(fault)) => {
            assert_eq!(fault.vector, Exception::PF);
            assert_eq!(fault.payload, LINEAR);
            Err(fault.error_code.unwrap())
        }
        Err(WalkFault::Ept(fault)) => panic!("{fault:?}"),
    }
}

const ALL: u64 = 0x67; // P, R/W, U/S, A, D

#[test]
fn rights_and_error_codes() {
    use AccessKind::{Fetch, Read, Write};
    let ok = Ok(PAGE | LINEAR & 0xfff);
    let plain = |_: &mut Regime| {};
    type Change = fn(&mut Regime);
    // Flags of the four entries, what differs from the regime above, access, outcome.
    type Row = ([u64; 4], Change, AccessKind, bool, Result<u64, u32>);
    let rows: &[Row] = &[
        ([ALL; 4], plain, Read, true, ok),
        ([ALL; 4], plain, Write, true, ok),
        ([ALL; 4], plain, Fetch, true, ok),
        ([0, ALL, ALL, ALL], plain, Read, false, Err(0)),
        ([ALL, ALL, ALL, 0], plain, Write, true, Err(WRITE | USER)),
        ([ALL, ALL, ALL, 0], plain, Fetch, false, Err(FETCH)),
        (
            [ALL, ALL, ALL, 0],
            |r| r.execute_disable = false,
            Fetch,
            false,
            Err(0),
        ),
        (
            [ALL, ALL, ALL, 0],
            |r| (r.execute_disable, r.smep) = (false, true),
            Fetch,
            false,
            Err(FETCH),
        ),
        // One entry without the right is enough.
        (
            [0x65, ALL, ALL, ALL],
            plain,
            Write,
            true,
            Err(P | WRITE | USER),
        ),
        ([ALL, 0x65, ALL, ALL], plain, Write, false, Err(P | WRITE)),
        (
            [ALL, ALL, 0x65, ALL],
            |r| r.write_protect = false,
            Write,
            false,
            ok,
        ),
        (
            [ALL, ALL, 0x65, ALL],
            |r| r.write_protect = false,
            Write,
            true,
            Err(P | WRITE | USER),
        ),
        ([ALL, 0x63, ALL, ALL], plain, Read, true, Err(P | USER)),
        ([ALL, 0x63, ALL, ALL], plain, Read, false, ok),
        (
            [XD | ALL, ALL, ALL, ALL],
            plain,
            Fetch,
            true,
            Err(P | FETCH | USER),
        ),
        ([XD | ALL, ALL, ALL, ALL], plain, Read, true, ok),
        (
            [ALL, ALL, ALL, XD | ALL],
            |r| r.execute_disable = false,
            Read,
            false,
            Err(P | RESERVED),
        ),
        // SMEP, SMAP.
        ([ALL; 4], |r| r.smep = true, Fetch, false, Err(P | FETCH)),
        ([ALL; 4], |r| r.smep = true, Fetch, true, ok),
        ([ALL; 4], |r| r.smap = true, Read, false, Err(P)),
        ([ALL; 4], |r| r.smap = true, Write, false, Err(P | WRITE)),
        (
            [ALL; 4],
            |r| (r.smap, r.alignment_check) = (true, true),
            Write,
            false,
            ok,
        ),
        ([ALL; 4], |r| r.smap = true, Fetch, false, ok),
        ([ALL; 4], |r| r.smap = true, Read, true, ok),
        ([0x63; 4], |r| r.smap = true, Read, false, ok),
        // Reserved bits: address above the width, PS in a PML4E, alignment of large pages.
        (
            [ALL, ALL, ALL, ALL | 1 << 40],
            plain,
            Read,
            true,
            Err(P | RESERVED | USER),
        ),
        ([ALL, ALL, ALL, ALL | 1 << 52], plain, Read, true, ok),
        (
            [ALL | 0x80, ALL, ALL, ALL],
            plain,
            Read,
            false,
            Err(P | RESERVED),
        ),
        (
            [ALL, ALL | 0x80, ALL, ALL],
            |r| r.page_1g = false,
            Read,
            false,
            Err(P | RESERVED),
        ),
        (
            [ALL, ALL, ALL | 0x80, ALL],
            plain,
            Write,
            false,
            Err(P | RESERVED | WRITE),
        ),
    ];
    for (i, (flags, change, kind, user, expected)) in rows.iter().enumerate() {
        let memory = tables(*flags);
        let mut regime = regime();
        change(&mut regime);
        let result = translate(&memory, &regime, LINEAR, access(*kind, *user));
        assert_eq!(code(result), *expected, "row {i}");
    }
}

#[test]
fn ac_does_not_lift_smap_for_implicit_accesses() {
    let memory = tables([ALL; 4]);
    let mut regime = regime();
    (regime.smap, regime.alignment_check) = (true, true);
    let implicit = Access::implicit(AccessKind::Read);
    assert_eq!(code(translate(&memory, &regime, LINEAR, implicit)), Err(P));
    // An implicit access is a supervisor's even at CPL 3.
    let memory = tables([0x63; 4]);
    assert!(translate(&memory, &regime, LINEAR, implicit).is_ok());
}

#[test]
fn large_pages() {
    for (level, flags, page, size) in [
        (2u32, [ALL, ALL, ALL | 0x80, 0], 0x0020_0000u64, 1u64 << 21),
        (3, [ALL, ALL | 0x80, 0, 0], 0x4000_0000, 1 << 30),
    ] {
        let memory = tables(flags);
        let table = if level == 2 { PD } else { PDPT };
        let at = L1Phys(table + index(level));
        // Bit 12 is PAT, no part of the address.
        memory.write_u64(at, page | ALL | 0x180 | 1 << 12).unwrap();
        let mapping =
            translate(&memory, &regime(), LINEAR, access(AccessKind::Read, true)).unwrap();
        assert_eq!(mapping.physical.0, page | LINEAR & (size - 1));
        assert_eq!((mapping.page_size, mapping.global), (size, true));
    }
}

#[test]
fn flags_are_set_once_and_probes_leave_no_trace() {
    let clean = 7;
    let memory = tables([clean; 4]);
    let read = access(AccessKind::Read, true);
    let write = access(AccessKind::Write, true);
    let probed = probe(&memory, &regime(), LINEAR, write).unwrap();
    assert!(!probed.writable, "a probe sets no dirty flag");
    assert_eq!(entry(&memory, PT, 1), PAGE | 7);
    let mapping = translate(&memory, &regime(), LINEAR, read).unwrap();
    assert!(
        mapping.readable && !mapping.writable,
        "the page is clean: a write must walk"
    );
    assert_eq!(entry(&memory, PML4, 4), PDPT | 0x27);
    assert_eq!(entry(&memory, PT, 1), PAGE | 0x27);
    let mapping = translate(&memory, &regime(), LINEAR, write).unwrap();
    assert!(mapping.writable);
    assert_eq!(entry(&memory, PT, 1), PAGE | 0x67);
    assert_eq!(
        entry(&memory, PD, 2),
        PT | 0x27,
        "dirty is the leaf's alone"
    );
    // A fault leaves nothing.
    let memory = tables([5; 4]);
    assert!(translate(&memory, &regime(), LINEAR, write).is_err());
    assert_eq!(entry(&memory, PML4, 4), PDPT | 5);
}

#[test]
fn five_levels() {
    let memory = tables([ALL; 4]);
    let linear = LINEAR | 3 << 48;
    memory
        .write_u64(L1Phys(0x8000 + 3 * 8), PML4 | ALL)
        .unwrap();
    let mut regime = regime();
    (regime.mode, regime.root) = (PagingMode::Level5, 0x8000);
    let mapping = translate(&memory, &regime, linear, access(AccessKind::Read, true)).unwrap();
    assert_eq!(mapping.physical.0, PAGE | LINEAR & 0xfff);
}

#[test]
fn pae_paging_uses_the_loaded_pdptes() {
    let memory = VecMemory::new(1 << 20);
    let linear = 0x8040_3abc;
    memory.write_u64(L1Phys(PD + 2 * 8), PT | ALL).unwrap();
    memory.write_u64(L1Phys(PT + 3 * 8), PAGE | ALL).unwrap();
    let mut regime = regime();
    regime.mode = PagingMode::Pae;
    regime.pdptrs = [0, 0, PD | 1, 0];
    let read = access(AccessKind::Read, true);
    let mapping = translate(&memory, &regime, linear, read).unwrap();
    assert_eq!(mapping.physical.0, 0x9abc);
    assert!(matches!(
        translate(&memory, &regime, 0x4000_0000, read),
        Err(WalkFault::PageFault(e)) if e.error_code == Some(USER)
    ));
    // Bits 62:M are all reserved, the ignored ones of 4-level paging too.
    memory
        .write_u64(L1Phys(PT + 3 * 8), PAGE | ALL | 1 << 52)
        .unwrap();
    assert!(matches!(
        translate(&memory, &regime, linear, read),
        Err(WalkFault::PageFault(e)) if e.error_code == Some(P | RESERVED | USER)
    ));
}

#[test]
fn thirty_two_bit_paging() {
    let memory = VecMemory::new(1 << 20);
    let mut regime = regime();
    regime.mode = PagingMode::Bits32;
    regime.execute_disable = false;
    let linear = 0x00c0_3abc; // PDE 3, PTE 3
    let read = access(AccessKind::Read, false);
    memory.write_u32(L1Phys(PML4 + 12), PT as u32 | 7).unwrap();
    memory.write_u32(L1Phys(PT + 12), PAGE as u32 | 7).unwrap();
    let mapping = translate(&memory, &regime, linear, read).unwrap();
    assert_eq!((mapping.physical.0, mapping.page_size), (0x9abc, 4096));
    assert_eq!(memory.read_u32(L1Phys(PT + 12)), Ok(PAGE as u32 | 0x27));
    assert_eq!(
        memory.read_u32(L1Phys(PT + 16)),
        Ok(0),
        "entries have 4 bytes"
    );

    // A 4-MiB page; PSE-36 puts address bits 39:32 into bits 20:13.
    memory
        .write_u32(L1Phys(PML4 + 12), 0x0040_0000 | 0x87 | 5 << 13)
        .unwrap();
    let mapping = translate(&memory, &regime, linear, read).unwrap();
    assert_eq!(mapping.physical.0, 0x5_0040_3abc);
    assert_eq!(mapping.page_size, 4 << 20);
    // Reserved: bit 21 always, bits above the width.
    for (pde, width) in [
        (0x0040_0087 | 1 << 21, 40),
        (0x0040_0087 | 1 << 17, 36),
        (0x0040_0087 | 1 << 13, 32),
    ] {
        memory.write_u32(L1Phys(PML4 + 12), pde).unwrap();
        regime.width = width;
        assert!(matches!(
            translate(&memory, &regime, linear, read),
            Err(WalkFault::PageFault(e)) if e.error_code == Some(P | RESERVED)
        ));
    }
    // Without CR4.PSE bit 7 means nothing.
    regime.page_size_extensions = false;
    memory
        .write_u32(L1Phys(PML4 + 12), PT as u32 | 0x87)
        .unwrap();
    assert_eq!(
        translate(&memory, &regime, linear, read)
            .unwrap()
            .physical
            .0,
        0x9abc
    );
}

/// EPT tables that map the first 2 MiB one to one by 4-KiB pages at 0x40000, root first.
const EPT_ROOT: u64 = 0x40000;
const EPT_PT: u64 = 0x43000;

fn second_stage(memory: &VecMemory, accessed_dirty: bool) -> Ept {
    for i in 0..3 {
        let at = L1Phys(EPT_ROOT + i * 0x1000);
        memory
            .write_u64(at, (EPT_ROOT + (i + 1) * 0x1000) | 7)
            .unwrap();
    }
    for page in 0..0x200 {
        memory
            .write_u64(L1Phys(EPT_PT + page * 8), page << 12 | 0x37)
            .unwrap();
    }
    let eptp = EPT_ROOT | 0x1e | u64::from(accessed_dirty) << 6;
    Ept::new(eptp, !crate::vmx::ept::capability::ADVANCED_INFORMATION, 40)
}

fn set_ept(memory: &VecMemory, page: u64, flags: u64) {
    memory
        .write_u64(L1Phys(EPT_PT + (page >> 12) * 8), page | 0x30 | flags)
        .unwrap();
}

#[test]
fn ept_below_guest_paging() {
    use AccessKind::{Fetch, Read, Write};
    let valid = ept::qualification::LINEAR_VALID;
    let last = valid | ept::qualification::TRANSLATED;
    // A/D in EPT, guest entry flags, page whose EPT entry gets these rights, access, outcome: the
    // qualification and the guest-physical address. As kvm-unit-tests' ept_access tests measure them.
    let target = PAGE | LINEAR & 0xfff;
    let pte = PT | index(1);
    type Row = (bool, u64, u64, u64, AccessKind, Result<(), (u64, u64)>);
    let rows: &[Row] = &[
        (false, ALL, PAGE, 7, Write, Ok(())),
        (false, ALL, PAGE, 0, Read, Err((last | 1, target))),
        (false, ALL, PAGE, 1, Write, Err((last | 2 | 1 << 3, target))),
        (false, ALL, PAGE, 3, Fetch, Err((last | 4 | 3 << 3, target))),
        (false, ALL, PAGE, 4, Read, Err((last | 1 | 4 << 3, target))),
        (false, ALL, PAGE, 4, Fetch, Ok(())),
        // Structures: reads without A/D, writes with it, read-modify-write to set a guest's flag.
        (false, ALL, PT, 0, Fetch, Err((valid | 1, pte))),
        (true, ALL, PT, 0, Read, Err((valid | 3, pte))),
        (false, 0x27, PT, 1, Read, Ok(())),
        (false, 0x27, PT, 1, Write, Err((valid | 3 | 1 << 3, pte))),
        (false, 0x07, PT, 1, Read, Err((valid | 3 | 1 << 3, pte))),
        (true, ALL, PT, 1, Read, Err((valid | 3 | 1 << 3, pte))),
        (true, ALL, PT, 3, Read, Ok(())),
    ];
    for (i, (ad, leaf, page, rights, kind, expected)) in rows.iter().enumerate() {
        let memory = tables([ALL, ALL, ALL, *leaf]);
        let mut regime = regime();
        regime.ept = Some(second_stage(&memory, *ad));
        set_ept(&memory, *page, *rights);
        let result = translate(&memory, &regime, LINEAR, access(*kind, true));
        let outcome = match result {
            Ok(_) => Ok(()),
            Err(WalkFault::Ept(EptFault::Violation {
                guest_physical,
                guest_linear,
                qualification,
                ..
            })) => {
                assert_eq!(guest_linear, Some(LINEAR));
                Err((qualification, guest_physical.0))
            }
            Err(fault) => panic!("row {i}: {fault:?}"),
        };
        assert_eq!(outcome, *expected, "row {i}");
    }
}

#[test]
fn ept_dirty_flags_decide_whether_writes_go_through() {
    let memory = tables([ALL; 4]);
    let mut regime = regime();
    regime.ept = Some(second_stage(&memory, true));
    let read = access(AccessKind::Read, true);
    let mapping = translate(&memory, &regime, LINEAR, read).unwrap();
    assert!(!mapping.writable);
    let ept_entry = |page: u64| memory.read_u64(L1Phys(EPT_PT + (page >> 12) * 8)).unwrap();
    assert_eq!(ept_entry(PAGE) & 0x300, 0x100);
    assert_eq!(
        ept_entry(PT) & 0x300,
        0x300,
        "a walk writes, as far as EPT is concerned"
    );
    let mapping = translate(&memory, &regime, LINEAR, access(AccessKind::Write, true)).unwrap();
    assert!(mapping.writable);
    assert_eq!(ept_entry(PAGE) & 0x300, 0x300);
}

#[test]
fn a_regime_is_built_from_the_registers() {
    let mut cpu = Cpu::default();
    let (pg, pae) = (cr0::PG | cr0::PE, cr4::PAE);
    let rows = [
        (0, 0, 0, PagingMode::None),
        (pg, 0, 0, PagingMode::Bits32),
        (pg, pae, 0, PagingMode::Pae),
        (pg, pae, efer::LMA, PagingMode::Level4),
        (pg, pae | cr4::LA57, efer::LMA, PagingMode::Level5),
    ];
    for (c0, c4, e, mode) in rows {
        (cpu.sregs.cr0, cpu.sregs.cr4, cpu.sregs.efer) = (c0, c4, e);
        cpu.sregs.cr3 = 0x0000_0001_2345_6fff;
        let regime = Regime::new(&cpu, None);
        assert_eq!(regime.mode, mode);
        let root = match mode {
            PagingMode::None | PagingMode::Bits32 => 0x2345_6000,
            PagingMode::Pae => 0x2345_6fe0,
            _ => 0x1_2345_6000,
        };
        assert_eq!(regime.root, root, "{mode:?}");
    }
}

/// A small generator: the same numbers in every run.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn hostile_tables_and_registers_never_panic() {
    let memory = VecMemory::new(0x8000);
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let modes = [
        PagingMode::None,
        PagingMode::Bits32,
        PagingMode::Pae,
        PagingMode::Level4,
        PagingMode::Level5,
    ];
    let mut translated = 0;
    for round in 0..20_000 {
        if round % 50 == 0 {
            for at in (0..0x8000).step_by(8) {
                // Mostly plausible entries, so that walks go deep.
                let wild = random(&mut state);
                let plain = random(&mut state) & 0x7000 | random(&mut state) & 0x3ff | 7;
                let entry = if wild & 7 == 0 { wild } else { plain };
                memory.write_u64(L1Phys(at), entry).unwrap();
            }
        }
        let mut regime = regime();
        regime.mode = modes[random(&mut state) as usize % modes.len()];
        regime.root = random(&mut state) & 0x7000;
        regime.pdptrs = std::array::from_fn(|_| random(&mut state) & 0x7fff);
        regime.smap = random(&mut state) & 1 != 0;
        if random(&mut state) & 1 != 0 {
            regime.ept = Some(Ept::new(
                random(&mut state) & 0x7fff,
                random(&mut state),
                40,
            ));
        }
        let kinds = [AccessKind::Read, AccessKind::Write, AccessKind::Fetch];
        let kind = kinds[random(&mut state) as usize % 3];
        let access = access(kind, random(&mut state) & 1 != 0);
        let linear = random(&mut state);
        let probed = probe(&memory, &regime, linear, access);
        let walked = translate(&memory, &regime, linear, access);
        translated += usize::from(walked.is_ok());
        // A walk that sets flags may change its own tables; else both must agree on success.
        if let (Ok(probed), Ok(walked)) = (probed, walked) {
            assert_eq!(probed.page_size, walked.page_size);
        }
    }
    assert!(translated > 1000, "{translated} walks reached a page");
}
