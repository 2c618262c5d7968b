//! Hostile guests and hostile states: random bytes as code in every mode and at every level, random
//! registers, random nested state. Nothing may panic, abort or hang; what the model lacks is said.

mod common;

use common::Run;
use common::bare::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::nested::NestedState;
use nvmx_core::nested::specimen;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::x86::control::{cr4, efer};
use nvmx_core::x86::{
    AccessRights, CpuState, DebugRegs, DescriptorTable, MpState, Regs, Segment, Sregs, VcpuEvents,
};
use nvmx_examples::guests;
use nvmx_soft::SoftVm;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// No single case may take longer. Generous: the machine that runs the tests may be busy.
const LONGEST: Duration = Duration::from_secs(5);

/// How often each way of ending came up.
type Tally = BTreeMap<&'static str, u32>;

fn name(exit: &Exit) -> &'static str {
    match exit {
        Exit::IoOut { .. } | Exit::IoIn { .. } => "port",
        Exit::MmioRead { .. } | Exit::MmioWrite { .. } => "MMIO",
        Exit::MsrRead { .. } | Exit::MsrWrite { .. } => "MSR",
        Exit::Hlt => "HLT",
        Exit::Shutdown => "shutdown",
        Exit::InterruptWindow | Exit::IoApicEoi { .. } => "interrupt",
        Exit::Budget | Exit::Stepped => "budget",
        Exit::Debug { .. } => "not asked for",
        Exit::FailEntry { .. } => "entry",
        // The memory that they are read from is the guest's to spoil.
        Exit::InternalError { message, .. } if message.starts_with("invalid PDPTEs") => "PDPTEs",
        Exit::InternalError { .. } => "internal error",
        Exit::Unsupported { .. } => "unsupported",
    }
}

/// Runs on through a few exits.
fn drive(vm: &mut SoftVm, instructions: u64, tally: &mut Tally, case: &str) {
    let start = Instant::now();
    for _ in 0..6 {
        let exit = vm.run(Budget {
            time: Some(Duration::from_millis(200)),
            ..Budget::instructions(instructions)
        });
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

#[test]
fn random_code_in_every_mode() {
    let mut tally = Tally::new();
    for (index, mode) in MODES.into_iter().enumerate() {
        let mut random = Random(index as u64);
        let mut vm = machine();
        for case in 0..cases(4000) {
            if case % 50 == 0 {
                let wide = matches!(mode, Mode::Long0 | Mode::Long3 | Mode::Compatibility);
                furnish(&mut vm, wide);
            }
            let code = random.bytes(48);
            put(&mut vm, CODE, &code);
            vm.set_nested_state(&NestedState::default())
                .expect("always taken");
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
        for case in 0..cases(800) {
            run.vm
                .set_nested_state(&NestedState::default())
                .expect("always taken");
            if case % 20 == 0 {
                for (page, bytes) in &memory {
                    run.vm
                        .write_memory(L1Phys(page * 4096), bytes)
                        .expect("RAM");
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
                run.vm
                    .set_nested_state(&start.nested)
                    .expect("its own state");
            }
            let code = random.bytes(64);
            let state = run.vm.state(Parts::Registers).expect("state");
            let (regs, sregs) = (state.regs.expect("regs"), state.sregs.expect("sregs"));
            let base = if sregs.efer & efer::LMA != 0 {
                0
            } else {
                sregs.cs.base
            };
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
    sregs.gdtr = DescriptorTable {
        base: random.odd(),
        limit: random.next() as u16,
    };
    sregs.idtr = DescriptorTable {
        base: random.odd(),
        limit: random.next() as u16,
    };
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
    let debug = DebugRegs {
        db: std::array::from_fn(|_| random.odd()),
        dr6: random.odd(),
        dr7: random.odd() & !0xff,
    };
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
        mp_state: MpState::from_kernel(random.below(100) as u32).or(Some(MpState::Runnable)),
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
    for case in 0..cases(12_000) {
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
        specimen::guest_mode(capability),
        specimen::guest_mode_with_shadow(capability),
        specimen::with_vmcs12(capability),
    ]
    .map(|mut state| {
        let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
        for field in [Field::GUEST_CR3, Field::HOST_CR3] {
            vmcs12.set(field, PAGING);
        }
        for (selector, base, limit) in [
            (Field::GUEST_GDTR_BASE, GDT, Field::GUEST_GDTR_LIMIT),
            (Field::GUEST_IDTR_BASE, IDT, Field::GUEST_IDTR_LIMIT),
        ] {
            vmcs12.set(selector, base);
            vmcs12.set(limit, 0xfff);
        }
        vmcs12.set(Field::HOST_GDTR_BASE, GDT);
        vmcs12.set(Field::HOST_IDTR_BASE, IDT);
        vmcs12.set(Field::HOST_RIP, CODE);
        state.to_bytes()
    });
    let mut tally = Tally::new();
    for case in 0..cases(12_000) {
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
            bytes[at] = if random.below(2) == 0 {
                random.next() as u8
            } else {
                bytes[at] ^ 1 << random.below(8)
            };
        }
        if random.below(16) == 0 {
            let length = random.below(bytes.len() as u64 + 1);
            bytes.truncate(length as usize);
        }
        let code = random.bytes(48);
        put(&mut vm, CODE, &code);
        let code = random.bytes(48);
        put(&mut vm, 0xc000, &code);
        let start = state(Mode::Long0, &mut random);
        vm.set_state(&CpuState {
            events: Some(VcpuEvents::default()),
            ..start
        })
        .expect("taken");
        let _ = vm.try_nested_bytes(&bytes).expect("an answer");
        let Ok(nested) = NestedState::from_bytes(&bytes) else {
            continue;
        };
        let taken = vm.set_nested_state(&nested).is_ok();
        *tally
            .entry(if taken { "taken" } else { "refused" })
            .or_default() += 1;
        drive(&mut vm, 64, &mut tally, &format!("case {case}"));
        let again = vm.nested_state().expect("readable");
        // What a machine gives can always be looked at.
        let _ = again
            .vmcs12()
            .map(|vmcs12| vmcs12.get(Field::VM_EXIT_REASON));
    }
    println!("{tally:?}");
    assert!(
        tally.get("taken").is_some_and(|count| *count > 500),
        "{tally:?}"
    );
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
    assert_eq!(
        vm.run(Budget::time(Duration::from_millis(20)))
            .expect("runs"),
        Exit::Budget
    );
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
        for (register, value) in [
            (0xf0_usize, 0x1ff_u32),
            (0x320, lvt),
            (0x380, 1000),
            (0x390, 1000),
        ] {
            page[register..register + 4].copy_from_slice(&value.to_le_bytes());
        }
        start.lapic = Some(page);
        vm.set_state(&start).expect("taken");
        assert_eq!(vm.run(Budget::UNLIMITED).expect("runs"), Exit::Hlt);
    }
}
