//! An exit of the model as the caller reads it in `struct kvm_run`, and the answer that some wait for.

use super::layout::{EXIT, IO_DATA};
use crate::log;
use crate::os::RunPages;
use kvm_bindings::*;
use nvmx_core::msr::filter::MsrExitReason;
use nvmx_core::vcpu::Exit;
use nvmx_soft::Brief;
use std::mem::offset_of;

type Io = kvm_run__bindgen_ty_1__bindgen_ty_4;
type Mmio = kvm_run__bindgen_ty_1__bindgen_ty_6;
type Internal = kvm_run__bindgen_ty_1__bindgen_ty_13;
type Msr = kvm_run__bindgen_ty_1__bindgen_ty_23;
type Debug = kvm_debug_exit_arch;
type FailEntry = kvm_run__bindgen_ty_1__bindgen_ty_2;

/// A read whose value the caller puts into the page before it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pending {
    /// Where in the pages the value is.
    at: usize,
    /// Bytes of it.
    size: u8,
    /// Where it says that the access is refused, if it can.
    refused_at: Option<usize>,
    /// RIP of the instruction: a caller that moves it wants no value any more.
    pub rip: u64,
}

impl Pending {
    fn new(at: usize, size: u8, rip: u64) -> Self {
        Self {
            at,
            size,
            refused_at: None,
            rip,
        }
    }

    /// Whether the caller refuses the access: #GP.
    #[must_use]
    pub fn is_refused(&self, pages: &RunPages) -> bool {
        self.refused_at.is_some_and(|at| pages.load::<u8>(at) != 0)
    }

    /// The caller's value.
    #[must_use]
    pub fn value(&self, pages: &RunPages) -> u64 {
        let bytes: [u8; 8] = pages.load(self.at);
        let mask = match self.size {
            0..8 => (1 << (8 * self.size)) - 1,
            _ => u64::MAX,
        };
        u64::from_le_bytes(bytes) & mask
    }
}

/// Writes an exit; answers what a read waits for.
pub fn write(pages: &RunPages, exit: &Exit, brief: &Brief) -> Option<Pending> {
    let rip = brief.rip;
    let (reason, pending) = match *exit {
        Exit::IoOut { port, size, value } => {
            pages.store(IO_DATA, value.to_le_bytes());
            io(pages, KVM_EXIT_IO_OUT, port, size);
            (KVM_EXIT_IO, None)
        }
        Exit::IoIn { port, size } => {
            io(pages, KVM_EXIT_IO_IN, port, size);
            (KVM_EXIT_IO, Some(Pending::new(IO_DATA, size, rip)))
        }
        Exit::MmioRead { address, size } => {
            mmio(pages, address.0, size, None);
            let at = EXIT + offset_of!(Mmio, data);
            (KVM_EXIT_MMIO, Some(Pending::new(at, size, rip)))
        }
        Exit::MmioWrite {
            address,
            size,
            value,
        } => {
            mmio(pages, address.0, size, Some(value));
            (KVM_EXIT_MMIO, None)
        }
        Exit::MsrRead { number, reason } => {
            let pending = msr(pages, number, 0, reason, rip);
            (KVM_EXIT_X86_RDMSR, Some(pending))
        }
        Exit::MsrWrite {
            number,
            value,
            reason,
        } => {
            let pending = msr(pages, number, value, reason, rip);
            (KVM_EXIT_X86_WRMSR, Some(pending))
        }
        Exit::Hlt => (KVM_EXIT_HLT, None),
        Exit::Shutdown => (KVM_EXIT_SHUTDOWN, None),
        Exit::InterruptWindow => (KVM_EXIT_IRQ_WINDOW_OPEN, None),
        Exit::IoApicEoi { vector } => {
            pages.set_exit(0, vector);
            (KVM_EXIT_IOAPIC_EOI, None)
        }
        Exit::FailEntry { reason } => {
            pages.set_exit(offset_of!(FailEntry, hardware_entry_failure_reason), reason);
            pages.set_exit(offset_of!(FailEntry, cpu), 0_u32);
            (KVM_EXIT_FAIL_ENTRY, None)
        }
        Exit::InternalError {
            suberror,
            ref message,
        } => {
            log::line(format_args!("internal error: {message} (RIP {rip:#x})"));
            (internal(pages, suberror), None)
        }
        Exit::Unsupported { ref what } => {
            log::line(format_args!("unsupported: {what} (RIP {rip:#x})"));
            (internal(pages, KVM_INTERNAL_ERROR_EMULATION), None)
        }
        Exit::Debug { vector, payload } => {
            debug(pages, brief, vector, payload);
            (KVM_EXIT_DEBUG, None)
        }
        Exit::Budget | Exit::Stepped => (KVM_EXIT_UNKNOWN, None),
    };
    pages.set_exit_reason(reason);
    pending
}

/// `count` is one: of a string instruction each iteration is an exit.
fn io(pages: &RunPages, direction: u32, port: u16, size: u8) {
    pages.set_exit(offset_of!(Io, direction), direction as u8);
    pages.set_exit(offset_of!(Io, size), size);
    pages.set_exit(offset_of!(Io, port), port);
    pages.set_exit(offset_of!(Io, count), 1_u32);
    pages.set_exit(offset_of!(Io, data_offset), IO_DATA as u64);
}

fn mmio(pages: &RunPages, address: u64, size: u8, value: Option<u64>) {
    pages.set_exit(offset_of!(Mmio, phys_addr), address);
    pages.set_exit(offset_of!(Mmio, data), value.unwrap_or(0).to_le_bytes());
    pages.set_exit(offset_of!(Mmio, len), u32::from(size));
    pages.set_exit(offset_of!(Mmio, is_write), u8::from(value.is_some()));
}

fn msr(pages: &RunPages, number: u32, value: u64, reason: MsrExitReason, rip: u64) -> Pending {
    pages.set_exit(offset_of!(Msr, error), 0_u64);
    pages.set_exit(offset_of!(Msr, reason), reason as u32);
    pages.set_exit(offset_of!(Msr, index), number);
    pages.set_exit(offset_of!(Msr, data), value);
    Pending {
        refused_at: Some(EXIT + offset_of!(Msr, error)),
        ..Pending::new(EXIT + offset_of!(Msr, data), 8, rip)
    }
}

/// DR6 as it is without anything: what is fixed in it (`DR6_ACTIVE_LOW`).
const DR6_FIXED: u64 = 0xffff_0ff0;

fn debug(pages: &RunPages, brief: &Brief, vector: u8, payload: u64) {
    pages.set_exit(offset_of!(Debug, exception), u32::from(vector));
    pages.set_exit(offset_of!(Debug, pc), brief.linear_rip);
    // What else the pending debug exceptions hold is no bit of DR6.
    const DR6_BITS: u64 = 0xf | 0b111 << 13;
    let dr6 = if u32::from(vector) == 1 {
        payload & DR6_BITS | DR6_FIXED
    } else {
        0
    };
    pages.set_exit(offset_of!(Debug, dr6), dr6);
    let dr7 = if u32::from(vector) == 1 { brief.dr7 } else { 0 };
    pages.set_exit(offset_of!(Debug, dr7), dr7);
}

fn internal(pages: &RunPages, suberror: u32) -> u32 {
    pages.set_exit(offset_of!(Internal, suberror), suberror);
    pages.set_exit(offset_of!(Internal, ndata), 0_u32);
    KVM_EXIT_INTERNAL_ERROR
}

#[cfg(test)]
mod tests {
    use super::*;
    use nvmx_core::addr::L1Phys;

    const BRIEF: Brief = Brief {
        rip: 5,
        linear_rip: 0x105,
        dr7: 0x402,
        interrupt_flag: false,
        shadow: false,
        event_waits: false,
        cr8: 0,
        apic_base: 0,
        smm: false,
        in_l2: false,
        interrupts_exit: false,
        run_pending: false,
        activity: nvmx_core::cpu::Activity::Active,
        accepts_pic: true,
    };

    #[test]
    fn a_read_waits_for_as_many_bytes_as_it_has() {
        let (pages, _) = RunPages::new().expect("memory");
        let exit = Exit::IoIn {
            port: 0x60,
            size: 2,
        };
        let pending = write(&pages, &exit, &BRIEF).expect("waits");
        pages.store(IO_DATA, [0x34_u8, 0x12, 0xff]);
        assert_eq!(pending.value(&pages), 0x1234);
        let address = L1Phys(0xfee0_0020);
        let pending = write(&pages, &Exit::MmioRead { address, size: 8 }, &BRIEF).expect("waits");
        assert_eq!(pages.exit::<u64>(0), address.0);
        pages.set_exit(8, u64::MAX - 1);
        assert_eq!(pending.value(&pages), u64::MAX - 1);
    }

    #[test]
    fn a_breakpoint_says_where_and_why() {
        let (pages, _) = RunPages::new().expect("memory");
        let exit = Exit::Debug {
            vector: 1,
            payload: 1 << 14 | 1 << 12,
        };
        assert_eq!(write(&pages, &exit, &BRIEF), None);
        assert_eq!((pages.exit_reason(), pages.exit::<u32>(0)), (4, 1));
        let registers = [0x105, 0xffff_4ff0, 0x402];
        assert_eq!(pages.exit::<[u64; 3]>(8), registers);
    }

    #[test]
    fn exits_have_the_kernels_numbers() {
        let (pages, _) = RunPages::new().expect("memory");
        let what = "a test".to_owned();
        let cases = [
            (Exit::Hlt, 5),
            (Exit::Shutdown, 8),
            (Exit::InterruptWindow, 7),
            (Exit::FailEntry { reason: 3 }, 9),
            (Exit::IoApicEoi { vector: 0x31 }, 26),
            (Exit::Unsupported { what }, 17),
        ];
        for (exit, number) in cases {
            assert_eq!(write(&pages, &exit, &BRIEF), None);
            assert_eq!(pages.exit_reason(), number, "{exit:?}");
        }
    }
}
