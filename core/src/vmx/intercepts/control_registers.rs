//! Control and debug registers (SDM Vol. 3C "Guest/Host Masks and Read Shadows for CR0 and CR4",
//! "Instructions That Cause VM Exits Conditionally", "Changes to Instruction Behavior in VMX Non-Root
//! Operation").

use super::Intercepts;
use crate::vmx::controls::Primary;
use crate::vmx::exit::VmExit;
use crate::vmx::exit::qualification::ControlRegisterAccess;
use crate::x86::Gpr;
use crate::x86::control::cr0;

/// What CLTS does in L2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clts {
    /// It exits.
    Exit(VmExit),
    /// It clears CR0.TS.
    Clear,
    /// L1 owns CR0.TS and shows it as clear already: nothing happens.
    Nothing,
}

/// Where an access to CR8 that does not exit goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cr8 {
    /// To the local APIC, which L2 shares with L1.
    LocalApic,
    /// To the virtual task priority in the virtual-APIC page.
    TprShadow,
}

impl Intercepts {
    /// CR0 as L2 reads it.
    #[must_use]
    pub const fn visible_cr0(&self, value: u64) -> u64 {
        value & !self.cr0_mask | self.cr0_shadow & self.cr0_mask
    }

    /// CR4 as L2 reads it.
    #[must_use]
    pub const fn visible_cr4(&self, value: u64) -> u64 {
        value & !self.cr4_mask | self.cr4_shadow & self.cr4_mask
    }

    /// What a MOV to CR0 of `value` that does not exit leaves in CR0: bits that L1 owns stay.
    #[must_use]
    pub const fn merged_cr0(&self, current: u64, value: u64) -> u64 {
        value & !self.cr0_mask | current & self.cr0_mask
    }

    /// What a MOV to CR4 of `value` that does not exit leaves in CR4.
    #[must_use]
    pub const fn merged_cr4(&self, current: u64, value: u64) -> u64 {
        value & !self.cr4_mask | current & self.cr4_mask
    }

    /// MOV to CR0, CR3, CR4 or CR8.
    #[must_use]
    pub fn mov_to_cr(&self, cr: u8, gpr: Gpr, value: u64, length: u32) -> Option<VmExit> {
        let exits = match cr {
            0 => (value ^ self.cr0_shadow) & self.cr0_mask != 0,
            3 => {
                self.primary(Primary::CR3_LOAD_EXITING)
                    && !self.cr3_targets[..usize::from(self.cr3_target_count.min(4))]
                        .contains(&value)
            }
            4 => (value ^ self.cr4_shadow) & self.cr4_mask != 0,
            8 => self.primary(Primary::CR8_LOAD_EXITING),
            _ => false,
        };
        let access = ControlRegisterAccess::MovTo { cr, gpr };
        exits.then(|| VmExit::control_register(access, length, None))
    }

    /// MOV from CR3 or CR8. Reads of CR0 and CR4 never exit: see [`Intercepts::visible_cr0`].
    #[must_use]
    pub fn mov_from_cr(&self, cr: u8, gpr: Gpr, length: u32) -> Option<VmExit> {
        let exits = match cr {
            3 => self.primary(Primary::CR3_STORE_EXITING),
            8 => self.primary(Primary::CR8_STORE_EXITING),
            _ => false,
        };
        let access = ControlRegisterAccess::MovFrom { cr, gpr };
        exits.then(|| VmExit::control_register(access, length, None))
    }

    /// LMSW: it can set CR0.PE but not clear it, and writes MP, EM and TS. `memory_operand` is the
    /// linear address of the operand, if it has one.
    #[must_use]
    pub fn lmsw(&self, source: u16, memory_operand: Option<u64>, length: u32) -> Option<VmExit> {
        let wanted = u64::from(source);
        let owned = cr0::MP | cr0::EM | cr0::TS;
        let exits = (wanted ^ self.cr0_shadow) & self.cr0_mask & owned != 0
            || wanted & !self.cr0_shadow & self.cr0_mask & cr0::PE != 0;
        let access = ControlRegisterAccess::Lmsw {
            source,
            memory_operand: memory_operand.is_some(),
        };
        exits.then(|| VmExit::control_register(access, length, memory_operand))
    }

    /// CLTS.
    #[must_use]
    pub fn clts(&self, length: u32) -> Clts {
        if self.cr0_mask & cr0::TS == 0 {
            Clts::Clear
        } else if self.cr0_shadow & cr0::TS == 0 {
            Clts::Nothing
        } else {
            let access = ControlRegisterAccess::Clts;
            Clts::Exit(VmExit::control_register(access, length, None))
        }
    }

    /// MOV to or from a debug register.
    #[must_use]
    pub fn mov_dr(&self, dr: u8, from_dr: bool, gpr: Gpr, length: u32) -> Option<VmExit> {
        self.primary(Primary::MOV_DR_EXITING)
            .then(|| VmExit::debug_register(dr, from_dr, gpr, length))
    }

    /// Where CR8 is, for an access that does not exit.
    #[must_use]
    pub const fn cr8(&self) -> Cr8 {
        if self.primary(Primary::USE_TPR_SHADOW) {
            Cr8::TprShadow
        } else {
            Cr8::LocalApic
        }
    }
}
