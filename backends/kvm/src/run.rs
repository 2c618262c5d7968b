//! KVM_RUN: running for a time, finishing what an exit left open, one single step.

use crate::alarm::Alarm;
use crate::error;
use crate::exit::{Decoded, decode};
use crate::sys;
use crate::vcpu::{KvmVcpu, Pending};
use crate::vm::Irqchip;
use kvm_bindings::{
    KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP, KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug,
};
use nvmx_core::vcpu::{BackendError, Exit, Result};
use nvmx_core::x86::MpState;
use nvmx_core::x86::ownership::Level;
use std::time::{Duration, Instant};

/// In `exit_reason` before KVM_RUN, so that a return that writes none is seen. (Linux 6.1 has such
/// a path: PDPTRs that cannot be loaded for L2 after a restore.)
const NO_REASON: u32 = u32::MAX;

/// How often a run looks whether the guest has halted for good: first, and at most.
///
/// With an in-kernel APIC a halted vCPU sleeps in the kernel and no exit says so.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_millis(16);

/// A single step that takes longer has run away.
const STEP_LIMIT: Duration = Duration::from_secs(1);

/// Traps in a row that moved no register before a step is believed to be one.
const SPURIOUS_TRAPS: usize = 16;

/// How one KVM_RUN ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entered {
    /// With an exit.
    Exit(Exit),
    /// By the alarm.
    Interrupted,
    /// With KVM_EXIT_DEBUG.
    Debug,
}

impl KvmVcpu {
    /// Runs until an exit, or for `limit`.
    pub(crate) fn run_for(&mut self, limit: Option<Duration>) -> Result<Exit> {
        // First what waits to be handed out: it may be the very read that is open.
        if let Some(exit) = self.queue.pop_front() {
            return Ok(exit);
        }
        self.refuse_open_read()?;
        if self.halted {
            return Ok(Exit::Hlt);
        }
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut look = FIRST_LOOK;
        loop {
            let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
            match self.enter(left.map_or(look, |left| left.min(look)))? {
                Entered::Exit(exit) => return Ok(exit),
                Entered::Debug => {}
                Entered::Interrupted => {
                    if left.is_some_and(|left| left <= look) {
                        return Ok(Exit::Budget);
                    }
                    if self.is_halted_for_good()? {
                        return Ok(Exit::Hlt);
                    }
                    look = (look * 2).min(LAST_LOOK);
                }
            }
        }
    }

    /// One KVM_RUN, ended after `delay` at the latest.
    pub(crate) fn enter(&mut self, delay: Duration) -> Result<Entered> {
        self.claim_trace()?;
        if !self.alarm.as_ref().is_some_and(Alarm::is_mine) {
            self.alarm = Some(Alarm::new(self.raw())?);
        }
        self.arm(delay)?;
        let entered = self.enter_armed();
        // The alarm is taken back whatever happened.
        let disarmed = self.alarm.as_ref().map_or(Ok(()), Alarm::disarm);
        let entered = entered?;
        disarmed?;
        Ok(entered)
    }

    fn arm(&self, delay: Duration) -> Result<()> {
        self.alarm.as_ref().map_or(Ok(()), |a| a.arm(delay))
    }

    fn enter_armed(&mut self) -> Result<Entered> {
        loop {
            self.offer_interrupt()?;
            let Some(decoded) = self.kvm_run()? else {
                return Ok(Entered::Interrupted);
            };
            if decoded == Decoded::Debug {
                return Ok(Entered::Debug);
            }
            self.take(decoded);
            if let Some(exit) = self.queue.pop_front() {
                self.halted = exit == Exit::Hlt;
                return Ok(Entered::Exit(exit));
            }
        }
    }

    /// KVM_RUN and what it says; `None` if it was interrupted. Either way what was pending is done.
    fn kvm_run(&mut self) -> Result<Option<Decoded>> {
        self.area.get_mut().exit_reason = NO_REASON;
        let answer = sys::run(self.raw());
        self.pending = Pending::Nothing;
        match -answer {
            0 if self.area.get().exit_reason == NO_REASON => {
                Ok(Some(Decoded::Done(Exit::InternalError {
                    suberror: 0,
                    message: "KVM_RUN returned and wrote no exit reason (Linux 6.1 does so when \
                              it cannot load the PDPTRs of a restored L2)"
                        .into(),
                })))
            }
            0 => Ok(Some(decode(&mut self.area))),
            libc::EINTR | libc::EAGAIN => Ok(None),
            errno => Err(error::kernel("KVM_RUN", errno)),
        }
    }

    /// Queues the exits and notes what is left to do.
    fn take(&mut self, decoded: Decoded) {
        match decoded {
            Decoded::Writes(exits) => {
                self.queue.extend(exits);
                self.pending = Pending::Completion;
            }
            Decoded::Read(slot) => {
                self.queue.push_back(slot.exit());
                self.pending = Pending::Read(slot);
            }
            Decoded::Done(exit) => self.queue.push_back(exit),
            Decoded::Debug | Decoded::Again => {}
        }
    }

    /// Lets KVM finish an instruction whose exits were handed out, without running another.
    ///
    /// Where that needs user space again (the next iteration of a string instruction, the second
    /// half of a wide access), the exit is queued for the next run.
    pub(crate) fn settle(&mut self) -> Result<()> {
        while self.pending == Pending::Completion {
            self.area.get_mut().immediate_exit = 1;
            let decoded = self.kvm_run();
            self.area.get_mut().immediate_exit = 0;
            match decoded? {
                Some(decoded) => self.take(decoded),
                None => break,
            }
        }
        Ok(())
    }

    /// Gives the value that a read waits for.
    pub(crate) fn fill_read(&mut self, value: u64) -> Result<()> {
        let Pending::Read(mut slot) = self.pending else {
            return Err(BackendError::Other("no read waits for a value".into()));
        };
        let size = usize::from(slot.size);
        let Some(bytes) = self.area.data(slot.offset, size) else {
            return Err(BackendError::Other(
                "the kernel's place for the value is out of its area".into(),
            ));
        };
        bytes.copy_from_slice(&value.to_le_bytes()[..size]);
        slot.left -= 1;
        slot.offset += size as u64;
        self.pending = if slot.left == 0 {
            Pending::Completion
        } else {
            self.queue.push_back(slot.exit());
            Pending::Read(slot)
        };
        Ok(())
    }

    /// Ends what was under way, since the state is about to be replaced: an open read gets zeros
    /// (what it writes is overwritten), exits that nobody fetched are dropped.
    pub(crate) fn abandon_read(&mut self) -> Result<()> {
        // A string instruction asks again for each batch.
        for _ in 0..1 << 16 {
            while matches!(self.pending, Pending::Read(_)) {
                self.fill_read(0)?;
            }
            self.settle()?;
            if self.pending == Pending::Nothing {
                self.queue.clear();
                self.halted = false;
                return Ok(());
            }
        }
        Err(BackendError::Other(
            "an instruction asks for input without end".into(),
        ))
    }

    /// Without an in-kernel APIC: hands over the waiting interrupt, or asks for its window.
    fn offer_interrupt(&mut self) -> Result<()> {
        let Some(vector) = self.waiting_interrupt else {
            return Ok(());
        };
        let ready = self.area.get().ready_for_interrupt_injection != 0;
        self.area.get_mut().request_interrupt_window = u8::from(!ready);
        if ready {
            match sys::interrupt(self.raw(), vector) {
                0 => self.waiting_interrupt = None,
                errno => return Err(error::kernel("KVM_INTERRUPT", -errno)),
            }
        }
        Ok(())
    }

    /// Whether the vCPU waits for something that cannot come while we run it: it is halted, and no
    /// timer that could end that is running.
    fn is_halted_for_good(&mut self) -> Result<bool> {
        let mp_state = self
            .fd
            .get_mp_state()
            .map_err(error::ioctl("KVM_GET_MP_STATE"))?;
        match MpState::from_kernel(mp_state.mp_state) {
            Some(MpState::Halted) => {}
            // Waits for INIT or SIPI, which another vCPU would have to send.
            Some(MpState::Uninitialized | MpState::InitReceived) => return Ok(true),
            _ => return Ok(false),
        }
        if self.shared.irqchip == Irqchip::None {
            return Ok(true);
        }
        let timer = self.apic_timer_is_armed()?;
        if self.current_level()? == Level::L2 {
            return Ok(!timer && !self.l2_has_preemption_timer()?);
        }
        let regs = self.fd.get_regs().map_err(error::ioctl("KVM_GET_REGS"))?;
        Ok(!timer || regs.rflags & 1 << 9 == 0)
    }

    /// Whether the local APIC's timer will raise an interrupt (SDM Vol. 3A "APIC Timer").
    fn apic_timer_is_armed(&self) -> Result<bool> {
        let lapic = self.fd.get_lapic().map_err(error::ioctl("KVM_GET_LAPIC"))?;
        let register = |offset: usize| {
            let mut bytes = [0; 4];
            for (to, from) in bytes.iter_mut().zip(&lapic.regs[offset..]) {
                *to = *from as u8;
            }
            u32::from_le_bytes(bytes)
        };
        let (spurious, entry) = (register(0xf0), register(0x320));
        if spurious & 1 << 8 == 0 || entry & 1 << 16 != 0 {
            return Ok(false);
        }
        Ok(match entry >> 17 & 3 {
            0 => register(0x390) != 0,
            1 => register(0x380) != 0,
            2 => {
                let deadline = nvmx_core::x86::msr::IA32_TSC_DEADLINE;
                self.read_msrs(&[deadline])?.get(&deadline) != Some(&0)
            }
            _ => false,
        })
    }

    /// Runs one instruction.
    ///
    /// KVM's single step is TF of the level that runs, and a switch of level drops it: VM entry
    /// loads RFLAGS from the VMCS, VM exit clears it. So a breakpoint waits where the other level
    /// would go on.
    pub(crate) fn step_one(&mut self) -> Result<Exit> {
        self.settle()?;
        if let Some(exit) = self.queue.pop_front() {
            return Ok(exit);
        }
        self.refuse_open_read()?;
        let mut debug = kvm_guest_debug {
            control: KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_SINGLESTEP,
            ..Default::default()
        };
        if let Some(address) = self.other_level_rip()? {
            debug.control |= KVM_GUESTDBG_USE_HW_BP;
            debug.arch.debugreg[0] = address;
            // DR7: G0, executed instruction, one byte (SDM Vol. 3B "Debug Control Register").
            debug.arch.debugreg[7] = 0x402;
        }
        let before = self.regs()?;
        self.guest_debug(&debug)?;
        let mut result = self.enter_step();
        // A host whose own VMX is emulated (Bochs) also traps behind an exit that completed nothing
        // (an EPT violation of the fetch). An instruction that really jumps to itself changes
        // nothing, however often it runs.
        for _ in 0..SPURIOUS_TRAPS {
            if !matches!(result, Ok(Exit::Stepped)) || self.regs()? != before {
                break;
            }
            result = self.enter_step();
        }
        // Taken back at once, so that TF never shows in a captured vmcs12.
        self.guest_debug(&kvm_guest_debug::default())?;
        result
    }

    fn enter_step(&mut self) -> Result<Exit> {
        let end = Instant::now() + STEP_LIMIT;
        while Instant::now() < end {
            match self.enter(FIRST_LOOK)? {
                Entered::Debug => return Ok(Exit::Stepped),
                Entered::Exit(exit) => return Ok(exit),
                // A HLT that was stepped: the vCPU sleeps behind it.
                Entered::Interrupted if self.is_halted_for_good()? => return Ok(Exit::Stepped),
                Entered::Interrupted => {}
            }
        }
        Ok(Exit::InternalError {
            suberror: 0,
            message: format!(
                "a single step did not end in {STEP_LIMIT:?}: KVM lost it at a switch of level, or \
                 the instruction waits"
            ),
        })
    }

    fn guest_debug(&self, debug: &kvm_guest_debug) -> Result<()> {
        self.fd
            .set_guest_debug(debug)
            .map_err(error::ioctl("KVM_SET_GUEST_DEBUG"))
    }
}
