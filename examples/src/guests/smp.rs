//! Two processors, each with an L1 and an L2: INIT and SIPI where VMX operation changes what they do,
//! interrupts and an NMI from one to the other, posted interrupts (SDM Vol. 3C "Other Causes of VM
//! Exits", "Activity State", "External-Interrupt Exiting", "Posted-Interrupt Processing").
//!
//! The two take turns by a count of steps, so each run is the same. Who waits for an interrupt spins on
//! one instruction, so RIP is the same, too.

use super::Guest;
use crate::image::Image;
use crate::runtime::handlers::L2_EXCEPTION;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::second::command;
use crate::runtime::vmcs::{
    capability, exit_control, field, pin, primary, reason, secondary as secondary_controls,
};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "smp",
    about: "two processors (--smp 2): INIT blocked in root operation, INIT and SIPI exits, IPIs and an NMI into the other's L2, posted interrupts",
    build,
    processors: 2,
};

const FIRST: u32 = 0;
const SECOND: u32 = 1;
const IF: u64 = 0x202;
/// x2APIC registers as MSRs.
const EOI: u32 = 0x80b;
const ICR: u32 = 0x830;
const WAIT_FOR_SIPI: u64 = 3;
/// Where the second processor starts.
const START: u32 = (map::TRAMPOLINE >> 12) as u32;
/// A vector that no processor starts at.
const ELSEWHERE: u32 = 0x42;
const NOTIFICATION: u32 = 0xf2;
const POSTED: u32 = 0x61;
/// What posted interrupts take besides their own control.
const DELIVERY: u32 =
    secondary_controls::VIRTUAL_INTERRUPT_DELIVERY | secondary_controls::VIRTUALIZE_X2APIC;

/// The steps, in their order.
mod step {
    pub(super) const GO: u32 = 1;
    pub(super) const IN_ROOT: u32 = 2;
    pub(super) const INIT_SENT: u32 = 3;
    pub(super) const INIT_CAME: u32 = 4;
    pub(super) const L2_FOR_INIT: u32 = 5;
    pub(super) const INIT_IN_L2: u32 = 6;
    pub(super) const SIPI_CAME: u32 = 7;
    pub(super) const L2_FOR_INTERRUPT: u32 = 8;
    pub(super) const INTERRUPTED: u32 = 9;
    pub(super) const L2_FOR_ACKNOWLEDGED: u32 = 10;
    pub(super) const ACKNOWLEDGED: u32 = 11;
    pub(super) const FIRST_IN_L2: u32 = 12;
    pub(super) const FIRST_INTERRUPTED: u32 = 13;
    pub(super) const L2_FOR_NMI: u32 = 14;
    pub(super) const NMI_CAME: u32 = 15;
    pub(super) const L2_FOR_POST: u32 = 16;
    pub(super) const POSTED_CAME: u32 = 17;
    pub(super) const LAST_INIT: u32 = 18;
}

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::with_x2apic(GUEST.name, params)?;
    p.second_processor(second)?;
    first(&mut p)?;
    p.finish()
}

/// L2 that says that it has come to `step` and spins.
fn spinning(p: &mut Program, step: u32) -> Result<u64, BuildError> {
    p.l2(|a| {
        let mut here = a.create_label();
        a.mov(dword_ptr(map::STEP), step as i32)?;
        a.set_label(&mut here)?;
        a.jmp(here)
    })
}

const EXITING: Controls = Controls {
    pin: pin::EXTERNAL_INTERRUPT,
    primary: primary::MSR_BITMAPS,
    secondary: 0,
    exit: 0,
    entry: 0,
};
const ACKNOWLEDGING: Controls = Controls {
    exit: exit_control::ACKNOWLEDGE,
    ..EXITING
};

fn first(p: &mut Program) -> Result<(), BuildError> {
    p.a.mov(dword_ptr(map::STARTS), 0)?;
    p.tell(0)?;
    p.send(SECOND, command::INIT)?;
    p.start_up_until(START, map::STARTS, 1)?;
    p.checkpoint(1)?;
    p.tell(step::GO)?;

    // INIT waits while the other is in root operation.
    p.wait_for(step::IN_ROOT)?;
    p.send(SECOND, command::INIT)?;
    p.tell(step::INIT_SENT)?;
    p.wait_for(step::L2_FOR_INIT)?;
    p.checkpoint(2)?;
    p.send(SECOND, command::INIT)?;
    p.wait_for(step::INIT_IN_L2)?;
    p.start_up_until(ELSEWHERE, map::STEP, step::SIPI_CAME)?;
    p.checkpoint(3)?;

    p.wait_for(step::L2_FOR_INTERRUPT)?;
    p.send(SECOND, command::FIXED | 0x60)?;
    p.wait_for(step::L2_FOR_ACKNOWLEDGED)?;
    p.send(SECOND, command::FIXED | 0x62)?;
    p.wait_for(step::ACKNOWLEDGED)?;
    p.checkpoint(4)?;

    // From the other's L2 into this one's.
    let l2 = spinning(p, step::FIRST_IN_L2)?;
    p.fresh_vmcs(l2, ACKNOWLEDGING)?;
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.run_until(reason::EXTERNAL_INTERRUPT)?;
    p.expect_field(field::EXIT_INTERRUPTION, 0x8000_0063)?;
    p.wrmsr(EOI, 0)?;
    p.tell(step::FIRST_INTERRUPTED)?;

    p.wait_for(step::L2_FOR_NMI)?;
    p.send(SECOND, command::NMI)?;
    p.wait_for(step::NMI_CAME)?;
    p.checkpoint(5)?;

    let mut done = p.a.create_label();
    p.jump_unless(capability::PIN, pin::POSTED_INTERRUPTS, done)?;
    p.wait_for(step::L2_FOR_POST)?;
    let request = map::POSTED + u64::from(POSTED / 32 * 4);
    p.a.lock().or(dword_ptr(request), 1 << (POSTED % 32))?;
    p.a.lock().or(dword_ptr(map::POSTED + 32), 1)?;
    p.send(SECOND, command::FIXED | NOTIFICATION)?;
    p.wait_for(step::POSTED_CAME)?;
    p.checkpoint(6)?;
    p.a.set_label(&mut done)?;
    p.a.zero_bytes()?;

    // INIT waits until the other leaves VMX operation, and then resets it.
    p.send(SECOND, command::INIT)?;
    p.tell(step::LAST_INIT)?;
    p.start_up_until(START, map::STARTS, 2)?;
    p.checkpoint(7)
}

fn second(p: &mut Program) -> Result<(), BuildError> {
    p.enable_x2apic()?;
    p.a.inc(dword_ptr(map::STARTS))?;
    let mut first_start = p.a.create_label();
    p.a.cmp(dword_ptr(map::STARTS), 1)?;
    p.a.je(first_start)?;
    // All is done: the next iteration's INIT wakes it.
    p.a.hlt()?;
    p.a.set_label(&mut first_start)?;
    p.a.zero_bytes()?;
    p.wait_for(step::GO)?;
    p.enable_vmx_at(map::VMXON_SECOND)?;
    p.tell(step::IN_ROOT)?;
    startup_signals(p)?;
    interrupts(p)?;
    nmi(p)?;
    let mut done = p.a.create_label();
    p.jump_unless(capability::PIN, pin::POSTED_INTERRUPTS, done)?;
    posted(p)?;
    p.a.set_label(&mut done)?;
    p.a.zero_bytes()?;
    p.wait_for(step::LAST_INIT)?;
    p.a.vmxoff()?;
    // INIT has come.
    p.a.ud2()?;
    Ok(())
}

/// INIT at the entry, INIT in L2, SIPI in an L2 that waits for it.
fn startup_signals(p: &mut Program) -> Result<(), BuildError> {
    p.wait_for(step::INIT_SENT)?;
    let l2 = spinning(p, step::L2_FOR_INIT)?;
    p.fresh_vmcs_of_second(l2, EXITING)?;
    p.run_until(reason::INIT)?;
    p.expect_field(field::GUEST_RIP, l2 as u32)?;
    p.expect_memory(map::STEP, step::INIT_SENT)?;
    p.tell(step::INIT_CAME)?;
    // Blocked no more: it comes while L2 runs.
    p.run_until(reason::INIT)?;
    p.vmwrite(field::GUEST_ACTIVITY, WAIT_FOR_SIPI)?;
    p.tell(step::INIT_IN_L2)?;
    p.run_until(reason::SIPI)?;
    p.expect_field(field::EXIT_QUALIFICATION, ELSEWHERE)?;
    p.expect_field(field::GUEST_ACTIVITY, WAIT_FOR_SIPI as u32)?;
    p.tell(step::SIPI_CAME)
}

/// From the other's L1, with and without acknowledgement, then to the other's L2.
fn interrupts(p: &mut Program) -> Result<(), BuildError> {
    let l2 = spinning(p, step::L2_FOR_INTERRUPT)?;
    p.fresh_vmcs_of_second(l2, EXITING)?;
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.a.mov(dword_ptr(map::INTERRUPT_COUNT), 0)?;
    p.run_until(reason::EXTERNAL_INTERRUPT)?;
    p.expect_memory(map::INTERRUPT_COUNT, 0)?;
    p.take_interrupt()?;
    p.expect_memory(map::INTERRUPT_COUNT, 1)?;
    p.expect_memory(map::INTERRUPT_VECTOR, 0x60)?;
    p.tell(step::INTERRUPTED)?;

    let l2 = spinning(p, step::L2_FOR_ACKNOWLEDGED)?;
    p.fresh_vmcs_of_second(l2, ACKNOWLEDGING)?;
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.run_until(reason::EXTERNAL_INTERRUPT)?;
    p.expect_field(field::EXIT_INTERRUPTION, 0x8000_0062)?;
    p.wrmsr(EOI, 0)?;
    p.take_interrupt()?;
    p.expect_memory(map::INTERRUPT_COUNT, 1)?;
    p.tell(step::ACKNOWLEDGED)?;

    let l2 = p.l2(|a| {
        a.mov(ecx, ICR)?;
        a.mov(eax, command::FIXED | 0x63)?;
        a.mov(edx, FIRST)?;
        a.wrmsr()?;
        a.vmcall()
    })?;
    p.wait_for(step::FIRST_IN_L2)?;
    p.fresh_vmcs_of_second(l2, EXITING)?;
    p.run_until(reason::VMCALL)?;
    p.wait_for(step::FIRST_INTERRUPTED)
}

fn nmi(p: &mut Program) -> Result<(), BuildError> {
    let l2 = spinning(p, step::L2_FOR_NMI)?;
    let controls = Controls {
        pin: pin::NMI,
        ..Controls::default()
    };
    p.fresh_vmcs_of_second(l2, controls)?;
    p.run_until(reason::EXCEPTION_OR_NMI)?;
    p.expect_field(field::EXIT_INTERRUPTION, 0x8000_0202)?;
    p.unblock_nmis()?;
    p.tell(step::NMI_CAME)
}

/// The notification comes while L2 runs and does not exit: L2's handler is the next to be heard of.
fn posted(p: &mut Program) -> Result<(), BuildError> {
    let l2 = spinning(p, step::L2_FOR_POST)?;
    p.fresh_vmcs_of_second(
        l2,
        Controls {
            pin: pin::EXTERNAL_INTERRUPT | pin::POSTED_INTERRUPTS,
            primary: primary::MSR_BITMAPS | primary::TPR_SHADOW,
            secondary: DELIVERY,
            ..ACKNOWLEDGING
        },
    )?;
    p.vmwrites(&[
        (field::GUEST_RFLAGS, IF),
        (field::VIRTUAL_APIC, map::VIRTUAL_APIC),
        (field::POSTED_DESCRIPTOR, map::POSTED),
        (field::POSTED_VECTOR, NOTIFICATION.into()),
    ])?;
    // What the iteration before this left in service.
    p.a.mov(edi, map::VIRTUAL_APIC as u32)?;
    p.a.mov(ecx, 512)?;
    p.a.xor(eax, eax)?;
    p.a.rep().stosq()?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, L2_EXCEPTION + POSTED)?;
    p.expect_field(field::GUEST_INTERRUPT_STATUS, POSTED << 8)?;
    p.expect_memory(map::POSTED + 32, 0)?;
    p.tell(step::POSTED_CAME)
}
