//! System-management mode around L1 and L2 (SDM Vol. 3C "Default Treatment of SMI Delivery", "Default
//! Treatment of RSM", "SMM and VMX"; Linux `vmx_enter_smm`, `vmx_leave_smm`).

mod common;

use common::bare::{MEMORY, put};
use common::nest::{Entry, L2, Nest, VMCALL};
use common::{capture, restore};
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Personality;
use nvmx_core::nested::{Flags, SmmFlags};
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::vmx::Field;
use nvmx_core::x86::{CpuState, Event, msr};
use nvmx_soft::SoftVm;

/// Where SMM starts after RESET.
const SMBASE: u64 = 0x3_0000;
/// A double word that the handler counts in.
const COUNT: u64 = 0x6_0000;
/// OUT 80H, AL; INC dword [COUNT]; RSM: 16-bit code, segments of 4 GiB.
const HANDLER: [u8; 13] = [
    0xe6, 0x80, 0x67, 0x66, 0xff, 0x05, 0x00, 0x00, 0x06, 0x00, 0x0f, 0xaa, 0xf4,
];
/// JMP to itself.
const SPIN: [u8; 2] = [0xeb, 0xfe];
const IN_SMM: Exit = Exit::IoOut {
    port: 0x80,
    size: 1,
    value: 0,
};

fn nest(personality: Personality, code: &[u8]) -> Nest {
    let mut nest = Nest::new(code);
    nest.vm.set_personality(personality);
    put(&mut nest.vm, SMBASE + 0x8000, &HANDLER);
    nest
}

fn run(vm: &mut SoftVm, instructions: u64) -> Exit {
    vm.run(Budget::instructions(instructions)).expect("runs")
}

/// OUT's value is of no interest.
fn without_value(exit: Exit) -> Exit {
    match exit {
        Exit::IoOut { port, size, .. } => Exit::IoOut {
            port,
            size,
            value: 0,
        },
        exit => exit,
    }
}

/// Runs into SMM.
fn into_smm(vm: &mut SoftVm) {
    assert_eq!(without_value(run(vm, 100)), IN_SMM);
    assert!(
        vm.state(Parts::All)
            .expect("state")
            .events
            .expect("events")
            .smm
    );
}

fn count(vm: &mut SoftVm) -> u32 {
    let mut bytes = [0; 4];
    vm.read_memory(L1Phys(COUNT), &mut bytes).expect("RAM");
    u32::from_le_bytes(bytes)
}

#[test]
fn an_smi_in_l2_is_no_vm_exit_and_rsm_goes_back() {
    for personality in Personality::ALL {
        let mut nest = nest(personality, &SPIN);
        assert_eq!(nest.enter_for(100), Exit::Budget);
        let (mut events, before) = (Vec::new(), nest.state());
        nest.vm.drain_nested_events(&mut events).expect("events");
        events.clear();
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let nested = nest.vm.nested_state().expect("nested state");
        assert_eq!(nested.smm(), SmmFlags::VMXON | SmmFlags::GUEST_MODE);
        assert_eq!(nested.flags() & Flags::GUEST_MODE, Flags::empty());
        assert_eq!(run(&mut nest.vm, 100), Exit::Budget);
        assert_eq!(count(&mut nest.vm), 1);
        let nested = nest.vm.nested_state().expect("nested state");
        assert!(nested.guest_mode() && nested.smm().is_empty());
        nest.vm.drain_nested_events(&mut events).expect("events");
        assert_eq!(events, [], "{personality}");
        let after = nest.state();
        assert_eq!(after.regs, before.regs, "{personality}");
        assert_eq!(after.sregs, before.sregs, "{personality}");
        // L1's controls are in force again.
        put(&mut nest.vm, L2, &VMCALL);
        assert_eq!(nest.resume(), Entry::Exit(18), "{personality}");
    }
}

#[test]
fn a_capture_in_smm_holds_the_l2_that_was_interrupted() {
    for code in [&SPIN[..], &VMCALL] {
        let mut nest = nest(Personality::Kvm, code);
        nest.start();
        nest.vm.step().expect("enters");
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let taken = capture(&mut nest.vm);
        let mut other = restore(&taken, MEMORY);
        assert_eq!(
            common::difference(&taken, &capture(&mut other)),
            None,
            "as it was taken"
        );
        for vm in [&mut nest.vm, &mut other] {
            run(vm, 50);
        }
        let ends = [capture(&mut nest.vm), capture(&mut other)];
        assert_eq!(common::difference(&ends[0], &ends[1]), None);
        assert_eq!(count(&mut other), 1);
    }
}

#[test]
fn an_smi_in_root_operation_and_outside_of_vmx_operation() {
    for personality in Personality::ALL {
        let mut nest = nest(personality, &VMCALL);
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let nested = nest.vm.nested_state().expect("nested state");
        assert_eq!((nested.vmxon_pa(), nested.smm()), (None, SmmFlags::empty()));
        assert_eq!(run(&mut nest.vm, 2), Exit::Budget);
        nest.expect(18, L2);
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let nested = nest.vm.nested_state().expect("nested state");
        assert_eq!(nested.smm(), SmmFlags::VMXON, "{personality}");
        run(&mut nest.vm, 2);
        assert_eq!(count(&mut nest.vm), 2);
        // VMX operation and the current VMCS are as they were.
        nest.expect(18, L2);
    }
}

/// CR4.VMXE and VMX instructions are not for SMM: with an IDT of no vectors each fault ends in shutdown.
#[test]
fn vmx_is_not_for_smm() {
    for personality in Personality::ALL {
        let codes: [(&str, &[u8]); 3] = [
            ("VMPTRST", &[0x0f, 0xc7, 0x3e, 0x00, 0x60]),
            ("VMXOFF", &[0x0f, 0x01, 0xc4]),
            // mov eax, 2000H; mov cr4, eax
            ("VMXE", &[0x66, 0xb8, 0x00, 0x20, 0, 0, 0x0f, 0x22, 0xe0]),
        ];
        for (name, code) in codes {
            let mut nest = nest(personality, &SPIN);
            put(&mut nest.vm, SMBASE + 0x8000, code);
            assert_eq!(nest.enter_for(100), Exit::Budget);
            nest.vm.inject_smi().expect("taken");
            let exit = run(&mut nest.vm, 100);
            assert_eq!(exit, Exit::Shutdown, "{personality}: {name}");
        }
    }
}

#[test]
fn smi_nmi_and_init_wait_for_rsm() {
    for personality in Personality::ALL {
        let mut nest = nest(personality, &SPIN);
        nest.on(Field::PIN_BASED_VM_EXEC_CONTROL, 1 << 3);
        assert_eq!(nest.enter_for(100), Exit::Budget);
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        nest.vm.inject_smi().expect("taken");
        nest.vm.inject(Event::NMI).expect("taken");
        // INIT, to APIC 0.
        let init = nest.vm.signal_msi(0xfee0_0000, 1 << 14 | 5 << 8);
        assert!(init.expect("a bus"));
        let events = nest.state().events.expect("events");
        assert!(events.smi_pending && events.latched_init);
        assert_eq!(run(&mut nest.vm, 1), Exit::Budget, "the handler goes on");
        assert_eq!(count(&mut nest.vm), 1);
        // RSM. Then the SMI in L2 before INIT's exit; KVM has all exits of L2 go first.
        into_smm(&mut nest.vm);
        let nested = nest.vm.nested_state().expect("nested state");
        assert_eq!(
            nested.smm().contains(SmmFlags::GUEST_MODE),
            personality == Personality::Sdm
        );
        assert_eq!(nest.resume(), Entry::Exit(3));
        assert_eq!(count(&mut nest.vm), 2, "{personality}");
    }
}

#[test]
fn an_interprocessor_smi() {
    let mut nest = nest(Personality::Kvm, &SPIN);
    assert_eq!(nest.enter_for(100), Exit::Budget);
    let taken = nest.vm.signal_msi(0xfee0_0000, 1 << 14 | 2 << 8);
    assert!(taken.expect("a bus"));
    into_smm(&mut nest.vm);
}

#[test]
fn the_handler_moves_smbase_and_what_it_interrupted() {
    let places = [
        (Personality::Sdm, 0x7ef8, 0x7fd8),
        (Personality::Kvm, 0x7f00, 0x7f78),
    ];
    for (personality, smbase_at, rip_at) in places {
        let mut nest = nest(personality, &SPIN);
        put(&mut nest.vm, L2 + 0x20, &VMCALL);
        assert_eq!(nest.enter_for(100), Exit::Budget);
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let new: u32 = 0x8_0000;
        put(
            &mut nest.vm,
            SMBASE + 0x8000 + smbase_at,
            &new.to_le_bytes(),
        );
        put(
            &mut nest.vm,
            SMBASE + 0x8000 + rip_at,
            &(L2 + 0x20).to_le_bytes(),
        );
        put(&mut nest.vm, u64::from(new) + 0x8000, &HANDLER);
        assert_eq!(nest.resume(), Entry::Exit(18), "{personality}");
        assert_eq!(nest.get(Field::GUEST_RIP), L2 + 0x20);
        let msrs = nest.state().msrs.expect("MSRs");
        assert_eq!(msrs.get(&msr::IA32_SMBASE), Some(&u64::from(new)));
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        assert_eq!(nest.state().sregs.expect("sregs").cs.base, u64::from(new));
    }
}

/// A pending MTF VM exit outlives SMM; KVM has it go before the SMI.
#[test]
fn a_monitor_trap_and_an_smi_at_one_boundary() {
    for personality in Personality::ALL {
        // OUT 81H, AL leaves to user space with the trap pending.
        let mut nest = nest(personality, &[0xe6, 0x81, 0x90]);
        nest.on(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << 27);
        assert!(matches!(nest.enter_for(10), Exit::IoOut { port: 0x81, .. }));
        nest.vm.inject_smi().expect("taken");
        into_smm(&mut nest.vm);
        let nested = nest.vm.nested_state().expect("nested state");
        assert_eq!(
            nested.smm().contains(SmmFlags::GUEST_MODE),
            personality == Personality::Sdm
        );
        assert_eq!(nest.resume(), Entry::Exit(37), "{personality}");
        assert_eq!(nest.get(Field::GUEST_RIP), L2 + 2, "{personality}");
    }
}

#[test]
fn rsm_outside_smm_is_undefined() {
    let mut nest = nest(Personality::Sdm, &[0x0f, 0xaa]);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 6);
    assert_eq!(nest.enter(), Entry::Exit(0));
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0306);
}

/// User space that takes a vCPU into SMM by the events leaves L2, as on KVM.
#[test]
fn setting_the_flag_drops_l2() {
    let mut nest = nest(Personality::Kvm, &SPIN);
    assert_eq!(nest.enter_for(100), Exit::Budget);
    let mut events = nest.state().events.expect("events");
    events.smm = true;
    nest.set_state(CpuState {
        events: Some(events),
        ..CpuState::default()
    });
    assert!(!nest.vm.nested_state().expect("nested state").guest_mode());
}
