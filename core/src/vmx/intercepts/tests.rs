//! One row a rule: controls, action, exit with its qualification.

use super::*;
use crate::cpu::{Cpu, Interruptibility};
use crate::memory::{GuestMemory, VecMemory};
use crate::vmx::exit::ExitReason;
use crate::vmx::exit::qualification::IoAccess;
use crate::x86::control::{cr0, cr4, rflags};
use crate::x86::{Event, EventKind, Exception, Gpr};

const NONE: Intercepts = Intercepts {
    pin: PinBased::empty(),
    primary: Primary::empty(),
    secondary: Secondary::empty(),
    exit: ExitControls::empty(),
    exceptions: 0,
    page_fault_mask: 0,
    page_fault_match: 0,
    io_bitmaps: [L1Phys(0x1000), L1Phys(0x2000)],
    msr_bitmap: L1Phys(0x3000),
    cr0_mask: 0,
    cr0_shadow: 0,
    cr4_mask: 0,
    cr4_shadow: 0,
    cr3_targets: [0; 4],
    cr3_target_count: 0,
    xss_bitmap: 0,
    encls_bitmap: 0,
    pause_gap_and_window: [0; 2],
};

fn primary(primary: Primary) -> Intercepts {
    Intercepts { primary, ..NONE }
}

fn secondary(secondary: Secondary) -> Intercepts {
    Intercepts { secondary, ..NONE }
}

const OPERAND: MemoryOperand = MemoryOperand {
    base: Some(Gpr::Rbx),
    index: Some(Gpr::R9),
    scale: 4,
    segment: SegmentRegister::Ds,
    address_size: OperandSize::Bits64,
    displacement: 0xffff_ffff_ffff_fff0,
};

#[test]
fn secondary_controls_count_only_where_activated() {
    let mut vmcs12 = Vmcs12::default();
    vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, 1 << 6);
    assert_eq!(Intercepts::new(&vmcs12).wbinvd(2), None);
    vmcs12.set(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << 31 | 1 << 7);
    let intercepts = Intercepts::new(&vmcs12);
    assert_eq!(
        intercepts.wbinvd(2).map(|e| e.reason),
        Some(ExitReason::WBINVD)
    );
    assert_eq!(
        intercepts.hlt(1).map(|e| e.instruction_length),
        Some(Some(1))
    );
}

#[test]
fn simple_instructions() {
    type Ask = fn(&Intercepts) -> Option<ExitReason>;
    let rows: &[(Intercepts, Ask, ExitReason)] = &[
        (
            primary(Primary::HLT_EXITING),
            |i| i.hlt(1).map(|e| e.reason),
            ExitReason::HLT,
        ),
        (
            primary(Primary::RDTSC_EXITING),
            |i| i.rdtsc(2).map(|e| e.reason),
            ExitReason::RDTSC,
        ),
        (
            primary(Primary::RDPMC_EXITING),
            |i| i.rdpmc(2).map(|e| e.reason),
            ExitReason::RDPMC,
        ),
        (
            primary(Primary::MONITOR_EXITING),
            |i| i.monitor(3).map(|e| e.reason),
            ExitReason::MONITOR,
        ),
        (
            primary(Primary::MWAIT_EXITING),
            |i| i.mwait(true, 3).map(|e| e.reason),
            ExitReason::MWAIT,
        ),
        (
            primary(Primary::PAUSE_EXITING),
            |i| {
                i.pause(0, 0, &mut PauseLoop::default(), 2)
                    .map(|e| e.reason)
            },
            ExitReason::PAUSE,
        ),
        (
            primary(Primary::INVLPG_EXITING),
            |i| i.invlpg(5, 3).map(|e| e.reason),
            ExitReason::INVLPG,
        ),
        (
            primary(Primary::MOV_DR_EXITING),
            |i| i.mov_dr(7, true, Gpr::Rax, 3).map(|e| e.reason),
            ExitReason::MOV_DR,
        ),
        (
            secondary(Secondary::WBINVD_EXITING),
            |i| i.wbinvd(2).map(|e| e.reason),
            ExitReason::WBINVD,
        ),
        (
            secondary(Secondary::RDRAND_EXITING),
            |i| i.rdrand(Gpr::Rax, OperandSize::Bits32, 3).map(|e| e.reason),
            ExitReason::RDRAND,
        ),
        (
            secondary(Secondary::RDSEED_EXITING),
            |i| i.rdseed(Gpr::Rax, OperandSize::Bits32, 3).map(|e| e.reason),
            ExitReason::RDSEED,
        ),
    ];
    for (intercepts, ask, expected) in rows {
        assert_eq!(ask(intercepts), Some(*expected));
        assert_eq!(ask(&NONE), None, "{expected:?}");
    }
    assert_eq!(NONE.cpuid(2).reason, ExitReason::CPUID);
    assert_eq!(NONE.invd(2).reason, ExitReason::INVD);
    assert_eq!(NONE.xsetbv(3).reason, ExitReason::XSETBV);
}

#[test]
fn what_l1_has_not_enabled_is_undefined() {
    let rdtsc = Primary::RDTSC_EXITING;
    let undefined = Err(Exception::UNDEFINED);
    assert_eq!(primary(rdtsc).rdtscp(3), undefined);
    assert_eq!(NONE.invpcid(&OPERAND, Gpr::Rcx, 5), undefined);
    assert_eq!(NONE.tpause(Gpr::Rcx, 4), undefined);
    assert_eq!(NONE.xsaves(1, &OPERAND, 4), undefined);
    assert_eq!(NONE.rdpid(), Err(Exception::UNDEFINED));
    assert_eq!(secondary(Secondary::ENABLE_RDTSCP).rdtscp(3), Ok(None));
    let both = Intercepts {
        secondary: Secondary::ENABLE_RDTSCP,
        ..primary(rdtsc)
    };
    assert_eq!(both.rdtscp(3).unwrap().unwrap().reason, ExitReason::RDTSCP);
    let xss = Intercepts {
        secondary: Secondary::ENABLE_XSAVES,
        xss_bitmap: 1 << 8,
        ..NONE
    };
    assert_eq!(xss.xsaves(1 << 11, &OPERAND, 4), Ok(None));
    assert!(xss.xrstors(1 << 8, &OPERAND, 4).unwrap().is_some());
}

#[test]
fn moves_to_control_registers() {
    let owner = Intercepts {
        cr0_mask: cr0::PE | cr0::TS | cr0::NE,
        cr0_shadow: cr0::PE,
        cr4_mask: cr4::VMXE,
        cr4_shadow: 0,
        cr3_targets: [0x5000, 0x6000, 0x7000, 0],
        cr3_target_count: 2,
        primary: Primary::CR3_LOAD_EXITING | Primary::CR8_LOAD_EXITING,
        ..NONE
    };
    let rows = [
        (0, cr0::PE | cr0::PG, false),
        (0, cr0::PE | cr0::TS, true),
        (0, 0, true),
        (3, 0x5000, false),
        (3, 0x6000, false),
        (3, 0x7000, true), // beyond the count
        (4, cr4::PAE, false),
        (4, cr4::VMXE, true),
        (8, 0, true),
    ];
    for (cr, value, exits) in rows {
        let exit = owner.mov_to_cr(cr, Gpr::R11, value, 3);
        assert_eq!(exit.is_some(), exits, "CR{cr} {value:#x}");
        if let Some(exit) = exit {
            assert_eq!(exit.reason, ExitReason::CR_ACCESS);
            assert_eq!(exit.qualification, u64::from(cr) | 11 << 8);
        }
        assert_eq!(NONE.mov_to_cr(cr, Gpr::R11, value, 3), None);
    }
    let reader = primary(Primary::CR3_STORE_EXITING);
    let exit = reader.mov_from_cr(3, Gpr::Rdx, 3).unwrap();
    assert_eq!(exit.qualification, 3 | 1 << 4 | 2 << 8);
    assert_eq!(reader.mov_from_cr(8, Gpr::Rdx, 3), None);
    assert_eq!(reader.mov_from_cr(0, Gpr::Rdx, 3), None);
    // Reads and merges.
    assert_eq!(owner.visible_cr0(cr0::NE | cr0::PG), cr0::PE | cr0::PG);
    assert_eq!(
        owner.merged_cr0(cr0::NE | cr0::PE, cr0::PG),
        cr0::NE | cr0::PE | cr0::PG
    );
    assert_eq!(owner.visible_cr4(cr4::VMXE | cr4::PAE), cr4::PAE);
    assert_eq!(owner.merged_cr4(cr4::VMXE, cr4::PAE), cr4::VMXE | cr4::PAE);
}

#[test]
fn lmsw_and_clts() {
    // Mask, shadow, source, exits.
    let rows = [
        (0, 0, 0xf, false),
        (cr0::PE, 0, 1, true),
        (cr0::PE, cr0::PE, 1, false),
        (cr0::PE, cr0::PE, 0, false), // LMSW cannot clear PE
        (cr0::TS, 0, 8, true),
        (cr0::TS, cr0::TS, 0, true),
        (cr0::TS, cr0::TS, 8, false),
        (cr0::NE, 0, 0x20, false), // not among the four bits
    ];
    for (cr0_mask, cr0_shadow, source, exits) in rows {
        let intercepts = Intercepts {
            cr0_mask,
            cr0_shadow,
            ..NONE
        };
        let exit = intercepts.lmsw(source, None, 3);
        assert_eq!(
            exit.is_some(),
            exits,
            "{cr0_mask:#x} {cr0_shadow:#x} {source:#x}"
        );
    }
    let ts = Intercepts {
        cr0_mask: cr0::TS,
        cr0_shadow: cr0::TS,
        ..NONE
    };
    let exit = ts.lmsw(0x1230, Some(0x77), 3).unwrap();
    assert_eq!(exit.qualification, 3 << 4 | 1 << 6 | 0x1230 << 16);
    assert_eq!(exit.guest_linear, Some(0x77));
    assert!(matches!(ts.clts(2), Clts::Exit(e) if e.qualification == 2 << 4));
    let shown_clear = Intercepts {
        cr0_shadow: 0,
        ..ts
    };
    assert_eq!(shown_clear.clts(2), Clts::Nothing);
    assert_eq!(NONE.clts(2), Clts::Clear);
}

#[test]
fn ports() {
    let memory = VecMemory::new(0x5000);
    // Ports 0x3f8, 0x7fff, 0x8000.
    memory.write(L1Phys(0x1000 + 0x7f), &[1]).unwrap();
    memory.write(L1Phys(0x1fff), &[0x80]).unwrap();
    memory.write(L1Phys(0x2000), &[1]).unwrap();
    let maps = primary(Primary::USE_IO_BITMAPS | Primary::UNCONDITIONAL_IO_EXITING);
    let rows = [
        (0x3f8, 1, true),
        (0x3f7, 1, false),
        (0x3f7, 2, true),
        (0x3f5, 4, true),
        (0x3f4, 4, false),
        (0x3f9, 4, false),
        (0x7ffe, 2, true),
        (0x7ffd, 2, false),
        (0x8000, 1, true),
        (0x8001, 4, false),
        (0xffff, 1, false),
        (0xffff, 2, true), // wraps around
        (0xfffd, 4, true),
    ];
    for (port, size, exits) in rows {
        assert_eq!(
            maps.wants_port(&memory, port, size),
            exits,
            "{port:#x}/{size}"
        );
        assert!(!NONE.wants_port(&memory, port, size));
        let always = primary(Primary::UNCONDITIONAL_IO_EXITING);
        assert!(always.wants_port(&memory, port, size));
    }
    let nowhere = Intercepts {
        io_bitmaps: [L1Phys(1 << 40); 2],
        ..maps
    };
    assert!(nowhere.wants_port(&memory, 0, 1));
    let access = IoAccess {
        port: 0x3f8,
        size: 1,
        is_in: true,
        is_string: true,
        is_rep: true,
        is_immediate: false,
    };
    let information = string_io_information(OperandSize::Bits64, None);
    let exit = maps
        .io(&memory, access, Some((0x1234, information)), 2)
        .unwrap();
    assert_eq!(exit.qualification, 0x3f8 << 16 | 7 << 3);
    assert_eq!(exit.guest_linear, Some(0x1234));
    assert_eq!(exit.instruction_information, Some(0x100));
}

#[test]
fn msrs() {
    let memory = VecMemory::new(0x4000);
    let set = |offset: u64, bit: u8| memory.write(L1Phys(0x3000 + offset), &[1 << bit]).unwrap();
    set(0x10 / 8, 0); // read 0x10
    set(1024 + 0x80 / 8, 0); // read 0xc0000080
    set(2048 + 0x1fff / 8, 7); // write 0x1fff
    set(3072 + 0x102 / 8, 2); // write 0xc0000102
    let maps = primary(Primary::USE_MSR_BITMAPS);
    let rows = [
        (0x10, true, false),
        (0x1fff, false, true),
        (0x11, false, false),
        (0xc000_0080, true, false),
        (0xc000_0102, false, true),
        (0x2000, true, true),
        (0xbfff_ffff, true, true),
        (0xc000_2000, true, true),
        (0x4b56_4d01, true, true),
    ];
    for (number, reads, writes) in rows {
        assert_eq!(
            maps.rdmsr(&memory, number, 2).is_some(),
            reads,
            "{number:#x}"
        );
        assert_eq!(
            maps.wrmsr(&memory, number, 2).is_some(),
            writes,
            "{number:#x}"
        );
        assert!(
            NONE.wants_msr(&memory, number, false),
            "without bitmaps all exit"
        );
    }
    assert_eq!(
        maps.wrmsr(&memory, 0x1fff, 2).unwrap().reason,
        ExitReason::WRMSR
    );
}

#[test]
fn exceptions() {
    let pf = Exception::PF;
    // Bitmap, mask, match, vector, error code, exits.
    let rows = [
        (1 << 6, 0, 0, Exception::UD, None, true),
        (1 << 6, 0, 0, Exception::GP, Some(0), false),
        (1 << 14, 0, 0, pf, Some(2), true),
        (0, 0, 0, pf, Some(2), false),
        (1 << 14, 1, 1, pf, Some(2), false),
        (1 << 14, 1, 1, pf, Some(3), true),
        (0, 1, 1, pf, Some(2), true),
        (0, 1, 1, pf, Some(3), false),
        // KVM's way to take none: a match that never is, with bit 14.
        (1 << 14, 0, 1, pf, Some(3), false),
    ];
    for (exceptions, page_fault_mask, page_fault_match, vector, error_code, exits) in rows {
        let intercepts = Intercepts {
            exceptions,
            page_fault_mask,
            page_fault_match,
            ..NONE
        };
        assert_eq!(intercepts.wants_exception(vector, error_code), exits);
    }
    let all = Intercepts {
        exceptions: u32::MAX,
        ..NONE
    };
    let exit = all.exception(Exception::page_fault(2, 0x1234)).unwrap();
    assert_eq!(
        (exit.qualification, exit.interruption_information()),
        (0x1234, 0x8000_0b0e)
    );
    let int3 = Event {
        kind: EventKind::SoftwareException,
        vector: 3,
        error_code: None,
        instruction_length: 1,
        payload: 0,
    };
    assert_eq!(
        all.event(&int3).unwrap().interruption_information(),
        0x8000_0603
    );
    let int_n = Event {
        kind: EventKind::SoftwareInterrupt,
        ..int3
    };
    assert_eq!(all.event(&int_n), None);
    assert_eq!(
        all.event(&Event::NMI),
        None,
        "the bitmap says nothing of NMIs"
    );
    let pins = Intercepts {
        pin: PinBased::NMI_EXITING | PinBased::EXTERNAL_INTERRUPT_EXITING,
        ..NONE
    };
    assert_eq!(
        pins.event(&Event::NMI).unwrap().interruption_information(),
        0x8000_0202
    );
    assert!(pins.wants_external_interrupts() && !pins.acknowledges_interrupts());
}

#[test]
fn windows() {
    let wants = primary(Primary::INTERRUPT_WINDOW_EXITING | Primary::NMI_WINDOW_EXITING);
    let (sti, mov_ss, nmi) = (
        Interruptibility::STI,
        Interruptibility::MOV_SS,
        Interruptibility::NMI,
    );
    let none = Interruptibility::empty();
    let rows = [
        (rflags::IF, none, true, true),
        (0, none, false, true),
        (rflags::IF, sti, false, true),
        (rflags::IF, mov_ss, false, false),
        (rflags::IF, nmi, true, false),
    ];
    for (flags, blocked, interrupt, nmi) in rows {
        let mut cpu = Cpu::default();
        cpu.regs.rflags = flags;
        cpu.interruptibility = blocked;
        assert_eq!(
            wants.interrupt_window(&cpu).is_some(),
            interrupt,
            "{blocked:?}"
        );
        assert_eq!(wants.nmi_window(&cpu).is_some(), nmi, "{blocked:?}");
        assert_eq!(NONE.interrupt_window(&cpu), None);
        assert_eq!(NONE.nmi_window(&cpu), None);
    }
}

#[test]
fn instruction_information_formats() {
    let bits = 2 | 2 << 7 | 3 << 15 | 9 << 18 | 3 << 23;
    let flat = MemoryOperand {
        base: None,
        index: None,
        scale: 8,
        segment: SegmentRegister::Gs,
        address_size: OperandSize::Bits32,
        displacement: 0,
    };
    let rows = [
        (vmcs_pointer_information(&OPERAND), bits),
        (
            vmcs_pointer_information(&flat),
            1 << 7 | 5 << 15 | 1 << 22 | 1 << 27,
        ),
        (invalidate_information(&OPERAND, Gpr::Rsi), bits | 6 << 28),
        (
            vmcs_access_information(Gpr::R15, Err(&OPERAND)),
            bits | 15 << 28,
        ),
        (
            vmcs_access_information(Gpr::Rax, Ok(Gpr::Rdi)),
            7 << 3 | 1 << 10,
        ),
        (
            descriptor_table_information(
                DescriptorTableInstruction::Lidt,
                &OPERAND,
                OperandSize::Bits32,
            ),
            bits | 1 << 11 | 3 << 28,
        ),
        (
            system_segment_information(SystemSegmentInstruction::Ltr, Ok(Gpr::Rcx)),
            1 << 3 | 1 << 10 | 3 << 28,
        ),
        (
            system_segment_information(SystemSegmentInstruction::Str, Err(&OPERAND)),
            bits | 1 << 28,
        ),
        (
            random_information(Gpr::Rdx, OperandSize::Bits64),
            2 << 3 | 2 << 11,
        ),
        (user_wait_information(Gpr::Rbx), 3 << 3),
        (
            string_io_information(OperandSize::Bits16, Some(SegmentRegister::Fs)),
            4 << 15,
        ),
    ];
    for (i, (value, expected)) in rows.into_iter().enumerate() {
        assert_eq!(value, expected, "row {i}: {value:#x}");
    }
    let dt = secondary(Secondary::DESCRIPTOR_TABLE_EXITING);
    let exit = dt
        .descriptor_table(
            DescriptorTableInstruction::Sgdt,
            &OPERAND,
            OperandSize::Bits64,
            4,
        )
        .unwrap();
    assert_eq!(exit.qualification, OPERAND.displacement);
    let exit = dt
        .system_segment(SystemSegmentInstruction::Sldt, Ok(Gpr::Rax), 3)
        .unwrap();
    assert_eq!(
        (exit.reason, exit.qualification),
        (ExitReason::LDTR_OR_TR_ACCESS, 0)
    );
}

#[test]
fn task_priority_shadow() {
    let shadow = primary(Primary::USE_TPR_SHADOW);
    assert_eq!((shadow.cr8(), NONE.cr8()), (Cr8::TprShadow, Cr8::LocalApic));
}

#[test]
fn encls_asks_the_bitmap_whose_last_bit_is_shared() {
    let intercepts = Intercepts {
        encls_bitmap: 1 << 63 | 1 << 4,
        ..secondary(Secondary::ENABLE_ENCLS_EXITING)
    };
    let rows = [
        (4, true),
        (5, false),
        (63, true),
        (64, true),
        (u32::MAX, true),
    ];
    for (leaf, exits) in rows {
        assert_eq!(intercepts.encls(leaf, 3).is_some(), exits, "{leaf}");
    }
    let off = Intercepts {
        encls_bitmap: u64::MAX,
        ..NONE
    };
    assert_eq!(off.encls(4, 3), None);
}
