//! What follows from the rest of a profile: IA32_VMX_CR4_FIXED1 from CPUID, IA32_VMX_VMCS_ENUM from the
//! fields that the controls bring (SDM appendix A.8 "VMX-Fixed Bits in CR4", A.9 "VMCS Enumeration",
//! appendix B "Field Encoding in VMCS": the notes on which processors have a field).

use crate::vmx::Field;
use crate::vmx::capability::{Capability, ControlField, MSR_COUNT};
use crate::vmx::vmcs12::Layout;
use crate::x86::control::cr4;
use crate::x86::cpuid::{self, CpuidEntry};

const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Bits of CR4, and the CPUID leaf, register and bit that say whether the processor has them.
const CR4_FOLLOWS: &[(u64, u32, usize, u32)] = &[
    (cr4::VME, 1, EDX, 1),
    (cr4::PVI, 1, EDX, 1),
    (cr4::TSD, 1, EDX, 4),
    (cr4::DE, 1, EDX, 2),
    (cr4::PSE, 1, EDX, 3),
    (cr4::PAE, 1, EDX, 6),
    (cr4::MCE, 1, EDX, 7),
    (cr4::PGE, 1, EDX, 13),
    (cr4::OSFXSR, 1, EDX, 24),
    (cr4::OSXMMEXCPT, 1, EDX, 25),
    (cr4::VMXE, 1, ECX, 5),
    (cr4::SMXE, 1, ECX, 6),
    (cr4::PCIDE, 1, ECX, 17),
    (cr4::OSXSAVE, 1, ECX, 26),
    (cr4::FSGSBASE, 7, EBX, 0),
    (cr4::SMEP, 7, EBX, 7),
    (cr4::SMAP, 7, EBX, 20),
    (cr4::PKE, 7, ECX, 3),
    (cr4::UMIP, 7, ECX, 2),
    (cr4::LA57, 7, ECX, 16),
    // CET, PKS, UINTR.
    (1 << 23, 7, ECX, 7),
    (1 << 23, 7, EDX, 20),
    (1 << 24, 7, ECX, 31),
    (1 << 25, 7, EDX, 5),
];

/// IA32_VMX_CR4_FIXED1 as it follows from CPUID: the bits of CR4 that the processor has. KVM computes it
/// so (`nested_vmx_cr_fixed1_bits_update`) and takes no other value.
#[must_use]
pub fn cr4_fixed1(cpuid: &[CpuidEntry]) -> u64 {
    CR4_FOLLOWS
        .iter()
        .filter(|(_, leaf, register, bit)| {
            cpuid::lookup(cpuid, *leaf, 0)[*register] >> bit & 1 != 0
        })
        .fold(cr4::PCE, |bits, (bit, ..)| bits | bit)
}

/// The controls that bring a field: one of them must be allowed. Empty for fields that every processor
/// has.
const fn brought_by(field: Field) -> &'static [(ControlField, u32)] {
    use ControlField::{Entry, Exit, PinBased, Primary, Secondary, Tertiary};
    match field.full() {
        Field::VIRTUAL_PROCESSOR_ID => &[(Secondary, 5)],
        Field::POSTED_INTR_NV | Field::POSTED_INTR_DESC_ADDR => &[(PinBased, 7)],
        Field::EPTP_INDEX | Field::VE_INFORMATION_ADDRESS => &[(Secondary, 18)],
        Field::HLAT_PREFIX_SIZE | Field::HLAT_POINTER => &[(Tertiary, 1)],
        Field::LAST_PID_POINTER_INDEX | Field::PID_POINTER_TABLE => &[(Tertiary, 4)],
        Field::VIRTUAL_TIMER_VECTOR | Field::GUEST_DEADLINE_SHADOW | Field::GUEST_DEADLINE => {
            &[(Tertiary, 8)]
        }
        Field::GUEST_INTR_STATUS
        | Field::EOI_EXIT_BITMAP0
        | Field::EOI_EXIT_BITMAP1
        | Field::EOI_EXIT_BITMAP2
        | Field::EOI_EXIT_BITMAP3 => &[(Secondary, 9)],
        Field::GUEST_PML_INDEX | Field::PML_ADDRESS => &[(Secondary, 17)],
        Field::GUEST_UINV => &[(Entry, 19)],
        Field::MSR_BITMAP => &[(Primary, 28)],
        Field::VIRTUAL_APIC_PAGE_ADDR | Field::TPR_THRESHOLD => &[(Primary, 21)],
        Field::APIC_ACCESS_ADDR => &[(Secondary, 0)],
        Field::VM_FUNCTION_CONTROL | Field::EPTP_LIST_ADDRESS => &[(Secondary, 13)],
        Field::EPT_POINTER
        | Field::GUEST_PHYSICAL_ADDRESS
        | Field::GUEST_PDPTR0
        | Field::GUEST_PDPTR1
        | Field::GUEST_PDPTR2
        | Field::GUEST_PDPTR3 => &[(Secondary, 1)],
        Field::VMREAD_BITMAP | Field::VMWRITE_BITMAP => &[(Secondary, 14)],
        Field::XSS_EXIT_BITMAP => &[(Secondary, 20)],
        Field::ENCLS_EXITING_BITMAP => &[(Secondary, 15)],
        Field::SPP_TABLE_POINTER => &[(Secondary, 23)],
        Field::TSC_MULTIPLIER => &[(Secondary, 25)],
        Field::TERTIARY_VM_EXEC_CONTROL => &[(Primary, 17)],
        Field::ENCLV_EXITING_BITMAP => &[(Secondary, 28)],
        Field::LOW_PASID_DIRECTORY | Field::HIGH_PASID_DIRECTORY => &[(Secondary, 21)],
        // TDX module alone: no control of this table.
        Field::SHARED_EPT_POINTER => &[(Tertiary, 63)],
        Field::PCONFIG_EXITING_BITMAP => &[(Secondary, 27)],
        Field::SECONDARY_VM_EXIT_CONTROLS => &[(Exit, 31)],
        Field::SPEC_CTRL_MASK | Field::SPEC_CTRL_SHADOW => &[(Tertiary, 7)],
        Field::MSR_DATA => &[(Tertiary, 6)],
        Field::GUEST_IA32_SPEC_CTRL | Field::HOST_IA32_SPEC_CTRL => {
            &[(ControlField::SecondaryExit, 2)]
        }
        Field::INJECTED_EVENT_DATA
        | Field::ORIGINAL_EVENT_DATA
        | Field::GUEST_IA32_FRED_CONFIG
        | Field::GUEST_IA32_FRED_RSP1
        | Field::GUEST_IA32_FRED_RSP2
        | Field::GUEST_IA32_FRED_RSP3
        | Field::GUEST_IA32_FRED_STKLVLS
        | Field::GUEST_IA32_FRED_SSP1
        | Field::GUEST_IA32_FRED_SSP2
        | Field::GUEST_IA32_FRED_SSP3
        | Field::HOST_IA32_FRED_CONFIG
        | Field::HOST_IA32_FRED_RSP1
        | Field::HOST_IA32_FRED_RSP2
        | Field::HOST_IA32_FRED_RSP3
        | Field::HOST_IA32_FRED_STKLVLS
        | Field::HOST_IA32_FRED_SSP1
        | Field::HOST_IA32_FRED_SSP2
        | Field::HOST_IA32_FRED_SSP3 => &[(Entry, 23)],
        Field::GUEST_IA32_PAT => &[(Entry, 14), (Exit, 18)],
        Field::GUEST_IA32_EFER => &[(Entry, 15), (Exit, 20)],
        Field::GUEST_IA32_PERF_GLOBAL_CTRL => &[(Entry, 13), (Exit, 30)],
        Field::GUEST_BNDCFGS => &[(Entry, 16), (Exit, 23)],
        Field::GUEST_IA32_RTIT_CTL => &[(Entry, 18), (Exit, 25)],
        Field::GUEST_IA32_LBR_CTL => &[(Entry, 21), (Exit, 26)],
        Field::GUEST_IA32_PKRS => &[(Entry, 22)],
        Field::HOST_IA32_PAT => &[(Exit, 19)],
        Field::HOST_IA32_EFER => &[(Exit, 21)],
        Field::HOST_IA32_PERF_GLOBAL_CTRL => &[(Exit, 12)],
        Field::HOST_IA32_PKRS => &[(Exit, 29)],
        Field::SECONDARY_VM_EXEC_CONTROL => &[(Primary, 31)],
        Field::PLE_GAP | Field::PLE_WINDOW => &[(Secondary, 10)],
        Field::NOTIFY_WINDOW => &[(Secondary, 31)],
        Field::VMX_PREEMPTION_TIMER_VALUE => &[(PinBased, 6)],
        Field::GUEST_S_CET | Field::GUEST_SSP | Field::GUEST_INTR_SSP_TABLE => &[(Entry, 20)],
        Field::HOST_S_CET | Field::HOST_SSP | Field::HOST_INTR_SSP_TABLE => &[(Exit, 28)],
        _ => &[],
    }
}

/// Whether a processor with these capabilities has a field of the appendix.
#[must_use]
pub fn has_field(capability: Capability<'_>, field: Field) -> bool {
    let brought_by = brought_by(field);
    brought_by.is_empty()
        || brought_by
            .iter()
            .any(|&(control, bit)| capability.allowed(control).may_be_one >> bit & 1 != 0)
}

/// The field with the highest index among those that these capabilities bring.
#[must_use]
pub fn highest_field(capability: Capability<'_>) -> Field {
    Field::all()
        .filter(|&field| has_field(capability, field))
        .max_by_key(|field| field.index())
        .unwrap_or(Field::IO_BITMAP_A)
}

/// IA32_VMX_VMCS_ENUM: the highest index of any field that these capabilities bring. KVM offers every
/// field of its layout whatever it exposes, so that its own value is [`Layout::vmcs_enum`].
#[must_use]
pub fn vmcs_enum(msrs: &[u64; MSR_COUNT]) -> u64 {
    u64::from(highest_field(Capability::new(msrs)).index()) << 1
}

/// IA32_VMX_VMCS_ENUM of KVM's layout up to Linux 6.17.
#[must_use]
pub fn kvm_vmcs_enum() -> u64 {
    Layout::Linux6_1.vmcs_enum()
}
