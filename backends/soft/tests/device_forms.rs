//! Every ordinary integer form on a device's memory: what user space sees, and what the processor is
//! left with.

mod common;

use common::bare::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::x86::control::ARITHMETIC_FLAGS;
use nvmx_core::x86::control::rflags::{AF, CF, OF, PF, SF, ZF};
use nvmx_core::x86::{CpuState, Gpr, Regs};

const LINEAR: u64 = 1 << 30;
const DEVICE: u64 = 0x4000_0000;
const READ: u64 = 0x8000_0000_0000_00f0;
const RAX: u64 = 0x1122_3344_5566_7788;
const RAM: u64 = 0x9000;

/// Name, code, whether it reads, what it writes (value, size), RAX and arithmetic flags behind it.
type Case = (
    &'static str,
    &'static [u8],
    bool,
    Option<(u64, u8)>,
    u64,
    u64,
);

const CASES: &[Case] = &[
    (
        "ADD m32, eax",
        &[0x01, 0x03],
        true,
        Some((0x5566_7878, 4)),
        RAX,
        PF,
    ),
    (
        "ADD rax, m64",
        &[0x48, 0x03, 0x03],
        true,
        None,
        0x9122_3344_5566_7878,
        SF | PF,
    ),
    (
        "SUB m8, 0xf0",
        &[0x80, 0x2b, 0xf0],
        true,
        Some((0, 1)),
        RAX,
        ZF | PF,
    ),
    (
        "INC m16",
        &[0x66, 0xff, 0x03],
        true,
        Some((0xf1, 2)),
        RAX,
        0,
    ),
    (
        "NEG m64",
        &[0x48, 0xf7, 0x1b],
        true,
        Some((0x7fff_ffff_ffff_ff10, 8)),
        RAX,
        CF,
    ),
    ("NOT m8", &[0xf6, 0x13], true, Some((0x0f, 1)), RAX, 0),
    ("OR m8, al", &[0x08, 0x03], true, Some((0xf8, 1)), RAX, SF),
    ("AND eax, m32", &[0x23, 0x03], true, None, 0x80, 0),
    (
        "LOCK XADD m32, eax",
        &[0xf0, 0x0f, 0xc1, 0x03],
        true,
        Some((0x5566_7878, 4)),
        0xf0,
        PF,
    ),
    (
        "XCHG m8, al",
        &[0x86, 0x03],
        true,
        Some((0x88, 1)),
        0x1122_3344_5566_77f0,
        0,
    ),
    // Unequal: what was read goes back and to the accumulator.
    (
        "CMPXCHG m8, dl",
        &[0x0f, 0xb0, 0x13],
        true,
        Some((0xf0, 1)),
        0x1122_3344_5566_77f0,
        CF | SF,
    ),
    ("CMP m32, eax", &[0x39, 0x03], true, None, RAX, CF | SF | AF),
    (
        "TEST m8, 0x0f",
        &[0xf6, 0x03, 0x0f],
        true,
        None,
        RAX,
        ZF | PF,
    ),
    (
        "BTS m32, 0",
        &[0x0f, 0xba, 0x2b, 0x00],
        true,
        Some((0xf1, 4)),
        RAX,
        0,
    ),
    (
        "BT m64, 63",
        &[0x48, 0x0f, 0xba, 0x23, 0x3f],
        true,
        None,
        RAX,
        CF,
    ),
    (
        "SHL m8, 1",
        &[0xd0, 0x23],
        true,
        Some((0xe0, 1)),
        RAX,
        CF | SF,
    ),
    (
        "CMOVZ eax, m32, not taken",
        &[0x0f, 0x44, 0x03],
        true,
        None,
        0x5566_7788,
        0,
    ),
    (
        "CMOVNZ rax, m64",
        &[0x48, 0x0f, 0x45, 0x03],
        true,
        None,
        READ,
        0,
    ),
    (
        "MOVSX eax, m8",
        &[0x0f, 0xbe, 0x03],
        true,
        None,
        0xffff_fff0,
        0,
    ),
    (
        "MOVNTI m32, eax",
        &[0x0f, 0xc3, 0x03],
        false,
        Some((0x5566_7788, 4)),
        RAX,
        0,
    ),
    ("SETNZ m8", &[0x0f, 0x95, 0x03], false, Some((1, 1)), RAX, 0),
    ("STOSD", &[0xab], false, Some((0x5566_7788, 4)), RAX, 0),
    ("LODSB", &[0xac], true, None, 0x1122_3344_5566_77f0, 0),
    (
        "MOVSB, device to device",
        &[0xa4],
        true,
        Some((0xf0, 1)),
        RAX,
        0,
    ),
];

fn start(vm: &mut nvmx_soft::SoftVm, code: &[u8], rsi: u64, rdi: u64) {
    furnish(vm, true);
    put(vm, PAGING + 0x1008, &((PAGING + 0x6000) | 7).to_le_bytes());
    put(vm, PAGING + 0x6000, &(DEVICE | 0x87).to_le_bytes());
    put(vm, CODE, code);
    let mut state: CpuState = state(Mode::Long0, &mut Random(0));
    let mut regs = Regs {
        rip: CODE,
        rflags: 2,
        ..Regs::default()
    };
    for (gpr, value) in [
        (Gpr::Rsp, STACK),
        (Gpr::Rax, RAX),
        (Gpr::Rbx, LINEAR),
        (Gpr::Rcx, 2),
        (Gpr::Rdx, 0x55),
        (Gpr::Rsi, rsi),
        (Gpr::Rdi, rdi),
    ] {
        regs.set(gpr, value);
    }
    state.regs = Some(regs);
    vm.set_state(&state).expect("state");
}

fn regs(vm: &mut nvmx_soft::SoftVm) -> Regs {
    vm.state(Parts::Registers)
        .expect("state")
        .regs
        .expect("regs")
}

fn run(vm: &mut nvmx_soft::SoftVm, instructions: u64) -> Exit {
    Vcpu::run(vm, Budget::instructions(instructions)).expect("runs")
}

#[test]
fn each_form_reads_computes_and_writes() {
    for (name, code, reads, writes, rax, flags) in CASES {
        let mut vm = machine();
        start(&mut vm, code, LINEAR, LINEAR);
        if *reads {
            let exit = run(&mut vm, 1);
            let Exit::MmioRead { address, .. } = exit else {
                panic!("{name}: {exit:?}");
            };
            assert_eq!(address.0, DEVICE, "{name}");
            vm.complete_read(READ).expect(name);
        }
        if let Some((value, size)) = writes {
            let expected = Exit::MmioWrite {
                address: L1Phys(DEVICE),
                size: *size,
                value: *value,
            };
            assert_eq!(run(&mut vm, 1), expected, "{name}");
        }
        let regs = regs(&mut vm);
        assert_eq!(regs.get(Gpr::Rax), *rax, "{name}");
        assert_eq!(regs.rflags & ARITHMETIC_FLAGS & !OF, *flags, "{name}");
        assert_eq!(regs.rip, CODE + code.len() as u64, "{name}");
    }
}

/// Each iteration is an access of its own, index and count move with it.
#[test]
fn repeated_strings_go_element_by_element() {
    // rep movsw from RAM to the device.
    let mut vm = machine();
    start(&mut vm, &[0xf3, 0x66, 0xa5], RAM, LINEAR);
    put(&mut vm, RAM, &[1, 2, 3, 4]);
    for (address, value) in [(DEVICE, 0x0201), (DEVICE + 2, 0x0403)] {
        let expected = Exit::MmioWrite {
            address: L1Phys(address),
            size: 2,
            value,
        };
        assert_eq!(run(&mut vm, 2), expected);
    }
    let after = regs(&mut vm);
    assert_eq!(
        (
            after.get(Gpr::Rsi),
            after.get(Gpr::Rdi),
            after.get(Gpr::Rcx),
            after.rip
        ),
        (RAM + 4, LINEAR + 4, 0, CODE + 3)
    );
    // rep movsb from the device to RAM.
    let mut vm = machine();
    start(&mut vm, &[0xf3, 0xa4], LINEAR, RAM);
    for value in [0x11, 0x22] {
        assert!(matches!(run(&mut vm, 2), Exit::MmioRead { size: 1, .. }));
        vm.complete_read(value).expect("complete");
    }
    let mut bytes = [0; 2];
    vm.read_memory(L1Phys(RAM), &mut bytes).expect("RAM");
    assert_eq!(bytes, [0x11, 0x22]);
    assert_eq!(regs(&mut vm).rip, CODE + 2);
}
