//! What `struct kvm_run` says after KVM_RUN, as exits of the trait; and what must happen before the
//! instruction behind an exit is complete.
//!
//! KVM finishes an I/O instruction at the next KVM_RUN (api.rst, "KVM_EXIT_IO, KVM_EXIT_MMIO").

use crate::sys::RunArea;
use kvm_bindings::{
    KVM_EXIT_DEBUG, KVM_EXIT_FAIL_ENTRY, KVM_EXIT_HLT, KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_INTR,
    KVM_EXIT_IO, KVM_EXIT_IO_OUT, KVM_EXIT_IRQ_WINDOW_OPEN, KVM_EXIT_MMIO, KVM_EXIT_SHUTDOWN,
};
use nvmx_core::addr::L1Phys;
use nvmx_core::vcpu::Exit;

/// Where the values of a read go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadSlot {
    /// Offset in the kvm_run area of the value that is asked for now.
    pub(crate) offset: u64,
    /// Bytes of one value.
    pub(crate) size: u8,
    /// Values still to come, this one included.
    pub(crate) left: u32,
    /// What to ask for.
    pub(crate) ask: Ask,
}

/// The exit that asks for a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    Port(u16),
    Memory(u64),
}

impl ReadSlot {
    pub(crate) fn exit(&self) -> Exit {
        match self.ask {
            Ask::Port(port) => Exit::IoIn {
                port,
                size: self.size,
            },
            Ask::Memory(address) => Exit::MmioRead {
                address: L1Phys(address),
                size: self.size,
            },
        }
    }
}

/// One return from KVM_RUN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Decoded {
    /// Writes, one exit each; the instruction needs another KVM_RUN to be complete.
    Writes(Vec<Exit>),
    /// A read that waits for its values.
    Read(ReadSlot),
    /// Nothing is left to do in the kernel.
    Done(Exit),
    /// KVM_EXIT_DEBUG.
    Debug,
    /// A reason to run again at once.
    Again,
}

/// Reads the exit out of the area.
pub(crate) fn decode(area: &mut RunArea) -> Decoded {
    match area.get().exit_reason {
        KVM_EXIT_IO => io(area),
        KVM_EXIT_MMIO => mmio(area),
        KVM_EXIT_HLT => Decoded::Done(Exit::Hlt),
        KVM_EXIT_SHUTDOWN => Decoded::Done(Exit::Shutdown),
        KVM_EXIT_DEBUG => Decoded::Debug,
        KVM_EXIT_IRQ_WINDOW_OPEN | KVM_EXIT_INTR => Decoded::Again,
        KVM_EXIT_FAIL_ENTRY => {
            // SAFETY: the exit reason says which member is valid; all are plain numbers.
            let fail = unsafe { area.get().__bindgen_anon_1.fail_entry };
            Decoded::Done(Exit::FailEntry {
                reason: fail.hardware_entry_failure_reason,
            })
        }
        KVM_EXIT_INTERNAL_ERROR => {
            // SAFETY: as above.
            let internal = unsafe { area.get().__bindgen_anon_1.internal };
            let count = (internal.ndata as usize).min(internal.data.len());
            Decoded::Done(Exit::InternalError {
                suberror: internal.suberror,
                message: internal_error(internal.suberror, &internal.data[..count]),
            })
        }
        other => Decoded::Done(Exit::InternalError {
            suberror: 0,
            message: format!("KVM_RUN returned exit reason {other}, which nothing here asked for"),
        }),
    }
}

fn internal_error(suberror: u32, data: &[u64]) -> String {
    use std::fmt::Write as _;
    let mut text = match suberror {
        1 => "emulation failure: KVM met an instruction that it cannot emulate".to_owned(),
        2 => "an exit while an event was being delivered".to_owned(),
        3 => "delivery of an event led to an exit that KVM cannot handle".to_owned(),
        4 => "an exit reason that KVM does not know".to_owned(),
        other => format!("suberror {other}"),
    };
    if !data.is_empty() {
        text.push_str("; data");
        for value in data {
            let _ = write!(text, " {value:#x}");
        }
    }
    text
}

fn nonsense(what: String) -> Decoded {
    Decoded::Done(Exit::InternalError {
        suberror: 0,
        message: what,
    })
}

fn io(area: &mut RunArea) -> Decoded {
    // SAFETY: the exit reason is KVM_EXIT_IO, so `io` is the valid member.
    let io = unsafe { area.get().__bindgen_anon_1.io };
    if !matches!(io.size, 1 | 2 | 4) || io.count == 0 {
        return nonsense(format!(
            "KVM_EXIT_IO of {} times {} bytes",
            io.count, io.size
        ));
    }
    let size = usize::from(io.size);
    let Some(data) = area.data(io.data_offset, size * io.count as usize) else {
        return nonsense(format!("KVM_EXIT_IO with data at {:#x}", io.data_offset));
    };
    if u32::from(io.direction) == KVM_EXIT_IO_OUT {
        let exit = |chunk: &[u8]| Exit::IoOut {
            port: io.port,
            size: io.size,
            value: value(chunk) as u32,
        };
        Decoded::Writes(data.chunks_exact(size).map(exit).collect())
    } else {
        Decoded::Read(ReadSlot {
            offset: io.data_offset,
            size: io.size,
            left: io.count,
            ask: Ask::Port(io.port),
        })
    }
}

fn mmio(area: &RunArea) -> Decoded {
    // SAFETY: the exit reason is KVM_EXIT_MMIO, so `mmio` is the valid member.
    let mmio = unsafe { area.get().__bindgen_anon_1.mmio };
    let Some(data) = mmio.data.get(..mmio.len as usize).filter(|d| !d.is_empty()) else {
        return nonsense(format!("KVM_EXIT_MMIO of {} bytes", mmio.len));
    };
    if mmio.is_write != 0 {
        Decoded::Writes(vec![Exit::MmioWrite {
            address: L1Phys(mmio.phys_addr),
            size: data.len() as u8,
            value: value(data),
        }])
    } else {
        let base = std::mem::offset_of!(kvm_bindings::kvm_run, __bindgen_anon_1);
        let inner = std::mem::offset_of!(kvm_bindings::kvm_run__bindgen_ty_1__bindgen_ty_6, data);
        Decoded::Read(ReadSlot {
            offset: (base + inner) as u64,
            size: data.len() as u8,
            left: 1,
            ask: Ask::Memory(mmio.phys_addr),
        })
    }
}

/// Little-endian, up to eight bytes.
fn value(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |value, byte| value << 8 | u64::from(*byte))
}
