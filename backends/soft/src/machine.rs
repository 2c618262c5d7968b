//! Between engine and processor: registers go across, events come back, translations are answered.

use crate::decode;
use crate::engine::{
    Access as EngineAccess, Action, Env, Fault, Fill, FillRequest, Intercept, Intercepts, Machine,
    Mmio, NativeMsr, TlbEntry,
};
use crate::processor::{Processor, kind, may_be_xsave};
use crate::ram::Reach;
use iced_x86::{OpKind, Register};
use nvmx_core::addr::L1Phys;
use nvmx_core::cpu::Interruptibility;
use nvmx_core::memory::GuestMemory;
use nvmx_core::paging::{self, Access, AccessKind, WalkFault};
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::controls::{Primary, Secondary};
use nvmx_core::x86::control::{cr4, dr7, rflags};
use nvmx_core::x86::{Event, Exception, Gpr};

/// The processor with what one run adds.
pub(crate) struct Runner<'a> {
    /// The processor.
    pub(crate) processor: &'a mut Processor,
    /// Stop when this many instructions have been executed since the machine started.
    pub(crate) last_instruction: u64,
    /// Stop when this many nested events have happened since the machine started.
    pub(crate) last_event: u64,
    /// Why a handler stopped the engine.
    pub(crate) exit: Option<Exit>,
    /// Handlers called since the engine was entered.
    pub(crate) calls: u32,
    /// Handlers called since an instruction was last executed.
    pub(crate) idle_calls: u32,
    /// The engine's count of instructions at the last call.
    pub(crate) executed_at_call: u64,
}

/// Handlers called in one run of the engine before it comes back to look at the clock.
const CALLS_PER_SLICE: u32 = 1 << 12;
/// Events in a row without an instruction between them that are taken for an endless loop: each
/// handler's first instruction raises the next exception.
const MOST_IDLE_CALLS: u32 = 1 << 16;

/// What STI and MOV SS hold off.
const SHADOWS: Interruptibility = Interruptibility::STI.union(Interruptibility::MOV_SS);

/// Takes the engine's registers over into the processor.
pub(crate) fn sync_in(processor: &mut Processor, env: &Env) {
    let cpu = &mut processor.cpu;
    cpu.regs = env.regs();
    env.read_sregs(&mut cpu.sregs);
    cpu.msrs.kernel_gs_base = env.msr(NativeMsr::KernelGsBase);
    cpu.tsc.ticks = env.executed().wrapping_add(cpu.tsc.idle);
    if !env.interrupt_shadow() {
        cpu.interruptibility.remove(SHADOWS);
    } else if env.executed() != processor.executed_at_sync
        || !cpu.interruptibility.intersects(SHADOWS)
    {
        // The translator does not keep which of the two it was. STI casts a shadow where it sets
        // RFLAGS.IF.
        let sti = cpu.regs.rflags & rflags::IF != 0 && processor.is_behind_sti();
        let shadow = if sti {
            Interruptibility::STI
        } else {
            Interruptibility::MOV_SS
        };
        processor.cpu.interruptibility.remove(SHADOWS);
        processor.cpu.interruptibility.insert(shadow);
    }
}

/// Puts the processor's registers back into the engine, with everything that follows from them.
pub(crate) fn sync_out(processor: &mut Processor, env: &mut Env) {
    let retired = processor.cpu.tsc.executed().wrapping_sub(env.executed());
    if retired != 0 {
        env.retired(retired);
    }
    processor.executed_at_sync = env.executed();
    let cpu = &processor.cpu;
    env.set_regs(&cpu.regs);
    env.write_sregs(&cpu.sregs);
    env.set_debug_regs(&cpu.debug);
    env.set_msr(NativeMsr::KernelGsBase, cpu.msrs.kernel_gs_base);
    env.set_msr(NativeMsr::Star, cpu.msrs.star);
    env.set_msr(NativeMsr::SysenterCs, cpu.msrs.sysenter_cs);
    env.set_msr(NativeMsr::TscAux, cpu.msrs.tsc_aux);
    env.set_interrupt_shadow(
        cpu.interruptibility
            .intersects(Interruptibility::STI | Interruptibility::MOV_SS),
    );
    processor
        .ram
        .take_written(|address, length| env.host_wrote(address, length));
    let effects = std::mem::take(&mut processor.effects);
    if effects.flush {
        env.flush_tlb();
    } else if let Some(page) = effects.flush_page {
        env.flush_page(page);
    }
    if effects.controls {
        env.set_intercepts(intercepts(processor));
    }
    if effects.fpu {
        env.set_fxsave(&processor.fpu);
    }
    if effects.native_once {
        env.run_natively_once();
    }
    env.set_interrupt_request(processor.wants_interrupt_window());
}

/// What the engine must report beside what it always does.
fn intercepts(processor: &Processor) -> Intercepts {
    let mut set = Intercepts::ALWAYS;
    if processor.iret_ends_blocking() {
        set = set.with(Intercept::Iret);
    }
    if processor.cpu.sregs.cr4 & cr4::UMIP != 0 {
        for intercept in [
            Intercept::CrRead(0),
            Intercept::IdtrRead,
            Intercept::GdtrRead,
            Intercept::LdtrRead,
            Intercept::TrRead,
        ] {
            set = set.with(intercept);
        }
    }
    let debug_registers =
        |set: Intercepts| (0..8).fold(set, |set, number| set.with(Intercept::DrRead(number)));
    if processor.debug_registers().dr7 & dr7::GD != 0 {
        set = debug_registers(set);
    }
    if !processor.cpu.vmx.guest_mode {
        return set;
    }
    let wanted = &processor.intercepts;
    for (on, intercept) in [
        (wanted.cr0_mask != 0, Intercept::CrRead(0)),
        (wanted.cr4_mask != 0, Intercept::CrRead(4)),
        (
            wanted.primary.contains(Primary::CR3_STORE_EXITING),
            Intercept::CrRead(3),
        ),
        (
            wanted.primary.contains(Primary::INVLPG_EXITING),
            Intercept::Invlpg,
        ),
    ] {
        if on {
            set = set.with(intercept);
        }
    }
    if wanted.primary.contains(Primary::MOV_DR_EXITING) {
        set = debug_registers(set);
    }
    if wanted
        .secondary
        .contains(Secondary::DESCRIPTOR_TABLE_EXITING)
    {
        for intercept in [
            Intercept::IdtrRead,
            Intercept::GdtrRead,
            Intercept::LdtrRead,
            Intercept::TrRead,
            Intercept::LdtrWrite,
            Intercept::TrWrite,
        ] {
            set = set.with(intercept);
        }
    }
    set
}

impl Runner<'_> {
    /// How many instructions the engine may run from here until the model must look again.
    pub(crate) fn deadline(&self, executed: u64) -> u64 {
        let processor = &*self.processor;
        let mut deadline = self.last_instruction;
        let stepping = processor.one_instruction
            || processor.waits_for_shadow()
            || processor.breakpoints_armed()
            || processor.monitor_trap();
        if stepping {
            deadline = deadline.min(executed.saturating_add(1));
        }
        if let Some(tsc) = processor.next_deadline() {
            let ticks = tsc.saturating_sub(processor.cpu.tsc.l1());
            deadline = deadline.min(executed.saturating_add(ticks.max(1)));
        }
        let left = processor.until.saturating_sub(processor.cpu.tsc.ticks);
        let overflow = processor.cpu.pmu.alarm().max(executed.saturating_add(1));
        deadline.min(executed.saturating_add(left)).min(overflow)
    }

    /// After a handler: stop, or go on with the state put back.
    fn finish(&mut self, env: &mut Env, exit: Option<Exit>) -> Action {
        sync_out(self.processor, env);
        if exit.is_some() {
            self.exit = exit;
            return Action::Stop;
        }
        if self.processor.event_count >= self.last_event
            || env.executed() >= self.last_instruction
            || self.processor.cpu.tsc.ticks >= self.processor.until
        {
            self.exit = Some(Exit::Budget);
            return Action::Stop;
        }
        if self.processor.outside.leave || self.processor.ram.is_absent() {
            return Action::Stop;
        }
        if self.loops_without_progress(env.executed()) {
            return Action::Stop;
        }
        env.set_deadline(self.deadline(env.executed()));
        Action::Continue
    }

    /// Counts handlers: whether the engine must come back although the guest could go on.
    fn loops_without_progress(&mut self, executed: u64) -> bool {
        self.calls += 1;
        self.idle_calls = if executed == self.executed_at_call {
            self.idle_calls + 1
        } else {
            0
        };
        self.executed_at_call = executed;
        if self.idle_calls > MOST_IDLE_CALLS {
            self.exit = Some(Exit::InternalError {
                suberror: 0,
                message: format!(
                    "{MOST_IDLE_CALLS} events without an instruction executed between them"
                ),
            });
            return true;
        }
        self.calls >= CALLS_PER_SLICE
    }

    /// An instruction that reads and writes its operand needs the right to write before it reads.
    fn may_write_too(&mut self, request: &FillRequest) -> Result<(), WalkFault> {
        if !request.read_modify_write {
            return Ok(());
        }
        let access = Access {
            kind: AccessKind::Write,
            ..Self::access(request)
        };
        self.processor.translate(request.vaddr, access).map(|_| ())
    }

    fn access(request: &FillRequest) -> Access {
        Access {
            kind: kind(request.access),
            user: request.user,
            implicit_supervisor: false,
        }
    }
}

impl Machine for Runner<'_> {
    fn intercept(&mut self, env: &mut Env, intercept: Intercept, error_code: u32) -> Action {
        sync_in(self.processor, env);
        if intercept == Intercept::Exception(Exception::UD) && may_be_xsave(env.instruction_bytes())
        {
            self.processor.fpu = env.fxsave();
        }
        let exit = self
            .processor
            .handle(intercept, error_code, env.instruction_bytes());
        self.finish(env, exit)
    }

    fn tlb_fill(&mut self, env: &mut Env, request: &FillRequest) -> Fill {
        let processor = &mut *self.processor;
        if !processor.regime.is_canonical(request.vaddr) {
            return Fill::Fault;
        }
        processor.regime.alignment_check = !request.smap;
        let mapping = paging::translate(
            &processor.ram,
            &processor.regime,
            request.vaddr,
            Self::access(request),
        );
        processor.keep_log_index();
        processor
            .ram
            .take_written(|address, length| env.host_wrote(address, length));
        // What is fetched ahead may never be reached: `fault` and `mmio` find out.
        processor.ram.take_absent();
        match mapping {
            Err(_) => Fill::Fault,
            Ok(mapping) => {
                let gpa = mapping.physical.0;
                let write = request.access == EngineAccess::Write;
                let Reach::Ram { writable } = processor.ram.reach(gpa, write) else {
                    return Fill::Mmio { gpa };
                };
                // A translation kept would let the next write pass, whatever its sub-page permission.
                if mapping.sub_page
                    || processor.is_apic_page(gpa)
                    || processor
                        .apic_virtualization
                        .is_access_page(mapping.physical)
                {
                    return Fill::Mmio { gpa };
                }
                Fill::Map(TlbEntry {
                    gpa: processor.ram.name(gpa),
                    readable: mapping.readable,
                    writable: mapping.writable && writable,
                    executable: mapping.executable,
                })
            }
        }
    }

    fn fault(&mut self, env: &mut Env, fault: &Fault) -> Action {
        sync_in(self.processor, env);
        let request = &fault.request;
        let processor = &mut *self.processor;
        processor.cpu.vmx.run_pending = false;
        let exit = if processor.regime.is_canonical(request.vaddr) {
            processor.regime.alignment_check = !request.smap;
            let result = paging::translate(
                &processor.ram,
                &processor.regime,
                request.vaddr,
                Self::access(request),
            );
            processor.keep_log_index();
            match result {
                // What refused the access before is gone: an entry that a walk since then completed.
                Ok(_) => None,
                Err(fault) => processor.walk_fault(fault, request.read_modify_write),
            }
        } else {
            let vector = if uses_stack(processor, env.instruction_bytes(), request.vaddr) {
                Exception::SS
            } else {
                Exception::GP
            };
            processor.raise_and_look(Event::exception(Exception {
                vector,
                error_code: Some(0),
                payload: 0,
            }))
        };
        self.finish(env, exit)
    }

    fn mmio(&mut self, env: &mut Env, access: &Mmio) -> Action {
        sync_in(self.processor, env);
        self.processor.cpu.vmx.run_pending = false;
        let write = access.request.access == EngineAccess::Write;
        if self.processor.ram.reach(access.gpa, write) == Reach::Absent {
            self.processor.ram.note_absent(access.gpa);
            return self.finish(env, None);
        }
        let exit = if let Err(fault) = self.may_write_too(&access.request) {
            self.processor.walk_fault(fault, true)
        } else if let Some(apic_access) = self.processor.apic_access_exit(
            kind(access.request.access),
            L1Phys(access.gpa),
            access.request.size as usize,
            env.instruction_bytes(),
        ) {
            self.processor
                .apic_access(apic_access, env.instruction_bytes())
        } else if access.request.access == EngineAccess::Fetch {
            Some(Exit::Unsupported {
                what: format!(
                    "code at {:#x}, where there is no RAM, SDM Vol. 3A \"Memory-Mapped I/O\"",
                    access.gpa
                ),
            })
        } else {
            self.processor.mmio(env.instruction_bytes())
        };
        self.finish(env, exit)
    }
}

/// Whether the instruction's access to `address` goes through SS: a fault of canonicality is then #SS
/// (SDM Vol. 1 "Canonical Addressing").
fn uses_stack(processor: &Processor, bytes: &[u8], address: u64) -> bool {
    /// No frame is longer.
    const NEAR: u64 = 0x1000;
    let cpu = &processor.cpu;
    decode::decode(bytes, decode::code_bits(cpu), cpu.regs.rip).is_some_and(|instruction| {
        let has_operand = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
        let distance = address.wrapping_sub(cpu.regs.get(Gpr::Rsp));
        // PUSH and POP of memory: the operand, or the stack.
        let of_stack = !has_operand || distance.min(distance.wrapping_neg()) < NEAR;
        instruction.is_stack_instruction() && of_stack
            || instruction.memory_segment() == Register::SS
    })
}

impl Processor {
    /// Whether the byte before RIP is an STI.
    fn is_behind_sti(&mut self) -> bool {
        const STI: u8 = 0xfb;
        let base = decode::segment_base(&self.cpu, Register::CS);
        let address = base.wrapping_add(self.cpu.regs.rip).wrapping_sub(1);
        let access = Access::explicit(AccessKind::Fetch, self.cpu.cpl());
        let mut byte = [0];
        self.translate(address, access)
            .is_ok_and(|mapping| self.ram.read(mapping.physical, &mut byte).is_ok())
            && byte[0] == STI
    }

    /// A page walk refused an access of the instruction at RIP.
    fn walk_fault(&mut self, fault: WalkFault, read_modify_write: bool) -> Option<Exit> {
        match fault {
            WalkFault::PageFault(exception) => self.raise_and_look(Event::exception(exception)),
            WalkFault::Ept(fault) => self
                .ept_fault(&fault, read_modify_write)
                .or_else(|| self.boundary()),
        }
    }
}
