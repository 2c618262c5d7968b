//! Machine checks that user space signals while L2 runs (SDM Vol. 3B "Machine-Check Architecture", Vol. 3C
//! "Exception Bitmap").

mod common;

use common::bare::put;
use common::nest::{Entry, HANDLERS, L2, Nest, VMCALL};
use nvmx_core::machine_check::MachineCheck;
use nvmx_core::vcpu::{Exit, Vcpu};
use nvmx_core::vmx::Field;

/// JMP to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];
const MC: u64 = 18;
/// Valid, uncorrected; valid alone.
const UNCORRECTED: u64 = 1 << 63 | 1 << 61;
const CORRECTED: u64 = 1 << 63;
const CR4_MCE: u64 = 1 << 6;

/// L2 spins, with CR4.MCE as said.
fn spinning(mce: bool, intercepted: bool) -> Nest {
    let mut nest = Nest::new(&SPIN);
    put(&mut nest.vm, HANDLERS + 64 * MC, &VMCALL);
    if mce {
        let cr4 = nest.get(Field::GUEST_CR4);
        nest.set(Field::GUEST_CR4, cr4 | CR4_MCE);
    }
    if intercepted {
        nest.set(Field::EXCEPTION_BITMAP, 1 << MC);
    }
    assert_eq!(nest.enter_for(100), Exit::Budget);
    nest
}

fn signal(nest: &mut Nest, status: u64) {
    let error = MachineCheck {
        bank: 1,
        status,
        global_status: 5,
        ..MachineCheck::default()
    };
    nest.vm.inject_machine_check(&error).expect("taken");
}

#[test]
fn an_uncorrected_error_exits_by_the_exception_bitmap() {
    let mut nest = spinning(true, true);
    signal(&mut nest, UNCORRECTED);
    assert_eq!(nest.resume(), Entry::Exit(0));
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0300 | MC);
    assert_eq!(nest.get(Field::GUEST_RIP), L2);
}

#[test]
fn else_it_is_l2s() {
    let mut nest = spinning(true, false);
    signal(&mut nest, UNCORRECTED);
    assert_eq!(nest.resume(), Entry::Exit(18));
    assert_eq!(nest.get(Field::GUEST_RIP), HANDLERS + 64 * MC);
}

#[test]
fn without_mce_it_is_a_triple_fault() {
    let mut nest = spinning(false, true);
    signal(&mut nest, UNCORRECTED);
    assert_eq!(nest.resume(), Entry::Exit(2));
}

#[test]
fn a_corrected_error_is_only_recorded() {
    let mut nest = spinning(true, true);
    signal(&mut nest, CORRECTED);
    assert_eq!(
        nest.vm
            .run(nvmx_core::vcpu::Budget::instructions(100))
            .expect("runs"),
        Exit::Budget
    );
    // Bank 32 does not exist, and what is not valid is no error.
    for (bank, status) in [(32, UNCORRECTED), (1, 0)] {
        let error = MachineCheck {
            bank,
            status,
            ..MachineCheck::default()
        };
        assert!(nest.vm.inject_machine_check(&error).is_err());
    }
}

/// What the banks tell goes with a capture, and a machine that it is restored to forgets its own.
#[test]
fn banks_are_in_a_capture() {
    const STATUS_1: u32 = 0x405;
    let mut told = spinning(true, true);
    signal(&mut told, CORRECTED);
    let capture = told.state();
    let msrs = capture.msrs.clone().expect("MSRs");
    assert_eq!(msrs.get(&STATUS_1), Some(&CORRECTED));
    assert_eq!(
        msrs.range(0x400..0x480).count(),
        1,
        "no other says anything"
    );

    let mut fresh = spinning(true, true);
    let empty = fresh.state();
    fresh.set_state(capture);
    assert_eq!(fresh.state().msrs, Some(msrs));
    fresh.set_state(empty.clone());
    assert_eq!(fresh.state().msrs, empty.msrs);
}
