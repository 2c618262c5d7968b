//! Other instructions (SDM Vol. 3C "Instructions That Cause VM Exits Unconditionally" and
//! "... Conditionally"). The VMX instructions are in [`crate::vmx::instructions`].

use super::Intercepts;
use super::information::{
    DescriptorTableInstruction, MemoryOperand, OperandSize, SystemSegmentInstruction,
    descriptor_table_information, invalidate_information, random_information,
    system_segment_information, user_wait_information, vmcs_pointer_information,
};
use crate::vmx::controls::{Primary, Secondary};
use crate::vmx::exit::{ExitReason, VmExit};
use crate::x86::{Exception, Gpr};

/// An exit, none, or #UD because L1 has not enabled the instruction.
type Enabled = Result<Option<VmExit>, Exception>;

impl Intercepts {
    fn if_primary(&self, control: Primary, reason: ExitReason, length: u32) -> Option<VmExit> {
        self.primary(control)
            .then(|| VmExit::instruction(reason, length))
    }

    fn if_secondary(&self, control: Secondary, reason: ExitReason, length: u32) -> Option<VmExit> {
        self.secondary(control)
            .then(|| VmExit::instruction(reason, length))
    }

    /// CPUID exits always.
    #[must_use]
    pub const fn cpuid(&self, length: u32) -> VmExit {
        VmExit::cpuid(length)
    }

    /// INVD exits always.
    #[must_use]
    pub const fn invd(&self, length: u32) -> VmExit {
        VmExit::instruction(ExitReason::INVD, length)
    }

    /// XSETBV exits always.
    #[must_use]
    pub const fn xsetbv(&self, length: u32) -> VmExit {
        VmExit::instruction(ExitReason::XSETBV, length)
    }

    /// HLT.
    #[must_use]
    pub fn hlt(&self, length: u32) -> Option<VmExit> {
        self.if_primary(Primary::HLT_EXITING, ExitReason::HLT, length)
    }

    /// WBINVD and WBNOINVD.
    #[must_use]
    pub fn wbinvd(&self, length: u32) -> Option<VmExit> {
        self.if_secondary(Secondary::WBINVD_EXITING, ExitReason::WBINVD, length)
    }

    /// INVLPG: the qualification is the linear address, segment base included.
    #[must_use]
    pub fn invlpg(&self, address: u64, length: u32) -> Option<VmExit> {
        self.primary(Primary::INVLPG_EXITING)
            .then(|| VmExit::invlpg(address, length))
    }

    /// INVPCID: #UD unless enabled; exits with "INVLPG exiting".
    pub fn invpcid(&self, operand: &MemoryOperand, register: Gpr, length: u32) -> Enabled {
        self.require(Secondary::ENABLE_INVPCID)?;
        Ok(self.primary(Primary::INVLPG_EXITING).then(|| {
            VmExit::instruction(ExitReason::INVPCID, length)
                .with_qualification(operand.displacement)
                .with_instruction_information(invalidate_information(operand, register))
        }))
    }

    /// RDTSC.
    #[must_use]
    pub fn rdtsc(&self, length: u32) -> Option<VmExit> {
        self.if_primary(Primary::RDTSC_EXITING, ExitReason::RDTSC, length)
    }

    /// RDTSCP: #UD unless enabled; exits with "RDTSC exiting".
    pub fn rdtscp(&self, length: u32) -> Enabled {
        self.require(Secondary::ENABLE_RDTSCP)?;
        Ok(self.if_primary(Primary::RDTSC_EXITING, ExitReason::RDTSCP, length))
    }

    /// Whether RDPID, which "enable RDTSCP" gates too, is #UD.
    pub fn rdpid(&self) -> Result<(), Exception> {
        self.require(Secondary::ENABLE_RDTSCP)
    }

    /// RDPMC.
    #[must_use]
    pub fn rdpmc(&self, length: u32) -> Option<VmExit> {
        self.if_primary(Primary::RDPMC_EXITING, ExitReason::RDPMC, length)
    }

    /// MONITOR.
    #[must_use]
    pub fn monitor(&self, length: u32) -> Option<VmExit> {
        self.if_primary(Primary::MONITOR_EXITING, ExitReason::MONITOR, length)
    }

    /// MWAIT: the qualification says whether the monitor is armed.
    #[must_use]
    pub fn mwait(&self, armed: bool, length: u32) -> Option<VmExit> {
        self.if_primary(Primary::MWAIT_EXITING, ExitReason::MWAIT, length)
            .map(|exit| exit.with_qualification(armed.into()))
    }

    /// ENCLS with this leaf in EAX: leaves from 63 on share the last bit of the bitmap.
    #[must_use]
    pub fn encls(&self, leaf: u32, length: u32) -> Option<VmExit> {
        let wanted = self.encls_bitmap >> leaf.min(63) & 1 != 0;
        wanted
            .then(|| self.if_secondary(Secondary::ENABLE_ENCLS_EXITING, ExitReason::ENCLS, length))
            .flatten()
    }

    /// Whether UMONITOR, which has no exit of its own, is #UD.
    pub fn umonitor(&self) -> Result<(), Exception> {
        self.require(Secondary::ENABLE_USER_WAIT_AND_PAUSE)
    }

    /// UMWAIT: #UD unless enabled; exits with "RDTSC exiting".
    pub fn umwait(&self, source: Gpr, length: u32) -> Enabled {
        self.user_wait(ExitReason::UMWAIT, source, length)
    }

    /// TPAUSE: #UD unless enabled; exits with "RDTSC exiting".
    pub fn tpause(&self, source: Gpr, length: u32) -> Enabled {
        self.user_wait(ExitReason::TPAUSE, source, length)
    }

    fn user_wait(&self, reason: ExitReason, source: Gpr, length: u32) -> Enabled {
        self.require(Secondary::ENABLE_USER_WAIT_AND_PAUSE)?;
        Ok(self
            .if_primary(Primary::RDTSC_EXITING, reason, length)
            .map(|exit| exit.with_instruction_information(user_wait_information(source))))
    }

    /// RDRAND.
    #[must_use]
    pub fn rdrand(&self, destination: Gpr, size: OperandSize, length: u32) -> Option<VmExit> {
        self.if_secondary(Secondary::RDRAND_EXITING, ExitReason::RDRAND, length)
            .map(|exit| exit.with_instruction_information(random_information(destination, size)))
    }

    /// RDSEED.
    #[must_use]
    pub fn rdseed(&self, destination: Gpr, size: OperandSize, length: u32) -> Option<VmExit> {
        self.if_secondary(Secondary::RDSEED_EXITING, ExitReason::RDSEED, length)
            .map(|exit| exit.with_instruction_information(random_information(destination, size)))
    }

    /// LGDT, LIDT, SGDT, SIDT.
    #[must_use]
    pub fn descriptor_table(
        &self,
        instruction: DescriptorTableInstruction,
        operand: &MemoryOperand,
        operand_size: OperandSize,
        length: u32,
    ) -> Option<VmExit> {
        let reason = ExitReason::GDTR_OR_IDTR_ACCESS;
        let information = descriptor_table_information(instruction, operand, operand_size);
        self.if_secondary(Secondary::DESCRIPTOR_TABLE_EXITING, reason, length)
            .map(|exit| {
                exit.with_qualification(operand.displacement)
                    .with_instruction_information(information)
            })
    }

    /// LLDT, LTR, SLDT, STR.
    #[must_use]
    pub fn system_segment(
        &self,
        instruction: SystemSegmentInstruction,
        operand: Result<Gpr, &MemoryOperand>,
        length: u32,
    ) -> Option<VmExit> {
        let reason = ExitReason::LDTR_OR_TR_ACCESS;
        let displacement = operand.err().map_or(0, |memory| memory.displacement);
        self.if_secondary(Secondary::DESCRIPTOR_TABLE_EXITING, reason, length)
            .map(|exit| {
                exit.with_qualification(displacement)
                    .with_instruction_information(system_segment_information(instruction, operand))
            })
    }

    /// XSAVES: #UD unless enabled; exits where EDX:EAX, IA32_XSS and the XSS-exiting bitmap meet.
    pub fn xsaves(&self, components: u64, operand: &MemoryOperand, length: u32) -> Enabled {
        self.supervisor_state(ExitReason::XSAVES, components, operand, length)
    }

    /// XRSTORS: as [`Intercepts::xsaves`]. `components` is EDX:EAX & IA32_XSS.
    pub fn xrstors(&self, components: u64, operand: &MemoryOperand, length: u32) -> Enabled {
        self.supervisor_state(ExitReason::XRSTORS, components, operand, length)
    }

    fn supervisor_state(
        &self,
        reason: ExitReason,
        components: u64,
        operand: &MemoryOperand,
        length: u32,
    ) -> Enabled {
        self.require(Secondary::ENABLE_XSAVES)?;
        Ok((components & self.xss_bitmap != 0).then(|| {
            VmExit::instruction(reason, length)
                .with_qualification(operand.displacement)
                .with_instruction_information(vmcs_pointer_information(operand))
        }))
    }

    fn require(&self, control: Secondary) -> Result<(), Exception> {
        if self.secondary(control) {
            Ok(())
        } else {
            Err(Exception::UNDEFINED)
        }
    }
}
