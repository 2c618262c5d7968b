//! From tracepoints to [`NestedEvent`]s: exactly what L1 sees.
//!
//! `kvm_nested_vmenter` fires before KVM has checked all of the guest state, and
//! `kvm_nested_vmexit` for every exit from L2, those included that L0 keeps to itself. What reaches
//! L1 is `kvm_nested_vmexit_inject`. So an entry is held back until what follows confirms it, and an
//! exit is reported when it is injected, with L2's RIP from the hardware exit before it.

use crate::nested::{View, vmcs12};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::NestedEvent;
use nvmx_core::vmx::exit::ExitReason;

/// One tracepoint of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// `kvm_nested_vmenter` (before Linux 5.20: `kvm_nested_vmrun`).
    Enter {
        /// L1-physical address of the vmcs12.
        vmcs12: u64,
        /// RIP that L2 will have.
        l2_rip: u64,
        /// VM-entry interruption information.
        injected: u32,
    },
    /// `kvm_nested_vmenter_failed`.
    EnterFailed {
        /// The check that failed, as text.
        message: String,
        /// VM-instruction error that the processor gave; zero for a check of KVM's own.
        error: u32,
    },
    /// `kvm_nested_vmexit`: the processor left L2.
    HardwareExit {
        /// Exit reason.
        reason: u32,
        /// RIP of L2.
        l2_rip: u64,
    },
    /// `kvm_nested_vmexit_inject`: L1 gets a VM exit.
    Inject {
        /// Exit reason.
        reason: u32,
        /// Exit qualification.
        qualification: u64,
        /// VM-exit interruption information.
        interruption: u32,
        /// VM-exit interruption error code.
        error_code: u32,
    },
}

/// Bit 31 of an exit reason: VM entry failed.
const ENTRY_FAILED: u32 = 1 << 31;
/// "VM-entry failure due to invalid guest state".
const INVALID_GUEST_STATE: u32 = ENTRY_FAILED | 33;
/// "VM-entry failure due to MSR loading".
const MSR_LOADING: u32 = ENTRY_FAILED | 34;
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
/// What the texts of those checks hold that end in VMfailInvalid (`nested_vmx_run`).
const INVALID: [&str; 3] = ["hdr.shadow_vmcs", "current_vmptr", "EVMPTRLD_VMFAIL"];
/// What the texts of checks hold that are made inside another check, which is traced as well, or for
/// INVEPT (`nested_vmx_check_eptp`, `nested_vmx_check_msr_switch`): no entry of their own.
const INNER: [&str; 3] = ["new_eptp", "ept_caps", "(vcpu, addr"];
/// VM-instruction error 7: "VM entry with invalid control field(s)".
const INVALID_CONTROL: u32 = 7;

/// Turns the points of one vCPU, in order, into events.
#[derive(Debug, Default)]
pub struct Assembler {
    entry: Option<NestedEvent>,
    vmcs12: Option<u64>,
    hardware_exit: Option<(u32, u64)>,
    in_l2: bool,
    error_is_in_vmcs12: bool,
    events: Vec<NestedEvent>,
}

impl Assembler {
    /// The next point.
    pub fn feed(&mut self, point: Point) {
        match point {
            Point::Enter {
                vmcs12,
                l2_rip,
                injected,
            } => {
                // Two entries with nothing between: the first one failed in a way that no
                // tracepoint tells. It was no entry into L2.
                if self.entry.take().is_some() {
                    self.events.push(failed_entry(INVALID_GUEST_STATE, None));
                }
                self.vmcs12 = Some(vmcs12);
                self.hardware_exit = None;
                self.entry = Some(NestedEvent::Entry {
                    vmcs12: L1Phys(vmcs12),
                    l2_rip,
                    injected: Some(injected),
                });
            }
            Point::EnterFailed { message, error } => self.entry_failed(&message, error),
            Point::HardwareExit { reason, l2_rip } => {
                if reason & ENTRY_FAILED == 0 {
                    self.confirm_entry();
                }
                self.in_l2 = true;
                self.hardware_exit = Some((reason, l2_rip));
            }
            Point::Inject {
                reason,
                qualification,
                interruption,
                error_code,
            } => {
                if reason & ENTRY_FAILED == 0 {
                    self.confirm_entry();
                } else {
                    self.entry = None;
                }
                self.in_l2 = false;
                self.push_exit(reason, qualification, interruption, error_code);
            }
        }
    }

    fn push_exit(&mut self, reason: u32, qualification: u64, interruption: u32, error_code: u32) {
        let hardware = self.hardware_exit.take();
        if reason & ENTRY_FAILED != 0 {
            self.events.push(failed_entry(reason, Some(qualification)));
            return;
        }
        // Valid, and with an error code: bits 31 and 11.
        let has_error_code = interruption & (1 << 31 | 1 << 11) == (1 << 31 | 1 << 11);
        self.events.push(NestedEvent::Exit {
            reason,
            qualification: Some(qualification),
            interruption: Some(interruption),
            error_code: has_error_code.then_some(error_code),
            instruction_length: None,
            guest_physical: None,
            // An exit that KVM made up itself has no hardware exit of the same reason before it.
            l2_rip: hardware
                .filter(|(hardware, _)| *hardware == reason)
                .map(|(_, rip)| rip),
        });
    }

    fn entry_failed(&mut self, message: &str, error: u32) {
        if INNER.iter().any(|check| message.contains(check)) {
            return;
        }
        if self.entry.take().is_some() {
            self.in_l2 = false;
            self.events.push(if error != 0 {
                // The processor refused the merged VMCS; KVM tells L1 error 7 whatever it was.
                NestedEvent::EntryFailure {
                    error: Some(INVALID_CONTROL),
                }
            } else if message.contains("e->") {
                // Checks of an entry in an MSR-load list.
                failed_entry(MSR_LOADING, None)
            } else {
                failed_entry(INVALID_GUEST_STATE, None)
            });
        } else if !self.in_l2 {
            // VMfailInvalid has no error number; what the VMCS holds would be an older one.
            self.error_is_in_vmcs12 = !INVALID.iter().any(|check| message.contains(check));
            self.events.push(NestedEvent::EntryFailure { error: None });
        }
        // In L2: a check of the MSR-store list at an exit, which is no entry.
    }

    fn confirm_entry(&mut self) {
        self.events.extend(self.entry.take());
        self.in_l2 = true;
    }

    /// The vCPU's nested state was replaced: what was under way is no more.
    pub fn forget(&mut self) {
        let events = std::mem::take(&mut self.events);
        *self = Self {
            events,
            ..Self::default()
        };
    }

    /// Whether [`Assembler::finish`] would look at nested state.
    pub(crate) fn wants_nested_state(&self) -> bool {
        self.entry.is_some() || self.events.last().is_some()
    }

    /// Settles what no point can, by the nested state as it is now: an entry that nothing has
    /// followed yet, and of the last event what tracepoints leave out.
    pub(crate) fn finish(&mut self, now: View<'_>) {
        let reason = now.vmcs12_u32(vmcs12::VM_EXIT_REASON);
        if now.guest_mode() {
            // RUN_PENDING: the processor has yet to accept the entry.
            if !now.run_pending() {
                self.confirm_entry();
            }
            return;
        }
        if self.entry.is_some() {
            match reason {
                Some(reason) if reason & ENTRY_FAILED != 0 => {
                    self.entry = None;
                    let qualification = now.vmcs12_u64(vmcs12::EXIT_QUALIFICATION);
                    self.events.push(failed_entry(reason, qualification));
                }
                _ => self.confirm_entry(),
            }
            self.in_l2 = false;
        }
        // Another VMCS may be current by now.
        let same = self.vmcs12.is_none() || self.vmcs12 == now.vmcs12_pa();
        match self.events.last_mut() {
            Some(NestedEvent::Exit {
                reason: ours,
                qualification,
                instruction_length,
                guest_physical,
                interruption,
                ..
            }) if same && reason == Some(*ours) && *ours & ENTRY_FAILED == 0 => {
                let defines_length = ExitReason(*ours).defines_instruction_length(
                    qualification.unwrap_or(0),
                    interruption.unwrap_or(0),
                    now.vmcs12_u32(vmcs12::IDT_VECTORING_INFO).unwrap_or(0),
                );
                if defines_length {
                    *instruction_length = now.vmcs12_u32(vmcs12::VM_EXIT_INSTRUCTION_LENGTH);
                }
                if matches!(*ours, EPT_VIOLATION | EPT_MISCONFIGURATION) {
                    *guest_physical = now.vmcs12_u64(vmcs12::GUEST_PHYSICAL_ADDRESS);
                }
                // Not GUEST_RIP: L1 may have moved L2 on by now.
            }
            Some(NestedEvent::EntryFailure {
                error: error @ None,
            }) if self.error_is_in_vmcs12 => {
                *error = now
                    .vmcs12_u32(vmcs12::VM_INSTRUCTION_ERROR)
                    .filter(|error| *error != 0);
            }
            _ => {}
        }
    }

    /// Takes what is settled.
    pub fn take(&mut self) -> Vec<NestedEvent> {
        std::mem::take(&mut self.events)
    }
}

fn failed_entry(reason: u32, qualification: Option<u64>) -> NestedEvent {
    NestedEvent::Exit {
        reason,
        qualification,
        interruption: None,
        error_code: None,
        instruction_length: None,
        guest_physical: None,
        l2_rip: None,
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
