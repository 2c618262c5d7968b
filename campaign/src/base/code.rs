//! The bases whose L2 has an arena, so that a case may bring code along.

use super::{Base, Field, Fields};
use crate::layout::{self, arena};
use crate::tables::arena::{GDT_LIMIT, TSS_LIMIT, selector};
use nvmx_core::vmx::controls::{PinBased, Primary, Secondary};
use nvmx_examples::runtime::map;
use nvmx_examples::runtime::standard::{self, ar};

/// Such a base, and what code for it has to know.
pub struct CodeBase {
    /// The VMCS.
    pub base: Base,
    /// Size of its instructions: 16, 32 or 64.
    pub bits: u32,
    /// Whether addresses are offsets in 64 KiB at [`layout::REAL`].
    pub is_real: bool,
    /// Whether L2 is at CPL 3.
    pub is_user: bool,
}

const fn base(name: &'static str, bits: u32, build: fn(&mut Fields)) -> CodeBase {
    CodeBase {
        base: Base { name, build },
        bits,
        is_real: false,
        is_user: false,
    }
}

const fn real(name: &'static str, is_user: bool, build: fn(&mut Fields)) -> CodeBase {
    CodeBase {
        is_real: true,
        is_user,
        ..base(name, 16, build)
    }
}

const fn user(name: &'static str, bits: u32, build: fn(&mut Fields)) -> CodeBase {
    CodeBase {
        is_user: true,
        ..base(name, bits, build)
    }
}

/// EFER of IA-32e mode, with NXE: only the arena is executable.
const EFER: u64 = 0xd01;
/// User code and data.
const USER: u64 = 0x60;

impl Fields {
    /// IA-32e mode in the arena.
    fn arena(&mut self) {
        self.pin |= PinBased::NMI_EXITING;
        self.primary.remove(Primary::UNCONDITIONAL_IO_EXITING);
        for (field, value) in ARENA {
            self.set(*field, *value);
        }
        for register in [4, 5] {
            let place = |first: Field| Field(first.0 + 2 * register);
            self.set(place(Field::GUEST_ES_SELECTOR), selector::DATA.into());
            self.set(place(Field::GUEST_ES_LIMIT), 0xffff_ffff);
            self.set(place(Field::GUEST_ES_AR_BYTES), ar::DATA);
        }
    }

    fn arena_ept(&mut self) {
        self.arena();
        self.ept();
    }

    /// 32-bit protected mode with PAE paging.
    fn arena_pae(&mut self) {
        self.arena();
        self.set_all(standard::pae(arena::CODE));
        self.set(Field::GUEST_CR3, arena::PAE);
        self.set(Field::GUEST_PDPTR0, (arena::PAE + 0x1000) | 1);
        self.arena_legacy();
    }

    /// Outside IA-32e mode: IDT and task state.
    fn arena_legacy(&mut self) {
        self.legacy();
        self.set(Field::GUEST_IA32_EFER, 0x800);
        self.set(Field::GUEST_CS_SELECTOR, selector::CODE_32.into());
        self.set(Field::GUEST_IDTR_BASE, arena::IDT_32);
        self.set(Field::GUEST_TR_BASE, arena::TSS_32);
    }

    fn arena_flat(&mut self) {
        self.arena_pae();
        self.unrestricted();
        self.set(Field::GUEST_CR0, 0x31);
    }

    /// CPL 3 with these page tables.
    fn arena_user(&mut self, cr3: u64) {
        self.set(Field::GUEST_CR3, cr3);
        let code = self.value(Field::GUEST_CS_AR_BYTES);
        let selector = if code & 0x2000 != 0 {
            selector::USER_64
        } else {
            selector::USER_32
        };
        self.set(Field::GUEST_CS_SELECTOR, selector.into());
        self.set(Field::GUEST_CS_AR_BYTES, code | USER);
        for register in [0, 2, 3, 4, 5] {
            self.set(
                Field(Field::GUEST_ES_SELECTOR.0 + 2 * register),
                selector::USER_DATA.into(),
            );
            self.set(
                Field(Field::GUEST_ES_AR_BYTES.0 + 2 * register),
                ar::DATA | USER,
            );
        }
    }

    fn arena_compatibility(&mut self) {
        self.arena();
        self.set(Field::GUEST_CS_SELECTOR, selector::CODE_32.into());
        self.set(Field::GUEST_CS_AR_BYTES, ar::CODE_32);
    }

    fn arena_user_pae(&mut self) {
        self.arena_pae();
        self.arena_user(arena::USER_PAE);
        self.set(Field::GUEST_PDPTR0, (arena::USER_PAE + 0x1000) | 1);
    }

    fn arena_virtual_8086(&mut self) {
        self.arena_user_pae();
        self.virtual_8086();
        self.set(Field::GUEST_IDTR_LIMIT, 0x7ff);
    }
}

/// All of them.
pub static CODE_BASES: &[CodeBase] = &[
    base("code-long", 64, Fields::arena),
    base("code-long-ept", 64, Fields::arena_ept),
    base("code-tables", 64, |f| {
        f.arena_ept();
        f.unrestricted();
        f.primary |= Primary::USE_IO_BITMAPS | Primary::USE_MSR_BITMAPS;
        f.secondary |= Secondary::ENABLE_PML | Secondary::ENABLE_VM_FUNCTIONS;
        f.set(Field::EPT_POINTER, arena::EPT | 0x5e);
        f.set(Field::GUEST_PML_INDEX, 511);
        f.set(Field::VM_FUNCTION_CONTROL, 1);
    }),
    base("code-apic", 64, |f| {
        f.arena_ept();
        f.primary |= Primary::USE_TPR_SHADOW;
        f.secondary |=
            Secondary::VIRTUALIZE_APIC_ACCESSES | Secondary::APIC_REGISTER_VIRTUALIZATION;
    }),
    base("code-shadow", 64, |f| {
        f.arena_ept();
        f.secondary |= Secondary::VMCS_SHADOWING;
        f.set(Field::VMCS_LINK_POINTER, layout::SHADOW_LINK);
    }),
    base("code-compatibility", 32, Fields::arena_compatibility),
    base("code-pae", 32, Fields::arena_pae),
    base("code-pae-ept", 32, |f| {
        f.arena_pae();
        f.ept();
    }),
    base("code-legacy", 32, |f| {
        f.arena_pae();
        f.set(Field::GUEST_CR3, arena::LEGACY);
        f.set(Field::GUEST_CR4, 0x2200);
    }),
    base("code-flat", 32, Fields::arena_flat),
    real("code-real", false, |f| {
        f.arena();
        f.real();
        f.set(Field::EPT_POINTER, arena::EPT | 0x1e);
        for register in [4, 5] {
            for first in [
                Field::GUEST_ES_SELECTOR,
                Field::GUEST_ES_BASE,
                Field::GUEST_ES_LIMIT,
                Field::GUEST_ES_AR_BYTES,
            ] {
                f.set(Field(first.0 + 2 * register), f.value(first));
            }
        }
    }),
    user("code-user", 64, |f| {
        f.arena();
        f.arena_user(arena::USER_PAGING);
    }),
    user("code-user-ept", 64, |f| {
        f.arena_ept();
        f.arena_user(arena::USER_PAGING);
    }),
    user("code-user-compatibility", 32, |f| {
        f.arena_compatibility();
        f.arena_user(arena::USER_PAGING);
    }),
    user("code-user-pae", 32, Fields::arena_user_pae),
    real("code-virtual-8086", true, Fields::arena_virtual_8086),
];

/// What all of them start with.
const ARENA: &[(Field, u64)] = &[
    (Field::GUEST_CR0, 0x8001_0031),
    (Field::GUEST_CR3, arena::PAGING),
    (Field::GUEST_IA32_EFER, EFER),
    // Ports of the lab's machine are slow.
    (Field::VMX_PREEMPTION_TIMER_VALUE, 0x10_0000),
    (Field::TSC_MULTIPLIER, 1 << 48),
    (Field::GUEST_RIP, arena::CODE),
    (Field::GUEST_RSP, arena::STACK_TOP),
    (Field::GUEST_IDTR_BASE, arena::IDT_64),
    (Field::GUEST_GDTR_BASE, arena::GDT),
    (Field::GUEST_GDTR_LIMIT, GDT_LIMIT),
    (Field::GUEST_TR_BASE, arena::TSS_64),
    (Field::GUEST_TR_LIMIT, TSS_LIMIT),
    (Field::GUEST_TR_SELECTOR, selector::TSS as u64),
    (Field::EPT_POINTER, arena::EPT | 0x1e),
    (Field::VIRTUAL_APIC_PAGE_ADDR, arena::VIRTUAL_APIC),
    (Field::APIC_ACCESS_ADDR, arena::APIC_ACCESS),
    (Field::PML_ADDRESS, arena::PML),
    (Field::EPTP_LIST_ADDRESS, arena::EPTP_LIST),
    (Field::VE_INFORMATION_ADDRESS, arena::VE_INFORMATION),
    (Field::VMCS_LINK_POINTER, u64::MAX),
    (Field::MSR_BITMAP, map::MSR_BITMAP),
];
