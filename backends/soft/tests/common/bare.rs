//! Machines without a guest of their own: every mode, flat, with tables whose handlers return, and
//! random bytes to run.

use iced_x86::code_asm::CodeAssembler;
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::{Vm, VmConfig};
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{AccessRights, CpuState, DescriptorTable, Gpr, MpState, Regs, Segment, Sregs};
use nvmx_soft::SoftVm;

pub(crate) const CODE: u64 = 0x1_0000;
pub(crate) const STACK: u64 = 0x2_0000;
pub(crate) const PAGING: u64 = 0x4000;
pub(crate) const IDT: u64 = 0x8000;
pub(crate) const GDT: u64 = 0x9000;
pub(crate) const HANDLER: u64 = 0xa000;
pub(crate) const MEMORY: u64 = 2 << 20;

/// How many cases: `usual`, or that many times `NVMX_SOAK` for a long hunt.
pub(crate) fn cases(usual: u32) -> u32 {
    let factor = std::env::var("NVMX_SOAK")
        .ok()
        .and_then(|factor| factor.parse::<u32>().ok());
    usual * factor.unwrap_or(1)
}

/// SplitMix64.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// A number of the kind that finds edges.
    pub(crate) fn odd(&mut self) -> u64 {
        match self.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << self.below(64),
            3 => self.below(MEMORY),
            4 => (MEMORY - 16) + self.below(32),
            5 => 0x0000_8000_0000_0000 - 8 + self.below(16),
            6 => self.next() & 0xffff_ffff,
            _ => self.next(),
        }
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Vec<u8> {
        // Prefixes and two-byte opcodes are where the interpreters are.
        const LIKELY: [u8; 28] = [
            0x0f, 0x0f, 0x0f, 0x66, 0x67, 0xf2, 0xf3, 0xf0, 0x48, 0x2e, 0x01, 0x00, 0xc7, 0x20,
            0x22, 0x23, 0x30, 0x32, 0xa2, 0x31, 0xe4, 0xec, 0x6c, 0x6e, 0xcd, 0xcf, 0xf4, 0x9d,
        ];
        let mut bytes = vec![0; length];
        let weird = self.below(3);
        for byte in &mut bytes {
            let word = self.next();
            *byte = if weird > 0 && word >> 60 < 5 {
                LIKELY[(word >> 8) as usize % LIKELY.len()]
            } else {
                word as u8
            };
        }
        bytes
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Long0,
    Long3,
    Compatibility,
    Protected0,
    Protected3,
    Pae,
    Virtual8086,
    Real,
}

pub(crate) const MODES: [Mode; 8] = [
    Mode::Long0,
    Mode::Long3,
    Mode::Compatibility,
    Mode::Protected0,
    Mode::Protected3,
    Mode::Pae,
    Mode::Virtual8086,
    Mode::Real,
];

pub(crate) fn segment(selector: u16, ar: u32, limit: u32) -> Segment {
    Segment {
        selector,
        base: 0,
        limit,
        ar: AccessRights::from_bits_retain(ar),
    }
}

/// A flat machine in `mode`, with descriptor tables whose handlers return.
pub(crate) fn state(mode: Mode, random: &mut Random) -> CpuState {
    use Mode::*;
    let long = matches!(mode, Long0 | Long3 | Compatibility);
    let user = matches!(mode, Long3 | Protected3 | Virtual8086);
    let real = mode == Real;
    let dpl = if user { 0x60 } else { 0 };
    let selector = if user { 3 } else { 0 };
    let code = match mode {
        Long0 | Long3 => segment(0x08 | selector, 0xa09b | dpl, u32::MAX),
        Real => segment(0, 0x9b, 0xffff),
        Virtual8086 => segment(0, 0xf3, 0xffff),
        _ => segment(0x18 | selector, 0xc09b | dpl, u32::MAX),
    };
    let data = match mode {
        Real => segment(0, 0x93, 0xffff),
        Virtual8086 => segment(0, 0xf3, 0xffff),
        _ => segment(0x10 | selector, 0xc093 | dpl, u32::MAX),
    };
    let mut sregs = Sregs {
        cs: code,
        ss: data,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        tr: segment(0x28, 0x8b, 0x67),
        ldtr: segment(0, 0x1_0082, 0),
        gdtr: DescriptorTable {
            base: GDT,
            limit: 0x7f,
        },
        idtr: DescriptorTable {
            base: IDT,
            limit: 0xfff,
        },
        cr0: cr0::ET | cr0::NE,
        apic_base: 0xfee0_0900,
        ..Sregs::default()
    };
    if !real {
        sregs.cr0 |= cr0::PE;
    }
    if long || mode == Pae {
        sregs.cr0 |= cr0::PG;
        sregs.cr3 = if long { PAGING } else { PAGING + 0x3000 };
        sregs.cr4 = cr4::PAE;
    }
    if long {
        sregs.efer = efer::LME | efer::LMA | efer::SCE;
    }
    sregs.cr4 |= [0, cr4::VMXE, cr4::OSXSAVE, cr4::TSD | cr4::DE, 1 << 9][random.below(5) as usize];
    if mode == Virtual8086 && random.below(2) == 0 {
        sregs.cr4 |= 1;
    }
    let mut regs = Regs {
        rip: CODE,
        rflags: 2 | random.next() & 0x4_8dd5,
        ..Regs::default()
    };
    if matches!(mode, Real | Virtual8086) {
        // CS selects the code; IP starts at zero.
        sregs.cs.selector = (CODE >> 4) as u16;
        sregs.cs.base = CODE;
        regs.rip = 0;
        if mode == Real {
            regs.rflags &= !0x3000;
        }
    }
    if mode == Virtual8086 {
        regs.rflags |= 1 << 17;
        sregs.ss.selector = 0x1000;
        sregs.ss.base = 0x1_0000;
    }
    for gpr in 0..16 {
        regs.gpr[gpr] = random.odd();
    }
    regs.set(Gpr::Rsp, STACK);
    CpuState {
        sregs: Some(sregs),
        regs: Some(regs),
        ..CpuState::default()
    }
}

pub(crate) fn put(vm: &mut SoftVm, address: u64, bytes: &[u8]) {
    vm.write_memory(L1Phys(address), bytes).expect("RAM");
}

/// Page tables (64-bit: identity of the first 2 MiB; PAE the same), GDT, an IDT of each width.
pub(crate) fn furnish(vm: &mut SoftVm, wide: bool) {
    let entry = |vm: &mut SoftVm, address, value: u64| put(vm, address, &value.to_le_bytes());
    entry(vm, PAGING, (PAGING + 0x1000) | 7);
    entry(vm, PAGING + 0x1000, (PAGING + 0x2000) | 7);
    entry(vm, PAGING + 0x2000, 0x87);
    entry(vm, PAGING + 0x3000, (PAGING + 0x2000) | 1);
    for (index, descriptor) in [
        0_u64,
        0x00af_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        0x00cf_9b00_0000_ffff,
        0x00cf_f300_0000_ffff,
        0x0000_8b00_b000_0067,
    ]
    .iter()
    .enumerate()
    {
        entry(vm, GDT + 8 * index as u64, *descriptor);
    }
    // TSS: stacks of ring 0.
    entry(vm, 0xb004, STACK - 0x1000);
    put(vm, 0xb008, &[0x10, 0]);
    for vector in 0..256_u64 {
        if wide {
            entry(
                vm,
                IDT + 16 * vector,
                HANDLER & 0xffff | 0x08 << 16 | 0x8e00 << 32,
            );
            entry(vm, IDT + 16 * vector + 8, 0);
        } else {
            entry(
                vm,
                IDT + 8 * vector,
                HANDLER & 0xffff | 0x18 << 16 | 0x8e00 << 32,
            );
        }
    }
    // Each handler steps over one byte and returns as if no error code had been pushed.
    let handler: &[u8] = if wide {
        &[0x48, 0xff, 0x04, 0x24, 0x48, 0xcf]
    } else {
        &[0xff, 0x04, 0x24, 0xcf]
    };
    put(vm, HANDLER, handler);
}

pub(crate) fn machine() -> SoftVm {
    SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        ..VmConfig::default()
    })
    .expect("a machine")
}

/// A machine of several processors, with tables.
pub(crate) fn furnished(vcpus: usize) -> SoftVm {
    let mut vm = SoftVm::new(&VmConfig {
        memory_size: MEMORY,
        vcpus,
    })
    .expect("a machine");
    furnish(&mut vm, true);
    vm
}

/// A vCPU in 64-bit mode at CPL 0, at `rip`.
pub(crate) fn long_mode(rip: u64) -> CpuState {
    let mut state = state(Mode::Long0, &mut Random(1));
    if let Some(regs) = &mut state.regs {
        regs.gpr = [0; 16];
        regs.rip = rip;
        regs.rflags = 2;
        regs.set(Gpr::Rsp, STACK + (rip & 0xf000));
    }
    state.mp_state = Some(MpState::Runnable);
    state
}

/// Assembles code to where it runs.
pub(crate) fn place(vm: &mut SoftVm, address: u64, mut a: CodeAssembler) {
    let bytes = a.assemble(address).expect("assembles");
    put(vm, address, &bytes);
}
