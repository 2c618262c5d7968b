//! A fault leaves RFLAGS as they were (SDM Vol. 3A "Program or Task Restart"): instructions that read
//! or write flags and touch memory, on a page that is not there and on one that is read-only, first in
//! their block and in its middle.

mod common;

use common::bare::*;
use iced_x86::code_asm::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::x86::control::cr0;
use nvmx_core::x86::{Gpr, Regs};
use nvmx_soft::SoftVm;

/// CF, PF, AF, ZF, SF, OF.
const ARITHMETIC: u64 = 0x8d5;
/// Mapped by nothing.
const ABSENT: u64 = 2 << 20;
/// Mapped read-only.
const READ_ONLY: u64 = 4 << 20;

type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;

/// Sets flags in ways that leave the translator with different notes on how to compute them.
const SETTERS: [(&str, Build); 6] = [
    ("CMP", |a| a.cmp(ecx, edx)),
    ("ADD", |a| a.add(ecx, edx)),
    ("TEST", |a| a.test(ecx, edx)),
    ("SHL", |a| a.shl(ecx, 3)),
    ("INC", |a| a.inc(ecx)),
    ("SAHF", |a| a.sahf()),
];

const USERS: [(&str, Build); 34] = [
    ("SETO", |a| a.seto(byte_ptr(rbx))),
    ("SETB", |a| a.setb(byte_ptr(rbx))),
    ("SETE", |a| a.sete(byte_ptr(rbx))),
    ("SETBE", |a| a.setbe(byte_ptr(rbx))),
    ("SETS", |a| a.sets(byte_ptr(rbx))),
    ("SETP", |a| a.setp(byte_ptr(rbx))),
    ("SETL", |a| a.setl(byte_ptr(rbx))),
    ("SETG", |a| a.setg(byte_ptr(rbx))),
    ("RCL", |a| a.rcl(dword_ptr(rbx), 1)),
    ("RCR", |a| a.rcr(word_ptr(rbx), 3)),
    ("ROL", |a| a.rol(dword_ptr(rbx), 5)),
    ("SHL", |a| a.shl(qword_ptr(rbx), cl)),
    ("SAR", |a| a.sar(byte_ptr(rbx), 2)),
    ("SHLD", |a| a.shld(dword_ptr(rbx), eax, 7)),
    ("SHRD", |a| a.shrd(dword_ptr(rbx), eax, cl)),
    ("ADC", |a| a.adc(dword_ptr(rbx), eax)),
    ("LOCK ADC", |a| a.lock().adc(dword_ptr(rbx), eax)),
    ("SBB", |a| a.sbb(qword_ptr(rbx), rax)),
    ("ADD", |a| a.add(dword_ptr(rbx), eax)),
    ("LOCK ADD", |a| a.lock().add(dword_ptr(rbx), eax)),
    ("INC", |a| a.inc(dword_ptr(rbx))),
    ("LOCK DEC", |a| a.lock().dec(dword_ptr(rbx))),
    ("NEG", |a| a.neg(dword_ptr(rbx))),
    ("NOT", |a| a.not(dword_ptr(rbx))),
    ("XADD", |a| a.xadd(dword_ptr(rbx), eax)),
    ("LOCK XADD", |a| a.lock().xadd(dword_ptr(rbx), eax)),
    ("CMPXCHG", |a| a.cmpxchg(dword_ptr(rbx), ecx)),
    ("LOCK CMPXCHG", |a| a.lock().cmpxchg(dword_ptr(rbx), ecx)),
    ("CMPXCHG8B", |a| a.cmpxchg8b(qword_ptr(rbx))),
    ("BTS", |a| a.bts(dword_ptr(rbx), eax)),
    ("XCHG", |a| a.xchg(dword_ptr(rbx), eax)),
    ("STOSD", |a| a.stosd()),
    ("MOVSB", |a| a.movsb()),
    ("POP", |a| a.pop(qword_ptr(rbx))),
];

/// `setter; [jmp;] user`, and where the user stands.
fn program(setter: Build, user: Build, alone: bool) -> Result<(Vec<u8>, u64, u64), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    setter(&mut a)?;
    let after_setter = CODE + a.assemble(CODE)?.len() as u64;
    if alone {
        let mut next = a.create_label();
        a.jmp(next)?;
        a.set_label(&mut next)?;
    }
    user(&mut a)?;
    let code = a.assemble(CODE)?;
    let mut last = CodeAssembler::new(64)?;
    user(&mut last)?;
    let at = CODE + (code.len() - last.assemble(CODE)?.len()) as u64;
    Ok((code, after_setter, at))
}

fn prepare(vm: &mut SoftVm, code: &[u8], pointer: u64) {
    put(vm, CODE, code);
    let mut start = state(Mode::Long0, &mut Random(3));
    let mut regs = Regs {
        rip: CODE,
        rflags: 2,
        ..Regs::default()
    };
    for (gpr, value) in [
        (Gpr::Rsp, STACK),
        (Gpr::Rbx, pointer),
        (Gpr::Rdi, pointer),
        (Gpr::Rsi, STACK),
        (Gpr::Rcx, 0x8000_0003),
        (Gpr::Rdx, 0x7fff_ff90),
        (Gpr::Rax, 0xc511),
    ] {
        regs.set(gpr, value);
    }
    start.regs = Some(regs);
    if let Some(sregs) = &mut start.sregs {
        sregs.cr0 |= cr0::WP;
    }
    vm.set_state(&start).expect("taken");
}

fn regs(vm: &mut SoftVm) -> Regs {
    vm.state(Parts::Registers)
        .expect("state")
        .regs
        .expect("regs")
}

fn word(vm: &mut SoftVm, address: u64) -> u64 {
    let mut bytes = [0; 8];
    vm.read_memory(L1Phys(address), &mut bytes).expect("RAM");
    u64::from_le_bytes(bytes)
}

#[test]
fn a_fault_leaves_the_flags_alone() {
    let mut vm = machine();
    furnish(&mut vm, true);
    put(&mut vm, PAGING + 0x2010, &0x81_u64.to_le_bytes());
    let mut wrong = Vec::new();
    for (setter_name, setter) in SETTERS {
        for (user_name, user) in USERS {
            for alone in [false, true] {
                for (place, pointer) in [("absent", ABSENT), ("read-only", READ_ONLY)] {
                    let name = format!("{setter_name}, {user_name}, alone {alone}, {place}");
                    let (code, after_setter, at) = program(setter, user, alone).expect("assembles");
                    prepare(&mut vm, &code, pointer);
                    let exit = vm.run(Budget::instructions(1)).expect("runs");
                    assert_eq!(
                        (exit, regs(&mut vm).rip),
                        (Exit::Budget, after_setter),
                        "{name}"
                    );
                    let expected = regs(&mut vm).rflags & ARITHMETIC;
                    prepare(&mut vm, &code, pointer);
                    let exit = vm.run(Budget::instructions(4)).expect("runs");
                    assert_eq!(exit, Exit::Budget, "{name}");
                    // The frame: error code, RIP, CS, RFLAGS; the handler's INC moved the error code.
                    let frame = (STACK & !15) - 48;
                    let (rip, flags) = (word(&mut vm, frame + 8), word(&mut vm, frame + 24));
                    assert_eq!(rip, at, "{name}");
                    if flags & ARITHMETIC != expected {
                        wrong.push(format!(
                            "{name}: {:#x} instead of {expected:#x}",
                            flags & ARITHMETIC
                        ));
                    }
                }
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What the model interprets for the sake of the flags gives what the same instruction on a register
/// gives, which runs natively.
#[test]
fn interpreted_forms_agree_with_native_ones() {
    let pairs: [(&str, Build, Build); 14] = [
        ("SETO", |a| a.seto(byte_ptr(rbx)), |a| a.seto(dl)),
        ("SETNP", |a| a.setnp(byte_ptr(rbx)), |a| a.setnp(dl)),
        ("SETB", |a| a.setb(byte_ptr(rbx)), |a| a.setb(dl)),
        ("SETA", |a| a.seta(byte_ptr(rbx)), |a| a.seta(dl)),
        ("SETE", |a| a.sete(byte_ptr(rbx)), |a| a.sete(dl)),
        ("SETNS", |a| a.setns(byte_ptr(rbx)), |a| a.setns(dl)),
        ("SETL", |a| a.setl(byte_ptr(rbx)), |a| a.setl(dl)),
        ("SETLE", |a| a.setle(byte_ptr(rbx)), |a| a.setle(dl)),
        ("RCL 8", |a| a.rcl(byte_ptr(rbx), cl), |a| a.rcl(dl, cl)),
        ("RCR 8", |a| a.rcr(byte_ptr(rbx), cl), |a| a.rcr(dl, cl)),
        ("RCL 16", |a| a.rcl(word_ptr(rbx), cl), |a| a.rcl(dx, cl)),
        ("RCR 32", |a| a.rcr(dword_ptr(rbx), cl), |a| a.rcr(edx, cl)),
        ("RCL 64", |a| a.rcl(qword_ptr(rbx), cl), |a| a.rcl(rdx, cl)),
        ("RCR 64", |a| a.rcr(qword_ptr(rbx), 1), |a| a.rcr(rdx, 1)),
    ];
    // Across a page.
    const PLACE: u64 = STACK - 3;
    let mut vm = machine();
    furnish(&mut vm, true);
    let mut random = Random(11);
    for (name, memory, register) in pairs {
        for _ in 0..cases(60) {
            let (value, count, flags) =
                (random.next(), random.next(), 2 | random.next() & ARITHMETIC);
            let mut run = |build: Build| {
                let mut a = CodeAssembler::new(64).expect("64 bits");
                build(&mut a).expect("assembles");
                prepare(&mut vm, &a.assemble(CODE).expect("assembles"), PLACE);
                put(&mut vm, PLACE, &value.to_le_bytes());
                let mut state = vm.state(Parts::Registers).expect("state");
                if let Some(regs) = &mut state.regs {
                    regs.rflags = flags;
                    regs.set(Gpr::Rcx, count);
                    regs.set(Gpr::Rdx, value);
                }
                vm.set_state(&state).expect("taken");
                assert_eq!(vm.run(Budget::instructions(1)).expect("runs"), Exit::Budget);
                let regs = regs(&mut vm);
                (word(&mut vm, PLACE), regs.get(Gpr::Rdx), regs.rflags)
            };
            let (in_memory, _, memory_flags) = run(memory);
            let (_, mut in_register, register_flags) = run(register);
            if name == "RCR 32" {
                in_register |= value & !0xffff_ffff;
            }
            let case = format!("{name} of {value:#x}, CL {count:#x}, RFLAGS {flags:#x}");
            assert_eq!(in_memory, in_register, "{case}");
            assert_eq!(memory_flags, register_flags, "{case}");
        }
    }
}

/// CMPXCHG8B and CMPXCHG16B change ZF and keep the flags that the instruction before them has set.
#[test]
fn a_double_exchange_changes_zf_alone() {
    const ZF: u64 = 0x40;
    let exchanges: [(&str, Build); 3] = [
        ("CMPXCHG8B", |a| a.cmpxchg8b(qword_ptr(rbx))),
        ("LOCK CMPXCHG8B", |a| a.lock().cmpxchg8b(qword_ptr(rbx))),
        ("CMPXCHG16B", |a| a.cmpxchg16b(xmmword_ptr(rbx))),
    ];
    let mut vm = machine();
    furnish(&mut vm, true);
    for (setter_name, setter) in SETTERS {
        for (name, exchange) in exchanges {
            for equal in [true, false] {
                let name = format!("{setter_name}, {name}, equal {equal}");
                let (code, _, _) = program(setter, exchange, false).expect("assembles");
                prepare(&mut vm, &code, STACK);
                let before = regs(&mut vm);
                let wide = name.contains("16B");
                let (low, high) = (before.get(Gpr::Rax), before.get(Gpr::Rdx));
                let high = high ^ u64::from(!equal);
                let memory = if wide {
                    [low, high]
                } else {
                    [low | high << 32, 77]
                };
                put(&mut vm, STACK, &memory[0].to_le_bytes());
                put(&mut vm, STACK + 8, &memory[1].to_le_bytes());
                assert_eq!(vm.run(Budget::instructions(1)).expect("runs"), Exit::Budget);
                let set = regs(&mut vm);
                assert_eq!(vm.run(Budget::instructions(1)).expect("runs"), Exit::Budget);
                let after = regs(&mut vm);
                let zf = if equal { ZF } else { 0 };
                assert_eq!(after.rflags, set.rflags & !ZF | zf, "{name}");
                assert_eq!(after.get(Gpr::Rdx), high, "{name}");
                let stored = [word(&mut vm, STACK), word(&mut vm, STACK + 8)];
                let (new_low, new_high) = (set.get(Gpr::Rbx), set.get(Gpr::Rcx));
                let expected = match (equal, wide) {
                    (false, _) => memory,
                    (true, true) => [new_low, new_high],
                    (true, false) => [new_low & 0xffff_ffff | new_high << 32, 77],
                };
                assert_eq!(stored, expected, "{name}");
            }
        }
    }
}

/// IN as the first instruction of a page: the page before it plays no part, and need not be there.
#[test]
fn an_instruction_first_on_its_page_needs_no_page_before() {
    let mut vm = machine();
    furnish(&mut vm, true);
    put(&mut vm, PAGING + 0x2010, &0x81_u64.to_le_bytes());
    put(&mut vm, 0, &[0xe4, 0x80]);
    prepare(&mut vm, &[], STACK);
    let mut start = vm.state(Parts::Registers).expect("state");
    if let Some(regs) = &mut start.regs {
        regs.rip = READ_ONLY;
    }
    vm.set_state(&start).expect("taken");
    let exit = vm.run(Budget::instructions(4)).expect("runs");
    assert!(matches!(exit, Exit::IoIn { .. }), "{exit:?}");
    assert_eq!(regs(&mut vm).rip & !3, READ_ONLY);
}

/// REP OUTSB as the first instruction of a page, executed more than once: the page behind it plays no part.
#[test]
fn an_instruction_first_on_its_page_needs_no_page_behind() {
    const LAST_PAGE: u64 = 0x1f_f000;
    let mut vm = machine();
    furnish(&mut vm, true);
    put(&mut vm, PAGING + 0x2010, &0x81_u64.to_le_bytes());
    put(&mut vm, LAST_PAGE, &[0xf3, 0x6e]);
    prepare(&mut vm, &[], STACK);
    let mut start = vm.state(Parts::Registers).expect("state");
    if let Some(regs) = &mut start.regs {
        regs.rip = READ_ONLY + LAST_PAGE;
        regs.set(Gpr::Rcx, 6);
        regs.set(Gpr::Rsi, STACK);
    }
    vm.set_state(&start).expect("taken");
    for left in (0..6).rev() {
        let exit = vm.run(Budget::instructions(4)).expect("runs");
        assert!(matches!(exit, Exit::IoOut { .. }), "{exit:?}");
        assert_eq!(regs(&mut vm).get(Gpr::Rcx), left);
    }
}
