//! EPTP validity, misconfigurations, mode-based execute control, the page-modification log.

use super::*;
use crate::memory::VecMemory;

const CAPABILITIES: u64 = capability::WALK_LENGTH_4
    | capability::WRITE_BACK
    | capability::PAGE_2M
    | capability::PAGE_1G
    | capability::ACCESSED_DIRTY;

#[test]
fn validity_of_eptp() {
    let all = u64::MAX;
    let rows = [
        (0x1e, CAPABILITIES, true),
        (0x5e, CAPABILITIES, true),
        (0x5e, CAPABILITIES & !capability::ACCESSED_DIRTY, false),
        (0x18, CAPABILITIES, false),
        (0x18, all, true),
        (0x1d, all, false),
        (0x26, CAPABILITIES, false),
        (0x26, all, true),
        (0x16, all, false),
        (0x9e, CAPABILITIES, false),
        (0x11e, all, false),
        (0x1e | 1 << 39, all, true),
        (0x1e | 1 << 40, all, false),
    ];
    for (eptp, capabilities, valid) in rows {
        assert_eq!(eptp_is_valid(eptp, capabilities, 40), valid, "{eptp:#x}");
    }
}

/// Root at 0x1000, then 0x2000 and so on; `level`'s entry is `entry`, those above are plain.
fn walk_to(level: u8, entry: u64, ept: &Ept, access: EptAccess) -> Result<u64, EptFault> {
    let memory = VecMemory::new(0x10000);
    for l in level..=4 {
        let table = 0x1000 * u64::from(5 - l);
        let value = if l == level {
            entry
        } else {
            (table + 0x1000) | 7
        };
        memory.write_u64(L1Phys(table), value).unwrap();
    }
    translate(&memory, ept, L2Phys(0x234), access).map(|m| m.physical.0)
}

const DATA_READ: EptAccess = EptAccess {
    read: true,
    write: false,
    fetch: false,
    user: false,
    linear: None,
    linear_writable: false,
    linear_execute_disable: false,
    paging_structure: false,
};

#[test]
fn misconfigurations() {
    let ept = Ept::new(0x101e, CAPABILITIES, 40);
    let execute_only = Ept {
        execute_only: true,
        ..ept.clone()
    };
    let small = Ept {
        page_2m: false,
        page_1g: false,
        ..ept.clone()
    };
    // Level, entry, regime, whether it is misconfigured (else: a violation or a translation).
    let rows = [
        (1, 0x8037, &ept, false),
        (1, 0x8032, &ept, true),
        (1, 0x8036, &ept, true),
        (1, 0x8034, &ept, true),
        (1, 0x8034, &execute_only, false),
        (1, 0x8030, &ept, false),
        (1, 0x8007, &ept, false),
        (1, 0x8017, &ept, true),
        (1, 0x801f, &ept, true),
        (1, 0x803f, &ept, true),
        (1, 0x8037 | 1 << 40, &ept, true),
        (1, 0x8037 | 1 << 52, &ept, false),
        (2, 0x8087 | 0x30, &ept, true),
        (2, 0x20_00b7, &ept, false),
        (2, 0x20_00b7, &small, true),
        (2, 0x4007 | 0x40, &ept, true),
        (3, 0x4000_00b7, &ept, false),
        (3, 0x4000_00b7, &small, true),
        (3, 0x4000_00b7 | 1 << 29, &ept, true),
        (4, 0x2007 | 0x80, &ept, true),
        (4, 0x2007 | 0x08, &ept, true),
    ];
    for (level, entry, ept, expected) in rows {
        let result = walk_to(level, entry, ept, DATA_READ);
        let misconfigured = matches!(result, Err(EptFault::Misconfiguration { .. }));
        assert_eq!(
            misconfigured, expected,
            "level {level} {entry:#x}: {result:?}"
        );
    }
}

#[test]
fn mode_based_execute_control_asks_the_mode() {
    let ept = Ept {
        mode_based_execute: true,
        ..Ept::new(0x101e, u64::MAX, 40)
    };
    let fetch = |user| EptAccess {
        read: false,
        fetch: true,
        user,
        linear: Some(0),
        ..DATA_READ
    };
    // Upper entries without bit 10 bar user-mode fetches too: use a 1-level view of the rights.
    let supervisor_only = walk_to(1, 0x8035, &ept, fetch(false));
    assert_eq!(supervisor_only, Ok(0x8234));
    assert_eq!(
        walk_to(1, 0x8035, &ept, fetch(true)),
        Err(EptFault::Violation {
            guest_physical: L2Phys(0x234),
            guest_linear: Some(0),
            // Bits 11:9, advanced information: a user-mode page or not, nothing else set here.
            qualification: 4 | 5 << 3 | 3 << 7 | 1 << 9,
            convertible: true,
        })
    );
}

#[test]
fn modifications_are_logged_until_the_log_is_full() {
    let memory = VecMemory::new(0x10000);
    for i in 1..4 {
        memory
            .write_u64(L1Phys(i * 0x1000), ((i + 1) * 0x1000) | 7)
            .unwrap();
    }
    let ept = Ept {
        log: Some(PageModificationLog {
            address: L1Phys(0x9000),
            index: Cell::new(0),
        }),
        ..Ept::new(0x105e, u64::MAX, 40)
    };
    let write = EptAccess {
        write: true,
        ..DATA_READ
    };
    for page in [5, 6] {
        memory.write_u64(L1Phys(0x4000 + page * 8), 0x37).unwrap();
    }
    let to = |page: u64| translate(&memory, &ept, L2Phys(page << 12 | 8), write);
    assert!(to(5).is_ok());
    assert_eq!(memory.read_u64(L1Phys(0x9000)), Ok(0x5000));
    assert_eq!(
        to(5).map(|m| m.writable),
        Ok(true),
        "dirty already: nothing to log"
    );
    let full = EptFault::LogFull {
        guest_physical: L2Phys(0x6008),
    };
    assert_eq!(to(6), Err(full));
    assert_eq!(
        memory.read_u64(L1Phys(0x4030)),
        Ok(0x37),
        "no flag without a log entry"
    );
}

#[test]
fn beyond_the_walk_is_a_violation_without_rights() {
    let ept = Ept::new(0x101e, CAPABILITIES, 40);
    let memory = VecMemory::new(0x2000);
    let far = L2Phys(1 << 48);
    let result = translate(&memory, &ept, far, DATA_READ);
    assert_eq!(
        result,
        Err(EptFault::Violation {
            guest_physical: far,
            guest_linear: None,
            qualification: 1,
            convertible: false,
        })
    );
}

#[test]
fn paging_structures_on_the_apic_access_page_exit_below_violations() {
    let ept = Ept {
        apic_access_page: Some(L1Phys(0x7000)),
        ..Ept::new(0x101e, CAPABILITIES, 40)
    };
    let structure = EptAccess::page_walk(0x1234);
    let exit = EptFault::ApicAccess(PageAccess {
        offset: 0x234,
        kind: AccessKind::GuestPhysical,
    });
    assert_eq!(walk_to(1, 0x7037, &ept, structure), Err(exit));
    assert_eq!(walk_to(1, 0x8037, &ept, structure), Ok(0x8234));
    // The load of PDPTEs has no linear address at all.
    assert_eq!(walk_to(1, 0x7037, &ept, DATA_READ), Err(exit));
    // What a linear address translates to is looked at by the caller.
    let translated = EptAccess {
        linear: Some(0x1234),
        ..DATA_READ
    };
    assert_eq!(walk_to(1, 0x7037, &ept, translated), Ok(0x7234));
    // Not readable: a violation, or what else is wrong with the entry.
    assert!(matches!(
        walk_to(1, 0x7034, &ept, structure),
        Err(EptFault::Violation { .. } | EptFault::Misconfiguration { .. })
    ));
}

#[test]
fn advanced_information_tells_of_guest_paging() {
    let capabilities = CAPABILITIES | capability::ADVANCED_INFORMATION;
    let access = |user, linear_writable, linear_execute_disable, paging_structure| EptAccess {
        write: true,
        read: false,
        user,
        linear: Some(0x234),
        linear_writable,
        linear_execute_disable,
        paging_structure,
        ..DATA_READ
    };
    // Access, capabilities, bits 11:7 of the qualification.
    let rows = [
        (access(true, true, true, false), capabilities, 0b11111),
        (access(true, true, true, false), CAPABILITIES, 0b00011),
        (access(false, true, false, false), capabilities, 0b01011),
        (access(false, false, true, false), capabilities, 0b10011),
        (access(true, false, false, false), capabilities, 0b00111),
        // Undefined for paging structures: left clear.
        (access(true, true, true, true), capabilities, 0b00001),
    ];
    for (access, capabilities, expected) in rows {
        let ept = Ept::new(0x101e, capabilities, 40);
        let Err(EptFault::Violation { qualification, .. }) = walk_to(1, 0x8035, &ept, access)
        else {
            panic!("no violation: {access:?}");
        };
        assert_eq!(qualification >> 7, expected, "{access:?}");
    }
}

#[test]
fn suppress_ve_is_the_refusing_entrys() {
    let ept = Ept::new(0x101e, CAPABILITIES, 40);
    let write = EptAccess {
        write: true,
        ..DATA_READ
    };
    let suppress = 1 << 63;
    // Level, entry, access, whether #VE may stand in for the exit.
    let rows = [
        (1, 0, DATA_READ, true),
        (1, suppress, DATA_READ, false),
        (2, suppress, DATA_READ, false),
        (3, 0x1000, DATA_READ, true),
        (1, 0x8031, write, true),
        (1, 0x8031 | suppress, write, false),
        // An upper entry that lacks the right does not decide: the page's does.
        (2, 0x4001 | suppress, write, true),
    ];
    for (level, entry, access, expected) in rows {
        let memory = VecMemory::new(0x10000);
        for l in 1..=4 {
            let table = 0x1000 * (5 - l);
            let value = match l {
                _ if l == level => entry,
                1 => 0x8037,
                _ => (table + 0x1000) | 7,
            };
            memory.write_u64(L1Phys(table), value).unwrap();
        }
        match translate(&memory, &ept, L2Phys(0x234), access) {
            Err(EptFault::Violation { convertible, .. }) => {
                assert_eq!(convertible, expected, "level {level} {entry:#x}");
            }
            other => panic!("level {level} {entry:#x}: {other:?}"),
        }
    }
}

/// Page 5 is read-only with its SPP bit set; `last` is the entry of its sub-page permissions.
fn sub_page_write(
    offset: u64,
    page: u64,
    upper: [u64; 3],
    last: u64,
    structure: bool,
) -> Result<bool, EptFault> {
    let memory = VecMemory::new(0x10000);
    for i in 1..4 {
        memory
            .write_u64(L1Phys(i * 0x1000), ((i + 1) * 0x1000) | 7)
            .unwrap();
    }
    memory.write_u64(L1Phys(0x4000 + 5 * 8), page).unwrap();
    for (at, entry) in [0xa000, 0xb000, 0xc000].into_iter().zip(upper) {
        memory.write_u64(L1Phys(at), entry).unwrap();
    }
    memory.write_u64(L1Phys(0xd000 + 5 * 8), last).unwrap();
    let ept = Ept {
        sub_page_table: Some(L1Phys(0xa000)),
        ..Ept::new(0x101e, CAPABILITIES, 40)
    };
    let access = EptAccess {
        write: true,
        linear: Some(offset),
        paging_structure: structure,
        ..DATA_READ
    };
    translate(&memory, &ept, L2Phys(0x5000 + offset), access).map(|m| {
        assert!(!m.writable, "the next write asks again");
        m.sub_page
    })
}

#[test]
fn sub_page_permissions_decide_128_bytes_at_a_time() {
    let (plain, spp) = (0x8031, 0x8031 | SUB_PAGE);
    let upper = [0xb001, 0xc001, 0xd001];
    let is_violation = |r| matches!(r, Err(EptFault::Violation { .. }));
    let is_event = |r, wanted| matches!(r, Err(EptFault::SubPage { miss, .. }) if miss == wanted);
    assert_eq!(sub_page_write(0x80, spp, upper, 1 << 2, false), Ok(true));
    assert_eq!(sub_page_write(0xff, spp, upper, 1 << 2, false), Ok(true));
    assert_eq!(sub_page_write(0xf80, spp, upper, 1 << 62, false), Ok(true));
    for offset in [0x7f, 0x100] {
        assert!(is_violation(sub_page_write(
            offset,
            spp,
            upper,
            1 << 2,
            false
        )));
    }
    assert!(is_violation(sub_page_write(
        0x80,
        plain,
        upper,
        1 << 2,
        false
    )));
    assert!(is_violation(sub_page_write(0x80, spp, upper, 1 << 2, true)));
    // "SPPT Misses" and "SPPT Misconfigurations", level by level.
    for level in 0..3 {
        let mut missing = upper;
        missing[level] &= !1;
        assert!(is_event(sub_page_write(0x80, spp, missing, 4, false), true));
        for reserved in [1 << 1, 1 << 11, 1 << 40, 1 << 63] {
            let mut wrong = upper;
            wrong[level] |= reserved;
            assert!(is_event(sub_page_write(0x80, spp, wrong, 4, false), false));
        }
    }
    assert!(is_event(
        sub_page_write(0x80, spp, upper, 4 | 2, false),
        false
    ));
}
