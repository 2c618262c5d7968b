//! Between the kernel's structures (Linux `arch/x86/include/uapi/asm/kvm.h`) and nvmx-core's.
//!
//! `kvm_segment` spreads the access rights over ten bytes; ours are in the VMCS's format
//! (SDM Vol. 3C "Guest Register State"). This is the only place that knows both.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_SREGS2_FLAGS_PDPTRS_VALID,
    KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_PAYLOAD, KVM_VCPUEVENT_VALID_SHADOW,
    KVM_VCPUEVENT_VALID_SIPI_VECTOR, KVM_VCPUEVENT_VALID_SMM, KVM_VCPUEVENT_VALID_TRIPLE_FAULT,
    kvm_cpuid_entry2, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs2,
    kvm_vcpu_events,
};
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::{
    AccessRights, DebugRegs, DescriptorTable, Gpr, Regs, Segment, Sregs, VcpuEvents,
};

/// A segment as the kernel gives it.
#[must_use]
pub fn segment(kernel: &kvm_segment) -> Segment {
    let bits = u32::from(kernel.type_ & 15)
        | u32::from(kernel.s & 1) << 4
        | u32::from(kernel.dpl & 3) << 5
        | u32::from(kernel.present & 1) << 7
        | u32::from(kernel.avl & 1) << 12
        | u32::from(kernel.l & 1) << 13
        | u32::from(kernel.db & 1) << 14
        | u32::from(kernel.g & 1) << 15
        | u32::from(kernel.unusable & 1) << 16;
    Segment {
        selector: kernel.selector,
        base: kernel.base,
        limit: kernel.limit,
        ar: AccessRights::from_bits_retain(bits),
    }
}

/// A segment as the kernel takes it. Reserved bits of the access rights have no place there.
#[must_use]
pub fn kernel_segment(segment: &Segment) -> kvm_segment {
    let bit = |flag: AccessRights| u8::from(segment.ar.contains(flag));
    kvm_segment {
        base: segment.base,
        limit: segment.limit,
        selector: segment.selector,
        type_: segment.ar.segment_type(),
        present: bit(AccessRights::PRESENT),
        dpl: segment.ar.dpl(),
        db: bit(AccessRights::DEFAULT_BIG),
        s: bit(AccessRights::CODE_OR_DATA),
        l: bit(AccessRights::LONG),
        g: bit(AccessRights::GRANULARITY),
        avl: bit(AccessRights::AVL),
        unusable: bit(AccessRights::UNUSABLE),
        padding: 0,
    }
}

fn table(kernel: &kvm_dtable) -> DescriptorTable {
    DescriptorTable {
        base: kernel.base,
        limit: kernel.limit,
    }
}

fn kernel_table(table: &DescriptorTable) -> kvm_dtable {
    kvm_dtable {
        base: table.base,
        limit: table.limit,
        padding: [0; 3],
    }
}

/// `struct kvm_sregs2` to ours.
#[must_use]
pub fn sregs(kernel: &kvm_sregs2) -> Sregs {
    Sregs {
        es: segment(&kernel.es),
        cs: segment(&kernel.cs),
        ss: segment(&kernel.ss),
        ds: segment(&kernel.ds),
        fs: segment(&kernel.fs),
        gs: segment(&kernel.gs),
        ldtr: segment(&kernel.ldt),
        tr: segment(&kernel.tr),
        gdtr: table(&kernel.gdt),
        idtr: table(&kernel.idt),
        cr0: kernel.cr0,
        cr2: kernel.cr2,
        cr3: kernel.cr3,
        cr4: kernel.cr4,
        cr8: kernel.cr8,
        efer: kernel.efer,
        apic_base: kernel.apic_base,
        pdptrs: kernel.pdptrs,
        pdptrs_valid: kernel.flags & u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID) != 0,
    }
}

/// Ours to `struct kvm_sregs2`.
#[must_use]
pub fn kernel_sregs(sregs: &Sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: kernel_segment(&sregs.cs),
        ds: kernel_segment(&sregs.ds),
        es: kernel_segment(&sregs.es),
        fs: kernel_segment(&sregs.fs),
        gs: kernel_segment(&sregs.gs),
        ss: kernel_segment(&sregs.ss),
        tr: kernel_segment(&sregs.tr),
        ldt: kernel_segment(&sregs.ldtr),
        gdt: kernel_table(&sregs.gdtr),
        idt: kernel_table(&sregs.idtr),
        cr0: sregs.cr0,
        cr2: sregs.cr2,
        cr3: sregs.cr3,
        cr4: sregs.cr4,
        cr8: sregs.cr8,
        efer: sregs.efer,
        apic_base: sregs.apic_base,
        flags: if sregs.pdptrs_valid {
            u64::from(KVM_SREGS2_FLAGS_PDPTRS_VALID)
        } else {
            0
        },
        pdptrs: if sregs.pdptrs_valid {
            sregs.pdptrs
        } else {
            [0; 4]
        },
    }
}

/// `struct kvm_regs` to ours: the kernel's order is not the encoding's.
#[must_use]
pub fn regs(kernel: &kvm_regs) -> Regs {
    let k = kernel;
    Regs {
        gpr: [
            k.rax, k.rcx, k.rdx, k.rbx, k.rsp, k.rbp, k.rsi, k.rdi, k.r8, k.r9, k.r10, k.r11,
            k.r12, k.r13, k.r14, k.r15,
        ],
        rip: k.rip,
        rflags: k.rflags,
    }
}

/// Ours to `struct kvm_regs`.
#[must_use]
pub fn kernel_regs(regs: &Regs) -> kvm_regs {
    kvm_regs {
        rax: regs.get(Gpr::Rax),
        rbx: regs.get(Gpr::Rbx),
        rcx: regs.get(Gpr::Rcx),
        rdx: regs.get(Gpr::Rdx),
        rsi: regs.get(Gpr::Rsi),
        rdi: regs.get(Gpr::Rdi),
        rsp: regs.get(Gpr::Rsp),
        rbp: regs.get(Gpr::Rbp),
        r8: regs.get(Gpr::R8),
        r9: regs.get(Gpr::R9),
        r10: regs.get(Gpr::R10),
        r11: regs.get(Gpr::R11),
        r12: regs.get(Gpr::R12),
        r13: regs.get(Gpr::R13),
        r14: regs.get(Gpr::R14),
        r15: regs.get(Gpr::R15),
        rip: regs.rip,
        rflags: regs.rflags,
    }
}

/// `struct kvm_debugregs` to ours.
#[must_use]
pub fn debug(kernel: &kvm_debugregs) -> DebugRegs {
    DebugRegs {
        db: kernel.db,
        dr6: kernel.dr6,
        dr7: kernel.dr7,
    }
}

/// Ours to `struct kvm_debugregs`.
#[must_use]
pub fn kernel_debug(debug: &DebugRegs) -> kvm_debugregs {
    kvm_debugregs {
        db: debug.db,
        dr6: debug.dr6,
        dr7: debug.dr7,
        ..Default::default()
    }
}

/// What of `struct kvm_vcpu_events` this VM speaks: each needs a capability of the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EventFeatures {
    /// `KVM_CAP_EXCEPTION_PAYLOAD` is enabled: pending and injected are told apart.
    pub payload: bool,
    /// `KVM_CAP_X86_TRIPLE_FAULT_EVENT` is enabled.
    pub triple_fault: bool,
    /// `KVM_CAP_X86_SMM`.
    pub smm: bool,
}

/// `struct kvm_vcpu_events` to ours.
#[must_use]
pub fn events(kernel: &kvm_vcpu_events) -> VcpuEvents {
    let k = kernel;
    let payload = k.flags & KVM_VCPUEVENT_VALID_PAYLOAD != 0;
    let exception = k.exception.injected != 0 || (payload && k.exception.pending != 0);
    VcpuEvents {
        exception_injected: k.exception.injected != 0,
        exception_pending: payload && k.exception.pending != 0,
        // Without an event the kernel leaves the last one's numbers here: noise in a comparison.
        exception_vector: if exception { k.exception.nr } else { 0 },
        exception_error_code: (exception && k.exception.has_error_code != 0)
            .then_some(k.exception.error_code),
        exception_payload: (exception && payload && k.exception_has_payload != 0)
            .then_some(k.exception_payload),
        interrupt_injected: k.interrupt.injected != 0,
        interrupt_vector: if k.interrupt.injected != 0 {
            k.interrupt.nr
        } else {
            0
        },
        interrupt_soft: k.interrupt.injected != 0 && k.interrupt.soft != 0,
        interrupt_shadow: k.interrupt.shadow,
        nmi_injected: k.nmi.injected != 0,
        nmi_pending: k.nmi.pending,
        nmi_masked: k.nmi.masked != 0,
        sipi_vector: k.sipi_vector,
        smm: k.smi.smm != 0,
        smi_pending: k.smi.pending != 0,
        smm_inside_nmi: k.smi.smm_inside_nmi != 0,
        latched_init: k.smi.latched_init != 0,
        triple_fault_pending: k.triple_fault.pending != 0,
    }
}

/// Ours to `struct kvm_vcpu_events`; an error names what this kernel has no place for.
pub fn kernel_events(events: &VcpuEvents, features: EventFeatures) -> Result<kvm_vcpu_events> {
    let refuse = |field: &str, capability: &str| {
        Err(BackendError::StateRefused {
            part: format!("events.{field}"),
            reason: format!("this kernel does not offer {capability}"),
        })
    };
    if events.exception_pending && !features.payload {
        return refuse("exception_pending", "KVM_CAP_EXCEPTION_PAYLOAD");
    }
    if events.triple_fault_pending && !features.triple_fault {
        return refuse("triple_fault_pending", "KVM_CAP_X86_TRIPLE_FAULT_EVENT");
    }
    if (events.smm || events.smi_pending) && !features.smm {
        return refuse("smm", "KVM_CAP_X86_SMM");
    }
    let mut k = kvm_vcpu_events {
        flags: KVM_VCPUEVENT_VALID_NMI_PENDING
            | KVM_VCPUEVENT_VALID_SIPI_VECTOR
            | KVM_VCPUEVENT_VALID_SHADOW,
        sipi_vector: events.sipi_vector,
        ..Default::default()
    };
    k.exception.injected = events.exception_injected.into();
    k.exception.nr = events.exception_vector;
    k.exception.has_error_code = events.exception_error_code.is_some().into();
    k.exception.error_code = events.exception_error_code.unwrap_or(0);
    if features.payload {
        k.flags |= KVM_VCPUEVENT_VALID_PAYLOAD;
        k.exception.pending = events.exception_pending.into();
        k.exception_has_payload = events.exception_payload.is_some().into();
        k.exception_payload = events.exception_payload.unwrap_or(0);
    }
    k.interrupt.injected = events.interrupt_injected.into();
    k.interrupt.nr = events.interrupt_vector;
    k.interrupt.soft = events.interrupt_soft.into();
    k.interrupt.shadow = events.interrupt_shadow;
    k.nmi.injected = events.nmi_injected.into();
    k.nmi.pending = events.nmi_pending;
    k.nmi.masked = events.nmi_masked.into();
    if features.smm {
        k.flags |= KVM_VCPUEVENT_VALID_SMM;
        k.smi.smm = events.smm.into();
        k.smi.pending = events.smi_pending.into();
        k.smi.smm_inside_nmi = events.smm_inside_nmi.into();
        k.smi.latched_init = events.latched_init.into();
    }
    if features.triple_fault {
        k.flags |= KVM_VCPUEVENT_VALID_TRIPLE_FAULT;
        k.triple_fault.pending = events.triple_fault_pending.into();
    }
    Ok(k)
}

/// The kernel's CPUID table to ours.
#[must_use]
pub fn cpuid(kernel: &CpuId) -> Vec<CpuidEntry> {
    let entry = |k: &kvm_cpuid_entry2| CpuidEntry {
        leaf: k.function,
        subleaf: k.index,
        subleaf_significant: k.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
        eax: k.eax,
        ebx: k.ebx,
        ecx: k.ecx,
        edx: k.edx,
    };
    kernel.as_slice().iter().map(entry).collect()
}

/// Our CPUID table to the kernel's.
pub fn kernel_cpuid(entries: &[CpuidEntry]) -> Result<CpuId> {
    let entries: Vec<_> = entries
        .iter()
        .map(|e| kvm_cpuid_entry2 {
            function: e.leaf,
            index: e.subleaf,
            flags: if e.subleaf_significant {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            },
            eax: e.eax,
            ebx: e.ebx,
            ecx: e.ecx,
            edx: e.edx,
            padding: [0; 3],
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|error| BackendError::StateRefused {
        part: "cpuid".into(),
        reason: format!("{} entries: {error:?}", entries.len()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_defined_access_right_survives_the_kernels_format() {
        for bits in (0..1u32 << 17).filter(|bits| bits & 0x0f00 == 0) {
            let ours = Segment {
                selector: 0x10,
                base: 0x1234,
                limit: 0xfffff,
                ar: AccessRights::from_bits_retain(bits),
            };
            assert_eq!(segment(&kernel_segment(&ours)), ours, "{bits:#x}");
        }
    }

    #[test]
    fn registers_survive_and_keep_their_names() {
        let mut ours = Regs {
            rip: 0x1000,
            rflags: 2,
            ..Default::default()
        };
        for (number, gpr) in Gpr::ALL.into_iter().enumerate() {
            ours.set(gpr, 100 + number as u64);
        }
        let kernel = kernel_regs(&ours);
        assert_eq!((kernel.rbx, kernel.rsp, kernel.rdi), (103, 104, 107));
        assert_eq!(regs(&kernel), ours);
    }

    #[test]
    fn events_need_the_capabilities_that_carry_them() {
        let all = EventFeatures {
            payload: true,
            triple_fault: true,
            smm: true,
        };
        let events = VcpuEvents {
            exception_pending: true,
            exception_vector: 14,
            exception_error_code: Some(2),
            exception_payload: Some(0xdead),
            nmi_pending: 1,
            triple_fault_pending: true,
            smm: true,
            latched_init: true,
            interrupt_shadow: 1,
            ..Default::default()
        };
        assert_eq!(super::events(&kernel_events(&events, all).unwrap()), events);
        for (missing, field) in [
            (
                EventFeatures {
                    payload: false,
                    ..all
                },
                "exception_pending",
            ),
            (
                EventFeatures {
                    triple_fault: false,
                    ..all
                },
                "triple_fault_pending",
            ),
            (EventFeatures { smm: false, ..all }, "smm"),
        ] {
            let error = kernel_events(&events, missing).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
