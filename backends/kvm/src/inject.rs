//! Events from user space: external interrupts, NMIs, exceptions, software interrupts.

use crate::error::{self, ioctl};
use crate::sys;
use crate::vcpu::KvmVcpu;
use crate::vm::Irqchip;
use kvm_bindings::kvm_msi;
use nvmx_core::vcpu::{BackendError, Result};
use nvmx_core::x86::{Event, EventKind, Exception};

impl KvmVcpu {
    /// Queues `event`.
    ///
    /// An external interrupt goes to the local APIC as a message if software has enabled it, and
    /// else to its LINT0 as an 8259 would send it (virtual wire).
    pub(crate) fn queue_event(&mut self, event: Event) -> Result<()> {
        self.halted = false;
        match event.kind {
            EventKind::ExternalInterrupt => self.queue_interrupt(event.vector),
            EventKind::Nmi => self.fd.nmi().map_err(ioctl("KVM_NMI")),
            EventKind::HardwareException
            | EventKind::SoftwareException
            | EventKind::PrivilegedSoftwareException => self.queue_exception(event),
            EventKind::SoftwareInterrupt => {
                let mut events = self.vcpu_events()?;
                if events.interrupt_injected {
                    return refuse("an interrupt is under delivery already");
                }
                events.interrupt_injected = true;
                events.interrupt_vector = event.vector;
                events.interrupt_soft = true;
                self.put_events(&events)
            }
            EventKind::Other => {
                refuse("KVM takes no event of type 7; a pending MTF VM exit is nested state")
            }
        }
    }

    fn queue_interrupt(&mut self, vector: u8) -> Result<()> {
        if self.shared.irqchip == Irqchip::None {
            if self.waiting_interrupt.replace(vector).is_some() {
                return refuse("an external interrupt waits already");
            }
            return Ok(());
        }
        if self.apic_is_enabled()? {
            if vector < 16 {
                return refuse("vectors below 16 are illegal for the local APIC");
            }
            let message = kvm_msi {
                // Physical destination: the APIC ID that KVM gave us (SDM Vol. 3A "Message Address
                // Register Format").
                address_lo: crate::ram::APIC_BASE as u32 | (self.index as u32) << 12,
                data: vector.into(),
                ..Default::default()
            };
            return match self.shared.vm.signal_msi(message) {
                Ok(1..) => Ok(()),
                Ok(_) => refuse("the local APIC did not take the interrupt"),
                Err(e) => Err(error::kernel("KVM_SIGNAL_MSI", e.errno())),
            };
        }
        match -sys::interrupt(self.raw(), vector) {
            0 => Ok(()),
            libc::EEXIST => refuse("an external interrupt waits already"),
            libc::ENXIO => refuse(
                "the local APIC is disabled by software, and this kernel's own 8259 sits at LINT0",
            ),
            errno => Err(error::kernel("KVM_INTERRUPT", errno)),
        }
    }

    fn apic_is_enabled(&self) -> Result<bool> {
        let lapic = self.fd.get_lapic().map_err(ioctl("KVM_GET_LAPIC"))?;
        let apic_base = self
            .fd
            .get_sregs()
            .map_err(ioctl("KVM_GET_SREGS"))?
            .apic_base;
        // IA32_APIC_BASE bit 11 and the spurious-interrupt vector register's bit 8.
        Ok(apic_base & 1 << 11 != 0 && lapic.regs[0xf1] & 1 != 0)
    }

    fn queue_exception(&mut self, event: Event) -> Result<()> {
        if event.vector > 31 || event.vector == Exception::NMI {
            return refuse("not a vector of an exception");
        }
        let mut events = self.vcpu_events()?;
        if events.exception_injected || events.exception_pending {
            return refuse("an exception waits already");
        }
        events.exception_vector = event.vector;
        events.exception_error_code = event.error_code;
        if self.shared.events.payload {
            events.exception_pending = true;
            let carries = matches!(event.vector, Exception::PF | Exception::DB);
            events.exception_payload = carries.then_some(event.payload);
        } else {
            // No way to say "pending": L1 will not be asked whether it intercepts this one.
            events.exception_injected = true;
        }
        self.put_events(&events)
    }

    pub(crate) fn vcpu_events(&self) -> Result<nvmx_core::x86::VcpuEvents> {
        let events = self
            .fd
            .get_vcpu_events()
            .map_err(ioctl("KVM_GET_VCPU_EVENTS"))?;
        Ok(nvmx_abi::events::events(&events))
    }

    pub(crate) fn put_events(&self, events: &nvmx_core::x86::VcpuEvents) -> Result<()> {
        let events = nvmx_abi::events::kernel_events(events, self.shared.events)?;
        self.fd
            .set_vcpu_events(&events)
            .map_err(ioctl("KVM_SET_VCPU_EVENTS"))
    }
}

fn refuse<T>(reason: &str) -> Result<T> {
    Err(BackendError::StateRefused {
        part: "inject".into(),
        reason: reason.into(),
    })
}
