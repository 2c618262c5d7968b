//! ACPI tables as QEMU's `pc` gives them (ACPI Specification "ACPI Software Programming Model"): RSDP,
//! RSDT, XSDT, FADT, FACS, DSDT, MADT. All lie in firmware's area, which the memory map reserves.

mod aml;

use super::{ioapic, pm};
use crate::memory_map::FIRMWARE;
use aml::Space;

/// Where the root pointer is: on a 16-byte boundary in firmware's area.
pub const RSDP: u64 = FIRMWARE;
const FACS: u64 = FIRMWARE + 0x40;
const TABLES: u64 = FIRMWARE + 0x100;
const FIRMWARE_END: u64 = FIRMWARE + 0x1_0000;
const LOCAL_APIC: u32 = 0xfee0_0000;
/// Line of the system control interrupt.
const SCI: u8 = 9;
/// The most processors that 8-bit APIC identifiers name.
const MOST_PROCESSORS: usize = 255;

/// The tables of a machine with so many processors, each with its address.
#[must_use]
pub fn tables(processors: usize) -> Vec<(u64, Vec<u8>)> {
    let mut next = TABLES;
    let mut place = |bytes: Vec<u8>| {
        let at = next;
        next = (next + bytes.len() as u64).next_multiple_of(16);
        debug_assert!(next <= FIRMWARE_END);
        (at, bytes)
    };
    let dsdt = place(dsdt(processors));
    let fadt = place(fadt(dsdt.0 as u32));
    let madt = place(madt(processors));
    let pointers = [fadt.0, madt.0];
    let rsdt = place(table(
        b"RSDT",
        1,
        &pointers.map(|at| (at as u32).to_le_bytes()).concat(),
    ));
    let xsdt = place(table(b"XSDT", 1, &pointers.map(u64::to_le_bytes).concat()));
    vec![
        (RSDP, rsdp(rsdt.0 as u32, xsdt.0)),
        (FACS, facs()),
        dsdt,
        fadt,
        madt,
        rsdt,
        xsdt,
    ]
}

/// What makes the sum of all bytes zero.
fn checksum(bytes: &[u8]) -> u8 {
    bytes
        .iter()
        .fold(0_u8, |sum, byte| sum.wrapping_add(*byte))
        .wrapping_neg()
}

/// A table with the header that all have but RSDP and FACS.
fn table(signature: &[u8; 4], revision: u8, body: &[u8]) -> Vec<u8> {
    let length = 36 + body.len() as u32;
    let mut bytes = [
        signature,
        &length.to_le_bytes()[..],
        &[revision, 0],
        b"NVMX  PC      ",
        &1_u32.to_le_bytes(),
        b"NVMX",
        &1_u32.to_le_bytes(),
        body,
    ]
    .concat();
    bytes[9] = checksum(&bytes);
    bytes
}

fn rsdp(rsdt: u32, xsdt: u64) -> Vec<u8> {
    let mut bytes = [
        b"RSD PTR ",
        &[0][..],
        b"NVMX  ",
        &[2],
        &rsdt.to_le_bytes(),
        &36_u32.to_le_bytes(),
        &xsdt.to_le_bytes(),
        &[0; 4],
    ]
    .concat();
    // The first sum is over what revision 0 had.
    bytes[8] = checksum(&bytes[..20]);
    bytes[32] = checksum(&bytes);
    bytes
}

fn facs() -> Vec<u8> {
    let mut bytes = vec![0; 64];
    bytes[..4].copy_from_slice(b"FACS");
    bytes[4] = 64;
    bytes
}

/// A generic address: so many bytes of ports.
fn port_block(port: u16, bytes: u8) -> [u8; 12] {
    let access = match bytes {
        4 => 3,
        2 => 2,
        _ => 1,
    };
    let [low, high] = port.to_le_bytes();
    [1, bytes * 8, 0, access, low, high, 0, 0, 0, 0, 0, 0]
}

/// The Fixed ACPI Description Table, of revision 3.
fn fadt(dsdt: u32) -> Vec<u8> {
    const LENGTH: usize = 244;
    /// WBINVD works, C1 works, no sleep button, RTC cannot wake from S4, reset register.
    const FLAGS: u32 = 1 | 1 << 2 | 1 << 5 | 1 << 7 | 1 << 10;
    let mut body = vec![0; LENGTH - 36];
    // Offsets are the specification's, from the table's beginning.
    let mut put = |at: usize, bytes: &[u8]| {
        body[at - 36..at - 36 + bytes.len()].copy_from_slice(bytes);
    };
    let event = pm::PM1;
    let control = pm::PM1 + 4;
    put(36, &(FACS as u32).to_le_bytes());
    put(40, &dsdt.to_le_bytes());
    put(46, &[SCI, 0]);
    put(48, &u32::from(pm::SMI_COMMAND).to_le_bytes());
    put(52, &[pm::ENABLE, pm::DISABLE]);
    put(56, &u32::from(event).to_le_bytes());
    put(64, &u32::from(control).to_le_bytes());
    put(76, &u32::from(pm::TIMER).to_le_bytes());
    put(80, &u32::from(pm::GPE0).to_le_bytes());
    put(88, &[4, 2, 0, 4, 4]); // lengths: event, control, none, timer, general events
    put(96, &[0xff, 0x0f, 0xff, 0x0f]); // no C2, no C3
    put(108, &[0x32]); // the clock's century
    put(109, &[0x02, 0]); // there is an 8042
    put(112, &FLAGS.to_le_bytes());
    put(116, &port_block(0xcf9, 1));
    put(128, &[0x0f]); // what to write there
    put(132, &FACS.to_le_bytes());
    put(140, &u64::from(dsdt).to_le_bytes());
    put(148, &port_block(event, 4));
    put(172, &port_block(control, 2));
    put(208, &port_block(pm::TIMER, 4));
    put(220, &port_block(pm::GPE0, 4));
    table(b"FACP", 3, &body)
}

/// The Multiple APIC Description Table.
fn madt(processors: usize) -> Vec<u8> {
    /// There are 8259s to be disabled.
    const PCAT_COMPATIBLE: u32 = 1;
    /// Active high, level-triggered.
    const LEVEL: u8 = 0x0d;
    let mut body = [LOCAL_APIC.to_le_bytes(), PCAT_COMPATIBLE.to_le_bytes()].concat();
    for id in (0..=254_u8).take(processors.min(MOST_PROCESSORS)) {
        body.extend([0, 8, id, id, 1, 0, 0, 0]);
    }
    body.extend([1, 12, 0, 0]);
    body.extend((ioapic::ADDRESS as u32).to_le_bytes());
    body.extend(0_u32.to_le_bytes());
    // The timer is wired to input 2; PCI's lines are level-triggered.
    for (irq, input, flags) in [
        (0, 2, 0),
        (5, 5, LEVEL),
        (9, 9, LEVEL),
        (10, 10, LEVEL),
        (11, 11, LEVEL),
    ] {
        body.extend([2, 10, 0, irq, input, 0, 0, 0, flags, 0]);
    }
    // NMI is at LINT1 of every processor.
    body.extend([4, 6, 0xff, 0, 0, 1]);
    table(b"APIC", 1, &body)
}

/// The namespace: how to power off, processors, a PCI bus, and the ISA devices that are looked for.
fn dsdt(processors: usize) -> Vec<u8> {
    use aml::{device, eisa_id, integer, line, name, package, ports, resources, scope, window};
    let s5 = integer(u32::from(pm::SLEEP_TYPE_S5));
    let isa =
        |path, id, crs: &[Vec<u8>]| device(path, &[name("_HID", &eisa_id(id)), resources(crs)]);
    let bus = device(
        "PCI0",
        &[
            name("_HID", &eisa_id("PNP0A03")),
            name("_UID", &integer(0)),
            name("_ADR", &integer(0)),
            resources(&[
                window(Space::Buses, 0, 0xff),
                ports(0xcf8, 8),
                window(Space::Ports, 0, 0xcf7),
                window(Space::Ports, 0xd00, 0xffff),
                window(Space::Memory, 0xa_0000, 0xb_ffff),
                window(
                    Space::Memory,
                    super::MOST_MEMORY as u32,
                    ioapic::ADDRESS as u32 - 1,
                ),
            ]),
            device(
                "ISA_",
                &[
                    name("_ADR", &integer(1 << 16)),
                    isa(
                        "KBD_",
                        "PNP0303",
                        &[ports(0x60, 1), ports(0x64, 1), line(1)],
                    ),
                    isa("COM1", "PNP0501", &[ports(0x3f8, 8), line(4)]),
                    isa("RTC_", "PNP0B00", &[ports(0x70, 8), line(8)]),
                ],
            ),
        ],
    );
    let processor = |id: usize| {
        device(
            &format!("C{id:03X}"),
            &[
                name("_HID", &aml::string("ACPI0007")),
                name("_UID", &integer(id as u32)),
            ],
        )
    };
    let mut terms: Vec<_> = (0..processors.min(MOST_PROCESSORS))
        .map(processor)
        .collect();
    terms.push(bus);
    let body = [
        name("_S5_", &package(&[s5.clone(), s5, integer(0), integer(0)])),
        scope("\\_SB_", &terms),
    ]
    .concat();
    table(b"DSDT", 1, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        checksum(bytes)
    }

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
    }

    #[test]
    fn every_table_is_found_from_the_root_with_its_sum() {
        for processors in [1, 4, 255, 1000] {
            let tables = tables(processors);
            let at = |address: u64| {
                &tables
                    .iter()
                    .find(|(start, _)| *start == address)
                    .unwrap_or_else(|| panic!("nothing at {address:#x}"))
                    .1
            };
            let root = at(RSDP);
            assert_eq!((sum(&root[..20]), sum(root)), (0, 0));
            let rsdt = at(word(root, 16).into());
            let xsdt = at(word(root, 24).into());
            let pointers = |table: &[u8], size| {
                table[36..]
                    .chunks_exact(size)
                    .map(|bytes| word(bytes, 0))
                    .collect::<Vec<_>>()
            };
            assert_eq!(pointers(rsdt, 4), pointers(xsdt, 8));
            let signatures: Vec<_> = pointers(rsdt, 4)
                .iter()
                .map(|pointer| &at(u64::from(*pointer))[..4])
                .collect();
            assert_eq!(signatures, [b"FACP", b"APIC"]);
            let fadt = at(pointers(rsdt, 4)[0].into());
            assert_eq!(&at(word(fadt, 36).into())[..4], b"FACS");
            assert_eq!(&at(word(fadt, 40).into())[..4], b"DSDT");
            for (address, bytes) in tables.iter().skip(2) {
                assert_eq!(sum(bytes), 0, "{address:#x}");
                assert_eq!(word(bytes, 4) as usize, bytes.len());
            }
            assert_eq!(FACS % 64, 0);
        }
    }

    #[test]
    fn tables_stay_in_the_reserved_area_and_apart() {
        let mut tables = tables(255);
        tables.sort();
        let ends: Vec<u64> = tables
            .iter()
            .map(|(start, bytes)| start + bytes.len() as u64)
            .collect();
        for (end, (next, _)) in ends.iter().zip(&tables[1..]) {
            assert!(end <= next);
        }
        assert!(ends.last().is_some_and(|end| *end <= FIRMWARE_END));
    }

    #[test]
    fn the_madt_names_processors_and_overrides() {
        let madt = madt(3);
        let mut entries = Vec::new();
        let mut rest = &madt[44..];
        while let [kind, length, ..] = rest {
            entries.push((*kind, &rest[..usize::from(*length)]));
            rest = &rest[usize::from(*length)..];
        }
        let of = |kind| {
            entries
                .iter()
                .filter(move |(k, _)| *k == kind)
                .map(|(_, bytes)| *bytes)
                .collect::<Vec<_>>()
        };
        assert_eq!(of(0).iter().map(|e| e[3]).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(word(of(1)[0], 4), 0xfec0_0000);
        let overrides: Vec<_> = of(2).iter().map(|e| (e[3], e[4], e[8])).collect();
        assert_eq!(
            overrides,
            [
                (0, 2, 0),
                (5, 5, 13),
                (9, 9, 13),
                (10, 10, 13),
                (11, 11, 13)
            ]
        );
        assert_eq!(of(4).len(), 1);
    }
}
