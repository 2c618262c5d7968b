//! Architectural performance monitoring, version 2 (SDM Vol. 3B "Architectural Performance Monitoring").
//!
//! A machine whose time is its count of instructions has one answer for three of the architectural events:
//! each instruction retired is a cycle, and a reference cycle. The others (caches, branches) are not
//! counted, which CPUID.0AH:EBX tells. So a counter is never touched while it counts: it is brought up to
//! date when somebody looks, or changes what counts.

use crate::cpu::{Cpu, Model};
use crate::msr::MsrFault;
use crate::x86::cpuid;

/// General-purpose counters that there can be.
pub const MOST_GENERAL: usize = 8;
/// Fixed-function counters: instructions retired, cycles, reference cycles.
pub const MOST_FIXED: usize = 3;
/// Bits of a counter.
pub const WIDTH: u32 = 48;
/// Events in CPUID.0AH:EBX that are not counted: last-level-cache references and misses, branches retired
/// and mispredicted.
pub const EVENTS_NOT_COUNTED: u32 = 0b111_1000;
/// IA32_PERF_CAPABILITIES: counters can be written at full width, at IA32_A_PMC0 and so on.
pub const CAPABILITIES: u64 = 1 << 13;

/// IA32_MISC_ENABLE: performance monitoring is there, branch-trace storage and PEBS are not.
pub const MISC_ENABLE: u64 = 1 << 7 | 1 << 11 | 1 << 12;

const MASK: u64 = (1 << WIDTH) - 1;
/// Where the fixed-function counters start in the global registers, and their selector in RDPMC.
const FIXED_BIT: u32 = 32;
const RDPMC_FIXED: u32 = 1 << 30;
/// Bits 62 and 63 of IA32_PERF_GLOBAL_OVF_CTRL, which clear conditions that never come.
const CLEAR_OTHERS: u64 = 0b11 << 62;
/// A field of IA32_FIXED_CTR_CTRL: enabled at CPL 0, at CPL above 0, interrupt.
const FIXED_SYSTEM: u64 = 0b01;
const FIXED_USER: u64 = 0b10;
const FIXED_ENABLE: u64 = FIXED_SYSTEM | FIXED_USER;
const FIXED_INTERRUPT: u64 = 0b1000;

bitflags::bitflags! {
    /// IA32_PERFEVTSELx (SDM Vol. 3B "Architectural Performance Monitoring Version 1 Facilities").
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Select: u64 {
        const USER = 1 << 16;
        const SYSTEM = 1 << 17;
        const EDGE = 1 << 18;
        const PIN = 1 << 19;
        const INTERRUPT = 1 << 20;
        const ENABLE = 1 << 22;
        const INVERT = 1 << 23;
    }
}

/// What CPUID tells of the counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facilities {
    general: u32,
    fixed: u32,
}

impl Facilities {
    /// `None` below version 2, which alone has the global registers.
    fn of(model: &Model) -> Option<Self> {
        let [eax, _, _, edx] = cpuid::lookup(&model.cpuid, 0xa, 0);
        (eax & 0xff >= 2).then_some(Self {
            general: eax >> 8 & 0xff,
            fixed: edx & 0x1f,
        })
    }

    /// One bit a counter, as in IA32_PERF_GLOBAL_CTRL.
    fn all(self) -> u64 {
        let ones = |count: u32| (1u64 << count.min(31)) - 1;
        ones(self.general) | ones(self.fixed) << FIXED_BIT
    }
}

/// Bits of IA32_PERF_GLOBAL_CTRL that exist, one a counter; `None` without version 2.
#[must_use]
pub fn counters(model: &Model) -> Option<u64> {
    Facilities::of(model).map(Facilities::all)
}

/// IA32_PERF_GLOBAL_CTRL after RESET: the general-purpose counters' bits (SDM Vol. 3A "IA-32 and Intel 64
/// Processor States Following Power-up, Reset, or INIT").
#[must_use]
pub fn reset_value(model: &Model) -> u64 {
    counters(model).map_or(0, |all| all & ((1 << FIXED_BIT) - 1))
}

/// A register by its MSR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    /// IA32_PMCx, written as 32 bits; or IA32_A_PMCx, whole.
    General {
        index: usize,
        whole: bool,
    },
    Select(usize),
    Fixed(usize),
    FixedControl,
    Status,
    OverflowControl,
}

impl Register {
    fn of(model: &Model, number: u32) -> Option<Self> {
        let facilities = Facilities::of(model)?;
        let within = |first: u32, count: u32| {
            let index = number.wrapping_sub(first);
            (index < count).then_some(index as usize)
        };
        let general = facilities.general.min(MOST_GENERAL as u32);
        if let Some(index) = within(0xc1, general) {
            return Some(Self::General {
                index,
                whole: false,
            });
        }
        if let Some(index) = within(0x4c1, general) {
            // IA32_PERF_CAPABILITIES has to say so, and PDCM that it is there.
            let tells = cpuid::lookup(&model.cpuid, 1, 0)[2] >> 15 & 1 != 0;
            return tells.then_some(Self::General { index, whole: true });
        }
        if let Some(index) = within(0x186, general) {
            return Some(Self::Select(index));
        }
        if let Some(index) = within(0x309, facilities.fixed.min(MOST_FIXED as u32)) {
            return Some(Self::Fixed(index));
        }
        match number {
            0x38d => Some(Self::FixedControl),
            0x38e => Some(Self::Status),
            0x390 => Some(Self::OverflowControl),
            _ => None,
        }
    }
}

/// Whether this MSR is one of the registers here.
#[must_use]
pub fn is_register(model: &Model, number: u32) -> bool {
    Register::of(model, number).is_some()
}

/// The MSRs that hold state of the counters, in the order in which they can be written.
pub fn registers(model: &Model) -> impl Iterator<Item = u32> + '_ {
    const ALL: [std::ops::RangeInclusive<u32>; 4] =
        [0xc1..=0xc8, 0x186..=0x18d, 0x309..=0x30b, 0x38d..=0x38e];
    ALL.into_iter()
        .flatten()
        .filter(|number| is_register(model, *number))
}

/// The counters of a processor and what steers them, but for IA32_PERF_GLOBAL_CTRL, which VM entry and exit
/// load: it is with the other MSRs, and [`Cpu::set_perf_global_ctrl`] changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pmu {
    general: [u64; MOST_GENERAL],
    select: [u64; MOST_GENERAL],
    fixed: [u64; MOST_FIXED],
    fixed_control: u64,
    status: u64,
    /// Counters are up to date for this count of instructions.
    since: u64,
    /// Whether the processor was above CPL 0 then.
    user: bool,
    /// The count of instructions at which a counter overflows that interrupts, or at which somebody must
    /// look; `u64::MAX` if there is none.
    alarm: u64,
}

/// A counter that counts.
#[derive(Debug, Clone, Copy)]
struct Running {
    /// Its bit in the global registers.
    bit: u32,
    /// Its overflow interrupts.
    interrupts: bool,
    /// It counts at CPL 0.
    system: bool,
    /// It counts at CPL above 0.
    user: bool,
}

impl Running {
    const fn counts_at(self, user: bool) -> bool {
        if user { self.user } else { self.system }
    }
}

impl Default for Pmu {
    fn default() -> Self {
        Self {
            general: [0; MOST_GENERAL],
            select: [0; MOST_GENERAL],
            fixed: [0; MOST_FIXED],
            fixed_control: 0,
            status: 0,
            since: 0,
            user: false,
            alarm: u64::MAX,
        }
    }
}

/// Whether a selected event happens with each instruction. Here each cycle retires one, so that a threshold
/// of one changes nothing, a higher one is never met, and no edge comes.
fn counts(select: u64) -> bool {
    let flags = Select::from_bits_retain(select);
    // Cycles, reference cycles, instructions: event and unit mask.
    let is_counted = matches!(select & 0xffff, 0x003c | 0x013c | 0x00c0);
    let threshold = select >> 24 & 0xff;
    let met = threshold == 0 || (threshold == 1) != flags.contains(Select::INVERT);
    flags.contains(Select::ENABLE)
        && flags.intersects(Select::USER | Select::SYSTEM)
        && is_counted
        && met
        && !flags.contains(Select::EDGE)
}

impl Pmu {
    /// Each counter that counts at any level.
    fn running(&self, global: u64) -> impl Iterator<Item = Running> + '_ {
        let general = (0u32..)
            .zip(&self.select)
            .filter(|(_, select)| counts(**select))
            .map(|(index, select)| {
                let flags = Select::from_bits_retain(*select);
                Running {
                    bit: index,
                    interrupts: flags.contains(Select::INTERRUPT),
                    system: flags.contains(Select::SYSTEM),
                    user: flags.contains(Select::USER),
                }
            });
        let fixed = (0..MOST_FIXED as u32).map(|index| {
            let field = self.fixed_control >> (4 * index);
            Running {
                bit: FIXED_BIT + index,
                interrupts: field & FIXED_INTERRUPT != 0,
                system: field & FIXED_SYSTEM != 0,
                user: field & FIXED_USER != 0,
            }
        });
        general.chain(fixed).filter(move |running| {
            (running.system || running.user) && global >> running.bit & 1 != 0
        })
    }

    fn counter(&mut self, bit: u32) -> Option<&mut u64> {
        if bit < FIXED_BIT {
            self.general.get_mut(bit as usize)
        } else {
            self.fixed.get_mut((bit - FIXED_BIT) as usize)
        }
    }

    /// Brings the counters up to date; whether one overflowed that interrupts. `user` is the level of what
    /// comes next: a counter of one level alone has somebody look between any two instructions.
    fn advance(&mut self, global: u64, executed: u64, user: bool) -> bool {
        let passed = executed.wrapping_sub(self.since);
        let was_user = std::mem::replace(&mut self.user, user);
        self.since = executed;
        if passed == 0 || global == 0 {
            return false;
        }
        let before = *self;
        let mut interrupts = false;
        for running in before.running(global) {
            let Some(counter) = self.counter(running.bit) else {
                continue;
            };
            if !running.counts_at(was_user) {
                continue;
            }
            let sum = counter.wrapping_add(passed);
            *counter = sum & MASK;
            if sum > MASK {
                self.status |= 1 << running.bit;
                interrupts |= running.interrupts;
            }
        }
        interrupts
    }

    /// Finds the next overflow that interrupts, and whether one must look at each instruction.
    fn set_alarm(&mut self, global: u64) {
        let now = *self;
        let value = |bit: u32| now.clone().counter(bit).map_or(0, |counter| *counter);
        self.alarm = now
            .running(global)
            .filter_map(|running| {
                if running.system != running.user {
                    // The next instruction may change the level.
                    Some(now.since)
                } else if running.interrupts {
                    Some(now.since.saturating_add(MASK + 1 - value(running.bit)))
                } else {
                    None
                }
            })
            .min()
            .unwrap_or(u64::MAX);
    }

    /// The count of instructions at which a counter overflows that interrupts, or somebody must look.
    #[inline]
    #[must_use]
    pub const fn alarm(&self) -> u64 {
        self.alarm
    }

    /// As many instructions went by that were another processor's.
    pub fn skip(&mut self, instructions: u64) {
        self.since = self.since.wrapping_add(instructions);
        if self.alarm != u64::MAX {
            self.alarm = self.alarm.saturating_add(instructions);
        }
    }
}

impl Cpu {
    /// Loads IA32_PERF_GLOBAL_CTRL: what counted until now is counted.
    pub fn set_perf_global_ctrl(&mut self, value: u64) {
        if value == self.msrs.perf_global_ctrl {
            return;
        }
        let user = self.cpl() != 0;
        self.pmu
            .advance(self.msrs.perf_global_ctrl, self.tsc.executed(), user);
        self.msrs.perf_global_ctrl = value;
        self.pmu.set_alarm(value);
    }

    /// Whether a counter has overflowed that interrupts; to be asked at [`Pmu::alarm`].
    pub fn counter_interrupt(&mut self) -> bool {
        let executed = self.tsc.executed();
        if executed < self.pmu.alarm {
            return false;
        }
        let global = self.msrs.perf_global_ctrl;
        let user = self.cpl() != 0;
        let interrupts = self.pmu.advance(global, executed, user);
        self.pmu.set_alarm(global);
        interrupts
    }
}

/// The counters as they are now.
fn now(cpu: &Cpu) -> Pmu {
    let mut pmu = cpu.pmu;
    let user = cpu.cpl() != 0;
    pmu.advance(cpu.msrs.perf_global_ctrl, cpu.tsc.executed(), user);
    pmu
}

/// RDMSR of one of the registers here; `None` if it is none, or does not exist on this processor.
pub(crate) fn read(cpu: &Cpu, number: u32) -> Option<u64> {
    let register = Register::of(&cpu.model, number)?;
    let pmu = now(cpu);
    Some(match register {
        Register::General { index, .. } => pmu.general[index],
        Register::Select(index) => pmu.select[index],
        Register::Fixed(index) => pmu.fixed[index],
        Register::FixedControl => pmu.fixed_control,
        Register::Status => pmu.status,
        Register::OverflowControl => 0,
    })
}

/// WRMSR of one of the registers here; `None` as for [`read`].
pub(crate) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), MsrFault>> {
    let register = Register::of(&cpu.model, number)?;
    let all = counters(&cpu.model)?;
    if let Err(fault) = check(register, value, all) {
        return Some(Err(fault));
    }
    let global = cpu.msrs.perf_global_ctrl;
    let user = cpu.cpl() != 0;
    let pmu = &mut cpu.pmu;
    pmu.advance(global, cpu.tsc.executed(), user);
    match register {
        Register::General { index, whole: true } => pmu.general[index] = value,
        // 32 bits, sign-extended to the counter's width.
        Register::General { index, .. } => {
            pmu.general[index] = i64::from(value as u32 as i32) as u64 & MASK;
        }
        Register::Select(index) => pmu.select[index] = value,
        Register::Fixed(index) => pmu.fixed[index] = value & MASK,
        Register::FixedControl => pmu.fixed_control = value,
        Register::Status => {}
        Register::OverflowControl => pmu.status &= !value,
    }
    pmu.set_alarm(global);
    Some(Ok(()))
}

/// Puts a register back as user space saved it.
pub fn restore(cpu: &mut Cpu, number: u32, value: u64) {
    match Register::of(&cpu.model, number) {
        Some(Register::General { index, .. }) => cpu.pmu.general[index] = value & MASK,
        Some(Register::Status) => cpu.pmu.status = value,
        _ => {
            let _ = write(cpu, number, value);
        }
    }
    cpu.pmu.since = cpu.tsc.executed();
    cpu.pmu.user = cpu.cpl() != 0;
    let global = cpu.msrs.perf_global_ctrl;
    cpu.pmu.set_alarm(global);
}

fn check(register: Register, value: u64, all: u64) -> Result<(), MsrFault> {
    let require = |holds: bool| holds.then_some(()).ok_or(MsrFault::GeneralProtection);
    match register {
        Register::General { whole: true, .. } => require(value & !MASK == 0),
        Register::General { .. } | Register::Fixed(_) => Ok(()),
        Register::Select(_) => {
            // AnyThread came with version 3.
            const RESERVED: u64 = !0xffff_ffff | 1 << 21;
            require(value & RESERVED == 0)
        }
        Register::FixedControl => {
            let fields = (0..MOST_FIXED as u32)
                .filter(|index| all >> (FIXED_BIT + index) & 1 != 0)
                .map(|index| (FIXED_ENABLE | FIXED_INTERRUPT) << (4 * index))
                .fold(0, |all, field| all | field);
            require(value & !fields == 0)
        }
        Register::Status => Err(MsrFault::GeneralProtection),
        Register::OverflowControl => require(value & !(all | CLEAR_OTHERS) == 0),
    }
}

/// What RDPMC reads (SDM Vol. 2B "RDPMC"); `None` is #GP.
#[must_use]
pub fn rdpmc(cpu: &Cpu, selector: u32) -> Option<u64> {
    let facilities = Facilities::of(&cpu.model)?;
    let index = (selector & !RDPMC_FIXED) as usize;
    if selector & RDPMC_FIXED == 0 {
        let exists = (index as u32) < facilities.general;
        now(cpu).general.get(index).copied().filter(|_| exists)
    } else {
        let exists = (index as u32) < facilities.fixed;
        now(cpu).fixed.get(index).copied().filter(|_| exists)
    }
}

#[cfg(test)]
mod tests;
