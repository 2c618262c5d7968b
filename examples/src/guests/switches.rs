//! MSRs that a transition switches: PAT and EFER by their fields, KERNEL_GS_BASE and STAR by the
//! MSR-load and MSR-store lists (SDM Vol. 3C "Loading Guest Control Registers, Debug Registers, and
//! MSRs", "Loading MSRs", "Saving MSRs").

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::vmcs::{capability, entry_control, exit_control, field, primary, reason};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "switches",
    about: "PAT and EFER switched by fields, other MSRs by the load and store lists of entry and exit",
    build,
    processors: 1,
};

const PAT: u32 = 0x277;
const EFER: u32 = 0xc000_0080;
const KERNEL_GS_BASE: u32 = 0xc000_0102;
const STAR: u32 = 0xc000_0081;
/// PAT after reset, and another one.
const PAT_L1: u64 = 0x0007_0406_0007_0406;
const PAT_L2: u64 = 0x0606_0606_0606_0606;
/// LMA, LME; L2 with SCE as well.
const EFER_L1: u64 = 0x500;
const EFER_L2: u64 = 0x501;

/// Reads an MSR of L2 to EAX and leaves by VMCALL.
fn show(a: &mut CodeAssembler, msr: u32) -> Result<(), iced_x86::IcedError> {
    a.mov(ecx, msr)?;
    a.rdmsr()?;
    a.vmcall()
}

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("switches", params, |p| {
        p.require(
            capability::EXIT,
            exit_control::LOAD_EFER | exit_control::LOAD_PAT,
            "loading of EFER and PAT",
        )?;
        p.enable_vmx()
    })?;
    let l2 = p.l2(|a| {
        for msr in [PAT, EFER, KERNEL_GS_BASE] {
            show(a, msr)?;
        }
        // L2 changes what the store list saves.
        a.mov(ecx, STAR)?;
        a.mov(eax, 0x5757)?;
        a.xor(edx, edx)?;
        a.wrmsr()?;
        a.vmcall()
    })?;
    p.wrmsr(PAT, PAT_L1)?;
    p.wrmsr(KERNEL_GS_BASE, 0x1000)?;
    p.wrmsr(STAR, 0)?;
    for (slot, msr, value) in [(0, KERNEL_GS_BASE, 0x2000), (1, STAR, 0x1111)] {
        p.store(map::MSR_LOAD + 16 * slot, msr.into())?;
        p.store(map::MSR_LOAD + 16 * slot + 8, value)?;
    }
    // On exit: store STAR, load KERNEL_GS_BASE back.
    p.store(map::MSR_STORE, STAR.into())?;
    p.store(map::MSR_STORE + 8, 0)?;
    p.store(map::MSR_STORE + 16, KERNEL_GS_BASE.into())?;
    p.store(map::MSR_STORE + 24, 0x1000)?;
    p.fresh_vmcs(
        l2,
        Controls {
            primary: primary::MSR_BITMAPS,
            exit: exit_control::LOAD_EFER
                | exit_control::SAVE_EFER
                | exit_control::LOAD_PAT
                | exit_control::SAVE_PAT,
            entry: entry_control::LOAD_EFER | entry_control::LOAD_PAT,
            ..Controls::default()
        },
    )?;
    p.vmwrites(&[
        (field::GUEST_PAT, PAT_L2),
        (field::HOST_PAT, PAT_L1),
        (field::GUEST_EFER, EFER_L2),
        (field::HOST_EFER, EFER_L1),
        (field::ENTRY_MSR_LOAD, map::MSR_LOAD),
        (field::ENTRY_MSR_LOAD_COUNT, 2),
        (field::EXIT_MSR_STORE, map::MSR_STORE),
        (field::EXIT_MSR_STORE_COUNT, 1),
        (field::EXIT_MSR_LOAD, map::MSR_STORE + 16),
        (field::EXIT_MSR_LOAD_COUNT, 1),
    ])?;
    p.checkpoint(1)?;
    for (msr, in_l2, in_l1) in [
        (PAT, PAT_L2, PAT_L1),
        (EFER, EFER_L2, EFER_L1),
        (KERNEL_GS_BASE, 0x2000, 0x1000),
    ] {
        p.run_until(reason::VMCALL)?;
        p.expect_l2(L2Register::Rax, in_l2 as u32)?;
        p.a.mov(ecx, msr)?;
        p.a.rdmsr()?;
        p.expect_eax(in_l1 as u32)?;
        p.skip_instruction()?;
    }
    p.checkpoint(2)?;
    p.expect_memory(map::MSR_STORE + 8, 0x1111)?;
    p.run_until(reason::VMCALL)?;
    p.expect_memory(map::MSR_STORE + 8, 0x5757)?;
    p.wrmsr(STAR, 0)?;
    p.wrmsr(KERNEL_GS_BASE, 0)?;
    p.checkpoint(3)?;
    p.finish()
}
