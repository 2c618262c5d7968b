//! The PC around the software model: its timers and interrupt controllers seen from a guest that waits
//! for them, and the same to the bit in a second run.

mod common;

use common::bare::{self, CODE, MEMORY, Mode, Random};
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::x86::{CpuState, MpState};
use nvmx_machine::pc::Config;
use nvmx_machine::{Driver, Stop};
use nvmx_soft::SoftVm;

/// Where handlers count.
const COUNT: u64 = 0x3000;
const HANDLERS: u64 = 0x1_4000;
/// Code of the second processor.
const SECOND: u64 = 0x1_8000;
const IOAPIC: u64 = 0xfec0_0000;
const APIC: u64 = 0xfee0_0000;
const APIC_EOI: u64 = APIC + 0xb0;
const APIC_SPURIOUS: u64 = APIC + 0xf0;
/// LINT0 as firmware sets it for a PIC: ExtINT.
const APIC_LINT0: u64 = APIC + 0x350;
const EXTINT: u32 = 0x700;

/// How a handler ends its interrupt.
#[derive(Clone, Copy)]
enum End {
    Pic,
    Apic,
    /// First the port is written, which lowers the test device's line.
    LowerThenApic(u16),
    /// The clock's register C is read, then both PICs are told.
    Clock,
    /// The serial port's identification is read.
    Serial,
}

struct Guest {
    code: CodeAssembler,
    /// What a second processor runs, if there is one.
    second: Option<CodeAssembler>,
    handlers: Vec<(u8, Vec<u8>)>,
}

impl Guest {
    fn new() -> Result<Self, IcedError> {
        let mut guest = Self {
            code: CodeAssembler::new(32)?,
            second: None,
            handlers: Vec::new(),
        };
        // The local APIC passes the PIC's interrupts on.
        guest.store(APIC_SPURIOUS, 0x1ff)?;
        guest.store(APIC_LINT0, EXTINT)?;
        for (port, base, icw3) in [(0x20, 0x30, 4), (0xa0, 0x38, 2)] {
            guest.out(port, 0x11)?;
            for value in [base, icw3, 1, 0xff] {
                guest.out(port + 1, value)?;
            }
        }
        Ok(guest)
    }

    fn out(&mut self, port: u16, value: u8) -> Result<(), IcedError> {
        out(&mut self.code, port, value)
    }

    fn store(&mut self, address: u64, value: u32) -> Result<(), IcedError> {
        store(&mut self.code, address, value)
    }

    /// Channel 0 as a rate generator.
    fn timer(&mut self, count: u16) -> Result<(), IcedError> {
        self.out(0x43, 0x34)?;
        let [low, high] = count.to_le_bytes();
        self.out(0x40, low)?;
        self.out(0x40, high)
    }

    fn redirect(&mut self, input: u32, entry: u32) -> Result<(), IcedError> {
        self.store(IOAPIC, 0x11 + 2 * input)?;
        self.store(IOAPIC + 0x10, 0)?;
        self.store(IOAPIC, 0x10 + 2 * input)?;
        self.store(IOAPIC + 0x10, entry)
    }

    /// A handler that counts at [`COUNT`].
    fn handler(&mut self, vector: u8, end: End) -> Result<(), IcedError> {
        let mut a = CodeAssembler::new(32)?;
        a.push(eax)?;
        a.push(edx)?;
        a.inc(dword_ptr(COUNT))?;
        match end {
            End::Pic => out(&mut a, 0x20, 0x20)?,
            End::Apic => store(&mut a, APIC_EOI, 0)?,
            End::LowerThenApic(port) => {
                // The third time the line falls.
                let mut high = a.create_label();
                a.cmp(dword_ptr(COUNT), 3)?;
                a.jb(high)?;
                out(&mut a, port, 0)?;
                a.set_label(&mut high)?;
                store(&mut a, APIC_EOI, 0)?;
            }
            End::Clock => {
                out(&mut a, 0x70, 0x0c)?;
                a.in_(al, 0x71)?;
                out(&mut a, 0xa0, 0x20)?;
                out(&mut a, 0x20, 0x20)?;
            }
            End::Serial => {
                a.mov(dx, 0x3fa)?;
                a.in_(al, dx)?;
                out(&mut a, 0x20, 0x20)?;
            }
        }
        a.pop(edx)?;
        a.pop(eax)?;
        a.iretd()?;
        let address = HANDLERS + 0x100 * self.handlers.len() as u64;
        self.handlers.push((vector, a.assemble(address)?));
        Ok(())
    }

    /// Sleeps until a handler has counted so far, then ends the run.
    fn sleep_until(&mut self, count: u32) -> Result<(), IcedError> {
        let a = &mut self.code;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.sti()?;
        a.hlt()?;
        a.cli()?;
        a.cmp(dword_ptr(COUNT), count)?;
        a.jb(wait)?;
        a.mov(al, 0)?;
        a.out(0xf4, al)
    }

    /// Spins instead of sleeping.
    fn spin_until(&mut self, count: u32) -> Result<(), IcedError> {
        let a = &mut self.code;
        let mut wait = a.create_label();
        a.sti()?;
        a.set_label(&mut wait)?;
        a.cmp(dword_ptr(COUNT), count)?;
        a.jb(wait)?;
        a.cli()?;
        a.mov(al, 0)?;
        a.out(0xf4, al)
    }

    fn run(mut self) -> Result<Outcome, IcedError> {
        let mut code = vec![(CODE, self.code.assemble(CODE)?)];
        if let Some(second) = &mut self.second {
            code.push((SECOND, second.assemble(SECOND)?));
        }
        let once = play(&code, &self.handlers, None);
        let again = play(&code, &self.handlers, None);
        assert_eq!(once, again, "the same to the bit");
        let cut = play(&code, &self.handlers, Some(37));
        assert_eq!(once, cut, "wherever it is cut");
        Ok(once)
    }
}

fn out(a: &mut CodeAssembler, port: u16, value: u8) -> Result<(), IcedError> {
    a.mov(dx, u32::from(port))?;
    a.mov(al, u32::from(value))?;
    a.out(dx, al)
}

fn store(a: &mut CodeAssembler, address: u64, value: u32) -> Result<(), IcedError> {
    a.mov(dword_ptr(address), value)
}

/// What a run left.
#[derive(Debug, PartialEq)]
struct Outcome {
    stop: Stop,
    count: u32,
    now: u64,
    executed: Option<u64>,
    serial: Vec<u8>,
    states: Vec<CpuState>,
}

fn machine(vcpus: usize) -> (SoftVm, Driver) {
    let mut vm = SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        vcpus,
    })
    .expect("a machine");
    bare::furnish(&mut vm, false);
    let config = Config {
        memory_size: MEMORY,
        processors: vcpus,
        ..Config::default()
    };
    let driver = Driver::pc(Vec::new(), &config, &mut vm).expect("a PC");
    (vm, driver)
}

/// 32-bit protected mode, flat.
fn protected_mode(rip: u64) -> CpuState {
    let mut state = bare::state(Mode::Protected0, &mut Random(1));
    if let Some(regs) = &mut state.regs {
        regs.gpr = [0; 16];
        regs.rip = rip;
        regs.rflags = 2;
        regs.set(nvmx_core::x86::Gpr::Rsp, bare::STACK + (rip & 0xf000));
    }
    state.mp_state = Some(MpState::Runnable);
    state
}

fn play(code: &[(u64, Vec<u8>)], handlers: &[(u8, Vec<u8>)], piece: Option<u64>) -> Outcome {
    let (mut vm, mut driver) = machine(code.len());
    for (index, (address, bytes)) in code.iter().enumerate() {
        bare::put(&mut vm, *address, bytes);
        let state = protected_mode(*address);
        vm.vcpu(index).set_state(&state).expect("state");
    }
    for ((vector, bytes), address) in handlers.iter().zip((HANDLERS..).step_by(0x100)) {
        bare::put(&mut vm, address, bytes);
        let gate = address & 0xffff | 0x18 << 16 | 0x8e00 << 32 | (address >> 16) << 48;
        let at = bare::IDT + 8 * u64::from(*vector);
        bare::put(&mut vm, at, &gate.to_le_bytes());
    }
    let stop = loop {
        let budget = Budget {
            instructions: piece,
            time: Some(common::PATIENCE),
            ..Budget::UNLIMITED
        };
        match driver.run(&mut vm, budget).expect("runs") {
            Stop::Budget if piece.is_some() => {}
            stop => break stop,
        }
    };
    let mut count = [0; 4];
    vm.read_memory(L1Phys(COUNT), &mut count).expect("RAM");
    Outcome {
        stop,
        count: u32::from_le_bytes(count),
        now: vm.now().expect("a clock"),
        executed: vm.executed_instructions(),
        serial: driver.serial().clone(),
        states: (0..code.len())
            .map(|index| vm.vcpu(index).state(Parts::All).expect("state"))
            .collect(),
    }
}

/// Nanoseconds of so many of the timer's ticks.
fn ticks(count: u64) -> u64 {
    count * 1_000_000_000 / 1_193_182
}

#[test]
fn the_timer_interrupts_through_the_pic() -> Result<(), IcedError> {
    for spins in [false, true] {
        let mut guest = Guest::new()?;
        guest.handler(0x30, End::Pic)?;
        guest.timer(1000)?;
        guest.out(0x21, 0xfe)?;
        if spins {
            guest.spin_until(5)?;
        } else {
            guest.sleep_until(5)?;
        }
        let outcome = guest.run()?;
        assert_eq!((outcome.stop, outcome.count), (Stop::DebugExit(0), 5));
        let least = ticks(5000);
        assert!(
            (least..least + 5_000).contains(&outcome.now),
            "{}",
            outcome.now
        );
    }
    Ok(())
}

#[test]
fn the_timer_interrupts_through_the_io_apic() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x40, End::Apic)?;
    guest.redirect(2, 0x40)?;
    guest.timer(1000)?;
    guest.sleep_until(5)?;
    let outcome = guest.run()?;
    assert_eq!(outcome.count, 5);
    let least = ticks(5000);
    assert!(
        (least..least + 5_000).contains(&outcome.now),
        "{}",
        outcome.now
    );
    Ok(())
}

#[test]
fn a_level_comes_again_until_it_falls() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x50, End::LowerThenApic(0x200b))?;
    guest.redirect(11, 0x8050)?;
    guest.out(0x200b, 1)?;
    guest.spin_until(3)?;
    let outcome = guest.run()?;
    assert_eq!((outcome.stop, outcome.count), (Stop::DebugExit(0), 3));
    Ok(())
}

#[test]
fn an_edge_comes_once() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x50, End::Apic)?;
    guest.redirect(14, 0x50)?;
    guest.out(0x200e, 1)?;
    let a = &mut guest.code;
    a.sti()?;
    for _ in 0..20 {
        a.nop()?;
    }
    a.cli()?;
    a.out(0xf4, al)?;
    let outcome = guest.run()?;
    assert_eq!(outcome.count, 1);
    Ok(())
}

#[test]
fn the_clock_interrupts_at_its_rate() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x38, End::Clock)?;
    for (register, value) in [(0x0a, 0x26), (0x0b, 0x42)] {
        guest.out(0x70, register)?;
        guest.out(0x71, value)?;
    }
    guest.out(0x21, 0xfb)?;
    guest.out(0xa1, 0xfe)?;
    guest.sleep_until(4)?;
    let outcome = guest.run()?;
    assert_eq!(outcome.count, 4);
    // 1024 Hz.
    let least = 4 * 976_562;
    assert!(
        (least..least + 5_000).contains(&outcome.now),
        "{}",
        outcome.now
    );
    Ok(())
}

#[test]
fn the_serial_port_interrupts_when_it_can_send() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x34, End::Serial)?;
    guest.out(0x21, 0xef)?;
    guest.out(0x3f9, 2)?;
    // One interrupt for enabling, one for each byte.
    let a = &mut guest.code;
    let mut wait = a.create_label();
    a.set_label(&mut wait)?;
    a.sti()?;
    a.hlt()?;
    a.cli()?;
    a.mov(dx, 0x3f8)?;
    a.mov(al, u32::from(b'x'))?;
    a.out(dx, al)?;
    a.cmp(dword_ptr(COUNT), 3)?;
    a.jb(wait)?;
    a.mov(al, 0)?;
    a.out(0xf4, al)?;
    let outcome = guest.run()?;
    assert_eq!((outcome.count, &outcome.serial[..]), (3, &b"xxx"[..]));
    Ok(())
}

#[test]
fn the_io_apic_reaches_the_second_processor_and_the_pic_the_first() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x40, End::Apic)?;
    guest.handler(0x30, End::Pic)?;
    guest.redirect(2, 0x40)?;
    guest.store(IOAPIC, 0x15)?;
    guest.store(IOAPIC + 0x10, 1 << 24)?;
    guest.timer(1000)?;
    guest.out(0x21, 0xfe)?;
    // The first takes every tick from the PIC, and never ends the run.
    guest.sleep_until(u32::MAX)?;
    let mut second = CodeAssembler::new(32)?;
    store(&mut second, APIC_SPURIOUS, 0x1ff)?;
    let mut wait = second.create_label();
    second.set_label(&mut wait)?;
    second.sti()?;
    second.hlt()?;
    second.cli()?;
    second.inc(ebx)?;
    second.cmp(ebx, 3)?;
    second.jb(wait)?;
    second.mov(al, 7)?;
    second.out(0xf4, al)?;
    guest.second = Some(second);
    let outcome = guest.run()?;
    assert_eq!(outcome.stop, Stop::DebugExit(7));
    // Both counted; the first may not have come to its third.
    assert!((5..=6).contains(&outcome.count), "{}", outcome.count);
    Ok(())
}

#[test]
fn nothing_to_wait_for_ends_the_run() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    // The timer runs, but nobody listens.
    guest.timer(1000)?;
    guest.code.hlt()?;
    assert_eq!(guest.run()?.stop, Stop::Halted);
    Ok(())
}

#[test]
fn a_level_that_falls_in_time_is_never_seen() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    guest.handler(0x37, End::Apic)?;
    // Level-triggered line 5 rises and falls while interrupts are off.
    guest.out(0x4d0, 0x20)?;
    guest.out(0x21, 0xdf)?;
    guest.out(0x2005, 1)?;
    guest.out(0x2005, 0)?;
    let a = &mut guest.code;
    a.sti()?;
    a.nop()?;
    a.nop()?;
    a.out(0xf4, al)?;
    let outcome = guest.run()?;
    assert_eq!(outcome.count, 0, "the processor never saw it");
    Ok(())
}

#[test]
fn tables_are_in_memory_and_the_configuration_device_copies() -> Result<(), IcedError> {
    let mut guest = Guest::new()?;
    let a = &mut guest.code;
    // A descriptor at 0x3100: select RAM_SIZE and read 8 bytes to 0x3200.
    for (at, value) in [
        (0x3100_u64, 0x0003_000a_u32),
        (0x3104, 8),
        (0x3108, 0),
        (0x310c, 0x3200),
    ] {
        a.mov(dword_ptr(at), value.swap_bytes())?;
    }
    a.mov(dx, 0x518)?;
    a.mov(eax, 0x3100_u32.swap_bytes())?;
    a.out(dx, eax)?;
    a.mov(ebx, dword_ptr(0x3200_u64))?;
    a.mov(ecx, dword_ptr(0x3100_u64))?;
    a.mov(esi, dword_ptr(0xf_0000_u64))?;
    a.mov(dx, 0x604)?;
    a.mov(eax, 0x2000)?;
    a.out(dx, ax)?;
    let outcome = guest.run()?;
    assert_eq!(outcome.stop, Stop::PowerOff);
    let regs = outcome.states[0].regs.expect("registers");
    use nvmx_core::x86::Gpr::{Rbx, Rcx, Rsi};
    assert_eq!(regs.get(Rbx), MEMORY);
    assert_eq!(regs.get(Rcx), 0, "no error");
    assert_eq!(regs.get(Rsi), u64::from(u32::from_le_bytes(*b"RSD ")));
    Ok(())
}

#[test]
fn a_machine_of_another_size_is_refused() {
    let (mut vm, _) = machine(1);
    for (memory_size, processors) in [(MEMORY + 4096, 1), (MEMORY, 2)] {
        let config = Config {
            memory_size,
            processors,
            ..Config::default()
        };
        assert!(Driver::pc(Vec::new(), &config, &mut vm).is_err());
    }
}
