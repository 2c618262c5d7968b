//! EPT as L2 meets it: what each combination of permissions lets through at each level of the tables, what
//! the exit says of an access and of the walk of L2's own page tables (SDM Vol. 3C "EPT Violations", "EPT
//! Misconfigurations", "Accessed and Dirty Flags for EPT", table "Exit Qualification for EPT Violations").

mod common;

use common::bare::{PAGING, put};
use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::{CpuState, Gpr};

const VMCALL_EXIT: u32 = 18;
const VIOLATION: u32 = 48;
const MISCONFIGURATION: u32 = 49;
const R: u64 = 1;
const W: u64 = 2;
const X: u64 = 4;
const LARGE: u64 = 1 << 7;
const WRITE_BACK: u64 = 6 << 3;
/// Exit qualification: linear address valid, access to its translation.
const LINEAR: u64 = 1 << 7;
const FINAL: u64 = 1 << 8;
const A: u64 = 1 << 5;
const D: u64 = 1 << 6;

/// EPT tables: PML4, PDPT, PD, PT for the first 2 MiB, and the same again for `FAR`.
const TABLES: [u64; 4] = [0x10_0000, 0x10_1000, 0x10_2000, 0x10_3000];
const FAR_TABLES: [u64; 3] = [0x10_4000, 0x10_5000, 0x10_6000];
/// L2's page tables for `LINEAR_FAR`.
const GUEST: [u64; 3] = [0x10_8000, 0x10_9000, 0x10_a000];
/// Guest-physical address with a PML4 entry of its own.
const FAR: u64 = 1 << 39;
/// Where L2 sees it.
const LINEAR_FAR: u64 = 1 << 39;
/// What is there.
const DATA: u64 = 0x18_0000;

/// Physical-address width, so that [`FAR`] is an address.
const WIDTH: u32 = 40;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Read,
    Write,
    Execute,
}

const OPS: [Op; 3] = [Op::Read, Op::Write, Op::Execute];

/// L2 reads, writes or calls what RBX points at.
fn nest(op: Op, accessed_dirty: bool) -> Nest {
    let code: &[u8] = match op {
        // mov rax, [rbx]; vmcall
        Op::Read => &[0x48, 0x8b, 0x03, 0x0f, 0x01, 0xc1],
        // mov [rbx], rax; vmcall
        Op::Write => &[0x48, 0x89, 0x03, 0x0f, 0x01, 0xc1],
        // call rbx; vmcall
        Op::Execute => &[0xff, 0xd3, 0x0f, 0x01, 0xc1],
    };
    let mut nest = Nest::new(code);
    let mut cpuid = nest.state().cpuid;
    for leaf in cpuid.iter_mut().flatten() {
        if leaf.leaf == 0x8000_0008 {
            leaf.eax = leaf.eax & !0xff | WIDTH;
        }
    }
    nest.set_state(CpuState {
        cpuid,
        ..CpuState::default()
    });
    let vm = &mut nest.vm;
    let entry = |vm: &mut nvmx_soft::SoftVm, at: u64, value: u64| put(vm, at, &value.to_le_bytes());
    for level in 0..3 {
        entry(vm, TABLES[level], TABLES[level + 1] | R | W | X);
    }
    for page in 0..512 {
        entry(
            vm,
            TABLES[3] + 8 * page,
            page << 12 | WRITE_BACK | R | W | X,
        );
    }
    let far = [
        TABLES[0] + 8 * (FAR >> 39),
        FAR_TABLES[0],
        FAR_TABLES[1],
        FAR_TABLES[2],
    ];
    for (at, next) in far
        .iter()
        .zip([FAR_TABLES[0], FAR_TABLES[1], FAR_TABLES[2]])
    {
        entry(vm, *at, next | R | W | X);
    }
    entry(vm, FAR_TABLES[2], DATA | WRITE_BACK | R | W | X);
    // L2's tables: PML4 entry 1.
    entry(vm, PAGING + 8, GUEST[0] | 7);
    entry(vm, GUEST[0], GUEST[1] | 7);
    entry(vm, GUEST[1], GUEST[2] | 7);
    entry(vm, GUEST[2], FAR | 7);
    // ret
    put(vm, DATA, &[0xc3]);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.on(
        Field::SECONDARY_VM_EXEC_CONTROL,
        Secondary::ENABLE_EPT.bits(),
    );
    let flag = if accessed_dirty { 1 << 6 } else { 0 };
    nest.set(Field::EPT_POINTER, TABLES[0] | 0x1e | flag);
    let mut regs = nest.regs();
    regs.set(Gpr::Rbx, LINEAR_FAR);
    regs.set(Gpr::Rax, 0xc3);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest
}

fn word(nest: &mut Nest, at: u64) -> u64 {
    let mut bytes = [0; 8];
    nest.vm.read_memory(L1Phys(at), &mut bytes).expect("RAM");
    u64::from_le_bytes(bytes)
}

/// Where the entry for FAR is at each level, 4 to 1.
const fn far_entry(level: usize) -> u64 {
    match level {
        4 => TABLES[0] + 8 * (FAR >> 39),
        3 => FAR_TABLES[0],
        2 => FAR_TABLES[1],
        _ => FAR_TABLES[2],
    }
}

/// Changes the entry of `level`; as a large page it maps DATA's 2-MiB (or 1-GiB) page.
fn twist(nest: &mut Nest, level: usize, large: bool, clear: u64, set: u64) {
    let at = far_entry(level);
    let mut value = word(nest, at);
    if large {
        value = LARGE | WRITE_BACK | R | W | X;
    }
    put(&mut nest.vm, at, &(value & !clear | set).to_le_bytes());
}

/// Where FAR's byte is reached through a large page: at the start of the page, which is page 0 of L1.
fn furnish_large(nest: &mut Nest) {
    put(&mut nest.vm, 0, &[0xc3]);
}

#[track_caller]
fn check(nest: &mut Nest, op: Op, allowed: bool, qualification: u64, name: &str) {
    let entry = nest.enter();
    if allowed {
        assert_eq!(entry, Entry::Exit(VMCALL_EXIT), "{name}");
        return;
    }
    assert_eq!(entry, Entry::Exit(VIOLATION), "{name}");
    assert_eq!(
        nest.get(Field::EXIT_QUALIFICATION) & 0x1ff,
        qualification,
        "{name}"
    );
    assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), FAR, "{name}");
    assert_eq!(nest.get(Field::GUEST_LINEAR_ADDRESS), LINEAR_FAR, "{name}");
    let rip = if op == Op::Execute { LINEAR_FAR } else { L2 };
    assert_eq!(nest.get(Field::GUEST_RIP), rip, "{name}");
}

const fn access(op: Op) -> u64 {
    match op {
        Op::Read => R,
        Op::Write => W,
        Op::Execute => X,
    }
}

/// Every combination of permissions at every level, small pages and large.
#[test]
fn permissions() {
    for level in 1..=4 {
        for large in [false, true] {
            if large && !matches!(level, 2 | 3) {
                continue;
            }
            for rights in 0..8 {
                for op in OPS {
                    let name = format!("level {level} large {large} rights {rights} {op:?}");
                    let mut nest = nest(op, false);
                    furnish_large(&mut nest);
                    twist(&mut nest, level, large, R | W | X, rights);
                    if rights & (R | W) == W {
                        assert_eq!(nest.enter(), Entry::Exit(MISCONFIGURATION), "{name}");
                        assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), FAR, "{name}");
                        assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0, "{name}");
                        continue;
                    }
                    let qualification = access(op) | rights << 3 | LINEAR | FINAL;
                    check(
                        &mut nest,
                        op,
                        rights & access(op) != 0,
                        qualification,
                        &name,
                    );
                }
            }
        }
    }
}

/// Bits that must be zero, unless the entry is not present; and bits that nobody looks at.
#[test]
fn reserved_and_ignored_bits() {
    let high = WIDTH..=51;
    for level in 1..=4 {
        let large = matches!(level, 2 | 3);
        let mut reserved: Vec<(bool, u32)> = high.clone().map(|bit| (false, bit)).collect();
        match level {
            1 => {}
            4 => reserved.extend((3..=7).map(|bit| (false, bit))),
            _ => {
                reserved.extend((3..=6).map(|bit| (false, bit)));
                let lowest = if level == 2 { 21 } else { 30 };
                reserved.extend((12..lowest).map(|bit| (true, bit)));
                reserved.extend(high.clone().map(|bit| (true, bit)));
            }
        }
        for (large, bit) in reserved {
            for op in OPS {
                let name = format!("level {level} large {large} bit {bit} {op:?}");
                let mut nest = nest(op, false);
                furnish_large(&mut nest);
                twist(&mut nest, level, large, 0, 1 << bit);
                assert_eq!(nest.enter(), Entry::Exit(MISCONFIGURATION), "{name}");
                twist(&mut nest, level, false, R | W | X, 1 << bit);
                check(&mut nest, op, false, access(op) | LINEAR | FINAL, &name);
            }
        }
        for bit in [8, 9, 10, 11, 52, 53, 54, 55, 56, 58, 59, 62, 63] {
            for large in if large {
                vec![false, true]
            } else {
                vec![false]
            } {
                let mut nest = nest(Op::Write, false);
                furnish_large(&mut nest);
                twist(&mut nest, level, large, 0, 1 << bit);
                check(
                    &mut nest,
                    Op::Write,
                    true,
                    0,
                    &format!("level {level} bit {bit}"),
                );
            }
        }
    }
    // Memory types 2, 3 and 7 of a leaf.
    for (memory_type, allowed) in [
        (0, true),
        (1, true),
        (2, false),
        (3, false),
        (4, true),
        (5, true),
        (6, true),
        (7, false),
    ] {
        let mut nest = nest(Op::Read, false);
        twist(&mut nest, 1, false, 7 << 3, memory_type << 3);
        let expected = if allowed {
            VMCALL_EXIT
        } else {
            MISCONFIGURATION
        };
        assert_eq!(
            nest.enter(),
            Entry::Exit(expected),
            "memory type {memory_type}"
        );
    }
}

/// The walk of L2's own tables: reads, and writes where a flag must be set; with EPT's flags every access
/// to them counts as a write.
#[test]
fn accesses_to_paging_structures() {
    let page_of_pte = TABLES[3] + 8 * (GUEST[2] >> 12);
    for accessed_dirty in [false, true] {
        for rights in [0, R, R | X, R | W, R | W | X] {
            for flags in [0, A, A | D] {
                for op in OPS {
                    let name = format!("EPT A/D {accessed_dirty}, {rights}, {flags:#x}, {op:?}");
                    let mut nest = nest(op, accessed_dirty);
                    put(&mut nest.vm, GUEST[2], &(FAR | 7 | flags).to_le_bytes());
                    let entry = GUEST[2] | WRITE_BACK | rights;
                    put(&mut nest.vm, page_of_pte, &entry.to_le_bytes());
                    let sets_flag = flags & A == 0 || op == Op::Write && flags & D == 0;
                    let writes = accessed_dirty || sets_flag;
                    let fails = rights & R == 0 || writes && rights & W == 0;
                    if fails {
                        assert_eq!(nest.enter(), Entry::Exit(VIOLATION), "{name}");
                        // A flag is set in a second access, for which the walk has been read already.
                        let wrote = accessed_dirty || rights & R != 0;
                        let expected = R | if wrote { W } else { 0 } | rights << 3 | LINEAR;
                        assert_eq!(
                            nest.get(Field::EXIT_QUALIFICATION) & 0x1ff,
                            expected,
                            "{name}"
                        );
                        assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), GUEST[2], "{name}");
                        assert_eq!(nest.get(Field::GUEST_LINEAR_ADDRESS), LINEAR_FAR, "{name}");
                        let entry = GUEST[2] | WRITE_BACK | R | W | X;
                        put(&mut nest.vm, page_of_pte, &entry.to_le_bytes());
                    }
                    assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT), "{name}");
                    let dirty = if op == Op::Write { D } else { flags & D };
                    assert_eq!(word(&mut nest, GUEST[2]) & (A | D), A | dirty, "{name}");
                    // EPT's own flags: bit 8 on the way, 9 where it was written.
                    let written = 1 << 8 | 1 << 9;
                    let expected = if accessed_dirty { written } else { 0 };
                    assert_eq!(word(&mut nest, page_of_pte) & written, expected, "{name}");
                    let data = match (accessed_dirty, op) {
                        (false, _) => 0,
                        (true, Op::Write) => written,
                        (true, _) => 1 << 8,
                    };
                    assert_eq!(word(&mut nest, FAR_TABLES[2]) & written, data, "{name}");
                    let upper = if accessed_dirty { 1 << 8 } else { 0 };
                    assert_eq!(word(&mut nest, FAR_TABLES[1]) & written, upper, "{name}");
                }
            }
        }
    }
}

/// L2's own page fault comes before EPT is asked about the page.
#[test]
fn a_page_fault_of_l2_comes_first() {
    let mut nest = nest(Op::Write, false);
    put(&mut nest.vm, GUEST[2], &(FAR | 5).to_le_bytes());
    nest.set(Field::GUEST_CR0, nest.get(Field::GUEST_CR0) | 1 << 16);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 14);
    twist(&mut nest, 1, false, R | W | X, 0);
    nest.expect(0, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_ERROR_CODE), 3);
}

/// An instruction that reads and writes one operand tells of both.
#[test]
fn a_read_modify_write_tells_of_both() {
    let mut nest = nest(Op::Read, false);
    // lock inc dword [rbx]
    put(&mut nest.vm, L2, &[0xf0, 0xff, 0x03, 0x0f, 0x01, 0xc1]);
    twist(&mut nest, 1, false, W, 0);
    nest.expect(VIOLATION, L2);
    assert_eq!(
        nest.get(Field::EXIT_QUALIFICATION) & 0x1ff,
        R | W | (R | X) << 3 | LINEAR | FINAL
    );
}

/// A page of L1's memory-mapped APIC, mapped to L2.
#[test]
fn l2_reads_l1s_apic() {
    let mut nest = nest(Op::Read, false);
    twist(&mut nest, 1, false, !0xfff, 0xfee0_0000);
    put(&mut nest.vm, L2, &[0x8b, 0x43, 0x30, 0x0f, 0x01, 0xc1]);
    nest.expect(VMCALL_EXIT, L2 + 3);
    assert_eq!(nest.regs().get(Gpr::Rax) & 0xff, 0x14);
}
