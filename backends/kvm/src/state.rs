//! The parts of [`CpuState`]: read one by one, written in the order of
//! [`RESTORE_ORDER`] (see there for why each stands where it does).

use crate::error::ioctl;
use crate::sys;
use crate::vcpu::KvmVcpu;
use crate::vm::Irqchip;
use kvm_bindings::{kvm_mp_state, kvm_xcrs};
use nvmx_abi::{areas, cpuid, registers};
use nvmx_core::vcpu::{BackendError, Parts, Result};
use nvmx_core::x86::cpuid::CpuidEntry;
use nvmx_core::x86::ownership::{Part, RESTORE_ORDER};
use nvmx_core::x86::{CpuState, MpState, Regs, Sregs};

impl KvmVcpu {
    /// Reads the state; the caller has finished what was open.
    pub(crate) fn get_state(&mut self, parts: Parts) -> Result<CpuState> {
        let mut state = CpuState {
            regs: Some(self.regs()?),
            sregs: Some(self.sregs()?),
            ..Default::default()
        };
        if parts == Parts::Registers {
            return Ok(state);
        }
        state.cpuid = Some(self.cpuid()?);
        // A host with an unstable TSC has no frequency to tell.
        state.tsc_khz = self.fd.get_tsc_khz().ok().filter(|khz| *khz != 0);
        state.msrs = Some(self.msrs()?);
        state.xcr0 = self.xcr0()?;
        state.xsave = Some(self.xsave()?);
        state.events = Some(self.vcpu_events()?);
        let mp_state = self.fd.get_mp_state().map_err(ioctl("KVM_GET_MP_STATE"))?;
        state.mp_state = MpState::from_kernel(mp_state.mp_state);
        let debug = self
            .fd
            .get_debug_regs()
            .map_err(ioctl("KVM_GET_DEBUGREGS"))?;
        state.debug = Some(registers::debug(&debug));
        if self.shared.irqchip != Irqchip::None {
            let lapic = self.fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
            state.lapic = Some(areas::lapic(&lapic));
        }
        Ok(state)
    }

    /// Writes the parts that are there.
    ///
    /// A whole restore (registers, system registers and MSRs) of a vCPU in VMX operation first
    /// takes its nested state out: CR4 and the capability MSRs are refused otherwise, and a later
    /// exit from L2 inside KVM_SET_NESTED_STATE would load L1's host state over what was set. The
    /// nested state comes back before the vCPU runs, unless another one is set before.
    pub(crate) fn put_state(&mut self, state: &CpuState) -> Result<()> {
        let whole = state.regs.is_some() && state.sregs.is_some() && state.msrs.is_some();
        if whole {
            self.hold_nested()?;
        }
        for rule in RESTORE_ORDER {
            self.put_part(rule.part, state)?;
        }
        Ok(())
    }

    pub(crate) fn put_part(&mut self, part: Part, state: &CpuState) -> Result<()> {
        match part {
            Part::Cpuid => each(&state.cpuid, |cpuid| self.put_cpuid(cpuid)),
            Part::TscKhz => each(&state.tsc_khz, |khz| self.put_tsc_khz(*khz)),
            Part::Sregs => each(&state.sregs, |sregs| self.put_sregs(sregs)),
            Part::Msrs => each(&state.msrs, |msrs| self.set_msrs(msrs)),
            Part::Xcr0 => each(&state.xcr0, |xcr0| self.put_xcr0(*xcr0)),
            Part::Xsave => each(&state.xsave, |xsave| self.put_xsave(xsave)),
            Part::Lapic => each(&state.lapic, |lapic| self.put_lapic(lapic)),
            Part::Events => each(&state.events, |events| self.put_events(events)),
            Part::MpState => each(&state.mp_state, |mp_state| {
                self.fd
                    .set_mp_state(kvm_mp_state {
                        mp_state: *mp_state as u32,
                    })
                    .map_err(ioctl("KVM_SET_MP_STATE"))
            }),
            Part::Debug => each(&state.debug, |debug| {
                self.fd
                    .set_debug_regs(&registers::kernel_debug(debug))
                    .map_err(ioctl("KVM_SET_DEBUGREGS"))
            }),
            Part::Regs => each(&state.regs, |regs| self.put_regs(regs)),
            Part::Nested => Ok(()),
        }
    }

    pub(crate) fn regs(&self) -> Result<Regs> {
        let regs = self.fd.get_regs().map_err(ioctl("KVM_GET_REGS"))?;
        Ok(registers::regs(&regs))
    }

    pub(crate) fn put_regs(&self, regs: &Regs) -> Result<()> {
        self.fd
            .set_regs(&registers::kernel_regs(regs))
            .map_err(ioctl("KVM_SET_REGS"))
    }

    pub(crate) fn sregs(&self) -> Result<Sregs> {
        if self.shared.sregs2 {
            return Ok(registers::sregs(&sys::sregs2(self.raw())?));
        }
        let old = self.fd.get_sregs().map_err(ioctl("KVM_GET_SREGS"))?;
        Ok(registers::sregs(&registers::newer(&old)))
    }

    pub(crate) fn put_sregs(&self, sregs: &Sregs) -> Result<()> {
        let new = registers::kernel_sregs(sregs);
        let result = if self.shared.sregs2 {
            sys::set_sregs2(self.raw(), &new)
        } else {
            self.fd
                // Interrupts under delivery travel in the events part.
                .set_sregs(&registers::older(&new, None))
                .map_err(ioctl("KVM_SET_SREGS"))
        };
        result.map_err(|error| match error {
            BackendError::Kernel { errno, .. } if errno == libc::EINVAL => {
                BackendError::StateRefused {
                    part: "sregs".into(),
                    reason: format!(
                        "the kernel takes no such combination: CR0 {:#x}, CR4 {:#x}, EFER {:#x}, \
                         APIC base {:#x}, CPUID given",
                        sregs.cr0, sregs.cr4, sregs.efer, sregs.apic_base
                    ),
                }
            }
            other => other,
        })
    }

    fn cpuid(&self) -> Result<Vec<CpuidEntry>> {
        let cpuid = self
            .fd
            .get_cpuid2(kvm_bindings::KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl("KVM_GET_CPUID2"))?;
        Ok(cpuid::cpuid(&cpuid))
    }

    fn put_cpuid(&mut self, cpuid: &[CpuidEntry]) -> Result<()> {
        if self.cpuid()? == cpuid {
            return Ok(());
        }
        self.readable_msrs = None;
        self.fd
            .set_cpuid2(&cpuid::kernel_cpuid(cpuid)?)
            .map_err(ioctl("KVM_SET_CPUID2"))
    }

    fn put_tsc_khz(&self, khz: u32) -> Result<()> {
        if self.fd.get_tsc_khz().is_ok_and(|now| now == khz) {
            return Ok(());
        }
        self.fd.set_tsc_khz(khz).map_err(ioctl("KVM_SET_TSC_KHZ"))
    }

    /// XCR0; `None` on a processor without XSAVE.
    fn xcr0(&self) -> Result<Option<u64>> {
        let xcrs = match self.fd.get_xcrs() {
            Ok(xcrs) => xcrs,
            Err(error) if error.errno() == libc::EINVAL => return Ok(None),
            Err(error) => return Err(ioctl("KVM_GET_XCRS")(error)),
        };
        let count = (xcrs.nr_xcrs as usize).min(xcrs.xcrs.len());
        let zero = xcrs.xcrs[..count].iter().find(|xcr| xcr.xcr == 0);
        Ok(zero.map(|xcr| xcr.value))
    }

    fn put_xcr0(&self, value: u64) -> Result<()> {
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].value = value;
        self.fd.set_xcrs(&xcrs).map_err(ioctl("KVM_SET_XCRS"))
    }

    fn xsave(&self) -> Result<Vec<u8>> {
        let xsave = self.fd.get_xsave().map_err(ioctl("KVM_GET_XSAVE"))?;
        Ok(areas::xsave(&xsave))
    }

    fn put_xsave(&self, bytes: &[u8]) -> Result<()> {
        let Some(xsave) = areas::kernel_xsave(bytes) else {
            return refuse_part(
                "xsave",
                format!(
                    "{} bytes, not {} to {}",
                    bytes.len(),
                    areas::FXSAVE_SIZE,
                    areas::XSAVE_SIZE
                ),
            );
        };
        // SAFETY: this process asks for no dynamically enabled features (arch_prctl
        // ARCH_REQ_XCOMP_GUEST_PERM), so the kernel reads the 4096 bytes of the structure.
        unsafe { self.fd.set_xsave(&xsave) }.map_err(ioctl("KVM_SET_XSAVE"))
    }

    fn put_lapic(&self, bytes: &[u8]) -> Result<()> {
        if self.shared.irqchip == Irqchip::None {
            return refuse_part("lapic", "this host has no in-kernel local APIC".into());
        }
        let Some(lapic) = areas::kernel_lapic(bytes) else {
            return refuse_part(
                "lapic",
                format!("{} bytes, not {}", bytes.len(), areas::LAPIC_SIZE),
            );
        };
        self.fd.set_lapic(&lapic).map_err(ioctl("KVM_SET_LAPIC"))
    }
}

fn each<T>(part: &Option<T>, put: impl FnOnce(&T) -> Result<()>) -> Result<()> {
    part.as_ref().map_or(Ok(()), put)
}

fn refuse_part(part: &str, reason: String) -> Result<()> {
    Err(BackendError::StateRefused {
        part: part.into(),
        reason,
    })
}
