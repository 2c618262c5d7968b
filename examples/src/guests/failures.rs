//! VMX instructions and VM entries that fail, each in its way (SDM Vol. 3C "VMX Instruction
//! Reference", "VM-Instruction Error Numbers", "VM-Entry Failures During or After Loading Guest State").
//!
//! Every case starts from the standard VMCS and spoils one thing. VMX operation itself is entered and
//! left once an iteration.

use super::Guest;
use crate::image::Image;
use crate::runtime::program::{Controls, Program};
use crate::runtime::vmcs::{field, reason};
use crate::runtime::{BuildError, Params, entry, map};
use iced_x86::code_asm::*;

pub(super) const GUEST: Guest = Guest {
    name: "failures",
    about: "VMfailInvalid, VMfailValid by error number, faults of VMX instructions, failed entries (exit reasons 33 and 34)",
    build,
    processors: 1,
};

/// An address with bits beyond any physical-address width.
const NO_ADDRESS: u64 = 1 << 60;
/// A field encoding that no processor has.
const NO_FIELD: u32 = 0x0000_07fe;
const GENERAL_PROTECTION: u32 = 13;
const UNDEFINED: u32 = 6;

fn build(params: Params) -> Result<Image, BuildError> {
    let mut p = Program::bare("failures", params, |_| Ok(()))?;
    let l2 = p.l2(|a| {
        a.vmcall()?;
        a.vmcall()
    })?;
    operation(&mut p)?;
    pointers(&mut p)?;
    fields(&mut p, l2)?;
    launch_state(&mut p, l2)?;
    controls_and_host(&mut p, l2)?;
    guest_state(&mut p, l2)?;
    msr_load(&mut p, l2)?;
    p.vmx(0, |a| a.vmxoff())?;
    p.faults(UNDEFINED, |a| a.vmxoff())?;
    p.checkpoint(9)?;
    p.finish()
}

/// VMXON: #UD without CR4.VMXE, VMfailInvalid for a bad region, VMfailValid(15) in VMX operation.
fn operation(p: &mut Program) -> Result<(), BuildError> {
    p.write_revision(map::VMXON, 0)?;
    p.a.mov(eax, entry::CR4 & !0x2000)?;
    p.a.mov(cr4, rax)?;
    p.point_to(map::VMXON)?;
    p.faults(UNDEFINED, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    p.a.mov(eax, entry::CR4)?;
    p.a.mov(cr4, rax)?;
    p.faults(UNDEFINED, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    p.point_to(map::VMXON + 8)?;
    p.vmx(-1, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    p.point_to(NO_ADDRESS)?;
    p.vmx(-1, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    // A page without the revision identifier.
    p.a.mov(dword_ptr(map::VIRTUAL_APIC), 0)?;
    p.point_to(map::VIRTUAL_APIC)?;
    p.vmx(-1, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    p.checkpoint(1)?;
    p.point_to(map::VMXON)?;
    p.vmx(0, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    // In VMX operation CR4.VMXE cannot go; VMXON again is an error once there is a current VMCS to
    // hold its number, and VMfailInvalid before.
    p.faults(GENERAL_PROTECTION, |a| {
        a.mov(eax, entry::CR4 & !0x2000)?;
        a.mov(cr4, rax)
    })?;
    p.vmx(-1, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    // No current VMCS: every user of it fails alike.
    p.vmx(-1, |a| a.vmlaunch())?;
    p.vmx(-1, |a| a.vmresume())?;
    p.a.mov(ecx, field::GUEST_RIP)?;
    p.vmx(-1, |a| a.vmread(rax, rcx))?;
    p.a.mov(ecx, field::GUEST_RIP)?;
    p.vmx(-1, |a| a.vmwrite(rcx, rax))?;
    p.vmx(0, |a| a.vmptrst(qword_ptr(map::SCENARIO)))?;
    p.expect_memory(map::SCENARIO, u32::MAX)?;
    p.checkpoint(2)
}

/// VMCLEAR 2 and 3, VMPTRLD 9, 10 and 11, VMXON 15, INVEPT and INVVPID 28.
fn pointers(p: &mut Program) -> Result<(), BuildError> {
    for region in [map::VMCS, map::VMCS_2] {
        p.write_revision(region, 0)?;
        p.point_to(region)?;
        p.vmx(0, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    }
    p.point_to(map::VMCS)?;
    p.vmx(0, |a| a.vmptrld(qword_ptr(map::POINTER)))?;
    p.vmx(0, |a| a.vmptrst(qword_ptr(map::SCENARIO)))?;
    p.expect_memory(map::SCENARIO, map::VMCS as u32)?;
    for (address, error) in [(NO_ADDRESS, 2), (map::VMCS + 8, 2), (map::VMXON, 3)] {
        p.point_to(address)?;
        p.vmx(error, |a| a.vmclear(qword_ptr(map::POINTER)))?;
    }
    for (address, error) in [
        (NO_ADDRESS, 9),
        (map::VMCS + 8, 9),
        (map::VMXON, 10),
        (map::VIRTUAL_APIC, 11),
    ] {
        p.point_to(address)?;
        p.vmx(error, |a| a.vmptrld(qword_ptr(map::POINTER)))?;
    }
    p.point_to(map::VMXON)?;
    p.vmx(15, |a| a.vmxon(qword_ptr(map::POINTER)))?;
    p.invept(5, 0, 28)?;
    p.invept(1, NO_ADDRESS, 28)?;
    p.invvpid(7, 1, 0, 28)?;
    p.invvpid(1, 0, 0, 28)?;
    p.invvpid(0, 1, 1 << 62, 28)?;
    p.checkpoint(3)
}

/// VMREAD and VMWRITE of a field that is not there (12), VMWRITE of a read-only one (13) where
/// IA32_VMX_MISC does not allow it. VMREAD with an operand that faults changes nothing.
fn fields(p: &mut Program, l2: u64) -> Result<(), BuildError> {
    p.fresh_vmcs(l2, Controls::default())?;
    p.a.mov(ecx, NO_FIELD)?;
    p.vmx(12, |a| a.vmread(rax, rcx))?;
    p.a.mov(ecx, NO_FIELD)?;
    p.vmx(12, |a| a.vmwrite(rcx, rax))?;
    // The high half of a field without one: the access type is for 64-bit fields only.
    p.a.mov(ecx, field::GUEST_CR0 | 1)?;
    p.vmx(12, |a| a.vmread(rax, rcx))?;
    p.a.mov(ecx, 0x485)?;
    p.a.rdmsr()?;
    let mut writable = p.a.create_label();
    let mut done = p.a.create_label();
    p.a.bt(eax, 29)?;
    p.a.jb(writable)?;
    p.a.mov(ecx, field::EXIT_REASON)?;
    p.vmx(13, |a| a.vmwrite(rcx, rax))?;
    p.a.jmp(done)?;
    p.a.set_label(&mut writable)?;
    p.a.mov(eax, 0x1234)?;
    p.a.mov(ecx, field::EXIT_REASON)?;
    p.vmx(0, |a| a.vmwrite(rcx, rax))?;
    p.a.set_label(&mut done)?;
    p.a.zero_bytes()?;
    p.checkpoint(4)
}

/// VMRESUME of a clear VMCS (5), VMLAUNCH of a launched one (4), entry behind MOV SS (26).
fn launch_state(p: &mut Program, l2: u64) -> Result<(), BuildError> {
    p.fresh_vmcs(l2, Controls::default())?;
    p.a.mov(dword_ptr(map::LAUNCHED), 1)?;
    p.run_fails(5)?;
    p.a.mov(dword_ptr(map::LAUNCHED), 0)?;
    p.run_until(reason::VMCALL)?;
    p.a.mov(dword_ptr(map::LAUNCHED), 0)?;
    p.run_fails(4)?;
    p.a.mov(dword_ptr(map::LAUNCHED), 1)?;
    p.a.mov(eax, i32::from(map::selector::DATA))?;
    p.vmx(26, |a| {
        a.mov(ss, eax)?;
        a.vmresume()
    })?;
    p.skip_instruction()?;
    p.run_until(reason::VMCALL)?;
    p.checkpoint(5)
}

/// One spoiled field each: error 7 for controls, 8 for host state.
fn controls_and_host(p: &mut Program, l2: u64) -> Result<(), BuildError> {
    p.fresh_vmcs(l2, Controls::default())?;
    let spoiled: &[(u32, u64, u64, u32)] = &[
        // field, bad value, good value, error
        (field::CR3_TARGET_COUNT, 200, 0, 7),
        (field::ENTRY_MSR_LOAD_COUNT, 1, 0, 7),
        (field::ENTRY_INTERRUPTION, 0x8000_0100, 0, 7),
        (field::HOST_CR0, 0, entry::CR0 as u64, 8),
        (field::HOST_CR4, 0x20, entry::CR4 as u64, 8),
        (field::HOST_CR3, NO_ADDRESS, map::PAGING_L1, 8),
        (field::HOST_CS, 0, 8, 8),
        (field::HOST_TR, 0, 0x18, 8),
        (field::HOST_SS, 0x13, 0x10, 8),
        (field::HOST_GDTR_BASE, 1 << 62, map::GDT, 8),
        (field::HOST_IDTR_BASE, 1 << 62, map::IDT_L1, 8),
    ];
    // The MSR-load list of the second row: misaligned.
    p.vmwrite(field::ENTRY_MSR_LOAD, map::MSR_LOAD + 8)?;
    for (field, bad, good, error) in spoiled {
        p.vmwrite(*field, *bad)?;
        p.run_fails(*error)?;
        p.vmwrite(*field, *good)?;
    }
    p.run_until(reason::VMCALL)?;
    p.checkpoint(6)
}

/// One spoiled guest field each: VM exit 33 (with bit 31), the qualification says which kind where
/// the manual defines it. Nothing of L2 ran.
fn guest_state(p: &mut Program, l2: u64) -> Result<(), BuildError> {
    p.fresh_vmcs(l2, Controls::default())?;
    let spoiled: &[(u32, u64, u64, u32)] = &[
        // field, bad value, good value, qualification
        (field::LINK_POINTER, map::VMCS_2 + 8, u64::MAX, 4),
        (field::GUEST_CR0, 0x8000_0030, entry::CR0 as u64, 0),
        (field::GUEST_CR4, 0x20, entry::CR4 as u64, 0),
        (field::GUEST_RFLAGS, 0, 2, 0),
        (field::GUEST_TR_AR, 0x89, 0x8b, 0),
        (field::GUEST_CS_AR, 0xa093, 0xa09b, 0),
        (field::GUEST_SS_AR, 0xc0b3, 0xc093, 0),
        (field::GUEST_GDTR_LIMIT, 0x1_0000, 0x3f, 0),
        (field::GUEST_ACTIVITY, 4, 0, 0),
        (field::GUEST_INTERRUPTIBILITY, 3, 0, 0),
        (field::GUEST_PENDING_DEBUG, 1 << 13, 0, 0),
    ];
    for (field, bad, good, qualification) in spoiled {
        p.vmwrite(*field, *bad)?;
        p.run_until(reason::FAILED_GUEST_STATE)?;
        p.expect_field(
            crate::runtime::vmcs::field::EXIT_QUALIFICATION,
            *qualification,
        )?;
        p.vmwrite(*field, *good)?;
    }
    p.run_until(reason::VMCALL)?;
    p.checkpoint(7)
}

/// The second entry of the MSR-load list is not allowed (an x2APIC register): exit 34, qualification 2.
/// The first was loaded by then.
fn msr_load(p: &mut Program, l2: u64) -> Result<(), BuildError> {
    p.fresh_vmcs(l2, Controls::default())?;
    p.store(map::MSR_LOAD, 0xc000_0102)?;
    p.store(map::MSR_LOAD + 8, 0x1234_5678)?;
    p.store(map::MSR_LOAD + 16, 0x808)?;
    p.store(map::MSR_LOAD + 24, 0)?;
    p.vmwrites(&[
        (field::ENTRY_MSR_LOAD, map::MSR_LOAD),
        (field::ENTRY_MSR_LOAD_COUNT, 2),
    ])?;
    p.run_until(reason::FAILED_MSR_LOAD)?;
    p.expect_field(field::EXIT_QUALIFICATION, 2)?;
    p.vmwrite(field::ENTRY_MSR_LOAD_COUNT, 1)?;
    p.run_until(reason::VMCALL)?;
    p.a.mov(ecx, 0xc000_0102_u32)?;
    p.a.rdmsr()?;
    p.expect_eax(0x1234_5678)?;
    p.wrmsr(0xc000_0102, 0)?;
    p.checkpoint(8)
}
