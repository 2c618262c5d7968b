//! L1's local APIC while L2 runs: external-interrupt exits with and without acknowledgement, an NMI,
//! and the TSC deadline (SDM Vol. 3A "Local APIC", "TSC-Deadline Mode"; Vol. 3C "External-Interrupt
//! Exiting").
//!
//! The deadline is the case of the seed patch's review: L1 arms it, L2 runs, and a snapshot taken
//! there must keep L1's deadline against L1's TSC, not L2's, or L2 spins for ever. L2 writes a
//! checkpoint and then spins on one instruction; TSC offsetting makes L2's TSC a different one.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{exit_control, field, pin, primary, reason};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "apic",
    about: "L1's APIC while L2 runs: self-IPI and NMI exits, acknowledge on exit, TSC deadline over a spinning and a halted L2",
    build,
    processors: 1,
};

const IF: u64 = 0x202;
/// x2APIC registers as MSRs.
const EOI: u32 = 0x80b;
const ICR: u32 = 0x830;
const LVT_TIMER: u32 = 0x832;
const SELF_IPI: u32 = 0x83f;
const TSC_DEADLINE: u32 = 0x6e0;
/// LVT: TSC-deadline mode.
const DEADLINE_MODE: u64 = 2 << 17;
/// ICR: NMI. The destination, in the high half, is APIC 0: the shorthand "self" allows fixed delivery
/// only.
const NMI: u32 = 4 << 8;
/// TSC ticks until the deadline: L2 is at its spin by then, even under an L0 that is emulated itself.
const TICKS: u32 = 8_000_000;

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::with_x2apic(GUEST.name, params)?;
    self_interrupts(&mut p)?;
    nmi(&mut p)?;
    deadline(&mut p)?;
    p.finish()
}

/// L2 sends interrupts through L1's APIC: its MSR writes are not intercepted.
fn self_interrupts(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        for vector in [0x60, 0x61] {
            a.mov(ecx, SELF_IPI)?;
            a.mov(eax, vector)?;
            a.xor(edx, edx)?;
            a.wrmsr()?;
            a.nop()?;
        }
        a.vmcall()
    })?;
    let exiting = Controls {
        pin: pin::EXTERNAL_INTERRUPT,
        primary: primary::MSR_BITMAPS,
        ..Controls::default()
    };
    p.fresh_vmcs(l2, exiting)?;
    // An external interrupt exits whatever IF is; Bochs' VMX needs it set all the same.
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.a.mov(dword_ptr(map::INTERRUPT_COUNT), 0)?;
    p.checkpoint(1)?;
    // Not acknowledged: the interrupt stays in the APIC until L1 opens its own window.
    p.run_until(reason::EXTERNAL_INTERRUPT)?;
    p.checkpoint(2)?;
    p.take_interrupt()?;
    p.expect_memory(map::INTERRUPT_COUNT, 1)?;
    p.expect_memory(map::INTERRUPT_VECTOR, 0x60)?;
    // Acknowledged: the exit says which, and L1 owes the EOI.
    p.controls(Controls {
        exit: exit_control::HOST_64_BIT | exit_control::ACKNOWLEDGE,
        entry: 1 << 9,
        ..exiting
    })?;
    p.run_until(reason::EXTERNAL_INTERRUPT)?;
    p.expect_field(field::EXIT_INTERRUPTION, 0x8000_0061)?;
    p.wrmsr(EOI, 0)?;
    p.take_interrupt()?;
    p.expect_memory(map::INTERRUPT_COUNT, 1)?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(3)
}

/// An NMI that L2 sends to the processor exits; L1's own NMIs are blocked by that exit.
fn nmi(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.mov(ecx, ICR)?;
        a.mov(eax, NMI)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.nop()?;
        a.vmcall()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            pin: pin::NMI,
            primary: primary::MSR_BITMAPS,
            ..Controls::default()
        },
    )?;
    p.run_until(reason::EXCEPTION_OR_NMI)?;
    p.expect_field(field::EXIT_INTERRUPTION, 0x8000_0202)?;
    p.checkpoint(4)?;
    p.unblock_nmis()?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(5)
}

/// The deadline passes while L2 spins, then while L2 is halted.
fn deadline(p: &mut Program) -> Result<(), BuildError> {
    let spinning = p.l2(|a| {
        let mut spin = a.create_label();
        a.mov(edx, 0x5e0)?;
        a.mov(eax, 0x00fe_0000)?;
        a.out(dx, eax)?;
        // The interrupt may come at any time from here on: RIP is the same.
        a.set_label(&mut spin)?;
        a.jmp(spin)
    })?;
    let halted = p.l2(|a| {
        a.hlt()?;
        a.vmcall()
    })?;
    let controls = Controls {
        pin: pin::EXTERNAL_INTERRUPT,
        primary: primary::IO_BITMAPS | primary::MSR_BITMAPS | primary::TSC_OFFSETTING,
        ..Controls::default()
    };
    for (scenario, l2) in [(6, spinning), (7, halted)] {
        p.fresh_vmcs(l2, controls)?;
        p.vmwrites(&[
            (field::GUEST_RFLAGS, IF),
            // L2's TSC is far behind L1's: a deadline read against it would be far away.
            (field::TSC_OFFSET, (1_u64 << 50).wrapping_neg()),
        ])?;
        p.a.mov(dword_ptr(map::INTERRUPT_COUNT), 0)?;
        p.wrmsr(LVT_TIMER, DEADLINE_MODE | 0x62)?;
        p.a.rdtsc()?;
        p.a.mov(ecx, TSC_DEADLINE)?;
        p.a.add(eax, TICKS as i32)?;
        p.a.adc(edx, 0)?;
        p.a.wrmsr()?;
        p.a.xor(eax, eax)?;
        p.a.xor(edx, edx)?;
        p.run_until(reason::EXTERNAL_INTERRUPT)?;
        // As in `timers`: the activity state of a woken L2 is not compared.
        p.vmwrite(field::GUEST_ACTIVITY, 0)?;
        p.checkpoint(scenario)?;
        p.take_interrupt()?;
        p.expect_memory(map::INTERRUPT_COUNT, 1)?;
        p.expect_memory(map::INTERRUPT_VECTOR, 0x62)?;
        // A deadline that has passed reads as zero, though not on Bochs 2.7: clear it.
        p.wrmsr(TSC_DEADLINE, 0)?;
    }
    p.set_l2(L2Register::Rax, 0)
}
