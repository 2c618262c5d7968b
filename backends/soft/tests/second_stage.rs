//! What L1's EPT makes of L2's accesses: virtualization exceptions, sub-page permissions, mode-based
//! execution, and what the exit says beside the address (SDM Vol. 3C "The Extended Page Table
//! Mechanism (EPT)", "Virtualization Exceptions").

mod common;

use common::bare::put;
use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{PinBased, Primary, Secondary};
use nvmx_core::x86::{CpuState, msr};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const EPT_VIOLATION: u32 = 48;
const SPP_EVENT: u32 = 66;

/// EPT's tables: four pages.
const EPT: u64 = 0x10_0000;
/// Fields that KVM's layout lacks are lost on the way through its nested state, so that the information
/// area and the root of the sub-page permissions are at address 0.
const AREA: u64 = 0;
const SPPT: u64 = 0;
/// The other levels of the sub-page permissions.
const LOWER: u64 = 0x10_8000;
/// The page that the cases are about.
const DATA: u64 = 0x12_0000;

/// mov [DATA + offset], eax; vmcall.
fn store(offset: u32) -> Vec<u8> {
    let address = DATA as u32 + offset;
    let mut code = vec![0x89, 0x04, 0x25];
    code.extend(address.to_le_bytes());
    code.extend(VMCALL);
    code
}

/// L2 with an identity EPT of 4-KiB pages, and capabilities that KVM does not give.
fn nest(code: &[u8], controls: Secondary) -> Nest {
    let mut nest = Nest::new(code);
    let mut msrs = nest.state().msrs.expect("MSRs");
    *msrs.get_mut(&msr::IA32_VMX_PROCBASED_CTLS2).expect("there") |= u64::from(
        (Secondary::EPT_VIOLATION_VE
            | Secondary::SUB_PAGE_WRITE_PERMISSIONS
            | Secondary::MODE_BASED_EXECUTE_CONTROL)
            .bits(),
    ) << 32;
    *msrs.get_mut(&msr::IA32_VMX_EPT_VPID_CAP).expect("there") |= 1 << 22;
    msrs.retain(|number, _| {
        matches!(
            *number,
            msr::IA32_VMX_PROCBASED_CTLS2 | msr::IA32_VMX_EPT_VPID_CAP
        )
    });
    nest.set_state(CpuState {
        msrs: Some(msrs),
        ..CpuState::default()
    });
    let entry = |nest: &mut Nest, at: u64, value: u64| put(&mut nest.vm, at, &value.to_le_bytes());
    for level in 0..3 {
        let table = EPT + level * 0x1000;
        entry(&mut nest, table, (table + 0x1000) | 0x407);
    }
    for page in 0..512 {
        entry(&mut nest, EPT + 0x3000 + page * 8, page << 12 | 0x437);
    }
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.on(
        Field::SECONDARY_VM_EXEC_CONTROL,
        (Secondary::ENABLE_EPT | controls).bits(),
    );
    nest.set(Field::EPT_POINTER, EPT | 3 << 3 | 6);
    nest
}

fn map(nest: &mut Nest, page: u64, entry: u64) {
    put(
        &mut nest.vm,
        EPT + 0x3000 + (page >> 12) * 8,
        &entry.to_le_bytes(),
    );
}

fn word(nest: &mut Nest, address: u64) -> u64 {
    let mut bytes = [0; 8];
    nest.vm
        .read_memory(L1Phys(address), &mut bytes)
        .expect("RAM");
    u64::from_le_bytes(bytes)
}

#[test]
fn a_violation_becomes_a_virtualization_exception() {
    let handler = HANDLERS + 64 * 20;
    let mut nest = nest(&store(8), Secondary::EPT_VIOLATION_VE);
    put(&mut nest.vm, handler, &VMCALL);
    map(&mut nest, DATA, DATA | 0x31);
    nest.expect(VMCALL_EXIT, handler);
    let area = [0, 8, 16, 24, 32].map(|offset| word(&mut nest, AREA + offset));
    // A user page that guest paging lets be written: bits 11:7 are 01111.
    assert_eq!(
        area,
        [0xffff_ffff_0000_0030, 0x78a, DATA + 8, DATA + 8, 0],
        "{area:x?}"
    );
    // The frame holds the address of the store: #VE is a fault.
    assert_eq!(word(&mut nest, L2_STACK - 40), L2);

    // The area is busy: the same access exits.
    nest.set(Field::GUEST_RIP, L2);
    nest.expect(EPT_VIOLATION, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x78a);
    assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), DATA + 8);

    // L1 intercepts vector 20.
    put(&mut nest.vm, AREA, &[0; 8]);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 20);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 0x8000_0314);

    // Bit 63 of the entry suppresses it.
    put(&mut nest.vm, AREA, &[0; 8]);
    map(&mut nest, DATA, DATA | 0x31 | 1 << 63);
    nest.expect(EPT_VIOLATION, L2);
    assert_eq!(word(&mut nest, AREA), 0);
}

#[test]
fn a_violation_during_delivery_always_exits() {
    // ud2
    let mut nest = nest(&[0x0f, 0x0b], Secondary::EPT_VIOLATION_VE);
    map(&mut nest, L2_STACK - 0x1000, 0);
    nest.expect(EPT_VIOLATION, L2);
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0x8000_0306);
    assert_eq!(word(&mut nest, AREA), 0);
}

#[test]
fn sub_page_permissions_let_128_bytes_be_written() {
    let mut code = store(0x80);
    code.truncate(7);
    code.extend(store(0xfc));
    code.truncate(14);
    code.extend(store(0x100));
    let mut nest = nest(&code, Secondary::SUB_PAGE_WRITE_PERMISSIONS);
    map(&mut nest, DATA, DATA | 0x31 | 1 << 61);
    // No table yet: a miss.
    nest.expect(SPP_EVENT, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 1 << 11);
    assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), DATA + 0x80);
    assert_eq!(nest.get(Field::GUEST_LINEAR_ADDRESS), DATA + 0x80);
    for (at, next) in [
        (SPPT, LOWER),
        (LOWER, LOWER + 0x1000),
        (LOWER + 0x1000, LOWER + 0x2000),
    ] {
        put(&mut nest.vm, at, &(next | 1).to_le_bytes());
    }
    put(
        &mut nest.vm,
        LOWER + 0x2000 + (DATA >> 12) * 8,
        &4_u64.to_le_bytes(),
    );
    let mut regs = nest.regs();
    regs.gpr[0] = 0x1234_5678;
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    // Both stores to the piece pass, the one behind it does not.
    nest.expect(EPT_VIOLATION, L2 + 14);
    assert_eq!(word(&mut nest, DATA + 0x80), 0x1234_5678);
    assert_eq!(word(&mut nest, DATA + 0xfc), 0x1234_5678);
    assert_eq!(word(&mut nest, DATA + 0x100), 0);
    assert_eq!(nest.get(Field::GUEST_PHYSICAL_ADDRESS), DATA + 0x100);
    // An entry with a reserved bit.
    put(
        &mut nest.vm,
        LOWER + 0x2000 + (DATA >> 12) * 8,
        &6_u64.to_le_bytes(),
    );
    nest.expect(SPP_EVENT, L2 + 14);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0);
}

#[test]
fn mode_based_execution_asks_whose_page_it_is() {
    let mut nest = nest(&VMCALL, Secondary::MODE_BASED_EXECUTE_CONTROL);
    nest.expect(VMCALL_EXIT, L2);
    // L2's pages are user pages: bit 10 decides, not bit 2.
    map(&mut nest, L2, L2 | 0x433);
    nest.expect(VMCALL_EXIT, L2);
    map(&mut nest, L2, L2 | 0x37);
    nest.expect(EPT_VIOLATION, L2);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x7bc);
}

#[test]
fn an_iret_that_faults_tells_that_nmis_are_open() {
    // iretq, from a stack that EPT does not map.
    for (nmi_exiting, virtual_nmis, blocked, expected) in [
        (false, false, true, 1),
        (false, false, false, 0),
        (true, true, true, 1),
        (true, true, false, 0),
    ] {
        let mut nest = nest(&[0x48, 0xcf], Secondary::empty());
        if nmi_exiting {
            nest.on(
                Field::PIN_BASED_VM_EXEC_CONTROL,
                PinBased::NMI_EXITING.bits(),
            );
        }
        if virtual_nmis {
            nest.on(
                Field::PIN_BASED_VM_EXEC_CONTROL,
                PinBased::VIRTUAL_NMIS.bits(),
            );
        }
        nest.set(Field::GUEST_RSP, DATA);
        map(&mut nest, DATA, 0);
        nest.set(
            Field::GUEST_INTERRUPTIBILITY_INFO,
            if blocked { 8 } else { 0 },
        );
        nest.expect(EPT_VIOLATION, L2);
        assert_eq!(nest.get(Field::EXIT_QUALIFICATION) >> 12, expected);
        assert_eq!(nest.get(Field::GUEST_INTERRUPTIBILITY_INFO), 0);
        // The same with an exception: a non-canonical stack, which is #SS(0).
        nest.set(Field::GUEST_RSP, 1 << 60);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 12);
        nest.set(
            Field::GUEST_INTERRUPTIBILITY_INFO,
            if blocked { 8 } else { 0 },
        );
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO) >> 12 & 1, expected);
    }
}
