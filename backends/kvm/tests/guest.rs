//! Tiny real-mode guests on a real `/dev/kvm`.
//!
//! Where it cannot be opened each test prints `SKIPPED: reason` and passes. The guests keep to a few
//! plain instructions: a host may interpret ring 0 on an incomplete instruction set.

use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{BackendError, Budget, Capability, Exit, Parts, Vm as _, VmConfig};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event, Gpr, MpState};
use nvmx_kvm::{Host, KvmVm};
use std::time::{Duration, Instant};

/// A VM of 1 MiB with `code` at 0x1000, about to run it in real mode; `None` after saying why.
fn guest(code: &[u8]) -> Option<KvmVm> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            println!("SKIPPED: {error}");
            return None;
        }
    };
    let config = VmConfig {
        memory_size: 1 << 20,
        vcpus: 1,
    };
    let mut vm = KvmVm::on(&host, &config).expect("a VM on an open /dev/kvm");
    vm.write_memory(L1Phys(0x1000), code).unwrap();
    let vcpu = vm.vcpu(0);
    let mut state = vcpu.state(Parts::Registers).unwrap();
    let sregs = state.sregs.as_mut().unwrap();
    for segment in [&mut sregs.cs, &mut sregs.ds, &mut sregs.es, &mut sregs.ss] {
        segment.base = 0;
        segment.selector = 0;
    }
    let regs = state.regs.as_mut().unwrap();
    regs.rip = 0x1000;
    regs.rflags = 2;
    regs.set(Gpr::Rsp, 0x8000);
    vcpu.set_state(&state).unwrap();
    Some(vm)
}

const LIMIT: Budget = Budget::time(Duration::from_secs(10));

fn rip(vm: &mut KvmVm) -> u64 {
    let state = vm.vcpu(0).state(Parts::Registers).unwrap();
    state.regs.unwrap().rip
}

fn rax(vm: &mut KvmVm) -> u64 {
    let state = vm.vcpu(0).state(Parts::Registers).unwrap();
    state.regs.unwrap().get(Gpr::Rax)
}

#[test]
fn an_out_is_complete_when_it_is_reported() {
    // mov al, 0x42; out 0x10, al; hlt
    let Some(mut vm) = guest(&[0xb0, 0x42, 0xe6, 0x10, 0xf4]) else {
        return;
    };
    let exit = vm.vcpu(0).run(LIMIT).unwrap();
    assert_eq!(
        exit,
        Exit::IoOut {
            port: 0x10,
            size: 1,
            value: 0x42
        }
    );
    assert_eq!(rip(&mut vm), 0x1004, "behind the OUT");
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    assert_eq!(rip(&mut vm), 0x1005);
    let state = vm.vcpu(0).state(Parts::All).unwrap();
    assert_eq!(state.mp_state, Some(MpState::Halted));
    // Nothing can wake it: it is still halted.
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
}

#[test]
fn an_in_waits_for_its_value() {
    // in al, 0x20; mov [0x2000], al; hlt
    let Some(mut vm) = guest(&[0xe4, 0x20, 0xa2, 0x00, 0x20, 0xf4]) else {
        return;
    };
    let vcpu = vm.vcpu(0);
    assert_eq!(
        vcpu.run(LIMIT).unwrap(),
        Exit::IoIn {
            port: 0x20,
            size: 1
        }
    );
    assert!(vcpu.state(Parts::All).is_err(), "between two instructions");
    assert!(vcpu.run(LIMIT).is_err());
    vcpu.complete_read(0x1234_5678).unwrap();
    assert!(vcpu.complete_read(0).is_err());
    assert_eq!(rip(&mut vm), 0x1002);
    assert_eq!(rax(&mut vm) & 0xff, 0x78);
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    let mut byte = [0];
    vm.read_memory(L1Phys(0x2000), &mut byte).unwrap();
    assert_eq!(byte, [0x78]);
}

#[test]
fn replacing_the_state_abandons_an_open_read() {
    let Some(mut vm) = guest(&[0xe4, 0x20, 0xf4]) else {
        return;
    };
    let before = vm.vcpu(0).state(Parts::Registers).unwrap();
    assert!(matches!(vm.vcpu(0).run(LIMIT), Ok(Exit::IoIn { .. })));
    vm.vcpu(0).set_state(&before).unwrap();
    assert_eq!(rip(&mut vm), 0x1000);
    assert!(matches!(vm.vcpu(0).run(LIMIT), Ok(Exit::IoIn { .. })));
}

#[test]
fn memory_that_is_no_ram_is_mmio() {
    // mov ax, 0xffff; mov ds, ax; mov [0x7010], al (0x107000: behind the RAM); mov bx, [0x7012]; hlt
    let code = [
        0xb8, 0xff, 0xff, 0x8e, 0xd8, 0xa2, 0x10, 0x70, 0x8b, 0x1e, 0x12, 0x70, 0xf4,
    ];
    let Some(mut vm) = guest(&code) else { return };
    assert_eq!(
        vm.vcpu(0).run(LIMIT).unwrap(),
        Exit::MmioWrite {
            address: L1Phys(0x10_7000),
            size: 1,
            value: 0xff
        }
    );
    assert_eq!(rip(&mut vm), 0x1008);
    assert_eq!(
        vm.vcpu(0).run(LIMIT).unwrap(),
        Exit::MmioRead {
            address: L1Phys(0x10_7002),
            size: 2
        }
    );
    vm.vcpu(0).complete_read(0xbeef).unwrap();
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    let state = vm.vcpu(0).state(Parts::Registers).unwrap();
    assert_eq!(state.regs.unwrap().get(Gpr::Rbx), 0xbeef);
}

#[test]
fn a_run_stops_when_its_time_is_up() {
    // sti; jmp $ (an emulated host can hang where a guest spins with interrupts off)
    let Some(mut vm) = guest(&[0xfb, 0xeb, 0xfe]) else {
        return;
    };
    for millis in [0, 1, 30] {
        let start = Instant::now();
        let exit = vm
            .vcpu(0)
            .run(Budget::time(Duration::from_millis(millis)))
            .unwrap();
        assert_eq!(exit, Exit::Budget);
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(millis), "{took:?}");
        assert!(took < Duration::from_secs(5), "{took:?}");
    }
    assert_eq!(rip(&mut vm), 0x1001);
    for budget in [Budget::instructions(5), Budget::nested_events(1)] {
        let error = vm.vcpu(0).run(budget).unwrap_err();
        assert!(matches!(error, BackendError::Absent { .. }), "{error}");
    }
}

#[test]
fn a_step_is_one_instruction() {
    // inc ax; inc ax; out 0x10, al; hlt
    let Some(mut vm) = guest(&[0x40, 0x40, 0xe6, 0x10, 0xf4]) else {
        return;
    };
    for expected in [0x1001, 0x1002] {
        assert_eq!(vm.vcpu(0).step().unwrap(), Exit::Stepped);
        assert_eq!(rip(&mut vm), expected);
    }
    assert!(matches!(vm.vcpu(0).step().unwrap(), Exit::IoOut { .. }));
    assert_eq!(rip(&mut vm), 0x1004);
    let flags = vm.vcpu(0).state(Parts::Registers).unwrap();
    assert_eq!(flags.regs.unwrap().rflags & 0x100, 0, "TF stays hidden");
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
}

#[test]
fn an_interrupt_and_an_nmi_reach_their_handlers() {
    // sti; hlt; jmp back to hlt
    let Some(mut vm) = guest(&[0xfb, 0xf4, 0xeb, 0xfd]) else {
        return;
    };
    // Vector 0x30 and NMI: mov al, n; out 0x11, al; hlt
    for (vector, handler) in [(0x30_u64, 0x1100_u16), (2, 0x1200)] {
        vm.write_memory(L1Phys(vector * 4), &handler.to_le_bytes())
            .unwrap();
        let code = [0xb0, vector as u8, 0xe6, 0x11, 0xf4];
        vm.write_memory(L1Phys(handler.into()), &code).unwrap();
    }
    let start = vm.vcpu(0).state(Parts::All).unwrap();
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    for (event, value) in [(Event::interrupt(0x30), 0x30), (Event::NMI, 2)] {
        vm.vcpu(0).inject(event).unwrap();
        assert_eq!(
            vm.vcpu(0).run(LIMIT).unwrap(),
            Exit::IoOut {
                port: 0x11,
                size: 1,
                value
            },
            "{event:?}"
        );
    }
    // The whole state goes back, halted vCPU and blocked NMIs included.
    vm.vcpu(0).set_state(&start).unwrap();
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    assert_eq!(rip(&mut vm), 0x1002);
}

#[test]
fn the_whole_state_survives_a_round_trip() {
    let Some(mut vm) = guest(&[0xf4]) else { return };
    let mut first = vm.vcpu(0).state(Parts::All).unwrap();
    first
        .regs
        .as_mut()
        .unwrap()
        .set(Gpr::R15, 0x1234_5678_9abc_def0);
    first.debug.as_mut().unwrap().db[0] = 0x5000;
    let xsave = first.xsave.as_mut().unwrap();
    assert_eq!(xsave.len(), 4096);
    // XMM3, and SSE marked as in use.
    xsave[160 + 48] = 0x77;
    xsave[512] |= 2;
    vm.vcpu(0).set_state(&first).unwrap();
    let second = vm.vcpu(0).state(Parts::All).unwrap();
    assert_eq!(second.regs, first.regs);
    assert_eq!(second.sregs, first.sregs);
    assert_eq!(second.debug, first.debug);
    assert_eq!(second.events, first.events);
    assert_eq!(second.lapic.as_ref().map(Vec::len), Some(1024));
    assert_eq!(second.lapic, first.lapic);
    assert_eq!(second.xsave.as_ref().unwrap()[160 + 48], 0x77);
    assert_eq!(second.cpuid, first.cpuid);
    let (a, b) = (first.msrs.unwrap(), second.msrs.unwrap());
    // The time stamp counter goes on; paravirtual clocks follow it.
    let still = |msrs: std::collections::BTreeMap<u32, u64>| -> Vec<_> {
        msrs.into_iter().filter(|(n, _)| *n != 0x10).collect()
    };
    assert_eq!(still(a), still(b));
}

#[test]
fn an_msr_that_is_refused_is_named() {
    let Some(mut vm) = guest(&[0xf4]) else { return };
    let state = CpuState {
        msrs: Some([(0x175, 0x1000), (0x1234_5678, 1)].into()),
        ..Default::default()
    };
    let error = vm.vcpu(0).set_state(&state).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0x12345678"), "{text}");
    let msrs = vm.vcpu(0).state(Parts::All).unwrap().msrs.unwrap();
    assert_eq!(msrs.get(&0x175), Some(&0x1000));
}

#[test]
fn dirty_pages_are_the_guests_and_ours_each_once() {
    // mov [0x3000], al; hlt
    let Some(mut vm) = guest(&[0xa2, 0x00, 0x30, 0xf4]) else {
        return;
    };
    assert_eq!(vm.dirty_pages().unwrap(), [1], "the code");
    vm.write_memory(L1Phys(0x5fff), &[1, 2]).unwrap();
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
    let dirty = vm.dirty_pages().unwrap();
    for page in [3, 5, 6] {
        assert!(dirty.contains(&page), "{dirty:?}");
    }
    assert!(dirty.is_sorted());
    assert!(!vm.dirty_pages().unwrap().contains(&5));
}

#[test]
fn without_nested_vmx_the_reason_is_told_and_plain_guests_run() {
    let Some(mut vm) = guest(&[0xf4]) else { return };
    assert_eq!(vm.vcpu(0).level().unwrap(), Level::L1);
    if vm.capabilities().has(Capability::NestedVmx) {
        println!("SKIPPED: this host has nested VMX");
        return;
    }
    let error = vm.vcpu(0).nested_state().unwrap_err();
    let BackendError::Absent { capability, reason } = error else {
        panic!("{error}");
    };
    assert_eq!(capability, Capability::NestedVmx);
    assert!(reason.len() > 20, "{reason}");
    println!("reason: {reason}");
    assert!(vm.vcpu(0).try_nested_bytes(&[0; 128]).is_err());
    let mut events = Vec::new();
    vm.vcpu(0).drain_nested_events(&mut events).unwrap();
    assert!(events.is_empty());
    assert_eq!(vm.vcpu(0).run(LIMIT).unwrap(), Exit::Hlt);
}

#[test]
fn a_vcpu_may_move_to_another_thread() {
    // sti; jmp $ (an emulated host can hang where a guest spins with interrupts off)
    let Some(mut vm) = guest(&[0xfb, 0xeb, 0xfe]) else {
        return;
    };
    let short = Budget::time(Duration::from_millis(5));
    assert_eq!(vm.vcpu(0).run(short).unwrap(), Exit::Budget);
    let mut vm = std::thread::spawn(move || {
        assert_eq!(vm.vcpu(0).run(short).unwrap(), Exit::Budget);
        vm
    })
    .join()
    .unwrap();
    assert_eq!(vm.vcpu(0).run(short).unwrap(), Exit::Budget);
}
