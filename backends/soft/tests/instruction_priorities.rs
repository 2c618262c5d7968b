//! Where an instruction of L2 would both fault and exit, what comes first is what the table says (SDM Vol. 3C
//! "Relative Priority of Faults and VM Exits"): each row with its instructions.

mod common;

use common::bare::{PAGING, put};
use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field as F;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::vmx::intercepts::priority::{First, INSTRUCTIONS};

/// L2's TSS.
const TSS: u64 = 0xb000;
const TSD: u64 = 1 << 2;
const DE: u64 = 1 << 3;
const UMIP: u64 = 1 << 11;
const OSXSAVE: u64 = 1 << 18;
/// A linear address that nothing maps: in the second GiB.
const UNMAPPED: [u8; 4] = 0x7000_0000_u32.to_le_bytes();

/// An instruction, how L2 is set up for it, and the exit that it would have.
struct Case {
    row: &'static str,
    code: Vec<u8>,
    set_up: fn(&mut Nest),
    exit: u32,
}

fn case(row: &'static str, exit: u32, code: &[u8], set_up: fn(&mut Nest)) -> Case {
    Case {
        row,
        code: code.to_vec(),
        set_up,
        exit,
    }
}

fn nothing(_: &mut Nest) {}

fn primary(nest: &mut Nest, control: Primary) {
    nest.on(F::CPU_BASED_VM_EXEC_CONTROL, control.bits());
}

fn secondary(nest: &mut Nest, control: Secondary) {
    primary(nest, Primary::ACTIVATE_SECONDARY_CONTROLS);
    nest.on(F::SECONDARY_VM_EXEC_CONTROL, control.bits());
}

fn cr4(nest: &mut Nest, bits: u64) {
    let value = nest.get(F::GUEST_CR4) | bits;
    nest.set(F::GUEST_CR4, value);
}

/// CPL 3 with the pages of L2 for all.
fn user(nest: &mut Nest) {
    for (selector, rights, value) in [
        (F::GUEST_CS_SELECTOR, F::GUEST_CS_AR_BYTES, (0x1b, 0xa0fb)),
        (F::GUEST_SS_SELECTOR, F::GUEST_SS_AR_BYTES, (0x23, 0xc0f3)),
    ] {
        nest.set(selector, value.0);
        nest.set(rights, value.1);
    }
    for table in 0..3 {
        let at = PAGING + 0x1000 * table;
        let mut entry = [0; 8];
        nest.vm.read_memory(L1Phys(at), &mut entry).expect("RAM");
        put(
            &mut nest.vm,
            at,
            &(u64::from_le_bytes(entry) | 4).to_le_bytes(),
        );
    }
}

/// The code behind an instruction's absolute operand.
fn at_unmapped(code: &[u8]) -> Vec<u8> {
    [code, &UNMAPPED].concat()
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case("privilege", 12, &[0xf4], |n| {
            user(n);
            primary(n, Primary::HLT_EXITING);
        }),
        case("privilege", 13, &[0x0f, 0x08], user),
        case("privilege", 31, &[0x0f, 0x32], user),
        case("privilege", 28, &[0x0f, 0x20, 0xd8], |n| {
            user(n);
            primary(n, Primary::CR3_STORE_EXITING);
        }),
        case("privilege", 14, &[0x0f, 0x01, 0x38], |n| {
            user(n);
            primary(n, Primary::INVLPG_EXITING);
        }),
        case("privilege.monitor", 39, &[0x0f, 0x01, 0xc8], |n| {
            user(n);
            primary(n, Primary::MONITOR_EXITING);
        }),
        case("privilege.tsd", 16, &[0x0f, 0x31], |n| {
            user(n);
            cr4(n, TSD);
            primary(n, Primary::RDTSC_EXITING);
        }),
        case("privilege.tsd", 15, &[0x0f, 0x33], |n| {
            user(n);
            primary(n, Primary::RDPMC_EXITING);
        }),
        case("privilege.umip", 46, &[0x0f, 0x01, 0x00], |n| {
            user(n);
            cr4(n, UMIP);
            secondary(n, Secondary::DESCRIPTOR_TABLE_EXITING);
        }),
        case("privilege.io", 30, &[0xec], |n| {
            user(n);
            // The TSS has no bitmap.
            put(&mut n.vm, TSS + 0x66, &[0x68, 0]);
            primary(n, Primary::UNCONDITIONAL_IO_EXITING);
        }),
        case("privilege.mov_dr", 29, &[0x0f, 0x21, 0xf8], |n| {
            user(n);
            primary(n, Primary::MOV_DR_EXITING);
        }),
        case("privilege.mov_dr", 29, &[0x0f, 0x21, 0xe0], |n| {
            cr4(n, DE);
            primary(n, Primary::MOV_DR_EXITING);
        }),
        case("any_privilege", 10, &[0x0f, 0xa2], user),
        case("any_privilege", 18, &[0x0f, 0x01, 0xc1], user),
        case("any_privilege", 26, &[0x0f, 0x01, 0xc4], user),
        // RDTSCP, INVPCID, TPAUSE without their controls; the exits would be RDTSCP's and so on.
        case("undefined", 51, &[0x0f, 0x01, 0xf9], |n| {
            primary(n, Primary::RDTSC_EXITING);
        }),
        case("undefined", 58, &[0x66, 0x0f, 0x38, 0x82, 0x00], |n| {
            primary(n, Primary::INVLPG_EXITING);
        }),
        case("undefined", 55, &[0x0f, 0x01, 0xd1], nothing),
        case("undefined", 17, &[0x0f, 0xaa], nothing),
        case("undefined", 11, &[0x0f, 0x37], nothing),
        case("value.control_register", 28, &[0x0f, 0x22, 0xc0], |n| {
            // RAX is 0: PG without PE and more; L1 owns PE.
            n.set(F::CR0_GUEST_HOST_MASK, 1);
            n.set(F::CR0_READ_SHADOW, 1);
        }),
        case(
            "value.control_register.own",
            28,
            &[0x0f, 0x22, 0xe0],
            nothing,
        ),
        case(
            "value.msr",
            31,
            &[0xb9, 0x99, 0x99, 0, 0, 0x0f, 0x32],
            nothing,
        ),
        case(
            "value.msr",
            32,
            &[0xb9, 0x99, 0x99, 0, 0, 0x0f, 0x30],
            nothing,
        ),
        case(
            "value.msr.own",
            31,
            &[0xb9, 0x99, 0x19, 0, 0, 0x0f, 0x32],
            |n| {
                primary(n, Primary::USE_MSR_BITMAPS);
                n.set(F::MSR_BITMAP, PAGE);
            },
        ),
        case(
            "value.xsetbv",
            55,
            &[0xb9, 0x07, 0, 0, 0, 0x0f, 0x01, 0xd1],
            |n| cr4(n, OSXSAVE),
        ),
        case("value.rdpmc", 15, &[0xb9, 0x77, 0, 0, 0, 0x0f, 0x33], |n| {
            primary(n, Primary::RDPMC_EXITING);
        }),
    ];
    // LMSW, SGDT, VMPTRLD and a load, at an address that is not there.
    type Unmapped = (&'static str, u32, &'static [u8], fn(&mut Nest));
    let unmapped: [Unmapped; 4] = [
        ("operand", 28, &[0x0f, 0x01, 0x34, 0x25], |n| {
            n.set(F::CR0_GUEST_HOST_MASK, 0xf);
        }),
        ("operand.later", 46, &[0x0f, 0x01, 0x04, 0x25], |n| {
            secondary(n, Secondary::DESCRIPTOR_TABLE_EXITING);
        }),
        ("operand.later", 21, &[0x0f, 0xc7, 0x34, 0x25], nothing),
        ("page_fault", 48, &[0x8b, 0x04, 0x25], nothing),
    ];
    for (row, exit, code, set_up) in unmapped {
        cases.push(case(row, exit, &at_unmapped(code), set_up));
    }
    // OUTSB by FS, which is unusable with a base of zero; 32-bit code.
    cases.push(case("string_io.segment", 30, &[0x64, 0x6e], |n| {
        n.off(
            F::VM_ENTRY_CONTROLS,
            nvmx_core::vmx::controls::EntryControls::IA32E_MODE_GUEST.bits()
                | nvmx_core::vmx::controls::EntryControls::LOAD_EFER.bits(),
        );
        n.set(F::GUEST_CR3, PAGE2);
        n.set(F::GUEST_CR4, 0x2010);
        n.set(F::GUEST_CS_SELECTOR, 0x18);
        n.set(F::GUEST_CS_AR_BYTES, 0xc09b);
        n.set(F::GUEST_CS_LIMIT, 0xffff_ffff);
        n.set(F::GUEST_FS_AR_BYTES, 0x1_0000);
        put(&mut n.vm, PAGE2, &0x87_u32.to_le_bytes());
        primary(n, Primary::UNCONDITIONAL_IO_EXITING);
    }));
    cases
}

#[test]
fn what_comes_first() {
    for case in cases() {
        let row = INSTRUCTIONS
            .iter()
            .find(|row| row.id == case.row)
            .unwrap_or_else(|| panic!("{} is no row", case.row));
        let mut nest = Nest::of_profile(Some("max"), &case.code);
        // Every fault is seen by L1.
        nest.set(F::EXCEPTION_BITMAP, u64::from(u32::MAX));
        (case.set_up)(&mut nest);
        let entry = nest.enter();
        let text = format!("{} {:02x?}", case.row, case.code);
        match row.first {
            First::Exit => assert_eq!(entry, Entry::Exit(case.exit), "{text}"),
            First::Fault(vector) => {
                assert_eq!(entry, Entry::Exit(0), "{text}");
                let information = nest.get(F::VM_EXIT_INTR_INFO);
                assert_eq!(information & 0xff, u64::from(vector), "{text}");
            }
        }
    }
}

#[test]
fn every_row_has_a_case() {
    let cases = cases();
    for row in INSTRUCTIONS {
        assert!(cases.iter().any(|case| case.row == row.id), "{}", row.id);
    }
}

/// What would exit does, where nothing faults before.
#[test]
fn without_the_fault_it_is_the_exit() {
    let rows: [(&[u8], u32, Primary); 4] = [
        (&[0xf4], 12, Primary::HLT_EXITING),
        (&[0x0f, 0x31], 16, Primary::RDTSC_EXITING),
        (&[0x0f, 0x33], 15, Primary::RDPMC_EXITING),
        (&[0xec], 30, Primary::UNCONDITIONAL_IO_EXITING),
    ];
    for (code, exit, control) in rows {
        let mut nest = Nest::new(code);
        primary(&mut nest, control);
        assert_eq!(nest.enter(), Entry::Exit(exit), "{code:02x?}");
    }
}
