//! KVM_RUN in process: exits, values that the caller owes, immediate exits, signals, threads, closed descriptors.

mod support;

use nvmx_shim::errno::Errno;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use support::{Guest, KVM_RUN};

const EXIT_IO: u32 = 2;
const EXIT_HLT: u32 = 5;
const EXIT_IRQ_WINDOW_OPEN: u32 = 7;
const IO_DATA: usize = 4096;

/// JMP to itself.
const SPIN: &[u8] = &[0xeb, 0xfe];

fn io(guest: &Guest, vcpu: usize) -> (u8, u8, u16) {
    guest.page(vcpu, |page| (page.exit(0), page.exit(1), page.exit(2)))
}

#[test]
fn port_io_goes_out_and_comes_in() {
    // MOV DX,0x3F8; IN AL,DX; INC AL; OUT DX,AL; HLT; OUT 0x80,AL
    let code = [0xba, 0xf8, 0x03, 0xec, 0xfe, 0xc0, 0xee, 0xf4, 0xe6, 0x80];
    let guest = Guest::new(1, &code);
    assert_eq!(guest.run(0), Ok(EXIT_IO));
    assert_eq!(io(&guest, 0), (0, 1, 0x3f8));
    guest.page(0, |page| page.store(IO_DATA, 0x41_u8));
    assert_eq!(guest.run(0), Ok(EXIT_IO));
    assert_eq!(io(&guest, 0), (1, 1, 0x3f8));
    assert_eq!(guest.page(0, |page| page.load::<u8>(IO_DATA)), 0x42);
    assert_eq!(guest.run(0), Ok(EXIT_HLT));
    // Without a local APIC of ours the caller lets it go on.
    assert_eq!(guest.run(0), Ok(EXIT_IO));
    assert_eq!(io(&guest, 0), (1, 1, 0x80));
}

#[test]
fn an_argument_is_refused() {
    let guest = Guest::new(1, SPIN);
    assert_eq!(guest.call(guest.vcpus[0], KVM_RUN, 1), Err(Errno::EINVAL));
}

#[test]
fn an_immediate_exit_ends_a_run_from_another_thread() {
    let guest = Arc::new(Guest::new(1, SPIN));
    let other = Arc::clone(&guest);
    let runner = thread::spawn(move || other.run(0));
    thread::sleep(Duration::from_millis(20));
    guest.page(0, |page| page.store(1, 1_u8));
    assert_eq!(runner.join().expect("no panic"), Err(Errno::EINTR));
}

#[test]
fn an_interrupt_window_opens_when_the_guest_opens_it() {
    const KVM_INTERRUPT: u32 = 0x4004_ae86;
    // CLI; OUT 0x80,AL; STI; NOP; SPIN
    let code = [0xfa, 0xe6, 0x80, 0xfb, 0x90, 0xeb, 0xfe];
    let guest = Guest::new(1, &code);
    assert_eq!(guest.run(0), Ok(EXIT_IO));
    assert_eq!(guest.page(0, |page| (page.ready(), page.if_flag())), (0, 0));
    guest.page(0, |page| page.store(0, 1_u8));
    assert_eq!(guest.run(0), Ok(EXIT_IRQ_WINDOW_OPEN));
    assert_eq!(guest.page(0, |page| (page.ready(), page.if_flag())), (1, 1));
    let vector = [300_u32];
    let answer = guest.call(guest.vcpus[0], KVM_INTERRUPT, vector.as_ptr() as u64);
    assert_eq!(answer, Err(Errno::EINVAL));
}

#[test]
fn vcpus_run_in_threads_and_none_starves() {
    // L: OUT 0x80,AL; JMP L
    let code = [0xe6, 0x80, 0xeb, 0xfc];
    let guest = Arc::new(Guest::new(3, &code));
    let began = Instant::now();
    let threads: Vec<_> = (0..3)
        .map(|vcpu| {
            let guest = Arc::clone(&guest);
            thread::spawn(move || (0..200).all(|_| guest.run(vcpu) == Ok(EXIT_IO)))
        })
        .collect();
    for thread in threads {
        assert!(thread.join().expect("no panic"));
    }
    assert!(began.elapsed() < Duration::from_secs(60));
}

#[test]
fn descriptors_close_while_the_guest_runs() {
    let guest = Arc::new(Guest::new(1, SPIN));
    let other = Arc::clone(&guest);
    let page = match guest.shim.object(guest.vcpus[0]) {
        Some(nvmx_shim::Object::Vcpu(vcpu)) => vcpu,
        other => panic!("{other:?}"),
    };
    let runner = thread::spawn(move || other.call(other.vcpus[0], KVM_RUN, 0));
    thread::sleep(Duration::from_millis(20));
    drop(guest.shim.forget(guest.vm));
    drop(guest.shim.forget(guest.vcpus[0]));
    assert!(guest.shim.ioctl(guest.vcpus[0], KVM_RUN, 0).is_none());
    page.pages.store(1, 1_u8);
    assert_eq!(runner.join().expect("no panic"), Err(Errno::EINTR));
}

#[test]
fn two_machines_know_nothing_of_each_other() {
    // MOV AL,NUMBER; OUT 0x80,AL
    let first = Guest::new(1, &[0xb0, 1, 0xe6, 0x80]);
    let second = Guest::on(Arc::clone(&first.shim), 1, &[0xb0, 2, 0xe6, 0x80]);
    for (guest, number) in [(&second, 2), (&first, 1)] {
        assert_eq!(guest.run(0), Ok(EXIT_IO));
        assert_eq!(guest.page(0, |page| page.load::<u8>(IO_DATA)), number);
    }
}
