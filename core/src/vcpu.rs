//! The traits that every backend implements, cut where KVM cuts them, and what a run answers.

use crate::addr::L1Phys;
use crate::machine_check::MachineCheck;
use crate::msr::filter::MsrExitReason;
use crate::nested::NestedState;
use crate::x86::ownership::Level;
use crate::x86::{CpuState, Event};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use thiserror::Error;

/// Something a backend can do, or may not be able to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Capability {
    /// Nested state can be read and written, and guests may use VMX.
    NestedVmx,
    /// L1 may use EPT.
    NestedEpt,
    /// Stepping by one instruction.
    SingleStep,
    /// Pages written since a mark.
    DirtyPages,
    /// A run can stop after an exact number of instructions.
    ExactInstructions,
    /// A run can stop after an exact number of nested events.
    ExactNestedEvents,
    /// Two runs from one state are equal to the bit.
    Deterministic,
    /// System-management mode.
    Smm,
    /// Nested entries and exits are reported.
    NestedEvents,
}

/// What a backend can do: each capability with where it comes from, or why it is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Capabilities {
    /// Name of the backend and of what is behind it, for people.
    pub description: String,
    /// `Ok` holds a note on the source (may be empty), `Err` the reason and what to do about it.
    pub entries: Vec<(Capability, Result<String, String>)>,
}

impl Capabilities {
    /// Whether the backend has the capability.
    #[must_use]
    pub fn has(&self, capability: Capability) -> bool {
        self.entries
            .iter()
            .any(|(c, r)| *c == capability && r.is_ok())
    }

    /// An error that says why `capability` is absent, or `Ok`.
    pub fn require(&self, capability: Capability) -> Result<(), BackendError> {
        match self.entries.iter().find(|(c, _)| *c == capability) {
            Some((_, Ok(_))) => Ok(()),
            Some((_, Err(reason))) => Err(BackendError::Absent {
                capability,
                reason: reason.clone(),
            }),
            None => Err(BackendError::Absent {
                capability,
                reason: "this backend does not offer it".into(),
            }),
        }
    }
}

/// Where a run must stop at the latest. Each limit has its unit; the first that is reached counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Budget {
    /// Guest instructions, exact; needs [`Capability::ExactInstructions`].
    pub instructions: Option<u64>,
    /// Nested events (entries, failed entries, exits), exact; needs [`Capability::ExactNestedEvents`].
    pub nested_events: Option<u64>,
    /// Guest time ([`Vm::now`]) in nanoseconds at which the run comes back with [`Exit::Budget`] at the
    /// latest, exact, halted or not: a caller's timers. Needs a backend whose [`Vm::now`] is `Some`.
    pub until: Option<u64>,
    /// Wall-clock time: a safety net, never a result. Every backend honours it.
    pub time: Option<Duration>,
}

impl Budget {
    /// No limit.
    pub const UNLIMITED: Self = Self {
        instructions: None,
        nested_events: None,
        until: None,
        time: None,
    };

    /// At most this many instructions.
    #[must_use]
    pub const fn instructions(count: u64) -> Self {
        Self {
            instructions: Some(count),
            ..Self::UNLIMITED
        }
    }

    /// At most this many nested events.
    #[must_use]
    pub const fn nested_events(count: u64) -> Self {
        Self {
            nested_events: Some(count),
            ..Self::UNLIMITED
        }
    }

    /// At most this long.
    #[must_use]
    pub const fn time(limit: Duration) -> Self {
        Self {
            time: Some(limit),
            ..Self::UNLIMITED
        }
    }
}

/// Why a run came back to user space. What is reflected to L1 is no `Exit` but a [`NestedEvent`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    /// OUT. The instruction is complete: RIP is behind it (REP: behind this iteration).
    IoOut {
        /// Port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
        /// Value written.
        value: u32,
    },
    /// IN. Complete it with [`Vcpu::complete_read`] before the next run or capture.
    IoIn {
        /// Port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        size: u8,
    },
    /// A read where there is no RAM. Complete it with [`Vcpu::complete_read`].
    MmioRead {
        /// L1-physical address.
        address: L1Phys,
        /// Bytes: 1 to 8.
        size: u8,
    },
    /// A write where there is no RAM. Complete.
    MmioWrite {
        /// L1-physical address.
        address: L1Phys,
        /// Bytes: 1 to 8.
        size: u8,
        /// Value written.
        value: u64,
    },
    /// RDMSR that user space answers, with [`Vcpu::complete_read`] or by refusing it.
    MsrRead {
        /// The MSR.
        number: u32,
        /// Why.
        reason: MsrExitReason,
    },
    /// WRMSR that user space answers, with [`Vcpu::complete_read`] of anything or by refusing it.
    MsrWrite {
        /// The MSR.
        number: u32,
        /// EDX:EAX.
        value: u64,
        /// Why.
        reason: MsrExitReason,
    },
    /// HLT (or wait-for-SIPI) with nothing to wait for that the backend models. From [`Vm::run`]: of
    /// all vCPUs.
    Hlt,
    /// Triple fault of L1.
    Shutdown,
    /// A limit of the budget was reached, or the run was interrupted.
    Budget,
    /// After [`Vcpu::step`]: one instruction ran.
    Stepped,
    /// The host refused or failed to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailEntry {
        /// Hardware reason.
        reason: u64,
    },
    /// The backend cannot go on (`KVM_EXIT_INTERNAL_ERROR`).
    InternalError {
        /// `KVM_INTERNAL_ERROR_*` or zero.
        suberror: u32,
        /// What happened.
        message: String,
    },
    /// The model has not been taught this. Never a wrong answer instead.
    Unsupported {
        /// What is missing, with the SDM section.
        what: String,
    },
    /// The line of [`Vcpu::set_interrupt_line`] is asserted and the processor takes the interrupt now:
    /// run the acknowledge cycle (INTA) on the PIC and hand its vector to
    /// [`Vcpu::acknowledge_interrupt`]. Comes again until that is done or the line is deasserted.
    InterruptWindow,
    /// EOI of a level-triggered interrupt, broadcast to the I/O APICs (`KVM_EXIT_IOAPIC_EOI`). The
    /// instruction is complete.
    IoApicEoi {
        /// The vector.
        vector: u8,
    },
    /// A breakpoint of the caller's debugger (`KVM_EXIT_DEBUG`): the exception is not delivered.
    Debug {
        /// #DB or #BP.
        vector: u8,
        /// What the exception would set in DR6.
        payload: u64,
    },
}

impl Exit {
    /// `KVM_INTERNAL_ERROR_EMULATION`: KVM's answer where it would have to do what it cannot.
    #[must_use]
    pub const fn emulation_failure(message: String) -> Self {
        Self::InternalError {
            suberror: 1,
            message,
        }
    }
}

/// A nested VM entry or exit, as far as the backend can see it (`None`: it cannot).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NestedEvent {
    /// VM entry into L2.
    Entry {
        /// L1-physical address of the vmcs12.
        vmcs12: L1Phys,
        /// RIP of L2.
        l2_rip: u64,
        /// VM-entry interruption information.
        injected: Option<u32>,
    },
    /// VMLAUNCH or VMRESUME failed before guest state was loaded (VMfail).
    EntryFailure {
        /// VM-instruction error number.
        error: Option<u32>,
    },
    /// VM exit from L2 to L1; reasons with bit 31 are failed entries (33, 34, 41).
    Exit {
        /// Exit reason, all 32 bits.
        reason: u32,
        /// Exit qualification.
        qualification: Option<u64>,
        /// VM-exit interruption information.
        interruption: Option<u32>,
        /// VM-exit interruption error code.
        error_code: Option<u32>,
        /// VM-exit instruction length.
        instruction_length: Option<u32>,
        /// Guest-physical address (EPT violations and misconfigurations).
        guest_physical: Option<u64>,
        /// RIP of L2 at the exit.
        l2_rip: Option<u64>,
    },
}

/// What went wrong in a backend.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend cannot do this.
    #[error("{capability:?} is not available: {reason}")]
    Absent {
        /// What was asked for.
        capability: Capability,
        /// Why not, and what to do.
        reason: String,
    },
    /// A call to the kernel failed.
    #[error("{call}: {message} (errno {errno})")]
    Kernel {
        /// The call.
        call: &'static str,
        /// errno.
        errno: i32,
        /// The errno in words, and a hint where we have one.
        message: String,
    },
    /// Nested state was refused; the vCPU is as it was before.
    #[error("nested state refused: {rule} (errno {errno})")]
    NestedRefused {
        /// The rule of KVM_SET_NESTED_STATE that it breaks, or the kernel's word.
        rule: String,
        /// The kernel's errno: 22 EINVAL, 14 EFAULT, 12 ENOMEM, 7 E2BIG.
        errno: i32,
    },
    /// The state given cannot be set.
    #[error("state refused: {part}: {reason}")]
    StateRefused {
        /// Which part or field.
        part: String,
        /// Why.
        reason: String,
    },
    /// An address that is not RAM.
    #[error(transparent)]
    NotRam(#[from] crate::memory::NotRam),
    /// RAM whose memory in the host is not there: the caller unmapped or protected it (KVM_RUN answers
    /// EFAULT). The vCPU can run again once it is.
    #[error("the host memory behind guest-physical {address} is not there")]
    HostMemory {
        /// L1-physical address of the access.
        address: L1Phys,
    },
    /// The other side of a connection is gone or speaks nonsense.
    #[error("connection to {peer}: {message}")]
    Connection {
        /// Whom we spoke to.
        peer: String,
        /// What happened.
        message: String,
    },
    /// The model has not been taught this.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

/// Result of a backend call.
pub type Result<T, E = BackendError> = std::result::Result<T, E>;

/// A part set: what [`Vcpu::state`] should read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Parts {
    /// All there is.
    All,
    /// Registers only: `regs` and `sregs`. Cheap.
    Registers,
}

/// What a machine is made of. The same for every backend.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmConfig {
    /// Bytes of RAM from address zero: a multiple of the page size.
    pub memory_size: u64,
    /// Number of vCPUs.
    pub vcpus: usize,
}

impl Default for VmConfig {
    /// 16 MiB and one vCPU.
    fn default() -> Self {
        Self {
            memory_size: 16 << 20,
            vcpus: 1,
        }
    }
}

/// A virtual machine: guest-physical memory and its vCPUs.
///
/// Memory is RAM from address zero; devices are the caller's (they arrive as [`Exit`]s), except the
/// local APIC.
pub trait Vm {
    /// What the backend can do.
    fn capabilities(&self) -> &Capabilities;

    /// Bytes of RAM.
    fn memory_size(&self) -> u64;

    /// Reads RAM.
    fn read_memory(&mut self, address: L1Phys, buffer: &mut [u8]) -> Result<()>;

    /// Writes RAM, coherently with code that has run from there.
    fn write_memory(&mut self, address: L1Phys, bytes: &[u8]) -> Result<()>;

    /// Reads whole pages by number, one after the other. A remote backend does it in one round trip.
    fn read_pages(&mut self, pages: &[u64]) -> Result<Vec<u8>> {
        let size = crate::addr::PAGE_SIZE;
        let mut bytes = vec![0; pages.len() * size as usize];
        for (page, chunk) in pages.iter().zip(bytes.chunks_exact_mut(size as usize)) {
            self.read_memory(L1Phys(page * size), chunk)?;
        }
        Ok(bytes)
    }

    /// Page numbers written (by guest or [`Vm::write_memory`]) since the last call or the start, ascending.
    fn dirty_pages(&mut self) -> Result<Vec<u64>>;

    /// Number of vCPUs.
    fn vcpu_count(&self) -> usize;

    /// A vCPU; panics if `index >= vcpu_count()`.
    fn vcpu(&mut self, index: usize) -> &mut dyn Vcpu;

    /// Runs the whole machine until one of its vCPUs needs user space, whose index comes with the exit,
    /// or the budget, which counts over all of them, is spent.
    ///
    /// The default serves machines with one vCPU.
    fn run(&mut self, budget: Budget) -> Result<(usize, Exit)> {
        match self.vcpu_count() {
            1 => Ok((0, self.vcpu(0).run(budget)?)),
            count => Err(BackendError::Unsupported(format!(
                "running {count} vCPUs together on this backend; `soft` does, here it takes one"
            ))),
        }
    }

    /// Guest time in nanoseconds since the machine was made, where the backend has a time of its own;
    /// `None` where the guest lives in the host's.
    fn now(&mut self) -> Option<u64> {
        None
    }

    /// A message-signalled interrupt, from a device or an I/O APIC: `address` and `data` as on the bus
    /// (SDM Vol. 3A "Message Signalled Interrupts"). Answers whether a local APIC took it.
    fn signal_msi(&mut self, address: u64, data: u32) -> Result<bool> {
        let _ = (address, data);
        Err(BackendError::Unsupported(
            "message-signalled interrupts on this backend".into(),
        ))
    }
}

/// A virtual CPU.
pub trait Vcpu {
    /// Reads the state, nested state apart. Does not disturb the guest.
    fn state(&mut self, parts: Parts) -> Result<CpuState>;

    /// Writes the parts that are `Some`, in the order of [`crate::x86::ownership::RESTORE_ORDER`].
    fn set_state(&mut self, state: &CpuState) -> Result<()>;

    /// Reads the nested state, byte-exact with the kernel's. Twice in a row gives the same, and the
    /// guest goes on undisturbed.
    fn nested_state(&mut self) -> Result<NestedState>;

    /// Writes the nested state: whole, or the vCPU stays as it was.
    fn set_nested_state(&mut self, state: &NestedState) -> Result<()>;

    /// What KVM_SET_NESTED_STATE answers to exactly these bytes: 0, a negative errno, or the
    /// positive internal status that some kernels return. The vCPU is left as it was before.
    ///
    /// The default goes through [`NestedState`]; `kvm` asks the kernel itself.
    fn try_nested_bytes(&mut self, bytes: &[u8]) -> Result<i32> {
        let Ok(state) = NestedState::from_bytes(bytes) else {
            // Shorter than the header: copying it faults.
            return Ok(-14);
        };
        let before = self.nested_state()?;
        match self.set_nested_state(&state) {
            Ok(()) => self.set_nested_state(&before).map(|()| 0),
            // Without an errno: the kernel hands out NVMX_VMENTRY_VMEXIT of its own enumeration.
            Err(BackendError::NestedRefused { errno: 0, .. }) => Ok(2),
            Err(BackendError::NestedRefused { errno, .. }) => Ok(-errno),
            Err(error) => Err(error),
        }
    }

    /// Runs until a VM entry of L1 succeeded and L2 has not run an instruction
    /// (`KVM_STATE_NESTED_RUN_PENDING`), where that takes luck: at most `max_tries` short runs.
    ///
    /// `false` if it was not met. The default, for a backend that has no such search, is an error.
    fn run_until_run_pending(&mut self, max_tries: u32) -> Result<bool> {
        let _ = max_tries;
        Err(BackendError::Unsupported(
            "a search for RUN_PENDING on this backend".into(),
        ))
    }

    /// The level that runs.
    fn level(&mut self) -> Result<Level>;

    /// Runs until something needs user space or the budget is spent.
    fn run(&mut self, budget: Budget) -> Result<Exit>;

    /// Runs exactly one instruction at whatever level is current.
    fn step(&mut self) -> Result<Exit>;

    /// Gives the value that an [`Exit::IoIn`] or [`Exit::MmioRead`] waits for.
    fn complete_read(&mut self, value: u64) -> Result<()>;

    /// Queues an event for the guest, as a device would: external interrupt, NMI or exception.
    fn inject(&mut self, event: Event) -> Result<()>;

    /// Signals an SMI, as a chipset does ([`Capability::Smm`]).
    fn inject_smi(&mut self) -> Result<()> {
        Err(BackendError::Absent {
            capability: Capability::Smm,
            reason: "this backend takes no SMI from user space".into(),
        })
    }

    /// Signals a machine-check error (`KVM_X86_SET_MCE`): recorded in its bank, and #MC or shutdown if it is
    /// uncorrected. #MC in L2 is an exit or L2's, as the exception bitmap says.
    fn inject_machine_check(&mut self, error: &MachineCheck) -> Result<()> {
        let _ = error;
        Err(BackendError::Unsupported(
            "machine checks from user space on this backend".into(),
        ))
    }

    /// The INTR output of the caller's PIC, at this vCPU's LINT0 (virtual wire), or at the processor
    /// itself where the local APIC is disabled. It stays as it is set.
    ///
    /// While it is asserted and the processor can take the interrupt, a run ends with
    /// [`Exit::InterruptWindow`]. An exit of L2 that leaves the interrupt unacknowledged takes place
    /// without one.
    fn set_interrupt_line(&mut self, asserted: bool) -> Result<()> {
        let _ = asserted;
        Err(BackendError::Unsupported(
            "the interrupt line of a PIC on this backend".into(),
        ))
    }

    /// The vector that the PIC gave in its acknowledge cycle, after [`Exit::InterruptWindow`]: it is
    /// delivered before anything of lower priority (as KVM_INTERRUPT with a split irqchip).
    fn acknowledge_interrupt(&mut self, vector: u8) -> Result<()> {
        let _ = vector;
        Err(BackendError::Unsupported(
            "a PIC's vector on this backend".into(),
        ))
    }

    /// Appends the nested events since the last call to `events`.
    fn drain_nested_events(&mut self, events: &mut Vec<NestedEvent>) -> Result<()>;

    /// Instructions executed since the machine was made; `None` where the backend does not count them
    /// (see [`Capability::ExactInstructions`]).
    fn executed_instructions(&mut self) -> Option<u64> {
        None
    }

    /// Nested events that were lost since the last call (a trace buffer that overflowed).
    fn lost_nested_events(&mut self) -> u64 {
        0
    }
}
