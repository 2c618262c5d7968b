//! A profile cut down to what the software model executes, with the list of what was cut and why.

use super::features::{self, Feature};
use super::{Profile, cr4_fixed1, index, model, vmcs_enum};
use crate::cpu::Model;
use crate::pmu;
use crate::vmx::capability::{Capability, ControlField, EptVpid, MSR_COUNT};
use crate::vmx::controls;
use crate::vmx::entry::unsupported;
use crate::vmx::vmcs12::VMCS12_REVISION;
use crate::vmx::{Field, Vmcs12};
use crate::x86::CpuState;
use crate::x86::cpuid::{self, CpuidEntry};
use crate::x86::{msr, xsave};

/// Something that the profile has and the software model does not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dropped {
    /// What: a CPUID feature, a leaf, a control.
    pub what: String,
    /// Why.
    pub reason: &'static str,
}

/// The outcome of [`Profile::for_soft`].
#[derive(Debug, Clone)]
pub struct ForSoft {
    /// What is left.
    pub model: Model,
    /// What is not, in the order of CPUID leaves and capability MSRs.
    pub dropped: Vec<Dropped>,
}

/// Leaves that are passed on: features are masked by [`features::ALL`], the rest describes the machine.
const LEAVES: &[u32] = &[
    0,
    1,
    2,
    4,
    5,
    6,
    7,
    0xa,
    0xb,
    0xd,
    0x1f,
    0x8000_0000,
    0x8000_0001,
    0x8000_0002,
    0x8000_0003,
    0x8000_0004,
    0x8000_0006,
    0x8000_0007,
    0x8000_0008,
];

/// Leaves that are not, and why.
const HIDDEN_LEAVES: &[(u32, &str)] = &[
    (3, "the processor's serial number is not there"),
    (0xf, "no cache monitoring"),
    (0x10, "no cache allocation"),
    (0x12, "no SGX"),
    (0x14, "no Intel PT"),
    (
        0x15,
        "the TSC counts instructions, at a frequency of its own",
    ),
    (
        0x16,
        "the TSC counts instructions, at a frequency of its own",
    ),
    (0x18, "the translation caches are not those of silicon"),
    (0x1b, "no PCONFIG"),
    (0x1c, "no last-branch records"),
    (0x1d, "no AMX"),
    (0x1e, "no AMX"),
    (0x4000_0000, "nothing of KVM's paravirtualization"),
    (0x4000_0001, "nothing of KVM's paravirtualization"),
];

/// Bits of IA32_VMX_EPT_VPID_CAP without an implementation.
const EPT_VPID: &[(EptVpid, &str)] = &[(
    EptVpid::SUPERVISOR_SHADOW_STACK,
    "no shadow stacks: CET is not executed",
)];

const NO_DUAL_MONITOR: &str = "SMM has the default treatment alone";

/// Bits of IA32_VMX_MISC without an implementation.
const MISC: &[(u32, &str, &str)] = &[
    (14, "Intel PT in VMX operation", "no Intel PT"),
    (28, "VMXOFF that leaves SMIs blocked", NO_DUAL_MONITOR),
];

/// Controls that only concern an instruction or a state of their own: nothing without its feature.
const NEEDS: &[(ControlField, u32, Feature)] = &[
    (ControlField::Secondary, 3, features::RDTSCP),
    (ControlField::Secondary, 11, features::RDRAND),
    (ControlField::Secondary, 12, features::INVPCID),
    (ControlField::Secondary, 15, features::SGX),
    (ControlField::Secondary, 16, features::RDSEED),
    (ControlField::Secondary, 20, features::XSAVES),
    (ControlField::Secondary, 26, features::WAITPKG),
    (ControlField::Tertiary, 0, features::KEY_LOCKER),
    (ControlField::Tertiary, 6, features::MSRLIST),
    (ControlField::Tertiary, 7, features::IBRS),
    (ControlField::Exit, 23, features::MPX),
    (ControlField::Entry, 16, features::MPX),
];

/// Controls that only concern IA32_PERF_GLOBAL_CTRL: nothing without performance monitoring of version 2.
const NEED_COUNTERS: &[(ControlField, u32)] = &[
    (ControlField::Exit, 12),
    (ControlField::Exit, 30),
    (ControlField::Entry, 13),
];

/// Names of the controls of a field.
#[must_use]
pub fn rows(field: ControlField) -> &'static [controls::Row] {
    match field {
        ControlField::PinBased => controls::PinBased::ROWS,
        ControlField::Primary => controls::Primary::ROWS,
        ControlField::Secondary => controls::Secondary::ROWS,
        ControlField::Tertiary => controls::Tertiary::ROWS,
        ControlField::Exit => controls::ExitControls::ROWS,
        ControlField::SecondaryExit => controls::SecondaryExit::ROWS,
        ControlField::Entry => controls::EntryControls::ROWS,
    }
}

/// Why the software model does not carry out a control; `None` if it does.
#[must_use]
pub fn why_not(field: ControlField, bit: u32) -> Option<&'static str> {
    const ACTIVATE: u64 = 1 << 31;
    let mut vmcs12 = Vmcs12::new();
    let mut set = |field: Field, value| vmcs12.set(field, value);
    match field {
        ControlField::PinBased => set(Field::PIN_BASED_VM_EXEC_CONTROL, 1 << bit),
        ControlField::Primary => set(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << bit),
        ControlField::Secondary => {
            set(Field::CPU_BASED_VM_EXEC_CONTROL, ACTIVATE);
            set(Field::SECONDARY_VM_EXEC_CONTROL, 1 << bit);
        }
        ControlField::Tertiary => {
            set(Field::CPU_BASED_VM_EXEC_CONTROL, 1 << 17);
            set(Field::TERTIARY_VM_EXEC_CONTROL, 1 << bit);
        }
        ControlField::Exit => set(Field::VM_EXIT_CONTROLS, 1 << bit),
        ControlField::SecondaryExit => {
            set(Field::VM_EXIT_CONTROLS, ACTIVATE);
            set(Field::SECONDARY_VM_EXIT_CONTROLS, 1 << bit);
        }
        ControlField::Entry => set(Field::VM_ENTRY_CONTROLS, 1 << bit),
    }
    unsupported(&vmcs12)
}

impl Profile {
    /// The profile as the software model can run it, and what that leaves out.
    #[must_use]
    pub fn for_soft(&self) -> ForSoft {
        let mut dropped = Vec::new();
        let cpuid = executed_cpuid(self.cpuid, &mut dropped);
        let mut msrs = self.vmx_msrs();
        restrict_controls(&mut msrs, &cpuid, &mut dropped);
        restrict_ept_and_misc(&mut msrs, &mut dropped);
        msrs[index(msr::IA32_VMX_CR4_FIXED1)] = cr4_fixed1(&cpuid);
        // KVM's number speaks of KVM's layout; any other, of the fields that are left.
        if self.kind != super::Kind::Kvm {
            msrs[index(msr::IA32_VMX_VMCS_ENUM)] = vmcs_enum(&msrs);
        }
        ForSoft {
            model: model(cpuid, msrs, self.personality()),
            dropped,
        }
    }
}

fn executed_cpuid(all: &[CpuidEntry], dropped: &mut Vec<Dropped>) -> Vec<CpuidEntry> {
    let mut kept = Vec::new();
    for entry in all {
        if !LEAVES.contains(&entry.leaf) {
            let reason = HIDDEN_LEAVES
                .iter()
                .find(|(leaf, _)| *leaf == entry.leaf)
                .map_or("the model does not know the leaf", |(_, reason)| reason);
            let what = format!("CPUID leaf {:#x}", entry.leaf);
            if dropped.last().is_none_or(|last| last.what != what) {
                dropped.push(Dropped { what, reason });
            }
            continue;
        }
        let mut entry = mask_features(*entry, dropped);
        if entry.leaf == 0xa {
            counters_of(&mut entry, dropped);
        }
        if entry.leaf == 0xd && !states_of(&mut entry, dropped) {
            continue;
        }
        if (entry.eax, entry.ebx, entry.ecx, entry.edx) != (0, 0, 0, 0) {
            kept.push(entry);
        }
    }
    // Without XSAVE, leaf 0DH is all zeroes.
    if cpuid::lookup(&kept, 1, 0)[2] & 1 << 26 == 0 {
        kept.retain(|entry| entry.leaf != 0xd);
    }
    limit_leaves(&mut kept);
    kept
}

/// Leaf 0DH: the state components that the engine has, all in the first 576 bytes. `false` for a subleaf
/// of another.
fn states_of(entry: &mut CpuidEntry, dropped: &mut Vec<Dropped>) -> bool {
    const KEPT: u32 = (xsave::X87 | xsave::SSE) as u32;
    const SIZE: u32 = xsave::AREA as u32;
    let mut drop = |what: &str| {
        dropped.push(Dropped {
            what: what.to_owned(),
            reason: features::STATE,
        });
    };
    match entry.subleaf {
        0 => {
            if (entry.eax & !KEPT, entry.edx) != (0, 0) {
                drop("components of XCR0 beyond x87 and SSE");
            }
            (entry.eax, entry.edx) = (entry.eax & KEPT, 0);
            (entry.ebx, entry.ecx) = (SIZE, SIZE);
        }
        1 => {
            if (entry.ecx, entry.edx) != (0, 0) {
                drop("components of IA32_XSS");
            }
            (entry.ecx, entry.edx) = (0, 0);
            entry.ebx = if entry.eax & 0b1010 != 0 { SIZE } else { 0 };
        }
        _ => return false,
    }
    true
}

/// Leaf 0AH: as many counters of version 2 as the model has ([`crate::pmu`]), and what they do not count.
fn counters_of(entry: &mut CpuidEntry, dropped: &mut Vec<Dropped>) {
    let (version, general, fixed) = (entry.eax & 0xff, entry.eax >> 8 & 0xff, entry.edx & 0x1f);
    let mut drop = |what: String, reason| dropped.push(Dropped { what, reason });
    if version < 2 {
        if version != 0 {
            drop(
                format!("performance monitoring {version}"),
                "none below 2 is modelled",
            );
        }
        (entry.eax, entry.ebx, entry.ecx, entry.edx) = (0, 0, 0, 0);
        return;
    }
    if version > 2 {
        let what = format!("performance monitoring {version}");
        drop(what, "version 2 is what KVM shows, too");
    }
    if fixed > pmu::MOST_FIXED as u32 {
        let what = format!("fixed-function counters beyond {}", pmu::MOST_FIXED);
        drop(what, "there are no slots to be counted");
    }
    let events = "architectural events of caches and branches".to_owned();
    drop(events, "time is the count of instructions");
    let general = general.min(pmu::MOST_GENERAL as u32);
    let fixed = fixed.min(pmu::MOST_FIXED as u32);
    entry.eax = 2 | general << 8 | pmu::WIDTH << 16 | 7 << 24;
    entry.ebx = entry.ebx & 0x7f | pmu::EVENTS_NOT_COUNTED;
    entry.ecx = 0;
    entry.edx = fixed | pmu::WIDTH << 5;
}

/// Leaf 0 and leaf 80000000H name the last leaf of theirs.
fn limit_leaves(kept: &mut [CpuidEntry]) {
    for first in [0, 0x8000_0000] {
        let last = kept
            .iter()
            .map(|entry| entry.leaf)
            .filter(|leaf| leaf >> 31 == first >> 31)
            .max();
        if let Some(entry) = kept.iter_mut().find(|entry| entry.leaf == first) {
            // Software looks for leaves up to 0DH whatever the features.
            entry.eax = last
                .unwrap_or(first)
                .max(if first == 0 { 0xd } else { first });
        }
    }
}

fn mask_features(mut entry: CpuidEntry, dropped: &mut Vec<Dropped>) -> CpuidEntry {
    let mut registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    for (number, register) in registers.iter_mut().enumerate() {
        let Some(executed) = features::executed(entry.leaf, entry.subleaf, number) else {
            continue;
        };
        let mut gone = *register & !executed;
        *register &= executed;
        while gone != 0 {
            let bit = gone.trailing_zeros();
            gone &= gone - 1;
            let place = Feature {
                leaf: entry.leaf,
                subleaf: entry.subleaf,
                register: number,
                bit,
            };
            dropped.push(place.dropped());
        }
    }
    [entry.eax, entry.ebx, entry.ecx, entry.edx] = registers;
    entry
}

fn restrict_controls(
    msrs: &mut [u64; MSR_COUNT],
    cpuid: &[CpuidEntry],
    dropped: &mut Vec<Dropped>,
) {
    for field in ControlField::ALL {
        let offered = Capability::new(msrs).allowed(field);
        let mut gone = 0_u64;
        for bit in 0..64 {
            if offered.may_be_one & !offered.must_be_one & 1 << bit == 0 {
                continue;
            }
            let lacks = NEEDS
                .iter()
                .any(|(f, b, feature)| (*f, *b) == (field, bit) && !feature.is_in(cpuid))
                || NEED_COUNTERS.contains(&(field, bit))
                    && cpuid::lookup(cpuid, 0xa, 0)[0] & 0xff < 2;
            let reason = match why_not(field, bit) {
                Some(reason) => reason,
                None if lacks => "CPUID does not have what it is about",
                None => continue,
            };
            gone |= 1 << bit;
            let name = rows(field).iter().find(|row| row.bit == bit);
            dropped.push(Dropped {
                what: match name {
                    Some(row) => format!("{field:?} control {bit}, \"{}\"", row.name),
                    None => format!("{field:?} control {bit}"),
                },
                reason,
            });
        }
        for (number, shift) in registers_of(field) {
            msrs[index(*number)] &= !(gone << shift);
        }
    }
}

/// The capability MSRs of a control field, and where its allowed 1-settings are in them.
const fn registers_of(field: ControlField) -> &'static [(u32, u32)] {
    match field {
        ControlField::PinBased => &[
            (msr::IA32_VMX_PINBASED_CTLS, 32),
            (msr::IA32_VMX_TRUE_PINBASED_CTLS, 32),
        ],
        ControlField::Primary => &[
            (msr::IA32_VMX_PROCBASED_CTLS, 32),
            (msr::IA32_VMX_TRUE_PROCBASED_CTLS, 32),
        ],
        ControlField::Exit => &[
            (msr::IA32_VMX_EXIT_CTLS, 32),
            (msr::IA32_VMX_TRUE_EXIT_CTLS, 32),
        ],
        ControlField::Entry => &[
            (msr::IA32_VMX_ENTRY_CTLS, 32),
            (msr::IA32_VMX_TRUE_ENTRY_CTLS, 32),
        ],
        ControlField::Secondary => &[(msr::IA32_VMX_PROCBASED_CTLS2, 32)],
        ControlField::Tertiary => &[(msr::IA32_VMX_PROCBASED_CTLS3, 0)],
        ControlField::SecondaryExit => &[(msr::IA32_VMX_EXIT_CTLS2, 0)],
    }
}

fn restrict_ept_and_misc(msrs: &mut [u64; MSR_COUNT], dropped: &mut Vec<Dropped>) {
    let mut drop = |what: &str, reason| {
        dropped.push(Dropped {
            what: what.to_owned(),
            reason,
        });
    };
    let ept = &mut msrs[index(msr::IA32_VMX_EPT_VPID_CAP)];
    for (bit, reason) in EPT_VPID {
        if *ept & bit.bits() != 0 {
            *ept &= !bit.bits();
            let mut name = String::from("IA32_VMX_EPT_VPID_CAP ");
            let _ = bitflags::parser::to_writer(bit, &mut name);
            drop(&name, reason);
        }
    }
    let misc = &mut msrs[index(msr::IA32_VMX_MISC)];
    for (bit, what, reason) in MISC {
        if *misc >> bit & 1 != 0 {
            *misc &= !(1 << bit);
            drop(what, reason);
        }
    }
    if *misc >> 32 != 0 {
        *misc &= 0xffff_ffff;
        drop("MSEG revision", NO_DUAL_MONITOR);
    }
    // Revision and size of the region: what lies in memory is a vmcs12.
    let basic = &mut msrs[index(msr::IA32_VMX_BASIC)];
    const REVISION_AND_SIZE: u64 = 0x1fff_7fff_ffff;
    let ours = u64::from(VMCS12_REVISION) | 4096 << 32;
    if *basic & REVISION_AND_SIZE != ours {
        *basic = *basic & !REVISION_AND_SIZE | ours;
        drop(
            "VMCS revision and size",
            "a VMCS region holds a vmcs12 of KVM's",
        );
    }
    const DUAL_MONITOR: u64 = 1 << 49;
    if *basic & DUAL_MONITOR != 0 {
        *basic &= !DUAL_MONITOR;
        drop("dual-monitor treatment of SMIs and SMM", NO_DUAL_MONITOR);
    }
}

impl ForSoft {
    /// The model as state to be set on a vCPU that has not run: CPUID and capability MSRs.
    #[must_use]
    pub fn state(&self) -> CpuState {
        let numbers = msr::IA32_VMX_BASIC..;
        CpuState {
            cpuid: Some(self.model.cpuid.clone()),
            msrs: Some(numbers.zip(self.model.vmx_msrs).collect()),
            ..CpuState::default()
        }
    }
}
