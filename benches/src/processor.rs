//! A processor in VMX root operation with a vmcs12 that breaks no rule, without an execution engine.

use nvmx_core::cpu::{Cpu, Model, Personality};
use nvmx_core::memory::VecMemory;
use nvmx_core::nested::specimen;
use nvmx_core::vmx::capability::{Capability, KVM_6_1_ICELAKE};
use nvmx_core::vmx::entry::{EntryKind, EntryOutcome, launch_or_resume};
use nvmx_core::vmx::exit::{ExitReason, Left, VmExit, leave};
use nvmx_core::vmx::vmcs12::LaunchState;
use nvmx_core::x86::control::{cr0, cr4, efer};
use nvmx_core::x86::{AccessRights, Segment};
use std::sync::Arc;

/// A processor and L1's memory.
pub struct Bench {
    /// The processor.
    pub cpu: Cpu,
    /// L1's memory.
    pub memory: VecMemory,
}

impl Bench {
    /// L1 in 64-bit mode, about to resume L2.
    #[must_use]
    pub fn new(personality: Personality) -> Self {
        let model = Model {
            vmx_msrs: KVM_6_1_ICELAKE,
            physical_address_width: 40,
            linear_address_width: 48,
            personality,
            ..Model::default()
        };
        let mut cpu = Cpu {
            model: Arc::new(model),
            ..Cpu::default()
        };
        let segment = |selector, ar| Segment {
            selector,
            base: 0,
            limit: u32::MAX,
            ar: AccessRights::from_bits_retain(ar),
        };
        cpu.sregs.cr0 = cr0::PE | cr0::ET | cr0::NE | cr0::PG;
        cpu.sregs.cr3 = 0x6000;
        cpu.sregs.cr4 = cr4::PAE | cr4::VMXE;
        cpu.sregs.efer = efer::LME | efer::LMA;
        cpu.sregs.cs = segment(8, 0xa09b);
        cpu.sregs.ss = segment(16, 0xc093);
        cpu.vmx.vmxon = Some(specimen::VMXON);
        cpu.vmx.current = Some(specimen::VMCS12);
        cpu.vmx.vmcs12 = specimen::vmcs12(Capability::new(&KVM_6_1_ICELAKE));
        cpu.vmx.vmcs12.set_launch_state(LaunchState::Launched);
        Self {
            cpu,
            memory: VecMemory::new(0x10_0000),
        }
    }

    /// VMRESUME.
    pub fn enter(&mut self) -> EntryOutcome {
        self.cpu.vmx.guest_mode = false;
        launch_or_resume(&mut self.cpu, &self.memory, EntryKind::Resume)
    }

    /// The exit of a CPUID instruction.
    pub fn exit(&mut self) -> Left {
        self.cpu.vmx.guest_mode = true;
        let exit = VmExit {
            instruction_length: Some(2),
            ..VmExit::new(ExitReason::CPUID)
        };
        leave(&mut self.cpu, &self.memory, &exit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_exits_repeat() {
        for personality in [Personality::Kvm, Personality::Sdm] {
            let mut bench = Bench::new(personality);
            for _ in 0..3 {
                let outcome = bench.enter();
                assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
            }
            for _ in 0..3 {
                assert_eq!(bench.exit().abort, None);
            }
            let outcome = bench.enter();
            assert!(matches!(outcome, EntryOutcome::Entered(_)), "{outcome:?}");
        }
    }
}
