//! Hostile guests and hostile states: random bytes as code in every mode and at every level, random
//! registers, random nested state. Nothing may panic, abort or hang; what the model lacks is said.

mod common;

use common::Run;
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::NestedState;
use nvmx_core::nested::specimen;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{
    AccessRights, CpuState, DebugRegs, DescriptorTable, Gpr, MpState, Regs, Segment, Sregs, VcpuEvents,
};
use nvmx_examples::guests;
use nvmx_soft::SoftVm;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const CODE: u64 = 0x1_0000;
const STACK: u64 = 0x2_0000;
const PAGING: u64 = 0x4000;
const IDT: u64 = 0x8000;
const GDT: u64 = 0x9000;
const HANDLER: u64 = 0xa000;
const MEMORY: u64 = 2 << 20;
/// No single case may take longer. Generous: the machine that runs the tests may be busy.
const LONGEST: Duration = Duration::from_secs(5);

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number of the kind that finds edges.
    fn odd(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(MEMORY),
            4 => (MEMORY - 16) + self.below(32),
            5 => 0x0000_8000_0000_0000 - 8 + self.below(16),
            6 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        // Prefixes and two-byte opcodes are where the interpreters are.
        const LIKELY: [u8; 28] = [
            0x0f, 0x0f, 0x0f, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x48, 0x2e, 0x01, 0x00, 0xc7, 0x20, 0x22, 0x23, 0x30,
            0x32, 0xa2, 0x31, 0xe4, 0xec, 0x6c, 0x6e, 0xcd, 0xcf, 0xf4, 0x9d,
        ];
        let mut bytes = vec![0; length];
        let weird = self.below(3);
        for byte in &mut bytes {
            let word = self.next();
            *byte = if weird > 0 && word >> 60 < 5 { LIKELY[(word >> 8) as usize % LIKELY.len()] } else { word as u8 };
        }
        bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Long0,
    Long3,
    Compatibility,
    Protected0,
    Protected3,
    Pae,
    Virtual8086,
    Real,
}

const MODES: [Mode; 8] = [
    Mode::Long0,
    Mode::Long3,
    Mode::Compatibility,
    Mode::Protected0,
    Mode::Protected3,
    Mode::Pae,
    Mode::Virtual8086,
    Mode::Real,
];

fn segment(selector: u16, ar: u32, limit: u32) -> Segment {
    Segment { selector, base: 0, limit, ar: AccessRights::from_bits_retain(ar) }
}

/// A flat machine in `mode`, with descriptor tables whose handlers return.
fn state(mode: Mode, random: &mut Random) -> CpuState {
    use Mode::*;
    let long = matches!(mode, Long0 | Long3 | Compatibility);
    let user = matches!(mode, Long3 | Protected3 | Virtual8086);
    let real = mode == Real;
    let dpl = if user { 0x60 } else { 0 };
    let selector = if user { 3 } else { 0 };
    let code = match mode {
        Long0 | Long3 => segment(0x08 | selector, 0xa09b | dpl, u32::MAX),
        Real => segment(0, 0x9b, 0xffff),
        Virtual8086 => segment(0, 0xf3, 0xffff),
        _ => segment(0x18 | selector, 0xc09b | dpl, u32::MAX),
    };
    let data = match mode {
        Real => segment(0, 0x93, 0xffff),
        Virtual8086 => segment(0, 0xf3, 0xffff),
        _ => segment(0x10 | selector, 0xc093 | dpl, u32::MAX),
    };
    let mut sregs = Sregs {
        cs: code,
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: segment(0x28, 0x8b, 0x67),
        ldtr: segment(0, 0x1_0082, 0),
        gdtr: DescriptorTable { base: GDT, limit: 0x7f },
        idtr: DescriptorTable { base: IDT, limit: 0xfff },
        cr0: cr0::ET | cr0::NE,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    };
    if !real {
        sregs.cr0 |= cr0::PE;
    }
    if long || mode == Pae {
        sregs.cr0 |= cr0::PG;
        sregs.cr3 = if long { PAGING } else { PAGING + 0x3000 };
        sregs.cr4 = cr4::PAE;
    }
    if long {
        sregs.efer = efer::LME | efer::LMA | efer::SCE;
    }
    sregs.cr4 |= [0, cr4::VMXE, cr4::OSXSAVE, cr4::TSD | cr4::DE, 1 << 9][random.below(5) as usize];
    if mode == Virtual8086 && random.below(2) == 0 {
        sregs.cr4 |= 1;
    }
    let mut regs = Regs { rip: CODE, rflags: 2 | random.next() & 0x4_8dd5, ..Regs::default() };
    if matches!(mode, Real | Virtual8086) {
        // CS selects the code; IP starts at zero.
        for register in [&mut sregs.cs] {
            register.selector = (CODE >> 4) as u16;
            register.base = CODE;
        }
        regs.rip = 0;
        if mode == Real {
            regs.rflags &= !0x3000;
        }
    }
    if mode == Virtual8086 {
        regs.rflags |= 1 << 17;
        sregs.ss.selector = 0x1000;
        sregs.ss.base = 0x1_0000;
    }
    for gpr in 0..16 {
        regs.gpr[gpr] = random.odd();
    }
    regs.set(Gpr::Rsp, STACK);
    CpuState { sregs: Some(sregs), regs: Some(regs), ..CpuState::default() }
}

fn put(vm: &mut SoftVm, address: u64, bytes: &[u8]) {
    vm.write_memory(L1Phys(address), bytes).expect("RAM");
}

/// Page tables (64-bit: identity of the first 2 MiB; PAE the same), GDT, an IDT of each width.
fn furnish(vm: &mut SoftVm, wide: bool) {
    let entry = |vm: &mut SoftVm, address, value: u64| put(vm, address, &value.to_le_bytes());
    entry(vm, PAGING, (PAGING + 0x1000) | 7);
    entry(vm, PAGING + 0x1000, (PAGING + 0x2000) | 7);
    entry(vm, PAGING + 0x2000, 0x87);
    entry(vm, PAGING + 0x3000, (PAGING + 0x2000) | 1);
    for (index, descriptor) in [
        0_u64,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8b00_b000_0067,
    ]
    .iter()
    .enumerate()
    {
        entry(vm, GDT + 8 * index as u64, *descriptor);
    }
    // TSS: stacks of ring 0.
    entry(vm, 0xb004, STACK - 0x1000);
    put(vm, 0xb008, &[0x10, 0]);
    for vector in 0..256_u64 {
        if wide {
            entry(vm, IDT + 16 * vector, HANDLER & 0xffff | 0x08 << 16 | 0x8e00 << 32);
            entry(vm, IDT + 16 * vector + 8, 0);
        } else {
            entry(vm, IDT + 8 * vector, HANDLER & 0xffff | 0x18 << 16 | 0x8e00 << 32);
        }
    }
    // Each handler steps over one byte and returns as if no error code had been pushed.
    let handler: &[u8] = if wide { &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf] } else { &[0xff, 0x04, 0x24, 0xcf] };
    put(vm, HANDLER, handler);
}

/// How often each way of ending came up.
type Tally = BTreeMap<&'static str, u32>;

fn name(exit: &Exit) -> &'static str {
    match exit {
        Exit::IoOut { .. } | Exit::IoIn { .. } => "port",
        Exit::MmioRead { .. } | Exit::MmioWrite { .. } => "MMIO",
        Exit::Hlt => "HLT",
        Exit::Shutdown => "shutdown",
        Exit::Budget | Exit::Stepped => "budget",
        Exit::FailEntry { .. } => "entry",
        Exit::InternalError { .. } => "internal error",
        Exit::Unsupported { .. } => "unsupported",
    }
}

/// Runs on through a few exits.
fn drive(vm: &mut SoftVm, instructions: u64, tally: &mut Tally, case: &str) {
    let start = Instant::now();
    for _ in 0..6 {
        let exit = vm.run(Budget { time: Some(Duration::from_millis(200)), ..Budget::instructions(instructions) });
        let exit = exit.unwrap_or_else(|error| panic!("{case}: {error}"));
        *tally.entry(name(&exit)).or_default() += 1;
        let read = matches!(exit, Exit::IoIn { .. } | Exit::MmioRead { .. });
        // Completing INS may fault on its way to memory, which is no error of the machine.
        if read && vm.complete_read(0x0123_4567_89ab_cdef).is_err() {
            break;
        }
        if !read && !matches!(exit, Exit::IoOut { .. } | Exit::MmioWrite { .. }) {
            break;
        }
    }
    vm.drain_nested_events(&mut Vec::new()).expect("events");
    assert!(start.elapsed() < LONGEST, "{case}: {:?}", start.elapsed());
}

fn machine() -> SoftVm {
    SoftVm::new(&VmConfig { memory_size: MEMORY, ..VmConfig::default() }).expect("a machine")
}

#[test]
fn random_code_in_every_mode() {
    let mut tally = Tally::new();
    for (index, mode) in MODES.into_iter().enumerate() {
        let mut random = Random(index as u64);
        let mut vm = machine();
        for case in 0..2500 {
            if case % 50 == 0 {
                let wide = matches!(mode, Mode::Long0 | Mode::Long3 | Mode::Compatibility);
                furnish(&mut vm, wide);
            }
            let code = random.bytes(48);
            put(&mut vm, CODE, &code);
            vm.set_nested_state(&NestedState::default()).expect("always taken");
            let mut start = state(mode, &mut random);
            start.events = Some(VcpuEvents::default());
            start.mp_state = Some(MpState::Runnable);
            start.debug = Some(DebugRegs::default());
            vm.set_state(&start).expect("taken");
            let text = format!("{mode:?} case {case}: {code:02x?}");
            drive(&mut vm, 64, &mut tally, &text);
        }
    }
    println!("{tally:?}");
    assert!(tally.len() >= 6, "{tally:?}");
    assert_eq!(tally.get("internal error"), None, "{tally:?}");
}

/// The code of an example's L2 overwritten: L1 is a real hypervisor with real controls.
#[test]
fn random_code_in_l2() {
    let mut tally = Tally::new();
    let mut random = Random(77);
    for guest in guests::all() {
        // L2 about to run for the first time.
        let mut run = Run::new(guest);
        run.run(Budget::nested_events(1));
        let start = run.capture();
        let memory: Vec<_> = start.pages.clone();
        if !start.nested.guest_mode() {
            continue;
        }
        for case in 0..400 {
            run.vm.set_nested_state(&NestedState::default()).expect("always taken");
            if case % 20 == 0 {
                for (page, bytes) in &memory {
                    run.vm.write_memory(L1Phys(page * 4096), bytes).expect("RAM");
                }
            }
            run.vm.set_state(&start.state).expect("taken");
            let mut nested = start.nested.clone();
            if case % 3 == 2 {
                // Any controls, fields and state that still pass the checks.
                let vmcs12 = nested.vmcs12_mut().expect("a vmcs12");
                let at = 4 + random.below(990) as usize;
                vmcs12.bytes_mut()[at] ^= 1 << random.below(8);
            }
            if run.vm.set_nested_state(&nested).is_err() {
                run.vm.set_nested_state(&start.nested).expect("its own state");
            }
            let code = random.bytes(64);
            let state = run.vm.state(Parts::Registers).expect("state");
            let (regs, sregs) = (state.regs.expect("regs"), state.sregs.expect("sregs"));
            let base = if sregs.efer & efer::LMA != 0 { 0 } else { sregs.cs.base };
            let address = base.wrapping_add(regs.rip) & 0xff_ffff;
            if address < (16 << 20) - 64 {
                run.vm.write_memory(L1Phys(address), &code).expect("RAM");
            }
            let text = format!("{} case {case}: {code:02x?}", guest.name);
            drive(&mut run.vm, 500, &mut tally, &text);
        }
    }
    println!("{tally:?}");
    assert_eq!(tally.get("internal error"), None, "{tally:?}");
}

fn odd_segment(random: &mut Random) -> Segment {
    Segment {
        selector: random.next() as u16,
        base: random.odd(),
        limit: random.odd() as u32,
        ar: AccessRights::from_bits_retain(random.next() as u32 & 0x1_f0ff),
    }
}

fn odd_state(random: &mut Random) -> CpuState {
    let mut sregs = Sregs::default();
    for segment in [
        &mut sregs.es,
        &mut sregs.cs,
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.fs,
        &mut sregs.gs,
        &mut sregs.ldtr,
        &mut sregs.tr,
    ] {
        *segment = odd_segment(random);
    }
    sregs.gdtr = DescriptorTable { base: random.odd(), limit: random.next() as u16 };
    sregs.idtr = DescriptorTable { base: random.odd(), limit: random.next() as u16 };
    sregs.cr0 = random.odd() ^ random.below(2) ^ random.below(2) << 31;
    sregs.cr2 = random.odd();
    sregs.cr3 = random.odd();
    sregs.cr4 = random.odd();
    sregs.cr8 = random.odd();
    sregs.efer = random.odd() & 0xfff;
    sregs.apic_base = random.odd();
    sregs.pdptrs = std::array::from_fn(|_| random.odd());
    sregs.pdptrs_valid = random.below(2) == 0;
    let regs = Regs {
        gpr: std::array::from_fn(|_| random.odd()),
        rip: random.odd(),
        rflags: random.odd(),
    };
    let byte = random.next();
    let events = VcpuEvents {
        exception_injected: byte & 1 != 0,
        exception_pending: byte & 2 != 0,
        exception_vector: (byte >> 8) as u8,
        exception_error_code: (byte & 4 != 0).then_some(random.next() as u32),
        exception_payload: (byte & 8 != 0).then_some(random.odd()),
        interrupt_injected: byte & 0x10 != 0,
        interrupt_vector: (byte >> 16) as u8,
        interrupt_soft: byte & 0x20 != 0,
        interrupt_shadow: (byte >> 24) as u8,
        nmi_injected: byte & 0x40 != 0,
        nmi_pending: (byte >> 32) as u8,
        nmi_masked: byte & 0x80 != 0,
        triple_fault_pending: byte >> 40 & 7 == 0,
        smm: byte >> 43 & 7 == 0,
        ..VcpuEvents::default()
    };
    let msrs = (0..4).map(|_| {
        let all = nvmx_core::x86::msr::ALL;
        (all[random.below(all.len() as u64) as usize], random.odd())
    });
    let msrs: BTreeMap<u32, u64> = msrs.collect();
    let debug = DebugRegs { db: std::array::from_fn(|_| random.odd()), dr6: random.odd(), dr7: random.odd() & !0xff };
    CpuState {
        cpuid: None,
        tsc_khz: (random.below(4) == 0).then(|| random.odd() as u32),
        sregs: (random.below(8) != 0).then_some(sregs),
        msrs: (random.below(2) == 0).then_some(msrs),
        xcr0: (random.below(4) == 0).then(|| random.odd()),
        xsave: (random.below(2) == 0).then(|| {
            let length = [0, 100, 512, 600, 4096][random.below(5) as usize];
            random.bytes(length)
        }),
        events: (random.below(3) == 0).then_some(events),
        mp_state: MpState::from_kernel(random.below(12) as u32),
        debug: Some(debug),
        regs: Some(regs),
        lapic: (random.below(4) == 0).then(|| random.bytes(1024)),
    }
}

/// Any registers, any segments, any events: refused or run.
#[test]
fn random_states() {
    let mut random = Random(5);
    let mut vm = machine();
    let mut tally = Tally::new();
    for case in 0..6000 {
        if case % 100 == 0 {
            vm = machine();
            furnish(&mut vm, case % 200 == 0);
        }
        let code = random.bytes(64);
        put(&mut vm, CODE, &code);
        let state = odd_state(&mut random);
        let text = format!("case {case}: {state:x?}");
        // An error is an answer.
        if vm.set_state(&state).is_err() {
            *tally.entry("refused").or_default() += 1;
        }
        drive(&mut vm, 32, &mut tally, &text);
        let _ = vm.state(Parts::All).expect("readable");
        let _ = vm.nested_state().expect("readable");
    }
    println!("{tally:?}");
}

/// Any bytes as nested state, most of them near a state that holds; then it runs.
#[test]
fn random_nested_states() {
    let mut random = Random(9);
    let mut vm = machine();
    let capability = Capability::new(&KVM_6_1_ICELAKE);
    let seeds = [
        specimen::guest_mode(capability).to_bytes(),
        specimen::guest_mode_with_shadow(capability).to_bytes(),
        specimen::with_vmcs12(capability).to_bytes(),
    ];
    let mut tally = Tally::new();
    for case in 0..6000 {
        if case % 100 == 0 {
            vm = machine();
            furnish(&mut vm, true);
            for (address, bytes) in specimen::shadow_memory() {
                put(&mut vm, address.0, &bytes);
            }
        }
        let mut bytes = seeds[random.below(3) as usize].clone();
        for _ in 0..random.below(6) {
            let at = random.below(1300.min(bytes.len() as u64)) as usize;
            bytes[at] = if random.below(2) == 0 { random.next() as u8 } else { bytes[at] ^ 1 << random.below(8) };
        }
        if random.below(16) == 0 {
            let length = random.below(bytes.len() as u64 + 1);
            bytes.truncate(length as usize);
        }
        let start = state(Mode::Long0, &mut random);
        vm.set_state(&CpuState { events: Some(VcpuEvents::default()), ..start }).expect("taken");
        let _ = vm.try_nested_bytes(&bytes).expect("an answer");
        let Ok(nested) = NestedState::from_bytes(&bytes) else { continue };
        let taken = vm.set_nested_state(&nested).is_ok();
        *tally.entry(if taken { "taken" } else { "refused" }).or_default() += 1;
        drive(&mut vm, 64, &mut tally, &format!("case {case}"));
        let again = vm.nested_state().expect("readable");
        // What a machine gives can always be looked at.
        let _ = again.vmcs12().map(|vmcs12| vmcs12.get(Field::VM_EXIT_REASON));
    }
    println!("{tally:?}");
    assert!(tally.get("taken").is_some_and(|count| *count > 500), "{tally:?}");
}

/// A handler whose first instruction faults, on a stack that never moves (IST): no instruction is ever
/// executed. A time budget ends it, and so does the count of events.
#[test]
fn exceptions_without_end_do_not_hang() {
    let mut vm = machine();
    furnish(&mut vm, true);
    // Every vector: IST 1, handler UD2.
    for vector in 0..32_u64 {
        put(&mut vm, IDT + 16 * vector + 4, &[1]);
    }
    put(&mut vm, 0xb024, &(STACK - 0x2000).to_le_bytes());
    put(&mut vm, HANDLER, &[0x0f, 0x0b]);
    put(&mut vm, CODE, &[0x0f, 0x0b]);
    let mut start = state(Mode::Long0, &mut Random(0));
    if let Some(sregs) = &mut start.sregs {
        sregs.tr.base = 0xb000;
        sregs.cr4 = cr4::PAE;
    }
    if let Some(regs) = &mut start.regs {
        regs.rflags = 2;
    }
    vm.set_state(&start).expect("taken");
    let begun = Instant::now();
    assert_eq!(vm.run(Budget::time(Duration::from_millis(20))).expect("runs"), Exit::Budget);
    let exit = vm.run(Budget::instructions(1)).expect("runs");
    assert!(matches!(exit, Exit::InternalError { .. }), "{exit:?}");
    assert!(begun.elapsed() < LONGEST);
}

/// HLT with a masked periodic timer, or one that RFLAGS.IF keeps out: nothing will ever wake it.
#[test]
fn a_timer_that_wakes_nobody_does_not_hang() {
    for lvt in [0x2_0030_u32, 0x3_0030] {
        let mut vm = machine();
        furnish(&mut vm, true);
        put(&mut vm, CODE, &[0xf4, 0xf4, 0xf4]);
        let mut start = state(Mode::Long0, &mut Random(0));
        if let Some(regs) = &mut start.regs {
            regs.rflags = 2;
        }
        let mut page = vm.state(Parts::All).expect("state").lapic.expect("a LAPIC");
        for (register, value) in [(0xf0_usize, 0x1ff_u32), (0x320, lvt), (0x380, 1000), (0x390, 1000)] {
            page[register..register + 4].copy_from_slice(&value.to_le_bytes());
        }
        start.lapic = Some(page);
        vm.set_state(&start).expect("taken");
        assert_eq!(vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
    }
}
