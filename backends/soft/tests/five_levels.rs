//! 5-level paging on both sides of VM entry and exit, which may switch CR4.LA57 where MOV to CR4 may not
//! (SDM Vol. 3A "4-Level Paging and 5-Level Paging"; Vol. 3C "Loading Host Control Registers, Debug
//! Registers, MSRs"; Vol. 1 "Canonical Addressing").

mod common;

use common::bare::{PAGING, put};
use common::nest::*;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::control::cr4;
use nvmx_core::x86::{CpuState, Gpr};

const EXCEPTION: u32 = 0;
const PML5: u64 = PAGE2;
const VALUE: u64 = 0x1234_5678_9abc_def0;
/// An address that 5-level paging alone has, of the page at [`PAGE`].
const HIGH: u64 = 1 << 48 | PAGE;
const GP: u32 = 13;

/// L2 reads from RCX and calls.
fn nest() -> Nest {
    let code = [&[0x48, 0x8b, 0x01][..], &VMCALL].concat();
    let mut nest = Nest::of_profile(Some("max"), &code);
    // The first and the second 256 TiB are the same.
    for entry in 0..2 {
        put(&mut nest.vm, PML5 + 8 * entry, &(PAGING | 7).to_le_bytes());
    }
    put(&mut nest.vm, PAGE, &VALUE.to_le_bytes());
    nest.set(Field::EXCEPTION_BITMAP, 1 << GP);
    nest
}

fn with_rcx(nest: &mut Nest, rcx: u64) {
    let mut regs = nest.regs();
    regs.set(Gpr::Rcx, rcx);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
}

fn five_levels(nest: &mut Nest, cr3: Field, cr4_field: Field) {
    nest.set(cr3, PML5);
    let value = nest.get(cr4_field) | cr4::LA57;
    nest.set(cr4_field, value);
}

#[test]
fn an_exit_switches_l1_to_five_levels_and_back() {
    let mut nest = nest();
    with_rcx(&mut nest, PAGE);
    let four = (nest.get(Field::HOST_CR3), nest.get(Field::HOST_CR4));
    five_levels(&mut nest, Field::HOST_CR3, Field::HOST_CR4);
    nest.expect_vmcall(L2 + 3);
    let sregs = nest.state().sregs.expect("sregs");
    assert_eq!((sregs.cr3, sregs.cr4 & cr4::LA57), (PML5, cr4::LA57));
    // From there L2 is entered in four levels, and the exit leads back to four.
    nest.set(Field::GUEST_RIP, L2);
    nest.set(Field::HOST_CR3, four.0);
    nest.set(Field::HOST_CR4, four.1);
    nest.expect_vmcall(L2 + 3);
    let sregs = nest.state().sregs.expect("sregs");
    assert_eq!((sregs.cr3, sregs.cr4 & cr4::LA57), (PAGING, 0));
}

#[test]
fn l2_reads_where_its_levels_reach() {
    // EPT maps 2 MiB to themselves.
    const TABLES: [u64; 3] = [0x10_0000, 0x10_1000, 0x10_2000];
    for ept in [false, true] {
        let mut nest = nest();
        if ept {
            for (table, entry) in TABLES.iter().zip([TABLES[1] | 7, TABLES[2] | 7, 0xb7]) {
                put(&mut nest.vm, *table, &u64::to_le_bytes(entry));
            }
            nest.set(Field::EPT_POINTER, TABLES[0] | 0x1e);
            nest.on(
                Field::CPU_BASED_VM_EXEC_CONTROL,
                Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
            );
            nest.on(
                Field::SECONDARY_VM_EXEC_CONTROL,
                Secondary::ENABLE_EPT.bits(),
            );
        }
        with_rcx(&mut nest, HIGH);
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO) & 0xff, u64::from(GP));
        five_levels(&mut nest, Field::GUEST_CR3, Field::GUEST_CR4);
        nest.expect_vmcall(L2 + 3);
        assert_eq!(nest.regs().get(Gpr::Rax), VALUE, "EPT {ept}");
        // Canonical in neither.
        with_rcx(&mut nest, 1 << 57);
        nest.set(Field::GUEST_RIP, L2);
        nest.expect(EXCEPTION, L2);
    }
}
