//! RFLAGS.TF of L1 and of L2, over native and interpreted instructions, however the run is cut
//! (SDM Vol. 3B "Single-Step Exception Condition"), and what a step of user space is.

mod common;

use common::{capture, restore};
use iced_x86::code_asm::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::specimen;
use nvmx_core::vcpu::{Budget, Exit, Vcpu, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{AccessRights, CpuState, DescriptorTable, Regs, Segment, Sregs, msr};
use nvmx_soft::SoftVm;

const PAGING: u64 = 0x4000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
const HANDLERS: u64 = 0xa000;
const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
/// How many traps, then the address that each returns to.
const LOG: u64 = 0x3_0000;
const SYSCALL_TARGET: u64 = 0x1_1000;
const MEMORY: u64 = 2 << 20;

/// A part of the program: its bytes, and whether a trap follows.
fn program() -> Result<(Vec<u8>, Vec<u64>), IcedError> {
    let mut bytes = Vec::new();
    let mut traps = Vec::new();
    let mut part =
        |trap: bool, build: &mut dyn FnMut(&mut CodeAssembler) -> Result<(), IcedError>| {
            let mut a = CodeAssembler::new(64)?;
            build(&mut a)?;
            bytes.extend(a.assemble(CODE + bytes.len() as u64)?);
            if trap {
                traps.push(CODE + bytes.len() as u64);
            }
            Ok::<(), IcedError>(())
        };
    part(false, &mut |a| a.pushfq())?;
    part(false, &mut |a| a.or(dword_ptr(rsp), 0x100))?;
    // TF is set by this one, which is itself not trapped.
    part(false, &mut |a| a.popfq())?;
    part(true, &mut |a| a.nop())?;
    // Interpreted.
    part(true, &mut |a| a.rdtsc())?;
    part(true, &mut |a| a.nop())?;
    part(true, &mut |a| a.mov(rax, cr0))?;
    part(true, &mut |a| a.mov(cr3, rbx))?;
    // The trap behind MOV SS waits for the next instruction.
    part(false, &mut |a| a.mov(ss, ecx))?;
    part(true, &mut |a| a.nop())?;
    part(false, &mut |a| a.mov(ss, ecx))?;
    part(true, &mut |a| a.rdtsc())?;
    // Delivery clears TF, and the IRET that sets it again is not trapped.
    part(false, &mut |a| a.int(0x40))?;
    part(true, &mut |a| a.nop())?;
    // Leaves to user space before its trap.
    part(true, &mut |a| a.out(0x80, al))?;
    part(true, &mut |a| a.inc(rdx))?;
    part(true, &mut |a| a.pushfq())?;
    part(true, &mut |a| a.and(dword_ptr(rsp), !0x100))?;
    part(true, &mut |a| a.popfq())?;
    part(false, &mut |a| a.hlt())?;
    Ok((bytes, traps))
}

fn handlers() -> Result<Vec<u8>, IcedError> {
    let mut a = CodeAssembler::new(64)?;
    // #DB: notes where it returns to.
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(rbx, qword_ptr(rsp + 16))?;
    a.mov(rax, qword_ptr(LOG as i32))?;
    a.mov(qword_ptr(LOG as i32 + 8 + rax * 8), rbx)?;
    a.inc(qword_ptr(LOG as i32))?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.iretq()?;
    a.assemble(HANDLERS)
}

fn put(vm: &mut SoftVm, address: u64, bytes: &[u8]) {
    vm.write_memory(L1Phys(address), bytes).expect("RAM");
}

fn machine(in_l2: bool) -> (SoftVm, Vec<u64>) {
    let mut vm = SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        ..VmConfig::default()
    })
    .expect("a machine");
    let (code, traps) = program().expect("assembles");
    put(&mut vm, CODE, &code);
    put(&mut vm, HANDLERS, &handlers().expect("assembles"));
    put(&mut vm, HANDLERS + 0x100, &[0x90, 0x48, 0xcf]);
    for (address, value) in [
        (PAGING, (PAGING + 0x1000) | 3),
        (PAGING + 0x1000, (PAGING + 0x2000) | 3),
        (PAGING + 0x2000, 0x83),
        (GDT + 8, 0x00af_9b00_0000_ffff),
        (GDT + 16, 0x00cf_9300_0000_ffff),
        (IDT + 16, HANDLERS | 0x08 << 16 | 0x8e00 << 32),
        (
            IDT + 16 * 0x40,
            (HANDLERS + 0x100) | 0x08 << 16 | 0x8e00 << 32,
        ),
    ] {
        put(&mut vm, address, &value.to_le_bytes());
    }
    let segment = |selector, ar| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    let data = segment(0x10, 0xc093);
    let sregs = Sregs {
        cs: segment(8, 0xa09b),
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: Segment {
            limit: 0x67,
            ..segment(0x18, 0x8b)
        },
        ldtr: segment(0, 0x1_0082),
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0x7f,
        },
        idtr: DescriptorTable {
            base: IDT,
            limit: 0xfff,
        },
        cr0: cr0::PE | cr0::ET | cr0::NE | cr0::PG,
        cr3: PAGING,
        cr4: cr4::PAE | cr4::VMXE,
        efer: efer::LME | efer::LMA | efer::SCE,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    };
    let mut regs = Regs {
        rip: CODE,
        rflags: 2,
        ..Regs::default()
    };
    regs.gpr[4] = STACK;
    // Operands of the program: CR3 in RBX, a data selector in RCX.
    regs.gpr[3] = PAGING;
    regs.gpr[1] = 0x10;
    let msrs = [(msr::IA32_LSTAR, SYSCALL_TARGET), (msr::IA32_STAR, 8 << 32)]
        .into_iter()
        .collect();
    vm.set_state(&CpuState {
        sregs: Some(sregs),
        regs: Some(regs),
        msrs: Some(msrs),
        ..CpuState::default()
    })
    .expect("taken");
    if in_l2 {
        let msrs = (msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2)
            .zip(KVM_6_1_ICELAKE)
            .collect();
        vm.set_state(&CpuState {
            msrs: Some(msrs),
            ..CpuState::default()
        })
        .expect("taken");
        let mut nested = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE));
        let vmcs12 = nested.vmcs12_mut().expect("a vmcs12");
        // The true controls: MOV to and from CR3 does not exit.
        let primary = vmcs12.get(Field::CPU_BASED_VM_EXEC_CONTROL) & !(3 << 15);
        for (field, value) in [
            (Field::CPU_BASED_VM_EXEC_CONTROL, primary),
            (Field::GUEST_CR3, PAGING),
            (Field::GUEST_RIP, CODE),
            (Field::GUEST_RSP, STACK),
            (Field::GUEST_GDTR_BASE, GDT),
            (Field::GUEST_GDTR_LIMIT, 0x7f),
            (Field::GUEST_IDTR_BASE, IDT),
            (Field::GUEST_IDTR_LIMIT, 0xfff),
        ] {
            vmcs12.set(field, value);
        }
        vm.set_nested_state(&nested).expect("valid");
    }
    (vm, traps)
}

fn log(vm: &mut SoftVm) -> Vec<u64> {
    let mut word = |at: u64| {
        let mut bytes = [0; 8];
        vm.read_memory(L1Phys(LOG + 8 * at), &mut bytes)
            .expect("RAM");
        u64::from_le_bytes(bytes)
    };
    let count = word(0);
    (1..=count.min(100)).map(word).collect()
}

/// Runs to HLT in pieces of `stride` instructions; between them the machine may move house.
fn run(in_l2: bool, stride: u64, moves: bool) -> (Vec<u64>, Vec<u64>, u32) {
    let (mut vm, traps) = machine(in_l2);
    let mut writes = 0;
    for _ in 0..10_000 {
        match vm.run(Budget::instructions(stride)).expect("runs") {
            Exit::Budget => {}
            Exit::IoOut { port: 0x80, .. } => writes += 1,
            Exit::Hlt => return (log(&mut vm), traps, writes),
            other => panic!(
                "L2 {in_l2}, stride {stride}: {other:?}, log {:x?}",
                log(&mut vm)
            ),
        }
        if moves {
            let taken = capture(&mut vm);
            vm = restore(&taken, MEMORY);
        }
    }
    panic!("L2 {in_l2}, stride {stride}: no end");
}

#[test]
fn a_trap_follows_each_instruction_that_began_with_tf() {
    for in_l2 in [false, true] {
        for (stride, moves) in [
            (u64::MAX, false),
            (1, false),
            (2, false),
            (3, false),
            (7, false),
            (1, true),
            (2, true),
        ] {
            let (log, traps, writes) = run(in_l2, stride, moves);
            assert_eq!(
                log, traps,
                "L2 {in_l2}, {stride} instructions a time, moves {moves}"
            );
            assert_eq!(writes, 1);
        }
    }
}

/// SYSCALL, INT n and what else is interpreted is one instruction for whoever counts.
#[test]
fn one_step_is_one_instruction() {
    for (name, code, next) in [
        ("NOP", &[0x90_u8][..], CODE + 1),
        ("RDTSC", &[0x0f, 0x31], CODE + 2),
        ("INT n", &[0xcd, 0x40], HANDLERS + 0x100),
        ("SYSCALL", &[0x0f, 0x05], SYSCALL_TARGET),
        ("MOV CR3", &[0x0f, 0x22, 0xdb], CODE + 3),
        ("CPUID", &[0x0f, 0xa2], CODE + 2),
    ] {
        let (mut vm, _) = machine(false);
        put(&mut vm, CODE, code);
        put(&mut vm, SYSCALL_TARGET, &[0x90, 0x90]);
        assert_eq!(vm.step().expect("steps"), Exit::Stepped, "{name}");
        let state = vm.state(nvmx_core::vcpu::Parts::Registers).expect("state");
        assert_eq!(state.regs.expect("regs").rip, next, "{name}");
    }
}

/// SYSCALL with TF: the trap comes behind it unless IA32_FMASK clears TF.
#[test]
fn syscall_traps_unless_masked() {
    for (mask, expected) in [(0, vec![SYSCALL_TARGET]), (0x100, vec![])] {
        let (mut vm, _) = machine(false);
        put(&mut vm, CODE, &[0x0f, 0x05]);
        // HLT.
        put(&mut vm, SYSCALL_TARGET, &[0xf4]);
        let mut state = vm.state(nvmx_core::vcpu::Parts::Registers).expect("state");
        if let Some(regs) = &mut state.regs {
            regs.rflags |= 0x100;
        }
        state.msrs = Some([(msr::IA32_FMASK, mask)].into_iter().collect());
        vm.set_state(&state).expect("taken");
        let exit = vm.run(Budget::instructions(20)).expect("runs");
        assert!(matches!(exit, Exit::Hlt | Exit::Budget), "{exit:?}");
        let log = log(&mut vm);
        assert_eq!(log.first(), expected.first(), "FMASK {mask:#x}: {log:x?}");
    }
}
