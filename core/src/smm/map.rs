//! The SMRAM state save map (SDM Vol. 3C "SMRAM State Save Map" for processors with Intel 64), as tables:
//! Intel's, and the one that KVM has from AMD (`struct kvm_smram_state_64`). Where the SDM has reserved
//! space, a processor keeps what it needs itself: here segments, what is blocked, CR4.VMXE.

use crate::addr::L1Phys;
use crate::cpu::{Activity, Cpu, Interruptibility, Model};
use crate::memory::{GuestMemory, NotRam};
use crate::personality::Difference;
use crate::vmx::Field;
use crate::vmx::controls::Secondary;
use crate::vmx::entry::active_secondary;
use crate::x86::control::{cr4, efer, rflags};
use crate::x86::{AccessRights, Gpr, Segment};

/// The area starts here, counted from SMBASE.
const AREA: u64 = 0xfc00;
const SIZE: usize = 0x400;

/// A segment register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Name {
    Es,
    Cs,
    Ss,
    Ds,
    Fs,
    Gs,
    Ldtr,
    Tr,
}

/// What stands at a place of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Item {
    Register(Gpr),
    Rip,
    Rflags,
    Cr0,
    Cr3,
    /// As it is.
    Cr4,
    /// With VMXE clear: that bit is kept apart.
    Cr4WithoutVmxe,
    Vmxe,
    Efer,
    Dr6,
    Dr7,
    Smbase,
    /// SMM revision identifier: this value.
    Revision(u32),
    Selector(Name),
    /// Access rights as the VMCS has them; in two bytes an unusable segment is one that is not present.
    Rights(Name),
    Limit(Name),
    Base(Name),
    /// A half of the base: 0 the lower, 1 the upper.
    BaseHalf(Name, u32),
    GdtrBase,
    GdtrLimit,
    IdtrBase,
    IdtrLimit,
    GdtrHalf(u32),
    IdtrHalf(u32),
    /// Auto HALT restart: bit 0 set if the SMI came in HLT; RSM goes back to HLT if it is.
    AutoHalt,
    /// Activity state, which says whether that bit means anything.
    Activity,
    /// Blocking by STI and MOV SS, as KVM's interrupt shadow (1 MOV SS, 2 STI).
    Shadow,
    PendingDebug,
    /// The control "enable EPT" of L2.
    EnableEpt,
    /// L2's EPT pointer, where that is 1.
    Eptp,
}

/// A place of the map.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Offset from SMBASE + 8000H.
    pub offset: u16,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
    /// What stands there.
    pub item: Item,
}

const fn row(offset: u16, size: u8, item: Item) -> Row {
    Row { offset, size, item }
}

/// The rows of a segment in AMD's map, and in the reserved space of Intel's.
macro_rules! segments {
    ($at:literal $rights:literal: $($index:literal $name:ident),*) => {
        [$(
            row($at + 16 * $index, 2, Item::Selector(Name::$name)),
            row($at + 16 * $index + 2, $rights, Item::Rights(Name::$name)),
            row($at + 16 * $index + 2 * $rights, 4, Item::Limit(Name::$name)),
        )*]
    };
}

/// Intel's. What is below 7E00H is reserved in the SDM, and so are segments' rights and limits.
const INTEL: &[&[Row]] = &[
    &[
        row(0x7ff8, 8, Item::Cr0),
        row(0x7ff0, 8, Item::Cr3),
        row(0x7fe8, 8, Item::Rflags),
        row(0x7fe0, 8, Item::Efer),
        row(0x7fd8, 8, Item::Rip),
        row(0x7fd0, 8, Item::Dr6),
        row(0x7fc8, 8, Item::Dr7),
        row(0x7fc4, 4, Item::Selector(Name::Tr)),
        row(0x7fc0, 4, Item::Selector(Name::Ldtr)),
        row(0x7fbc, 4, Item::Selector(Name::Gs)),
        row(0x7fb8, 4, Item::Selector(Name::Fs)),
        row(0x7fb4, 4, Item::Selector(Name::Ds)),
        row(0x7fb0, 4, Item::Selector(Name::Ss)),
        row(0x7fac, 4, Item::Selector(Name::Cs)),
        row(0x7fa8, 4, Item::Selector(Name::Es)),
        row(0x7f94, 8, Item::Register(Gpr::Rdi)),
        row(0x7f8c, 8, Item::Register(Gpr::Rsi)),
        row(0x7f84, 8, Item::Register(Gpr::Rbp)),
        row(0x7f7c, 8, Item::Register(Gpr::Rsp)),
        row(0x7f74, 8, Item::Register(Gpr::Rbx)),
        row(0x7f6c, 8, Item::Register(Gpr::Rdx)),
        row(0x7f64, 8, Item::Register(Gpr::Rcx)),
        row(0x7f5c, 8, Item::Register(Gpr::Rax)),
        row(0x7f54, 8, Item::Register(Gpr::R8)),
        row(0x7f4c, 8, Item::Register(Gpr::R9)),
        row(0x7f44, 8, Item::Register(Gpr::R10)),
        row(0x7f3c, 8, Item::Register(Gpr::R11)),
        row(0x7f34, 8, Item::Register(Gpr::R12)),
        row(0x7f2c, 8, Item::Register(Gpr::R13)),
        row(0x7f24, 8, Item::Register(Gpr::R14)),
        row(0x7f1c, 8, Item::Register(Gpr::R15)),
        row(0x7f02, 2, Item::AutoHalt),
        // SMBASE can be moved, I/O instructions cannot be restarted.
        row(0x7efc, 4, Item::Revision(0x2_0100)),
        row(0x7ef8, 4, Item::Smbase),
        row(0x7ee0, 4, Item::EnableEpt),
        row(0x7ed8, 8, Item::Eptp),
        row(0x7e9c, 4, Item::BaseHalf(Name::Ldtr, 0)),
        row(0x7e94, 4, Item::IdtrHalf(0)),
        row(0x7e8c, 4, Item::GdtrHalf(0)),
        row(0x7e40, 4, Item::Cr4WithoutVmxe),
        row(0x7dd8, 4, Item::IdtrHalf(1)),
        row(0x7dd4, 4, Item::BaseHalf(Name::Ldtr, 1)),
        row(0x7dd0, 4, Item::GdtrHalf(1)),
        row(0x7d00, 4, Item::Vmxe),
        row(0x7d04, 4, Item::Activity),
        row(0x7d08, 4, Item::Shadow),
        row(0x7d10, 8, Item::PendingDebug),
        row(0x7d18, 2, Item::GdtrLimit),
        row(0x7d1a, 2, Item::IdtrLimit),
        row(0x7c80, 8, Item::Base(Name::Es)),
        row(0x7c88, 8, Item::Base(Name::Cs)),
        row(0x7c90, 8, Item::Base(Name::Ss)),
        row(0x7c98, 8, Item::Base(Name::Ds)),
        row(0x7ca0, 8, Item::Base(Name::Fs)),
        row(0x7ca8, 8, Item::Base(Name::Gs)),
        row(0x7cb0, 8, Item::Base(Name::Tr)),
    ],
    &segments!(0x7c00 4: 0 Es, 1 Cs, 2 Ss, 3 Ds, 4 Fs, 5 Gs, 6 Ldtr, 7 Tr),
];

/// AMD's, as KVM has it.
const KVM: &[&[Row]] = &[
    &segments!(0x7e00 2: 0 Es, 1 Cs, 2 Ss, 3 Ds, 4 Fs, 5 Gs, 7 Ldtr, 9 Tr),
    &[
        row(0x7e08, 8, Item::Base(Name::Es)),
        row(0x7e18, 8, Item::Base(Name::Cs)),
        row(0x7e28, 8, Item::Base(Name::Ss)),
        row(0x7e38, 8, Item::Base(Name::Ds)),
        row(0x7e48, 8, Item::Base(Name::Fs)),
        row(0x7e58, 8, Item::Base(Name::Gs)),
        row(0x7e64, 4, Item::GdtrLimit),
        row(0x7e68, 8, Item::GdtrBase),
        row(0x7e78, 8, Item::Base(Name::Ldtr)),
        row(0x7e84, 4, Item::IdtrLimit),
        row(0x7e88, 8, Item::IdtrBase),
        row(0x7e98, 8, Item::Base(Name::Tr)),
        row(0x7ecb, 1, Item::Shadow),
        row(0x7ed0, 8, Item::Efer),
        row(0x7efc, 4, Item::Revision(0x2_0064)),
        row(0x7f00, 4, Item::Smbase),
        row(0x7f48, 8, Item::Cr4),
        row(0x7f50, 8, Item::Cr3),
        row(0x7f58, 8, Item::Cr0),
        row(0x7f60, 8, Item::Dr7),
        row(0x7f68, 8, Item::Dr6),
        row(0x7f70, 8, Item::Rflags),
        row(0x7f78, 8, Item::Rip),
        row(0x7f80, 8, Item::Register(Gpr::R15)),
        row(0x7f88, 8, Item::Register(Gpr::R14)),
        row(0x7f90, 8, Item::Register(Gpr::R13)),
        row(0x7f98, 8, Item::Register(Gpr::R12)),
        row(0x7fa0, 8, Item::Register(Gpr::R11)),
        row(0x7fa8, 8, Item::Register(Gpr::R10)),
        row(0x7fb0, 8, Item::Register(Gpr::R9)),
        row(0x7fb8, 8, Item::Register(Gpr::R8)),
        row(0x7fc0, 8, Item::Register(Gpr::Rdi)),
        row(0x7fc8, 8, Item::Register(Gpr::Rsi)),
        row(0x7fd0, 8, Item::Register(Gpr::Rbp)),
        row(0x7fd8, 8, Item::Register(Gpr::Rsp)),
        row(0x7fe0, 8, Item::Register(Gpr::Rbx)),
        row(0x7fe8, 8, Item::Register(Gpr::Rdx)),
        row(0x7ff0, 8, Item::Register(Gpr::Rcx)),
        row(0x7ff8, 8, Item::Register(Gpr::Rax)),
    ],
];

/// The bytes of the area.
pub(super) struct Image([u8; SIZE]);

impl Image {
    pub(super) fn read(memory: &dyn GuestMemory, smbase: L1Phys) -> Result<Self, NotRam> {
        let mut bytes = [0; SIZE];
        memory.read(L1Phys(smbase.0 + AREA), &mut bytes)?;
        Ok(Self(bytes))
    }

    pub(super) fn write(&self, memory: &dyn GuestMemory, smbase: L1Phys) -> Result<(), NotRam> {
        memory.write(L1Phys(smbase.0 + AREA), &self.0)
    }

    fn at(&mut self, row: &Row) -> Option<&mut [u8]> {
        let start = usize::from(row.offset.wrapping_sub((AREA - 0x8000) as u16));
        self.0.get_mut(start..start + usize::from(row.size))
    }

    fn put(&mut self, row: &Row, value: u64) {
        if let Some(bytes) = self.at(row) {
            bytes.copy_from_slice(&value.to_le_bytes()[..bytes.len()]);
        }
    }

    fn get(&mut self, row: &Row) -> u64 {
        let mut value = [0; 8];
        if let Some(bytes) = self.at(row) {
            value[..bytes.len()].copy_from_slice(bytes);
        }
        u64::from_le_bytes(value)
    }
}

/// A state save map.
#[derive(Debug, Clone, Copy)]
pub struct Map(&'static [&'static [Row]]);

impl Map {
    /// The map of a processor.
    #[must_use]
    pub fn of(model: &Model) -> Self {
        if model.as_kvm(Difference::SmmSaveMap) {
            Self(KVM)
        } else {
            Self(INTEL)
        }
    }

    /// Every row.
    pub fn rows(self) -> impl Iterator<Item = &'static Row> {
        self.0.iter().copied().flatten()
    }

    /// The area as an SMI fills it. What no row names is zero.
    pub(super) fn save(self, cpu: &Cpu) -> Image {
        let mut image = Image([0; SIZE]);
        for row in self.rows() {
            image.put(row, get(cpu, row));
        }
        image
    }

    /// What stands for an item; zero if the map has none.
    pub(super) fn value(self, image: &mut Image, item: Item) -> u64 {
        self.rows()
            .find(|row| row.item == item)
            .map_or(0, |row| image.get(row))
    }

    /// What RSM takes from the area.
    pub(super) fn load(self, cpu: &mut Cpu, image: &mut Image) {
        for row in self.rows() {
            let value = image.get(row);
            set(cpu, row, value);
        }
    }
}

fn segment(cpu: &Cpu, name: Name) -> &Segment {
    let sregs = &cpu.sregs;
    match name {
        Name::Es => &sregs.es,
        Name::Cs => &sregs.cs,
        Name::Ss => &sregs.ss,
        Name::Ds => &sregs.ds,
        Name::Fs => &sregs.fs,
        Name::Gs => &sregs.gs,
        Name::Ldtr => &sregs.ldtr,
        Name::Tr => &sregs.tr,
    }
}

fn segment_mut(cpu: &mut Cpu, name: Name) -> &mut Segment {
    let sregs = &mut cpu.sregs;
    match name {
        Name::Es => &mut sregs.es,
        Name::Cs => &mut sregs.cs,
        Name::Ss => &mut sregs.ss,
        Name::Ds => &mut sregs.ds,
        Name::Fs => &mut sregs.fs,
        Name::Gs => &mut sregs.gs,
        Name::Ldtr => &mut sregs.ldtr,
        Name::Tr => &mut sregs.tr,
    }
}

const fn half(value: u64, half: u32) -> u64 {
    value >> (32 * half) & 0xffff_ffff
}

const fn with_half(value: u64, half: u32, part: u64) -> u64 {
    let shift = 32 * half;
    value & !(0xffff_ffff << shift) | (part & 0xffff_ffff) << shift
}

/// KVM's interrupt shadow.
const SHADOWS: [(u64, Interruptibility); 2] =
    [(1, Interruptibility::MOV_SS), (2, Interruptibility::STI)];

fn has_ept(cpu: &Cpu) -> bool {
    cpu.vmx.guest_mode && active_secondary(&cpu.vmx.vmcs12).contains(Secondary::ENABLE_EPT)
}

fn get(cpu: &Cpu, row: &Row) -> u64 {
    let (regs, sregs) = (&cpu.regs, &cpu.sregs);
    match row.item {
        Item::Register(register) => regs.get(register),
        Item::Rip => regs.rip,
        Item::Rflags => regs.rflags,
        Item::Cr0 => sregs.cr0,
        Item::Cr3 => sregs.cr3,
        Item::Cr4 => sregs.cr4,
        Item::Cr4WithoutVmxe => sregs.cr4 & !cr4::VMXE,
        Item::Vmxe => u64::from(sregs.cr4 & cr4::VMXE != 0),
        Item::Efer => sregs.efer,
        Item::Dr6 => cpu.debug.dr6,
        Item::Dr7 => cpu.debug.dr7,
        Item::Smbase => cpu.msrs.smbase,
        Item::Revision(value) => value.into(),
        Item::Selector(name) => segment(cpu, name).selector.into(),
        Item::Rights(name) => {
            let mut rights = segment(cpu, name).ar;
            if rights.contains(AccessRights::UNUSABLE) && row.size == 2 {
                rights.remove(AccessRights::PRESENT);
            }
            rights.bits().into()
        }
        Item::Limit(name) => segment(cpu, name).limit.into(),
        Item::Base(name) => segment(cpu, name).base,
        Item::BaseHalf(name, which) => half(segment(cpu, name).base, which),
        Item::GdtrBase => sregs.gdtr.base,
        Item::GdtrLimit => sregs.gdtr.limit.into(),
        Item::IdtrBase => sregs.idtr.base,
        Item::IdtrLimit => sregs.idtr.limit.into(),
        Item::GdtrHalf(which) => half(sregs.gdtr.base, which),
        Item::IdtrHalf(which) => half(sregs.idtr.base, which),
        Item::AutoHalt => u64::from(cpu.activity == Activity::Hlt),
        Item::Activity => cpu.activity as u64,
        Item::Shadow => SHADOWS
            .iter()
            .filter(|(_, blocked)| cpu.interruptibility.contains(*blocked))
            .map(|(bit, _)| bit)
            .sum(),
        Item::PendingDebug => cpu.pending_debug,
        Item::EnableEpt => has_ept(cpu).into(),
        Item::Eptp if has_ept(cpu) => cpu.vmx.vmcs12.get(Field::EPT_POINTER),
        Item::Eptp => 0,
    }
}

fn set(cpu: &mut Cpu, row: &Row, value: u64) {
    match row.item {
        Item::Register(register) => cpu.regs.set(register, value),
        Item::Rip => cpu.regs.rip = value,
        Item::Rflags => cpu.regs.rflags = value | rflags::FIXED,
        Item::Cr0 => cpu.sregs.cr0 = value,
        Item::Cr3 => cpu.sregs.cr3 = value,
        Item::Cr4 | Item::Cr4WithoutVmxe => cpu.sregs.cr4 = value,
        Item::Efer => cpu.sregs.efer = value,
        Item::Dr6 => cpu.debug.dr6 = value,
        Item::Dr7 => cpu.debug.dr7 = value,
        Item::Smbase => cpu.msrs.smbase = value,
        Item::Selector(name) => segment_mut(cpu, name).selector = value as u16,
        Item::Rights(name) => {
            let mut rights = AccessRights::from_bits_retain(value as u32);
            if row.size == 2 {
                rights.set(
                    AccessRights::UNUSABLE,
                    !rights.contains(AccessRights::PRESENT),
                );
            }
            segment_mut(cpu, name).ar = rights;
        }
        Item::Limit(name) => segment_mut(cpu, name).limit = value as u32,
        Item::Base(name) => segment_mut(cpu, name).base = value,
        Item::BaseHalf(name, which) => {
            let segment = segment_mut(cpu, name);
            segment.base = with_half(segment.base, which, value);
        }
        Item::GdtrBase => cpu.sregs.gdtr.base = value,
        Item::GdtrLimit => cpu.sregs.gdtr.limit = value as u16,
        Item::IdtrBase => cpu.sregs.idtr.base = value,
        Item::IdtrLimit => cpu.sregs.idtr.limit = value as u16,
        Item::GdtrHalf(which) => {
            cpu.sregs.gdtr.base = with_half(cpu.sregs.gdtr.base, which, value);
        }
        Item::IdtrHalf(which) => {
            cpu.sregs.idtr.base = with_half(cpu.sregs.idtr.base, which, value);
        }
        // Behind it the activity state says whether the SMI came in HLT.
        Item::AutoHalt => {
            cpu.activity = if value & 1 != 0 {
                Activity::Hlt
            } else {
                Activity::Active
            };
        }
        Item::Activity => {
            cpu.activity = match (value, cpu.activity) {
                (1, Activity::Hlt) => Activity::Hlt,
                (2, _) => Activity::Shutdown,
                _ => Activity::Active,
            };
        }
        Item::Shadow => {
            for (bit, blocked) in SHADOWS {
                cpu.interruptibility.set(blocked, value & bit != 0);
            }
        }
        Item::PendingDebug => cpu.pending_debug = value,
        Item::Revision(_) | Item::Vmxe | Item::EnableEpt | Item::Eptp => {}
    }
}

/// EFER.LMA follows from LME and CR0.PG, whatever SMRAM holds.
pub(super) fn settle_long_mode(cpu: &mut Cpu) {
    use crate::x86::control::cr0;
    let active = cpu.sregs.efer & efer::LME != 0 && cpu.sregs.cr0 & cr0::PG != 0;
    cpu.sregs.efer = if active {
        cpu.sregs.efer | efer::LMA
    } else {
        cpu.sregs.efer & !efer::LMA
    };
}
