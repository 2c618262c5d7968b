//! MONITOR and MWAIT (SDM Vol. 2B "MONITOR", "MWAIT"; Vol. 3A "MONITOR/MWAIT Instruction"). MWAIT sleeps as
//! HLT does, and a store to the watched line ends the sleep, too: the line is compared whenever the
//! processor is looked at, so that a store which changes nothing may pass unseen.

use super::{Done, Outcome, Processor};
use crate::decode;
use iced_x86::{Code, Instruction, Mnemonic, Register};
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Activity;
use nvmx_core::memory::GuestMemory;
use nvmx_core::paging::{Access, AccessKind};
use nvmx_core::personality::Difference;
use nvmx_core::x86::{Exception, Gpr, cpuid};

/// Bytes of the line: CPUID.05H says so.
const LINE: usize = 64;
/// CPUID.01H:ECX.MONITOR.
pub(super) const CPUID_MONITOR: u32 = 1 << 3;
/// IA32_MISC_ENABLE: MONITOR is enabled.
pub(crate) const ENABLED: u64 = 1 << 18;

/// What MONITOR has armed, and the sleep that MWAIT began.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Monitor {
    /// The line and what it held.
    armed: Option<(L1Phys, [u8; LINE])>,
    /// The processor is in HLT because of MWAIT.
    waits: bool,
    /// A masked interrupt ends the wait: ECX bit 0.
    masked_interrupts: bool,
}

impl Processor {
    /// Whether CPUID has the instructions, as IA32_MISC_ENABLE lets it.
    pub(super) fn has_monitor(&self) -> bool {
        cpuid::lookup(&self.cpu.model.cpuid, 1, 0)[2] & CPUID_MONITOR != 0
            && self.cpu.msrs.misc_enable & ENABLED != 0
    }

    /// MONITOR, MWAIT.
    pub(super) fn monitor_mwait(&mut self, instruction: &Instruction) -> Outcome {
        if self.cpu.cpl() > 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let length = instruction.len() as u32;
        let monitors = instruction.mnemonic() == Mnemonic::Monitor;
        let exit = if monitors {
            self.intercepts.monitor(length)
        } else {
            let armed = self.monitor.armed.is_some();
            self.intercepts.mwait(armed, length)
        };
        self.exit_if(exit)?;
        if !self.has_monitor() {
            return if self.cpu.model.as_kvm(Difference::MonitorMwait) {
                Ok(Done::Retired)
            } else {
                Err(Exception::UNDEFINED.into())
            };
        }
        // Hints in EAX may be ignored; extensions in ECX exist or fault.
        let extensions = self.cpu.regs.get(Gpr::Rcx) & 0xffff_ffff;
        if extensions & !u64::from(!monitors) != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if monitors {
            return self.arm(instruction);
        }
        let unchanged = self.monitor.armed.is_some() && !self.line_changed();
        self.monitor.waits = unchanged;
        self.monitor.masked_interrupts = extensions & 1 != 0;
        if unchanged {
            self.cpu.activity = Activity::Hlt;
        } else {
            self.monitor = Monitor::default();
        }
        Ok(Done::Retired)
    }

    fn arm(&mut self, instruction: &Instruction) -> Outcome {
        let segment = match instruction.segment_prefix() {
            Register::None => Register::DS,
            segment => segment,
        };
        let mask = match instruction.code() {
            Code::Monitorw => 0xffff,
            Code::Monitord => 0xffff_ffff,
            _ => u64::MAX,
        };
        let offset = self.cpu.regs.get(Gpr::Rax) & mask;
        // As a load of one byte.
        let address = decode::check(&self.cpu, segment, offset, 1, false)?;
        let access = Access::explicit(AccessKind::Read, self.cpu.cpl());
        let physical = self.translate(address.linear, access)?.physical;
        let line = L1Phys(physical.0 & !(LINE as u64 - 1));
        let mut bytes = [0; LINE];
        let is_memory = self.ram.read(line, &mut bytes).is_ok();
        self.monitor = Monitor {
            armed: is_memory.then_some((line, bytes)),
            ..Monitor::default()
        };
        Ok(Done::Retired)
    }

    fn line_changed(&self) -> bool {
        self.monitor.armed.is_none_or(|(line, was)| {
            let mut bytes = [0; LINE];
            self.ram.read(line, &mut bytes).is_err() || bytes != was
        })
    }

    /// Whether the processor sleeps because of MWAIT.
    pub(crate) fn waits_for_store(&self) -> bool {
        self.monitor.waits && self.cpu.activity == Activity::Hlt
    }

    /// Ends such a sleep if its time has come; whether it did.
    pub(super) fn wake_by_store(&mut self) -> bool {
        let ends = self.waits_for_store()
            && (self.line_changed() || self.monitor.masked_interrupts && self.interrupt_waits());
        if ends {
            self.stop_waiting();
        }
        ends
    }

    /// Wakes from MWAIT, which is no activity state, and forgets the line.
    #[inline]
    pub(super) fn stop_waiting(&mut self) {
        if self.monitor.armed.is_some() {
            if self.waits_for_store() {
                self.cpu.activity = Activity::Active;
            }
            self.monitor = Monitor::default();
        }
    }
}
