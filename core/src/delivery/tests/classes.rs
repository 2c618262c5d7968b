//! What becomes of two exceptions in a row, and what an exception carries beside its frame.

use super::*;

#[test]
fn double_and_triple_faults() {
    use Exception as E;
    let hardware = |vector| event(EventKind::HardwareException, vector);
    let second = |vector| Exception {
        vector,
        error_code: None,
        payload: 0,
    };
    // First, second: 0 serial, 2 double, 3 triple.
    let rows = [
        (hardware(E::GP), E::GP, 2),
        (hardware(E::DE), E::NP, 2),
        (hardware(E::TS), E::PF, 0),
        (hardware(E::PF), E::PF, 2),
        (hardware(E::PF), E::SS, 2),
        (hardware(E::PF), E::DB, 0),
        (hardware(E::UD), E::GP, 0),
        (hardware(E::GP), E::UD, 0),
        (hardware(E::DF), E::GP, 3),
        (hardware(E::DF), E::PF, 3),
        (hardware(E::DF), E::DB, 0),
        (hardware(E::VE), E::GP, 2),
        (hardware(E::MC), E::PF, 0),
        (Event::interrupt(E::GP), E::GP, 0),
        (Event::NMI, E::PF, 0),
        (event(EventKind::SoftwareInterrupt, E::PF), E::PF, 0),
    ];
    for (first, vector, expected) in rows {
        let expected = match expected {
            2 => Combined::DoubleFault,
            3 => Combined::TripleFault,
            _ => Combined::Serial(second(vector)),
        };
        assert_eq!(
            combine(&first, &second(vector)),
            expected,
            "{first:?} {vector}"
        );
    }
}

#[test]
fn payloads() {
    let mut cpu = Cpu::default();
    apply_payload(&mut cpu, &Exception::page_fault(0, 0xabc));
    assert_eq!(
        (cpu.sregs.cr2, cpu.regs.rflags & rflags::RF),
        (0xabc, rflags::RF)
    );
    let mut cpu = Cpu::default();
    cpu.debug.dr6 = 0xffff_0ff3;
    cpu.debug.dr7 |= 1 << 13;
    let step = Exception {
        vector: Exception::DB,
        error_code: None,
        payload: 1 << 14,
    };
    apply_payload(&mut cpu, &step);
    assert_eq!((cpu.debug.dr6, cpu.debug.dr7), (0xffff_4ff0, 0x400));
    assert_eq!(cpu.regs.rflags & rflags::RF, 0, "a trap");
}
