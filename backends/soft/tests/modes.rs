//! L2 in every mode that VM entry can put it into, debug controls and MSRs that entries and exits switch,
//! VMCS shadowing (SDM Vol. 3C "Unrestricted Guests", "Checks on Guest Segment Registers", "Loading Guest
//! Control Registers, Debug Registers, and MSRs", "VMREAD", "VMWRITE").

mod common;

use common::bare::put;
use common::nest::*;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Vm;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::controls::{EntryControls, ExitControls, Primary, Secondary};
use nvmx_core::x86::{CpuState, DebugRegs, Gpr, msr};

const EXCEPTION: u32 = 0;
const VMCALL_EXIT: u32 = 18;
const VMREAD_EXIT: u32 = 23;
const VMWRITE_EXIT: u32 = 25;
const INVALID_GUEST_STATE: u32 = 0x8000_0021;
const VALID: u64 = 1 << 31;
const CR0_PE: u64 = 1;
const CR0_PG: u64 = 1 << 31;

fn secondary(nest: &mut Nest, controls: Secondary) {
    nest.on(
        Field::CPU_BASED_VM_EXEC_CONTROL,
        Primary::ACTIVATE_SECONDARY_CONTROLS.bits(),
    );
    nest.on(Field::SECONDARY_VM_EXEC_CONTROL, controls.bits());
}

/// EPT that maps 2 MiB to themselves, and "unrestricted guest".
fn unrestricted(nest: &mut Nest) {
    const TABLES: [u64; 3] = [0x10_0000, 0x10_1000, 0x10_2000];
    for (table, entry) in TABLES.iter().zip([TABLES[1] | 7, TABLES[2] | 7, 0xb7]) {
        put(&mut nest.vm, *table, &u64::to_le_bytes(entry));
    }
    nest.set(Field::EPT_POINTER, TABLES[0] | 0x1e);
    secondary(nest, Secondary::ENABLE_EPT | Secondary::UNRESTRICTED_GUEST);
}

fn not_64_bit(nest: &mut Nest) {
    nest.off(
        Field::VM_ENTRY_CONTROLS,
        EntryControls::IA32E_MODE_GUEST.bits(),
    );
    nest.set(Field::GUEST_IA32_EFER, 0);
}

#[test]
fn an_unpaged_guest() {
    // The same bytes in 16-bit and 32-bit code: mov ax or eax, cx or ecx; vmcall.
    for (name, rights) in [
        ("32 bits", 0xc09b),
        ("16 bits", 0x809b),
        ("L without long mode", 0xa09b),
    ] {
        let mut nest = Nest::new(&[&[0x89, 0xc8][..], &VMCALL].concat());
        unrestricted(&mut nest);
        not_64_bit(&mut nest);
        nest.set(Field::GUEST_CR0, nest.get(Field::GUEST_CR0) & !CR0_PG);
        nest.set(Field::GUEST_CS_AR_BYTES, rights);
        let mut regs = nest.regs();
        regs.set(Gpr::Rcx, 0x1234_5678);
        nest.set_state(CpuState {
            regs: Some(regs),
            ..CpuState::default()
        });
        assert_eq!(nest.enter(), Entry::Exit(VMCALL_EXIT), "{name}");
        assert_eq!(nest.get(Field::GUEST_RIP), L2 + 2, "{name}");
        let expected = if rights & 0x4000 != 0 {
            0x1234_5678
        } else {
            0x5678
        };
        assert_eq!(nest.regs().get(Gpr::Rax), expected, "{name}");
    }
    // Without "unrestricted guest" PG must be set.
    let mut nest = Nest::new(&VMCALL);
    not_64_bit(&mut nest);
    nest.set(Field::GUEST_CR0, nest.get(Field::GUEST_CR0) & !CR0_PG);
    nest.set(Field::GUEST_CS_AR_BYTES, 0xc09b);
    assert_eq!(nest.enter(), Entry::Exit(INVALID_GUEST_STATE));
    assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 0);
}

/// Segments as real mode and virtual-8086 mode have them.
fn real_segments(nest: &mut Nest, code: u64, data: u64) {
    for (index, (selector, base, limit, rights)) in [
        (
            Field::GUEST_ES_SELECTOR,
            Field::GUEST_ES_BASE,
            Field::GUEST_ES_LIMIT,
            Field::GUEST_ES_AR_BYTES,
        ),
        (
            Field::GUEST_CS_SELECTOR,
            Field::GUEST_CS_BASE,
            Field::GUEST_CS_LIMIT,
            Field::GUEST_CS_AR_BYTES,
        ),
        (
            Field::GUEST_SS_SELECTOR,
            Field::GUEST_SS_BASE,
            Field::GUEST_SS_LIMIT,
            Field::GUEST_SS_AR_BYTES,
        ),
        (
            Field::GUEST_DS_SELECTOR,
            Field::GUEST_DS_BASE,
            Field::GUEST_DS_LIMIT,
            Field::GUEST_DS_AR_BYTES,
        ),
        (
            Field::GUEST_FS_SELECTOR,
            Field::GUEST_FS_BASE,
            Field::GUEST_FS_LIMIT,
            Field::GUEST_FS_AR_BYTES,
        ),
        (
            Field::GUEST_GS_SELECTOR,
            Field::GUEST_GS_BASE,
            Field::GUEST_GS_LIMIT,
            Field::GUEST_GS_AR_BYTES,
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let value = if index == 1 { L2 >> 4 } else { 0x2000 };
        nest.set(selector, value);
        nest.set(base, value << 4);
        nest.set(limit, 0xffff);
        nest.set(rights, if index == 1 { code } else { data });
    }
    nest.set(Field::GUEST_RIP, 0);
    nest.set(Field::GUEST_RSP, 0x1000);
}

#[test]
fn real_mode() {
    // push cs; pop ax; int 0x21 -> handler in the IVT: vmcall
    let mut nest = Nest::new(&[0x0e, 0x58, 0xcd, 0x21]);
    unrestricted(&mut nest);
    not_64_bit(&mut nest);
    nest.set(
        Field::GUEST_CR0,
        nest.get(Field::GUEST_CR0) & !(CR0_PG | CR0_PE),
    );
    real_segments(&mut nest, 0x9b, 0x93);
    // The IVT at 0x1000; the handler at 4100:0020.
    nest.set(Field::GUEST_IDTR_BASE, 0x1000);
    nest.set(Field::GUEST_IDTR_LIMIT, 0x3ff);
    put(&mut nest.vm, 0x1000 + 4 * 0x21, &[0x20, 0x00, 0x00, 0x41]);
    put(&mut nest.vm, 0x4_1020, &VMCALL);
    nest.expect(VMCALL_EXIT, 0x20);
    assert_eq!(nest.regs().get(Gpr::Rax) & 0xffff, L2 >> 4);
    assert_eq!(nest.get(Field::GUEST_CS_SELECTOR), 0x4100);
    assert_eq!(nest.get(Field::GUEST_CS_BASE), 0x4_1000);
    // An exception is injected without an error code there.
    nest.set(Field::VM_ENTRY_INTR_INFO_FIELD, VALID | 3 << 8 | 13);
    put(&mut nest.vm, 0x1000 + 4 * 13, &[0x40, 0x00, 0x00, 0x41]);
    put(&mut nest.vm, 0x4_1040, &VMCALL);
    nest.expect(VMCALL_EXIT, 0x40);
    nest.set(
        Field::VM_ENTRY_INTR_INFO_FIELD,
        VALID | 1 << 11 | 3 << 8 | 13,
    );
    assert_eq!(nest.enter(), Entry::FailValid(7));
}

#[test]
fn virtual_8086_mode() {
    let start = |code: &[u8]| {
        let mut nest = Nest::new(code);
        not_64_bit(&mut nest);
        // Two-level paging: page 0 of 4 MiB at CR3 = 0x1000.
        put(&mut nest.vm, 0x1000, &0x87_u32.to_le_bytes());
        nest.set(Field::GUEST_CR3, 0x1000);
        nest.set(Field::GUEST_CR4, 0x2010);
        real_segments(&mut nest, 0xf3, 0xf3);
        nest.set(Field::GUEST_RFLAGS, 0x2_0002);
        nest.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
        nest
    };
    // VMCALL exits before anything is asked of the mode; the other VMX instructions do not exist.
    let mut nest = start(&[&[0x90][..], &VMCALL].concat());
    nest.expect(VMCALL_EXIT, 1);
    let mut nest = start(&[0x0f, 0x01, 0xc4]);
    nest.expect(EXCEPTION, 0);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 3 << 8 | 6);
    // INT n at IOPL 0 is #GP(0), without virtual-8086 mode extensions.
    let mut nest = start(&[0xcd, 0x21]);
    nest.expect(EXCEPTION, 0);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 0xb0d);
    // A segment that is not as the mode has it.
    for (field, value) in [
        (Field::GUEST_CS_LIMIT, 0xfffff),
        (Field::GUEST_CS_AR_BYTES, 0x9b),
        (Field::GUEST_DS_BASE, 0x2_0001),
        (Field::GUEST_GS_AR_BYTES, 0x1_00f3),
    ] {
        let mut nest = start(&VMCALL);
        nest.set(field, value);
        assert_eq!(nest.enter(), Entry::Exit(INVALID_GUEST_STATE), "{field}");
    }
}

/// "Load debug controls" and "save debug controls", with and without.
#[test]
fn debug_controls() {
    for (load, save) in [(true, true), (false, false), (true, false), (false, true)] {
        // mov rax, dr7; mov rcx, 0x408; mov dr7, rcx; vmcall
        let code = [
            0x0f, 0x21, 0xf8, 0x48, 0xc7, 0xc1, 0x00, 0x04, 0, 0, 0x0f, 0x23, 0xf9,
        ];
        let mut nest = Nest::new(&[&code[..], &VMCALL].concat());
        nest.off(
            Field::VM_ENTRY_CONTROLS,
            EntryControls::LOAD_DEBUG_CONTROLS.bits(),
        );
        nest.off(
            Field::VM_EXIT_CONTROLS,
            ExitControls::SAVE_DEBUG_CONTROLS.bits(),
        );
        if load {
            nest.on(
                Field::VM_ENTRY_CONTROLS,
                EntryControls::LOAD_DEBUG_CONTROLS.bits(),
            );
        }
        if save {
            nest.on(
                Field::VM_EXIT_CONTROLS,
                ExitControls::SAVE_DEBUG_CONTROLS.bits(),
            );
        }
        nest.set_state(CpuState {
            debug: Some(DebugRegs {
                dr6: 0xffff_0ff0,
                dr7: 0x2400,
                ..DebugRegs::default()
            }),
            ..CpuState::default()
        });
        nest.set(Field::GUEST_DR7, 0x0001_0400);
        nest.set(Field::EXCEPTION_BITMAP, 1 << 1);
        let entry = nest.enter();
        if load {
            assert_eq!(entry, Entry::Exit(VMCALL_EXIT));
            assert_eq!(nest.regs().get(Gpr::Rax), 0x0001_0400);
            let saved = if save { 0x400 } else { 0x0001_0400 };
            assert_eq!(nest.get(Field::GUEST_DR7), saved);
        } else {
            // L1's own DR7, with general detect: MOV DR is #DB with BD.
            assert_eq!(entry, Entry::Exit(EXCEPTION));
            assert_eq!(nest.get(Field::EXIT_QUALIFICATION), 1 << 13);
            let saved = if save { 0x2400 } else { 0x0001_0400 };
            assert_eq!(nest.get(Field::GUEST_DR7), saved);
        }
        assert_eq!(nest.state().debug.expect("debug").dr7, 0x400);
    }
}

/// PAT and EFER with their controls, and without.
#[test]
fn msrs_that_entries_and_exits_switch() {
    const NXE: u64 = 1 << 11;
    const LONG: u64 = 0x500;
    let l1_pat = 0x0007_0406_0007_0406_u64;
    // rdmsr; vmcall
    let read = [&[0x0f, 0x32][..], &VMCALL].concat();
    for (number, field, host, guest, l1) in [
        (
            msr::IA32_PAT,
            Field::GUEST_IA32_PAT,
            Field::HOST_IA32_PAT,
            0,
            l1_pat,
        ),
        (
            msr::IA32_EFER,
            Field::GUEST_IA32_EFER,
            Field::HOST_IA32_EFER,
            LONG | NXE,
            LONG,
        ),
    ] {
        let is_pat = number == msr::IA32_PAT;
        for load in [false, true] {
            let mut nest = Nest::new(&read);
            nest.on(
                Field::CPU_BASED_VM_EXEC_CONTROL,
                Primary::USE_MSR_BITMAPS.bits(),
            );
            nest.set(Field::MSR_BITMAP, PAGE);
            let (entry, exit, save) = if is_pat {
                (
                    EntryControls::LOAD_PAT,
                    ExitControls::LOAD_PAT,
                    ExitControls::SAVE_PAT,
                )
            } else {
                (
                    EntryControls::LOAD_EFER,
                    ExitControls::LOAD_EFER,
                    ExitControls::SAVE_EFER,
                )
            };
            nest.off(Field::VM_ENTRY_CONTROLS, entry.bits());
            nest.off(Field::VM_EXIT_CONTROLS, (exit | save).bits());
            if load {
                nest.on(Field::VM_ENTRY_CONTROLS, entry.bits());
                nest.on(Field::VM_EXIT_CONTROLS, exit.bits());
            }
            nest.set_state(CpuState {
                msrs: Some([(msr::IA32_PAT, l1_pat)].into()),
                ..CpuState::default()
            });
            nest.set(field, guest);
            nest.set(host, l1);
            let mut regs = nest.regs();
            regs.set(Gpr::Rcx, u64::from(number));
            nest.set_state(CpuState {
                regs: Some(regs),
                ..CpuState::default()
            });
            nest.expect(VMCALL_EXIT, L2 + 2);
            let regs = nest.regs();
            let seen = regs.get(Gpr::Rax) & 0xffff_ffff | regs.get(Gpr::Rdx) << 32;
            let before = if is_pat { l1_pat } else { LONG | bare_efer() };
            assert_eq!(
                seen,
                if load { guest } else { before },
                "{number:#x} {load}"
            );
            let state = nest.state();
            let after = if is_pat {
                state.msrs.expect("MSRs")[&msr::IA32_PAT]
            } else {
                state.sregs.expect("sregs").efer
            };
            assert_eq!(after, if load { l1 } else { before }, "{number:#x} {load}");
        }
    }
}

/// EFER of the bare L1 beside LME and LMA.
fn bare_efer() -> u64 {
    1
}

/// VMREAD and VMWRITE of L2 with VMCS shadowing, for every encoding up to the highest index.
#[test]
fn vmcs_shadowing() {
    const SHADOW: u64 = 0x6_8000;
    // L2: vmread rcx -> rax or vmwrite rcx <- rdx, by the first bytes; pushfq; pop rsi; vmcall
    let reads = [&[0x0f, 0x78, 0xc8, 0x9c, 0x5e][..], &VMCALL].concat();
    let writes = [&[0x0f, 0x79, 0xca, 0x9c, 0x5e][..], &VMCALL].concat();
    let highest = 0x32;
    for (code, bitmap, reason) in [
        (&reads, Field::VMREAD_BITMAP, VMREAD_EXIT),
        (&writes, Field::VMWRITE_BITMAP, VMWRITE_EXIT),
    ] {
        let mut nest = Nest::new(code);
        put(&mut nest.vm, SHADOW, &0x91e5_7ed0_u32.to_le_bytes());
        secondary(&mut nest, Secondary::VMCS_SHADOWING);
        nest.set(Field::VMREAD_BITMAP, PAGE);
        nest.set(Field::VMWRITE_BITMAP, PAGE2);
        let bitmap = nest.get(bitmap);
        for base in (0..1 << 15).step_by(1 << 10) {
            for encoding in base..=base + highest {
                for (link, permitted) in [(SHADOW, false), (SHADOW, true), (u64::MAX, true)] {
                    let name = format!("{encoding:#x} {permitted} {link:#x}");
                    let byte = if permitted { 0 } else { 1 << (encoding % 8) };
                    put(&mut nest.vm, bitmap + encoding / 8, &[byte]);
                    nest.set(Field::VMCS_LINK_POINTER, link);
                    nest.set(Field::GUEST_RIP, L2);
                    nest.set(Field::VM_INSTRUCTION_ERROR, 0);
                    let mut regs = nest.regs();
                    regs.set(Gpr::Rcx, encoding);
                    regs.set(Gpr::Rdx, 0);
                    nest.set_state(CpuState {
                        regs: Some(regs),
                        ..CpuState::default()
                    });
                    let entry = nest.enter();
                    if !permitted {
                        assert_eq!(entry, Entry::Exit(reason), "{name}");
                        continue;
                    }
                    assert_eq!(entry, Entry::Exit(VMCALL_EXIT), "{name}");
                    let flags = nest.regs().get(Gpr::Rsi) & 0x8d5;
                    let exists = nest
                        .vmcs12
                        .try_get(
                            Field(encoding as u32),
                            nvmx_core::vmx::vmcs12::Layout::Linux6_1,
                        )
                        .is_some();
                    let (expected, error) = match (link, exists) {
                        (u64::MAX, _) => (1, 0),
                        (_, true) => (0, 0),
                        (_, false) => (0x40, 12),
                    };
                    assert_eq!(flags, expected, "{name}");
                    assert_eq!(nest.get(Field::VM_INSTRUCTION_ERROR), error, "{name}");
                }
            }
        }
        // Reserved bits of the encoding exit whatever the bitmaps say.
        nest.set(Field::VMCS_LINK_POINTER, SHADOW);
        for bit in 15..64 {
            nest.set(Field::GUEST_RIP, L2);
            let mut regs = nest.regs();
            regs.set(Gpr::Rcx, 1 << bit);
            nest.set_state(CpuState {
                regs: Some(regs),
                ..CpuState::default()
            });
            assert_eq!(nest.enter(), Entry::Exit(reason), "bit {bit}");
        }
    }
}

/// What L2 writes to the shadow VMCS is in L1's memory after the exit, and the other way round.
#[test]
fn the_shadow_vmcs_is_l1s_memory() {
    const SHADOW: u64 = 0x6_8000;
    const GUEST_RIP_OFFSET: u64 = 544;
    // vmread rbx <- GUEST_RIP; vmwrite GUEST_RIP <- rdx; vmcall
    let code = [&[0x0f, 0x78, 0xcb, 0x0f, 0x79, 0xca][..], &VMCALL].concat();
    let mut nest = Nest::new(&code);
    put(&mut nest.vm, SHADOW, &0x91e5_7ed0_u32.to_le_bytes());
    put(
        &mut nest.vm,
        SHADOW + GUEST_RIP_OFFSET,
        &0x1122_3344_5566_u64.to_le_bytes(),
    );
    secondary(&mut nest, Secondary::VMCS_SHADOWING);
    nest.set(Field::VMREAD_BITMAP, PAGE);
    nest.set(Field::VMWRITE_BITMAP, PAGE2);
    nest.set(Field::VMCS_LINK_POINTER, SHADOW);
    let mut regs = nest.regs();
    regs.set(Gpr::Rcx, u64::from(Field::GUEST_RIP.0));
    regs.set(Gpr::Rdx, 0x7788);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest.expect(VMCALL_EXIT, L2 + 6);
    assert_eq!(nest.regs().get(Gpr::Rbx), 0x1122_3344_5566);
    let mut word = [0; 8];
    nest.vm
        .read_memory(L1Phys(SHADOW + GUEST_RIP_OFFSET), &mut word)
        .expect("RAM");
    assert_eq!(u64::from_le_bytes(word), 0x7788);
}

/// Process-context identifiers: L1's come back with an exit, and L2's MOV to CR3 that keeps translations
/// still finds the new tables.
#[test]
fn process_context_identifiers() {
    use common::bare::PAGING;
    const PCIDE: u64 = 1 << 17;
    const OTHER: [u64; 3] = [0x10_0000, 0x10_1000, 0x10_2000];
    // mov rax, [rsi]; mov cr3, rbx; mov rcx, [rsi]; vmcall
    let code = [0x48, 0x8b, 0x06, 0x0f, 0x22, 0xdb, 0x48, 0x8b, 0x0e];
    let mut nest = Nest::of_profile(Some("max"), &[&code[..], &VMCALL].concat());
    // 4 GiB is one 2-MiB page of RAM in either table, but not the same: 0 and 2 MiB hold what differs.
    let entry = |nest: &mut Nest, at: u64, value: u64| put(&mut nest.vm, at, &value.to_le_bytes());
    entry(&mut nest, OTHER[0], OTHER[1] | 7);
    entry(&mut nest, OTHER[1], OTHER[2] | 7);
    entry(&mut nest, OTHER[2], 0x87);
    // Linear 2 MiB: page at PAGE in L2's first tables, at PAGE2 in the others.
    for (table, leaf, page) in [
        (PAGING + 0x2000, 0x10_4000_u64, PAGE),
        (OTHER[2], 0x10_5000, PAGE2),
    ] {
        entry(&mut nest, table + 8, leaf | 7);
        entry(&mut nest, leaf, page | 7);
        entry(&mut nest, page, page);
    }
    nest.set(Field::HOST_CR4, nest.get(Field::HOST_CR4) | PCIDE);
    nest.set(Field::HOST_CR3, PAGING | 1);
    nest.set(Field::GUEST_CR4, nest.get(Field::GUEST_CR4) | PCIDE);
    nest.set(Field::GUEST_CR3, PAGING | 2);
    let mut regs = nest.regs();
    regs.set(Gpr::Rbx, 1 << 63 | OTHER[0] | 3);
    regs.set(Gpr::Rsi, 2 << 20);
    nest.set_state(CpuState {
        regs: Some(regs),
        ..CpuState::default()
    });
    nest.expect(VMCALL_EXIT, L2 + 9);
    let regs = nest.regs();
    assert_eq!((regs.get(Gpr::Rax), regs.get(Gpr::Rcx)), (PAGE, PAGE2));
    assert_eq!(nest.get(Field::GUEST_CR3), OTHER[0] | 3);
    let sregs = nest.state().sregs.expect("sregs");
    assert_eq!((sregs.cr3, sregs.cr4 & PCIDE), (PAGING | 1, PCIDE));
    // Without long mode there are none.
    not_64_bit(&mut nest);
    assert_eq!(nest.enter(), Entry::Exit(INVALID_GUEST_STATE));
}

/// A far call from 64-bit code into compatibility mode and back, with INTO there.
#[test]
fn into_compatibility_mode_and_back() {
    for overflow in [false, true] {
        // call far [PAGE]; vmcall
        let mut code = vec![0xff, 0x1c, 0x25];
        code.extend_from_slice(&(PAGE as u32).to_le_bytes());
        code.extend_from_slice(&VMCALL);
        let mut nest = Nest::new(&code);
        // mov eax, 0x7fffffff; add eax, eax (or xor eax, eax); into; retf
        let add = if overflow { 0x01 } else { 0x31 };
        put(
            &mut nest.vm,
            PAGE2,
            &[0xb8, 0xff, 0xff, 0xff, 0x7f, add, 0xc0, 0xce, 0xcb],
        );
        put(&mut nest.vm, PAGE, &(PAGE2 as u32).to_le_bytes());
        put(&mut nest.vm, PAGE + 4, &[0x18, 0]);
        nest.set(Field::EXCEPTION_BITMAP, 0xffff_ffff);
        if overflow {
            nest.expect(EXCEPTION, PAGE2 + 7);
            assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 6 << 8 | 4);
            assert_eq!(nest.get(Field::GUEST_CS_SELECTOR), 0x18);
        } else {
            nest.expect(VMCALL_EXIT, L2 + 7);
            assert_eq!(nest.get(Field::GUEST_CS_SELECTOR), 8);
        }
    }
}

/// RDPID needs "enable RDTSCP" as RDTSCP does, and CPUID's word.
#[test]
fn rdpid_is_undefined() {
    let mut nest = Nest::new(&[0xf3, 0x0f, 0xc7, 0xf8]);
    nest.set(Field::EXCEPTION_BITMAP, 1 << 6);
    nest.expect(EXCEPTION, L2);
    assert_eq!(nest.get(Field::VM_EXIT_INTR_INFO), VALID | 3 << 8 | 6);
}
