//! Sequences of tracepoints and the events that L1 saw.

use super::*;

fn enter(l2_rip: u64) -> Point {
    Point::Enter {
        vmcs12: 0x3000,
        l2_rip,
        injected: 0,
    }
}

fn inject(reason: u32) -> Point {
    Point::Inject {
        reason,
        qualification: 0x11,
        interruption: 0,
        error_code: 5,
    }
}

fn hardware(reason: u32, l2_rip: u64) -> Point {
    Point::HardwareExit { reason, l2_rip }
}

fn check_failed(message: &str, error: u32) -> Point {
    Point::EnterFailed {
        message: message.into(),
        error,
    }
}

/// Short names: what matters in the tables below.
fn brief(events: &[NestedEvent]) -> Vec<String> {
    let one = |event: &NestedEvent| match event {
        NestedEvent::Entry { l2_rip, .. } => format!("entry {l2_rip:#x}"),
        NestedEvent::EntryFailure { error } => format!("fail {error:?}"),
        NestedEvent::Exit { reason, l2_rip, .. } => format!("exit {reason:#x} {l2_rip:x?}"),
    };
    events.iter().map(one).collect()
}

#[test]
fn only_what_l1_sees_is_reported() {
    let table: [(&str, Vec<Point>, &[&str]); 8] = [
        (
            "L0 keeps an exit to itself, then reflects one",
            vec![
                enter(0x10),
                hardware(1, 0x20),
                hardware(10, 0x30),
                inject(10),
            ],
            &["entry 0x10", "exit 0xa Some(30)"],
        ),
        (
            "an exit that KVM makes up",
            vec![enter(0x10), hardware(1, 0x20), inject(52)],
            &["entry 0x10", "exit 0x34 None"],
        ),
        (
            "the processor finds invalid guest state",
            vec![
                enter(0x10),
                hardware(INVALID_GUEST_STATE, 0x10),
                inject(INVALID_GUEST_STATE),
            ],
            &["exit 0x80000021 None"],
        ),
        (
            "KVM finds invalid guest state",
            vec![
                enter(0x10),
                check_failed("!nested_guest_cr0_valid(vcpu, ...)", 0),
            ],
            &["exit 0x80000021 None"],
        ),
        (
            "an MSR-load entry is refused",
            vec![enter(0x10), check_failed("e->index == MSR_FS_BASE", 0)],
            &["exit 0x80000022 None"],
        ),
        (
            "a control is wrong, before any entry",
            vec![
                check_failed("vmcs12->cr3_target_count > ...", 0),
                enter(0x10),
                hardware(1, 0),
            ],
            &["fail None", "entry 0x10"],
        ),
        (
            "the processor refuses the merged VMCS",
            vec![
                enter(0x10),
                check_failed("hardware VM-instruction error: ", 8),
            ],
            &["fail Some(7)"],
        ),
        (
            "an MSR-store check at an exit is no entry",
            vec![
                enter(0x10),
                hardware(10, 0x30),
                check_failed("e->reserved != 0", 0),
                inject(10),
            ],
            &["entry 0x10", "exit 0xa Some(30)"],
        ),
    ];
    for (name, points, expected) in table {
        let mut assembler = Assembler::default();
        points.into_iter().for_each(|point| assembler.feed(point));
        assert_eq!(brief(&assembler.take()), expected, "{name}");
    }
}

/// Nested state with a vmcs12: flags, exit reason, RIP, instruction length, error number.
fn nested(flags: u8, reason: u32, rip: u64, length: u32, error: u32) -> Vec<u8> {
    let mut bytes = vec![0; 128 + 4096];
    bytes[0] = flags;
    bytes[8..16].copy_from_slice(&0x1000_u64.to_le_bytes());
    bytes[16..24].copy_from_slice(&0x3000_u64.to_le_bytes());
    let mut put = |offset: usize, value: &[u8]| {
        bytes[128 + offset..128 + offset + value.len()].copy_from_slice(value);
    };
    put(812, &reason.to_le_bytes());
    put(544, &rip.to_le_bytes());
    put(832, &length.to_le_bytes());
    put(808, &error.to_le_bytes());
    bytes
}

#[test]
fn nested_state_settles_an_entry_that_nothing_has_followed() {
    let table: [(u8, u32, &[&str], usize); 4] = [
        (1, 0, &["entry 0x10"], 0),
        (3, 0, &[], 1), // RUN_PENDING: still open
        (0, 0x8000_0022, &["exit 0x80000022 None"], 0),
        (0, 12, &["entry 0x10"], 0),
    ];
    for (flags, reason, expected, open) in table {
        let mut assembler = Assembler::default();
        assembler.feed(enter(0x10));
        let bytes = nested(flags, reason, 0, 0, 0);
        assert!(assembler.wants_nested_state());
        assembler.finish(View(&bytes));
        assert_eq!(brief(&assembler.take()), expected, "{flags} {reason:#x}");
        assert_eq!(usize::from(assembler.entry.is_some()), open);
    }
}

#[test]
fn the_last_exit_gets_what_tracepoints_leave_out() {
    let mut assembler = Assembler::default();
    for point in [enter(0x10), hardware(10, 0x30), inject(10)] {
        assembler.feed(point);
    }
    assembler.finish(View(&nested(0, 10, 0x30, 2, 0)));
    let events = assembler.take();
    let Some(NestedEvent::Exit {
        instruction_length,
        guest_physical,
        ..
    }) = events.last()
    else {
        panic!("{events:?}");
    };
    assert_eq!((*instruction_length, *guest_physical), (Some(2), None));

    let mut assembler = Assembler::default();
    assembler.feed(check_failed("vmcs12->launch_state == launch", 0));
    assembler.finish(View(&nested(0, 10, 0x30, 2, 5)));
    assert_eq!(brief(&assembler.take()), ["fail Some(5)"]);

    let mut assembler = Assembler::default();
    assembler.feed(check_failed("vmcs12->hdr.shadow_vmcs", 0));
    assembler.finish(View(&nested(0, 10, 0x30, 2, 5)));
    assert_eq!(brief(&assembler.take()), ["fail None"], "VMfailInvalid");
}
