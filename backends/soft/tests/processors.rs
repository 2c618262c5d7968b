//! Several processors, and what reaches them from outside: start-up, interprocessor interrupts, a PIC's
//! line, messages, the time that user space asks for.

mod common;

use common::bare::{self, CODE, furnished as machine, long_mode, place};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::x86::{Gpr, MpState};
use nvmx_soft::SoftVm;

/// Where the two leave messages for each other, below the first page table of `bare`.
const MAILBOX: u64 = 0x3000;
/// Code of interrupt handlers, and of the second processor.
const INTERRUPT: u64 = 0x1_4000;
const SECOND: u64 = 0x1_8000;
/// x2APIC registers by MSR (SDM Vol. 3A "x2APIC Register Address Space").
const APIC_BASE: u32 = 0x1b;
const EOI: u32 = 0x80b;
const SPURIOUS: u32 = 0x80f;
const ICR: u32 = 0x830;
const X2APIC: u32 = 0xfee0_0c00;

/// An IDT gate of 64-bit mode.
fn gate(vm: &mut SoftVm, vector: u8, handler: u64) {
    let low = handler & 0xffff | 0x08 << 16 | 0x8e00 << 32 | (handler >> 16 & 0xffff) << 48;
    bare::put(vm, bare::IDT + 16 * u64::from(vector), &low.to_le_bytes());
}

fn word(vm: &mut SoftVm, address: u64) -> u32 {
    let mut bytes = [0; 4];
    vm.read_memory(nvmx_core::addr::L1Phys(address), &mut bytes)
        .expect("RAM");
    u32::from_le_bytes(bytes)
}

fn wrmsr_to(a: &mut CodeAssembler, msr: u32, high: u32, low: u32) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(edx, high)?;
    a.mov(eax, low)?;
    a.wrmsr()
}

/// x2APIC mode, software-enabled.
fn enable(a: &mut CodeAssembler, id: u8) -> Result<(), IcedError> {
    let bootstrap = if id == 0 { 0x100 } else { 0 };
    wrmsr_to(a, APIC_BASE, 0, X2APIC | bootstrap)?;
    wrmsr_to(a, SPURIOUS, 0, 0x1ff)
}

fn run_all(vm: &mut SoftVm) -> (usize, Exit) {
    Vm::run(
        vm,
        Budget {
            time: Some(common::PATIENCE),
            ..Budget::UNLIMITED
        },
    )
    .expect("runs")
}

#[test]
fn init_and_sipi_start_the_second_processor() -> Result<(), IcedError> {
    let mut vm = machine(2);
    let mut a = CodeAssembler::new(64)?;
    enable(&mut a, 0)?;
    wrmsr_to(&mut a, ICR, 1, 0x4500)?;
    wrmsr_to(&mut a, ICR, 1, 0x4630)?;
    // The second one is ignored: nothing waits for it.
    wrmsr_to(&mut a, ICR, 1, 0x4631)?;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.pause()?;
    a.cmp(dword_ptr(MAILBOX), 2)?;
    a.jne(wait)?;
    a.out(0x80, al)?;
    a.hlt()?;
    place(&mut vm, CODE, a);
    // Real mode at 3000:0000.
    let mut a = CodeAssembler::new(16)?;
    a.xor(ax, ax)?;
    a.mov(ds, ax)?;
    a.add(dword_ptr(MAILBOX), 2)?;
    a.hlt()?;
    let bytes = a.assemble(0)?;
    bare::put(&mut vm, 0x3_0000, &bytes);
    vm.vcpu(0).set_state(&long_mode(CODE)).expect("state");

    let waiting = vm.vcpu(1).state(Parts::All).expect("state");
    assert_eq!(waiting.mp_state, Some(MpState::InitReceived));
    let (index, exit) = run_all(&mut vm);
    assert_eq!(index, 0);
    assert!(matches!(exit, Exit::IoOut { port: 0x80, .. }), "{exit:?}");
    assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
    assert_eq!(word(&mut vm, MAILBOX), 2);
    let state = vm.vcpu(1).state(Parts::All).expect("state");
    assert_eq!(state.mp_state, Some(MpState::Halted));
    let sregs = state.sregs.expect("sregs");
    assert_eq!((sregs.cs.selector, sregs.cs.base), (0x3000, 0x3_0000));
    assert_eq!(sregs.apic_base, 0xfee0_0800);
    Ok(())
}

/// Two that send each other interrupts, in sleep or spinning, `rounds` each.
fn ping_pong(spins: bool, rounds: u32) -> Result<SoftVm, IcedError> {
    let mut vm = machine(2);
    for id in 0..2u8 {
        let code = [CODE, SECOND][id as usize];
        let count = MAILBOX + 8 * u64::from(id);
        let mut a = CodeAssembler::new(64)?;
        enable(&mut a, id)?;
        // A computation that shows whether SSE state survives the turns.
        a.mov(eax, u32::from(id) + 1)?;
        a.cvtsi2sd(xmm3, eax)?;
        if id == 0 {
            // Not before the other is ready.
            let mut ready = a.create_label();
            a.set_label(&mut ready)?;
            a.cmp(byte_ptr(MAILBOX + 0x20), 1)?;
            a.jne(ready)?;
            wrmsr_to(&mut a, ICR, 1, 0x4041)?;
        } else {
            a.mov(byte_ptr(MAILBOX + 0x20), 1)?;
        }
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.sti()?;
        if spins {
            a.addsd(xmm3, xmm3)?;
        } else {
            a.hlt()?;
        }
        // The last interrupt must not slip in between the look and the sleep.
        a.cli()?;
        a.cmp(r12d, dword_ptr(count))?;
        a.je(wait)?;
        a.mov(r12d, dword_ptr(count))?;
        wrmsr_to(&mut a, ICR, 1 - u32::from(id), 0x4041 - u32::from(id))?;
        a.cmp(r12d, rounds)?;
        a.jb(wait)?;
        a.out(0x80, al)?;
        a.hlt()?;
        place(&mut vm, code, a);
        let vcpu = vm.vcpu(id.into());
        vcpu.set_state(&long_mode(code)).expect("state");
    }
    // Vector 0x40 goes to vCPU 0 and 0x41 to vCPU 1.
    gate(&mut vm, 0x40, INTERRUPT);
    gate(&mut vm, 0x41, INTERRUPT + 0x100);
    for id in 0..2u64 {
        let handler = INTERRUPT + 0x100 * id;
        let mut a = CodeAssembler::new(64)?;
        a.inc(dword_ptr(MAILBOX + 8 * id))?;
        wrmsr_to(&mut a, EOI, 0, 0)?;
        a.iretq()?;
        place(&mut vm, handler, a);
    }
    Ok(vm)
}

/// Runs until both are done, in pieces of `piece` instructions.
fn to_the_end(vm: &mut SoftVm, piece: Option<u64>) -> (Vec<(usize, u64)>, Vec<common::Capture>) {
    let mut ends = Vec::new();
    loop {
        let budget = Budget {
            instructions: piece,
            time: Some(common::PATIENCE),
            ..Budget::UNLIMITED
        };
        match Vm::run(vm, budget).expect("runs") {
            (index, Exit::IoOut { .. }) => {
                ends.push((index, vm.executed_instructions().expect("counts")));
            }
            (_, Exit::Budget) => assert!(piece.is_some(), "it hangs"),
            (_, Exit::Hlt) => break,
            (index, exit) => panic!("vCPU {index}: {exit:?}"),
        }
    }
    let captures = (0..2).map(|index| {
        vm.vcpu(index);
        common::capture(vm)
    });
    (ends, captures.collect())
}

#[test]
fn interrupts_between_two_repeat_to_the_bit_wherever_the_run_is_cut() -> Result<(), IcedError> {
    for spins in [false, true] {
        let rounds = 200;
        let (ends, captures) = to_the_end(&mut ping_pong(spins, rounds)?, None);
        assert_eq!(ends.len(), 2, "both come to their end");
        for piece in [1, 7, 1000, 20_011] {
            let mut vm = ping_pong(spins, if piece < 10 { 20 } else { rounds })?;
            let again = to_the_end(&mut vm, Some(piece));
            if piece < 10 {
                let whole = to_the_end(&mut ping_pong(spins, 20)?, None);
                assert!(again == whole, "spins {spins}, pieces of {piece}");
                continue;
            }
            assert_eq!(again.0, ends, "spins {spins}, pieces of {piece}");
            assert!(again.1 == captures, "spins {spins}, pieces of {piece}");
        }
    }
    Ok(())
}

#[test]
fn a_run_is_back_at_the_time_it_was_asked_for() -> Result<(), IcedError> {
    for vcpus in [1, 2] {
        for halts in [false, true] {
            let mut vm = machine(vcpus);
            let mut a = CodeAssembler::new(64)?;
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            if halts {
                a.hlt()?;
            }
            a.inc(rax)?;
            a.jmp(here)?;
            place(&mut vm, CODE, a);
            vm.vcpu(0).set_state(&long_mode(CODE)).expect("state");
            for until in [1, 2, 1000, 1001, 123_457, 123_457] {
                let budget = Budget {
                    until: Some(until),
                    time: Some(common::PATIENCE),
                    ..Budget::UNLIMITED
                };
                let exit = Vm::run(&mut vm, budget).expect("runs");
                assert_eq!(exit, (0, Exit::Budget), "{vcpus} {halts} {until}");
                assert_eq!(vm.now(), Some(until), "{vcpus} {halts}");
            }
            if halts {
                assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
                assert_eq!(vm.now(), Some(123_457), "no time passes for nothing");
            }
        }
    }
    Ok(())
}

/// A handler for `vector` that counts in the mailbox, and a loop under it.
fn counting(vm: &mut SoftVm, vector: u8, eoi: bool) -> Result<(), IcedError> {
    let mut a = CodeAssembler::new(64)?;
    a.inc(dword_ptr(MAILBOX))?;
    if eoi {
        wrmsr_to(&mut a, EOI, 0, 0)?;
    }
    a.iretq()?;
    place(vm, INTERRUPT, a);
    gate(vm, vector, INTERRUPT);
    Ok(())
}

#[test]
fn a_pic_interrupts_through_lint0_when_the_processor_is_ready() -> Result<(), IcedError> {
    for vcpus in [1, 2] {
        let mut vm = machine(vcpus);
        counting(&mut vm, 0x28, false)?;
        let mut a = CodeAssembler::new(64)?;
        a.nop()?;
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.hlt()?;
        a.cli()?;
        a.hlt()?;
        place(&mut vm, CODE, a);
        vm.vcpu(0).set_state(&long_mode(CODE)).expect("state");
        vm.vcpu(0).set_interrupt_line(true).expect("a line");
        // After STI and the instruction in its shadow.
        assert_eq!(run_all(&mut vm), (0, Exit::InterruptWindow));
        assert_eq!(vm.vcpu(0).executed_instructions(), Some(4));
        assert_eq!(run_all(&mut vm), (0, Exit::InterruptWindow), "it persists");
        vm.vcpu(0).acknowledge_interrupt(0x28).expect("a vector");
        vm.vcpu(0).set_interrupt_line(false).expect("a line");
        assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
        assert_eq!(word(&mut vm, MAILBOX), 1);
        // It wakes from HLT.
        vm.vcpu(0).set_interrupt_line(true).expect("a line");
        assert_eq!(run_all(&mut vm), (0, Exit::InterruptWindow));
        vm.vcpu(0).acknowledge_interrupt(0x28).expect("a vector");
        vm.vcpu(0).set_interrupt_line(false).expect("a line");
        assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
        // CLI holds off the next.
        vm.vcpu(0).set_interrupt_line(true).expect("a line");
        assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
        assert_eq!(word(&mut vm, MAILBOX), 2);
    }
    Ok(())
}

#[test]
fn messages_reach_their_apic_and_the_end_of_a_level_is_told() -> Result<(), IcedError> {
    let mut vm = machine(2);
    counting(&mut vm, 0x50, true)?;
    for id in 0..2 {
        let code = [CODE, SECOND][id];
        let mut a = CodeAssembler::new(64)?;
        enable(&mut a, id as u8)?;
        let mut here = a.create_label();
        a.set_label(&mut here)?;
        a.sti()?;
        a.hlt()?;
        a.inc(rbx)?;
        a.jmp(here)?;
        place(&mut vm, code, a);
        let vcpu = vm.vcpu(id);
        vcpu.set_state(&long_mode(code)).expect("state");
    }
    assert_eq!(run_all(&mut vm), (0, Exit::Hlt), "both sleep");
    let mut woken = [0; 2];
    // Destination, logical, data; who takes it.
    const EDGE: u32 = 0x50;
    const LEVEL: u32 = 0x50 | 1 << 15 | 1 << 14;
    const DEASSERT: u32 = 0x50 | 1 << 15;
    for (destination, logical, data, takers) in [
        (0, 0, EDGE, 1_u32),
        (1, 0, EDGE, 2),
        (1, 0, LEVEL, 2),
        (0xff, 0, EDGE, 3),
        (0xff, 0, LEVEL, 3),
        (2, 0, EDGE, 0),
        (1, 1, EDGE, 1),
        (2, 1, LEVEL, 2),
        (3, 1, LEVEL, 3),
        // Lowest priority: one of them.
        (3, 1, EDGE | 1 << 8, 1),
    ] {
        let address = 0xfee0_0000 | destination << 12 | logical << 2;
        let taken = vm.signal_msi(address, data).expect("a bus");
        assert_eq!(taken, takers != 0, "{destination} {logical} {data:#x}");
        let mut ends = 0;
        loop {
            match run_all(&mut vm) {
                (index, Exit::IoApicEoi { vector: 0x50 }) => ends |= 1_u32 << index,
                (_, Exit::Hlt) => break,
                other => panic!("{other:?}"),
            }
        }
        let level = data & 1 << 15 != 0;
        assert_eq!(
            ends,
            if level { takers } else { 0 },
            "{destination} {data:#x}"
        );
        for (index, woken) in woken.iter_mut().enumerate() {
            *woken += u64::from(takers >> index & 1);
            let regs = vm.vcpu(index).state(Parts::Registers).expect("state").regs;
            assert_eq!(regs.map(|r| r.get(Gpr::Rbx)), Some(*woken));
        }
    }
    assert!(vm.signal_msi(0xfee0_0000, DEASSERT).expect("a bus"));
    assert_eq!(
        run_all(&mut vm),
        (0, Exit::Hlt),
        "nobody hears the end of a level"
    );
    assert!(
        !vm.signal_msi(0xfed0_0000, EDGE).expect("a bus"),
        "no message"
    );
    Ok(())
}

#[test]
fn without_an_enabled_apic_cpuid_has_none_and_its_page_is_a_device() -> Result<(), IcedError> {
    let mut vm = machine(1);
    let mut a = CodeAssembler::new(64)?;
    for (base, register) in [(0xfee0_0100, r8), (0xfee0_0900, r9)] {
        wrmsr_to(&mut a, APIC_BASE, 0, base)?;
        a.mov(eax, 1)?;
        a.xor(ecx, ecx)?;
        a.cpuid()?;
        a.mov(register, rdx)?;
        // Its page, through one of memory that the tables map there.
        a.mov(r10d, dword_ptr(0x1f_0030))?;
    }
    a.hlt()?;
    place(&mut vm, CODE, a);
    // 4-KiB pages: identity but for 0x1f0000, which is the APIC's.
    for page in 0..512_u64 {
        let physical = if page == 0x1f0 {
            0xfee0_0000
        } else {
            page << 12
        };
        bare::put(&mut vm, 0x10_0000 + 8 * page, &(physical | 7).to_le_bytes());
    }
    bare::put(&mut vm, bare::PAGING + 0x2000, &0x10_0007_u64.to_le_bytes());
    vm.set_state(&long_mode(CODE)).expect("state");
    let (index, exit) = run_all(&mut vm);
    assert_eq!(index, 0);
    assert!(
        matches!(exit, Exit::MmioRead { address, .. } if address.0 == 0xfee0_0030),
        "{exit:?}"
    );
    vm.complete_read(0xffff_ffff).expect("waits");
    let registers = |vm: &mut SoftVm| {
        let state = vm.state(Parts::Registers).expect("state");
        state.regs.expect("registers")
    };
    assert_eq!(registers(&mut vm).get(Gpr::R10), 0xffff_ffff);
    assert_eq!(run_all(&mut vm), (0, Exit::Hlt));
    let regs = registers(&mut vm);
    let presence = [Gpr::R8, Gpr::R9].map(|gpr| regs.get(gpr) >> 9 & 1);
    assert_eq!(presence, [0, 1]);
    assert_eq!(
        regs.get(Gpr::R10),
        0x5_0014,
        "the version, by the APIC itself"
    );
    Ok(())
}
