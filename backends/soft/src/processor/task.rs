//! Far JMP, far CALL and IRET outside 64-bit mode, each of which may be a task switch (SDM Vol. 3A "Task
//! Switching", Vol. 3C "Treatment of Task Switches"). What is none runs natively; so does, with the
//! translator's task switch, one of L1.

use super::{Done, Outcome, Processor, Trap};
use crate::decode;
use iced_x86::{Instruction, Mnemonic, OpKind};
use nvmx_core::delivery::{self, DeliveryFault};
use nvmx_core::paging::WalkFault;
use nvmx_core::vcpu::Exit;
use nvmx_core::vmx::exit::qualification::TaskSwitchSource;
use nvmx_core::x86::control::{cr0, efer, rflags};

/// L1's IDT leads to a task gate.
pub(super) fn unsupported_gate() -> Exit {
    Exit::Unsupported {
        what: "task gate, SDM Vol. 3A \"Interrupt Tasks\"".to_owned(),
    }
}

fn trap(fault: DeliveryFault) -> Trap {
    match fault {
        DeliveryFault::Exception(exception) => exception.into(),
        DeliveryFault::Ept(fault) => WalkFault::Ept(fault).into(),
        DeliveryFault::TaskSwitch(_) => Trap::User(unsupported_gate()),
        DeliveryFault::Unsupported(what) => super::unsupported(what),
    }
}

impl Processor {
    /// Far JMP, far CALL, IRET.
    pub(super) fn far_transfer(&mut self, instruction: &Instruction) -> Outcome {
        let protected = self.cpu.sregs.cr0 & cr0::PE != 0 && self.cpu.regs.rflags & rflags::VM == 0;
        if self.in_l2() && protected && self.cpu.sregs.efer & efer::LMA == 0 {
            self.leave_for_task(instruction)?;
        }
        if self.cpu.cpl() == 3 && self.cpu.regs.rflags & rflags::AC != 0 {
            return self.check_alignment(instruction);
        }
        self.effects.native_once = true;
        Ok(Done::Jumped)
    }

    /// The VM exit, or the fault before it, if the instruction attempts a task switch.
    fn leave_for_task(&mut self, instruction: &Instruction) -> Result<(), Trap> {
        let (task, source) = match instruction.mnemonic() {
            Mnemonic::Jmp | Mnemonic::Call => {
                let Some(selector) = self.far_selector(instruction) else {
                    return Ok(());
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
            _ => return Ok(()),
        };
        match task {
            Some(task) => {
                let length = Some(instruction.len() as u32);
                Err(self.intercepts.task_switch(task, source, length).into())
            }
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
