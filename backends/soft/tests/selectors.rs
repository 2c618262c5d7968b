//! What the translator takes and a processor does not: null selectors of SS and TR, descriptors of legacy mode,
//! RFLAGS.VM above CPL 0; and what else random code of L2 has found on the way from one event to the next.

mod common;

use common::bare::{GDT, put};
use common::nest::*;
use nvmx_core::personality::Personality;
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::Field as F;
use nvmx_core::vmx::controls::{EntryControls, PinBased};
use nvmx_core::x86::Gpr;
use nvmx_core::x86::control::rflags;

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const DB: u64 = 1;
const GP: u64 = 13;
/// A descriptor that no one else uses.
const FREE: u64 = 0x60;

fn nest(code: &[u8]) -> Nest {
    let mut nest = Nest::new(&[code, &VMCALL].concat());
    nest.vm.set_personality(Personality::Sdm);
    nest.set(F::EXCEPTION_BITMAP, u64::from(u32::MAX));
    nest
}

/// The code, where it faults with #GP(0), if it does.
type Case = (&'static [u8], Option<u64>);

#[test]
fn null_selectors_are_refused_where_the_manual_says_so() {
    let cases: &[Case] = &[
        // mov eax, 3; mov ss, eax: RPL is not CPL.
        (&[0xb8, 3, 0, 0, 0, 0x8e, 0xd0], Some(5)),
        // mov eax, 0; mov ss, eax.
        (&[0xb8, 0, 0, 0, 0, 0x8e, 0xd0], None),
        // push 2; mov ss, [rsp].
        (&[0x6a, 2, 0x8e, 0x14, 0x24], Some(2)),
        // push 0; mov ss, [rsp].
        (&[0x6a, 0, 0x8e, 0x14, 0x24], None),
        // mov rax, 0x3_0000_0000; push rax; lss eax, [rsp].
        (
            &[
                0x48, 0xb8, 0, 0, 0, 0, 3, 0, 0, 0, 0x50, 0x0f, 0xb2, 0x04, 0x24,
            ],
            Some(11),
        ),
        // push 3; lss eax, [rsp]: the three is the offset.
        (&[0x6a, 3, 0x0f, 0xb2, 0x04, 0x24], None),
        // xor eax, eax; ltr ax.
        (&[0x31, 0xc0, 0x0f, 0x00, 0xd8], Some(2)),
        // push 3; ltr [rsp].
        (&[0x6a, 3, 0x0f, 0x00, 0x1c, 0x24], Some(2)),
    ];
    for (code, faults) in cases {
        let mut nest = nest(code);
        match faults {
            Some(at) => {
                nest.expect(EXCEPTION, L2 + at);
                assert_eq!(nest.get(F::VM_EXIT_INTR_INFO) & 0xff, GP, "{code:x?}");
                assert_eq!(nest.get(F::VM_EXIT_INTR_ERROR_CODE), 0, "{code:x?}");
            }
            None => nest.expect(VMCALL_EXIT, L2 + code.len() as u64),
        }
    }
}

#[test]
fn lar_and_lsl_know_no_descriptors_of_legacy_mode() {
    const LAR: u8 = 2;
    const LSL: u8 = 3;
    // Type, and whether each takes it (SDM Vol. 2A "LAR", "LSL", tables for IA-32e mode).
    let types: &[(u64, bool, bool)] = &[
        (1, false, false),
        (2, true, true),
        (3, false, false),
        (4, false, false),
        (5, false, false),
        (9, true, true),
        (11, true, true),
        (12, true, false),
        (14, false, false),
    ];
    for (kind, lar, lsl) in types {
        for (opcode, taken) in [(LAR, *lar), (LSL, *lsl)] {
            // mov ecx, FREE; lar eax, ecx.
            let code = [0xb9, FREE as u8, 0, 0, 0, 0x0f, opcode, 0xc1];
            let mut nest = nest(&code);
            let descriptor = 0x80 << 40 | kind << 40 | 0x67;
            put(&mut nest.vm, GDT + FREE, &descriptor.to_le_bytes());
            put(&mut nest.vm, GDT + FREE + 8, &[0; 8]);
            nest.expect(VMCALL_EXIT, L2 + code.len() as u64);
            let set = nest.get(F::GUEST_RFLAGS) & rflags::ZF != 0;
            assert_eq!(set, taken, "type {kind}, opcode {opcode}");
        }
    }
}

/// A call gate to CPL 0 takes its stack from the TSS, which is busy; the translator knows none that is.
#[test]
fn a_call_gate_finds_the_stack_of_a_busy_tss() {
    // call 0x63:0.
    let mut nest = nest(&[0x9a, 0, 0, 0, 0, 0x63, 0]);
    nest.off(
        F::VM_ENTRY_CONTROLS,
        (EntryControls::IA32E_MODE_GUEST | EntryControls::LOAD_EFER).bits(),
    );
    put(&mut nest.vm, PAGE2, &0x87_u32.to_le_bytes());
    for (field, value) in [
        (F::GUEST_CR3, PAGE2),
        (F::GUEST_CR4, 0x2010),
        (F::GUEST_CS_SELECTOR, 0x33),
        (F::GUEST_CS_AR_BYTES, 0xc0fb),
        (F::GUEST_CS_LIMIT, 0xffff_ffff),
        (F::GUEST_SS_SELECTOR, 0x23),
        (F::GUEST_SS_AR_BYTES, 0xc0f3),
    ] {
        nest.set(field, value);
    }
    let gate = (HANDLERS & 0xffff) | 0x18 << 16 | 0xec << 40 | (HANDLERS >> 16) << 48;
    put(&mut nest.vm, GDT + FREE, &gate.to_le_bytes());
    put(&mut nest.vm, HANDLERS, &VMCALL);
    // SS0 of the 32-bit TSS.
    put(&mut nest.vm, 0xb008, &[0x10, 0]);
    put(
        &mut nest.vm,
        GDT + 0x30,
        &0x00cf_fb00_0000_ffff_u64.to_le_bytes(),
    );
    nest.expect(VMCALL_EXIT, HANDLERS);
    assert_eq!(nest.get(F::GUEST_SS_SELECTOR), 0x10);
}

/// At CPL 0 in IA-32e mode RFLAGS.VM of the image means nothing; the model says that it lacks this.
#[test]
fn an_iret_never_goes_to_virtual_8086_mode_from_ia32e_mode() {
    let mut nest = nest(&[0xcf]);
    let frame: Vec<u8> = [
        L2 as u32 + 1,
        8,
        rflags::VM as u32 | 2,
        L2_STACK as u32,
        0x10,
    ]
    .into_iter()
    .flat_map(u32::to_le_bytes)
    .collect();
    put(&mut nest.vm, L2_STACK, &frame);
    let exit = nest.enter_for(100);
    assert!(
        matches!(&exit, Exit::Unsupported { what } if what.contains("IRET")),
        "{exit:?}"
    );
}

#[test]
fn general_detect_sees_reads_too() {
    // mov rax, dr3; mov dr3, rax.
    for code in [[0x0f, 0x21, 0xd8], [0x0f, 0x23, 0xd8]] {
        let mut nest = nest(&code);
        nest.set(F::GUEST_DR7, 0x2400);
        nest.on(
            F::VM_ENTRY_CONTROLS,
            EntryControls::LOAD_DEBUG_CONTROLS.bits(),
        );
        nest.expect(EXCEPTION, L2);
        assert_eq!(nest.get(F::VM_EXIT_INTR_INFO) & 0xff, DB);
        assert_eq!(nest.get(F::EXIT_QUALIFICATION), 1 << 13);
    }
    // mov eax, 0x2400; mov dr7, rax; mov rax, dr3.
    let mut nest = nest(&[0xb8, 0, 0x24, 0, 0, 0x0f, 0x23, 0xf8, 0x0f, 0x21, 0xd8]);
    nest.expect(EXCEPTION, L2 + 8);
}

/// Software interrupts push RFLAGS.RF as zero (SDM Vol. 3B "Resume Flag"), and SYSCALL leaves it out of R11.
#[test]
fn the_resume_flag_is_gone_when_an_instruction_begins() {
    // int3, int 0x21, int1; what they would push is what their exit saves.
    let codes: [&[u8]; 3] = [&[0xcc], &[0xcd, 0x21], &[0xf1]];
    for code in codes {
        let mut nest = nest(code);
        nest.set(F::EXCEPTION_BITMAP, 0);
        nest.set(F::GUEST_RFLAGS, 2 | rflags::RF);
        // The handler: pop rax; pop rax; pop rax; vmcall.
        let vector = match code[0] {
            0xcc => 3,
            0xf1 => 1,
            _ => u64::from(code[1]),
        };
        let handler = [&[0x58, 0x58, 0x58][..], &VMCALL].concat();
        put(&mut nest.vm, HANDLERS + 64 * vector, &handler);
        nest.expect(VMCALL_EXIT, HANDLERS + 64 * vector + 3);
        assert_eq!(nest.regs().get(Gpr::Rax), 2, "{code:x?}");
    }
}

/// With "NMI exiting" and without "virtual NMIs" NMIs stay blocked (SDM Vol. 3C "Interruptibility State").
#[test]
fn an_iret_unblocks_nmis_that_are_l2s() {
    let (exiting, virtual_nmis) = (PinBased::NMI_EXITING, PinBased::VIRTUAL_NMIS);
    let cases = [
        (Personality::Sdm, PinBased::empty(), 0),
        (Personality::Sdm, exiting, 8),
        (Personality::Sdm, exiting | virtual_nmis, 0),
        (Personality::Kvm, exiting, 0),
    ];
    for (personality, pin, blocked) in cases {
        let mut nest = nest(&[0x48, 0xcf]);
        nest.vm.set_personality(personality);
        let frame: Vec<u8> = [L2 + 2, 8, 2, L2_STACK, 0x10]
            .into_iter()
            .flat_map(u64::to_le_bytes)
            .collect();
        put(&mut nest.vm, L2_STACK, &frame);
        nest.off(
            F::PIN_BASED_VM_EXEC_CONTROL,
            (exiting | virtual_nmis).bits(),
        );
        nest.on(F::PIN_BASED_VM_EXEC_CONTROL, pin.bits());
        nest.set(F::GUEST_INTERRUPTIBILITY_INFO, 8);
        nest.expect(VMCALL_EXIT, L2 + 2);
        assert_eq!(
            nest.get(F::GUEST_INTERRUPTIBILITY_INFO),
            blocked,
            "{personality} {pin:?}"
        );
    }
}
