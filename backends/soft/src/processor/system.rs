//! Instructions that ask the processor about itself or put it to rest: CPUID, RDTSC, RDMSR, HLT and
//! their kin (SDM Vol. 2, Vol. 3C "Changes to Instruction Behavior in VMX Non-Root Operation").

use super::operands::{gpr_or_rax, is_memory, memory, size};
use super::{Done, Outcome, Processor, Trap, monitor, unsupported};
use crate::decode;
use iced_x86::{Code, Instruction, Mnemonic};
use nvmx_core::cpu::{Activity, Interruptibility};
use nvmx_core::msr;
use nvmx_core::personality::Difference;
use nvmx_core::pmu;
use nvmx_core::vmx::entry;
use nvmx_core::vmx::exit::VmExit;
use nvmx_core::vmx::intercepts::{DescriptorTableInstruction, SystemSegmentInstruction};
use nvmx_core::x86::control::{cr0, cr4};
use nvmx_core::x86::cr_write::is_canonical;
use nvmx_core::x86::{Exception, Gpr, cpuid};

/// Bits of CPUID.1:ECX that the model itself looks at.
mod leaf1_ecx {
    pub(super) const XSAVE: u32 = 1 << 26;
    pub(super) const OSXSAVE: u32 = 1 << 27;
    pub(super) const RDRAND: u32 = 1 << 30;
}

impl Processor {
    /// Takes the exit if L2 runs and L1 wants it.
    pub(super) fn exit_if(&self, exit: Option<VmExit>) -> Result<(), Trap> {
        match exit {
            Some(exit) if self.in_l2() => Err(Trap::Exit(exit)),
            _ => Ok(()),
        }
    }

    /// CPUID.
    pub(super) fn cpuid(&mut self, instruction: &Instruction) -> Outcome {
        if self.cpu.msrs.misc_feature_enables & msr::CPUID_FAULTING != 0
            && !(self.in_l2() && self.cpu.model.as_kvm(Difference::CpuidFaulting))
        {
            self.require_cpl0()?;
        }
        if self.in_l2() {
            return Err(self.intercepts.cpuid(instruction.len() as u32).into());
        }
        let (leaf, subleaf) = (
            self.cpu.regs.get(Gpr::Rax) as u32,
            self.cpu.regs.get(Gpr::Rcx) as u32,
        );
        let [eax, mut ebx, mut ecx, mut edx] = cpuid::lookup(&self.cpu.model.cpuid, leaf, subleaf);
        if leaf == 1 {
            // These bits follow the processor's state (SDM Vol. 2A "CPUID").
            ecx &= !leaf1_ecx::OSXSAVE;
            if self.cpu.sregs.cr4 & cr4::OSXSAVE != 0 {
                ecx |= leaf1_ecx::OSXSAVE;
            }
            // No APIC that is disabled globally (SDM Vol. 3A "Presence of the Local APIC").
            const APIC: u32 = 1 << 9;
            edx &= !APIC;
            if self.apic.is_enabled() {
                edx |= APIC;
            }
            if !self.has_monitor() {
                ecx &= !monitor::CPUID_MONITOR;
            }
        }
        if leaf == 7 && subleaf == 0 {
            const OSPKE: u32 = 1 << 4;
            ecx &= !OSPKE;
            if self.cpu.sregs.cr4 & cr4::PKE != 0 {
                ecx |= OSPKE;
            }
        }
        if leaf == 0xd && subleaf == 0 && self.cpu.xcr0 & !3 == 0 && ebx != 0 {
            // Size of the area for the components that XCR0 enables: x87 and SSE alone.
            ebx = 0x240;
        }
        for (gpr, value) in [
            (Gpr::Rax, eax),
            (Gpr::Rbx, ebx),
            (Gpr::Rcx, ecx),
            (Gpr::Rdx, edx),
        ] {
            self.cpu.regs.set(gpr, u64::from(value));
        }
        Ok(Done::Retired)
    }

    /// RDTSC, RDTSCP.
    pub(super) fn rdtsc(&mut self, instruction: &Instruction) -> Outcome {
        let length = instruction.len() as u32;
        let with_aux = instruction.mnemonic() == Mnemonic::Rdtscp;
        if with_aux && self.in_l2() {
            // #UD by the control comes before CR4.TSD, the exit after it.
            self.intercepts.rdtscp(length)?;
        }
        if self.cpu.sregs.cr4 & cr4::TSD != 0 && self.cpu.cpl() > 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let exit = if with_aux {
            self.intercepts.rdtscp(length).unwrap_or(None)
        } else {
            self.intercepts.rdtsc(length)
        };
        self.exit_if(exit)?;
        let tsc = entry::l2_tsc(&self.cpu);
        self.cpu.regs.set(Gpr::Rax, tsc & 0xffff_ffff);
        self.cpu.regs.set(Gpr::Rdx, tsc >> 32);
        if with_aux {
            self.cpu
                .regs
                .set(Gpr::Rcx, self.cpu.msrs.tsc_aux & 0xffff_ffff);
        }
        Ok(Done::Retired)
    }

    /// RDPMC.
    pub(super) fn rdpmc(&mut self, instruction: &Instruction) -> Outcome {
        if self.cpu.cpl() > 0 && self.cpu.sregs.cr4 & cr4::PCE == 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        self.exit_if(self.intercepts.rdpmc(instruction.len() as u32))?;
        let selector = self.cpu.regs.get(Gpr::Rcx) as u32;
        let value = pmu::rdpmc(&self.cpu, selector).ok_or(Exception::GENERAL_PROTECTION)?;
        self.cpu.regs.set(Gpr::Rax, value & 0xffff_ffff);
        self.cpu.regs.set(Gpr::Rdx, value >> 32);
        Ok(Done::Retired)
    }

    /// HLT.
    pub(super) fn hlt(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        self.exit_if(self.intercepts.hlt(instruction.len() as u32))?;
        self.stop_waiting();
        self.cpu.activity = Activity::Hlt;
        Ok(Done::Retired)
    }

    /// INVD, WBINVD: caches are not modelled.
    pub(super) fn cache_invalidate(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        let length = instruction.len() as u32;
        let exit = match instruction.mnemonic() {
            Mnemonic::Invd => Some(self.intercepts.invd(length)),
            _ => self.intercepts.wbinvd(length),
        };
        self.exit_if(exit)?;
        Ok(Done::Retired)
    }

    /// INVLPG.
    pub(super) fn invlpg(&mut self, instruction: &Instruction) -> Outcome {
        self.require_cpl0()?;
        // No segment or canonicality fault: INVLPG of such an address does nothing.
        let address = decode::resolve(&self.cpu, instruction, 0, 1, false);
        let linear = address.map_or(0, |a| a.linear);
        self.exit_if(self.intercepts.invlpg(linear, instruction.len() as u32))?;
        self.effects.flush_page = Some(linear);
        Ok(Done::Retired)
    }

    /// INVPCID (SDM Vol. 2A "INVPCID"). There are no PCIDs: each type drops every translation.
    pub(super) fn invpcid(&mut self, instruction: &Instruction) -> Outcome {
        const INVPCID: u32 = 1 << 10;
        if cpuid::lookup(&self.cpu.model.cpuid, 7, 0)[1] & INVPCID == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let register = gpr_or_rax(instruction.op0_register());
        let exit = if self.in_l2() {
            let operand = memory(instruction, decode::code_bits(&self.cpu));
            let length = instruction.len() as u32;
            self.intercepts.invpcid(&operand, register, length)?
        } else {
            None
        };
        self.require_cpl0()?;
        self.exit_if(exit)?;
        let (_, kind) = self.operand(instruction.op0_register());
        let address = decode::resolve(&self.cpu, instruction, 1, 16, false)?;
        let mut words = [[0; 8]; 2];
        for (index, word) in words.iter_mut().enumerate() {
            self.read_linear(address.linear.wrapping_add(8 * index as u64), word)?;
        }
        let [pcid, linear] = words.map(u64::from_le_bytes);
        let width = self.cpu.model.linear_width();
        let has_pcids = self.cpu.sregs.cr4 & cr4::PCIDE != 0;
        let allowed = match kind {
            0 => is_canonical(linear, width) && (has_pcids || pcid == 0),
            1 => has_pcids || pcid == 0,
            2 | 3 => true,
            _ => false,
        };
        if !allowed || pcid >> 12 != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        self.effects.flush = true;
        Ok(Done::Retired)
    }

    /// ENCLS (SDM Vol. 3D "ENCLS"): there are no enclaves behind it.
    pub(super) fn encls(&mut self, instruction: &Instruction) -> Outcome {
        const SGX: u32 = 1 << 2;
        const LOCKED_AND_ENABLED: u64 = 1 | 1 << 18;
        let exists = cpuid::lookup(&self.cpu.model.cpuid, 7, 0)[1] & SGX != 0;
        if !exists || self.cpu.sregs.cr0 & cr0::PE == 0 || self.cpu.cpl() != 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let leaf = self.cpu.regs.get(Gpr::Rax) as u32;
        self.exit_if(self.intercepts.encls(leaf, instruction.len() as u32))?;
        if self.cpu.msrs.feature_control & LOCKED_AND_ENABLED != LOCKED_AND_ENABLED {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        Err(unsupported(
            "ENCLS, SDM Vol. 3D \"Intel SGX Instruction References\"",
        ))
    }

    /// LGDT and LIDT; SGDT, SIDT, SLDT, STR, LLDT, LTR under descriptor-table exiting, and those that store
    /// under CR4.UMIP: nothing else makes the engine report those.
    pub(super) fn descriptor_table(&mut self, instruction: &Instruction) -> Outcome {
        let loads = matches!(
            instruction.mnemonic(),
            Mnemonic::Lgdt | Mnemonic::Lidt | Mnemonic::Lldt | Mnemonic::Ltr
        );
        let system = matches!(
            instruction.mnemonic(),
            Mnemonic::Sldt | Mnemonic::Str | Mnemonic::Lldt | Mnemonic::Ltr
        );
        if system && self.cpu.sregs.cr0 & cr0::PE == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        if loads || self.cpu.sregs.cr4 & cr4::UMIP != 0 {
            self.require_cpl0()?;
        }
        let bits = decode::code_bits(&self.cpu);
        let length = instruction.len() as u32;
        let operand = memory(instruction, bits);
        let exit = if system {
            let kind = match instruction.mnemonic() {
                Mnemonic::Sldt => SystemSegmentInstruction::Sldt,
                Mnemonic::Str => SystemSegmentInstruction::Str,
                Mnemonic::Lldt => SystemSegmentInstruction::Lldt,
                _ => SystemSegmentInstruction::Ltr,
            };
            let place = if is_memory(instruction, 0) {
                Err(&operand)
            } else {
                Ok(gpr_or_rax(instruction.op0_register()))
            };
            self.intercepts.system_segment(kind, place, length)
        } else {
            let kind = match instruction.mnemonic() {
                Mnemonic::Sgdt => DescriptorTableInstruction::Sgdt,
                Mnemonic::Sidt => DescriptorTableInstruction::Sidt,
                Mnemonic::Lgdt => DescriptorTableInstruction::Lgdt,
                _ => DescriptorTableInstruction::Lidt,
            };
            let wide = matches!(
                instruction.code(),
                Code::Sgdt_m1632 | Code::Sidt_m1632 | Code::Lgdt_m1632 | Code::Lidt_m1632
            );
            let bytes = match (bits, wide) {
                (64, _) => 8,
                (_, true) => 4,
                (_, false) => 2,
            };
            self.intercepts
                .descriptor_table(kind, &operand, size(bytes), length)
        };
        self.exit_if(exit)?;
        let sregs = &self.cpu.sregs;
        let (table, selector) = match instruction.mnemonic() {
            Mnemonic::Sgdt => (Some(sregs.gdtr), 0),
            Mnemonic::Sidt => (Some(sregs.idtr), 0),
            Mnemonic::Sldt => (None, sregs.ldtr.selector),
            Mnemonic::Str => (None, sregs.tr.selector),
            Mnemonic::Lgdt | Mnemonic::Lidt => return self.load_table(instruction),
            _ => return Err(loads_without_exit(instruction)),
        };
        if !is_memory(instruction, 0) {
            decode::write_register(&mut self.cpu, instruction.op0_register(), selector.into());
            return Ok(Done::Retired);
        }
        let mut bytes = [0; 10];
        let length = match table {
            None => {
                bytes[..2].copy_from_slice(&selector.to_le_bytes());
                2
            }
            Some(table) => {
                bytes[..2].copy_from_slice(&table.limit.to_le_bytes());
                bytes[2..].copy_from_slice(&table.base.to_le_bytes());
                if bits == 64 { 10 } else { 6 }
            }
        };
        let address = decode::resolve(&self.cpu, instruction, 0, length as u64, true)?;
        self.write_linear(address.linear, &bytes[..length])?;
        Ok(Done::Retired)
    }

    /// RDRAND, RDSEED: the number is a deterministic function of time, so that runs repeat.
    pub(super) fn random(&mut self, instruction: &Instruction) -> Outcome {
        const RDSEED: u32 = 1 << 18;
        let seed = match instruction.mnemonic() {
            Mnemonic::Rdrand => false,
            Mnemonic::Rdseed => true,
            Mnemonic::Rdpid => return self.rdpid(instruction),
            _ => return Err(Exception::UNDEFINED.into()),
        };
        let has = if seed {
            cpuid::lookup(&self.cpu.model.cpuid, 7, 0)[1] & RDSEED != 0
        } else {
            cpuid::lookup(&self.cpu.model.cpuid, 1, 0)[2] & leaf1_ecx::RDRAND != 0
        };
        if !has {
            return Err(Exception::UNDEFINED.into());
        }
        let register = instruction.op0_register();
        let operand_size = size(register.size());
        let length = instruction.len() as u32;
        let gpr = gpr_or_rax(register);
        let exit = if seed {
            self.intercepts.rdseed(gpr, operand_size, length)
        } else {
            self.intercepts.rdrand(gpr, operand_size, length)
        };
        self.exit_if(exit)?;
        let value = split_mix(self.cpu.tsc.ticks);
        decode::write_register(&mut self.cpu, register, value);
        use nvmx_core::x86::control::{ARITHMETIC_FLAGS, rflags};
        self.cpu.regs.rflags = self.cpu.regs.rflags & !ARITHMETIC_FLAGS | rflags::CF;
        Ok(Done::Retired)
    }

    /// RDPID.
    fn rdpid(&mut self, instruction: &Instruction) -> Outcome {
        const RDPID: u32 = 1 << 22;
        if cpuid::lookup(&self.cpu.model.cpuid, 7, 0)[2] & RDPID == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        if self.in_l2() {
            self.intercepts.rdpid()?;
        }
        let value = self.cpu.msrs.tsc_aux & 0xffff_ffff;
        decode::write_register(&mut self.cpu, instruction.op0_register(), value);
        Ok(Done::Retired)
    }

    /// XGETBV, XSETBV.
    pub(super) fn extended_control(&mut self, instruction: &Instruction) -> Outcome {
        let has = cpuid::lookup(&self.cpu.model.cpuid, 1, 0)[2] & leaf1_ecx::XSAVE != 0;
        if !has || self.cpu.sregs.cr4 & cr4::OSXSAVE == 0 {
            return Err(Exception::UNDEFINED.into());
        }
        let register = self.cpu.regs.get(Gpr::Rcx) as u32;
        if instruction.mnemonic() == Mnemonic::Xgetbv {
            // With ECX 1 XCR0 and what is in use, which all of it may be said to be.
            let in_use = cpuid::lookup(&self.cpu.model.cpuid, 0xd, 1)[0] & 1 << 2 != 0;
            if register > u32::from(in_use) {
                return Err(Exception::GENERAL_PROTECTION.into());
            }
            self.cpu.regs.set(Gpr::Rax, self.cpu.xcr0 & 0xffff_ffff);
            self.cpu.regs.set(Gpr::Rdx, self.cpu.xcr0 >> 32);
            return Ok(Done::Retired);
        }
        if self.in_l2() {
            return Err(self.intercepts.xsetbv(instruction.len() as u32).into());
        }
        self.require_cpl0()?;
        let value = self.cpu.regs.get(Gpr::Rax) & 0xffff_ffff | self.cpu.regs.get(Gpr::Rdx) << 32;
        let [low, _, _, high] = cpuid::lookup(&self.cpu.model.cpuid, 0xd, 0);
        let exists = u64::from(low) | u64::from(high) << 32;
        // x87 must stay; the engine has x87 and SSE and no more.
        if register != 0 || value & 1 == 0 || value & !exists != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        if value & !3 != 0 {
            return Err(unsupported(format!(
                "XCR0 {value:#x}: state beyond x87 and SSE, SDM Vol. 1 \"Managing State Using the XSAVE Feature Set\""
            )));
        }
        self.cpu.xcr0 = value;
        Ok(Done::Retired)
    }

    /// IRET while something waits for its end of NMI blocking: it then runs natively.
    pub(super) fn iret(&mut self) -> Outcome {
        self.iret_unblocks = self.cpu.interruptibility.contains(Interruptibility::NMI);
        self.cpu.interruptibility.remove(Interruptibility::NMI);
        self.effects.controls = true;
        // The blocking ends with the instruction, so that the boundary is looked at behind it.
        self.one_instruction = true;
        Ok(Done::Jumped)
    }

    /// Paging or the mode changed: translations and what is derived from registers are stale.
    pub(super) fn address_space_changed(&mut self) {
        self.effects.flush = true;
        self.rebuild_regime();
    }
}

/// Only L1's wish to see it makes the engine report an instruction that loads a table.
#[cold]
fn loads_without_exit(instruction: &Instruction) -> Trap {
    unsupported(format!(
        "{:?} intercepted without L1 asking, SDM Vol. 3C \"Instructions That Cause VM Exits Conditionally\"",
        instruction.mnemonic()
    ))
}

/// SplitMix64's output function: a well-mixed number from a counter.
const fn split_mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}
