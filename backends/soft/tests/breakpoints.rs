//! Hardware breakpoints of DR0 to DR3: where each is reported, with what, and that nothing else is.

mod common;

use common::bare::{self, CODE, MEMORY, Mode, Random};
use common::nest::{L2, Nest, PAGE};
use iced_x86::code_asm::*;
use iced_x86::{Decoder, DecoderOptions, IcedError};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, Vcpu, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::x86::control::cr4;
use nvmx_core::x86::{CpuState, DebugRegs, Gpr};
use nvmx_soft::SoftVm;

/// What breakpoints are set on.
const DATA: u64 = 0x3_0000;
/// What the handler noted: a count, then DR6 and RIP of each #DB.
const LOG: u64 = 0x3_1000;
const BS: u64 = 1 << 14;

/// Assembles the code under test.
type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

struct Case {
    name: &'static str,
    /// The address of breakpoint 0: of data, or of an instruction by number.
    at: At,
    /// Length and R/W of breakpoint 0.
    field: u64,
    build: Build,
    /// DR6 of each #DB, and which instruction RIP was at.
    expected: &'static [(u64, usize)],
}

enum At {
    Data(u64),
    Port(u64),
    Instruction(usize),
}
use At::{Data, Instruction, Port};

const EXECUTE: u64 = 0b0000;
const WRITE_4: u64 = 0b1101;
const ACCESS_1: u64 = 0b0011;
const ACCESS_2: u64 = 0b0111;
const ACCESS_8: u64 = 0b1011;
const PORT_1: u64 = 0b0010;

const CASES: &[Case] = &[
    Case {
        name: "an instruction, before it runs",
        at: Instruction(1),
        field: EXECUTE,
        build: |a| {
            a.nop()?;
            a.inc(rbx)?;
            a.nop()
        },
        expected: &[(1, 1)],
    },
    Case {
        name: "an instruction in a loop, each time",
        at: Instruction(1),
        field: EXECUTE,
        build: |a| {
            let mut again = a.create_label();
            a.mov(ecx, 3)?;
            a.set_label(&mut again)?;
            a.dec(ecx)?;
            a.jnz(again)
        },
        expected: &[(1, 1), (1, 1), (1, 1)],
    },
    Case {
        name: "an instruction behind MOV SS is left alone",
        at: Instruction(2),
        field: EXECUTE,
        build: |a| {
            a.mov(eax, 0x10)?;
            a.mov(ss, eax)?;
            a.nop()?;
            a.nop()
        },
        expected: &[],
    },
    Case {
        name: "a store, behind it",
        at: Data(2),
        field: WRITE_4,
        build: |a| {
            a.mov(dword_ptr(DATA), eax)?;
            a.nop()
        },
        expected: &[(1, 1)],
    },
    Case {
        name: "a load does not meet a breakpoint on writes",
        at: Data(0),
        field: WRITE_4,
        build: |a| {
            a.mov(eax, dword_ptr(DATA))?;
            a.nop()
        },
        expected: &[],
    },
    Case {
        name: "loads, stores, and both at once",
        at: Data(7),
        field: ACCESS_8,
        build: |a| {
            a.mov(al, byte_ptr(DATA + 7))?;
            a.lock().xadd(dword_ptr(DATA + 4), eax)?;
            a.movups(xmm0, xmmword_ptr(DATA - 8))?;
            a.mov(al, byte_ptr(DATA + 8))?;
            a.mov(rax, qword_ptr(DATA - 8))?;
            a.nop()
        },
        expected: &[(1, 1), (1, 2), (1, 3)],
    },
    Case {
        name: "an instruction that the model interprets",
        at: Data(0),
        field: WRITE_4,
        build: |a| {
            a.setc(byte_ptr(DATA))?;
            a.nop()
        },
        expected: &[(1, 1)],
    },
    Case {
        name: "a push",
        at: Data(0x100),
        field: WRITE_4,
        build: |a| {
            a.mov(rbp, rsp)?;
            a.mov(esp, (DATA + 0x108) as u32)?;
            a.push(rax)?;
            a.mov(rsp, rbp)
        },
        expected: &[(1, 3)],
    },
    Case {
        name: "one iteration of many",
        at: Data(1),
        field: ACCESS_1,
        build: |a| {
            a.mov(esi, DATA as u32 + 0x40)?;
            a.mov(edi, DATA as u32)?;
            a.mov(ecx, 3)?;
            a.rep().movsb()?;
            a.nop()
        },
        expected: &[(1, 3)],
    },
    Case {
        name: "no iteration",
        at: Data(0),
        field: ACCESS_1,
        build: |a| {
            a.mov(edi, DATA as u32)?;
            a.xor(ecx, ecx)?;
            a.rep().stosb()?;
            a.nop()
        },
        expected: &[],
    },
    Case {
        name: "MOV SS from memory: behind the instruction after it",
        at: Data(0),
        field: ACCESS_2,
        build: |a| {
            a.mov(word_ptr(DATA + 8), 0)?;
            a.mov(ss, word_ptr(DATA))?;
            a.nop()?;
            a.nop()
        },
        expected: &[(1, 3)],
    },
    Case {
        name: "a port",
        at: Port(0x80),
        field: PORT_1,
        build: |a| {
            a.out(0x81, al)?;
            a.mov(al, byte_ptr(0x80))?;
            a.out(0x80, al)?;
            a.nop()
        },
        expected: &[(1, 3)],
    },
    Case {
        name: "single step and a breakpoint in one",
        at: Data(0),
        field: WRITE_4,
        build: |a| {
            a.pushfq()?;
            a.bts(qword_ptr(rsp), 8)?;
            a.popfq()?;
            a.mov(dword_ptr(DATA), eax)?;
            a.nop()
        },
        expected: &[(1 | BS, 4)],
    },
];

fn handler(vm: &mut SoftVm) -> Result<(), IcedError> {
    const HANDLER: u64 = 0x1_4000;
    let mut a = CodeAssembler::new(64)?;
    a.push(rax)?;
    a.push(rbx)?;
    a.mov(rbx, qword_ptr(LOG))?;
    a.inc(rbx)?;
    a.mov(qword_ptr(LOG), rbx)?;
    a.shl(rbx, 4)?;
    a.mov(rax, dr6)?;
    a.mov(qword_ptr(rbx + LOG), rax)?;
    a.mov(rax, qword_ptr(rsp + 16))?;
    a.mov(qword_ptr(rbx + LOG + 8), rax)?;
    a.mov(eax, 0xffff_0ff0_u32)?;
    a.mov(dr6, rax)?;
    // RF, and no more single steps.
    a.bts(qword_ptr(rsp + 32), 16)?;
    a.btr(qword_ptr(rsp + 32), 8)?;
    a.pop(rbx)?;
    a.pop(rax)?;
    a.iretq()?;
    let bytes = a.assemble(HANDLER)?;
    bare::put(vm, HANDLER, &bytes);
    let gate = HANDLER & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (HANDLER >> 16) << 48;
    bare::put(vm, bare::IDT + 16, &gate.to_le_bytes());
    Ok(())
}

fn word(vm: &mut SoftVm, address: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.read_memory(L1Phys(address), &mut bytes).expect("RAM");
    u64::from_le_bytes(bytes)
}

/// What the handler saw of the case, with addresses as numbers of instructions.
fn run(case: &Case, extensions: u64, piece: Option<u64>) -> Result<Vec<(u64, usize)>, IcedError> {
    let mut vm = SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        ..VmConfig::default()
    })
    .expect("a machine");
    bare::furnish(&mut vm, true);
    handler(&mut vm)?;
    let mut a = CodeAssembler::new(64)?;
    (case.build)(&mut a)?;
    a.hlt()?;
    let code = a.assemble(CODE)?;
    bare::put(&mut vm, CODE, &code);
    let addresses: Vec<u64> = Decoder::with_ip(64, &code, CODE, DecoderOptions::NONE)
        .iter()
        .map(|instruction| instruction.ip())
        .collect();
    bare::put(&mut vm, DATA, &[0x10, 0]);
    let mut state = bare::state(Mode::Long0, &mut Random(1));
    if let (Some(regs), Some(sregs)) = (&mut state.regs, &mut state.sregs) {
        regs.gpr = [0; 16];
        regs.rflags = 2;
        regs.set(Gpr::Rsp, bare::STACK);
        sregs.cr4 = cr4::PAE | cr4::OSFXSR | extensions;
    }
    let address = match case.at {
        At::Data(offset) => DATA + offset,
        At::Port(port) => port,
        At::Instruction(number) => addresses[number],
    };
    state.debug = Some(DebugRegs {
        db: [address, 0, 0, 0],
        dr7: 0x401 | case.field << 16,
        ..DebugRegs::default()
    });
    vm.set_state(&state).expect("state");
    loop {
        let budget = Budget {
            instructions: piece,
            time: Some(common::PATIENCE),
            ..Budget::UNLIMITED
        };
        match vm.run(budget).expect("runs") {
            Exit::Hlt => break,
            Exit::IoOut { .. } => {}
            Exit::Budget if piece.is_some() => {}
            exit => panic!("{}: {exit:?}", case.name),
        }
    }
    let count = word(&mut vm, LOG);
    Ok((1..=count)
        .map(|n| {
            let rip = word(&mut vm, LOG + 16 * n + 8);
            let index = addresses.iter().position(|address| *address == rip);
            let status = word(&mut vm, LOG + 16 * n) & 0xe00f;
            (status, index.expect("RIP is at an instruction"))
        })
        .collect())
}

#[test]
fn each_breakpoint_is_met_where_the_manual_says() -> Result<(), IcedError> {
    for case in CASES {
        for piece in [None, Some(1)] {
            let seen = run(case, cr4::DE, piece)?;
            assert_eq!(seen, case.expected, "{}, {piece:?}", case.name);
        }
    }
    Ok(())
}

#[test]
fn ports_are_met_with_debugging_extensions_alone() -> Result<(), IcedError> {
    for case in CASES.iter().filter(|case| case.field == PORT_1) {
        assert_eq!(run(case, 0, None)?, [], "{}", case.name);
    }
    Ok(())
}

/// L2's breakpoints exit where L1 wants #DB, with the same bits as the qualification; those that wait
/// behind MOV SS are in the vmcs12.
#[test]
fn breakpoints_of_l2_exit_to_l1() -> Result<(), IcedError> {
    const EXCEPTION: u32 = 0;
    const VMCALL: u32 = 18;
    let store: Build = |a| {
        a.mov(dword_ptr(PAGE), eax)?;
        a.vmcall()
    };
    let shadow: Build = |a| {
        a.mov(ss, word_ptr(PAGE))?;
        a.vmcall()
    };
    // Breakpoint, code; exit reason, instruction that it is at, qualification, what is pending.
    for (address, field, build, reason, index, qualification, pending) in [
        (PAGE, WRITE_4, store, EXCEPTION, 1, 1, 0),
        (L2, EXECUTE, store, EXCEPTION, 0, 1, 0),
        (PAGE + 4, WRITE_4, store, VMCALL, 1, 0, 0),
        (PAGE, ACCESS_2, shadow, VMCALL, 1, 0, 0x1001),
    ] {
        let mut a = CodeAssembler::new(64)?;
        build(&mut a)?;
        let code = a.assemble(L2)?;
        let mut decoder = Decoder::with_ip(64, &code, L2, DecoderOptions::NONE);
        let rip = decoder.iter().nth(index).expect("an instruction").ip();
        let mut nest = Nest::new(&code);
        nest.vm
            .set_state(&CpuState {
                debug: Some(DebugRegs {
                    db: [address, 0, 0, 0],
                    ..DebugRegs::default()
                }),
                ..CpuState::default()
            })
            .expect("taken");
        nest.on(Field::EXCEPTION_BITMAP, 1 << 1);
        // "Load debug controls".
        nest.on(Field::VM_ENTRY_CONTROLS, 1 << 2);
        nest.set(Field::GUEST_DR7, 0x401 | field << 16);
        nest.expect(reason, rip);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), qualification);
        assert_eq!(nest.get(Field::GUEST_PENDING_DBG_EXCEPTIONS), pending);
    }
    Ok(())
}
