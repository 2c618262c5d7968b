//! EPT violations that become virtualization exceptions, #VE, instead of VM exits (SDM Vol. 3C
//! "Virtualization Exceptions").

use super::Field;
use super::controls::Secondary;
use super::entry::active_secondary;
use super::ept::EptFault;
use super::exit::ExitReason;
use crate::addr::L1Phys;
use crate::cpu::Cpu;
use crate::memory::GuestMemory;
use crate::x86::Exception;
use crate::x86::control::cr0;

/// Offset of the word that is zero while the area may be written.
const BUSY: u64 = 4;

/// #VE, if the fault is a convertible EPT violation and L2 can take it now; the information area is then
/// written ("Virtualization-Exception Information").
///
/// Not for a violation during event delivery, which exits always: the caller knows.
pub fn convert<M: GuestMemory + ?Sized>(
    cpu: &Cpu,
    memory: &M,
    fault: &EptFault,
) -> Option<Exception> {
    let EptFault::Violation {
        guest_physical,
        guest_linear,
        qualification,
        convertible: true,
    } = *fault
    else {
        return None;
    };
    let vmcs12 = &cpu.vmx.vmcs12;
    if !active_secondary(vmcs12).contains(Secondary::EPT_VIOLATION_VE)
        || cpu.sregs.cr0 & cr0::PE == 0
    {
        return None;
    }
    let area = L1Phys(vmcs12.get(Field::VE_INFORMATION_ADDRESS)).page().0;
    // An area outside RAM is never free.
    if memory.read_u32(L1Phys(area + BUSY)) != Ok(0) {
        return None;
    }
    let mut bytes = [0; 34];
    bytes[..4].copy_from_slice(&ExitReason::EPT_VIOLATION.0.to_le_bytes());
    bytes[4..8].fill(0xff);
    let words = [qualification, guest_linear.unwrap_or(0), guest_physical.0];
    for (slot, word) in bytes[8..32].chunks_exact_mut(8).zip(words) {
        slot.copy_from_slice(&word.to_le_bytes());
    }
    let index = vmcs12.get(Field::EPTP_INDEX) as u16;
    bytes[32..].copy_from_slice(&index.to_le_bytes());
    // It was read a moment ago.
    let _ = memory.write(L1Phys(area), &bytes);
    Some(Exception {
        vector: Exception::VE,
        error_code: None,
        payload: 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::L2Phys;
    use crate::memory::VecMemory;
    use crate::vmx::controls::Primary;

    const AREA: u64 = 0x3000;

    fn cpu() -> Cpu {
        let mut cpu = Cpu::default();
        cpu.vmx.guest_mode = true;
        cpu.sregs.cr0 = cr0::PE;
        for (field, value) in [
            (
                Field::CPU_BASED_VM_EXEC_CONTROL,
                u64::from(Primary::ACTIVATE_SECONDARY_CONTROLS.bits()),
            ),
            (
                Field::SECONDARY_VM_EXEC_CONTROL,
                u64::from(Secondary::EPT_VIOLATION_VE.bits()),
            ),
            (Field::VE_INFORMATION_ADDRESS, AREA),
            (Field::EPTP_INDEX, 0x123),
        ] {
            cpu.vmx.vmcs12.set(field, value);
        }
        cpu
    }

    const FAULT: EptFault = EptFault::Violation {
        guest_physical: L2Phys(0x5678),
        guest_linear: Some(0x1234_5678),
        qualification: 0x182,
        convertible: true,
    };

    #[test]
    fn the_information_area_tells_what_an_exit_would() {
        let memory = VecMemory::new(0x4000);
        let exception = convert(&cpu(), &memory, &FAULT).expect("#VE");
        assert_eq!((exception.vector, exception.error_code), (20, None));
        let word = |offset| memory.read_u64(L1Phys(AREA + offset)).unwrap();
        assert_eq!(word(0), 0xffff_ffff_0000_0030);
        assert_eq!([word(8), word(16), word(24)], [0x182, 0x1234_5678, 0x5678]);
        assert_eq!(word(32), 0x123);
        // The area is busy now.
        assert_eq!(convert(&cpu(), &memory, &FAULT), None);
    }

    #[test]
    fn what_keeps_a_violation_an_exit() {
        let memory = VecMemory::new(0x4000);
        let mut real = cpu();
        real.sregs.cr0 = 0;
        let mut off = cpu();
        off.vmx.vmcs12.set(Field::SECONDARY_VM_EXEC_CONTROL, 0);
        let mut nowhere = cpu();
        nowhere
            .vmx
            .vmcs12
            .set(Field::VE_INFORMATION_ADDRESS, 0x9000);
        for cpu in [real, off, nowhere] {
            assert_eq!(convert(&cpu, &memory, &FAULT), None);
        }
        let EptFault::Violation {
            guest_physical,
            guest_linear,
            qualification,
            ..
        } = FAULT
        else {
            unreachable!()
        };
        let suppressed = EptFault::Violation {
            guest_physical,
            guest_linear,
            qualification,
            convertible: false,
        };
        assert_eq!(convert(&cpu(), &memory, &suppressed), None);
        let other = EptFault::Misconfiguration { guest_physical };
        assert_eq!(convert(&cpu(), &memory, &other), None);
    }
}
