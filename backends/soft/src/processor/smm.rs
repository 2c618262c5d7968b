//! SMIs and RSM (SDM Vol. 3C "System Management Mode"): when an SMI is taken, and what follows for everything
//! that depends on the level and the address space.

use super::boundary::Next;
use super::{Done, Outcome, Processor, unsupported};
use nvmx_core::personality::Difference;
use nvmx_core::smm;
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::{Exception, cpuid};

/// CPUID.80000001H:EDX.LM.
const CPUID_LM: u32 = 1 << 29;

impl Processor {
    /// Whether an SMI is taken here: before INIT and debug traps, or behind everything but NMIs and interrupts,
    /// as KVM has it (SDM Vol. 3A "Priority Among Concurrent Events").
    #[inline]
    pub(super) fn smi_comes(&self, behind_traps: bool) -> bool {
        self.cpu.smi_pending
            && behind_traps == self.cpu.model.as_kvm(Difference::SmiInL2)
            && !smm::blocks_smi(&self.cpu)
    }

    pub(super) fn enter_smm(&mut self) -> Next {
        if cpuid::lookup(&self.cpu.model.cpuid, 0x8000_0001, 0)[3] & CPUID_LM == 0 {
            return Next::User(Exit::Unsupported {
                what: "SMI on a processor without Intel 64, SDM Vol. 3C \"SMRAM State Save Map\""
                    .to_owned(),
            });
        }
        self.ram.set_smm(true);
        match smm::enter(&mut self.cpu, &self.ram) {
            Some(left) => self.left(&left),
            None => {
                self.one_instruction = false;
                self.iret_unblocks = false;
                self.level_changed();
            }
        }
        Next::Again
    }

    /// RSM.
    pub(super) fn rsm(&mut self) -> Outcome {
        if !self.cpu.smm {
            return Err(Exception::UNDEFINED.into());
        }
        self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
        if smm::resume(&mut self.cpu, &self.ram).is_err() {
            // The shutdown state, which is L1's.
            self.cpu.vmx.guest_mode = false;
            self.cpu.triple_fault_pending = true;
        }
        self.ram.set_smm(self.cpu.smm);
        self.pdptes_stale = true;
        self.level_changed();
        if let Some(what) = self.unsupported {
            return Err(unsupported(what));
        }
        Ok(Done::Jumped)
    }
}
