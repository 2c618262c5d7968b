//! The bus: what is where, how lines reach PIC and I/O APIC, and that nothing panics.

use super::*;
use proptest::prelude::*;

fn pc() -> Pc {
    Pc::new(&Config {
        memory_size: 64 << 20,
        processors: 1,
        ..Config::default()
    })
}

fn write(pc: &mut Pc, port: u16, value: u8) {
    assert_eq!(pc.write_port(0, port, 1, value.into()), None, "{port:#x}");
}

/// PIC with vectors 0x30 and 0x38 and these masks.
fn set_up_pic(pc: &mut Pc, masks: [u8; 2]) {
    for (port, base, icw3, mask) in [(0x20, 0x30, 4, masks[0]), (0xa0, 0x38, 2, masks[1])] {
        write(pc, port, 0x11);
        for value in [base, icw3, 1, mask] {
            write(pc, port + 1, value);
        }
    }
}

fn set_up_input(pc: &mut Pc, input: u8, entry: u32) {
    pc.write_memory(ioapic::ADDRESS, 4, u64::from(0x10 + 2 * input));
    pc.write_memory(ioapic::ADDRESS + 0x10, 4, entry.into());
}

fn message(pc: &mut Pc) -> Option<u32> {
    let message = pc.ioapic().next_message()?;
    pc.ioapic().sent(&message, true);
    Some(message.data)
}

#[test]
fn the_timer_reaches_pic_and_input_2() {
    let mut pc = pc();
    assert_eq!(pc.deadline(), None, "nobody listens");
    set_up_pic(&mut pc, [0xfe, 0xff]);
    set_up_input(&mut pc, 2, 0x40);
    write(&mut pc, 0x43, 0x34);
    write(&mut pc, 0x40, 100);
    write(&mut pc, 0x40, 0);
    // The control word raised nothing: mode 2 was running with a high output.
    assert_eq!(message(&mut pc), None);
    let mut last = 0;
    for _ in 0..3 {
        let now = pc.deadline().expect("it ticks");
        pc.advance(now - 1);
        assert!(!pc.pic().output());
        pc.advance(now);
        assert!(pc.pic().output());
        assert_eq!(pc.pic().acknowledge(), 0x30);
        assert_eq!(message(&mut pc), Some(0x4040));
        assert_eq!(pc.write_port(now, 0x20, 1, 0x20), None);
        assert!(now > last + 83_000);
        last = now;
    }
    write(&mut pc, 0x21, 0xff);
    set_up_input(&mut pc, 2, 0x10040);
    assert_eq!(pc.deadline(), None);
}

#[test]
fn devices_raise_their_lines() {
    let mut pc = pc();
    set_up_pic(&mut pc, [0, 0]);
    let cases: [(&[(u16, u8)], u8); 4] = [
        (&[(0x64, 0x60), (0x60, 0x65), (0x60, 0xee)], line::KEYBOARD),
        (&[(0x3f9, 2)], line::SERIAL),
        (&[(0x2000 + 14, 1)], 14),
        (&[(0x2000 + 9, 1)], line::POWER),
    ];
    for (writes, irq) in cases {
        assert!(!pc.pic().output());
        for (port, value) in writes {
            write(&mut pc, *port, *value);
        }
        assert_eq!(pc.pic().acknowledge(), 0x30 + irq);
        write(&mut pc, 0xa0, 0x20);
        write(&mut pc, 0x20, 0x20);
    }
    assert!(pc.receive(b'x'));
}

#[test]
fn a_test_line_is_an_edge_or_a_level() {
    let mut pc = pc();
    set_up_input(&mut pc, 14, 0x81);
    write(&mut pc, 0x200e, 1);
    write(&mut pc, 0x200e, 0);
    assert_eq!(message(&mut pc), Some(0x4081));
    assert_eq!(message(&mut pc), None);
    set_up_input(&mut pc, 20, 0x8082);
    write(&mut pc, 0x2014, 1);
    assert_eq!(message(&mut pc), Some(0xc082));
    pc.ioapic().end_of_interrupt(0x82);
    assert_eq!(message(&mut pc), Some(0xc082));
    assert_eq!(pc.write_port(0, 0x200e, 4, 1), None);
    assert_eq!(message(&mut pc), None, "lines are set by the byte");
}

#[test]
fn ports_that_ask_for_something() {
    let cases = [
        (0xf4, 4, 0x1234, Request::DebugExit(0x1234)),
        (0x3f8, 1, 0x41, Request::Serial(0x41)),
        (0xe9, 1, 0x42, Request::Console(0x42)),
        (0x604, 2, 0x2000, Request::PowerOff),
        (0x64, 1, 0xfe, Request::Reset),
        (0x92, 1, 3, Request::Reset),
        (0xcf9, 1, 6, Request::Reset),
        (0x518, 4, 0x0010_0000, Request::Dma(0x1000)),
        (0x92, 1, 0, Request::Unsupported("A20 masked by port 0x92")),
    ];
    for (port, size, value, request) in cases {
        assert_eq!(
            pc().write_port(0, port, size, value),
            Some(request),
            "{port:#x}"
        );
    }
    assert_eq!(pc().write_port(0, 0x92, 1, 2), None);
    assert_eq!(pc().write_port(0, 0xcf9, 1, 2), None);
    assert_eq!(pc().write_port(0, 0xcf8, 4, 0x8000_0600), None, "not 0xcf9");
}

#[test]
fn reads() {
    let mut pc = pc();
    for (port, size, value) in [
        (0x0, 1, 0xff),
        (0x5000, 4, u32::MAX),
        (0x9000, 2, 0xffff),
        (0x80, 1, 0xff),
        (0xe9, 1, 0xe9),
        (0xf4, 1, 0),
        (0x92, 1, 2),
        (0x3fd, 1, 0x60),
        (0x511, 1, u32::from(b'Q')),
        (0x514, 4, u32::from_le_bytes(*b"QEMU")),
        (0xffff, 4, u32::MAX),
    ] {
        assert_eq!(pc.read_port(0, port, size), value, "{port:#x}");
    }
    pc.write_port(0, 0xcf8, 4, 0x8000_0000);
    assert_eq!(pc.read_port(0, 0xcf8, 4), 0x8000_0000);
    assert_eq!(pc.read_port(0, 0xcfc, 4), 0x1237_8086);
    assert_eq!(pc.read_port(0, 0xcfe, 2), 0x1237);
    pc.write_port(0, 0x510, 2, 5);
    assert_eq!(pc.read_port(0, 0x511, 1), 1);
    pc.write_port(0, 0xe0, 4, 0x1234_5678);
    assert_eq!(pc.read_port(0, 0xe8, 4), 0x1234_5678);
    assert_eq!(pc.read_port(0, 0xe1, 1), 0x56);
}

#[test]
fn memory() {
    let mut pc = pc();
    for (address, size, value) in [
        (0xfec0_0000 + 0x10, 4, 0),
        (0xfed0_0000, 8, u64::MAX),
        (0x1_0000_0000, 1, 0xff),
        (0xfeff_ffff, 4, 0xffff_ffff),
    ] {
        assert_eq!(pc.read_memory(address, size), value, "{address:#x}");
    }
    pc.write_memory(0xff00_0ffc, 8, 0x0102_0304_0506_0708);
    assert_eq!(pc.read_memory(0xff00_0ffc, 8), 0x0102_0304_0506_0708);
    assert_eq!(pc.read_memory(0xff00_0fff, 2), 0x0405);
}

/// An access or a step in time.
#[derive(Debug, Clone)]
enum Act {
    In(u16, u8),
    Out(u16, u8, u32),
    Read(u64, u8),
    Write(u64, u8, u64),
    Wait(u64),
    Acknowledge,
    Eoi(u8),
    Receive(u8),
    Descriptor([u8; 16]),
}

fn act() -> impl Strategy<Value = Act> {
    const PORTS: &[(u16, u16)] = &[
        (0x20, 2),
        (0xa0, 2),
        (0x4d0, 2),
        (0x40, 4),
        (0x60, 5),
        (0x70, 2),
        (0xe0, 12),
        (0x3f8, 8),
        (0x510, 12),
        (0x600, 16),
        (0xafe0, 4),
        (0xcf8, 8),
        (0x2000, 32),
    ];
    let port = prop_oneof![
        9 => (prop::sample::select(PORTS), any::<u16>()).prop_map(|((first, n), i)| first + i % n),
        1 => any::<u16>(),
    ];
    let address = prop_oneof![
        3 => prop::sample::select(&[0x00_u64, 0x10, 0x40]).prop_map(|at| ioapic::ADDRESS + at),
        1 => (0..0x1_0010_u64).prop_map(|at| test_device::MEMORY + at),
        1 => any::<u64>(),
    ];
    let size = prop_oneof![Just(1_u8), Just(2), Just(4), Just(8), any::<u8>()];
    prop_oneof![
        4 => (port.clone(), size.clone()).prop_map(|(port, size)| Act::In(port, size)),
        8 => (port, size.clone(), any::<u32>()).prop_map(|(p, s, v)| Act::Out(p, s, v)),
        1 => (address.clone(), size.clone()).prop_map(|(a, s)| Act::Read(a, s)),
        2 => (address, size, any::<u64>()).prop_map(|(a, s, v)| Act::Write(a, s, v)),
        2 => prop_oneof![0..1_000_000_u64, any::<u64>()].prop_map(Act::Wait),
        1 => Just(Act::Acknowledge),
        1 => any::<u8>().prop_map(Act::Eoi),
        1 => any::<u8>().prop_map(Act::Receive),
        1 => any::<[u8; 16]>().prop_map(Act::Descriptor),
    ]
}

/// What a run answers, for comparison with a second one.
fn play(acts: &[Act]) -> Vec<u64> {
    let mut pc = pc();
    let mut now = 0_u64;
    let mut answers = Vec::new();
    for act in acts {
        match act.clone() {
            Act::In(port, size) => answers.push(pc.read_port(now, port, size).into()),
            Act::Out(port, size, value) => {
                answers.push(u64::from(pc.write_port(now, port, size, value).is_some()));
            }
            Act::Read(address, size) => answers.push(pc.read_memory(address, size)),
            Act::Write(address, size, value) => pc.write_memory(address, size, value),
            Act::Wait(time) => {
                now = now.saturating_add(time);
                pc.advance(now);
            }
            Act::Acknowledge => answers.push(pc.pic().acknowledge().into()),
            Act::Eoi(vector) => pc.ioapic().end_of_interrupt(vector),
            Act::Receive(byte) => answers.push(pc.receive(byte).into()),
            Act::Descriptor(bytes) => {
                pc.fw_cfg().execute(bytes);
            }
        }
        // Every message that waits can be sent, and then none waits.
        let mut sent = 0;
        while let Some(message) = pc.ioapic().next_message() {
            pc.ioapic().sent(&message, act_is_taken(sent));
            sent += 1;
            assert!(sent <= 2 * u32::from(ioapic::PINS));
        }
        if let Some(deadline) = pc.deadline() {
            assert!(deadline > now || now > u64::MAX / 2, "{deadline} at {now}");
        }
    }
    answers
}

fn act_is_taken(sent: u32) -> bool {
    !sent.is_multiple_of(3)
}

proptest! {
    #[test]
    fn hostile_accesses_do_not_panic_and_repeat(acts in prop::collection::vec(act(), 0..200)) {
        prop_assert_eq!(play(&acts), play(&acts));
    }
}
