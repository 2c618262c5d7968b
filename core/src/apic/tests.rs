//! Priority, timer, IPIs, modes and KVM's page, row by row.

use super::registers::*;
use super::*;
use crate::x86::msr::IA32_TSC_DEADLINE;

/// 2 GHz: a nanosecond has two ticks.
fn enabled() -> Apic {
    let mut apic = Apic::new(0, 2_000_000);
    assert_eq!(apic.write(SPURIOUS, 0x1ff, 0), ApicEffect::None);
    apic
}

#[test]
fn reset_values_are_kvms() {
    let mut apic = Apic::new(3, 1);
    let rows = [
        (ID, 3 << 24),
        (VERSION, 0x5_0014),
        (TPR, 0),
        (DFR, u32::MAX),
        (SPURIOUS, 0xff),
        (LVT_TIMER, MASKED),
        (LVT_LINT0, MASKED),
        (LVT_ERROR, MASKED),
        (CURRENT_COUNT, 0),
        (SELF_IPI, 0),
        (0x40, 0),
    ];
    for (offset, value) in rows {
        assert_eq!(apic.read(offset, 0), value, "{offset:#x}");
    }
    assert_eq!(apic.mmio_base(), Some(0xfee0_0000));
    let bootstrap = Apic::new(0, 1);
    assert_eq!(bootstrap.base(), 0xfee0_0900);
    assert!(bootstrap.accepts_pic_interrupt());
    assert!(!apic.accepts_pic_interrupt());
}

#[test]
fn priority_decides_what_is_delivered() {
    let mut apic = enabled();
    apic.accept(15, false);
    assert_eq!(
        apic.pending_interrupt(),
        None,
        "vectors below 16 are illegal"
    );
    apic.accept(0x31, false);
    apic.accept(0x52, false);
    apic.accept(0x58, true);
    assert_eq!(apic.acknowledge(), Some(0x58));
    assert_eq!(apic.read(PPR, 0), 0x50);
    assert_eq!(apic.pending_interrupt(), None, "the same class waits");
    assert_eq!(apic.write(EOI, 0, 0), ApicEffect::EndOfInterrupt(0x58));
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.write(EOI, 0, 0), ApicEffect::None);
    apic.set_cr8(3);
    assert_eq!((apic.pending_interrupt(), apic.read(TPR, 0)), (None, 0x30));
    apic.set_cr8(2);
    assert_eq!((apic.pending_interrupt(), apic.cr8()), (Some(0x31), 2));
    // Software disable: nothing new is taken, every entry of the vector table is masked.
    let _ = apic.write(LVT_ERROR, 0xfe, 0);
    let _ = apic.write(SPURIOUS, 0xff, 0);
    assert_eq!(apic.read(LVT_ERROR, 0), MASKED | 0xfe);
    apic.accept(0xf0, false);
    assert_eq!(apic.pending_interrupt(), Some(0x31));
    let _ = apic.write(LVT_ERROR, 0xfe, 0);
    assert_eq!(apic.read(LVT_ERROR, 0), MASKED | 0xfe, "it stays masked");
}

#[test]
fn one_shot_and_periodic() {
    let mut apic = enabled();
    let _ = apic.write(DIVIDE, 0b0011, 0); // by 16
    let _ = apic.write(LVT_TIMER, 0x40, 0);
    assert_eq!(apic.write(INITIAL_COUNT, 1000, 100), ApicEffect::Timer);
    assert_eq!(apic.next_deadline(), Some(100 + 1000 * 16 * 2));
    assert_eq!(apic.read(CURRENT_COUNT, 100), 1000);
    assert_eq!(apic.read(CURRENT_COUNT, 100 + 250 * 32), 750);
    apic.poll(100 + 31_999);
    assert_eq!(apic.pending_interrupt(), None);
    apic.poll(100 + 32_000);
    assert_eq!(apic.acknowledge(), Some(0x40));
    assert_eq!(
        (apic.next_deadline(), apic.read(CURRENT_COUNT, 40_000)),
        (None, 0)
    );

    let mut apic = enabled();
    let _ = apic.write(DIVIDE, 0b1011, 0); // by 1
    let _ = apic.write(LVT_TIMER, 0x2_0041, 0);
    let _ = apic.write(INITIAL_COUNT, 300_000, 0);
    assert_eq!(apic.next_deadline(), Some(600_000));
    apic.poll(2 * 600_000 + 5);
    assert_eq!(apic.acknowledge(), Some(0x41));
    assert_eq!(apic.next_deadline(), Some(1_800_000));
    let _ = apic.write(INITIAL_COUNT, 0, 2_000_000);
    assert_eq!(apic.next_deadline(), None);
    // KVM's floor for the period: 200 microseconds.
    let _ = apic.write(INITIAL_COUNT, 10, 0);
    assert_eq!(apic.next_deadline(), Some(400_000));
    // Masked: the count goes on, nothing is requested.
    let _ = apic.write(EOI, 0, 0);
    let _ = apic.write(LVT_TIMER, 0x3_0041, 0);
    apic.poll(400_000);
    assert_eq!(
        (apic.pending_interrupt(), apic.next_deadline()),
        (None, Some(800_000))
    );
}

#[test]
fn divide_configurations() {
    let rows = [
        (0, 2),
        (1, 4),
        (2, 8),
        (3, 16),
        (8, 32),
        (9, 64),
        (0xa, 128),
        (0xb, 1),
    ];
    for (value, by) in rows {
        let mut apic = enabled();
        let _ = apic.write(DIVIDE, value, 0);
        let _ = apic.write(INITIAL_COUNT, 1_000_000, 0);
        assert_eq!(apic.next_deadline(), Some(2_000_000 * by), "{value}");
    }
}

#[test]
fn tsc_deadline() {
    let mut apic = enabled();
    let write =
        |apic: &mut Apic, value, now| apic.msr_write(IA32_TSC_DEADLINE, value, now).unwrap();
    write(&mut apic, 500, 0);
    assert_eq!(
        apic.msr_read(IA32_TSC_DEADLINE, 0),
        Ok(0),
        "ignored in the other modes"
    );
    let _ = apic.write(LVT_TIMER, 0x4_0042, 0);
    write(&mut apic, 500, 0);
    assert_eq!(apic.next_deadline(), Some(500));
    let _ = apic.write(INITIAL_COUNT, 5, 0);
    assert_eq!(
        apic.next_deadline(),
        Some(500),
        "the count is ignored in this mode"
    );
    apic.poll(500);
    assert_eq!(apic.acknowledge(), Some(0x42));
    assert_eq!(apic.msr_read(IA32_TSC_DEADLINE, 500), Ok(0));
    let _ = apic.write(EOI, 0, 0);
    write(&mut apic, 100, 900);
    assert_eq!(
        apic.pending_interrupt(),
        Some(0x42),
        "the past fires at once"
    );
    write(&mut apic, 1000, 900);
    let _ = apic.write(LVT_TIMER, 0x42, 900);
    assert_eq!(apic.next_deadline(), None, "a change of mode disarms");
}

#[test]
fn an_apic_that_is_enabled_again_has_its_id_back_and_on_silicon_all_else_too() {
    for resets in [false, true] {
        let mut apic = Apic::new(3, 1);
        let _ = apic.write(SPURIOUS, 0x1ff, 0);
        let _ = apic.write(ID, 0x0900_0000, 0);
        let _ = apic.write(TPR, 0x20, 0);
        apic.accept(0x55, false);
        let enabled = apic.base();
        apic.set_base(enabled & !BASE_ENABLE);
        assert_eq!(apic.mmio_base(), None);
        assert_eq!(apic.pending_interrupt(), None);
        assert!(
            apic.accepts_pic_interrupt(),
            "the line goes to the processor"
        );
        if resets {
            apic.set_base_and_reset(enabled);
        } else {
            apic.set_base(enabled);
        }
        assert_eq!(apic.read(ID, 0), 0x0300_0000);
        assert_eq!(apic.read(TPR, 0), if resets { 0 } else { 0x20 });
        assert_eq!(apic.read(SPURIOUS, 0), if resets { 0xff } else { 0x1ff });
        let waits = (!resets).then_some(0x55);
        assert_eq!(apic.pending_interrupt(), waits);
    }
}

/// Message address and data; the interrupt command that they are.
#[test]
fn messages_are_interrupt_commands() {
    for (address, data, command) in [
        (0xfee0_0000, 0x31, Some(0x31)),
        (0xfee0_5000, 0xc031, Some(5 << 32 | 0xc031)),
        (0xfee0_5004, 0x131, Some(5 << 32 | 0x931)),
        // The redirection hint asks for one of a logical destination.
        (0xfee0_300c, 0x31, Some(3 << 32 | 0x931)),
        (0xfee0_3008, 0x31, Some(3 << 32 | 0x31)),
        (0xfeef_f000, 0x31, Some(0xffff_ffff << 32 | 0x31)),
        (0xfee0_0000, 0xffff_3831, Some(0x31)),
        (0xfed0_0000, 0x31, None),
        (1 << 32 | 0xfee0_0000, 0x31, None),
    ] {
        assert_eq!(
            message_command(address, data),
            command,
            "{address:#x} {data:#x}"
        );
    }
}

#[test]
fn the_trigger_mode_of_an_ipi_makes_no_level() {
    let mut apic = Apic::new(0, 1);
    let _ = apic.write(SPURIOUS, 0x1ff, 0);
    let effect = apic.write(ICR, 0xc055, 0);
    let ApicEffect::Ipi(command) = effect else {
        panic!("{effect:?}");
    };
    assert_eq!(apic.read(ICR, 0), 0xc055, "never busy");
    let _ = apic.receive(command, true);
    assert_eq!(apic.acknowledge(), Some(0x55));
    assert_eq!(apic.write(EOI, 0, 0), ApicEffect::None);
    // A message's does.
    let level = message_command(0xfee0_0000, 0xc055).expect("a message");
    let _ = apic.receive(level, false);
    assert_eq!(apic.acknowledge(), Some(0x55));
    assert_eq!(apic.write(EOI, 0, 0), ApicEffect::EndOfInterrupt(0x55));
    let _ = apic.receive(level & !(1 << 14), false);
    assert_eq!(apic.acknowledge(), None, "the end of a level");
}

#[test]
fn x2apic_mode() {
    let mut apic = Apic::new(0x25, 1);
    assert_eq!(apic.msr_read(0x802, 0), Err(ApicFault), "not in xAPIC mode");
    apic.set_base(apic.base() | BASE_X2APIC);
    assert_eq!(apic.mmio_base(), None);
    // MSR, value read, value written, whether the write is accepted.
    let rows = [
        (0x802, Ok(0x25), 0, false),
        (0x803, Ok(0x5_0014), 0, false),
        (0x808, Ok(0), 0x20, true),
        (0x808, Ok(0x20), 1 << 32, false),
        (0x80a, Ok(0x20), 0, false),
        (0x80b, Err(ApicFault), 0, true),
        (0x80d, Ok(2 << 16 | 1 << 5), 0, false),
        (0x80e, Err(ApicFault), 0, false),
        (0x80f, Ok(0xff), 0x1ff, true),
        (0x828, Ok(0), 0, true),
        (0x828, Ok(0), 1, false),
        (0x831, Err(ApicFault), 0, false),
        (0x83f, Err(ApicFault), 0x155, false),
        (0x83f, Err(ApicFault), 0x55, true),
        (0x840, Err(ApicFault), 0, false),
        (0x8ff, Err(ApicFault), 0, false),
    ];
    for (number, reads, value, writes) in rows {
        assert_eq!(apic.msr_read(number, 0), reads, "{number:#x}");
        let accepted = apic.msr_write(number, value, 0).is_ok();
        assert_eq!(accepted, writes, "{number:#x} <- {value:#x}");
    }
    assert_eq!(apic.pending_interrupt(), Some(0x55), "self IPI");
    let _ = apic.msr_write(0x830, 7 << 32 | 0x4_0061, 0);
    assert_eq!(apic.msr_read(0x830, 0), Ok(7 << 32 | 0x4_0061));
    assert_eq!(apic.pending_interrupt(), Some(0x61), "self shorthand");
}

#[test]
fn interprocessor_interrupts() {
    // Command as the sender's registers have it, what APIC 0 (sender) and APIC 1 receive.
    let fixed = |high: u32, low: u32| {
        let mut sender = enabled();
        let _ = sender.write(LDR, 1 << 24, 0);
        let mut other = Apic::new(1, 1);
        let _ = other.write(SPURIOUS, 0x1ff, 0);
        let _ = other.write(LDR, 2 << 24, 0);
        let _ = sender.write(ICR_HIGH, high << 24, 0);
        let ApicEffect::Ipi(command) = sender.write(ICR, low, 0) else {
            return (sender.pending_interrupt(), other.pending_interrupt());
        };
        assert_eq!(sender.receive(command, true), Received::Nothing);
        assert_eq!(other.receive(command, false), Received::Nothing);
        (sender.pending_interrupt(), other.pending_interrupt())
    };
    let (me, you) = (Some(0x70), Some(0x70));
    let rows = [
        (0, 0x70, (me, None)),
        (1, 0x70, (None, you)),
        (2, 0x70, (None, None)),
        (0xff, 0x70, (me, you)),
        (3, 0x870, (me, you)),
        (2, 0x870, (None, you)),
        (4, 0x870, (None, None)),
        (9, 0x4_0070, (me, None)),
        (9, 0x8_0070, (me, you)),
        (9, 0xc_0070, (None, you)),
    ];
    for (high, low, expected) in rows {
        assert_eq!(fixed(high, low), expected, "{high:#x} {low:#x}");
    }
    // To itself other modes than fixed are KVM's alone: an SMI is a command that it receives.
    let mut sender = enabled();
    let ApicEffect::Ipi(command) = sender.write(ICR, 0x4_4200, 0) else {
        panic!("no command");
    };
    assert_eq!(sender.receive(command, true), Received::Smi);
    let mut apic = Apic::new(1, 1);
    let kinds = [
        (0x1_0000_4500, Received::Init),
        (0x1_0000_8500, Received::Nothing),
        (0x1_0000_4699, Received::Startup(0x99)),
        (0x1_0000_0400, Received::Nmi),
        (0x1_0000_0200, Received::Smi),
        (0x2_0000_0400, Received::Nothing),
    ];
    for (command, expected) in kinds {
        assert_eq!(apic.receive(command, false), expected, "{command:#x}");
    }
}

#[test]
fn kvms_page_round_trips() {
    let mut apic = enabled();
    let _ = apic.write(DIVIDE, 0b1011, 0);
    let _ = apic.write(LVT_TIMER, 0x40, 0);
    let _ = apic.write(INITIAL_COUNT, 1000, 0);
    apic.accept(0x77, true);
    let page = apic.to_kvm_page(500);
    let word = |offset: u16| {
        let at = usize::from(offset);
        u32::from_le_bytes(page[at..at + 4].try_into().unwrap())
    };
    assert_eq!(word(CURRENT_COUNT), 750);
    assert_eq!(word(IRR + 0x30), 1 << 0x17);
    assert_eq!(word(TMR + 0x30), 1 << 0x17);
    assert_eq!(word(VERSION), 0x5_0014);
    let mut other = Apic::new(0, 2_000_000);
    other.from_kvm_page(&page, 10_000);
    assert_eq!(other.to_kvm_page(10_000), page);
    assert_eq!(other.next_deadline(), Some(10_000 + 1500));
    assert_eq!(other.pending_interrupt(), Some(0x77));
    // A count that has run out does not fire again.
    let page = apic.to_kvm_page(5000);
    other.from_kvm_page(&page, 0);
    assert_eq!(other.next_deadline(), None);
    // The busy bit never shows.
    let _ = apic.write(ICR, 0x1000 | 0x4_0050, 0);
    assert_eq!(apic.read(ICR, 0) & BUSY, 0);
}

#[test]
fn errors_are_shown_by_a_write_and_signaled_once() {
    type Cause = fn(&mut Apic);
    let rows: &[(&str, u32, Cause)] = &[
        ("nothing", 0, |_| ()),
        ("an IPI's vector, to nobody", 0x20, |apic| {
            apic.write(ICR, 0x800f, 0);
        }),
        ("an IPI to oneself", 0x60, |apic| {
            apic.write(ICR, 0x4_400f, 0);
        }),
        ("an NMI has no vector", 0, |apic| {
            apic.write(ICR, 0x400, 0);
        }),
        ("a message from outside", 0x40, |apic| {
            apic.receive(0x400f, false);
        }),
        ("the timer's own", 0x40, |apic| {
            apic.write(LVT_TIMER, 3, 0);
            apic.write(INITIAL_COUNT, 10, 0);
            apic.poll(1_000_000);
        }),
        ("reading 0x40", 0x80, |apic| {
            let _ = apic.read(0x40, 0);
        }),
        ("reading behind the registers", 0x80, |apic| {
            let _ = apic.read(0x3f0, 0);
        }),
        ("writing 0x2f0", 0x80, |apic| {
            apic.write(0x2f0, 0, 0);
        }),
        ("a write to what can be read alone", 0, |apic| {
            apic.write(VERSION, 0, 0);
            apic.write(ISR, 0, 0);
        }),
        ("a read of what can be written alone", 0, |apic| {
            let _ = apic.read(EOI, 0);
        }),
        ("a disabled APIC receives nothing", 0, |apic| {
            apic.write(SPURIOUS, 0xff, 0);
            apic.receive(0x400f, false);
        }),
    ];
    for (what, bits, cause) in rows {
        for logged in [true, false] {
            let mut apic = enabled();
            apic.log_errors(logged);
            apic.write(LVT_ERROR, 0xe1, 0);
            cause(&mut apic);
            let expected = if logged { *bits } else { 0 };
            assert_eq!(apic.read(ESR, 0), 0, "{what}: before a write");
            let interrupt = apic.acknowledge();
            assert_eq!(interrupt, (expected != 0).then_some(0xe1), "{what}");
            apic.write(EOI, 0, 0);
            cause(&mut apic);
            assert_eq!(apic.pending_interrupt(), None, "{what}: signaled already");
            apic.write(ESR, 0, 0);
            assert_eq!(apic.read(ESR, 0), expected, "{what}");
            cause(&mut apic);
            assert_eq!(
                apic.pending_interrupt().is_some(),
                expected != 0,
                "{what}: again"
            );
            apic.write(ESR, 0, 0);
            apic.write(ESR, 0, 0);
            assert_eq!(
                apic.read(ESR, 0),
                0,
                "{what}: forgotten by the second write"
            );
        }
    }
    // The error interrupt's own vector; and INIT.
    let mut apic = enabled();
    apic.log_errors(true);
    apic.write(LVT_ERROR, 2, 0);
    apic.write(ICR, 0x8001, 0);
    assert_eq!(apic.pending_interrupt(), None);
    apic.write(ESR, 0, 0);
    assert_eq!(apic.read(ESR, 0), 0x60);
    apic.write(ICR, 0x8001, 0);
    apic.init();
    apic.write(ESR, 0, 0);
    assert_eq!(apic.read(ESR, 0), 0);
}
