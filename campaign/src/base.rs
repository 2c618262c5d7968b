//! The valid VMCSs that cases start from.

mod code;

pub use code::{CODE_BASES, CodeBase};

use crate::layout;
use nvmx_core::cpu::Model;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::capability::{Capability, ControlField};
use nvmx_core::vmx::controls::{EntryControls, ExitControls, PinBased, Primary, Secondary};
use nvmx_examples::runtime::map::{self, selector};
use nvmx_examples::runtime::standard::{self, ar};
use nvmx_examples::runtime::tables::EPT_POINTER;

/// A base.
pub struct Base {
    /// Its name.
    pub name: &'static str,
    /// What it adds to the standard fields of a 64-bit L2.
    build: fn(&mut Fields),
}

/// Fields under construction, and the controls as wanted.
#[derive(Debug, Clone, Default)]
struct Fields {
    values: Vec<(Field, u64)>,
    pin: PinBased,
    primary: Primary,
    secondary: Secondary,
    exit: ExitControls,
    entry: EntryControls,
}

impl Fields {
    fn set(&mut self, field: Field, value: u64) {
        self.values.retain(|(other, _)| *other != field);
        self.values.push((field, value));
    }

    fn value(&self, field: Field) -> u64 {
        let value = self.values.iter().find(|(other, _)| *other == field);
        value.map_or(0, |(_, value)| *value)
    }

    fn set_all(&mut self, values: impl IntoIterator<Item = (u32, u64)>) {
        for (field, value) in values {
            self.set(Field(field), value);
        }
    }

    fn ept(&mut self) {
        self.secondary |= Secondary::ENABLE_EPT | Secondary::ENABLE_VPID;
    }

    fn unrestricted(&mut self) {
        self.ept();
        self.secondary |= Secondary::UNRESTRICTED_GUEST;
    }

    /// No longer in IA-32e mode.
    fn legacy(&mut self) {
        self.entry.remove(EntryControls::IA32E_MODE_GUEST);
        self.set(Field::GUEST_IA32_EFER, 0);
        self.set(Field::GUEST_IDTR_BASE, layout::IDT_32);
        self.set(Field::GUEST_IDTR_LIMIT, 0x7ff);
        self.set(Field::GUEST_TR_BASE, layout::TSS_32);
    }

    fn pae(&mut self) {
        self.set_all(standard::pae(layout::CODE));
        self.legacy();
    }

    fn real(&mut self) {
        self.unrestricted();
        self.legacy();
        self.set_all(standard::real_mode(layout::REAL, REAL_RIP));
        self.set(Field::GUEST_RSP, 0x2ff0);
    }

    fn virtual_8086(&mut self) {
        self.set(Field::GUEST_RFLAGS, 0x2_0002);
        self.set(Field::GUEST_RIP, REAL_RIP);
        self.set(Field::GUEST_RSP, 0x2ff0);
        let segment = layout::REAL >> 4;
        for register in 0..6 {
            self.set(Field(0x800 + 2 * register), segment);
            self.set(Field(0x6806 + 2 * register), layout::REAL);
            self.set(Field(0x4800 + 2 * register), 0xffff);
            self.set(Field(0x4814 + 2 * register), 0xf3);
        }
    }

    fn inject(&mut self, information: u64, error_code: u64, length: u64) {
        self.set(Field::VM_ENTRY_INTR_INFO_FIELD, information);
        self.set(Field::VM_ENTRY_EXCEPTION_ERROR_CODE, error_code);
        self.set(Field::VM_ENTRY_INSTRUCTION_LEN, length);
    }
}

/// All of them. The first serves as a first look at a new backend.
pub static BASES: &[Base] = &[
    Base {
        name: "long",
        build: |_| {},
    },
    Base {
        name: "long-ept",
        build: Fields::ept,
    },
    Base {
        name: "unrestricted",
        build: Fields::unrestricted,
    },
    Base {
        name: "pae",
        build: Fields::pae,
    },
    Base {
        name: "pae-ept",
        build: |f| {
            f.pae();
            f.ept();
        },
    },
    Base {
        name: "real",
        build: Fields::real,
    },
    Base {
        name: "flat",
        build: |f| {
            f.pae();
            f.unrestricted();
            f.set(Field::GUEST_CR0, 0x31);
            f.set(Field::GUEST_CR4, 0x2220);
        },
    },
    Base {
        name: "compatibility",
        build: |f| {
            f.set(Field::GUEST_CS_SELECTOR, selector::CODE_32.into());
            f.set(Field::GUEST_CS_AR_BYTES, ar::CODE_32);
        },
    },
    Base {
        name: "user",
        build: |f| {
            f.set(Field::GUEST_CR3, layout::USER_PAGING);
            f.set(Field::GUEST_CS_SELECTOR, 0xb);
            f.set(Field::GUEST_CS_AR_BYTES, ar::CODE_64 | 0x60);
            f.set(Field::GUEST_SS_SELECTOR, 0x13);
            f.set(Field::GUEST_SS_AR_BYTES, ar::DATA | 0x60);
        },
    },
    Base {
        name: "virtual-8086",
        build: |f| {
            f.pae();
            f.set(Field::GUEST_CR3, layout::USER_PAE);
            f.set(Field::GUEST_PDPTR0, (layout::USER_PAE + 0x1000) | 1);
            f.virtual_8086();
        },
    },
    Base {
        name: "halted",
        build: |f| f.set(Field::GUEST_ACTIVITY_STATE, 1),
    },
    Base {
        name: "interrupt",
        build: |f| {
            f.set(Field::GUEST_RFLAGS, 0x202);
            f.inject(0x8000_0041, 0, 0);
        },
    },
    Base {
        name: "exception",
        build: |f| f.inject(0x8000_0b0d, 0x18, 0),
    },
    Base {
        name: "nmi",
        build: |f| {
            f.pin |= PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS;
            f.inject(0x8000_0202, 0, 0);
        },
    },
    Base {
        name: "software",
        build: |f| f.inject(0x8000_0480, 0, 2),
    },
    Base {
        name: "pae-exception",
        build: |f| {
            f.pae();
            f.ept();
            f.inject(0x8000_0b0e, 2, 0);
        },
    },
    Base {
        name: "windows",
        build: |f| {
            f.pin |= PinBased::NMI_EXITING | PinBased::VIRTUAL_NMIS;
            f.primary |= Primary::INTERRUPT_WINDOW_EXITING | Primary::NMI_WINDOW_EXITING;
            f.set(Field::GUEST_RFLAGS, 0x202);
        },
    },
    Base {
        name: "msr-lists",
        build: |f| {
            for count in [
                Field::VM_ENTRY_MSR_LOAD_COUNT,
                Field::VM_EXIT_MSR_STORE_COUNT,
                Field::VM_EXIT_MSR_LOAD_COUNT,
            ] {
                f.set(count, 2);
            }
        },
    },
    Base {
        name: "shadow",
        build: |f| {
            f.ept();
            f.secondary |= Secondary::VMCS_SHADOWING;
            f.set(Field::VMCS_LINK_POINTER, layout::SHADOW_LINK);
        },
    },
    Base {
        name: "tpr-shadow",
        build: |f| f.primary |= Primary::USE_TPR_SHADOW,
    },
    Base {
        name: "tables",
        build: |f| {
            f.ept();
            f.secondary |= Secondary::ENABLE_PML | Secondary::ENABLE_VM_FUNCTIONS;
            f.primary |= Primary::USE_IO_BITMAPS | Primary::USE_MSR_BITMAPS;
            f.primary.remove(Primary::UNCONDITIONAL_IO_EXITING);
            f.set(Field::EPT_POINTER, EPT_POINTER | 1 << 6);
            f.set(Field::GUEST_PML_INDEX, 511);
        },
    },
];

/// RIP of the bases in real-address and virtual-8086 mode.
pub const REAL_RIP: u64 = 0x2000;

/// These and those with an arena, in the order that L1 has them in.
pub fn all() -> impl Iterator<Item = &'static Base> {
    BASES.iter().chain(CODE_BASES.iter().map(|code| &code.base))
}

/// The number of the base with this name.
#[must_use]
pub fn find(name: &str) -> Option<usize> {
    all().position(|base| base.name == name)
}

/// The base with an arena that has this name.
#[must_use]
pub fn find_code(name: &str) -> Option<&'static CodeBase> {
    CODE_BASES.iter().find(|code| code.base.name == name)
}

impl Base {
    /// Its fields on a processor with these capabilities. Each field is there once.
    #[must_use]
    pub fn fields(&self, model: &Model, vm_exit: u64) -> Vec<(Field, u64)> {
        let mut f = Fields {
            pin: PinBased::ACTIVATE_PREEMPTION_TIMER,
            primary: Primary::HLT_EXITING | Primary::UNCONDITIONAL_IO_EXITING,
            exit: ExitControls::HOST_ADDRESS_SPACE_SIZE
                | ExitControls::SAVE_DEBUG_CONTROLS
                | ExitControls::SAVE_PAT
                | ExitControls::LOAD_PAT
                | ExitControls::SAVE_EFER
                | ExitControls::LOAD_EFER,
            entry: EntryControls::IA32E_MODE_GUEST
                | EntryControls::LOAD_DEBUG_CONTROLS
                | EntryControls::LOAD_PAT
                | EntryControls::LOAD_EFER,
            ..Fields::default()
        };
        f.set_all(standard::host(vm_exit));
        f.set_all(standard::guest(layout::CODE));
        for (field, value) in STANDARD {
            f.set(*field, *value);
        }
        (self.build)(&mut f);
        if !f.secondary.is_empty() {
            f.primary |= Primary::ACTIVATE_SECONDARY_CONTROLS;
        }
        let capability = Capability::from(model);
        for (field, control, wanted) in [
            (
                Field::PIN_BASED_VM_EXEC_CONTROL,
                ControlField::PinBased,
                f.pin.bits(),
            ),
            (
                Field::CPU_BASED_VM_EXEC_CONTROL,
                ControlField::Primary,
                f.primary.bits(),
            ),
            (
                Field::SECONDARY_VM_EXEC_CONTROL,
                ControlField::Secondary,
                f.secondary.bits(),
            ),
            (Field::VM_EXIT_CONTROLS, ControlField::Exit, f.exit.bits()),
            (
                Field::VM_ENTRY_CONTROLS,
                ControlField::Entry,
                f.entry.bits(),
            ),
        ] {
            f.set(field, capability.allowed(control).adjust(wanted.into()));
        }
        f.values
    }
}

const PAT: u64 = 0x0007_0406_0007_0406;
const LONG_MODE: u64 = 0x500;

/// What every base starts with beside the example guests' standard fields.
const STANDARD: &[(Field, u64)] = &[
    (Field::HOST_RSP, map::STACK_L1),
    (Field::HOST_IA32_PAT, PAT),
    (Field::HOST_IA32_EFER, LONG_MODE),
    (Field::GUEST_IA32_PAT, PAT),
    (Field::GUEST_IA32_EFER, LONG_MODE),
    (Field::GUEST_RSP, layout::STACK),
    (Field::GUEST_IDTR_BASE, layout::IDT_64),
    (Field::GUEST_TR_BASE, layout::TSS_64),
    (Field::VMX_PREEMPTION_TIMER_VALUE, 0x8000),
    (Field::EPT_POINTER, EPT_POINTER),
    (Field::VIRTUAL_PROCESSOR_ID, 1),
    (Field::IO_BITMAP_A, map::IO_BITMAP_A),
    (Field::IO_BITMAP_B, map::IO_BITMAP_B),
    (Field::MSR_BITMAP, map::MSR_BITMAP),
    (Field::VIRTUAL_APIC_PAGE_ADDR, map::VIRTUAL_APIC),
    (Field::APIC_ACCESS_ADDR, layout::APIC_ACCESS),
    (Field::POSTED_INTR_DESC_ADDR, layout::DESCRIPTOR),
    (Field::PML_ADDRESS, layout::PML),
    (Field::EPTP_LIST_ADDRESS, layout::EPTP_LIST),
    (Field::VMREAD_BITMAP, map::VMREAD_BITMAP),
    (Field::VMWRITE_BITMAP, map::VMWRITE_BITMAP),
    (Field::VM_ENTRY_MSR_LOAD_ADDR, layout::ENTRY_LOAD),
    (Field::VM_EXIT_MSR_STORE_ADDR, layout::EXIT_STORE),
    (Field::VM_EXIT_MSR_LOAD_ADDR, layout::EXIT_LOAD),
];

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::memory::{GuestMemory, VecMemory};
    use nvmx_core::vmx::Vmcs12;
    use nvmx_core::vmx::capability::KVM_6_1_ICELAKE;
    use nvmx_core::vmx::entry::checks::{Context, first_failure};

    #[test]
    fn every_base_keeps_all_rules_and_fits_its_page() {
        let model = Model {
            vmx_msrs: KVM_6_1_ICELAKE,
            physical_address_width: 39,
            linear_address_width: 48,
            ..Model::default()
        };
        let memory = VecMemory::new(16 << 20);
        let revision = 0x8000_0000 | Vmcs12::new().revision();
        for (address, bytes) in crate::tables::chunks() {
            memory
                .write(nvmx_core::addr::L1Phys(address), &bytes)
                .unwrap();
        }
        let pae = nvmx_examples::runtime::tables::paging_pae(map::PAGING_PAE);
        memory
            .write(nvmx_core::addr::L1Phys(map::PAGING_PAE), &pae)
            .unwrap();
        memory
            .write_u32(nvmx_core::addr::L1Phys(layout::SHADOW_LINK), revision)
            .unwrap();
        assert!(all().count() as u64 <= layout::MAX_BASES);
        for base in all() {
            let fields = base.fields(&model, 0x11_4000);
            assert!(fields.len() < 255, "{}", base.name);
            let mut vmcs12 = Vmcs12::new();
            for (field, value) in fields {
                vmcs12.set(field, value);
            }
            let context = Context {
                vmcs12: &vmcs12,
                model: &model,
                memory: &memory,
                current: Some(nvmx_core::addr::L1Phys(layout::VMCS)),
                l1_long_mode: true,
                smm: false,
            };
            let failure = first_failure(&context);
            // CPUID is empty here: no EFER bit is known.
            let known = failure.is_none_or(|rule| rule.id.contains("efer"));
            assert!(known, "{}: {failure:?}", base.name);
        }
    }
}
