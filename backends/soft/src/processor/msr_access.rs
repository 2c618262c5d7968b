//! RDMSR and WRMSR that user space answers (KVM's `KVM_X86_SET_MSR_FILTER` and `KVM_CAP_X86_USER_SPACE_MSR`; Linux
//! arch/x86/kvm/x86.c, `kvm_emulate_rdmsr` and `kvm_emulate_wrmsr`).

use super::{Done, PendingRead, Processor, Trap};
use iced_x86::Instruction;
use nvmx_core::msr;
use nvmx_core::msr::filter::MsrExitReason;
use nvmx_core::vcpu::Exit;
use nvmx_core::x86::{Exception, Gpr};

impl Processor {
    /// What the filter says before the access: it is user space's, or #GP. `value` is a write's.
    pub(super) fn ask_before(
        &mut self,
        instruction: &Instruction,
        number: u32,
        value: Option<u64>,
    ) -> Result<(), Trap> {
        let Some(filter) = &self.msr_filter else {
            return Ok(());
        };
        if filter.allows(number, value.is_some()) {
            return Ok(());
        }
        let fault = Exception::GENERAL_PROTECTION.into();
        Err(self.ask(instruction, number, value, MsrExitReason::Filter, fault))
    }

    /// The trap of an access that failed: user space's to answer, if it wants to.
    pub(super) fn ask_instead(
        &mut self,
        instruction: &Instruction,
        number: u32,
        value: Option<u64>,
        trap: Trap,
    ) -> Trap {
        if self.msr_filter.is_none() || trap != Trap::from(Exception::GENERAL_PROTECTION) {
            return trap;
        }
        // KVM tells an MSR that it does not know from a value that it does not take.
        let is_known = value.is_some() && msr::read(&self.cpu, number).is_ok();
        let reason = if is_known {
            MsrExitReason::Invalid
        } else {
            MsrExitReason::Unknown
        };
        self.ask(instruction, number, value, reason, trap)
    }

    fn ask(
        &mut self,
        instruction: &Instruction,
        number: u32,
        value: Option<u64>,
        reason: MsrExitReason,
        otherwise: Trap,
    ) -> Trap {
        let filter = self.msr_filter.as_ref();
        if !filter.is_some_and(|filter| filter.exits(reason)) {
            return otherwise;
        }
        self.pending_read = Some(PendingRead::Msr {
            write: value.is_some(),
            instruction: *instruction,
        });
        Trap::User(match value {
            None => Exit::MsrRead { number, reason },
            Some(value) => Exit::MsrWrite {
                number,
                value,
                reason,
            },
        })
    }

    /// The instruction is done: RDMSR has its value.
    pub(crate) fn complete_msr(&mut self, write: bool, value: u64) -> Done {
        if !write {
            self.cpu.regs.set(Gpr::Rax, value & 0xffff_ffff);
            self.cpu.regs.set(Gpr::Rdx, value >> 32);
        }
        Done::Retired
    }
}
