//! KVM_SET_GUEST_DEBUG in process: INT3, debug registers and single steps are exits to the caller.

mod support;

use support::Guest;

const KVM_SET_GUEST_DEBUG: u32 = 0x4048_ae9b;
const ENABLE: u32 = 1;
const SINGLE_STEP: u32 = 2;
const SOFTWARE: u32 = 1 << 16;
const HARDWARE: u32 = 1 << 17;
const EXIT_DEBUG: u32 = 4;
const EXIT_IO: u32 = 2;
/// Where the code is: the linear address.
const CODE: u64 = 0xffff_f000;
/// The bits of DR6 that are always 1.
const DR6: u64 = 0xffff_0ff0;

/// `struct kvm_guest_debug`.
fn ask(guest: &Guest, control: u32, address: u64, dr7: u64) {
    let request: [u64; 9] = [u64::from(control), address, 0, 0, 0, 0, 0, 0, dr7];
    let answer = guest.call(guest.vcpus[0], KVM_SET_GUEST_DEBUG, request.as_ptr() as u64);
    assert_eq!(answer, Ok(0));
}

/// Exception, linear address, DR6.
fn debug(guest: &Guest) -> (u32, u64, u64) {
    guest.page(0, |page| (page.exit(0), page.exit(8), page.exit(16)))
}

#[test]
fn int3_is_the_debuggers_while_it_wants_it() {
    // NOP; INT3
    let guest = Guest::new(1, &[0x90, 0xcc]);
    ask(&guest, ENABLE | SOFTWARE, 0, 0);
    for _ in 0..2 {
        assert_eq!(guest.run(0), Ok(EXIT_DEBUG));
        let (exception, pc, _) = debug(&guest);
        assert_eq!((exception, pc), (3, CODE + 1));
    }
}

#[test]
fn debug_registers_are_the_debuggers() {
    // NOP; NOP; OUT 0x80,AL
    let guest = Guest::new(1, &[0x90, 0x90, 0xe6, 0x80]);
    ask(&guest, ENABLE | HARDWARE, CODE + 1, 0x402);
    assert_eq!(guest.run(0), Ok(EXIT_DEBUG));
    assert_eq!(debug(&guest), (1, CODE + 1, DR6 | 1));
    ask(&guest, 0, 0, 0);
    assert_eq!(guest.run(0), Ok(EXIT_IO));
}

#[test]
fn steps_end_behind_each_instruction() {
    // NOP; MOV AL,1; JMP +1; HLT; OUT 0x80,AL; NOP
    let code = [0x90, 0xb0, 1, 0xeb, 1, 0xf4, 0xe6, 0x80, 0x90];
    let guest = Guest::new(1, &code);
    ask(&guest, ENABLE | SINGLE_STEP, 0, 0);
    for pc in [CODE, CODE + 1, CODE + 3, CODE + 6] {
        assert_eq!(guest.run(0), Ok(EXIT_DEBUG));
        assert_eq!(debug(&guest), (1, pc, DR6 | 1 << 14));
    }
    assert_eq!(guest.run(0), Ok(EXIT_IO));
    assert_eq!(guest.run(0), Ok(EXIT_DEBUG));
    assert_eq!(debug(&guest).1, CODE + 9);
}
