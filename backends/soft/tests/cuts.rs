//! Where a run is cut must not matter: random code, run at once, one instruction a time, and moved to
//! a fresh machine between any two, ends in one state.

mod common;

use common::bare::*;
use common::{Run, capture, difference, restore};
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Budget, Exit, NestedEvent, Vcpu, Vm};
use nvmx_core::x86::{CpuState, DebugRegs, MpState, VcpuEvents};
use nvmx_examples::guests;
use nvmx_soft::SoftVm;

/// Instructions of one case.
const LENGTH: u64 = 24;

/// Runs `LENGTH` instructions or to an exit; `moves` chooses the pieces after which the machine is
/// replaced by a restored one.
fn run(
    mut vm: SoftVm,
    length: u64,
    stride: u64,
    mut moves: impl FnMut() -> bool,
) -> (SoftVm, Exit, Vec<NestedEvent>) {
    let mut left = length;
    let mut seen = Vec::new();
    loop {
        let exit = vm
            .run(Budget::instructions(stride.min(left)))
            .expect("runs");
        left = left.saturating_sub(stride);
        if exit != Exit::Budget || left == 0 {
            vm.drain_nested_events(&mut seen).expect("events");
            return (vm, exit, seen);
        }
        if moves() {
            // Events do not move.
            let mut events = Vec::new();
            vm.drain_nested_events(&mut events).expect("events");
            seen.extend(events);
            let size = vm.memory_size();
            vm = restore(&capture(&mut vm), size);
        }
    }
}

fn fresh(vm: &mut SoftVm, mode: Mode, code: &[u8], start: &CpuState) {
    let wide = matches!(mode, Mode::Long0 | Mode::Long3 | Mode::Compatibility);
    furnish(vm, wide);
    put(vm, CODE, code);
    vm.set_nested_state(&NestedState::default())
        .expect("always taken");
    vm.set_state(start).expect("taken");
}

#[test]
fn cuts_do_not_matter() {
    for (index, mode) in MODES.into_iter().enumerate() {
        let mut random = Random(0x1000 + index as u64);
        for case in 0..cases(25) {
            let code = random.bytes(48);
            let mut start = state(mode, &mut random);
            start.events = Some(VcpuEvents::default());
            start.mp_state = Some(MpState::Runnable);
            start.debug = Some(DebugRegs::default());
            let prepared = || {
                let mut vm = machine();
                fresh(&mut vm, mode, &code, &start);
                vm
            };
            let text = format!("{mode:?} case {case}: {code:02x?} {:x?}", start.regs);
            check(prepared, LENGTH, case, &text);
        }
    }
}

/// Runs the same machine whole, in pieces, and moving.
fn check(prepared: impl Fn() -> SoftVm, length: u64, case: u32, text: &str) {
    let (mut whole, end, events) = run(prepared(), length, length, || false);
    let expected = capture(&mut whole);
    for (name, stride, often) in [("steps", 1, 0), ("pieces of 5", 5, 0), ("moves", 1, 3)] {
        let mut dice = Random(u64::from(case));
        let moves = || often > 0 && dice.below(often) == 0;
        let (mut cut, exit, seen) = run(prepared(), length, stride, moves);
        let differs = difference(&expected, &capture(&mut cut));
        assert!(
            exit == end && differs.is_none() && seen == events,
            "{text}\n{name}: {exit:?} instead of {end:?}\n{}\n{seen:x?}\n{events:x?}",
            differs.unwrap_or_default(),
        );
    }
}

/// The same for L2 of every example guest, its code overwritten: exits to a real L1 and entries back.
#[test]
fn cuts_of_l2_do_not_matter() {
    let mut random = Random(0x2000);
    for guest in guests::all() {
        let mut first = Run::new(guest);
        first.run(Budget::nested_events(1));
        let start = first.capture();
        if !start.nested.guest_mode() {
            continue;
        }
        let regs = start.state.regs.unwrap_or_default();
        for case in 0..cases(4) {
            let code = random.bytes(64);
            let prepared = || {
                let mut vm = restore(&start, 16 << 20);
                vm.write_memory(L1Phys(regs.rip & 0xff_ffff), &code)
                    .expect("RAM");
                vm
            };
            check(
                prepared,
                60,
                case,
                &format!("{} case {case}: {code:02x?}", guest.name),
            );
        }
    }
}
