//! MONITOR and MWAIT: what L1 is told of them, and what ends the wait (SDM Vol. 2B "MONITOR", "MWAIT"; Vol.
//! 3C "Exit Qualification for MWAIT").

mod common;

use common::bare::{self, CODE};
use common::nest::{self, Nest, VMCALL};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_core::vcpu::{Budget, Exit, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::Primary;
use nvmx_core::x86::{CpuState, Gpr};
use nvmx_soft::SoftVm;

const MONITOR: [u8; 3] = [0x0f, 0x01, 0xc8];
const MWAIT: [u8; 3] = [0x0f, 0x01, 0xc9];
const MWAIT_EXIT: u32 = 36;
const MONITOR_EXIT: u32 = 39;
const EXCEPTION: u32 = 0;
/// A line that somebody writes to.
const LINE: u64 = 0x3000;
const SECOND: u64 = 0x1_8000;

fn with(nest: &mut Nest, address: u64, extensions: u64) {
    let mut regs = nest.regs();
    regs.set(Gpr::Rax, address);
    regs.set(Gpr::Rcx, extensions);
    regs.set(Gpr::Rdx, 0);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
}

#[test]
fn the_exit_says_whether_the_monitor_is_armed() {
    let code = [MWAIT, MONITOR, MWAIT, VMCALL].concat();
    let mut nest = Nest::of_profile(Some("max"), &code);
    with(&mut nest, nest::PAGE, 0);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MWAIT_EXITING.bits(),
    );
    nest.expect(MWAIT_EXIT, nest::L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0);
    nest.skip();
    nest.expect(MWAIT_EXIT, nest::L2 + 6);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 1);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::MONITOR_EXITING.bits(),
    );
    nest.set(Field::GUEST_RIP, nest::L2 + 3);
    nest.expect(MONITOR_EXIT, nest::L2 + 3);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0);
}

#[test]
fn operands_fault() {
    // Code, RAX, RCX, vector: extensions of MONITOR and MWAIT, a page that is not there.
    let rows: [(&[u8], u64, u64, Option<u64>); 6] = [
        (&MONITOR, nest::PAGE, 0, None),
        (&MONITOR, nest::PAGE, 1, Some(13)),
        (&MONITOR, 1 << 60, 0, Some(13)),
        (&MONITOR, 0x40_0000, 0, Some(14)),
        (&MWAIT, 0, 1, None),
        (&MWAIT, 0, 2, Some(13)),
    ];
    for (code, address, extensions, vector) in rows {
        let mut nest = Nest::of_profile(Some("max"), &[code, &VMCALL].concat());
        with(&mut nest, address, extensions);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 13 | 1 << 14);
        match vector {
            None => nest.expect_vmcall(nest::L2 + 3),
            Some(vector) => {
                nest.expect(EXCEPTION, nest::L2);
                let found = nest.get(Field::VM_EXIT_INTR_INFO) & 0xff;
                assert_eq!(found, vector, "{code:x?} {address:#x} {extensions:#x}");
            }
        }
    }
}

fn machine(vcpus: usize) -> SoftVm {
    let mut vm = bare::furnished(vcpus);
    let profile = nvmx_core::profiles::find("max").expect("a profile");
    for index in 0..vcpus {
        let vcpu = vm.vcpu(index);
        vcpu.set_state(&profile.for_soft().state()).expect("taken");
    }
    vm
}

fn start(vm: &mut SoftVm, index: usize, at: u64, a: CodeAssembler) {
    bare::place(vm, at, a);
    vm.vcpu(index)
        .set_state(&bare::long_mode(at))
        .expect("taken");
}

/// Watches the line, and waits.
fn wait(a: &mut CodeAssembler, extensions: u32) -> Result<(), IcedError> {
    a.mov(eax, LINE as u32)?;
    a.xor(ecx, ecx)?;
    a.xor(edx, edx)?;
    a.monitor()?;
    a.xor(eax, eax)?;
    a.mov(ecx, extensions)?;
    a.mwait()
}

fn run(vm: &mut SoftVm) -> Exit {
    let budget = Budget {
        time: Some(common::PATIENCE),
        ..Budget::UNLIMITED
    };
    Vm::run(vm, budget).expect("runs").1
}

#[test]
fn another_processors_store_ends_the_wait() -> Result<(), IcedError> {
    for stored_at in [LINE + 8, LINE + 64] {
        let mut vm = machine(2);
        let mut a = CodeAssembler::new(64)?;
        wait(&mut a, 0)?;
        a.out(0x80, al)?;
        start(&mut vm, 0, CODE, a);
        let mut a = CodeAssembler::new(64)?;
        let mut again = a.create_label();
        a.mov(ecx, 100_000)?;
        a.set_label(&mut again)?;
        a.dec(ecx)?;
        a.jnz(again)?;
        a.mov(dword_ptr(stored_at), 5)?;
        a.hlt()?;
        start(&mut vm, 1, SECOND, a);
        let exit = run(&mut vm);
        let woken = matches!(exit, Exit::IoOut { port: 0x80, .. });
        assert_eq!(woken, stored_at < LINE + 64, "{stored_at:#x}: {exit:?}");
        assert!(woken || exit == Exit::Hlt, "{exit:?}");
    }
    Ok(())
}

/// With ECX bit 0 an interrupt that RFLAGS.IF holds off ends the wait; without it sleeps on.
#[test]
fn a_masked_interrupt_ends_the_wait_if_asked_to() -> Result<(), IcedError> {
    for extensions in [1, 0] {
        let mut vm = machine(1);
        let mut a = CodeAssembler::new(64)?;
        // x2APIC mode, a timer of 5000 nanoseconds.
        for (number, value) in [
            (0x1b, 0xfee0_0d00_u32),
            (0x80f, 0x1ff),
            (0x83e, 0xb),
            (0x832, 0x40),
            (0x838, 5000),
        ] {
            a.mov(ecx, number)?;
            a.xor(edx, edx)?;
            a.mov(eax, value)?;
            a.wrmsr()?;
        }
        wait(&mut a, extensions)?;
        a.out(0x80, al)?;
        start(&mut vm, 0, CODE, a);
        let exit = run(&mut vm);
        let woken = matches!(exit, Exit::IoOut { port: 0x80, .. });
        assert_eq!(woken, extensions == 1, "{exit:?}");
    }
    Ok(())
}
