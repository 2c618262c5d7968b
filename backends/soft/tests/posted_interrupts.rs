//! Interrupts that one processor posts to L2 on another (SDM Vol. 3C "Posted-Interrupt Processing").

mod common;

use common::bare::{MEMORY, Mode, Random, STACK, put, state};
use common::nest::*;
use common::virtual_apic::*;
use iced_x86::IcedError;
use iced_x86::code_asm::*;
use nvmx_core::cpu::Personality;
use nvmx_core::vcpu::{Budget, Exit, Vm, VmConfig};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{ExitControls, PinBased, Primary, Secondary, Tertiary};
use nvmx_core::x86::control::rflags;
use nvmx_core::x86::{CpuState, Gpr, MpState};
use nvmx_soft::SoftVm;

/// Where the two leave messages for each other.
const MAILBOX: u64 = 0x3000;
/// Code of the second processor.
const SENDER: u64 = 0x1_8000;
const NOTIFICATION: u32 = 0xf2;
/// The vector posted, and its double word and bit in the descriptor.
const VECTOR: u8 = 0x61;
const REQUEST: (u64, u32) = (DESCRIPTOR + 12, 1 << 1);

fn wrmsr(a: &mut CodeAssembler, msr: u32, value: u64) -> Result<(), IcedError> {
    a.mov(ecx, msr)?;
    a.mov(edx, (value >> 32) as u32)?;
    a.mov(eax, value as u32)?;
    a.wrmsr()
}

/// Waits for L2's word, posts the vector, sends the notification and sleeps.
fn sender() -> Vec<u8> {
    assemble(SENDER, |a| {
        // x2APIC mode, enabled by software.
        wrmsr(a, 0x1b, 0xfee0_0c00)?;
        wrmsr(a, 0x80f, 0x1ff)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.pause()?;
        a.cmp(dword_ptr(MAILBOX), 1)?;
        a.jne(wait)?;
        a.lock().or(dword_ptr(REQUEST.0), REQUEST.1)?;
        a.lock().or(dword_ptr(DESCRIPTOR + 32), 1)?;
        // Fixed, asserted, to processor 0.
        wrmsr(a, 0x830, 0x4000 | u64::from(NOTIFICATION))?;
        a.hlt()
    })
}

/// L2 takes what is posted at [`DESCRIPTOR`], and calls L1 from the handler of [`VECTOR`].
fn take_posted(nest: &mut Nest) {
    nest.on(
        Field::PIN_BASED_VM_EXEC_CONTROL,
        (PinBased::EXTERNAL_INTERRUPT_EXITING | PinBased::PROCESS_POSTED_INTERRUPTS).bits(),
    );
    nest.on(
        Field::VM_EXIT_CONTROLS,
        ExitControls::ACKNOWLEDGE_INTERRUPT_ON_EXIT.bits(),
    );
    nest.set(Field::POSTED_INTR_NV, NOTIFICATION.into());
    nest.set(Field::POSTED_INTR_DESC_ADDR, DESCRIPTOR);
    nest.set(Field::GUEST_RFLAGS, 2 | rflags::IF);
    nest.put(HANDLERS + 64 * u64::from(VECTOR), &VMCALL);
    nest.enable_apic();
}

/// The first processor with L2 of `code`, the second with [`sender`].
fn pair(code: &[u8]) -> Nest {
    let vm = SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        vcpus: 2,
    })
    .expect("a machine");
    let mut nest = with_virtual_apic(
        Nest::on_machine(vm, code),
        Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_X2APIC_MODE,
    );
    nest.off(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::HLT_EXITING.bits(),
    );
    take_posted(&mut nest);

    put(&mut nest.vm, SENDER, &sender());
    let mut second = state(Mode::Long0, &mut Random(0));
    if let Some(regs) = &mut second.regs {
        regs.rip = SENDER;
        regs.rflags = 2;
        regs.set(Gpr::Rsp, STACK - 0x1000);
    }
    second.mp_state = Some(MpState::Runnable);
    nest.vm.vcpu(1).set_state(&second).expect("taken");
    nest.vm.vcpu(0);
    nest
}

/// Runs both until both sleep; what `nest` tells then is the first one's.
fn run_both(nest: &mut Nest) {
    let budget = Budget {
        time: Some(common::PATIENCE),
        ..Budget::UNLIMITED
    };
    let (_, exit) = Vm::run(&mut nest.vm, budget).expect("runs");
    assert_eq!(exit, Exit::Hlt);
    nest.vm.vcpu(0);
}

/// As [`run_both`], from L1's entry to behind L2's exit.
fn enter(nest: &mut Nest) {
    nest.start();
    run_both(nest);
    let nested = nest.vm.vcpu(0).nested_state().expect("nested state");
    assert!(!nested.guest_mode());
    nest.vmcs12 = nested.vmcs12().expect("a vmcs12").clone();
}

#[test]
fn another_processor_posts_to_l2() {
    type Wait = fn(&mut CodeAssembler) -> Result<(), IcedError>;
    let waits: [(&str, Wait); 2] = [
        ("spinning", |a| {
            let mut here = a.create_label();
            a.set_label(&mut here)?;
            a.pause()?;
            a.jmp(here)
        }),
        ("halted", |a| a.hlt()),
    ];
    for (name, wait) in waits {
        let code = assemble(L2, |a| {
            a.mov(dword_ptr(MAILBOX), 1)?;
            wait(a)
        });
        let mut nest = pair(&code);
        enter(&mut nest);
        assert_eq!(
            nest.get(Field::VM_EXIT_REASON),
            u64::from(reason::VMCALL),
            "{name}"
        );
        let handler = HANDLERS + 64 * u64::from(VECTOR);
        assert_eq!(nest.get(Field::GUEST_RIP), handler, "{name}");
        assert_eq!(nest.status(), (0, VECTOR), "{name}");
        assert_eq!(
            (nest.word(DESCRIPTOR + 32), nest.word(REQUEST.0)),
            (0, 0),
            "{name}"
        );
    }
}

#[test]
fn what_is_masked_is_posted_all_the_same() {
    // L2 waits for the request to show in its virtual APIC, interrupts off.
    let code = assemble(L2, |a| {
        a.cli()?;
        a.mov(dword_ptr(MAILBOX), 1)?;
        let mut wait = a.create_label();
        a.set_label(&mut wait)?;
        a.pause()?;
        a.test(dword_ptr(VIRTUAL_APIC + 0x230), 1 << 1)?;
        a.je(wait)?;
        a.vmcall()
    });
    let mut nest = pair(&code);
    enter(&mut nest);
    let end = L2 + code.len() as u64 - 3;
    assert_eq!(nest.get(Field::GUEST_RIP), end);
    assert_eq!(nest.status(), (VECTOR, 0));
}

#[test]
fn outside_of_l2_the_notification_is_an_interrupt() {
    let mut nest = pair(&VMCALL);
    // L1 sleeps with interrupts off before it enters; the other one does not wait for L2.
    put(&mut nest.vm, MAILBOX, &1_u32.to_le_bytes());
    let mut regs = nest.regs();
    regs.rip = HANDLERS + 3;
    put(&mut nest.vm, HANDLERS + 3, &[0xf4]);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    run_both(&mut nest);
    // Requested in the local APIC; nothing is taken from the descriptor.
    assert_eq!(nest.l1_apic(0x270), 1 << (NOTIFICATION & 31));
    assert_eq!(
        (nest.word(DESCRIPTOR + 32), nest.word(REQUEST.0)),
        (1, REQUEST.1)
    );
    // Pending at entry it is the notification.
    enter(&mut nest);
    let handler = HANDLERS + 64 * u64::from(VECTOR);
    assert_eq!(nest.get(Field::GUEST_RIP), handler);
    assert_eq!(nest.l1_apic(0x270), 0);
}

/// IPI virtualization: L2's write of the ICR posts to the descriptor that the table has for the virtual id,
/// here its own, and the notification brings it back (SDM Vol. 3C "IPI Virtualization").
#[test]
fn l2_sends_without_an_exit() {
    const TABLE: u64 = PAGE2;
    for (id, reason, rip) in [
        (
            1_u64,
            reason::VMCALL,
            Some(HANDLERS + 64 * u64::from(VECTOR)),
        ),
        (0, reason::APIC_WRITE, None),
    ] {
        let code = assemble(L2, |a| {
            wrmsr(a, 0x830, id << 32 | u64::from(VECTOR))?;
            a.nop()?;
            a.nop()?;
            a.hlt()
        });
        let mut nest = with_virtual_apic(
            Nest::of_profile(Some("max"), &code),
            Secondary::VIRTUAL_INTERRUPT_DELIVERY | Secondary::VIRTUALIZE_X2APIC_MODE,
        );
        nest.vm.set_personality(Personality::Sdm);
        nest.on(
            Field::CPU_BASED_VM_EXEC_CONTROL,
            Primary::ACTIVATE_TERTIARY_CONTROLS.bits(),
        );
        take_posted(&mut nest);
        nest.put(TABLE + 8, &(DESCRIPTOR | 1).to_le_bytes());
        // The notification vector; NDST is APIC 0.
        nest.put(DESCRIPTOR + 34, &[NOTIFICATION as u8]);
        let fields = [
            (0x2034, Tertiary::IPI_VIRTUALIZATION.bits()),
            (0x2042, TABLE),
            (0x0008, 1),
        ];
        assert_eq!(nest.enter_with(&fields), Entry::Exit(reason), "id {id}");
        if let Some(rip) = rip {
            assert_eq!(nest.get(Field::GUEST_RIP), rip);
            assert_eq!(nest.status(), (0, VECTOR));
        } else {
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0x300);
            // Behind the WRMSR.
            assert_eq!(nest.get(Field::GUEST_RIP), L2 + code.len() as u64 - 3);
        }
    }
}
