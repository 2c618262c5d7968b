//! Task switches of L1 in 32-bit protected mode (SDM Vol. 3A "Task Switching", "Task Linking", table
//! "Exception Conditions Checked During a Task Switch").

mod common;

use common::bare::{GDT, IDT, MEMORY, Mode, Random, put, state};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::x86::control::{cr0, rflags};
use nvmx_core::x86::{AccessRights, CpuState, DescriptorTable, Gpr, Regs, Segment};
use nvmx_soft::SoftVm;

const OLD_TSS: u64 = 0x6_0000;
const NEW_TSS: u64 = 0x6_0100;
const NEW_TSS_16: u64 = 0x6_0200;
const OLD: u64 = 0x1_0000;
const NEW: u64 = 0x1_1000;
const HANDLER: u64 = 0x1_2000;
const NEW_STACK: u64 = 0x7_0000;
/// Selectors.
const CODE: u16 = 0x08;
const DATA: u16 = 0x10;
const OLD_TASK: u16 = 0x18;
const NEW_TASK: u16 = 0x20;
const GATE: u16 = 0x28;
const TASK_16: u16 = 0x30;
const ABSENT: u16 = 0x38;

struct Machine(SoftVm);

/// A descriptor with this access byte, base and limit.
const fn descriptor(access: u64, base: u64, limit: u64) -> u64 {
    limit & 0xffff | (base & 0xff_ffff) << 16 | access << 40 | (limit >> 16 & 0xf) << 48
}

const fn flat(access: u64) -> u64 {
    descriptor(access, 0, 0xf_ffff) | 0xc << 52
}

impl Machine {
    fn new(code: &[u8], new_code: &[u8]) -> Self {
        let mut vm = SoftVm::new(&VmConfig {
            memory_size: MEMORY,
            ..VmConfig::default()
        })
        .expect("a machine");
        let entries = [
            0,
            flat(0x9b),
            flat(0x93),
            descriptor(0x8b, OLD_TSS, 0x67),
            descriptor(0x89, NEW_TSS, 0x67),
            u64::from(NEW_TASK) << 16 | 0x85 << 40,
            descriptor(0x81, NEW_TSS_16, 0x2b),
            descriptor(0x09, NEW_TSS, 0x67),
        ];
        for (at, entry) in (0_u64..).zip(entries) {
            put(&mut vm, GDT + 8 * at, &entry.to_le_bytes());
        }
        // Vector 0x40 is a task gate, #TS, #NP and #SS lead to handlers that halt.
        put(
            &mut vm,
            IDT + 8 * 0x40,
            &(u64::from(NEW_TASK) << 16 | 0x85 << 40).to_le_bytes(),
        );
        for vector in [10, 11, 12, 13] {
            let at = HANDLER + 16 * vector;
            let gate = at & 0xffff | u64::from(CODE) << 16 | 0x8e << 40 | (at >> 16) << 48;
            put(&mut vm, IDT + 8 * vector, &gate.to_le_bytes());
            put(&mut vm, at, &[0xf4]);
        }
        put(&mut vm, OLD, code);
        put(&mut vm, NEW, new_code);
        let mut tss = [0_u32; 26];
        tss[8] = NEW as u32;
        tss[9] = 2;
        tss[10] = 0x1111_1111;
        tss[14] = NEW_STACK as u32;
        for (slot, selector) in [
            (18, DATA),
            (19, CODE),
            (20, DATA),
            (21, DATA),
            (22, 0),
            (23, 0),
        ] {
            tss[slot] = selector.into();
        }
        put(&mut vm, NEW_TSS, &tss.map(u32::to_le_bytes).concat());
        let mut tss = [0_u16; 22];
        (tss[7], tss[8], tss[9], tss[13]) = (0x1000, 2, 0x2222, 0xf000);
        for (slot, selector) in [(17, DATA), (18, CODE), (19, DATA), (20, DATA)] {
            tss[slot] = selector;
        }
        put(&mut vm, NEW_TSS_16, &tss.map(u16::to_le_bytes).concat());

        let mut start = state(Mode::Long0, &mut Random(0));
        let sregs = start.sregs.as_mut().expect("sregs");
        (sregs.cr0, sregs.cr4, sregs.efer) = (cr0::PE | cr0::ET | cr0::NE, 0, 0);
        let segment = |selector, rights| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            ar: AccessRights::from_bits_retain(rights),
        };
        sregs.cs = segment(CODE, 0xc09b);
        for data in [
            &mut sregs.ss,
            &mut sregs.ds,
            &mut sregs.es,
            &mut sregs.fs,
            &mut sregs.gs,
        ] {
            *data = segment(DATA, 0xc093);
        }
        sregs.tr = Segment {
            selector: OLD_TASK,
            base: OLD_TSS,
            limit: 0x67,
            ar: AccessRights::from_bits_retain(0x8b),
        };
        sregs.gdtr = DescriptorTable {
            base: GDT,
            limit: 0x3f,
        };
        sregs.idtr = DescriptorTable {
            base: IDT,
            limit: 0x7ff,
        };
        let mut regs = Regs {
            rip: OLD,
            rflags: 2,
            ..Regs::default()
        };
        regs.set(Gpr::Rsp, 0x5_0000);
        regs.set(Gpr::Rax, 0x1234_5678);
        start.regs = Some(regs);
        vm.set_state(&start).expect("taken");
        Self(vm)
    }

    fn halt(&mut self) {
        let exit = self.0.run(Budget::instructions(100)).expect("runs");
        assert_eq!(exit, Exit::Hlt, "{:x?}", self.regs());
    }

    fn state(&mut self) -> CpuState {
        self.0.state(Parts::All).expect("state")
    }

    fn regs(&mut self) -> Regs {
        self.state().regs.expect("regs")
    }

    fn word(&mut self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.0
            .read_memory(L1Phys(address), &mut bytes)
            .expect("RAM");
        u32::from_le_bytes(bytes)
    }

    /// Whether a TSS descriptor is busy.
    fn busy(&mut self, selector: u16) -> bool {
        self.word(GDT + u64::from(selector) + 4) >> 9 & 1 != 0
    }
}

fn far(opcode: u8, selector: u16) -> Vec<u8> {
    let [low, high] = selector.to_le_bytes();
    vec![opcode, 0, 0, 0, 0, low, high]
}

/// HLT.
const STOP: [u8; 1] = [0xf4];

#[test]
fn each_source_saves_loads_and_links() {
    let rows: [(&str, Vec<u8>, bool, u64); 4] = [
        ("JMP", far(0xea, NEW_TASK), false, OLD + 7),
        ("JMP through a gate", far(0xea, GATE), false, OLD + 7),
        ("CALL", far(0x9a, NEW_TASK), true, OLD + 7),
        ("INT", vec![0xcd, 0x40], true, OLD + 2),
    ];
    for (name, code, nests, next) in rows {
        let mut machine = Machine::new(&code, &STOP);
        machine.halt();
        let state = machine.state();
        let (regs, sregs) = (state.regs.expect("regs"), state.sregs.expect("sregs"));
        assert_eq!(regs.rip, NEW + 1, "{name}");
        assert_eq!(
            (regs.get(Gpr::Rax), regs.get(Gpr::Rsp)),
            (0x1111_1111, NEW_STACK)
        );
        assert_eq!(regs.rflags & rflags::NT != 0, nests, "{name}");
        assert_eq!((sregs.tr.selector, sregs.tr.base), (NEW_TASK, NEW_TSS));
        assert_eq!(sregs.tr.ar.bits() & 0xf, 0xb, "busy");
        assert_ne!(sregs.cr0 & cr0::TS, 0);
        assert!(!sregs.gs.is_usable() && sregs.es.is_usable());
        assert_eq!(u64::from(machine.word(OLD_TSS + 0x20)), next, "{name}");
        assert_eq!(machine.word(OLD_TSS + 0x28), 0x1234_5678, "EAX");
        assert_eq!(machine.word(OLD_TSS + 0x58), u32::from(DATA), "FS");
        assert_eq!(machine.busy(OLD_TASK), nests, "{name}: the old task");
        assert!(machine.busy(NEW_TASK), "{name}: the new task");
        let link = machine.word(NEW_TSS);
        assert_eq!(link, if nests { u32::from(OLD_TASK) } else { 0 }, "{name}");
    }
}

#[test]
fn iret_goes_back_to_the_task_that_called() {
    // call NEW_TASK; hlt. The new task: iretd; then, called again, goes on behind it.
    let mut code = far(0x9a, NEW_TASK);
    code.extend(far(0x9a, NEW_TASK));
    code.extend(STOP);
    let mut machine = Machine::new(&code, &[0xcf, 0x40, 0xcf]);
    machine.halt();
    let regs = machine.regs();
    assert_eq!(regs.rip, OLD + 15);
    assert_eq!(regs.get(Gpr::Rax), 0x1234_5678);
    assert_eq!(regs.rflags & rflags::NT, 0);
    // The second call went on at INC EAX; NT is clear in what IRET saved.
    assert_eq!(machine.word(NEW_TSS + 0x28), 0x1111_1112);
    assert_eq!(machine.word(NEW_TSS + 0x24) & 1 << 14, 0);
    assert!(machine.busy(OLD_TASK) && !machine.busy(NEW_TASK));
}

#[test]
fn a_16_bit_task() {
    let mut machine = Machine::new(&far(0xea, TASK_16), &STOP);
    put(&mut machine.0, 0x1000, &STOP);
    machine.halt();
    let regs = machine.regs();
    assert_eq!(regs.rip, 0x1001);
    assert_eq!(regs.get(Gpr::Rax), 0xffff_2222);
    let sregs = machine.state().sregs.expect("sregs");
    assert_eq!((sregs.tr.selector, sregs.fs.selector), (TASK_16, 0));
}

/// Faults before the switch are the old task's, those behind it the new one's.
#[test]
fn faults_belong_to_the_task_that_they_are_found_in() {
    // Slot of the new TSS that is changed, selector, vector, error code.
    let rows: [(u64, u16, u64, u32); 6] = [
        (0x60, 0x08, 10, 0x08),     // LDTR: no LDT
        (0x4c, DATA, 10, 0x10),     // CS: data
        (0x50, 0, 10, 0),           // SS: null
        (0x54, 0x48, 10, 0x48),     // DS: beyond the table
        (0x48, NEW_TASK, 10, 0x20), // ES: a TSS
        (0x20, 0, 0, 0),            // nothing
    ];
    for (slot, selector, vector, error_code) in rows {
        let mut machine = Machine::new(&far(0xea, NEW_TASK), &STOP);
        if vector != 0 {
            put(&mut machine.0, NEW_TSS + slot, &selector.to_le_bytes());
        }
        let exit = machine.0.run(Budget::instructions(100)).expect("runs");
        let state = machine.state();
        let tr = state.sregs.expect("sregs").tr.selector;
        assert_eq!(tr, NEW_TASK, "slot {slot:#x}");
        if vector == 0 {
            assert_eq!(machine.regs().rip, NEW + 1);
            continue;
        }
        // Without a stack segment nothing can be delivered: the new task ends in shutdown.
        if matches!(slot, 0x4c | 0x50 | 0x60) {
            assert_eq!(exit, Exit::Shutdown, "slot {slot:#x}");
            continue;
        }
        assert_eq!(exit, Exit::Hlt, "slot {slot:#x}");
        let regs = machine.regs();
        assert_eq!(regs.rip, HANDLER + 16 * vector + 1, "slot {slot:#x}");
        let frame = machine.word(regs.get(Gpr::Rsp));
        assert_eq!(frame, error_code, "slot {slot:#x}");
    }
    for (selector, vector, error_code) in [(OLD_TASK, 13, 0x18), (ABSENT, 11, 0x38)] {
        let mut machine = Machine::new(&far(0xea, selector), &STOP);
        machine.halt();
        let regs = machine.regs();
        assert_eq!(regs.rip, HANDLER + 16 * vector + 1);
        assert_eq!(machine.word(regs.get(Gpr::Rsp)), error_code);
        assert_eq!(machine.state().sregs.expect("sregs").tr.selector, OLD_TASK);
        assert!(machine.busy(OLD_TASK) && !machine.busy(NEW_TASK));
    }
}

/// An exception through a task gate leaves its error code on the new task's stack.
#[test]
fn an_error_code_reaches_the_new_task() {
    // mov fs, [an odd selector]: #GP through a task gate.
    let mut machine = Machine::new(&[0xb8, 0xf8, 0, 0, 0, 0x8e, 0xe0], &[0x5b, 0xf4]);
    put(
        &mut machine.0,
        IDT + 8 * 13,
        &(u64::from(NEW_TASK) << 16 | 0x85 << 40).to_le_bytes(),
    );
    machine.halt();
    let regs = machine.regs();
    assert_eq!(regs.rip, NEW + 2);
    assert_eq!(regs.get(Gpr::Rbx), 0xf8);
    // The faulting instruction is what the old task goes on at.
    assert_eq!(u64::from(machine.word(OLD_TSS + 0x20)), OLD + 5);
}
