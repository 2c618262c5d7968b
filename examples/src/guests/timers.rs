//! VMX-preemption timer, HLT, TSC offset and RDTSC exits
//! (SDM Vol. 3C "VMX-Preemption Timer", "Non-Register State", "Offset and TSC Multiplier").
//!
//! Where time decides when an exit comes, L2 spins on one instruction with IF=1, so that the state at
//! the exit is the same on every machine. Time stamps are compared here and then forgotten.

use super::Guest;
use crate::image::Image;
use crate::runtime::handlers::L2_EXCEPTION;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{capability, exit_control, field, pin, primary, reason};
use crate::runtime::{BuildError, Params};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "timers",
    about: "preemption timer (running, zero, over HLT, saved), HLT exits and activity state, TSC offset, RDTSC exits",
    build,
    processors: 1,
};

const IF: u64 = 0x202;
/// Timer units: long enough that L2 gets to its spin, short enough not to wait for.
const SOON: u64 = 20_000;
/// Timer units that never run out here.
const LATE: u64 = 0xffff_ffff;

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("timers", params, |p| {
        p.require(
            capability::PIN,
            pin::PREEMPTION_TIMER,
            "VMX-preemption timer",
        )?;
        p.require(
            capability::EXIT,
            exit_control::SAVE_TIMER,
            "saving of the preemption timer",
        )?;
        p.enable_vmx()
    })?;
    preemption(&mut p)?;
    deadline(&mut p)?;
    saved(&mut p)?;
    halted(&mut p)?;
    time_stamps(&mut p)?;
    p.finish()
}

/// The timer ends a spin; a timer of zero ends L2 before its first instruction.
fn preemption(p: &mut Program) -> Result<(), BuildError> {
    let spin = p.l2(|a| {
        let mut spin = a.create_label();
        a.set_label(&mut spin)?;
        a.jmp(spin)
    })?;
    let timer = Controls {
        pin: pin::PREEMPTION_TIMER,
        ..Controls::default()
    };
    p.fresh_vmcs(spin, timer)?;
    p.vmwrites(&[(field::GUEST_RFLAGS, IF), (field::PREEMPTION_TIMER, SOON)])?;
    p.checkpoint(1)?;
    p.run_until(reason::PREEMPTION_TIMER)?;
    p.checkpoint(2)?;
    p.vmwrite(field::PREEMPTION_TIMER, 0)?;
    p.run_until(reason::PREEMPTION_TIMER)?;
    p.checkpoint(3)
}

/// User space gets control in L2 while the timer runs: the nested state has a deadline there.
fn deadline(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        let mut spin = a.create_label();
        a.mov(edx, 0x5e0)?;
        a.mov(eax, 0x00fc_0000)?;
        a.out(dx, eax)?;
        a.set_label(&mut spin)?;
        a.jmp(spin)
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            pin: pin::PREEMPTION_TIMER,
            primary: primary::IO_BITMAPS,
            ..Controls::default()
        },
    )?;
    p.vmwrites(&[
        (field::GUEST_RFLAGS, IF),
        (field::PREEMPTION_TIMER, 10 * SOON),
    ])?;
    p.run_until(reason::PREEMPTION_TIMER)?;
    p.checkpoint(10)
}

/// With "save VMX-preemption timer value", a VMCALL leaves less than was loaded, and expiry leaves 0.
fn saved(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        let mut spin = a.create_label();
        for _ in 0..400 {
            a.nop()?;
        }
        a.vmcall()?;
        a.set_label(&mut spin)?;
        a.jmp(spin)
    })?;
    let timer = Controls {
        pin: pin::PREEMPTION_TIMER,
        exit: exit_control::SAVE_TIMER,
        ..Controls::default()
    };
    p.fresh_vmcs(l2, timer)?;
    p.vmwrites(&[(field::GUEST_RFLAGS, IF), (field::PREEMPTION_TIMER, LATE)])?;
    p.run_until(reason::VMCALL)?;
    p.skip_instruction()?;
    p.a.mov(ecx, field::PREEMPTION_TIMER)?;
    p.a.vmread(rax, rcx)?;
    p.a.xor(edx, edx)?;
    p.a.cmp(eax, LATE as u32 as i32)?;
    p.a.setb(dl)?;
    p.a.mov(eax, edx)?;
    p.expect_eax(1)?;
    p.vmwrite(field::PREEMPTION_TIMER, SOON)?;
    p.checkpoint(4)?;
    p.run_until(reason::PREEMPTION_TIMER)?;
    p.expect_field(field::PREEMPTION_TIMER, 0)?;
    p.checkpoint(5)
}

/// HLT exits; HLT without an exit, ended by the timer; entry into the HLT state with an interrupt
/// injected, which wakes L2.
fn halted(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.hlt()?;
        a.hlt()?;
        a.vmcall()
    })?;
    let exiting = Controls {
        primary: primary::HLT,
        ..Controls::default()
    };
    p.fresh_vmcs(l2, exiting)?;
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.run_until(reason::HLT)?;
    p.skip_instruction()?;
    p.checkpoint(6)?;
    p.controls(Controls {
        pin: pin::PREEMPTION_TIMER,
        exit: exit_control::HOST_64_BIT,
        entry: 1 << 9,
        ..Controls::default()
    })?;
    p.vmwrite(field::PREEMPTION_TIMER, SOON)?;
    p.run_until(reason::PREEMPTION_TIMER)?;
    // Whether the activity state is still HLT here differs between L0s (a virtual CPU that wakes up
    // for the timer may be active again): write it, do not compare it.
    p.vmwrite(field::GUEST_ACTIVITY, 1)?;
    p.checkpoint(7)?;
    p.controls(Controls {
        exit: exit_control::HOST_64_BIT,
        entry: 1 << 9,
        ..Controls::default()
    })?;
    p.vmwrite(field::ENTRY_INTERRUPTION, 1 << 31 | 0x43)?;
    p.set_l2(L2Register::R13, 0)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, L2_EXCEPTION | 0x43)?;
    p.expect_field(field::GUEST_ACTIVITY, 0)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(8)
}

/// L2 reads L1's time stamp plus the offset, or exits.
fn time_stamps(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.rdtsc()?;
        a.vmcall()?;
        a.rdtsc()?;
        a.vmcall()
    })?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::TSC_OFFSETTING,
            ..Controls::default()
        },
    )?;
    // 2^40, far more than this guest ever runs: bits 63:32 say whether the offset was applied.
    p.vmwrite(field::TSC_OFFSET, 1 << 40)?;
    p.a.rdtsc()?;
    p.a.shl(rdx, 32)?;
    p.a.lea(rbx, ptr(rdx + rax))?;
    p.run_until(reason::VMCALL)?;
    p.a.mov(eax, dword_ptr(L2Register::Rax.address()))?;
    p.a.mov(edx, dword_ptr(L2Register::Rdx.address()))?;
    p.a.shl(rdx, 32)?;
    p.a.or(rax, rdx)?;
    p.a.sub(rax, rbx)?;
    p.a.shr(rax, 32)?;
    p.a.xor(ebx, ebx)?;
    p.a.xor(edx, edx)?;
    for register in [L2Register::Rax, L2Register::Rdx] {
        p.a.mov(qword_ptr(register.address()), 0)?;
    }
    p.expect_eax(1 << 8)?;
    p.skip_instruction()?;
    p.controls(Controls {
        primary: primary::RDTSC,
        exit: exit_control::HOST_64_BIT,
        entry: 1 << 9,
        ..Controls::default()
    })?;
    p.run_until(reason::RDTSC)?;
    p.set_l2(L2Register::Rax, 0x7777)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0x7777)?;
    p.checkpoint(9)
}
