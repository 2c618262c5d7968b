//! A vCPU's state by the API: what is got can be set, on another vCPU too, and what the kernel refuses is refused.

mod support;

use kvm_bindings::*;
use nvmx_shim::errno::{Answer, Errno};
use support::Guest;

const fn ioctl(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | 0xae << 8 | number
}

const fn get<T>(number: u32) -> u32 {
    ioctl(2, number, size_of::<T>())
}

const fn set<T>(number: u32) -> u32 {
    ioctl(1, number, size_of::<T>())
}

const GET_MSRS: u32 = ioctl(3, 0x88, 8);
const SET_MSRS: u32 = ioctl(1, 0x89, 8);
const SET_CPUID2: u32 = ioctl(1, 0x90, 8);
const GET_CPUID2: u32 = ioctl(3, 0x91, 8);
const GET_NESTED_STATE: u32 = ioctl(3, 0xbe, 128);
const SET_NESTED_STATE: u32 = ioctl(1, 0xbf, 128);
const GET_SUPPORTED_CPUID: u32 = ioctl(3, 5, 8);
const GET_MSR_INDEX_LIST: u32 = ioctl(3, 2, 4);
const GET_MSR_FEATURE_INDEX_LIST: u32 = ioctl(3, 0x0a, 4);
const ENABLE_CAP: u32 = ioctl(1, 0xa3, 104);

fn call<T>(guest: &Guest, fd: i32, request: u32, argument: &mut T) -> Answer {
    guest.call(fd, request, std::ptr::from_mut(argument) as u64)
}

/// `nent`, padding, entries.
#[repr(C)]
struct Cpuid {
    header: [u32; 2],
    entries: [kvm_cpuid_entry2; 128],
}

fn supported(guest: &Guest) -> Box<Cpuid> {
    let mut cpuid = Box::new(Cpuid {
        header: [128, 0],
        entries: [kvm_cpuid_entry2::default(); 128],
    });
    call(guest, guest.system, GET_SUPPORTED_CPUID, &mut *cpuid).expect("CPUID");
    cpuid
}

#[repr(C)]
struct Msrs<const N: usize> {
    header: [u32; 2],
    entries: [kvm_msr_entry; N],
}

fn msrs<const N: usize>(entries: [(u32, u64); N]) -> Msrs<N> {
    Msrs {
        header: [N as u32, 0],
        entries: entries.map(|(index, data)| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        }),
    }
}

/// With CPUID set, and a vCPU for each.
fn guest(vcpus: u64) -> Guest {
    let guest = Guest::new(vcpus, &[0xf4]);
    let mut cpuid = supported(&guest);
    for vcpu in &guest.vcpus {
        call(&guest, *vcpu, SET_CPUID2, &mut *cpuid).expect("CPUID");
    }
    guest
}

/// `struct kvm_xsave`.
#[derive(Debug, PartialEq)]
#[repr(C)]
struct Area([u8; 4096]);

impl Default for Area {
    fn default() -> Self {
        Self([0; 4096])
    }
}

/// Gets a structure of one vCPU, gives it to the other and gets it there.
fn carry<T>(guest: &Guest, number_get: u32, number_set: u32, name: &str)
where
    T: Default + PartialEq + std::fmt::Debug,
{
    let (mut first, mut second) = (T::default(), T::default());
    call(guest, guest.vcpus[0], get::<T>(number_get), &mut first).expect(name);
    call(guest, guest.vcpus[1], set::<T>(number_set), &mut first).expect(name);
    call(guest, guest.vcpus[1], get::<T>(number_get), &mut second).expect(name);
    assert_eq!(first, second, "{name}");
}

#[test]
fn each_part_goes_from_one_vcpu_to_another() {
    let guest = guest(2);
    let mut regs = kvm_regs {
        rbx: 3,
        rsp: 4,
        r15: 15,
        rip: 0x1234,
        rflags: 0x202,
        ..Default::default()
    };
    call(&guest, guest.vcpus[0], set::<kvm_regs>(0x82), &mut regs).expect("registers");
    carry::<kvm_regs>(&guest, 0x81, 0x82, "REGS");
    carry::<kvm_sregs>(&guest, 0x83, 0x84, "SREGS");
    carry::<kvm_sregs2>(&guest, 0xcc, 0xcd, "SREGS2");
    carry::<kvm_fpu>(&guest, 0x8c, 0x8d, "FPU");
    carry::<kvm_vcpu_events>(&guest, 0x9f, 0xa0, "VCPU_EVENTS");
    carry::<kvm_debugregs>(&guest, 0xa1, 0xa2, "DEBUGREGS");
    carry::<Area>(&guest, 0xa4, 0xa5, "XSAVE");
    carry::<kvm_xcrs>(&guest, 0xa6, 0xa7, "XCRS");
    carry::<kvm_mp_state>(&guest, 0x98, 0x99, "MP_STATE");
}

#[test]
fn every_listed_msr_can_be_got_and_set() {
    let guest = guest(1);
    let mut list = [0_u32; 257];
    let few = call(&guest, guest.system, GET_MSR_INDEX_LIST, &mut list);
    assert_eq!(few, Err(Errno::E2BIG));
    let count = list[0] as usize;
    assert!((40..256).contains(&count), "{count}");
    call(&guest, guest.system, GET_MSR_INDEX_LIST, &mut list).expect("a list");
    let mut all: Msrs<255> = msrs([(0, 0); 255]);
    all.header[0] = count as u32;
    for (entry, number) in all.entries.iter_mut().zip(&list[1..=count]) {
        entry.index = *number;
    }
    let done = call(&guest, guest.vcpus[0], GET_MSRS, &mut all);
    let at = |done: Answer| done.map(|done| list.get(1 + done as usize).map(|n| format!("{n:#x}")));
    assert_eq!(done, Ok(count as i32), "{:?}", at(done));
    let done = call(&guest, guest.vcpus[0], SET_MSRS, &mut all);
    assert_eq!(done, Ok(count as i32), "{:?}", at(done));

    list[0] = 0;
    call(&guest, guest.system, GET_MSR_FEATURE_INDEX_LIST, &mut list).expect_err("too few");
    let count = list[0] as usize;
    call(&guest, guest.system, GET_MSR_FEATURE_INDEX_LIST, &mut list).expect("a list");
    for number in &list[1..=count] {
        let mut one = msrs([(*number, 7)]);
        let done = call(&guest, guest.system, GET_MSRS, &mut one);
        assert_eq!(done, Ok(1), "{number:#x}");
    }
}

#[test]
fn msrs_are_done_up_to_the_first_that_fails() {
    const FEATURE_CONTROL: u32 = 0x3a;
    let guest = guest(1);
    let vcpu = guest.vcpus[0];
    let mut some = msrs([(0x174, 0x10), (FEATURE_CONTROL, 1 << 3), (0x175, 5)]);
    assert_eq!(call(&guest, vcpu, SET_MSRS, &mut some), Ok(1));
    let mut none = msrs([(0x474f_4f00, 0)]);
    assert_eq!(call(&guest, vcpu, GET_MSRS, &mut none), Ok(0));
    let mut many = msrs([(0x10, 0)]);
    many.header[0] = 256;
    assert_eq!(call(&guest, vcpu, GET_MSRS, &mut many), Err(Errno::E2BIG));
    assert_eq!(guest.call(vcpu, GET_MSRS, 8), Err(Errno::EFAULT));
}

#[test]
fn cpuid_cannot_change_once_it_has_run() {
    let guest = guest(1);
    let vcpu = guest.vcpus[0];
    assert_eq!(guest.run(0), Ok(KVM_EXIT_HLT));
    let mut cpuid = supported(&guest);
    assert_eq!(call(&guest, vcpu, SET_CPUID2, &mut *cpuid), Ok(0));
    cpuid.entries[1].ecx ^= 1 << 5;
    assert_eq!(
        call(&guest, vcpu, SET_CPUID2, &mut *cpuid),
        Err(Errno::EINVAL)
    );
    let mut room = [1_u32, 0];
    assert_eq!(call(&guest, vcpu, GET_CPUID2, &mut room), Err(Errno::E2BIG));
    // So are the capability MSRs.
    let mut basic = msrs([(0x480, 0)]);
    assert_eq!(call(&guest, vcpu, SET_MSRS, &mut basic), Ok(0));
    call(&guest, vcpu, GET_MSRS, &mut basic).expect("IA32_VMX_BASIC");
    assert_eq!(call(&guest, vcpu, SET_MSRS, &mut basic), Ok(1));
}

#[test]
fn registers_that_no_processor_has_are_refused() {
    let guest = guest(1);
    let vcpu = guest.vcpus[0];
    let (get, set) = (get::<kvm_sregs>(0x83), set::<kvm_sregs>(0x84));
    let mut before = kvm_sregs::default();
    call(&guest, vcpu, get, &mut before).expect("registers");
    let changes: [fn(&mut kvm_sregs); 5] = [
        |s| s.cr0 |= 1 << 32,
        |s| s.cr0 |= 1 << 31,
        |s| s.cr4 |= 1 << 14,
        |s| s.efer |= 1 << 10,
        |s| s.apic_base = 1 << 10,
    ];
    for (number, change) in changes.into_iter().enumerate() {
        let mut new = before;
        change(&mut new);
        assert_eq!(
            call(&guest, vcpu, set, &mut new),
            Err(Errno::EINVAL),
            "{number}"
        );
        let mut after = kvm_sregs::default();
        call(&guest, vcpu, get, &mut after).expect("registers");
        assert_eq!(after, before, "{number}");
    }
}

#[test]
fn nested_state_has_its_sizes() {
    let guest = guest(1);
    let vcpu = guest.vcpus[0];
    let mut bytes = [0_u8; 128];
    assert_eq!(
        call(&guest, vcpu, GET_NESTED_STATE, &mut bytes),
        Err(Errno::E2BIG)
    );
    assert_eq!(bytes[4..8], 128_u32.to_le_bytes());
    assert_eq!(call(&guest, vcpu, GET_NESTED_STATE, &mut bytes), Ok(0));
    assert_eq!(call(&guest, vcpu, SET_NESTED_STATE, &mut bytes), Ok(0));
    bytes[4] = 127;
    assert_eq!(
        call(&guest, vcpu, SET_NESTED_STATE, &mut bytes),
        Err(Errno::EINVAL)
    );
    assert_eq!(guest.call(vcpu, SET_NESTED_STATE, 0), Err(Errno::EFAULT));
}

#[test]
fn payloads_are_enabled_before_they_are_set() {
    let guest = guest(1);
    let vcpu = guest.vcpus[0];
    let (get, set) = (get::<kvm_vcpu_events>(0x9f), set::<kvm_vcpu_events>(0xa0));
    let mut events = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_PAYLOAD,
        ..Default::default()
    };
    events.exception.pending = 1;
    events.exception.nr = 14;
    events.exception.has_error_code = 1;
    events.exception_has_payload = 1;
    events.exception_payload = 0xdead_0000;
    assert_eq!(call(&guest, vcpu, set, &mut events), Err(Errno::EINVAL));
    let mut enable = kvm_enable_cap {
        cap: KVM_CAP_EXCEPTION_PAYLOAD,
        args: [1, 0, 0, 0],
        ..Default::default()
    };
    call(&guest, guest.vm, ENABLE_CAP, &mut enable).expect("payloads");
    assert_eq!(call(&guest, vcpu, set, &mut events), Ok(0));
    let mut now = kvm_vcpu_events::default();
    call(&guest, vcpu, get, &mut now).expect("events");
    assert_eq!(
        (now.exception.pending, now.exception_payload),
        (1, 0xdead_0000)
    );
    // Disabled again, it looks injected and CR2 has been written.
    enable.args[0] = 0;
    call(&guest, guest.vm, ENABLE_CAP, &mut enable).expect("no payloads");
    call(&guest, vcpu, get, &mut now).expect("events");
    assert_eq!(now.exception.injected, 1);
    let mut sregs = kvm_sregs::default();
    call(&guest, vcpu, crate::get::<kvm_sregs>(0x83), &mut sregs).expect("registers");
    assert_eq!(sregs.cr2, 0xdead_0000);
    // Setting the general registers forgets it.
    let mut regs = kvm_regs::default();
    call(&guest, vcpu, crate::set::<kvm_regs>(0x82), &mut regs).expect("registers");
    call(&guest, vcpu, get, &mut now).expect("events");
    assert_eq!((now.exception.injected, now.exception.pending), (0, 0));
}
