//! Machines whose memory is slots at the caller's addresses: RAM, ROM and devices, slots that come and go,
//! the dirty log, code that the caller writes, host memory that is not there, several threads.

use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{BackendError, Budget, Exit, Parts, Vcpu, Vm};
use nvmx_core::x86::{CpuState, Gpr, MpState, Regs};
use nvmx_soft::{MemorySlot, SoftVm, Space};

const PAGE: usize = 0x1000;
/// Two pages of code, where the tests start.
const CODE: u64 = 0x1000;
const DATA: u64 = 0x4000;
const ROM: u64 = 0x6000;
/// OUT 0x10, AL: the guest has come this far.
const STOP: [u8; 2] = [0xe6, 0x10];

/// Memory of the caller's.
struct Host(*mut u8, usize);

// SAFETY: the mapping is the process's, and the tests take turns on it.
unsafe impl Send for Host {}

impl Host {
    fn new(pages: usize) -> Self {
        // SAFETY: a fresh mapping.
        let host = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                pages * PAGE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(host, libc::MAP_FAILED);
        Self(host.cast(), pages * PAGE)
    }

    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.1);
        // SAFETY: inside the mapping, to which there are no references.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }

    fn byte(&self, at: usize) -> u8 {
        assert!(at < self.1);
        // SAFETY: as in `write`.
        unsafe { self.0.add(at).read_volatile() }
    }

    fn protect(&self, page: usize, protection: i32) {
        // SAFETY: pages of the mapping.
        let answer = unsafe { libc::mprotect(self.0.add(page * PAGE).cast(), PAGE, protection) };
        assert_eq!(answer, 0);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // SAFETY: ours; machines are dropped before it or do not run again.
        unsafe { libc::munmap(self.0.cast(), self.1) };
    }
}

fn slot(start: u64, host: &Host, read_only: bool) -> MemorySlot {
    MemorySlot {
        space: Space::Normal,
        start: L1Phys(start),
        length: host.1 as u64,
        host: host.0,
        read_only,
    }
}

fn add(vm: &mut SoftVm, start: u64, host: &Host, read_only: bool) {
    // SAFETY: the tests keep the mapping while the machine runs.
    unsafe { vm.add_memory(&slot(start, host, read_only)) }.expect("a slot");
}

/// A vCPU in real mode that is about to run the code.
fn begin(vm: &mut SoftVm, index: usize) {
    let vcpu = vm.vcpu(index);
    let mut state = vcpu.state(Parts::All).expect("state");
    let sregs = state.sregs.as_mut().expect("sregs");
    (sregs.cs.base, sregs.cs.selector) = (0, 0);
    let regs = Regs {
        rip: CODE,
        rflags: 2,
        ..Regs::default()
    };
    let new = CpuState {
        regs: Some(regs),
        sregs: state.sregs,
        ..CpuState::default()
    };
    vcpu.set_state(&new).expect("taken");
}

fn machine(code: &[u8]) -> (SoftVm, Host) {
    let host = Host::new(2);
    host.write(0, code);
    let mut vm = SoftVm::empty().expect("a machine");
    assert_eq!(vm.add_vcpu(0).expect("a vCPU"), 0);
    add(&mut vm, CODE, &host, false);
    begin(&mut vm, 0);
    (vm, host)
}

fn run(vm: &mut SoftVm) -> Exit {
    vm.run(Budget::instructions(10_000)).expect("runs")
}

fn is_stop(exit: &Exit) -> bool {
    matches!(exit, Exit::IoOut { port: 0x10, .. })
}

fn stops(vm: &mut SoftVm) {
    let exit = run(vm);
    assert!(is_stop(&exit), "{exit:?}");
}

fn al(vm: &mut SoftVm) -> u8 {
    let state = vm.state(Parts::Registers).expect("state");
    state.regs.expect("regs").get(Gpr::Rax) as u8
}

/// `mov al, [address]`, `mov [address], al`: 16-bit code.
fn load(address: u64) -> [u8; 3] {
    [0xa0, address as u8, (address >> 8) as u8]
}
fn store(address: u64) -> [u8; 3] {
    [0xa2, address as u8, (address >> 8) as u8]
}
const fn mov_al(value: u8) -> [u8; 2] {
    [0xb0, value]
}

#[test]
fn rom_is_read_and_its_writes_are_a_devices() {
    let code = [
        &load(ROM)[..],
        &store(ROM),
        &store(DATA),
        &load(DATA),
        &STOP,
    ]
    .concat();
    let (mut vm, _host) = machine(&code);
    let rom = Host::new(1);
    rom.write(0, &[0x5a]);
    add(&mut vm, ROM, &rom, true);
    let write = |address| Exit::MmioWrite {
        address: L1Phys(address),
        size: 1,
        value: 0x5a,
    };
    assert_eq!(run(&mut vm), write(ROM));
    // No slot there.
    assert_eq!(run(&mut vm), write(DATA));
    let read = Exit::MmioRead {
        address: L1Phys(DATA),
        size: 1,
    };
    assert_eq!(run(&mut vm), read);
    vm.complete_read(0x77).expect("waits");
    stops(&mut vm);
    assert_eq!(al(&mut vm), 0x77);
    assert_eq!(rom.byte(0), 0x5a);
}

/// INC of a byte in ROM reads the ROM and writes to the device.
#[test]
fn read_and_write_of_rom() {
    let (mut vm, _host) = machine(&[0xfe, 0x06, ROM as u8, (ROM >> 8) as u8, STOP[0], STOP[1]]);
    let rom = Host::new(1);
    rom.write(0, &[0x40]);
    add(&mut vm, ROM, &rom, true);
    let write = Exit::MmioWrite {
        address: L1Phys(ROM),
        size: 1,
        value: 0x41,
    };
    assert_eq!(run(&mut vm), write);
    stops(&mut vm);
}

#[test]
fn a_machine_without_memory_has_no_code() {
    let mut vm = SoftVm::empty().expect("a machine");
    assert_eq!(vm.vcpu_count(), 0);
    assert!(vm.now().is_none());
    vm.add_vcpu(0).expect("a vCPU");
    assert!(matches!(run(&mut vm), Exit::Unsupported { .. }));
}

#[test]
fn a_slot_that_moves_takes_its_code_along() {
    let (mut vm, first) = machine(&[&mov_al(1)[..], &STOP].concat());
    stops(&mut vm);
    let second = Host::new(2);
    second.write(0, &[&mov_al(2)[..], &STOP].concat());
    // SAFETY: refused.
    let overlap = unsafe { vm.add_memory(&slot(CODE + 0x1000, &second, false)) };
    assert!(overlap.is_err());
    for (host, value) in [(&second, 2), (&first, 1), (&second, 2)] {
        assert!(vm.remove_memory(Space::Normal, L1Phys(CODE)));
        assert!(!vm.remove_memory(Space::Normal, L1Phys(CODE)));
        add(&mut vm, CODE, host, false);
        begin(&mut vm, 0);
        stops(&mut vm);
        assert_eq!(al(&mut vm), value);
    }
}

#[test]
fn the_dirty_log_is_each_slots_own() {
    let code = [&store(DATA)[..], &STOP, &store(DATA + 0x1000), &STOP].concat();
    let (mut vm, _host) = machine(&code);
    let data = Host::new(70);
    add(&mut vm, DATA, &data, false);
    stops(&mut vm);
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&[1, 0][..]));
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(CODE)), Some(&[0][..]));
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(ROM)), None);
    vm.clear_dirty_log(Space::Normal, L1Phys(DATA), 64, &[1]);
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&[1, 0][..]));
    vm.clear_dirty_log(Space::Normal, L1Phys(DATA), 0, &[1]);
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&[0, 0][..]));
    stops(&mut vm);
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&[2, 0][..]));
    vm.fill_dirty_log(Space::Normal, L1Phys(DATA), true);
    let all = [u64::MAX, 0x3f];
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&all[..]));
    vm.fill_dirty_log(Space::Normal, L1Phys(DATA), false);
    // The same page again.
    begin(&mut vm, 0);
    stops(&mut vm);
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(DATA)), Some(&[1, 0][..]));
}

/// Code that the caller writes after it ran, wherever in its block: in the first page, in the second of a
/// block on two, back to what it was, and to what the guest itself had made of it.
#[test]
fn code_that_the_caller_writes_runs_as_written() {
    let last = PAGE - 1;
    let (mut vm, host) = machine(&[]);
    // jmp to the last byte of the page, where MOV AL begins.
    host.write(0, &[0xe9, (last - 3) as u8, ((last - 3) >> 8) as u8]);
    host.write(last, &[0xb0, 1, STOP[0], STOP[1]]);
    let expect = |vm: &mut SoftVm, value: u8| {
        vm.resync_code();
        begin(vm, 0);
        stops(vm);
        assert_eq!(al(vm), value);
    };
    expect(&mut vm, 1);
    expect(&mut vm, 1);
    for value in [2, 3, 2, 1] {
        host.write(last + 1, &[value]);
        expect(&mut vm, value);
    }
}

/// The caller undoes what the guest made of its own code.
#[test]
fn code_that_the_guest_and_the_caller_write() {
    let (mut vm, host) = machine(&[
        0x80, 0x3e, 0x00, 0x40, 0, // cmp byte [DATA], 0
        0x74, 5, // je +5
        0xc6, 0x06, 0x01, 0x20, 9, // mov byte [0x2001], 9
        0xe9, 0xf1, 0x0f, // jmp 0x2000
    ]);
    let data = Host::new(1);
    add(&mut vm, DATA, &data, false);
    host.write(PAGE, &[0xb0, 1, STOP[0], STOP[1]]);
    for (patches, value) in [(0, 1), (1, 9), (0, 9), (0, 1), (1, 9), (0, 1)] {
        data.write(0, &[patches]);
        if value == 1 {
            host.write(PAGE + 1, &[1]);
        }
        vm.resync_code();
        begin(&mut vm, 0);
        stops(&mut vm);
        assert_eq!(al(&mut vm), value);
    }
}

/// Two slots with one piece of host memory: what is written through the one runs in the other.
#[test]
fn host_memory_at_two_addresses_is_one_memory() {
    // The code calls the other slot's page and changes it in between.
    let call = |target: u64, at: u64| {
        let distance = target.wrapping_sub(at + 3);
        [0xe8, distance as u8, (distance >> 8) as u8]
    };
    let mut code = Vec::new();
    code.extend([0xbc, 0x00, 0x28]); // mov sp, 0x2800
    code.extend(call(0x6000, CODE + code.len() as u64));
    code.extend([0xc6, 0x06, 0x01, 0x40, 2]); // mov byte [0x4001], 2
    code.extend(call(0x6000, CODE + code.len() as u64));
    code.extend(STOP);
    code.extend([0xc6, 0x06, 0x01, 0x40, 3]);
    code.extend(call(0x6000, CODE + code.len() as u64));
    code.extend(STOP);
    let (mut vm, _host) = machine(&code);
    let both = Host::new(1);
    both.write(0, &[0xb0, 1, 0xc3]); // mov al, 1; ret
    add(&mut vm, 0x4000, &both, false);
    add(&mut vm, 0x6000, &both, true);
    stops(&mut vm);
    assert_eq!(al(&mut vm), 2);
    stops(&mut vm);
    assert_eq!(al(&mut vm), 3);
}

#[test]
fn host_memory_that_is_not_there_stops_the_run_and_no_more() {
    let code = [&load(DATA)[..], &store(DATA), &STOP].concat();
    let (mut vm, _host) = machine(&code);
    let data = Host::new(1);
    data.write(0, &[0x33]);
    add(&mut vm, DATA, &data, false);
    let missing = |vm: &mut SoftVm, protection| {
        data.protect(0, protection);
        for _ in 0..2 {
            match vm.run(Budget::instructions(100)) {
                Err(BackendError::HostMemory { address }) => assert_eq!(address, L1Phys(DATA)),
                other => panic!("{other:?}"),
            }
        }
    };
    missing(&mut vm, libc::PROT_NONE);
    missing(&mut vm, libc::PROT_READ);
    assert_eq!(al(&mut vm), 0x33);
    data.protect(0, libc::PROT_READ | libc::PROT_WRITE);
    stops(&mut vm);
}

#[test]
fn code_in_host_memory_that_is_not_there() {
    let (mut vm, host) = machine(&STOP);
    host.protect(0, libc::PROT_NONE);
    let answer = vm.run(Budget::instructions(100));
    assert!(matches!(answer, Err(BackendError::HostMemory { .. })));
    host.protect(0, libc::PROT_READ);
    stops(&mut vm);
}

/// A vCPU that polls a flag sees another thread's store; the machine moves between threads.
#[test]
fn another_thread_writes_while_the_guest_runs() {
    // again: mov al, [DATA]; cmp al, 0; je again; hlt
    let code = [&load(DATA)[..], &[0x3c, 0, 0x74, 0xf9, STOP[0], STOP[1]]].concat();
    let (mut vm, host) = machine(&code);
    let data = Host::new(1);
    add(&mut vm, DATA, &data, false);
    assert_eq!(run(&mut vm), Exit::Budget);
    let runner = std::thread::spawn(move || {
        let exit = vm.run(Budget::time(std::time::Duration::from_secs(60)));
        (vm, host, exit)
    });
    data.write(0, &[1]);
    let (mut vm, _host, exit) = runner.join().expect("ends");
    assert!(is_stop(&exit.expect("runs")));
    assert_eq!(al(&mut vm), 1);
}

#[test]
fn vcpus_come_one_by_one() {
    let code = [&mov_al(7)[..], &STOP].concat();
    let (mut vm, _host) = machine(&code);
    stops(&mut vm);
    assert_eq!(vm.add_vcpu(3).expect("a vCPU"), 1);
    assert_eq!(vm.vcpu_count(), 2);
    assert_eq!(
        vm.vcpu(1).run(Budget::instructions(10)).expect("runs"),
        Exit::Hlt
    );
    vm.vcpu(0);
    assert_eq!(al(&mut vm), 7);
}

/// Processors in SMM see other slots, at the same addresses.
#[test]
fn smm_has_an_address_space_of_its_own() {
    // JMP to itself.
    let (mut vm, _host) = machine(&[0xeb, 0xfe]);
    let ram = Host::new(16);
    let smram = MemorySlot {
        space: Space::Smm,
        ..slot(0x3_0000, &ram, false)
    };
    // OUT; RSM.
    ram.write(0x8000, &[STOP[0], STOP[1], 0x0f, 0xaa]);
    // SAFETY: the mapping stays.
    unsafe { vm.add_memory(&smram) }.expect("a slot");
    let over = Host::new(1);
    add(&mut vm, 0x3_8000, &over, false);
    for _ in 0..2 {
        assert_eq!(run(&mut vm), Exit::Budget);
        vm.inject_smi().expect("taken");
        stops(&mut vm);
    }
    assert_eq!(run(&mut vm), Exit::Budget);
    // The revision of the state save map.
    assert_eq!(ram.byte(0xfefe), 2);
    assert_eq!(
        vm.dirty_log(Space::Smm, L1Phys(0x3_0000)),
        Some(&[0x8000][..])
    );
    assert_eq!(vm.dirty_log(Space::Normal, L1Phys(0x3_0000)), None);
    assert!(vm.remove_memory(Space::Smm, L1Phys(0x3_0000)));
}

/// Without a local APIC here its page is a device's, HLT an exit, and interrupts come from outside alone.
#[test]
fn user_space_has_the_local_apic() {
    let host = Host::new(2);
    // STI; JMP to itself.
    host.write(0, &[0xfb, 0xeb, 0xfe]);
    // The handler: MOV AL, [FEE00020H]; HLT.
    host.write(0x100, &[0x67, 0xa0, 0x20, 0x00, 0xe0, 0xfe, 0xf4]);
    let vectors = Host::new(1);
    vectors.write(4 * 0x21, &[0x00, 0x11]);
    let mut vm = SoftVm::empty().expect("a machine");
    vm.leave_out_local_apics();
    vm.set_bootstrap(5);
    for (id, bootstrap) in [(3, false), (5, true)] {
        let index = vm.add_vcpu(id).expect("a vCPU");
        let state = vm.vcpu(index).state(Parts::All).expect("state");
        assert_eq!(state.mp_state, Some(MpState::Runnable));
        let base = state.sregs.expect("sregs").apic_base;
        assert_eq!(base >> 8 & 1 != 0, bootstrap);
    }
    add(&mut vm, CODE, &host, false);
    add(&mut vm, 0, &vectors, false);
    begin(&mut vm, 1);
    let mut sregs = vm.state(Parts::All).expect("state").sregs.expect("sregs");
    sregs.ds.limit = u32::MAX;
    sregs.ss.base = CODE;
    let regs = Regs {
        rip: CODE,
        rflags: 2,
        gpr: [0x1000; 16],
    };
    let wide = CpuState {
        regs: Some(regs),
        sregs: Some(sregs),
        ..CpuState::default()
    };
    vm.set_state(&wide).expect("taken");
    assert_eq!(run(&mut vm), Exit::Budget);
    vm.set_interrupt_line(true).expect("taken");
    assert_eq!(run(&mut vm), Exit::InterruptWindow);
    vm.set_interrupt_line(false).expect("taken");
    assert_eq!(run(&mut vm), Exit::Budget);
    vm.acknowledge_interrupt(0x21).expect("taken");
    let read = Exit::MmioRead {
        address: L1Phys(0xfee0_0020),
        size: 1,
    };
    assert_eq!(run(&mut vm), read);
    vm.complete_read(5).expect("waits");
    assert_eq!(run(&mut vm), Exit::Hlt);
    assert_eq!(al(&mut vm), 5);
}
