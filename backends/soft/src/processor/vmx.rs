//! VMX instructions of guest code, VM exits and VM entries: the glue between decoded operands and
//! `nvmx_core::vmx`.

use super::operands::{gpr_or_rax, is_memory, memory};
use super::{Done, Outcome, Processor, Trap, unsupported};
use crate::decode;
use iced_x86::{CpuidFeature, Instruction, Mnemonic, OpKind};
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Interruptibility;
use nvmx_core::personality::Difference;
use nvmx_core::vcpu::{Exit, NestedEvent};
use nvmx_core::vmx::Field;
use nvmx_core::vmx::entry;
use nvmx_core::vmx::ept::EptFault;
use nvmx_core::vmx::exit::{self, Flush, MsrEffects, VmExit};
use nvmx_core::vmx::instructions::{self, Instruction as Vmx, Operands, VmxResult};
use nvmx_core::vmx::intercepts::{self, Intercepts, PauseLoop};
use nvmx_core::x86::{Exception, cpuid};

/// The exit for a fault of L1's EPT, or for the APIC-access page.
pub(super) fn ept_exit(fault: &EptFault, during_event_delivery: bool) -> VmExit {
    match *fault {
        EptFault::Violation {
            guest_physical,
            guest_linear,
            qualification,
            ..
        } => VmExit::ept_violation(qualification, guest_physical, guest_linear),
        EptFault::Misconfiguration { guest_physical } => {
            VmExit::ept_misconfiguration(guest_physical)
        }
        EptFault::SubPage {
            guest_physical,
            guest_linear,
            miss,
        } => VmExit::sub_page(miss, guest_physical, guest_linear),
        EptFault::LogFull { guest_physical } => VmExit::page_modification_log_full(guest_physical),
        EptFault::ApicAccess(access) => access.exit(during_event_delivery),
    }
}

fn vmx_instruction(mnemonic: Mnemonic) -> Option<Vmx> {
    Some(match mnemonic {
        Mnemonic::Vmxon => Vmx::Vmxon,
        Mnemonic::Vmxoff => Vmx::Vmxoff,
        Mnemonic::Vmclear => Vmx::Vmclear,
        Mnemonic::Vmptrld => Vmx::Vmptrld,
        Mnemonic::Vmptrst => Vmx::Vmptrst,
        Mnemonic::Vmread => Vmx::Vmread,
        Mnemonic::Vmwrite => Vmx::Vmwrite,
        Mnemonic::Vmlaunch => Vmx::Vmlaunch,
        Mnemonic::Vmresume => Vmx::Vmresume,
        Mnemonic::Vmcall => Vmx::Vmcall,
        Mnemonic::Invept => Vmx::Invept,
        Mnemonic::Invvpid => Vmx::Invvpid,
        Mnemonic::Vmfunc => Vmx::Vmfunc,
        Mnemonic::Getsec => Vmx::Getsec,
        _ => return None,
    })
}

impl Processor {
    /// An instruction that the engine does not know: VMX, or #UD.
    pub(super) fn undefined(&mut self, instruction: &Instruction) -> Outcome {
        if let Some(vmx) = vmx_instruction(instruction.mnemonic()) {
            return self.vmx_instruction(vmx, instruction);
        }
        match instruction.mnemonic() {
            Mnemonic::Invpcid => return self.invpcid(instruction),
            Mnemonic::Encls => return self.encls(instruction),
            Mnemonic::Rdmsrlist | Mnemonic::Wrmsrlist => return self.msr_list(instruction),
            Mnemonic::Monitor | Mnemonic::Mwait => return self.monitor_mwait(instruction),
            _ => {}
        }
        if let Some(outcome) = self.extended_state(instruction) {
            return outcome;
        }
        if self.promises(instruction) {
            // CPUID says that it exists: a #UD would be a wrong answer.
            return Err(unsupported(format!(
                "instruction {:?} at RIP {:#x}, SDM Vol. 2",
                instruction.code(),
                self.cpu.regs.rip
            )));
        }
        Err(Exception::UNDEFINED.into())
    }

    /// Whether CPUID promises an instruction that the engine lacks.
    fn promises(&self, instruction: &Instruction) -> bool {
        let leaf = |leaf, register: usize, bit: u32| {
            cpuid::lookup(&self.cpu.model.cpuid, leaf, 0)[register] >> bit & 1 != 0
        };
        let uses_avx_state = self.cpu.xcr0 & 4 != 0;
        instruction
            .cpuid_features()
            .iter()
            .any(|feature| match feature {
                CpuidFeature::AVX => uses_avx_state && leaf(1, 2, 28),
                CpuidFeature::AVX2 => uses_avx_state && leaf(7, 1, 5),
                CpuidFeature::FSGSBASE => {
                    leaf(7, 1, 0)
                        && self.cpu.sregs.cr4 & nvmx_core::x86::control::cr4::FSGSBASE != 0
                }
                _ => false,
            })
    }

    fn vmx_instruction(&mut self, vmx: Vmx, instruction: &Instruction) -> Outcome {
        let operands = self.vmx_operands(vmx, instruction);
        if let Err(result) = instructions::check_execution(&self.cpu, &self.ram, vmx, &operands) {
            self.record_entry_failure(vmx, &result);
            return self.complete(result, operands.length, Flush::None);
        }
        let (result, flush) = match vmx {
            Vmx::Vmxon => {
                let pointer = self.pointer(instruction)?;
                (
                    instructions::vmxon(&mut self.cpu, &self.ram, pointer),
                    Flush::None,
                )
            }
            Vmx::Vmxoff => (instructions::vmxoff(&mut self.cpu), Flush::None),
            Vmx::Vmclear => {
                let pointer = self.pointer(instruction)?;
                (
                    instructions::vmclear(&mut self.cpu, &self.ram, pointer),
                    Flush::None,
                )
            }
            Vmx::Vmptrld => {
                let pointer = self.pointer(instruction)?;
                (
                    instructions::vmptrld(&mut self.cpu, &self.ram, pointer),
                    Flush::None,
                )
            }
            Vmx::Vmptrst => {
                let address = decode::resolve(&self.cpu, instruction, 0, 8, true)?;
                let value = instructions::vmptrst(&self.cpu);
                self.write_linear(address.linear, &value.to_le_bytes())?;
                (VmxResult::Succeed, Flush::None)
            }
            Vmx::Vmread => (self.vmread(instruction, operands.register)?, Flush::None),
            Vmx::Vmwrite => (self.vmwrite(instruction, operands.register)?, Flush::None),
            Vmx::Vmlaunch => (
                instructions::vmlaunch(&mut self.cpu, &self.ram),
                Flush::None,
            ),
            Vmx::Vmresume => (
                instructions::vmresume(&mut self.cpu, &self.ram),
                Flush::None,
            ),
            Vmx::Vmcall => (instructions::vmcall(&mut self.cpu), Flush::None),
            Vmx::Invept => {
                let descriptor = self.descriptor(instruction)?;
                instructions::invept(&self.cpu, operands.register, descriptor)
            }
            Vmx::Invvpid => {
                let descriptor = self.descriptor(instruction)?;
                instructions::invvpid(&self.cpu, operands.register, descriptor)
            }
            Vmx::Vmfunc => instructions::vmfunc(&mut self.cpu, &self.ram, &operands),
            Vmx::Getsec => (VmxResult::Fault(Exception::UNDEFINED), Flush::None),
        };
        self.record_entry_failure(vmx, &result);
        self.complete(result, operands.length, flush)
    }

    /// VMLAUNCH or VMRESUME that ended in VMfail is a nested event too.
    fn record_entry_failure(&mut self, vmx: Vmx, result: &VmxResult) {
        if !matches!(vmx, Vmx::Vmlaunch | Vmx::Vmresume) {
            return;
        }
        match result {
            VmxResult::FailInvalid => self.record(NestedEvent::EntryFailure { error: None }),
            VmxResult::FailValid(error) => self.record(NestedEvent::EntryFailure {
                error: Some(error.0),
            }),
            _ => {}
        }
    }

    /// Applies how a VMX instruction ended.
    fn complete(&mut self, result: VmxResult, length: u32, flush: Flush) -> Outcome {
        if flush != Flush::None {
            // One TLB for all tags: dropping more than asked is always allowed.
            self.effects.flush = true;
            self.rebuild_regime();
        }
        match result {
            VmxResult::Succeed
            | VmxResult::FailInvalid
            | VmxResult::FailValid(_)
            | VmxResult::Done => {
                instructions::complete(&mut self.cpu, &result, length);
                // `complete` has moved RIP; the rest of retiring is ours.
                self.retire(0);
                Ok(Done::Jumped)
            }
            VmxResult::Fault(exception) => Err(exception.into()),
            VmxResult::Exit(exit) => Err(exit.into()),
            VmxResult::Entered(entered) => {
                self.apply_msr_effects(&entered.msrs);
                self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
                self.entered();
                Ok(Done::Jumped)
            }
            VmxResult::Unbacked => {
                let page = self.cpu.vmx.vmcs12.get(Field::APIC_ACCESS_ADDR);
                Err(Trap::User(Exit::emulation_failure(format!(
                    "no RAM behind the APIC-access page at {page:#x}"
                ))))
            }
            VmxResult::EntryFailed { exit, left } => {
                self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
                self.record_exit(&exit);
                self.left(&left);
                Ok(Done::Jumped)
            }
        }
    }

    /// L2 runs now: everything that depends on the level is derived anew.
    fn entered(&mut self) {
        let vmcs12 = &self.cpu.vmx.vmcs12;
        let information = vmcs12.get(Field::VM_ENTRY_INTR_INFO_FIELD) as u32;
        let event = NestedEvent::Entry {
            vmcs12: self.cpu.vmx.current.unwrap_or(L1Phys(u64::MAX)),
            l2_rip: self.cpu.regs.rip,
            injected: Some(information),
        };
        self.record(event);
        self.pause_loop = PauseLoop::default();
        self.level_changed();
    }

    /// Derives everything that depends on the level and on L1's controls.
    pub(crate) fn level_changed(&mut self) {
        self.unsupported = if self.in_l2() {
            entry::unsupported(&self.cpu.vmx.vmcs12)
        } else {
            None
        };
        self.intercepts = if self.in_l2() {
            Intercepts::new(&self.cpu.vmx.vmcs12)
        } else {
            Intercepts::default()
        };
        self.apic_level_changed();
        self.stop_waiting();
        self.data_matches = 0;
        self.effects.controls = true;
        self.address_space_changed();
    }

    /// Leaves L2: records the exit and loads L1's host state.
    pub(super) fn exit_to_l1(&mut self, exit: &VmExit) {
        self.cpu.vmx.run_pending = false;
        self.stop_waiting();
        let rip = self.cpu.regs.rip;
        let left = exit::leave(&mut self.cpu, &self.ram, exit);
        self.record_exit_at(exit, rip);
        self.left(&left);
    }

    /// What MSR lists did that the APIC must hear of.
    fn apply_msr_effects(&mut self, effects: &MsrEffects) {
        if let Some(base) = effects.apic_base {
            self.apic.set_base(base);
        }
        if let Some((number, value)) = effects.apic_write {
            // The list's checks let through only what the APIC takes.
            let _ = self.apic.msr_write(number, value, self.cpu.tsc.l1());
        }
    }

    pub(crate) fn left(&mut self, left: &exit::Left) {
        self.apply_msr_effects(&left.msrs);
        self.one_instruction = false;
        self.iret_unblocks = false;
        self.level_changed();
        if left.abort.is_some() {
            self.cpu.triple_fault_pending = true;
        }
    }

    fn record_exit(&mut self, exit: &VmExit) {
        self.record_exit_at(exit, self.cpu.regs.rip);
    }

    fn record_exit_at(&mut self, exit: &VmExit, l2_rip: u64) {
        self.record(NestedEvent::Exit {
            reason: exit.reason.0,
            qualification: Some(exit.qualification),
            interruption: Some(exit.interruption_information()),
            error_code: Some(
                exit.interruption
                    .and_then(|event| event.error_code)
                    .unwrap_or(0),
            ),
            instruction_length: exit.instruction_length,
            guest_physical: exit.guest_physical.map(|address| address.0),
            l2_rip: Some(l2_rip),
        });
    }

    fn vmx_operands(&self, vmx: Vmx, instruction: &Instruction) -> Operands {
        let bits = decode::code_bits(&self.cpu);
        let length = instruction.len() as u32;
        let operand = memory(instruction, bits);
        let register = |index: u32| gpr_or_rax(instruction.op_register(index));
        let masked = |value: u64| {
            if self.cpu.in_64_bit_mode() {
                value
            } else {
                value & 0xffff_ffff
            }
        };
        let (displacement, information, register_value) = match vmx {
            Vmx::Vmxon | Vmx::Vmclear | Vmx::Vmptrld | Vmx::Vmptrst => (
                operand.displacement,
                intercepts::vmcs_pointer_information(&operand),
                0,
            ),
            Vmx::Vmread | Vmx::Vmwrite => {
                // VMREAD r/m, field; VMWRITE field, r/m.
                let (value, field) = if vmx == Vmx::Vmread { (0, 1) } else { (1, 0) };
                let place = if is_memory(instruction, value) {
                    Err(&operand)
                } else {
                    Ok(register(value))
                };
                let displacement = if place.is_err() {
                    operand.displacement
                } else {
                    0
                };
                let field = register(field);
                (
                    displacement,
                    intercepts::vmcs_access_information(field, place),
                    masked(self.cpu.regs.get(field)),
                )
            }
            Vmx::Invept | Vmx::Invvpid => {
                let kind = register(0);
                let information = intercepts::invalidate_information(&operand, kind);
                (
                    operand.displacement,
                    information,
                    masked(self.cpu.regs.get(kind)),
                )
            }
            _ => (0, 0, 0),
        };
        Operands {
            length,
            displacement,
            information,
            register: register_value,
        }
    }

    /// The 64-bit pointer in memory that VMXON, VMCLEAR and VMPTRLD take.
    fn pointer(&mut self, instruction: &Instruction) -> Result<u64, Trap> {
        let address = decode::resolve(&self.cpu, instruction, 0, 8, false)?;
        let mut bytes = [0; 8];
        self.read_linear(address.linear, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// The 128-bit descriptor of INVEPT and INVVPID.
    fn descriptor(&mut self, instruction: &Instruction) -> Result<[u64; 2], Trap> {
        let address = decode::resolve(&self.cpu, instruction, 1, 16, false)?;
        let mut words = [[0; 8]; 2];
        for (index, word) in words.iter_mut().enumerate() {
            self.read_linear(address.linear.wrapping_add(8 * index as u64), word)?;
        }
        Ok(words.map(u64::from_le_bytes))
    }

    fn vmread(&mut self, instruction: &Instruction, encoding: u64) -> Result<VmxResult, Trap> {
        let value = match instructions::vmread(&self.cpu, encoding) {
            Ok(value) => value,
            Err(result) => return Ok(result),
        };
        let wide = self.cpu.in_64_bit_mode();
        if instruction.op0_kind() == OpKind::Register {
            decode::write_register(&mut self.cpu, instruction.op0_register(), value);
        } else {
            let length = if wide { 8 } else { 4 };
            let address = decode::resolve(&self.cpu, instruction, 0, length, true)?;
            self.write_linear(address.linear, &value.to_le_bytes()[..length as usize])?;
        }
        Ok(VmxResult::Succeed)
    }

    fn vmwrite(&mut self, instruction: &Instruction, encoding: u64) -> Result<VmxResult, Trap> {
        let value = if instruction.op1_kind() == OpKind::Register {
            decode::read_register(&self.cpu, instruction.op1_register()).unwrap_or(0)
        } else {
            let length = if self.cpu.in_64_bit_mode() { 8 } else { 4 };
            let address = decode::resolve(&self.cpu, instruction, 1, length, false)?;
            let mut bytes = [0; 8];
            self.read_linear(address.linear, &mut bytes[..length as usize])?;
            u64::from_le_bytes(bytes)
        };
        Ok(instructions::vmwrite(&mut self.cpu, encoding, value))
    }

    /// Whether IRET must be reported: something depends on the end of NMI blocking.
    pub(crate) fn iret_ends_blocking(&self) -> bool {
        self.cpu.interruptibility.contains(Interruptibility::NMI)
            && (!self.in_l2()
                || self.intercepts.iret_unblocks_nmis()
                || self.cpu.model.as_kvm(Difference::IretNmiBlocking))
    }
}
