//! The state of a processor after RESET (SDM Vol. 3A "Processor State After Reset").

use nvmx_core::cpu::Cpu;
use nvmx_core::x86::{AccessRights, Segment, Sregs};

/// Registers after RESET or INIT, without system registers.
pub(crate) fn cpu() -> Cpu {
    let mut cpu = Cpu::default();
    cpu.regs.rip = 0xfff0;
    cpu.regs.rflags = 2;
    cpu
}

/// Segments and control registers after RESET.
pub(crate) fn sregs() -> Sregs {
    let segment = |ar, selector, base| Segment {
        selector,
        base,
        limit: 0xffff,
        ar: AccessRights::from_bits_retain(ar),
    };
    let data = segment(0x93, 0, 0);
    Sregs {
        es: data,
        cs: segment(0x9b, 0xf000, 0xffff_0000),
        ss: data,
        ds: data,
        fs: data,
        gs: data,
        ldtr: segment(0x82, 0, 0),
        tr: segment(0x8b, 0, 0),
        gdtr: nvmx_core::x86::DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        idtr: nvmx_core::x86::DescriptorTable {
            base: 0,
            limit: 0xffff,
        },
        cr0: 0x6000_0010,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    }
}
