//! Every instruction: faults, exits, every VM-instruction error, what succeeds.

use super::*;
use crate::addr::L1Phys;
use crate::cpu::{Model, Personality};
use crate::memory::VecMemory;
use crate::vmx::Field;
use crate::vmx::controls::Secondary;
use crate::vmx::entry::test_support as support;
use crate::vmx::exit::Flush;
use crate::vmx::vmcs12::LaunchState;
use crate::x86::control::{ARITHMETIC_FLAGS, cr0, cr4, efer, rflags};
use crate::x86::{AccessRights, Exception, Gpr};
use InstructionError as E;
use std::sync::Arc;

const ALL: [Instruction; 14] = [
    Instruction::Vmxon,
    Instruction::Vmxoff,
    Instruction::Vmclear,
    Instruction::Vmptrld,
    Instruction::Vmptrst,
    Instruction::Vmread,
    Instruction::Vmwrite,
    Instruction::Vmlaunch,
    Instruction::Vmresume,
    Instruction::Vmcall,
    Instruction::Invept,
    Instruction::Invvpid,
    Instruction::Vmfunc,
    Instruction::Getsec,
];

const UD: Result<(), VmxResult> = Err(VmxResult::Fault(Exception::UNDEFINED));
const GP: Result<(), VmxResult> = Err(VmxResult::Fault(Exception::GENERAL_PROTECTION));

fn start() -> (Cpu, VecMemory) {
    (support::cpu_with_vmcs(), support::memory())
}

fn in_l2() -> (Cpu, VecMemory) {
    let (mut cpu, memory) = start();
    assert!(matches!(vmlaunch(&mut cpu, &memory), VmxResult::Entered(_)));
    cpu.vmx.run_pending = false;
    (cpu, memory)
}

fn check(cpu: &Cpu, memory: &VecMemory, instruction: Instruction) -> Result<(), VmxResult> {
    // INVEPT and INVVPID type 2: global.
    let operands = Operands {
        length: 4,
        register: 2,
        ..Operands::default()
    };
    check_execution(cpu, memory, instruction, &operands)
}

#[test]
fn outside_vmx_operation_all_but_vmxon_are_undefined() {
    let (cpu, memory) = (support::cpu(), support::memory());
    for instruction in ALL {
        // VMCALL is KVM's hypercall everywhere.
        let expected = match instruction {
            Instruction::Vmxon | Instruction::Vmcall => Ok(()),
            _ => UD,
        };
        assert_eq!(
            check(&cpu, &memory, instruction),
            expected,
            "{instruction:?}"
        );
    }
    let mut cpu = cpu;
    cpu.model = Arc::new(Model {
        personality: Personality::Sdm,
        ..support::model()
    });
    assert_eq!(check(&cpu, &memory, Instruction::Vmcall), UD);
}

#[test]
fn modes_and_privilege() {
    type Change = fn(&mut Cpu);
    let real: Change = |c| c.sregs.cr0 &= !cr0::PE;
    let virtual_8086: Change = |c| {
        c.sregs.efer &= !efer::LMA;
        c.regs.rflags |= rflags::VM;
    };
    let compatibility: Change = |c| c.sregs.cs.ar.remove(AccessRights::LONG);
    let user: Change = |c| {
        c.sregs
            .ss
            .ar
            .insert(AccessRights::DPL_LOW | AccessRights::DPL_HIGH)
    };
    for (change, expected) in [
        (real, UD),
        (virtual_8086, UD),
        (compatibility, UD),
        (user, GP),
    ] {
        for instruction in ALL {
            let (mut cpu, memory) = start();
            if instruction == Instruction::Vmxon {
                cpu = support::cpu();
            }
            change(&mut cpu);
            let expected = match instruction {
                Instruction::Vmcall => Ok(()),
                // Neither is there for L1 at all.
                Instruction::Vmfunc | Instruction::Getsec => UD,
                _ => expected,
            };
            assert_eq!(
                check(&cpu, &memory, instruction),
                expected,
                "{instruction:?}"
            );
        }
    }
}

#[test]
fn in_l2_they_exit_before_privilege_is_checked() {
    let (mut cpu, memory) = in_l2();
    cpu.sregs
        .ss
        .ar
        .insert(AccessRights::DPL_LOW | AccessRights::DPL_HIGH);
    let operands = Operands {
        length: 5,
        displacement: 0x40,
        information: 0x77,
        register: 0,
    };
    for instruction in ALL {
        let result = check_execution(&cpu, &memory, instruction, &operands);
        if matches!(instruction, Instruction::Vmfunc | Instruction::Getsec) {
            assert_eq!(result, UD);
            continue;
        }
        let Err(VmxResult::Exit(exit)) = result else {
            panic!("{instruction:?}: {result:?}");
        };
        assert_eq!(exit.reason, instruction.exit_reason());
        assert_eq!(exit.instruction_length, Some(5));
        let is_simple = matches!(
            instruction,
            Instruction::Vmxoff
                | Instruction::Vmlaunch
                | Instruction::Vmresume
                | Instruction::Vmcall
        );
        assert_eq!(
            exit.qualification,
            if is_simple { 0 } else { 0x40 },
            "{instruction:?}"
        );
        let information = if is_simple { None } else { Some(0x77) };
        assert_eq!(exit.instruction_information, information, "{instruction:?}");
    }
}

#[test]
fn vmxon_conditions() {
    type Change = fn(&mut Cpu);
    let rows: [(Change, Result<(), VmxResult>); 6] = [
        (|_| (), Ok(())),
        (|c| c.sregs.cr4 &= !cr4::VMXE, UD),
        (|c| c.sregs.cr0 &= !cr0::NE, GP),
        (|c| c.sregs.cr4 |= 1 << 40, GP),
        (|c| c.msrs.feature_control = 1, GP),
        (
            |c| c.vmx.vmxon = Some(support::VMXON_REGION),
            Err(VmxResult::FailInvalid),
        ),
    ];
    for (change, expected) in rows {
        let mut cpu = support::cpu();
        change(&mut cpu);
        assert_eq!(
            check(&cpu, &support::memory(), Instruction::Vmxon),
            expected
        );
    }
    // In VMX root operation with a current VMCS the failure has its number.
    let (cpu, memory) = start();
    let expected = Err(VmxResult::FailValid(E::VMXON_IN_ROOT));
    assert_eq!(check(&cpu, &memory, Instruction::Vmxon), expected);
}

#[test]
fn vmxon_regions() {
    let memory = support::memory();
    for (pointer, expected) in [
        (support::VMXON_REGION.0, VmxResult::Succeed),
        (support::VMXON_REGION.0 + 8, VmxResult::FailInvalid),
        (1 << 40, VmxResult::FailInvalid),
        // Revision, shadow-VMCS indicator, no RAM.
        (support::FREE_PAGE.0, VmxResult::FailInvalid),
        (support::SHADOW_VMCS.0, VmxResult::FailInvalid),
        (0x100_0000, VmxResult::FailInvalid),
    ] {
        let mut cpu = support::cpu();
        assert_eq!(vmxon(&mut cpu, &memory, pointer), expected, "{pointer:#x}");
        assert_eq!(cpu.vmx.vmxon.is_some(), expected == VmxResult::Succeed);
    }
}

#[test]
fn vmxoff_drops_the_cached_vmcs12() {
    let (mut cpu, memory) = start();
    cpu.vmx.vmcs12.set(Field::GUEST_RIP, 0x1234);
    assert_eq!(vmxoff(&mut cpu), VmxResult::Succeed);
    assert_eq!((cpu.vmx.vmxon, cpu.vmx.current), (None, None));
    // guest_rip is at 544.
    assert_eq!(memory.read_u64(L1Phys(support::VMCS.0 + 544)), Ok(0));
}

#[test]
fn errors_of_the_pointer_instructions() {
    type Run = fn(&mut Cpu, &dyn GuestMemory, u64) -> VmxResult;
    let rows: [(Run, u64, E); 9] = [
        (vmclear, 8, E::VMCLEAR_INVALID_ADDRESS),
        (vmclear, 1 << 40, E::VMCLEAR_INVALID_ADDRESS),
        (vmclear, support::VMXON_REGION.0, E::VMCLEAR_VMXON_POINTER),
        (vmptrld, 8, E::VMPTRLD_INVALID_ADDRESS),
        (vmptrld, 1 << 40, E::VMPTRLD_INVALID_ADDRESS),
        (vmptrld, support::VMXON_REGION.0, E::VMPTRLD_VMXON_POINTER),
        (vmptrld, support::FREE_PAGE.0, E::VMPTRLD_INCORRECT_REVISION),
        (vmptrld, 0x100_0000, E::VMPTRLD_INCORRECT_REVISION),
        (vmptrld, 0x7000, E::VMPTRLD_INCORRECT_REVISION),
    ];
    for (run, pointer, error) in rows {
        let (mut cpu, memory) = start();
        assert_eq!(run(&mut cpu, &memory, pointer), VmxResult::FailValid(error));
        assert_eq!(cpu.vmx.current, Some(support::VMCS));
        cpu.vmx.current = None;
        assert_eq!(run(&mut cpu, &memory, pointer), VmxResult::FailInvalid);
    }
}

#[test]
fn a_shadow_vmcs_is_current_only_with_vmcs_shadowing() {
    let (mut cpu, memory) = start();
    assert_eq!(
        vmptrld(&mut cpu, &memory, support::SHADOW_VMCS.0),
        VmxResult::Succeed
    );
    let mut model = support::model();
    model.vmx_msrs[0xb] &= !(u64::from(Secondary::VMCS_SHADOWING.bits()) << 32);
    let (mut cpu, memory) = start();
    cpu.model = Arc::new(model);
    let expected = VmxResult::FailValid(E::VMPTRLD_INCORRECT_REVISION);
    assert_eq!(vmptrld(&mut cpu, &memory, support::SHADOW_VMCS.0), expected);
}

#[test]
fn the_current_vmcs_is_cached_until_another_is_loaded_or_it_is_cleared() {
    let (mut cpu, memory) = start();
    let rip = L1Phys(support::VMCS.0 + 544);
    assert_eq!(
        vmwrite(&mut cpu, Field::GUEST_RIP.0.into(), 0x1234),
        VmxResult::Succeed
    );
    assert_eq!(
        vmptrld(&mut cpu, &memory, support::VMCS.0),
        VmxResult::Succeed
    );
    assert_eq!(memory.read_u64(rip), Ok(0));
    assert_eq!(
        vmptrld(&mut cpu, &memory, support::OTHER_VMCS.0),
        VmxResult::Succeed
    );
    assert_eq!(memory.read_u64(rip), Ok(0x1234));
    assert_eq!(vmread(&cpu, Field::GUEST_RIP.0.into()), Ok(0));
    assert_eq!(vmptrst(&cpu), support::OTHER_VMCS.0);

    // VMCLEAR of one that is not current: its launch state alone.
    memory.write_u32(L1Phys(support::VMCS.0 + 8), 1).unwrap();
    assert_eq!(
        vmclear(&mut cpu, &memory, support::VMCS.0),
        VmxResult::Succeed
    );
    assert_eq!(memory.read_u32(L1Phys(support::VMCS.0 + 8)), Ok(0));
    assert_eq!(cpu.vmx.current, Some(support::OTHER_VMCS));

    // And of the current one.
    cpu.vmx.vmcs12.set_launch_state(LaunchState::Launched);
    assert_eq!(
        vmclear(&mut cpu, &memory, support::OTHER_VMCS.0),
        VmxResult::Succeed
    );
    assert_eq!(memory.read_u32(L1Phys(support::OTHER_VMCS.0 + 8)), Ok(0));
    assert_eq!((cpu.vmx.current, vmptrst(&cpu)), (None, u64::MAX));
}

#[test]
fn vmread_and_vmwrite() {
    let (mut cpu, _) = start();
    let unsupported = VmxResult::FailValid(E::UNSUPPORTED_COMPONENT);
    for encoding in [0x6c18, 0x8000, 0x1_0000_681e, u64::MAX] {
        assert_eq!(vmread(&cpu, encoding), Err(unsupported), "{encoding:#x}");
        assert_eq!(vmwrite(&mut cpu, encoding, 0), unsupported, "{encoding:#x}");
    }
    // KVM drops reserved bits of access rights; the high half of a 64-bit field has 32.
    for (field, value, read) in [
        (Field::GUEST_CS_AR_BYTES, 0xffff_ffff, 0x1_f0ff),
        (Field::GUEST_CS_SELECTOR, 0x1_2345, 0x2345),
        (Field::TSC_OFFSET, u64::MAX, u64::MAX),
        (Field::TSC_OFFSET_HIGH, 0x1_0000_0007, 7),
        (Field::EXIT_QUALIFICATION, 5, 5),
    ] {
        assert_eq!(vmwrite(&mut cpu, field.0.into(), value), VmxResult::Succeed);
        assert_eq!(vmread(&cpu, field.0.into()), Ok(read), "{field}");
    }
    let mut model = support::model();
    model.vmx_msrs[5] &= !(1 << 29);
    cpu.model = Arc::new(model);
    let read_only = VmxResult::FailValid(E::READ_ONLY_COMPONENT);
    assert_eq!(
        vmwrite(&mut cpu, Field::EXIT_QUALIFICATION.0.into(), 0),
        read_only
    );
    cpu.vmx.current = None;
    assert_eq!(vmread(&cpu, 0), Err(VmxResult::FailInvalid));
    assert_eq!(vmwrite(&mut cpu, 0, 0), VmxResult::FailInvalid);
}

#[test]
fn vmcs_shadowing_lets_l2_read_and_write() {
    let (mut cpu, memory) = start();
    let shadowing = u64::from(Secondary::VMCS_SHADOWING.bits());
    let secondary = cpu.vmx.vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL) | shadowing;
    cpu.vmx
        .vmcs12
        .set(Field::SECONDARY_VM_EXEC_CONTROL, secondary);
    cpu.vmx
        .vmcs12
        .set(Field::VMREAD_BITMAP, support::FREE_PAGE.0);
    cpu.vmx
        .vmcs12
        .set(Field::VMWRITE_BITMAP, support::FREE_PAGE.0);
    // GUEST_RSP exits.
    let byte = L1Phys(support::FREE_PAGE.0 + u64::from(Field::GUEST_RSP.0 / 8));
    memory
        .write(byte, &[1 << (Field::GUEST_RSP.0 % 8)])
        .unwrap();
    let mut without_link = cpu.clone();

    cpu.vmx
        .vmcs12
        .set(Field::VMCS_LINK_POINTER, support::SHADOW_VMCS.0);
    assert!(matches!(vmlaunch(&mut cpu, &memory), VmxResult::Entered(_)));
    let passes = |cpu: &Cpu, instruction, encoding: u64| {
        let operands = Operands {
            register: encoding,
            ..Operands::default()
        };
        check_execution(cpu, &memory, instruction, &operands)
    };
    for instruction in [Instruction::Vmread, Instruction::Vmwrite] {
        assert_eq!(passes(&cpu, instruction, Field::GUEST_RIP.0.into()), Ok(()));
        for encoding in [u64::from(Field::GUEST_RSP.0), 0x8000] {
            let result = passes(&cpu, instruction, encoding);
            assert!(matches!(result, Err(VmxResult::Exit(_))), "{encoding:#x}");
        }
    }
    assert_eq!(
        vmwrite(&mut cpu, Field::GUEST_RIP.0.into(), 0x77),
        VmxResult::Succeed
    );
    assert_eq!(vmread(&cpu, Field::GUEST_RIP.0.into()), Ok(0x77));
    assert_eq!(cpu.vmx.vmcs12.get(Field::GUEST_RIP), support::L2_RIP);
    cpu.sregs.ss.ar.insert(AccessRights::DPL_LOW);
    assert_eq!(
        passes(&cpu, Instruction::Vmread, Field::GUEST_RIP.0.into()),
        GP
    );

    // Without a link pointer they fail.
    assert!(matches!(
        vmlaunch(&mut without_link, &memory),
        VmxResult::Entered(_)
    ));
    assert_eq!(
        vmread(&without_link, Field::GUEST_RIP.0.into()),
        Err(VmxResult::FailInvalid)
    );
}

#[test]
fn invalidations() {
    let (cpu, _) = start();
    let bad = (
        VmxResult::FailValid(E::INVALID_INVALIDATION_OPERAND),
        Flush::None,
    );
    let good = |flush| (VmxResult::Succeed, flush);
    let eptp = support::EPT_ROOT | 3 << 3 | 6;
    for (kind, descriptor, expected) in [
        (0, [eptp, 0], bad),
        (1, [eptp, 0], good(Flush::Eptp(support::EPT_ROOT))),
        (1, [eptp | 1, 0], bad),
        (2, [0, 0], good(Flush::AllEptps)),
        (3, [0, 0], bad),
        (1 << 32 | 1, [eptp, 0], bad),
    ] {
        assert_eq!(invept(&cpu, kind, descriptor), expected, "INVEPT {kind:#x}");
    }
    for (kind, descriptor, expected) in [
        (
            0,
            [5, 0x1000],
            good(Flush::Linear {
                vpid: 5,
                address: 0x1000,
            }),
        ),
        (0, [5, 1 << 50], bad),
        (0, [0, 0x1000], bad),
        (1, [5, 0], good(Flush::Vpid(5))),
        (1, [0, 0], bad),
        (2, [0, 0], good(Flush::AllVpids)),
        (2, [1 << 16, 0], bad),
        (3, [5, 0], good(Flush::Vpid(5))),
        (3, [0, 0], bad),
        (4, [5, 0], bad),
    ] {
        assert_eq!(
            invvpid(&cpu, kind, descriptor),
            expected,
            "INVVPID {kind:#x}"
        );
    }
    // Type before operand; not there at all without the capability.
    let mut cpu = cpu;
    let memory = support::memory();
    let operands = Operands {
        register: 9,
        ..Operands::default()
    };
    for instruction in [Instruction::Invept, Instruction::Invvpid] {
        assert_eq!(
            check_execution(&cpu, &memory, instruction, &operands),
            Err(bad.0)
        );
    }
    let mut model = support::model();
    model.vmx_msrs[0xc] = 0;
    cpu.model = Arc::new(model);
    for instruction in [Instruction::Invept, Instruction::Invvpid] {
        assert_eq!(check_execution(&cpu, &memory, instruction, &operands), UD);
    }
}

#[test]
fn vmfunc_switches_eptps() {
    let (mut cpu, memory) = start();
    let secondary = cpu.vmx.vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL);
    let enable = u64::from(Secondary::ENABLE_VM_FUNCTIONS.bits());
    cpu.vmx
        .vmcs12
        .set(Field::SECONDARY_VM_EXEC_CONTROL, secondary | enable);
    cpu.vmx.vmcs12.set(Field::VM_FUNCTION_CONTROL, 1);
    cpu.vmx
        .vmcs12
        .set(Field::EPTP_LIST_ADDRESS, support::FREE_PAGE.0);
    let other = 0xc000 | 3 << 3 | 6;
    memory
        .write_u64(L1Phys(support::FREE_PAGE.0 + 8), other)
        .unwrap();
    assert_eq!(check(&cpu, &memory, Instruction::Vmfunc), UD);
    assert!(matches!(vmlaunch(&mut cpu, &memory), VmxResult::Entered(_)));
    // Function, index, whether it exits.
    for (function, index, exits) in [(1, 1, true), (0, 512, true), (0, 0, true), (0, 1, false)] {
        cpu.regs.set(Gpr::Rax, function);
        cpu.regs.set(Gpr::Rcx, index);
        assert_eq!(check(&cpu, &memory, Instruction::Vmfunc), Ok(()));
        let (result, _) = vmfunc(
            &mut cpu,
            &memory,
            &Operands {
                length: 3,
                ..Operands::default()
            },
        );
        assert_eq!(
            matches!(result, VmxResult::Exit(_)),
            exits,
            "{function} {index}"
        );
    }
    assert_eq!(cpu.vmx.vmcs12.get(Field::EPT_POINTER), other);
    cpu.regs.set(Gpr::Rax, 64);
    assert_eq!(check(&cpu, &memory, Instruction::Vmfunc), UD);
}

#[test]
fn vmcall_in_root_is_a_hypercall_or_fails() {
    let (mut cpu, _) = start();
    for (number, result) in [(1, 0), (77, -1000_i64)] {
        cpu.regs.set(Gpr::Rax, number);
        assert_eq!(vmcall(&mut cpu), VmxResult::Done);
        assert_eq!(cpu.regs.get(Gpr::Rax) as i64, result);
    }
    cpu.model = Arc::new(Model {
        personality: Personality::Sdm,
        ..support::model()
    });
    assert_eq!(vmcall(&mut cpu), VmxResult::FailValid(E::VMCALL_IN_ROOT));
}

#[test]
fn conventions() {
    let others = rflags::FIXED | rflags::IF;
    let (succeed, invalid) = (VmxResult::Succeed, VmxResult::FailInvalid);
    let valid = VmxResult::FailValid(E::UNSUPPORTED_COMPONENT);
    for (result, flags) in [
        (succeed, others),
        (invalid, others | rflags::CF),
        (valid, others | rflags::ZF),
        (VmxResult::Done, others | ARITHMETIC_FLAGS),
    ] {
        let (mut cpu, _) = start();
        cpu.regs.rflags = others | ARITHMETIC_FLAGS;
        complete(&mut cpu, &result, 4);
        assert_eq!(cpu.regs.rflags, flags, "{result:?}");
        assert_eq!(cpu.regs.rip, support::L1_RIP + 4);
        let error = cpu.vmx.vmcs12.get(Field::VM_INSTRUCTION_ERROR);
        assert_eq!(error, if result == valid { 12 } else { 0 });
    }
    let (mut cpu, _) = start();
    complete(&mut cpu, &VmxResult::Fault(Exception::UNDEFINED), 4);
    assert_eq!(cpu.regs.rip, support::L1_RIP);
}
