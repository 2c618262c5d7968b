//! Nested state: KVM_GET_NESTED_STATE and KVM_SET_NESTED_STATE, the latter made transactional
//! (Linux `arch/x86/kvm/vmx/nested.c`, `vmx_set_nested_state`).
//!
//! The kernel's SET is not transactional: past a few checks of the header it leaves VMX operation
//! before it looks at the rest, and leaving guest mode loads L1's host state from the old vmcs12
//! over the registers. So everything is captured first, L2 is left by hand, and the registers are
//! put back before the new state goes in; or the old one, if the new one is refused.

use crate::error;
use crate::sys;
use crate::vcpu::KvmVcpu;
use nvmx_core::nested::NestedState;
use nvmx_core::vcpu::{BackendError, Capability, Exit, Result};
use nvmx_core::x86::CpuState;
use nvmx_core::x86::ownership::{Level, Owner, msr_owner};
use std::time::Duration;

const FLAG_GUEST_MODE: u16 = 1;
const FLAG_RUN_PENDING: u16 = 2;
const NO_POINTER: u64 = u64::MAX;
/// Header of `struct kvm_nested_state`; a vmcs12 follows it.
const HEADER: usize = 128;

/// Offsets in struct vmcs12 (frozen by `vmx_check_vmcs12_offsets`).
pub(crate) mod vmcs12 {
    pub(crate) const GUEST_PHYSICAL_ADDRESS: usize = 168;
    pub(crate) const GUEST_RIP: usize = 544;
    pub(crate) const HOST_RIP: usize = 672;
    pub(crate) const EXIT_QUALIFICATION: usize = 408;
    pub(crate) const PIN_BASED_CONTROLS: usize = 744;
    pub(crate) const VM_INSTRUCTION_ERROR: usize = 808;
    pub(crate) const VM_EXIT_REASON: usize = 812;
    pub(crate) const IDT_VECTORING_INFO: usize = 824;
    pub(crate) const VM_EXIT_INSTRUCTION_LENGTH: usize = 832;
}

/// What the backend itself looks at in the kernel's bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a>(pub(crate) &'a [u8]);

impl View<'_> {
    fn flags(self) -> u16 {
        u16::from_le_bytes([self.0[0], self.0[1]])
    }

    fn pointer(self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(offset..offset + 8)?.try_into().ok()?;
        Some(u64::from_le_bytes(bytes)).filter(|pointer| *pointer != NO_POINTER)
    }

    pub(crate) fn in_vmx_operation(self) -> bool {
        self.pointer(8).is_some()
    }

    pub(crate) fn vmcs12_pa(self) -> Option<u64> {
        self.pointer(16)
    }

    pub(crate) fn guest_mode(self) -> bool {
        self.flags() & FLAG_GUEST_MODE != 0
    }

    pub(crate) fn run_pending(self) -> bool {
        self.flags() & FLAG_RUN_PENDING != 0
    }

    /// A 64-bit field of the vmcs12; `None` if there is none.
    pub(crate) fn vmcs12_u64(self, offset: usize) -> Option<u64> {
        let bytes = self.0.get(HEADER + offset..HEADER + offset + 8)?;
        Some(u64::from_le_bytes(bytes.try_into().ok()?))
    }

    /// A 32-bit field of the vmcs12; `None` if there is none.
    pub(crate) fn vmcs12_u32(self, offset: usize) -> Option<u32> {
        let bytes = self.0.get(HEADER + offset..HEADER + offset + 4)?;
        Some(u32::from_le_bytes(bytes.try_into().ok()?))
    }
}

/// The state of a vCPU outside VMX operation: what makes the kernel leave it.
fn outside_vmx() -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[4..8].copy_from_slice(&(HEADER as u32).to_le_bytes());
    bytes[8..24].fill(0xff);
    bytes
}

/// The kernel's bytes as nvmx-core has them.
pub(crate) fn to_core(bytes: &[u8]) -> Result<NestedState> {
    NestedState::from_bytes(bytes).map_err(|error| {
        BackendError::Other(format!(
            "KVM_GET_NESTED_STATE gave what we cannot read: {error}"
        ))
    })
}

impl KvmVcpu {
    /// The kernel's nested state, byte for byte, as long as its header says.
    pub(crate) fn nested_bytes(&self) -> Result<Vec<u8>> {
        self.shared.capabilities.require(Capability::NestedVmx)?;
        let mut buffer = vec![0; self.shared.nested_size];
        match sys::nested_state(self.raw(), &mut buffer) {
            0 => {}
            value => return Err(error::kernel("KVM_GET_NESTED_STATE", -value)),
        }
        let size = u32::from_le_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]) as usize;
        if !(HEADER..=buffer.len()).contains(&size) {
            return Err(BackendError::Other(format!(
                "KVM_GET_NESTED_STATE says {size} bytes, of {}",
                buffer.len()
            )));
        }
        buffer.truncate(size);
        Ok(buffer)
    }

    /// KVM_SET_NESTED_STATE with exactly these bytes and nothing else: no check before, no way back
    /// after. Zero, errno made negative, or the positive internal status that some kernels return.
    ///
    /// # Errors
    /// The host has no nested VMX, or memory for the call is short.
    pub fn raw_set_nested_state(&mut self, bytes: &[u8]) -> Result<i32> {
        self.shared.capabilities.require(Capability::NestedVmx)?;
        self.settle()?;
        // A state that is set by hand replaces the one that waits.
        self.held_nested = None;
        self.forget_trace(|vcpu| sys::set_nested_state(vcpu.raw(), bytes))
    }

    /// The same, whatever waits; entries that the call itself traces are no events of the guest.
    fn kernel_set(&mut self, bytes: &[u8]) -> Result<i32> {
        self.forget_trace(|vcpu| sys::set_nested_state(vcpu.raw(), bytes))
    }

    fn leave_vmx(&mut self) -> Result<()> {
        match self.kernel_set(&outside_vmx())? {
            0 => Ok(()),
            value => Err(error::kernel("KVM_SET_NESTED_STATE", -value)),
        }
    }

    pub(crate) fn is_in_vmx_operation(&self) -> Result<bool> {
        Ok(self.shared.nested_size != 0 && View(&self.nested_bytes()?).in_vmx_operation())
    }

    pub(crate) fn current_level(&self) -> Result<Level> {
        // Without nested VMX there is one level only.
        if self.shared.nested_size != 0 && View(&self.nested_bytes()?).guest_mode() {
            return Ok(Level::L2);
        }
        Ok(Level::L1)
    }

    /// Takes the nested state of a vCPU in VMX operation out, to be put back by
    /// [`KvmVcpu::reinstate_nested`].
    pub(crate) fn hold_nested(&mut self) -> Result<()> {
        if self.shared.nested_size == 0 || self.held_nested.is_some() {
            return Ok(());
        }
        let bytes = self.nested_bytes()?;
        if View(&bytes).in_vmx_operation() {
            self.leave_vmx()?;
            self.held_nested = Some(bytes);
        }
        Ok(())
    }

    /// Puts back what [`KvmVcpu::hold_nested`] took out.
    pub(crate) fn reinstate_nested(&mut self) -> Result<()> {
        let Some(bytes) = self.held_nested.take() else {
            return Ok(());
        };
        // Entering guest mode loads RIP, RSP and RFLAGS from the vmcs12; the caller's count.
        let regs = self.regs()?;
        match self.kernel_set(&bytes)? {
            0 => self.put_regs(&regs),
            value => {
                let now = self.touched_state()?;
                Err(self.refusal(&bytes, value, &now))
            }
        }
    }

    /// Sets nested state; on refusal the vCPU is as it was.
    pub(crate) fn put_nested(&mut self, state: &NestedState) -> Result<()> {
        self.shared.capabilities.require(Capability::NestedVmx)?;
        let bytes = state.to_bytes();
        let before = self.begin()?;
        match self.kernel_set(&bytes)? {
            0 => Ok(()),
            value => {
                let error = self.refusal(&bytes, value, &before.state);
                self.roll_back(before)?;
                Err(error)
            }
        }
    }

    /// What the kernel answers to these bytes, with the vCPU as it was afterwards.
    pub(crate) fn probe_nested(&mut self, bytes: &[u8]) -> Result<i32> {
        self.shared.capabilities.require(Capability::NestedVmx)?;
        let before = self.begin()?;
        let value = self.kernel_set(bytes);
        self.roll_back(before)?;
        value
    }

    /// Captures what a SET can change, and leaves L2 so that the SET finds nothing to leave.
    fn begin(&mut self) -> Result<Before> {
        let (nested, held) = match self.held_nested.take() {
            Some(held) => (held, true),
            None => (self.nested_bytes()?, false),
        };
        let before = Before {
            state: self.touched_state()?,
            nested,
            held,
        };
        if !held && View(&before.nested).guest_mode() {
            self.leave_vmx()?;
            self.put_state_parts(&before.state)?;
        }
        Ok(before)
    }

    fn roll_back(&mut self, before: Before) -> Result<()> {
        self.leave_vmx()?;
        self.put_state_parts(&before.state)?;
        if before.held {
            self.held_nested = Some(before.nested);
            return Ok(());
        }
        if View(&before.nested).in_vmx_operation() {
            match self.kernel_set(&before.nested)? {
                0 => {}
                value => return Err(self.refusal(&before.nested, value, &before.state)),
            }
            if let Some(regs) = &before.state.regs {
                self.put_regs(regs)?;
            }
        }
        Ok(())
    }

    /// The parts that a switch of level changes.
    fn touched_state(&self) -> Result<CpuState> {
        let switched: Vec<u32> = self
            .shared
            .msrs
            .iter()
            .copied()
            .filter(|number| msr_owner(*number, Level::L2) == Owner::L2)
            .collect();
        let debug = self
            .fd
            .get_debug_regs()
            .map_err(error::ioctl("KVM_GET_DEBUGREGS"))?;
        let mp_state = self
            .fd
            .get_mp_state()
            .map_err(error::ioctl("KVM_GET_MP_STATE"))?;
        Ok(CpuState {
            regs: Some(self.regs()?),
            sregs: Some(self.sregs()?),
            msrs: Some(self.read_msrs(&switched)?),
            events: Some(self.vcpu_events()?),
            mp_state: nvmx_core::x86::MpState::from_kernel(mp_state.mp_state),
            debug: Some(nvmx_abi::registers::debug(&debug)),
            ..Default::default()
        })
    }

    /// RIP where the level that does not run would go on; `None` without a vmcs12, or where it is
    /// the RIP of the level that runs.
    pub(crate) fn other_level_rip(&self) -> Result<Option<u64>> {
        if self.shared.nested_size == 0 {
            return Ok(None);
        }
        let bytes = self.nested_bytes()?;
        let view = View(&bytes);
        let field = if view.guest_mode() {
            vmcs12::HOST_RIP
        } else {
            vmcs12::GUEST_RIP
        };
        let rip = self.regs()?.rip;
        Ok(view.vmcs12_u64(field).filter(|other| *other != rip))
    }

    /// Whether L2 runs with the VMX-preemption timer (pin-based control 6).
    pub(crate) fn l2_has_preemption_timer(&self) -> Result<bool> {
        let bytes = self.nested_bytes()?;
        let controls = View(&bytes).vmcs12_u32(vmcs12::PIN_BASED_CONTROLS);
        Ok(controls.is_some_and(|controls| controls & 1 << 6 != 0))
    }

    /// Runs in slices of a random microsecond or so until one ends between a VM entry of L1 and
    /// L2's first instruction: the only way to see RUN_PENDING from user space.
    ///
    /// `false` after `max_tries`, or if the guest left to user space (the exit is kept for the next
    /// run).
    pub(crate) fn search_run_pending(&mut self, max_tries: u32) -> Result<bool> {
        self.shared.capabilities.require(Capability::NestedVmx)?;
        self.reinstate_nested()?;
        // A linear congruential generator (Knuth's MMIX numbers): any spread of delays will do.
        let mut random = u64::from(max_tries) << 32 | u64::from(std::process::id());
        for _ in 0..max_tries {
            random = random
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let delay = Duration::from_nanos(500 + (random >> 48));
            match self.run_for(Some(delay))? {
                Exit::Budget => {
                    if View(&self.nested_bytes()?).run_pending() {
                        return Ok(true);
                    }
                }
                exit => {
                    self.queue.push_front(exit);
                    return Ok(false);
                }
            }
        }
        Ok(false)
    }

    fn put_state_parts(&mut self, state: &CpuState) -> Result<()> {
        // Not `put_state`: that one would take the nested state out again.
        for rule in nvmx_core::x86::ownership::RESTORE_ORDER {
            self.put_part(rule.part, state)?;
        }
        Ok(())
    }
}

/// What a SET is rolled back to.
struct Before {
    state: CpuState,
    nested: Vec<u8>,
    /// The nested state was taken out already when we came.
    held: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_view_reads_the_header_and_the_vmcs12() {
        let mut bytes = vec![0_u8; HEADER + 4096];
        bytes[..24].copy_from_slice(&outside_vmx()[..24]);
        assert!(!View(&bytes).in_vmx_operation());
        bytes[0] = 3;
        bytes[8..16].copy_from_slice(&0x1000_u64.to_le_bytes());
        bytes[HEADER + 544..HEADER + 552].copy_from_slice(&0x7c00_u64.to_le_bytes());
        let view = View(&bytes);
        assert!(view.in_vmx_operation() && view.guest_mode() && view.run_pending());
        assert_eq!(view.vmcs12_u64(vmcs12::GUEST_RIP), Some(0x7c00));
        assert_eq!(View(&bytes[..HEADER]).vmcs12_u64(vmcs12::GUEST_RIP), None);
    }
}
