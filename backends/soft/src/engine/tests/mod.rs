//! Small guests that show each event arriving exactly where it should.

use super::selftest::long_mode;
use super::*;
use nvmx_core::x86::regs::Gpr;
use nvmx_core::x86::{AccessRights, Segment, Sregs};
use std::collections::HashMap;
use vm_memory::{Bytes, GuestAddress};

mod state;
mod tlb;

const MEMORY: u64 = 4 << 20;
const MMIO: u64 = 0xfee0_0000;

/// What a handler saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Intercept(Intercept, u32),
    Fault(u64, Access),
    Mmio(u64, Access),
}

/// One-to-one memory but for `map`; instructions that `skip` names are stepped over.
#[derive(Default)]
struct Test {
    /// Page to page; `None` is not present.
    map: HashMap<u64, Option<u64>>,
    read_only: Vec<u64>,
    seen: Vec<(u64, u64, Seen)>,
    /// How far to skip at each event, in order; when it is used up, stop.
    skip: Vec<u64>,
    fills: u64,
}

impl Test {
    fn next(&mut self, env: &mut Env, seen: Seen) -> Action {
        self.seen.push((env.rip(), env.executed(), seen));
        if self.skip.is_empty() {
            return Action::Stop;
        }
        let length = self.skip.remove(0);
        env.set_rip(env.rip() + length);
        env.set_interrupt_shadow(false);
        env.retired(1);
        Action::Continue
    }
}

impl Machine for Test {
    fn intercept(&mut self, env: &mut Env, intercept: Intercept, error_code: u32) -> Action {
        if intercept == Intercept::InterruptWindow {
            env.set_interrupt_request(false);
        }
        self.next(env, Seen::Intercept(intercept, error_code))
    }

    fn tlb_fill(&mut self, _env: &mut Env, request: &FillRequest) -> Fill {
        self.fills += 1;
        let page = request.vaddr & !(PAGE_SIZE - 1);
        if page == MMIO {
            return Fill::Mmio { gpa: MMIO };
        }
        let gpa = match self.map.get(&page) {
            Some(Some(gpa)) => *gpa,
            Some(None) => return Fill::Fault,
            None if page < MEMORY => page,
            None => return Fill::Fault,
        };
        let writable = !self.read_only.contains(&page);
        if request.access == Access::Write && !writable {
            return Fill::Fault;
        }
        Fill::Map(TlbEntry {
            gpa,
            readable: true,
            writable,
            executable: true,
        })
    }

    fn fault(&mut self, env: &mut Env, fault: &Fault) -> Action {
        self.next(env, Seen::Fault(fault.request.vaddr, fault.request.access))
    }

    fn mmio(&mut self, env: &mut Env, access: &Mmio) -> Action {
        self.next(env, Seen::Mmio(access.gpa, access.request.access))
    }
}

fn machine(code: &[(u64, &[u8])]) -> (GuestMemoryMmap<()>, Engine) {
    let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).unwrap();
    for (at, bytes) in code {
        memory.write_slice(bytes, GuestAddress(*at)).unwrap();
    }
    let mut engine = Engine::new(&memory).unwrap();
    long_mode(engine.env_mut());
    engine.env_mut().set_rip(code[0].0);
    engine.env_mut().set_gpr(Gpr::Rsp, 0x8000);
    (memory, engine)
}

fn set_mode(env: &mut Env, bits: u32) {
    let flat = |ar| Segment {
        selector: 8,
        base: 0,
        limit: u32::MAX,
        ar: AccessRights::from_bits_retain(ar),
    };
    let mut sregs = Sregs::default();
    env.read_sregs(&mut sregs);
    sregs.efer = if bits == 64 { 0xd01 } else { 0 };
    sregs.cr0 = match bits {
        16 => 0x10,
        32 => 0x11,
        _ => 0x8000_0011,
    };
    sregs.cs = flat(match bits {
        16 => 0x93,
        32 => 0xc09b,
        _ => 0xa09b,
    });
    let data = flat(if bits == 16 { 0x93 } else { 0xc093 });
    for segment in [&mut sregs.ss, &mut sregs.ds, &mut sregs.es] {
        *segment = data;
    }
    env.write_sregs(&sregs);
}

fn events(test: &Test) -> Vec<(u64, Seen)> {
    test.seen
        .iter()
        .map(|&(rip, _, seen)| (rip, seen))
        .collect()
}

#[test]
fn every_class_of_intercept_has_exact_rip_and_count_in_three_modes() {
    use Intercept as I;
    let cases: &[(&[u8], Intercept)] = &[
        (&[0x0f, 0xa2], I::Cpuid),
        (&[0x0f, 0x31], I::Rdtsc),
        (&[0x0f, 0x01, 0xf9], I::Rdtscp),
        (&[0x0f, 0x33], I::Special(Special::Rdpmc)),
        (&[0x0f, 0x32], I::Rdmsr),
        (&[0x0f, 0x30], I::Wrmsr),
        (&[0xf4], I::Hlt),
        (&[0x0f, 0x22, 0xc0], I::CrWrite(0)),
        (&[0x0f, 0x22, 0xd8], I::CrWrite(3)),
        (&[0x0f, 0x22, 0xe0], I::CrWrite(4)),
        (&[0x0f, 0x20, 0xc0], I::CrRead(0)),
        (&[0x0f, 0x06], I::CrWrite(0)),
        (&[0x0f, 0x23, 0xf8], I::DrWrite(7)),
        (&[0x0f, 0x21, 0xf8], I::DrRead(7)),
        (&[0x0f, 0x08], I::CacheInvalidate),
        (&[0x0f, 0x09], I::CacheInvalidate),
        (&[0xf3, 0x90], I::Pause),
        (&[0xcd, 0x21], I::SoftwareInterrupt),
        (&[0xcc], I::SoftwareInterrupt),
        (&[0x9c], I::Pushf),
        (&[0x9d], I::Popf),
        (&[0xcf], I::Iret),
        (&[0x0f, 0x0b], I::Exception(6)),
        (&[0x0f, 0x01, 0xc1], I::Exception(6)),
        (&[0x0f, 0x78, 0xc0], I::Exception(6)),
        (&[0xf7, 0xf1], I::Exception(0)),
        (&[0xe4, 0x60], I::Special(Special::Io)),
        (&[0xef], I::Special(Special::Io)),
        (&[0xf3, 0x6c], I::Special(Special::Io)),
        (&[0x6f], I::Special(Special::Io)),
        (&[0x0f, 0x05], I::Special(Special::Syscall)),
        (&[0x0f, 0x34], I::Special(Special::Sysenter)),
        (&[0x0f, 0xc7, 0xf0], I::Special(Special::Rdrand)),
        (&[0x0f, 0x01, 0xd1], I::Special(Special::Xsetbv)),
        (&[0xf1], I::Special(Special::Int1)),
        (&[0xf0, 0x0f, 0xab, 0xc8], I::Special(Special::Undefined)),
        (
            &[0xf0, 0x0f, 0xba, 0xe8, 0x01],
            I::Special(Special::Undefined),
        ),
        (&[0xc5, 0xf8, 0x28, 0xc1], I::Special(Special::Undefined)),
    ];
    let optional = [
        I::CrRead(0),
        I::DrRead(7),
        I::CacheInvalidate,
        I::Pause,
        I::Pushf,
        I::Popf,
        I::Iret,
    ];
    let set = optional
        .iter()
        .fold(Intercepts::ALWAYS, |set, &i| set.with(i));
    for bits in [64, 32, 16] {
        let (memory, mut engine) = machine(&[(0x1000, &[0x90])]);
        engine.env_mut().set_intercepts(set);
        set_mode(engine.env_mut(), bits);
        for (index, (bytes, expected)) in cases.iter().enumerate() {
            // Two instructions before, in the same block: the event is in its middle.
            let at = 0x1000 + index as u64 * 0x20;
            let mut code = vec![0x90, 0x90];
            code.extend_from_slice(bytes);
            memory.write_slice(&code, GuestAddress(at)).unwrap();
            let env = engine.env_mut();
            env.host_wrote(at, code.len() as u64);
            env.set_rip(at);
            env.set_gpr(Gpr::Rcx, 0);
            let before = env.executed();
            let mut test = Test::default();
            let stop = engine.run(&mut test, 10).unwrap();
            assert_eq!(stop, StopReason::Machine, "{bits} {bytes:x?}");
            let (rip, count, seen) = test.seen[0];
            let Seen::Intercept(intercept, _) = seen else {
                panic!("{bits} {bytes:x?} {seen:?}")
            };
            let expected = match *expected {
                // It may be a task switch, or pop RFLAGS.VM.
                I::Iret => I::Special(Special::FarTransfer),
                expected => expected,
            };
            assert_eq!((rip, intercept), (at + 2, expected), "{bits} {bytes:x?}");
            assert_eq!(count - before, 2, "{bits} {bytes:x?}");
            let found = engine.env().instruction_bytes();
            assert_eq!(&found[..bytes.len()], *bytes, "{bits}");
        }
    }
}

#[test]
fn flags_are_complete_in_both_directions() {
    // add al, 1; cpuid; std; cpuid; stc; hlt
    let code = [0x04, 0x01, 0x0f, 0xa2, 0xfd, 0x0f, 0xa2, 0xf9, 0xf4];
    let (_memory, mut engine) = machine(&[(0x1000, &code)]);
    engine.env_mut().set_gpr(Gpr::Rax, 0xff);
    let mut flags = Vec::new();
    for _ in 0..3 {
        engine.run(&mut Test::default(), 10).unwrap();
        flags.push(engine.env().rflags());
        let rip = engine.env().rip();
        engine.env_mut().set_rip(rip + 2);
    }
    // CF, PF, AF, ZF of 0xff + 1; then DF; then CF again.
    assert_eq!(flags, [0x57, 0x457, 0x457]);
    for value in [0x2, 0x8d7, 0x2_0ed7, 0x24_0202, 0x402] {
        engine.env_mut().set_rflags(value);
        assert_eq!(engine.env().rflags(), value);
    }
    // pushf sees what was set: 9c hlt
    let (memory, mut engine) = machine(&[(0x1000, &[0x9c, 0xf4])]);
    engine.env_mut().set_rflags(0x24_0ed7);
    engine.run(&mut Test::default(), 10).unwrap();
    let pushed: u64 = memory.read_obj(GuestAddress(0x7ff8)).unwrap();
    assert_eq!(pushed, 0x24_0ed7);
}

#[test]
fn faults_are_exact_in_the_middle_of_a_block() {
    // nop; mov rax,[0x300008]; and of the other kinds.
    let cases: &[(&[u8], u64, Access)] = &[
        (
            &[0x48, 0x8b, 0x04, 0x25, 0x08, 0, 0x30, 0],
            0x30_0008,
            Access::Read,
        ),
        (
            &[0x48, 0x89, 0x04, 0x25, 0x0b, 0, 0x30, 0],
            0x30_000b,
            Access::Write,
        ),
        // add [0x300010], eax: reads first, but wants to write.
        (
            &[0x01, 0x04, 0x25, 0x10, 0, 0x30, 0],
            0x30_0010,
            Access::Write,
        ),
        (
            &[0xf0, 0x0f, 0xc1, 0x04, 0x25, 0x10, 0, 0x30, 0],
            0x30_0010,
            Access::Write,
        ),
        // crosses from a present page
        (
            &[0x48, 0x8b, 0x04, 0x25, 0xfd, 0xff, 0x2f, 0],
            0x30_0000,
            Access::Read,
        ),
        (
            &[0x48, 0x89, 0x04, 0x25, 0xfd, 0xff, 0x2f, 0],
            0x30_0000,
            Access::Write,
        ),
        // cmp [m], eax
        (
            &[0x39, 0x04, 0x25, 0x10, 0, 0x30, 0],
            0x30_0010,
            Access::Read,
        ),
    ];
    for (bytes, vaddr, access) in cases {
        let mut code = vec![0x90, 0x90, 0x90];
        code.extend_from_slice(bytes);
        code.push(0xf4);
        let (_memory, mut engine) = machine(&[(0x1000, &code)]);
        let mut test = Test::default();
        test.map.insert(0x30_0000, None);
        engine.run(&mut test, 10).unwrap();
        assert_eq!(
            test.seen,
            [(0x1003, 3, Seen::Fault(*vaddr, *access))],
            "{bytes:x?}"
        );
    }
}

#[test]
fn a_fault_is_delivered_in_place_and_the_run_goes_on() {
    // mov [0x300000], eax (7); inc ecx; hlt
    let code = [0x89, 0x04, 0x25, 0, 0, 0x30, 0, 0xff, 0xc1, 0xf4];
    let (_memory, mut engine) = machine(&[(0x1000, &code)]);
    let mut test = Test {
        read_only: vec![0x30_0000],
        skip: vec![7],
        ..Test::default()
    };
    engine.run(&mut test, 10).unwrap();
    assert_eq!(engine.env().gpr(Gpr::Rcx), 1);
    assert_eq!(
        events(&test),
        [
            (0x1000, Seen::Fault(0x30_0000, Access::Write)),
            (0x1009, Seen::Intercept(Intercept::Hlt, 0)),
        ]
    );
}

#[test]
fn a_store_to_a_device_is_reported_unexecuted() {
    // mov ebx, 0xfee00000; inc eax; mov [rbx+0xb0], eax; hlt
    let code = [
        0xbb, 0, 0, 0xe0, 0xfe, 0xff, 0xc0, 0x89, 0x83, 0xb0, 0, 0, 0, 0xf4,
    ];
    let (_memory, mut engine) = machine(&[(0x1000, &code)]);
    let mut test = Test {
        skip: vec![6],
        ..Test::default()
    };
    engine.run(&mut test, 10).unwrap();
    assert_eq!(
        test.seen,
        [
            (0x1007, 2, Seen::Mmio(MMIO + 0xb0, Access::Write)),
            (0x100d, 3, Seen::Intercept(Intercept::Hlt, 0)),
        ]
    );
}

#[test]
fn fetch_faults_across_pages_are_exact() {
    // At 0x1ffd: a 5-byte mov that reaches into the next page, behind three nops.
    let code = [0x90, 0x90, 0x90, 0xb8, 1, 2, 3, 4];
    let (_memory, mut engine) = machine(&[(0x1ffa, &code)]);
    let mut test = Test::default();
    test.map.insert(0x2000, None);
    engine.run(&mut test, 10).unwrap();
    assert_eq!(test.seen, [(0x1ffd, 3, Seen::Fault(0x2000, Access::Fetch))]);
    // A jump before the end of the page: the next page is never reached.
    let code = [0x90, 0xeb, 0x05];
    let (_memory, mut engine) = machine(&[(0x1ff5, &code), (0x1ffd, &[0xf4])]);
    let mut test = Test::default();
    test.map.insert(0x2000, None);
    engine.run(&mut test, 10).unwrap();
    assert_eq!(
        events(&test),
        [(0x1ffd, Seen::Intercept(Intercept::Hlt, 0))]
    );
    // A known block over two pages whose second page goes away, left by an inner fault first.
    let code = [0x8b, 0x04, 0x25, 0, 0, 0x30, 0, 0x90, 0x90, 0x90, 0xf4];
    let (_memory, mut engine) = machine(&[(0x1ff8, &code)]);
    let mut test = Test::default();
    engine.run(&mut test, 10).unwrap();
    assert_eq!(test.seen[0].0, 0x2002);
    test.map.insert(0x2000, None);
    test.map.insert(0x30_0000, None);
    engine.env_mut().flush_tlb();
    engine.env_mut().set_rip(0x1ff8);
    engine.run(&mut test, 10).unwrap();
    assert_eq!(test.seen[1].0, 0x1ff8);
    assert_eq!(test.seen[1].2, Seen::Fault(0x30_0000, Access::Read));
    test.map.insert(0x30_0000, Some(0x30_0000));
    engine.run(&mut test, 10).unwrap();
    assert_eq!(test.seen[2].0, 0x1fff + 1);
    assert_eq!(test.seen[2].2, Seen::Fault(0x2000, Access::Fetch));
}

#[test]
fn non_canonical_branches_fault_at_the_branch() {
    // (code, RSP change to be undone)
    let cases: &[&[u8]] = &[
        &[0x90, 0xff, 0xe0],       // jmp rax
        &[0x90, 0xff, 0xd0],       // call rax
        &[0x90, 0xc3],             // ret
        &[0x90, 0xc2, 0x10, 0x00], // ret 16
    ];
    for code in cases {
        let (memory, mut engine) = machine(&[(0x1000, code)]);
        memory.write_obj(1u64 << 47, GuestAddress(0x8000)).unwrap();
        engine.env_mut().set_gpr(Gpr::Rax, 1 << 47);
        let mut test = Test::default();
        engine.run(&mut test, 10).unwrap();
        let gp = Seen::Intercept(Intercept::Exception(13), 0);
        assert_eq!(test.seen, [(0x1001, 1, gp)], "{code:x?}");
        assert_eq!(engine.env().gpr(Gpr::Rsp), 0x8000, "{code:x?}");
    }
}

#[test]
fn code_that_changes_itself_ahead_in_its_own_block_is_exact() {
    // mov byte [0x1009], 0x41 turns "dec ecx" (ff c9) into "inc ecx" (ff c1) in the same block.
    let code = [
        0xc6, 0x04, 0x25, 0x09, 0x10, 0, 0, 0xc1, 0xff, 0xc9, 0x90, 0xf4,
    ];
    let (_memory, mut engine) = machine(&[(0x1000, &code)]);
    let mut test = Test::default();
    engine.run(&mut test, 100).unwrap();
    assert_eq!(engine.env().gpr(Gpr::Rcx), 1);
    assert_eq!(test.seen, [(0x100b, 3, Seen::Intercept(Intercept::Hlt, 0))]);
}

/// Mixed work: arithmetic, loads and stores, calls, a repeated store; ends never.
const MIXED: &[u8] = &[
    0xb9, 0x05, 0, 0, 0, // 1000 mov ecx, 5
    0x01, 0xc8, // 1005 add eax, ecx
    0x48, 0x89, 0x04, 0x25, 0, 0, 0x20, 0, // 1007 mov [0x200000], rax
    0x48, 0x33, 0x1c, 0x25, 0, 0, 0x20, 0, // 100f xor rbx, [0x200000]
    0xe8, 0x10, 0, 0, 0, // 1017 call 0x102c
    0xff, 0xc9, // 101c dec ecx
    0x75, 0xe5, // 101e jnz 0x1005
    0xb9, 0x07, 0, 0, 0, // 1020 mov ecx, 7
    0xf3, 0xaa, // 1025 rep stosb
    0x40, 0xb7, 0x40, // 1027 mov dil, 0x40
    0xeb, 0xd4, // 102a jmp 0x1000
    0x48, 0xff, 0xc2, // 102c inc rdx
    0xc3, // 102f ret
];

fn mixed() -> (GuestMemoryMmap<()>, Engine) {
    let (memory, mut engine) = machine(&[(0x1000, MIXED)]);
    engine.env_mut().set_gpr(Gpr::Rdi, 0x20_0040);
    (memory, engine)
}

#[test]
fn a_run_stops_after_exactly_n_instructions() {
    let (_m, mut reference) = mixed();
    let (_m, mut engine) = mixed();
    let mut test = Test::default();
    let mut total = 0;
    for round in 0..20u64 {
        let budget = 1 + round * round * 7 % 101;
        for _ in 0..budget {
            assert_eq!(reference.step(&mut test).unwrap(), StopReason::Budget);
        }
        assert_eq!(engine.run(&mut test, budget).unwrap(), StopReason::Budget);
        total += budget;
        assert_eq!(engine.env().executed(), total);
        assert_eq!(reference.env().executed(), total);
        assert_eq!(engine.env().regs(), reference.env().regs(), "after {total}");
    }
    assert!(test.seen.is_empty());
}

#[test]
fn an_interrupt_window_opens_behind_the_shadow() {
    // nop; sti; inc eax; inc eax; hlt
    let code = [0x90, 0xfb, 0xff, 0xc0, 0xff, 0xc0, 0xf4];
    let (_memory, mut engine) = machine(&[(0x1000, &code)]);
    engine.env_mut().set_interrupt_request(true);
    let mut test = Test::default();
    engine.run(&mut test, 10).unwrap();
    let window = Seen::Intercept(Intercept::InterruptWindow, 0);
    assert_eq!(test.seen, [(0x1004, 3, window)]);
    // In a loop of chained blocks, asked for between two runs: jmp $
    let (_memory, mut engine) = machine(&[(0x1000, &[0xeb, 0xfe])]);
    engine.env_mut().set_rflags(0x202);
    engine.run(&mut Test::default(), 1000).unwrap();
    engine.env_mut().set_interrupt_request(true);
    let mut test = Test::default();
    engine.run(&mut test, 1000).unwrap();
    assert_eq!(test.seen, [(0x1000, 1000, window)]);
}

#[test]
fn an_event_behind_the_last_instruction_is_left_for_the_next_run() {
    // Intercept, special instruction, load fault, undefined, each at 0x1002; fetch fault by jmp.
    let cases: &[&[u8]] = &[
        &[0x90, 0x90, 0x0f, 0xa2],
        &[0x90, 0x90, 0xee],
        &[0x90, 0x90, 0x8b, 0x04, 0x25, 0, 0, 0x30, 0],
        &[0x90, 0x90, 0x0f, 0x0b],
        &[0x90, 0xe9, 0xfa, 0xef, 0x2f, 0],
    ];
    for code in cases {
        let (_memory, mut engine) = machine(&[(0x1000, code)]);
        let mut test = Test::default();
        test.map.insert(0x30_0000, None);
        assert_eq!(engine.run(&mut test, 2).unwrap(), StopReason::Budget);
        assert_eq!(
            (engine.env().executed(), test.seen.len()),
            (2, 0),
            "{code:x?}"
        );
        assert_eq!(engine.run(&mut test, 1).unwrap(), StopReason::Machine);
        assert_eq!((test.seen.len(), test.seen[0].1), (1, 2), "{code:x?}");
    }
}

#[test]
fn user_accesses_and_stores_to_code_pages_without_execute_are_told_apart() {
    struct Roles(Vec<(u64, bool)>);
    impl Machine for Roles {
        fn intercept(&mut self, _: &mut Env, _: Intercept, _: u32) -> Action {
            Action::Stop
        }
        fn tlb_fill(&mut self, _: &mut Env, request: &FillRequest) -> Fill {
            self.0.push((request.vaddr, request.user));
            // 0x300000 shows the code page, for data only.
            let alias = request.vaddr & !(PAGE_SIZE - 1) == 0x30_0000;
            if alias && request.access == Access::Fetch {
                return Fill::Fault;
            }
            Fill::Map(TlbEntry {
                gpa: if alias { 0x1000 } else { request.vaddr },
                readable: true,
                writable: true,
                executable: !alias,
            })
        }
        fn fault(&mut self, env: &mut Env, fault: &Fault) -> Action {
            assert_eq!(fault.request.access, Access::Fetch);
            assert_eq!(env.rip(), 0x30_0000);
            Action::Stop
        }
        fn mmio(&mut self, _: &mut Env, _: &Mmio) -> Action {
            unreachable!()
        }
    }
    // mov [0x300f00], eax; mov ds, cx; then a jump to the alias, which must fault.
    let code = [
        0x89, 0x04, 0x25, 0, 0x0f, 0x30, 0, 0x8e, 0xd9, 0xe9, 0xf2, 0xef, 0x2f, 0,
    ];
    // A writable data descriptor of DPL 3 at selector 0x8 of a table at 0x4000.
    let descriptor = 0x00cf_f300_0000_ffffu64.to_le_bytes();
    let (_memory, mut engine) = machine(&[(0x1000, &code), (0x4008, &descriptor)]);
    let env = engine.env_mut();
    env.set_gdtr(nvmx_core::x86::DescriptorTable {
        base: 0x4000,
        limit: 0xff,
    });
    env.set_gpr(Gpr::Rcx, 0xb);
    let mut stack = env.segment(SegmentRegister::Ss);
    stack.ar = AccessRights::from_bits_retain(0xc0f3);
    env.set_segment(SegmentRegister::Ss, &stack);
    let mut roles = Roles(Vec::new());
    assert_eq!(engine.run(&mut roles, 10).unwrap(), StopReason::Machine);
    assert_eq!(engine.env().executed(), 3);
    assert!(roles.0.contains(&(0x30_0f00, true)), "{:x?}", roles.0);
    // The descriptor is read with supervisor rights even at CPL 3.
    let table = roles.0.iter().find(|(vaddr, _)| vaddr & !0xfff == 0x4000);
    assert_eq!(table.map(|t| t.1), Some(false), "{:x?}", roles.0);
}
