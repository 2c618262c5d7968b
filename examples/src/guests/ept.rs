//! EPT violations and misconfigurations that L1 repairs, accessed and dirty flags, INVEPT and
//! INVVPID (SDM Vol. 3C "EPT-Induced VM Exits", "Accessed and Dirty Flags for EPT",
//! "Operations that Invalidate Cached Mappings").
//!
//! L2 reads, writes and calls into pages of [`map::SCRATCH`], whose EPT entries L1 has taken away in
//! part; after each exit L1 gives what was missing and resumes at the same instruction.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, L2Register, Program};
use crate::runtime::tables::{EPT_POINTER, EPT_POINTER_AD, EPT_RWX, EPT_WRITE_BACK};
use crate::runtime::vmcs::{capability, field, reason, secondary};
use crate::runtime::{BuildError, Params, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "ept",
    about: "EPT violations (read, write, fetch, page walk) and misconfiguration repaired by L1; A/D flags; INVEPT, INVVPID",
    build,
    processors: 1,
};

const PAGE: u64 = 4096;
const READ: u64 = 1;
const FULL: u64 = EPT_WRITE_BACK | EPT_RWX;

/// The identity entry of a scratch page, with other permissions.
fn entry(page: u64, bits: u64) -> u64 {
    (map::SCRATCH + page * PAGE) | bits
}

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("ept", params, |p| {
        p.require(
            capability::SECONDARY,
            secondary::EPT | secondary::VPID,
            "EPT and VPID",
        )?;
        p.enable_vmx()
    })?;
    let l2 = p.l2(|a| {
        // Page 0: not mapped at first, then mapped to the frame of page 5.
        a.mov(rax, qword_ptr(map::SCRATCH))?;
        a.vmcall()?;
        // Page 1: read-only at first.
        a.mov(dword_ptr(map::SCRATCH + PAGE), 0x77)?;
        // Page 2: not executable at first; holds a RET.
        a.mov(eax, (map::SCRATCH + 2 * PAGE) as u32)?;
        a.call(rax)?;
        // Page 3: misconfigured at first.
        a.mov(ecx, dword_ptr(map::SCRATCH + 3 * PAGE))?;
        // Page 6: a write to an absent page. Not a read-modify-write: for these the SDM sets the read
        // and the write bit, which not every processor model does.
        a.mov(dword_ptr(map::SCRATCH + 6 * PAGE), 0x101)?;
        a.vmcall()
    })?;
    let with_ept = Controls {
        secondary: secondary::EPT | secondary::VPID,
        ..Controls::default()
    };

    p.fresh_vmcs(l2, with_ept)?;
    p.store(map::SCRATCH + 2 * PAGE, 0xc3)?;
    p.store(map::SCRATCH + 5 * PAGE, 0x5eed)?;
    p.store(map::SCRATCH + 6 * PAGE, 0x100)?;
    p.ept_entry(0, 0)?;
    p.ept_entry(1, entry(1, EPT_WRITE_BACK | READ))?;
    p.ept_entry(2, entry(2, EPT_WRITE_BACK | 3))?;
    // Writable but not readable: a misconfiguration.
    p.ept_entry(3, entry(3, EPT_WRITE_BACK | 2))?;
    p.ept_entry(6, 0)?;
    p.invept(2, 0, 0)?;
    p.checkpoint(1)?;

    p.run_until(reason::EPT_VIOLATION)?;
    p.ept_entry(0, entry(5, FULL))?;
    p.checkpoint(2)?;
    p.run_until(reason::VMCALL)?;
    p.expect_l2(L2Register::Rax, 0x5eed)?;
    p.skip_instruction()?;
    p.run_until(reason::EPT_VIOLATION)?;
    p.ept_entry(1, entry(1, FULL))?;
    p.invept(1, EPT_POINTER, 0)?;
    p.run_until(reason::EPT_VIOLATION)?;
    p.ept_entry(2, entry(2, FULL))?;
    p.invept(1, EPT_POINTER, 0)?;
    p.run_until(reason::EPT_MISCONFIGURATION)?;
    p.ept_entry(3, entry(3, FULL))?;
    p.invept(1, EPT_POINTER, 0)?;
    p.run_until(reason::EPT_VIOLATION)?;
    p.ept_entry(6, entry(6, FULL))?;
    p.run_until(reason::VMCALL)?;
    p.expect_memory(map::SCRATCH + PAGE, 0x77)?;
    p.expect_memory(map::SCRATCH + 6 * PAGE, 0x101)?;
    p.checkpoint(3)?;

    page_walk(&mut p, with_ept)?;
    invalidations(&mut p)?;
    accessed_and_dirty(&mut p, with_ept)?;
    p.finish()
}

/// The page that L2's own PML4 lies in is not mapped: the violation is the page walk's, not the
/// access's (qualification bit 8 is 0).
fn page_walk(p: &mut Program, controls: Controls) -> Result<(), BuildError> {
    let l2 = p.l2(|a| a.vmcall())?;
    p.fresh_vmcs(l2, controls)?;
    p.a.mov(esi, map::PAGING_L2 as u32)?;
    p.a.mov(edi, (map::SCRATCH + 4 * PAGE) as u32)?;
    p.a.mov(ecx, 512)?;
    p.a.rep().movsq()?;
    p.vmwrite(field::GUEST_CR3, map::SCRATCH + 4 * PAGE)?;
    p.ept_entry(4, 0)?;
    p.invept(1, EPT_POINTER, 0)?;
    p.run_until(reason::EPT_VIOLATION)?;
    p.ept_entry(4, entry(4, FULL))?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(4)
}

/// Every type of INVVPID that ends well.
fn invalidations(p: &mut Program) -> Result<(), BuildError> {
    for (kind, linear) in [(0, map::SCRATCH), (1, 0), (2, 0), (3, 0)] {
        p.invvpid(kind, 1, linear, 0)?;
    }
    Ok(())
}

/// L1 turns accessed and dirty flags on and reads them after a read and after a write of L2.
fn accessed_and_dirty(p: &mut Program, controls: Controls) -> Result<(), BuildError> {
    let mut without = p.a.create_label();
    p.a.mov(ecx, capability::EPT_VPID)?;
    p.a.rdmsr()?;
    p.a.bt(eax, 21)?;
    p.a.jae(without)?;
    let l2 = p.l2(|a| {
        a.mov(eax, dword_ptr(map::SCRATCH + 7 * PAGE))?;
        a.vmcall()?;
        a.mov(dword_ptr(map::SCRATCH + 7 * PAGE), eax)?;
        a.vmcall()
    })?;
    p.fresh_vmcs(l2, controls)?;
    p.vmwrite(field::EPT_POINTER, EPT_POINTER | EPT_POINTER_AD)?;
    p.ept_entry(7, entry(7, FULL))?;
    p.invept(2, 0, 0)?;
    let flags = map::EPT_SCRATCH_TABLE + 8 * 7;
    p.run_until(reason::VMCALL)?;
    p.expect_memory(flags, entry(7, FULL | 1 << 8) as u32)?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.expect_memory(flags, entry(7, FULL | 1 << 8 | 1 << 9) as u32)?;
    p.checkpoint(5)?;
    p.a.set_label(&mut without)?;
    p.a.xor(eax, eax)?;
    Ok(())
}
