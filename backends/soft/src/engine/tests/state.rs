//! State in and out, marks, stops, panics.

use super::*;

#[test]
fn single_steps_leave_no_trace_and_traps_of_the_guest_arrive() {
    // pushf; pop rax; hlt
    let (_memory, mut engine) = machine(&[(0x1000, &[0x9c, 0x58, 0xf4])]);
    for _ in 0..2 {
        engine.step(&mut Test::default()).unwrap();
    }
    assert_eq!(
        (engine.env().gpr(Gpr::Rax), engine.env().rip()),
        (2, 0x1002)
    );
    // The guest's own TF.
    engine.env_mut().set_rip(0x1000);
    engine.env_mut().set_rflags(0x102);
    let mut test = Test::default();
    engine.run(&mut test, 10).unwrap();
    let trap = Seen::Intercept(Intercept::Exception(1), 0);
    assert_eq!(
        (test.seen[0].0, test.seen[0].1, test.seen[0].2),
        (0x1001, 3, trap)
    );
}

#[test]
fn fxsave_images_round_trip_and_guest_code_agrees() {
    // fld1; fldpi; movq xmm3, rax; hlt
    let code = [
        0xd9, 0xe8, 0xd9, 0xeb, 0x66, 0x48, 0x0f, 0x6e, 0xd8, 0x48, 0x0f, 0xae, 0x04, 0x25, 0, 0,
        0x20, 0, 0xf4,
    ];
    let (memory, mut engine) = machine(&[(0x1000, &code)]);
    engine.env_mut().set_gpr(Gpr::Rax, 0x1122_3344_5566_7788);
    let mut start = [0; 512];
    start[..2].copy_from_slice(&0x37fu16.to_le_bytes());
    start[24..28].copy_from_slice(&0x1f80u32.to_le_bytes());
    engine.env_mut().set_fxsave(&start);
    engine.run(&mut Test::default(), 10).unwrap();
    let mut guest = [0u8; 512];
    memory
        .read_slice(&mut guest, GuestAddress(0x20_0000))
        .unwrap();
    let host = engine.env().fxsave();
    assert_eq!(host[4], 0xc0);
    assert_eq!(host[..28], guest[..28]);
    assert_eq!(host[32..416], guest[32..416]);
    assert_eq!(&host[208..216], &0x1122_3344_5566_7788u64.to_le_bytes());
    engine.env_mut().set_fxsave(&start);
    engine.env_mut().set_fxsave(&host);
    assert_eq!(engine.env().fxsave(), host);
}

#[test]
fn stores_mark_pages_dirty_once() {
    let (_memory, mut engine) = mixed();
    let mut test = Test::default();
    engine.env_mut().clear_dirty();
    engine.run(&mut test, 10_000).unwrap();
    let dirty: Vec<u64> = engine.env().dirty_pages().collect();
    assert_eq!(dirty, [0x7000, 0x20_0000]);
    let fills = test.fills;
    engine.run(&mut test, 10_000).unwrap();
    assert_eq!(test.fills, fills);
    engine.env_mut().clear_dirty();
    assert_eq!(engine.env().dirty_pages().count(), 0);
    engine.env_mut().host_wrote(0x12_3fff, 2);
    let dirty: Vec<u64> = engine.env().dirty_pages().collect();
    assert_eq!(dirty, [0x12_3000, 0x12_4000]);
}

#[test]
fn state_round_trips_through_plain_structures() {
    let (_memory, mut engine) = machine(&[(0x1000, &[0xf4])]);
    let env = engine.env_mut();
    let mut before = Sregs::default();
    env.read_sregs(&mut before);
    before.tr = Segment {
        selector: 0x40,
        base: 0xffff_8000_0000_1000,
        limit: 0x67,
        ar: AccessRights::from_bits_retain(0x8b),
    };
    before.ldtr.ar = AccessRights::UNUSABLE;
    before.gs.base = 0xffff_8880_0000_0000;
    before.ss.ar = AccessRights::from_bits_retain(0xc0f3);
    env.write_sregs(&before);
    let mut after = Sregs::default();
    env.read_sregs(&mut after);
    assert_eq!(after, before);
    assert_eq!(env.cpl(), 3);
    let debug = nvmx_core::x86::DebugRegs {
        db: [1, 2, 3, 4],
        dr6: 0xffff_0ff1,
        dr7: 0x401,
    };
    env.set_debug_regs(&debug);
    assert_eq!(env.debug_regs(), debug);
}

#[test]
fn a_stop_handle_stops_an_endless_loop() {
    let (_memory, mut engine) = machine(&[(0x1000, &[0xeb, 0xfe])]);
    engine.stop_handle().stop();
    let stop = engine.run(&mut Test::default(), u64::MAX).unwrap();
    assert_eq!(stop, StopReason::Requested);
}

#[test]
fn a_panic_in_a_handler_comes_out_of_run() {
    struct Panics;
    impl Machine for Panics {
        fn intercept(&mut self, _: &mut Env, _: Intercept, _: u32) -> Action {
            unreachable!()
        }
        fn tlb_fill(&mut self, _: &mut Env, _: &FillRequest) -> Fill {
            panic!("from inside")
        }
        fn fault(&mut self, _: &mut Env, _: &Fault) -> Action {
            unreachable!()
        }
        fn mmio(&mut self, _: &mut Env, _: &Mmio) -> Action {
            unreachable!()
        }
    }
    let (_memory, mut engine) = machine(&[(0x1000, &[0xf4])]);
    let result =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| engine.run(&mut Panics, 10)));
    let payload = result.unwrap_err();
    assert_eq!(*payload.downcast::<&str>().unwrap(), "from inside");
    // The engine is usable after.
    engine.run(&mut Test::default(), 10).unwrap();
}
