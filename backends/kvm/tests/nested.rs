//! Nested VMX on a real `/dev/kvm`: setting, refusing, rolling back, tracing and stepping.
//!
//! Where the host has no nested VMX each test prints `SKIPPED: reason` and passes.

use nvmx_core::addr::L1Phys;
use nvmx_core::nested::NestedState;
use nvmx_core::nested::set_rules::{Answer, SetRefusal};
use nvmx_core::nested::specimen;
use nvmx_core::vcpu::{
    BackendError, Budget, Capability, Exit, NestedEvent, Parts, Vcpu, Vm as _, VmConfig,
};
use nvmx_core::vmx::capability::{Capability as VmxCapability, MSR_COUNT};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{AccessRights, CpuState, Segment};
use nvmx_kvm::{Host, KvmVm};
use std::time::Duration;

/// Where `specimen` lets L1 go on after an exit, and L2 begin.
const HOST_RIP: u64 = 0xa000;
const GUEST_RIP: u64 = 0xc000;
/// Where L1 begins here.
const L1_RIP: u64 = 0xd000;
const PAGE_TABLES: u64 = 0x6000;

const LIMIT: Budget = Budget::time(Duration::from_secs(20));

/// A vCPU in long mode with paging on and CR4.VMXE set, its code at [`L1_RIP`].
fn machine() -> Option<(KvmVm, [u64; MSR_COUNT])> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    if let Err(error) = host.capabilities().require(Capability::NestedVmx) {
        println!("SKIPPED: {error}");
        return None;
    }
    let config = VmConfig {
        memory_size: 1 << 20,
        vcpus: 1,
    };
    let mut vm = KvmVm::on(&host, &config).expect("a VM");
    // The first two MiB, one to one: PML4, page-directory pointers, directory.
    for (table, entry) in [(0, 0x7003_u64), (0x1000, 0x8003), (0x2000, 0x83)] {
        vm.write_memory(L1Phys(PAGE_TABLES + table), &entry.to_le_bytes())
            .unwrap();
    }
    for (rip, code) in [
        (L1_RIP, &[0x0f, 0x01, 0xc2, 0xe6, 0x10, 0xf4][..]), // vmlaunch; out 0x10, al; hlt
        (GUEST_RIP, &[0x0f, 0xa2, 0xf4]),                    // cpuid; hlt
        (HOST_RIP, &[0xb0, 0x77, 0xe6, 0x11, 0xf4]),         // mov al, 0x77; out 0x11, al; hlt
    ] {
        vm.write_memory(L1Phys(rip), code).unwrap();
    }
    let vcpu = vm.vcpu(0);
    let mut state = vcpu.state(Parts::All).unwrap();
    let sregs = state.sregs.as_mut().unwrap();
    let segment = |selector, ar| Segment {
        selector,
        base: 0,
        limit: 0xffff_ffff,
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
    sregs.tr = Segment {
        limit: 0x67,
        ..segment(0x18, 0x8b)
    };
    sregs.cr0 = 0x8000_0031;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = 0x2020;
    sregs.efer = 0x500;
    let regs = state.regs.as_mut().unwrap();
    regs.rip = L1_RIP;
    regs.rflags = 2;
    let mut msrs = [0; MSR_COUNT];
    for (number, value) in state.msrs.as_ref().unwrap() {
        if let Some(msr) = number
            .checked_sub(0x480)
            .and_then(|offset| msrs.get_mut(offset as usize))
        {
            *msr = *value;
        }
    }
    vcpu.set_state(&CpuState {
        msrs: None,
        ..state
    })
    .unwrap();
    Some((vm, msrs))
}

fn registers(vcpu: &mut dyn Vcpu) -> CpuState {
    vcpu.state(Parts::Registers).unwrap()
}

fn rip(vcpu: &mut dyn Vcpu) -> u64 {
    registers(vcpu).regs.unwrap().rip
}

#[test]
fn states_go_in_and_come_out_as_a_fixed_point() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    let capability = VmxCapability::new(&msrs);
    let vcpu = vm.vcpu(0);
    assert_eq!(vcpu.nested_state().unwrap().vmxon_pa(), None);
    for (state, level) in [
        (specimen::vmxon(), Level::L1),
        (specimen::with_vmcs12(capability), Level::L1),
        (specimen::guest_mode(capability), Level::L2),
        (specimen::vmxon(), Level::L1),
    ] {
        vcpu.set_nested_state(&state).unwrap();
        assert_eq!(vcpu.level().unwrap(), level);
        let first = vcpu.nested_state().unwrap().to_bytes();
        assert_eq!(vcpu.nested_state().unwrap().to_bytes(), first, "twice");
        assert_eq!(first.len(), state.to_bytes().len());
        vcpu.set_nested_state(&NestedState::from_bytes(&first).unwrap())
            .unwrap();
        assert_eq!(
            vcpu.nested_state().unwrap().to_bytes(),
            first,
            "fixed point"
        );
    }
    vcpu.set_nested_state(&NestedState::default()).unwrap();
    assert_eq!(vcpu.nested_state().unwrap().vmxon_pa(), None);
    // Not L1's host state, which the kernel loads when it is made to leave L2.
    assert_eq!(rip(vcpu), GUEST_RIP, "the registers are the caller's");
}

#[test]
fn a_refused_state_leaves_the_vcpu_as_it_was() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    let capability = VmxCapability::new(&msrs);
    let vcpu = vm.vcpu(0);
    for start in [
        NestedState::default(),
        specimen::with_vmcs12(capability),
        specimen::guest_mode(capability),
    ] {
        vcpu.set_nested_state(&start).unwrap();
        let nested = vcpu.nested_state().unwrap().to_bytes();
        let before = vcpu.state(Parts::All).unwrap();
        let mut named = 0;
        let mut asked = 0;
        for &rule in SetRefusal::ALL {
            let Some(blob) = specimen::breaking_blob(rule) else {
                continue;
            };
            if blob.in_smm || !blob.guest_has_vmx {
                continue;
            }
            asked += 1;
            let answer = vcpu.try_nested_bytes(&blob.bytes).unwrap();
            let expected = match rule.answer() {
                Answer::Errno(errno) => -errno,
                Answer::Positive(value) => value,
            };
            assert_eq!(answer, expected, "{rule}");
            if let Ok(state) = NestedState::from_bytes(&blob.bytes) {
                match vcpu.set_nested_state(&state) {
                    Err(BackendError::NestedRefused { rule: text, errno }) => {
                        assert_eq!(errno, (-expected).max(0), "{rule}");
                        if text.starts_with(&rule.to_string()) {
                            named += 1;
                        } else {
                            println!("{rule}: called {text}");
                        }
                    }
                    other => panic!("{rule}: {other:?}"),
                }
            }
            assert_eq!(vcpu.nested_state().unwrap().to_bytes(), nested, "{rule}");
            let after = vcpu.state(Parts::All).unwrap();
            assert_eq!(after.regs, before.regs, "{rule}");
            assert_eq!(after.sregs, before.sregs, "{rule}");
            assert_eq!(after.events, before.events, "{rule}");
        }
        println!("{asked} states refused, {named} by their rule's name");
        assert!(named > asked / 2);
    }
}

#[test]
fn a_whole_state_set_in_l2_stays_in_l2() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    let vcpu = vm.vcpu(0);
    vcpu.set_nested_state(&specimen::guest_mode(VmxCapability::new(&msrs)))
        .unwrap();
    let before = vcpu.state(Parts::All).unwrap();
    let nested = vcpu.nested_state().unwrap().to_bytes();
    vcpu.set_state(&before).unwrap();
    assert_eq!(vcpu.level().unwrap(), Level::L2);
    let after = vcpu.state(Parts::All).unwrap();
    assert_eq!((after.regs, after.sregs), (before.regs, before.sregs));
    assert_eq!(vcpu.nested_state().unwrap().to_bytes(), nested);
}

#[test]
fn a_launch_and_its_exit_are_traced() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    let traced = vm.capabilities().require(Capability::NestedEvents);
    let vcpu = vm.vcpu(0);
    vcpu.set_nested_state(&specimen::with_vmcs12(VmxCapability::new(&msrs)))
        .unwrap();
    let exit = vcpu.run(LIMIT).unwrap();
    assert_eq!(
        exit,
        Exit::IoOut {
            port: 0x11,
            size: 1,
            value: 0x77
        }
    );
    if let Err(error) = traced {
        println!("SKIPPED: {error}");
        return;
    }
    let mut events = Vec::new();
    vcpu.drain_nested_events(&mut events).unwrap();
    println!("{events:x?}");
    assert_eq!(vcpu.lost_nested_events(), 0);
    assert_eq!(
        events,
        [
            NestedEvent::Entry {
                vmcs12: specimen::VMCS12,
                l2_rip: GUEST_RIP,
                injected: Some(0),
            },
            NestedEvent::Exit {
                reason: 10,
                qualification: Some(0),
                interruption: Some(0),
                error_code: None,
                instruction_length: Some(2),
                guest_physical: None,
                l2_rip: Some(GUEST_RIP),
            },
        ]
    );
}

#[test]
fn a_failed_launch_is_traced_with_its_error() {
    let Some((mut vm, _)) = machine() else { return };
    let traced = vm.capabilities().has(Capability::NestedEvents);
    let vcpu = vm.vcpu(0);
    // A vmcs12 of zeros: reserved control bits that must be one are not.
    let mut state = specimen::vmxon();
    state.header_mut().set_vmcs12_pa(Some(specimen::VMCS12));
    let mut vmcs12 = nvmx_core::vmx::Vmcs12::new();
    vmcs12.set(nvmx_core::vmx::Field::VMCS_LINK_POINTER, u64::MAX);
    state.set_regions(Some(vmcs12), None);
    vcpu.set_nested_state(&state).unwrap();
    let exit = vcpu.run(LIMIT).unwrap();
    assert!(matches!(exit, Exit::IoOut { port: 0x10, .. }), "{exit:?}");
    let mut events = Vec::new();
    vcpu.drain_nested_events(&mut events).unwrap();
    if traced {
        assert_eq!(events, [NestedEvent::EntryFailure { error: Some(7) }]);
    }
}

#[test]
fn steps_cross_the_levels() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    let vcpu = vm.vcpu(0);
    vcpu.set_nested_state(&specimen::with_vmcs12(VmxCapability::new(&msrs)))
        .unwrap();
    for (name, level, expected) in [
        ("vmlaunch", Level::L2, GUEST_RIP),
        ("cpuid in L2", Level::L1, HOST_RIP),
        ("mov", Level::L1, HOST_RIP + 2),
    ] {
        let exit = vcpu.step().unwrap();
        assert_eq!(exit, Exit::Stepped, "{name}");
        assert_eq!(rip(vcpu), expected, "{name}");
        assert_eq!(vcpu.level().unwrap(), level, "{name}");
    }
}

#[test]
fn run_pending_is_searched_for() {
    let Some((mut vm, msrs)) = machine() else {
        return;
    };
    // L1 resumes for ever: vmresume.
    vm.write_memory(L1Phys(HOST_RIP), &[0x0f, 0x01, 0xc3])
        .unwrap();
    let vcpu = vm.vcpu(0);
    vcpu.set_nested_state(&specimen::with_vmcs12(VmxCapability::new(&msrs)))
        .unwrap();
    let found = vcpu.run_until_run_pending(2000).unwrap();
    println!("RUN_PENDING met: {found}");
    if found {
        let state = vcpu.nested_state().unwrap();
        assert!(state.guest_mode());
        // It goes in again, and the guest goes on.
        vcpu.set_nested_state(&state).unwrap();
        // The exit information of the vmcs12 comes from the processor and may differ.
        assert_eq!(vcpu.nested_state().unwrap().header(), state.header());
    }
    let short = Budget::time(Duration::from_millis(20));
    assert_eq!(vcpu.run(short).unwrap(), Exit::Budget);
}
