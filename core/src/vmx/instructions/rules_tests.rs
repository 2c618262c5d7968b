//! Each row of the table against the code: alone, and before each row that follows it.

use super::rules::{self, GROUPS, NEVER, Outcome, Rule};
use super::*;
use crate::cpu::{Interruptibility, Model};
use crate::memory::VecMemory;
use crate::personality::Personality;
use crate::vmx::Field;
use crate::vmx::controls::Secondary;
use crate::vmx::entry::test_support as support;
use crate::vmx::vmcs12::LaunchState;
use crate::x86::control::{cr0, cr4, efer, rflags};
use crate::x86::{AccessRights, Exception, Gpr};
use std::collections::HashSet;
use std::sync::Arc;

/// One instruction about to be executed.
struct Bench {
    cpu: Cpu,
    memory: VecMemory,
    /// The pointer in the memory operand, or the field encoding or type in the register operand.
    operand: u64,
    descriptor: [u64; 2],
}

impl Bench {
    /// Where `instruction` succeeds.
    fn of(instruction: Instruction) -> Self {
        let mut bench = Self {
            cpu: support::cpu_with_vmcs(),
            memory: support::memory(),
            operand: support::OTHER_VMCS.0,
            descriptor: [5, 0x1000],
        };
        bench.model(|model| model.personality = Personality::Sdm);
        let vmcs12 = &mut bench.cpu.vmx.vmcs12;
        match instruction {
            Instruction::Vmxon => {
                bench.cpu.vmx = crate::vmx::VmxState::default();
                bench.operand = support::VMXON_REGION.0;
            }
            Instruction::Vmread | Instruction::Vmwrite => {
                bench.operand = Field::EXIT_QUALIFICATION.0.into();
            }
            Instruction::Vmresume => vmcs12.set_launch_state(LaunchState::Launched),
            Instruction::Invept => {
                bench.operand = 1;
                bench.descriptor = [support::EPT_ROOT | 3 << 3 | 6, 0];
            }
            Instruction::Invvpid => bench.operand = 0,
            Instruction::Vmfunc => {
                let enabled = vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL)
                    | u64::from(Secondary::ENABLE_VM_FUNCTIONS.bits());
                vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, enabled);
                vmcs12.set(Field::VM_FUNCTION_CONTROL, 1);
                vmcs12.set(Field::EPTP_LIST_ADDRESS, support::FREE_PAGE.0);
                let eptp = support::EPT_ROOT | 3 << 3 | 6;
                let first = support::FREE_PAGE;
                bench.memory.write_u64(first, eptp).unwrap();
                bench.cpu.vmx.guest_mode = true;
            }
            Instruction::Getsec => bench.cpu.sregs.cr4 |= cr4::SMXE,
            _ => {}
        }
        bench
    }

    fn model(&mut self, change: impl FnOnce(&mut Model)) {
        change(Arc::make_mut(&mut self.cpu.model));
    }

    fn run(mut self, instruction: Instruction) -> VmxResult {
        let operands = Operands {
            length: 3,
            register: self.operand,
            ..Operands::default()
        };
        let memory = self.memory;
        let cpu = &mut self.cpu;
        if let Err(result) = check_execution(cpu, &memory, instruction, &operands) {
            return result;
        }
        match instruction {
            Instruction::Vmxon => vmxon(cpu, &memory, self.operand),
            Instruction::Vmxoff => vmxoff(cpu),
            Instruction::Vmclear => vmclear(cpu, &memory, self.operand),
            Instruction::Vmptrld => vmptrld(cpu, &memory, self.operand),
            Instruction::Vmptrst => {
                let _ = vmptrst(cpu);
                VmxResult::Succeed
            }
            Instruction::Vmread => match vmread(cpu, self.operand) {
                Ok(_) => VmxResult::Succeed,
                Err(result) => result,
            },
            Instruction::Vmwrite => vmwrite(cpu, self.operand, 0),
            Instruction::Vmlaunch => vmlaunch(cpu, &memory),
            Instruction::Vmresume => vmresume(cpu, &memory),
            Instruction::Vmcall => vmcall(cpu),
            Instruction::Invept => invept(cpu, self.operand, self.descriptor).0,
            Instruction::Invvpid => invvpid(cpu, self.operand, self.descriptor).0,
            Instruction::Vmfunc => vmfunc(cpu, &memory, &operands).0,
            Instruction::Getsec => VmxResult::Done,
        }
    }
}

type Break = fn(&mut Bench);

/// How to break the condition that ends with this name, whatever the instruction.
const COMMON: &[(&str, Break)] = &[
    ("operation", |b| b.cpu.vmx.vmxon = None),
    ("protected_mode", |b| b.cpu.sregs.cr0 &= !cr0::PE),
    ("virtual_8086", |b| {
        b.cpu.sregs.efer &= !efer::LMA;
        b.cpu.regs.rflags |= rflags::VM;
    }),
    ("compatibility", |b| {
        b.cpu.sregs.cs.ar.remove(AccessRights::LONG);
    }),
    ("non_root", |b| {
        b.cpu.vmx.guest_mode = true;
        b.cpu.vmx.vmxon = Some(support::VMXON_REGION);
    }),
    ("privilege", |b| {
        let ring_3 = AccessRights::DPL_LOW | AccessRights::DPL_HIGH;
        b.cpu.sregs.ss.ar.insert(ring_3);
    }),
    ("current", |b| b.cpu.vmx.current = None),
    ("address", |b| b.operand |= 8),
    ("vmxon_pointer", |b| b.operand = support::VMXON_REGION.0),
    ("revision", |b| b.operand = support::FREE_PAGE.0),
    ("field", |b| b.operand = 0x8000),
    ("mov_ss", |b| {
        b.cpu.interruptibility.insert(Interruptibility::MOV_SS);
    }),
    ("controls", |b| {
        b.cpu.vmx.vmcs12.set(Field::PIN_BASED_VM_EXEC_CONTROL, 0);
    }),
    ("host_state", |b| {
        b.cpu.vmx.vmcs12.set(Field::HOST_TR_SELECTOR, 0)
    }),
    ("guest_state", |b| {
        b.cpu.vmx.vmcs12.set(Field::GUEST_RFLAGS, 0)
    }),
    ("exists", |b| {
        b.model(|m| m.vmx_msrs[0xc] &= !(1 << 20 | 1 << 32))
    }),
    ("type", |b| b.operand = 9),
];

/// How to break a condition of one instruction.
const OWN: &[(&str, Break)] = &[
    ("vmxon.vmxe", |b| b.cpu.sregs.cr4 &= !cr4::VMXE),
    ("vmxon.in_root", |b| {
        b.cpu.vmx.vmxon = Some(support::VMXON_REGION);
        b.cpu.vmx.current = Some(support::VMCS);
    }),
    ("vmxon.cr0", |b| b.cpu.sregs.cr0 &= !cr0::NE),
    ("vmxon.cr4", |b| b.cpu.sregs.cr4 |= 1 << 40),
    ("vmxon.feature_control", |b| b.cpu.msrs.feature_control = 1),
    ("vmptrld.shadow", |b| {
        b.operand = support::SHADOW_VMCS.0;
        b.model(|m| m.vmx_msrs[0xb] &= !(u64::from(Secondary::VMCS_SHADOWING.bits()) << 32));
    }),
    ("vmwrite.read_only", |b| {
        b.model(|m| m.vmx_msrs[5] &= !(1 << 29))
    }),
    ("vmlaunch.shadow", shadow),
    ("vmlaunch.not_clear", |b| {
        b.cpu.vmx.vmcs12.set_launch_state(LaunchState::Launched)
    }),
    ("vmresume.shadow", shadow),
    ("vmresume.not_launched", |b| {
        b.cpu.vmx.vmcs12.set_launch_state(LaunchState::Clear)
    }),
    ("vmcall.in_root", |_| ()),
    ("invept.eptp", |b| b.descriptor[0] |= 1),
    ("invvpid.reserved", |b| b.descriptor[0] |= 1 << 16),
    ("invvpid.vpid", |b| b.descriptor[0] &= !0xffff),
    ("invvpid.address", |b| b.descriptor[1] = 1 << 50),
    ("vmfunc.root", |b| b.cpu.vmx.guest_mode = false),
    ("vmfunc.enabled", |b| {
        let vmcs12 = &mut b.cpu.vmx.vmcs12;
        let disabled = vmcs12.get(Field::SECONDARY_VM_EXEC_CONTROL)
            & !u64::from(Secondary::ENABLE_VM_FUNCTIONS.bits());
        vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, disabled);
    }),
    ("vmfunc.number", |b| b.cpu.regs.set(Gpr::Rax, 64)),
    ("vmfunc.function", |b| b.cpu.regs.set(Gpr::Rax, 1)),
    ("vmfunc.index", |b| b.cpu.regs.set(Gpr::Rcx, 512)),
    ("vmfunc.eptp", |b| {
        b.memory.write_u64(support::FREE_PAGE, 1).unwrap()
    }),
    ("getsec.smxe", |b| b.cpu.sregs.cr4 &= !cr4::SMXE),
];

fn shadow(bench: &mut Bench) {
    let word = support::REVISION | support::SHADOW_BIT;
    bench.cpu.vmx.vmcs12.bytes_mut()[..4].copy_from_slice(&word.to_le_bytes());
}

/// The case that breaks a rule.
fn case(rule: &Rule) -> Break {
    let suffix = rule.id.split_once('.').map_or("", |(_, suffix)| suffix);
    OWN.iter()
        .find(|(id, _)| *id == rule.id)
        .or_else(|| COMMON.iter().find(|(id, _)| *id == suffix))
        .unwrap_or_else(|| panic!("no case breaks {}", rule.id))
        .1
}

fn outcome(result: &VmxResult) -> Option<Outcome> {
    Some(match result {
        VmxResult::Fault(fault) if *fault == Exception::UNDEFINED => Outcome::Undefined,
        VmxResult::Fault(fault) if *fault == Exception::GENERAL_PROTECTION => {
            Outcome::GeneralProtection
        }
        VmxResult::Exit(_) | VmxResult::EntryFailed { .. } => Outcome::Exit,
        VmxResult::FailInvalid => Outcome::FailInvalid,
        VmxResult::FailValid(error) => Outcome::Fail(*error),
        _ => return None,
    })
}

#[test]
fn each_instruction_succeeds_where_no_rule_is_broken() {
    for group in GROUPS {
        let instruction = group[0].instruction;
        let result = Bench::of(instruction).run(instruction);
        // Without dual-monitor treatment VMCALL never succeeds.
        let expected = (instruction == Instruction::Vmcall)
            .then_some(Outcome::Fail(InstructionError::VMCALL_IN_ROOT));
        assert_eq!(outcome(&result), expected, "{instruction:?}: {result:?}");
    }
}

#[test]
fn each_rule_breaks_alone() {
    for rule in rules::all() {
        let mut bench = Bench::of(rule.instruction);
        case(rule)(&mut bench);
        let result = bench.run(rule.instruction);
        assert_eq!(outcome(&result), Some(rule.outcome), "{}", rule.id);
    }
}

/// With two conditions broken the first row of the table decides.
#[test]
fn rows_are_in_the_order_of_the_pseudo_code() {
    for group in GROUPS {
        for (at, first) in group.iter().enumerate() {
            for second in &group[at + 1..] {
                // Non-root operation is VMX operation.
                if first.id.ends_with(".operation") && second.id.ends_with(".non_root") {
                    continue;
                }
                let mut bench = Bench::of(first.instruction);
                case(second)(&mut bench);
                case(first)(&mut bench);
                let without_current = bench.cpu.vmx.current.is_none();
                let result = bench.run(first.instruction);
                let expected = match first.outcome {
                    Outcome::Fail(_) if without_current => Outcome::FailInvalid,
                    outcome => outcome,
                };
                let pair = (first.id, second.id);
                assert_eq!(outcome(&result), Some(expected), "{pair:?}");
            }
        }
    }
}

#[test]
fn cases_and_errors_are_all_of_the_tables() {
    let mut ids = HashSet::new();
    for rule in rules::all() {
        assert!(ids.insert(rule.id), "{} twice", rule.id);
        assert!(!rule.text.is_empty() && !rule.section.is_empty());
    }
    for (id, _) in OWN {
        assert!(ids.contains(id), "{id} is no rule");
    }
    for error in InstructionError::ALL {
        let has_row = rules::all().any(|rule| rule.outcome == Outcome::Fail(*error));
        let never = NEVER.iter().any(|(e, why)| e == error && !why.is_empty());
        assert!(has_row != never, "{error:?}: rows {has_row}, never {never}");
    }
}

#[test]
fn a_vmxon_region_has_no_shadow_bit() {
    let mut bench = Bench::of(Instruction::Vmxon);
    bench.operand = support::SHADOW_VMCS.0;
    assert_eq!(bench.run(Instruction::Vmxon), VmxResult::FailInvalid);
}

/// SDM appendix A.1: IA32_VMX_BASIC[48] limits the addresses of VMX structures to 32 bits.
#[test]
fn narrow_addresses_where_the_processor_says_so() {
    for (narrow, expected) in [(false, None), (true, Some(Outcome::FailInvalid))] {
        let mut bench = Bench::of(Instruction::Vmclear);
        bench.operand = 1 << 32;
        bench.cpu.vmx.current = None;
        bench.model(|model| model.vmx_msrs[0] |= u64::from(narrow) << 48);
        let result = bench.run(Instruction::Vmclear);
        assert_eq!(outcome(&result), expected, "{narrow}");
    }
}
