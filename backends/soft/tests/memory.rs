//! Accesses of interpreted instructions that cross a page, devices and nothing where RAM ends, and the
//! local APIC's page where RAM lies below it.

mod common;

use common::bare::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Budget, Exit, Parts, Vcpu, Vm, VmConfig};
use nvmx_core::x86::{CpuState, Gpr, Regs};
use nvmx_soft::SoftVm;

/// The page behind the first 2 MiB is mapped by nothing.
const UNMAPPED: u64 = 2 << 20;
/// Linear addresses from here are physical ones from 4 GiB - 2 MiB of the same offset.
const HIGH: u64 = 1 << 30;

/// 64-bit mode with `code` at RIP, RBX = `pointer`.
fn long_mode(vm: &mut SoftVm, code: &[u8], pointer: u64) {
    furnish(vm, true);
    // 1 GiB and on: the 2 MiB around the APIC, and the first beyond RAM.
    put(vm, PAGING + 0x1008, &((PAGING + 0x6000) | 7).to_le_bytes());
    for (index, frame) in [0xfee0_0000_u64, 0x4000_0000].into_iter().enumerate() {
        put(
            vm,
            PAGING + 0x6000 + 8 * index as u64,
            &(frame | 0x87).to_le_bytes(),
        );
    }
    put(vm, CODE, code);
    let mut start = state(Mode::Long0, &mut Random(0));
    let mut regs = Regs {
        rip: CODE,
        rflags: 2,
        ..Regs::default()
    };
    regs.set(Gpr::Rsp, STACK);
    regs.set(Gpr::Rbx, pointer);
    regs.set(Gpr::Rdi, pointer);
    regs.set(Gpr::Rdx, 0x80);
    regs.set(Gpr::Rax, 0x1122_3344_5566_7788);
    start.regs = Some(regs);
    vm.set_state(&start).expect("taken");
}

fn regs(vm: &mut SoftVm) -> Regs {
    vm.state(Parts::Registers)
        .expect("state")
        .regs
        .expect("regs")
}

fn run(vm: &mut SoftVm, instructions: u64) -> Exit {
    vm.run(Budget::instructions(instructions)).expect("runs")
}

/// INS across the end of what is mapped: #PF, without a look at the port, nothing written, RDI as it was.
#[test]
fn a_fault_on_the_second_page_leaves_the_first_alone() {
    let mut vm = machine();
    // INSD.
    long_mode(&mut vm, &[0x6d], UNMAPPED - 2);
    // The handler is not there either.
    assert_eq!(run(&mut vm, 1), Exit::Shutdown);
    let mut bytes = [0; 2];
    vm.read_memory(L1Phys(UNMAPPED - 2), &mut bytes)
        .expect("RAM");
    assert_eq!(bytes, [0, 0]);
    let state = vm.state(Parts::Registers).expect("state");
    assert_eq!(state.sregs.expect("sregs").cr2 & !0xfff, UNMAPPED);
    assert_eq!(regs(&mut vm).get(Gpr::Rdi), UNMAPPED - 2);
}

/// INS and OUTS across two pages that are there.
#[test]
fn string_io_crosses_pages() {
    let mut vm = machine();
    long_mode(&mut vm, &[0x6d], STACK + 0xffe);
    assert_eq!(
        run(&mut vm, 1),
        Exit::IoIn {
            port: 0x80,
            size: 4
        }
    );
    vm.complete_read(0xdead_beef).expect("complete");
    let mut bytes = [0; 4];
    vm.read_memory(L1Phys(STACK + 0xffe), &mut bytes)
        .expect("RAM");
    assert_eq!(u32::from_le_bytes(bytes), 0xdead_beef);
}

/// Loads and stores where nothing answers leave to user space; what the interpreter lacks is said.
#[test]
fn nothing_behind_the_end_of_ram() {
    let nowhere = HIGH + (2 << 20);
    let physical = L1Phys(0x4000_0000);
    for (name, code, expected) in [
        (
            "MOV load",
            &[0x48_u8, 0x8b, 0x03][..],
            Some(Exit::MmioRead {
                address: physical,
                size: 8,
            }),
        ),
        (
            "MOV store",
            &[0x48, 0x89, 0x03],
            Some(Exit::MmioWrite {
                address: physical,
                size: 8,
                value: 0x1122_3344_5566_7788,
            }),
        ),
        (
            "MOVZX",
            &[0x0f, 0xb6, 0x03],
            Some(Exit::MmioRead {
                address: physical,
                size: 1,
            }),
        ),
        ("FLD", &[0xdd, 0x03], None),
        ("CMPXCHG16B", &[0x48, 0x0f, 0xc7, 0x0b], None),
        ("JMP", &[0xff, 0xe3], None),
    ] {
        let mut vm = machine();
        long_mode(&mut vm, code, nowhere);
        let exit = run(&mut vm, 2);
        match expected {
            Some(expected) => assert_eq!(exit, expected, "{name}"),
            None => assert!(matches!(exit, Exit::Unsupported { .. }), "{name}: {exit:?}"),
        }
        if matches!(exit, Exit::MmioRead { .. }) {
            vm.complete_read(0x8899_aabb_ccdd_eeff).expect("complete");
            let expected = if name == "MOVZX" {
                0xff
            } else {
                0x8899_aabb_ccdd_eeff
            };
            assert_eq!(regs(&mut vm).get(Gpr::Rax), expected, "{name}");
        }
    }
}

/// One half RAM, one half nothing: no half is lost silently.
#[test]
fn an_access_across_the_end_of_ram_is_unsupported() {
    // The last bytes of a RAM of 2 MiB, with the next page mapped beyond it.
    for code in [&[0x48_u8, 0x89, 0x03][..], &[0x48, 0x8b, 0x03]] {
        let mut vm = machine();
        long_mode(&mut vm, code, UNMAPPED - 4);
        put(&mut vm, PAGING + 0x2008, &0x20_0087_u64.to_le_bytes());
        let exit = run(&mut vm, 1);
        assert!(matches!(exit, Exit::Unsupported { .. }), "{exit:?}");
        let mut bytes = [1; 4];
        vm.read_memory(L1Phys(UNMAPPED - 4), &mut bytes)
            .expect("RAM");
        assert_eq!(bytes, [0; 4]);
    }
}

/// More RAM than fits below the local APIC: the guest meets the APIC there, user space the RAM; above
/// 4 GiB all is RAM.
#[test]
fn ram_around_the_apic_page() {
    const LARGE: u64 = (4 << 30) + (4 << 20);
    let mut vm = SoftVm::new(&VmConfig {
        memory_size: LARGE,
        ..VmConfig::default()
    })
    .expect("a large machine");
    put(&mut vm, 0xfee0_0030, &[0xee; 4]);
    // mov eax, [rbx]
    long_mode(&mut vm, &[0x8b, 0x03], HIGH + 0x30);
    assert_eq!(run(&mut vm, 1), Exit::Budget);
    // Version 0x14, six entries.
    let version = regs(&mut vm).get(Gpr::Rax);
    assert_eq!(version & 0xff, 0x14, "{version:#x}");
    // The page behind the APIC's is RAM.
    put(&mut vm, 0xfee0_1000, &0x0dd0_u32.to_le_bytes());
    long_mode(&mut vm, &[0x8b, 0x03], HIGH + 0x1000);
    assert_eq!(run(&mut vm, 1), Exit::Budget);
    assert_eq!(regs(&mut vm).get(Gpr::Rax), 0x0dd0);
    put(&mut vm, LARGE - 4, &[1, 2, 3, 4]);
    assert!(vm.write_memory(L1Phys(LARGE - 3), &[1, 2, 3, 4]).is_err());
}

/// Sizes that cannot be had are refused with a reason.
#[test]
fn impossible_memory_sizes_are_refused() {
    for memory_size in [0, 4095, 4097, u64::MAX, !0xfff, 1 << 62] {
        let error = SoftVm::new(&VmConfig {
            memory_size,
            ..VmConfig::default()
        })
        .map(drop)
        .expect_err("refused");
        assert!(
            error.to_string().contains("memory size"),
            "{memory_size:#x}: {error}"
        );
    }
    assert!(
        SoftVm::new(&VmConfig {
            vcpus: 9,
            ..VmConfig::default()
        })
        .is_err()
    );
}

/// A state may hold any of its parts; one of the wrong size is refused.
#[test]
fn state_parts_alone_are_taken() {
    let mut vm = machine();
    vm.set_state(&CpuState::default()).expect("nothing to set");
    assert!(
        vm.set_state(&CpuState {
            xsave: Some(vec![0; 10]),
            ..CpuState::default()
        })
        .is_err()
    );
    assert!(
        vm.set_state(&CpuState {
            lapic: Some(vec![0; 10]),
            ..CpuState::default()
        })
        .is_err()
    );
    assert!(
        vm.set_state(&CpuState {
            tsc_khz: Some(0),
            ..CpuState::default()
        })
        .is_err()
    );
}
