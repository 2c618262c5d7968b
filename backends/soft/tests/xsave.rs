//! XSAVE and its kin in L2 (SDM Vol. 1 "Managing State Using the XSAVE Feature Set"; Vol. 3C "Changes to
//! Instruction Behavior in VMX Non-Root Operation": "enable XSAVES/XRSTORS", XSS-exiting bitmap).

mod common;

use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::{CpuState, msr};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const VALUE: u64 = 0x1122_3344_5566_7788;
/// Intel PT's supervisor state: there is none behind it, but IA32_XSS may name it.
const PT_STATE: u64 = 1 << 8;

/// An instruction on [PAGE + offset].
fn on_page(opcode: [u8; 2], extension: u8, offset: u8) -> Vec<u8> {
    let mut code = opcode.to_vec();
    code.extend([extension << 3 | 4, 0x25]);
    code.extend((PAGE as u32 + u32::from(offset)).to_le_bytes());
    code
}

/// L2 runs `code` and VMCALL, EDX:EAX is `mask`.
fn nest(code: &[u8], mask: u64, secondary: Secondary) -> Nest {
    let mut nest = Nest::new(&[code, &VMCALL].concat());
    let old = nest.state();
    let mut cpuid = old.cpuid.expect("CPUID");
    for entry in &mut cpuid {
        if entry.leaf == 1 {
            entry.ecx |= 1 << 26;
        }
    }
    for (subleaf, eax, ebx, ecx) in [(0, 3, 0x240, 0x240), (1, 0xf, 0x240, PT_STATE as u32)] {
        cpuid.push(CpuidEntry {
            leaf: 0xd,
            subleaf,
            subleaf_significant: true,
            eax,
            ebx,
            ecx,
            ..CpuidEntry::default()
        });
    }
    let mut msrs = old.msrs.expect("MSRs");
    let fixed = msrs.get(&msr::IA32_VMX_CR4_FIXED1).expect("there") | 1 << 18;
    msrs.clear();
    msrs.insert(msr::IA32_VMX_CR4_FIXED1, fixed);
    msrs.insert(msr::IA32_XSS, PT_STATE);
    let mut regs = nest.regs();
    regs.gpr[0] = mask;
    regs.gpr[2] = 0;
    regs.gpr[3] = VALUE;
    nest.set_state(CpuState {
        cpuid: Some(cpuid),
        ..CpuState::default()
    });
    nest.set_state(CpuState {
        msrs: Some(msrs),
        regs: Some(regs),
        xcr0: Some(3),
        ..CpuState::default()
    });
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.off(Field::SECONDARY_VM_EXEC_CONTROL, u32::MAX);
    nest.on(Field::SECONDARY_VM_EXEC_CONTROL, secondary.bits());
    nest.set(Field::GUEST_CR4, 0x2020 | 1 << 18 | 1 << 9);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 6 | 1 << 7 | 1 << 13);
    nest
}

fn word(nest: &mut Nest, offset: u64) -> u64 {
    let mut bytes = [0; 8];
    nest.vm
        .read_memory(L1Phys(PAGE + offset), &mut bytes)
        .expect("RAM");
    u64::from_le_bytes(bytes)
}

#[test]
fn registers_go_through_the_area_and_back() {
    // The save and the restore; XCOMP_BV.
    let ways = [
        (([0x0f, 0xae], 4), ([0x0f, 0xae], 5), 0),
        (([0x0f, 0xae], 6), ([0x0f, 0xae], 5), 0),
        (([0x0f, 0xc7], 4), ([0x0f, 0xae], 5), 1 << 63 | 3),
        (([0x0f, 0xc7], 5), ([0x0f, 0xc7], 3), 1 << 63 | 3),
    ];
    for ((save, s), (restore, r), components) in ways {
        let code = [
            // movq xmm1, rbx; the save; pxor xmm1, xmm1; the restore; movq rsi, xmm1
            &[0x66, 0x48, 0x0f, 0x6e, 0xcb][..],
            &on_page(save, s, 0),
            &[0x66, 0x0f, 0xef, 0xc9],
            &on_page(restore, r, 0),
            &[0x66, 0x48, 0x0f, 0x7e, 0xce],
        ]
        .concat();
        let mut nest = nest(&code, 3, Secondary::ENABLE_XSAVES);
        nest.expect(VMCALL_EXIT, L2 + code.len() as u64);
        assert_eq!(nest.regs().gpr[6], VALUE);
        assert_eq!(word(&mut nest, 176), VALUE);
        assert_eq!(word(&mut nest, 512), 3);
        assert_eq!(word(&mut nest, 520), components);
    }
}

#[test]
fn xsaves_exits_where_the_bitmaps_meet_and_is_undefined_unless_enabled() {
    for (extension, reason) in [(5, 63), (3, 64)] {
        let code = on_page([0x0f, 0xc7], extension, 0);
        let mut off = nest(&code, 3, Secondary::empty());
        off.expect(EXCEPTION, L2);
        assert_eq!(off.get(Field::VM_EXIT_INTR_INFO), 0x8000_0306);
        let mut exits = nest(&code, 3 | PT_STATE, Secondary::ENABLE_XSAVES);
        exits.set(Field::XSS_EXIT_BITMAP, PT_STATE);
        exits.expect(reason, L2);
        assert_eq!(exits.get(Field::EXIT_QUALIFICATION), PAGE);
        assert_eq!(exits.get(Field::VMX_INSTRUCTION_INFO), 0x0841_8100);
        assert_eq!(exits.get(Field::VM_EXIT_INSTRUCTION_LEN), 8);
    }
}

#[test]
fn faults() {
    let save = on_page([0x0f, 0xae], 4, 0);
    let mut misaligned = nest(&on_page([0x0f, 0xae], 4, 32), 3, Secondary::empty());
    misaligned.expect(EXCEPTION, L2);
    assert_eq!(misaligned.get(Field::VM_EXIT_INTR_INFO), 0x8000_0b0d);
    let mut switched = nest(&save, 3, Secondary::empty());
    switched.set(Field::GUEST_CR0, switched.get(Field::GUEST_CR0) | 8);
    switched.expect(EXCEPTION, L2);
    assert_eq!(switched.get(Field::VM_EXIT_INTR_INFO), 0x8000_0307);
    let mut off = nest(&save, 3, Secondary::empty());
    off.set(Field::GUEST_CR4, 0x2220);
    off.expect(EXCEPTION, L2);
    assert_eq!(off.get(Field::VM_EXIT_INTR_INFO), 0x8000_0306);
    // A header that names a component which XCR0 lacks.
    let mut header = nest(&on_page([0x0f, 0xae], 5, 0), 3, Secondary::empty());
    common::bare::put(&mut header.vm, PAGE + 512, &4_u64.to_le_bytes());
    header.expect(EXCEPTION, L2);
    assert_eq!(header.get(Field::VM_EXIT_INTR_INFO), 0x8000_0b0d);
}

/// CPUID.01H:ECX.OSXSAVE is CR4's of whoever runs, also behind an exit that changes it (SDM Vol. 2A "CPUID").
#[test]
fn osxsave_follows_the_exit() {
    const OSXSAVE: u64 = 1 << 18;
    for l1 in [0, OSXSAVE] {
        let mut nest = Nest::of_profile(Some("max"), &VMCALL);
        nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | OSXSAVE ^ l1);
        nest.set(Field::HOST_CR4, nest.get(Field::HOST_CR4) | l1);
        // mov eax, 1; cpuid; and on to where exits lead.
        let exits_to = nest.get(Field::HOST_RIP);
        let mut code = vec![0xb8, 1, 0, 0, 0, 0x0f, 0xa2, 0xe9];
        code.extend((exits_to as i32 - (PAGE2 as i32 + 12)).to_le_bytes());
        common::bare::put(&mut nest.vm, PAGE2, &code);
        nest.set(Field::HOST_RIP, PAGE2);
        assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT));
        let ecx = nest.regs().gpr[1];
        assert_eq!(ecx >> 26 & 3, if l1 == 0 { 1 } else { 3 }, "XSAVE, OSXSAVE");
    }
}
