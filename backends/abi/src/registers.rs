//! Registers: `struct kvm_regs`, `kvm_sregs`, `kvm_sregs2`, `kvm_debugregs`.
//!
//! `kvm_segment` spreads the access rights over ten bytes; ours are in the VMCS's format
//! (SDM Vol. 3C "Guest Register State"). This is the only place that knows both.

use kvm_bindings::{
    KVM_SREGS2_FLAGS_PDPTRS_VALID, kvm_debugregs, kvm_dtable, kvm_regs, kvm_segment, kvm_sregs,
    kvm_sregs2,
};
use nvmx_core::x86::{AccessRights, DebugRegs, DescriptorTable, Gpr, Regs, Segment, Sregs};

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

/// `struct kvm_sregs` without PDPTEs, as the newer structure.
#[must_use]
pub fn newer(old: &kvm_sregs) -> kvm_sregs2 {
    kvm_sregs2 {
        cs: old.cs,
        ds: old.ds,
        es: old.es,
        fs: old.fs,
        gs: old.gs,
        ss: old.ss,
        tr: old.tr,
        ldt: old.ldt,
        gdt: old.gdt,
        idt: old.idt,
        cr0: old.cr0,
        cr2: old.cr2,
        cr3: old.cr3,
        cr4: old.cr4,
        cr8: old.cr8,
        efer: old.efer,
        apic_base: old.apic_base,
        ..Default::default()
    }
}

/// The newer structure as `struct kvm_sregs`, with the vector of an external interrupt under delivery,
/// which the newer one leaves to the events.
#[must_use]
pub fn older(new: &kvm_sregs2, injected_interrupt: Option<u8>) -> kvm_sregs {
    let mut old = kvm_sregs {
        cs: new.cs,
        ds: new.ds,
        es: new.es,
        fs: new.fs,
        gs: new.gs,
        ss: new.ss,
        tr: new.tr,
        ldt: new.ldt,
        gdt: new.gdt,
        idt: new.idt,
        cr0: new.cr0,
        cr2: new.cr2,
        cr3: new.cr3,
        cr4: new.cr4,
        cr8: new.cr8,
        efer: new.efer,
        apic_base: new.apic_base,
        interrupt_bitmap: [0; 4],
    };
    if let Some(vector) = injected_interrupt {
        old.interrupt_bitmap[usize::from(vector / 64)] = 1 << (vector % 64);
    }
    old
}

/// The interrupt that `interrupt_bitmap` names: the lowest vector, as KVM takes it.
#[must_use]
pub fn interrupt_in_bitmap(old: &kvm_sregs) -> Option<u8> {
    let (word, bits) = (0u8..)
        .zip(old.interrupt_bitmap)
        .find(|(_, bits)| *bits != 0)?;
    Some(word * 64 + bits.trailing_zeros() as u8)
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
    fn the_older_structure_carries_the_interrupt_under_delivery() {
        let new = kvm_sregs2 {
            cr3: 0x1000,
            ..Default::default()
        };
        for vector in [0, 63, 64, 255] {
            let old = older(&new, Some(vector));
            assert_eq!(interrupt_in_bitmap(&old), Some(vector));
            assert_eq!(newer(&old), new);
        }
        assert_eq!(interrupt_in_bitmap(&older(&new, None)), None);
    }
}
