//! What an exit records, saves and loads.

use super::qualification::{ControlRegisterAccess, IoAccess, TaskSwitchSource};
use super::*;
use crate::addr::L2Phys;
use crate::cpu::{Activity, Model};
use crate::personality::Personality;
use crate::vmx::controls::ExitControls;
use crate::vmx::entry::test_support as support;
use crate::x86::control::{cr0, efer};
use crate::x86::{AccessRights, Gpr};
use std::sync::Arc;

/// A processor in L2, as an entry with the valid vmcs12 leaves it.
fn in_l2() -> (Cpu, crate::memory::VecMemory) {
    let mut cpu = support::cpu_with_vmcs();
    let memory = support::memory();
    let outcome = crate::vmx::instructions::vmlaunch(&mut cpu, &memory);
    assert!(
        matches!(outcome, crate::vmx::instructions::VmxResult::Entered(_)),
        "{outcome:?}"
    );
    cpu.vmx.run_pending = false;
    (cpu, memory)
}

#[test]
fn information_of_the_main_reasons() {
    let io = IoAccess {
        port: 0x3f8,
        size: 1,
        is_in: true,
        ..IoAccess::default()
    };
    let mov_cr3 = ControlRegisterAccess::MovTo {
        cr: 3,
        gpr: Gpr::Rbx,
    };
    let page_fault = Exception::page_fault(6, 0xdead_b000);
    // Exit, reason, qualification, interruption information, instruction length.
    let rows = [
        (VmExit::cpuid(2), 10, 0, 0, 2),
        (VmExit::hlt(1), 12, 0, 0, 1),
        (VmExit::io(io, 2, None), 30, 0x03f8_0008, 0, 2),
        (VmExit::control_register(mov_cr3, 3, None), 28, 0x303, 0, 3),
        (
            VmExit::debug_register(7, true, Gpr::Rdx, 3),
            29,
            0x217,
            0,
            3,
        ),
        (VmExit::msr(false, 2), 31, 0, 0, 2),
        (VmExit::msr(true, 2), 32, 0, 0, 2),
        (VmExit::invlpg(0x1234, 3), 14, 0x1234, 0, 3),
        (
            VmExit::exception(page_fault),
            0,
            0xdead_b000,
            0x8000_0b0e,
            0,
        ),
        (VmExit::nmi(), 0, 0, 0x8000_0202, 0),
        (VmExit::external_interrupt(Some(0x31)), 1, 0, 0x8000_0031, 0),
        (VmExit::external_interrupt(None), 1, 0, 0, 0),
        (
            VmExit::ept_violation(0x181, L2Phys(0x7000), Some(0x9000)),
            48,
            0x181,
            0,
            0,
        ),
        (VmExit::new(ExitReason::TRIPLE_FAULT), 2, 0, 0, 0),
        (VmExit::new(ExitReason::PREEMPTION_TIMER), 52, 0, 0, 0),
    ];
    for (exit, reason, qualification, information, length) in rows {
        let (mut cpu, memory) = in_l2();
        let left = leave(&mut cpu, &memory, &exit);
        let vmcs12 = &cpu.vmx.vmcs12;
        assert_eq!(left.abort, None);
        assert_eq!(vmcs12.get(Field::VM_EXIT_REASON), reason, "{exit:?}");
        assert_eq!(
            vmcs12.get(Field::EXIT_QUALIFICATION),
            qualification,
            "{exit:?}"
        );
        assert_eq!(
            vmcs12.get(Field::VM_EXIT_INTR_INFO),
            information,
            "{exit:?}"
        );
        assert_eq!(
            vmcs12.get(Field::VM_EXIT_INSTRUCTION_LEN),
            length,
            "{exit:?}"
        );
        assert_eq!(vmcs12.get(Field::IDT_VECTORING_INFO_FIELD), 0, "{exit:?}");
        assert_eq!(vmcs12.launch_state(), LaunchState::Launched);
        assert_eq!(cpu.regs.rip, support::HOST_RIP);
        assert!(!cpu.vmx.guest_mode);
    }
}

#[test]
fn addresses_and_error_codes_are_recorded() {
    let (mut cpu, memory) = in_l2();
    let exit = VmExit::ept_violation(0x182, L2Phys(0x7008), Some(0x9008));
    leave(&mut cpu, &memory, &exit);
    assert_eq!(cpu.vmx.vmcs12.get(Field::GUEST_PHYSICAL_ADDRESS), 0x7008);
    assert_eq!(cpu.vmx.vmcs12.get(Field::GUEST_LINEAR_ADDRESS), 0x9008);

    let (mut cpu, memory) = in_l2();
    leave(
        &mut cpu,
        &memory,
        &VmExit::exception(Exception::page_fault(7, 0)),
    );
    assert_eq!(cpu.vmx.vmcs12.get(Field::VM_EXIT_INTR_ERROR_CODE), 7);
}

#[test]
fn qualifications_are_encoded_as_the_tables_say() {
    let lmsw = ControlRegisterAccess::Lmsw {
        source: 0xf,
        memory_operand: true,
    };
    assert_eq!(lmsw.qualification(), 0x000f_0070);
    let from = ControlRegisterAccess::MovFrom {
        cr: 8,
        gpr: Gpr::R15,
    };
    assert_eq!(from.qualification(), 0xf18);
    assert_eq!(ControlRegisterAccess::Clts.qualification(), 0x20);
    let outs = IoAccess {
        port: 0x80,
        size: 4,
        is_string: true,
        is_rep: true,
        ..IoAccess::default()
    };
    assert_eq!(outs.qualification(), 0x0080_0033);
    assert_eq!(
        qualification::task_switch(0x28, TaskSwitchSource::TaskGate),
        0xc000_0028
    );
    assert_eq!(qualification::debug_exception(0xffff_4ff1), 0x1_4801);
}

#[test]
fn an_exit_during_delivery_is_idt_vectoring() {
    let software = Event {
        kind: EventKind::SoftwareInterrupt,
        vector: 0x80,
        error_code: None,
        instruction_length: 2,
        payload: 0,
    };
    let double_fault = Exception {
        vector: Exception::DF,
        error_code: Some(0),
        payload: 0,
    };
    let violation = VmExit::ept_violation(1, L2Phys(0), None);
    let general_protection = Event::exception(Exception::GENERAL_PROTECTION);
    let rows = [
        (violation, Event::interrupt(0x20), 0x8000_0020, 0),
        (violation, Event::NMI, 0x8000_0202, 0),
        (violation, general_protection, 0x8000_0b0d, 0),
        (violation, software, 0x8000_0480, 2),
        (VmExit::exception(double_fault), general_protection, 0, 0),
        (
            VmExit::new(ExitReason::TRIPLE_FAULT),
            general_protection,
            0,
            0,
        ),
    ];
    for (exit, injected, vectoring, length) in rows {
        let (mut cpu, memory) = in_l2();
        cpu.injected = Some(injected);
        leave(&mut cpu, &memory, &exit);
        let vmcs12 = &cpu.vmx.vmcs12;
        assert_eq!(
            vmcs12.get(Field::IDT_VECTORING_INFO_FIELD),
            vectoring,
            "{injected:?}"
        );
        assert_eq!(
            vmcs12.get(Field::VM_EXIT_INSTRUCTION_LEN),
            length,
            "{injected:?}"
        );
        assert_eq!(cpu.injected, None);
    }
}

#[test]
fn guest_state_is_saved_as_the_controls_say() {
    let (mut cpu, memory) = in_l2();
    cpu.regs.rip = 0x1111;
    cpu.regs.set(Gpr::Rsp, 0x2222);
    cpu.regs.rflags = 0x202;
    cpu.sregs.fs.base = 0x3333;
    cpu.sregs.cr3 = 0xb000;
    cpu.sregs.efer |= efer::SCE;
    cpu.debug.dr7 = 0x455;
    cpu.msrs.pat = 0x0606_0606_0606_0606;
    cpu.interruptibility = Interruptibility::STI;
    cpu.activity = Activity::Hlt;
    cpu.vmx.vmcs12.set(Field::CR0_GUEST_HOST_MASK, cr0::TS);
    cpu.sregs.cr0 |= cr0::TS | cr0::MP;
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    let vmcs12 = &cpu.vmx.vmcs12;
    let cr0_saved = cr0::PE | cr0::NE | cr0::PG | cr0::ET | cr0::MP;
    for (field, value) in [
        (Field::GUEST_RIP, 0x1111),
        (Field::GUEST_RSP, 0x2222),
        (Field::GUEST_RFLAGS, 0x202),
        (Field::GUEST_FS_BASE, 0x3333),
        (Field::GUEST_CR3, 0xb000),
        // What L1 owns is as L1 left it.
        (Field::GUEST_CR0, cr0_saved),
        (Field::GUEST_IA32_EFER, efer::LME | efer::LMA | efer::SCE),
        (Field::GUEST_DR7, 0x455),
        // Without "save IA32_PAT".
        (Field::GUEST_IA32_PAT, 0x0007_0406_0007_0406),
        (Field::GUEST_INTERRUPTIBILITY_INFO, 1),
        (Field::GUEST_ACTIVITY_STATE, 1),
    ] {
        assert_eq!(vmcs12.get(field), value, "{field}");
    }
    assert_eq!(cpu.activity, Activity::Active);
    assert_eq!(cpu.interruptibility, Interruptibility::empty());
}

#[test]
fn kvm_saves_pat_where_l2_wrote_it() {
    for (writes, saved) in [(false, 0x0007_0406_0007_0406), (true, 6)] {
        let (mut cpu, memory) = in_l2();
        let controls = cpu.vmx.vmcs12.get(Field::VM_EXIT_CONTROLS);
        let controls = controls | u64::from(ExitControls::SAVE_PAT.bits());
        cpu.vmx.vmcs12.set(Field::VM_EXIT_CONTROLS, controls);
        cpu.msrs.pat = 6;
        if writes {
            note_msr_write(&mut cpu, crate::x86::msr::IA32_PAT);
        }
        leave(&mut cpu, &memory, &VmExit::cpuid(2));
        assert_eq!(cpu.vmx.vmcs12.get(Field::GUEST_IA32_PAT), saved);
    }
}

#[test]
fn host_state_is_what_the_sdm_fixes() {
    let (mut cpu, memory) = in_l2();
    cpu.debug.dr7 = 0x455;
    cpu.msrs.debugctl = 2;
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert_eq!(cpu.regs.rflags, 2);
    assert_eq!(cpu.debug.dr7, 0x400);
    assert_eq!(cpu.msrs.debugctl, 0);
    assert_eq!(cpu.sregs.cs.ar.bits(), 0xa09b);
    assert_eq!(cpu.sregs.tr.ar.bits(), 0x8b);
    assert_eq!(cpu.sregs.tr.limit, 0x67);
    assert!(!cpu.sregs.ldtr.is_usable());
    assert_eq!(cpu.sregs.gdtr.limit, 0xffff);
    assert_eq!(cpu.sregs.efer, efer::LME | efer::LMA | efer::NXE);
    // KVM's L0 leaves the segments of null selectors usable; a processor does not.
    assert!(cpu.sregs.ds.is_usable());

    let (mut cpu, memory) = in_l2();
    cpu.model = Arc::new(Model {
        personality: Personality::Sdm,
        ..support::model()
    });
    leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert!(cpu.sregs.ds.ar.contains(AccessRights::UNUSABLE));
    assert!(cpu.sregs.ss.is_usable());
}

#[test]
fn msr_lists_store_and_load() {
    let (mut cpu, memory) = in_l2();
    let list = support::FREE_PAGE;
    memory
        .write_u32(list, crate::x86::msr::IA32_KERNEL_GS_BASE)
        .unwrap();
    let vmcs12 = &mut cpu.vmx.vmcs12;
    vmcs12.set(Field::VM_EXIT_MSR_STORE_ADDR, list.0);
    vmcs12.set(Field::VM_EXIT_MSR_STORE_COUNT, 1);
    let load = L1Phys(list.0 + 16);
    memory.write_u32(load, crate::x86::msr::IA32_LSTAR).unwrap();
    memory.write_u64(L1Phys(load.0 + 8), 0x7777).unwrap();
    vmcs12.set(Field::VM_EXIT_MSR_LOAD_ADDR, load.0);
    vmcs12.set(Field::VM_EXIT_MSR_LOAD_COUNT, 1);
    cpu.msrs.kernel_gs_base = 0x5555;
    let left = leave(&mut cpu, &memory, &VmExit::cpuid(2));
    assert_eq!(left.abort, None);
    assert_eq!(memory.read_u64(L1Phys(list.0 + 8)), Ok(0x5555));
    assert_eq!(cpu.msrs.lstar, 0x7777);
}

#[test]
fn a_list_that_cannot_be_processed_aborts() {
    // Reserved word, FS base, a number that does not exist, an address outside RAM.
    let fs_base = u64::from(crate::x86::msr::IA32_FS_BASE);
    let rows = [
        (support::FREE_PAGE, 0xc000_0102 | 1 << 32),
        (support::FREE_PAGE, fs_base),
        (support::FREE_PAGE, 0x1234_5678),
        (L1Phys(0x20_0000), 0),
    ];
    for (address, entry) in rows {
        let (mut cpu, memory) = in_l2();
        let _ = memory.write_u64(address, entry);
        cpu.vmx.vmcs12.set(Field::VM_EXIT_MSR_LOAD_ADDR, address.0);
        cpu.vmx.vmcs12.set(Field::VM_EXIT_MSR_LOAD_COUNT, 1);
        let left = leave(&mut cpu, &memory, &VmExit::cpuid(2));
        assert_eq!(left.abort, Some(VmxAbort::LoadHostMsrs), "{entry:#x}");
        assert!(cpu.triple_fault_pending);
    }
}

#[test]
fn nmi_blocking_of_l1_outlives_l2() {
    for (blocked, exit, expected) in [
        (true, VmExit::cpuid(2), Interruptibility::NMI),
        (false, VmExit::cpuid(2), Interruptibility::empty()),
        (false, VmExit::nmi(), Interruptibility::NMI),
    ] {
        let (mut cpu, memory) = in_l2();
        cpu.vmx.l1_nmi_blocked = blocked;
        leave(&mut cpu, &memory, &exit);
        assert_eq!(cpu.interruptibility, expected);
    }
}

/// SDM Vol. 3C "Saving Control Registers, Debug Registers, and MSRs": the register, also where L1 owns bits of
/// it that the entry has not loaded.
#[test]
fn cr0_is_saved_as_it_is_but_under_kvm() {
    const NOT_WRITE_THROUGH: u64 = 1 << 29;
    for (personality, expected) in [(Personality::Sdm, 0), (Personality::Kvm, NOT_WRITE_THROUGH)] {
        let (mut cpu, memory) = in_l2();
        Arc::make_mut(&mut cpu.model).personality = personality;
        let wanted = cpu.vmx.vmcs12.get(Field::GUEST_CR0) | NOT_WRITE_THROUGH;
        cpu.vmx.vmcs12.set(Field::GUEST_CR0, wanted);
        cpu.vmx
            .vmcs12
            .set(Field::CR0_GUEST_HOST_MASK, NOT_WRITE_THROUGH);
        leave(&mut cpu, &memory, &VmExit::cpuid(2));
        let saved = cpu.vmx.vmcs12.get(Field::GUEST_CR0);
        assert_eq!(saved & NOT_WRITE_THROUGH, expected);
    }
}

/// SDM Vol. 3C "Architectural State Before a VM Exit", and what KVM makes of it.
#[test]
fn an_nmi_that_is_cut_short_blocks_nmis_but_under_kvm() {
    let fault = VmExit::exception(Exception::GENERAL_PROTECTION);
    let saved = |personality, exit: &VmExit| {
        let (mut cpu, memory) = in_l2();
        Arc::make_mut(&mut cpu.model).personality = personality;
        cpu.interruptibility = Interruptibility::NMI;
        cpu.injected = Event::from_information(0x8000_0202, 0, 0);
        leave(&mut cpu, &memory, exit);
        let vmcs12 = &cpu.vmx.vmcs12;
        (
            vmcs12.get(Field::GUEST_INTERRUPTIBILITY_INFO),
            vmcs12.get(Field::IDT_VECTORING_INFO_FIELD),
        )
    };
    assert_eq!(saved(Personality::Sdm, &fault), (8, 0x8000_0202));
    assert_eq!(saved(Personality::Kvm, &fault), (0, 0x8000_0202));
    // A triple fault has no IDT-vectoring information.
    let triple = VmExit::new(ExitReason::TRIPLE_FAULT);
    assert_eq!(saved(Personality::Kvm, &triple), (8, 0));
}

#[test]
fn a_debug_trap_that_waits_stays_pending() {
    let (mut cpu, memory) = in_l2();
    let trap = Exception {
        vector: Exception::DB,
        error_code: None,
        payload: 0x4000,
    };
    cpu.pending_exception = Some(trap);
    leave(&mut cpu, &memory, &VmExit::external_interrupt(None));
    assert_eq!(
        cpu.vmx.vmcs12.get(Field::GUEST_PENDING_DBG_EXCEPTIONS),
        0x4000
    );
    assert_eq!(cpu.pending_exception, None);
}

/// SDM Vol. 3C "Information About NMI Unblocking Due to IRET".
#[test]
fn nmi_unblocking_is_bit_12_of_what_the_reason_has() {
    let address = L2Phys(0x1000);
    for exit in [
        VmExit::ept_violation(0x181, address, Some(0)),
        VmExit::page_modification_log_full(address),
        VmExit::sub_page(true, address, Some(0)),
    ] {
        let noted = exit.with_nmi_unblocking();
        assert_eq!(noted.qualification, exit.qualification | 1 << 12);
    }
    let fault = VmExit::exception(Exception::GENERAL_PROTECTION).with_nmi_unblocking();
    assert_eq!(fault.interruption_information() >> 12 & 1, 1);
    let other = VmExit::ept_misconfiguration(address);
    assert_eq!(other.with_nmi_unblocking(), other);
    assert_eq!(VmExit::sub_page(false, address, None).qualification, 0);
}
