//! The machine-check architecture (SDM Vol. 3B "Machine-Check Architecture"): its MSRs, and an error that
//! user space signals, as `KVM_X86_SETUP_MCE` and `KVM_X86_SET_MCE` have it. Exit reason 41, a machine check
//! during VM entry, is hardware's alone: nothing here fails in the middle of an entry.

use crate::cpu::Cpu;
use crate::msr::MsrFault;
use crate::personality::Difference;
use crate::x86::control::cr4;
use crate::x86::msr::{IA32_MCG_CAP, IA32_MCG_CTL, IA32_MCG_STATUS};
use crate::x86::{Event, Exception};
use serde::{Deserialize, Serialize};

/// Error-reporting banks at most, as KVM has them.
pub const MOST_BANKS: usize = 32;
/// IA32_MCG_CAP: IA32_MCG_CTL is there.
const CTL_P: u64 = 1 << 8;
/// IA32_MCG_CAP: software error recovery.
const SER_P: u64 = 1 << 24;
/// IA32_MCG_STATUS: a machine check is in progress.
const IN_PROGRESS: u64 = 1 << 2;
/// IA32_MCi_STATUS: valid, overflow, uncorrected.
const VALID: u64 = 1 << 63;
const OVERFLOW: u64 = 1 << 62;
const UNCORRECTED: u64 = 1 << 61;
const ALL: u64 = u64::MAX;
/// IA32_MC0_CTL; four registers a bank.
const FIRST: u32 = 0x400;

/// The registers of a bank: control, status, address, miscellaneous.
type Bank = [u64; 4];
/// A bank after RESET.
const EMPTY: Bank = [ALL, 0, 0, 0];

/// The machine-check registers of a processor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineChecks {
    /// IA32_MCG_CAP.
    capabilities: u64,
    /// IA32_MCG_STATUS.
    status: u64,
    /// IA32_MCG_CTL.
    control: u64,
    banks: [Bank; MOST_BANKS],
}

impl Default for MachineChecks {
    /// As KVM has it before `KVM_X86_SETUP_MCE`: 32 banks, all enabled.
    fn default() -> Self {
        Self {
            capabilities: MOST_BANKS as u64,
            status: 0,
            control: ALL,
            banks: [EMPTY; MOST_BANKS],
        }
    }
}

/// An error to be signalled: `struct kvm_x86_mce`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MachineCheck {
    /// Its bank.
    pub bank: u8,
    /// IA32_MCi_STATUS: valid; uncorrected makes #MC.
    pub status: u64,
    /// IA32_MCG_STATUS, where #MC is made.
    pub global_status: u64,
    /// IA32_MCi_ADDR.
    pub address: u64,
    /// IA32_MCi_MISC.
    pub misc: u64,
}

/// What a signalled error does to the processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signalled {
    /// It is recorded, or reporting is disabled: nothing.
    Nothing,
    /// #MC, which L1 may intercept where L2 runs.
    Exception(Event),
    /// Shutdown: CR4.MCE is clear, or a machine check is in progress.
    Shutdown,
}

impl MachineChecks {
    /// IA32_MCG_CAP as user space sets it (`KVM_X86_SETUP_MCE`). `false`: there is no such thing here.
    pub fn set_up(&mut self, capabilities: u64) -> bool {
        let banks = (capabilities & 0xff) as usize;
        if capabilities & !(0xff | CTL_P | SER_P) != 0 || !(1..=MOST_BANKS).contains(&banks) {
            return false;
        }
        self.capabilities = capabilities;
        true
    }

    /// IA32_MCG_STATUS as user space sets it.
    pub const fn set_status(&mut self, status: u64) {
        self.status = status;
    }

    /// The MSRs of the banks that hold something else than after RESET: what a capture needs of them.
    pub fn told(&self) -> impl Iterator<Item = u32> + '_ {
        let registers = self.banks[..self.bank_count().min(MOST_BANKS)].as_flattened();
        let reset = EMPTY.iter().cycle();
        (FIRST..)
            .zip(registers.iter().zip(reset))
            .filter(|(_, (value, reset))| value != reset)
            .map(|(number, _)| number)
    }

    /// Puts the banks back as after RESET, before a capture's are restored.
    pub const fn clear_banks(&mut self) {
        self.banks = [EMPTY; MOST_BANKS];
    }

    /// A register of the banks, and IA32_MCG_CTL, as user space sets it (`set_msr_mce`): any status, and a
    /// zero where IA32_MCG_CTL is not there. `None` if it is no MSR of these, `false` where it is refused.
    pub fn restore(&mut self, number: u32, value: u64) -> Option<bool> {
        match number {
            IA32_MCG_STATUS => self.status = value,
            IA32_MCG_CTL if self.capabilities & CTL_P == 0 => return Some(value == 0),
            IA32_MCG_CTL if is_mask(value) => self.control = value,
            IA32_MCG_CTL => return Some(false),
            _ => {
                let (bank, register) = self.place(number)?;
                if register == 0 && !is_bank_mask(value) {
                    return Some(false);
                }
                self.banks[bank][register] = value;
            }
        }
        Some(true)
    }

    fn bank_count(&self) -> usize {
        (self.capabilities & 0xff) as usize
    }

    /// The bank and the register of an MSR.
    fn place(&self, number: u32) -> Option<(usize, usize)> {
        let offset = number.checked_sub(FIRST)? as usize;
        (offset / 4 < self.bank_count()).then_some((offset / 4, offset % 4))
    }

    /// RDMSR; `None` if it is no MSR of these.
    pub(crate) fn read(&self, number: u32) -> Option<u64> {
        match number {
            IA32_MCG_CAP => Some(self.capabilities),
            IA32_MCG_STATUS => Some(self.status),
            IA32_MCG_CTL => (self.capabilities & CTL_P != 0).then_some(self.control),
            _ => {
                let (bank, register) = self.place(number)?;
                Some(self.banks[bank][register])
            }
        }
    }
}

const fn is_mask(value: u64) -> bool {
    value == 0 || value == ALL
}

/// "IA32_MCi_CTL MSRs": all ones or zeros; bit 10 is what Linux clears on old processors.
const fn is_bank_mask(value: u64) -> bool {
    value & !(1 << 10) == 0 || value | 1 << 10 == ALL
}

/// WRMSR; `None` if it is no MSR of these.
pub(crate) fn write(cpu: &mut Cpu, number: u32, value: u64) -> Option<Result<(), MsrFault>> {
    let as_kvm = cpu.model.as_kvm(Difference::McgStatus);
    let checks = &mut cpu.machine_checks;
    let (register, allowed) = match number {
        IA32_MCG_CAP => return Some(Err(MsrFault::GeneralProtection)),
        IA32_MCG_STATUS => (&mut checks.status, value == 0 || as_kvm),
        IA32_MCG_CTL if checks.capabilities & CTL_P != 0 => (&mut checks.control, is_mask(value)),
        _ => {
            let (bank, register) = checks.place(number)?;
            let allowed = match register {
                0 => is_bank_mask(value),
                // "IA32_MCi_STATUS MSRS": only zeros can be written, and so of the two behind it.
                _ => value == 0,
            };
            (&mut checks.banks[bank][register], allowed)
        }
    };
    Some(if allowed {
        *register = value;
        Ok(())
    } else {
        Err(MsrFault::GeneralProtection)
    })
}

/// Records an error and says what comes of it (SDM Vol. 3B "Machine-Check Overwrite Rules", Linux
/// `kvm_vcpu_ioctl_x86_set_mce`). `None`: it has no bank, or its status is not valid.
pub fn signal(cpu: &mut Cpu, error: &MachineCheck) -> Option<Signalled> {
    let enabled = cpu.sregs.cr4 & cr4::MCE != 0;
    let checks = &mut cpu.machine_checks;
    let bank_number = usize::from(error.bank);
    if bank_number >= checks.bank_count() || error.status & VALID == 0 {
        return None;
    }
    let is_uncorrected = error.status & UNCORRECTED != 0;
    let bank = &mut checks.banks[bank_number];
    let is_off = checks.capabilities & CTL_P != 0 && checks.control != ALL || bank[0] != ALL;
    if is_uncorrected && is_off {
        return Some(Signalled::Nothing);
    }
    if is_uncorrected && (checks.status & IN_PROGRESS != 0 || !enabled) {
        return Some(Signalled::Shutdown);
    }
    let overflow = if bank[1] & VALID != 0 { OVERFLOW } else { 0 };
    if !is_uncorrected && bank[1] & (VALID | UNCORRECTED) == VALID | UNCORRECTED {
        // What cannot be corrected stays.
        bank[1] |= OVERFLOW;
        return Some(Signalled::Nothing);
    }
    *bank = [bank[0], error.status | overflow, error.address, error.misc];
    if !is_uncorrected {
        return Some(Signalled::Nothing);
    }
    checks.status = error.global_status;
    Some(Signalled::Exception(Event::exception(Exception {
        vector: Exception::MC,
        error_code: None,
        payload: 0,
    })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::msr;

    const UC: u64 = VALID | UNCORRECTED;

    fn cpu() -> Cpu {
        let mut cpu = Cpu::default();
        cpu.sregs.cr4 = cr4::MCE;
        cpu
    }

    fn error(status: u64) -> MachineCheck {
        MachineCheck {
            bank: 3,
            status,
            global_status: IN_PROGRESS,
            address: 0x1000,
            misc: 7,
        }
    }

    #[test]
    fn an_uncorrected_error_is_an_exception_and_fills_its_bank() {
        let mut cpu = cpu();
        assert!(matches!(
            signal(&mut cpu, &error(UC)),
            Some(Signalled::Exception(event)) if event.vector == 18
        ));
        for (number, value) in [(0x40d, UC), (0x40e, 0x1000), (0x40f, 7), (0x17a, 4)] {
            assert_eq!(msr::read(&cpu, number), Ok(msr::MsrRead::Value(value)));
        }
        // A second one before software has cleared MCIP.
        assert_eq!(signal(&mut cpu, &error(UC)), Some(Signalled::Shutdown));
    }

    #[test]
    fn overwrite_rules() {
        let mut cpu = cpu();
        assert_eq!(signal(&mut cpu, &error(VALID)), Some(Signalled::Nothing));
        assert_eq!(
            signal(&mut cpu, &error(VALID | 5)),
            Some(Signalled::Nothing)
        );
        assert_eq!(cpu.machine_checks.banks[3][1], VALID | OVERFLOW | 5);
        assert!(matches!(
            signal(&mut cpu, &error(UC)),
            Some(Signalled::Exception(_))
        ));
        assert_eq!(cpu.machine_checks.banks[3][1], UC | OVERFLOW);
        assert_eq!(signal(&mut cpu, &error(VALID)), Some(Signalled::Nothing));
        assert_eq!(cpu.machine_checks.banks[3][1], UC | OVERFLOW);
    }

    #[test]
    fn what_is_not_reported_and_what_shuts_down() {
        let mut cpu = cpu();
        assert_eq!(signal(&mut cpu, &error(0)), None, "not valid");
        let mut far = error(UC);
        far.bank = 32;
        assert_eq!(signal(&mut cpu, &far), None, "no such bank");
        assert_eq!(msr::write(&mut cpu, 0x40c, 0), Ok(msr::MsrEffect::None));
        assert_eq!(signal(&mut cpu, &error(UC)), Some(Signalled::Nothing));
        assert_eq!(msr::write(&mut cpu, 0x40c, ALL), Ok(msr::MsrEffect::None));
        cpu.sregs.cr4 = 0;
        assert_eq!(signal(&mut cpu, &error(UC)), Some(Signalled::Shutdown));
    }

    #[test]
    fn banks_and_reserved_values() {
        let mut cpu = cpu();
        assert!(!cpu.machine_checks.set_up(33) && !cpu.machine_checks.set_up(1 << 9 | 4));
        assert!(msr::read(&cpu, IA32_MCG_CTL).is_err());
        assert!(cpu.machine_checks.set_up(4 | CTL_P));
        let gp = Err(msr::MsrFault::GeneralProtection);
        assert_eq!(msr::write(&mut cpu, IA32_MCG_CTL, 5), gp);
        assert!(msr::write(&mut cpu, IA32_MCG_CTL, 0).is_ok());
        assert!(msr::read(&cpu, 0x40f).is_ok());
        assert!(msr::read(&cpu, 0x410).is_err(), "a fifth bank");
        for (number, value) in [(0x179, 0), (0x400, 5), (0x401, 1), (0x402, 1), (0x403, 1)] {
            assert_eq!(msr::write(&mut cpu, number, value), gp, "{number:#x}");
        }
        assert!(msr::write(&mut cpu, 0x400, ALL & !(1 << 10)).is_ok());
    }
}
