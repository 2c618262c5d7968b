//! Every ioctl with null, short, misaligned, hostile and random arguments: an errno of the kernel's or a value,
//! never a crash.

mod support;

use nvmx_shim::errno::Errno;
use nvmx_shim::table::{self, Handler, Level};
use std::collections::{BTreeMap, BTreeSet};
use support::{Guest, Memory};

const CALLS: u32 = 60_000;
const SPIN: &[u8] = &[0xeb, 0xfe];
/// Errors that the kernel's own handlers give.
const ERRNOS: &[Errno] = &[
    Errno::EPERM,
    Errno::ENOENT,
    Errno::EINTR,
    Errno::EIO,
    Errno::ENXIO,
    Errno::E2BIG,
    Errno::EAGAIN,
    Errno::ENOMEM,
    Errno::EACCES,
    Errno::EFAULT,
    Errno::EBUSY,
    Errno::EEXIST,
    Errno::ENODEV,
    Errno::EINVAL,
    Errno::EMFILE,
    Errno::ENOTTY,
    Errno::ENOSPC,
    Errno::EOPNOTSUPP,
    Errno::EBADF,
];

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Fills the buffer: sometimes with noise, sometimes with small numbers, as structures have.
fn fill(random: &mut Random, buffer: &Memory) {
    let kind = random.below(4);
    for at in (0..512).step_by(8) {
        let word = match kind {
            0 => random.next(),
            1 => random.below(4),
            2 => 0,
            _ if random.below(4) == 0 => 1 << random.below(64),
            _ => 0,
        };
        buffer.write(at, &word.to_le_bytes());
    }
}

fn argument(random: &mut Random, buffer: &Memory) -> u64 {
    let start = buffer.address();
    match random.below(10) {
        0 => 0,
        1 => random.below(64),
        2 => u64::MAX - random.below(4096),
        3 => 0xffff_8000_0000_0000 | random.next() >> 20,
        4 => start + random.below(64) * 2 + 1,
        // Not in user space and not canonical.
        5 => random.next() | 1 << 62,
        _ => start,
    }
}

#[test]
fn no_argument_is_a_crash() {
    let guest = Guest::new(2, SPIN);
    let system = guest.shim.open_system(true).expect("/dev/kvm");
    let buffer = Memory::new(32);
    let mut random = Random(2026);
    let rows: Vec<_> = table::all().collect();
    let mut seen: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for call in 0..CALLS {
        let row = rows[random.below(rows.len() as u64) as usize];
        // What makes descriptors is called now and then: nobody closes them here.
        let makes = matches!(row.handler, Handler::VmObject(_)) || row.name == "KVM_CREATE_VM";
        if makes && row.name != "KVM_CHECK_EXTENSION" && random.below(64) != 0 {
            continue;
        }
        let fd = match row.level {
            // Now and then on another's descriptor.
            _ if random.below(50) == 0 => guest.vm,
            Level::System => system,
            Level::Vm => guest.vm,
            Level::Vcpu => guest.vcpus[random.below(2) as usize],
        };
        let request = match random.below(30) {
            0 => row.request ^ 1 << random.below(32),
            _ => row.request,
        };
        fill(&mut random, &buffer);
        let argument = argument(&mut random, &buffer);
        for vcpu in 0..2 {
            // No run lasts.
            guest.page(vcpu, |page| page.store(1, 1_u8));
        }
        let answer = guest.shim.ioctl(fd, request, argument);
        let name = match answer {
            None | Some(Ok(0..)) => "",
            Some(Err(errno)) => {
                assert!(
                    ERRNOS.contains(&errno),
                    "call {call}: {} ({request:#x}) with {argument:#x}: {errno:?}",
                    row.name
                );
                errno.name()
            }
            Some(Ok(value)) => panic!("call {call}: {}: {value}", row.name),
        };
        if request == row.request {
            seen.entry(row.name).or_default().insert(name);
        }
    }
    // Each was called, and those that read or write the caller's memory met hostile addresses.
    assert!(seen.len() > 100, "{} ioctls", seen.len());
    for name in [
        "KVM_SET_USER_MEMORY_REGION",
        "KVM_ENABLE_CAP",
        "KVM_SET_GUEST_DEBUG",
    ] {
        assert!(seen[name].contains("EFAULT"), "{name}: {:?}", seen[name]);
    }
}
