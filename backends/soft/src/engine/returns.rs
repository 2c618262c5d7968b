//! IRET and far RET at privilege level 3: unicorn reads their stack as supervisor, for which SMAP refuses
//! it, and a supervisor's page would be readable (SDM Vol. 3A "Determination of Access Rights"). So they
//! are [`super::Special::FarTransfer`] first, and the machine looks whether the user may read what they pop.

use super::Access;
use super::env::Env;
use super::ffi;
use super::state::SegmentRegister;
use iced_x86::{Decoder, DecoderOptions, Mnemonic};

impl Env {
    /// Whether a read that unicorn makes as supervisor is the user's: a pop, and no descriptor. RIP is at
    /// the instruction.
    pub(super) fn pops_as_user(&mut self, vaddr: u64, access: Access, mmu_index: i32) -> bool {
        if mmu_index == ffi::MMU_USER || access != Access::Read || self.cpl() != 3 {
            return false;
        }
        let (global, local) = (self.gdtr(), self.segment(SegmentRegister::Ldtr));
        let is_descriptor = [
            (global.base, u64::from(global.limit)),
            (local.base, u64::from(local.limit)),
        ]
        .iter()
        .any(|(base, limit)| vaddr.wrapping_sub(*base) <= *limit);
        if is_descriptor {
            return false;
        }
        let (bytes, length) = self.fetch(self.linear_rip());
        let bits = self.code_size().bits();
        let instruction = Decoder::new(bits, &bytes[..length], DecoderOptions::NONE).decode();
        matches!(
            instruction.mnemonic(),
            Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq | Mnemonic::Retf
        )
    }

    /// Has the supervisor's translation of a page that the user has read dropped at the next block.
    pub(super) fn lend(&mut self, vaddr: u64) {
        self.lent = Some(vaddr);
        self.clock.slow_at = 0;
    }

    /// Drops what [`Self::lend`] noted.
    pub(super) fn take_back(&mut self) {
        if let Some(vaddr) = self.lent.take() {
            self.flush_page(vaddr);
        }
    }
}
