//! RDMSR, WRMSR, and their lists (SDM Vol. 2B and 2C; Vol. 3C "Changes to Instruction Behavior in VMX
//! Non-Root Operation").

use super::{Done, Outcome, Processor, Trap, unsupported};
use iced_x86::{Instruction, Mnemonic};
use nvmx_core::apic;
use nvmx_core::msr::{self, MsrEffect, MsrFault, MsrRead};
use nvmx_core::personality::Difference;
use nvmx_core::vmx::Field;
use nvmx_core::vmx::exit::{self, VmExit};
use nvmx_core::vmx::spec_ctrl;
use nvmx_core::x86::{Exception, Gpr, cpuid};

/// CPUID.7.1:EAX: RDMSRLIST, WRMSRLIST and IA32_BARRIER.
const MSRLIST: u32 = 1 << 27;
/// An MSR that only lists name.
const IA32_BARRIER: u32 = 0x2f;

impl Processor {
    /// RDMSR.
    pub(super) fn rdmsr(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let number = self.cpu.regs.get(Gpr::Rcx) as u32;
        if self.in_l2() {
            self.exit_if(
                self.intercepts
                    .rdmsr(&self.ram, number, instruction.len() as u32),
            )?;
        }
        self.ask_before(instruction, number, None)?;
        match self.value_of(number) {
            Ok(value) => Ok(self.complete_msr(false, value)),
            Err(trap) => Err(self.ask_instead(instruction, number, None, trap)),
        }
    }

    /// What a read of this MSR gives that no exit takes.
    fn value_of(&self, number: u32) -> Result<u64, Trap> {
        if self.in_l2()
            && let Some(value) = self.apic_virtualization.read_msr(&self.ram, number)
        {
            return Ok(value);
        }
        Ok(match msr::read(&self.cpu, number) {
            Ok(_) if spec_ctrl::is_virtualized(&self.cpu, number) => spec_ctrl::read(&self.cpu),
            Ok(MsrRead::Value(value)) => value,
            Ok(MsrRead::Apic) => self
                .apic
                .msr_read(number, self.cpu.tsc.l1())
                .map_err(|_| Exception::GENERAL_PROTECTION)?,
            Err(fault) => return Err(msr_trap(fault)),
        })
    }

    /// WRMSR.
    pub(super) fn wrmsr(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let number = self.cpu.regs.get(Gpr::Rcx) as u32;
        let low = self.cpu.regs.get(Gpr::Rax) & 0xffff_ffff;
        let value = low | self.cpu.regs.get(Gpr::Rdx) << 32;
        if self.in_l2() {
            self.exit_if(
                self.intercepts
                    .wrmsr(&self.ram, number, instruction.len() as u32),
            )?;
        }
        self.ask_before(instruction, number, Some(value))?;
        let outcome = self.assign(number, value, instruction.len());
        outcome.map_err(|trap| self.ask_instead(instruction, number, Some(value), trap))
    }

    /// A write of an MSR that no exit takes, by an instruction that ends `length` bytes on.
    fn assign(&mut self, number: u32, value: u64, length: usize) -> Outcome {
        if self.in_l2() {
            let vmcs12 = &mut self.cpu.vmx.vmcs12;
            let virtualized = self
                .apic_virtualization
                .write_msr(vmcs12, &self.ram, number, value)?;
            if let Some(virtualized) = virtualized {
                return self.virtualized(virtualized, length);
            }
            if spec_ctrl::is_virtualized(&self.cpu, number) {
                spec_ctrl::write(&mut self.cpu, value).map_err(msr_trap)?;
                return Ok(Done::Retired);
            }
        }
        match msr::write(&mut self.cpu, number, value) {
            Ok(MsrEffect::None | MsrEffect::Engine | MsrEffect::Tsc) => {}
            Ok(MsrEffect::Apic) => {
                if !self.cpu.model.as_kvm(Difference::X2ApicReserved)
                    && value & apic::reserved_bits(number) != 0
                {
                    return Err(Exception::GENERAL_PROTECTION.into());
                }
                let effect = self
                    .apic
                    .msr_write(number, value, self.cpu.tsc.l1())
                    .map_err(|_| Exception::GENERAL_PROTECTION)?;
                self.apic_effect(effect)?;
            }
            Ok(MsrEffect::ApicBase(base)) => {
                if self.cpu.model.as_kvm(Difference::ApicReset) {
                    self.apic.set_base(base);
                } else {
                    self.apic.set_base_and_reset(base);
                }
                self.effects.flush = true;
            }
            Ok(MsrEffect::Efer) => self.address_space_changed(),
            Err(fault) => return Err(msr_trap(fault)),
        }
        exit::note_msr_write(&mut self.cpu, number);
        Ok(Done::Retired)
    }

    /// RDMSRLIST and WRMSRLIST: the MSRs that RCX names, in the table at RSI, from or to the table at RDI.
    ///
    /// They can be interrupted between two MSRs, and then go on where RCX says; here they are not.
    pub(super) fn msr_list(&mut self, instruction: &Instruction) -> Outcome {
        let is_write = instruction.mnemonic() == Mnemonic::Wrmsrlist;
        let length = instruction.len();
        if cpuid::lookup(&self.cpu.model.cpuid, 7, 1)[0] & MSRLIST == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        if self.in_l2() {
            self.intercepts.msr_list(&self.cpu.vmx.vmcs12)?;
        }
        self.require_cpl0()?;
        self.exit_if(self.intercepts.whole_msr_list(is_write, length as u32))?;
        let (numbers, values) = (self.cpu.regs.get(Gpr::Rsi), self.cpu.regs.get(Gpr::Rdi));
        if (numbers | values) & 7 != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        loop {
            let left = self.cpu.regs.get(Gpr::Rcx);
            if left == 0 {
                return Ok(Done::Retired);
            }
            let offset = 8 * u64::from(left.trailing_zeros());
            let rest = left & (left - 1);
            let entry = self.read_entry(numbers.wrapping_add(offset))?;
            let number = u32::try_from(entry).map_err(|_| Exception::GENERAL_PROTECTION)?;
            let at = values.wrapping_add(offset);
            let value = if is_write { self.read_entry(at)? } else { 0 };
            if self.in_l2() && self.intercepts.wants_msr(&self.ram, number, is_write) {
                if is_write {
                    self.cpu.vmx.vmcs12.set(Field::MSR_DATA, value);
                }
                return Err(VmExit::msr_list(is_write, number, length as u32).into());
            }
            if number == IA32_BARRIER {
                // Orders what the list does, which is in order here; it holds nothing.
                if !is_write {
                    self.write_entry(at, 0)?;
                }
            } else if is_write {
                // An exit of a virtualized write comes between two MSRs, or behind the last.
                let length = if rest == 0 { length } else { 0 };
                match self.assign(number, value, length) {
                    Ok(Done::Retired) => {}
                    Err(trap) if !matches!(trap, Trap::Exit(_)) => return Err(trap),
                    virtualized => {
                        self.cpu.regs.set(Gpr::Rcx, rest);
                        return virtualized;
                    }
                }
            } else {
                let value = self.value_of(number)?;
                self.write_entry(at, value)?;
            }
            self.cpu.regs.set(Gpr::Rcx, rest);
        }
    }

    fn read_entry(&mut self, linear: u64) -> Result<u64, Trap> {
        self.require_canonical(linear)?;
        let mut bytes = [0; 8];
        self.read_linear(linear, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn write_entry(&mut self, linear: u64, value: u64) -> Result<(), Trap> {
        self.require_canonical(linear)?;
        Ok(self.write_linear(linear, &value.to_le_bytes())?)
    }

    fn require_canonical(&self, linear: u64) -> Result<(), Trap> {
        if self.regime.is_canonical(linear) {
            Ok(())
        } else {
            Err(Exception::GENERAL_PROTECTION.into())
        }
    }
}

fn msr_trap(fault: MsrFault) -> Trap {
    match fault {
        MsrFault::GeneralProtection => Exception::GENERAL_PROTECTION.into(),
        MsrFault::Unsupported(what) => unsupported(what),
    }
}
