//! MSR accesses that user space filters and answers (KVM's `KVM_X86_SET_MSR_FILTER`, `KVM_CAP_X86_USER_SPACE_MSR`).

mod common;

use common::bare::{self, CODE, HANDLER};
use nvmx_core::msr::filter::{MsrExitReason, MsrFilter, MsrRange};
use nvmx_core::vcpu::{Budget, Exit, Parts, Vm};
use nvmx_core::x86::{Gpr, Regs};
use nvmx_soft::SoftVm;
use std::sync::Arc;

const RDMSR: [u8; 2] = [0x0f, 0x32];
const WRMSR: [u8; 2] = [0x0f, 0x30];
/// IA32_SYSENTER_CS, in the filter.
const DENIED: u32 = 0x174;
const UNKNOWN: u32 = 0xdead;
const EFER: u32 = 0xc000_0080;
/// Not in IA32_EFER.
const RESERVED: u64 = 1 << 60;

fn machine(code: [u8; 2], number: u32, value: u64, exits: u8) -> SoftVm {
    let mut vm = bare::furnished(1);
    bare::put(&mut vm, CODE, &code);
    vm.set_msr_filter(
        0,
        Some(Arc::new(MsrFilter {
            ranges: vec![MsrRange {
                reads: true,
                writes: true,
                first: DENIED,
                count: 1,
                bitmap: vec![0],
            }],
            exits,
            ..MsrFilter::default()
        })),
    );
    let mut state = bare::long_mode(CODE);
    if let Some(regs) = &mut state.regs {
        regs.set(Gpr::Rcx, number.into());
        regs.set(Gpr::Rax, value & 0xffff_ffff);
        regs.set(Gpr::Rdx, value >> 32);
    }
    vm.vcpu(0).set_state(&state).unwrap();
    vm
}

fn regs(vm: &mut SoftVm) -> Regs {
    vm.vcpu(0).state(Parts::Registers).unwrap().regs.unwrap()
}

#[test]
fn user_space_answers_what_it_asked_for() {
    use MsrExitReason::{Filter, Invalid, Unknown};
    let read = |number, reason| Exit::MsrRead { number, reason };
    let write = |number, value, reason| Exit::MsrWrite {
        number,
        value,
        reason,
    };
    for (code, number, value, exit) in [
        (RDMSR, DENIED, 0, read(DENIED, Filter)),
        (WRMSR, DENIED, 5, write(DENIED, 5, Filter)),
        (RDMSR, UNKNOWN, 0, read(UNKNOWN, Unknown)),
        (WRMSR, UNKNOWN, 7, write(UNKNOWN, 7, Unknown)),
        (WRMSR, EFER, RESERVED, write(EFER, RESERVED, Invalid)),
    ] {
        let run = |vm: &mut SoftVm| vm.vcpu(0).run(Budget::instructions(1)).unwrap();
        // Answered: the instruction is done, and nothing was written.
        let mut vm = machine(code, number, value, 7);
        assert_eq!(run(&mut vm), exit);
        assert_eq!(regs(&mut vm).rip, CODE);
        vm.vcpu(0).complete_read(0x1_0000_0002).unwrap();
        assert_eq!(regs(&mut vm).rip, CODE + 2);
        if code == RDMSR {
            let regs = regs(&mut vm);
            assert_eq!((regs.get(Gpr::Rdx), regs.get(Gpr::Rax)), (1, 2));
        }
        // Refused, and not asked about: #GP.
        let mut vm = machine(code, number, value, 7);
        assert_eq!(run(&mut vm), exit);
        vm.refuse_msr().unwrap();
        assert!(
            (HANDLER..HANDLER + 0x1000).contains(&regs(&mut vm).rip),
            "{exit:?}"
        );
        assert!(vm.refuse_msr().is_err());
        let mut vm = machine(code, number, value, 0);
        assert_eq!(run(&mut vm), Exit::Budget);
        assert!(
            (HANDLER..HANDLER + 0x1000).contains(&regs(&mut vm).rip),
            "{exit:?}"
        );
    }
}
