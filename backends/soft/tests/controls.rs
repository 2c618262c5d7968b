//! Instructions that a control of L1's enables, or lets exit, beyond what KVM's default model has: INVPCID,
//! RDSEED, RDPID, UMONITOR and its kin, ENCLS (SDM Vol. 3C "Instructions That Cause VM Exits
//! Conditionally", "Changes to Instruction Behavior in VMX Non-Root Operation").

mod common;

use common::bare::put;
use common::nest::*;
use nvmx_core::personality::Personality;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::CpuState;
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::msr;

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const UD: u64 = 0x8000_0306;
const GP: u64 = 0x8000_0b0d;

/// invpcid rax, [PAGE]
const INVPCID: [u8; 10] = [0x66, 0x0f, 0x38, 0x82, 0x04, 0x25, 0x00, 0x00, 0x06, 0x00];
/// rdseed eax
const RDSEED: [u8; 3] = [0x0f, 0xc7, 0xf8];
/// rdpid rbx
const RDPID: [u8; 4] = [0xf3, 0x0f, 0xc7, 0xfb];
/// umonitor rbx
const UMONITOR: [u8; 4] = [0xf3, 0x0f, 0xae, 0xf3];
/// umwait ecx
const UMWAIT: [u8; 4] = [0xf2, 0x0f, 0xae, 0xf1];
/// tpause ecx
const TPAUSE: [u8; 4] = [0x66, 0x0f, 0xae, 0xf1];
const ENCLS: [u8; 3] = [0x0f, 0x01, 0xcf];

/// An L2 whose processor has all of it; behind `code` is VMCALL.
fn nest(code: &[u8], primary: Primary, secondary: Secondary) -> Nest {
    let mut nest = Nest::new(&[code, &VMCALL].concat());
    let old = nest.state();
    let mut cpuid = old.cpuid.expect("CPUID");
    cpuid.retain(|entry| entry.leaf != 7);
    cpuid.push(CpuidEntry {
        leaf: 7,
        subleaf_significant: true,
        // SGX, INVPCID, RDSEED, beside the default's.
        ebx: 0x001c_078f,
        // WAITPKG, RDPID.
        ecx: 1 << 5 | 1 << 22,
        ..CpuidEntry::default()
    });
    let mut msrs = old.msrs.expect("MSRs");
    msrs.retain(|number, _| matches!(*number, msr::IA32_VMX_PROCBASED_CTLS2 | msr::IA32_TSC_AUX));
    *msrs.get_mut(&msr::IA32_VMX_PROCBASED_CTLS2).expect("there") |=
        u64::from((Secondary::ENABLE_ENCLS_EXITING | Secondary::ENABLE_USER_WAIT_AND_PAUSE).bits())
            << 32;
    msrs.insert(msr::IA32_TSC_AUX, 0x1234);
    nest.set_state(CpuState {
        cpuid: Some(cpuid),
        ..CpuState::default()
    });
    nest.set_state(CpuState {
        msrs: Some(msrs),
        ..CpuState::default()
    });
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        (Primary::ACTIVATE_SECONDARY_CONTROLS | primary).bits(),
    );
    nest.off(Field::SECONDARY_VM_EXEC_CONTROL, u32::MAX);
    nest.on(Field::SECONDARY_VM_EXEC_CONTROL, secondary.bits());
    nest.set(Field::EXCEPTION_BITMAP, 1 << 6 | 1 << 13);
    nest
}

fn registers(nest: &mut Nest, values: &[(usize, u64)]) {
    let mut regs = nest.regs();
    for (number, value) in values {
        regs.gpr[*number] = *value;
    }
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
}

#[test]
fn undefined_unless_enabled_and_exits_where_asked() {
    let none = Primary::empty();
    let wait = Secondary::ENABLE_USER_WAIT_AND_PAUSE;
    // Code, primary and secondary controls, exit reason, instruction information.
    type Row = (&'static [u8], Primary, Secondary, u32, Option<u64>);
    let rows: [Row; 17] = [
        (
            &INVPCID,
            Primary::INVLPG_EXITING,
            Secondary::empty(),
            EXCEPTION,
            None,
        ),
        (
            &INVPCID,
            Primary::INVLPG_EXITING,
            Secondary::ENABLE_INVPCID,
            58,
            Some(0x0841_8100),
        ),
        (&INVPCID, none, Secondary::ENABLE_INVPCID, VMCALL_EXIT, None),
        (&RDSEED, none, Secondary::RDSEED_EXITING, 61, Some(0x800)),
        (&RDSEED, none, Secondary::empty(), VMCALL_EXIT, None),
        (&RDPID, none, Secondary::empty(), EXCEPTION, None),
        (&RDPID, none, Secondary::ENABLE_RDTSCP, VMCALL_EXIT, None),
        (&UMONITOR, none, Secondary::empty(), EXCEPTION, None),
        (&UMONITOR, Primary::RDTSC_EXITING, wait, VMCALL_EXIT, None),
        (
            &UMWAIT,
            Primary::RDTSC_EXITING,
            Secondary::empty(),
            EXCEPTION,
            None,
        ),
        (&UMWAIT, Primary::RDTSC_EXITING, wait, 67, Some(8)),
        (&UMWAIT, none, wait, VMCALL_EXIT, None),
        (&TPAUSE, none, Secondary::empty(), EXCEPTION, None),
        (&TPAUSE, Primary::RDTSC_EXITING, wait, 68, Some(8)),
        (&TPAUSE, none, wait, VMCALL_EXIT, None),
        (&ENCLS, none, Secondary::ENABLE_ENCLS_EXITING, 60, None),
        // No enclaves: IA32_FEATURE_CONTROL has them off.
        (&ENCLS, none, Secondary::empty(), EXCEPTION, None),
    ];
    for (i, (code, primary, secondary, reason, information)) in rows.into_iter().enumerate() {
        let mut nest = nest(code, primary, secondary);
        nest.set(Field::ENCLS_EXITING_BITMAP, 1 << 2);
        registers(&mut nest, &[(0, 2), (1, 1), (3, L2)]);
        assert_eq!(nest.enter(), Entry::Exit(reason), "row {i}");
        let behind = L2 + code.len() as u64;
        let rip = if reason == VMCALL_EXIT { behind } else { L2 };
        assert_eq!(nest.get(Field::GUEST_RIP), rip, "row {i}");
        if reason == EXCEPTION {
            let expected = if code == ENCLS { GP } else { UD };
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), expected, "row {i}");
        } else if reason != VMCALL_EXIT {
            let length = nest.get(Field::VM_EXIT_INSTRUCTION_LEN);
            assert_eq!(length, code.len() as u64, "row {i}");
        }
        if let Some(information) = information {
            assert_eq!(
                nest.get(Field::VMX_INSTRUCTION_INFO),
                information,
                "row {i}: {:#x}",
                nest.get(Field::VMX_INSTRUCTION_INFO)
            );
        }
    }
    let mut nest = nest(&RDPID, none, Secondary::ENABLE_RDTSCP);
    registers(&mut nest, &[(3, u64::MAX)]);
    nest.expect(VMCALL_EXIT, L2 + 4);
    assert_eq!(nest.regs().gpr[3], 0x1234);
}

#[test]
fn the_operands_of_invpcid_are_checked() {
    // Type, first and second word of the descriptor, whether it is taken.
    let rows = [
        (0, 0, 0x1000, true),
        (0, 1, 0x1000, false),
        (0, 0, 1 << 60, false),
        (1, 0, 1 << 60, true),
        (1, 1, 0, false),
        (2, 1, 0, true),
        (3, 0x1000, 0, false),
        (4, 0, 0, false),
    ];
    for (kind, pcid, address, taken) in rows {
        let mut nest = nest(&INVPCID, Primary::empty(), Secondary::ENABLE_INVPCID);
        put(&mut nest.vm, PAGE, &u64::to_le_bytes(pcid));
        put(&mut nest.vm, PAGE + 8, &u64::to_le_bytes(address));
        registers(&mut nest, &[(0, kind)]);
        let entry = nest.enter();
        let expected = if taken { VMCALL_EXIT } else { EXCEPTION };
        assert_eq!(
            entry,
            Entry::Exit(expected),
            "{kind} {pcid:#x} {address:#x}"
        );
        if !taken {
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), GP);
        }
    }
}

#[test]
fn waiting_ends_at_once_and_clears_the_flags() {
    let wait = Secondary::ENABLE_USER_WAIT_AND_PAUSE;
    for code in [UMWAIT, TPAUSE] {
        let mut fine = nest(&code, Primary::empty(), wait);
        fine.set(Field::GUEST_RFLAGS, 0x8d7);
        fine.expect(VMCALL_EXIT, L2 + 4);
        assert_eq!(fine.get(Field::GUEST_RFLAGS), 2);
        // Reserved bits of the operand come before the exit.
        let mut reserved = nest(&code, Primary::RDTSC_EXITING, wait);
        registers(&mut reserved, &[(1, 2)]);
        reserved.expect(EXCEPTION, L2);
        assert_eq!(reserved.get(Field::VM_EXIT_INTR_INFO), GP);
    }
}

/// CPUID faulting comes before the exit; KVM's L2 does not have L1's register.
#[test]
fn cpuid_faulting() {
    for (personality, user_mode, faults) in [
        (Personality::Sdm, true, true),
        (Personality::Sdm, false, false),
        (Personality::Kvm, true, false),
    ] {
        let mut nest = Nest::new(&[0x0f, 0xa2]);
        nest.vm.set_personality(personality);
        nest.set_state(CpuState {
            msrs: Some([(msr::MISC_FEATURE_ENABLES, 1)].into()),
            ..CpuState::default()
        });
        nest.set(Field::EXCEPTION_BITMAP, 1 << 13);
        if user_mode {
            for (field, value) in [
                (Field::GUEST_CS_SELECTOR, 0x1b),
                (Field::GUEST_CS_AR_BYTES, 0xa0fb),
                (Field::GUEST_SS_SELECTOR, 0x23),
                (Field::GUEST_SS_AR_BYTES, 0xc0f3),
            ] {
                nest.set(field, value);
            }
        }
        nest.expect(if faults { 0 } else { 10 }, L2);
    }
}

/// With "virtualize IA32_SPEC_CTRL" L2 reads what it wrote, and L1's mask keeps the register's bits.
#[test]
fn spec_ctrl_has_a_shadow() {
    const SPEC_CTRL: u32 = 0x48;
    // mov ecx, 48H; mov eax, 4; xor edx, edx; wrmsr; xor eax, eax; rdmsr; vmcall
    let code = [
        0xb9, 0x48, 0, 0, 0, 0xb8, 4, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30, 0x31, 0xc0, 0x0f, 0x32,
        0x0f, 0x01, 0xc1,
    ];
    for (virtualize, register) in [(true, 5), (false, 4)] {
        let mut nest = Nest::of_profile(Some("max"), &code);
        nest.vm.set_personality(Personality::Sdm);
        // IBRS and SSBD, which the profiles leave out on soft, and the control with them.
        let mut cpuid = nest.state().cpuid.expect("CPUID");
        for entry in cpuid.iter_mut().filter(|entry| entry.leaf == 7) {
            entry.edx |= 1 << 26 | 1 << 31;
        }
        nest.set_state(CpuState {
            cpuid: Some(cpuid),
            msrs: Some([(SPEC_CTRL, 1), (msr::IA32_VMX_PROCBASED_CTLS3, 1 << 7)].into()),
            ..CpuState::default()
        });
        let primary = Primary::ACTIVATE_TERTIARY_CONTROLS | Primary::USE_MSR_BITMAPS;
        nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, primary.bits());
        nest.set(Field::MSR_BITMAP, PAGE);
        let control = if virtualize { 1 << 7 } else { 0 };
        let fields = [(0x2034, control), (0x204a, 1), (0x204c, 0)];
        assert_eq!(nest.enter_with(&fields), Entry::Exit(VMCALL_EXIT));
        assert_eq!(nest.regs().gpr[0], 4, "what L2 reads");
        let msrs = nest.state().msrs.expect("MSRs");
        assert_eq!(msrs.get(&SPEC_CTRL), Some(&register));
    }
}
