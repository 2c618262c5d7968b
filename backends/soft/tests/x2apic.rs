//! L2's x2APIC MSRs: those that are virtual, and the rest, which is L1's local APIC (SDM Vol. 3C
//! "Virtualizing MSR-Based APIC Accesses").

mod common;

use common::nest::*;
use common::virtual_apic::*;
use nvmx_core::vcpu::{Parts, Vcpu};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{PinBased, Primary, Secondary};
use nvmx_core::x86::{CpuState, Gpr};

/// IA32_APIC_BASE: x2APIC mode.
const X2APIC: u64 = 1 << 10;
const GENERAL_PROTECTION: u64 = 13;
/// What the virtual-APIC page holds for a register: EDX:EAX.
const VALUE: u64 = 0x1234_5678_9abc_def0;

/// RDMSR; VMCALL and, 16 bytes on, WRMSR; VMCALL.
fn msr_nest(x2apic: bool) -> Nest {
    let mut code = [0x90; 32];
    code[..2].copy_from_slice(&[0x0f, 0x32]);
    code[2..5].copy_from_slice(&VMCALL);
    code[16..18].copy_from_slice(&[0x0f, 0x30]);
    code[18..21].copy_from_slice(&VMCALL);
    let mut nest = nest(&code, Secondary::empty());
    nest.on(Field::EXCEPTION_BITMAP, 1 << GENERAL_PROTECTION);
    let mut sregs = nest
        .vm
        .state(Parts::Registers)
        .expect("state")
        .sregs
        .expect("sregs");
    if x2apic {
        sregs.apic_base |= X2APIC;
    }
    nest.set_state(CpuState {
        sregs: Some(sregs),
        ..CpuState::default()
    });
    nest
}

fn configure(nest: &mut Nest, [x2apic_mode, registers, delivery]: [bool; 3]) {
    let mut secondary = Secondary::empty();
    secondary.set(Secondary::VIRTUALIZE_X2APIC_MODE, x2apic_mode);
    secondary.set(Secondary::APIC_REGISTER_VIRTUALIZATION, registers);
    secondary.set(Secondary::VIRTUAL_INTERRUPT_DELIVERY, delivery);
    nest.set(Field::SECONDARY_VM_EXEC_CONTROL, secondary.bits().into());
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
    );
}

fn sets() -> impl Iterator<Item = [bool; 3]> {
    (0..8).map(|bits| [bits & 1 != 0, bits & 2 != 0, bits & 4 != 0])
}

fn run(nest: &mut Nest, number: u32, write: Option<u64>) -> Entry {
    let value = write.unwrap_or(0);
    nest.set(Field::GUEST_RIP, L2 + if write.is_some() { 16 } else { 0 });
    nest.set(Field::GUEST_INTR_STATUS, 0);
    nest.set_gpr(Gpr::Rcx, number.into());
    nest.set_gpr(Gpr::Rax, 0xffff_ffff_0000_0000 | value & 0xffff_ffff);
    nest.set_gpr(Gpr::Rdx, 0xffff_ffff_0000_0000 | value >> 32);
    nest.enter()
}

fn is_general_protection(nest: &Nest, entry: Entry) -> bool {
    entry == Entry::Exit(reason::EXCEPTION)
        && nest.get(Field::VM_EXIT_INTR_INFO) & 0xff == GENERAL_PROTECTION
}

/// Registers of L1's APIC that can be read in x2APIC mode, among them its id and version.
fn is_readable(number: u32) -> bool {
    matches!(
        number,
        0x802 | 0x803 | 0x808 | 0x80a | 0x80d | 0x80f | 0x828
    ) || matches!(number, 0x810..=0x827 | 0x830 | 0x832..=0x839 | 0x83e)
}

#[test]
fn every_read_under_every_set_of_controls() {
    for x2apic in [false, true] {
        let mut nest = msr_nest(x2apic);
        for set in sets() {
            configure(&mut nest, set);
            for number in 0x800..0x900_u32 {
                let place = format!("L1 in x2APIC mode: {x2apic}, {set:?}, MSR {number:#x}");
                let offset = u64::from(number - 0x800) * 16;
                nest.put(VIRTUAL_APIC, &[0; 4096]);
                nest.put(VIRTUAL_APIC + offset, &VALUE.to_le_bytes());
                let entry = run(&mut nest, number, None);
                let value = nest.gpr(Gpr::Rdx) << 32 | nest.gpr(Gpr::Rax);
                let [mode, registers, delivery] = set;
                if mode && (registers || number == 0x808) {
                    assert_eq!(entry, Entry::Exit(reason::VMCALL), "{place}");
                    // VM entry writes VPPR.
                    if !(delivery && number == 0x80a) {
                        assert_eq!(value, VALUE, "{place}");
                    }
                } else if x2apic && is_readable(number) {
                    assert_eq!(entry, Entry::Exit(reason::VMCALL), "{place}");
                    assert_ne!(value, VALUE, "{place}");
                    let expected = [(0x802, 0), (0x803, 0x5_0014), (0x80f, 0xff)];
                    if let Some((_, expected)) = expected.iter().find(|(n, _)| *n == number) {
                        assert_eq!(value, *expected, "{place}");
                    }
                } else {
                    assert!(is_general_protection(&nest, entry), "{place}: {entry:?}");
                }
            }
        }
    }
}

#[test]
fn every_write_under_every_set_of_controls() {
    for x2apic in [false, true] {
        let mut nest = msr_nest(x2apic);
        for set in sets() {
            configure(&mut nest, set);
            for number in 0x800..0x900_u32 {
                // A value that no x2APIC register takes but those of 64 bits.
                for value in [0, 0x10, 0x100, 1 << 32] {
                    // What would make L1's APIC send or count is left alone.
                    let acts = (0x830..=0x83e).contains(&number) || number == 0x83f && value > 15;
                    let [mode, _, delivery] = set;
                    if x2apic && acts && !(mode && delivery && number == 0x83f) {
                        continue;
                    }
                    write(&mut nest, x2apic, set, number, value);
                }
            }
        }
    }
}

fn write(nest: &mut Nest, x2apic: bool, set: [bool; 3], number: u32, value: u64) {
    let place = format!("L1 in x2APIC mode: {x2apic}, {set:?}, MSR {number:#x} = {value:#x}");
    nest.put(VIRTUAL_APIC, &[0; 4096]);
    let entry = run(nest, number, Some(value));
    let [mode, _, delivery] = set;
    let is_virtual = mode && (number == 0x808 || delivery && matches!(number, 0x80b | 0x83f));
    if is_virtual {
        let largest = if number == 0x80b { 0 } else { 0xff };
        if value > largest {
            assert!(is_general_protection(nest, entry), "{place}: {entry:?}");
            return;
        }
        let offset = u64::from(number - 0x800) * 16;
        assert_eq!(u64::from(nest.apic(offset)), value, "{place}");
        if number == 0x83f && value < 16 {
            assert_eq!(entry, Entry::Exit(reason::APIC_WRITE), "{place}");
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x3f0, "{place}");
            assert_eq!(nest.get(Field::GUEST_RIP), L2 + 18, "{place}");
        } else {
            assert_eq!(entry, Entry::Exit(reason::VMCALL), "{place}");
        }
        return;
    }
    let writable = matches!(number, 0x808 | 0x80b | 0x80f | 0x828 | 0x83f);
    let takes = x2apic && writable && value >> 32 == 0 && (number != 0x828 || value == 0);
    if !takes {
        assert!(is_general_protection(nest, entry), "{place}: {entry:?}");
        return;
    }
    if entry == Entry::Exit(reason::EXCEPTION) {
        // KVM's APIC is laxer than the manual about reserved bits, the manual's is not asked here.
        assert_ne!(value, 0, "{place}");
        return;
    }
    assert_eq!(entry, Entry::Exit(reason::VMCALL), "{place}");
    if number == 0x808 {
        assert_eq!(u64::from(nest.l1_apic(0x80)), value & 0xff, "{place}");
        assert_eq!(nest.apic(0x80), 0, "{place}");
    }
}

#[test]
fn the_bitmap_goes_first() {
    const RDMSR: u32 = 31;
    const WRMSR: u32 = 32;
    let mut nest = msr_nest(true);
    configure(&mut nest, [true; 3]);
    for number in [0x808, 0x80b, 0x83f] {
        let (byte, bit) = (u64::from(number / 8), 1 << (number % 8));
        nest.put(BITMAPS, &[0; 4096]);
        nest.put(BITMAPS + byte, &[bit]);
        nest.put(BITMAPS + 2048 + byte, &[bit]);
        assert_eq!(run(&mut nest, number, None), Entry::Exit(RDMSR));
        // Reserved bits, too, are L1's matter then.
        assert_eq!(run(&mut nest, number, Some(u64::MAX)), Entry::Exit(WRMSR));
    }
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::USE_MSR_BITMAPS.bits(),
    );
    assert_eq!(run(&mut nest, 0x808, None), Entry::Exit(RDMSR));
}

#[test]
fn the_task_priority_by_msr_meets_the_threshold() {
    let mut nest = msr_nest(false);
    configure(&mut nest, [true, false, false]);
    nest.set_apic(0x80, 0x50);
    nest.set(Field::TPR_THRESHOLD, 5);
    assert_eq!(
        run(&mut nest, 0x808, Some(0x4f)),
        Entry::Exit(reason::TPR_BELOW_THRESHOLD)
    );
    assert_eq!(nest.get(Field::GUEST_RIP), L2 + 18);
    assert_eq!(nest.apic(0x80), 0x4f);
}

/// Reserved bits of L1's own registers fault on silicon; KVM drops those of the low half (SDM Vol. 3A
/// "Reserved Bit Checking").
#[test]
fn reserved_bits_of_what_is_not_virtual() {
    use nvmx_core::cpu::Personality;
    // TPR, EOI, ESR, SVR, ICR, local vector table, counts, SELF IPI: a bit that is reserved.
    let rows = [
        (0x808, 8),
        (0x80b, 0),
        (0x80f, 10),
        (0x830, 16),
        (0x830, 20),
        (0x832, 8),
        (0x833, 11),
        (0x835, 17),
        (0x837, 8),
        (0x83e, 2),
        (0x83e, 4),
    ];
    for (number, bit) in rows {
        for personality in Personality::ALL {
            let mut nest = msr_nest(true);
            nest.vm.set_personality(personality);
            configure(&mut nest, [false; 3]);
            let entry = run(&mut nest, number, Some(1 << bit));
            assert_eq!(
                is_general_protection(&nest, entry),
                personality == Personality::Sdm,
                "{number:#x} bit {bit} {personality}"
            );
            let entry = run(&mut nest, number, Some(0));
            assert!(!is_general_protection(&nest, entry), "{number:#x} 0");
        }
    }
    for number in [0x828, 0x83f] {
        let mut nest = msr_nest(true);
        configure(&mut nest, [false; 3]);
        let entry = run(&mut nest, number, Some(0x100));
        assert!(is_general_protection(&nest, entry), "{number:#x}");
    }
}
