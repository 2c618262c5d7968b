//! Virtual interrupts of L2: when they are delivered and before what; the TPR threshold; posted
//! interrupts (SDM Vol. 3C "Evaluation and Delivery of Virtual Interrupts", "Posted-Interrupt
//! Processing", "VM Exits Induced by the TPR Threshold").

mod common;

use common::nest::*;
use common::virtual_apic::*;
use iced_x86::code_asm::*;
use nvmx_core::vcpu::Vcpu;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{ExitControls, PinBased, Primary, Secondary};
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{CpuState, Event, Gpr};

const OPEN: u64 = 2 | rflags::IF;

/// L2 with virtual-interrupt delivery whose handlers of these vectors call L1.
fn delivering(code: &[u8], handled: &[u8]) -> Nest {
    let mut nest = nest(
        code,
        Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_X2APIC_MODE,
    );
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
    );
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::HLT_EXITING.bits(),
    );
    for &vector in handled {
        nest.put(handler(vector), &VMCALL);
    }
    nest.set(Field::GUEST_RFLAGS, OPEN);
    nest
}

fn handler(vector: u8) -> u64 {
    HANDLERS + 64 * u64::from(vector)
}

/// A virtual interrupt is requested.
fn request(nest: &mut Nest, vector: u8) {
    nest.set_vector(0x200, vector);
    let (rvi, svi) = nest.status();
    let status = u64::from(svi) << 8 | u64::from(rvi.max(vector));
    nest.set(Field::GUEST_INTR_STATUS, status);
}

/// The address that the handler would return to.
fn return_address(nest: &mut Nest) -> u64 {
    u64::from(nest.word(nest.get(Field::GUEST_RSP)))
}

fn code(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    assemble(L2, build)
}

#[test]
fn a_requested_interrupt_is_delivered_at_entry() {
    let mut nest = delivering(&VMCALL, &[0x55]);
    request(&mut nest, 0x31);
    request(&mut nest, 0x55);
    nest.set_apic(0x80, 0x42);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(return_address(&mut nest), L2);
    assert_eq!(nest.status(), (0x31, 0x55));
    assert_eq!(nest.apic(0xa0), 0x50);
    assert!(nest.vector(0x100, 0x55) && !nest.vector(0x200, 0x55) && nest.vector(0x200, 0x31));
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 0);
}

#[test]
fn one_that_is_not_above_the_priority_waits() {
    for (vtpr, svi, delivered) in [(0x50, 0, false), (0x4f, 0, true), (0, 0x50, false)] {
        let mut nest = delivering(&VMCALL, &[0x55]);
        request(&mut nest, 0x55);
        nest.set_apic(0x80, vtpr);
        nest.set(
            Field::GUEST_INTR_STATUS,
            nest.get(Field::GUEST_INTR_STATUS) | svi << 8,
        );
        let rip = if delivered { handler(0x55) } else { L2 };
        nest.expect(reason::VMCALL, rip);
        assert_eq!(nest.status().0 == 0, delivered);
    }
}

#[test]
fn it_waits_for_rflags_if_and_the_end_of_a_shadow() {
    // STI; NOP; NOP: after the first NOP.
    let text = code(|a| {
        a.nop()?;
        a.sti()?;
        a.nop()?;
        a.nop()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(return_address(&mut nest), L2 + 3);

    // POPF has no shadow.
    let text = code(|a| {
        a.push(OPEN as i32)?;
        a.popfq()?;
        a.nop()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(return_address(&mut nest), L2 + 6);

    // Blocking by MOV SS at entry.
    let text = code(|a| {
        a.nop()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, 2);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(return_address(&mut nest), L2 + 1);
}

#[test]
fn it_wakes_the_processor_from_hlt() {
    // Already in HLT at entry.
    let mut nest = delivering(&VMCALL, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_ACTIVITY_STATE, 1);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(nest.get(Field::GUEST_ACTIVITY_STATE), 0);
    assert_eq!(return_address(&mut nest), L2);

    // STI; HLT.
    let text = code(|a| {
        a.sti()?;
        a.hlt()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.expect(reason::VMCALL, handler(0x55));
    assert_eq!(return_address(&mut nest), L2 + 2);
}

/// HLT that nothing ends but an external interrupt: the vector of L1's that does.
fn halts(mut nest: Nest) {
    nest.enable_apic();
    nest.vm.inject(Event::interrupt(0x99)).expect("taken");
    // L1's interrupts are off: it exits from L2's HLT, and stays pending.
    assert_eq!(nest.enter(), Entry::Exit(reason::EXTERNAL_INTERRUPT));
}

#[test]
fn hlt_goes_on_where_no_virtual_interrupt_can_be_delivered() {
    let text = code(|a| a.hlt());
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_RFLAGS, 2);
    halts(nest);
    let mut nest = delivering(&text, &[0x55]);
    request(&mut nest, 0x55);
    nest.set_apic(0x80, 0x50);
    halts(nest);
}

#[test]
fn interrupt_window_exiting_takes_its_place() {
    let mut nest = delivering(&VMCALL, &[0x55]);
    request(&mut nest, 0x55);
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::INTERRUPT_WINDOW_EXITING.bits(),
    );
    nest.expect(reason::INTERRUPT_WINDOW, L2);
    assert_eq!(nest.status(), (0x55, 0));
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::INTERRUPT_WINDOW_EXITING.bits(),
    );
    nest.expect(reason::VMCALL, handler(0x55));
}

/// What L2 does to its APIC, by x2APIC MSR: the register, its value.
fn wrmsr(a: &mut CodeAssembler, number: u32, value: u32) -> Result<(), IcedError> {
    a.mov(ecx, number)?;
    a.mov(eax, value)?;
    a.xor(edx, edx)?;
    a.wrmsr()
}

#[test]
fn writes_of_the_task_priority_open_the_way() {
    type Build = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let writes: [(&str, Secondary, Build); 3] = [
        ("MOV to CR8", Secondary::empty(), |a| a.mov(cr8, rdx)),
        ("WRMSR", Secondary::VIRTUALIZE_X2APIC_MODE, |a| {
            a.mov(ecx, 0x808)?;
            a.xor(eax, eax)?;
            a.wrmsr()
        }),
        ("store", Secondary::VIRTUALIZE_APIC_ACCESSES, |a| {
            a.mov(dword_ptr(ACCESS + 0x80), edx)
        }),
    ];
    for (name, secondary, write) in writes {
        let text = code(|a| {
            a.xor(edx, edx)?;
            write(a)?;
            a.vmcall()
        });
        let mut nest = delivering(&text, &[0x55]);
        nest.set(
            Field::SECONDARY_VM_EXEC_CONTROL,
            (secondary | Secondary::VIRTUAL_INTERRUPT_DELIVERY)
                .bits()
                .into(),
        );
        // The threshold does not count with virtual-interrupt delivery.
        nest.set(Field::TPR_THRESHOLD, 0xff);
        request(&mut nest, 0x55);
        nest.set_apic(0x80, 0x60);
        assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL), "{name}");
        assert_eq!(nest.get(Field::GUEST_RIP), handler(0x55), "{name}");
        let behind = L2 + text.len() as u64 - 3;
        assert_eq!(return_address(&mut nest), behind, "{name}");
        assert_eq!((nest.apic(0x80), nest.apic(0xa0)), (0, 0x50), "{name}");
    }
}

#[test]
fn self_ipis_and_eois() {
    // Two IPIs to itself, the lower one first; handlers that end by EOI.
    let text = code(|a| {
        wrmsr(a, 0x83f, 0x31)?;
        a.mov(dword_ptr(ACCESS + 0x300), 1 << 18 | 0x61)?;
        a.sti()?;
        a.nop()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[]);
    nest.set(Field::GUEST_RFLAGS, 2);
    // Each handler writes its vector and EOI, by MSR.
    for vector in [0x31_u8, 0x61] {
        let text = assemble(handler(vector), |a| {
            a.shl(rbx, 8)?;
            a.or(rbx, i32::from(vector))?;
            wrmsr(a, 0x80b, 0)?;
            a.iretq()
        });
        nest.put(handler(vector), &text);
    }
    // By MSR only: the store exits, and L1 takes the command over.
    assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL));
    assert_eq!(nest.gpr(Gpr::Rbx), 0x31);
    assert_eq!(nest.status(), (0, 0));
    assert_eq!(nest.word(ACCESS + 0x300), 1 << 18 | 0x61);

    // Now with the access page in place of the MSRs.
    let text = code(|a| {
        a.mov(dword_ptr(ACCESS + 0x300), 1 << 18 | 0x31)?;
        a.mov(dword_ptr(ACCESS + 0x300), 1 << 18 | 0x61)?;
        a.sti()?;
        a.nop()?;
        a.vmcall()
    });
    let mut nest = delivering(&text, &[]);
    nest.set(
        Field::SECONDARY_VM_EXEC_CONTROL,
        (Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_APIC_ACCESSES)
            .bits()
            .into(),
    );
    nest.set(Field::GUEST_RFLAGS, 2);
    for vector in [0x31_u8, 0x61] {
        let text = assemble(handler(vector), |a| {
            a.shl(rbx, 8)?;
            a.or(rbx, i32::from(vector))?;
            a.mov(dword_ptr(ACCESS + 0xb0), 0)?;
            a.iretq()
        });
        nest.put(handler(vector), &text);
    }
    assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL));
    // The higher one first. The lower one waits for its end, and for the end of its handler.
    assert_eq!(nest.gpr(Gpr::Rbx), 0x6131);
    assert_eq!(nest.status(), (0, 0));
    assert_eq!((nest.apic(0xa0), nest.apic(0xb0)), (0, 0));
}

#[test]
fn an_eoi_exits_behind_the_instruction() {
    let mut nest = delivering(&VMCALL, &[]);
    let eoi = assemble(handler(0x55), |a| {
        wrmsr(a, 0x80b, 0)?;
        a.iretq()
    });
    nest.put(handler(0x55), &eoi);
    nest.set(Field::EOI_EXIT_BITMAP1, 1 << (0x55 - 0x40));
    request(&mut nest, 0x55);
    request(&mut nest, 0x41);
    let behind = handler(0x55) + eoi.len() as u64 - 2;
    nest.expect(reason::VIRTUALIZED_EOI, behind);
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x55);
    assert_eq!(nest.status(), (0x41, 0));
    assert_eq!(nest.apic(0xa0), 0);
    assert!(!nest.vector(0x100, 0x55));
}

#[test]
fn nmis_go_before_and_external_interrupts_after_it() {
    // An NMI that exits.
    let mut nest = delivering(&VMCALL, &[0x55]);
    nest.enable_apic();
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::NMI_EXITING.bits(),
    );
    request(&mut nest, 0x55);
    nest.vm.inject(Event::NMI).expect("taken");
    nest.vm.inject(Event::interrupt(0x99)).expect("taken");
    // Blocked in L1, the NMI waits for L2.
    let mut events = nest.state().events.expect("events");
    events.nmi_masked = true;
    nest.set_state(CpuState {
        events: Some(events),
        ..CpuState::default()
    });
    nest.expect(reason::EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 1 << 31 | 0x202);
    assert_eq!(nest.status(), (0x55, 0));
    nest.expect(reason::EXTERNAL_INTERRUPT, handler(0x55));
    assert_eq!(nest.status(), (0, 0x55));
    assert_eq!(return_address(&mut nest), L2);
}

#[test]
fn a_fault_of_its_delivery_reports_the_vector() {
    let mut nest = delivering(&VMCALL, &[]);
    request(&mut nest, 0x55);
    nest.set(Field::GUEST_IDTR_LIMIT, 0x1ff);
    nest.on(Field::EXCEPTION_BITMAP, 1 << 13);
    nest.expect(reason::EXCEPTION, L2);
    assert_eq!(nest.get(Field::IDT_VECTORING_INFO_FIELD), 1 << 31 | 0x55);
    // It is in service.
    assert_eq!(nest.status(), (0, 0x55));
}

#[test]
fn the_threshold_exits_after_entry_and_injection() {
    let enter = |change: &dyn Fn(&mut Nest), rip| {
        let mut nest = nest(&VMCALL, Secondary::VIRTUALIZE_APIC_ACCESSES);
        nest.set(Field::TPR_THRESHOLD, 5);
        nest.set_apic(0x80, 0x40);
        change(&mut nest);
        nest.expect(reason::TPR_BELOW_THRESHOLD, rip);
        nest
    };
    enter(&|_| {}, L2);
    // It is blocked by nothing.
    enter(&|nest| nest.set(Field::GUEST_INTERRUPTIBILITY_INFO, 2), L2);
    // It wakes from HLT.
    enter(&|nest| nest.set(Field::GUEST_ACTIVITY_STATE, 1), L2);
    // Injection first.
    let inject = |nest: &mut Nest| nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, 1 << 31 | 0x30);
    enter(
        &|nest| {
            nest.set(Field::GUEST_RFLAGS, OPEN);
            inject(nest);
        },
        handler(0x30),
    );
    // It goes before the monitor trap, pending debug exceptions, the timer and the windows.
    let nest = enter(
        &|nest| {
            nest.set(Field::GUEST_RFLAGS, OPEN);
            nest.set(Field::GUEST_PENDING_DBG_EXCEPTIONS, 1 << 14);
            nest.on(
                Field::CPU_BASED_VM_EXEC_CONTROL,
                (Primary::MONITOR_TRAP_FLAG | Primary::INTERRUPT_WINDOW_EXITING).bits(),
            );
            nest.on(
                Field::PIN_BASED_VM_EXEC_CONTROL,
                PinBased::ACTIVATE_PREEMPTION_TIMER.bits(),
            );
        },
        L2,
    );
    assert_eq!(nest.get(Field::GUEST_PENDING_DBG_EXCEPTIONS), 1 << 14);
    // It does not where L2 waits for SIPI.
    let mut nest = nest_with_threshold(Secondary::VIRTUALIZE_APIC_ACCESSES);
    nest.set(Field::GUEST_ACTIVITY_STATE, 3);
    nest.enter_for(1000);
    assert!(nest.vm.nested_state().expect("nested state").guest_mode());
    // Without "virtualize APIC accesses" it is a control that is wrong.
    let mut nest = nest_with_threshold(Secondary::empty());
    assert_eq!(nest.enter(), Entry::FailValid(7));
    // With virtual-interrupt delivery it is nothing.
    let mut nest = nest_with_threshold(
        Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_APIC_ACCESSES,
    );
    assert_eq!(nest.enter(), Entry::Exit(reason::VMCALL));
}

fn nest_with_threshold(secondary: Secondary) -> Nest {
    let mut nest = nest(&VMCALL, secondary);
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::EXTERNAL_INTERRUPT_EXITING.bits(),
    );
    nest.set(Field::TPR_THRESHOLD, 5);
    nest.set_apic(0x80, 0x40);
    nest
}

#[test]
fn the_threshold_exits_behind_the_write() {
    for (text, secondary) in [
        (code(|a| a.mov(cr8, rax)), Secondary::empty()),
        (
            code(|a| a.mov(dword_ptr(rbx), eax)),
            Secondary::VIRTUALIZE_APIC_ACCESSES,
        ),
    ] {
        let mut nest = nest(&text, secondary);
        nest.set(Field::TPR_THRESHOLD, 5);
        nest.set_apic(0x80, 0x90);
        nest.set_gpr(Gpr::Rbx, ACCESS + 0x80);
        let value = if secondary.is_empty() { 4 } else { 0x4f };
        nest.set_gpr(Gpr::Rax, value);
        // It goes before the monitor trap.
        nest.on(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::MONITOR_TRAP_FLAG.bits(),
        );
        nest.expect(reason::TPR_BELOW_THRESHOLD, L2 + text.len() as u64);
        assert_eq!(nest.apic(0x80) >> 4, 4);
    }
}

/// Posted interrupts with notification vector F2H.
fn posting(code: &[u8], handled: &[u8], posted: &[u8]) -> Nest {
    let mut nest = delivering(code, handled);
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        PinBased::PROCESS_POSTED_INTERRUPTS.bits(),
    );
    nest.on(
        Field::VM_EXIT_CONTROLS,
        ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits(),
    );
    nest.set(Field::POSTED_INTR_NV, 0xf2);
    nest.set(Field::POSTED_INTR_DESC_ADDR, DESCRIPTOR);
    nest.enable_apic();
    let mut descriptor = [0; 64];
    descriptor[32] = 1;
    for vector in posted {
        descriptor[usize::from(vector / 8)] |= 1 << (vector % 8);
    }
    nest.put(DESCRIPTOR, &descriptor);
    nest
}

#[test]
fn a_notification_takes_posted_interrupts_without_an_exit() {
    let mut nest = posting(&VMCALL, &[0x61], &[0x31, 0x61]);
    nest.vm.inject(Event::interrupt(0xf2)).expect("taken");
    nest.expect(reason::VMCALL, handler(0x61));
    assert_eq!(nest.status(), (0x31, 0x61));
    assert_eq!(return_address(&mut nest), L2);
    assert_eq!(
        (nest.word(DESCRIPTOR + 32), nest.word(DESCRIPTOR + 12)),
        (0, 0)
    );
    // The notification is dismissed: neither requested nor in service.
    assert_eq!((nest.l1_apic(0x170), nest.l1_apic(0x270)), (0, 0));

    // RFLAGS.IF blocks the delivery, not the processing.
    let mut nest = posting(&VMCALL, &[], &[0x61]);
    nest.set(Field::GUEST_RFLAGS, 2);
    nest.vm.inject(Event::interrupt(0xf2)).expect("taken");
    nest.expect(reason::VMCALL, L2);
    assert_eq!(nest.status(), (0x61, 0));
}

#[test]
fn a_notification_reaches_a_halted_l2() {
    let text = code(|a| a.hlt());
    let mut nest = posting(&text, &[0x61], &[0x61]);
    nest.vm.inject(Event::interrupt(0xf2)).expect("taken");
    nest.expect(reason::VMCALL, handler(0x61));
    assert_eq!(return_address(&mut nest), L2);
    // Nothing posted: it sleeps on, until another vector exits.
    let mut nest = posting(&text, &[], &[]);
    nest.vm.inject(Event::interrupt(0xf2)).expect("taken");
    nest.vm.inject(Event::interrupt(0x41)).expect("taken");
    assert_eq!(nest.enter(), Entry::Exit(reason::EXTERNAL_INTERRUPT));
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 1 << 31 | 0x41);
    assert_eq!(nest.word(DESCRIPTOR + 32), 0);
}

#[test]
fn another_vector_exits() {
    let mut nest = posting(&VMCALL, &[], &[0x61]);
    nest.vm.inject(Event::interrupt(0xf3)).expect("taken");
    nest.expect(reason::EXTERNAL_INTERRUPT, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), 1 << 31 | 0xf3);
    assert_eq!(nest.word(DESCRIPTOR + 32), 1);
}

#[test]
fn an_ipi_of_l2_itself_notifies() {
    // L2 has L1's local APIC to itself where nothing of it is virtual: a self-IPI through its page.
    let text = code(|a| {
        a.mov(ebx, 0xfee0_0300_u32)?;
        a.mov(dword_ptr(rbx), 1 << 18 | 0xf2)?;
        a.nop()?;
        a.vmcall()
    });
    let mut nest = posting(&text, &[0x61], &[0x61]);
    // The 2-MiB page at the APIC, in the fourth GiB.
    nest.put(common::bare::PAGING + 0x1018, &(EPT | 7).to_le_bytes());
    nest.put(EPT + 8 * 0x1f7, &0xfee0_0083_u64.to_le_bytes());
    nest.expect(reason::VMCALL, handler(0x61));
    assert_eq!(nest.status(), (0, 0x61));
}
