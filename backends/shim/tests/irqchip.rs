//! The interrupt controllers and the timer in the kernel: who may make them, their state, and a guest that they
//! interrupt.

mod support;

use kvm_bindings::*;
use nvmx_shim::errno::{Answer, Errno};
use support::Guest;

const CREATE_IRQCHIP: u32 = 0xae60;
const IRQ_LINE: u32 = 0x4008_ae61;
const GET_IRQCHIP: u32 = 0xc208_ae62;
const SET_IRQCHIP: u32 = 0x8208_ae63;
const SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const CREATE_PIT2: u32 = 0x4040_ae77;
const GET_PIT2: u32 = 0x8070_ae9f;
const SET_PIT2: u32 = 0x4070_aea0;
const SIGNAL_MSI: u32 = 0x4020_aea5;
const ENABLE_CAP: u32 = 0x4068_aea3;

fn call<T>(guest: &Guest, fd: i32, request: u32, argument: &mut T) -> Answer {
    guest.call(fd, request, std::ptr::from_mut(argument) as u64)
}

fn pit(guest: &Guest) -> Answer {
    call(guest, guest.vm, CREATE_PIT2, &mut kvm_pit_config::default())
}

/// With an irqchip and a vCPU that runs this code.
fn guest(code: &[u8]) -> Guest {
    let mut guest = Guest::new(0, code);
    guest.call(guest.vm, CREATE_IRQCHIP, 0).expect("an irqchip");
    pit(&guest).expect("a timer");
    let vcpu = guest.call(guest.vm, support::KVM_CREATE_VCPU, 0);
    guest.vcpus.push(vcpu.expect("a vCPU"));
    guest
}

#[test]
fn it_is_made_once_and_before_the_vcpus() {
    let late = Guest::new(1, &[0xf4]);
    assert_eq!(late.call(late.vm, CREATE_IRQCHIP, 0), Err(Errno::EINVAL));
    assert_eq!(pit(&late), Err(Errno::ENOENT));
    assert_eq!(
        call(&late, late.vm, IRQ_LINE, &mut [0_u32, 1]),
        Err(Errno::ENXIO)
    );
    let guest = guest(&[0xf4]);
    assert_eq!(guest.call(guest.vm, CREATE_IRQCHIP, 0), Err(Errno::EEXIST));
    assert_eq!(pit(&guest), Err(Errno::EEXIST));
    let split = Guest::new(0, &[0xf4]);
    let mut enable = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        args: [24, 0, 0, 0],
        ..Default::default()
    };
    assert_eq!(call(&split, split.vm, ENABLE_CAP, &mut enable), Ok(0));
    assert_eq!(
        call(&split, split.vm, ENABLE_CAP, &mut enable),
        Err(Errno::EEXIST)
    );
    assert_eq!(pit(&split), Err(Errno::ENOENT));
}

#[test]
fn the_state_of_each_chip_can_be_put_back() {
    let guest = guest(&[0xf4]);
    for chip in 0..3_u32 {
        let mut state = [0_u32; 130];
        state[0] = chip;
        call(&guest, guest.vm, GET_IRQCHIP, &mut state).expect("a chip");
        if chip == 2 {
            // Entry 4 of the redirection table: vector 0x34, masked.
            state[2 + 2 * (3 + 4)] = 0x1_0034;
        } else {
            // ISR and priority.
            state[2] |= 0x0400_0000;
        }
        call(&guest, guest.vm, SET_IRQCHIP, &mut state).expect("a chip");
        let mut again = [0_u32; 130];
        again[0] = chip;
        call(&guest, guest.vm, GET_IRQCHIP, &mut again).expect("a chip");
        assert_eq!(again[..56], state[..56], "{chip}");
    }
    let mut state = [3_u32; 130];
    assert_eq!(
        call(&guest, guest.vm, GET_IRQCHIP, &mut state),
        Err(Errno::EINVAL)
    );
    let (mut first, mut again) = (kvm_pit_state2::default(), kvm_pit_state2::default());
    call(&guest, guest.vm, GET_PIT2, &mut first).expect("a timer");
    call(&guest, guest.vm, SET_PIT2, &mut first).expect("a timer");
    call(&guest, guest.vm, GET_PIT2, &mut again).expect("a timer");
    assert_eq!(again, first);
}

#[test]
fn routes_are_checked() {
    let guest = guest(&[0xf4]);
    let route = |count: u32, entry: [u32; 12]| {
        let mut table = [0_u32; 2 + 24];
        table[0] = count;
        table[2..14].copy_from_slice(&entry);
        table[14..].copy_from_slice(&entry);
        call(&guest, guest.vm, SET_GSI_ROUTING, &mut table)
    };
    let ioapic = |pin| [5, 1, 0, 0, 2, pin, 0, 0, 0, 0, 0, 0];
    assert_eq!(route(1, ioapic(23)), Ok(0));
    assert_eq!(route(1, ioapic(24)), Err(Errno::EINVAL));
    assert_eq!(route(2, ioapic(3)), Err(Errno::EINVAL));
    assert_eq!(route(0, ioapic(3)), Ok(0));
    assert_eq!(route(4097, ioapic(3)), Err(Errno::EINVAL));
    assert_eq!(
        route(1, [5, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        Err(Errno::EINVAL)
    );
    let mut nobody = kvm_msi {
        address_lo: 0xfee3_0000,
        data: 0x40,
        ..Default::default()
    };
    assert_eq!(
        call(&guest, guest.vm, SIGNAL_MSI, &mut nobody),
        Err(Errno::EPERM)
    );
}

/// Real mode: PIC at vectors 0x20 and 0x28 with only the timer's line open; its handler, at 0xF000:0xF080, writes to
/// port 0x80. The interrupt table is the page at zero.
#[test]
fn the_timer_interrupts_a_guest_that_sleeps() {
    let mut code = Vec::new();
    for (port, value) in [
        (0x20, 0x11),
        (0x21, 0x20),
        (0x21, 0x04),
        (0x21, 0x01),
        (0x21, 0xfe),
        // Channel 0, mode 2, 256 ticks.
        (0x43, 0x34),
        (0x40, 0x00),
        (0x40, 0x01),
    ] {
        code.extend([0xb0, value, 0xe6, port]);
    }
    // STI; HLT
    code.extend([0xfb, 0xf4, 0xeb, 0xfd]);
    code.resize(0x80, 0x90);
    // OUT 0x80,AL; HLT
    code.extend([0xe6, 0x80, 0xf4]);
    let guest = guest(&code);
    let table = support::Memory::new(1);
    // Of vector 0x20: offset, segment.
    table.write(0x80, &[0x80, 0xf0, 0x00, 0xf0]);
    let mut region: [u64; 4] = [1, 0, table.length(), table.address()];
    call(
        &guest,
        guest.vm,
        support::KVM_SET_USER_MEMORY_REGION,
        &mut region,
    )
    .expect("a slot");
    // The handler's segment is F000, whose page at 0xFF000 is the code's.
    let mut region: [u64; 4] = [2, 0xff000, guest.code.length(), guest.code.address()];
    call(
        &guest,
        guest.vm,
        support::KVM_SET_USER_MEMORY_REGION,
        &mut region,
    )
    .expect("a slot");
    assert_eq!(guest.run(0), Ok(KVM_EXIT_IO));
    assert_eq!(guest.page(0, |page| page.exit::<u16>(2)), 0x80);
}
