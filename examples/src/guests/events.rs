//! Event injection, interrupt and NMI windows, exception exits, IDT vectoring
//! (SDM Vol. 3C "Event Injection", "Interrupt-Window Exiting and Virtual-Interrupt Delivery",
//! "Information for VM Exits That Occur During Event Delivery").
//!
//! L2's handler tells by VMCALL what reached it: RAX is 0x1000 + vector, RBX the error code; it
//! returns R13 bytes behind the interrupted RIP.

use super::Guest;
use crate::image::Image;
use crate::runtime::handlers::L2_EXCEPTION;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::tables::{EPT_POINTER, EPT_RWX, EPT_WRITE_BACK};
use crate::runtime::vmcs::{capability, field, pin, primary, reason, secondary};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "events",
    about: "interrupt, NMI, exception and software-interrupt injection; both windows; exception exits; IDT vectoring; triple fault",
    build,
    processors: 1,
};

/// Interruption information: valid, and the types.
const VALID: u64 = 1 << 31;
const NMI: u64 = VALID | 2 << 8 | 2;
const HARDWARE: u64 = VALID | 3 << 8;
const WITH_ERROR_CODE: u64 = 1 << 11;
const SOFTWARE_INTERRUPT: u64 = VALID | 4 << 8;
const SOFTWARE_EXCEPTION: u64 = VALID | 6 << 8;
/// RFLAGS with IF.
const IF: u64 = 0x202;
/// A linear address that L2's page tables do not map.
const UNMAPPED: u64 = 0x4000_0000;

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("events", params, |p| {
        p.require(
            capability::PIN,
            pin::NMI | pin::VIRTUAL_NMIS,
            "virtual NMIs",
        )?;
        p.require(capability::SECONDARY, secondary::EPT, "EPT")?;
        p.enable_vmx()
    })?;
    injections(&mut p)?;
    nmi(&mut p)?;
    interrupt_window(&mut p)?;
    exceptions(&mut p)?;
    vectoring(&mut p)?;
    triple_fault(&mut p)?;
    p.finish()
}

/// Runs until L2's handler has said that `vector` with `error_code` reached it, and steps over its
/// VMCALL.
fn expect_delivery(p: &mut Program, vector: u32, error_code: u32) -> Result<(), BuildError> {
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, L2_EXCEPTION | vector)?;
    p.expect_l2(L2Register::Rbx, error_code)?;
    p.skip_instruction()
}

/// Each type of event that a 64-bit L2 can be given. A software event pushes the RIP behind the
/// instruction that it stands for, so L2 comes back to the VMCALL after as many NOPs.
fn injections(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        for _ in 0..5 {
            a.nop()?;
            a.nop()?;
            a.vmcall()?;
        }
        Ok(())
    })?;
    p.fresh_vmcs(l2, Controls::default())?;
    p.vmwrite(field::GUEST_RFLAGS, IF)?;
    p.set_l2(L2Register::R13, 0)?;
    for (scenario, information, error_code, length) in [
        (1, VALID | 0x40, 0, 0),
        (2, HARDWARE | WITH_ERROR_CODE | 13, 0x10, 0),
        (3, HARDWARE | 6, 0, 0),
        (4, SOFTWARE_INTERRUPT | 0x50, 0, 2),
        (5, SOFTWARE_EXCEPTION | 3, 0, 1),
    ] {
        p.vmwrites(&[
            (field::ENTRY_INTERRUPTION, information),
            (field::ENTRY_ERROR_CODE, error_code),
            (field::ENTRY_INSTRUCTION_LENGTH, length),
        ])?;
        p.checkpoint(scenario)?;
        expect_delivery(p, (information & 0xff) as u32, error_code as u32)?;
        // VM exit clears the valid bit of what was injected.
        p.expect_field(field::ENTRY_INTERRUPTION, (information & !VALID) as u32)?;
        p.run_until(reason::VMCALL)?;
        p.skip_instruction()?;
    }
    Ok(())
}

/// A virtual NMI: blocked until L2's IRET, then the NMI window opens.
fn nmi(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.nop()?;
        a.vmcall()
    })?;
    let virtual_nmis = Controls {
        pin: pin::NMI | pin::VIRTUAL_NMIS,
        ..Controls::default()
    };
    p.fresh_vmcs(l2, virtual_nmis)?;
    p.vmwrite(field::ENTRY_INTERRUPTION, NMI)?;
    p.set_l2(L2Register::R13, 0)?;
    expect_delivery(p, 2, 0)?;
    p.expect_field(field::GUEST_INTERRUPTIBILITY, 8)?;
    p.checkpoint(6)?;
    p.controls(Controls {
        primary: primary::NMI_WINDOW,
        exit: 1 << 9,
        entry: 1 << 9,
        ..virtual_nmis
    })?;
    p.run_until(reason::NMI_WINDOW)?;
    // On an L0 inside Bochs, L1 itself is blocked by now: see `unblock_nmis`.
    p.unblock_nmis()?;
    p.controls(Controls {
        exit: 1 << 9,
        entry: 1 << 9,
        ..virtual_nmis
    })?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(7)
}

/// The window opens one instruction after STI; L1 injects there.
fn interrupt_window(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.vmcall()
    })?;
    let window = Controls {
        primary: primary::INTERRUPT_WINDOW,
        ..Controls::default()
    };
    p.fresh_vmcs(l2, window)?;
    p.run_until(reason::INTERRUPT_WINDOW)?;
    p.checkpoint(8)?;
    p.controls(Controls {
        exit: 1 << 9,
        entry: 1 << 9,
        ..Controls::default()
    })?;
    p.vmwrite(field::ENTRY_INTERRUPTION, VALID | 0x41)?;
    expect_delivery(p, 0x41, 0)?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(9)
}

/// #UD, #BP and #PF by the exception bitmap; the page fault by error-code mask and match as well, and
/// given back to L2. #DE is L2's own.
fn exceptions(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| {
        a.ud2()?;
        a.int3()?;
        a.mov(ecx, UNMAPPED as u32)?;
        // A read: error code 0. The match asks for writes (bit 1), so that L2 takes this one itself.
        a.mov(eax, dword_ptr(rcx))?;
        a.nop()?;
        a.mov(dword_ptr(rcx), eax)?;
        a.nop()?;
        a.xor(edx, edx)?;
        a.xor(eax, eax)?;
        a.div(edx)?;
        a.vmcall()
    })?;
    p.fresh_vmcs(l2, Controls::default())?;
    p.vmwrites(&[
        (field::EXCEPTION_BITMAP, 1 << 6 | 1 << 3 | 1 << 14),
        (field::PF_MASK, 2),
        (field::PF_MATCH, 2),
    ])?;
    p.run_until(reason::EXCEPTION_OR_NMI)?;
    p.checkpoint(10)?;
    step_over(p, 2)?;
    p.run_until(reason::EXCEPTION_OR_NMI)?;
    p.skip_instruction()?;
    // MOV EAX, [RCX] and MOV [RCX], EAX are two bytes each, so is DIV EDX.
    p.set_l2(L2Register::R13, 2)?;
    expect_delivery(p, 14, 0)?;
    p.run_until(reason::EXCEPTION_OR_NMI)?;
    p.expect_field(field::EXIT_ERROR_CODE, 2)?;
    p.checkpoint(11)?;
    p.a.mov(eax, UNMAPPED as u32)?;
    p.a.mov(cr2, rax)?;
    p.vmwrites(&[
        (field::ENTRY_INTERRUPTION, HARDWARE | WITH_ERROR_CODE | 14),
        (field::ENTRY_ERROR_CODE, 2),
    ])?;
    expect_delivery(p, 14, 2)?;
    expect_delivery(p, 0, 0)?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(12)
}

/// Adds to L2's RIP: the length of a faulting instruction is not recorded.
fn step_over(p: &mut Program, length: i32) -> Result<(), BuildError> {
    p.a.mov(ecx, field::GUEST_RIP)?;
    p.a.vmread(rax, rcx)?;
    p.a.add(rax, length)?;
    p.a.vmwrite(rcx, rax)?;
    Ok(())
}

/// The page of L2's IDT is not there when an injected interrupt is delivered: the EPT violation says
/// so in IDT-vectoring information, and L1 injects again.
fn vectoring(p: &mut Program) -> Result<(), BuildError> {
    const PAGE: u64 = 8;
    let idt = map::SCRATCH + PAGE * 4096;
    let l2 = p.l2(|a| a.vmcall())?;
    p.fresh_vmcs(
        l2,
        Controls {
            secondary: secondary::EPT,
            ..Controls::default()
        },
    )?;
    p.a.mov(esi, map::IDT_L2 as u32)?;
    p.a.mov(edi, idt as u32)?;
    p.a.mov(ecx, 512)?;
    p.a.rep().movsq()?;
    p.ept_entry(PAGE, 0)?;
    p.invept(1, EPT_POINTER, 0)?;
    p.vmwrites(&[
        (field::GUEST_IDTR_BASE, idt),
        (field::GUEST_RFLAGS, IF),
        (field::ENTRY_INTERRUPTION, VALID | 0x42),
    ])?;
    p.set_l2(L2Register::R13, 0)?;
    p.run_until(reason::EPT_VIOLATION)?;
    p.expect_field(field::IDT_VECTORING, (VALID | 0x42) as u32)?;
    p.checkpoint(13)?;
    p.ept_entry(PAGE, idt | EPT_WRITE_BACK | EPT_RWX)?;
    p.vmwrite(field::ENTRY_INTERRUPTION, VALID | 0x42)?;
    expect_delivery(p, 0x42, 0)?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(14)
}

/// Without an IDT the first fault of L2 becomes a triple fault, which exits and leaves L1 alone.
fn triple_fault(p: &mut Program) -> Result<(), BuildError> {
    let l2 = p.l2(|a| a.ud2())?;
    p.fresh_vmcs(l2, Controls::default())?;
    p.vmwrite(field::GUEST_IDTR_LIMIT, 0)?;
    p.run_until(reason::TRIPLE_FAULT)?;
    p.checkpoint(15)
}
