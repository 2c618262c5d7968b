//! XSAVE and its kin (SDM Vol. 2 "XSAVE", "XSAVEC", "XSAVEOPT", "XSAVES", "XRSTOR", "XRSTORS"), which the
//! engine lacks. They arrive as #UD, with the engine's x87 and SSE state in `fpu`.

use super::operands::memory;
use super::{Done, Outcome, Processor, unsupported};
use crate::decode;
use iced_x86::{Instruction, Mnemonic};
use nvmx_core::x86::control::{cr0, cr4};
use nvmx_core::x86::xsave::{AREA, Format, Restore, SSE, X87, restore, save};
use nvmx_core::x86::{Exception, Gpr, cpuid};

/// One of the instructions.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Save,
    SaveOptimized,
    SaveCompacted,
    SaveSupervisor,
    Restore,
    RestoreSupervisor,
}

/// The instruction, and whether it has REX.W.
fn kind(mnemonic: Mnemonic) -> Option<(Kind, bool)> {
    Some(match mnemonic {
        Mnemonic::Xsave => (Kind::Save, false),
        Mnemonic::Xsave64 => (Kind::Save, true),
        Mnemonic::Xsaveopt => (Kind::SaveOptimized, false),
        Mnemonic::Xsaveopt64 => (Kind::SaveOptimized, true),
        Mnemonic::Xsavec => (Kind::SaveCompacted, false),
        Mnemonic::Xsavec64 => (Kind::SaveCompacted, true),
        Mnemonic::Xsaves => (Kind::SaveSupervisor, false),
        Mnemonic::Xsaves64 => (Kind::SaveSupervisor, true),
        Mnemonic::Xrstor => (Kind::Restore, false),
        Mnemonic::Xrstor64 => (Kind::Restore, true),
        Mnemonic::Xrstors => (Kind::RestoreSupervisor, false),
        Mnemonic::Xrstors64 => (Kind::RestoreSupervisor, true),
        _ => return None,
    })
}

/// Whether these bytes may be one of the instructions: 0F AE or 0F C7 behind few prefixes.
pub(crate) fn may_be_xsave(bytes: &[u8]) -> bool {
    bytes
        .windows(2)
        .take(6)
        .any(|pair| pair[0] == 0x0f && matches!(pair[1], 0xae | 0xc7))
}

impl Processor {
    /// The instruction, if it is one of these.
    pub(super) fn extended_state(&mut self, instruction: &Instruction) -> Option<Outcome> {
        let (kind, wide) = kind(instruction.mnemonic())?;
        Some(self.xsave(instruction, kind, wide))
    }

    fn xsave(&mut self, instruction: &Instruction, kind: Kind, wide: bool) -> Outcome {
        const XSAVE: u32 = 1 << 26;
        let variants = cpuid::lookup(&self.cpu.model.cpuid, 0xd, 1)[0];
        let compacts = variants & 2 != 0;
        let exists = match kind {
            Kind::Save | Kind::Restore => true,
            Kind::SaveOptimized => variants & 1 != 0,
            Kind::SaveCompacted => compacts,
            Kind::SaveSupervisor | Kind::RestoreSupervisor => variants & 8 != 0,
        };
        let has = cpuid::lookup(&self.cpu.model.cpuid, 1, 0)[2] & XSAVE != 0;
        if !has
            || !exists
            || self.cpu.sregs.cr4 & cr4::OSXSAVE == 0
            || instruction.has_lock_prefix()
        {
            return Err(Exception::UNDEFINED.into());
        }
        let half = |gpr| self.cpu.regs.get(gpr) & 0xffff_ffff;
        let wanted = half(Gpr::Rax) | half(Gpr::Rdx) << 32;
        let supervisor = matches!(kind, Kind::SaveSupervisor | Kind::RestoreSupervisor);
        let mut enabled = self.cpu.xcr0;
        if supervisor {
            let exit = if self.in_l2() {
                let operand = memory(instruction, decode::code_bits(&self.cpu));
                let length = instruction.len() as u32;
                let components = wanted & self.cpu.msrs.xss;
                if kind == Kind::SaveSupervisor {
                    self.intercepts.xsaves(components, &operand, length)?
                } else {
                    self.intercepts.xrstors(components, &operand, length)?
                }
            } else {
                None
            };
            self.require_cpl0()?;
            self.exit_if(exit)?;
            enabled |= self.cpu.msrs.xss;
        }
        if self.cpu.sregs.cr0 & cr0::TS != 0 {
            return Err(Exception {
                vector: Exception::NM,
                error_code: None,
                payload: 0,
            }
            .into());
        }
        let mask = wanted & enabled;
        if mask & !(X87 | SSE) != 0 {
            return Err(unsupported(
                "state beyond x87 and SSE, SDM Vol. 1 \"Managing State Using the XSAVE Feature Set\"",
            ));
        }
        let restores = matches!(kind, Kind::Restore | Kind::RestoreSupervisor);
        let address = decode::resolve(&self.cpu, instruction, 0, AREA as u64, !restores)?.linear;
        if address & 63 != 0 {
            return Err(Exception::GENERAL_PROTECTION.into());
        }
        let format = Format {
            compacted: matches!(kind, Kind::SaveCompacted | Kind::SaveSupervisor),
            wide,
            xmm: if self.cpu.in_64_bit_mode() { 16 } else { 8 },
        };
        if !restores {
            self.check_write(address, AREA as u64)?;
        }
        let mut area = [0; AREA];
        self.read_linear(address, &mut area)?;
        if restores {
            let how = Restore {
                enabled,
                may_be_compacted: compacts || supervisor,
                must_be_compacted: supervisor,
            };
            restore(&area, &mut self.fpu, mask, format, how)?;
            self.effects.fpu = true;
        } else {
            save(&self.fpu, &mut area, mask, format);
            self.write_linear(address, &area)?;
        }
        Ok(Done::Retired)
    }
}
