//! KVM_IOEVENTFD: writes that nobody emulates but somebody hears (Linux: virt/kvm/eventfd.c).

use crate::errno::{Answer, Errno};
use crate::os::{EventFile, User};
use crate::vm::VmContext;
use kvm_bindings::*;
use nvmx_core::vcpu::Exit;

const MATCH: u32 = 1 << kvm_ioeventfd_flag_nr_datamatch;
const PIO: u32 = 1 << kvm_ioeventfd_flag_nr_pio;
const DEASSIGN: u32 = 1 << kvm_ioeventfd_flag_nr_deassign;
/// Another architecture's, which x86 knows as a flag, too.
const CCW: u32 = 1 << kvm_ioeventfd_flag_nr_virtio_ccw_notify;
const FLAGS: u32 = MATCH | PIO | DEASSIGN | CCW;

/// Where a write goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bus {
    Memory,
    Port,
    /// Where no write of ours goes.
    Other,
}

/// The writes that are heard, and by whom.
#[derive(Debug, Default)]
pub struct IoEvents(Vec<IoEvent>);

#[derive(Debug)]
struct IoEvent {
    key: Key,
    file: EventFile,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Key {
    bus: Bus,
    address: u64,
    /// Bytes; 0 for any number.
    length: u32,
    /// The value, or any.
    value: Option<u64>,
}

impl Key {
    /// Whether one write could be both's (ioeventfd_check_collision).
    fn collides(&self, other: &Self) -> bool {
        let same_value = self.value.is_none() || other.value.is_none() || self.value == other.value;
        self.bus == other.bus
            && self.address == other.address
            && (self.length == 0 || other.length == 0 || self.length == other.length && same_value)
    }

    /// Whether it hears a write (ioeventfd_in_range).
    fn hears(&self, bus: Bus, address: u64, size: u8, value: u64) -> bool {
        self.bus == bus
            && self.address == address
            && (self.length == 0
                || self.length == u32::from(size) && self.value.is_none_or(|v| v == value))
    }
}

impl IoEvents {
    /// Whether somebody hears the write that an exit is: then the caller does not see it.
    #[must_use]
    pub fn hear(&self, exit: &Exit) -> bool {
        let (bus, address, size, value) = match *exit {
            Exit::IoOut { port, size, value } => (Bus::Port, port.into(), size, value.into()),
            Exit::MmioWrite {
                address,
                size,
                value,
            } => (Bus::Memory, address.0, size, value),
            _ => return false,
        };
        let event = self
            .0
            .iter()
            .find(|event| event.key.hears(bus, address, size, value));
        event.inspect(|event| event.file.signal()).is_some()
    }
}

/// KVM_IOEVENTFD.
pub fn ioeventfd(context: &mut VmContext<'_>, user: User, argument: u64) -> Answer {
    let request: kvm_ioeventfd = user.read(argument)?;
    let flags = request.flags;
    let bus = match (flags & CCW, flags & PIO) {
        (0, 0) => Bus::Memory,
        (0, _) => Bus::Port,
        _ => Bus::Other,
    };
    let key = Key {
        bus,
        address: request.addr,
        length: request.len,
        value: (flags & MATCH != 0).then_some(mask(request.datamatch, request.len)),
    };
    let events = &mut context.vm.io_events.0;
    if flags & DEASSIGN != 0 {
        // No two differ by the file alone.
        EventFile::check(request.fd)?;
        let at = events.iter().position(|event| event.key == key);
        events.swap_remove(at.ok_or(Errno::ENOENT)?);
        return Ok(0);
    }
    let end = request.addr.checked_add(request.len.into());
    if !matches!(request.len, 0 | 1 | 2 | 4 | 8)
        || end.is_none()
        || flags & !FLAGS != 0
        || request.len == 0 && flags & MATCH != 0
    {
        return Err(Errno::EINVAL);
    }
    let file = EventFile::new(request.fd)?;
    if events.iter().any(|event| event.key.collides(&key)) {
        return Err(Errno::EEXIST);
    }
    events.push(IoEvent { key, file });
    Ok(0)
}

/// As much of the value as a write of that length has.
const fn mask(value: u64, length: u32) -> u64 {
    match length {
        1 | 2 | 4 => value & ((1 << (8 * length)) - 1),
        _ => value,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Settings;
    use crate::vm::Vm;
    use nvmx_core::addr::L1Phys;
    use rustix::event::{EventfdFlags, eventfd};
    use rustix::fd::AsRawFd;

    #[test]
    fn writes_are_heard_by_whom_they_are_for() {
        let vm = Vm::new(&Settings::default()).expect("a VM");
        let file = eventfd(0, EventfdFlags::NONBLOCK).expect("an eventfd");
        let fd = file.as_raw_fd();
        let call = |flags, addr, len, datamatch, fd| {
            let request = kvm_ioeventfd {
                datamatch,
                addr,
                len,
                fd,
                flags,
                ..Default::default()
            };
            let at = std::ptr::from_ref(&request) as u64;
            ioeventfd(&mut vm.lock().context(), User, at)
        };
        let (invalid, exists) = (Err(Errno::EINVAL), Err(Errno::EEXIST));
        for (name, answer, expected) in [
            ("a length of 3", call(0, 0x1000, 3, 0, fd), invalid),
            ("a flag", call(16, 0x1000, 4, 0, fd), invalid),
            ("wraps", call(0, u64::MAX, 4, 0, fd), invalid),
            (
                "any length with a value",
                call(MATCH, 0x1000, 0, 0, fd),
                invalid,
            ),
            (
                "no descriptor",
                call(0, 0x1000, 4, 0, -1),
                Err(Errno::EBADF),
            ),
            ("a value", call(MATCH, 0x1000, 4, 7, fd), Ok(0)),
            ("it again", call(MATCH, 0x1000, 4, 7, fd), exists),
            ("any value", call(0, 0x1000, 4, 0, fd), exists),
            ("any length", call(0, 0x1000, 0, 0, fd), exists),
            ("another value", call(MATCH, 0x1000, 4, 8, fd), Ok(0)),
            ("a port", call(PIO, 0x10, 1, 0, fd), Ok(0)),
            ("any length there", call(0, 0x2000, 0, 0, fd), Ok(0)),
        ] {
            assert_eq!(answer, expected, "{name}");
        }
        let memory = |address, size, value| Exit::MmioWrite {
            address: L1Phys(address),
            size,
            value,
        };
        let port = |port, size| Exit::IoOut {
            port,
            size,
            value: 1,
        };
        for (exit, heard) in [
            (memory(0x1000, 4, 7), true),
            (memory(0x1000, 4, 9), false),
            (memory(0x1000, 2, 7), false),
            (memory(0x1004, 4, 7), false),
            (memory(0x10, 1, 1), false),
            (memory(0x2000, 2, 3), true),
            (port(0x10, 1), true),
            (port(0x10, 2), false),
            (Exit::Hlt, false),
        ] {
            assert_eq!(vm.lock().io_events.hear(&exit), heard, "{exit:?}");
        }
        let mut count = [0; 8];
        rustix::io::read(&file, &mut count).expect("signals");
        assert_eq!(u64::from_ne_bytes(count), 3);
        assert_eq!(call(DEASSIGN | PIO, 0x10, 2, 0, fd), Err(Errno::ENOENT));
        assert_eq!(call(DEASSIGN | PIO, 0x10, 1, 0, fd), Ok(0));
        assert!(!vm.lock().io_events.hear(&port(0x10, 1)));
    }

    /// A counter that is full holds nobody up.
    #[test]
    fn a_full_counter_is_passed_over() {
        let file = eventfd(0, EventfdFlags::empty()).expect("an eventfd");
        rustix::io::write(&file, &(u64::MAX - 1).to_ne_bytes()).expect("fits");
        EventFile::new(file.as_raw_fd()).expect("one").signal();
    }
}
