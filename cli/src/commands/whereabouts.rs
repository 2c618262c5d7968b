//! Where each vCPU stands: the first thing that one asks about a guest that did not end.

use nvmx_core::vcpu::{Parts, Result, Vm};
use nvmx_core::x86::{Gpr, MpState};

/// A line for each vCPU.
pub(super) fn lines(vm: &mut dyn Vm) -> Result<Vec<String>> {
    (0..vm.vcpu_count())
        .map(|index| {
            let vcpu = vm.vcpu(index);
            let level = vcpu.level()?;
            let state = vcpu.state(Parts::All)?;
            let regs = state.regs.unwrap_or_default();
            let sregs = state.sregs.unwrap_or_default();
            let activity = match state.mp_state.unwrap_or_default() {
                MpState::Runnable => "running",
                MpState::Uninitialized => "before INIT",
                MpState::InitReceived => "waiting for SIPI",
                MpState::Halted => "halted",
                MpState::SipiReceived => "starting by SIPI",
            };
            Ok(format!(
                "vCPU {index}: {level:?}, {activity}, CS:RIP {:x}:{:#x}, RSP {:#x}, RFLAGS {:#x}, CR0 {:#x}, CR3 {:#x}",
                sregs.cs.selector,
                regs.rip,
                regs.get(Gpr::Rsp),
                regs.rflags,
                sregs.cr0,
                sregs.cr3,
            ))
        })
        .collect()
}
