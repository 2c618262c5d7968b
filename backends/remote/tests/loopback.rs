//! Every method of the traits over a socket pair, with the round trips counted.

mod common;

use common::{an_entry, config, full_state, make, nested_bytes};
use nvmx_core::addr::{L1Phys, PAGE_SIZE};
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{BackendError, Budget, Capability, Exit, Parts, Vm as _, VmConfig};
use nvmx_core::x86::ownership::Level;
use nvmx_core::x86::{CpuState, Event};
use nvmx_remote::{RemoteVm, agent};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counts requests: each is flushed once.
struct Counting(UnixStream, Arc<AtomicUsize>);

impl Read for Counting {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.fetch_add(1, Ordering::Relaxed);
        self.0.flush()
    }
}

fn connect(config: &VmConfig) -> (Result<RemoteVm, BackendError>, Arc<AtomicUsize>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::spawn(move || agent::serve(theirs, &mut make));
    let trips = Arc::new(AtomicUsize::new(0));
    let stream = Counting(ours, Arc::clone(&trips));
    let vm = RemoteVm::connect(stream, "the fake".into(), config);
    (vm, trips)
}

fn pair() -> (RemoteVm, impl Fn() -> usize) {
    let (vm, trips) = connect(&config());
    (vm.unwrap(), move || trips.swap(0, Ordering::Relaxed))
}

fn budget() -> Budget {
    Budget::time(Duration::from_millis(5))
}

#[test]
fn the_vm_is_the_one_behind_the_wire() {
    let (mut vm, trips) = pair();
    assert_eq!(trips(), 2, "Hello and CreateVm");
    assert_eq!(vm.vcpu_count(), 2);
    assert_eq!(vm.memory_size(), 64 * PAGE_SIZE);
    assert_eq!(vm.capabilities().description, "fake at the fake");
    assert!(vm.capabilities().has(Capability::NestedVmx));
    assert!(!vm.capabilities().has(Capability::Smm));
    assert_eq!(vm.dirty_pages().unwrap(), [1, 5]);

    let (refused, _) = connect(&VmConfig {
        vcpus: 0,
        ..config()
    });
    let error = refused.unwrap_err();
    assert!(
        matches!(
            &error,
            BackendError::Kernel {
                call: "KVM_CREATE_VM",
                errno: 12,
                ..
            }
        ),
        "{error:?}"
    );
}

#[test]
fn memory_is_written_and_read() {
    let (mut vm, trips) = pair();
    trips();
    let bytes: Vec<u8> = (0..3 * PAGE_SIZE).map(|i| (i % 251) as u8).collect();
    vm.write_memory(L1Phys(PAGE_SIZE - 5), &bytes).unwrap();
    let mut back = vec![0xee; bytes.len() + 10];
    vm.read_memory(L1Phys(PAGE_SIZE - 5), &mut back).unwrap();
    assert_eq!(back[..bytes.len()], bytes);
    assert_eq!(back[bytes.len()..], [0; 10]);
    assert_eq!(trips(), 2);
    let pages: Vec<u64> = (0..64).collect();
    let all = vm.read_pages(&pages).unwrap();
    assert_eq!(trips(), 1, "all pages in one round trip");
    assert_eq!(all.len(), 64 * PAGE_SIZE as usize);
    assert_eq!(all[PAGE_SIZE as usize - 5..][..bytes.len()], bytes);
    assert!(vm.read_pages(&[64]).is_err());
    for (address, length) in [(64 * PAGE_SIZE - 1, 2), (u64::MAX, 1)] {
        let error = vm
            .read_memory(L1Phys(address), &mut vec![0; length])
            .unwrap_err();
        assert!(matches!(error, BackendError::NotRam(_)), "{error}");
        assert!(vm.write_memory(L1Phys(address), &vec![0; length]).is_err());
    }
}

#[test]
fn a_run_brings_along_what_is_asked_next() {
    let (mut vm, trips) = pair();
    trips();
    let vcpu = vm.vcpu(0);
    assert_eq!(vcpu.level().unwrap(), Level::L1);
    trips();
    let exit = vcpu.run(budget()).unwrap();
    assert_eq!(
        exit,
        Exit::IoOut {
            port: 0x80,
            size: 1,
            value: 7
        }
    );
    let mut events = Vec::new();
    vcpu.drain_nested_events(&mut events).unwrap();
    assert_eq!(events, [an_entry()]);
    assert_eq!(vcpu.lost_nested_events(), 3);
    assert_eq!(vcpu.lost_nested_events(), 0);
    assert_eq!(vcpu.level().unwrap(), Level::L2);
    let state = vcpu.state(Parts::Registers).unwrap();
    assert_eq!(state.regs.unwrap().rip, 0x1001);
    assert_eq!(trips(), 1, "all of that in one round trip");

    assert!(matches!(vcpu.run(budget()), Ok(Exit::IoIn { .. })));
    vcpu.complete_read(0x55).unwrap();
    let state = vcpu.state(Parts::Registers).unwrap();
    assert_eq!(state.regs.unwrap().gpr[0], 0x55, "nothing stale");
    assert_eq!(vcpu.step().unwrap(), Exit::Stepped);
    let state = vcpu.state(Parts::Registers).unwrap();
    assert_eq!(state.regs.unwrap().rip, 0x1004);
    assert_eq!(vcpu.run(Budget::UNLIMITED).unwrap(), Exit::Hlt);
    let error = vcpu.run(Budget::instructions(1)).unwrap_err();
    assert!(matches!(error, BackendError::Absent { .. }), "{error}");
}

#[test]
fn the_whole_state_and_the_nested_state_are_one_trip() {
    let (mut vm, trips) = pair();
    trips();
    let vcpu = vm.vcpu(1);
    assert_eq!(vcpu.state(Parts::All).unwrap(), full_state());
    assert_eq!(vcpu.nested_state().unwrap().to_bytes(), nested_bytes(0));
    assert_eq!(trips(), 1);
    let new = NestedState::from_bytes(&nested_bytes(9)).unwrap();
    vcpu.set_nested_state(&new).unwrap();
    assert_eq!(vcpu.nested_state().unwrap().to_bytes(), nested_bytes(9));
    let bad = NestedState::from_bytes(&nested_bytes(0xff)).unwrap();
    let error = vcpu.set_nested_state(&bad).unwrap_err();
    assert!(matches!(&error, BackendError::NestedRefused { rule, errno: 22 } if rule == "flags"));
    for (bytes, answer) in [
        (nested_bytes(0xff), -22),
        (vec![0; 4], -14),
        (nested_bytes(1), 0),
    ] {
        assert_eq!(vcpu.try_nested_bytes(&bytes).unwrap(), answer);
    }
    assert_eq!(vcpu.nested_state().unwrap().to_bytes(), nested_bytes(9));
}

#[test]
fn states_events_and_searches_go_across() {
    let (mut vm, _) = pair();
    let vcpu = vm.vcpu(0);
    let mut state = full_state();
    state.regs.as_mut().unwrap().rip = 0x2000;
    vcpu.set_state(&state).unwrap();
    assert_eq!(vcpu.state(Parts::All).unwrap().regs.unwrap().rip, 0x2000);
    let slow = CpuState {
        tsc_khz: Some(1),
        ..Default::default()
    };
    let error = vcpu.set_state(&slow).unwrap_err();
    assert!(matches!(&error, BackendError::StateRefused { part, .. } if part == "tsc_khz"));
    vcpu.inject(Event::interrupt(0x30)).unwrap();
    let error = vcpu.inject(Event::interrupt(3)).unwrap_err();
    assert!(matches!(error, BackendError::Unsupported(_)), "{error}");
    assert!(!vcpu.run_until_run_pending(1).unwrap());
    assert!(vcpu.run_until_run_pending(9).unwrap());
    let mut events = Vec::new();
    vcpu.drain_nested_events(&mut events).unwrap();
    assert_eq!(events.len(), 2);
}

#[test]
fn a_run_ends_at_its_time_and_not_before() {
    let (mut vm, trips) = pair();
    let vcpu = vm.vcpu(0);
    for _ in 0..3 {
        vcpu.run(budget()).unwrap();
    }
    trips();
    let start = Instant::now();
    assert_eq!(vcpu.run(budget()).unwrap(), Exit::Budget);
    assert_eq!(trips(), 1);
    assert!(start.elapsed() < Duration::from_secs(2));
}

#[test]
fn a_peer_that_is_gone_is_named_and_stays_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let agent = std::thread::spawn({
        let theirs = theirs.try_clone().unwrap();
        move || agent::serve(theirs, &mut make)
    });
    let mut vm = RemoteVm::connect(ours, "lab:1".into(), &config()).unwrap();
    theirs.shutdown(std::net::Shutdown::Both).unwrap();
    for _ in 0..2 {
        let error = vm.dirty_pages().unwrap_err();
        let BackendError::Connection { peer, .. } = &error else {
            panic!("{error:?}");
        };
        assert_eq!(peer, "lab:1");
    }
    drop(vm);
    let _ = agent.join().unwrap();
}

#[test]
fn over_tcp_too() {
    use nvmx_remote::transport::{SILENCE, connect_tcp};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("tcp://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        agent::serve(stream, &mut make)
    });
    let stream = connect_tcp(&address, SILENCE).unwrap();
    let mut vm = RemoteVm::connect(stream, address, &config()).unwrap();
    assert_eq!(vm.dirty_pages().unwrap(), [1, 5]);
    let nobody = connect_tcp("tcp://127.0.0.1:1", Duration::from_secs(1)).unwrap_err();
    assert!(nobody.to_string().contains("127.0.0.1:1"), "{nobody}");
}
