//! VMX instructions as L1 meets them: faults of their operands, of the mode and of the privilege level,
//! VM entry in the shadow of MOV SS, IA32_FEATURE_CONTROL (SDM Vol. 3C "VMX Instruction Reference",
//! "Enabling and Entering VMX Operation").

mod common;

use common::bare::*;
use common::nest::{HANDLERS, Nest, VMCALL};
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{Budget, Exit, Vcpu, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::vmcs12::LaunchState;
use nvmx_core::x86::{CpuState, Gpr, MpState, Regs, msr};

const UD: u64 = 6;
const SS: u64 = 12;
const GP: u64 = 13;
const PF: u64 = 14;
/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
/// Mapped by nothing.
const ABSENT: u64 = 4 << 20;
const NON_CANONICAL: u64 = 0xaaaa_aaaa_aaaa_aaaa;
const OPERAND: u64 = 0x6_0800;

/// What L1's code came to.
#[derive(Debug, PartialEq, Eq)]
enum Came {
    /// Behind the code, with these arithmetic flags.
    Through(u64),
    /// To this exception, pushed by the instruction at this offset.
    Exception(u64, u64),
}

/// In VMX operation with a current VMCS; every exception halts.
fn machine() -> Nest {
    let mut nest = Nest::new(&VMCALL);
    for vector in 0..32 {
        put(&mut nest.vm, HANDLERS + 64 * vector, &[0xf4]);
    }
    let state = nvmx_core::nested::specimen::with_vmcs12(
        nvmx_core::vmx::capability::Capability::new(&nvmx_core::vmx::capability::KVM_6_1_ICELAKE),
    );
    nest.vm.set_nested_state(&state).expect("taken");
    nest
}

fn run(nest: &mut Nest, code: &[u8], flags: u64, registers: &[(Gpr, u64)]) -> Came {
    put(&mut nest.vm, CODE, &[code, &[0xf4]].concat());
    let mut regs = Regs {
        rip: CODE,
        rflags: flags | 2,
        ..Regs::default()
    };
    regs.set(Gpr::Rsp, STACK);
    for (register, value) in registers {
        regs.set(*register, *value);
    }
    nest.set_state(CpuState {
        regs: Some(regs),
        mp_state: Some(MpState::Runnable),
        ..CpuState::default()
    });
    go_on(nest, code.len() as u64)
}

fn go_on(nest: &mut Nest, length: u64) -> Came {
    let exit = nest.vm.run(Budget::instructions(1000)).expect("runs");
    assert_eq!(exit, Exit::Hlt);
    let regs = nest.regs();
    if regs.rip == CODE + length + 1 {
        return Came::Through(regs.rflags & ARITHMETIC);
    }
    let vector = (regs.rip - HANDLERS) / 64;
    // The frame begins with an error code for most.
    let skip = if matches!(vector, 8 | 10..=14 | 17) {
        8
    } else {
        0
    };
    let mut word = [0; 8];
    nest.vm
        .read_memory(
            nvmx_core::addr::L1Phys(regs.get(Gpr::Rsp) + skip),
            &mut word,
        )
        .expect("RAM");
    Came::Exception(vector, u64::from_le_bytes(word).wrapping_sub(CODE))
}

/// With a memory operand at [RBX], and with one at [RSP + RBX]. The register operand is RAX.
const WITH_MEMORY: [(&str, &[u8], &[u8]); 8] = [
    (
        "VMXON",
        &[0xf3, 0x0f, 0xc7, 0x33],
        &[0xf3, 0x0f, 0xc7, 0x34, 0x1c],
    ),
    (
        "VMCLEAR",
        &[0x66, 0x0f, 0xc7, 0x33],
        &[0x66, 0x0f, 0xc7, 0x34, 0x1c],
    ),
    ("VMPTRLD", &[0x0f, 0xc7, 0x33], &[0x0f, 0xc7, 0x34, 0x1c]),
    ("VMPTRST", &[0x0f, 0xc7, 0x3b], &[0x0f, 0xc7, 0x3c, 0x1c]),
    ("VMREAD", &[0x0f, 0x78, 0x03], &[0x0f, 0x78, 0x04, 0x1c]),
    ("VMWRITE", &[0x0f, 0x79, 0x03], &[0x0f, 0x79, 0x04, 0x1c]),
    (
        "INVEPT",
        &[0x66, 0x0f, 0x38, 0x80, 0x03],
        &[0x66, 0x0f, 0x38, 0x80, 0x04, 0x1c],
    ),
    (
        "INVVPID",
        &[0x66, 0x0f, 0x38, 0x81, 0x03],
        &[0x66, 0x0f, 0x38, 0x81, 0x04, 0x1c],
    ),
];

/// RAX: GUEST_SS_SELECTOR for VMREAD and VMWRITE, type 1 for INVEPT and INVVPID.
fn rax(name: &str) -> u64 {
    if name.starts_with("VM") { 0x804 } else { 1 }
}

fn without_vmx(nest: &mut Nest) {
    nest.vm
        .set_nested_state(&NestedState::default())
        .expect("taken");
}

#[test]
fn a_fault_of_the_operand_leaves_everything_alone() {
    for (name, code, through_stack) in WITH_MEMORY {
        for flags in [0x91, 0x45, ARITHMETIC] {
            for (code, address, vector) in [
                (code, ABSENT, PF),
                (code, NON_CANONICAL, GP),
                (through_stack, NON_CANONICAL - STACK, SS),
            ] {
                let mut nest = machine();
                if name == "VMXON" {
                    without_vmx(&mut nest);
                }
                let registers = [(Gpr::Rbx, address), (Gpr::Rax, rax(name))];
                let came = run(&mut nest, code, flags, &registers);
                assert_eq!(came, Came::Exception(vector, 0), "{name} {address:#x}");
                // RFLAGS as the handler finds them pushed.
                let skip = 8 + 16;
                let rsp = nest.regs().get(Gpr::Rsp);
                let mut word = [0; 8];
                nest.vm
                    .read_memory(nvmx_core::addr::L1Phys(rsp + skip), &mut word)
                    .expect("RAM");
                assert_eq!(u64::from_le_bytes(word) & ARITHMETIC, flags, "{name}");
                if vector == PF {
                    let cr2 = nest.state().sregs.expect("sregs").cr2;
                    assert_eq!(cr2, ABSENT, "{name}");
                }
            }
        }
    }
}

/// INVEPT and INVVPID of an unsupported type do not look at their descriptor.
#[test]
fn each_instruction_needs_vmx_operation_and_privilege() {
    let others: [(&str, &[u8]); 4] = [
        ("VMLAUNCH", &[0x0f, 0x01, 0xc2]),
        ("VMRESUME", &[0x0f, 0x01, 0xc3]),
        ("VMXOFF", &[0x0f, 0x01, 0xc4]),
        ("VMREAD", &[0x0f, 0x78, 0xc3]),
    ];
    let all = WITH_MEMORY.iter().map(|(name, code, _)| (*name, *code));
    for (name, code) in all.chain(others) {
        let registers = [(Gpr::Rbx, OPERAND), (Gpr::Rax, rax(name))];
        let mut nest = machine();
        without_vmx(&mut nest);
        if name != "VMXON" {
            assert_eq!(
                run(&mut nest, code, 0, &registers),
                Came::Exception(UD, 0),
                "{name}"
            );
        } else {
            let mut state = nest.state();
            if let Some(sregs) = &mut state.sregs {
                sregs.cr4 &= !(1 << 13);
            }
            nest.set_state(CpuState {
                sregs: state.sregs,
                ..CpuState::default()
            });
            assert_eq!(
                run(&mut nest, code, 0, &registers),
                Came::Exception(UD, 0),
                "{name}"
            );
        }
        for (mode, vector) in [(Mode::Compatibility, UD), (Mode::Long3, GP)] {
            let mut nest = machine();
            let mut sregs = state(mode, &mut Random(0)).sregs.expect("sregs");
            sregs.cr4 = 0x2020;
            sregs.tr.base = 0xb000;
            nest.set_state(CpuState {
                sregs: Some(sregs),
                ..CpuState::default()
            });
            let code: Vec<u8> = code.to_vec();
            assert_eq!(
                run(&mut nest, &code, 0, &registers),
                Came::Exception(vector, 0),
                "{name} {mode:?}"
            );
        }
    }
}

/// "VM entry with events blocked by MOV SS" comes behind the lack of a VMCS and before the launch state.
#[test]
fn vm_entry_in_the_shadow_of_mov_ss() {
    // mov ss, eax; vmlaunch
    let code = [0x8e, 0xd0, 0x0f, 0x01, 0xc2];
    let stack = [(Gpr::Rax, 0x10)];
    for launched in [false, true] {
        let mut nest = machine();
        let mut nested = nest.vm.nested_state().expect("state");
        if launched && let Some(vmcs12) = nested.vmcs12_mut() {
            vmcs12.set_launch_state(LaunchState::Launched);
        }
        nest.vm.set_nested_state(&nested).expect("taken");
        let flags = ARITHMETIC | if launched { 0x200 } else { 0 };
        assert_eq!(run(&mut nest, &code, flags, &stack), Came::Through(0x40));
        let nested = nest.vm.nested_state().expect("state");
        let error = nested.vmcs12().map(|v| v.get(Field::VM_INSTRUCTION_ERROR));
        assert_eq!(error, Some(26));
    }
    let mut nest = machine();
    nest.vm
        .set_nested_state(&nvmx_core::nested::specimen::vmxon())
        .expect("taken");
    assert_eq!(run(&mut nest, &code, ARITHMETIC, &stack), Came::Through(1));
}

fn error(nest: &mut Nest) -> u64 {
    let nested = nest.vm.nested_state().expect("state");
    nested
        .vmcs12()
        .map_or(0, |vmcs12| vmcs12.get(Field::VM_INSTRUCTION_ERROR))
}

/// SDM Vol. 3C "INVVPID": types that exist, reserved bits of the VPID, VPID 0, the linear address of the
/// one type that has one.
#[test]
fn operands_of_invvpid() {
    let width = 48;
    let mut nest = machine();
    let mut check = |kind: u64, vpid: u64, address: u64| {
        put(&mut nest.vm, OPERAND, &vpid.to_le_bytes());
        put(&mut nest.vm, OPERAND + 8, &address.to_le_bytes());
        // VMREAD of no field first: the error is then 12.
        run(&mut nest, &[0x0f, 0x78, 0xc3], 0, &[(Gpr::Rax, u64::MAX)]);
        assert_eq!(error(&mut nest), 12);
        let canonical = (address << (64 - width)) as i64 >> (64 - width) == address as i64;
        let valid =
            kind <= 3 && vpid >> 16 == 0 && (kind == 2 || vpid != 0) && (kind != 0 || canonical);
        let registers = [(Gpr::Rbx, OPERAND), (Gpr::Rax, kind)];
        let came = run(
            &mut nest,
            &[0x66, 0x0f, 0x38, 0x81, 0x03],
            ARITHMETIC,
            &registers,
        );
        let case = format!("{kind:#x} {vpid:#x} {address:#x}");
        assert_eq!(came, Came::Through(if valid { 0 } else { 0x40 }), "{case}");
        assert_eq!(error(&mut nest), if valid { 12 } else { 28 }, "{case}");
    };
    for kind in (0..8).chain([127, 1 << 31, 1 << 32, 1 << 63, u64::MAX]) {
        check(kind, 0xffff, 0);
    }
    for kind in 0..4 {
        for bit in 0..64 {
            check(kind, 1 << bit, 0);
        }
        check(kind, 0, 0);
        check(kind, 0xffff, NON_CANONICAL);
    }
}

/// VMXON needs the lock and the enable bit, CR0 and CR4 as the fixed-bit MSRs have them, and an aligned
/// region inside the physical-address width with the revision.
#[test]
fn conditions_of_vmxon() {
    let vmxon = [0xf3, 0x0f, 0xc7, 0x33];
    let region = 0x6_1000_u64;
    let set = |nest: &mut Nest, value: u64| {
        nest.set_state(CpuState {
            msrs: Some([(msr::IA32_FEATURE_CONTROL, value)].into()),
            ..CpuState::default()
        });
    };
    let start = || {
        let mut nest = machine();
        without_vmx(&mut nest);
        put(&mut nest.vm, OPERAND, &region.to_le_bytes());
        put(&mut nest.vm, region, &0x11e5_7ed0_u32.to_le_bytes());
        nest
    };
    let registers = [(Gpr::Rbx, OPERAND)];
    for (value, expected) in [
        (0, Came::Exception(GP, 0)),
        (4, Came::Exception(GP, 0)),
        (1, Came::Exception(GP, 0)),
        (5, Came::Through(0)),
    ] {
        let mut nest = start();
        set(&mut nest, value);
        assert_eq!(run(&mut nest, &vmxon, 0, &registers), expected, "{value}");
    }
    // Locked, the MSR takes no write.
    for (value, expected) in [(0, Came::Through(0)), (5, Came::Exception(GP, 0))] {
        let mut nest = start();
        set(&mut nest, value);
        let write = [(Gpr::Rcx, u64::from(msr::IA32_FEATURE_CONTROL))];
        assert_eq!(run(&mut nest, &[0x0f, 0x30], 0, &write), expected);
    }
    // CR0.NE must be set.
    let mut nest = start();
    let mut sregs = nest.state().sregs.expect("sregs");
    sregs.cr0 &= !(1 << 5);
    nest.set_state(CpuState {
        sregs: Some(sregs),
        ..CpuState::default()
    });
    assert_eq!(
        run(&mut nest, &vmxon, 0, &registers),
        Came::Exception(GP, 0)
    );
    for (pointer, revision) in [
        (region + 1, 0x11e5_7ed0_u32),
        (region | 1 << 40, 0x11e5_7ed0),
        (region, 0x00ba_9da9),
        (region, 0x91e5_7ed0),
    ] {
        let mut nest = start();
        put(&mut nest.vm, OPERAND, &pointer.to_le_bytes());
        put(&mut nest.vm, region, &revision.to_le_bytes());
        assert_eq!(
            run(&mut nest, &vmxon, 0, &registers),
            Came::Through(1),
            "{pointer:#x}"
        );
    }
    // In VMX operation already: VMfail, with a current VMCS number 15.
    let mut nest = machine();
    assert_eq!(run(&mut nest, &vmxon, 0, &registers), Came::Through(0x40));
    assert_eq!(error(&mut nest), 15);
}
