//! KVM_SET_NESTED_STATE on the software backend: the answers that real kernels gave, and a vCPU that
//! a refusal leaves exactly as it was.

mod common;

use common::{Capture, Run, capture, difference};
use nvmx_core::nested::set_rules::SetRefusal;
use nvmx_core::nested::specimen::{self, BreakingBlob};
use nvmx_core::nested::{Flags, NestedState};
use nvmx_core::vcpu::{BackendError, Budget, Exit, NestedEvent, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{AccessRights, CpuState, Regs, Segment, Sregs, msr};
use nvmx_examples::guests;
use nvmx_soft::SoftVm;

/// CPUID.1:ECX.VMX.
const VMX: u32 = 1 << 5;

/// `rule, result, errno` as the kernels answered.
fn recorded() -> Vec<(String, i32)> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../core/tests/data/set-nested-state/answers.txt"
    );
    let text = std::fs::read_to_string(path).expect("the recorded answers");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines
        .map(|line| {
            let mut words = line.split_whitespace();
            let rule = words.next().expect("a rule").to_owned();
            let mut number = || {
                words
                    .next()
                    .and_then(|word| word.parse::<i32>().ok())
                    .expect("a number")
            };
            let (result, errno) = (number(), number());
            (rule, if result < 0 { -errno } else { result })
        })
        .collect()
}

fn machine() -> SoftVm {
    SoftVm::new(&VmConfig::default()).expect("a machine")
}

/// L1 in 64-bit mode, with the controls that the kernel of the recording offered.
fn long_mode(vm: &mut SoftVm) {
    let mut sregs = vm
        .state(Parts::Registers)
        .expect("state")
        .sregs
        .expect("sregs");
    let segment = |selector, ar| Segment {
        selector,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    sregs.cs = segment(8, 0xa09b);
    for data in [
        &mut sregs.ss,
        &mut sregs.ds,
        &mut sregs.es,
        &mut sregs.fs,
        &mut sregs.gs,
    ] {
        *data = segment(0x10, 0xc093);
    }
    sregs.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
    sregs.cr3 = 0x6000;
    sregs.cr4 = cr4::PAE | cr4::VMXE;
    sregs.efer = efer::LME | efer::LMA;
    let numbers = msr::IA32_VMX_BASIC..=msr::IA32_VMX_EXIT_CTLS2;
    let msrs = numbers.zip(KVM_6_1_ICELAKE).collect();
    vm.set_state(&CpuState {
        sregs: Some(sregs),
        msrs: Some(msrs),
        ..CpuState::default()
    })
    .expect("taken");
}

/// Puts the machine where the rule can be broken.
fn prepare(vm: &mut SoftVm, blob: &BreakingBlob) {
    for (address, bytes) in &blob.memory {
        vm.write_memory(*address, bytes).expect("RAM");
    }
    let mut state = vm.state(Parts::All).expect("state");
    if let Some(events) = &mut state.events {
        events.smm = blob.in_smm;
    }
    for entry in state
        .cpuid
        .iter_mut()
        .flatten()
        .filter(|entry| entry.leaf == 1)
    {
        entry.ecx = if blob.guest_has_vmx {
            entry.ecx | VMX
        } else {
            entry.ecx & !VMX
        };
    }
    vm.set_state(&state).expect("taken");
}

/// Asks and sets; nothing may have changed afterwards.
fn refuse(vm: &mut SoftVm, blob: &BreakingBlob, expected: i32, place: &str) {
    let before = capture(vm);
    let same = |before: &Capture, vm: &mut SoftVm| {
        if let Some(text) = difference(before, &capture(vm)) {
            panic!(
                "{place}: {} was refused and left its mark:\n{text}",
                blob.rule
            );
        }
    };
    assert_eq!(
        vm.try_nested_bytes(&blob.bytes).expect("an answer"),
        expected,
        "{place}: {}",
        blob.rule
    );
    same(&before, vm);
    let Ok(state) = NestedState::from_bytes(&blob.bytes) else {
        assert_eq!(blob.rule, SetRefusal::HeaderFault);
        return;
    };
    match vm.set_nested_state(&state) {
        Err(BackendError::NestedRefused { rule, errno }) => {
            assert!(
                rule.starts_with(blob.rule.id()),
                "{place}: {} instead of {}",
                rule,
                blob.rule
            );
            assert_eq!(errno, (-expected).max(0), "{place}: {}", blob.rule);
        }
        other => panic!("{place}: {}: {other:?}", blob.rule),
    }
    same(&before, vm);
}

/// Every rule: the kernel's answer, and no trace of the try, on a vCPU outside VMX operation, in root
/// operation, and while L2 runs.
#[test]
fn every_rule_answers_as_the_kernels_did_and_leaves_no_trace() {
    let recorded = recorded();
    let mut asked = 0;
    for &rule in SetRefusal::ALL {
        let Some(blob) = specimen::breaking_blob(rule) else {
            continue;
        };
        let (_, expected) = recorded
            .iter()
            .find(|(id, _)| id == rule.id())
            .expect("recorded");
        let mut vm = machine();
        long_mode(&mut vm);
        prepare(&mut vm, &blob);
        refuse(&mut vm, &blob, *expected, "fresh");
        asked += 1;
        if blob.in_smm || !blob.guest_has_vmx {
            continue;
        }
        let capability = Capability::new(&KVM_6_1_ICELAKE);
        for (place, state) in [
            ("in VMX operation", specimen::vmxon()),
            ("with a VMCS", specimen::with_vmcs12(capability)),
            ("in L2", specimen::guest_mode(capability)),
        ] {
            vm.set_nested_state(&state).expect("valid");
            refuse(&mut vm, &blob, *expected, place);
            assert_eq!(
                vm.level().expect("a level") == Level::L2,
                state.guest_mode(),
                "{place}"
            );
        }
    }
    assert_eq!(asked, recorded.len());
}

/// While L2 of each guest runs, and L1 between: still refused as recorded, still no trace.
#[test]
fn a_running_guest_does_not_notice_refused_states() {
    for guest in guests::all().iter().take(4) {
        let whole = Run::new(guest).finish();
        let mut run = Run::new(guest);
        for _ in 0..20 {
            run.run(Budget::nested_events(3));
            for &rule in SetRefusal::ALL {
                let Some(blob) =
                    specimen::breaking_blob(rule).filter(|b| !b.in_smm && b.guest_has_vmx)
                else {
                    continue;
                };
                let answer = run.vm.try_nested_bytes(&blob.bytes).expect("an answer");
                assert_ne!(answer, 0, "{}: {rule}", guest.name);
                if let Ok(state) = NestedState::from_bytes(&blob.bytes) {
                    assert!(
                        run.vm.set_nested_state(&state).is_err(),
                        "{}: {rule}",
                        guest.name
                    );
                }
            }
        }
        assert_eq!(run.finish(), whole, "{}", guest.name);
    }
}

/// States that hold are taken, read back to the byte, and taken again.
#[test]
fn what_is_set_is_read_back() {
    let capability = Capability::new(&KVM_6_1_ICELAKE);
    let mut run_pending = specimen::guest_mode(capability);
    run_pending
        .header_mut()
        .set_flags(Flags::GUEST_MODE | Flags::RUN_PENDING);
    for (name, state) in [
        ("nothing", NestedState::default()),
        ("VMXON", specimen::vmxon()),
        ("a VMCS", specimen::with_vmcs12(capability)),
        ("L2", specimen::guest_mode(capability)),
        ("L2 about to run", run_pending),
        (
            "L2 with a shadow VMCS",
            specimen::guest_mode_with_shadow(capability),
        ),
    ] {
        let mut vm = machine();
        long_mode(&mut vm);
        for (address, bytes) in specimen::shadow_memory() {
            vm.write_memory(address, &bytes).expect("RAM");
        }
        assert_eq!(
            vm.try_nested_bytes(&state.to_bytes()).expect("an answer"),
            0,
            "{name}"
        );
        vm.set_nested_state(&state).expect("valid");
        let first = vm.nested_state().expect("read");
        assert_eq!(first.header(), state.header(), "{name}");
        vm.set_nested_state(&first).expect("its own state");
        assert_eq!(
            vm.nested_state().expect("read"),
            first,
            "{name}: a fixed point"
        );
        assert_eq!(
            vm.level().expect("a level") == Level::L2,
            state.guest_mode(),
            "{name}"
        );
    }
}

/// A state set while L2 runs drops L2: L1 stands where its vmcs12 says, and no exit is told of.
#[test]
fn a_state_set_in_l2_leaves_l2_first() {
    let guest = guests::find("compute").expect("the guest");
    let mut run = Run::new(guest);
    run.run(Budget::nested_events(1));
    run.run(Budget::instructions(5));
    let nested = run.vm.nested_state().expect("read");
    assert!(nested.guest_mode());
    let vmcs12 = nested.vmcs12().expect("a vmcs12").clone();
    let before = run.driver.events().len();
    let mut root = specimen::vmxon();
    root.header_mut().set_vmxon_pa(nested.vmxon_pa());
    run.vm.set_nested_state(&root).expect("VMX operation alone");
    assert_eq!(run.vm.level().expect("a level"), Level::L1);
    let state = run.vm.state(Parts::Registers).expect("state");
    let (regs, sregs) = (state.regs.expect("regs"), state.sregs.expect("sregs"));
    assert_eq!(regs.rip, vmcs12.get(Field::HOST_RIP));
    assert_eq!(sregs.cr3, vmcs12.get(Field::HOST_CR3));
    assert_eq!(
        u64::from(sregs.cs.selector),
        vmcs12.get(Field::HOST_CS_SELECTOR)
    );
    assert_eq!(run.vm.nested_state().expect("read"), root);
    run.driver.collect(&mut run.vm).expect("events");
    assert_eq!(run.driver.events().len(), before, "no exit happened");
}

/// A fuzz of single bits: whatever the answer, asking changes nothing and agrees with setting.
#[test]
fn asking_agrees_with_setting() {
    let mut vm = machine();
    long_mode(&mut vm);
    let good = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE)).to_bytes();
    let mut seed = 1_u64;
    let mut taken = 0;
    for _ in 0..3000 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let mut bytes = good.clone();
        let bit = (seed >> 33) as usize % (1200 * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        let before = vm.nested_state().expect("read").to_bytes();
        let answer = vm.try_nested_bytes(&bytes).expect("an answer");
        assert_eq!(vm.nested_state().expect("read").to_bytes(), before);
        let state = NestedState::from_bytes(&bytes).expect("a header");
        let set = vm.set_nested_state(&state);
        assert_eq!(set.is_ok(), answer == 0, "bit {bit}: {set:?}");
        taken += u32::from(answer == 0);
        long_mode_again(&mut vm);
    }
    assert!(taken > 300, "{taken} of 3000 were taken");
}

/// Leaves nested operation, and puts L1's registers back.
fn long_mode_again(vm: &mut SoftVm) {
    vm.set_nested_state(&NestedState::default())
        .expect("always taken");
    long_mode(vm);
}

/// Controls that the model does not carry out: not offered by default, and an L2 that has one (its
/// capability MSRs came with a snapshot) does not run.
#[test]
fn an_l2_with_a_missing_control_does_not_run() {
    let mut fresh = machine();
    let offered = fresh.state(Parts::All).expect("state").msrs.expect("MSRs")
        [&msr::IA32_VMX_PROCBASED_CTLS2]
        >> 32;
    let missing = Secondary::ENABLE_PCONFIG;
    assert_eq!(offered as u32 & missing.bits(), 0);
    assert_ne!(offered as u32 & Secondary::ENABLE_EPT.bits(), 0);

    let mut vm = machine();
    long_mode(&mut vm);
    let allowed = u64::from(missing.bits()) << 32;
    vm.set_state(&CpuState {
        msrs: Some([(msr::IA32_VMX_PROCBASED_CTLS2, allowed)].into()),
        ..CpuState::default()
    })
    .expect("taken");
    let mut state = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE));
    let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
    let primary = vmcs12.get32(Field::CPU_BASED_VM_EXEC_CONTROL)
        | Primary::ACTIVATE_SECONDARY_CONTROLS.bits();
    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, primary.into());
    vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, missing.bits().into());
    vm.set_nested_state(&state).expect("the kernel takes it");
    for _ in 0..2 {
        match vm.run(Budget::instructions(10)).expect("runs") {
            Exit::Unsupported { what } => assert!(what.contains("PCONFIG"), "{what}"),
            other => panic!("{other:?}"),
        }
    }
    let mut events = Vec::<NestedEvent>::new();
    vm.drain_nested_events(&mut events).expect("events");
    assert_eq!(events, []);
}

/// PAE paging without EPT: the entries are read when L2 first runs (`KVM_REQ_GET_NESTED_STATE_PAGES`).
#[test]
fn pdptes_are_read_before_l2_runs() {
    let mut state = specimen::guest_mode(Capability::new(&KVM_6_1_ICELAKE));
    let vmcs12 = state.vmcs12_mut().expect("a vmcs12");
    let entry = vmcs12.get(Field::VM_ENTRY_CONTROLS);
    // "IA-32e mode guest" off, a 32-bit code segment.
    vmcs12.set(Field::VM_ENTRY_CONTROLS, entry & !(1 << 9));
    vmcs12.set(Field::GUEST_CS_AR_BYTES, 0xc09b);
    vmcs12.set(Field::GUEST_IA32_EFER, 0);
    for (pdpte, runs) in [(0x8001_u64, true), (0x8001 | 1 << 5, false)] {
        let mut vm = machine();
        long_mode(&mut vm);
        let page_directory = 0x83_u64;
        vm.write_memory(
            nvmx_core::addr::L1Phys(0x8000),
            &page_directory.to_le_bytes(),
        )
        .expect("RAM");
        // NOP; NOP.
        vm.write_memory(nvmx_core::addr::L1Phys(0xc000), &[0x90; 16])
            .expect("RAM");
        let regs = Regs {
            rip: 0xc000,
            rflags: 2,
            ..Regs::default()
        };
        vm.set_state(&CpuState {
            regs: Some(regs),
            ..CpuState::default()
        })
        .expect("taken");
        vm.set_nested_state(&state).expect("valid");
        // Memory may follow the nested state.
        vm.write_memory(nvmx_core::addr::L1Phys(0x6000), &pdpte.to_le_bytes())
            .expect("RAM");
        let exit = vm.run(Budget::instructions(3)).expect("runs");
        if runs {
            assert_eq!(exit, Exit::Budget);
            let sregs: Sregs = vm
                .state(Parts::Registers)
                .expect("state")
                .sregs
                .expect("sregs");
            assert_eq!((sregs.pdptrs_valid, sregs.pdptrs[0]), (true, pdpte));
        } else {
            assert!(matches!(exit, Exit::InternalError { .. }), "{exit:?}");
        }
    }
}
