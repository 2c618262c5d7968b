//! Far JMP, far CALL and IRET outside 64-bit mode, each of which may be a task switch (SDM Vol. 3A "Task
//! Switching", Vol. 3C "Treatment of Task Switches"). L2's exits, L1's is made; what is none runs natively.

use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{Instruction, Mnemonic, OpKind};
use nvmx_core::cpu::Interruptibility;
use nvmx_core::delivery::{self, DeliveryFault};
use nvmx_core::paging::WalkFault;
use nvmx_core::vmx::entry;
use nvmx_core::vmx::exit::qualification::TaskSwitchSource;
use nvmx_core::x86::control::{cr0, efer, rflags};

fn trap(fault: DeliveryFault) -> Trap {
    match fault {
        DeliveryFault::Exception(exception) => exception.into(),
        DeliveryFault::Ept(fault) => WalkFault::Ept(fault).into(),
        DeliveryFault::TaskSwitch(_) => super::unsupported(
            "a task gate where no event is delivered, SDM Vol. 3A \"Interrupt Tasks\"",
        ),
        DeliveryFault::Unsupported(what) => super::unsupported(what),
    }
}

fn is_iret(instruction: &Instruction) -> bool {
    matches!(
        instruction.mnemonic(),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq
    )
}

impl Processor {
    /// Far JMP, far CALL, IRET.
    pub(super) fn far_transfer(&mut self, instruction: &Instruction) -> Outcome {
        let protected = self.cpu.sregs.cr0 & cr0::PE != 0 && self.cpu.regs.rflags & rflags::VM == 0;
        if protected
            && self.cpu.sregs.efer & efer::LMA == 0
            && let Some(done) = self.attempt_task_switch(instruction)?
        {
            return Ok(done);
        }
        if self.cpu.cpl() == 3
            && let Err(trap) = self.look_at_pops(instruction)
        {
            if is_iret(instruction) && self.iret_ends_blocking() {
                // Also if it faults.
                self.iret()?;
            }
            return Err(trap);
        }
        if protected && self.pops_a_flag_that_is_ignored(instruction) {
            return Err(super::unsupported(
                "IRET of RFLAGS.VM where it means nothing, SDM Vol. 2A \"IRET\"",
            ));
        }
        self.effects.native_once = true;
        Ok(Done::Jumped)
    }

    /// What of the stack faults at privilege level 3, before the instruction runs.
    fn look_at_pops(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        if self.cpu.regs.rflags & rflags::AC != 0 {
            self.refuse_misaligned(instruction)?;
        }
        self.check_pops(instruction)
    }

    /// Whether IRETD finds RFLAGS.VM on the stack and does not go to virtual-8086 mode for it: above CPL 0 and in
    /// IA-32e mode. The translator would.
    fn pops_a_flag_that_is_ignored(&mut self, instruction: &Instruction) -> bool {
        let in_ia32e_mode = self.cpu.sregs.efer & efer::LMA != 0;
        if instruction.mnemonic() != Mnemonic::Iretd || !in_ia32e_mode && self.cpu.cpl() == 0 {
            return false;
        }
        const BEFORE_FLAGS: u64 = 8;
        let address = decode::stack_address(&self.cpu).wrapping_add(BEFORE_FLAGS);
        let mut flags = [0; 4];
        self.read_linear(address, &mut flags).is_ok()
            && u64::from(u32::from_le_bytes(flags)) & rflags::VM != 0
    }

    /// Whether the user may read what IRET or far RET pops; natively they read it as the supervisor. What
    /// faults before they pop is left to them.
    fn check_pops(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        const IOPL: u64 = 3 << 12;
        let flags = self.cpu.regs.rflags;
        let long = self.cpu.sregs.efer & efer::LMA != 0;
        let immediate = match instruction.mnemonic() {
            _ if is_iret(instruction) => {
                let virtual_8086 = flags & rflags::VM != 0;
                if virtual_8086 && flags & IOPL != IOPL || long && flags & rflags::NT != 0 {
                    return Ok(());
                }
                0
            }
            Mnemonic::Retf if instruction.op_count() == 1 => instruction.immediate16(),
            Mnemonic::Retf => 0,
            _ => return Ok(()),
        };
        let length = instruction.stack_pointer_increment() - i32::from(immediate);
        let stack = decode::stack_address(&self.cpu);
        if !self.regime.is_canonical(stack) {
            return Ok(());
        }
        Ok(self.check_read(stack, length.max(1) as u64)?)
    }

    /// The VM exit of L2, the task switch of L1, or the fault before either, if the instruction attempts a
    /// task switch.
    fn attempt_task_switch(&mut self, instruction: &Instruction) -> Result<Option<Done>, Trap> {
        let (task, source) = match instruction.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call => {
                let Some(selector) = self.far_selector(instruction) else {
                    return Ok(None);
                };
                let task = self
                    .on_a_copy(|cpu, memory| delivery::task_of_far_branch(cpu, memory, selector))
                    .map_err(trap)?;
                let source = if instruction.mnemonic() == Mnemonic::Jmp {
                    TaskSwitchSource::Jmp
                } else {
                    TaskSwitchSource::Call
                };
                (task, source)
            }
            _ if self.cpu.regs.rflags & rflags::NT != 0 => {
                let task = self
                    .on_a_copy(|cpu, memory| delivery::task_of_iret(cpu, memory))
                    .map_err(trap)?;
                (Some(task), TaskSwitchSource::Iret)
            }
            _ => return Ok(None),
        };
        match task {
            Some(task) if self.in_l2() => {
                let length = Some(instruction.len() as u32);
                Err(self.intercepts.task_switch(task, source, length).into())
            }
            Some(task) => {
                let switch = delivery::Switch {
                    task,
                    source,
                    return_rip: self.cpu.next_rip(instruction.len() as u64),
                    external: false,
                    error_code: None,
                };
                self.cpu.tsc.ticks = self.cpu.tsc.ticks.wrapping_add(1);
                self.switch_task(&switch).map_err(trap)?;
                if source == TaskSwitchSource::Iret {
                    self.cpu.interruptibility.remove(Interruptibility::NMI);
                    self.effects.controls = true;
                }
                Ok(Some(Done::Jumped))
            }
            None => Ok(None),
        }
    }

    /// Switches tasks. An error behind the point of no return is the new task's, whose registers are there.
    pub(super) fn switch_task(&mut self, switch: &delivery::Switch) -> Result<(), DeliveryFault> {
        self.on_a_copy(|cpu, memory| delivery::begin(cpu, memory, switch))?;
        self.retire_breakpoints();
        if !entry::reload_pdptes(&mut self.cpu, &self.ram) {
            return Err(DeliveryFault::Unsupported(
                "a task switch to invalid PDPTEs, SDM Vol. 3A \"PAE Paging\"",
            ));
        }
        self.effects.controls = true;
        self.address_space_changed();
        match self.on_a_copy(|cpu, memory| delivery::finish_switch(cpu, memory, switch))? {
            Some(exception) => Err(DeliveryFault::Exception(exception)),
            None => Ok(()),
        }
    }

    /// The selector of a far branch; `None` where its operand faults, which it then does natively.
    fn far_selector(&mut self, instruction: &Instruction) -> Option<u16> {
        match instruction.op0_kind() {
            OpKind::FarBranch16 | OpKind::FarBranch32 => Some(instruction.far_branch_selector()),
            _ => {
                let size = instruction.memory_size().size() as u64;
                let address = decode::resolve(&self.cpu, instruction, 0, size, false).ok()?;
                let at = address.linear.wrapping_add(size - 2);
                let mut selector = [0; 2];
                self.read_linear(at, &mut selector).ok()?;
                Some(u16::from_le_bytes(selector))
            }
        }
    }
}
